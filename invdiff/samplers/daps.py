"""DAPS: an estimate drawn given y at every noise level, and noised anew."""

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
from invdiff.options import option
from invdiff.problem import Problem
from invdiff.samplers.base import Cost, Sampler, linear_operator, register_sampler
from invdiff.tensors import weighted_sum

_RHO = 7
_LEAST_TAU = 0.01


@register_sampler("daps")
@dataclass(frozen=True)
class DAPS(Sampler):
    """Decoupled annealing posterior sampling (Zhang et al., CVPR 2025, algorithm 1), in ``z = x_t / sqrt(a_t)``.

    For the noise levels s_k, evenly in the seventh root from `sigma_max` towards `sigma_min`:

        x^ = z carried down from s_k to `ode_sigma_min` by `ode_steps` Euler steps of the probability flow
        q ~ N(y; A q, tau^2 / 2) N(q; x^, s_k^2)
        z = q + s_{k+1} n,  and q itself at the end

    The authors draw q by 100 Langevin steps of size lr (``mcmc="langevin"``, or "hmc"), with tau = 0.01 whatever the noise
    is. For a linear operator the distribution is a Gaussian: here it is drawn by filters (``mcmc="exact"``), with
    ``tau = sqrt(2) sigma_y`` (``tau=0``), and A q = y without noise. Its mean is exact, its spread what their walk from x^ has
    by its end (after ``mcmc_steps * lr``), which is much less than s_k where y says little: with all of s_k, and the next
    level's noise on top, an unknown direction ends with twice its variance. The levels stand between the times that a network
    was trained on: ``times="discrete"`` takes the nearest of these, "continuous" the level itself at a time that is no whole
    number.
    """

    steps: int = option(200, "noise levels", low=1)
    sigma_max: float = option(100.0, "the first noise level", low=1e-6)
    sigma_min: float = option(0.1, "where the levels lead to", low=1e-6)
    ode_steps: int = option(5, "Euler steps from each level down, one network call each", low=1)
    ode_sigma_min: float = option(0.01, "where these end", low=1e-6)
    mcmc: str = option("exact", "how q is drawn", choices=("exact", "langevin", "hmc"))
    mcmc_steps: int = option(100, "of langevin and hmc; with lr, bounds the spread of exact", low=1)
    lr: float = option(1e-4, "their first step (5e-5 for box masks, motion blur); stable below tau^2 / |A|^2", low=0)
    lr_min_ratio: float = option(0.01, "of the step at the last level to the first", low=0)
    momentum: float = option(0.9, "of hmc: share of the velocity that a step keeps", low=0, high=1)
    tau: float = option(0.0, "sqrt(2) times the noise of y as q is told (the paper: 0.01); 0 follows sigma_y", low=0)
    prior: str = option("gaussian", "around x^, or the score of x_t throughout", choices=("gaussian", "score"))
    times: str = option("discrete", "the network's own times, or those in between", choices=("discrete", "continuous"))

    handles_noise: ClassVar[bool] = True
    consistent: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "Zhang et al., Improving Diffusion Inverse Problem Solving with Decoupled Noise Annealing, CVPR 2025"
    )

    # ---- the levels -----------------------------------------------------------------------------------------

    def levels(self) -> list[float]:
        """s_k for k = 0..steps - 1."""
        return _grid(self.sigma_max, self.sigma_min, self.steps)[:-1]

    def respaced(self, schedule: NoiseSchedule) -> NoiseSchedule:
        below = [s for level in self.levels() for s in self._descent(level)[:-1]]
        wanted = torch.tensor([level_of(s) for s in below], dtype=torch.float64)
        if self.times == "continuous":
            return schedule.at_levels(wanted)
        kept = torch.tensor(sorted({schedule.nearest(float(a)) for a in wanted}))
        return NoiseSchedule(
            torch.cat([schedule.alpha_bar[kept], schedule.alpha_bar[-1:]]), schedule.timesteps[kept], schedule.chain
        )

    def path(self, schedule: NoiseSchedule) -> list[int]:
        times = dict.fromkeys(schedule.nearest(level_of(s)) for s in self.levels())
        return [*sorted(times, reverse=True), -1]

    def _descent(self, sigma: float) -> list[float]:
        """The levels of the Euler steps from `sigma` down, first and last included."""
        return _grid(sigma, min(self.ode_sigma_min, sigma), self.ode_steps)

    def _asked_from(self, schedule: NoiseSchedule, t: int) -> list[int]:
        """The times of the network calls from t down."""
        return list(
            dict.fromkeys([t, *(schedule.nearest(level_of(s)) for s in self._descent(_sigma(schedule, t))[1:-1])])
        )

    def price(self, times: Sequence[int], schedule: NoiseSchedule, problem: Problem | None) -> Cost:
        down = [t for t, s in pairwise(times) if s < t]
        again = len(down) if self.prior == "score" and self.mcmc != "exact" else 0
        return Cost(sum(len(self._asked_from(schedule, t)) for t in down) + again)

    # ---- the method -----------------------------------------------------------------------------------------

    def step(
        self, x_t: Tensor, t: int, s: int, problem: Problem, backbone: Backbone, noise: Draw
    ) -> tuple[Tensor, Tensor]:
        schedule = backbone.schedule
        sigma_k = _sigma(schedule, t)
        z = start = x_t / schedule.alpha_bar_at(t) ** 0.5
        calls = self._asked_from(schedule, t)
        ends = [*(_sigma(schedule, u) for u in calls[1:]), min(self.ode_sigma_min, sigma_k)]
        for u, end in zip(calls, ends, strict=True):
            ratio = end / _sigma(schedule, u)
            x0 = backbone.predict(schedule.alpha_bar_at(u) ** 0.5 * z, u).x0
            z = weighted_sum((1 - ratio, x0), (ratio, z))
        if self.mcmc == "exact":
            q = self._drawn(z, sigma_k, problem, noise)
        else:
            score = None
            if self.prior == "score":
                score = (backbone.predict(x_t, t).x0 - start) / sigma_k**2
            q = self._walked(z, sigma_k, score, problem, noise)
        if s < 0:
            return q, z
        a_s = schedule.alpha_bar_at(s)
        return weighted_sum((a_s**0.5, q), ((1 - a_s) ** 0.5, noise("step"))), z

    def finish(self, x: Tensor, problem: Problem) -> Tensor:
        exact = self.mcmc == "exact" and self.tau == 0 and problem.sigma_y == 0
        return problem.replace_known(x) if exact else x

    def _drawn(self, x: Tensor, sigma: float, problem: Problem, noise: Draw) -> Tensor:
        """From ``N(y; A q, v) N(q; x, sigma^2)``, v = tau^2 / 2: mean ``x + A^T (A A^T + v / sigma^2)^-1 (y - A x)``, and
        variance ``(1 - exp(-2 K T)) / K`` in the direction of squared singular value l, with ``K = 1 / sigma^2 + l / v`` and T the
        time that Langevin steps would take."""
        linear_operator(problem, self.name)
        v = self.tau**2 / 2 if self.tau > 0 else problem.sigma_y**2
        time = self.mcmc_steps * self._lr(sigma)

        def gain(squared: Tensor) -> Tensor:
            return torch.where(squared > 0, 1 / (squared + v / sigma**2).clamp(min=1e-30), 0.0)

        def std(squared: Tensor) -> Tensor:
            stationary = sigma**2 * torch.where(squared > 0, v / (v + sigma**2 * squared.clamp(min=1e-30)), 1.0)
            return (-stationary * torch.expm1(-2 * time / stationary.clamp(min=1e-30))).sqrt()

        return x + problem.filtered_residual(gain, x) + problem.operator.gram_filter(std, noise("q"))

    def _lr(self, sigma: float) -> float:
        """Langevin's step at a level: falls evenly from the first to the last; other paths may leave that range."""
        within = min(max(sigma, self.sigma_min), self.sigma_max)
        high, low, now = (v ** (1 / _RHO) for v in (self.sigma_max, self.sigma_min, within))
        k = self.steps * (high - now) / (high - low) if high > low else 0.0
        return self.lr * (1 - (1 - self.lr_min_ratio) * k / (self.steps + 1))

    def _walked(self, x: Tensor, sigma: float, score: Tensor | None, problem: Problem, noise: Draw) -> Tensor:
        """The authors' Langevin or Hamiltonian steps from x; `score` of the prior, or None for that of N(x, sigma^2)."""
        A = linear_operator(problem, self.name)
        tau = self.tau if self.tau > 0 else max(2**0.5 * problem.sigma_y, _LEAST_TAU)
        lr = self._lr(sigma)
        q, v = x, noise("velocity") if self.mcmc == "hmc" else None
        for i in range(self.mcmc_steps):
            force = A.adjoint(problem.y - A(q)).mul_(2 / tau**2)
            force = force + (score if score is not None else (x - q) / sigma**2)
            n = noise(f"langevin {i}")
            if v is None:
                q = weighted_sum((1.0, q), (lr, force), ((2 * lr) ** 0.5, n))
            else:
                v = weighted_sum((self.momentum, v), (lr**0.5, force), ((2 * (1 - self.momentum)) ** 0.5, n))
                q = q + lr**0.5 * v
        return q


def level_of(sigma: float) -> float:
    """alpha_bar of a noise level in the unit of the signal."""
    return 1 / (1 + sigma**2)


def _sigma(schedule: NoiseSchedule, t: int) -> float:
    a = schedule.alpha_bar_at(t)
    return ((1 - a) / a) ** 0.5


def _grid(high: float, low: float, n: int) -> list[float]:
    """n + 1 levels from `high` to `low`, evenly in the seventh root (Karras et al., 2022, eq. 5)."""
    a, b = high ** (1 / _RHO), low ** (1 / _RHO)
    return [(a + k / n * (b - a)) ** _RHO for k in range(n + 1)]
