"""Everything between a dataset and a checkpoint."""
