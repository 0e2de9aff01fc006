"""DDRM: denoising diffusion restoration in the spectral space of A."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.backbones.base import Backbone
from invdiff.noise import Draw
from invdiff.options import option
from invdiff.problem import Problem
from invdiff.samplers.base import Sampler, inverse, register_sampler


@register_sampler("ddrm")
@dataclass(frozen=True)
class DDRM(Sampler):
    """Denoising diffusion restoration model (Kawar et al., NeurIPS 2022, equations 7-8).

    With ``sg = sqrt((1 - a_s) / a_s)``, in the coordinates of the singular vectors of A (singular value s, y_i in units of
    the measurement), times sqrt(a_s):

        null space        x0 + sqrt(1 - eta^2) sg eps + eta sg n
        s sg < sigma_y    x0 + sqrt(1 - eta^2) sg (y - s x0) / sigma_y + eta sg n
        s sg > sigma_y    eta_b y / s + (1 - eta_b) x0 + sqrt(sg^2 - sigma_y^2 eta_b^2 / s^2) n

    Written as filters of A A^T and A^T A, no singular vector is ever formed. With sigma_y = 0 the last step (sg = 0) is
    none of the last two, so that the authors' code ends with the network's own x0; ``paste_known=True``, which
    `solve(sampler="ddrm")` sets there, ends with A x = y.
    """

    steps: int = option(20, "times kept of the schedule", low=1)
    eta: float = option(0.85, "share of fresh noise where y says little", low=0, high=1)
    eta_b: float = option(1.0, "weight of y where it is more certain than the state", low=0, high=1)
    paste_known: bool = option(
        False, "with sigma_y = 0, end with A x = y; the authors' code ends with the network's x0"
    )

    handles_noise: ClassVar[bool] = True
    default_spacing: ClassVar[str] = "leading"
    paper: ClassVar[str] = "Kawar et al., Denoising Diffusion Restoration Models, NeurIPS 2022"

    def first_state(self, problem: Problem, backbone: Backbone, t: int, noise: Draw) -> Tensor:
        a_t = backbone.schedule.alpha_bar_at(t)
        sigma_t, sigma_y = ((1 - a_t) / a_t) ** 0.5, problem.sigma_y

        def of_y(squared: Tensor) -> Tensor:
            return torch.where(squared.sqrt() * sigma_t > sigma_y, inverse(squared) / sigma_t, 0.0)

        def of_noise(squared: Tensor) -> Tensor:
            return (1 - (sigma_y / sigma_t) ** 2 * inverse(squared)).clamp(min=0).sqrt()

        n = noise("init")
        return problem.filtered_residual(of_y, torch.zeros_like(n)) + problem.operator.gram_filter(of_noise, n)

    def step(
        self, x_t: Tensor, t: int, s: int, problem: Problem, backbone: Backbone, noise: Draw
    ) -> tuple[Tensor, Tensor]:
        prediction = backbone.predict(x_t, t)
        x0, a_s, sigma_y = prediction.x0, backbone.schedule.alpha_bar_at(s), problem.sigma_y
        sg = ((1 - a_s) / a_s) ** 0.5
        fresh, kept = self.eta * sg, (1 - self.eta**2) ** 0.5 * sg

        def correction(squared: Tensor) -> Tensor:
            weak = kept / sigma_y * inverse(squared).sqrt() if sigma_y > 0 else torch.zeros_like(squared)
            return torch.where(squared.sqrt() * sg > sigma_y, self.eta_b * inverse(squared), weak)

        def of_noise(squared: Tensor) -> Tensor:
            room = (sg**2 - (sigma_y * self.eta_b) ** 2 * inverse(squared)).clamp(min=0).sqrt()
            return torch.where(squared.sqrt() * sg > sigma_y, room, fresh)

        def of_eps(squared: Tensor) -> Tensor:
            return torch.where(squared > 0, torch.zeros_like(squared), kept)

        x = x0 + problem.filtered_residual(correction, x0)
        if s < 0:
            return x, x0
        x = (
            x
            + problem.operator.gram_filter(of_noise, noise("step"))
            + problem.operator.gram_filter(of_eps, prediction.eps)
        )
        return a_s**0.5 * x, x0

    def finish(self, x: Tensor, problem: Problem) -> Tensor:
        return problem.replace_known(x) if self.paste_known and problem.sigma_y == 0 else x
