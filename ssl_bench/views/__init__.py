"""Random crops of images, as data, and their execution."""
