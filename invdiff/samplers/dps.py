"""DPS: diffusion posterior sampling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
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


RULES = ("constant", "likelihood")


class Ruled:
    """A sampler with fields `rule` (one of `RULES`), `scale` (of "constant") and `weight` (of "likelihood")."""

    rule: str
    scale: float
    weight: float

    @property
    def factor(self) -> float:
        """Of the data step, by its rule."""
        return self.scale if self.rule == "constant" else self.weight


def data_step(
    y: Tensor,
    problem: Problem,
    x0: Tensor,
    pullback: Callable[[Tensor], Tensor],
    ratio: float,
    rule: str,
    scale: float,
) -> Tensor:
    """What is added to an ancestral step so that x0 follows y, (B, C, H, W).

    By the rule "constant" ``-scale grad ||y - A x0||``, whatever the size and the number of steps. By "likelihood" what the step
    would add if p(y | x_t) were ``N(y; A x0, v I)``, with the variance v that the residual itself shows,

        scale (1 - ratio) / sqrt(ratio) grad log N(y; A x0, v I),      v = max(||y - A x0||^2 / m, sigma_y^2)

    and m the numbers in y that are read. Its scale is a number of order 1 for every size and number of steps.

    Args:
        y: the measurement, where the residual is to be taken.
        problem: its operator and noise.
        x0: the estimate.
        pullback: ``(d x0 / d x_t)^T v``.
        ratio: a_t / a_s of the step.
        rule: one of `RULES`.
        scale: factor of the step.
    """
    if rule == "constant":
        return scale * pullback(residual_direction(y, problem, x0))
    r = problem.y - problem.operator(x0)
    read = problem.known_pixels
    m = torch.tensor([r[0].numel()], device=r.device) if read is None else read.flatten(1).sum(1)
    v = (r.flatten(1).square().sum(1) / m).clamp(min=max(problem.sigma_y**2, 1e-12)).to(r.dtype)
    return scale * (1 - ratio) / ratio**0.5 * pullback(problem.operator.adjoint(r / v.reshape(-1, *[1] * (r.ndim - 1))))


@register_sampler("dps")
@dataclass(frozen=True)
class DPS(Ruled, Sampler):
    """Diffusion posterior sampling (Chung et al., ICLR 2023, algorithm 1 with the step size of appendix C.2).

        x_s = ancestral step - scale grad_{x_t} || y - A x0(x_t) ||_2

    with the norm taken per image. The authors' code takes the norm over all of y, for a mask also over its unknown pixels
    (``norm="all"``: with noise or a picture there the steps get smaller); ``norm="known"``, which `solve(sampler="dps")`
    sets for masks, reads the known pixels alone. The result follows y only as far as the scale drives it: with sigma_y = 0 a misfit
    remains. The right scale depends on the size of the problem and on the number of steps; ``rule="likelihood"`` follows both
    (`data_step`) and takes the place of `scale`.
    """

    steps: int = option(1000, "times kept of the schedule", low=1)
    scale: float = option(
        0.5, "step along the gradient of the residual's norm (0.3 for super-resolution and blur)", low=0
    )
    rule: str = option("constant", "the paper's constant scale, or the step that a likelihood asks for", choices=RULES)
    weight: float = option(1.0, "of the likelihood's step", low=0)
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
        ratio = backbone.schedule.alpha_bar_at(t) / backbone.schedule.alpha_bar_at(s)
        return x.add_(data_step(y, problem, x0, pullback, ratio, self.rule, self.factor)), x0
