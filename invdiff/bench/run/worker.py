"""What runs a batch of cells: from the true images to records and pictures. The same code in every executor."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invdiff.backbones.base import Backbone
from invdiff.backbones.zoo import load_backbone
from invdiff.bench.posterior.reference import Exact
from invdiff.bench.run.backbones import Backbones
from invdiff.bench.run.images import drawn_from_prior
from invdiff.bench.run.store import DRAWN, Record, cell_key, measured_file, restored_file, samples_file, truth_file
from invdiff.bench.suite.suite import EXACT, SamplerEntry, Suite, Task
from invdiff.errors import InvdiffWarning
from invdiff.images import to_pil
from invdiff.metrics import METRICS, Metric, Unavailable, forward_equivalents, get_metric, register_metric
from invdiff.noise import positive_seed_of
from invdiff.operators.base import LinearOperator
from invdiff.solution import Solution
from invdiff.solve import solve

NUMBERS_AT_ONCE = 2**19  # as in `solve`
_SAMPLES_AT_ONCE = 4096  # their noise is drawn 4,096 numbers ahead
_SAMPLES_KEPT = 800  # for the figures
_SMALLEST_PICTURE = 8  # pixels; a smaller x is no picture
_ASIDE = ("operator", "sigma_y", "backbone", "precision", "device", "seed")  # recorded elsewhere


@dataclass(frozen=True)
class Cell:
    """One restoration to be made: the number and name of its image, and its seed."""

    number: int
    image: str
    seed: int


@dataclass(frozen=True)
class Batch:
    """Cells of one task and sampler that are run together. The same ones on every machine and after every resume."""

    number: int
    task: str
    sampler: str
    cells: tuple[Cell, ...]

    @property
    def keys(self) -> list[str]:
        """The keys of the cells."""
        return [cell_key(self.task, self.sampler, c.image, c.seed) for c in self.cells]


@dataclass
class Outcome:
    """What came of a batch.

    Attributes:
        batch: which.
        records: one per cell.
        files: pictures, uint8 (H, W, C), and arrays of samples, by file relative to the run folder.
        unavailable: metrics that could not be had, and why.
        process: who ran it.
    """

    batch: Batch
    records: list[Record] = field(default_factory=list)
    files: dict[str, np.ndarray] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    process: int = 0


@dataclass(frozen=True)
class WorkerSpec:
    """All that a worker needs, to be sent to another process.

    Attributes:
        suite: what is run.
        backbone: an object to be used instead of the suite's name, or None.
        truths: the suite's images, (N, C, H, W) float32 in [0, 1].
        device: ``"auto"`` is a GPU where there is one.
        precision: of the network; None for its own.
        threads: of the CPU; None leaves them alone.
        metrics: those of the suite, for a process that has not registered them.
    """

    suite: Suite
    backbone: Backbone | None
    truths: np.ndarray
    device: str | None = "auto"
    precision: str | None = None
    threads: int | None = None
    metrics: tuple[Metric, ...] = ()

    def build(self) -> Worker:
        """A worker; it loads a backbone when the first batch asks for it."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        for metric in self.metrics:
            if metric.name not in METRICS:
                register_metric(metric)
        backbones = Backbones(self.suite, self.backbone, self.device, self.precision)
        return Worker(self.suite, backbones, torch.from_numpy(self.truths.copy()))


