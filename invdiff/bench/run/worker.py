"""What runs a batch of cells: from the true images to records and pictures. The same code in every executor."""

from __future__ import annotations

import hashlib
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from invdiff.backbones.base import Backbone
from invdiff.backbones.zoo import load_backbone
from invdiff.bench.run.store import Record, cell_key, measured_file, restored_file
from invdiff.bench.suite.suite import SamplerEntry, Suite, Task
from invdiff.errors import InvdiffWarning
from invdiff.images import to_pil
from invdiff.metrics import Unavailable, forward_equivalents, get_metric
from invdiff.operators.base import LinearOperator
from invdiff.solution import Solution
from invdiff.solve import resolve_backbone, solve

_ASIDE = ("operator", "sigma_y", "backbone", "precision", "device", "seed", "n_samples")  # recorded elsewhere


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
        pictures: uint8 arrays (H, W, C) by file, relative to the run folder.
        unavailable: metrics that could not be had, and why.
        process: who ran it.
    """

    batch: Batch
    records: list[Record] = field(default_factory=list)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    process: int = 0


@dataclass(frozen=True)
class WorkerSpec:
    """All that a worker needs, to be sent to another process.

    Attributes:
        suite: what is run.
        backbone: a name or path for `load_backbone`, or the object.
        truths: (N, C, H, W) float32 in [0, 1].
        device: ``"auto"`` is a GPU where there is one.
        precision: of the network; None for its own.
        threads: of the processor; None leaves them alone.
    """

    suite: Suite
    backbone: str | Backbone
    truths: np.ndarray
    device: str | None = "auto"
    precision: str | None = None
    threads: int | None = None

    def build(self) -> Worker:
        """A worker, its backbone loaded."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        backbone = place_backbone(self.backbone, self.device, self.precision, self.suite.backbone_options)
        return Worker(self.suite, backbone, torch.from_numpy(self.truths.copy()))


