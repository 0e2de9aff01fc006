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
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invdiff.backbones.base import Backbone
from invdiff.bench.run.backbones import Backbones
from invdiff.bench.run.executors import EXECUTORS, outcomes, parse_shard, shard_of
from invdiff.bench.run.images import image_names, picture, prepare_images, read_truths
from invdiff.bench.run.store import GroupRecord, Record, Run, truth_file
from invdiff.bench.run.worker import NUMBERS_AT_ONCE, Batch, Cell, Outcome, Worker, WorkerSpec
from invdiff.bench.suite.suite import EXACT, PRIOR, Suite, load_suite
from invdiff.checks import one_of
from invdiff.errors import InvdiffError
from invdiff.images import from_pil
from invdiff.metrics import Metric, Unavailable, forward_equivalents, get_metric

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
    baselines: bool = False,
    **options: Any,
) -> Run:
    """`invdiff bench`: a suite by name or path, changed as asked, run.

    Args:
        suite: a name of `suite_names`, the path of a TOML file, or a `Suite`.
        out: the run folder, ``runs/NAME`` by default.
        samplers, images, seeds, n_images, metrics: see `Suite.override`.
        backbone: name, path or object.
        baselines: add every classical method to the tasks that it is for; see `Suite.with_baselines`.
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
    if baselines:
        models = Backbones(chosen, options.get("backbone"), options.get("device", "auto"), options.get("precision"))
        chosen = chosen.with_baselines(lambda task: models.of(task).image_shape)
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
    one_of("executor", executor, EXECUTORS)
    if backbone is not None:
        suite = replace(suite, backbone=backbone.name)
    run = _opened(suite, out, resume)
    names = image_names(suite)
    backbones = Backbones(suite, backbone, device, precision)
    check_runs(suite, backbones)
    run = _begun(run, suite, out, names, backbones, part)
    if suite.uses_images:
        prepare_images(run, suite, names, backbones.of())
    truths = read_truths(run, names)

    done = run.finished_cells()
    if retry_failed:
        done -= {record.cell for record in run.records() if not record.ok}
    batches = shard_of(plan(suite, names, backbones), part)
    todo = [batch for batch in batches if not done.issuperset(batch.keys)]
    used = {name for task in suite.tasks for name in suite.metrics_of(task)}
    metrics = tuple(get_metric(name) for name in sorted(used))
    spec = WorkerSpec(suite, backbone, truths.numpy(), device, precision, metrics=metrics)
    worker = Worker(suite, backbones, truths) if executor == "local" else None
    with _display(suite, backbones, batches, todo, progress) as shown:
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
            for file, content in outcome.files.items():
                run.save(file, content)
            run.write(outcome.records, outcome.unavailable)
            shown(outcome)
            if on_batch is not None:
                on_batch(outcome)
    finish(run)
    return run


def failures(run: Run) -> str:
    """What to say of a run's failed cells, in a line; empty where there are none."""
    failed = [record for record in run.records() if not record.ok]
    if not failed:
        return ""
    (error, n), *others = Counter(str(record.error) for record in failed).most_common()
    more = f", and {len(others)} other errors" if others else ""
    return f"{len(failed)} of {len(run.records())} cells failed ({n} with: {error}{more}); --resume --retry-failed tries again"


