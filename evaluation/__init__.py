"""Score a split, keep its embeddings, write and compare results."""
