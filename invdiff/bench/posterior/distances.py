"""How far a set of samples is from a known distribution.

All functions take samples as (n, d) floating point tensors and compute in float64. Every number depends on n: it never reaches its
ideal value, not even for exact samples. So none is to be read without its Monte-Carlo floor, the same number for a second
set of exact samples (`Reference.floor`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invdiff.errors import InvdiffError
from invdiff.metrics.ranks import LEVELS, coverage

_PAIRS = 1000  # samples of each set that enter kernel sums: a million pairs
_CLASSIFIER_DIRECTIONS = 16  # leading directions whose products the classifier sees

# ---- moments ----------------------------------------------------------------------------------------------------


def gaussian_w2(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> float:
    """Wasserstein-2 distance of two Gaussians (Dowson & Landau, 1982), in the unit of x.

        W2^2 = |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_b^(1/2) C_a C_b^(1/2))^(1/2))

    Args:
        mean_a, mean_b: (d,).
        covariance_a, covariance_b: (d, d), positive semi-definite; singular ones are legal.
    """
    a, b = covariance_a.double(), covariance_b.double()
    values, vectors = torch.linalg.eigh(b)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.mT
    cross = torch.linalg.eigvalsh(root @ a @ root).clamp_min(0).sqrt().sum()
    squared = (mean_a.double() - mean_b.double()).square().sum() + a.trace() + b.trace() - 2 * cross
    return math.sqrt(max(0.0, float(squared)))


def sliced_w2(x: Tensor, y: Tensor, projections: int = 128, seed: int = 0) -> tuple[float, float]:
    """Sliced Wasserstein-2 distance and its maximum over the slices (Bonneel et al., 2015; Deshpande et al., 2019).

    Args:
        x, y: (n, d) and (m, d). The longer one is cut to the length of the shorter.
        projections: number of unit directions, uniform on the sphere, the same for the same seed.
        seed: of the directions.

    Returns:
        The root of the mean, and of the largest, of the squared one-dimensional distances, in the unit of x. The maximum
        is over the directions drawn, so a lower bound of the true one.
    """
    x, y = _pair(x, y)
    n = min(len(x), len(y))
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(x.shape[1], projections, generator=generator, dtype=torch.float64)
    directions = directions / directions.norm(dim=0)
    a, b = ((part[:n] @ directions).sort(dim=0).values for part in (x, y))
    squared = (a - b).square().mean(0)
    return math.sqrt(float(squared.mean())), math.sqrt(float(squared.max()))


# ---- kernels ----------------------------------------------------------------------------------------------------


def median_bandwidth(x: Tensor, limit: int = 500) -> float:
    """Median distance between the first `limit` samples: the bandwidth to fix for `mmd`. Taken from exact samples only,
    so that all methods are judged by the same kernel."""
    x = _samples(x)[:limit]
    distances = torch.pdist(x)
    return max(float(distances.median()), 1e-12)


def mmd(x: Tensor, y: Tensor, bandwidth: float, limit: int = _PAIRS) -> float:
    """Maximum mean discrepancy with the kernel ``exp(-|x - y|^2 / (2 h^2))`` (Gretton et al., 2012, eq. 3, unbiased).

    Args:
        x, y: (n, d), (m, d).
        bandwidth: h, in the unit of x; `median_bandwidth` of exact samples.
        limit: samples of each set that are used.

    Returns:
        The root of the unbiased estimate of MMD^2, and 0 where that is negative; without unit, at most sqrt(2).
    """
    x, y = (part[:limit] for part in _pair(x, y))

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(a, b).square() / (2 * bandwidth**2))

    n, m = len(x), len(y)
    within = (kernel(x, x).sum() - n) / (n * (n - 1)) + (kernel(y, y).sum() - m) / (m * (m - 1))
    return math.sqrt(max(0.0, float(within - 2 * kernel(x, y).mean())))


def energy_distance(x: Tensor, y: Tensor, limit: int = _PAIRS) -> float:
    """``sqrt(2 E|x - y| - E|x - x'| - E|y - y'|)`` (Szekely & Rizzo, 2013, unbiased), 0 where the estimate is negative."""
    x, y = (part[:limit] for part in _pair(x, y))
    n, m = len(x), len(y)
    within = torch.cdist(x, x).sum() / (n * (n - 1)) + torch.cdist(y, y).sum() / (m * (m - 1))
    return math.sqrt(max(0.0, float(2 * torch.cdist(x, y).mean() - within)))


# ---- a classifier -----------------------------------------------------------------------------------------------


def classifier_two_sample(x: Tensor, y: Tensor, *, folds: int = 2, seed: int = 0) -> float:
    """Accuracy of a classifier that has to tell two sets apart (Lopez-Paz & Oquab, 2017): 0.5 = indistinguishable, 1 = always.

    The classifier is a logistic regression on the samples and all products of two of their leading 16 coordinates, plus the
    squared norm of the rest: the best there is between two Gaussians, and it takes milliseconds. It is trained on all folds
    but one and scored on that. For mixtures, hand it the component probabilities as further columns (`Reference` does).

    Args:
        x, y: (n, d), (m, d); best in coordinates sorted by variance and of similar scale. Equally many of both are used.
        folds: of the cross-validation.
        seed: of the split.
    """
    x, y = _pair(x, y)
    n = min(len(x), len(y))
    features = _quadratic(torch.cat([x[:n], y[:n]]))
    labels = torch.cat([torch.zeros(n), torch.ones(n)]).double()
    order = torch.randperm(2 * n, generator=torch.Generator().manual_seed(seed))
    right = 0
    for part in order.chunk(folds):
        train = torch.ones(2 * n, dtype=torch.bool)
        train[part] = False
        mean, std = features[train].mean(0), features[train].std(0).clamp_min(1e-12)
        scaled = torch.cat([(features - mean) / std, torch.ones(2 * n, 1, dtype=torch.float64)], 1).clamp(-8, 8)
        weights = _logistic(scaled[train], labels[train])
        right += int(((scaled[part] @ weights > 0) == (labels[part] > 0.5)).sum())
    return right / (2 * n)


def _quadratic(z: Tensor) -> Tensor:
    lead, rest = z[:, :_CLASSIFIER_DIRECTIONS], z[:, _CLASSIFIER_DIRECTIONS:]
    i, j = torch.triu_indices(lead.shape[1], lead.shape[1])
    parts = [lead, lead[:, i] * lead[:, j]]
    if rest.shape[1]:
        parts.append(rest.square().sum(1, keepdim=True))
    return torch.cat(parts, 1)


def _logistic(features: Tensor, labels: Tensor, ridge: float = 1.0, iterations: int = 12) -> Tensor:
    """Weights of a logistic regression by Newton's method, with a penalty of ``ridge |w|^2 / 2``."""
    weights = features.new_zeros(features.shape[1])
    penalty = ridge * torch.eye(len(weights), dtype=features.dtype)
    for _ in range(iterations):
        p = torch.sigmoid(features @ weights)
        slope = features.mT @ (p - labels) + ridge * weights
        curvature = (features.mT * (p * (1 - p)).clamp_min(1e-6)) @ features + penalty
        step = torch.linalg.solve(curvature, slope)
        weights = weights - step * min(1.0, 20 / (1e-12 + float(step.norm())))
        if float(step.norm()) < 1e-4:
            break
    return weights