class Worker:
    """Runs batches.

    Args:
        suite: what is run.
        backbones: of its tasks.
        truths: the suite's images, (N, C, H, W) float32 in [0, 1], in order.
    """

    def __init__(self, suite: Suite, backbones: Backbones, truths: Tensor) -> None:
        self.suite, self.backbones, self.truths = suite, backbones, truths
        self._warm: set[tuple[str, int]] = set()
        self._reasons = lru_cache(maxsize=None)(lambda name: get_metric(name).reason())

    def run(self, batch: Batch) -> Outcome:
        """Restore and judge the cells of a batch. A cell that fails is recorded with its error; nothing is raised."""
        outcome = Outcome(batch, process=os.getpid())
        task, entry = self.suite.task(batch.task), self.suite.sampler(batch.sampler)
        try:
            self._restore(batch, task, entry, outcome)
        except Exception as error:
            parts = batch.cells if len(batch.cells) > 1 else ()
            for cell in parts:  # whose fault it was: one by one
                part = self.run(replace(batch, cells=(cell,)))
                outcome.records += part.records
                outcome.files.update(part.files)
                outcome.unavailable.update(part.unavailable)
            if not parts:
                outcome.records += failed(batch, task, entry, f"{type(error).__name__}: {error}")
        return outcome

    def _restore(self, batch: Batch, task: Task, entry: SamplerEntry, outcome: Outcome) -> None:
        model, n = self.backbones.of(task), self.suite.n_samples_of(task)
        numbers = [cell.number for cell in batch.cells]
        truth = self._truth(task, model, numbers)
        operator = task.build(model.image_shape, numbers)
        y = operator.measure(truth, task.sigma_y, [measurement_seed(task.name, cell.image) for cell in batch.cells])
        exact = posteriors(self.suite, task, model, operator, truth, y, [cell.image for cell in batch.cells])
        self._warm_up(model, len(numbers))
        with peak_memory(model.device) as peak, warnings.catch_warnings():
            warnings.simplefilter("ignore", InvdiffWarning)
            if entry.name == EXACT:
                solution = _exact_draws(exact, batch, n, self.suite.value_range)
            else:
                solution = solve(
                    operator,
                    y,
                    entry.name,
                    backbone=model,
                    sigma_y=task.sigma_y,
                    n_samples=n,
                    seed=[restoration_seed(cell.image, cell.seed) for cell in batch.cells],
                    batch_size=len(numbers) if n == 1 else most_at_once(model, n * len(numbers)),
                    value_range=self.suite.value_range,
                    progress=False,
                    **entry.on(task),
                )
        samples = solution.samples.float()
        metrics = self._judge(task, samples, truth, operator, y, exact, outcome)
        for k, cell in enumerate(batch.cells):
            one = operator[k] if operator.batch_size is not None else operator
            file = self._pictures(outcome, task, entry, cell, samples[k], truth[k], one, y[k : k + 1])
            outcome.records.append(
                _record(task, entry, cell, repr(one), solution, len(numbers), peak[0], metrics[k], file)
            )

    def _truth(self, task: Task, model: Any, numbers: Sequence[int]) -> Tensor:
        """The true x of some cells, in the suite's value range."""
        if count := self.suite.measurements_of(task):
            prior = getattr(model, "prior", model)
            return drawn_from_prior(prior, count, self.suite.image_seed)[list(numbers)].float()
        low, high = self.suite.value_range
        return self.truths[list(numbers)] * (high - low) + low

    def _judge(
        self,
        task: Task,
        samples: Tensor,
        truth: Tensor,
        operator: LinearOperator,
        y: Tensor,
        exact: list[Exact] | None,
        outcome: Outcome,
    ) -> list[dict[str, float | None]]:
        """The metrics of every cell, computed before its picture is rounded to 8 bits."""
        found: list[dict[str, float | None]] = [{} for _ in samples]
        low, high = self.suite.value_range
        unit, true = ((samples - low) / (high - low)).clamp(0, 1), (truth - low) / (high - low)
        several = samples.shape[1] > 1
        # the same objects for every metric: `Exact` compares them once
        in_unit, as_they_are = unit.unbind(), samples.unbind()
        cells = [operator[k] if operator.batch_size is not None else operator for k in range(len(samples))]

        def given(metric: Metric, k: int | None) -> list[Any]:
            """The arguments of the metric's function for cell k; for all cells at once where there is one sample of each."""
            reference = "reference" in metric.needs
            arguments: list[Any]
            if k is None:
                arguments = [(unit if reference else samples)[:, 0]]
            else:
                arguments = [(in_unit if reference else as_they_are)[k]]
            if "reference" in metric.needs:
                arguments.append(
                    true if k is None else true[k] if metric.scope == "samples" else true[k].expand_as(samples[k])
                )
            if "measurement" in metric.needs:
                arguments += [operator, y] if k is None else [cells[k], y[k : k + 1]]
            if "posterior" in metric.needs and exact is not None:
                arguments.append(exact[0 if k is None else k])
            return arguments

        for metric in map(get_metric, self.suite.metrics_of(task)):
            if metric.scope not in ("image", "samples" if several else "image"):
                continue
            if exact is not None and not exact[0].fits(metric):
                continue
            values: list[float | None] = [None] * len(samples)
            reason = self._reasons(metric.name)
            if reason is None and "posterior" in metric.needs and exact is None:
                reason = "needs a backbone whose posterior is known, and value_range = [-1, 1]"
            if reason is None:
                assert metric.function is not None
                try:
                    if several:
                        results = [torch.as_tensor(metric.function(*given(metric, k))) for k in range(len(samples))]
                        numbers = [float(result.double().mean()) for result in results]
                    else:
                        numbers = metric.function(*given(metric, None)).tolist()
                    values = [v if np.isfinite(v) else None for v in numbers]
                except (Unavailable, ValueError, RuntimeError) as error:
                    reason = str(error)
            if reason is not None:
                outcome.unavailable[metric.name] = reason
            for one, value in zip(found, values, strict=True):
                one[metric.name] = value
        return found

    def _pictures(
        self,
        outcome: Outcome,
        task: Task,
        entry: SamplerEntry,
        cell: Cell,
        samples: Tensor,
        truth: Tensor,
        operator: LinearOperator,
        y: Tensor,
    ) -> str | None:
        """Put what is kept of a cell into `outcome.files`; the name of the restoration's picture, where there is one."""
        drawn = cell.image.startswith(DRAWN)
        if drawn and cell.number > 0:
            return None
        if drawn:
            kept = samples_file(task.name, entry.label, cell.image, cell.seed)
            outcome.files[kept] = samples[:_SAMPLES_KEPT].numpy()
        if drawn and min(samples.shape[-2:]) < _SMALLEST_PICTURE:
            return None
        low, high = self.suite.value_range

        def keep(file: str, x: Tensor) -> str:
            outcome.files.setdefault(file, np.asarray(to_pil((x - low) / (high - low))))
            return file

        if drawn:
            keep(truth_file(cell.image, task.name), truth)
        keep(measured_file(task.name, cell.image), shown(operator, y, samples.shape[1:])[0])
        return keep(restored_file(task.name, entry.label, cell.image, cell.seed), samples[0])

    def _warm_up(self, model: Backbone, size: int) -> None:
        """One network call before the clock runs: the first call at a batch size prepares kernels."""
        if (model.name, size) not in self._warm:
            self._warm.add((model.name, size))
            x = torch.zeros(size, *model.image_shape, device=model.device, dtype=model.dtype)
            with suppress(Exception), torch.inference_mode():
                model.predict(x, 0)


