"""DDNM's mask-shift: larger pictures window by window, each finished before the next begins."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from invdiff.backbones.base import Backbone
from invdiff.backbones.schedule import NoiseSchedule
from invdiff.backbones.windows import Windows
from invdiff.errors import InvdiffError
from invdiff.noise import Draw
from invdiff.operators import Colorization, Identity, Mask, SuperResolution
from invdiff.options import option
from invdiff.problem import Problem
from invdiff.samplers.base import Sampler, Walk, inverse, register_sampler
from invdiff.samplers.paths import jumps
from invdiff.tensors import weighted_sum


@register_sampler("mask_shift")
@dataclass(frozen=True)
class MaskShift(Sampler):
    """Mask-shift restoration (Wang et al., ICLR 2023, section 3.4, as in the authors' high-resolution demo).

    With ``backbone=Windows(network)``, window after window, rows then columns, takes the whole path, DDPM's posterior step
    with RePaint's jumps and x0 clipped:

        x0  <- x0 + lam A^+ (y - A x0),   then what overlaps finished windows is overwritten with their result
        x_s = c1 x0 + c2 x_t + sqrt(v) n

    lam = 1 and v the posterior variance less ``(c1 sigma_y)^2``; where that is negative v = 0 and lam smaller. (The authors'
    code has a slip of precedence there, which is not followed.) It starts every further window from the last one's
    result (``start="previous"``); fresh noise is the sound choice and the default.
    """

    steps: int = option(100, "times kept of the schedule (the authors: 100 for ImageNet, 250 for faces)", low=1)
    jump_length: int = option(10, "steps of one jump back", low=1)
    jump_n_sample: int = option(3, "how often each stretch is walked; 1 = no jumps", low=1)
    start: str = option(
        "noise",
        "state that a further window starts from: noise, or the result before it",
        choices=("noise", "previous"),
    )

    handles_noise: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "Wang et al., Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model, ICLR 2023"
    )

    def path(self, schedule: NoiseSchedule) -> list[int]:
        return jumps(len(schedule), self.jump_length, self.jump_n_sample)

    def step(
        self, x_t: Tensor, t: int, s: int, problem: Problem, backbone: Backbone, noise: Draw
    ) -> tuple[Tensor, Tensor]:
        schedule = backbone.schedule
        a_t, a_s = schedule.alpha_bar_at(t), schedule.alpha_bar_at(s)
        beta = 1 - a_t / a_s
        c1, c2 = a_s**0.5 * beta / (1 - a_t), (a_t / a_s) ** 0.5 * (1 - a_s) / (1 - a_t)
        variance, brought = beta * (1 - a_s) / (1 - a_t), (c1 * problem.sigma_y) ** 2
        lam = 1.0 if variance >= brought or s < 0 else (variance / brought) ** 0.5
        estimate = backbone.predict(x_t, t).x0.clamp(-1, 1)
        x0 = estimate + problem.filtered_residual(lambda squared: lam * inverse(squared), estimate)
        if isinstance(problem, WindowProblem):
            x0 = torch.where(problem.finished, problem.values, x0)
        x = weighted_sum((c1, x0), (c2, x_t))
        if s >= 0 and variance > brought:
            x.add_(noise("step"), alpha=(variance - brought) ** 0.5)
        return x, estimate

    def run(self, walk: Walk) -> Tensor:
        problem, backbone, x_init = walk.problem, walk.backbone, walk.x_init
        if not isinstance(backbone, Windows):
            return super().run(walk)
        (height, width), size = backbone.window, problem.image_shape[1:]
        if height > size[0] or width > size[1]:
            raise InvdiffError(
                f"y must be of at least {height} x {width} pixels for mask_shift, got {size[0]} x {size[1]}"
            )
        answer = torch.zeros(len(problem.y), *problem.image_shape, device=problem.y.device, dtype=backbone.dtype)
        finished = torch.zeros(size, dtype=torch.bool, device=answer.device)
        still = backbone.unshifted()
        previous: Tensor | None = None
        for number, (top, left) in enumerate(still.places(size)):
            part = (..., slice(top, top + height), slice(left, left + width))
            shape = (problem.image_shape[0], height, width)
            first = previous if self.start == "previous" else None
            if number == 0 and x_init is not None:
                first = x_init[part]
            task = window_of(problem, top, left, shape)
            one = WindowProblem(*task, problem.sigma_y, shape, (), finished[part[1:]].clone(), answer[part].clone())
            own_noise = walk.noise.of(shape, f"window {number}")
            previous = super().run(replace(walk, problem=one, backbone=still.backbone, noise=own_noise, x_init=first))
            answer[part] = previous
            finished[part[1:]] = True
        return answer


@dataclass(frozen=True, eq=False)
class WindowProblem(Problem):
    """The problem of one window, part of which has its answer already.

    Attributes:
        finished: (h, w) bool, where it has.
        values: (B, C, h, w), what the answer is there.
    """

    finished: Tensor = field(default_factory=lambda: torch.zeros(()))
    values: Tensor = field(default_factory=lambda: torch.zeros(()))


def window_of(problem: Problem, top: int, left: int, shape: tuple[int, int, int]) -> tuple[Any, Tensor, Tensor]:
    """Operator, y and y as given, of one window of a picture.

    Raises:
        InvdiffError: an operator whose measurement cannot be cut there.
    """
    operator, height, width = problem.operator, shape[1], shape[2]
    factor = 1
    if isinstance(operator, Mask):
        operator = Mask(operator.mask[..., top : top + height, left : left + width])
    elif isinstance(operator, SuperResolution) and operator.kernel != "bicubic":
        factor = operator.scale
    elif not isinstance(operator, Colorization | Identity):
        raise InvdiffError(
            f"operator must be a mask, colorization or super-resolution (nearest, box) for mask_shift, got {operator!r}"
        )
    if any(n % factor for n in (top, left, height, width)):
        raise InvdiffError(
            f"windows must begin and end at multiples of {factor} for {operator!r}, got {height} x {width} at ({top}, {left})"
        )
    rows = slice(top // factor, (top + height) // factor)
    columns = slice(left // factor, (left + width) // factor)
    return operator.bind(shape), problem.y[..., rows, columns], problem.y_given[..., rows, columns]
