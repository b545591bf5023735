"""One file a way to distil."""
