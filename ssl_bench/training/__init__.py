"""The training loop, what watches it, and what it costs."""

VERSION = 1  # raised by every change that can move what a method learns: order of images, optimisers, schedules
