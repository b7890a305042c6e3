"""Numerical methods that several evaluations share."""
