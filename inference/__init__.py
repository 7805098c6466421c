"""Load a model and its processor by name, embed texts and videos, show progress."""
