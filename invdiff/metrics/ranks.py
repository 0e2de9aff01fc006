"""Calibration: the rank of the truth among the samples, over many measurements, and how often intervals hold it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from invdiff.errors import InvdiffError
from invdiff.metrics.base import Metric, Unavailable, register_metric

if TYPE_CHECKING:
    from invdiff.bench.posterior.reference import Exact

LEVELS = (0.5, 0.9)
"""Credible levels whose coverage is reported."""


def coverage(samples: Tensor, truth: Tensor, level: float) -> float:
    """Share of the elements of `truth` that lie in the central interval of their own coordinate that holds `level` of `samples`.

    Args:
        samples: (n, d) of a method.
        truth: (m, d) draws of the exact posterior: the coverage for this measurement. Or (..., 1, d) with samples
            (..., n, d): the truths of many measurements, each against its own samples.
        level: 0..1; the ideal result. Below, the method is over-confident. 0.9 needs 19 samples or more.
    """
    tail = (1 - level) / 2
    low, high = _quantile(samples.double(), tail), _quantile(samples.double(), 1 - tail)
    truth = truth.double()
    return float(((truth >= low) & (truth <= high)).double().mean())


def _quantile(samples: Tensor, q: float) -> Tensor:
    """Quantile along the samples at plotting position k / (n + 1), so that intervals of few samples cover as they should."""
    n = samples.shape[-2]
    position = min(max(q * (n + 1) - 1, 0.0), n - 1.0)
    low = math.floor(position)
    ordered = samples.sort(dim=-2).values
    above = ordered[..., min(low + 1, n - 1), :]
    return (ordered[..., low, :] + (position - low) * (above - ordered[..., low, :])).unsqueeze(-2)


def ranks(truth: Tensor, samples: Tensor) -> Tensor:
    """How many of the samples lie below the truth: uniform on 0..L if they come from the posterior (Talts et al., 2018).

    Args:
        truth: (m,), one test quantity of m truths.
        samples: (m, L), the same of L samples for each.

    Returns:
        (m,) whole numbers, 0..L.
    """
    return (samples < truth[:, None]).sum(1)


def rank_histogram(rank: Tensor, samples: int, bins: int | None = None) -> Tensor:
    """Counts of the ranks 0..samples in `bins` equal bins; `bins` divides samples + 1, by default it is that up to 20."""
    values = samples + 1
    bins = bins or max(b for b in range(1, min(values, 20) + 1) if values % b == 0)
    if values % bins:
        raise InvdiffError(f"bins must divide the {values} possible ranks of {samples} samples, got {bins}")
    return torch.bincount((rank * bins) // values, minlength=bins)


def uniformity(histogram: Tensor | Sequence[int]) -> float:
    """p-value of Pearson's chi-square test that the counts come from the uniform distribution."""
    from scipy import stats

    return float(stats.chisquare(np.asarray(histogram)).pvalue)


def rank_of_truth(samples: Tensor, exact: Exact, space: str) -> float:
    """Rank of the truth among the samples along one random direction of the range or the null space of A, 0..L.

    Uniform on 0..L over many measurements if the samples come from the posterior (simulation-based calibration, Talts et al.,
    2018). Every measurement has a direction of its own, so that their ranks are independent.

    Raises:
        Unavailable: the posterior does not vary there.
    """
    basis = exact.basis(space)
    u = torch.randn(basis.shape[1], generator=torch.Generator().manual_seed(exact.seed), dtype=torch.float64)
    along = basis @ u
    return float(ranks(exact.truth.double().reshape(1, -1) @ along, (samples.double().flatten(1) @ along)[None]))


def truth_coverage(samples: Tensor, exact: Exact, space: str, level: float) -> float:
    """Share of the directions of the range or the null space of A in which the samples' central interval holds the truth."""
    basis = exact.basis(space)
    return coverage(samples.double().flatten(1) @ basis, exact.truth.double().reshape(1, -1) @ basis, level)


def uniform_ranks(records: Sequence[Any], name: str) -> float:
    """p-value of the test that the ranks called `name` of many cells come from the uniform distribution.

    Raises:
        Unavailable: fewer than 100 cells have one.
    """
    found = [int(value) for r in records if (value := r.metrics.get(name)) is not None]
    if len(found) < 100:
        raise Unavailable(f"needs the ranks of at least 100 measurements; there are {len(found)}")
    return uniformity(rank_histogram(torch.tensor(found), records[0].settings["n_samples"], bins_of(records)))


def bins_of(records: Sequence[Any]) -> int | None:
    """Ten bins where the number of possible ranks allows it."""
    return 10 if (records[0].settings["n_samples"] + 1) % 10 == 0 else None


for _space, _where in (("null", "the null space of A"), ("range", "the range of A")):
    _rank = f"rank_{_space}"
    register_metric(
        Metric(
            _rank,
            f"rank {_space}",
            "none",
            "",
            {"samples", "posterior"},
            f"rank of the truth among the samples in {_where}",
            lambda x, exact, space=_space: rank_of_truth(x, exact, space),
            decimals=1,
        )
    )
    for _level in LEVELS:
        register_metric(
            Metric(
                f"holds_{round(100 * _level)}_{_space}",
                f"holds {round(100 * _level)} {_space}",
                "none",
                "",
                {"samples", "posterior"},
                f"how often the samples' {round(100 * _level)} % interval holds the truth, in {_where}",
                lambda x, exact, space=_space, level=_level: truth_coverage(x, exact, space, level),
                decimals=2,
            )
        )
    register_metric(
        Metric(
            f"p_{_space}",
            f"p {_space}",
            "none",
            "",
            {"records"},
            f"p-value of the test that the ranks in {_where} are uniform, as those of exact samples are",
            lambda records, name=_rank: uniform_ranks(records, name),
            decimals=3,
        )
    )
