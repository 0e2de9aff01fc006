"""From a suite to a run folder: the runner, its workers and executors, the store of its records."""
