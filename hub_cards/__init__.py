"""What a model repository on the Hub needs besides weights: cards, handler, pipeline, Space, push."""
