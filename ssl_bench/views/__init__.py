"""Random crops of images, as data, and their execution."""

VERSION = 1  # raised by every change that can move a pixel of a training view
