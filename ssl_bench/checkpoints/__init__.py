"""Encoder files: ours, and those that the authors of methods released."""
