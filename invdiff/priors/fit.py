"""Fitting a mixture of probabilistic principal component analysers to images, by expectation-maximisation."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from invdiff.errors import InvdiffError

EXACT_SIDE = 1024  # rows or columns up to which a weighted covariance is decomposed exactly
OVERSAMPLING = 10
NEGLIGIBLE = 1e-8  # responsibility below which an image is left out of a component


@dataclass
class FittedMixture:
    """weights (K,), means (K, d), factors (K, d, r), noise (K,), and the log-likelihood per image by iteration."""

    weights: Tensor
    means: Tensor
    factors: Tensor
    noise: Tensor
    log_likelihoods: tuple[float, ...] = ()


def fit_mixture(
    images: Tensor, components: int, rank: int, seed: int, iterations: int, tolerance: float, noise_floor: float
) -> FittedMixture:
    """See `GaussianMixtureBackbone.fit`."""
    if not isinstance(images, Tensor) or images.ndim != 4 or not images.is_floating_point():
        got = f"shape {tuple(images.shape)}, {images.dtype}" if isinstance(images, Tensor) else type(images).__name__
        raise InvdiffError(f"images must be a floating point tensor (N, C, H, W), got {got}")
    for name, value, least in (("components", components, 1), ("rank", rank, 0), ("iterations", iterations, 1)):
        if isinstance(value, bool) or int(value) != value or value < least:
            raise InvdiffError(f"{name} must be a whole number of at least {least}, got {value!r}")
    X = images.detach().cpu().flatten(1)
    X = X if X.dtype == torch.float64 else X.float()
    N, d = X.shape
    if components > N:
        raise InvdiffError(f"images must be at least as many as components ({components}), got {N}")
    if rank >= d:
        raise InvdiffError(f"rank must be below the {d} numbers of an image, got {rank}")
    if noise_floor <= 0 or not math.isfinite(noise_floor):
        raise InvdiffError(f"noise_floor must be above 0, got {noise_floor}")
    if not bool(torch.isfinite(X).all()):
        raise InvdiffError("images must be finite")
    generator = torch.Generator().manual_seed(int(seed))
    labels = kmeans(X, components, generator)
    weights = torch.nn.functional.one_hot(labels, components).to(torch.float64)
    mixture = FittedMixture(
        torch.full((components,), 1 / components, dtype=torch.float64),
        X.mean(0).expand(components, d).clone(),
        X.new_zeros(components, d, rank),
        torch.full((components,), max(noise_floor, float(X.var())), dtype=torch.float64),
    )
    history: list[float] = []
    for _ in range(iterations):
        maximise(mixture, X, weights, noise_floor, generator)
        joint = log_joint(mixture, X)
        evidence = joint.logsumexp(1)
        weights = (joint - evidence[:, None]).exp()
        history.append(float(evidence.mean()))
        if len(history) > 1 and history[-1] - history[-2] < tolerance * d:
            break
    mixture.log_likelihoods = tuple(history)
    mixture.weights, mixture.noise = mixture.weights.to(X.dtype), mixture.noise.to(X.dtype)
    return mixture


def kmeans(X: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Labels (N,) of k-means from a k-means++ start (Arthur & Vassilvitskii, 2007)."""
    from scipy.cluster.vq import kmeans2

    seed = int(torch.randint(2**31, (1,), generator=generator))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of empty clusters: such a component gets next to no weight
        _, labels = kmeans2(X.numpy(), k, iter=25, minit="++", seed=np.random.default_rng(seed))
    return torch.from_numpy(labels).long()


