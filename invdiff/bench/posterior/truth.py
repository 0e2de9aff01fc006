"""How far every sampler is from the exact posterior.

With a prior whose posterior is known (`priors`), draw x, measure it, run every sampler many times and compare its samples with
exact ones (`distances`). Four parts:

- distances: every sampler on every prior, operator and noise, with its own settings;
- steps: the same at 25, 100 and 1,000 steps, beside sampling the prior without any data: what is left at 1,000 steps is the
  method's error, what goes away is discretisation;
- calibration: ranks of the truth among the samples over many measurements;
- denoiser: the exact denoiser beside a small network trained on the same prior: the network's share of the error.

    truth("runs/truth")                      # results.jsonl, summary.csv, summary.md, *.png, *.svg
    truth("runs/truth", resume=True)         # goes on where it was stopped, to the same numbers

Every row "exact" is the Monte-Carlo floor: what a second set of exact samples scores.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import math
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invdiff.backbones.base import Backbone
from invdiff.bench.posterior.distances import (
    LEVELS,
    Directions,
    Reference,
    average,
    coverage,
    rank_histogram,
    ranks,
    uniformity,
)
from invdiff.bench.posterior.priors import Prior, learned_denoiser, make_operator, make_prior
from invdiff.errors import InvdiffError, InvdiffWarning
from invdiff.files import atomic_write
from invdiff.metrics import misfit
from invdiff.operators import LinearOperator
from invdiff.priors.gaussian import GaussianBackbone
from invdiff.samplers.base import sampler_class
from invdiff.solve import solve

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SUITE = Path(__file__).with_name("truth.toml")
EXACT = "exact"
PRIOR_ONLY = "unconditional"

_LARGEST_BASIS = 1024  # pixels up to which all directions are looked at; above, the leading ones
_LEADING = 32
_FLOOR_SETS = 3
_PICTURE_SAMPLES = 800

ProgressCallback = Callable[[int, int, str], Any]


# ---- what is run ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """One prior with one measurement at one noise.

    Attributes:
        task: name in reports.
        prior, operator: names of `priors`.
        sigma_y: noise of the measurement, model range.
        measurements: number of x that are drawn and measured.
        samples: restorations of each.
        seed: of x and its noise.
        picture: two coordinates to draw, or none.
    """

    task: str
    prior: str
    operator: str
    sigma_y: float
    measurements: int
    samples: int
    seed: int
    picture: tuple[int, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One run: a sampler on a setting.

    Attributes:
        part: "distances", "steps", "calibration" or "denoiser".
        sampler: a name that `solve` knows, or "exact" for the Monte-Carlo floor.
        steps: number of steps, None for the sampler's own.
        denoiser: "exact" or "learned".
        options: further fields of the sampler, as (name, value).
        iterations: training of the learned denoiser.
    """

    part: str
    setting: Setting
    sampler: str
    steps: int | None = None
    denoiser: str = EXACT
    options: tuple[tuple[str, Any], ...] = ()
    iterations: int = 0

    @property
    def key(self) -> str:
        """What makes this run itself: the same key gives the same numbers."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @property
    def slug(self) -> str:
        """A file name."""
        s = self.setting
        options = "".join(f"-{name}={value}" for name, value in self.options)
        name = f"{self.part}-{s.task}-{s.sigma_y:g}-{self.sampler}-{self.steps or 'own'}-{self.denoiser}{options}"
        return name.replace("+", "plus")


def load_suite(path: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """The suite file as a dict; the packaged one by default.

    Raises:
        InvdiffError: no such file, or not TOML.
    """
    path = Path(path or SUITE)
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise InvdiffError(f"suite {str(path)!r} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise InvdiffError(f"suite {str(path)!r} is not valid TOML: {error}") from error


def plan(suite: dict[str, Any], *, quick: bool = False, samplers: Sequence[str] | None = None) -> list[Cell]:
    """The runs of a suite, in order.

    Args:
        suite: as `load_suite` gives it.
        quick: the two-minute selection of its ``[quick]`` table.
        samplers: these only, instead of the suite's.

    Raises:
        InvdiffError: an unknown sampler.
    """
    short = suite["quick"] if quick else {}
    names = [sampler_class(name).name for name in samplers or suite["suite"]["samplers"]]
    methods = [name for name in names if name != PRIOR_ONLY]
    cells: list[Cell] = []

    def settings(entry: dict[str, Any]) -> Iterable[Setting]:
        sigmas = [s for s in entry["sigma_y"] if not quick or s in short["sigma_y"]][: 2 if quick else None]
        for sigma_y in sigmas:
            yield Setting(
                task=entry["name"],
                prior=entry["prior"],
                operator=entry["operator"],
                sigma_y=float(sigma_y),
                measurements=entry.get("measurements", 1),
                samples=min(entry["samples"], short.get("samples", entry["samples"])),
                seed=suite["suite"]["seed"],
                picture=tuple(entry.get("picture", ())),
            )

    for entry in suite.get("task", []):
        if quick and entry["name"] not in short["tasks"]:
            continue
        steps = {**short.get("most_steps", {}), **entry.get("steps", {})}
        for setting in settings(entry):
            cells += [Cell("distances", setting, name, steps.get(name)) for name in (EXACT, *methods)]
            cells += [Cell("distances", setting, n, steps.get(n), options=o) for n, o in _variants(entry, methods)]
    for entry in suite.get("curve", []):
        if quick and entry["name"] not in short["curves"]:
            continue
        for index, setting in enumerate(settings(entry)):
            cells.append(Cell("steps", setting, EXACT))
            for steps in short.get("steps", entry["steps"]):
                if index == 0:
                    for eta in (1.0, 0.0):
                        cells.append(Cell("steps", setting, PRIOR_ONLY, steps, options=(("eta", eta),)))
                cells += [Cell("steps", setting, name, steps) for name in methods]
                cells += [Cell("steps", setting, n, steps, options=o) for n, o in _variants(entry, methods)]
    for entry in suite.get("calibration", []):
        if quick and entry["name"] not in short["calibrations"]:
            continue
        steps = short.get("most_steps", {})
        for setting in settings(entry):
            many = short.get("calibration_measurements", entry["measurements"])
            setting = dataclasses.replace(setting, measurements=many, samples=entry["samples"])
            cells += [Cell("calibration", setting, name, steps.get(name)) for name in (EXACT, *methods)]
    for entry in suite.get("denoiser", []):
        wanted = [n for n in entry["samplers"] if n == PRIOR_ONLY or n in methods]
        iterations = short.get("iterations", entry["iterations"])
        for setting in settings(entry):
            cells.append(Cell("denoiser", setting, EXACT))
            for steps in short.get("steps", entry["steps"]):
                for denoiser in (EXACT, "learned"):
                    trained = iterations if denoiser == "learned" else 0
                    cells += [Cell("denoiser", setting, name, steps, denoiser, iterations=trained) for name in wanted]
    return cells


def _variants(entry: dict[str, Any], methods: Sequence[str]) -> list[tuple[str, tuple[tuple[str, Any], ...]]]:
    """Samplers with other settings than their own: ``variants = [{ sampler = "ddnm", eta = 0.0 }]``."""
    found = []
    for variant in entry.get("variants", []):
        options = dict(variant)
        name = sampler_class(options.pop("sampler")).name
        if name in methods:
            found.append((name, tuple(sorted(options.items()))))
    return found


# ---- the exact side ---------------------------------------------------------------------------------------------


class Problem:
    """A setting made concrete: x drawn from the prior, its measurements, and the exact posteriors to compare with.

    Attributes:
        prior: the prior.
        operator: A.
        x: (M, C, H, W), what was drawn.
        y: (M, *measurement_shape).
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.prior: Prior = make_prior(setting.prior)
        shape = self.prior.backbone.image_shape
        self.operator: LinearOperator = make_operator(setting.operator, shape, setting.seed)
        seed = _seed(f"{setting.prior}/{setting.operator}/{setting.seed}")
        self.x = self.prior.backbone.prior_sample(setting.measurements, seed=seed)
        self.y = self.operator.measure(self.x, setting.sigma_y, seed=seed)

    @cached_property
    def directions(self) -> Directions:
        """What A sees, of all pixels."""
        return Directions.of(self.operator.dense(self.prior.backbone.image_shape))

    @cached_property
    def posteriors(self) -> list[Any]:
        """The exact posterior of every measurement."""
        return [
            self.prior.backbone.posterior(self.operator, self.y[i : i + 1], self.setting.sigma_y)
            for i in range(len(self.y))
        ]

    @cached_property
    def references(self) -> list[Reference]:
        """One for every measurement."""
        return [self._reference(posterior, i) for i, posterior in enumerate(self.posteriors)]

    @cached_property
    def prior_reference(self) -> Reference:
        """For samples drawn without any data."""
        backbone, n = self.prior.backbone, self.setting.samples
        d = backbone.dimension

        def draws(n: int, seed: int) -> Tensor:
            return backbone.prior_sample(n, seed=seed).flatten(1)

        whole = Directions(torch.zeros(d, 0, dtype=torch.float64), torch.eye(d, dtype=torch.float64))
        responsibilities, weights = self._components()
        return Reference(
            draws=draws(n, 1),
            mean=backbone.mean.flatten(),
            covariance=_prior_covariance(self.prior),
            directions=whole,
            gaussian=self.prior.is_gaussian,
            new_draws=draws,
            responsibilities=responsibilities,
            mode_weights=weights,
        )

    def _components(self) -> tuple[Callable[[Tensor], Tensor] | None, Tensor | None]:
        backbone = self.prior.backbone
        if isinstance(backbone, GaussianBackbone):
            return None, None

        def responsibilities(x: Tensor) -> Tensor:
            return torch.cat(
                [backbone.responsibilities(part.reshape(-1, *backbone.image_shape)) for part in x.split(256)]
            )

        return responsibilities, backbone.weights

    def _reference(self, posterior: Any, index: int) -> Reference:
        backbone, setting = self.prior.backbone, self.setting
        shape = backbone.image_shape
        y = self.y[index : index + 1].double()

        def draws(n: int, seed: int) -> Tensor:
            return posterior.sample(n, seed=seed).flatten(1)

        def off(x: Tensor) -> float:
            return misfit_rms(self.operator, x.reshape(-1, *shape), y)

        responsibilities, _ = self._components()
        weights = posterior.weights if responsibilities is not None else None
        exact, basis, mean = draws(setting.samples, _seed(f"exact/{index}")), None, posterior.mean.flatten().double()
        if backbone.dimension > _LARGEST_BASIS:
            basis, directions = self._leading(draws(max(200, setting.samples), _seed(f"basis/{index}")), mean)
            inner = (draws(1000, _seed(f"covariance/{index}")).double() - mean) @ basis
            covariance, mean = inner.mT @ inner / len(inner), mean @ basis
        else:
            covariance, directions = posterior.covariance.double(), self.directions
        return Reference(
            draws=exact,
            mean=mean,
            covariance=covariance,
            directions=directions,
            gaussian=self.prior.is_gaussian,
            new_draws=draws,
            responsibilities=responsibilities,
            mode_weights=weights,
            misfit=off,
            basis=basis,
        )

    def _leading(self, draws: Tensor, mean: Tensor) -> tuple[Tensor, Directions]:
        """The leading principal directions of the posterior within what A sees and within what it doesn't."""
        shape = self.prior.backbone.image_shape
        centred = (draws.double() - mean).reshape(-1, *shape)
        seen = self.operator.project(centred).flatten(1)
        parts = [(seen, self.setting.sigma_y > 0), (centred.flatten(1) - seen, True)]
        bases = []
        for values, varies in parts:
            k = min(_LEADING, len(values) - 1) if varies else 0
            bases.append(torch.linalg.svd(values, full_matrices=False)[2][:k].mT)
        k, total = bases[0].shape[1], bases[0].shape[1] + bases[1].shape[1]
        identity = torch.eye(total, dtype=torch.float64)
        return torch.cat(bases, 1), Directions(identity[:, :k], identity[:, k:])