def posteriors(
    suite: Suite, task: Task, model: Any, operator: LinearOperator, truth: Tensor, y: Tensor, images: Sequence[str]
) -> list[Exact] | None:
    """The exact posterior of every measurement, where there is one in the unit of the suite."""
    prior = getattr(model, "prior", model)
    if suite.value_range != (-1.0, 1.0) or not hasattr(prior, "posterior"):
        return None
    n, found = suite.n_samples_of(task), []
    shared: dict[str, Any] = {}
    for k, image in enumerate(images):
        one = operator[k] if operator.batch_size is not None else operator
        seed = positive_seed_of("reference", task.name, image)
        found.append(Exact(prior, one, y[k : k + 1], task.sigma_y, truth[k], n, seed, shared))
    return found


def first_posterior(suite: Suite, task: Task) -> Exact:
    """The exact posterior of a task's first measurement, as the run had it."""
    name, options = suite.backbone_of(task)
    model: Any = load_backbone(name, **options)
    truth = drawn_from_prior(getattr(model, "prior", model), 1, suite.image_seed).float()
    operator, image = task.build(model.image_shape, [0]), suite.images_of(task, [])[0]
    y = operator.measure(truth, task.sigma_y, [measurement_seed(task.name, image)])
    found = posteriors(suite, task, model, operator, truth, y, [image])
    assert found is not None
    return found[0]


