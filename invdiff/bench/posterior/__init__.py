"""Priors with a known posterior as tasks, and distances to it."""
