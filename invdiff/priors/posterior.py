"""Exact posteriors of Gaussian and Gaussian-mixture priors under any linear measurement.

With a prior ``x = m + T w + F z`` (w, z standard normal) and ``y = A x + s n``, let ``A T = U diag(S) V^T``. Given z,

    w | y, z  has mean V S/(S^2 + s^2) U^T (y - A m - A F z)
              and square root of covariance I - V (1 - s / sqrt(S^2 + s^2)) V^T

and z | y is Gaussian with precision ``I + G^T (S^2 + s^2)^-1 G``, ``G = U^T A F``. Nothing is divided by s: s = 0 is a
case like the others: V V^T is then taken out of w exactly. What A cannot reach of a measurement (the unknown pixels of
a mask, the inconsistent part of redundant rows) is left out, which is least squares.

All of it is computed in float64; images are returned in the precision of the prior.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from invdiff.checks import whole
from invdiff.errors import InvdiffError
from invdiff.noise import standard_normal

if TYPE_CHECKING:
    from invdiff.backbones.base import Backbone
    from invdiff.priors.gaussian import GaussianBackbone
    from invdiff.priors.mixture import GaussianMixtureBackbone

Map = Callable[[Tensor], Tensor]

DENSE_COVARIANCE = 8192  # largest d whose (d, d) covariance is made (512 MiB)
SVD_WORK = 4e9  # m k min(m, k) up to which A T is decomposed itself; beyond, A T T^T A^T is
SVD_ENTRIES = 2**25  # numbers of A T up to which it is made
COGRAM_SIDE = 4096  # largest m whose (m, m) matrix A T T^T A^T is decomposed
CHUNK_ENTRIES = 2**22  # numbers in one batch of images given to the operator


class Measurement(Protocol):
    """What a posterior asks of an operator A; every `LinearOperator` has it."""

    def __call__(self, x: Tensor) -> Tensor:
        """A x, (B, C, H, W) -> (B, *measurement_shape)."""

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y."""

    def measurement_shape(self, image_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the measurement of an image (C, H, W)."""


class FlatOperator:
    """An operator on flattened float64 images: (n, d) -> (n, m) and back, a bounded number of images at a time.

    Raises:
        InvdiffError: an operator with parameters for more than one image.
    """

    def __init__(self, operator: Any, image_shape: tuple[int, ...], device: torch.device) -> None:
        batch = getattr(operator, "batch_size", None)
        if batch is not None:
            if batch != 1:
                raise InvdiffError(
                    f"operator must be of one image for a posterior, got parameters for {batch}; operator[i] selects one"
                )
            operator = operator[0]
        if hasattr(operator, "bind"):
            operator = operator.bind(image_shape)
        if hasattr(operator, "to"):
            operator = operator.to(device)
        self.operator, self.image_shape, self.device = operator, image_shape, device
        self.measurement_shape = tuple(operator.measurement_shape(image_shape))
        self.d, self.m = math.prod(image_shape), math.prod(self.measurement_shape)
        with torch.no_grad():
            output = operator(torch.zeros(1, *image_shape, dtype=torch.float64, device=device))
        self.epsilon = torch.finfo(output.dtype).eps

    def forward(self, x: Tensor) -> Tensor:
        """A x, (n, d) -> (n, m)."""
        return self._chunked(self.operator, x, self.image_shape, self.m)

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y, (n, m) -> (n, d)."""
        return self._chunked(self.operator.adjoint, y, self.measurement_shape, self.d)

    def _chunked(self, apply: Map, values: Tensor, shape: tuple[int, ...], width: int) -> Tensor:
        out = values.new_empty(len(values), width)
        size = chunk_size(self.d)
        with torch.no_grad():
            for start in range(0, len(values), size):
                part = values[start : start + size]
                out[start : start + size] = apply(part.reshape(-1, *shape)).flatten(1)
        return out

    def measured(self, y: Tensor) -> Tensor:
        """`y` as (m,) in float64, whatever it was given as.

        Raises:
            InvdiffError: another shape than the measurement of one image.
        """
        y = torch.as_tensor(y).detach()
        shape = self.measurement_shape
        if tuple(y.shape) not in (shape, (1, *shape)):
            raise InvdiffError(
                f"y must be of shape {shape}, with or without a batch of one, as an image of shape {self.image_shape} is "
                f"measured, got {tuple(y.shape)}"
            )
        if y.is_complex():
            raise InvdiffError(f"y must be real, got {y.dtype}")
        return y.to(self.device, torch.float64).reshape(-1)


@dataclass(frozen=True)
class TruncatedSVD:
    """The singular value decomposition of ``A T``, without its zeros: ``U diag(singular) V^T``.

    Attributes:
        singular: S, (rank,), all positive.
        reduce: U^T y, (n, m) -> (n, rank).
        analyse: V^T w, (n, k) -> (n, rank).
        synthesise: V c, (n, rank) -> (n, k).
    """

    singular: Tensor
    reduce: Map
    analyse: Map
    synthesise: Map

    def scaled(self, factor: float) -> TruncatedSVD:
        """The svd of ``factor A T``, factor > 0."""
        return replace(self, singular=factor * self.singular)


@dataclass(frozen=True)
class AffinePrior:
    """``x = mean + colour(w) + z factor^T`` with w (k,) and z (r,) standard normal; float64, flattened.

    Attributes:
        mean: (d,).
        colour: T, (n, k) -> (n, d).
        colour_adjoint: T^T, (n, d) -> (n, k).
        white_dimension: k.
        variance: diagonal of T T^T, (d,).
        factor: F, (d, r), or None.
        log_density: (n, d) -> (n,) of the prior where it has one on the whole space, else None.
    """

    mean: Tensor
    colour: Map
    colour_adjoint: Map
    white_dimension: int
    variance: Tensor
    factor: Tensor | None = None
    log_density: Map | None = None


def chunk_size(d: int) -> int:
    """How many images of d numbers are handled at a time."""
    return max(1, CHUNK_ENTRIES // max(d, 1))


def identity(x: Tensor) -> Tensor:
    return x


def truncated_svd(operator: FlatOperator, colour: Map, colour_adjoint: Map, k: int, tolerance: float) -> TruncatedSVD:
    """The singular system of A T by the cheapest exact way: read off where ``A T T^T A^T`` is diagonal (masks, averages
    of disjoint pixels) or ``T^T A^T A T`` is under the Fourier transform of each channel (blurs), a decomposition of
    ``A T`` where that is small, else of ``A T T^T A^T``.

    Args:
        operator: A.
        colour, colour_adjoint: T and its transpose.
        k: number of columns of T.
        tolerance: singular values below this share of the largest are zeros.

    Raises:
        InvdiffError: a measurement too large for all three.
    """
    m, device = operator.m, operator.device

    def product(w: Tensor) -> Tensor:
        return operator.forward(colour(w))

    def transposed(y: Tensor) -> Tensor:
        return colour_adjoint(operator.adjoint(y))

    generator = torch.Generator().manual_seed(0)
    probes = torch.randn(2, m, generator=generator, dtype=torch.float64).to(device)
    found = product(transposed(torch.cat([torch.ones_like(probes[:1]), probes])))
    diagonal = found[0]
    largest = float(found.abs().max())
    if k == 0 or largest == 0:
        empty = torch.zeros(0, dtype=torch.float64, device=device)
        return TruncatedSVD(empty, lambda y: y[:, :0], lambda w: w[:, :0], lambda c: c.new_zeros(len(c), k))
    if float((found[1:] - diagonal * probes).abs().max()) <= 1000 * operator.epsilon * largest:
        kept = (diagonal > tolerance**2 * largest).nonzero()[:, 0]
        singular = diagonal[kept].sqrt()

        def synthesise(c: Tensor) -> Tensor:
            spread = c.new_zeros(len(c), m)
            spread[:, kept] = c / singular
            return transposed(spread)

        return TruncatedSVD(singular, lambda y: y[:, kept], lambda w: product(w)[:, kept] / singular, synthesise)
    if k == operator.d and (stationary := _stationary(operator, product, transposed, tolerance)) is not None:
        return stationary
    small = m * k * min(m, k) <= SVD_WORK and m * k <= SVD_ENTRIES
    if small:
        if m <= k:
            matrix = transposed(torch.eye(m, dtype=torch.float64, device=device))
        else:
            matrix = product(torch.eye(k, dtype=torch.float64, device=device)).mT
        U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
        rank = int((max(tolerance, max(m, k) * 2.3e-16) * S[0] < S).sum())
        U, S, V = U[:, :rank], S[:rank], Vh[:rank].mT
        U = torch.where(matrix.abs().amax(1)[:, None] > 0, U, 0.0) if rank else U
        return TruncatedSVD(S, lambda y: _without_unread(y, U) @ U, lambda w: w @ V, lambda c: c @ V.mT)
    if m <= COGRAM_SIDE:
        columns = [product(transposed(part)) for part in torch.eye(m, dtype=torch.float64, device=device).split(256)]
        cogram = torch.cat(columns)
        values, U = torch.linalg.eigh((cogram + cogram.mT) / 2)
        kept = values > max(tolerance**2, m * 2.3e-16) * values[-1]
        S, U = values[kept].sqrt(), U[:, kept]
        U = torch.where(cogram.abs().amax(1)[:, None] > 0, U, 0.0)
        return TruncatedSVD(
            S, lambda y: _without_unread(y, U) @ U, lambda w: product(w) @ (U / S), lambda c: transposed(c @ (U / S).mT)
        )
    raise InvdiffError(
        f"operator gives {m} numbers and A Sigma A^T has no structure; exact posteriors are made for up to "
        f"{COGRAM_SIDE} such numbers (any for masks, box averages, grey values, and blurs of stationary priors); use "
        f"smaller images"
    )


def _stationary(operator: FlatOperator, product: Map, transposed: Map, tolerance: float) -> TruncatedSVD | None:
    """The singular system of a B = A T whose ``B^T B`` is a convolution of each channel, else None.

    Its eigenvectors are those of the Hartley transform ``H x = Re F x - Im F x``, which is real, orthonormal and its
    own inverse; its eigenvalues are the Fourier transform of what becomes of one pixel.
    """
    shape, device = operator.image_shape, operator.device

    def hartley(x: Tensor) -> Tensor:
        spectrum = torch.fft.fft2(x.reshape(-1, *shape), norm="ortho")
        return (spectrum.real - spectrum.imag).flatten(1)

    pixel = torch.zeros(1, *shape, dtype=torch.float64, device=device)
    pixel[..., 0, 0] = 1
    generator = torch.Generator().manual_seed(1)
    probe = torch.randn(1, operator.d, generator=generator, dtype=torch.float64).to(device)
    response = transposed(product(torch.cat([pixel.flatten(1), probe])))
    values = torch.fft.fft2(response[0].reshape(shape)).real.flatten()
    largest = float(values.max())
    if float((hartley(values * hartley(probe)) - response[1:]).abs().max()) > 1000 * operator.epsilon * largest:
        return None
    kept = (values > max(tolerance**2, 1e-14) * largest).nonzero()[:, 0]
    singular = values[kept].sqrt()

    def synthesise(c: Tensor) -> Tensor:
        spread = c.new_zeros(len(c), operator.d)
        spread[:, kept] = c
        return hartley(spread)

    return TruncatedSVD(
        singular, lambda y: hartley(transposed(y))[:, kept] / singular, lambda w: hartley(w)[:, kept], synthesise
    )


def _without_unread(y: Tensor, U: Tensor) -> Tensor:
    """`y` with 0 at the numbers that U does not read, which may hold anything, NaN included."""
    return torch.where((U != 0).any(1), y, 0.0)


class GaussianPosterior:
    """The posterior of a Gaussian prior, itself Gaussian.

    Attributes:
        sigma_y: standard deviation of the measurement's noise.
        log_evidence: logarithm of the density of the part of y that A can reach, in an orthonormal basis of A's range.
    """

    def __init__(
        self,
        prior: AffinePrior,
        operator: FlatOperator,
        y: Tensor,
        sigma_y: float,
        svd: TruncatedSVD,
        range_svd: Callable[[], TruncatedSVD],
        image_shape: tuple[int, ...],
        dtype: torch.dtype,
    ) -> None:
        self.sigma_y = sigma_y
        self._prior, self._operator, self._y, self._svd, self._range_svd = prior, operator, y, svd, range_svd
        self._shape, self._dtype = image_shape, dtype
        S = svd.singular
        total = S.square() + sigma_y**2
        self._gain, self._shrink = S / total, 1 - sigma_y / total.sqrt()
        residual = (y - operator.forward(prior.mean[None]))[0]
        self._residual, self._total = svd.reduce(residual[None])[0], total
        if not bool(torch.isfinite(self._residual).all()):
            raise InvdiffError("y must be finite wherever the operator reads it")
        self._full_residual = residual
        r = 0 if prior.factor is None else prior.factor.shape[1]
        self._z_mean = y.new_zeros(r)
        if prior.factor is not None and r:
            self._seen = svd.reduce(operator.forward(prior.factor.mT))  # G^T, (r, rank)
            precision = torch.eye(r, dtype=y.dtype, device=y.device) + (self._seen / total) @ self._seen.mT
            self._z_root = torch.linalg.cholesky(precision)  # of the precision
            self._z_mean = torch.cholesky_solve((self._seen @ (self._residual / total))[:, None], self._z_root)[:, 0]

    # ---- moments --------------------------------------------------------------------------------------------

    @cached_property
    def _mean(self) -> Tensor:
        return (self._prior.mean + self._given_z(self._z_mean[None]))[0]

    @property
    def mean(self) -> Tensor:
        """E[x | y], (C, H, W)."""
        return self._image(self._mean)

    @cached_property
    def _variance(self) -> Tensor:
        shares = self._svd.singular.square() / self._total
        removed = torch.zeros_like(self._prior.mean)
        for start, basis in self._unit_rows():
            removed += shares[start : start + len(basis)] @ self._prior.colour(self._svd.synthesise(basis)).square()
        kept = self._prior.variance - removed
        if len(self._z_mean):
            kept = kept + self._z_directions.square().sum(0)
        return kept.clamp_min(0)

    @property
    def variance(self) -> Tensor:
        """Marginal variances, (C, H, W); of any d."""
        return self._image(self._variance)

    @cached_property
    def _covariance(self) -> Tensor:
        d = len(self._prior.mean)
        checked_dense(d)
        roots = []
        for part in torch.eye(self._prior.white_dimension, dtype=torch.float64, device=self._y.device).split(
            chunk_size(d)
        ):
            roots.append(self._prior.colour(self._decided(part)))
        root = torch.cat(roots) if roots else self._y.new_zeros(0, d)
        if len(self._z_mean):
            root = torch.cat([root, self._z_directions])
        return root.mT @ root

    @property
    def covariance(self) -> Tensor:
        """(d, d), for d up to 8,192.

        Raises:
            InvdiffError: a larger d.
        """
        return self._covariance.to(self._dtype)

    # ---- samples and densities ------------------------------------------------------------------------------

    def sample(self, n: int, seed: int = 0, *, generator: torch.Generator | None = None) -> Tensor:
        """`n` independent draws, (n, C, H, W): the same for the same seed, on every device.

        With ``sigma_y = 0`` every draw reproduces the measurement.
        """
        generator = started(seed, generator)
        parts = [self._draw(size, generator) for size in chunks(whole("n", n, low=1), len(self._prior.mean))]
        return torch.cat([self._image(part) for part in parts])

    def log_prob(self, x: Tensor) -> Tensor:
        """Logarithm of the posterior density, (B, C, H, W) -> (B,), float64.

        Where the posterior is degenerate (``sigma_y = 0``, or a singular prior), it is the density on its support with
        respect to the support's own volume, and minus infinity off it (beyond rounding of the precision of `x`).
        """
        flat = checked_images(x, self._shape).to(self._y)
        slack = torch.finfo(x.dtype).eps ** 0.5
        if self._prior.log_density is None:
            return self._log_prob_on_support(flat, slack)
        prior = self._prior.log_density(flat)
        seen = log_likelihood(self._operator, self._range_svd(), self._y, self.sigma_y, flat, slack)
        return prior + seen - self.log_evidence

    @cached_property
    def log_evidence(self) -> float:
        left = self._residual - self._z_mean @ self._seen if len(self._z_mean) else self._residual
        value = -0.5 * float((left.square() / self._total + self._total.log() + math.log(2 * math.pi)).sum())
        if len(self._z_mean):
            value -= 0.5 * float(self._z_mean.square().sum()) + float(self._z_root.diagonal().log().sum())
        return value + self._log_evidence_unseen()

    def _log_evidence_unseen(self) -> float:
        """Of the directions in the range of A in which the prior does not vary: there y is noise alone."""
        if self._prior.log_density is not None:
            return 0.0
        whole = self._range_svd()
        missing = len(whole.singular) - len(self._residual)
        if missing <= 0:
            return 0.0
        scale = max(float(self._svd.singular.max()) if len(self._residual) else 0.0, float(whole.singular.max()), 1e-30)
        noise = self.sigma_y or 1e-5 * scale
        squares = float(whole.reduce(self._full_residual[None]).square().sum() - self._residual.square().sum())
        return -0.5 * (missing * math.log(2 * math.pi * noise**2) + max(squares, 0.0) / noise**2)

    # ---- parts ----------------------------------------------------------------------------------------------

    def _given_z(self, z: Tensor) -> Tensor:
        """E[x - m | y, z], (n, r) -> (n, d)."""
        residual = self._residual.expand(len(z), -1)
        if self._prior.factor is None or not z.shape[1]:
            return self._prior.colour(self._svd.synthesise(self._gain * residual))
        explained = self._prior.colour(self._svd.synthesise(self._gain * (residual - z @ self._seen)))
        return explained + z @ self._prior.factor.mT

    def _decided(self, white: Tensor) -> Tensor:
        """The square root of the covariance of w given y and z, applied: what the measurement decided is taken out."""
        return white - self._svd.synthesise(self._shrink * self._svd.analyse(white))

    @cached_property
    def _z_directions(self) -> Tensor:
        """Rows ``C^(-1/2) H^T`` (r, d): how x moves with z given y."""
        assert self._prior.factor is not None
        moves = self._prior.factor.mT - self._prior.colour(self._svd.synthesise(self._gain * self._seen))
        return torch.linalg.solve_triangular(self._z_root, moves, upper=False)

    def _draw(self, n: int, generator: torch.Generator) -> Tensor:
        white = standard_normal((n, self._prior.white_dimension), 0, generator).to(self._y)
        z = self._z_mean.expand(n, -1)
        if len(self._z_mean):
            free = standard_normal((n, len(self._z_mean)), 0, generator).to(self._y)
            z = z + torch.linalg.solve_triangular(self._z_root.mT, free.mT, upper=True).mT
        return self._prior.mean + self._given_z(z) + self._prior.colour(self._decided(white))

    def _log_prob_on_support(self, flat: Tensor, slack: float) -> Tensor:
        covariance = self._covariance
        values, vectors = torch.linalg.eigh((covariance + covariance.mT) / 2)
        kept = values > 1e-11 * max(float(self._prior.variance.max()), 1e-300)
        coefficients = (flat - self._mean) @ vectors
        inside, V = coefficients[:, kept], values[kept]
        log_prob = -0.5 * (inside.square() / V + V.log() + math.log(2 * math.pi)).sum(-1)
        outside = coefficients[:, ~kept].norm(dim=-1) > slack * (1 + flat.norm(dim=-1))
        return torch.where(outside, -math.inf, log_prob)

    def _unit_rows(self) -> Iterator[tuple[int, Tensor]]:
        rank, size = len(self._gain), chunk_size(len(self._prior.mean))
        for start in range(0, rank, size):
            rows = self._y.new_zeros(min(size, rank - start), rank)
            rows[:, start : start + len(rows)].fill_diagonal_(1.0)
            yield start, rows

    def _image(self, flat: Tensor) -> Tensor:
        return flat.to(self._dtype).reshape(*flat.shape[:-1], *self._shape)

    def __repr__(self) -> str:
        directions = f"{len(self._gain)} measured directions"
        return f"GaussianPosterior(image_shape={self._shape}, sigma_y={self.sigma_y:g}, {directions})"


class MixturePosterior:
    """The posterior of a Gaussian mixture: the mixture of its components' posteriors.

    Which component an image belongs to is a matter of the image alone, so `responsibilities` of the prior at t = -1 are
    those of the posterior too.

    Attributes:
        components: the posteriors of the components, K of them.
        sigma_y: standard deviation of the measurement's noise.
        log_evidence: logarithm of the density of the part of y that A can reach.
    """

    def __init__(
        self,
        components: tuple[GaussianPosterior, ...],
        log_weights: Tensor,
        log_density: Map | None,
        range_svd: TruncatedSVD,
    ) -> None:
        self.components = components
        self.sigma_y = components[0].sigma_y
        evidences = torch.tensor([component.log_evidence for component in components], dtype=torch.float64)
        joint = log_weights.cpu() + evidences
        self.log_evidence = float(joint.logsumexp(0))
        self._log_weights = joint - self.log_evidence
        self._log_density, self._range_svd = log_density, range_svd

    @property
    def weights(self) -> Tensor:
        """Probability of every component given y, (K,), float64."""
        return self._log_weights.exp()

    @property
    def means(self) -> Tensor:
        """Posterior means of the components, (K, C, H, W)."""
        return torch.stack([component.mean for component in self.components])

    @cached_property
    def _heavy(self) -> list[tuple[float, GaussianPosterior]]:
        """The components that count in float64, with their weights."""
        pairs = zip(self.weights.tolist(), self.components, strict=True)
        return [(weight, component) for weight, component in pairs if weight > 1e-17]

    @cached_property
    def _mean(self) -> Tensor:
        total = torch.zeros_like(self.components[0]._prior.mean)
        for weight, component in self._heavy:
            total += weight * component._mean
        return total

    @property
    def mean(self) -> Tensor:
        """E[x | y], (C, H, W)."""
        return self.components[0]._image(self._mean)

    @property
    def variance(self) -> Tensor:
        """Marginal variances, (C, H, W); of any d."""
        total = torch.zeros_like(self._mean)
        for weight, component in self._heavy:
            total += weight * (component._variance + (component._mean - self._mean).square())
        return self.components[0]._image(total)

    @property
    def covariance(self) -> Tensor:
        """(d, d), for d up to 8,192.

        Raises:
            InvdiffError: a larger d.
        """
        checked_dense(len(self._mean))
        total = self._mean.new_zeros(len(self._mean), len(self._mean))
        for weight, component in self._heavy:
            apart = component._mean - self._mean
            total += weight * (component._covariance + apart[:, None] * apart)
        return total.to(self.components[0]._dtype)

    def sample(self, n: int, seed: int = 0, *, generator: torch.Generator | None = None) -> Tensor:
        """`n` independent draws, (n, C, H, W): the same for the same seed, on every device.

        With ``sigma_y = 0`` every draw reproduces the measurement.
        """
        generator = started(seed, generator)
        first = self.components[0]
        parts = []
        for size in chunks(whole("n", n, low=1), len(first._prior.mean)):
            chosen = pick(self.weights, size, generator)
            part = first._y.new_zeros(size, len(first._prior.mean))
            for k in chosen.unique().tolist():
                rows = (chosen == k).nonzero()[:, 0].to(part.device)
                part[rows] = self.components[k]._draw(len(rows), generator)
            parts.append(first._image(part))
        return torch.cat(parts)

    def log_prob(self, x: Tensor) -> Tensor:
        """Logarithm of the posterior density, (B, C, H, W) -> (B,), float64.

        With ``sigma_y = 0`` it is the density on the images that reproduce the measurement, with respect to the volume
        of that subspace, and minus infinity off it (beyond rounding of the precision of `x`). Mixtures with components
        of no variance have none that could be compared.

        Raises:
            InvdiffError: a prior with components of no variance.
        """
        first = self.components[0]
        if self._log_density is None:
            raise InvdiffError("log_prob needs a prior density, but a component of this mixture has zero variances")
        flat = checked_images(x, first._shape).to(first._y)
        slack = torch.finfo(x.dtype).eps ** 0.5
        likelihood = log_likelihood(first._operator, self._range_svd, first._y, self.sigma_y, flat, slack)
        return self._log_density(flat) + likelihood - self.log_evidence

    def __repr__(self) -> str:
        return f"MixturePosterior({len(self.components)} components, sigma_y={self.sigma_y:g}, {self.components[0]!r})"


# ---- conditioning -------------------------------------------------------------------------------------------


def gaussian_posterior(
    backbone: GaussianBackbone, operator: Measurement, y: Tensor, sigma_y: float = 0.0
) -> GaussianPosterior:
    """See `GaussianBackbone.posterior`."""
    sigma_y, flat, measured, tolerance = _measurement(backbone, operator, y, sigma_y)
    prior = backbone.double()
    full = bool((prior.eigenvalues > 0).all())
    affine = AffinePrior(
        mean=prior.mean.flatten(),
        colour=prior.colour,
        colour_adjoint=prior.colour,
        white_dimension=flat.d,
        variance=prior.variance.flatten(),
        log_density=(lambda x: prior.log_prob(x.reshape(-1, *prior.image_shape))) if full else None,
    )
    svd = truncated_svd(flat, prior.colour, prior.colour, flat.d, tolerance)

    def range_svd() -> TruncatedSVD:
        return truncated_svd(flat, identity, identity, flat.d, tolerance)

    return GaussianPosterior(affine, flat, measured, sigma_y, svd, range_svd, backbone.image_shape, backbone.dtype)


def mixture_posterior(
    backbone: GaussianMixtureBackbone, operator: Measurement, y: Tensor, sigma_y: float = 0.0
) -> MixturePosterior:
    """See `GaussianMixtureBackbone.posterior`."""
    sigma_y, flat, measured, tolerance = _measurement(backbone, operator, y, sigma_y)
    prior = backbone.double()
    whole = truncated_svd(flat, identity, identity, flat.d, tolerance)
    components = []
    for k in range(prior.components):
        affine, isotropic = prior.component(k)
        if isotropic:
            svd = whole.scaled(isotropic)
        else:
            svd = truncated_svd(flat, affine.colour, affine.colour_adjoint, affine.white_dimension, tolerance)
        components.append(
            GaussianPosterior(affine, flat, measured, sigma_y, svd, lambda: whole, backbone.image_shape, backbone.dtype)
        )
    full = all(component._prior.log_density is not None for component in components)
    density = (lambda x: prior.log_prob(x.reshape(-1, *prior.image_shape))) if full else None
    return MixturePosterior(tuple(components), prior.weights.log(), density, whole)


def _measurement(
    backbone: Backbone, operator: Measurement, y: Tensor, sigma_y: float
) -> tuple[float, FlatOperator, Tensor, float]:
    """The noise, the operator on flat images, the flat measurement, and below what a singular value counts as zero; all checked."""
    sigma_y = checked_noise(sigma_y)
    flat = FlatOperator(operator, backbone.image_shape, backbone.device)
    return sigma_y, flat, flat.measured(y), rank_tolerance(flat, y, sigma_y)


def log_likelihood(
    operator: FlatOperator, svd: TruncatedSVD, y: Tensor, sigma_y: float, x: Tensor, slack: float
) -> Tensor:
    """Logarithm of the density of U^T y given x, (n, d) -> (n,), `svd` being that of A itself.

    At ``sigma_y = 0`` it turns a density of images into one on those that reproduce y (the co-area formula): minus the
    logarithm of the product of A's singular values for these, and minus infinity for the others.
    """
    residual = svd.reduce(y - operator.forward(x))
    if sigma_y > 0:
        return -0.5 * (residual.square() / sigma_y**2 + math.log(2 * math.pi * sigma_y**2)).sum(-1)
    seen = svd.reduce(y[None]).norm()
    misses = residual.norm(dim=-1) > slack * (1 + seen)
    return torch.where(misses, -math.inf, -svd.singular.log().sum())


def rank_tolerance(operator: FlatOperator, y: Any, sigma_y: float) -> float:
    """Share of the largest singular value below which one is a zero. Noise makes any value harmless; without it nothing
    below the rounding of the measurement can be inverted."""
    if sigma_y > 0:
        return 1e-14
    y = torch.as_tensor(y)
    rounding = torch.finfo(y.dtype).eps if y.is_floating_point() else torch.finfo(torch.float32).eps
    return 16 * max(rounding, operator.epsilon)


def checked_noise(sigma_y: float) -> float:
    """`sigma_y` if it is a standard deviation."""
    try:
        value = float(sigma_y)
    except (TypeError, ValueError) as error:
        raise InvdiffError(f"sigma_y must be a number of at least 0, got {sigma_y!r}") from error
    if not (value >= 0 and math.isfinite(value)):
        raise InvdiffError(f"sigma_y must be a finite number of at least 0, got {value}")
    return value


def checked_dense(d: int) -> None:
    """Raise an `InvdiffError` where a (d, d) matrix is too much to ask for."""
    if d > DENSE_COVARIANCE:
        raise InvdiffError(
            f"covariance would be a ({d}, {d}) matrix; it is made for d up to {DENSE_COVARIANCE}; use `variance`"
        )


def checked_images(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`x` as (B, d)."""
    if not isinstance(x, Tensor) or x.ndim != 4 or tuple(x.shape[1:]) != shape or not x.is_floating_point():
        got = f"shape {tuple(x.shape)}, {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise InvdiffError(f"x must be a floating point tensor (B, {', '.join(map(str, shape))}), got {got}")
    return x.flatten(1)


def started(seed: int, generator: torch.Generator | None) -> torch.Generator:
    """`generator`, or one of its own started at `seed`."""
    if generator is not None:
        return generator
    standard_normal((0,), seed)
    return torch.Generator().manual_seed(int(seed))


def chunks(n: int, d: int) -> list[int]:
    """`n` split into batches of bounded size."""
    size = chunk_size(d)
    return [min(size, n - start) for start in range(0, n, size)]


def pick(weights: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """`n` component numbers with the probabilities `weights`, (n,), on the CPU."""
    edges = weights.cpu().double().cumsum(0)
    u = torch.rand(n, generator=generator, dtype=torch.float64, device=generator.device).cpu()
    return torch.searchsorted(edges, u * edges[-1], right=True).clamp_max(len(weights) - 1)
