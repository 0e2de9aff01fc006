#!/usr/bin/env python3
"""Mode error of the particle samplers against the number of particles, on mixtures whose posterior is known.

    python benchmarks/particles.py --out docs/data --figures docs/assets/figures

Each method makes the same number of samples whatever its populations: with P particles, ``ceil(samples / P)`` of them are pooled by
their estimates of the evidence. Mode error is the share of mass in the wrong mode; the floor is what exact draws of the same number
score, averaged over many sets. Goes on where it was stopped: rows that are there already are not run again.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from invdiff import InvdiffWarning, LinearOperator, Mask, MatrixOperator, solve
from invdiff.bench.posterior.distances import total_variation
from invdiff.bench.posterior.reference import Exact
from invdiff.files import atomic_write
from invdiff.operators.matrix import random_matrix
from invdiff.priors.named import PRIORS

TASKS: tuple[tuple[str, str, int, float, int, int], ...] = (  # name, prior, rows of A, sigma_y, measurements, samples
    ("gmm25-8-random", "gmm25-8", 1, 0.0, 4, 500),
    ("gmm25-8-random", "gmm25-8", 1, 0.05, 4, 500),
    ("gmm25-8-random", "gmm25-8", 1, 0.5, 4, 500),
    ("gmm25-8-mask", "gmm25-8", 1, 0.05, 4, 500),
    ("two-modes-mask", "two-modes16", 14, 0.0, 4, 500),
    ("two-modes-mask", "two-modes16", 14, 0.1, 4, 500),
    ("gmm25-80-random", "gmm25-80", 2, 0.05, 4, 500),
    ("gmm25-800-random", "gmm25-800", 4, 0.05, 8, 64),
)
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "tds": ("tds", {}),
    "tds, logsnr": ("tds", {"spacing": "logsnr"}),
    "tds, scalar": ("tds", {"twisting": "scalar"}),
    "mcg-diff": ("mcg-diff", {}),
    "fps-smc": ("fps-smc", {}),
}
PARTICLES = (4, 16, 64, 256)
FLOOR_SETS = 20
SEED = 0


def operator_of(task: str, rows: int, d: int) -> LinearOperator:
    """A: the first pixels, or random directions."""
    if task.endswith("mask"):
        return Mask((torch.arange(d) < rows).float()[None])
    return MatrixOperator(random_matrix(d, rows=rows, seed=SEED))


def run(task: tuple[str, str, int, float, int, int], label: str, particles: int) -> dict[str, Any]:
    """One row: mode error, floor and cost of a method with so many particles."""
    name, prior_name, rows, sigma_y, measurements, samples = task
    prior = PRIORS.get(prior_name)()
    A = operator_of(name, rows, prior.dimension)
    truth = prior.prior_sample(measurements, seed=SEED)
    y = A.measure(truth, sigma_y, seed=SEED)
    method, options = METHODS[label]
    started = time.perf_counter()
    solution = solve(
        A,
        y,
        method,
        backbone=prior,
        sigma_y=sigma_y,
        value_range=(-1, 1),
        n_samples=samples,
        particles=particles,
        seed=SEED,
        progress=False,
        **options,
    )
    seconds = time.perf_counter() - started
    errors, floors, classifier = [], [], []
    for i, x in enumerate(solution.samples):
        exact = Exact(prior, A, y[i : i + 1], sigma_y, truth[i], samples, i, {})
        assert exact.responsibilities is not None
        sets = [x.flatten(1), *(exact.sample(samples, "floor", k).flatten(1) for k in range(FLOOR_SETS))]
        wanted = exact.posterior.weights
        found, *ideal = (total_variation(exact.responsibilities(z).double().mean(0), wanted) for z in sets)
        errors.append(found)
        floors.append(sum(ideal) / len(ideal))
        classifier.append(exact.distance(x, "c2st"))
    return {
        "task": name,
        "sigma_y": sigma_y,
        "method": label,
        "particles": particles,
        "mode_error": sum(errors) / len(errors),
        "floor": sum(floors) / len(floors),
        "ratio": sum(errors) / sum(floors),
        "c2st": sum(classifier) / len(classifier),
        "least_ess": float(solution.diagnostics["ess"].min()),
        "nfe": solution.nfe,
        "vjps": solution.vjps,
        "measurements": measurements,
        "samples": samples,
        "seconds": round(seconds, 1),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: mode error of each method and number of particles, by task."""
    lines = [
        "Mode error (floor: what exact draws score), mean over the measurements; C2ST at 64 particles.",
        "",
        "| task | sigma_y | floor | method | "
        + " | ".join(f"P = {p}" for p in PARTICLES)
        + " | at 64, of the floor | C2ST |",
        "|:--|--:|--:|:--|" + "--:|" * (len(PARTICLES) + 2),
    ]
    for task in TASKS:
        for label in METHODS:
            found = {
                r["particles"]: r for r in rows if (r["task"], r["sigma_y"], r["method"]) == (task[0], task[3], label)
            }
            if not found:
                continue
            cells = [f"{found[p]['mode_error']:.3f}" if p in found else "" for p in PARTICLES]
            last = [f"{found[64]['ratio']:.2f}", f"{found[64]['c2st']:.2f}"] if 64 in found else ["", ""]
            floor = next(iter(found.values()))["floor"]
            lines.append(f"| {task[0]} | {task[3]:g} | {floor:.3f} | {label} | {' | '.join([*cells, *last])} |")
    return "\n".join(lines) + "\n"


