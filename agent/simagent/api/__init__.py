"""The Python client: what `from simagent import Client` gives, and the command line stands on."""
