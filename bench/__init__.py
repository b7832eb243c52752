"""Benchmarks against the budgets of the design: `make bench`, or `python -m bench NAME…`."""