def misfit_rms(operator: LinearOperator, x: Tensor, y: Tensor) -> float:
    """rms of the misfits of all `x`, in the unit of y."""
    return float(misfit(x.to(y.dtype), operator, y.expand(len(x), *y.shape[1:])).square().mean().sqrt())


def _prior_covariance(prior: Prior) -> Tensor:
    backbone = prior.backbone
    if isinstance(backbone, GaussianBackbone):
        return backbone.covariance.double()
    weights, means = backbone.weights.double(), backbone.means.flatten(1).double()
    apart = means - weights @ means
    within = (weights[:, None] * backbone.variances.flatten(1).double()).sum(0).diag()
    factors = backbone.factors.double()
    if factors.shape[2]:
        raise InvdiffError(f"the prior-only row needs a prior of isotropic components, {prior.name} has low-rank ones")
    return within + (weights[:, None] * apart).mT @ apart


@lru_cache(maxsize=2)
def _problem(setting: Setting) -> Problem:
    return Problem(setting)


@lru_cache(maxsize=2)
def _learned(prior: str, iterations: int, seed: int) -> Backbone:
    return learned_denoiser(make_prior(prior).backbone, iterations, batch=256, seed=seed)


# ---- one run ----------------------------------------------------------------------------------------------------


def run_cell(cell: Cell) -> dict[str, Any]:
    """One result: the cell's fields, network calls, seconds, the sampler's settings and ``metrics``.

    Deterministic: the draws are a function of the cell. Samples for pictures are under ``"points"``, (n, 2), where the
    setting asks for them.
    """
    problem = _problem(cell.setting)
    row: dict[str, Any] = {
        "part": cell.part,
        **dataclasses.asdict(cell.setting),
        "sampler": cell.sampler,
        "steps": cell.steps,
        "denoiser": cell.denoiser,
        "options": dict(cell.options),
    }
    if cell.sampler == EXACT:
        started = time.perf_counter()
        metrics, picture = _exact_calibration(problem) if cell.part == "calibration" else _exact_floor(problem)
        row |= {"nfe": 0, "vjp": 0, "seconds": round(time.perf_counter() - started, 3), "settings": {}}
    else:
        solution, vjp = _solve(problem, cell)
        row |= {
            "nfe": solution.nfe,
            "vjp": vjp,
            "seconds": round(solution.seconds, 3),
            "settings": _plain(solution.settings),
        }
        x = solution.samples.flatten(2)
        picture = x[0]
        if cell.part == "calibration":
            metrics = calibrate(problem, x)
        else:
            if cell.sampler == PRIOR_ONLY:
                references = [problem.prior_reference] * len(x)
            else:
                references = problem.references
            metrics = average([reference.compare(part) for reference, part in zip(references, x, strict=True)])
            if references[0].mode_weights is not None:
                metrics["modes"] = references[0].compare_modes(x[0])
    row["metrics"] = metrics
    if cell.setting.picture and cell.part == "distances":
        row["points"] = picture[:_PICTURE_SAMPLES, list(cell.setting.picture)].float().numpy()
    return row


