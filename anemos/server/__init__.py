"""What runs on the system of a server, old or new: shell first, then Python from the base image."""
