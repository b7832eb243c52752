"""The daemon: claims tasks, runs attempts, keeps the promise."""