def _solve(problem: Problem, cell: Cell) -> tuple[Any, int]:
    setting, prior = cell.setting, problem.prior
    method = sampler_class(cell.sampler)
    options = dict(cell.options)
    if not prior.clip and "clip" in {f.name for f in dataclasses.fields(method)}:
        options["clip"] = False
    backbone: Backbone = prior.backbone
    if cell.denoiser == "learned":
        backbone = _learned(setting.prior, cell.iterations, setting.seed)
    generator = torch.Generator().manual_seed(_seed(cell.key))

    def noise(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InvdiffWarning)
        solution = solve(
            problem.operator,
            problem.y,
            cell.sampler,
            backbone=backbone,
            sigma_y=setting.sigma_y,
            n_samples=setting.samples,
            noise=noise,
            value_range=(-1.0, 1.0),
            steps=cell.steps,
            progress=False,
            **options,
        )
    return solution, solution.vjps


def _exact_floor(problem: Problem) -> tuple[dict[str, Any], Tensor]:
    n = problem.setting.samples
    floors = [reference.floor(n, _FLOOR_SETS) for reference in problem.references]
    metrics = average(floors)
    first = problem.references[0]
    if first.mode_weights is not None:
        metrics["modes"] = [round(v, 4) for v in first.mode_weights.tolist()]
    return metrics, first.new_draws(n, 77)


