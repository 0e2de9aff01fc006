"""Figures of a run, drawn once: quality against cost, and average ranks. For papers and, in the page's ink, for the report."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from invdiff.bench.report.statistics import Ranking
from invdiff.bench.report.tables import Point, heading, pareto_front
from invdiff.metrics import Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#010203"  # stands for the page's text colour until a figure is put into a page

_RC: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "svg.hashsalt": "invdiff",
}
_PAPER = "#1a1a1a"

Style = Mapping[str, tuple[str, str]]  # sampler -> colour, marker


# ---- quality against cost ---------------------------------------------------------------------------------------


def quality_figure(
    panels: Sequence[tuple[Metric, Sequence[Point]]],
    metric: Metric,
    style: Style,
    families: Mapping[str, str],
    *,
    ink: str = _PAPER,
    title: str = "",
) -> Figure:
    """Mean quality (with intervals) against mean cost, one panel per cost, with the Pareto front.

    Args:
        panels: cost and points.
        metric: on the upright axis.
        style, families: see `styles`.
        ink: of axes and text.
        title: above all panels.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_rc(ink)):
        wide, high = 3.9, 3.1 + 0.25 * bool(title)
        figure = Figure(figsize=(wide * len(panels), high))
        for k, (cost, points) in enumerate(panels):
            # margins in inches: laying out by trial costs as much as drawing
            place = ((k + 0.175) / len(panels), 0.48 / high, 0.795 / len(panels), 2.52 / high)
            axes = figure.add_axes(place)
            _draw_quality(axes, points, metric, cost, style, families, ink)
            _label_points(axes, points, metric, style, families, ink)
        if title:
            figure.suptitle(title, fontsize=10, color=ink, y=1 - 0.1 / high, va="top")
    return figure


def _draw_quality(
    axes: Axes,
    points: Sequence[Point],
    metric: Metric,
    cost: Metric,
    style: Style,
    families: Mapping[str, str],
    ink: str,
) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    costs = [p.cost for p in points]
    logarithmic = min(costs) > 0 and max(costs) / min(costs) > 4
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    front = pareto_front(points, metric)
    if len(front) > 1:
        axes.step(
            [p.cost for p in front],
            [p.quality.mean for p in front],
            where="post",
            color=ink,
            alpha=0.45,
            lw=1,
            ls=(0, (4, 2)),
        )
    for family in dict.fromkeys(families.get(p.sampler, p.sampler) for p in points):
        line = sorted((p for p in points if families.get(p.sampler, p.sampler) == family), key=lambda p: p.cost)
        if len(line) > 1 and len(set(families.values())) > 1:
            axes.plot(
                [p.cost for p in line], [p.quality.mean for p in line], color=style[line[0].sampler][0], lw=1, alpha=0.6
            )
    for p in points:
        colour, marker = style[p.sampler]
        if math.isfinite(p.quality.low):
            axes.plot(
                [p.cost] * 2, [p.quality.low, p.quality.high], color=colour, lw=1.1, alpha=0.55, solid_capstyle="round"
            )
        axes.plot(
            p.cost,
            p.quality.mean,
            marker,
            color=colour,
            ms=7 if marker in "*PX" else 6,
            mew=0,
            gid=f"point {p.sampler}",
        )
    wide = (max(costs) / min(costs)) if logarithmic else (max(costs) - min(costs))
    if logarithmic:
        axes.set_xlim(min(costs) / wide**0.12, max(costs) * wide**0.3)
    else:
        pad = wide or abs(max(costs)) or 1.0
        axes.set_xlim(min(costs) - 0.15 * pad, max(costs) + 0.4 * pad)
    axes.set_xlabel(f"{cost.label}{f' ({cost.unit})' if cost.unit and cost.unit not in cost.label else ''}")
    axes.set_ylabel(heading(metric))
    axes.grid(axis="y", color=ink, alpha=0.12, lw=0.6)
    axes.set_axisbelow(True)


