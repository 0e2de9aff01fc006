"""Time to the exact posterior, for `quality.py`: our samplers and other libraries' on priors whose posterior is known.

A *cell* is one run: a task, a method with one setting, a number of steps. It draws a few thousand samples of every measurement
and notes their Wasserstein-2 distance to the exact posterior, network calls, vector-Jacobian products and processor time on one
thread. Settings of a method are tried by successive halving: all with few steps, the better half with the next number, until one
has reached the target or the numbers are used up. Everything, ours too, draws from PyTorch's own generator, so that no clock
contains our seeding of every sample by itself (a tenth of a second here, nothing on pictures).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from quality_peers import Job, PeerModel, grid, peer_methods
from torch import Tensor

from invdiff import LinearOperator, Mask, MatrixOperator, make_mask, solve
from invdiff.bench.posterior.distances import gaussian_w2, sliced_w2
from invdiff.metrics.cost import forward_equivalents
from invdiff.operators.matrix import random_matrix
from invdiff.priors.gaussian import GaussianBackbone
from invdiff.priors.named import PRIORS

OURS = "invdiff"
TARGET, ABOVE_FLOOR = 0.05, 0.01
"""What is to be reached: this distance, and this much above what exact draws score."""
LONGEST = 20.0
"""Seconds: a run that would take longer, by the one before, is left out."""
STALLED = 0.95
"""Of the distance before: a setting that is far away has to get nearer by more than this with more steps."""
LONG_ENOUGH = 0.3
"""Seconds: shorter runs are timed twice, and the shorter time counts."""

# ---- tasks ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """One prior and one kind of measurement.

    Attributes:
        name, prior: the latter of `PRIORS`.
        A: the operator.
        sigma_y: model range.
        measurements, samples: how many, and how many draws of each.
    """

    name: str
    prior: str
    A: Callable[[], LinearOperator]
    sigma_y: float
    measurements: int = 1
    samples: int = 4000

    @property
    def label(self) -> str:
        return f"{self.name}, σ = {self.sigma_y:g}"

    @cached_property
    def backbone(self) -> Any:
        return PRIORS[self.prior]()

    @cached_property
    def operator(self) -> LinearOperator:
        return self.A()

    @cached_property
    def y(self) -> Tensor:
        truth = self.backbone.prior_sample(self.measurements, seed=0)
        return self.operator.measure(truth, self.sigma_y, seed=0)

    @cached_property
    def posteriors(self) -> list[Any]:
        return [self.backbone.posterior(self.operator, y[None], self.sigma_y) for y in self.y]

    @property
    def distance_name(self) -> str:
        return "W2" if isinstance(self.backbone, GaussianBackbone) else "sliced W2"

    def distance(self, x: Tensor) -> float:
        """Of draws, (measurements x samples, C, H, W), over the posterior's size; the mean over the measurements."""
        found = []
        for posterior, drawn in zip(self.posteriors, x.detach().unflatten(0, (self.measurements, -1)), strict=True):
            z = drawn.flatten(1).double()
            covariance = posterior.covariance.double()
            total = float(covariance.trace())
            if not bool(torch.isfinite(z).all()):
                found.append(math.inf)
            elif isinstance(self.backbone, GaussianBackbone):
                mean = posterior.mean.flatten().double()
                found.append(gaussian_w2(z.mean(0), torch.cov(z.mT), mean, covariance) / math.sqrt(total))
            else:
                exact = posterior.sample(len(z), seed=1).flatten(1).double()
                found.append(sliced_w2(z, exact)[0] / math.sqrt(total / z.shape[1]))
        return sum(found) / len(found)

    def floor(self, sets: int = 10) -> float:
        """What as many exact draws score, on average."""
        found = [
            self.distance(torch.cat([p.sample(self.samples, seed=100 + k) for p in self.posteriors]))
            for k in range(sets)
        ]
        return sum(found) / sets


def half(pixels: int) -> Callable[[], LinearOperator]:
    return lambda: Mask((torch.arange(8) < pixels).float()[None])


def directions(rows: int) -> Callable[[], LinearOperator]:
    return lambda: MatrixOperator(random_matrix(8, rows=rows, seed=0))


TASKS = (
    Task("gaussian8-mask", "gaussian8", half(4), 0.1),
    Task("gaussian8-mask", "gaussian8", half(4), 0.0, samples=2000),
    Task("gaussian8-random", "gaussian8", directions(4), 0.1, samples=2000),
    Task("image-mask", "gaussian16x16", lambda: Mask(make_mask("box", 16)), 0.1, samples=1000),
    Task("gmm25-8-random", "gmm25-8", directions(1), 0.5, measurements=2, samples=500),
    Task("gmm25-8-mask", "gmm25-8", half(1), 0.05, measurements=2, samples=500),
    Task("two-modes-mask", "two-modes16", lambda: Mask((torch.arange(16) < 14).float()[None]), 0.1, samples=2000),
)

