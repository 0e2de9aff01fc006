"""The report of a run: one page that needs nothing else, figures for papers, and the tables as CSV, Markdown and LaTeX."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from invdiff import palette
from invdiff.bench.posterior.figures import posterior_figures
from invdiff.bench.report import figures, tables
from invdiff.bench.report.tables import NOT_AVAILABLE, Summary, Table, bounds, heading, number
from invdiff.bench.run.store import Record, Run
from invdiff.bench.votes.preference import Preferences
from invdiff.bench.votes.store import Votes
from invdiff.checks import one_of
from invdiff.errors import InvdiffError
from invdiff.files import atomic_write, make_folder, slug
from invdiff.metrics import Metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("html", "png", "svg", "csv", "md", "tex")
FILES = {"html": "report.html", "md": "report.md", "tex": "tables.tex", "csv": "summary.csv"}
"""What a report in a single file is, by the file's ending."""
_CHART_COSTS = ("nfe", "forward_equivalents", "seconds")
_CHARTED = 3  # metrics that get charts
_FEW_TASKS = 8  # with more than these one metric gets charts, against one cost
_SHOWN = 5  # images in a grid
_ERRORS = 100  # rows of failures
_TILE = 256  # pixels; pictures larger than this are shown smaller
_GLYPHS = dict(zip(palette.MARKERS, "●■▲◆▼✚✖★⬟◀", strict=True))


