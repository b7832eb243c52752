"""What starts the ranks of an MPI step."""
