"""The figures of `truth`: what each sampler gets wrong, as pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from invdiff.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[dict[str, Any]]

# Okabe and Ito's colours, told apart with any kind of colour vision, without their yellow; line styles tell the rest apart.
_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#8a63c9",
    "#56b4e9",
    "#b8860b",
    "#7f7f7f",
    "#a0522d",
    "#222222",
)
_MARKERS = "os^DvPX*<>"
_FEW_DIRECTIONS = 16  # W2 of covariances in hundreds of dimensions is all Monte Carlo: `overview` shows these settings
_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "legend.frameon": False,
    "svg.hashsalt": "invdiff",
}


def draw_figures(folder: Path, rows: Rows) -> list[Path]:
    """Draw every figure that the results allow into `folder`, as PNG and SVG; returns the paths."""
    import matplotlib

    from invdiff.bench.posterior.truth import label

    rows = [{**row, "label": label(row)} for row in rows if "metrics" in row]
    samplers = list(dict.fromkeys(row["label"] for row in rows if row["sampler"] not in ("exact", "unconditional")))
    plain = [name for name in samplers if "," not in name]
    look = {s: (_COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)]) for i, s in enumerate(samplers)}
    drawn: dict[str, Figure | None] = {}
    with matplotlib.rc_context(_STYLE):
        distances = [row for row in rows if row["part"] == "distances"]
        drawn["overview"] = overview(distances, plain)
        gaussian = [row for row in distances if "w2_unseen" in row["metrics"]]
        small = [row for row in gaussian if len(row["metrics"]["ratios_unseen"]) <= _FEW_DIRECTIONS]
        drawn["distances"] = bars(small, plain, look)
        drawn["steps"] = curves([row for row in rows if row["part"] == "steps"], look)
        drawn["calibration"] = calibration([row for row in rows if row["part"] == "calibration"], look)
        drawn["denoiser"] = denoiser([row for row in rows if row["part"] == "denoiser"])
        for key, group in _groups(distances).items():
            name = f"{key[0]}-{key[1]:g}"
            drawn[f"modes-{name}"] = modes(group)
            drawn[f"density-{name}"] = density(folder, group)
        files = []
        for name, figure in drawn.items():
            if figure is None:
                continue
            for ending in ("png", "svg"):
                path = folder / f"{name}.{ending}"
                with atomic_write(path) as temporary:
                    figure.savefig(temporary, dpi=150, metadata={"Date": None} if ending == "svg" else None)
                files.append(path)
    return files


def _groups(rows: Rows) -> dict[tuple[str, float], list[dict[str, Any]]]:
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["sigma_y"]), []).append(row)
    return groups


def _canvas(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


# ---- distances --------------------------------------------------------------------------------------------------


def overview(rows: Rows, samplers: Sequence[str]) -> Figure | None:
    """Sliced Wasserstein-2 of every sampler on every setting; the colour is how many times the floor it is."""
    groups = _groups(rows)
    if not groups:
        return None
    values = np.full((len(groups), len(samplers)), np.nan)
    floors = np.full(len(groups), np.nan)
    for i, group in enumerate(groups.values()):
        for row in group:
            if row["sampler"] == "exact":
                floors[i] = row["metrics"]["sw2"]
            elif row["label"] in samplers:
                values[i, samplers.index(row["label"])] = row["metrics"]["sw2"]
    figure = _canvas(2.6 + 0.72 * len(samplers), 1.1 + 0.27 * len(groups))
    axes = figure.subplots()
    ratio = values / floors[:, None]
    image = axes.imshow(np.log10(ratio), cmap="YlOrRd", vmin=0, vmax=1.3, aspect="auto")
    best = np.nanmin(np.where(np.isnan(values), np.inf, values), axis=1)
    for i in range(len(groups)):
        for j in range(len(samplers)):
            if np.isfinite(values[i, j]):
                dark, weight = ratio[i, j] > 9, "bold" if values[i, j] == best[i] else "normal"
                colour = "white" if dark else "black"
                axes.text(
                    j, i, f"{values[i, j]:.2f}", ha="center", va="center", fontsize=8, color=colour, weight=weight
                )
    titles = [
        f"{task}, σ {sigma_y:g}  (floor {floor:.2f})" for (task, sigma_y), floor in zip(groups, floors, strict=True)
    ]
    axes.set_yticks(range(len(groups)), titles, fontsize=8)
    axes.set_xticks(range(len(samplers)), samplers, fontsize=8)
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(
        image, ax=axes, shrink=0.6, aspect=30, pad=0.01, ticks=[0, math.log10(2), math.log10(5), 1, 1.3]
    )
    bar.ax.set_yticklabels(["1", "2", "5", "10", "20"])
    bar.set_label("times the floor", fontsize=8)
    bar.outline.set_visible(False)
    figure.suptitle(
        "Sliced Wasserstein-2 distance to the exact posterior, in posterior standard deviations", fontsize=10
    )
    return figure


def bars(rows: Rows, samplers: Sequence[str], look: dict[str, tuple[str, str]]) -> Figure | None:
    """Wasserstein-2 on the unseen directions for small Gaussian priors, the floor as a line."""
    groups = _groups(rows)
    if not groups:
        return None
    columns = min(4, len(groups))
    lines = math.ceil(len(groups) / columns)
    figure = _canvas(2.5 * columns + 0.7, 0.55 + (0.55 + 0.17 * len(samplers)) * lines)
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True, sharex=True)
    for axes in grid.flat[len(groups) :]:
        axes.set_visible(False)
    for axes, ((task, sigma_y), group) in zip(grid.flat, groups.items(), strict=False):
        found = {"exact" if row["sampler"] == "exact" else row["label"]: row["metrics"]["w2_unseen"] for row in group}
        names = samplers[::-1]
        values = [found.get(name, 0.0) for name in names]
        axes.barh(range(len(names)), values, color=[look[name][0] for name in names], height=0.7)
        if "exact" in found:
            axes.axvline(found["exact"], color="black", lw=1, ls="--")
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(axis="y", length=0)
        axes.set_title(f"{task}, σ = {sigma_y:g}", loc="left")
    for axes in grid[-1]:
        axes.set_xlabel("W2 / posterior size")
    figure.suptitle(
        "Distance to the exact posterior in what the measurement does not see; dashed: exact samples", fontsize=10
    )
    return figure


# ---- step curves ------------------------------------------------------------------------------------------------


def curves(rows: Rows, look: dict[str, tuple[str, str]]) -> Figure | None:
    """Distance against the number of steps: what goes away is discretisation, what stays is the method."""
    groups = _groups(rows)
    if not groups:
        return None
    figure = _canvas(3.4 * len(groups) + 1.4, 3.4)
    grid = figure.subplots(1, len(groups), squeeze=False)[0]
    for axes, ((task, sigma_y), group) in zip(grid, groups.items(), strict=True):
        metric = "w2_unseen" if all("w2_unseen" in row["metrics"] for row in group) else "sw2"
        for row in group:
            if row["sampler"] == "exact":
                axes.axhline(row["metrics"][metric], color="black", lw=1, ls="--", label="exact (floor)")
        for name, (colour, marker) in look.items():
            _curve(axes, [r for r in group if r["label"] == name], metric, name, color=colour, marker=marker)
        for eta, title, style in ((1.0, "prior only, DDPM", ":"), (0.0, "prior only, DDIM", "-.")):
            free = [
                r for r in rows if r["task"] == task and r["sampler"] == "unconditional" and r["options"]["eta"] == eta
            ]
            _curve(axes, free, metric, title, color="black", ls=style, lw=1)
        axes.set_xscale("log")
        axes.set_yscale("log")
        steps = sorted({row["steps"] for row in group if row["steps"]})
        axes.set_xticks(steps, [str(s) for s in steps])
        axes.minorticks_off()
        low, high = axes.get_ylim()
        ticks = [v for v in (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2) if low <= v <= high]
        axes.set_yticks(ticks, [f"{v:g}" for v in ticks])
        axes.set_xlabel("steps")
        axes.set_ylabel("W2, unseen directions" if metric == "w2_unseen" else "sliced W2")
        axes.set_title(f"{task}, σ = {sigma_y:g}", loc="left")
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


def calibration(rows: Rows, look: dict[str, tuple[str, str]]) -> Figure | None:
    """Histograms of the rank of the truth among the samples; flat is right, a U over-confident, a hump too wide."""
    from scipy import stats

    groups = {k: g for k, g in _groups(rows).items() if any("ranks_unseen" in r["metrics"] for r in g)}
    if not groups:
        return None
    panels = [
        (key, part) for key, g in groups.items() for part in ("unseen", "seen") if f"ranks_{part}" in g[0]["metrics"]
    ]
    columns = max(len(g) for g in groups.values())
    figure = _canvas(1.3 * columns + 0.4, 1.5 * len(panels) + 0.4)
    grid = figure.subplots(len(panels), columns, squeeze=False, sharex=True)
    for line, (key, part) in zip(grid, panels, strict=True):
        group = groups[key]
        for axes in line[len(group) :]:
            axes.set_visible(False)
        for axes, row in zip(line, group, strict=False):
            counts = np.array(row["metrics"][f"ranks_{part}"])
            n, bins = counts.sum(), len(counts)
            low, high = stats.binom.interval(0.99, n, 1 / bins)
            axes.axhspan(low, high, color="0.85", lw=0)
            axes.bar(range(bins), counts, width=0.9, color=look.get(row["label"], ("#444444",))[0])
            axes.set_ylim(0, 4.2 * n / bins)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[["left"]].set_visible(False)
            p = row["metrics"][f"p_{part}"]
            shown = f"p = {p:.2g}" if p >= 1e-4 else "p < 0.0001"
            axes.set_title(f"{row['sampler']}\n{shown}", fontsize=8)
        line[0].set_ylabel(f"{key[0]}\nσ {key[1]:g}, {part}", fontsize=7)
    figure.suptitle(
        "Rank of the truth among the samples: flat is calibrated (grey: 99 % band), a U is over-confident", fontsize=10
    )
    return figure


# ---- modes ------------------------------------------------------------------------------------------------------


def modes(rows: Rows) -> Figure | None:
    """Weight of every mode that counts, exact and per sampler (first measurement)."""
    rows = [row for row in rows if "modes" in row["metrics"] and (row["sampler"] == "exact" or not row["options"])]
    if len(rows) < 2:
        return None
    weights = np.array([row["metrics"]["modes"] for row in rows])
    kept = np.flatnonzero(weights.max(0) > 0.02)
    kept = kept[np.argsort(-weights[0, kept])]
    if len(kept) < 2:
        return None
    shown = weights[:, kept]
    figure = _canvas(1.6 + 0.42 * len(kept), 0.9 + 0.27 * len(rows))
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
    axes.set_yticks(range(len(rows)), [row["sampler"] for row in rows], fontsize=8)
    axes.set_xticks(range(len(kept)), [str(k + 1) for k in kept], fontsize=8)
    axes.set_xlabel("mode")
    axes.axhline(0.5, color="black", lw=1.2)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(f"Weight of the modes, %\n{rows[0]['task']}, σ = {rows[0]['sigma_y']:g}", loc="left", fontsize=9)
    return figure


def density(folder: Path, rows: Rows) -> Figure | None:
    """Samples of every sampler on the exact density of two coordinates (first measurement)."""
    from invdiff.bench.posterior.truth import Cell, Problem, Setting

    if not rows or not rows[0]["picture"]:
        return None
    panels = []
    for row in rows:
        setting = Setting(
            **{k: row[k] for k in Setting.__dataclass_fields__ if k != "picture"}, picture=tuple(row["picture"])
        )
        options = tuple(sorted(row["options"].items()))
        cell = Cell(row["part"], setting, row["sampler"], row["steps"], row["denoiser"], options)
        path = folder / "samples" / f"{cell.slug}.npy"
        if path.exists():
            panels.append((row, np.load(path)))
    if not panels:
        return None
    i, j = setting.picture
    weights, means, covariances = _two_dimensional(Problem(setting).posteriors[0], i, j)
    everything = np.concatenate([points for _, points in panels])
    exact = next((points for row, points in panels if row["sampler"] == "exact"), everything)
    low, high = np.quantile(everything, 0.002, axis=0), np.quantile(everything, 0.998, axis=0)
    low, high = np.minimum(low, exact.min(0)), np.maximum(high, exact.max(0))
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
        axes.set_title(row["sampler"] + ("" if error is None else f"   {100 * error:.0f} % misplaced"), fontsize=8)
    figure.suptitle(
        f"Samples on the exact posterior density (grey), coordinates {i + 1} and {j + 1}: "
        f"{rows[0]['task']}, σ = {rows[0]['sigma_y']:g}",
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
    rows = [row for row in rows if "sw2" in row["metrics"]]
    names = list(dict.fromkeys(row["sampler"] for row in rows if row["sampler"] != "exact"))
    if not names:
        return None
    figure = _canvas(2.1 * len(names) + 0.6, 2.7)
    grid = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    floor = next((row["metrics"]["sw2"] for row in rows if row["sampler"] == "exact"), None)
    for axes, name in zip(grid, names, strict=True):
        for kind, colour, marker in (("exact", "#0072b2", "o"), ("learned", "#d55e00", "s")):
            _curve(
                axes,
                [r for r in rows if r["sampler"] == name and r["denoiser"] == kind],
                "sw2",
                f"{kind} denoiser",
                color=colour,
                marker=marker,
            )
        if floor is not None and name != "unconditional":
            axes.axhline(floor, color="black", lw=1, ls="--", label="exact samples")
        axes.set_xscale("log")
        steps = sorted({row["steps"] for row in rows if row["steps"]})
        axes.set_xticks(steps, [str(s) for s in steps])
        axes.minorticks_off()
        axes.set_title("prior only" if name == "unconditional" else name, loc="left")
        axes.set_xlabel("steps")
    grid[0].set_ylabel("sliced W2")
    grid[0].set_ylim(bottom=0)
    grid[-1].legend(fontsize=7)
    figure.suptitle(
        f"Network, discretisation and method: {rows[0]['task']}, σ = {rows[0]['sigma_y']:g}. "
        "Right end of the blue line: the method",
        fontsize=10,
    )
    return figure
