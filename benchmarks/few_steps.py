#!/usr/bin/env python3
"""What a few calls lose: cats64-4step and the one-call restorer beside cats64 with as many calls, 50 and 250.

    python benchmarks/few_steps.py --data cats64.zip --cells runs/few --out docs/data [--minutes 15]

Held-out pictures of ``val/``. Every cell (task, method, backbone, calls) is computed once and kept in `--cells` as 8-bit pictures
with the processor time that it took; the same command goes on where it was stopped, and ends by writing ``few_steps.json``,
``few_steps.md`` and ``restorer.md`` from the cells that are there. A cell that was not computed is left out of the tables.

- PSNR and SSIM: mean over the pictures.
- detail: energy of the finest Haar coefficients over that of the true pictures, 1 is as sharp as they are.
- set distance: the kernel distance of KID between the restorations and *other* held-out pictures, in the features of the embedded
  backbone `photos` (its deepest layer, averaged over a 4 x 4 grid, each feature in units of its standard deviation). It is
  no KID: Inception's weights are not needed. LPIPS is measured where AlexNet's weights are at hand.

Intervals: 95 % over pictures, by the bootstrap; of the set distance by the jackknife.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invdiff import Backbone, InvdiffWarning, LinearOperator, Mask, SuperResolution, load_backbone, make_mask, solve
from invdiff.backbones.haar import haar
from invdiff.files import atomic_write
from invdiff.markdown import markdown_table
from invdiff.metrics.distortion import psnr, ssim
from invdiff.metrics.generative import kernel_distance
from invdiff.metrics.perceptual import lpips, lpips_reason
from invdiff.samplers import DDNM, MMPS, PiGDM, RePaint, Sampler, sampler_class
from invdiff.training.data import load_images
from invdiff.training.distillation import few_times

SHOWN = 64  # pictures that are restored at most; the others of val/ are what a set is compared with
LEVELS = few_times(4, 1000)


def strokes(count: int) -> Mask:
    """Broad strokes, another mask for every picture: what the restorer has seen in its training, from other seeds."""
    return Mask(torch.stack([make_mask("wide", 64, 10_000 + i) for i in range(count)])[:, None])


TASKS: dict[str, Callable[[int], LinearOperator]] = {
    "box x4": lambda n: SuperResolution(4, "box"),
    "wide mask": strokes,
    "every second line": lambda n: Mask(make_mask("alternating_lines", 64)),
    "a fifth of the pixels": lambda n: Mask(
        torch.stack([make_mask("random_pixels", 64, i, fraction_known=0.2) for i in range(n)])[:, None]
    ),
    "text": lambda n: Mask(make_mask("text", 64)),
}
METHODS: dict[str, Callable[[int], Sampler]] = {
    "DDNM": lambda calls: DDNM(steps=calls),
    "RePaint": lambda calls: RePaint(steps=calls, jump_length=1, jump_n_sample=1),
    "PiGDM": lambda calls: PiGDM(steps=calls),
    "MMPS": lambda calls: MMPS(steps=calls),
}


@dataclass(frozen=True)
class Cell:
    """One method on one task."""

    task: str
    method: str
    backbone: str
    calls: int
    pictures: int = 32

    @property
    def file(self) -> str:
        return f"{self.task}-{self.method}-{self.backbone}-{self.calls}.pt".replace(" ", "_")


def cells() -> list[Cell]:
    """All, those that matter most first."""
    few = [
        Cell(task, method, backbone, 4)
        for backbone in ("cats64-4step", "cats64")
        for task in ("box x4", "wide mask")
        for method in ("DDNM", "RePaint", "PiGDM")
    ]
    one = [Cell(task, "restorer", "none", 1) for task in list(TASKS)[1:]]
    fifty = [Cell(task, "DDNM", "cats64", 50) for task in ("box x4", "wide mask")]
    fifty += [Cell(task, "RePaint", "cats64", 50, 16) for task in ("box x4", "wide mask")]
    away = [Cell(task, "DDNM", "cats64", 50, 16) for task in list(TASKS)[2:]]
    posterior = [Cell("wide mask", "MMPS", "cats64", 30, 4)]
    gradient = [Cell(task, "PiGDM", "cats64", 50, 8) for task in ("box x4", "wide mask")]
    many = [Cell(task, "DDNM", "cats64", 250, 8) for task in ("box x4", "wide mask")]
    most = [Cell(task, method, "cats64", 250, 8) for task in ("box x4", "wide mask") for method in ("RePaint", "PiGDM")]
    return [*few, *one, *fifty, *away, *posterior, *gradient, *many, *most]


def restored(cell: Cell, x: Tensor, restorer: str) -> tuple[Tensor, float]:
    """Restorations of the first pictures, uint8, and the processor time that one took."""
    x = x[: cell.pictures]
    A = TASKS[cell.task](len(x))
    sampler: Any = METHODS[cell.method](cell.calls) if cell.method in METHODS else sampler_class("restorer")(restorer)
    backbone: Backbone = load_backbone("cats64" if cell.backbone == "none" else cell.backbone)
    if cell.backbone == "cats64" and cell.calls == 4:  # the same four levels of noise
        backbone = backbone.on(backbone.schedule.at_times(LEVELS))
    solve(A[:1] if A.batch_size else A, A(x)[:1], sampler, backbone=backbone, progress=False)  # what is done once
    began = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InvdiffWarning)
        found = solve(A, A(x), sampler, backbone=backbone, seed=list(range(len(x))), progress=False)
    return (found.x.clamp(0, 1) * 255).round().to(torch.uint8), (time.process_time() - began) / len(x)


class Features:
    """What the deepest layer of `photos` says about pictures, (N, d)."""

    def __init__(self, reference: Tensor) -> None:
        self.backbone: Any = load_backbone("photos")
        self.seen: list[Tensor] = []
        self.backbone.module.middle[-1].register_forward_hook(lambda module, given, out: self.seen.append(out))
        self.scale = torch.ones(1)
        self.reference = self(reference)
        self.scale = self.reference.std(0) + 1e-3
        self.reference = self.reference / self.scale

    def __call__(self, x: Tensor) -> Tensor:
        found = []
        for part in x.split(16):
            self.seen.clear()
            with torch.inference_mode():
                self.backbone.sized(x.shape[1:]).predict(part * 2 - 1, 20)
            found.append(torch.nn.functional.adaptive_avg_pool2d(self.seen[-1].float(), 4).flatten(1).clone())
        return torch.cat(found) / self.scale


def interval(values: np.ndarray, statistic: Callable[[np.ndarray], float] = np.mean, draws: int = 200) -> list[float]:
    """The statistic and its 95 % interval by the bootstrap over the first axis."""
    random = np.random.default_rng(0)
    drawn = [statistic(values[random.integers(len(values), size=len(values))]) for _ in range(draws)]
    return [float(statistic(values)), *np.quantile(drawn, [0.025, 0.975]).tolist()]


def jackknifed(values: np.ndarray, statistic: Callable[[np.ndarray], float]) -> list[float]:
    """The statistic and its 95 % interval by leaving out one picture at a time: a kernel distance is biased by doubles, which
    the bootstrap draws."""
    n = len(values)
    without = np.array([statistic(np.delete(values, i, 0)) for i in range(n)])
    error = float(((n - 1) / n * np.square(without - without.mean()).sum()) ** 0.5)
    value = float(statistic(values))
    return [value, value - 1.96 * error, value + 1.96 * error]


def fine(x: Tensor) -> Tensor:
    """Energy of the finest coefficients of every picture."""
    return haar(x)[:, 3:].square().mean((1, 2, 3))


def judged(restored: Tensor, truth: Tensor, features: Features) -> dict[str, Any]:
    """All numbers of a cell."""
    x = restored.float() / 255
    mine, theirs = features(x).numpy(), features.reference.numpy()
    numbers = {
        "psnr": interval(psnr(x, truth).numpy()),
        "ssim": interval(ssim(x, truth).numpy()),
        "detail": interval(
            torch.stack([fine(x), fine(truth)], 1).numpy(), lambda v: float(v[:, 0].sum() / v[:, 1].sum())
        ),
        "set": jackknifed(mine, lambda v: kernel_distance(v, theirs)),
    }
    return numbers if lpips_reason() else {**numbers, "lpips": interval(lpips(x, truth).numpy())}


def row(cell: Cell, numbers: dict[str, Any], seconds: float) -> dict[str, str]:
    def said(name: str, digits: int) -> str:
        value, low, high = numbers[name]
        return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"

    columns = {"PSNR": said("psnr", 2), "SSIM": said("ssim", 3)}
    if "lpips" in numbers:
        columns["LPIPS"] = said("lpips", 3)
    return {
        **columns,
        "detail": said("detail", 2),
        "set distance": said("set", 2),
        "pictures": str(cell.pictures),
        "processor time": f"{seconds:.2f} s",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cells", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=0.0, help="begin no further cell after this; 0: no limit")
    parser.add_argument("--only", default="", help="a word that the name of a cell must hold")
    parser.add_argument("--restorer", default="cats64-inpaint", help="name or folder of the one-call restorer")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.cells.mkdir(parents=True, exist_ok=True)
    images, _ = load_images(options.data, 64, split="val")
    truth, others = images[:SHOWN].float() / 255, images[SHOWN:].float() / 255
    began = time.monotonic()
    for cell in cells():
        path = options.cells / cell.file
        late = options.minutes and time.monotonic() - began > 60 * options.minutes
        if path.exists() or late or options.only not in cell.file:
            continue
        pictures, seconds = restored(cell, truth, options.restorer)
        with atomic_write(path) as temporary:
            torch.save({"pictures": pictures, "seconds": seconds}, temporary)
        print(
            f"{cell}: {float(psnr(pictures.float() / 255, truth[: len(pictures)]).mean()):.2f} dB, {seconds:.3f} s",
            flush=True,
        )
    write(options.cells, options.out, truth, Features(others))


def write(folder: Path, out: Path, truth: Tensor, features: Features) -> None:
    """The tables, from the cells that are there."""
    results = []
    found = {
        cell: torch.load(folder / cell.file, weights_only=True) for cell in cells() if (folder / cell.file).exists()
    }
    for cell, kept in found.items():
        pictures = kept["pictures"]
        if cell.task in list(TASKS)[2:]:  # the same pictures for all
            pictures = pictures[: min(len(other["pictures"]) for c, other in found.items() if c.task == cell.task)]
        count = len(pictures)
        numbers = judged(pictures, truth[:count], features)
        results.append((replace(cell, pictures=count), numbers, float(kept["seconds"])))
    own = judged((truth[:32] * 255).round().to(torch.uint8), truth[:32], features)["set"]
    stored = [{**vars(cell), **numbers, "seconds": seconds} for cell, numbers, seconds in results]
    with atomic_write(out / "few_steps.json") as temporary:
        temporary.write_text(json.dumps({"cells": stored, "true pictures": {"set": own}}, indent=1) + "\n")
    few = [r for r in results if r[0].method in ("DDNM", "RePaint", "PiGDM") and r[0].task in ("box x4", "wide mask")]
    few.sort(key=lambda r: (list(TASKS).index(r[0].task), r[0].method, r[0].calls, r[0].backbone))
    away = [r for r in results if r[0].task != "box x4" and (r[0].calls != 4 and r[0].calls != 250)]
    away.sort(key=lambda r: (list(TASKS).index(r[0].task), r[0].calls))
    for name, chosen in (("few_steps.md", few), ("restorer.md", away)):
        rows = [
            {
                "task": c.task,
                "method": c.method,
                "backbone": c.backbone,
                "calls": str(c.calls),
                **row(c, numbers, seconds),
            }
            for c, numbers, seconds in chosen
        ]
        if name == "restorer.md":
            rows = [{k: v for k, v in r.items() if k != "backbone"} for r in rows]
        heads = list(rows[0]) if rows else ["task"]
        note = f"\nThe true pictures themselves have a set distance of {own[0]:.2f} ({own[1]:.2f} to {own[2]:.2f}).\n"
        with atomic_write(out / name) as temporary:
            temporary.write_text(markdown_table(heads, [list(r.values()) for r in rows]) + note)


if __name__ == "__main__":
    main()
