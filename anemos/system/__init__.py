"""IMGBUILD -> root file system. Runs in every place."""
