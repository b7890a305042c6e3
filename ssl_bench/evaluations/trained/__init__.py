"""Evaluations that train through the encoder."""