def _label_points(
    axes: Axes, points: Sequence[Point], metric: Metric, style: Style, families: Mapping[str, str], ink: str
) -> None:
    """Write names beside the points, where they cover neither points nor each other."""
    from matplotlib.textpath import TextPath

    named = {p.sampler: p.sampler for p in points}
    if len(points) > 12:  # a family is named once, at its dearest point
        last = {families.get(p.sampler, p.sampler): p.sampler for p in sorted(points, key=lambda p: p.cost)}
        named = {sampler: family for family, sampler in last.items()}
    at = {p.sampler: axes.transData.transform((p.cost, p.quality.mean)) for p in points}
    frame, scale = axes.get_window_extent(), axes.figure.dpi / 72
    taken = [(x - 4 * scale, y - 4 * scale, x + 4 * scale, y + 4 * scale) for x, y in at.values()]
    front = [at[p.sampler] for p in pareto_front(points, metric)]
    for (x0, y0), (x1, y1) in pairwise(front):
        taken += [(x0, y0 - scale, x1, y0 + scale), (x1 - scale, min(y0, y1), x1 + scale, max(y0, y1))]
    high = 9.5 * scale
    for p in sorted(points, key=lambda p: -at[p.sampler][1]):
        if p.sampler not in named:
            continue
        text, (x, y) = named[p.sampler], at[p.sampler]
        wide = TextPath((0, 0), text, size=8).get_extents().width * scale
        best: tuple[float, float, float] | None = None
        for distance in range(0, 90, 3):
            for up, right in ((0, 1), (1, 1), (-1, 1), (0, -1), (1, -1), (-1, -1)):
                left = x + 8 * scale if right > 0 else x - 8 * scale - wide
                low = y - high / 2 + up * distance * scale
                box = (left, low, left + wide, low + high)
                inside = frame.x0 <= box[0] and box[2] <= frame.x1 + 20 and frame.y0 <= box[1] and box[3] <= frame.y1
                if inside and not any(_overlap(box, other) for other in taken):
                    best = (left, low, right)
                    break
            if best is not None:
                break
        left, low, side = best or (x + 8 * scale, y - high / 2, 1.0)
        taken.append((left, low, left + wide, low + high))
        middle = low + high / 2
        if abs(middle - y) > 7 * scale:
            end = left - 1.5 * scale if side > 0 else left + wide + 1.5 * scale
            ends = axes.transData.inverted().transform([(x, y), (end, middle)])
            axes.plot(*ends.T, color=style[p.sampler][0], lw=0.6, alpha=0.7)
        at_x, at_y = axes.transData.inverted().transform((left, middle))
        axes.text(at_x, at_y, text, fontsize=8, va="center_baseline", color=ink, clip_on=False)


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


# ---- ranks ------------------------------------------------------------------------------------------------------


def rank_figure(ranking: Ranking, style: Style, *, ink: str = _PAPER, title: str = "") -> Figure:
    """Average ranks, best first. Samplers joined by a bar are not told apart by Nemenyi's test (Demšar, 2006)."""
    import matplotlib
    from matplotlib.figure import Figure

    names = list(ranking.ranks)
    with matplotlib.rc_context(_rc(ink)):
        left, high = 0.15 + 0.068 * max(map(len, names)), 1.15 + 0.27 * len(names) + 0.2 * bool(title)
        figure = Figure(figsize=(left + 3.7, high))
        place = (left / (left + 3.7), 0.5 / high, 3.6 / (left + 3.7), 1 - (0.55 + 0.2 * bool(title)) / high)
        axes = figure.add_axes(place)
        for row, name in enumerate(names):
            colour, marker = style[name]
            axes.plot([1, ranking.ranks[name]], [row, row], color=ink, alpha=0.12, lw=0.7)
            axes.plot(ranking.ranks[name], row, marker, color=colour, ms=8, mew=0)
            last = ranking.ranks[name] > len(names) - 0.6  # to its right there are the bars
            axes.annotate(
                f"{ranking.ranks[name]:.2f}",
                (ranking.ranks[name], row),
                (-7 if last else 7, 0),
                textcoords="offset points",
                ha="right" if last else "left",
                va="center",
                fontsize=8,
                color=ink,
            )
        right = len(names) + 0.55
        for k, group in enumerate(ranking.groups):
            rows = [names.index(group[0]) - 0.25, names.index(group[-1]) + 0.25]
            axes.plot(
                [right + 0.12 * k * len(names) / 4] * 2, rows, color=ink, lw=2.6, alpha=0.55, solid_capstyle="round"
            )
        shown = min(ranking.critical_difference, len(names) - 1)
        above = -1.05
        axes.plot([1, 1 + shown], [above, above], "|-", color=ink, lw=1.2, ms=6)
        more = "" if shown == ranking.critical_difference else ", beyond the scale"
        axes.annotate(
            f"critical difference {ranking.critical_difference:.2f}{more}",
            (1 + shown / 2, above),
            (0, 4),
            textcoords="offset points",
            ha="center" if shown > 1.6 else "left",
            fontsize=8,
            color=ink,
            annotation_clip=False,
        )
        axes.set_yticks(range(len(names)), names, fontsize=9)
        axes.set_ylim(len(names) - 0.4, -1.75)
        axes.set_xlim(0.8, right + 0.12 * max(1, len(ranking.groups)) * len(names) / 4 + 0.1)
        axes.set_xticks(range(1, len(names) + 1))
        axes.set_xlabel(f"average rank over {ranking.n} image{'s' if ranking.n > 1 else ''} (1 is best)")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        if title:
            axes.set_title(title, fontsize=10, loc="left")
    return figure