# ---- modes ------------------------------------------------------------------------------------------------------


def total_variation(p: Tensor, q: Tensor) -> float:
    """Half the sum of ``|p - q|`` of two lists of weights: the share of mass in the wrong mode, 0..1."""
    return 0.5 * float((p.double() - q.double()).abs().sum())


# ---- all of them against one exact posterior --------------------------------------------------------------------


@dataclass(frozen=True)
class Directions:
    """Orthonormal directions of image space, split by what a measurement sees.

    Attributes:
        range: (d, k), the range of A^T.
        null: (d, d - k), the null space of A.
    """

    range: Tensor
    null: Tensor

    @classmethod
    def of(cls, matrix: Tensor) -> Directions:
        """From the matrix of A, (m, d); singular values below 1e-6 of the largest are zeros."""
        _, values, vectors = torch.linalg.svd(matrix.double(), full_matrices=True)
        rank = int((values > 1e-6 * values.max().clamp_min(1e-300)).sum())
        return cls(vectors[:rank].mT.contiguous(), vectors[rank:].mT.contiguous())


@dataclass(frozen=True, eq=False)
class Reference:
    """An exact distribution, and every distance of samples to it.

    Directions in which it does not vary (what a noise-free measurement has fixed) carry no distribution: the distances
    between distributions are taken over the others, in the eigenbasis of its covariance, most variable direction first.
    What a sampler gets wrong in the fixed directions is the misfit, another metric.

    Args:
        draws: (n, d), exact samples to compare with.
        mean: (d,), exact.
        covariance: (d, d), exact.
        directions: range and null space.
        gaussian: whether mean and covariance say everything, so that `gaussian_w2` applies.
        responsibilities: (n, d) -> (n, K), probabilities of the mixture's components, or None.
        mode_weights: (K,), the exact weights of the components, or None.
        basis: (d, k) orthonormal, where only these directions of large images are looked at; mean, covariance and directions are
            then in its coordinates.
        new_draws: ``(n, seed) -> (n, d)`` more exact samples, for the floor.
    """

    draws: Tensor
    mean: Tensor
    covariance: Tensor
    directions: Directions
    gaussian: bool
    new_draws: Callable[[int, int], Tensor]
    responsibilities: Callable[[Tensor], Tensor] | None = None
    mode_weights: Tensor | None = None
    basis: Tensor | None = None
    projections: int = field(default=128)

    @cached_property
    def _active(self) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(self.covariance.double())
        kept = values > 1e-7 * values.max()
        return values[kept].flip(0), vectors[:, kept].flip(1)

    @cached_property
    def _bandwidth(self) -> float:
        return median_bandwidth(self.coordinates(self.draws))

    @cached_property
    def _parts(self) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """For range and null space: directions that vary, diagonalised, their variances; only where there are any."""
        parts = {}
        largest = float(torch.linalg.eigvalsh(self.covariance.double())[-1])
        for name, basis in (("range", self.directions.range), ("null", self.directions.null)):
            if basis.shape[1] == 0:
                continue
            inner = basis.mT @ self.covariance.double() @ basis
            values, vectors = torch.linalg.eigh((inner + inner.mT) / 2)
            kept = values > 1e-7 * largest
            if bool(kept.any()):
                parts[name] = (basis @ vectors[:, kept].flip(1), values[kept].flip(0), inner)
        return parts

    def coordinates(self, x: Tensor) -> Tensor:
        """(n, d) -> (n, k): deviations from the exact mean along the directions in which the posterior varies."""
        return (self._reduced(x) - self.mean.double()) @ self._active[1]

    def _reduced(self, x: Tensor) -> Tensor:
        return x.double() if self.basis is None else x.double() @ self.basis

    def compare(self, x: Tensor, classifier: bool = True) -> dict[str, Any]:
        """Every distance of the samples `x`, (n, d).

        Returns:
            A dict of numbers (lists where stated), with ``P`` the projection on the range (of A^T) or the null space (of A):

            - ``bias_range``, ``bias_null``: ``|P (m - m*)| / sqrt(tr P C*)``, the bias in posterior standard deviations
              (rms), ideal 0.
            - ``var_range``, ``var_null``: ``tr P C / tr P C*``, ideal 1, below 1 over-confident.
            - ``ratios_range``, ``ratios_null``: the variance ratio along every eigen-direction of ``P C* P``, most variable first.
            - ``w2_null`` and ``w2``: Gaussian Wasserstein-2 over ``sqrt(tr C*)``, for Gaussian posteriors only.
            - ``sw2``, ``max_sw2``: sliced Wasserstein-2 over ``sqrt(tr C* / k)``, k the number of varying directions.
            - ``mmd``, ``energy``: the latter over ``sqrt(tr C*)``'s root. ``c2st``: accuracy, ideal 0.5.
            - ``coverage_50``, ``coverage_90``: share of exact draws in the samples' central intervals.
            - ``mode_error``: total variation of the component weights.
        """
        x = _samples(x)
        out: dict[str, Any] = {"n": len(x)}
        inner = self._reduced(x)
        mean, centred = inner.mean(0), inner - inner.mean(0)
        for name, (basis, values, _) in self._parts.items():
            variances = (centred @ basis).square().sum(0) / (len(x) - 1)
            shift = (mean - self.mean.double()) @ basis
            out[f"bias_{name}"] = float(shift.norm() / values.sum().sqrt())
            out[f"var_{name}"] = float(variances.sum() / values.sum())
            out[f"ratios_{name}"] = [round(v, 4) for v in (variances / values)[:64].tolist()]
        values, _ = self._active
        z, exact = self.coordinates(x), self.coordinates(self.draws)
        total = float(values.sum())
        if self.gaussian:
            zero = torch.zeros(len(values), dtype=torch.float64)
            out["w2"] = gaussian_w2(z.mean(0), _covariance(z), zero, torch.diag(values)) / math.sqrt(total)
            if "null" in self._parts:
                basis, within, _ = self._parts["null"]
                u = (inner - self.mean.double()) @ basis
                zero = torch.zeros(len(within), dtype=torch.float64)
                distance = gaussian_w2(u.mean(0), _covariance(u), zero, torch.diag(within))
                out["w2_null"] = distance / math.sqrt(float(within.sum()))
        scale = math.sqrt(total / len(values))
        mean_slice, max_slice = sliced_w2(z, exact, self.projections)
        out["sw2"], out["max_sw2"] = mean_slice / scale, max_slice / scale
        out["mmd"] = mmd(z, exact, self._bandwidth)
        out["energy"] = energy_distance(z, exact) / total**0.25
        for level in LEVELS:
            out[f"coverage_{round(100 * level)}"] = coverage(z, exact, level)
        if self.responsibilities is not None and self.mode_weights is not None:
            weights = self.responsibilities(x).double().mean(0)
            out["mode_error"] = total_variation(weights, self.mode_weights)
        if classifier:
            out["c2st"] = classifier_two_sample(self._features(x), self._features(self.draws))
        return out

    def _features(self, x: Tensor) -> Tensor:
        """Whitened coordinates; for mixtures the probabilities of the components that matter come first."""
        z = self.coordinates(x) / self._active[0].sqrt()
        if self.responsibilities is None or self.mode_weights is None:
            return z
        alive = self.mode_weights.argsort(descending=True)[:8]
        return torch.cat([self.responsibilities(x).double()[:, alive], z], 1)

    def floor(self, n: int, repeats: int = 3, seed: int = 10_000, classifier: bool = True) -> dict[str, Any]:
        """`compare` of `repeats` fresh sets of n exact samples: the mean of each number."""
        runs = [self.compare(self.new_draws(n, seed + i), classifier) for i in range(repeats)]
        return average(runs)


def average(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean of every number of several results; lists entry by entry where they are equally long."""
    out: dict[str, Any] = {}
    for key in runs[0]:
        values = [run[key] for run in runs if key in run]
        if all(isinstance(v, int | float) for v in values):
            out[key] = float(np.mean(values))
        elif len({len(v) for v in values}) == 1:
            out[key] = np.mean(np.array(values), axis=0).round(4).tolist()
    return out


def _covariance(z: Tensor) -> Tensor:
    z = z - z.mean(0)
    return z.mT @ z / (len(z) - 1)


def _samples(x: Tensor) -> Tensor:
    if not isinstance(x, Tensor) or x.ndim != 2 or len(x) < 2 or not x.is_floating_point():
        got = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise InvdiffError(f"samples must be a floating point tensor (n, d) with n of at least 2, got {got}")
    return x.detach().cpu().double()


def _pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    x, y = _samples(x), _samples(y)
    if x.shape[1] != y.shape[1]:
        raise InvdiffError(f"samples must have as many columns, got {x.shape[1]} and {y.shape[1]}")
    return x, y
