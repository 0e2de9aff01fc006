"""From a suite to a run folder: the runner, its workers and executors, the store of its records.

It knows `solve`, `metrics` and `bench.suite`; imported by the command line, and by Ray workers as it is.
"""