def place_backbone(
    backbone: str | Backbone,
    device: str | None = "auto",
    precision: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Backbone:
    """The backbone where it shall run: one by name on a GPU if there is one, an object where it is, unless told.

    Args:
        backbone: name, path or object.
        device: ``"auto"``, a torch device, or None for the backbone's own.
        precision: of the network; None for its own.
        options: of the loader, for a backbone by name.
    """
    if isinstance(backbone, str):
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else None
        return load_backbone(backbone, precision=precision or "auto", device=device, **(options or {}))
    return resolve_backbone(backbone, None if device == "auto" else device, precision)


class Worker:
    """Runs batches with one backbone.

    Args:
        suite: what is run.
        backbone: loaded and placed.
        truths: (N, C, H, W) float32 in [0, 1], in the order of the suite's images.
    """

    def __init__(self, suite: Suite, backbone: Backbone, truths: Tensor) -> None:
        self.suite, self.backbone, self.truths = suite, backbone, truths
        self._warm: set[int] = set()
        self._metrics = [m for m in map(get_metric, suite.metrics) if m.needs in ("truth", "measurement")]
        self._reasons = {m.name: reason for m in self._metrics if (reason := m.reason()) is not None}

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
                outcome.pictures.update(part.pictures)
                outcome.unavailable.update(part.unavailable)
            if not parts:
                outcome.records += failed(batch, task, entry, f"{type(error).__name__}: {error}")
        return outcome

    def _restore(self, batch: Batch, task: Task, entry: SamplerEntry, outcome: Outcome) -> None:
        numbers = [cell.number for cell in batch.cells]
        truth = self.truths[numbers]
        operator = task.build(self.backbone.image_shape, numbers)
        y = operator.measure(truth, task.sigma_y, [measurement_seed(task.name, cell.image) for cell in batch.cells])
        self._warm_up(len(numbers))
        with peak_memory(self.backbone.device) as peak, warnings.catch_warnings():
            warnings.simplefilter("ignore", InvdiffWarning)
            solution = solve(
                operator,
                y,
                entry.name,
                backbone=self.backbone,
                sigma_y=task.sigma_y,
                seed=[restoration_seed(cell.image, cell.seed) for cell in batch.cells],
                batch_size=len(numbers),
                progress=False,
                **entry.options,
            )
        metrics = self._judge(solution.x, truth, operator, y, outcome)
        for k, cell in enumerate(batch.cells):
            one = operator[k] if operator.batch_size is not None else operator
            file = restored_file(task.name, entry.label, cell.image, cell.seed)
            outcome.pictures[file] = _pixels(solution.x[k])
            seen = measured_file(task.name, cell.image)
            if seen not in outcome.pictures:
                outcome.pictures[seen] = _pixels(shown(one, y[k : k + 1], self.backbone.image_shape)[0])
            outcome.records.append(_record(batch, task, entry, cell, repr(one), solution, peak[0], metrics[k], file))

    def _judge(
        self, x: Tensor, truth: Tensor, operator: LinearOperator, y: Tensor, outcome: Outcome
    ) -> list[dict[str, float | None]]:
        """The metrics of every restoration, computed before its picture is rounded to 8 bits."""
        found: list[dict[str, float | None]] = [{} for _ in x]
        for metric in self._metrics:
            values: list[float | None] = [None] * len(x)
            reason = self._reasons.get(metric.name)
            if reason is None:
                assert metric.function is not None
                try:
                    given = (x.clamp(0, 1), truth) if metric.needs == "truth" else (x, operator, y)
                    values = [v if np.isfinite(v) else None for v in metric.function(*given).tolist()]
                except (Unavailable, ValueError, RuntimeError) as error:
                    reason = str(error)
            if reason is not None:
                outcome.unavailable[metric.name] = reason
            for one, value in zip(found, values, strict=True):
                one[metric.name] = value
        return found

    def _warm_up(self, size: int) -> None:
        """One network call before the clock runs: the first call at a batch size prepares kernels."""
        if size not in self._warm:
            self._warm.add(size)
            x = torch.zeros(size, *self.backbone.image_shape, device=self.backbone.device, dtype=self.backbone.dtype)
            with suppress(Exception), torch.inference_mode():
                self.backbone.predict(x, 0)


def failed(batch: Batch, task: Task, entry: SamplerEntry, error: str) -> list[Record]:
    """The records of cells that came to nothing."""
    return [
        Record(
            cell_key(task.name, entry.label, cell.image, cell.seed),
            task.name,
            task.operator,
            task.sigma_y,
            entry.label,
            {"sampler": entry.name, **entry.options},
            cell.image,
            cell.seed,
            status="failed",
            error=error,
        )
        for cell in batch.cells
    ]


def _record(
    batch: Batch,
    task: Task,
    entry: SamplerEntry,
    cell: Cell,
    operator: str,
    solution: Solution,
    memory: float,
    metrics: dict[str, float | None],
    file: str,
) -> Record:
    return Record(
        cell_key(task.name, entry.label, cell.image, cell.seed),
        task.name,
        operator,
        task.sigma_y,
        entry.label,
        {k: v for k, v in solution.settings.items() if k not in _ASIDE},
        cell.image,
        cell.seed,
        nfe=solution.nfe,
        vjps=solution.vjps,
        forward_equivalents=forward_equivalents(solution.nfe, solution.vjps),
        seconds=solution.seconds / len(batch.cells),
        peak_memory=memory,
        metrics=metrics,
        file=file,
    )


def measurement_seed(task: str, image: str) -> int:
    """Seed of the measurement's noise: of the task and the image alone, so that every sampler gets the same measurement."""
    digest = hashlib.blake2b(f"{task}/{image}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def restoration_seed(image: str, seed: int) -> int:
    """Seed of a restoration: of the image and the cell's seed alone, so that samplers share their noise and images do not."""
    digest = hashlib.blake2b(f"{image}/{seed}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def shown(operator: LinearOperator, y: Tensor, image_shape: Sequence[int]) -> Tensor:
    """A measurement as a picture, (B, C, H, W) in [0, 1]: itself where it is one, else its pseudo-inverse."""
    if tuple(y.shape[1:]) == tuple(image_shape):
        return y
    return operator.pinv(y, tuple(image_shape))


@contextmanager
def peak_memory(device: torch.device) -> Iterator[list[float]]:
    """Peak memory within the block, MiB, of the GPU or of the process; filled in when the block ends."""
    found = [0.0]
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # Linux: forget the peak so far
            Path("/proc/self/clear_refs").write_text("5")
    yield found
    found[0] = torch.cuda.max_memory_allocated(device) / 2**20 if on_gpu else _process_peak()


def _process_peak() -> float:
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
    with suppress(ImportError):
        import resource

        unit = 2**20 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return 0.0


def _pixels(x: Tensor) -> np.ndarray:
    return np.asarray(to_pil(x))


def as_picture(pixels: np.ndarray) -> Image.Image:
    """A PIL image of `Outcome.pictures`."""
    return Image.fromarray(pixels)


def fingerprint(backbone: Backbone) -> str:
    """SHA-256 of the backbone's parameters, in the precision they run in, by name; ``""`` for a plain callable."""
    tensors: dict[str, Any] = {n: getattr(backbone, n) for n in getattr(backbone, "_parameters", ())}
    for holder in (getattr(backbone, "_original", None), backbone):
        if isinstance(holder, torch.nn.Module):
            tensors = holder.state_dict()
            break
    total = hashlib.sha256()
    for name in sorted(n for n, v in tensors.items() if isinstance(v, Tensor)):
        value = tensors[name].detach().cpu().contiguous()
        total.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        total.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest() if tensors else ""
