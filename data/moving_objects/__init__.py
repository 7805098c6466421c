"""MovingObjects: generated clips of named things that move, told in part by captions, with known near misses."""
