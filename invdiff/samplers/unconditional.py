"""No measurement at all: draws from the prior, for comparison and for fun."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from invdiff.backbones.base import Backbone, Prediction
from invdiff.noise import Draw
from invdiff.options import option
from invdiff.problem import Problem
from invdiff.samplers.base import Sampler, register_sampler
from invdiff.samplers.integrators import ancestral, ddim_coefficients
from invdiff.tensors import weighted_sum


@register_sampler("unconditional")
@dataclass(frozen=True)
class Unconditional(Sampler):
    """DDPM's ancestral sampling (Ho et al., 2020) with eta = 1, DDIM (Song et al., 2021) below; y is not looked at.

    x_s = sqrt(a_s) x0 + c1 n + c2 eps
    """

    steps: int = option(250, "times kept of the schedule", low=1)
    eta: float = option(1.0, "share of fresh noise: 1 ancestral, 0 deterministic DDIM", low=0, high=1)
    clip: bool = option(True, "clip x0 to [-1, 1] at every step")

    paper: ClassVar[str] = (
        "Ho et al., Denoising Diffusion Probabilistic Models, NeurIPS 2020; Song et al., DDIM, ICLR 2021"
    )

    def first_state(self, problem: Problem, backbone: Backbone, t: int, noise: Draw) -> Tensor:
        return noise("prior/init")

    def step(
        self, x_t: Tensor, t: int, s: int, problem: Problem, backbone: Backbone, noise: Draw
    ) -> tuple[Tensor, Tensor]:
        prediction, schedule = backbone.predict(x_t, t), backbone.schedule
        a_t, a_s = schedule.alpha_bar_at(t), schedule.alpha_bar_at(s)
        x0 = prediction.x0.clamp(-1, 1) if self.clip else prediction.x0
        if self.eta == 1:
            return ancestral(x_t, x0, t, s, schedule, prediction.log_variance, lambda role: noise(f"prior/{role}")), x0
        c1, c2 = ddim_coefficients(a_t, a_s, self.eta)
        x = weighted_sum((a_s**0.5, x0), (c2, Prediction.from_x0(x_t, x0, a_t).eps))
        return x.add_(noise("prior/step"), alpha=c1) if c1 > 0 else x, x0