# ---- methods ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """What is run: `prepare(task, steps, setting)` gives a function that draws and what it took."""

    library: str
    name: str
    settings: tuple[dict[str, Any], ...]
    budgets: tuple[int, ...]
    prepare: Callable[..., tuple[Callable[[], Tensor], Callable[[], tuple[int, int]]]]
    masks_only: bool = False
    named: bool = False
    always: tuple[tuple[dict[str, Any], int], ...] = ()


class Plain:
    """Draws from one generator, as the other libraries make them."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=torch.float64)


def our_methods() -> Iterator[Method]:
    """Every sampler of the library: its own step, and integrators where it takes them."""

    def prepared(task: Task, steps: int, *, of: str, **setting: Any) -> Any:
        found: list[Any] = []
        rows = task.measurements * task.samples

        def draw() -> Tensor:
            solution = solve(
                task.operator,
                task.y,
                of,
                backbone=task.backbone,
                sigma_y=task.sigma_y,
                value_range=(-1, 1),
                n_samples=task.samples,
                steps=steps,
                noise=Plain(0),
                batch_size=rows,
                progress=False,
                **setting,
            )
            found.append(solution)
            return solution.x

        return draw, lambda: (found[-1].nfe, found[-1].vjps)

    def method(name: str, sampler: str, settings: tuple[dict[str, Any], ...], budgets: tuple[int, ...]) -> Method:
        return Method(OURS, name, settings, budgets, partial(prepared, of=sampler))

    few, steps = (6, 8, 10, 12, 15, 20, 30, 50, 100), (20, 50, 100, 250, 1000)
    integrators = ("ancestral", "ddim", "dpm++2m", "eab3", "heun")
    yield method(
        "mmps",
        "mmps",
        (
            *grid(integrator=("dpm++2m", "eab3"), spacing=("logsnr", "karras"), iterations=(1, 2, 3)),
            *grid(integrator=("ddim", "heun"), spacing=("karras",), iterations=(2,)),
            *grid(integrator=("dpm++2m",), spacing=("logsnr",), iterations=(1, 2), warm=(False,), recalled=(0,)),
        ),
        few,
    )
    yield method("tmpd", "tmpd", grid(integrator=("ancestral", "ddim", "dpm++2m", "eab3"), spacing=("karras",)), few)
    yield method("repaint", "repaint", grid(jump_length=(10,), jump_n_sample=(5, 10)), (20, 50, 100, 250, 500))
    for name in ("ddnm", "ddnm+", "pigdm", "diffpir"):
        chosen = grid(integrator=integrators, spacing=("karras",))
        yield method(name, name, ({"integrator": "own"}, *chosen), (10, *steps[:-1]))
    for name in ("replacement", "ddrm", "mcg", "dps"):
        yield method(name, name, ({},), steps[:-1])
    for name in ("tds", "mcg-diff", "fps-smc"):
        yield method(name, name, ({"particles": 64},), (50, 100))
    for name in ("copaint", "reddiff", "daps"):
        yield method(name, name, ({},), (20, 50, 100))


def their_methods() -> Iterator[Method]:
    """The methods of other libraries that are installed."""
    for peer in peer_methods():

        def prepared(task: Task, steps: int, *, make: Any = peer.make, **setting: Any) -> Any:
            y = task.y.repeat_interleave(task.samples, 0)
            model = PeerModel(task.backbone)
            job = Job(model, task.operator, y, task.sigma_y, task.backbone.image_shape)
            draw = make(job, steps, **setting)

            def seeded() -> Tensor:
                model.count()
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(0)
                    return draw()

            return seeded, lambda: (model.calls, model.vjps)

        yield Method(
            peer.library, peer.name, peer.settings, peer.budgets, prepared, peer.masks_only, peer.named, peer.always
        )


# ---- running ----------------------------------------------------------------------------------------------------


def words(setting: dict[str, Any]) -> str:
    """A setting in words, for tables and as a part of a cell's name."""
    return ", ".join(f"{k}={v}" for k, v in setting.items()) or "own"