def make_report(run_folder: str | Path, out: str | Path | None = None, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write the report of a run.

    Args:
        run_folder: made by ``invdiff bench`` or ``invdiff score``.
        out: folder for the files, made if it isn't there; ``report`` inside the run folder by default. A name that ends like one of
            `FILES` (``results/truth.html``) is a file: that one alone is written.
        formats: any of ``html`` (``report.html``, one page that makes no request), ``png`` and ``svg`` (``figures/``),
            ``csv`` (``cells.csv``, ``summary.csv``, and ``votes.csv`` where there are votes), ``md``
            (``report.md``), ``tex`` (``tables.tex``, for booktabs).

    Returns:
        The files written.

    Raises:
        InvdiffError: not a run folder, a run without a finished cell, an unknown format, or an `out` that cannot be written.
    """
    for name in formats:
        one_of("format", name, FORMATS)
    target = Path(run_folder, "report").expanduser() if out is None else Path(out).expanduser()
    kind = target.suffix.lower().removeprefix(".")
    if kind in FORMATS and kind not in FILES and not target.is_dir():
        raise InvdiffError(
            f"out must be a folder for {kind} files, of which a report has several, or a file that ends in "
            f"{', '.join(f'.{name}' for name in FILES)}, got {str(out)!r}"
        )
    summary = Summary(Run.open(run_folder))
    if not summary.records:
        raise InvdiffError(f"the run in {str(run_folder)!r} has no finished cell yet, so there is nothing to report")
    report = _Report(summary)
    texts: dict[str, Callable[[], str]] = {
        "report.html": report.page,
        "report.md": lambda: tables.markdown(summary, report.title) + tables.votes_markdown(report.votes),
        "tables.tex": lambda: tables.latex(summary),
        "cells.csv": lambda: tables.cells_csv(summary),
        "summary.csv": lambda: tables.summary_csv(summary),
    }
    if report.votes.votes:
        texts["votes.csv"] = lambda: tables.votes_csv(report.votes)
    if kind in FILES and not target.is_dir():
        make_folder(target.parent, "out")
        with atomic_write(target) as temporary:
            temporary.write_text(texts[FILES[kind]](), encoding="utf-8")
        return [target]
    folder = make_folder(target, "out")
    written = []
    for name, text in texts.items():
        if name.rpartition(".")[2] not in formats:
            continue
        with atomic_write(folder / name) as temporary:
            temporary.write_text(text(), encoding="utf-8")
        written.append(folder / name)
    kinds = [f for f in formats if f in ("png", "svg")]
    if kinds:
        (folder / "figures").mkdir(exist_ok=True)
        for name, figure in report.paper_figures():
            for kind in kinds:
                path = folder / "figures" / f"{name}.{kind}"
                with atomic_write(path) as temporary:
                    figure.savefig(temporary, format=kind, dpi=200, metadata={"Date": None} if kind == "svg" else None)
                written.append(path)
    return written


class _Report:
    """The parts of the page, from a summary."""

    def __init__(self, summary: Summary) -> None:
        self.summary, self.run = summary, summary.run
        self.title = f"Benchmark: {self.run.suite.name}"
        self.families = {r.sampler: str(r.settings.get("sampler", r.sampler)) for r in summary.records}
        self.style = palette.styles(summary.samplers, self.families)

    @cached_property
    def votes(self) -> Preferences:
        """What visitors of `invdiff app --vote` preferred; without a vote its tables are empty."""
        return Preferences(Votes(self.run.folder).all(), self.summary.samplers)

    @cached_property
    def charted(self) -> list[Metric]:
        """Metrics that get charts: those with a direction and a number, the leading one first."""
        s = self.summary
        having = [
            m
            for m in s.metrics
            if all(n.direction != "none" for t in s.tables for n in t.metrics if n.name == m.name)
            and any(row.entries[m.name].value is not None for t in s.tables for row in t.rows)
        ]
        leading = s.leading_metric
        most = _CHARTED if len(s.tasks) <= _FEW_TASKS else 1
        return sorted(having, key=lambda m: leading is None or m.name != leading.name)[:most]

    # ---- the page -----------------------------------------------------------------------------------------------

    def page(self) -> str:
        """The whole of it."""
        from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

        environment = Environment(
            loader=PackageLoader("invdiff.bench.report"),
            autoescape=select_autoescape(),
            undefined=StrictUndefined,
            trim_blocks=True,
            keep_trailing_newline=True,
        )
        return environment.get_template("report.html").render(
            report=self,
            summary=self.summary,
            suite=self.run.suite,
            votes=self.votes,
            backbone={"name": None, **(self.summary.info.get("backbone") or {})},
            style=self.style,
            glyphs=_GLYPHS,
            arrows=tables.ARROWS,
            not_available=NOT_AVAILABLE,
            most_errors=_ERRORS,
            number=number,
            bounds=bounds,
            heading=heading,
            reasons=tables.reasons,
            images_needed=tables.statistics.images_needed,
            slug=slug,
            plain=_plain,
            picture=_picture,
        )

    @property
    def facts(self) -> list[tuple[str, int]]:
        """How much there is of what."""
        s = self.summary
        return [
            ("samplers", len(s.samplers)),
            ("tasks", len(s.tasks)),
            ("images", len(s.images)),
            ("seeds", len(s.seeds)),
            ("restorations", len(s.records) - len(s.failed)),
            ("failed", len(s.failed)),
        ]

    def ranks(self) -> list[dict[str, Any]]:
        """Average ranks in every charted metric: metric, svg, caption."""
        panels = []
        for metric in self.charted:
            ranking = self.summary.ranking(metric)
            if ranking is None:
                continue
            figure = figures.rank_figure(ranking, self.style, ink=figures.INK)
            where = "all tasks" if len(self.summary.tasks) > 1 else self.summary.tasks[0]
            p = "" if math.isnan(ranking.pvalue) else f" Friedman test that all are alike: p {_pvalue(ranking.pvalue)}."
            left = [n for n in self.summary.samplers if n not in ranking.ranks]
            out = f" Left out, for want of results on every task: {', '.join(left)}." if left else ""
            told = "Samplers joined by a bar cannot be told apart" if ranking.groups else "All samplers are told apart"
            caption = (
                f"Rank of each sampler in {metric.label} on every image, averaged over {where}. {told} "
                f"(Nemenyi's test, 5 %).{p}{out}"
            )
            svg = figures.inline_svg(figure, f"Average ranks in {metric.label} over {where}")
            panels.append({"metric": metric, "svg": svg, "caption": caption})
        return panels

    # ---- a task -------------------------------------------------------------------------------------------------

    def notes(self, table: Table) -> list[str]:
        """Why numbers are missing, in the order of the footnotes."""
        return list(tables.reasons(table))

    def key(self, table: Table) -> str:
        """What bold means in a table."""
        marked = any(e.best for r in table.rows for e in r.entries.values())
        return (
            "Bold: significantly better than every other sampler." if marked else "Nothing here is significantly best."
        )

    def charts(self, table: Table) -> list[tuple[str, list[str]]]:
        """Quality against cost: label of the metric, one SVG for every cost."""
        panels = []
        for metric in self.charted:
            drawn = []
            for cost, points in self._chart_points(table, metric):
                figure = figures.quality_figure([(cost, points)], metric, self.style, self.families, ink=figures.INK)
                drawn.append(figures.inline_svg(figure, f"{metric.label} against {cost.label} on {table.task}"))
            if drawn:
                panels.append((metric.label, drawn))
        return panels

    def _chart_points(self, table: Table, metric: Metric) -> list[tuple[Metric, list[tables.Point]]]:
        wanted = _CHART_COSTS if len(self.summary.tasks) <= _FEW_TASKS else _CHART_COSTS[1:2]
        costs = [c for c in table.costs if c.name in wanted]
        found = [(c, self.summary.points(table.task, metric.name, c.name)) for c in costs]
        return [(c, points) for c, points in found if points]

    # ---- pictures -----------------------------------------------------------------------------------------------

    def _shown(self, task: str) -> list[str]:
        """Images for the grid, from the hardest to the easiest in equal steps of their mean score; the first ones without."""
        metric, images = self.summary.leading_metric, [r.image for r in self.summary.records if r.task == task]
        images = list(dict.fromkeys(images))
        if metric is not None:
            scores = self.summary.scores(task, metric.name)
            good = {i: [tables.goodness_of(s[i], metric) for s in scores.values() if i in s] for i in images}
            images = sorted(images, key=lambda i: float(np.mean(good[i])) if good[i] else -math.inf)
        if len(images) <= _SHOWN:
            return images
        return [images[round(k * (len(images) - 1) / (_SHOWN - 1))] for k in range(_SHOWN)]

    def _records(self, task: str, image: str) -> list[Record]:
        """One cell per sampler: the first seed."""
        seed = min(r.seed for r in self.summary.records if r.task == task and r.image == image)
        return [r for r in self.summary.records if (r.task, r.image, r.seed) == (task, image, seed)]

    def _top(self, task: str, images: Sequence[str]) -> float:
        """The error that is brightest in a task's maps: its 99th percentile, rounded up to 0.05."""
        gaps = []
        for image in images:
            truth = _pixels(self.run.truth(image, task))
            for record in self._records(task, image):
                restored = _pixels(self.run.image(record))
                if truth is not None and restored is not None and truth.shape == restored.shape:
                    gaps.append(np.abs(truth.astype(float) - restored).mean(-1).ravel() / 255)
        high = float(np.percentile(np.concatenate(gaps), 99)) if gaps else 0.5
        return max(0.05, math.ceil(high * 20) / 20)

    def grid(self, table: Table) -> dict[str, Any]:
        """The pictures of a task: rows of (image, tiles), their caption, and the error that is brightest in the maps."""
        images = [i for i in self._shown(table.task) if any(r.file for r in self._records(table.task, i))]
        if not images:
            return {"rows": []}
        total = len({r.image for r in self.summary.records if r.task == table.task})
        top, metric = self._top(table.task, images), self.summary.leading_metric
        rows = []
        for image in images:
            truth, measured = _pixels(self.run.truth(image, table.task)), _pixels(self.run.measured(table.task, image))
            tiles: list[dict[str, Any]] = []
            for name, pixels, alt in (
                ("truth", truth, "truth"),
                ("measured", measured, f"measurement of {table.task}"),
            ):
                if pixels is not None:
                    tiles.append({"pictures": [pixels], "sampler": name, "said": "", "alt": f"{image}, {alt}"})
            tiles += [self._restored_tile(r, truth, top, metric) for r in self._records(table.task, image)]
            rows.append((image, tiles))
        picked = (
            f"{len(images)} of {total} images, in equal steps from the hardest to the easiest by their mean {metric.label}. "
            if metric is not None and len(images) < total
            else "From the hardest to the easiest. "
            if metric is not None and total > 1
            else ""
        )
        seeds = " Of several seeds the first is shown." if len(self.summary.seeds) > 1 else ""
        caption = (
            f"{picked}Below each restoration its error map: mean absolute difference from the truth, black is 0, bright is "
            f"{top:g} or more (of 1).{seeds}"
        )
        return {"rows": rows, "caption": caption, "top": top}

    def _restored_tile(self, r: Record, truth: np.ndarray | None, top: float, metric: Metric | None) -> dict[str, Any]:
        restored = _pixels(self.run.image(r))
        if restored is None:
            why = r.error if not r.ok else "no picture kept"
            return {"pictures": [], "sampler": r.sampler, "said": "–" if r.ok else "failed", "alt": str(why)}
        value = None if metric is None else r.metrics.get(metric.name)
        said = "" if metric is None or value is None else f"{number(value, metric)} {_short(metric)}"
        pictures = [restored]
        if truth is not None and truth.shape == restored.shape:
            pictures.append(figures.error_map(restored, truth, top))
        alt = f"{r.image}, {r.sampler}, seed {r.seed}"
        return {"pictures": pictures, "sampler": r.sampler, "said": said, "alt": alt}

    def worst(self, table: Table, top: float) -> list[dict[str, Any]]:
        """The worst restoration of every sampler: named pictures, and what is said of it."""
        metric, cards = self.summary.leading_metric, []
        if metric is None:
            return []
        for row in table.rows:
            mine = [
                r for r in self.summary.records if (r.task, r.sampler) == (table.task, row.sampler) and r.ok and r.file
            ]
            having = [
                (tables.goodness_of(value, metric), r)
                for r in mine
                if (value := r.metrics.get(metric.name)) is not None
            ]
            if not having:
                continue
            r = min(having, key=lambda pair: pair[0])[1]
            truth, restored = _pixels(self.run.truth(r.image, r.task)), _pixels(self.run.image(r))
            pictures = [("truth", truth), ("measurement", _pixels(self.run.measured(r.task, r.image)))]
            pictures.append(("restoration", restored))
            if truth is not None and restored is not None and truth.shape == restored.shape:
                pictures.append(("error", figures.error_map(restored, truth, top)))
            said = f"{r.image}, seed {r.seed}: {number(r.metrics[metric.name] or 0.0, metric)} {_short(metric)}"
            kept = [(name, p) for name, p in pictures if p is not None]
            cards.append({"sampler": row.sampler, "image": r.image, "pictures": kept, "said": said})
        return cards

    # ---- the end of the page ------------------------------------------------------------------------------------

    def failed(self) -> list[dict[str, Any]]:
        """The failed cells, those with one error together."""
        alike: dict[tuple[str, str, str], list[Record]] = {}
        for r in self.summary.failed:
            alike.setdefault((r.task, r.sampler, str(r.error)), []).append(r)
        found = []
        for (task, sampler, error), cells in alike.items():
            which = ", ".join(f"{r.image} (seed {r.seed})" for r in cells[:4]) + (", …" if len(cells) > 4 else "")
            found.append({"task": task, "sampler": sampler, "error": error, "cells": cells, "which": which})
        return found

    def settings(self) -> list[tuple[str, dict[str, Any], dict[str, dict[str, Any]]]]:
        """Of every sampler: its label, the settings that all tasks share, the others by task."""
        lines = []
        for sampler in self.summary.samplers:
            used = {r.task: r.settings for r in self.summary.records if r.sampler == sampler and r.ok}
            used = used or {r.task: r.settings for r in self.summary.records if r.sampler == sampler}
            keys = list(dict.fromkeys(k for values in used.values() for k in values if k != "sampler"))
            first = next(iter(used.values()))
            same = {k: first.get(k) for k in keys if all(u.get(k) == first.get(k) for u in used.values())}
            others = {task: {k: values.get(k) for k in keys if k not in same} for task, values in used.items()}
            lines.append((sampler, same, {task: values for task, values in others.items() if values}))
        return lines

    def repeat(self) -> dict[str, Any]:
        """What is needed to run it again."""
        info = self.summary.info
        backbone = info.get("backbone") or {}
        sessions = info.get("sessions") or []
        facts: dict[str, Any] = {
            "backbone": backbone.get("name"),
            "checkpoint (SHA-256)": backbone.get("sha256"),
            "image shape": backbone.get("image_shape"),
            "invdiff": info.get("invdiff"),
            "seeds": info.get("seeds"),
            "started": info.get("started"),
            "shard": info.get("shard"),
        }
        for key in ("versions", "hardware"):
            for session in sessions[-1:]:
                value = session.get(key)
                facts |= value if isinstance(value, dict) else {key: value}
        commands = list(dict.fromkeys(_command(s.get("command")) for s in sessions if s.get("command")))
        return {"facts": facts, "commands": commands, "sessions": len(sessions)}

    # ---- for papers ---------------------------------------------------------------------------------------------

    def paper_figures(self) -> list[tuple[str, Figure]]:
        """Names and figures: ranks, quality against cost, pictures."""
        found = []
        for metric in self.charted:
            ranking = self.summary.ranking(metric)
            if ranking is not None:
                found.append((f"ranks-{metric.name}", figures.rank_figure(ranking, self.style, title=metric.label)))
            for table in self.summary.tables:
                panels = self._chart_points(table, metric)
                if panels:
                    name = f"quality-{slug(table.task)}-{metric.name}"
                    title = table.task
                    found.append((name, figures.quality_figure(panels, metric, self.style, self.families, title=title)))
        for table in self.summary.tables:
            images = self._shown(table.task)
            rows = []
            for image in images:
                by_sampler = {r.sampler: r for r in self._records(table.task, image)}
                restored = [by_sampler.get(r.sampler) for r in table.rows]
                pictures = [self.run.truth(image, table.task), self.run.measured(table.task, image)]
                rows.append(
                    [_pixels(p) for p in [*pictures, *(None if r is None else self.run.image(r) for r in restored)]]
                )
            if any(p is not None for row in rows for p in row):
                heads = ["truth", "measured", *(r.sampler for r in table.rows)]
                found.append((f"images-{slug(table.task)}", figures.grid_figure(rows, heads, images)))
        return found + posterior_figures(self.summary)


# ---- pieces of the page -----------------------------------------------------------------------------------------


def _picture(pixels: np.ndarray) -> dict[str, Any]:
    """A picture as a data URI: PNG, or WebP where it is large."""
    image = Image.fromarray(pixels.squeeze() if pixels.shape[-1] == 1 else pixels)
    if max(image.size) > _TILE:
        image.thumbnail((_TILE, _TILE), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    lossy = max(image.size) > 96
    image.save(data, format="WEBP", quality=90) if lossy else image.save(data, format="PNG", optimize=True)
    source = f"data:image/{'webp' if lossy else 'png'};base64,{base64.b64encode(data.getvalue()).decode()}"
    return {"source": source, "width": image.width, "height": image.height, "small": max(image.size) <= 128}


def _pixels(image: Image.Image | None) -> np.ndarray | None:
    """(H, W, C) uint8."""
    if image is None:
        return None
    array = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    return array[..., None] if array.ndim == 2 else array


def _short(metric: Metric) -> str:
    return metric.unit if metric.unit and not metric.unit.startswith("of ") else metric.label


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value, ensure_ascii=False)


def _command(command: Any) -> str:
    import shlex

    return command if isinstance(command, str) else shlex.join(map(str, command))


def _pvalue(p: float) -> str:
    return f"= {p:.2g}" if p >= 1e-4 else "< 0.0001"
