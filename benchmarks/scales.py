#!/usr/bin/env python3
"""The constant scale of DPS and MCG against the step that follows size and number of steps, on priors with known posterior.

    python benchmarks/scales.py --out docs/data

For every task of `TASKS`, noise and number of steps: the energy score (see tune.py; smaller is better) at the paper's scale, at the
best constant one of `SCALES`, which differs from row to row, and with ``rule="likelihood"`` at its defaults; the floor is MMPS,
which is exact on these priors up to its steps. Goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tune import Domain, Kind, scores

from invdiff import load_backbone
from invdiff.bench.run.images import drawn_from_prior
from invdiff.files import atomic_write
from invdiff.markdown import markdown_table
from invdiff.samplers.presets import PAPER, settings_for

TASKS = {  # prior, operator, its options, numbers in y
    "gaussian8-mask": ("gaussian8", "mask", {"mask": "half", "fraction_known": 0.5}, 4),
    "gaussian8-random": ("gaussian8", "matrix", {"matrix": "random", "rows": 4}, 4),
    "image-mask": ("gaussian16x16", "mask", {"mask": "box"}, 192),
    "image-super-resolution": ("gaussian16x16", "super_resolution", {"scale": 4, "kernel": "box"}, 16),
}
SCALES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.6, 1.0, 1.5, 2.5, 5.0)
STEPS = {20: 400, 100: 200, 1000: 100}
"""Steps, and images of each."""


def row(sampler: str, name: str, sigma_y: float, steps: int) -> dict[str, Any]:
    """Energy scores of one task, with the standard error of the likelihood's, in rms per pixel (values in [0, 1])."""
    prior, operator, options, m = TASKS[name]
    kind = Kind(operator, options, sigma_y / 2)
    images = drawn_from_prior(load_backbone(prior), STEPS[steps], 1) / 2 + 0.5
    place = Domain(prior, load_backbone(prior), images, images)
    paper = settings_for(sampler, kind.task, sigma_y > 0, PAPER)
    known = {} if sampler == "mcg" else {"norm": "known"}

    def energy(method: str, settings: dict[str, Any], count: int = steps) -> list[float]:
        return scores(place, images, kind, method, settings, count, 0, 2)["energy"]

    constant = {scale: _mean(energy(sampler, {**known, "scale": scale})) for scale in SCALES}
    best = min(constant, key=constant.__getitem__)
    rule = energy(sampler, {**known, "rule": "likelihood"})
    mean = _mean(rule)
    return {
        "sampler": sampler,
        "task": name,
        "m": m,
        "sigma_y": sigma_y,
        "steps": steps,
        "images": len(images),
        "paper": _mean(energy(sampler, paper)),
        "best scale": best,
        "best constant": constant[best],
        "likelihood": mean,
        "se": (sum((v - mean) ** 2 for v in rule) / (len(rule) - 1) / len(rule)) ** 0.5,
        "mmps": _mean(energy("mmps", {"iterations": 4}, 50)),
    }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/data"))
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS), choices=STEPS)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    a = parser.parse_args()
    file = a.out / "scales.json"
    rows = json.loads(file.read_text()) if file.is_file() else []
    keys = ("sampler", "task", "sigma_y", "steps")
    done = {tuple(r[k] for k in keys) for r in rows}
    for steps in a.steps:
        for sampler, noises in (("dps", (0.0, 0.1)), ("mcg", (0.0,))):
            for key in [(sampler, name, sigma_y, steps) for name in a.tasks for sigma_y in noises]:
                if key not in done:
                    rows.append(row(*key))
                    print(rows[-1], flush=True)
                    rows.sort(key=lambda r: (r["sampler"], r["steps"], list(TASKS).index(r["task"]), r["sigma_y"]))
                    _write(a.out, rows)


def _write(folder: Path, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    cells = [
        [
            r["sampler"], r["task"], f"{r['sigma_y']:g}", r["m"], r["steps"], f"{r['paper']:.4f}",
            f"{r['best constant']:.4f} (at {r['best scale']:g})", f"{r['likelihood']:.4f} ± {r['se']:.4f}", f"{r['mmps']:.4f}",
        ]
        for r in rows
    ]  # fmt: skip
    heads = [
        "sampler",
        "task",
        "sigma_y",
        "numbers in y",
        "steps",
        "paper's scale",
        "best constant scale",
        "likelihood",
        "MMPS",
    ]
    for name, text in (("scales.json", json.dumps(rows, indent=1)), ("scales.md", markdown_table(heads, cells))):
        with atomic_write(folder / name) as temporary:
            temporary.write_text(text + "\n")


if __name__ == "__main__":
    main()
