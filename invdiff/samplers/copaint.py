"""CoPaint: the state is optimised to agree with y before every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.backbones.base import Backbone
from invdiff.backbones.schedule import NoiseSchedule
from invdiff.noise import Draw
from invdiff.operators.base import LinearOperator
from invdiff.options import option
from invdiff.problem import Problem
from invdiff.samplers.base import (
    Cost,
    Sampler,
    estimate_with_pullback,
    linear_operator,
    memory_of,
    moves_ahead,
    register_sampler,
)
from invdiff.samplers.integrators import ddim_coefficients
from invdiff.samplers.paths import jumps
from invdiff.tensors import weighted_sum

_SHRINK = 0.8


@register_sampler("copaint")
@dataclass(frozen=True)
class CoPaint(Sampler):
    """Coherent image inpainting (Zhang et al., ICML 2023, algorithm 1 and, with travels, 2), for any linear operator.

    Deterministic DDIM whose state is moved before every step, `iterations` times, against the gradient of

        || y - A clip(x0(x)) ||^2 + reg || x - x_t ||^2

    with the step ``lr sqrt(a_t / a_0)``, times 0.8 as long as the loss grows. After a step lr and reg are multiplied by their
    growths, on the way up divided. Time travel (``travel_repeat=2``, their CoPaint-TT) goes up and down as RePaint does, the
    state optimised once more where it turns. The authors take loss and step over the whole batch, bound nothing, and
    return the state at the last time, clamped (``ending="state"``). Here every image has its own loss and step, which shrinks
    at most `trials` times and is left out if that doesn't help, and the run ends with the clean estimate, known part put in.
    """

    steps: int = option(250, "times kept of the schedule", low=1)
    visits: int = option(0, "how many of them are visited, evenly; 0 for all (the paper's fast setting: 100)", low=0)
    iterations: int = option(2, "of the optimisation before a step (fast: 1)", low=1)
    lr: float = option(0.02, "of the optimisation", low=0)
    lr_growth: float = option(1.012, "of lr per step (fast: 1.03)", low=0)
    reg: float = option(1e-4, "weight of staying near the state (ImageNet: 0.01)", low=0)
    reg_growth: float = option(1.01, "of reg per step (ImageNet: 1)", low=0)
    smart_lr: bool = option(True, "multiply lr by sqrt(a_t / a_0)")
    backtrack: bool = option(True, "shrink a step that makes the loss larger")
    trials: int = option(10, "how often at most", low=1)
    sigma: float = option(0.0, "share of fresh noise: 0 deterministic", low=0, high=1)
    clip: bool = option(True, "clip x0 to [-1, 1]; no gradient flows where it clips")
    travel_length: int = option(10, "steps of one travel back", low=1)
    travel_repeat: int = option(1, "how often each stretch is walked; 1 = no travel (CoPaint-TT: 2)", low=1)
    travel_optimise: bool = option(True, "optimise once more before a travel")
    ending: str = option("x0", "end with the clean estimate, or with the state at time 0", choices=("x0", "state"))
    paste_known: bool = option(True, "with sigma_y = 0 and ending x0, end with A x = y")

    consistent: ClassVar[bool] = True
    uses_gradient: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "Zhang et al., Towards Coherent Image Inpainting Using Denoising Diffusion Implicit Models, ICML 2023"
    )

    def path(self, schedule: NoiseSchedule) -> list[int]:
        n = len(schedule)
        if self.travel_repeat > 1:
            times = jumps(n, self.travel_length, self.travel_repeat)[:-1]
        else:
            visits = min(self.visits or n, n)
            times = sorted({min(round(k * n / visits), n - 1) for k in range(visits)}, reverse=True)
        return [*times, -1] if self.ending == "x0" or len(times) == 1 else times

    def asked(self, times: Sequence[int]) -> list[int]:
        calls: list[int] = []
        each = self.iterations * (2 if self.backtrack else 1)
        for k, (t, s) in enumerate(pairwise(times)):
            if s < t:
                calls += [t] * (1 + each)
                if self.travel_optimise and k + 2 < len(times) and times[k + 2] > s:
                    calls += [s] * each
        return calls

    def price(self, times: Sequence[int], schedule: NoiseSchedule, problem: Problem | None) -> Cost:
        """As for every sampler; the calls that shrink a step come on top, `Cost.trials` at most."""
        calls = len(self.asked(times))
        down = sum(s < t for t, s in pairwise(times))
        vjps = (calls - down) // (2 if self.backtrack else 1)
        return Cost(calls, vjps, self.trials * vjps if self.backtrack else 0)

    def step(
        self, x_t: Tensor, t: int, s: int, problem: Problem, backbone: Backbone, noise: Draw
    ) -> tuple[Tensor, Tensor]:
        x = self._optimised(x_t, t, problem, backbone)
        prediction = backbone.predict(x, t)
        x0 = prediction.x0.clamp(-1, 1) if self.clip else prediction.x0
        a_t, a_s = backbone.schedule.alpha_bar_at(t), backbone.schedule.alpha_bar_at(s)
        c1, c2 = ddim_coefficients(a_t, a_s, self.sigma)
        x = weighted_sum((a_s**0.5, x0), (c2, prediction.eps))
        if c1 > 0:
            x.add_(noise("step"), alpha=c1)
        self._count(backbone, 1)
        ahead = moves_ahead(backbone)
        if self.travel_optimise and ahead and ahead[0] > s:
            x = self._optimised(x, s, problem, backbone)
        return x, x0

    def renoise(self, x_t: Tensor, x0: Tensor, t: int, s: int, backbone: Backbone, noise: Draw) -> Tensor:
        self._count(backbone, -1)
        return super().renoise(x_t, x0, t, s, backbone, noise)

    def finish(self, x: Tensor, problem: Problem) -> Tensor:
        if self.ending == "state":
            return x.clamp(-1, 1) if self.clip else x
        return problem.replace_known(x) if self.paste_known and problem.sigma_y == 0 else x

    def _count(self, backbone: Backbone, by: int) -> None:
        memory = memory_of(backbone)
        memory["copaint/steps"] = memory.get("copaint/steps", torch.tensor(0)) + by

    def _optimised(self, x_t: Tensor, t: int, problem: Problem, backbone: Backbone) -> Tensor:
        """The state after the iterations of the optimisation at t."""
        A, schedule = linear_operator(problem, self.name), backbone.schedule
        count = int(memory_of(backbone).get("copaint/steps", torch.tensor(0)))
        reg = self.reg * self.reg_growth**count
        lr = self.lr * self.lr_growth**count
        if self.smart_lr:
            lr *= (schedule.alpha_bar_at(t) / schedule.alpha_bar_at(0)) ** 0.5
        x, size = x_t, x_t.new_full((len(x_t), *[1] * (x_t.ndim - 1)), lr)
        for _ in range(self.iterations):
            _, x0, pullback = estimate_with_pullback(backbone, x, t, self.clip)
            residual = problem.y - A(x0)
            loss = _squares(residual) + reg * _squares(x - x_t)
            gradient = pullback(-2 * A.adjoint(residual)).add_(x - x_t, alpha=2 * reg)
            new = x - size * gradient
            if self.backtrack:
                worse = ~(self._loss(new, x_t, t, reg, A, problem, backbone) <= loss)  # NaN is worse
                for _ in range(self.trials):
                    if not bool(worse.any()):
                        break
                    size = torch.where(worse, _SHRINK * size, size)
                    new = torch.where(worse, x - size * gradient, new)
                    worse = worse & ~(self._loss(new, x_t, t, reg, A, problem, backbone) <= loss)
                new = torch.where(worse, x, new)
            x = new
        return x

    def _loss(
        self, x: Tensor, x_t: Tensor, t: int, reg: float, A: LinearOperator, problem: Problem, backbone: Backbone
    ) -> Tensor:
        x0 = backbone.predict(x, t).x0
        return _squares(problem.y - A(x0.clamp(-1, 1) if self.clip else x0)) + reg * _squares(x - x_t)


def _squares(x: Tensor) -> Tensor:
    """The sum of squares of every image, (B, 1, 1, 1)."""
    return x.flatten(1).square().sum(1).reshape(-1, 1, 1, 1)
