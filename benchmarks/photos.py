#!/usr/bin/env python3
"""What the `photos` backbone is worth on photographs that it has not seen, beside classical methods, and what it costs.

    python benchmarks/photos.py --data photos.zip --out docs/data                  # restorations, in pieces, and the tables
    python benchmarks/photos.py --data photos.zip --out docs/data --parts times    # 1200x800, 600x400 x2, 12 megapixels
    python benchmarks/photos.py --data photos.zip --out docs/data --parts choices  # what two constants were chosen by

Restorations: the middle 128 x 128 pixels of each photograph in the archive's `val/`. Captions, scan lines and scratches are masked
(every photo has a mask of its own), pictures are averaged over 2 x 2 and 4 x 4 pixels, or blurred with noise. Every method's single
sample is set beside the classical one, and for some the mean of eight. What was computed is kept in `photos-runs.jsonl` in the
folder `--runs`; the script goes on where it was interrupted, and stops by itself after `--minutes` of processor time, so that
it is called until it says that all is done. Changed weights begin anew.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from invdiff import (
    InvdiffError,
    InvdiffWarning,
    Mask,
    SuperResolution,
    load_backbone,
    make_mask,
    plan_restoration,
    solve,
)
from invdiff import plan as plan_module
from invdiff.backbones import base
from invdiff.backbones.zoo import EMBEDDED
from invdiff.bench.report.statistics import Interval, bootstrap_interval
from invdiff.files import atomic_write
from invdiff.markdown import markdown_table
from invdiff.metrics import lpips, psnr
from invdiff.metrics.perceptual import lpips_reason
from invdiff.operators import Blur, gaussian_kernel

SIDE = 128
SAMPLES = 8
NOISE = 2 / 255  # of the blurred pictures


@dataclass(frozen=True)
class Task:
    """One kind of damage.

    Attributes:
        name: in tables.
        mask: name of a generator, for holes.
        scale: of super-resolution; 0 for none.
        classical: the method that the aims are measured against.
        aim: dB above it that the mean is to reach.
    """

    name: str
    classical: str
    aim: float
    mask: str = ""
    scale: int = 0

    def operator(self, photo: int) -> Any:
        if self.mask:
            return Mask(make_mask(self.mask, SIDE, seed=photo))
        return SuperResolution(self.scale, "box") if self.scale else Blur(gaussian_kernel(11, 1.6))

    @property
    def sigma_y(self) -> float:
        return 0.0 if self.mask or self.scale else NOISE

    def looked_at(self, photo: int) -> Tensor:
        """(H, W) bool, where gradients are compared: in the holes, or everywhere."""
        return ~make_mask(self.mask, SIDE, seed=photo) if self.mask else torch.ones(SIDE, SIDE, dtype=torch.bool)


TASKS = (
    Task("caption", "biharmonic", 0.5, mask="text"),
    Task("scan lines", "biharmonic", 0.5, mask="scan_lines"),
    Task("scratches", "biharmonic", 0.5, mask="narrow"),
    Task("super-resolution x2", "bicubic", 1.0, scale=2),
    Task("super-resolution x4", "bicubic", 0.0, scale=4),
    Task("blur and noise", "wiener", 1.5),
)


@dataclass(frozen=True)
class Method:
    """A method and how much of the data it is tried on.

    Attributes:
        sampler: its name.
        photos: how many, evenly spaced; costly ones are tried on fewer.
        samples: 1, or `SAMPLES` whose mean is taken.
        options: of the sampler.
    """

    sampler: str
    photos: int = 60
    samples: int = 1
    options: dict[str, Any] = field(default_factory=dict)

    def takes(self, task: Task) -> bool:
        return self.sampler not in CLASSICAL or self.sampler in CLASSICAL_FOR[task.classical]


CLASSICAL_FOR = {
    "biharmonic": ("pseudo-inverse", "biharmonic", "tv"),
    "bicubic": ("pseudo-inverse", "bicubic", "tv"),
    "wiener": ("pseudo-inverse", "wiener", "tv"),
}
CLASSICAL = tuple(dict.fromkeys(name for names in CLASSICAL_FOR.values() for name in names))

NEARER = {"eta": 1.0, "spacing": "logsnr"}

# `auto` is what `solve` takes where no sampler is named: DDNM+ with 50 steps for masks, 30 for the rest. The order is that in
# which they are run: what decides first.
METHODS = (
    *(Method(name) for name in CLASSICAL),
    Method("auto"),
    Method("auto", options=NEARER),
    Method("auto", photos=20, samples=SAMPLES, options=NEARER),
    Method("auto", photos=20, samples=SAMPLES),
    Method("pigdm", photos=20, options={"steps": 20}),
    Method("ddnm+", photos=10, samples=SAMPLES, options={"steps": 100, "eta": 1.0, "spacing": "karras"}),
    Method("pigdm", photos=8, samples=SAMPLES, options={"steps": 20, "spacing": "logsnr"}),
    Method("diffpir", photos=30, options={"steps": 20}),
    Method("ddrm", photos=30, options={"steps": 20}),
    Method("replacement", photos=12, options={"steps": 50}),
    Method("mmps", photos=6, options={"steps": 12}),
    Method("tmpd", photos=6, options={"steps": 15}),
    Method("reddiff", photos=6, options={"steps": 100}),
    Method("repaint", photos=6, options={"steps": 50, "jump_length": 5, "jump_n_sample": 3}),
    Method("daps", photos=4, options={"steps": 30}),
    Method("dps", photos=4, options={"steps": 100}),
    Method("mcg", photos=4, options={"steps": 100}),
    Method("copaint", photos=4, options={"steps": 30}),
    Method("mcg-diff", photos=4, options={"steps": 20, "particles": 8}),
    Method("fps-smc", photos=4, options={"steps": 20, "particles": 8}),
    Method("tds", photos=2, options={"steps": 20, "particles": 4}),
)


# ---- restorations -----------------------------------------------------------------------------------------------


def photographs(data: Path) -> list[tuple[str, Tensor]]:
    """Name and middle (3, 128, 128) in [0, 1] of every photograph in the archive's val/."""
    found = []
    with zipfile.ZipFile(data) as archive:
        for name in sorted(n for n in archive.namelist() if "val/" in n and n.endswith((".jpg", ".png"))):
            pixels = np.array(Image.open(io.BytesIO(archive.read(name))).convert("RGB"))
            top, left = (pixels.shape[0] - SIDE) // 2, (pixels.shape[1] - SIDE) // 2
            cut = pixels[top : top + SIDE, left : left + SIDE]
            found.append((name, torch.from_numpy(cut).movedim(-1, 0) / 255))
    return found


