"""MCG-Diff: a particle filter on the noised measurement."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.backbones.base import Backbone
from invdiff.backbones.schedule import NoiseSchedule
from invdiff.noise import Draw
from invdiff.options import option
from invdiff.problem import Problem
from invdiff.samplers.base import register_sampler
from invdiff.samplers.integrators import ddim_coefficients
from invdiff.samplers.particles import ParticleSampler, Population, by_chunks, inner, linear
from invdiff.samplers.paths import plain
from invdiff.tensors import weighted_sum


@register_sampler("mcg-diff")
@dataclass(frozen=True)
class MCGDiff(ParticleSampler):
    """Monte Carlo guided diffusion (Cardoso et al., ICLR 2024, algorithms 1 and 2).

    In the coordinates of the singular vectors of A, a coordinate of singular value s has seen noise as a diffusion does at the time
    tau where ``sigma_y^2 a = (1 - a) s^2``. From x_T down to there, its particles are compared with ``sqrt(a_t) A^+ y`` within

        V_t = 1 - (1 - kappa) a_t / a_tau

    the variance that it has at t given that it is known (up to kappa) at tau. With DDIM's mean mu and standard deviation c1 of a
    move t -> u, K = c1^2 / (c1^2 + V_u) and n fresh noise,

        log w = - |mu - sqrt(a_u) A^+ y|^2 / 2 (c1^2 + V_u) + |x_t - sqrt(a_t) A^+ y|^2 / 2 V_t          (over known coordinates)
        x_u   = mu + K (sqrt(a_u) A^+ y - mu) + sqrt(K V_u) n                                            known at u or before
        x_u   = mu + c1 n                                                                                the others

    after resampling by w. All of it are spectral filters of A^T A, so any linear operator will do. What is conditioned on is
    that a coordinate was ``sqrt(a) A^+ y`` at its time tau, which says what y says; the authors' code compares with y again at
    the end, which counts it twice (`as_code`).
    """

    steps: int = option(100, "times kept of the schedule", low=2)
    eta: float = option(1.0, "share of fresh noise of DDIM's step", low=0)
    kappa: float = option(1e-4, "variance left at the time where a coordinate is known", low=0, high=1)
    as_code: bool = option(
        False,
        "as the authors' code: potentials are divided out again once a coordinate's time is passed, y is compared with A x at the "
        "end once more, and the result is the state before the last network call",
    )

    handles_noise: ClassVar[bool] = True
    consistent: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "Cardoso et al., Monte Carlo Guided Denoising Diffusion Models for Bayesian Linear Inverse Problems, ICLR 2024"
    )

    def respaced(self, schedule: NoiseSchedule) -> NoiseSchedule:
        """``floor(linspace(0, T - 1, steps))``."""
        kept = torch.linspace(0, schedule.T - 1, self.steps, dtype=torch.float64).floor().long().unique()
        levels = torch.cat([schedule.alpha_bar[kept], schedule.alpha_bar[-1:]])
        return NoiseSchedule(levels, schedule.timesteps[kept], schedule.chain)

    def path(self, schedule: NoiseSchedule) -> list[int]:
        times = plain(len(schedule))
        return times[:-1] if self.as_code else times

    def first_state(self, problem: Problem, backbone: Backbone, t: int, noise: Draw) -> Tensor:
        """A draw from N(0, I) times the first potential."""
        A, filters, n = linear(self.name, problem), self._filters(problem, backbone.schedule, t), noise("init")
        a_t = backbone.schedule.alpha_bar_at(t)
        toward = A.gram_filter(
            lambda values: filters.known(values) / (1 + filters.V(values)), a_t**0.5 * problem.pinv_y
        )

        def narrower(values: Tensor) -> Tensor:
            return filters.known(values) * ((filters.V(values) / (1 + filters.V(values))) ** 0.5 - 1)

        return n + toward + A.gram_filter(narrower, n)

    def move(
        self, x_t: Tensor, t: int, s: int, k: int, problem: Problem, backbone: Backbone, noise: Draw, cloud: Population
    ) -> tuple[Tensor, Tensor]:
        A, schedule = linear(self.name, problem), backbone.schedule
        a_t, a_s = schedule.alpha_bar_at(t), schedule.alpha_bar_at(s)

        def evaluate(rows: Tensor, x: Tensor, backbone: Backbone) -> tuple[Tensor, Tensor]:
            prediction = backbone.predict(x, t)
            return prediction.x0, prediction.eps

        x0, eps = by_chunks(x_t, backbone, evaluate)
        if s < 0:
            return x0, x0
        c1, c2 = ddim_coefficients(a_t, a_s, self.eta)
        mu = weighted_sum((a_s**0.5, x0), (c2, eps))
        filters = self._filters(problem, schedule, s)
        ahead = self._potential(mu, filters, a_s, c1**2, problem)
        if self.as_code:
            # An image where nothing is known at s any more keeps its last potential until the end.
            guided = A.gram_filter(filters.known, mu).flatten(1).any(1)
            before = self._potential(x_t, self._filters(problem, schedule, t), a_t, 0.0, problem) if k == 0 else None
            before = cloud.carried["potential"] if before is None else before
            cloud.carried["potential"] = before
            cloud.weigh(torch.where(guided, ahead - before, 0.0))
        else:
            cloud.weigh(ahead - self._potential(x_t, filters.seen_from(t), a_t, 0.0, problem))
        mu, x0 = cloud.resample(k, mu, x0)

        def gain(values: Tensor) -> Tensor:
            return filters.known(values) * c1**2 / (c1**2 + filters.V(values))

        n = noise("step")
        x = weighted_sum((1.0, mu), (c1, n))
        x += A.gram_filter(gain, a_s**0.5 * problem.pinv_y - mu)
        x += A.gram_filter(lambda values: filters.known(values) * ((gain(values) * filters.V(values)) ** 0.5 - c1), n)
        if self.as_code:
            guided = A.gram_filter(filters.known, x).flatten(1).any(1)
            after = self._potential(x, filters, a_s, 0.0, problem)
            cloud.carried["potential"] = torch.where(guided, after, cloud.carried["potential"])
        return x, x0

    def last_weights(self, x: Tensor, problem: Problem, backbone: Backbone, cloud: Population) -> Tensor:
        if self.as_code:
            cloud.weigh(-cloud.carried["potential"])
            if problem.sigma_y > 0:
                residual = problem.y - problem.operator(x)
                cloud.weigh(-0.5 * inner(residual, residual) / problem.sigma_y**2)
            return x
        return x if problem.sigma_y > 0 else problem.replace_known(x)

    def _potential(self, x: Tensor, filters: _Filters, level: float, variance: float, problem: Problem) -> Tensor:
        """``- |x - sqrt(a) A^+ y|^2 / 2 (V + variance)`` over the known coordinates, (B,)."""
        away = x - level**0.5 * problem.pinv_y

        def weight(values: Tensor) -> Tensor:
            return filters.known(values) / (filters.V(values) + variance)

        return -0.5 * inner(away, linear(self.name, problem).gram_filter(weight, away))

    def _filters(self, problem: Problem, schedule: NoiseSchedule, t: int) -> _Filters:
        return _Filters(schedule.alpha_bar[: len(schedule)], problem.sigma_y, self.kappa, t, t)


@dataclass(frozen=True)
class _Filters:
    """Which coordinates are known at `time` or before, and how well at time t, as functions of the squared singular value."""

    levels: Tensor
    sigma_y: float
    kappa: float
    time: int
    t: int

    def seen_from(self, t: int) -> _Filters:
        """The same coordinates, how well they are known at t."""
        return replace(self, t=t)

    def _tau(self, values: Tensor) -> Tensor:
        """The time at which a coordinate has the measurement's noise."""
        levels = self.levels.to(values.device, values.dtype)
        return (self.sigma_y**2 * levels - (1 - levels) * values[..., None]).abs().argmin(-1)

    def known(self, values: Tensor) -> Tensor:
        return ((values > 0) & (self._tau(values) <= self.time)).to(values.dtype)

    def V(self, values: Tensor) -> Tensor:
        level = self.levels.to(values.device, values.dtype)
        ratio = level[self.t] / level[self._tau(values)]
        return (1 - (1 - self.kappa) * ratio).clamp_min(self.kappa)  # where it is not known yet, of no matter
