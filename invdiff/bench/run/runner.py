"""From a suite to a run folder: the grid in a fixed order, every finished batch written at once, and on again after a stop."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shlex
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invdiff.backbones.base import Backbone
from invdiff.bench.run.executors import EXECUTORS, outcomes, parse_shard, shard_of
from invdiff.bench.run.images import image_names, picture, prepare_images, read_truths
from invdiff.bench.run.store import GroupRecord, Record, Run, measured_file, truth_file
from invdiff.bench.run.worker import (
    Batch,
    Cell,
    Outcome,
    Worker,
    WorkerSpec,
    as_picture,
    fingerprint,
    place_backbone,
)
from invdiff.bench.suite.suite import PRIOR, Suite, load_suite
from invdiff.errors import InvdiffError, near_match
from invdiff.images import from_pil
from invdiff.metrics import Metric, Unavailable, forward_equivalents, get_metric

_NUMBERS_PER_BATCH = 2**19  # as in `solve`: 42 images of 64x64, 2 of 256x256
_PACKAGES = ("torch", "torchvision", "diffusers", "numpy", "scipy", "scikit-image", "lpips", "torch-fidelity", "ray")


# ---- what the command line calls ---------------------------------------------------------------------------------


def bench(
    suite: str | Path | Suite = "quick",
    out: str | Path | None = None,
    *,
    samplers: str | Sequence[str] | None = None,
    images: str | Path | None = None,
    backbone: str | Path | Backbone | None = None,
    seeds: int | Sequence[int] | None = None,
    n_images: int | None = None,
    metrics: str | Sequence[str] | None = None,
    **options: Any,
) -> Run:
    """`invdiff bench`: a suite by name or path, changed as asked, run.

    Args:
        suite: a name of `suite_names`, the path of a TOML file, or a `Suite`.
        out: the run folder, ``runs/NAME`` by default.
        samplers, images, seeds, n_images, metrics: see `Suite.override`.
        backbone: name, path or object.
        **options: see `run_suite`.

    Returns:
        The run.

    Raises:
        InvdiffError: before anything is computed, for mistakes in what was asked.
    """
    chosen = suite if isinstance(suite, Suite) else load_suite(suite)
    by_name = None if isinstance(backbone, Backbone) else backbone
    chosen = chosen.override(
        samplers=samplers, images=images, backbone=by_name, seeds=seeds, n_images=n_images, metrics=metrics
    )
    if isinstance(backbone, Backbone):
        options["backbone"] = backbone
    return run_suite(chosen, Path("runs") / chosen.name if out is None else out, **options)


def run_suite(
    suite: Suite,
    out: str | Path,
    *,
    resume: bool = False,
    shard: str | tuple[int, int] | None = None,
    executor: str = "local",
    workers: int | None = None,
    address: str | None = None,
    gpus_per_worker: float | None = None,
    backbone: Backbone | None = None,
    device: str | None = "auto",
    precision: str | None = None,
    retry_failed: bool = False,
    progress: bool | None = None,
    on_batch: Callable[[Outcome], Any] | None = None,
) -> Run:
    """Run a suite, or go on with it.

    A cell depends on the suite, the backbone and the hardware only: a run that was stopped and resumed, or split into
    shards and merged, holds the same numbers as one that ran through (time and memory apart).

    Args:
        suite: what is run.
        out: the run folder.
        resume: go on with the run in `out` if there is one; what is there is kept.
        shard: ``"i/n"``: run the i-th of n parts; `merge_runs` puts the folders of the parts together.
        executor: ``"local"``, or ``"ray"`` with `workers`, `address` and `gpus_per_worker` as in `executors.outcomes`.
        backbone: an object to be used instead of the suite's name.
        device: where the backbone runs; ``"auto"`` takes a GPU where there is one.
        precision: of the network, see `load_backbone`.
        retry_failed: run the failed cells of the run again.
        progress: show a bar; by default on a terminal.
        on_batch: called with every `Outcome` after it was written.

    Returns:
        The run.

    Raises:
        InvdiffError: there is a run in `out` and `resume` isn't set, or it is of another suite or backbone; unknown
            executor; images that cannot be read.
    """
    part = parse_shard(shard)
    if executor not in EXECUTORS:
        raise InvdiffError(
            f"unknown executor {executor!r}; one of {', '.join(EXECUTORS)}.{near_match(executor, EXECUTORS)}"
        )
    if backbone is not None:
        suite = replace(suite, backbone=backbone.name)
    run = _opened(suite, out, resume)
    names = image_names(suite)
    model = place_backbone(suite.backbone if backbone is None else backbone, device, precision, suite.backbone_options)
    run = _begun(run, suite, out, names, model, part)
    prepare_images(run, suite, names, model)
    truths = read_truths(run, names)

    done = run.finished_cells()
    if retry_failed:
        done -= {record.cell for record in run.records() if not record.ok}
    batches = shard_of(plan(suite, names, model.image_shape), part)
    todo = [batch for batch in batches if not done.issuperset(batch.keys)]
    source = suite.backbone if backbone is None else backbone
    spec = WorkerSpec(suite, source, truths.numpy(), device, precision)
    worker = Worker(suite, model, truths) if executor == "local" else None
    with _display(suite, model, batches, todo, progress) as shown:
        results = outcomes(
            executor,
            spec,
            todo,
            worker=worker,
            workers=workers,
            address=address,
            gpus_per_worker=gpus_per_worker,
        )
        for outcome in results if todo else ():
            for file, pixels in outcome.pictures.items():
                run.save_image(file, as_picture(pixels))
            run.write(outcome.records, outcome.unavailable)
            shown(outcome)
            if on_batch is not None:
                on_batch(outcome)
    finish(run)
    return run


def merge_runs(folders: Sequence[str | Path], out: str | Path) -> Run:
    """`invdiff merge`: the shards of a run in one folder.

    Args:
        folders: runs of one suite with one backbone on the same images.
        out: the new run folder.

    Returns:
        The run. ``run.info["missing"]`` counts the cells that no shard had.

    Raises:
        InvdiffError: the suites, backbones or images differ, or two shards hold different results for a cell.
    """
    runs = [Run.open(folder) for folder in folders]
    if not runs:
        raise InvdiffError("merge needs at least one run folder")
    first = runs[0]
    suite, info = first.suite, first.info
    names = info["images"]
    for run in runs[1:]:
        if different := suite.differences(run.suite):
            raise InvdiffError(
                f"{run.folder} is not of the same suite as {first.folder}: {', '.join(different)} differ"
            )
        for key, what in (("backbone", "backbone"), ("images", "list of images")):
            mine, other = (_without_place(r[key]) for r in (info, run.info))
            if mine != other:
                raise InvdiffError(f"{run.folder} has another {what} than {first.folder}: {other}, not {mine}")
        for name in names:
            if run.truth(name) != first.truth(name):
                raise InvdiffError(
                    f"the true image {name!r} of {run.folder} is not that of {first.folder}. Images that are drawn from "
                    "a network come out differently on other hardware: run the shards with --images "
                    f"{first.folder / 'images' / 'truth'}"
                )
    records: dict[str, Record] = {}
    for run in runs:
        for record in run.records():
            other = records.setdefault(record.cell, record)
            if _comparable(other) != _comparable(record):
                raise InvdiffError(f"two of the runs hold different results for the cell {record.cell!r}")
    total = len(suite.tasks) * len(suite.samplers) * len(names) * len(suite.seeds)
    sessions = [session for run in runs for session in run.info.get("sessions", [])]
    merged = Run.create(
        out, suite, {**info, "shard": None, "sessions": sessions, "missing": total - len(records), "merged": len(runs)}
    )
    for run in runs:
        files = [truth_file(n) for n in names] + [measured_file(t.name, n) for t in suite.tasks for n in names]
        files += [record.file for record in run.records() if record.file]
        for file in files:
            target = merged.folder / file
            if (run.folder / file).is_file() and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(run.folder / file, target)
        merged.write([], run.unavailable)
    merged.write(records.values())
    finish(merged)
    return merged


# ---- the grid ----------------------------------------------------------------------------------------------------


def plan(suite: Suite, names: Sequence[str], image_shape: Sequence[int]) -> list[Batch]:
    """Every cell of the grid, in batches: by task, sampler, image, seed. Depends on its arguments only.

    Args:
        suite: the grid.
        names: of the images.
        image_shape: (C, H, W), from which the batch size follows where the suite gives none.
    """
    size = suite.batch_size or max(1, _NUMBERS_PER_BATCH // torch.Size(image_shape).numel())
    cells = [Cell(number, name, seed) for number, name in enumerate(names) for seed in suite.seeds]
    groups = [tuple(cells[i : i + size]) for i in range(0, len(cells), size)]
    grid = [(task.name, entry.label, group) for task in suite.tasks for entry in suite.samplers for group in groups]
    return [Batch(number, *row) for number, row in enumerate(grid)]


def cost(suite: Suite, backbone: Backbone) -> dict[tuple[str, str], tuple[int, float]]:
    """Network calls and forward equivalents per image of every (task, sampler label), known before a run.

    A pair whose path doesn't fit its number of steps (it will fail) costs nothing.
    """
    found = {}
    for task in suite.tasks:
        for entry in suite.samplers:
            calls, equivalents = 0, 0.0
            with suppress(InvdiffError):
                price = entry.cost(task, backbone.image_shape, backbone.schedule)
                calls, equivalents = price.calls, forward_equivalents(price.calls, price.vjps)
            found[task.name, entry.label] = (calls, equivalents)
    return found


# ---- the beginning and the end -----------------------------------------------------------------------------------


def _opened(suite: Suite, out: str | Path, resume: bool) -> Run | None:
    """The run that is in `out`, if it may be gone on with."""
    try:
        run = Run.open(out)
    except InvdiffError:
        return None
    if not resume:
        raise InvdiffError(
            f"{str(out)!r} holds a run already. Go on with it (--resume, resume=True), take another folder, or delete it"
        )
    if different := run.suite.differences(suite):
        raise InvdiffError(
            f"{str(out)!r} holds a run of another suite: {', '.join(different)} differ. Resume with the suite it was "
            f"started with ({run.folder / 'suite.toml'}), or take another folder"
        )
    return run


def _begun(
    run: Run | None, suite: Suite, out: str | Path, names: list[str], model: Backbone, part: tuple[int, int] | None
) -> Run:
    """A new run, or the old one with this start noted."""
    session = session_details()
    described = {
        "name": model.name,
        "sha256": fingerprint(model),
        "image_shape": list(model.image_shape),
        "precision": getattr(model, "precision", str(model.dtype).removeprefix("torch.")),
        "device": str(model.device),
    }
    if run is None:
        from invdiff import __version__

        info = {
            "invdiff": __version__,
            "suite": suite.name,
            "backbone": described,
            "images": names,
            "images_from_prior": suite.images == PRIOR,
            "seeds": list(suite.seeds),
            "shard": None if part is None else f"{part[0]}/{part[1]}",
            "started": session["started"],
            "sessions": [session],
        }
        return Run.create(out, suite, info)
    info = run.info
    for key, what in (("sha256", "weights"), ("image_shape", "image size"), ("precision", "precision")):
        if info["backbone"][key] != described[key]:
            raise InvdiffError(
                f"{run.folder} was started with a backbone of other {what} ({info['backbone'][key]}, now "
                f"{described[key]}); results of the two don't belong in one table. Take another folder"
            )
    if info["images"] != names:
        raise InvdiffError(f"the images in {suite.images!r} are not those that {run.folder} was started with")
    run.clear_temporary()
    run.write_info({**info, "sessions": [*info["sessions"], session]})
    return run


def finish(run: Run) -> None:
    """Compute the metrics over seeds and over sets, and note the end in ``run.json``. Reads the pictures of the run."""
    suite, names = run.suite, run.info["images"]
    metrics = [m for m in map(get_metric, suite.metrics) if m.needs in ("samples", "set")]
    reasons = {m.name: m.reason() for m in metrics}
    groups: list[GroupRecord] = []
    if metrics:
        cells: dict[tuple[str, str], list[Record]] = defaultdict(list)
        for record in run.records():
            if record.ok:
                cells[record.task, record.sampler].append(record)
        for (task, sampler), records in cells.items():
            restored = [from_pil(picture(run, str(record.file))) for record in records]
            for metric in metrics:
                chosen = [""] if metric.needs == "set" else list(dict.fromkeys(record.image for record in records))
                for image in chosen:
                    own = [x for x, record in zip(restored, records, strict=True) if image in ("", record.image)]
                    true = _truth(run, names if image == "" else [image])
                    value, reason = _group(metric, reasons[metric.name], own, true)
                    groups.append(GroupRecord(task, sampler, image, metric.name, value, reason))
    run.write_groups(groups)
    run.write([], {g.metric: g.reason for g in groups if g.reason})
    info = run.info
    run.write_info({**info, "finished": now()})


def _truth(run: Run, names: Sequence[str]) -> list[Tensor]:
    return [from_pil(picture(run, truth_file(name))) for name in names]


def _group(
    metric: Metric, reason: str | None, restored: list[Tensor], truths: list[Tensor]
) -> tuple[float | None, str | None]:
    """The metric of several restorations, or why it isn't to be had."""
    if reason is None and len({x.shape for x in (*restored, *truths)}) > 1:
        reason = "needs pictures of one size"
    if reason is None:
        assert metric.function is not None
        truth = truths[0] if metric.needs == "samples" else torch.stack(truths)
        try:
            return float(metric.function(torch.stack(restored), truth)), None
        except (Unavailable, ValueError, RuntimeError) as error:
            reason = str(error)
    return None, reason