def run_cell(task: Task, method: Method, setting: dict[str, Any], steps: int) -> dict[str, Any]:
    """One run; what fails is a row that says so."""
    row: dict[str, Any] = {
        "task": task.label,
        "library": method.library,
        "method": method.name,
        "named": method.named,
        "setting": words(setting),
        "steps": steps,
    }
    try:
        draw, cost = method.prepare(task, steps, **setting)
        start = time.process_time()
        x = draw()
        seconds = time.process_time() - start
        calls, vjps = cost()
        if seconds < LONG_ENOUGH:
            start = time.process_time()
            draw()
            seconds = min(seconds, time.process_time() - start)
        distance = task.distance(x)
    except Exception as error:
        return {**row, "error": f"{type(error).__name__}: {error}"[:200]}
    row |= {"calls": calls, "vjps": vjps, "forward_equivalents": forward_equivalents(calls, vjps)}
    return {**row, "seconds": seconds, "distance": None if math.isinf(distance) else distance}


def sweep(
    method: Method,
    target: float,
    budgets: tuple[int, ...],
    run: Callable[[dict[str, Any], int], dict[str, Any]],
) -> None:
    """Successive halving over the settings of a method: `run` makes a cell, or finds it made.

    With each number of steps go on: the better half of the settings, and those that nothing with fewer calls is better than. Not
    those that are at the target, those that took more calls than one that is, and those that have stalled: more than twice the
    target away, and hardly nearer than with half of the steps or fewer (`STALLED`).
    """
    for setting, steps in method.always:
        run(setting, steps)
    alive, slowest, before = list(method.settings), 0.0, budgets[0]
    least, seen = math.inf, dict[str, list[tuple[int, float]]]()
    for steps in budgets:
        if not alive or slowest * steps / before > LONGEST:
            return
        rows = [(setting, run(setting, steps)) for setting in alive]
        good = [(s, r["distance"], r["forward_equivalents"]) for s, r in rows if r.get("distance") is not None]
        slowest, before = max((row["seconds"] for _, row in rows if "seconds" in row), default=0.0), steps
        least = min([least, *(cost for _, distance, cost in good if distance <= target)])
        on = sorted((d, cost, k) for k, (s, d, cost) in enumerate(good) if target < d and cost < least)
        on = [x for x in on if x[0] < 2 * target or not stalled(steps, x[0], seen.get(words(good[x[2]][0]), []))]
        front = [x for x in on if not any(y[0] <= x[0] and y[1] <= x[1] for y in on if y is not x)]
        for setting, distance, _ in good:
            seen.setdefault(words(setting), []).append((steps, distance))
        alive = [good[k][0] for _, _, k in sorted({*on[: -(-len(on) // 2)], *front})]


def stalled(steps: int, distance: float, before: list[tuple[int, float]]) -> bool:
    """Whether twice the steps or more have brought a setting hardly nearer, by its (steps, distance) before."""
    return any(2 * fewer <= steps and distance > STALLED * d for fewer, d in before)


# ---- what it takes to get there ---------------------------------------------------------------------------------


def cost_to_reach(points: list[tuple[float, float]], target: float) -> float | None:
    """The cost at which the distance first falls to `target`, of (cost, distance) of one setting with growing budgets.

    Between the last budget above and the first one at or below it, the logarithm of the cost is interpolated along the logarithm
    of the distance; the first budget is not extrapolated. None where it is never reached.
    """
    points = sorted(points)
    for k, (cost, distance) in enumerate(points):
        if distance <= target:
            if k == 0:
                return cost
            before, above = points[k - 1]
            share = math.log(above / target) / math.log(above / distance)
            return math.exp(math.log(before) + share * (math.log(cost) - math.log(before)))
    return None


def reached(rows: list[dict[str, Any]], target: float, cost: str) -> tuple[float, dict[str, Any]] | None:
    """The least cost of a method's rows of one task to reach `target`, over its settings, and a row of that setting."""
    found = []
    for setting in dict.fromkeys(r["setting"] for r in rows):
        mine = [r for r in rows if r["setting"] == setting and r.get("distance") is not None]
        least = cost_to_reach([(r[cost], r["distance"]) for r in mine], target)
        if least is not None:
            found.append((least, next(r for r in sorted(mine, key=lambda r: r[cost]) if r["distance"] <= target)))
    return min(found, key=lambda pair: pair[0], default=None)


def targets(floor: float) -> tuple[float, float]:
    """What is to be reached: `TARGET`, or a little above the floor where that is higher; and `ABOVE_FLOOR` over the floor."""
    return max(TARGET, floor + ABOVE_FLOOR), floor + ABOVE_FLOOR


def masked(task: Task) -> bool:
    """Whether the measurement is a mask's."""
    return isinstance(task.operator, Mask)


def quick() -> tuple[Task, ...]:
    """A small task, to see that everything runs."""
    return (Task("gaussian8-mask", "gaussian8", half(4), 0.1, samples=200),)
