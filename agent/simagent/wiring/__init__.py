"""The only place that makes what works together, from the configuration."""
