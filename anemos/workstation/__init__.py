"""What runs on the operator's machine: hosts, secrets, SSH, the local VM, the phases."""
