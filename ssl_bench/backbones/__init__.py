"""Encoders behind one contract."""
