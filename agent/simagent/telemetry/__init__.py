"""Logs, metrics and the timeline of an attempt."""
