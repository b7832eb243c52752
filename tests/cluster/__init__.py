"""MPI clusters on one machine: containers stand for VMs, agents in them are the real ones."""
