"""MCG: manifold-constrained gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from invdiff.backbones.base import Backbone
from invdiff.noise import Draw
from invdiff.options import option
from invdiff.problem import Problem
from invdiff.samplers.base import Sampler, estimate_with_pullback, register_sampler
from invdiff.samplers.dps import RULES, Ruled, data_step
from invdiff.samplers.integrators import ancestral


@register_sampler("mcg")
@dataclass(frozen=True)
class MCG(Ruled, Sampler):
    """Manifold-constrained gradient (Chung et al., NeurIPS 2022, algorithm 1).

        x' = ancestral step
        u  = x' - scale grad_{x_t} || y - A x0(x_t) ||_2
        x_s = (u - A^+ A u) + A^+ (sqrt(a_l) y + sqrt(1 - a_l) A n)

    The norm, not its square, is what the authors' code differentiates; here it is taken per image. The known part is put
    in at the level of the state that is reached, as the paper writes (``known_level="target"``, exact on the last step);
    the authors' code uses the level that the step came from (``"source"``). ``rule="likelihood"`` follows size and steps
    (`dps.data_step`) and takes the place of `scale`; the known part being put in anyway, half of that step did best.
    """

    steps: int = option(1000, "times kept of the schedule", low=1)
    scale: float = option(1.0, "step along the gradient of the residual's norm", low=0)
    rule: str = option("constant", "the paper's constant scale, or the step that a likelihood asks for", choices=RULES)
    weight: float = option(0.5, "of the likelihood's step", low=0)
    clip: bool = option(True, "clip x0 to [-1, 1]; no gradient flows where it clips")
    known_level: str = option("target", "noise level of the known part", choices=("target", "source"))

    consistent: ClassVar[bool] = True
    uses_gradient: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "Chung et al., Improving Diffusion Models for Inverse Problems using Manifold Constraints, NeurIPS 2022"
    )

    def step(
        self, x_t: Tensor, t: int, s: int, problem: Problem, backbone: Backbone, noise: Draw
    ) -> tuple[Tensor, Tensor]:
        prediction, x0, pullback = estimate_with_pullback(backbone, x_t, t, self.clip)
        x = ancestral(x_t, x0, t, s, backbone.schedule, prediction.log_variance, noise)
        ratio = backbone.schedule.alpha_bar_at(t) / backbone.schedule.alpha_bar_at(s)
        x.add_(
            data_step(
                problem.y,
                problem,
                x0,
                pullback,
                ratio,
                self.rule,
                self.factor,
            )
        )
        level = backbone.schedule.alpha_bar_at(s if self.known_level == "target" else t)
        return problem.replace_known(x, level, noise("known") if level < 1 else None), x0
