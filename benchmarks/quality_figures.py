"""Figures of `quality.py`, readable on a light and on a dark page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from quality_images import MARK
from quality_tables import method_rows
from quality_truth import OURS, targets

from invdiff.palette import COLOURS, look
from invdiff.plotting import new_figure, save_figure

Row = dict[str, Any]
INK, PAPER = "#333333", "#ffffff"
LIBRARY_COLOURS = {"diffusers": COLOURS[1], "deepinv": COLOURS[3], "azula": COLOURS[4]}
MAIN_TASK = "gaussian8-mask, σ = 0.1"


COSTS = {
    "seconds": "seconds for all samples, one thread",
    "forward_equivalents": "network calls (a gradient counts 1.5 more)",
}


def frontier(rows: list[Row], cost: str = "forward_equivalents") -> list[tuple[float, float]]:
    """(cost, distance) of the runs that no cheaper run of the same method is as good as."""
    points = sorted((r[cost], r["distance"]) for r in rows if r.get("distance") is not None)
    out: list[tuple[float, float]] = []
    for spent, distance in points:
        if not out or distance < out[-1][1]:
            out.append((spent, distance))
    return out


def draw(found: Row, folder: Path) -> None:
    """``quality.png``, ``quality-truth.png`` and ``quality-images.png``, of what was measured."""
    folder.mkdir(parents=True, exist_ok=True)
    if found.get("truth"):
        tasks = [t for t in found["tasks"] if method_rows(found, t)]
        main = MAIN_TASK if MAIN_TASK in tasks else tasks[0]
        _truth(found, [(main, "seconds"), (main, "forward_equivalents")], folder / "quality.png", named=True)
        _truth(found, [(task, "seconds") for task in tasks], folder / "quality-truth.png")
    if found.get("scores"):
        _images(found, folder / "quality-images.png")


def _truth(found: Row, panels: list[tuple[str, str]], path: Path, named: bool = False) -> None:
    """Distance against cost; `named`: names at the ends of the best lines of the last panel."""
    rows = -(-len(panels) // 2)
    figure = new_figure(9.6, 3.7 * rows + 0.3)
    figure.set_facecolor(PAPER)
    for number, (task, cost) in enumerate(panels):
        axes = figure.add_subplot(rows, min(2, len(panels)), number + 1)
        info = found["tasks"][task]
        ends: list[tuple[float, float, str, str]] = []
        for (library, method), cells in method_rows(found, task).items():
            line = frontier(cells, cost)
            if not line:
                continue
            mine = library == OURS
            best = mine and method == "mmps"
            colour = COLOURS[0] if mine else LIBRARY_COLOURS[library]
            style = {"lw": 2.6, "zorder": 5} if best else {"lw": 1.0, "alpha": 0.4 if mine else 0.8}
            costs, distances = zip(*line, strict=True)
            axes.plot(costs, distances, color=colour, marker="o", ms=5 if best else 2.5, **style)
            ends.append((costs[-1], distances[-1], f"{'' if mine else library + ' '}{method}", colour))
        axes.axhline(info["floor"], color=INK, lw=1, ls=":")
        axes.axhline(targets(info["floor"])[0], color=INK, lw=0.8, ls="--")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_ylim(0.8 * info["floor"], 1.2)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1,) if axis is axes.xaxis else (1, 2, 5)))
            axis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.set_minor_formatter(NullFormatter())
        axes.set_title(task, fontsize=9, loc="left", color=INK)
        axes.set_xlabel(COSTS[cost], fontsize=8)
        if number % 2 == 0:
            axes.set_ylabel(f"{info['distance_name']} to the exact posterior", fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        if named and number == len(panels) - 1:
            _named(axes, ends)
    axes = figure.axes[0]
    handles = [
        axes.plot([], [], color=COLOURS[0], lw=2.6, marker="o", label="invdiff: MMPS")[0],
        axes.plot([], [], color=COLOURS[0], lw=1, alpha=0.6, label="invdiff: the others")[0],
    ]
    handles += [axes.plot([], [], color=c, lw=1.4, label=name)[0] for name, c in LIBRARY_COLOURS.items()]
    handles.append(axes.plot([], [], color=INK, lw=0.8, ls="--", label="to be reached")[0])
    handles.append(axes.plot([], [], color=INK, lw=1, ls=":", label="exact draws")[0])
    figure.tight_layout(rect=(0, 0.3 / (3.7 * rows + 0.3), 1, 1))
    figure.legend(handles=handles, fontsize=8, frameon=False, loc="lower center", ncols=len(handles))
    save_figure(figure, path)


def _named(axes: Any, ends: list[tuple[float, float, str, str]]) -> None:
    """The best few names at the ends of their lines, none on another."""
    taken: list[float] = []
    for x, y, name, colour in sorted(ends, key=lambda end: end[1])[:8]:
        place = np.log(y)
        while any(abs(place - other) < 0.13 for other in taken):
            place += 0.02
        taken.append(place)
        axes.annotate(
            name, (x, y), (axes.get_xlim()[1] * 1.05, np.exp(place)), fontsize=7, color=colour, va="center",
            arrowprops={"arrowstyle": "-", "lw": 0.4, "color": colour, "alpha": 0.6},
        )  # fmt: skip


def _beside(axes: Any, names: list[tuple[float, float, str, str]]) -> None:
    """Every name to the right of its point, moved down or up from one that is there already."""
    bottom, top = axes.get_ylim()
    left, right = np.log(axes.get_xlim())
    taken: list[tuple[float, float, float]] = []
    for x, y, name, colour in sorted(names, key=lambda n: (n[0], -n[1])):
        at, height = (np.log(x) - left) / (right - left), (y - bottom) / (top - bottom)
        width = 0.022 * len(name) + 0.03

        def free(place: float, at: float = at, width: float = width) -> bool:
            return all(abs(place - h) >= 0.036 or at >= a + w or a >= at + width for a, h, w in taken)

        offsets = sorted((0.012 * k for k in range(-25, 26)), key=abs)
        place = next((height + d for d in offsets if free(height + d)), height)
        taken.append((at, place, width))
        axes.annotate(
            name, (x, y), (at + 0.015, place), textcoords="axes fraction", fontsize=6.5, color=colour, va="center"
        )


def _images(found: Row, path: Path) -> None:
    scores = list(found["scores"].values())
    panels = list(dict.fromkeys((r["set"], r["task"]) for r in scores))
    columns = min(2, len(panels))
    figure = new_figure(5.2 * columns, 3.4 * -(-len(panels) // columns))
    figure.set_facecolor(PAPER)
    for number, (which, task) in enumerate(panels):
        axes = figure.add_subplot(-(-len(panels) // columns), columns, number + 1)
        names: list[tuple[float, float, str, str]] = []
        rows = [r for r in scores if (r["set"], r["task"]) == (which, task)]
        fewest = set(min((r["pictures"] for r in rows), key=len))  # all methods on the same pictures
        for row in rows:
            name = row["method"].split(",")[0]
            mark = row["method"] == MARK
            peer = ":" in name
            colour, shape = (INK, "*") if mark else (LIBRARY_COLOURS[name.split(":")[0]], "x") if peer else look(name)
            y = float(np.mean([v for n, v in zip(row["pictures"], row["psnr"], strict=True) if n in fewest]))
            fast = "dpm++2m" in row["method"]
            filled = {} if peer else {"mfc": PAPER if fast else colour}
            axes.plot([row["forward_equivalents"]], [y], shape, color=colour, ms=13 if mark else 6, **filled)
            names.append((row["forward_equivalents"], y, name, colour))
            if mark:
                axes.axhline(y, color=INK, lw=0.8, ls="--")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        _beside(axes, names)
        axes.set_title(f"{which}: {task}", fontsize=9, loc="left", color=INK)
        axes.set_xlabel("network calls (a gradient counts 1.5)", fontsize=8)
        axes.set_ylabel("PSNR, dB", fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    figure.tight_layout()
    save_figure(figure, path)
