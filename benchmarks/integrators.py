#!/usr/bin/env python3
"""Distance to the exact posterior by integrator, with standard errors over measurements: for whom which one pays.

    python benchmarks/integrators.py --out docs/data

A row is one sampler with one integrator on one measurement; beside it the floor, what as many exact draws score (mean of several
sets). All integrators see the same measurements and the same first noise, so that their differences have a standard error of their
own. Goes on where it was stopped. ``integrators.json`` has the means as ``rows``, every measurement as ``cells``.
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from invdiff import (
    InvdiffWarning,
    LinearOperator,
    Mask,
    MatrixOperator,
    SuperResolution,
    load_backbone,
    make_mask,
    solve,
)
from invdiff.bench.posterior.reference import Exact
from invdiff.files import atomic_write
from invdiff.operators.matrix import random_matrix
from invdiff.priors.named import PRIORS

FLOOR_SETS = 4
MEASURES = ("w2", "sw2", "c2st", "mode_error")


@dataclass(frozen=True)
class Task:
    """A prior, a measurement and its noise; `rows` numbers are measured, 0 of them: a box is missing."""

    name: str
    prior: str
    rows: int
    sigma_y: float
    samples: int
    seeds: int
    gaussian: bool

    def operator(self, prior: Any) -> LinearOperator:
        d = prior.dimension
        if self.name.endswith("resolution"):
            return SuperResolution(4, "box")
        if self.rows == 0:
            return Mask(make_mask("box", prior.image_shape[-1]))
        if self.name.endswith("mask"):
            return Mask((torch.arange(d) < self.rows).float()[None])
        return MatrixOperator(random_matrix(d, rows=self.rows, seed=0))


@dataclass(frozen=True)
class Way:
    """A sampler, its integrator and how many steps."""

    sampler: str
    integrator: str
    steps: int
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return " ".join([self.integrator, *(f"{name}={value}" for name, value in self.options.items())])


TASKS = (
    *(Task("gaussian8-mask", "gaussian8", 4, s, 2000, 6, True) for s in (0.0, 0.1, 0.5)),
    *(Task("gaussian8-random", "gaussian8", 4, s, 2000, 6, True) for s in (0.0, 0.1, 0.5)),
    *(Task("image-mask", "gaussian16x16", 0, s, 300, 6, True) for s in (0.0, 0.1, 0.5)),
    Task("gmm25-8-mask", "gmm25-8", 1, 0.05, 1000, 6, False),
    *(Task("gmm25-8-random", "gmm25-8", 1, s, 1000, 6, False) for s in (0.0, 0.05, 0.5)),
    *(Task("two-modes-mask", "two-modes16", 14, s, 1000, 6, False) for s in (0.0, 0.1)),
    *(Task(f"photographs-{name}", "cats64-gmm", 0, 0.05, 24, 6, False) for name in ("mask", "super-resolution")),
)
FEW = (("gaussian8-mask", 0.0), ("gaussian8-mask", 0.1), ("gmm25-8-random", 0.05))
"""The tasks of samplers that a paper gave a step of its own."""

WAYS = (
    *(Way("mmps", name, 30) for name in ("ancestral", "ddim", "dpm++2m", "eab3")),
    *(Way("mmps", name, 40) for name in ("dpm++2m", "eab3")),
    *(Way("mmps", "dpm++2m", 40, options) for options in ({"recalled": 0}, {"spacing": "logsnr"})),
    Way("mmps", "heun", 15),
    Way("mmps", "dpm++2m", 30, {"spacing": "trailing"}),
    Way("mmps", "dpm++2m", 30, {"spacing": "logsnr"}),
    Way("mmps", "dpm++2m", 30, {"spacing": "logsnr", "iterations": 2}),
    *(
        Way(sampler, name, steps, {} if name == "own" else {"spacing": "karras"})
        for sampler in ("ddnm", "ddnm+", "pigdm", "diffpir")
        for steps in (15, 100)
        for name in ("own", "ancestral", "dpm++2m")
    ),
    *(Way("tmpd", name, 30) for name in ("ancestral", "ddim", "dpm++2m", "eab3")),
)


def rows_of(task: Task, seed: int, ways: Sequence[Way]) -> list[dict[str, Any]]:
    """One measurement: the floor, and what every way scores."""
    prior = PRIORS[task.prior]() if task.prior in PRIORS else load_backbone(task.prior)
    A = task.operator(prior)
    truth = prior.prior_sample(1, seed=seed)
    y = A.measure(truth, task.sigma_y, seed=seed)
    exact = Exact(prior, A, y, task.sigma_y, truth[0], task.samples, seed, {})
    floor = exact.reference.floor(task.samples, FLOOR_SETS)
    rows = []
    for way in ways:
        solution = solve(
            A, y, way.sampler, backbone=prior, sigma_y=task.sigma_y, value_range=(-1, 1), n_samples=task.samples, seed=seed,
            steps=way.steps, integrator=way.integrator, progress=False, batch_size=task.samples, **way.options,
        )  # fmt: skip
        found = exact.reference.compare(solution.samples[0].flatten(1))
        rows.append(
            {
                "task": task.name,
                "sigma_y": task.sigma_y,
                "sampler": way.sampler,
                "way": way.label,
                "steps": way.steps,
                "seed": seed,
            }
            | {"equivalents": round(solution.nfe + 1.5 * solution.vjps)}
            | {name: found[name] for name in MEASURES if name in found}
            | {f"{name}_floor": floor[name] for name in MEASURES if name in found}
        )
    return rows


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    n, mean = len(values), sum(values) / len(values)
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / max(1, n - 1) / n)


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per task, noise and way: what it is above the floor, mean over the measurements and standard error of that mean."""
    out = []
    keys = dict.fromkeys((r["task"], r["sigma_y"], r["sampler"], r["way"], r["steps"]) for r in rows)
    for key in keys:
        here = [r for r in rows if (r["task"], r["sigma_y"], r["sampler"], r["way"], r["steps"]) == key]
        line: dict[str, Any] = dict(zip(("task", "sigma_y", "sampler", "way", "steps"), key, strict=True))
        line |= {"equivalents": here[0]["equivalents"], "measurements": len(here)}
        distance = "w2" if "w2" in here[0] else "sw2"
        line["floor"] = mean_and_error([r[f"{distance}_floor"] for r in here])[0]
        line["distance"], line["distance_error"] = mean_and_error([r[distance] for r in here])
        line["above"], line["above_error"] = mean_and_error([r[distance] - r[f"{distance}_floor"] for r in here])
        line["c2st"], line["c2st_error"] = mean_and_error([r["c2st"] for r in here])
        if "mode_error" in here[0]:
            line["mode_error"], line["mode_error_error"] = mean_and_error([r["mode_error"] for r in here])
            line["mode_error_floor"] = mean_and_error([r["mode_error_floor"] for r in here])[0]
        out.append(line)
    return out


