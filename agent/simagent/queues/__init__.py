"""Task queue engines."""
