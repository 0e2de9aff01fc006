#!/usr/bin/env python3
"""What running the network in bfloat16 costs in quality: the same seeds in both precisions, sampler by sampler.

    python benchmarks/bfloat16.py --out docs/data

Truth: images drawn from the embedded network's own prior, and a photograph that it was not trained on. Half of the pixels
are hidden, or the image is reduced four times. PSNR in dB against the truth, averaged over images and seeds; the last
column is the PSNR between the two results, which shows how far single restorations move.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invdiff import InvdiffWarning, Mask, SuperResolution, load_backbone, sample, solve
from invdiff.data import chelsea64
from invdiff.files import atomic_write
from invdiff.images import from_pil
from invdiff.markdown import markdown_table
from invdiff.metrics import psnr

RUNS: dict[str, dict[str, Any]] = {
    "replacement": {},
    "repaint": {"jump_length": 5, "jump_n_sample": 2},
    "ddnm": {},
    "ddnm+": {},
    "ddrm": {},
    "diffpir": {},
    "pigdm": {},
    "mcg": {},
    "dps": {},
}


def truths(drawn: int) -> Tensor:
    """(N, 3, 64, 64) in [0, 1]."""
    prior = sample("cats64", drawn, steps=50, seed=7, precision="float32", progress=False).x
    return torch.cat([prior.clamp(0, 1).float(), from_pil(chelsea64())[None]])


def compare(out: Path, device: torch.device, quick: bool = False) -> list[dict[str, Any]]:
    """Measure and write ``bfloat16.md`` and ``bfloat16.json`` to the folder `out`."""
    warnings.simplefilter("ignore", InvdiffWarning)
    images = truths(1 if quick else 3)
    steps, seeds = (10, 1) if quick else (30, 2)
    generator = torch.Generator().manual_seed(3)
    tasks = {"mask": Mask(torch.rand(64, 64, generator=generator) > 0.5), "super-resolution x4": SuperResolution(4)}
    backbones = {p: load_backbone("cats64", precision=p, device=device) for p in ("float32", "bfloat16")}
    rows: list[dict[str, Any]] = []
    for task, operator in tasks.items():
        for sampler, options in RUNS.items():
            results = {
                precision: solve(
                    operator,
                    operator(images),
                    sampler,
                    backbone=backbone,
                    steps=steps,
                    n_samples=seeds,
                    seed=range(len(images)),
                    batch_size=len(images) * seeds,
                    progress=False,
                    **options,
                )
                .x.float()
                .clamp(0, 1)
                for precision, backbone in backbones.items()
            }
            truth = images.repeat_interleave(seeds, 0)
            full, low = (psnr(results[p], truth) for p in ("float32", "bfloat16"))
            rows.append(
                {
                    "task": task,
                    "sampler": sampler,
                    "float32": float(full.mean()),
                    "bfloat16": float(low.mean()),
                    "difference": float((low - full).mean()),
                    "largest": float((low - full).abs().max()),
                    "between": float(psnr(results["float32"], results["bfloat16"]).mean()),
                }
            )
            print(f"  {task} {sampler}: {rows[-1]['difference']:+.3f} dB", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    about = f"{len(images)} images, {seeds} seeds each, {steps} steps; PSNR in dB, noise-free measurements."
    head = ["task", "sampler", "float32", "bfloat16", "difference", "largest of one image", "between the two"]
    form = {"float32": ".2f", "bfloat16": ".2f", "difference": "+.3f", "largest": ".2f", "between": ".1f"}
    body = [[r["task"], r["sampler"], *(format(r[key], spec) for key, spec in form.items())] for r in rows]
    with atomic_write(out / "bfloat16.md") as temporary:
        temporary.write_text(f"{about}\n\n{markdown_table(head, body)}\n")
    with atomic_write(out / "bfloat16.json") as temporary:
        temporary.write_text(json.dumps(rows, indent=1) + "\n")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("speed"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="two images, one seed, 10 steps")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    compare(given.out, torch.device(given.device), given.quick)
    print((given.out / "bfloat16.md").read_text())


if __name__ == "__main__":
    main()
