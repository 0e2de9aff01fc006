"""The `invdiff` command."""

from invdiff.cli import benchmarking, listing, restoring, training
from invdiff.cli.terminal import app, main

__all__ = ["app", "benchmarking", "listing", "main", "restoring", "training"]
