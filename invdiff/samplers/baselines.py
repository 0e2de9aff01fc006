"""Classical methods, to set beside every diffusion: no network, no draws, the same answer every time.

They are samplers without a path: `solve(..., sampler="biharmonic")`, suites and reports take them by name, and none asks the
network (``nfe`` 0). Each says which measurements it is for. All of them work in model range.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from invdiff.backbones.base import Backbone
from invdiff.backbones.schedule import NoiseSchedule
from invdiff.errors import InvdiffError
from invdiff.noise import Draw
from invdiff.operators.base import LinearOperator
from invdiff.options import option
from invdiff.problem import Problem
from invdiff.samplers.base import Sampler, register_sampler, sampler_class, samplers_that

ROUNDING = 2 / 255 / 12**0.5
"""Standard deviation of what 8 bits round away, model range: the least noise that Wiener's filter and total variation count on."""


@dataclass(frozen=True)
class Baseline(Sampler):
    """A method without a path: to write one, give `restore`, and `reason` where it is not for every operator."""

    steps: ClassVar[int] = 1  # type: ignore[misc]  # no option of theirs
    baseline: ClassVar[bool] = True
    takes: ClassVar[str] = "every linear operator"
    learned: ClassVar[bool] = False  # made for one kind of pictures: used where it is named, never by itself

    def restore(self, problem: Problem) -> Tensor:
        """The answer, (B, C, H, W), model range."""
        raise NotImplementedError

    def respaced(self, schedule: NoiseSchedule) -> NoiseSchedule:
        return schedule

    def path(self, schedule: NoiseSchedule) -> list[int]:
        return [-1]

    def first_state(self, problem: Problem, backbone: Backbone, t: int, noise: Draw) -> Tensor:
        return self.restore(problem)

    def step(self, x_t: Tensor, t: int, s: int, problem: Problem, backbone: Backbone, noise: Draw) -> Any:
        raise InvdiffError(f"path must be None with {self.name}, which has none")


@register_sampler("pseudo-inverse")
@dataclass(frozen=True)
class PseudoInverse(Baseline):
    """``A^+ y``: of all x that fit y best, the one of least norm. What is not measured becomes 0, the grey in the middle."""

    takes: ClassVar[str] = "every operator"
    consistent: ClassVar[bool] = True
    paper: ClassVar[str] = "Penrose, A generalized inverse for matrices, 1955"

    def restore(self, problem: Problem) -> Tensor:
        return problem.pinv_y


@register_sampler("bicubic")
@dataclass(frozen=True)
class Bicubic(Baseline):
    """Cubic convolution (a = -1/2) through the small picture's pixels, placed where the operator takes them from.

    A picture whose every pixel holds its own row is measured: it tells the row that each small pixel stands for.
    """

    takes: ClassVar[str] = "super-resolution"
    paper: ClassVar[str] = "Keys, Cubic convolution interpolation for digital image processing, 1981"

    def reason(self, problem: Problem) -> str:
        shape = tuple(problem.operator.measurement_shape(problem.image_shape))
        small = len(shape) == 3 and shape[0] == problem.image_shape[0]
        return "" if problem.operator.task == "super_resolution" and small else "it is for super-resolution"

    def restore(self, problem: Problem) -> Tensor:
        _, height, width = problem.image_shape
        rows, columns = torch.meshgrid(
            torch.arange(height, dtype=torch.float32), torch.arange(width, dtype=torch.float32), indexing="ij"
        )
        A, y = problem.operator, problem.y
        count = (A.batch_size or 1, problem.image_shape[0], height, width)
        down = _cubic(A(rows.to(y).expand(count))[0, 0].mean(1), height)
        across = _cubic(A(columns.to(y).expand(count))[0, 0].mean(0), width)
        return down.to(y) @ y @ across.to(y).mT


