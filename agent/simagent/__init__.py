"""simagent: the worker agent of a simulation fleet."""

__version__ = "0.1.0"
