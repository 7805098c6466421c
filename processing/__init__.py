"""The processor: frames and words. Everything in this folder travels to the Hub and imports no other room."""
