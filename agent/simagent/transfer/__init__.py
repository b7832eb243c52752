"""Inputs in, outputs out."""
