"""What a restoration costs. Columns of a record, not computed from images."""

from __future__ import annotations

from invdiff.metrics.base import Metric, register_metric

GRADIENT_CALL = 2.5
"""Forward calls that a network call with a vector-Jacobian product takes: the call itself, and a backward pass at about
1.5 (it needs no gradients of the weights)."""


def forward_equivalents(nfe: int, gradient: bool) -> float:
    """Cost in forward calls: `nfe` network calls, each `GRADIENT_CALL` where the method differentiates the network.

    Comparing by network calls alone flatters the samplers with a gradient (PiGDM, MCG, DPS).
    """
    return float(nfe * (GRADIENT_CALL if gradient else 1.0))


register_metric(Metric("nfe", "network calls", "lower", "", "run", "network calls per image", decimals=0))
register_metric(
    Metric("vjps", "VJPs", "lower", "", "run", "vector-Jacobian products of the network per image", decimals=0)
)
register_metric(
    Metric(
        "forward_equivalents",
        "forward equivalents",
        "lower",
        "calls",
        "run",
        "cost in forward calls; a gradient call counts 2.5",
        decimals=0,
    )
)
register_metric(
    Metric("seconds", "time", "lower", "s", "run", "wall-clock time per image within its batch", decimals=2)
)
register_metric(
    Metric("peak_memory", "peak memory", "lower", "MiB", "run", "of the process (or GPU) during a batch", decimals=0)
)
