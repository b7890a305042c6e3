"""Files, progress, errors, processes."""
