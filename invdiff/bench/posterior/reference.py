"""The exact posterior of one measurement, made ready to be compared with: what metrics that need a posterior are handed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from invdiff.bench.posterior.distances import Directions, Reference
from invdiff.metrics import Metric, Unavailable
from invdiff.noise import positive_seed_of
from invdiff.operators.base import LinearOperator
from invdiff.priors.gaussian import GaussianBackbone

LARGEST_BASIS = 1024
"""Pixels up to which all directions are looked at; above, the leading ones."""

_LEADING = 32


class Exact:
    """The exact posterior of a measurement.

    Args:
        prior: a backbone with a known posterior.
        operator: A.
        y: (1, *measurement_shape), model range.
        sigma_y: standard deviation of its noise.
        truth: (C, H, W), what was measured.
        n: exact samples to compare with.
        seed: of all draws.
        shared: what measurements by the same operator share is kept here.
    """

    def __init__(
        self,
        prior: Any,
        operator: LinearOperator,
        y: Tensor,
        sigma_y: float,
        truth: Tensor,
        n: int,
        seed: int,
        shared: dict[str, Any],
    ) -> None:
        self.prior, self.operator, self.y, self.sigma_y, self.truth = prior, operator, y, sigma_y, truth
        self.n, self.seed, self._shared = n, seed, shared
        self._last: tuple[Tensor, dict[str, Any]] | None = None

    def fits(self, metric: Metric) -> bool:
        """Whether this is the kind of posterior that the metric needs."""
        gaussian = isinstance(self.prior, GaussianBackbone)
        return not ("gaussian" in metric.needs and not gaussian) and not ("weights" in metric.needs and gaussian)

    @cached_property
    def posterior(self) -> Any:
        """The posterior in closed form, with `sample`, `mean`, `covariance`."""
        return self.prior.posterior(self.operator, self.y, self.sigma_y)

    def sample(self, n: int, *what: object) -> Tensor:
        """(n, C, H, W) exact draws, the same for the same words."""
        return self.posterior.sample(n, seed=positive_seed_of(self.seed, *what))

    def distance(self, x: Tensor, name: str) -> float:
        """One of the numbers of `Reference.compare` for samples (n, C, H, W), which are all computed at once.

        Raises:
            Unavailable: the posterior does not vary in the directions that it is about.
        """
        if self._last is None or self._last[0] is not x:
            self._last = (x, self.reference.compare(x.flatten(1)))
        if name not in self._last[1]:
            raise Unavailable("the posterior does not vary in these directions")
        return self._last[1][name]

    @property
    def directions(self) -> Directions:
        """Range and null space of A."""
        if "directions" not in self._shared:
            self._shared["directions"] = Directions.of(self.operator.dense(self.prior.image_shape))
        return self._shared["directions"]

    def basis(self, space: str) -> Tensor:
        """(d, k) orthonormal directions of the ``"null"`` space or the ``"range"``.

        Raises:
            Unavailable: the posterior does not vary there.
        """
        found = self.directions.null if space == "null" else self.directions.range
        if found.shape[1] == 0 or (space == "range" and self.sigma_y == 0):
            raise Unavailable("the posterior does not vary in these directions")
        return found

    @cached_property
    def reference(self) -> Reference:
        """Exact draws and moments, along the leading directions where images are large."""
        mean, basis = self.posterior.mean.flatten().double(), None
        if self.prior.dimension > LARGEST_BASIS:
            basis, directions = self._leading(mean)
            inner = (self.sample(1000, "covariance").flatten(1).double() - mean) @ basis
            covariance, mean = inner.mT @ inner / len(inner), mean @ basis
        else:
            covariance, directions = self.posterior.covariance.double(), self.directions
        return Reference(
            draws=self.sample(self.n, "draws").flatten(1),
            mean=mean,
            covariance=covariance,
            directions=directions,
            gaussian=isinstance(self.prior, GaussianBackbone),
            new_draws=lambda n, seed: self.sample(n, "new", seed).flatten(1),
            responsibilities=self.responsibilities,
            mode_weights=None if self.responsibilities is None else self.posterior.weights,
            basis=basis,
        )

    @cached_property
    def responsibilities(self) -> Callable[[Tensor], Tensor] | None:
        """(n, d) -> (n, K), probabilities of a mixture's components; None for a Gaussian."""
        prior = self.prior
        if isinstance(prior, GaussianBackbone):
            return None
        return lambda x: torch.cat([prior.responsibilities(p.reshape(-1, *prior.image_shape)) for p in x.split(256)])

    def _leading(self, mean: Tensor) -> tuple[Tensor, Directions]:
        """The leading principal directions of the posterior within the range and within the null space of A."""
        centred = self.sample(max(200, self.n), "basis").double() - mean.reshape(self.prior.image_shape)
        seen = self.operator.project(centred).flatten(1)
        bases = []
        for values, varies in ((seen, self.sigma_y > 0), (centred.flatten(1) - seen, True)):
            k = min(_LEADING, len(values) - 1) if varies else 0
            bases.append(torch.linalg.svd(values, full_matrices=False)[2][:k].mT)
        k, total = bases[0].shape[1], bases[0].shape[1] + bases[1].shape[1]
        identity = torch.eye(total, dtype=torch.float64)
        return torch.cat(bases, 1), Directions(identity[:, :k], identity[:, k:])