# ---- calibration ------------------------------------------------------------------------------------------------


def calibrate(problem: Problem, samples: Tensor) -> dict[str, Any]:
    """Simulation-based calibration (Talts et al., 2018) of one sampler over many measurements.

    The test quantity is the coordinate along a random direction, one for each measurement, among those that A does
    not see and (with noise) among those that it sees; so the ranks of different measurements are independent.

    Args:
        problem: M measurements with their truths.
        samples: (M, L, d).

    Returns:
        For "unseen" and "seen": ``ranks_*`` (histogram), ``p_*`` (chi-square test of uniformity), ``coverage_50_*`` and
        ``coverage_90_*`` (share of truths within the central interval, over all directions).
    """
    truth = problem.x.flatten(1).double()
    samples = samples.double()
    out: dict[str, Any] = {"n": samples.shape[1], "measurements": len(samples)}
    parts = {"unseen": problem.directions.unseen}
    if problem.setting.sigma_y > 0:
        parts["seen"] = problem.directions.seen
    for name, basis in parts.items():
        if basis.shape[1] == 0:
            continue
        inner_truth, inner = truth @ basis, samples @ basis
        generator = torch.Generator().manual_seed(_seed(f"directions/{name}"))
        u = torch.randn(len(truth), basis.shape[1], generator=generator, dtype=torch.float64)
        rank = ranks((inner_truth * u).sum(1), (inner * u[:, None]).sum(2))
        histogram = rank_histogram(rank, samples.shape[1], 10 if (samples.shape[1] + 1) % 10 == 0 else None)
        out[f"ranks_{name}"] = histogram.tolist()
        out[f"p_{name}"] = uniformity(histogram)
        for level in LEVELS:
            out[f"coverage_{round(100 * level)}_{name}"] = coverage(inner, inner_truth[:, None], level)
    return out