def draw(rows: list[dict[str, Any]], folder: Path) -> None:
    """``particles.png``: mode error against particles, a panel for each task."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.2), layout="constrained")
    axes = figure.subplots(2, (len(TASKS) + 1) // 2, sharex=True)
    colours = dict(zip(METHODS, ("#0072b2", "#e69f00", "#56b4e9", "#d55e00", "#009e73"), strict=True))
    for panel, task in zip(axes.flat, TASKS, strict=False):
        here = [r for r in rows if (r["task"], r["sigma_y"]) == (task[0], task[3])]
        for label in METHODS:
            points = sorted((r["particles"], r["mode_error"]) for r in here if r["method"] == label)
            if points:
                panel.plot(*zip(*points, strict=True), marker="o", ms=4, lw=1.4, color=colours[label], label=label)
        if here:
            panel.axhline(here[0]["floor"], color="black", lw=1, ls="--", label="exact draws")
            panel.axhspan(0, 2 * here[0]["floor"], color="0.92", lw=0)
        panel.set_xscale("log", base=4)
        panel.set_xticks(PARTICLES, [str(p) for p in PARTICLES])
        panel.set_ylim(bottom=0)
        panel.set_title(f"{task[0]}, σ = {task[3]:g}", fontsize=9, loc="left")
        panel.spines[["top", "right"]].set_visible(False)
    for panel in axes[-1]:
        panel.set_xlabel("particles of a population")
    for panel in axes[:, 0]:
        panel.set_ylabel("mode error")
    axes[0, 0].legend(fontsize=7, frameon=False)
    figure.suptitle("Share of mass in the wrong mode; grey: within twice of what exact draws score", fontsize=10)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "particles.png") as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description="Mode error of the particle samplers against the number of particles.")
    parser.add_argument("--out", type=Path, default=Path("docs/data"), help="folder for particles.json and .md")
    parser.add_argument("--figures", type=Path, help="folder for particles.png; none by default")
    parser.add_argument("--particles", type=int, nargs="*", default=list(PARTICLES))
    parser.add_argument("--tasks", nargs="*", help="only these")
    options = parser.parse_args()
    warnings.simplefilter("ignore", InvdiffWarning)
    torch.set_num_threads(1)
    path = options.out / "particles.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else []
    done = {(r["task"], r["sigma_y"], r["method"], r["particles"]) for r in rows}
    for particles in options.particles:
        for task in TASKS:
            for label in METHODS:
                if (task[0], task[3], label, particles) in done or (options.tasks and task[0] not in options.tasks):
                    continue
                rows.append(run(task, label, particles))
                print({k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
                with atomic_write(path) as temporary:
                    temporary.write_text(json.dumps({"rows": rows}, indent=1), encoding="utf-8")
    with atomic_write(options.out / "particles.md") as temporary:
        temporary.write_text(table(rows), encoding="utf-8")
    if options.figures is not None:
        draw(rows, options.figures)


if __name__ == "__main__":
    main()
