"""The shelf of simulator images: what is on it, how it is built, and whether it works."""
