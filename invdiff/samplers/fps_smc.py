"""FPS-SMC: filtering posterior sampling, a particle filter on a noised path of the measurement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from invdiff.backbones.base import Backbone
from invdiff.backbones.schedule import NoiseSchedule
from invdiff.noise import Draw
from invdiff.options import option
from invdiff.problem import Problem
from invdiff.samplers.base import register_sampler
from invdiff.samplers.particles import ParticleSampler, Population, by_chunks, inner, linear
from invdiff.samplers.paths import plain
from invdiff.tensors import weighted_sum


@register_sampler("fps-smc")
@dataclass(frozen=True)
class FPSSMC(ParticleSampler):
    """Filtering posterior sampling with sequential Monte Carlo (Dou & Song, ICLR 2024, algorithm 2).

    First the measurement is noised as an image would be, from ``y_T = A n`` down, one path for all particles of an image:

        y_s = sqrt(a_s) y + sqrt((1 - c)(1 - a_s)/(1 - a_t)) (y_t - sqrt(a_t) y) + sqrt(c (1 - a_s)) A n

    so that y_s is A x_s with noise of variance ``R = a_s sigma_y^2``. Then, with ``Q = c (1 - a_s)``, each move draws from the
    exact product of the DDIM step and that likelihood, and weighs by what the two have in common:

        b     = sqrt(a_s) x0 + sqrt((1 - c)(1 - a_s)) eps
        x_s   ~ N(b + Q A^T (Q A A^T + R)^-1 (y_s - A b),  Q (I + A^T A Q/R)^-1)
        log w = - 1/2 (y_s - A b)^T (Q A A^T + R)^-1 (y_s - A b)
    """

    steps: int = option(100, "times kept of the schedule", low=2)
    c: float = option(0.95, "share of fresh noise, of x and of the path of y alike (the paper's code)", low=0, high=1)
    clip: bool = option(True, "clip x0 to [-1, 1]")
    as_code: bool = option(
        False,
        "as the authors' code: y and R of time t in the step to s, weights with a_s beside R of a_t, the first state of time T "
        "shown to the network as one time later",
    )

    handles_noise: ClassVar[bool] = True
    consistent: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "Dou & Song, Diffusion Posterior Sampling for Linear Inverse Problem Solving: A Filtering Perspective, "
        "ICLR 2024"
    )

    def path(self, schedule: NoiseSchedule) -> list[int]:
        return plain(len(schedule))[1 if self.as_code else 0 :]

    def start(self, problem: Problem, backbone: Backbone, t: int, noise: Draw, cloud: Population) -> Tensor:
        """A draw from N(0, I) given y_T."""
        A, n = linear(self.name, problem), noise("init")
        y_T = cloud.shared(A(noise("path")))
        cloud.carried["y"] = y_T
        R = backbone.schedule.alpha_bar_at(len(backbone.schedule) - 1) * problem.sigma_y**2
        toward = A.filtered_adjoint(lambda values: 1 / (values + R), y_T, problem.image_shape)
        return (
            n
            + toward
            + A.gram_filter(lambda values: (R / (values + R)) ** 0.5 - 1 if R > 0 else -(values > 0).to(values), n)
        )

    def move(
        self, x_t: Tensor, t: int, s: int, k: int, problem: Problem, backbone: Backbone, noise: Draw, cloud: Population
    ) -> tuple[Tensor, Tensor]:
        A, schedule, c = linear(self.name, problem), backbone.schedule, self.c

        def evaluate(rows: Tensor, x: Tensor, backbone: Backbone) -> tuple[Tensor, Tensor]:
            prediction = backbone.predict(x, t)
            return prediction.x0.clamp(-1, 1) if self.clip else prediction.x0, prediction.eps

        x0, eps = by_chunks(x_t, backbone, evaluate)
        if s < 0:
            return x0, x0
        above, level = (t + 1, t) if self.as_code else (t, s)
        a_s, a_above, a_level = (schedule.alpha_bar_at(i) for i in (s, above, level))
        kept = ((1 - c) * (1 - a_level) / (1 - a_above)) ** 0.5
        fresh = cloud.shared(A(noise("path")))
        y_s = weighted_sum(
            (a_level**0.5 - kept * a_above**0.5, problem.y),
            (kept, cloud.carried["y"]),
            ((c * (1 - a_level)) ** 0.5, fresh),
        )
        cloud.carried["y"] = y_s
        Q, R = c * (1 - a_s), a_level * problem.sigma_y**2
        b = weighted_sum((a_s**0.5, x0), (((1 - c) * (1 - a_s)) ** 0.5, eps))
        widened = Q + 1e-6 if self.as_code else Q
        residual = y_s - A(b)
        toward = A.filtered_adjoint(lambda values: widened / (R + widened * values), residual, problem.image_shape)

        def std(values: Tensor) -> Tensor:
            return (Q * R / (R + Q * values)) ** 0.5 if R > 0 else Q**0.5 * (values <= 0).to(values)

        n = noise("step")
        x = b + toward + A.gram_filter(std, n)
        if self.as_code and R > 0:
            misfit, moved = y_s - A(x), x - b
            cloud.weigh(
                -inner(misfit, misfit) / (2 * a_s * problem.sigma_y**2)
                - inner(moved, moved) / (2 * Q)
                + inner(n, n) / 2
            )
        else:
            common = A.filtered_adjoint(lambda values: 1 / (values * (R + Q * values)), residual, problem.image_shape)
            cloud.weigh(-0.5 * inner(residual, A(common)))
        x, x0 = cloud.resample(k, x, x0)
        return x, x0

    def last_weights(self, x: Tensor, problem: Problem, backbone: Backbone, cloud: Population) -> Tensor:
        return x if problem.sigma_y > 0 or self.as_code else problem.replace_known(x)
