"""DDNM and DDNM+: fix the range space, let the network fill the null space."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.backbones.base import Backbone
from invdiff.backbones.schedule import SPACINGS, NoiseSchedule
from invdiff.noise import Draw
from invdiff.options import option
from invdiff.problem import Problem
from invdiff.samplers.base import Sampler, inverse, register_sampler
from invdiff.samplers.integrators import OWN, OWN_OR_INTEGRATOR
from invdiff.samplers.paths import travel
from invdiff.tensors import weighted_sum


@register_sampler("ddnm")
@dataclass(frozen=True)
class DDNM(Sampler):
    """Denoising diffusion null-space model (Wang et al., ICLR 2023, algorithm 1).

        x0 <- x0 + A^+ (y - A x0)
        x_s = sqrt(a_s) x0 + c eta n + c sqrt(1 - eta^2) eps,      c = sqrt(1 - a_s)

    Noise-free: exact data consistency at every step. Time travel (section 3.3) goes back up from the last uncorrected
    estimate, ``sqrt(a_s) x0 + sqrt(1 - a_s) n``.
    """

    steps: int = option(100, "times kept of the schedule", low=1)
    eta: float = option(0.85, "share of fresh noise: 0 deterministic, 1 all fresh", low=0, high=1)
    travel_length: int = option(1, "steps of one travel back", low=1)
    travel_repeat: int = option(1, "how often each stretch is walked; 1 = no travel (the paper's old photos: 2)", low=1)
    integrator: str = option(
        OWN, "the paper's step, or an integrator that follows the estimate", choices=OWN_OR_INTEGRATOR
    )
    spacing: str = option("leading", "which times of the schedule are kept", choices=SPACINGS)

    consistent: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "Wang et al., Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model, ICLR 2023"
    )

    def path(self, schedule: NoiseSchedule) -> list[int]:
        return travel(len(schedule), self.travel_length, self.travel_repeat)

    def step(
        self, x_t: Tensor, t: int, s: int, problem: Problem, backbone: Backbone, noise: Draw
    ) -> tuple[Tensor, Tensor]:
        prediction = backbone.predict(x_t, t)
        x0, eps, a_s = prediction.x0, prediction.eps, backbone.schedule.alpha_bar_at(s)
        corrected = problem.replace_known(x0)  # x0 + A^+ (y - A x0)
        if s < 0:
            return corrected, x0
        c = (1 - a_s) ** 0.5
        kept = (1 - self.eta**2) ** 0.5
        return weighted_sum((a_s**0.5, corrected), (c * self.eta, noise("step")), (c * kept, eps)), x0

    def estimate(self, x_t: Tensor, t: int, problem: Problem, backbone: Backbone) -> Tensor:
        return problem.replace_known(backbone.predict(x_t, t).x0)

    def renoise(self, x_t: Tensor, x0: Tensor, t: int, s: int, backbone: Backbone, noise: Draw) -> Tensor:
        a_s = backbone.schedule.alpha_bar_at(s)
        return weighted_sum((a_s**0.5, x0), ((1 - a_s) ** 0.5, noise("step")))


@register_sampler("ddnm+")
@dataclass(frozen=True)
class DDNMPlus(DDNM):
    """DDNM for noisy measurements (Wang et al., ICLR 2023, section 3.3 and appendix I), per singular value s of A.

    With ``c = sqrt(1 - a_s)`` and ``thr = sqrt(a_s) sigma_y / s``: the correction is trusted in full where the noise that
    it brings, thr, is below the level c of the next state, and the added noise makes up the difference

        x_s = sqrt(a_s) (x0 + A^T g(A A^T) (y - A x0)) + d_n(A^T A) n + d_e(A^T A) eps

        g   = 1/s^2 where c >= thr,              else c sqrt(1 - eta^2) / (sqrt(a_s) sigma_y s)
        d_n = sqrt(c^2 - thr^2) where c > thr,   else c eta;           c eta on the null space
        d_e = 0 on the range,                                          c sqrt(1 - eta^2) on the null space

    The authors' SVD code forgets a rotation of the noise, which makes its noisy results depend on the choice of basis for
    super-resolution and colorization; this is the corrected form. With sigma_y > 0 the last estimate is the network's.

    Left to an integrator, which adds no noise to make up a difference, the correction is Wiener's, with 1 - a_t for the variance
    of what the network is not sure of: g = 1 / (s^2 + sigma_y^2 / (1 - a_t)), as PiGDM's. (With the g above the noise of weak
    singular values would gather from step to step.)
    """

    handles_noise: ClassVar[bool] = True

    def step(
        self, x_t: Tensor, t: int, s: int, problem: Problem, backbone: Backbone, noise: Draw
    ) -> tuple[Tensor, Tensor]:
        if problem.sigma_y == 0:
            return super().step(x_t, t, s, problem, backbone, noise)
        prediction = backbone.predict(x_t, t)
        x0, a_s = prediction.x0, backbone.schedule.alpha_bar_at(s)
        if s < 0:
            return x0, x0
        c, fresh, kept = (1 - a_s) ** 0.5, self.eta, (1 - self.eta**2) ** 0.5
        noise_y = a_s**0.5 * problem.sigma_y

        correction = _trusted(c, noise_y, kept)

        def d_n(squared: Tensor) -> Tensor:
            room = c**2 - noise_y**2 * inverse(squared)
            return torch.where((squared > 0) & (room > 0), room.clamp(min=0).sqrt(), c * fresh)

        def d_e(squared: Tensor) -> Tensor:
            return torch.where(squared > 0, torch.zeros_like(squared), c * kept)

        x = a_s**0.5 * (x0 + problem.filtered_residual(correction, x0))
        x = x + problem.operator.gram_filter(d_n, noise("step")) + problem.operator.gram_filter(d_e, prediction.eps)
        return x, x0

    def estimate(self, x_t: Tensor, t: int, problem: Problem, backbone: Backbone) -> Tensor:
        if problem.sigma_y == 0:
            return super().estimate(x_t, t, problem, backbone)
        x0 = backbone.predict(x_t, t).x0
        ratio = problem.sigma_y**2 / (1 - backbone.schedule.alpha_bar_at(t))
        return x0 + problem.filtered_residual(lambda squared: 1 / (squared + ratio), x0)


def _trusted(c: float, noise_y: float, kept: float) -> Callable[[Tensor], Tensor]:
    """The filter of the correction: 1/s^2 where ``c s >= noise_y``, else ``c kept / (noise_y s)``."""

    def correction(squared: Tensor) -> Tensor:
        weak = c * kept / noise_y * inverse(squared).sqrt()
        return torch.where(c * squared.sqrt() >= noise_y, inverse(squared), weak)

    return correction


def noisy_kin(sampler: Sampler) -> Sampler:
    """DDNM+ with the settings of a DDNM, which it equals where there is no noise; other samplers as they are."""
    if type(sampler) is not DDNM:
        return sampler
    return DDNMPlus(**{field.name: getattr(sampler, field.name) for field in fields(sampler)})
