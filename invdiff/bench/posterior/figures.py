"""The figures of a run with exact posteriors: what each sampler gets wrong, as pictures."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from invdiff import palette
from invdiff.bench.posterior.reference import Exact
from invdiff.bench.report.tables import Summary
from invdiff.bench.run.worker import first_posterior
from invdiff.metrics.ranks import bins_of, rank_histogram, uniformity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[dict[str, Any]]

_FEW_DIRECTIONS = 16  # W2 of covariances in hundreds of dimensions is all Monte Carlo: `overview` shows these settings
_BY_CHANCE = 0.55  # C2ST that some hundred samples hardly tell from 0.5
_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "legend.frameon": False,
    "svg.hashsalt": "invdiff",
}


def posterior_figures(summary: Summary) -> list[tuple[str, Figure]]:
    """Names and figures: all that the run allows, none for a suite without exact posteriors."""
    import matplotlib

    rows = _rows(summary)
    if not rows:
        return []
    drawn: dict[str, Figure | None] = {}
    with matplotlib.rc_context(_STYLE):
        distances = [
            row
            for row in rows
            if row["part"] not in ("steps", "calibration") and not row["part"].endswith(("prior", "learned"))
        ]
        plain = list(dict.fromkeys(row["label"] for row in distances if row["label"] == row["sampler"] != "exact"))
        drawn["overview"] = overview(distances, plain)
        drawn["c2st"] = told_apart(distances, plain)
        small = [row for row in distances if "w2_null" in row["metrics"] and row["dimension"] <= _FEW_DIRECTIONS]
        drawn["distances"] = bars(small, plain)
        drawn["steps"] = curves(rows)
        drawn["calibration"] = calibration([row for row in rows if row["part"] == "calibration"])
        drawn["denoiser"] = denoiser(rows)
        for task, group in _groups([row for row in distances if row["label"] in ("exact", *plain)]).items():
            exact = first_posterior(summary.run.suite, summary.run.suite.task(task))
            drawn[f"modes-{task}"] = modes(summary, exact, group)
            drawn[f"density-{task}"] = density(summary, exact, group)
    return [(re.sub(r" sigma_y=| ", "-", name), figure) for name, figure in drawn.items() if figure is not None]


def _rows(summary: Summary) -> list[dict[str, Any]]:
    """One row per task and sampler: means over the measurements, as the tables have them."""
    rows = []
    for table in summary.tables:
        task = summary.run.suite.task(table.task)
        if not any("posterior" in m.needs for m in table.metrics):
            continue
        for row in table.rows:
            records = [r for r in summary.records if (r.task, r.sampler) == (table.task, row.sampler) and r.ok]
            if not records:
                continue
            settings = records[0].settings
            rows.append(
                {
                    "part": task.part,
                    "task": table.task,
                    "sigma_y": table.sigma_y,
                    "dimension": math.prod(
                        summary.info["backbones"].get(table.task, summary.info["backbone"])["image_shape"]
                    ),
                    "label": row.sampler,
                    "base": re.sub(r" ?steps=\d+$", "", row.sampler),
                    "sampler": settings["sampler"],
                    "steps": settings.get("steps"),
                    "records": records,
                    "metrics": {n: e.value.mean for n, e in row.entries.items() if e.value is not None},
                }
            )
    return rows


def _groups(rows: Rows) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["task"], []).append(row)
    return groups


def _title(task: str) -> str:
    return task.removeprefix("steps ").removeprefix("calibration ").replace(" sigma_y=", ", σ = ")


def _canvas(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


# ---- distances --------------------------------------------------------------------------------------------------


def overview(rows: Rows, samplers: Sequence[str]) -> Figure | None:
    """Sliced Wasserstein-2 of every sampler on every setting; the colour is how many times the floor it is."""
    chart = _Chart(rows, samplers, "sw2")
    if chart.empty:
        return None
    ratio = chart.values / chart.floors[:, None]
    best = np.nanmin(np.where(np.isnan(chart.values), np.inf, chart.values), axis=1)
    ticks = {0: "1", math.log10(2): "2", math.log10(5): "5", 1: "10", 1.3: "20"}
    title = "Sliced Wasserstein-2 distance to the exact posterior, in posterior standard deviations"
    return chart.drawn(np.log10(ratio), (0, 1.3), chart.values == best[:, None], title, "times the floor", ticks)


def told_apart(rows: Rows, samplers: Sequence[str]) -> Figure | None:
    """C2ST of every sampler on every setting: how often a classifier tells its samples from exact ones."""
    chart = _Chart(rows, samplers, "c2st")
    if chart.empty:
        return None
    title = (
        f"Accuracy of a classifier that tells samples from exact ones: 0.5 is by chance (bold: at most {_BY_CHANCE:g})"
    )
    ticks = {v: f"{v:g}" for v in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)}
    bold = chart.values.round(2) <= _BY_CHANCE  # as it is printed
    return chart.drawn(chart.values, (0.5, 1.0), bold, title, "C2ST", ticks)


class _Chart:
    """A number for every sampler and setting, and what exact samples score."""

    def __init__(self, rows: Rows, samplers: Sequence[str], metric: str) -> None:
        self.groups, self.samplers = _groups([row for row in rows if metric in row["metrics"]]), samplers
        self.values = np.full((len(self.groups), len(samplers)), np.nan)
        self.floors = np.full(len(self.groups), np.nan)
        for i, group in enumerate(self.groups.values()):
            for row in group:
                if row["sampler"] == "exact":
                    self.floors[i] = row["metrics"][metric]
                elif row["label"] in samplers:
                    self.values[i, samplers.index(row["label"])] = row["metrics"][metric]

    @property
    def empty(self) -> bool:
        return not self.values.size

    def drawn(
        self, shade: Any, limits: tuple[float, float], bold: Any, title: str, legend: str, ticks: dict[float, str]
    ) -> Figure:
        """The numbers on fields coloured by `shade`; those that `bold` marks stand out."""
        n = len(self.samplers)
        figure = _canvas(2.6 + (0.72 if n <= 10 else 0.6) * n, 1.1 + 0.27 * len(self.groups))
        axes = figure.subplots()
        image = axes.imshow(shade, cmap="YlOrRd", vmin=limits[0], vmax=limits[1], aspect="auto")
        dark = shade > limits[0] + 0.73 * (limits[1] - limits[0])
        for (i, j), value in np.ndenumerate(self.values):
            if np.isfinite(value):
                style: Any = {"color": "white" if dark[i, j] else "black", "weight": "bold" if bold[i, j] else "normal"}
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, **style)
        titles = [f"{_title(task)}  (floor {floor:.2f})" for task, floor in zip(self.groups, self.floors, strict=True)]
        axes.set_yticks(range(len(self.groups)), titles, fontsize=8)
        slanted: Any = {} if n <= 10 else {"rotation": 35, "ha": "left", "rotation_mode": "anchor"}
        axes.set_xticks(range(n), self.samplers, fontsize=8, **slanted)
        axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
        axes.spines[:].set_visible(False)
        bar = figure.colorbar(image, ax=axes, shrink=0.6, aspect=30, pad=0.01, ticks=list(ticks))
        bar.ax.set_yticklabels(list(ticks.values()))
        bar.set_label(legend, fontsize=8)
        bar.outline.set_visible(False)
        figure.suptitle(title, fontsize=10)
        return figure


def bars(rows: Rows, samplers: Sequence[str]) -> Figure | None:
    """Wasserstein-2 in the null space of A for small Gaussian priors, the floor as a line."""
    groups = _groups(rows)
    if not groups:
        return None
    columns = min(4, len(groups))
    lines = math.ceil(len(groups) / columns)
    figure = _canvas(2.5 * columns + 0.7, 0.55 + (0.55 + 0.17 * len(samplers)) * lines)
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True, sharex=True)
    for axes in grid.flat[len(groups) :]:
        axes.set_visible(False)
    for axes, (task, group) in zip(grid.flat, groups.items(), strict=False):
        found = {row["label"]: row["metrics"]["w2_null"] for row in group}
        names = samplers[::-1]
        values = [found.get(name, 0.0) for name in names]
        axes.barh(range(len(names)), values, color=[palette.look(name)[0] for name in names], height=0.7)
        if "exact" in found:
            axes.axvline(found["exact"], color="black", lw=1, ls="--")
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(axis="y", length=0)
        axes.set_title(_title(task), loc="left")
    for axes in grid[-1]:
        axes.set_xlabel("W2 / posterior size")
    figure.suptitle(
        "Distance to the exact posterior in what the measurement does not see; dashed: exact samples", fontsize=10
    )
    return figure


# ---- step curves ------------------------------------------------------------------------------------------------


def curves(rows: Rows) -> Figure | None:
    """Distance against the number of steps: what goes away is discretisation, what stays is the method."""
    groups = _groups([row for row in rows if row["part"] == "steps"])
    if not groups:
        return None
    figure = _canvas(3.4 * len(groups) + 1.4, 3.4)
    grid = figure.subplots(1, len(groups), squeeze=False)[0]
    for axes, (task, group) in zip(grid, groups.items(), strict=True):
        metric = "w2_null" if all("w2_null" in row["metrics"] for row in group) else "sw2"
        for row in group:
            if row["sampler"] == "exact":
                axes.axhline(row["metrics"][metric], color="black", lw=1, ls="--", label="exact (floor)")
        bases = {row["base"]: row["sampler"] for row in group if row["sampler"] != "exact"}
        for base, (colour, marker) in palette.styles(list(bases), bases).items():
            style = "-" if base == bases[base] else "--"
            _curve(axes, [r for r in group if r["base"] == base], metric, base, color=colour, marker=marker, ls=style)
        prior = task.removeprefix("steps ").partition("-")[0]
        for base, style in (("prior only, DDPM", ":"), ("prior only, DDIM", "-.")):
            free = [
                r for r in rows if r["part"] == "prior" and r["base"] == base and r["task"].startswith(f"prior {prior}")
            ]
            _curve(axes, free, metric, base, color="black", ls=style, lw=1)
        axes.set_xscale("log")
        axes.set_yscale("log")
        steps = sorted({row["steps"] for row in group if row["steps"]})
        axes.set_xticks(steps, [str(s) for s in steps])
        axes.minorticks_off()
        low, high = axes.get_ylim()
        ticks = [v for v in (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2) if low <= v <= high]
        axes.set_yticks(ticks, [f"{v:g}" for v in ticks])
        axes.set_xlabel("steps")
        axes.set_ylabel("W2 in the null space" if metric == "w2_null" else "sliced W2")
        axes.set_title(_title(task), loc="left")
    handles: dict[str, Any] = {}
    for axes in grid:
        handles |= {t: h for h, t in zip(*axes.get_legend_handles_labels(), strict=True) if t not in handles}
    figure.legend(handles.values(), handles.keys(), loc="outside right center", fontsize=8)
    return figure


def _curve(axes: Axes, rows: Rows, metric: str, title: str, **style: Any) -> None:
    points = sorted((row["steps"], row["metrics"][metric]) for row in rows if metric in row["metrics"])
    if points:
        axes.plot(*zip(*points, strict=True), label=title, **{"lw": 1.3, "ms": 4, **style})


# ---- calibration ------------------------------------------------------------------------------------------------


def calibration(rows: Rows) -> Figure | None:
    """Histograms of the rank of the truth among the samples; flat is right, a U over-confident, a hump too wide."""
    from scipy import stats

    groups = _groups(rows)
    panels = [
        (task, space) for task, g in groups.items() for space in ("null", "range") if f"rank_{space}" in g[0]["metrics"]
    ]
    if not panels:
        return None
    columns = max(len(g) for g in groups.values())
    figure = _canvas(1.3 * columns + 0.4, 1.5 * len(panels) + 0.4)
    grid = figure.subplots(len(panels), columns, squeeze=False, sharex=True)
    for line, (task, space) in zip(grid, panels, strict=True):
        for axes in line[len(groups[task]) :]:
            axes.set_visible(False)
        for axes, row in zip(line, groups[task], strict=False):
            ranks = torch.tensor([int(r.metrics[f"rank_{space}"]) for r in row["records"]])
            histogram = rank_histogram(ranks, row["records"][0].settings["n_samples"], bins_of(row["records"]))
            counts = histogram.numpy()
            n, bins = counts.sum(), len(counts)
            low, high = stats.binom.interval(0.99, n, 1 / bins)
            axes.axhspan(low, high, color="0.85", lw=0)
            axes.bar(range(bins), counts, width=0.9, color=palette.look(row["sampler"])[0])
            axes.set_ylim(0, 4.2 * n / bins)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[["left"]].set_visible(False)
            p = uniformity(histogram)
            shown = f"p = {p:.2g}" if p >= 1e-4 else "p < 0.0001"
            axes.set_title(f"{row['label']}\n{shown}", fontsize=8)
        line[0].set_ylabel(f"{_title(task)}\n{space}", fontsize=7)
    figure.suptitle(
        "Rank of the truth among the samples: flat is calibrated (grey: 99 % band), a U is over-confident", fontsize=10
    )
    return figure


# ---- modes ------------------------------------------------------------------------------------------------------


def modes(summary: Summary, exact: Exact, rows: Rows) -> Figure | None:
    """Weight of every mode that counts, exact and per sampler (first measurement)."""
    if exact.responsibilities is None:
        return None
    found = {"exact": exact.posterior.weights}
    for row in rows:
        samples = summary.run.samples(row["records"][0])
        if samples is not None and row["sampler"] != "exact":
            found[row["label"]] = exact.responsibilities(torch.from_numpy(samples).flatten(1)).double().mean(0)
    weights = torch.stack(list(found.values())).numpy()
    kept = np.flatnonzero(weights.max(0) > 0.02)
    kept = kept[np.argsort(-weights[0, kept])]
    if len(kept) < 2:
        return None
    shown = weights[:, kept]
    figure = _canvas(1.6 + 0.42 * len(kept), 0.9 + 0.27 * len(found))
    axes = figure.subplots()
    axes.imshow(shown, cmap="Blues", vmin=0, vmax=max(0.3, shown.max()), aspect="auto")
    limit = 0.6 * max(0.3, shown.max())
    for (i, j), value in np.ndenumerate(shown):
        if value >= 0.005:
            axes.text(
                j,
                i,
                f"{100 * value:.0f}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if value > limit else "black",
            )
    axes.set_yticks(range(len(found)), list(found), fontsize=8)
    axes.set_xticks(range(len(kept)), [str(k + 1) for k in kept], fontsize=8)
    axes.set_xlabel("mode")
    axes.axhline(0.5, color="black", lw=1.2)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(f"Weight of the modes, %\n{_title(rows[0]['task'])}", loc="left", fontsize=9)
    return figure


def density(summary: Summary, exact: Exact, rows: Rows) -> Figure | None:
    """Samples of every sampler on the exact density of two coordinates (first measurement)."""
    picture = summary.run.suite.task(rows[0]["task"]).picture
    kept = [(row, summary.run.samples(row["records"][0])) for row in rows]
    panels = [(row, x.reshape(len(x), -1)[:, list(picture)]) for row, x in kept if x is not None]
    if len(picture) != 2 or not panels:
        return None
    i, j = picture
    weights, means, covariances = _two_dimensional(exact.posterior, i, j)
    everything = np.concatenate([points for _, points in panels])
    right = next((points for row, points in panels if row["sampler"] == "exact"), everything)
    low, high = np.quantile(everything, 0.002, axis=0), np.quantile(everything, 0.998, axis=0)
    low, high = np.minimum(low, right.min(0)), np.maximum(high, right.max(0))
    middle, half = (low + high) / 2, 0.56 * float((high - low).max())
    xs, ys = (np.linspace(m - half, m + half, 181) for m in middle)
    log_density = _log_density(xs, ys, weights, means, covariances)
    columns = 5
    lines = math.ceil(len(panels) / columns)
    figure = _canvas(1.9 * columns, 2.05 * lines + 0.3)
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (row, points) in zip(grid.flat, panels, strict=False):
        top = log_density.max()
        axes.contourf(
            xs,
            ys,
            log_density,
            levels=top + np.array([-9.0, -6, -4, -2, -1, 0]),
            cmap="Greys",
            alpha=0.75,
            vmin=top - 12,
            vmax=top + 3,
        )
        axes.plot(points[:, 0], points[:, 1], ".", ms=2.2, color="#d55e00", alpha=0.45, mec="none", rasterized=True)
        axes.set(xlim=xs[[0, -1]], ylim=ys[[0, -1]], aspect="equal", xticks=[], yticks=[])
        axes.spines[:].set_visible(True)
        axes.spines[:].set_color("0.8")
        error = row["metrics"].get("mode_error")
        axes.set_title(row["label"] + ("" if error is None else f"   {100 * error:.0f} % misplaced"), fontsize=8)
    figure.suptitle(
        f"Samples on the exact posterior density (grey), coordinates {i + 1} and {j + 1}: {_title(rows[0]['task'])}",
        fontsize=10,
    )
    return figure


def _two_dimensional(posterior: Any, i: int, j: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, means and covariances of a posterior's components in two coordinates."""
    pair = torch.tensor([i, j])
    components = getattr(posterior, "components", (posterior,))
    weights = posterior.weights if len(components) > 1 else torch.ones(1, dtype=torch.float64)
    kept = [k for k, w in enumerate(weights.tolist()) if w > 1e-6]
    means = torch.stack([components[k].mean.flatten()[pair].double() for k in kept])
    covariances = torch.stack([components[k].covariance[pair][:, pair].double() for k in kept])
    return weights[kept], means, covariances