def _exact_draws(exact: list[Exact] | None, batch: Batch, n: int, value_range: tuple[float, float]) -> Solution:
    """Draws of the exact posteriors in the place of a sampler's: what no sampler can beat."""
    assert exact is not None
    started = time.perf_counter()
    x = torch.cat([e.sample(n, "floor", cell.seed) for e, cell in zip(exact, batch.cells, strict=True)])
    settings = {"sampler": EXACT, "n_samples": n}
    return Solution(x, 0, time.perf_counter() - started, [], settings, x[:1], n_samples=n, value_range=value_range)


def most_at_once(model: Backbone, wanted: int) -> int:
    """How many of `wanted` restorations are run in one batch."""
    return max(1, min(wanted, _SAMPLES_AT_ONCE, NUMBERS_AT_ONCE // torch.Size(model.image_shape).numel()))


def failed(batch: Batch, task: Task, entry: SamplerEntry, error: str) -> list[Record]:
    """The records of cells that came to nothing."""
    return [
        Record(
            cell_key(task.name, entry.label, cell.image, cell.seed),
            task.name,
            task.operator,
            task.sigma_y,
            entry.label,
            {"sampler": entry.name, **entry.on(task)},
            cell.image,
            cell.seed,
            status="failed",
            error=error,
        )
        for cell in batch.cells
    ]


def _record(
    task: Task,
    entry: SamplerEntry,
    cell: Cell,
    operator: str,
    solution: Solution,
    cells: int,
    memory: float | None,
    metrics: dict[str, float | None],
    file: str | None,
) -> Record:
    settings = {k: v for k, v in solution.settings.items() if k not in _ASIDE and (k, v) != ("n_samples", 1)}
    common = (cell_key(task.name, entry.label, cell.image, cell.seed), task.name, operator, task.sigma_y, entry.label)
    if entry.name == EXACT:
        return Record(*common, settings, cell.image, cell.seed, metrics=metrics, file=file)
    return Record(
        *common,
        settings,
        cell.image,
        cell.seed,
        nfe=solution.nfe,
        vjps=solution.vjps,
        forward_equivalents=forward_equivalents(solution.nfe, solution.vjps),
        seconds=solution.seconds / cells,
        peak_memory=memory,
        metrics=metrics,
        file=file,
    )


def measurement_seed(task: str, image: str) -> int:
    """Seed of the measurement's noise: of the task and the image alone, so that every sampler gets the same measurement."""
    return positive_seed_of(task, image)


def restoration_seed(image: str, seed: int) -> int:
    """Seed of a restoration: of the image and the cell's seed alone, so that samplers share their noise and images do not."""
    return positive_seed_of(image, seed)


def shown(operator: LinearOperator, y: Tensor, image_shape: Sequence[int]) -> Tensor:
    """A measurement as a picture, (B, C, H, W) in [0, 1]: itself where it is one, else its pseudo-inverse."""
    if tuple(y.shape[1:]) == tuple(image_shape):
        return y
    return operator.pinv(y, tuple(image_shape))


@contextmanager
def peak_memory(device: torch.device) -> Iterator[list[float | None]]:
    """Peak memory of the GPU within the block, MiB, filled in when it ends; None on a CPU, where only the whole process could be
    asked, which says nothing about a sampler."""
    found: list[float | None] = [None]
    if device.type != "cuda":
        yield found
        return
    torch.cuda.reset_peak_memory_stats(device)
    yield found
    found[0] = torch.cuda.max_memory_allocated(device) / 2**20
