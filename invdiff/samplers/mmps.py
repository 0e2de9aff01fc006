"""MMPS: the covariance of x0 given x_t, by the network's own Jacobian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.backbones.base import Backbone
from invdiff.options import option
from invdiff.problem import Problem
from invdiff.samplers.base import Estimator, estimate_with_pullback, linear_operator, memory_of, register_sampler
from invdiff.samplers.krylov import SOLVERS, Pairs, inner, over


@register_sampler("mmps")
@dataclass(frozen=True)
class MMPS(Estimator):
    """Moment-matching posterior sampling (Rozet et al., NeurIPS 2024, algorithms 1 and 2).

    With Tweedie's covariance ``C = Cov(x0 | x_t) = (1 - a_t) / sqrt(a_t) (d x0 / d x_t)``, known by its products,

        (sigma_y^2 I + A C A^T) u = y - A x0            a few Krylov iterations
        E[x0 | x_t, y] = x0 + C A^T u

    which is exact where x0 given x_t is Gaussian, so at every x_t of a Gaussian prior. Iterations are in float64, for every
    image by itself. Ours: the system is first scaled by ``(v A A^T + sigma_y^2)^(-1/2)``, v = 1 - a_t (``scaled=True``), so that
    the singular values of A are out of it and it lives in the range of A where there is no noise; and conjugate gradients
    begin with the direction of the u of the call before (``warm=True``), which is worth several iterations and takes the
    place of the product ``C A^T u`` that the authors' code makes at the end: here it is the sum of those of the iterations.
    The covariance of pictures has variances from 0.1 to 1,000, which three iterations do not see; but from step to step it
    changes little, so the last directions of the calls before and their products, `recalled` of them, precondition the next
    system, as in the quasi-Newton method BFGS. That costs no product.

    A learned network's Jacobian is no covariance: along some directions it is negative. With ``guarded=True`` (ours) conjugate
    gradients take C for zero there, and the estimate of a network whose images lie in [-1, 1] is clipped to that.
    """

    steps: int = option(40, "times kept of the schedule", low=1)
    iterations: int = option(3, "of the Krylov solver, each one vector-Jacobian product", low=1)
    solver: str = option(
        "cg", "conjugate gradients, or GMRES, which takes an unsymmetric Jacobian", choices=tuple(SOLVERS)
    )
    warm: bool = option(True, "one more direction for cg, and the first: the solution of the call before")
    recalled: int = option(16, "directions of the calls before that precondition cg; 0 as in the paper", low=0)
    scaled: bool = option(True, "take the singular values of A out of the system; False as in the paper")
    guarded: bool = option(True, "mind that a network's Jacobian may be no covariance; False as in the paper")

    handles_noise: ClassVar[bool] = True
    consistent: ClassVar[bool] = True
    uses_gradient: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "Rozet et al., Learning Diffusion Priors from Observations by Expectation Maximization, NeurIPS 2024"
    )

    def products(self) -> int:
        return self.iterations + (1 if self.warm and self.solver == "cg" else 0)

    def products_for(self, problem: Problem | None) -> int:
        """With conjugate gradients no more than there are numbers in y: so many directions are all there are."""
        if problem is None or self.solver != "cg":
            return self.products()
        return max(1, min(self.products(), int(_numbers(problem).max())))

    def estimate(self, x_t: Tensor, t: int, problem: Problem, backbone: Backbone) -> Tensor:
        A, variance, a_t = (
            linear_operator(problem, self.name),
            problem.sigma_y**2,
            backbone.schedule.alpha_bar_at(t),
        )
        memory = memory_of(backbone)
        if "mmps/products" not in memory:
            memory["mmps/products"] = self.products_for(problem), _numbers(problem)
        products, numbers = memory["mmps/products"]
        _, x0, pullback = estimate_with_pullback(backbone, x_t, t, products=products)
        c = (1 - a_t) / a_t**0.5

        def scaled(u: Tensor) -> Tensor:
            if not self.scaled:
                return u
            return A.cogram_filter(lambda squared: _inverse_root((1 - a_t) * squared + variance), u)

        def product(p: Tensor) -> tuple[Tensor, Tensor]:
            u = scaled(p)
            moved = c * pullback(A.adjoint(u).to(x_t.dtype)).double()  # C A^T u
            seen = A(moved)
            if self.guarded and self.solver == "cg":
                positive = (inner(u, seen) > 0).to(u.dtype)
                seen, moved = over(positive, seen) * seen, over(positive, moved) * moved
            return scaled(variance * u + seen), moved

        residual = scaled(problem.y.double() - A(x0.double()))
        known: Pairs = memory.get("mmps/pairs", ())
        options = (
            {"start": memory.get("mmps/u"), "known": known, "keep": self.recalled > 0, "most": numbers}
            if self.solver == "cg"
            else {}
        )
        u, correction, pairs = SOLVERS[self.solver](product, residual, products, **options)
        if self.warm:
            memory["mmps/u"] = u
        if self.recalled > 0:
            memory["mmps/pairs"] = (*known, *pairs)[-self.recalled :]
        estimate = (x0 + correction).to(x_t.dtype)
        return estimate.clamp(-1, 1) if self.guarded and backbone.bounded else estimate

    def finish(self, x: Tensor, problem: Problem) -> Tensor:
        return problem.replace_known(x) if problem.sigma_y == 0 else x


def _numbers(problem: Problem) -> Tensor:
    """How many numbers are measured of every image, (1 or B,)."""
    read = problem.operator.reads(problem.image_shape)
    return torch.tensor([problem.y[0].numel()]).to(problem.y.device) if read is None else read.flatten(1).sum(1)


def _inverse_root(values: Tensor) -> Tensor:
    return torch.where(values > 0, values.clamp(min=1e-300).rsqrt(), 0.0)
