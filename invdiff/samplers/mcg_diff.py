"""MCG-Diff: a particle filter on the noised measurement."""

from __future__ import annotations

from dataclasses import dataclass
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

    after resampling by w. All of it are spectral filters of A^T A, so any linear operator will do.
    """

    steps: int = option(100, "times kept of the schedule", low=2)
    eta: float = option(1.0, "share of fresh noise of DDIM's step", low=0)
    kappa: float = option(1e-4, "variance left at the time where a coordinate is known", low=0, high=1)
    ending: str = option(
        "x0", "the clean image, or the state before the last network call (the authors' code)", choices=("x0", "state")
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
        return times if self.ending == "x0" else times[:-1]

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
        if "potential" not in cloud.carried:  # of the first state, which was drawn with it
            cloud.carried["potential"] = self._potential(x_t, t, 0.0, problem, schedule)
        if s < 0:
            return x0, x0
        c1, c2 = ddim_coefficients(a_t, a_s, self.eta)
        mu = weighted_sum((a_s**0.5, x0), (c2, eps))
        filters = self._filters(problem, schedule, s)
        n, before = noise("step"), cloud.carried["potential"]
        guided = A.gram_filter(filters.known, mu).flatten(1).any(1)  # an image with known coordinates at s
        cloud.weigh(torch.where(guided, self._potential(mu, s, c1**2, problem, schedule) - before, 0.0))
        mu, x0 = cloud.resample(k, mu, x0)

        def gain(values: Tensor) -> Tensor:
            return filters.known(values) * c1**2 / (c1**2 + filters.V(values))

        x = weighted_sum((1.0, mu), (c1, n))
        x += A.gram_filter(gain, a_s**0.5 * problem.pinv_y - mu)
        x += A.gram_filter(lambda values: filters.known(values) * ((gain(values) * filters.V(values)) ** 0.5 - c1), n)
        after = self._potential(x, s, 0.0, problem, schedule)
        cloud.carried["potential"] = torch.where(guided, after, cloud.carried["potential"])
        return x, x0

    def last_weights(self, x: Tensor, problem: Problem, backbone: Backbone, cloud: Population) -> Tensor:
        cloud.weigh(-cloud.carried["potential"])
        residual = problem.y - problem.operator(x)
        if problem.sigma_y > 0:
            cloud.weigh(-0.5 * inner(residual, residual) / problem.sigma_y**2)
        elif self.ending == "x0":  # the model's last step, of variance (1 - a) / a, where it meets y
            a = backbone.schedule.alpha_bar_at(0)
            away = problem.operator.pinv(residual)
            cloud.weigh(-0.5 * inner(away, away) * a / (1 - a))
            x = problem.replace_known(x)
        return x

    def _potential(self, x: Tensor, t: int, variance: float, problem: Problem, schedule: NoiseSchedule) -> Tensor:
        """``- |x - sqrt(a_t) A^+ y|^2 / 2 (V_t + variance)`` over the coordinates known at t or before, (B,)."""
        filters = self._filters(problem, schedule, t)
        away = x - schedule.alpha_bar_at(t) ** 0.5 * problem.pinv_y

        def weight(values: Tensor) -> Tensor:
            return filters.known(values) / (filters.V(values) + variance)

        return -0.5 * inner(away, linear(self.name, problem).gram_filter(weight, away))

    def _filters(self, problem: Problem, schedule: NoiseSchedule, t: int) -> _Filters:
        return _Filters(schedule.alpha_bar[: len(schedule)], problem.sigma_y, self.kappa, t)


@dataclass(frozen=True)
class _Filters:
    """Which coordinates are known at time t and how well, as functions of the squared singular value."""

    levels: Tensor
    sigma_y: float
    kappa: float
    t: int

    def _tau(self, values: Tensor) -> Tensor:
        """The time at which a coordinate has the measurement's noise."""
        levels = self.levels.to(values.device, values.dtype)
        return (self.sigma_y**2 * levels - (1 - levels) * values[..., None]).abs().argmin(-1)

    def known(self, values: Tensor) -> Tensor:
        return ((values > 0) & (self._tau(values) <= self.t)).to(values.dtype)

    def V(self, values: Tensor) -> Tensor:
        level = self.levels.to(values.device, values.dtype)
        ratio = level[self.t] / level[self._tau(values)]
        return (1 - (1 - self.kappa) * ratio).clamp_min(self.kappa)  # where it is not known yet, of no matter
