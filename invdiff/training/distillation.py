"""A network of a few calls, taught by one of many: `invdiff train --distill`.

The teacher walks from noise to image along its probability-flow ODE; the student learns, at a few levels of noise only, one
estimate x0 per level that replaces a whole stretch of the walk. Two targets:

- ``"segment"``: the x0 whose DDIM step from level t to the next level s lands where the teacher arrives at s (progressive
  distillation, Salimans & Ho, 2022, appendix G), ``x0 = (x_s - r x_t) / (c_s - r c_t)`` with ``r = sqrt((1 - a_s) / (1 - a_t))``;
- ``"end"``: where the teacher's walk from x_t ends (consistency distillation, Song et al., 2023, with the ODE solved instead
  of the student asked again).

The walks are computed once and kept beside the training, in parts, so that a training that was killed goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from invdiff.backbones.base import Backbone
from invdiff.backbones.schedule import NoiseSchedule
from invdiff.checks import whole
from invdiff.errors import InvdiffError
from invdiff.files import atomic_write
from invdiff.noise import positive_seed_of
from invdiff.tensors import weighted_sum

TARGETS = ("segment", "end")
PART = 64
"""Walks in one file."""

_SHARP = 0.03
"""Root-mean-square error (model range) below which the loss is quadratic; above it is the error itself."""


@dataclass(frozen=True)
class Walks:
    """Stretches of the teacher's walks, one row each.

    Attributes:
        x_t: state at the beginning, (N, C, H, W), float16.
        x0: what the student should say there, likewise.
        level: number of the level of `x_t`, 0 the cleanest, long (N,).
    """

    x_t: Tensor
    x0: Tensor
    level: Tensor


class Distillation:
    """What a step of distillation minimises, and the walks that it learns from.

    Args:
        teacher: a backbone of one size.
        times: the levels of the student, indices into the teacher's schedule, rising; the last is where walks from noise begin.
        target: one of `TARGETS`.
        calls: of the teacher for each stretch between two levels.
        walks: how many are made.
        seed: of their pictures and noise.
    """

    def __init__(
        self, teacher: Backbone, times: Sequence[int], *, target: str, calls: int, walks: int, seed: int
    ) -> None:
        self.teacher, self.times, self.target, self.calls, self.count, self.seed = (
            teacher,
            list(times),
            target,
            calls,
            walks,
            seed,
        )
        self.schedule = teacher.schedule.at_times(times)
        levels = self.schedule.alpha_bar[:-1].float()
        self.signal, self.noise = levels.sqrt(), (1 - levels).sqrt()
        self.walks: Walks | None = None

    # ---- the walks ----------------------------------------------------------------------------------------------

    def prepare(self, images: Callable[[Tensor], Tensor], count: int, folder: Path) -> None:
        """Make the walks that `folder` does not hold yet, and read all.

        Args:
            images: pictures in model range by their numbers.
            count: how many there are.
            folder: where the parts are kept.
        """
        parts = []
        for number in range(-(-self.count // PART)):
            path = folder / f"walks-{number:03d}.pt"
            if not path.exists():
                made = self._part(images, count, number)
                with atomic_write(path) as temporary:
                    torch.save(made, temporary)
            try:
                parts.append(torch.load(path, weights_only=True))
            except Exception as error:
                raise InvdiffError(f"{path} cannot be read ({error}); without it, it is made again") from error
        rows: list[tuple[Tensor, Tensor, Tensor]] = []
        for part in parts:
            for level in range(len(self.times)):
                begun = part["begin"] >= level
                x_t = part["states"][level][begun]
                x0 = self._target(part["states"], level)[begun]
                rows.append((x_t, x0.half(), torch.full((len(x_t),), level)))
        self.walks = Walks(*(torch.cat(column) for column in zip(*rows, strict=True)))

    def _part(self, images: Callable[[Tensor], Tensor], count: int, number: int) -> dict[str, Any]:
        """`PART` walks: half of them from the last level down, the others from each of the levels in turn, where they begin
        at a noised picture; ``states[k + 1 ...]`` of a walk that begins at level k are not used."""
        draw = torch.Generator().manual_seed(positive_seed_of(self.seed, number, "walks"))
        chosen = torch.randint(count, (PART,), generator=draw)
        flips = torch.rand((PART, 1, 1, 1), generator=draw, dtype=torch.float32) < 0.5
        x0 = images(chosen)
        x0 = torch.where(flips, x0.flip(-1), x0).to(self.teacher.dtype)
        noise = torch.randn(x0.shape, generator=draw, dtype=torch.float32).to(x0)
        n = len(self.times)
        begin = torch.tensor([n - 1 if i % 2 else (i // 2) % n for i in range(PART)])
        states: list[Tensor] = [torch.empty(0)] * n
        x = torch.zeros_like(x0)
        for level in reversed(range(n)):
            begins = begin == level
            a, s = self.signal[level], self.noise[level]
            x[begins] = a * x0[begins] + s * noise[begins]
            states[level] = x.half()
            walking = begin >= level
            x[walking] = self.walk(x[walking], level)
        return {"begin": begin, "states": [*states, x.half()]}

    @torch.inference_mode()
    def walk(self, x: Tensor, level: int) -> Tensor:
        """From level to the one below, by DPM-Solver++(2M) (Lu et al., 2022) in `calls` calls; the image from the lowest one."""
        chain, t = self.teacher.schedule, self.times[level]
        s = self.times[level - 1] if level else -1
        times = [*_between(chain, t, s, self.calls), s]
        before: tuple[float, Tensor] | None = None
        for here, there in pairwise(times):
            x0 = torch.cat([self.teacher.predict(part, here).x0 for part in x.split(16)])
            if there < 0:
                return x0.clone()
            a, b = chain.alpha_bar_at(here), chain.alpha_bar_at(there)
            h = _log_snr(b) - _log_snr(a)
            guess = x0
            if before is not None:
                share = h / (2 * before[0])
                guess = weighted_sum((1 + share, x0), (-share, before[1]))
            x = weighted_sum((((1 - b) / (1 - a)) ** 0.5, x), (-(b**0.5) * math.expm1(-h), guess))
            before = (h, x0)
        return x.clone()

    def _target(self, states: Sequence[Tensor], level: int) -> Tensor:
        """What the student should say at `level`; ``states[-1]`` is the image, ``states[level - 1]`` the next state."""
        if level == 0 or self.target == "end":
            return states[-1].float()
        ratio = self.noise[level - 1] / self.noise[level]
        x_s, x_t = states[level - 1].float(), states[level].float()
        return (x_s - ratio * x_t) / (self.signal[level - 1] - ratio * self.signal[level])

    # ---- a step -------------------------------------------------------------------------------------------------

    def batch(self, size: int, draw: torch.Generator) -> Walks:
        """`size` stretches, as many of each level as of the others, mirrored or not."""
        walks = self.walks
        assert walks is not None, "prepare() comes first"
        chosen = []
        for i in range(size):
            rows = (walks.level == i % len(self.times)).nonzero().flatten()
            chosen.append(rows[torch.randint(len(rows), (1,), generator=draw)])
        rows = torch.cat(chosen)
        flip = torch.rand((size, 1, 1, 1), generator=draw, dtype=torch.float32) < 0.5
        x_t, x0 = (torch.where(flip, x.flip(-1), x) for x in (walks.x_t[rows].float(), walks.x0[rows].float()))
        return Walks(x_t, x0, walks.level[rows])

    def estimate(self, network: nn.Module, x_t: Tensor, level: Tensor) -> Tensor:
        """The student's x0 from its velocity, ``c x_t - s v``."""
        a, s = (table.to(x_t.device)[level].reshape(-1, 1, 1, 1) for table in (self.signal, self.noise))
        times = torch.tensor(self.times, device=x_t.device)[level]
        return a * x_t - s * network(x_t, times).float()


