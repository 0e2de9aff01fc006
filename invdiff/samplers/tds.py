"""TDS: the twisted diffusion sampler."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.backbones.base import Backbone, Prediction
from invdiff.backbones.schedule import SPACINGS
from invdiff.errors import InvdiffError
from invdiff.noise import Draw
from invdiff.operators.base import LinearOperator
from invdiff.options import option
from invdiff.problem import Problem
from invdiff.samplers.base import register_sampler
from invdiff.samplers.integrators import posterior_coefficients
from invdiff.samplers.krylov import not_beyond, over
from invdiff.samplers.local_gaussian import LocalGaussian, Seen
from invdiff.samplers.particles import ParticleSampler, Population, by_chunks, inner, linear
from invdiff.tensors import weighted_sum

DENSE_ENTRIES = 2**22


@register_sampler("tds")
@dataclass(frozen=True)
class TDS(ParticleSampler):
    """Twisted diffusion sampler (Wu et al., NeurIPS 2023, algorithm 1).

    Every particle is drawn towards the measurement by a twisting function, an estimate of p(y | x_t) from one network call, and
    the error of that estimate goes into its weight:

        log w += log p~(y | x_s) + log p(x_s | x_t) - log p~(y | x_t) - log q(x_s | x_t, y)

    `twisting` says which estimate, with x0 = E[x0 | x_t] of the network and its Jacobian J:

    - "moments": ``p~ = N(y; A x0, A C A^T + sigma_y^2 I)`` with ``C = (1 - a)/sqrt(a) J``, the covariance of x0 given x_t by
      Tweedie's second formula (as in MMPS, Rozet et al. 2024). p and q are then steps of the Gaussian N(x0, C), before and
      after it has seen y, so on a Gaussian prior all weights are equal, for any number of steps.
    - "scalar": ``C = r^2 I`` with r^2 = tausq S/(tausq + S), S = (1 - a)/a: one gradient through the network, whatever the size.
      The proposal goes along it no further than what brings A x0 nearest to y.
    - "paper": the authors' code: ``- |y - A x0|^2 / 2 v``, no normaliser, sigma_y unused, v by `var_type`.
    """

    steps: int = option(100, "times kept of the schedule", low=1)
    twisting: str = option(
        "auto",
        "moments, scalar or paper; auto: moments where they take at most `most_products` vector-Jacobian products, else scalar",
        choices=("auto", "moments", "scalar", "paper"),
    )
    most_products: int = option(64, "vector-Jacobian products per network call that auto allows for moments", low=1)
    var_type: int = option(
        6,
        "v of twisting=paper: 1 S, 2 S/(1+S), 3 sqrt(2 r) beta/0.5, 4 beta/sqrt(a), 6 tausq S/(tausq+S); S = (1-a)/a",
        low=1,
        high=6,
    )
    tausq: float = option(0.12, "variance of the prior that scalar and type 6 assume", low=0)
    clip: bool = option(False, "clip the twisted x0 of the proposal to [-1, 1], as twisting=paper did")
    spacing: str = option("respaced", "which times of the schedule are kept", choices=SPACINGS)

    handles_noise: ClassVar[bool] = True
    uses_gradient: ClassVar[bool] = True
    consistent: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "Wu et al., Practical and Asymptotically Exact Conditional Sampling in Diffusion Models, NeurIPS 2023"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.var_type == 5:
            raise InvdiffError("tds: var_type must be 1, 2, 3, 4 or 6, got 5: the authors' code has no such")

    def products(self) -> int:
        return 1 if self.twisting in ("scalar", "paper") else self.most_products

    def products_for(self, problem: Problem | None) -> int:
        seen = None if problem is None else self._seen(problem, problem.y)
        if problem is None or seen is None:
            return self.products() if problem is None else 1
        return min(prod(problem.image_shape), 2 * seen.z.shape[1] + 1)

    def move(
        self, x_t: Tensor, t: int, s: int, k: int, problem: Problem, backbone: Backbone, noise: Draw, cloud: Population
    ) -> tuple[Tensor, Tensor]:
        seen = self._seen(problem, x_t) if k == 0 else cloud.fixed
        if k == 0:
            cloud.fixed = seen
        move = self._move_by_gradient if seen is None else self._move_by_moments
        return move(x_t, t, s, k, problem, backbone, noise, cloud)

    def _seen(self, problem: Problem, x: Tensor) -> Seen | None:
        """The measurement in coordinates, where moments are to be used."""
        A, d = linear(self.name, problem), prod(problem.image_shape)
        if self.twisting in ("scalar", "paper"):
            return None
        m = prod(A.measurement_shape(problem.image_shape))
        if self.twisting == "auto" and m * d > DENSE_ENTRIES:
            return None
        seen = Seen.of(problem, torch.float32 if x.device.type == "mps" else torch.float64)
        needed = min(d, 2 * seen.z.shape[1] + 1)
        return None if self.twisting == "auto" and needed > self.most_products else seen

    # ---- moments --------------------------------------------------------------------------------------------

    def _move_by_moments(
        self, x_t: Tensor, t: int, s: int, k: int, problem: Problem, backbone: Backbone, noise: Draw, cloud: Population
    ) -> tuple[Tensor, Tensor]:
        seen, schedule, shape = cloud.fixed, backbone.schedule, x_t.shape
        a_t, a_s = schedule.alpha_bar_at(t), schedule.alpha_bar_at(s)
        wide = seen.z.dtype
        probe = noise("probe").flatten(1).to(wide)

        def evaluate(i: Tensor, x: Tensor, backbone: Backbone) -> tuple[Tensor, ...]:
            _, x0, pullback = linearised(backbone, x, t)
            scale = (1 - a_t) / a_t**0.5

            def covariance(v: Tensor) -> Tensor:
                return scale * pullback(v.to(x.dtype).reshape(x.shape)).flatten(1).to(wide)

            local = LocalGaussian.of(x0.flatten(1).to(wide), covariance, seen.rows(i), probe[i])
            return local.mean, local.basis, local.spectrum, local.rest

        local = LocalGaussian(*by_chunks(x_t, backbone, evaluate))
        log_twist = local.log_likelihood(seen)
        cloud.weigh(log_twist - cloud.carried.get("expected", torch.zeros_like(log_twist)))
        x, *parts = cloud.resample(k, x_t.flatten(1).to(wide), local.mean, local.basis, local.spectrum, local.rest)
        local = LocalGaussian(*parts)

        n_z = noise("measurement").flatten(1)[:, : seen.z.shape[1]].to(wide)
        x0 = local.posterior_draw(seen, noise("x0").flatten(1).to(wide), n_z)
        if s < 0:
            return x0.to(x_t.dtype).reshape(shape), local.mean.to(x_t.dtype).reshape(shape)
        c1, c2, variance = posterior_coefficients(a_t, a_s)
        x_s = c1 * x0 + c2 * x + variance**0.5 * noise("step").flatten(1).to(wide)
        expected = local.given_next(x_s, c1 * local.mean + c2 * x, c1, variance)
        cloud.carried["expected"] = expected.log_likelihood(seen)
        return x_s.to(x_t.dtype).reshape(shape), local.mean.to(x_t.dtype).reshape(shape)

    # ---- one gradient ---------------------------------------------------------------------------------------

    def _move_by_gradient(
        self, x_t: Tensor, t: int, s: int, k: int, problem: Problem, backbone: Backbone, noise: Draw, cloud: Population
    ) -> tuple[Tensor, Tensor]:
        schedule = backbone.schedule
        a_t, a_s = schedule.alpha_bar_at(t), schedule.alpha_bar_at(s)
        c1, c2, variance = posterior_coefficients(a_t, a_s)

        def evaluate(i: Tensor, x: Tensor, backbone: Backbone) -> tuple[Tensor, ...]:
            A = linear(self.name, problem)[i]
            x0, shift, log_variance, log_twist = self.proposal(x, t, A, problem.y[i], problem.sigma_y, backbone)
            if log_variance is None or 0 <= s < t - 1:
                v = torch.full_like(x0, variance if s >= 0 else float(schedule.posterior_variance[0]))
            else:
                v = log_variance.exp()
            return x0, shift, v, log_twist

        x0, shift, v, log_twist = by_chunks(x_t, backbone, evaluate)
        if k > 0:
            log_twist_before = cloud.carried["twist"]
            cloud.weigh(log_twist - log_twist_before + cloud.carried["ratio"])
        else:
            cloud.weigh(log_twist)
        x, x0, shift, v, log_twist = cloud.resample(k, x_t, x0, shift, v, log_twist)
        if s < 0:
            return self._meet(x0, v, problem, log_twist, cloud), x0
        shift, n = c1 * shift, noise("step")
        x_s = weighted_sum((c1, x0), (c2, x), (1.0, shift)) + v.sqrt() * n
        cloud.carried = {
            "twist": log_twist,
            "ratio": -0.5 * inner(shift, shift / v)
            - inner(shift, n / v.sqrt()),  # log p(x_s | x_t) - log q(x_s | x_t, y)
        }
        return x_s, x0

    def proposal(
        self, x_t: Tensor, t: int, operator: LinearOperator, y: Tensor, sigma_y: float, backbone: Backbone
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """What one network call and its gradient say: x0, how far the measurement moves it, the logarithm of the step's variance
        where the network learned one, and the logarithm of the twisting function, (B,)."""
        prediction, x0, pullback = linearised(backbone, x_t, t)
        a = backbone.schedule.alpha_bar_at(t)
        S = (1 - a) / a
        prior = self.tausq * S / (self.tausq + S) if self.tausq > 0 else 0.0
        residual = y - operator(x0)
        if self.twisting == "paper":
            r = 0.5 * inner(residual, residual)
            v = {
                1: torch.full_like(r, S),
                2: torch.full_like(r, S / (1 + S)),
                3: (2 * r).sqrt() * backbone.schedule.beta(t) / 0.5,
                4: torch.full_like(r, backbone.schedule.beta(t) / a**0.5),
                6: torch.full_like(r, prior),
            }[self.var_type]
            back, log_twist = operator.adjoint(residual, tuple(x0.shape[1:])) / v.to(x0).reshape(-1, 1, 1, 1), -r / v
        else:
            back = operator.filtered_residual(lambda values: 1 / (prior * values + sigma_y**2), y, x0)
            log_twist = -0.5 * inner(operator.pinv(residual, tuple(x0.shape[1:])), back)
        shift = (1 - a) / a**0.5 * pullback(back)
        if self.twisting != "paper":
            shift = over(not_beyond(operator(shift), residual).to(shift), shift) * shift
        moved = x0 + shift
        return x0, (moved.clamp(-1, 1) if self.clip else moved) - x0, prediction.log_variance, log_twist

    def _meet(self, x0: Tensor, v: Tensor, problem: Problem, log_twist: Tensor, cloud: Population) -> Tensor:
        """The last step, from the Gaussian of mean x0 and variance v, where it meets the measurement."""
        A = linear(self.name, problem)
        if problem.sigma_y > 0 and self.twisting != "paper":
            mean = float(v.mean())
            back = problem.filtered_residual(lambda values: 1 / (mean * values + problem.sigma_y**2), x0)
            common = A.pinv(problem.y - A(x0))
            cloud.weigh(-0.5 * inner(common, back) - log_twist)
            return x0 + mean * back
        away = A.pinv(problem.y - A(x0))
        cloud.weigh(-0.5 * inner(away, away / v) - log_twist)
        return problem.replace_known(x0)


def linearised(backbone: Backbone, x_t: Tensor, t: int) -> tuple[Prediction, Tensor, _Pullback]:
    """One network call: the prediction, x0, and ``v -> (d x0 / d x_t)^T v``, which may be called any number of times."""
    with torch.enable_grad():
        x = x_t.detach().requires_grad_()
        prediction = backbone.predict(x, t)
    variance = None if prediction.log_variance is None else prediction.log_variance.detach()
    return (
        Prediction(prediction.x0.detach(), prediction.eps.detach(), variance),
        prediction.x0.detach(),
        _Pullback(prediction.x0, x),
    )


@dataclass(frozen=True)
class _Pullback:
    x0: Tensor
    x: Tensor

    def __call__(self, v: Tensor) -> Tensor:
        return torch.autograd.grad(self.x0, self.x, v, retain_graph=True)[0]
