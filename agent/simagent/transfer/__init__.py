"""Inputs and outputs: archives, manifests, and how they come and go."""
