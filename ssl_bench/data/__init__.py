"""Data sets: labelled images with a content fingerprint."""

# Raised by every change that can move an image, a label or a split without moving the fingerprint of its source.
VERSIONS = {"shapes": 1, "scenes": 1, "clips": 1, "images": 1, "masks": 1}  # three drawn; two read from files
