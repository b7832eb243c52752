"""How the head of an MPI cluster reaches its members, and what those do for it."""