def gradient_distance(x: Tensor, truth: Tensor, where: Tensor) -> float:
    """How far apart the gradients' lengths of two pictures are distributed: the Wasserstein-1 distance of their logarithms.

    0 for alike; 0.7 where those of one are half (or twice) as long everywhere. A length is that of the differences of the grey
    picture to the next row and column, plus one grey level, so that what rounding does does not count.

    Args:
        x, truth: (3, H, W) in [0, 1].
        where: (H, W) bool, pixels whose gradients count.
    """
    logs = []
    for picture in (x, truth):
        grey = picture.double().mean(0)
        down, across = grey[1:, :-1] - grey[:-1, :-1], grey[:-1, 1:] - grey[:-1, :-1]
        logs.append(torch.log(torch.hypot(down, across) + 1 / 255)[where[:-1, :-1]].sort().values)
    return float((logs[0] - logs[1]).abs().mean())


def scores(x: Tensor, truth: Tensor, task: Task, photo: int) -> dict[str, float]:
    """Of one picture (3, H, W)."""
    shown = x.clamp(0, 1).float()
    found = {
        "psnr": float(psnr(shown[None], truth[None])[0]),
        "gradients": gradient_distance(shown, truth, task.looked_at(photo)),
    }
    if lpips_reason() is None:
        found["lpips"] = float(lpips(shown[None], truth[None])[0])
    return found


