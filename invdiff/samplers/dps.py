"""DPS: diffusion posterior sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from invdiff.backbones.base import Backbone
from invdiff.noise import Draw
from invdiff.options import option
from invdiff.problem import Problem
from invdiff.samplers.base import Sampler, estimate_with_pullback, register_sampler
from invdiff.samplers.integrators import ancestral


def residual_direction(y: Tensor, problem: Problem, x0: Tensor) -> Tensor:
    """``A^T r / ||r||`` with r = y - A x0, per image: minus the gradient of ``||y - A x0||_2`` with respect to x0."""
    r = y - problem.operator(x0)
    norm = r.flatten(1).norm(dim=1).clamp(min=1e-12).reshape(-1, *[1] * (r.ndim - 1))
    return problem.operator.adjoint(r / norm)


@register_sampler("dps")
@dataclass(frozen=True)
class DPS(Sampler):
    """Diffusion posterior sampling (Chung et al., ICLR 2023, algorithm 1 with the step size of appendix C.2).

        x_s = ancestral step - scale grad_{x_t} || y - A x0(x_t) ||_2

    with the norm taken per image. The authors' code takes the norm over all of y, for a mask also over its unknown pixels
    (``norm="all"``: with noise or a picture there the steps get smaller); ``norm="known"``, which `solve(sampler="dps")`
    sets for masks, reads the known pixels alone. The result follows y only as far as the scale drives it: with sigma_y = 0 a misfit
    remains.
    """

    steps: int = option(1000, "times kept of the schedule", low=1)
    scale: float = option(
        0.5, "step along the gradient of the residual's norm (0.3 for super-resolution and blur)", low=0
    )
    clip: bool = option(True, "clip x0 to [-1, 1]; no gradient flows where it clips")
    norm: str = option(
        "all", "for a mask: norm over all of y as handed over, or its known pixels", choices=("all", "known")
    )

    handles_noise: ClassVar[bool] = True
    uses_gradient: ClassVar[bool] = True
    paper: ClassVar[str] = "Chung et al., Diffusion Posterior Sampling for General Noisy Inverse Problems, ICLR 2023"

    def step(
        self, x_t: Tensor, t: int, s: int, problem: Problem, backbone: Backbone, noise: Draw
    ) -> tuple[Tensor, Tensor]:
        prediction, x0, pullback = estimate_with_pullback(backbone, x_t, t, self.clip)
        x = ancestral(x_t, x0, t, s, backbone.schedule, prediction.log_variance, noise)
        y = problem.y if self.norm == "known" else problem.y_given
        return x.add_(pullback(residual_direction(y, problem, x0)), alpha=self.scale), x0