# ---- pictures ---------------------------------------------------------------------------------------------------


def grid_figure(rows: Sequence[Sequence[np.ndarray | None]], heads: Sequence[str], sides: Sequence[str]) -> Figure:
    """Pictures in rows and columns, (H, W, C) uint8 each; None leaves a gap."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with matplotlib.rc_context(_rc(_PAPER)):
        figure = Figure(
            figsize=(1.05 * len(heads) + 0.25, 1.05 * len(rows) + 0.3),
            layout=ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.01, wspace=0.02, hspace=0.02),
        )
        for i, (row, axes_row) in enumerate(
            zip(rows, figure.subplots(len(rows), len(heads), squeeze=False), strict=True)
        ):
            for j, (picture, axes) in enumerate(zip(row, axes_row, strict=True)):
                axes.set_xticks([])
                axes.set_yticks([])
                for spine in axes.spines.values():
                    spine.set_visible(False)
                if picture is not None:
                    axes.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
                else:
                    axes.text(0.5, 0.5, "failed", ha="center", va="center", transform=axes.transAxes, fontsize=8)
                if i == 0:
                    axes.set_title(heads[j], fontsize=8, pad=3)
                if j == 0:
                    axes.set_ylabel(sides[i], fontsize=8)
    return figure


def error_map(restored: np.ndarray, truth: np.ndarray, top: float) -> np.ndarray:
    """Mean absolute difference over channels of two (H, W, C) uint8 pictures, 0 black to `top` (of [0, 1]) bright."""
    from matplotlib import colormaps

    gap = np.abs(restored.astype(float) - truth.astype(float)).mean(-1) / 255
    return (colormaps["inferno"](np.clip(gap / top, 0, 1))[..., :3] * 255).round().astype(np.uint8)


# ---- out --------------------------------------------------------------------------------------------------------


def inline_svg(figure: Figure, label: str) -> str:
    """A figure drawn in `INK` as an SVG element for a page, in the page's text colour and fonts.

    Args:
        figure: drawn with ``ink=INK``.
        label: what a screen reader says.
    """
    import html

    import matplotlib

    with matplotlib.rc_context({**_RC, "svg.fonttype": "none", "svg.hashsalt": label}):
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'<g id="point ([^"]*)">', r"<g><title>\1</title>", svg)
    svg = re.sub(r' id="(?:text|axes|patch|line2d|xtick|ytick|matplotlib\.axis|figure|LineCollection)_\d+"', "", svg)
    svg = re.sub(r'(<svg [^>]*?)width="[^"]*" height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"\s*\n\s*", "\n", svg).replace(INK, "currentColor")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(label)}" ', 1)


def _rc(ink: str) -> dict[Any, Any]:
    inks: Iterable[str] = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    return {**_RC, **dict.fromkeys(inks, ink)}