def chosen(photos: int, of: int) -> list[int]:
    """So many of the photographs, evenly spaced."""
    return sorted({round(k * (of - 1) / max(1, photos - 1)) for k in range(min(photos, of))})


def units(photos: int) -> Iterator[tuple[Method, Task, int]]:
    """Everything to do, in an order in which a part of it says something about every task."""
    for method in METHODS:
        mine = chosen(min(method.photos, photos), photos)
        random.Random(0).shuffle(mine)
        for photo in mine:
            for task in TASKS:
                if method.takes(task):
                    yield method, task, photo


def weights_of(name: str = "photos") -> str:
    """A word that changes with the weights."""
    stored = sorted((EMBEDDED / name).glob("*.safetensors"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in stored)).hexdigest()[:12]


def restore(data: Path, runs: Path, count: int, minutes: float) -> bool:
    """Do what is left of the restorations; whether all is done."""
    runs.mkdir(parents=True, exist_ok=True)
    log = runs / "photos-runs.jsonl"
    weights = weights_of()
    done = {unit_key(row) for row in read(log) if row["weights"] == weights}
    pictures = photographs(data)
    pictures = [pictures[k] for k in chosen(count, len(pictures))]
    backbone = load_backbone("photos")
    began = time.process_time()
    with log.open("a", encoding="utf-8") as file:
        for method, task, photo in units(len(pictures)):
            name, truth = pictures[photo]
            row: dict[str, Any] = {
                "weights": weights,
                "method": method.sampler,
                "options": method.options,
                "task": task.name,
                "photo": name,
                "samples": method.samples,
            }
            if unit_key(row) in done:
                continue
            if time.process_time() - began > 60 * minutes:
                return False
            operator = task.operator(photo)
            y = operator.measure(truth[None], task.sigma_y, seed=photo)
            started = time.process_time()
            try:
                answer = solve(
                    operator,
                    y,
                    method.sampler,
                    backbone=backbone,
                    sigma_y=task.sigma_y,
                    n_samples=method.samples,
                    region="all",
                    progress=False,
                    **method.options,
                )
            except InvdiffError as error:  # not for this operator, or it diverged
                row |= {"seconds": round(time.process_time() - started, 3), "refused": str(error)}
            else:
                row |= {"seconds": round(time.process_time() - started, 3), "nfe": answer.nfe, "vjps": answer.vjps}
                row |= scores(answer.x.mean(0), truth, task, photo)
            file.write(json.dumps(row) + "\n")
            file.flush()
    return True


def read(log: Path) -> list[dict[str, Any]]:
    """The rows so far; a line that was cut off is left out."""
    rows = []
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def unit_key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["method"], json.dumps(row["options"], sort_keys=True), row["task"], row["photo"], row["samples"]


# ---- tables -----------------------------------------------------------------------------------------------------


