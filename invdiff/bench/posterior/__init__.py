"""Priors with a known posterior as tasks, and distances to it.

It knows `priors` and `metrics`; only the rest of `bench` imports it.
"""
