#!/usr/bin/env python3
"""Which sampler for which job: single restorations of 64 held-out cats, with intervals, and the time to quality.

    python benchmarks/which_sampler.py --data FOLDER --minutes 10     as much as fits; the same command goes on from there
    python benchmarks/which_sampler.py                                a summary of what is there

`FOLDER` holds ``cats64.zip``. Pictures of its ``val/`` are in no training of the backbone. Every sampler of the page *Which
sampler* restores the same measurements once, at its own settings or at the budget that its label names, eight pictures at a
time, by OpenVINO in bfloat16 where no gradient is asked for. Samplers with a gradient, several times as dear, get the first 32
pictures and the longest of the others the first 40; they are compared with the others on those. Everything does the first
sixteen before anything goes on: wherever it is stopped, there is a table. Written: ``which_sampler.json``,
of which the pages make their tables; the scores of every picture stay in ``--work``.

Per picture: PSNR; SSIM; *detail*, the mean step between neighbouring pixels over that of the truth (a mean of many answers is near
and blurred: high PSNR, little detail); *misfit* of A x and y; and where half is missing the *seam*, the mean step across the border
over that of the truth. Clock: processor time of this process, one thread.
"""

from __future__ import annotations

import argparse
import io
import json
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from invdiff import (
    Blur,
    Colorization,
    InvdiffWarning,
    LinearOperator,
    Mask,
    SuperResolution,
    load_backbone,
    make_mask,
    solve,
)
from invdiff.bench.report.statistics import bootstrap_interval
from invdiff.files import atomic_write
from invdiff.images import from_pil
from invdiff.metrics import forward_equivalents, misfit, psnr, ssim
from invdiff.operators.blur import gaussian_kernel

Row = dict[str, Any]
COUNT, SOME, FEW, FIRST, CHUNK, NEAR = 64, 40, 32, 16, 8, 0.5

TASKS: dict[str, tuple[Callable[[], LinearOperator], float]] = {
    "half missing": (lambda: Mask(make_mask("half", 64)), 0.0),
    "strokes missing": (lambda: Mask(make_mask("wide", 64, seed=3)), 0.0),
    "colorization": (Colorization, 0.0),
    "super-resolution x4": (lambda: SuperResolution(4, "box"), 0.0),
    "super-resolution x4, noise": (lambda: SuperResolution(4, "box"), 0.05),
    "blur, noise": (lambda: Blur(gaussian_kernel(9, 1.6)), 0.05),
}
HALF, STROKES, COLOUR, ENLARGE, NOISY, BLUR = TASKS
MASKS, CLEAN = (HALF, STROKES), (HALF, STROKES, COLOUR, ENLARGE)
SHORT = {"jump_length": 5}

METHODS: tuple[tuple[str, str, dict[str, Any], tuple[str, ...]], ...] = (
    ("pseudo-inverse", "", {}, tuple(TASKS)),
    ("none named", "auto", {}, tuple(TASKS)),
    ("ddnm+ eta=1, 50 steps", "ddnm+", {"steps": 50, "eta": 1.0, "spacing": "logsnr"}, MASKS),
    ("ddnm+ eta=1, 30 steps", "ddnm+", {"steps": 30, "eta": 1.0, "spacing": "logsnr"}, tuple(TASKS)[2:]),
    ("ddrm", "ddrm", {}, tuple(TASKS)),
    ("ddnm, 20 steps", "ddnm", {"steps": 20}, (*CLEAN, NOISY)),
    ("ddnm", "ddnm", {}, CLEAN),
    ("ddnm+, 20 steps", "ddnm+", {"steps": 20}, (NOISY, BLUR)),
    ("ddnm+", "ddnm+", {}, (NOISY, BLUR)),
    ("diffpir, 20 steps", "diffpir", {"steps": 20}, tuple(TASKS)),
    ("diffpir", "diffpir", {}, (COLOUR, ENLARGE, NOISY, BLUR)),  # for masks 20 steps are its own
    ("replacement, 50 steps", "replacement", {"steps": 50}, MASKS),
    ("repaint, 50 calls", "repaint", {"steps": 20, "jump_n_sample": 3, **SHORT}, MASKS),
    ("repaint, 230 calls", "repaint", {"steps": 50, "jump_n_sample": 5, **SHORT}, MASKS),
    ("mmps, 10 steps", "mmps", {"steps": 10, "iterations": 1}, tuple(TASKS)),
    ("pigdm, 20 steps", "pigdm", {"steps": 20}, tuple(TASKS)),
    ("dps, 50 steps", "dps", {"steps": 50}, (HALF, NOISY)),
    ("mcg, 50 steps", "mcg", {"steps": 50}, (HALF,)),
)
"""(label, sampler, options of `solve`, tasks). A label that is a sampler's name: its own settings. The 2,410 calls of
RePaint's own, DPS' and MCG's 1,000 steps and PiGDM's 100 with a gradient are beyond the budget of this page."""


