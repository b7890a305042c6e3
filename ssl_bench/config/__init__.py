"""Recipes, suites and protocols: from files to typed constructor keywords."""