def _cubic(centres: Tensor, length: int, a: float = -0.5) -> Tensor:
    """(length, n): the weights of n samples at evenly spaced `centres` in the pixels 0 .. length - 1; edges are repeated."""
    n = len(centres)
    spacing = float(centres.diff().median()) if n > 1 else float(length)
    offset = float((centres - spacing * torch.arange(n).to(centres)).median())  # of the middle: edges may be reflected
    place = (torch.arange(length) - offset) / spacing
    weights = torch.zeros(length, n)
    for shift in (-1, 0, 1, 2):
        sample = place.floor() + shift
        d = (place - sample).abs()
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        far = a * (d**3 - 5 * d**2 + 8 * d - 4)
        weights.scatter_add_(1, sample.long().clamp(0, n - 1)[:, None], torch.where(d <= 1, near, far)[:, None])
    return weights


@register_sampler("biharmonic")
@dataclass(frozen=True)
class Biharmonic(Baseline):
    """The smoothest continuation: the Laplacian's Laplacian is 0 in the holes (scikit-image's ``inpaint_biharmonic``)."""

    takes: ClassVar[str] = "masks"
    consistent: ClassVar[bool] = True
    paper: ClassVar[str] = "Damelin & Hoang, On surface completion and image inpainting by biharmonic functions, 2018"

    def reason(self, problem: Problem) -> str:
        return "" if problem.operator.task == "mask" else "it is for masks"

    def restore(self, problem: Problem) -> Tensor:
        from skimage.restoration import inpaint_biharmonic

        known = problem.known_pixels
        if known is None:
            return problem.pinv_y
        done = []
        for y, here in zip(problem.y, torch.broadcast_to(known, problem.y.shape), strict=True):
            holes = ~here.cpu().numpy()
            alike = [slice(None)] if bool((here == here[:1]).all()) else [slice(c, c + 1) for c in range(len(holes))]
            x = y.cpu().double().numpy().copy()
            for part in alike:  # the channels whose holes are the same
                hole = holes[part][0]
                if hole.any() and not hole.all():
                    x[part] = inpaint_biharmonic(x[part], hole, split_into_regions=True, channel_axis=0)
            done.append(torch.where(here, y, torch.from_numpy(np.ascontiguousarray(x)).to(y)))
        return torch.stack(done)


@register_sampler("wiener")
@dataclass(frozen=True)
class Wiener(Baseline):
    """The best linear filter for pictures with a spectrum S: ``conj(h) S / (|h|^2 S + sigma^2)`` at every frequency.

    h is the operator's transfer function. S falls off with a power of the frequency, as photographs' do, and is scaled to the
    variance of y beyond its noise; the mean is kept. Noise is sigma_y, or the rounding to 8 bits where that is more.
    """

    falloff: float = option(2.5, "S is proportional to 1 / frequency^falloff; 2 to 3 for photographs", low=0, high=8)

    takes: ClassVar[str] = "blurs and denoising"
    handles_noise: ClassVar[bool] = True
    paper: ClassVar[str] = "Wiener, Extrapolation, Interpolation, and Smoothing of Stationary Time Series, 1949"

    def reason(self, problem: Problem) -> str:
        A, shape = problem.operator, tuple(problem.image_shape)
        fits = (
            isinstance(A, LinearOperator)
            and A.task in ("blur", "identity")
            and A.channelwise
            and A.batch_size is None
            and tuple(A.measurement_shape(shape)) == shape
        )
        return "" if fits else "it is for blurs of the whole picture, and for denoising"

    def restore(self, problem: Problem) -> Tensor:
        y = problem.y
        height, width = y.shape[-2:]
        impulse = torch.zeros(1, *problem.image_shape, device=y.device, dtype=y.dtype)
        impulse[..., 0, 0] = 1
        h = torch.fft.rfft2(problem.operator(impulse))
        noise = max(problem.sigma_y, ROUNDING) ** 2
        mean = y.mean((2, 3), keepdim=True)
        fy, fx = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
        power = (fy**2 + fx**2).clamp(min=1 / max(height, width) ** 2).to(y) ** (-self.falloff / 2)
        power[0, 0] = 0  # the mean goes its own way
        twice = torch.full_like(power, 2.0)  # half a spectrum: most frequencies stand for two
        twice[:, 0] = 1
        if width % 2 == 0:
            twice[:, -1] = 1
        passed = (twice * h.abs() ** 2 * power).sum((2, 3), keepdim=True) / (height * width)
        variance = (y.var((2, 3), keepdim=True, correction=0) - noise).clamp(min=0.1 * noise)
        S = power * variance / passed.clamp(min=1e-12)
        detail = torch.fft.irfft2(
            h.conj() * S / (h.abs() ** 2 * S + noise) * torch.fft.rfft2(y - mean), s=(height, width)
        )
        gain = h[..., :1, :1].real
        return detail + mean / torch.where(gain.abs() > 1e-6, gain, 1.0)


