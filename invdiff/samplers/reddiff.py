"""RED-diff: an image that the denoiser, at every noise level, has nothing to add to."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.backbones.base import Backbone
from invdiff.backbones.schedule import SPACINGS
from invdiff.noise import Draw
from invdiff.options import option
from invdiff.problem import Problem
from invdiff.samplers.base import Sampler, linear_operator, memory_of, register_sampler
from invdiff.tensors import weighted_sum

_BETAS, _EPSILON = (0.9, 0.99), 1e-8

WEIGHTINGS: dict[str, Callable[[float], float]] = {
    "linear": lambda r: r,
    "sqrt": math.sqrt,
    "square": lambda r: r**2,
    "log": lambda r: math.log(r + 1),
    "trunc_linear": lambda r: min(r, 1.0),
    "power2over3": lambda r: r ** (2 / 3),
    "const": lambda r: 1.0,
}


@register_sampler("reddiff")
@dataclass(frozen=True)
class REDDiff(Sampler):
    """Regularisation by a diffusion denoiser (Mardani et al., ICLR 2024, algorithm 1): an optimisation, not a draw.

    The image mu starts at A^+ y and takes one step of Adam (betas 0.9 and 0.99) per time, from the noisiest down, along

        weight w(r) (eps(x_t) - n) / N + obs_weight A^T (A mu - y) / m,        x_t = sqrt(a_t) mu + sqrt(1 - a_t) n

    with r = sqrt((1 - a_t) / a_t), N and m the numbers in x and y (of a mask: all of its pixels). The network is not
    differentiated and sigma_y does not enter. The authors' code returns the image before the last step (``ending="before"``);
    ours the one after it. Samples of one measurement differ little: this finds a mode.
    """

    steps: int = option(100, "times kept of the schedule, one step of Adam each", low=1)
    lr: float = option(0.1, "of Adam (0.25 for noisy inpainting, 0.5 for blur)", low=0)
    weight: float = option(0.25, "of the denoiser (1 for noisy inpainting)", low=0)
    obs_weight: float = option(1.0, "of the measurement", low=0)
    weighting: str = option("linear", "how the denoiser's weight falls with the noise", choices=tuple(WEIGHTINGS))
    sigma_x0: float = option(0.0, "noise on mu before it is noised to x_t", low=0)
    ending: str = option("after", "the image after the last step, or before it (the code)", choices=("after", "before"))
    spacing: str = option("leading", "which times of the schedule are kept", choices=SPACINGS)

    paper: ClassVar[str] = "Mardani et al., A Variational Perspective on Solving Inverse Problems, ICLR 2024"

    def first_state(self, problem: Problem, backbone: Backbone, t: int, noise: Draw) -> Tensor:
        return problem.pinv_y

    def step(
        self, x_t: Tensor, t: int, s: int, problem: Problem, backbone: Backbone, noise: Draw
    ) -> tuple[Tensor, Tensor]:
        A, mu, a_t = linear_operator(problem, self.name), x_t, backbone.schedule.alpha_bar_at(t)
        x0 = mu.add(noise("state"), alpha=self.sigma_x0) if self.sigma_x0 > 0 else mu
        x_t = weighted_sum((a_t**0.5, x0), ((1 - a_t) ** 0.5, noise("step")))
        r = ((1 - a_t) / a_t) ** 0.5
        # eps - n = (x0 - estimate)/r: far up the left side is the small difference of large numbers, whose rounding Adam magnifies
        away = x0 - backbone.predict(x_t, t).x0
        data = A.adjoint(A(x0) - problem.y)
        w = self.weight * WEIGHTINGS[self.weighting](r) / r
        gradient = weighted_sum((w / mu[0].numel(), away), (self.obs_weight / problem.y[0].numel(), data))
        moved = mu - self.lr * _adam(gradient, memory_of(backbone))
        return (x0 if s < 0 and self.ending == "before" else moved), x0

    def renoise(self, x_t: Tensor, x0: Tensor, t: int, s: int, backbone: Backbone, noise: Draw) -> Tensor:
        return x_t  # mu carries no noise


def _adam(gradient: Tensor, memory: dict[str, Tensor]) -> Tensor:
    """Adam's direction (Kingma & Ba, 2015, algorithm 1), its two moments kept in `memory`."""
    zero = torch.zeros_like(gradient)
    count = int(memory.get("reddiff/count", torch.zeros(()))) + 1
    first = torch.lerp(memory.get("reddiff/first", zero), gradient, 1 - _BETAS[0])
    second = torch.lerp(memory.get("reddiff/second", zero), gradient.square(), 1 - _BETAS[1])
    memory.update({"reddiff/count": torch.tensor(count), "reddiff/first": first, "reddiff/second": second})
    return first / (1 - _BETAS[0] ** count) / ((second / (1 - _BETAS[1] ** count)).sqrt() + _EPSILON)