def tried(way: Way, task: Task) -> bool:
    """Whether a way is measured on a task: on the mixture of photographs only MMPS with its default integrator and steps."""
    if way.sampler != "mmps":
        return (task.name, task.sigma_y) in FEW
    return not task.name.startswith("photographs") or (way.steps == 40 and way.integrator == "dpm++2m")


def main() -> None:
    parser = argparse.ArgumentParser(description="Distance to the exact posterior by integrator.")
    parser.add_argument("--out", type=Path, default=Path("docs/data"), help="folder for integrators.json")
    parser.add_argument("--samplers", nargs="*", help="only these")
    options = parser.parse_args()
    warnings.simplefilter("ignore", InvdiffWarning)
    torch.set_num_threads(1)
    path = options.out / "integrators.json"
    cells: list[dict[str, Any]] = json.loads(path.read_text())["cells"] if path.exists() else []
    wanted = [way for way in WAYS if not options.samplers or way.sampler in options.samplers]
    for task in TASKS:
        for seed in range(task.seeds):
            done = {
                (r["sampler"], r["way"], r["steps"])
                for r in cells
                if (r["task"], r["sigma_y"], r["seed"]) == (task.name, task.sigma_y, seed)
            }
            left = [w for w in wanted if (w.sampler, w.label, w.steps) not in done and tried(w, task)]
            if left:
                cells += rows_of(task, seed, left)
                written(path, cells)
        for line in summary([r for r in cells if (r["task"], r["sigma_y"]) == (task.name, task.sigma_y)]):
            print({k: round(v, 4) if isinstance(v, float) else v for k, v in line.items()}, flush=True)


def written(path: Path, cells: list[dict[str, Any]]) -> None:
    """The file: a line for every row, in the order of the tasks and ways."""
    tasks, ways = [(t.name, t.sigma_y) for t in TASKS], [(w.sampler, w.label, w.steps) for w in WAYS]
    cells = sorted(
        cells,
        key=lambda r: (
            tasks.index((r["task"], r["sigma_y"])),
            r["seed"],
            ways.index((r["sampler"], r["way"], r["steps"])),
        ),
    )

    def lines(rows: list[dict[str, Any]]) -> str:
        return ",\n".join(
            json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in r.items()}) for r in rows
        )

    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(
            f'{{"rows": [\n{lines(summary(cells))}\n],\n"cells": [\n{lines(cells)}\n]}}\n', encoding="utf-8"
        )


if __name__ == "__main__":
    main()
