"""What several restorations of one measurement say together."""

from __future__ import annotations

from torch import Tensor

from invdiff.metrics.base import Metric, Unavailable, register_metric


def diversity(samples: Tensor, truth: Tensor) -> float:
    """Root mean squared difference of two samples, over all pairs: 0 for a method that knows one answer only.

    Args:
        samples: (S, C, H, W) in [0, 1], S >= 2.
        truth: not looked at.

    Raises:
        Unavailable: a single sample.
    """
    _check(samples)
    return float((2 * samples.double().var(0, unbiased=True).mean()).sqrt())


def calibration(samples: Tensor, truth: Tensor) -> float:
    """Spread over error: 1 where the samples are as uncertain as they are wrong, below 1 for overconfidence.

        sqrt((1 + 1/S) mean variance / mean (truth - mean of samples)^2)

    Truth and samples that are draws from one posterior give ``E (x - m_S)^2 = (1 + 1/S) var``, thus 1.

    Args:
        samples: (S, C, H, W) in [0, 1], S >= 2.
        truth: (C, H, W).

    Raises:
        Unavailable: a single sample, or no error at all.
    """
    _check(samples)
    x = samples.double()
    error = float((truth.double() - x.mean(0)).square().mean())
    if error == 0:
        raise Unavailable("spread over error has no value where there is no error")
    return float(((1 + 1 / len(x)) * x.var(0, unbiased=True).mean() / error) ** 0.5)


def _check(samples: Tensor) -> None:
    if len(samples) < 2:
        raise Unavailable("needs at least two seeds: seeds = [0, 1] in the suite, or --seeds 2")


register_metric(
    Metric(
        "diversity",
        "diversity",
        "none",
        "of [0, 1]",
        {"samples", "reference"},
        "rms difference between restorations of one measurement",
        diversity,
        decimals=4,
    )
)
register_metric(
    Metric(
        "calibration",
        "spread / error",
        "one",
        "",
        {"samples", "reference"},
        "posterior spread over actual error; 1 is calibrated",
        calibration,
        decimals=2,
    )
)