@register_sampler("tv")
@dataclass(frozen=True)
class TotalVariation(Baseline):
    """The x of least total variation that fits y: ``min_x |A x - y|^2 / (2 l) + sum |grad x|``, ``l = weight sigma``.

    Chambolle and Pock's primal-dual iteration (2011, algorithm 1) with the proximal step of the first term in one filtered
    residual: ``x + A^T (A A^T + l / tau)^-1 (y - A x)``. The gradient's length is taken over rows, columns and channels together.
    Noise is sigma_y, or the rounding to 8 bits where that is more; without noise, the known pixels of a mask are kept.
    """

    iterations: int = option(200, "of the primal-dual method", low=1)
    weight: float = option(
        0.0, "of the variation, in standard deviations of the noise; 0 is 1 for denoising and 0.3 for others", low=0
    )

    handles_noise: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "Rudin, Osher, Fatemi, Nonlinear total variation based noise removal algorithms, 1992; Chambolle & Pock, 2011"
    )

    def reason(self, problem: Problem) -> str:
        return "" if isinstance(problem.operator, LinearOperator) else "it is for linear operators"

    def restore(self, problem: Problem) -> Tensor:
        tau = 0.2  # the norm of grad is at most sqrt 8
        sigma = 1 / (8 * tau)
        weight = self.weight or (1.0 if problem.operator.task == "identity" else 0.3)
        ridge = weight * max(problem.sigma_y, ROUNDING) / tau
        x = problem.filtered_residual(lambda squared: 1 / (squared + ridge), torch.zeros_like(problem.pinv_y))
        if problem.known_pixels is not None:  # from the mean of what is known rather than from grey
            known = torch.broadcast_to(problem.known_pixels, x.shape)
            mean = (x * known).sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True).clamp(min=1)
            x = torch.where(known, x, mean)
        ahead, dual = x, x.new_zeros(2, *x.shape)
        for _ in range(self.iterations):
            dual = dual + sigma * _gradient(ahead)
            dual = dual / (dual.square().sum((0, 2), keepdim=True).sqrt().clamp(min=1))
            moved = x + tau * _divergence(dual)
            after = moved + problem.filtered_residual(lambda squared: 1 / (squared + ridge), moved)
            ahead, x = 2 * after - x, after
        if problem.known_pixels is not None and problem.sigma_y == 0:
            return torch.where(problem.known_pixels, problem.y, x)
        return x


def _gradient(x: Tensor) -> Tensor:
    """(2, B, C, H, W): differences to the next row and to the next column, 0 at the last."""
    g = x.new_zeros(2, *x.shape)
    g[0, ..., :-1, :] = x.diff(dim=-2)
    g[1, ..., :-1] = x.diff(dim=-1)
    return g


def _divergence(p: Tensor) -> Tensor:
    """The negative adjoint of `_gradient`; the last row and column of its two parts are not read."""
    div = torch.zeros_like(p[0])
    div[..., :-1, :] += p[0, ..., :-1, :]
    div[..., 1:, :] -= p[0, ..., :-1, :]
    div[..., :-1] += p[1, ..., :-1]
    div[..., 1:] -= p[1, ..., :-1]
    return div


def baseline_names() -> list[str]:
    """The names of the methods without a path, those of installed packages included."""
    return list(samplers_that(baseline=True))


def baselines_for(problem: Problem) -> Iterable[str]:
    """The classical ones that take a problem."""
    classical = [name for name in baseline_names() if not getattr(sampler_class(name), "learned", False)]
    return [name for name in classical if not sampler_class(name)().reason(problem)]
