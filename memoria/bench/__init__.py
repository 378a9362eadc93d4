"""`memoria bench`: a load for a running daemon, and its figures."""
