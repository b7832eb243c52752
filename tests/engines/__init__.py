"""Real container engines for tests, that touch none which the machine may run already."""