def distance(x: Tensor, y: Tensor) -> Tensor:
    """Pseudo-Huber: the root-mean-square difference of each pair, rounded off near 0 (Song & Dhariwal, 2024), (B,)."""
    return ((x - y).square().mean((1, 2, 3)) + _SHARP**2).sqrt() - _SHARP


def few_times(steps: int, T: int) -> list[int]:
    """The levels of a student of `steps` calls: every (T / steps)-th time down from the last, rising."""
    steps = whole("distill_steps", steps, 1, min(T, 64))
    return [round((i + 1) * T / steps) - 1 for i in range(steps)]


def _between(chain: NoiseSchedule, t: int, s: int, calls: int) -> list[int]:
    """`calls` times from t down to before s: evenly in the seventh root of sigma, as Karras et al. (2022)."""
    low = chain.alpha_bar_at(s if s >= 0 else 0)
    first, last = (((1 - a) / a) ** (1 / 14) for a in (chain.alpha_bar_at(t), low))
    if s < 0 and calls > 1:  # the last call is at the least noise that the schedule has
        shares = [i / (calls - 1) for i in range(calls)]
    else:
        shares = [i / calls for i in range(calls)]
    times = [t]
    for share in shares[1:]:
        sigma = (first + share * (last - first)) ** 7
        times.append(min(chain.nearest(1 / (1 + sigma**2)), times[-1] - 1))
    return [u for u in times if u > s]


def _log_snr(a: float) -> float:
    return 0.5 * math.log(a / (1 - a))
