"""Encode a corpus of videos, index it, search it, serve it."""
