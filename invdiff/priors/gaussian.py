"""Priors whose denoiser, density and posterior are known in closed form: what a sampler is measured against."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from invdiff.backbones.base import Backbone, Prediction
from invdiff.backbones.schedule import NoiseSchedule
from invdiff.checks import array, real, whole
from invdiff.errors import InvdiffError
from invdiff.noise import standard_normal

if TYPE_CHECKING:
    from invdiff.priors.posterior import GaussianPosterior, Measurement

Array = Tensor | np.ndarray | Sequence[Any] | float
Level = float | Tensor


class AnalyticBackbone(Backbone):
    """What the backbones with a known prior share: their images, their precision and their levels.

    Attributes:
        schedule: the times that `predict` counts in.
        image_shape: (C, H, W).
    """

    bounded = False

    _parameters: tuple[str, ...] = ()

    @property
    def device(self) -> torch.device:
        return getattr(self, self._parameters[0]).device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the parameters, in which everything is computed and returned."""
        return getattr(self, self._parameters[0]).dtype

    @property
    def dimension(self) -> int:
        """d = C H W."""
        return math.prod(self.image_shape)

    def to(self, device: torch.device | str) -> Any:
        """The same backbone on another device."""
        return self._moved(device)

    def double(self) -> Any:
        """The same backbone in float64."""
        return self._moved(torch.float64)

    @torch.inference_mode(False)  # so that a backbone made inside inference mode still has gradients outside
    def _moved(self, where: torch.device | str | torch.dtype) -> Any:
        other = copy.copy(self)
        for name in self._parameters:
            value = getattr(self, name)
            setattr(other, name, None if value is None else value.to(where))
        return other

    def _flat(self, x: Tensor, name: str = "x_t") -> Tensor:
        """`x` as (B, d) in the precision of the parameters."""
        if not isinstance(x, Tensor) or x.ndim != 4 or tuple(x.shape[1:]) != self.image_shape:
            got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise InvdiffError(f"{name} must be a tensor (B, {', '.join(map(str, self.image_shape))}), got {got}")
        return x.to(self.dtype).flatten(1)

    def _levels(self, t: int | Tensor, like: Tensor) -> tuple[Level, Level]:
        """``alpha_bar[t]`` and ``1 - alpha_bar[t]`` (taken in double precision): floats, or (B, 1) like `like`."""
        if isinstance(t, Tensor) and t.ndim > 0:
            times = t.detach().long().cpu()
            if times.shape != (len(like),) or not bool(((times >= -1) & (times < self.schedule.T)).all()):
                raise InvdiffError(
                    f"t must be one time or one for each of the {len(like)} images, from -1 to {self.schedule.T - 1}; "
                    f"got shape {tuple(t.shape)}, {times.min()} to {times.max()}"
                )
            levels = self.schedule.alpha_bar[times][:, None]
            return levels.to(like.device, like.dtype), (1 - levels).to(like.device, like.dtype)
        if not -1 <= int(t) < self.schedule.T:
            raise InvdiffError(f"t must lie between -1 (clean) and {self.schedule.T - 1}, got {int(t)}")
        level = self.schedule.alpha_bar_at(int(t))
        return level, 1 - level