def _comparable(record: Record) -> Record:
    """Without what differs from one run to the next: time and memory."""
    return replace(record, seconds=None, peak_memory=None)


def _without_place(value: Any) -> Any:
    return {k: v for k, v in value.items() if k != "device"} if isinstance(value, dict) else value


def now() -> str:
    """The time, UTC, ISO 8601."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def session_details() -> dict[str, Any]:
    """How and where this start was made. No names of machines or users."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "started": now(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": versions,
        "hardware": {
            "system": f"{platform.system()} {platform.machine()}",
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
    }


def _processor() -> str:
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith("model name")).split(":", 1)[1].strip()
    return platform.processor()


# ---- progress ----------------------------------------------------------------------------------------------------


@contextmanager
def _display(
    suite: Suite, model: Backbone, batches: Sequence[Batch], todo: Sequence[Batch], show: bool | None
) -> Iterator[Callable[[Outcome], None]]:
    """Cells done, time left (by the known cost of what is left), and the best sampler of the task so far."""
    if not (sys.stderr.isatty() if show is None else show):
        yield lambda outcome: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    prices = cost(suite, model)
    left = sum(prices[b.task, b.sampler][1] * len(b.cells) for b in todo)
    spent, began, problems = 0.0, time.perf_counter(), 0
    scores: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    total = sum(len(b.cells) for b in batches)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        ready = total - sum(len(b.cells) for b in todo)
        line = bar.add_task(suite.name, total=total, completed=ready, note="")

        def on(outcome: Outcome) -> None:
            nonlocal spent, left, problems
            batch = outcome.batch
            price = prices[batch.task, batch.sampler][1] * len(batch.cells)
            spent, left = spent + price, left - price
            problems += sum(not record.ok for record in outcome.records)
            scores[batch.task][batch.sampler] += [
                value for record in outcome.records if (value := record.metrics.get("psnr")) is not None
            ]
            means = {label: sum(v) / len(v) for label, v in scores[batch.task].items() if v}
            note = f"{_duration(left * (time.perf_counter() - began) / spent)} left" if spent else ""
            if means:
                best = max(means, key=lambda label: means[label])
                note += f", best at {batch.task}: {best} {means[best]:.1f} dB"
            if problems:
                note += f", {problems} failed"
            bar.update(line, advance=len(batch.cells), description=f"{batch.task} · {batch.sampler}", note=note)

        yield on


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
