"""Data sets: labelled images with a content fingerprint."""
