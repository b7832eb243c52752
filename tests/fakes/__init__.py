"""Stand-ins for the outside, and ways to make it fail."""
