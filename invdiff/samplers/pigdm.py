"""PiGDM: pseudo-inverse guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.backbones.base import Backbone, Prediction
from invdiff.backbones.schedule import SPACINGS
from invdiff.noise import Draw
from invdiff.operators.base import LinearOperator
from invdiff.options import option
from invdiff.problem import Problem
from invdiff.samplers.base import Sampler, estimate_with_pullback, inverse, register_sampler
from invdiff.samplers.integrators import OWN, OWN_OR_INTEGRATOR, ddim_coefficients
from invdiff.samplers.krylov import not_beyond, over
from invdiff.tensors import weighted_sum


@register_sampler("pigdm")
@dataclass(frozen=True)
class PiGDM(Sampler):
    """Pseudo-inverse guided diffusion (Song et al., ICLR 2023, algorithm 1 and equation 7), with r_t^2 = 1 - a_t.

        g   = (d x0 / d x_t)^T A^T (A A^T + sigma_y^2 / r_t^2)^{-1} (y - A x0)
        x_s = sqrt(a_s) x0 + c1 n + c2 eps + weight sqrt(a_s a_t) g

    with DDIM's c1, c2 for `eta`. The paper writes sqrt(a_t) g; the authors' group's code sqrt(a_s a_t) g, which is the
    same step in variance-exploding units. For masks that code also puts the known part into x0 and lets g act on the
    rest only: ``project=True``. Non-linear operators with a pseudo-inverse (`NonlinearOperator`) follow equation 9.
    """

    steps: int = option(100, "times kept of the schedule", low=1)
    eta: float = option(1.0, "share of fresh noise: 0 deterministic (DDIM), 1 ancestral", low=0)
    weight: float = option(1.0, "of the guidance", low=0)
    project: bool = option(
        False, "correct x0 to A x0 = y and keep the guidance to the null space (the code, for masks)"
    )
    init: str = option("pinv", "first state: the noised pseudo-inverse of y, or pure noise", choices=("pinv", "noise"))

    integrator: str = option(
        OWN, "the paper's step, or an integrator that follows the estimate", choices=OWN_OR_INTEGRATOR
    )
    spacing: str = option("leading", "which times of the schedule are kept", choices=SPACINGS)

    handles_noise: ClassVar[bool] = True
    uses_gradient: ClassVar[bool] = True
    paper: ClassVar[str] = "Song et al., Pseudoinverse-Guided Diffusion Models for Inverse Problems, ICLR 2023"

    def first_state(self, problem: Problem, backbone: Backbone, t: int, noise: Draw) -> Tensor:
        if self.init == "noise":
            return noise("init")
        a_t, known = backbone.schedule.alpha_bar_at(t), problem.pinv_y
        if problem.sigma_y > 0:  # the bare pseudo-inverse of a blur would enlarge the noise without bound
            known = problem.filtered_residual(
                lambda squared: 1 / (squared + problem.sigma_y**2), torch.zeros_like(known)
            )
        return a_t**0.5 * known + (1 - a_t) ** 0.5 * noise("init")

    def step(
        self, x_t: Tensor, t: int, s: int, problem: Problem, backbone: Backbone, noise: Draw
    ) -> tuple[Tensor, Tensor]:
        prediction, estimate, g = self._guided(x_t, t, problem, backbone)
        x0, g = self._projected(estimate, g, problem)
        a_t, a_s = backbone.schedule.alpha_bar_at(t), backbone.schedule.alpha_bar_at(s)
        c1, c2 = ddim_coefficients(a_t, a_s, self.eta)
        x = weighted_sum((a_s**0.5, x0), (c2, prediction.eps), (self.weight * (a_s * a_t) ** 0.5, g))
        return x.add_(noise("step"), alpha=c1) if c1 > 0 else x, estimate

    def estimate(self, x_t: Tensor, t: int, problem: Problem, backbone: Backbone) -> Tensor:
        """``x0 + weight g / sqrt(a_t)``, by Tweedie's formula what the guidance makes of the mean, if r_t^2 is right.

        Pictures vary more than r_t^2 says; so of the guidance no more is taken than brings A x0 nearest to y.
        """
        _, x0, g = self._guided(x_t, t, problem, backbone)
        shift = self.weight / backbone.schedule.alpha_bar_at(t) ** 0.5 * g
        if isinstance(problem.operator, LinearOperator):
            share = not_beyond(problem.operator(shift), problem.y - problem.operator(x0))
            shift = over(share.to(shift), shift) * shift
        x0, shift = self._projected(x0, shift, problem)
        return x0 + shift

    def _guided(self, x_t: Tensor, t: int, problem: Problem, backbone: Backbone) -> tuple[Prediction, Tensor, Tensor]:
        """The prediction, its x0, and g."""
        prediction, estimate, pullback = estimate_with_pullback(backbone, x_t, t)
        ratio = problem.sigma_y**2 / (1 - backbone.schedule.alpha_bar_at(t))
        g = pullback(
            problem.filtered_residual(inverse if ratio == 0 else lambda squared: 1 / (squared + ratio), estimate)
        )
        return prediction, estimate, g

    def _projected(self, x0: Tensor, g: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
        """x0 with the known part put in, and g on the rest, if asked for."""
        return (problem.replace_known(x0), problem.operator.complement(g)) if self.project else (x0, g)
