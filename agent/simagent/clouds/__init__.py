"""The clouds that machines are rented from, by their metadata servers."""