DEAR = tuple(m for m in METHODS if m[1] in ("mmps", "pigdm", "dps", "mcg", "auto"))
LONG = tuple(m for m in METHODS if m[0] in ("repaint, 230 calls", "diffpir", "ddnm+"))
FREE = tuple(m for m in METHODS if m not in DEAR and m not in LONG)


def pictures(data: Path, count: int) -> Tensor:
    """(count, 3, 64, 64) in [0, 1], held out from the training of cats64."""
    with zipfile.ZipFile(data / "cats64.zip") as archive:
        names = sorted(n for n in archive.namelist() if n.startswith("cats64/val/") and n.endswith(".jpg"))[:count]
        return torch.stack([from_pil(Image.open(io.BytesIO(archive.read(n))).convert("RGB")) for n in names])


def steps_between(x: Tensor) -> Tensor:
    """(B,) mean absolute difference of neighbouring pixels."""
    return 0.5 * (
        (x[..., 1:, :] - x[..., :-1, :]).abs().mean((1, 2, 3)) + (x[..., 1:] - x[..., :-1]).abs().mean((1, 2, 3))
    )


def across(x: Tensor) -> Tensor:
    """(B,) mean step across the border between the known left and the missing right half."""
    return (x[..., :, 32] - x[..., :, 31]).abs().mean((1, 2))


def restore(backbones: dict[bool, Any], task: str, method: str, truth: Tensor, first: int) -> Row:
    """Scores of single restorations of `truth`, the pictures from number `first` on, and what one of them took."""
    from invdiff.samplers import sampler_class

    make, sigma_y = TASKS[task]
    _, sampler, options, _ = next(m for m in METHODS if m[0] == method)
    operator, count = make(), len(truth)
    y = operator.measure(truth, sigma_y, seed=1000 + first)
    calls = vjps = 0
    start = time.process_time()
    if sampler:
        solution = solve(
            operator,
            y,
            sampler,
            backbone=backbones[sampler != "auto" and sampler_class(sampler).uses_gradient],
            sigma_y=sigma_y,
            seed=list(range(first, first + count)),
            batch_size=count,
            progress=False,
            **options,
        )
        x, calls, vjps = solution.x, solution.nfe, solution.vjps
    else:
        x = operator.pinv(y)
    seconds = (time.process_time() - start) / count
    raw, x = x, x.clamp(0, 1)
    scores = {
        "psnr": psnr(x.double(), truth.double()),
        "ssim": ssim(x.double(), truth.double()),
        "detail": steps_between(x) / steps_between(truth),
        "misfit": misfit(raw, operator, y),
        **({"seam": across(x) / across(truth)} if task == HALF else {}),
    }
    return {
        "calls": calls,
        "vjps": vjps,
        "seconds": seconds,
        **{name: [float(f"{v:.5g}") for v in values.tolist()] for name, values in scores.items()},
    }


def cells() -> Iterator[tuple[int, str, str]]:
    """(first picture, task, method) of everything, in order."""
    for start, end, which in (
        (0, FIRST, METHODS),
        (FIRST, SOME, FREE + LONG),
        (SOME, COUNT, FREE),
        (FIRST, FEW, DEAR),
    ):
        for first in range(start, end, CHUNK):
            for method, _, _, tasks in which:
                for task in tasks:
                    yield first, task, method


