"""A Gaussian mixture fitted to rows of which some entries are missing: expectation maximisation over both.

Ghahramani & Jordan, "Supervised learning from incomplete data via an EM approach" (1994): for every row and component
the missing entries' conditional mean and covariance enter the new means and covariances, weighted by the responsibility
of the component given what is known. Right when entries are missing at random.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

from invdiff.backbones.schedule import NoiseSchedule
from invdiff.priors.mixture import GaussianMixtureBackbone

CHUNK = 2**22
"""Numbers in one batch of covariance matrices."""


@dataclass
class Mixture:
    """weights (K,), means (K, d), covariances (K, d, d), float64."""

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def as_backbone(self, schedule: NoiseSchedule) -> GaussianMixtureBackbone:
        """The exact denoiser of this prior for "images" (1, 1, d)."""
        values, vectors = torch.linalg.eigh(self.covariances)
        values = values.clamp_min(1e-9)
        noise = values[:, 0]
        factors = vectors * (values - noise[:, None]).clamp_min(0).sqrt()[:, None]
        return GaussianMixtureBackbone.low_rank(
            self.weights, self.means[:, None, None], factors, noise, schedule, name="rows"
        )


def log_joint(mixture: Mixture, x: Tensor, known: Tensor) -> Tensor:
    """``log w_k + log N(known part of x)`` of rows x (n, d), (n, K)."""
    m = known.to(x)
    out = x.new_empty(len(x), len(mixture.weights))
    for k, S in enumerate(mixture.covariances):
        for rows in _chunks(*x.shape):
            root = _root(S, m[rows])
            white = torch.linalg.solve_triangular(
                root, (m[rows] * (x[rows] - mixture.means[k]))[..., None], upper=False
            )
            log_det = 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            out[rows, k] = -0.5 * (white.square().sum((1, 2)) + log_det + m[rows].sum(1) * math.log(2 * math.pi))
    return out + mixture.weights.log()


def update(mixture: Mixture, x: Tensor, known: Tensor, pi: Tensor, shrinkage: float) -> Mixture:
    """The next weights, means and covariances for responsibilities pi (n, K).

    `shrinkage` is the number of rows that the mean covariance of all components (a tenth of it a multiple of I) counts
    for in each of them: a component of few rows has a covariance all the same.
    """
    n, d = x.shape
    m, counts = known.to(x), pi.sum(0)
    means, scatter = torch.empty_like(mixture.means), torch.empty_like(mixture.covariances)
    for k, S in enumerate(mixture.covariances):
        filled, inner = torch.empty_like(x), x.new_zeros(d, d)
        for rows in _chunks(n, d):
            # conditional mean m_k + S M (M S M + I - M)^-1 M (x - m_k); conditional covariance S - S M (...)^-1 M S
            root = _root(S, m[rows])
            right = torch.cat([m[rows][:, :, None] * S, (m[rows] * (x[rows] - mixture.means[k]))[..., None]], 2)
            half = torch.linalg.solve_triangular(root, right, upper=False)
            gain, white = half[..., :d], half[..., d]
            mean = mixture.means[k] + (gain * white[..., None]).sum(1)
            filled[rows] = torch.where(known[rows], x[rows], mean)
            gain = gain * pi[rows, k].sqrt()[:, None, None]
            inner += pi[rows, k].sum() * S - gain.flatten(0, 1).mT @ gain.flatten(0, 1)
        means[k] = (pi[:, k] @ filled) / counts[k].clamp_min(1e-9)
        apart = (filled - means[k]) * pi[:, k].sqrt()[:, None]
        scatter[k] = apart.mT @ apart + inner
    pooled = scatter.sum(0) / n
    eye = torch.eye(d, dtype=x.dtype)
    target = 0.9 * pooled + 0.1 * pooled.diagonal().mean() * eye
    covariances = (scatter + shrinkage * target) / (counts + shrinkage)[:, None, None]
    return Mixture((counts / n).clamp_min(1e-12), means, covariances + 1e-6 * eye)


def fit_mixture(
    x: Tensor,
    known: Tensor,
    components: int,
    shrinkage: float,
    seed: int,
    iterations: int = 60,
    tolerance: float = 1e-4,
) -> Mixture:
    """Expectation maximisation from k-means on rows filled by one Gaussian.

    Args:
        x: (n, d) float64, zero where it is missing, columns of about unit variance.
        known: (n, d) bool.
        components: K.
        shrinkage: see `update`.
        seed: of k-means.
        iterations: at most.
        tolerance: it ends when the log-likelihood of a row grows by less.
    """
    d = x.shape[1]
    one = torch.eye(d, dtype=x.dtype)[None]
    mixture = Mixture(torch.ones(1, dtype=x.dtype), torch.zeros(1, d, dtype=x.dtype), one)
    mixture = _climb(mixture, x, known, shrinkage, iterations, tolerance)
    if components == 1:
        return mixture
    filled = conditional_means(mixture, x, known)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of empty clusters: they get next to no weight
        _, labels = kmeans2(filled.numpy(), components, iter=25, minit="++", rng=np.random.default_rng(seed))
    pi = 0.02 / components + 0.98 * torch.nn.functional.one_hot(torch.from_numpy(labels).long(), components).to(x)
    start = Mixture(
        torch.full((components,), 1 / components, dtype=x.dtype),
        mixture.means.expand(components, -1),
        mixture.covariances.expand(components, -1, -1),
    )
    return _climb(update(start, x, known, pi, shrinkage), x, known, shrinkage, iterations, tolerance)


def conditional_means(mixture: Mixture, x: Tensor, known: Tensor) -> Tensor:
    """E[row | what is known of it], (n, d)."""
    m, pi = known.to(x), log_joint(mixture, x, known).softmax(1)
    out = torch.zeros_like(x)
    for k, S in enumerate(mixture.covariances):
        for rows in _chunks(*x.shape):
            apart = (m[rows] * (x[rows] - mixture.means[k]))[..., None]
            solved = torch.cholesky_solve(apart, _root(S, m[rows]))[..., 0]
            out[rows] += pi[rows, k, None] * (mixture.means[k] + (m[rows] * solved) @ S)
    return torch.where(known, x, out)


def chosen_mixture(
    x: Tensor, known: Tensor, components: int | str, shrinkage: float | str, seed: int
) -> tuple[Mixture, dict[tuple[int, float], float]]:
    """The mixture whose size and shrinkage make rows that it has not seen most likely, fitted to all rows.

    Sizes are tried upward until one is worse, then shrinkages at the best size.

    Returns:
        The mixture, and the mean log-likelihood of a held-out row for every (components, shrinkage) tried.
    """
    n, d = x.shape
    sizes = [k for k in (1, 2, 4, 8) if k == 1 or n >= 10 * k] if components == "auto" else [int(components)]
    strengths = [1.0 * d, 0.2 * d, 5.0 * d] if shrinkage == "auto" else [float(shrinkage)]
    scores: dict[tuple[int, float], float] = {}
    best = sizes[0], strengths[0]
    if len(sizes) * len(strengths) > 1 and n >= 10:
        order = torch.from_numpy(np.random.default_rng(seed).permutation(n))
        test, train = order[: n // 5], order[n // 5 :]

        def improves(k: int, strength: float) -> bool:
            mixture = fit_mixture(x[train], known[train], k, strength, seed, 30, 1e-3)
            scores[k, strength] = float(log_joint(mixture, x[test], known[test]).logsumexp(1).mean())
            return scores[k, strength] >= max(scores.values())

        for k in sizes:
            if not improves(k, strengths[0]):
                break
            best = k, strengths[0]
        for strength in strengths[1:]:
            if improves(best[0], strength):
                best = best[0], strength
    return fit_mixture(x, known, *best, seed), scores


def _climb(mixture: Mixture, x: Tensor, known: Tensor, shrinkage: float, iterations: int, tolerance: float) -> Mixture:
    before = -math.inf
    for _ in range(iterations):
        joint = log_joint(mixture, x, known)
        now = float(joint.logsumexp(1).mean())
        if now - before < tolerance:
            break
        before = now
        mixture = update(mixture, x, known, joint.softmax(1), shrinkage)
    return mixture


def _root(S: Tensor, m: Tensor) -> Tensor:
    """Cholesky factor of S where m is 1 and of the identity elsewhere, (B, d, d)."""
    return torch.linalg.cholesky(m[:, :, None] * S * m[:, None, :] + torch.diag_embed(1 - m))


def _chunks(n: int, d: int) -> list[slice]:
    size = max(1, CHUNK // d**2)
    return [slice(start, start + size) for start in range(0, n, size)]
