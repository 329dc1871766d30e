"""What crosses between the machines: its form, for whoever writes it and whoever reads it."""