def measure(found: Row, data: Path, minutes: float | None, write: Callable[[], None]) -> None:
    """What isn't there yet, until the minutes are over."""
    truth = pictures(data, COUNT)
    plain = load_backbone("cats64", engine="openvino", precision="bfloat16")
    backbones = {False: plain, True: load_backbone("cats64", engine="torch")}
    plain.predict(truth[:CHUNK], 500)  # compiled before the clock runs
    for first, task, method in cells():
        name = f"{task} | {method} | {first}"
        if name in found["cells"]:
            continue
        if minutes is not None and time.process_time() > 60 * minutes:
            print("the same command goes on")
            return
        found["cells"][name] = row = restore(backbones, task, method, truth[first : first + CHUNK], first)
        print(f"{name}: {sum(row['psnr']) / CHUNK:.2f} dB, {row['seconds']:.2f} s", flush=True)
        write()


def summary(found: Row) -> list[Row]:
    """A row for every task and method with its first pictures, the same for all of its kind, and 95 % intervals."""

    def done(which: tuple[Any, ...], most: int) -> int:
        wanted = {m[0] for m in which}
        missing = (
            first
            for first, task, method in cells()
            if method in wanted and f"{task} | {method} | {first}" not in found["cells"]
        )
        return min(missing, default=most)

    counts = {m[0]: done(which, most) for which, most in ((FREE, COUNT), (LONG, SOME), (DEAR, FEW)) for m in which}
    rows: list[Row] = []
    for task in TASKS:
        part: list[Row] = []
        each: dict[str, list[float]] = {}
        for method, sampler, _, tasks in METHODS:
            if task not in tasks or not counts[method]:
                continue
            mine = [found["cells"][f"{task} | {method} | {first}"] for first in range(0, counts[method], CHUNK)]
            row: Row = {"task": task, "method": method, "sampler": sampler, "pictures": counts[method]}
            row |= {key: mine[0][key] for key in ("calls", "vjps")}
            row["forward equivalents"] = forward_equivalents(row["calls"], row["vjps"])
            row["seconds"] = sum(c["seconds"] for c in mine) / len(mine)
            for score in ("psnr", "ssim", "detail", "misfit", "seam"):
                if score in mine[0]:
                    row[score] = interval([v for c in mine for v in c[score]])
            each[method] = [v for c in mine for v in c["psnr"]]
            part.append(row)
        # the best of those that did all pictures; who did fewer is compared on those
        best = max((r for r in part if r["pictures"] == counts[FREE[0][0]]), key=lambda r: r["psnr"][0], default=None)
        for row in part:
            row["below best"] = interval(
                [b - a for a, b in zip(each[row["method"]], each[best["method"]], strict=False)]
            )
        rows += part
    return rows


def interval(values: list[float]) -> list[float]:
    """Mean, and the ends of its 95 % interval over pictures."""
    found = bootstrap_interval(values, resamples=4000)
    return [found.mean, found.low, found.high]


def quickest(rows: list[Row], task: str) -> Row:
    """The method that costs least processor time of those whose mean PSNR is within `NEAR` dB of the task's best."""
    near = [r for r in rows if r["task"] == task and r["below best"][0] <= NEAR]
    return min(near, key=lambda r: r["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, help="folder with cats64.zip; without it only the summary is written again"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/data"), help="folder for the summary")
    parser.add_argument("--work", type=Path, default=Path("runs/which_sampler.json"), help="where every cell is kept")
    parser.add_argument("--minutes", type=float, help="of processor time; then it stops, and can be gone on with")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", InvdiffWarning)
    found: Row = json.loads(given.work.read_text(encoding="utf-8")) if given.work.is_file() else {"cells": {}}

    def write() -> None:
        given.work.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(given.work) as temporary:
            temporary.write_text(json.dumps(found) + "\n", encoding="utf-8")

    if given.data is not None:
        measure(found, given.data, given.minutes, write)
    rows = summary(found)
    if not rows:
        return
    counts = [r["pictures"] for r in rows]
    content = {
        "command": "python benchmarks/which_sampler.py --data FOLDER",
        "settings": f"{max(counts)} held-out cats, {min(counts)} of them for the dearest, one restoration "
        "each; OpenVINO in bfloat16 where no gradient is asked for, PyTorch else; processor time of one thread, per picture, "
        "eight at once",
        "rows": rows,
        "quickest": {task: quickest(rows, task)["method"] for task in dict.fromkeys(r["task"] for r in rows)},
    }
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "which_sampler.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
