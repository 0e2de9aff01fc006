"""Head-to-head benchmarks: what is compared (`suite`), how it is run (`run`), what is made of it (`report`, `posterior`).

Knows `solve`, `metrics` and `priors`. Only the leaves (`cli`, `app`) and `benchmarks/` import it.
"""
