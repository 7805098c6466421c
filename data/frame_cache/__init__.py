"""Frames of every clip, decoded once and kept compressed."""
