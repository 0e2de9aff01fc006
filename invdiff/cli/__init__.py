"""The `invdiff` command.

One module per group of commands, the frame in `terminal`. A leaf: only `python -m invdiff` imports it.
"""

from invdiff.cli import benchmarking, listing, restoring, serving, tables, training
from invdiff.cli.terminal import app, main

__all__ = ["app", "benchmarking", "listing", "main", "restoring", "serving", "tables", "training"]
