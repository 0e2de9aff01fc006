"""Head-to-head benchmarks: suites, the runner, its records, and what is made of them."""
