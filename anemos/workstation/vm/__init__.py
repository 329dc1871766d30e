"""Local, throw-away machines under QEMU: `test` and `demo`."""
