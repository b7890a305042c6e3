"""Rows, leaderboards and paper tables: what was measured, and what people read."""
