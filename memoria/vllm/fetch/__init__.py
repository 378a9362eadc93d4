"""Models fetched from the hub before an engine starts: which files, by which process, and what went wrong."""
