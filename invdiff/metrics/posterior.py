"""How far the samples of a measurement are from its exact posterior; what each number is stands in `Reference.compare`."""

from __future__ import annotations

from invdiff.metrics.base import Metric, register_metric

_NUMBERS = (
    ("bias_null", "bias", "lower", "", "bias of the mean in the null space of A, in posterior standard deviations"),
    ("var_null", "variance", "one", "", "ratio of variances in the null space of A; below 1 is over-confident"),
    ("bias_range", "bias range", "lower", "", "bias of the mean in the range of A, in posterior standard deviations"),
    ("var_range", "variance range", "one", "", "ratio of variances in the range of A; below 1 is over-confident"),
    (
        "w2_null",
        "W2 null",
        "lower",
        "gaussian",
        "Wasserstein-2 distance in the null space of A over the posterior's size",
    ),
    ("w2", "W2", "lower", "gaussian", "Wasserstein-2 distance over the posterior's size"),
    ("sw2", "SW2", "lower", "", "sliced Wasserstein-2 distance over the posterior's size"),
    ("max_sw2", "max SW2", "lower", "", "the largest one-dimensional Wasserstein-2 distance among the slices"),
    ("mmd", "MMD", "lower", "", "maximum mean discrepancy: differences that a smooth function sees"),
    ("energy", "energy", "lower", "", "energy distance over the root of the posterior's size"),
    ("c2st", "C2ST", "lower", "", "how often a classifier tells the samples from exact ones; 0.5: not at all"),
    ("coverage_50", "cover 50", "none", "", "exact draws within the samples' 50 % interval"),
    ("coverage_90", "cover 90", "none", "", "exact draws within the samples' 90 % interval"),
    ("mode_error", "mode error", "lower", "weights", "mass in the wrong mode"),
)

for _name, _label, _direction, _kind, _about in _NUMBERS:
    register_metric(
        Metric(
            _name,
            _label,
            _direction,  # type: ignore[arg-type]
            "",
            {"samples", "posterior", _kind} - {""},
            _about,
            lambda x, exact, name=_name: exact.distance(x, name),
            decimals=2 if _name in ("c2st", "coverage_50", "coverage_90") else 3,
        )
    )
