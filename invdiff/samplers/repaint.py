"""RePaint and the plain replacement method that it repeats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from invdiff.backbones.base import Backbone
from invdiff.backbones.schedule import NoiseSchedule
from invdiff.noise import Draw
from invdiff.options import option
from invdiff.problem import Problem
from invdiff.samplers.base import Sampler, register_sampler
from invdiff.samplers.integrators import ancestral
from invdiff.samplers.paths import jumps


@register_sampler("replacement")
@dataclass(frozen=True)
class Replacement(Sampler):
    """Ancestral sampling that keeps overwriting what is known (Song et al., 2021, appendix I.2; Choi et al., 2021).

    Before every network call but the first, the part of x_t that y sees is replaced by y at the noise level of x_t:

        x_t <- A^+ (sqrt(a_t) y + sqrt(1 - a_t) A n) + (x_t - A^+ A x_t)

    For a mask these are the known pixels, noised; the rest of the image never learns of them within a step, which
    is where the seams come from that RePaint's resampling mends.
    """

    steps: int = option(250, "times kept of the schedule", low=1)
    clip: bool = option(True, "clip x0 to [-1, 1] at every step (guided-diffusion's default)")
    paste_known: bool = option(
        True, "end with y in the known part; False leaves the network's own values (RePaint's code)"
    )

    consistent: ClassVar[bool] = True
    paper: ClassVar[str] = "Song et al., Score-Based Generative Modeling through SDEs, ICLR 2021, appendix I.2"

    def before_call(self, x_t: Tensor, t: int, problem: Problem, backbone: Backbone, noise: Draw) -> Tensor:
        return problem.replace_known(x_t, backbone.schedule.alpha_bar_at(t), noise("known"))

    def step(
        self, x_t: Tensor, t: int, s: int, problem: Problem, backbone: Backbone, noise: Draw
    ) -> tuple[Tensor, Tensor]:
        prediction = backbone.predict(x_t, t)
        x0 = prediction.x0.clamp(-1, 1) if self.clip else prediction.x0
        return ancestral(x_t, x0, t, s, backbone.schedule, prediction.log_variance, noise), x0

    def finish(self, x: Tensor, problem: Problem) -> Tensor:
        return problem.replace_known(x) if self.paste_known else x


@register_sampler("repaint")
@dataclass(frozen=True)
class RePaint(Replacement):
    """Replacement with resampling: go back up and come down again, so that the unknown part can take up the known one.

    Lugmayr et al., CVPR 2022, algorithm 1, in the order of the authors' code: the known part is put in just before the
    network, at the level of the x_t that it sees. Down: ancestral step with the learned variance. Up, to index j:

        x_j = sqrt(1 - beta_j) x_{j-1} + sqrt(beta_j) n

    along the path of `paths.jumps`: stretches of `jump_length` steps, each walked `jump_n_sample` times. With the
    defaults that is 4,571 times and 2,410 network calls. The paper's code returns the network's values everywhere
    (``paste_known=False``); by default the known part is put back at the end.
    """

    jump_length: int = option(10, "steps of one jump back (the paper's j)", low=1)
    jump_n_sample: int = option(10, "how often each stretch is walked (the paper's r); 1 = no resampling", low=1)

    paper: ClassVar[str] = (
        "Lugmayr et al., RePaint: Inpainting using Denoising Diffusion Probabilistic Models, CVPR 2022"
    )

    def path(self, schedule: NoiseSchedule) -> list[int]:
        return jumps(len(schedule), self.jump_length, self.jump_n_sample)