def maximise(
    mixture: FittedMixture, X: Tensor, responsibilities: Tensor, floor: float, generator: torch.Generator
) -> None:
    """The best weights, means, factors and noises for given responsibilities (N, K), in place."""
    d, rank = X.shape[1], mixture.factors.shape[2]
    counts = responsibilities.sum(0)
    mixture.weights = counts.clamp_min(1e-12) / counts.clamp_min(1e-12).sum()
    for k in range(len(counts)):
        if float(counts[k]) < 1e-6:
            continue  # an empty component stays as it is, with next to no weight
        rows = (responsibilities[:, k] > NEGLIGIBLE).nonzero()[:, 0]
        share = responsibilities[rows, k]
        share = share / share.sum()
        taken = X[rows]
        mean = share.to(X.dtype) @ taken
        rooted = (taken - mean).mul_(share.sqrt().to(X.dtype)[:, None])
        trace = float(rooted.square().sum(dtype=torch.float64))
        values, directions = leading_directions(rooted, rank, mixture.factors[k], generator)
        noise = max(floor, (trace - float(values.sum())) / (d - rank))
        mixture.means[k], mixture.noise[k] = mean, noise
        mixture.factors[k] = directions * (values - noise).clamp_min(0).sqrt().to(X.dtype)


def leading_directions(rows: Tensor, rank: int, previous: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The `rank` largest eigenvalues (float64) and eigenvectors (d, rank) of ``rows^T rows``.

    Exact through the smaller Gram matrix up to a side of 1,024; beyond, by subspace iteration (Halko, Martinsson &
    Tropp, 2011) from `previous`, the last factors, and random directions beside them.
    """
    n, d = rows.shape
    values = torch.zeros(rank, dtype=torch.float64)
    vectors = rows.new_zeros(d, rank)
    if rank == 0:
        return values, vectors
    if min(n, d) <= EXACT_SIDE:
        small = rows @ rows.mT if n <= d else rows.mT @ rows
        found, U = torch.linalg.eigh(small.double())
        kept = min(rank, len(found))
        found, U = found.flip(0)[:kept].clamp_min(0), U.flip(1)[:, :kept]
        if n <= d:
            lengths = torch.where(found > 1e-9 * found[0].clamp_min(1e-300), found, math.inf).sqrt()
            U = (rows.mT @ (U / lengths).to(rows.dtype)).double()
            found = torch.where(torch.isfinite(lengths), found, 0.0)
        values[:kept], vectors[:, :kept] = found, U.to(rows.dtype)
        return values, vectors
    guess = torch.randn(d, OVERSAMPLING, generator=generator, dtype=rows.dtype)
    known = previous if bool(previous.any()) else torch.randn(d, rank, generator=generator, dtype=rows.dtype)
    basis = torch.linalg.qr(torch.cat([known, guess], 1)).Q
    for _ in range(4):
        basis = torch.linalg.qr(rows.mT @ (rows @ basis)).Q
    projected = rows @ basis
    found, U = torch.linalg.eigh((projected.mT @ projected).double())
    return found.flip(0)[:rank].clamp_min(0), basis @ U.flip(1)[:, :rank].to(rows.dtype)


def log_joint(mixture: FittedMixture, X: Tensor) -> Tensor:
    """``log w_k + log N(x; m_k, F_k F_k^T + noise_k I)``, (N, K), float64.

    Distances to the means are taken in float64 from a centre amid them, projections in the precision of the images: two
    matrix products for all components.
    """
    (N, d), (K, _, r) = X.shape, mixture.factors.shape
    along = mixture.factors.square().sum(1, dtype=torch.float64)  # (K, r)
    basis = mixture.factors / along.clamp_min(1e-30).sqrt().to(X.dtype)[:, None]
    centre = mixture.means.mean(0)
    means = mixture.means - centre
    offsets = torch.einsum("kd,kdr->kr", means, basis)
    basis = basis.permute(1, 0, 2).reshape(d, K * r)
    noise = mixture.noise.double()
    total = along + noise[:, None]
    constant = mixture.weights.double().log() - 0.5 * (
        total.log().sum(1) + (d - r) * noise.log() + d * math.log(2 * math.pi)
    )
    lengths = means.double().square().sum(1)
    out = torch.empty(N, K, dtype=torch.float64)
    size = max(1, 2**23 // d)
    for start in range(0, N, size):
        apart = X[start : start + size] - centre
        inner = ((apart @ basis).reshape(-1, K, r) - offsets).double().square()
        far = apart.double()
        squares = far.square().sum(1, keepdim=True) - far @ (2 * means.double().mT) + lengths
        across = (squares - inner.sum(2)).clamp_min(0)
        out[start : start + size] = constant - 0.5 * (across / noise + (inner / total).sum(2))
    return out