def check_runs(suite: Suite, backbones: Backbones) -> None:
    """Refuse what can be known to fail, before the first cell: a mask of another size, a path that doesn't fit the number of
    steps, more steps than the schedule has, a posterior that is not known.

    Raises:
        InvdiffError: with the task and the sampler.
    """
    for task in suite.tasks:
        try:
            model = backbones.of(task)
            prior = getattr(model, "prior", model)
            if suite.measurements_of(task) and not hasattr(prior, "prior_sample"):
                raise InvdiffError(
                    f"measurements must be 0 with backbone {model.name!r}, whose prior is not known, got "
                    f"{suite.measurements_of(task)}"
                )
            if suite.measurements_of(task) and suite.value_range != (-1.0, 1.0):
                raise InvdiffError(
                    f"value_range must be [-1, 1], that of the prior, where measurements > 0; got {list(suite.value_range)}"
                )
            operator = task.build(model.image_shape, [0])
            operator(torch.zeros(1, *model.image_shape))
        except Exception as error:
            raise InvdiffError(f"task {task.name!r} cannot be run: {error}") from None
        for entry in suite.samplers:
            if not entry.runs_on(task):
                continue
            try:
                if entry.name != EXACT:
                    entry.cost(task, model.image_shape, model.schedule)
                elif not hasattr(prior, "posterior") or not suite.measurements_of(task):
                    raise InvdiffError(f"{EXACT!r} needs measurements of a prior whose posterior is known")
            except InvdiffError as error:
                raise InvdiffError(f"sampler {entry.label!r} cannot be run on task {task.name!r}: {error}") from None


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
        for key, what in (("backbone", "backbone"), ("backbones", "backbone"), ("images", "list of images")):
            mine, other = (_without_place(r.get(key)) for r in (info, run.info))
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
    total = sum(len(suite.images_of(task, names)) for task, _ in suite.pairs()) * len(suite.seeds)
    sessions = [session for run in runs for session in run.info.get("sessions", [])]
    merged = Run.create(
        out, suite, {**info, "shard": None, "sessions": sessions, "missing": total - len(records), "merged": len(runs)}
    )
    for run in runs:
        for file in run.files():
            target = merged.folder / file
            if (run.folder / file).is_file() and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(run.folder / file, target)
        merged.write([], run.unavailable)
    merged.write(records.values())
    finish(merged)
    return merged


# ---- the grid ----------------------------------------------------------------------------------------------------


