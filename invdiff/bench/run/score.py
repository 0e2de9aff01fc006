"""Someone else's restorations in the same store, so that the same report works for them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from invdiff.bench.run.images import Reader, pictures_in
from invdiff.bench.run.runner import finish, now, session_details
from invdiff.bench.run.store import Record, Run, cell_key, measured_file, restored_file, truth_file
from invdiff.bench.suite.suite import SamplerEntry, Suite, Task
from invdiff.errors import InvdiffError
from invdiff.images import from_pil
from invdiff.metrics import METRICS, Unavailable, get_metric

EXTERNAL = "external"
"""Name of the operator, backbone and sampler of results made elsewhere."""

_METRICS = ("psnr", "ssim", "rmse", "lpips", "fid", "kid", "precision", "recall")


def score_folders(
    truth: str | Path,
    restored: str | Path | Mapping[str, str | Path],
    measured: str | Path | None = None,
    out: str | Path = "runs/score",
    *,
    task: str = "scored",
    metrics: tuple[str, ...] = _METRICS,
) -> Run:
    """`invdiff score`: judge restorations that exist.

    Args:
        truth: folder or zip of the true images.
        restored: folder or zip of the restorations, named like the true images (endings may differ); or a folder with one
            such folder per method; or a mapping from a method's label to its folder.
        measured: folder or zip of the measurements as pictures, for the report; same names.
        out: the run folder to be made.
        task: what the report calls it.
        metrics: names of metrics that need the true image or the whole set.

    Returns:
        The run. A restoration of another size than its true image, or one that cannot be read, is a failed cell.

    Raises:
        InvdiffError: nothing to score, a name that has no true image, or a metric that cannot be had without the operator.
    """
    chosen = [get_metric(name) for name in metrics]
    for metric in chosen:
        if not metric.needs <= {"reference", "set"}:
            able = ", ".join(n for n, m in METRICS.items() if m.needs <= {"reference", "set"})
            raise InvdiffError(f"metric must be one that needs pictures only ({able}), got {metric.name!r}")
    truths = pictures_in(truth)
    methods = _methods(restored)
    seen = {} if measured is None else pictures_in(measured)
    for label, pictures in methods.items():
        if unknown := sorted(set(pictures) - set(truths)):
            raise InvdiffError(
                f"{label}: {unknown[0]!r} has no true image of that name in {str(truth)!r} "
                f"({len(unknown)} such); the pictures of both folders must be named alike"
            )
    names = [name for name in truths if any(name in pictures for pictures in methods.values())]
    entries = tuple(SamplerEntry(label, EXTERNAL) for label in methods)
    suite = Suite(
        "score",
        (Task(task, EXTERNAL),),
        entries,
        description=f"Restorations made elsewhere, scored against the pictures in {Path(truth).name}.",
        backbone=EXTERNAL,
        images=str(Path(truth).expanduser().resolve()),
        n_images=len(names),
        metrics=tuple(metrics),
    )
    from invdiff import __version__

    session = session_details()
    info = {
        "invdiff": __version__,
        "suite": suite.name,
        "backbone": {"name": EXTERNAL, "sha256": "", "image_shape": [], "precision": "", "device": ""},
        "images": names,
        "images_from_prior": False,
        "seeds": [0],
        "shard": None,
        "started": now(),
        "sessions": [session],
    }
    run = Run.create(out, suite, info)
    for name in names:
        run.save(truth_file(name), truths[name]())
        if name in seen:
            run.save(measured_file(task, name), seen[name]())
    reasons = {m.name: reason for m in chosen if m.scope == "image" and (reason := m.reason()) is not None}
    for entry in entries:
        pictures = methods[entry.label]
        records = [_scored(run, suite, entry, name, pictures[name], reasons) for name in names if name in pictures]
        run.write(records, reasons)
    finish(run)
    return run


def _scored(run: Run, suite: Suite, entry: SamplerEntry, name: str, reader: Reader, reasons: dict[str, str]) -> Record:
    """The cell of one restoration; adds to `reasons` what could not be had."""
    task = suite.tasks[0].name
    key = cell_key(task, entry.label, name, 0)
    blank = Record(key, task, EXTERNAL, 0.0, entry.label, {"sampler": EXTERNAL}, name, 0)
    try:
        image, truth = reader(), run.truth(name)
        assert truth is not None
        if image.size != truth.size:
            wrong = f"{image.width} x {image.height} pixels, the true image {truth.width} x {truth.height}"
            raise InvdiffError(f"the restoration has {wrong}")
        if image.mode != truth.mode:
            image = image.convert(truth.mode)
    except InvdiffError as error:
        return Record(**{**vars(blank), "status": "failed", "error": str(error)})
    file = restored_file(task, entry.label, name, 0)
    run.save(file, image)
    x, true = from_pil(image)[None], from_pil(truth)[None]
    values: dict[str, float | None] = {}
    for metric in map(get_metric, suite.metrics):
        if metric.scope != "image":
            continue
        values[metric.name] = None
        if metric.name not in reasons:
            assert metric.function is not None
            try:
                value = metric.function(x, true)
                values[metric.name] = float(value) if bool(torch.isfinite(value)) else None
            except (Unavailable, ValueError, RuntimeError) as error:
                reasons[metric.name] = str(error)
    return Record(**{**vars(blank), "metrics": values, "file": file})


def _methods(restored: str | Path | Mapping[str, str | Path]) -> dict[str, dict[str, Reader]]:
    """The pictures of every method, by its label."""
    if isinstance(restored, Mapping):
        return {label: pictures_in(folder) for label, folder in restored.items()}
    path = Path(restored).expanduser()
    if path.is_dir():
        folders = sorted((f for f in os.scandir(path) if f.is_dir() and f.name[0] != "."), key=lambda f: f.name)
        loose = [f for f in os.scandir(path) if f.is_file() and not f.name.startswith(".")]
        if folders and not loose:
            return {f.name: pictures_in(f.path) for f in folders}
    return {path.stem if path.suffix == ".zip" else path.resolve().name: pictures_in(path)}
