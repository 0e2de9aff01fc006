"""What a restoration costs. Columns of a record, not computed from images."""

from __future__ import annotations

from invdiff.metrics.base import Metric, register_metric

BACKWARD_CALL = 1.5
"""Forward calls that a vector-Jacobian product takes: a backward pass needs no gradients of the weights."""

GRADIENT_CALL = 1 + BACKWARD_CALL
"""Forward calls that a network call with one vector-Jacobian product takes."""


def forward_equivalents(nfe: int, vjps: int) -> float:
    """Cost in forward calls of `nfe` network calls and `vjps` vector-Jacobian products, at `BACKWARD_CALL` each.

    Comparing by network calls alone flatters the samplers with gradients (PiGDM, MCG, DPS; MMPS with several per call).
    """
    return nfe + BACKWARD_CALL * vjps


register_metric(Metric("nfe", "network calls", "lower", "", {"run"}, "network calls per image", decimals=0))
register_metric(
    Metric("vjps", "VJPs", "lower", "", {"run"}, "vector-Jacobian products of the network per image", decimals=0)
)
register_metric(
    Metric(
        "forward_equivalents",
        "forward equivalents",
        "lower",
        "calls",
        {"run"},
        "cost in forward calls; a vector-Jacobian product counts 1.5",
        decimals=0,
    )
)
register_metric(
    Metric("seconds", "time", "lower", "s", {"run"}, "wall-clock time per image within its batch", decimals=2)
)
register_metric(
    Metric(
        "peak_memory",
        "peak memory",
        "lower",
        "MiB",
        {"run"},
        "of the GPU during a batch; not recorded on a CPU",
        decimals=0,
    )
)