def plan(suite: Suite, names: Sequence[str], backbones: Backbones) -> list[Batch]:
    """Every cell of the grid, in batches: by task, sampler, image, seed. Depends on its arguments only.

    Args:
        suite: the grid.
        names: of the suite's images.
        backbones: whose size of image sets the batch size where the suite gives none.
    """
    grid: list[tuple[str, str, tuple[Cell, ...]]] = []
    for task, entry in suite.pairs():
        images = suite.images_of(task, names)
        cells = [Cell(number, name, seed) for number, name in enumerate(images) for seed in suite.seeds]
        numbers = torch.Size(backbones.of(task).image_shape).numel() * suite.n_samples_of(task)
        size = suite.batch_size or max(1, NUMBERS_AT_ONCE // numbers)
        grid += [(task.name, entry.label, tuple(cells[i : i + size])) for i in range(0, len(cells), size)]
    return [Batch(number, *row) for number, row in enumerate(grid)]


def cost(suite: Suite, backbones: Backbones) -> dict[tuple[str, str], tuple[int, float]]:
    """Network calls and forward equivalents per image of every (task, sampler label), known before a run."""
    found: dict[tuple[str, str], tuple[int, float]] = {}
    for task, entry in suite.pairs():
        found[task.name, entry.label] = (0, 0.0)
        if entry.name != EXACT:
            model = backbones.of(task)
            price = entry.cost(task, model.image_shape, model.schedule)
            found[task.name, entry.label] = (price.calls, forward_equivalents(price.calls, price.vjps))
    return found


# ---- the beginning and the end -----------------------------------------------------------------------------------


def _opened(suite: Suite, out: str | Path, resume: bool) -> Run | None:
    """The run that is in `out`, if it may be gone on with."""
    if not Run.exists(out):
        return None
    if not resume:
        raise InvdiffError(
            f"{str(out)!r} holds a run already. Go on with it (--resume, resume=True), take another folder, or delete it"
        )
    run = Run.open(out)
    if different := run.suite.differences(suite):
        raise InvdiffError(
            f"{str(out)!r} holds a run of another suite: {', '.join(different)} differ. Resume with the suite it was "
            f"started with ({run.folder / 'suite.toml'}), or take another folder"
        )
    return run


def _begun(
    run: Run | None, suite: Suite, out: str | Path, names: list[str], backbones: Backbones, part: tuple[int, int] | None
) -> Run:
    """A new run, or the old one with this start noted."""
    session = session_details()
    own = {task.name: backbones.described(task) for task in suite.tasks if task.backbone is not None}
    described = backbones.described(None if suite.uses_images or not own else suite.tasks[0])
    if run is None:
        from invdiff import __version__

        info = {
            "invdiff": __version__,
            "suite": suite.name,
            "backbone": described,
            "backbones": own,
            "images": names,
            "images_from_prior": suite.images == PRIOR,
            "seeds": list(suite.seeds),
            "shard": None if part is None else f"{part[0]}/{part[1]}",
            "started": session["started"],
            "sessions": [session],
        }
        return Run.create(out, suite, info)
    info = run.info
    for before, after in [(info["backbone"], described), *((info["backbones"].get(k, v), v) for k, v in own.items())]:
        for key, what in (("sha256", "weights"), ("image_shape", "image size"), ("precision", "precision")):
            if before[key] != after[key]:
                raise InvdiffError(
                    f"{run.folder} was started with a backbone of other {what} ({before[key]}, now {after[key]}); "
                    "results of the two don't belong in one table. Take another folder"
                )
    if info["images"] != names:
        raise InvdiffError(f"the images in {suite.images!r} are not those that {run.folder} was started with")
    run.clear_temporary()
    run.write_info({**info, "sessions": [*info["sessions"], session]})
    return run


def finish(run: Run) -> None:
    """Compute the metrics over seeds and over sets, and note the end in ``run.json``. Reads the pictures of the run."""
    suite, names = run.suite, run.info["images"]
    groups: list[GroupRecord] = []
    cells: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in run.records():
        if record.ok:
            cells[record.task, record.sampler].append(record)
    for (task, sampler), records in cells.items():
        about = ("samples", "set", "records") if suite.n_samples_of(suite.task(task)) == 1 else ("set", "records")
        metrics = [m for m in map(get_metric, suite.metrics_of(suite.task(task))) if m.scope in about]
        pictures = any(m.scope != "records" for m in metrics) and all(record.file for record in records)
        restored = [from_pil(picture(run, str(record.file))) for record in records] if pictures else []
        for metric in metrics:
            if metric.scope == "records":
                groups.append(GroupRecord(task, sampler, "", metric.name, *_value(metric, records)))
                continue
            chosen = [""] if metric.scope == "set" else list(dict.fromkeys(record.image for record in records))
            for image in chosen:
                own = [x for x, record in zip(restored, records, strict=False) if image in ("", record.image)]
                true = (
                    [from_pil(picture(run, truth_file(name))) for name in (names if image == "" else [image])]
                    if own
                    else []
                )
                value, reason = _group(metric, own, true)
                groups.append(GroupRecord(task, sampler, image, metric.name, value, reason))
    run.write_groups(groups)
    run.write([], {g.metric: g.reason for g in groups if g.reason})
    info = run.info
    run.write_info({**info, "finished": now()})


def _group(metric: Metric, restored: list[Tensor], truths: list[Tensor]) -> tuple[float | None, str | None]:
    """The metric of several restorations, or why it isn't to be had."""
    if not restored:
        return None, "needs pictures"
    if "posterior" in metric.needs:
        return None, "needs n_samples > 1"
    if len({x.shape for x in (*restored, *truths)}) > 1:
        return None, "needs pictures of one size"
    truth = truths[0] if metric.scope == "samples" else torch.stack(truths)
    return _value(metric, torch.stack(restored), *([truth] if "reference" in metric.needs else []))


def _value(metric: Metric, *given: Any) -> tuple[float | None, str | None]:
    reason = metric.reason()
    if reason is None:
        assert metric.function is not None
        try:
            return float(metric.function(*given)), None
        except (Unavailable, ValueError, RuntimeError) as error:
            reason = str(error)
    return None, reason


def _comparable(record: Record) -> Record:
    """Without what differs from one run to the next: time and memory."""
    return replace(record, seconds=None, peak_memory=None)


def _without_place(value: Any) -> Any:
    return {k: _without_place(v) for k, v in value.items() if k != "device"} if isinstance(value, dict) else value


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
    suite: Suite, backbones: Backbones, batches: Sequence[Batch], todo: Sequence[Batch], show: bool | None
) -> Iterator[Callable[[Outcome], None]]:
    """Cells done, time left (by the known cost of what is left), and the best PSNR of the task so far."""
    if not (sys.stderr.isatty() if show is None else show):
        yield lambda outcome: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    prices = cost(suite, backbones)
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
