"""Sequential Monte Carlo: particles that are weighted by the measurement and resampled on their way down."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from invdiff.backbones.base import Backbone
from invdiff.errors import DivergenceError, InvdiffError, InvdiffWarning
from invdiff.noise import Draw, NoiseSource
from invdiff.operators.base import LinearOperator
from invdiff.options import option
from invdiff.problem import Problem
from invdiff.samplers.base import Progress, Sampler, Walk, finite, no_gradient

NUMBERS_PER_CALL = 2**19  # of the particles that the network sees at once: bounds the memory, whatever their number

# ---- weights and ancestors --------------------------------------------------------------------------------------


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """``(sum w)^2 / sum w^2`` over the last axis: how many equally weighted particles these are worth, 1..P."""
    return 1 / log_weights.softmax(-1).square().sum(-1)


def systematic(weights: Tensor, u: Tensor) -> Tensor:
    """Systematic resampling (Kitagawa, 1996): particle i is taken ``P w_i`` times, rounded up or down.

    Args:
        weights: (..., P), summing to one.
        u: (..., 1) uniform numbers, one for all particles of a population.

    Returns:
        (..., P) ancestors, ascending: the first i whose cumulative weight reaches ``(k + u) / P``.
    """
    size = weights.shape[-1]
    return _ancestors(weights, (torch.arange(size, dtype=weights.dtype) + u) / size)


def multinomial(weights: Tensor, u: Tensor) -> Tensor:
    """Multinomial resampling: every ancestor is drawn alone, from its own uniform number in `u`, (..., P)."""
    return _ancestors(weights, u)


def _ancestors(weights: Tensor, positions: Tensor) -> Tensor:
    found = torch.searchsorted(weights.cumsum(-1), positions.clamp_min(1e-300).contiguous())  # not one of no weight
    return found.clamp_(max=weights.shape[-1] - 1)


def survivors(ancestors: Tensor) -> Tensor:
    """How many of the first particles have descendants among the last; (..., resamplings, P) ancestors -> (...)."""
    size = ancestors.shape[-1]
    line = torch.arange(size, device=ancestors.device).expand(*ancestors.shape[:-2], size)
    for k in range(ancestors.shape[-2]):
        line = line.gather(-1, ancestors[..., k, :])
    line = line.sort(-1).values
    return 1 + (line[..., 1:] != line[..., :-1]).sum(-1)


RESAMPLING: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"systematic": systematic, "multinomial": multinomial}


@dataclass
class Population:
    """The weights of one run's particles and their history; weights are float64 and on the CPU.

    Attributes:
        log_weights: (G, P) since the last resampling, G populations of P particles each.
        per_image: particles of one image, of all its populations.
        log_evidence: (G,), the estimate of the logarithm of the evidence p(y), up to a constant that all populations share.
        carried: what belongs to the particles and travels with them: tensors of G P rows by name.
        fixed: what a method keeps for the whole run; it is not resampled.
    """

    method: str
    threshold: float
    noise: NoiseSource
    log_weights: Tensor
    per_image: int
    log_evidence: Tensor = field(init=False)
    carried: dict[str, Tensor] = field(default_factory=dict)
    fixed: Any = None
    ess: list[Tensor] = field(default_factory=list)
    ancestors: list[Tensor] = field(default_factory=list)
    weights_before: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.log_evidence = torch.zeros(len(self.log_weights), dtype=torch.float64)

    def weigh(self, log_factors: Tensor) -> None:
        """Multiply the weights by ``exp(log_factors)``, (G P,)."""
        self.log_weights = self.log_weights + log_factors.detach().cpu().double().reshape(self.log_weights.shape)

    def shared(self, drawn: Tensor) -> Tensor:
        """What was drawn for the first particle of every image, for all its particles."""
        return drawn[:: self.per_image].repeat_interleave(self.per_image, 0)

    def settle(self) -> None:
        """Take the mean weight of every population into its evidence, and note weights and effective sample sizes."""
        size = self.log_weights.shape[-1]
        total = self.log_weights.logsumexp(-1, keepdim=True)
        self.log_evidence = self.log_evidence + (total - math.log(size)).squeeze(-1)
        self.weights_before.append(self.log_weights - self.log_weights.amax(-1, keepdim=True))
        self.log_weights = self.log_weights - total + math.log(size)
        self.ess.append(effective_sample_size(self.log_weights))

    def resample(self, step: int, *rows: Tensor) -> tuple[Tensor, ...]:
        """Replace light particles by copies of heavy ones in every population whose effective size fell below the threshold.

        Args:
            step: number of the move, which the uniform numbers belong to.
            *rows: tensors of G P rows; they and what is `carried` follow.

        Returns:
            The rows of the survivors.
        """
        self.settle()
        groups, size = self.log_weights.shape
        own = torch.arange(size).expand(groups, size)
        poor = self.ess[-1] < self.threshold * size
        ancestors = own
        if bool(poor.any()):
            count = 1 if self.method == "systematic" else size
            drawn = RESAMPLING[self.method](
                self.log_weights.softmax(-1), self.noise.uniform(step, "resample", size, count)
            )
            ancestors = torch.where(poor[:, None], drawn, own)
            self.log_weights = torch.where(poor[:, None], 0.0, self.log_weights)
        self.ancestors.append(ancestors)
        if ancestors is own:
            return rows
        index = (ancestors + size * torch.arange(groups)[:, None]).flatten()
        self.carried = {name: value[index.to(value.device)] for name, value in self.carried.items()}
        return tuple(row[index.to(row.device)] for row in rows)


# ---- the loop ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ParticleSampler(Sampler):
    """A method whose samples of an image depend on each other. To write one, give `move` and, where there is one, `last_weights`.

    An image is given ``ceil(n_samples / particles)`` populations of `particles` particles, which travel in one batch. A
    population resamples among itself only. At the end all particles of the image are pooled, every population by its
    estimate of the evidence p(y), so that the pool is exact in the limit of many populations too; `n_samples` draws are
    taken from it by weight.
    """

    particles: int = option(64, "particles of one population; exact as they grow", low=1)
    resampling: str = option("systematic", "how ancestors are drawn", choices=tuple(RESAMPLING))
    ess_threshold: float = option(
        0.5,
        "resample where the effective sample size falls below this share of the particles; 1 = always",
        low=0,
        high=1,
    )
    result: str = option(
        "draws",
        "draws: equally weighted samples, drawn from the particles by weight; particles: they themselves, whose weights are in "
        "Solution.diagnostics",
        choices=("draws", "particles"),
    )

    together: ClassVar[bool] = True

    def check_samples(self, n_samples: int) -> None:
        if self.result == "particles" and n_samples % self.particles:
            raise InvdiffError(
                f'n_samples must be a multiple of particles={self.particles} with result="particles", got {n_samples}: whole '
                "populations come back, as their weights only count together"
            )

    def states(self, n_samples: int) -> int:
        return -(-n_samples // self.particles) * self.particles

    def start(self, problem: Problem, backbone: Backbone, t: int, noise: Draw, cloud: Population) -> Tensor:
        """The first state of all particles; what goes with it is put into `cloud`."""
        return self.first_state(problem, backbone, t, noise)

    @abstractmethod
    def move(
        self, x_t: Tensor, t: int, s: int, k: int, problem: Problem, backbone: Backbone, noise: Draw, cloud: Population
    ) -> tuple[Tensor, Tensor]:
        """Move number k, from t to s < t: weigh, resample and propose.

        Returns:
            x_s and the network's clean estimate, of all particles.
        """

    def last_weights(self, x: Tensor, problem: Problem, backbone: Backbone, cloud: Population) -> Tensor:
        """The particles that the run ends with, their last weights taken into `cloud`."""
        return x

    def step(
        self, x_t: Tensor, t: int, s: int, problem: Problem, backbone: Backbone, noise: Draw
    ) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("particles move by `move`")

    def run(self, walk: Walk) -> Tensor:
        """Walk the path; rows are all particles of an image, then those of the next.

        Args:
            walk: as for every sampler, one row for each particle. Its record says with `per_image` how many rows, a multiple of
                `particles`, are of one image (one population by default), and is told of every call and of "ess" (images,
                populations, weighings), "ancestors" (images, populations, resamplings, particles), "log_evidence" (images,
                populations), "survivors" (images, populations), "log_weights" of all particles in their pool (images, particles),
                and "log_weights_before" every resampling (images, populations, weighings, particles), largest 0.

        Returns:
            As many rows, unclamped, model range: draws from the pool of an image in random order, or the particles.

        Raises:
            InvdiffError: a path that goes up.
            DivergenceError: states or weights went non-finite.
        """
        problem, noise, record = walk.problem, walk.noise, walk.record
        backbone, times = walk.begun(self)
        if any(s > t for t, s in pairwise(times)):
            raise InvdiffError(
                f"path must only go down for {self.name}: its weights belong to steps towards the clean image"
            )
        size = self.particles
        with no_gradient(inference=not (self.uses_gradient or walk.guidance)):
            log_weights = torch.zeros(len(problem.y) // size, size, dtype=torch.float64)
            cloud = Population(self.resampling, self.ess_threshold, noise, log_weights, record.per_image or size)
            x = self.start(problem, backbone, times[0], noise.at(-1), cloud)
            x = x if walk.x_init is None else walk.x_init
            for k, (t, s) in enumerate(pairwise(times)):
                record.calls.append(backbone.schedule.timestep(t))
                x, x0 = self.move(x, t, s, k, problem, backbone, noise.at(k), cloud)
                if not (finite(x) and bool((cloud.log_weights.amax(-1) > -math.inf).all())):
                    raise DivergenceError(
                        f"{self.name} diverged: states or weights are not finite after move {k + 1} of {len(times) - 1} "
                        f"(time {t} -> {s}, network time {backbone.schedule.timestep(t)}). More particles or more steps help; "
                        f"settings: {self}"
                    )
                if walk.on_step is not None:
                    timestep = backbone.schedule.timestep(t)
                    walk.on_step(Progress(k, len(times) - 1, t, s, timestep, len(record.calls) * size, x, x0))
            x = self.last_weights(x, problem, backbone, cloud)
            cloud.settle()
            return self._drawn(x.clone(), cloud, len(times) - 1, record.details)

    def _drawn(self, x: Tensor, cloud: Population, k: int, details: dict[str, Tensor]) -> Tensor:
        """The result, and what is to be told about it."""
        per_image, size = cloud.per_image, self.particles
        images = len(x) // per_image
        pooled = cloud.log_weights.reshape(images, -1, size) + cloud.log_evidence.reshape(images, -1, 1)
        shape = (images, per_image // size)
        details["ess"] = torch.stack(cloud.ess, -1).reshape(*shape, -1)
        details["log_evidence"] = cloud.log_evidence.reshape(shape)
        details["log_weights"] = pooled.flatten(1).log_softmax(-1)
        details["ancestors"] = torch.stack(cloud.ancestors, -2).reshape(*shape, -1, size)
        details["log_weights_before"] = torch.stack(cloud.weights_before, -2).reshape(*shape, -1, size)
        details["survivors"] = survivors(details["ancestors"])
        if size > 1 and bool((details["survivors"] == 1).all(-1).any()):
            warnings.warn(
                f"{self.name}: all {size} particles of an image descend from one of the first: its samples are as good as one "
                "guided run, and their weights say little, as the measurement tells particles too far apart. "
                "More particles help where few numbers are measured; for pictures take mmps",
                InvdiffWarning,
                stacklevel=2,
            )
        if self.result == "particles":
            return x
        weights = pooled.flatten(1).softmax(-1)
        chosen = systematic(weights, cloud.noise.uniform(k, "draw", per_image, 1))
        order = cloud.noise.uniform(k, "order", per_image, per_image).argsort(-1)  # the first n of them are draws, too
        index = (chosen.gather(1, order) + per_image * torch.arange(images)[:, None]).flatten()
        return x[index.to(x.device)]


def by_chunks(
    x: Tensor, backbone: Backbone, f: Callable[[Tensor, Tensor, Backbone], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """``f(rows, x[rows], backbone of these rows)`` for as many rows at a time as memory allows, put together.

    f returns tensors of as many rows. It is here that the network is asked: however many particles there are, a call sees a few.
    """
    chunks = torch.arange(len(x), device=x.device).split(max(1, NUMBERS_PER_CALL // x[0].numel()))
    parts = [f(rows, x[rows], backbone.select(rows)) for rows in chunks]
    return parts[0] if len(parts) == 1 else tuple(torch.cat(part) for part in zip(*parts, strict=True))


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Sum of the products of every row, in float64: (B, ...), (B, ...) -> (B,)."""
    return (a.double() * b.double()).flatten(1).sum(1)


def linear(name: str, problem: Problem) -> LinearOperator:
    """The operator of `problem`.

    Raises:
        InvdiffError: it is non-linear, so that it has no adjoint.
    """
    if not isinstance(problem.operator, LinearOperator):
        raise InvdiffError(f"operator must be linear for {name}, got {problem.operator!r}")
    return problem.operator