def _log_density(xs: np.ndarray, ys: np.ndarray, weights: Tensor, means: Tensor, covariances: Tensor) -> np.ndarray:
    width = max(xs[1] - xs[0], ys[1] - ys[0])
    smooth = covariances + (0.7 * width) ** 2 * torch.eye(
        2, dtype=torch.float64
    )  # so that a degenerate one is drawn as a line
    grid = torch.from_numpy(np.stack(np.meshgrid(xs, ys), -1)).reshape(-1, 1, 2)
    apart = grid - means
    squares = torch.einsum("nki,kij,nkj->nk", apart, torch.linalg.inv(smooth), apart)
    joint = weights.log() - 0.5 * (squares + torch.logdet(smooth))
    return joint.logsumexp(1).reshape(len(ys), len(xs)).numpy()


# ---- learned against exact --------------------------------------------------------------------------------------


def denoiser(rows: Rows) -> Figure | None:
    """Exact and learned denoiser side by side, at every number of steps."""
    learned = [row for row in rows if row["part"] in ("learned", "learned prior") and "sw2" in row["metrics"]]
    bases = list(dict.fromkeys(row["base"] for row in learned))
    if not bases:
        return None
    exact_tasks = {row["task"].replace("learned ", "steps ") for row in learned} | {
        row["task"].replace("learned prior", "prior") for row in learned
    }
    figure = _canvas(2.1 * len(bases) + 0.6, 2.7)
    grid = figure.subplots(1, len(bases), squeeze=False, sharey=True)[0]
    for axes, base in zip(grid, bases, strict=True):
        own = [row for row in rows if row["base"] == base]
        right = [row for row in own if any(row["task"].startswith(t) for t in exact_tasks)]
        _curve(axes, right, "sw2", "exact denoiser", color=palette.COLOURS[0], marker="o")
        _curve(axes, [r for r in learned if r in own], "sw2", "learned denoiser", color=palette.COLOURS[1], marker="s")
        floors = [row for row in rows if row["sampler"] == "exact" and any(row["task"] == r["task"] for r in right)]
        for floor in floors:
            axes.axhline(floor["metrics"]["sw2"], color="black", lw=1, ls="--", label="exact samples")
        axes.set_xscale("log")
        steps = sorted({row["steps"] for row in learned})
        axes.set_xticks(steps, [str(s) for s in steps])
        axes.minorticks_off()
        axes.set_title(base.partition(",")[0], loc="left")
        axes.set_xlabel("steps")
    grid[0].set_ylabel("sliced W2")
    grid[0].set_ylim(bottom=0)
    grid[-1].legend(fontsize=7)
    figure.suptitle(
        f"Network, discretisation and method: {_title(learned[0]['task']).removeprefix('learned ')}. "
        "Right end of the blue line: the method",
        fontsize=10,
    )
    return figure
