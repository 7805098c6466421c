"""One module per dataset: annotation files as they are found -> annotated clips."""
