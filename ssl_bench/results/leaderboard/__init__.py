"""Rankings of rows."""
