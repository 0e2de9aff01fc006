"""What can be said from a few images: intervals, paired tests, ranks, and when nothing can be said.

The unit is the image. Seeds of one image are averaged first (`average_over_seeds`), since ten seeds of one photograph
are not ten photographs. Samplers are compared in pairs on the same images. Every result is deterministic.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from invdiff.errors import InvdiffError

LEVEL = 0.95
ALPHA = 0.05
RESAMPLES = 4999
_EXACT_UP_TO = 50  # differences; the exact distribution of the signed-rank sum above that is normal to 3 digits
_SAME = 1e-6  # relative; two float32 results this close are the same result

Scores = Mapping[str, float]  # image -> value, seeds averaged


def average_over_seeds(values: Iterable[tuple[str, float | None]]) -> dict[str, float]:
    """One number per image from pairs (image, value) over seeds, in order of appearance; None and NaN are left out."""
    seen: dict[str, list[float]] = {}
    for image, value in values:
        if value is not None and not math.isnan(value):
            seen.setdefault(image, []).append(float(value))
    return {image: math.fsum(v) / len(v) if all(map(math.isfinite, v)) else v[0] for image, v in seen.items()}


def goodness(scores: Scores, direction: str) -> dict[str, float]:
    """`scores` turned so that higher is better: themselves, negated, or minus their distance from 1.

    Raises:
        InvdiffError: `direction` is none of ``"higher"``, ``"lower"``, ``"one"``.
    """
    if direction not in ("higher", "lower", "one"):
        raise InvdiffError(f"direction must be 'higher', 'lower' or 'one' (is better), got {direction!r}")
    if direction == "one":
        return {image: -abs(value - 1) for image, value in scores.items()}
    return {image: value if direction == "higher" else -value for image, value in scores.items()}


# ---- intervals --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """A mean over images and its bootstrap interval.

    Attributes:
        mean: of the n values.
        low, high: bounds, NaN where there is no interval (fewer than 2 values, or infinite ones).
        n: how many images.
        method: ``"BCa"``, ``"percentile"``, ``"constant"`` (all values equal) or ``"none"``.
    """

    mean: float
    low: float
    high: float
    n: int
    method: str


def bootstrap_interval(
    values: ArrayLike, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Bias-corrected and accelerated (BCa) bootstrap interval of a mean (Efron, 1987), percentiles where BCa fails.

    Args:
        values: (n,), one per image.
        level: coverage aimed at. With fewer than 10 values any bootstrap interval is too narrow.
        resamples: of the bootstrap.
        seed: of the resampling.

    Raises:
        InvdiffError: no values, or NaN among them.
    """
    x = _numbers("values", values)
    mean = float(np.mean(x))
    if len(x) < 2 or not np.isfinite(x).all():
        return Interval(mean, math.nan, math.nan, len(x), "none")
    if np.ptp(x) == 0:
        return Interval(mean, mean, mean, len(x), "constant")
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = stats.bootstrap(
                (x,),
                np.mean,
                n_resamples=resamples,
                confidence_level=level,
                method=method,
                batch=max(1, 2**20 // len(x)),
                random_state=np.random.default_rng(seed),
            ).confidence_interval
        if math.isfinite(found.low) and math.isfinite(found.high):
            return Interval(mean, float(found.low), float(found.high), len(x), method)
    return Interval(mean, math.nan, math.nan, len(x), "none")


# ---- pairs ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Paired:
    """Differences ``a - b`` on the same images.

    Attributes:
        interval: mean difference with its bootstrap interval.
        pvalue: two-sided Wilcoxon signed-rank, not corrected; 1 where all differences are zero.
        wins, losses, ties: images on which a is above, below, equal to b.
        ranks_agree: the signed-rank sum points the same way as the mean.
        note: empty, or why no test can be significant.
    """

    interval: Interval
    pvalue: float
    wins: int
    losses: int
    ties: int
    ranks_agree: bool
    note: str = ""

    @property
    def difference(self) -> float:
        """Mean of a - b."""
        return self.interval.mean

    @property
    def n(self) -> int:
        """Pairs."""
        return self.interval.n


def paired(
    a: Scores,
    b: Scores,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    alpha: float = ALPHA,
    resolution: float = 0.0,
) -> Paired:
    """Paired comparison of two sets of scores on the images that both have.

    Differences below the metric's `resolution`, or below a millionth of the values, are rounding and count as ties.

    Raises:
        InvdiffError: no image in common.
    """
    d = differences(a, b, resolution)
    interval = bootstrap_interval(d, level=level, resamples=resamples)
    wins, losses = int((d > 0).sum()), int((d < 0).sum())
    ties = len(d) - wins - losses
    return Paired(
        interval,
        signed_rank_pvalue(d),
        wins,
        losses,
        ties,
        bool(_signed_rank_sum(d) * interval.mean > 0),
        "no difference on any image" if ties == len(d) else too_few(wins + losses, alpha=alpha),
    )


def differences(a: Scores, b: Scores, resolution: float = 0.0) -> NDArray[np.float64]:
    """``a - b`` on the common images, in the order of `a`; rounding is set to zero, infinity less infinity is zero."""
    common = [image for image in a if image in b]
    if not common:
        raise InvdiffError("the two sets of scores have no image in common, so they cannot be compared in pairs")
    x, y = np.array([a[i] for i in common], float), np.array([b[i] for i in common], float)
    with np.errstate(invalid="ignore"):
        d = np.where(x == y, 0.0, x - y)
        least = np.maximum(resolution, _SAME * np.minimum(np.abs(x), np.abs(y)))
        return np.where(np.abs(d) <= least, 0.0, d)


def signed_rank_pvalue(d: ArrayLike) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test of differences d, zeros dropped; 1 where nothing is left.

    Exact given the ranks, ties included, for up to 50 differences; the normal approximation corrected for ties above.
    """
    x = _numbers("d", d)
    x = x[x != 0]
    if len(x) == 0:
        return 1.0
    if len(x) > _EXACT_UP_TO:
        x = np.sign(x) * stats.rankdata(np.abs(x))  # infinities become ranks; the test reads nothing else
        return float(stats.wilcoxon(x, correction=True, method="approx").pvalue)
    # Under the null every sign is a fair coin: count sign patterns by their sum of (doubled, so whole) positive ranks.
    ranks = np.rint(2 * stats.rankdata(np.abs(x))).astype(int)
    ways = np.zeros(ranks.sum() + 1)
    ways[0] = 1.0
    for r in ranks:
        ways[r:] = ways[r:] + ways[:-r]
    positive = int(ranks[x > 0].sum())
    tail = min(ways[: positive + 1].sum(), ways[positive:].sum())
    return float(min(1.0, 2 * tail / 2.0 ** len(x)))


def holm(pvalues: Sequence[float]) -> list[float]:
    """Holm's (1979) step-down adjusted p-values, in the order given; reject where they are at most alpha."""
    adjusted, running = [0.0] * len(pvalues), 0.0
    for k, i in enumerate(sorted(range(len(pvalues)), key=pvalues.__getitem__)):
        running = max(running, min(1.0, (len(pvalues) - k) * pvalues[i]))
        adjusted[i] = running
    return adjusted


def images_needed(comparisons: int = 1, alpha: float = ALPHA) -> int:
    """Fewest images with which all of so many comparisons can be significant after Holm's correction.

    The signed-rank test of n differences has no p-value below ``2^(1 - n)``.
    """
    return math.ceil(1 - math.log2(alpha / max(1, comparisons)) - 1e-12)


def too_few(n: int, comparisons: int = 1, alpha: float = ALPHA) -> str:
    """Empty, or the sentence that says why n images cannot give a significant result."""
    needed = images_needed(comparisons, alpha)
    if n >= needed:
        return ""
    images = "1 image that differs" if n == 1 else f"{n} images that differ"
    return f"{images}: too few for any significant result; at least {needed} are needed"


# ---- the best of several ----------------------------------------------------------------------------------------


def significantly_best(
    scores: Mapping[str, Scores], direction: str, *, alpha: float = ALPHA, resolution: float = 0.0
) -> frozenset[str]:
    """The samplers that are significantly better than all others; mostly none or one.

    The sampler with the best mean is tested against every other one (Wilcoxon signed-rank, Holm over these tests); it
    is marked only if every test is significant in its favour. Samplers whose results equal the leader's on every image
    share its mark, and are not counted among the others; where nobody else is left nothing is marked. A sampler that
    lacks images which another one has is never marked: it may have failed on the hard ones.

    Args:
        scores: sampler -> image -> value.
        direction: ``"higher"`` or ``"lower"`` is better, or ``"one"``: the nearer to 1 the better.
        alpha: of the corrected tests.
        resolution: of the metric; results closer than this are equal.
    """
    values = {name: goodness(s, direction) for name, s in scores.items() if s}
    every = set().union(*values.values()) if values else set()
    full = {name: float(np.mean(list(s.values()))) for name, s in values.items() if len(s) == len(every)}
    if not full:
        return frozenset()
    leader = max(full, key=full.__getitem__)
    equals = {n for n in full if not differences(values[leader], values[n], resolution).any()}
    tests = []
    for name in values.keys() - equals:
        d = differences(values[leader], values[name], resolution)
        if not (np.mean(d) > 0 and _signed_rank_sum(d) > 0):
            return frozenset()
        tests.append(signed_rank_pvalue(d))
    if not tests or max(holm(tests)) > alpha:
        return frozenset()
    return frozenset(equals)


# ---- ranks ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranking:
    """Average ranks (1 is best) over blocks, with Friedman's test and Nemenyi's critical difference.

    Attributes:
        ranks: sampler -> average rank, best first.
        n: blocks (images).
        pvalue: Friedman's test that all samplers are alike; NaN with fewer than 3 samplers or 2 blocks.
        critical_difference: average ranks further apart than this differ significantly.
        groups: runs of samplers, best first, within which no difference is shown.
    """

    ranks: dict[str, float]
    n: int
    pvalue: float
    critical_difference: float
    groups: tuple[tuple[str, ...], ...]


def ranking(
    scores: Mapping[str, Scores], direction: str, *, alpha: float = ALPHA, resolution: float = 0.0
) -> Ranking | None:
    """Rank the samplers on every image that all have, and average (Demšar, 2006); None where that is impossible."""

    def rounded(value: float) -> float:
        value = round(value / resolution) * resolution if resolution and math.isfinite(value) else value
        return float(f"{value:.6g}")

    scores = {name: goodness(s, direction) for name, s in scores.items()}
    names = list(scores)
    common = [i for i in scores[names[0]] if all(i in scores[n] for n in names)] if names else []
    if len(names) < 2 or not common:
        return None
    table = np.array([[-rounded(scores[n][i]) for n in names] for i in common])
    return rank_table(names, table, alpha=alpha)


def rank_table(names: Sequence[str], table: NDArray[np.float64], *, alpha: float = ALPHA) -> Ranking:
    """`ranking` of a (blocks, samplers) table in which lower is better."""
    ranks = stats.rankdata(table, axis=1)
    mean = dict(sorted(zip(names, ranks.mean(0).tolist(), strict=True), key=lambda pair: pair[1]))
    n, k = table.shape
    pvalue = math.nan
    if k >= 3 and n >= 2:
        pvalue = 1.0 if np.ptp(ranks, axis=1).max() == 0 else float(stats.friedmanchisquare(*ranks.T).pvalue)
    width = critical_difference(k, n, alpha)
    return Ranking(mean, n, pvalue, width, _groups(mean, width))


def critical_difference(samplers: int, blocks: int, alpha: float = ALPHA) -> float:
    """Nemenyi's ``q_alpha sqrt(k (k + 1) / (6 N))``, q the studentized range over sqrt(2) (Demšar, 2006, eq. 6)."""
    return _studentized_range(samplers, alpha) / math.sqrt(2) * math.sqrt(samplers * (samplers + 1) / (6 * blocks))


@lru_cache
def _studentized_range(samplers: int, alpha: float) -> float:
    return float(stats.studentized_range.ppf(1 - alpha, samplers, np.inf))


def _groups(ranks: Mapping[str, float], width: float) -> tuple[tuple[str, ...], ...]:
    names = list(ranks)
    found: list[tuple[str, ...]] = []
    for i, first in enumerate(names):
        group = tuple(n for n in names[i:] if ranks[n] - ranks[first] <= width)
        if len(group) > 1 and not any(set(group) <= set(g) for g in found):
            found.append(group)
    return tuple(found)


# ---- the rest ---------------------------------------------------------------------------------------------------


def _signed_rank_sum(d: NDArray[np.float64]) -> float:
    d = d[d != 0]
    return float((np.sign(d) * stats.rankdata(np.abs(d))).sum())


def _numbers(name: str, values: ArrayLike) -> NDArray[np.float64]:
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or len(x) == 0 or np.isnan(x).any():
        raise InvdiffError(f"{name} must be a list of at least one number, without NaN; got {values!r}")
    return x
