"""One number and its file."""
