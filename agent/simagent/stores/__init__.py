"""Object store engines."""