def _exact_calibration(problem: Problem) -> tuple[dict[str, Any], Tensor]:
    draws = [
        p.sample(problem.setting.samples, seed=_seed(f"sbc/{i}")).flatten(1) for i, p in enumerate(problem.posteriors)
    ]
    samples = torch.stack(draws)
    return calibrate(problem, samples), samples[0]


# ---- the whole suite --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TruthRun:
    """A finished run.

    Attributes:
        folder: where everything was written.
        rows: all results, in the order of the plan.
        skipped: cells that could not be run, with the reason.
        files: summary and figures.
    """

    folder: Path
    rows: list[dict[str, Any]]
    skipped: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    @property
    def markdown(self) -> str:
        """The tables."""
        return tables(self.rows)


def truth(
    out: str | os.PathLike[str],
    quick: bool = False,
    resume: bool = False,
    samplers: Sequence[str] | None = None,
    progress: ProgressCallback | None = None,
    *,
    suite: str | os.PathLike[str] | None = None,
    figures: bool = True,
) -> TruthRun:
    """Run the exact-truth suite and write its report.

    Args:
        out: folder for ``results.jsonl`` (one line for each finished run, written at once), ``run.json`` (suite and versions),
            ``samples/`` (for the pictures), ``summary.csv``, ``summary.md`` and the figures. Made if it isn't there.
        quick: the two-minute selection.
        resume: go on with what `out` already holds; the numbers end up the same as without a break.
        samplers: these only.
        progress: called as ``progress(done, total, what)`` after every run.
        suite: another suite file than the packaged ``truth.toml``.
        figures: also draw them.

    Raises:
        InvdiffError: `out` holds results and `resume` is False, or results of another suite.
    """
    run = run_truth(out, quick=quick, resume=resume, samplers=samplers, progress=progress, suite=suite)
    return dataclasses.replace(run, files=summary(out, figures=figures))