class GaussianBackbone(AnalyticBackbone):
    """The exact denoiser of a Gaussian prior, x0 ~ N(mean, covariance).

    With ``a = alpha_bar[t]`` the marginal of x_t is ``N(sqrt(a) m, a S + (1 - a) I)`` and

        E[x0  | x_t] = m + sqrt(a) S (a S + (1 - a) I)^-1 (x_t - sqrt(a) m)
        E[eps | x_t] = sqrt(1 - a) (a S + (1 - a) I)^-1 (x_t - sqrt(a) m),

    each computed by itself in the eigenbasis of S, so that neither loses digits at its end of the schedule.

    Args:
        mean: (C, H, W) or (1, C, H, W), model range.
        covariance: in squared model range. A number: the same variance for every pixel. A tensor of the shape of
            `mean`: the diagonal. A (d, d) matrix, d = C H W: dense; it is decomposed once, in float64. Zero variances
            and singular matrices are legal. See `circulant` for covariances diagonal under the Fourier transform.
        schedule: the times that it counts in; linear with 1,000 times by default.
        name: what reports call it.

    Predictions have the precision of the parameters: float64 if either is float64, else float32.

    Raises:
        InvdiffError: a mean that is no image; a covariance of another shape, not symmetric, or not positive
            semi-definite.
    """

    _parameters = ("_mean", "_values", "_vectors")
    _fourier = False
    _mean: Tensor
    _values: Tensor
    _vectors: Tensor | None = None

    @torch.inference_mode(False)
    def __init__(
        self, mean: Array, covariance: Array, schedule: NoiseSchedule | None = None, *, name: str = "gaussian"
    ) -> None:
        mean = numbers("mean", mean)
        covariance = numbers("covariance", covariance)
        self.image_shape = image_shape_of("mean", mean)
        self.schedule = NoiseSchedule.linear() if schedule is None else schedule
        self.name = name
        d = self.dimension
        precision = torch.promote_types(mean.dtype, covariance.dtype)
        device = mean.device
        self._mean = mean.to(precision).reshape(d)
        if covariance.ndim == 0:
            values = variances("covariance", covariance).expand(d)
        elif tuple(covariance.shape) in (self.image_shape, (1, *self.image_shape)):
            values = variances("covariance", covariance).reshape(d)
        elif tuple(covariance.shape) == (d, d):
            values, vectors = _eigenbasis(covariance)
            self._vectors = vectors.to(device, precision)
        else:
            raise InvdiffError(
                f"covariance has shape {tuple(covariance.shape)}; accepted are a number, the shape {self.image_shape} "
                f"of the mean (variances), and ({d}, {d}) (a matrix)"
            )
        self._values = values.to(device, precision).contiguous()

    @classmethod
    @torch.inference_mode(False)
    def circulant(
        cls, mean: Array, spectrum: Array, schedule: NoiseSchedule | None = None, *, name: str = "gaussian"
    ) -> GaussianBackbone:
        """A stationary prior: the covariance of a channel is ``F^H diag(spectrum) F``, F the orthonormal 2-D Fourier
        transform.

        Args:
            mean: (C, H, W) or (1, C, H, W).
            spectrum: eigenvalues of the covariance in the order of `torch.fft.fft2`, (H, W) for all channels or
                (C, H, W); real, not negative, and the same at a frequency and its negative. White noise of variance v
                has spectrum v.
            schedule, name: as for the class.

        Raises:
            InvdiffError: a spectrum of another shape, negative, or not symmetric.
        """
        mean = numbers("mean", mean)
        shape = image_shape_of("mean", mean)
        given = numbers("spectrum", spectrum)
        if tuple(given.shape) not in (shape, shape[1:]):
            raise InvdiffError(f"spectrum must be of shape {shape[1:]} or {shape}, got {tuple(given.shape)}")
        given = variances("spectrum", given)
        mirrored = given.flip(-2, -1).roll((1, 1), (-2, -1))
        if not torch.allclose(given, mirrored, rtol=1e-4, atol=1e-6 * float(given.max())):
            gap = float((given - mirrored).abs().max())
            raise InvdiffError(
                f"spectrum must be the same at every frequency and its negative (spectrum[-i, -j] == spectrum[i, j]), "
                f"else the covariance is not real; it differs by up to {gap:.3g}"
            )
        values = ((given + mirrored) / 2).expand(shape).contiguous()
        made = cls(mean, values, schedule, name=name)
        made._fourier = True
        return made

    # ---- the prior ------------------------------------------------------------------------------------------

    @property
    def mean(self) -> Tensor:
        """(C, H, W)."""
        return self._mean.reshape(self.image_shape)

    @property
    def covariance(self) -> Tensor:
        """The (d, d) matrix, made when asked for."""
        identity = torch.eye(self.dimension, dtype=self.dtype, device=self.device)
        return self._from_basis(self._values * self._to_basis(identity))

    @property
    def eigenvalues(self) -> Tensor:
        """Of the covariance, (d,), in the order of its basis."""
        return self._values

    @property
    def variance(self) -> Tensor:
        """The diagonal of the covariance, (C, H, W)."""
        if self._fourier:
            per_channel = self._values.reshape(self.image_shape).mean((1, 2), keepdim=True)
            return per_channel.expand(self.image_shape).contiguous()
        diagonal = self._values if self._vectors is None else self._vectors.square() @ self._values
        return diagonal.reshape(self.image_shape)

    def prior_sample(self, n: int, generator: torch.Generator | None = None, *, seed: int = 0) -> Tensor:
        """`n` images of the prior, (n, C, H, W): the same for the same seed, on every device."""
        white = standard_normal((whole("n", n, low=1), self.dimension), seed, generator).to(self.device, self.dtype)
        return (self._mean + self.colour(white)).reshape(-1, *self.image_shape)

    def log_prob(self, x: Tensor, t: int | Tensor = -1) -> Tensor:
        """Logarithm of the density of x_t at `x`, (B, C, H, W) -> (B,); of the clean image by default.

        Where the covariance is singular and t = -1, the density is the one on its support, minus infinity off it.
        """
        flat = self._flat(x, "x")
        a, b = self._levels(t, flat)
        signal, total = a**0.5, a * self._values + b
        coefficients = self._to_basis(flat - signal * self._mean)
        squares = coefficients.abs().square()
        inside = total > 0
        safe = torch.where(inside, total, 1.0)
        log_prob = -0.5 * (squares / safe + safe.log() + math.log(2 * math.pi)).mul(inside).sum(-1)
        if bool(inside.all()):
            return log_prob
        outside = squares.mul(~inside).amax(-1) > torch.finfo(self.dtype).eps * (1 + flat.square().amax(-1))
        return torch.where(outside, -math.inf, log_prob)

    # ---- the denoiser ---------------------------------------------------------------------------------------

    def predict(self, x_t: Tensor, t: int | Tensor) -> Prediction:
        flat = self._flat(x_t)
        a, b = self._levels(t, flat)
        signal, total = a**0.5, a * self._values + b
        coefficients = self._to_basis(flat - signal * self._mean) / torch.where(total > 0, total, 1.0)
        x0 = self._mean + self._from_basis(signal * self._values * coefficients)
        eps = b**0.5 * self._from_basis(coefficients)
        shape = (-1, *self.image_shape)
        return Prediction(x0.reshape(shape), eps.reshape(shape))

    def posterior(self, operator: Measurement, y: Tensor, sigma_y: float = 0.0) -> GaussianPosterior:
        """The exact distribution of x0 given ``y = A x0 + sigma_y n``.

        Args:
            operator: any linear operator A on images of `image_shape`.
            y: one measurement, ``(*measurement_shape)`` or with a batch of one before it, in model range units.
            sigma_y: standard deviation of the noise, 0 included.

        Returns:
            A `GaussianPosterior`: `mean`, `variance`, `covariance`, `sample(n, seed)`, `log_prob(x)`.
        """
        from invdiff.priors.posterior import gaussian_posterior

        return gaussian_posterior(self, operator, y, sigma_y)

    # ---- the square root of the covariance ------------------------------------------------------------------

    def colour(self, white: Tensor) -> Tensor:
        """``S^(1/2) w`` with the symmetric root, (..., d) -> (..., d): white noise to deviations from the mean."""
        return self._from_basis(self._values.sqrt() * self._to_basis(white))

    def _to_basis(self, x: Tensor) -> Tensor:
        if self._fourier:
            images = x.reshape(*x.shape[:-1], *self.image_shape)
            return torch.fft.fft2(images, norm="ortho").flatten(-3)
        return x if self._vectors is None else x @ self._vectors

    def _from_basis(self, coefficients: Tensor) -> Tensor:
        if self._fourier:
            images = coefficients.reshape(*coefficients.shape[:-1], *self.image_shape)
            return torch.fft.ifft2(images, norm="ortho").real.flatten(-3)
        return coefficients if self._vectors is None else coefficients @ self._vectors.mT

    def __repr__(self) -> str:
        kind = "circulant" if self._fourier else "diagonal" if self._vectors is None else "dense"
        precision = str(self.dtype).removeprefix("torch.")
        return f"GaussianBackbone({kind}, image_shape={self.image_shape}, {precision}, {self.device})"


