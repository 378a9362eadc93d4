"""`memoria bench`: a load for a running daemon, and the figures of how it bears it."""
