"""Retrieval metrics as an `evaluate` module around plain numpy functions."""