def run_truth(
    out: str | os.PathLike[str],
    *,
    quick: bool = False,
    resume: bool = False,
    samplers: Sequence[str] | None = None,
    progress: ProgressCallback | None = None,
    suite: str | os.PathLike[str] | None = None,
) -> TruthRun:
    """The runs of `truth` without the report; arguments as there."""
    folder = Path(out)
    description = load_suite(suite)
    cells = plan(description, quick=quick, samplers=samplers)
    wanted = {"suite": description, "quick": quick, "samplers": list(samplers or description["suite"]["samplers"])}
    done = _open(folder, wanted, resume)
    skipped: list[str] = []
    missing: dict[str, str] = {}
    with open(folder / "results.jsonl", "a", encoding="utf-8") as file:
        for number, cell in enumerate(cells):
            what = f"{cell.part}: {cell.setting.task}, sigma_y {cell.setting.sigma_y:g}, {cell.sampler}"
            if cell.key not in done and cell.setting.prior not in missing:
                try:
                    make_prior(cell.setting.prior)
                except (InvdiffError, ImportError) as error:
                    missing[cell.setting.prior] = str(error)
            if cell.setting.prior in missing:
                skipped.append(f"{what}: {missing[cell.setting.prior]}")
            elif cell.key not in done:
                row = _guarded(cell)
                picture = row.pop("points", None)
                if picture is not None:
                    _save_picture(folder / "samples" / f"{cell.slug}.npy", picture)
                line = json.dumps({**row, "key": cell.key})
                row = json.loads(line)
                file.write(line + "\n")
                file.flush()
                os.fsync(file.fileno())
                done[cell.key] = row
            if progress is not None:
                progress(number + 1, len(cells), what)
    rows = [done[cell.key] for cell in cells if cell.key in done]
    return TruthRun(folder, rows, skipped)


def _guarded(cell: Cell) -> dict[str, Any]:
    """`run_cell`; what fails is recorded with its error."""
    try:
        return run_cell(cell)
    except Exception as error:
        return {
            "part": cell.part,
            **dataclasses.asdict(cell.setting),
            "sampler": cell.sampler,
            "steps": cell.steps,
            "denoiser": cell.denoiser,
            "options": dict(cell.options),
            "error": f"{type(error).__name__}: {error}",
        }


