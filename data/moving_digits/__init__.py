"""MovingDigits: generated clips of coloured handwritten digits that move, with known near misses."""
