"""Root file system -> image files. Runs on the workstation."""
