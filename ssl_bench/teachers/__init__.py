"""Frozen networks that a loss compares with."""