def _open(folder: Path, wanted: dict[str, Any], resume: bool) -> dict[str, dict[str, Any]]:
    """The results that are there already, by key; the folder is made ready."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "samples").mkdir(exist_ok=True)
    results, about = folder / "results.jsonl", folder / "run.json"
    if results.exists() and results.stat().st_size and not resume:
        raise InvdiffError(
            f"out = {str(folder)!r} already holds results; resume=True goes on with them, or name another folder"
        )
    if about.exists() and resume:
        before = json.loads(about.read_text())
        if {k: before.get(k) for k in wanted} != json.loads(json.dumps(wanted)):
            raise InvdiffError(
                f"out = {str(folder)!r} holds results of another suite or selection; name another folder"
            )
    else:
        versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
        with atomic_write(about) as temporary:
            temporary.write_text(json.dumps({**wanted, "versions": versions, "machine": platform.machine()}, indent=1))
    rows = read_results(folder)
    with atomic_write(results) as temporary:  # without a line that was cut off
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {row["key"]: row for row in rows}


def read_results(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """All results of a run folder, one dict each; a last line that was cut off by a crash is left out."""
    path = Path(folder) / "results.jsonl"
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def _save_picture(path: Path, points: np.ndarray) -> None:
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.save(file, points.astype(np.float32))


# ---- reports ----------------------------------------------------------------------------------------------------

COLUMNS: dict[str, tuple[str, str]] = {
    "bias_seen": ("bias seen", "{:.3f}"),
    "bias_unseen": ("bias", "{:.3f}"),
    "var_seen": ("var seen", "{:.3f}"),
    "var_unseen": ("var", "{:.3f}"),
    "w2_unseen": ("W2 unseen", "{:.3f}"),
    "w2": ("W2", "{:.3f}"),
    "sw2": ("SW2", "{:.3f}"),
    "max_sw2": ("max SW2", "{:.3f}"),
    "mmd": ("MMD", "{:.3f}"),
    "c2st": ("C2ST", "{:.2f}"),
    "coverage_90": ("cover 90", "{:.2f}"),
    "mode_error": ("mode error", "{:.3f}"),
    "misfit": ("misfit", "{:.3f}"),
}
"""Metrics of the tables: key -> (heading, format)."""

CALIBRATION_COLUMNS: dict[str, tuple[str, str]] = {
    f"{what}_{part}": (f"{title} {part}", form)
    for part in ("unseen", "seen")
    for what, title, form in (
        ("p", "p", "{:.2g}"),
        ("coverage_50", "cover 50", "{:.2f}"),
        ("coverage_90", "cover 90", "{:.2f}"),
    )
}


def summary(out: str | os.PathLike[str], figures: bool = True) -> list[Path]:
    """Write ``summary.csv``, ``summary.md`` and the figures of a run folder; returns their paths.

    Raises:
        InvdiffError: the folder holds no results.
    """
    folder = Path(out)
    rows = read_results(folder)
    if not rows:
        raise InvdiffError(f"out = {str(folder)!r} holds no results yet")
    files = [folder / "summary.csv", folder / "summary.md"]
    with atomic_write(files[0]) as temporary:
        _write_csv(temporary, rows)
    with atomic_write(files[1]) as temporary:
        temporary.write_text(tables(rows), encoding="utf-8")
    if figures:
        from invdiff.bench.posterior.figures import draw_figures

        files += draw_figures(folder, rows)
    return files


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    fields = [
        "part",
        "task",
        "prior",
        "operator",
        "sigma_y",
        "sampler",
        "steps",
        "denoiser",
        "options",
        "samples",
        "measurements",
    ]
    fields += ["nfe", "vjp", "seconds", "error"]
    found = {k for row in rows for k, v in row.get("metrics", {}).items() if not isinstance(v, list)} - {
        "n",
        "measurements",
    }
    ordered = [k for k in (*COLUMNS, *CALIBRATION_COLUMNS) if k in found]
    metrics = ordered + sorted(found - set(ordered))
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*fields, *metrics])
        for row in rows:
            values = [json.dumps(row[f]) if f == "options" else row.get(f, "") for f in fields]
            writer.writerow([*values, *[row.get("metrics", {}).get(m, "") for m in metrics]])


def label(row: dict[str, Any]) -> str:
    """What a row is called in tables and figures."""
    if row["sampler"] == EXACT:
        return "exact (floor)"
    if row["sampler"] == PRIOR_ONLY:
        return "prior only, DDIM" if row["options"].get("eta") == 0 else "prior only, DDPM"
    return ", ".join(
        [row["sampler"], *[f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in row["options"].items()]]
    )


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """All results as Markdown, one table for each setting; the row "exact (floor)" is what exact samples score."""
    out = [
        "# Distance to the exact posterior",
        "",
        "bias: of the mean, in posterior standard deviations; var: ratio of variances (1 is right, below 1 over-confident); both "
        "over the directions that the measurement does not see, unless it says *seen*. W2 (Gaussian priors) and SW2 (sliced): "
        "Wasserstein-2 over the posterior's size. MMD; C2ST: accuracy of a classifier (0.5 = indistinguishable); cover 90: "
        "exact draws within the samples' 90 % interval; mode error: mass in the wrong mode; misfit: rms of A x - y. NFE: "
        "network calls, \\* with as many gradients.",
        "",
    ]
    titles = {
        "distances": "Distances",
        "steps": "Step curves",
        "calibration": "Calibration",
        "denoiser": "Learned denoiser",
    }
    for part, title in titles.items():
        groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for row in rows:
            if row["part"] == part:
                groups.setdefault((row["task"], row["sigma_y"]), []).append(row)
        if groups:
            out += [f"## {title}", ""]
        for (task, sigma_y), group in groups.items():
            first = group[0]
            out += [
                f"### {task}, sigma_y = {sigma_y:g}",
                "",
                f"{first['prior']}, {first['operator']}, {first['measurements']} measurement(s) x {first['samples']} samples",
                "",
                _table(group, CALIBRATION_COLUMNS if part == "calibration" else COLUMNS, part),
                "",
            ]
    return "\n".join(out)


def _table(rows: Sequence[dict[str, Any]], columns: dict[str, tuple[str, str]], part: str) -> str:
    used = {k: v for k, v in columns.items() if any(k in row.get("metrics", {}) for row in rows)}
    extra = ["steps"] if part in ("steps", "denoiser") else []
    extra += ["denoiser"] if part == "denoiser" else []
    head = ["sampler", *extra, "NFE", *[title for title, _ in used.values()], "s"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        if "error" in row:
            lines.append(
                "| " + " | ".join([label(row), f"failed: {row['error'][:80]}"] + [""] * (len(head) - 2)) + " |"
            )
            continue
        exact = row["sampler"] == EXACT
        cells = [label(row), *["" if exact else str(row[name] or "own") for name in extra]]
        cells.append("" if exact else f"{row['nfe']}{'*' if row['vjp'] else ''}")
        for key, (_, form) in used.items():
            value = row["metrics"].get(key)
            cells.append("" if value is None or not math.isfinite(value) else form.format(value))
        lines.append("| " + " | ".join([*cells, "" if exact else f"{row['seconds']:.1f}"]) + " |")
    return "\n".join(lines)


# ---- the table of the documentation -----------------------------------------------------------------------------


def posterior_table(
    n: int = 2000, measurements: int = 8, seed: int = 0, progress: ProgressCallback | None = None
) -> tuple[str, list[dict[str, Any]]]:
    """Every sampler with its default settings against the exact posterior of 8 correlated pixels of which the first 4 are
    observed, at sigma_y 0 and 0.1.

    Args:
        n: samples of each measurement.
        measurements: number of measurements that the numbers are averaged over.
        seed: of the truths and their noise.
        progress: called as ``progress(done, total, what)``.

    Returns:
        The Markdown, and the rows as dicts (bias, var, W2 and misfit as in `Reference.compare`).
    """
    runs: list[tuple[str, dict[str, Any]]] = [
        ("repaint", {}),
        ("repaint", {"steps": 1000}),
        ("replacement", {}),
        *[(name, {}) for name in ("ddnm", "ddnm+", "ddrm", "diffpir", "pigdm", "mcg", "dps")],
        ("ddnm", {"steps": 1000, "eta": 0.0}),
        ("pigdm", {"steps": 1000}),
        ("mcg", {"scale": 0.02}),
        ("dps", {"scale": 0.02}),
    ]
    rows: list[dict[str, Any]] = []
    out: list[str] = []
    settings = [Setting("table", "gaussian8", "mask-first-4", s, measurements, n, seed) for s in (0.0, 0.1)]
    total = len(settings) * (len(runs) + 1)
    for setting in settings:
        seen = setting.sigma_y > 0
        keys = ["bias_unseen", "var_unseen", "w2_unseen", *(["bias_seen", "var_seen", "w2"] if seen else []), "misfit"]
        head = ["sampler", "NFE", "bias", "var", "W2", *(["bias seen", "var seen", "W2 all"] if seen else []), "misfit"]
        out += [f"sigma_y = {setting.sigma_y:g}", "", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
        found = []
        for name, options in [*runs, (PRIOR_ONLY, {"steps": 1000}), (EXACT, {})]:
            if name == PRIOR_ONLY and setting.sigma_y > 0:
                continue
            others = tuple(sorted((k, v) for k, v in options.items() if k != "steps"))
            row = run_cell(Cell("distances", setting, name, options.get("steps"), options=others))
            found.append(row)
            if progress is not None:
                progress(len(rows) + len(found), total, f"sigma_y {setting.sigma_y:g}, {name}")
        for row in found:
            title = label(row)
            if row["sampler"] not in (EXACT,) and row["steps"]:
                title += f", {row['steps']} steps"
            values = [row["metrics"].get(key) for key in keys]
            calls = "" if row["sampler"] == EXACT else f"{row['nfe']}{'*' if row['vjp'] else ''}"
            out.append(f"| {' | '.join([title, calls, *['' if v is None else f'{v:.3f}' for v in values]])} |")
        rows += found
        out.append("")
    about = (
        f"Prior: 8 pixels, standard deviation 0.25, correlation 0.8^|i-j|; the first 4 observed. {measurements} "
        f"measurements, {n:,} samples of each. bias: of the mean of the unobserved half, in posterior standard deviations; "
        "var: ratio of variances there (1 is right); W2: Wasserstein-2 distance there over the posterior's size (0 is right); "
        "misfit: rms of A x - y. NFE: network calls, \\* with as many gradients. *exact (floor)* is what a second set of exact "
        "samples scores; *prior only* is sampling without data, against the prior: pure discretisation."
    )
    return "\n".join([about, "", *out]), rows


# ---- small things -----------------------------------------------------------------------------------------------


def _seed(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "little")


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(settings, default=str))
