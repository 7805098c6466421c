"""`dmae serve`: a page and an API over one index. See docs/server.md."""
