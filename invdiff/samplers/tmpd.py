"""TMPD: MMPS with one number per measurement in place of the matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invdiff.backbones.base import Backbone
from invdiff.options import option
from invdiff.problem import Problem
from invdiff.samplers.base import Estimator, estimate_with_pullback, linear_operator, register_sampler
from invdiff.samplers.krylov import inner


@register_sampler("tmpd")
@dataclass(frozen=True)
class TMPD(Estimator):
    """Tweedie moment-projected diffusion (Boys et al., 2023, algorithm 1): the row sums instead of the matrix.

    With ``C = (1 - a_t) / sqrt(a_t) (d x0 / d x_t)``, products with a vector of ones and with the weighted residual:

        E[x0 | x_t, y] = x0 + C A^T [ (y - A x0) / (sigma_y^2 + A C A^T 1) ]

    The row sums of a network's Jacobian reach 0 and turn negative, and the division blows up; and for transforms (Fourier,
    Walsh-Hadamard) they say nothing about the variance of a coefficient. Here they are at least `floor` times the variance that
    the residual r itself meets, ``r^T A C A^T r / r^T r``, at the price of a third product. ``floor=0`` is the paper's.
    """

    floor: float = option(1.0, "least row sum, as a share of the residual's own variance; 0 as in the paper", low=0)

    handles_noise: ClassVar[bool] = True
    uses_gradient: ClassVar[bool] = True
    paper: ClassVar[str] = "Boys et al., Tweedie Moment Projected Diffusions for Inverse Problems, TMLR 2024"

    def products(self) -> int:
        return 2 if self.floor == 0 else 3

    def estimate(self, x_t: Tensor, t: int, problem: Problem, backbone: Backbone) -> Tensor:
        A, variance = linear_operator(problem, self.name), problem.sigma_y**2
        _, x0, pullback = estimate_with_pullback(backbone, x_t, t, products=self.products())
        a_t = backbone.schedule.alpha_bar_at(t)
        c = (1 - a_t) / a_t**0.5
        residual = problem.y - A(x0)
        sums = c * A(pullback(A.adjoint(torch.ones_like(problem.y))))
        if self.floor > 0:
            met = inner(residual, c * A(pullback(A.adjoint(residual)))) / inner(residual, residual).clamp(min=1e-30)
            sums = torch.maximum(sums, (self.floor * met).clamp(min=0).reshape(-1, *[1] * (sums.ndim - 1)))
        spread = variance + sums
        weighted = torch.where(spread == 0, 0.0, residual / torch.where(spread == 0, 1.0, spread))
        return x0 + c * pullback(A.adjoint(weighted))