def tables(rows: list[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """Markdown of everything measured, and the same as rows."""
    rows = [row for row in rows if "refused" not in row]
    metrics = [m for m in ("psnr", "lpips", "gradients") if all(m in row for row in rows)]
    heads = {"psnr": "PSNR (dB)", "lpips": "LPIPS", "gradients": "gradients"}
    parts, flat = [], []
    for task in TASKS:
        of_task = [row for row in rows if row["task"] == task.name]
        classical = {row["photo"]: row["psnr"] for row in of_task if row["method"] == task.classical}
        lines, means = [], []
        for method in METHODS:
            who = method.sampler, method.options, method.samples
            mine = [row for row in of_task if (row["method"], row["options"], row["samples"]) == who]
            if not mine or not classical:
                continue
            found = {m: bootstrap_interval([row[m] for row in mine]) for m in metrics}
            ahead = bootstrap_interval(
                [row["psnr"] - classical[row["photo"]] for row in mine if row["photo"] in classical]
            )
            one = {
                "task": task.name,
                "method": method.sampler,
                "options": method.options,
                "samples": method.samples,
                "photos": len(mine),
                "calls": mine[0]["nfe"] * method.samples,
                "products": mine[0]["vjps"] * method.samples,
                "ahead": ahead.mean,
                "ahead_low": ahead.low,
                "ahead_high": ahead.high,
                **{m: found[m].mean for m in metrics},
            }
            flat.append(one)
            if method.samples > 1:
                means.append(one)
            label = method.sampler if method.samples == 1 else f"**{method.sampler}, mean of {method.samples}**"
            lines.append(
                [
                    label,
                    ", ".join(f"{k}={v}" for k, v in method.options.items()),
                    str(len(mine)),
                    str(one["calls"]) + (f" + {one['products']}" if one["products"] else ""),
                    *(written(found[m], 2 if m == "psnr" else 3) for m in metrics),
                    "" if method.sampler == task.classical else written(ahead, 2, sign=True),
                ]
            )
        if not lines:
            continue
        verdict = ""
        if means:
            best = max(means, key=lambda one: one["ahead"])
            aim = f"at least {task.aim:g} dB above" if task.aim else "above"
            reached = "reached" if best["ahead"] >= task.aim and best["ahead"] > 0 else "missed"
            verdict = (
                f"Aim: the mean of {SAMPLES} {aim} {task.classical}. {reached.capitalize()}: {best['method']}'s is at "
                f"{best['ahead']:+.2f} dB ({best['ahead_low']:+.2f} to {best['ahead_high']:+.2f}).\n\n"
            )
        head = ["method", "settings", "photos", "calls", *(heads[m] for m in metrics), f"minus {task.classical} (dB)"]
        table = markdown_table(head, lines, "llrr" + "r" * (len(metrics) + 1))
        parts.append(f"## {task.name[0].upper()}{task.name[1:]}\n\n{verdict}{table}")
    return "\n\n".join(parts), flat


def written(value: Interval, digits: int, sign: bool = False) -> str:
    """A mean and its 95 % interval."""
    form = f"{'+' if sign else ''}.{digits}f"
    if math.isnan(value.low):
        return f"{value.mean:{form}}"
    return f"{value.mean:{form}} ({value.low:{form}} to {value.high:{form}})"


def report(out: Path, runs: Path, command: str) -> None:
    """Write ``photos.md`` and ``photos.json`` from what there is."""
    weights = weights_of()
    rows = [row for row in read(runs / "photos-runs.jsonl") if row["weights"] == weights]
    if not rows:
        return
    text, flat = tables(rows)
    minutes = sum(row["seconds"] for row in rows) / 60
    why = lpips_reason()
    photos = len({row["photo"] for row in rows})
    about = (
        f"The middle {SIDE} x {SIDE} pixels of up to {photos} photographs that were not trained on; costly methods got fewer. "
        "Means with 95 % bootstrap intervals over photographs; differences are taken photograph by photograph. *Calls*: of the "
        "network, + vector-Jacobian products. *Gradients*: Wasserstein-1 distance between the logarithms of the gradients' lengths "
        "of answer and truth, in the holes or everywhere; less is nearer, and a picture that is too smooth is far off. "
        + ("" if why is None else f"LPIPS is left out: {why.split('. ')[0]}. ")
        + f"Weights {weights}, {minutes:.0f} minutes of processor time."
    )
    note = f"`{command}`\n\n{about}"
    write(out / "photos.md", f"# Photographs\n\n{note}\n\n{text}\n")
    write(out / "photos.json", json.dumps({"command": command, "weights": weights, "rows": flat}, indent=1) + "\n")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


# ---- times ------------------------------------------------------------------------------------------------------


def scratched(width: int, height: int) -> Image.Image:
    """A mask with a slanting scratch over 3 % of the picture."""
    mask = Image.new("L", (width, height), 255)
    line = [(0.05 * width, 0.1 * height), (0.42 * width, 0.45 * height), (0.95 * width, 0.88 * height)]
    ImageDraw.Draw(mask).line(line, fill=0, width=round(0.0295 * height))
    return mask


def spotted(width: int, height: int, spots: int = 10) -> Image.Image:
    """A mask with small round spots, 24 pixels wide."""
    rng = np.random.default_rng(0)
    mask = Image.new("L", (width, height), 255)
    for x, y in zip(rng.uniform(0.05, 0.95, spots) * width, rng.uniform(0.05, 0.95, spots) * height, strict=True):
        ImageDraw.Draw(mask).ellipse((x - 12, y - 12, x + 12, y + 12), fill=0)
    return mask


def timed(out: Path, threads: int) -> None:
    """Write ``photos-times.md`` and ``.json``: whole commands in processes of their own, from the file to the file."""
    from invdiff.data import raccoon

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for width, height in ((1200, 800), (600, 400), (4000, 3000), (160, 120)):
            raccoon().resize((width, height), Image.Resampling.LANCZOS).save(place / f"{width}.jpg", quality=92)
        scratched(1200, 800).save(place / "scratch.png")
        scratched(160, 120).save(place / "small.png")
        spotted(4000, 3000).save(place / "spots.png")
        share = 1 - np.asarray(scratched(1200, 800)).mean() / 255
        box = "--operator super_resolution -A scale=2 -A kernel=box"
        for what, aim, arguments in (
            (f"1200 x 800, a scratch over {100 * share:.1f} %", "30 s, 2 GB", "1200.jpg --mask scratch.png"),
            ("600 x 400 to 1200 x 800", "", f"600.jpg {box}"),
            ("4000 x 3000 (12 megapixels), ten spots", "180 s", "4000.jpg --mask spots.png"),
            ("160 x 120, one step: the start alone", "", "160.jpg --mask small.png --steps 1"),
        ):
            command = ["-m", "invdiff", "solve", *arguments.split(), "-o", "answer.png"]
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            started = time.perf_counter()
            # A process of its own between: the peak is that of the one command.
            measure = (
                "import resource, subprocess, sys; rc = subprocess.run([sys.executable, *sys.argv[1:]]).returncode; "
                "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(rc)"
            )
            ran = subprocess.run(
                [sys.executable, "-c", measure, *command],
                cwd=place,
                env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(sys.path)},
                capture_output=True,
                text=True,
                check=True,
            )
            seconds = time.perf_counter() - started
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            peak = int(ran.stdout.split()[-1]) / 2**20
            rows.append(
                {
                    "what": what,
                    "command": f"invdiff solve {arguments}",
                    "seconds": round(seconds, 1),
                    "processor_seconds": round(processor, 1),
                    "peak_gib": round(peak, 2),
                    "aim": aim,
                }
            )
            print(rows[-1], flush=True)
    head = ["", "command", "seconds", "of all cores together", "peak memory (GiB)", "aim"]
    lines = [
        [
            r["what"],
            f"`{r['command']}`",
            f"{r['seconds']:.1f}",
            f"{r['processor_seconds']:.1f}",
            f"{r['peak_gib']:.2f}",
            r["aim"],
        ]
        for r in rows
    ]
    command = "python benchmarks/photos.py --parts times --out docs/data"
    text = (
        f"`{command}`, {threads} threads. The whole command, from the start of Python to the written file, "
        "with the default sampler.\n\n" + markdown_table(head, lines, "llrrrl")
    )
    write(out / "photos-times.md", f"# Times\n\n{text}\n")
    write(
        out / "photos-times.json", json.dumps({"command": command, "threads": threads, "rows": rows}, indent=1) + "\n"
    )


# ---- choices ----------------------------------------------------------------------------------------------------


def choose(data: Path, out: Path, count: int) -> None:
    """Write ``photos-choices.md`` and ``.json``: how the library's two constants for parts of pictures were chosen.

    Whole photographs with a slanting stroke, eight pixels wide, and with a hole of 60 x 60 pixels, by how much known surroundings a
    part is computed with; and with a hole of 128 x 128, by the noise that the averages of a coarse answer are taken to have.
    """
    with zipfile.ZipFile(data) as archive:
        names = sorted(n for n in archive.namelist() if "val/" in n and n.endswith(".jpg"))
        names = [names[k] for k in chosen(count, len(names))]
        pictures = [np.array(Image.open(io.BytesIO(archive.read(name))).convert("RGB")) for name in names]
    backbone = load_backbone("photos")
    rows: list[dict[str, Any]] = []

    def tried(what: str, value: float, hole: int, **options: Any) -> None:
        found = []
        for pixels in pictures:
            height, width = pixels.shape[:2]
            mask = Image.new("L", (width, height), 255)
            draw = ImageDraw.Draw(mask)
            if hole:
                half = hole // 2
                draw.rectangle(
                    [width // 2 - half, height // 2 - half, width // 2 + half - 1, height // 2 + half - 1], fill=0
                )
            else:
                draw.line([(20, 24), (width - 20, height - 24)], fill=0, width=8)
            known = np.asarray(mask) > 127
            plan = plan_restoration(Mask(known), (3, height, width), backbone, 1, **options)
            x = solve(Mask(known), pixels, backbone=backbone, steps=25, progress=False, **options).x[0]
            truth = torch.from_numpy(pixels).movedim(-1, 0) / 255
            missing = torch.from_numpy(~known)
            error = float((x.clamp(0, 1) - truth)[:, missing].square().mean())
            found.append((-10 * math.log10(error), gradient_distance(x, truth, missing), plan.pixels / known.size))
        db, apart, share = (bootstrap_interval([one[k] for one in found]) for k in range(3))
        rows.append(
            {
                "what": what,
                "value": value,
                "psnr": written(db, 2),
                "gradients": written(apart, 3),
                "share of the picture per call": f"{share.mean:.2f}",
            }
        )
        print(rows[-1], flush=True)

    kept = base.MOST_CONTEXT, plan_module.COARSE_SIGMA
    for hole in (0, 60):
        for context in (16, 32, 48, 64):
            base.MOST_CONTEXT = context
            where = f"a hole of {hole} x {hole}" if hole else "the stroke"
            tried(f"MOST_CONTEXT, pixels: {where}", context, hole, coarse_to_fine=False)
    base.MOST_CONTEXT = kept[0]
    for sigma in (0.02, 0.05, 0.1, 0.2):
        plan_module.COARSE_SIGMA = sigma
        tried("COARSE_SIGMA, model range: a hole of 128 x 128", sigma, 128, coarse_to_fine=1)
    plan_module.COARSE_SIGMA = kept[1]
    tried("the same without a coarse answer", 0, 128, coarse_to_fine=False)
    command = "python benchmarks/photos.py --data photos.zip --parts choices --out docs/data"
    table = markdown_table(list(rows[0]), [[str(v) for v in row.values()] for row in rows], "lrrrr")
    about = (
        f"`{command}`: {len(pictures)} whole photographs, 25 steps; a slanting stroke of 8 pixels, and holes. "
        "PSNR (dB) and gradients in the holes."
    )
    write(out / "photos-choices.md", f"# Choices\n\n{about}\n\n{table}\n")
    write(out / "photos-choices.json", json.dumps({"command": command, "rows": rows}, indent=1) + "\n")


# ---- the command ------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("photos.zip"), help="archive with a folder val/")
    parser.add_argument("--out", type=Path, default=Path("docs/data"), help="folder for tables")
    parser.add_argument("--runs", type=Path, default=Path("runs/photos"), help="folder for what was computed")
    parser.add_argument("--parts", default="restore", choices=("restore", "tables", "times", "choices"))
    parser.add_argument("--photos", type=int, default=60, help="fewer for a trial")
    parser.add_argument(
        "--minutes", type=float, default=15, help="of processor time, after which it stops to be called again"
    )
    parser.add_argument("--threads", type=int, default=2, help="of each timed command")
    args = parser.parse_args()
    warnings.simplefilter("ignore", InvdiffWarning)
    if args.parts == "times":
        timed(args.out, args.threads)
        return 0
    if args.parts == "choices":
        choose(args.data, args.out, min(args.photos, 10))
        return 0
    finished = args.parts == "tables" or restore(args.data, args.runs, args.photos, args.minutes)
    report(args.out, args.runs, "python benchmarks/photos.py --data photos.zip --out docs/data")
    print("all done" if finished else "not done yet: call it again", flush=True)
    return 0 if finished else 3


if __name__ == "__main__":
    sys.exit(main())
