"""The model. Everything in this folder travels to the Hub as flat files and imports no other room."""
