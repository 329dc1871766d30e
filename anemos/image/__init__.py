"""IMGBUILD -> root file system -> image. Runs in every place."""