def numbers(name: str, value: Array) -> Tensor:
    """`value` as a float32 or float64 tensor of finite numbers, detached."""
    tensor = array(name, real(name, value) if isinstance(value, float | int) else value)
    if tensor.dtype == torch.bool:
        raise InvdiffError(f"{name} must be an array of numbers, got truth values")
    if isinstance(value, float | int):
        tensor = tensor.float()
    if tensor.dtype not in (torch.float32, torch.float64):
        tensor = tensor.float()
    if not bool(torch.isfinite(tensor).all()):
        raise InvdiffError(f"{name} must be finite, got {int((~torch.isfinite(tensor)).sum())} entries that are not")
    return tensor.clone()


def image_shape_of(name: str, image: Tensor) -> tuple[int, ...]:
    """(C, H, W) of one image, with or without a batch of one."""
    shape = tuple(image.shape[1:]) if image.ndim == 4 and image.shape[0] == 1 else tuple(image.shape)
    if len(shape) != 3 or min(shape) < 1:
        raise InvdiffError(f"{name} must be one image (C, H, W) or (1, C, H, W), got shape {tuple(image.shape)}")
    return shape


def variances(name: str, values: Tensor) -> Tensor:
    """`values` if none is negative."""
    if bool((values < 0).any()):
        raise InvdiffError(f"{name} must hold variances, 0 or more; its smallest entry is {float(values.min()):.3g}")
    return values


def _eigenbasis(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (d,) and eigenvectors (d, d) of a covariance, in float64; rounding below zero is cut off."""
    matrix64 = matrix.double()
    scale = max(float(matrix64.abs().max()), 1e-300)
    gap = float((matrix64 - matrix64.mT).abs().max())
    if gap > 1e-5 * scale:
        raise InvdiffError(f"covariance must be symmetric; it differs from its transpose by up to {gap:.3g}")
    values, vectors = torch.linalg.eigh((matrix64 + matrix64.mT) / 2)
    largest = max(float(values[-1]), 0.0)
    slack = 4 * torch.finfo(matrix.dtype).eps * max(largest, scale)
    if float(values[0]) < -max(len(values) * slack, 1e-6 * scale):
        raise InvdiffError(
            f"covariance must be positive semi-definite; its smallest eigenvalue is {float(values[0]):.3g}"
        )
    return torch.where(values > slack, values, 0.0), vectors
