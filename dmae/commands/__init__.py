"""One module per group of `dmae` commands; each imports its heavy parts only when it runs."""
