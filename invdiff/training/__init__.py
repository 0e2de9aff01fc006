"""Making a backbone: the pictures, the loop, and what it is worth on pictures held out.

Knows `backbones`. Only `cli` and `benchmarks/` import it; nothing of it is on the way of a restoration.
"""
