"""The clean image given x_t as a Gaussian, from the network's Jacobian; what a measurement makes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from invdiff.operators.base import LinearOperator
from invdiff.problem import Problem


@dataclass(frozen=True)
class Seen:
    """What A sees of every row, in orthonormal coordinates: ``z = V^T x + noise``, the noise of variance ``sigma_y^2 / s^2``.

    Attributes:
        directions: V, (B, d, m), orthonormal columns; where a row of the batch sees fewer of them than another, some of no
            meaning, whose noise drowns all.
        z: (B, m), measured.
        noise: (B, m), variances.
    """

    directions: Tensor
    z: Tensor
    noise: Tensor

    @classmethod
    def of(cls, problem: Problem, dtype: torch.dtype) -> Seen:
        """From a small operator's matrix; singular values below 1e-6 of the largest are zeros."""
        A, shape = problem.operator, problem.image_shape
        assert isinstance(A, LinearOperator)
        matrix = A.dense(shape).double()
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        seen = values > 1e-6 * values.amax(-1, keepdim=True).clamp_min(1e-300)
        m = max(1, int(seen.sum(-1).max()))
        left, values, right, seen = left[..., :m], values[..., :m], right[..., :m, :], seen[..., :m]
        safe = torch.where(seen, values, 1.0)
        y = problem.y.double().flatten(1).to(left.device)
        z = torch.where(seen, (left.mT @ y[..., None]).squeeze(-1) / safe, 0.0)
        noise = torch.where(seen, (problem.sigma_y / safe) ** 2, 1e12).expand_as(z)
        directions = right.mT.expand(len(y), -1, -1)
        place = problem.y.device
        return cls(directions.to(place, dtype), z.to(place, dtype), noise.to(place, dtype))

    def rows(self, index: Tensor) -> Seen:
        """Of some rows."""
        return Seen(self.directions[index], self.z[index], self.noise[index])


@dataclass(frozen=True)
class LocalGaussian:
    """x0 given x_t as ``N(mean, U diag(spectrum) U^T + rest (I - U U^T))``, for every row; U spans at least what A sees.

    Attributes:
        mean: (B, d), the network's estimate.
        basis: U, (B, d, r), orthonormal columns.
        spectrum: (B, r).
        rest: (B, 1), the variance of all other directions.
    """

    mean: Tensor
    basis: Tensor
    spectrum: Tensor
    rest: Tensor

    @classmethod
    def of(cls, mean: Tensor, product: Callable[[Tensor], Tensor], seen: Seen, probe: Tensor) -> LocalGaussian:
        """From products with the covariance, ``C v = (1 - a)/sqrt(a) J^T v`` (Tweedie's second formula).

        The basis is all of space where ``d <= 2 m + 1``, else the span of V and C V, on which C is then known; the other
        directions share one variance, which one product with random signs estimates.

        Args:
            mean: (B, d).
            product: ``v -> C v`` on (B, d).
            seen: V, (B, d, m).
            probe: (B, d), random numbers.
        """
        d, V = mean.shape[1], seen.directions
        m = V.shape[2]

        def columns(matrix: Tensor) -> Tensor:
            return torch.stack([product(v) for v in matrix.unbind(-1)], -1)

        if d <= 2 * m + 1:
            C = columns(torch.eye(d, dtype=mean.dtype, device=mean.device).expand(len(mean), d, d))
            spectrum, basis = torch.linalg.eigh((C + C.mT) / 2)
            return cls(mean, basis, spectrum.clamp_min(0), mean.new_zeros(len(mean), 1))
        B = columns(V)
        off = B - V @ (V.mT @ B)
        scale = off.abs().amax((1, 2), keepdim=True)
        Q, R = torch.linalg.qr(torch.cat([V, off / torch.where(scale > 0, scale, 1.0)], -1))
        CQ = torch.cat([B * R.diagonal(dim1=1, dim2=2)[:, None, :m], columns(Q[..., m:])], -1)  # Q begins with V or -V
        spectrum, rotation = torch.linalg.eigh((Q.mT @ CQ + CQ.mT @ Q) / 2)
        sign = torch.where(probe < 0, -1.0, 1.0).to(mean)
        sign = sign - (Q @ (Q.mT @ sign[..., None])).squeeze(-1)
        rest = (sign * product(sign)).sum(1, keepdim=True) / sign.square().sum(1, keepdim=True)
        return cls(mean, Q @ rotation, spectrum.clamp_min(0), rest.clamp_min(0))

    def filtered(self, f: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
        """f(C) v, (B, d) -> (B, d)."""
        inside = (self.basis.mT @ v[..., None]).squeeze(-1)
        other = f(self.rest)
        return other * v + (self.basis @ ((f(self.spectrum) - other) * inside)[..., None]).squeeze(-1)

    def given_next(self, x_s: Tensor, mean_s: Tensor, c1: float, variance: float) -> LocalGaussian:
        """x0 given x_t and ``x_s = c1 x0 + c2 x_t + sqrt(variance) n``, whose mean before was `mean_s`."""
        gain = c1 / variance

        def narrower(values: Tensor) -> Tensor:
            return values / (1 + c1 * gain * values)

        mean = self.mean + gain * self.filtered(narrower, x_s - mean_s)
        return LocalGaussian(mean, self.basis, narrower(self.spectrum), narrower(self.rest))

    def log_likelihood(self, seen: Seen) -> Tensor:
        """``log N(z; V^T mean, V^T C V + noise)``, (B,), without the constant."""
        residual, factor = self._innovation(seen)
        whitened = torch.linalg.solve_triangular(factor, residual[..., None], upper=False).squeeze(-1)
        return -0.5 * whitened.square().sum(1) - factor.diagonal(dim1=1, dim2=2).log().sum(1)

    def posterior_draw(self, seen: Seen, n: Tensor, n_z: Tensor) -> Tensor:
        """A draw of x0 given x_t and z (Matheron's rule): draw both from the prior, then correct by what z says instead.

        Args:
            seen: the measurement.
            n, n_z: (B, d) and (B, m), standard normal numbers.
        """
        x0 = self.mean + self.filtered(torch.sqrt, n)
        _, factor = self._innovation(seen)
        gap = seen.z - (seen.directions.mT @ x0[..., None]).squeeze(-1) - seen.noise.sqrt() * n_z
        back = torch.cholesky_solve(gap[..., None], factor)
        return x0 + self.filtered(lambda values: values, (seen.directions @ back).squeeze(-1))

    def _innovation(self, seen: Seen) -> tuple[Tensor, Tensor]:
        """``z - V^T mean``, and the Cholesky factor of its covariance."""
        residual = seen.z - (seen.directions.mT @ self.mean[..., None]).squeeze(-1)
        across = self.basis.mT @ seen.directions
        covariance = across.mT @ (self.spectrum[..., None] * across) + self._outside(seen, across)
        floor = 1e-10 * covariance.diagonal(dim1=1, dim2=2).amax(
            -1, keepdim=True
        )  # what rounding leaves where noise is 0
        return residual, torch.linalg.cholesky(covariance + torch.diag_embed(seen.noise + floor + 1e-30))

    def _outside(self, seen: Seen, across: Tensor) -> Tensor:
        """What directions outside of the basis add: nothing, up to rounding, as the basis holds what A sees."""
        left = seen.directions.mT @ seen.directions - across.mT @ across
        return self.rest[..., None] * left
