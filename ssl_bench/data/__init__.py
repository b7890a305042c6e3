"""Data sets: labelled images with a content fingerprint."""

# Raised by every change that can move an image, a label or a split without moving the fingerprint of its source.
VERSIONS = {"shapes": 1, "images": 1}  # drawn; read from files
