"""What runs in RAM: the first program, the network, disks, the installation."""
