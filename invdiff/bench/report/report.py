"""The report of a run: one page that needs nothing else, figures for papers, and the tables as CSV, Markdown and LaTeX."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from invdiff import palette
from invdiff.bench.posterior.figures import posterior_figures
from invdiff.bench.report import figures, tables
from invdiff.bench.report.tables import NOT_AVAILABLE, Entry, Summary, Table, bounds, heading, number
from invdiff.bench.run.store import Record, Run
from invdiff.errors import InvdiffError, near_match
from invdiff.files import atomic_write, slug
from invdiff.metrics import Metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("html", "png", "svg", "csv", "md", "tex")
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
        out: folder for the files; ``report`` inside the run folder by default.
        formats: any of ``html`` (``report.html``, one page that makes no request), ``png`` and ``svg`` (``figures/``),
            ``csv`` (``cells.csv``, ``summary.csv``), ``md`` (``report.md``), ``tex`` (``tables.tex``, for booktabs).

    Returns:
        The files written.

    Raises:
        InvdiffError: not a run folder, a run without a finished cell, or an unknown format.
    """
    for name in formats:
        if name not in FORMATS:
            raise InvdiffError(f"unknown format {name!r}; one of {', '.join(FORMATS)}.{near_match(str(name), FORMATS)}")
    summary = Summary(Run.open(run_folder))
    if not summary.records:
        raise InvdiffError(f"the run in {str(run_folder)!r} has no finished cell yet, so there is nothing to report")
    report = _Report(summary)
    folder = Path(out).expanduser() if out is not None else Path(run_folder).expanduser() / "report"
    folder.mkdir(parents=True, exist_ok=True)
    texts: dict[str, Callable[[], str]] = {}
    if "html" in formats:
        texts["report.html"] = report.page
    if "md" in formats:
        texts["report.md"] = lambda: tables.markdown(summary, report.title)
    if "tex" in formats:
        texts["tables.tex"] = lambda: tables.latex(summary)
    if "csv" in formats:
        texts |= {"cells.csv": lambda: tables.cells_csv(summary), "summary.csv": lambda: tables.summary_csv(summary)}
    written = []
    for name, text in texts.items():
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
        assets = files("invdiff.bench.report") / "assets"
        style, script = (assets / "report.css").read_text("utf-8"), (assets / "report.js").read_text("utf-8")
        parts = [self._head(), self._ranks(), *map(self._task, self.summary.tables)]
        parts += [self._failed(), self._settings(), self._method(), self._repeat()]
        links = [("overview", "Overview"), *((f"task-{slug(t)}", t) for t in self.summary.tasks)]
        links += [("failed", "Failed")] if self.summary.failed else []
        links += [("settings", "Settings"), ("method", "Method"), ("repeat", "Repeat")]
        nav = "".join(f'<a href="#{escape(i)}">{escape(name)}</a>' for i, name in links)
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
            "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n"
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
            f"<title>{escape(self.title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
            f'<nav aria-label="Sections">{nav}</nav>\n<main>\n'
            + "\n".join(p for p in parts if p)
            + f'\n</main>\n<dialog id="zoom"><figure></figure></dialog>\n<script>\n{script}</script>\n</body>\n</html>\n'
        )

    def _head(self) -> str:
        s, suite = self.summary, self.run.suite
        first, *rest = s.headline()
        facts = [
            ("samplers", len(s.samplers)),
            ("tasks", len(s.tasks)),
            ("images", len(s.images)),
            ("seeds", len(s.seeds)),
            ("restorations", len(s.records) - len(s.failed)),
            ("failed", len(s.failed)),
        ]
        boxes = "".join(f"<div><dt>{name}</dt><dd>{value:,}</dd></div>" for name, value in facts)
        description = f'<p class="lede">{escape(suite.description)}</p>' if suite.description else ""
        backbone = s.info.get("backbone") or {}
        return (
            f'<header id="overview"><p class="kicker">invdiff benchmark</p><h1>{escape(suite.name)}</h1>{description}'
            f'<dl class="facts">{boxes}</dl><div class="summary"><p>{escape(first)}</p>'
            f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in rest)}</ul></div>"
            f'<p class="small">Backbone: {escape(str(backbone.get("name") or "unknown"))}. Images: '
            f"{escape('drawn from the backbone (its own prior)' if s.info.get('images_from_prior') else str(suite.images))}.</p>"
            "</header>"
        )

    def _ranks(self) -> str:
        panels = []
        for metric in self.charted:
            ranking = self.summary.ranking(metric)
            if ranking is None:
                continue
            figure = figures.rank_figure(ranking, self.style, ink=figures.INK)
            where = "all tasks" if len(self.summary.tasks) > 1 else self.summary.tasks[0]
            label = f"Average ranks in {metric.label} over {where}"
            p = "" if math.isnan(ranking.pvalue) else f" Friedman test that all are alike: p {_pvalue(ranking.pvalue)}."
            left = [n for n in self.summary.samplers if n not in ranking.ranks]
            out = f" Left out, for want of results on every task: {', '.join(left)}." if left else ""
            told = "Samplers joined by a bar cannot be told apart" if ranking.groups else "All samplers are told apart"
            caption = (
                f"Rank of each sampler in {metric.label} on every image, averaged over {where}. {told} "
                f"(Nemenyi's test, 5 %).{p}{out}"
            )
            drawn = f"<h3>{escape(metric.label)}</h3>{figures.inline_svg(figure, label)}"
            panels.append(_figure(drawn, caption, "chart ranks"))
        found = f'<div class="charts">{"".join(panels)}</div>'
        return f'<section id="ranks"><h2>Ranks</h2>{found}</section>' if panels else ""

    # ---- a task -------------------------------------------------------------------------------------------------

    def _task(self, table: Table) -> str:
        noise = f", noise σ<sub>y</sub> = {table.sigma_y:g}" if table.sigma_y else ", no noise"
        parts = [
            f'<h2>{escape(table.task)}</h2><p class="lede"><code>{escape(table.operator)}</code>{noise}</p>',
            self._table(table),
            self._published(table),
            self._charts(table),
            self._grid(table),
            self._worst(table),
        ]
        return f'<section id="task-{escape(slug(table.task))}">{"".join(parts)}</section>'

    def _table(self, table: Table) -> str:
        columns = (*table.metrics, *table.costs)
        heads = "".join(
            f'<th scope="col"><button type="button" title="{escape(m.description)}">{_head_of(m)}</button></th>'
            for m in columns
        )
        some_failed, counted = any(r.failed for r in table.rows), {r.images for r in table.rows}
        notes = {why: list(labels) for why, labels in table.left_out.items()}
        lines = []
        for row in table.rows:
            cells = "".join(self._cell(row.entries[m.name], m, m in table.metrics, notes) for m in columns)
            counts = [row.images] * (len(counted) > 1) + [row.failed] * some_failed
            numbers = "".join(f'<td data-value="{n}">{n}</td>' for n in counts)
            lines.append(
                f'<tr><th scope="row" data-value="{escape(row.sampler)}">{self._swatch(row.sampler)}'
                f"{escape(row.sampler)}</th>{numbers}{cells}</tr>"
            )
        extra = ["images"] * (len(counted) > 1) + ["failed"] * some_failed
        more = "".join(f'<th scope="col"><button type="button">{name}</button></th>' for name in extra)
        feet = "".join(f"<li>{escape(', '.join(labels))}: {escape(reason)}</li>" for reason, labels in notes.items())
        images = f"{max(counted)} image{'s' if max(counted) != 1 else ''}" if len(counted) == 1 else "images"
        marked = any(e.best for r in table.rows for e in r.entries.values())
        key = (
            "Bold: significantly better than every other sampler." if marked else "Nothing here is significantly best."
        )
        return (
            '<div class="scroll"><table class="results"><thead><tr><th scope="col"><button type="button">sampler</button>'
            f"</th>{more}{heads}</tr></thead>"
            f'<tbody>{"".join(lines)}</tbody></table></div><p class="small">Mean over '
            f"{images}, 95 % bootstrap interval below it. {key} Costs are per image and not tested.</p>"
            + (f'<ol class="notes small">{feet}</ol>' if feet else "")
        )

    def _cell(self, entry: Entry, metric: Metric, tested: bool, notes: dict[str, list[str]]) -> str:
        if entry.value is None:
            if not tested:
                return '<td class="cost">–</td>'
            labels = notes.setdefault(entry.reason, [])
            labels += [metric.label] * (metric.label not in labels)
            return f'<td class="missing">{NOT_AVAILABLE}<sup>{list(notes).index(entry.reason) + 1}</sup></td>'
        mean, limits = number(entry.value.mean, metric), bounds(entry.value, metric)
        mean = f"<strong>{mean}</strong>" if entry.best else mean
        low = f"<small>{limits.replace(' to ', '–') if '-' not in limits else limits}</small>" if limits else ""
        return f'<td data-value="{entry.value.mean!r}"{"" if tested else " class=cost"}>{mean}{low}</td>'

    def _swatch(self, sampler: str) -> str:
        colour, marker = self.style[sampler]
        return f'<span class="swatch" style="color:{colour}" aria-hidden="true">{_GLYPHS[marker]}</span>'

    def _published(self, table: Table) -> str:
        source = self.run.suite.published
        if not table.published or source is None:
            return ""
        lines = "".join(
            f'<tr><td>{escape(p.setting)}</td><th scope="row">{escape(p.method)}</th><td>{escape(heading(p.metric))}</td>'
            f"<td>{p.value:g}</td><td>{'–' if p.ours is None else number(p.ours.mean, p.metric)}</td></tr>"
            for p in table.published
        )
        return (
            '<details open><summary>Published numbers beside ours</summary><div class="scroll"><table class="published"><thead>'
            "<tr><th>setting</th><th>method</th><th>metric</th><th>published</th><th>this run</th></tr></thead>"
            f'<tbody>{lines}</tbody></table></div><p class="small">Source: {escape(source.source)}. {escape(source.note)} '
            "Weights, images, masks and versions of a metric may differ, so no test compares the two columns.</p></details>"
        )

    def _charts(self, table: Table) -> str:
        panels = []
        for metric in self.charted:
            drawn = []
            for cost, points in self._chart_points(table, metric):
                figure = figures.quality_figure([(cost, points)], metric, self.style, self.families, ink=figures.INK)
                label = f"{metric.label} against {cost.label} on {table.task}"
                drawn.append(f'<div class="chart">{figures.inline_svg(figure, label)}</div>')
            if drawn:
                panels.append((metric.label, f'<div class="charts">{"".join(drawn)}</div>'))
        if not panels:
            return '<p class="small">No costs were recorded, so there are no charts of quality against cost.</p>'
        caption = (
            "Mean and 95 % interval against the mean cost per image. Dashed: the Pareto front, samplers that no other one "
            "beats in both means (not a test). A call with a gradient counts as 2.5 forward calls in forward equivalents."
        )
        return f'<h3>Quality against cost</h3>{_tabs(panels)}<p class="small">{caption}</p>'

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

    def _grid(self, table: Table) -> str:
        images = [i for i in self._shown(table.task) if any(r.file for r in self._records(table.task, i))]
        if not images:
            return ""
        total = len({r.image for r in self.summary.records if r.task == table.task})
        top, metric = self._top(table.task, images), self.summary.leading_metric
        blocks = []
        for image in images:
            truth, records = _pixels(self.run.truth(image, table.task)), self._records(table.task, image)
            tiles = [_tile([truth], "truth", "", f"{image}, truth")] if truth is not None else []
            measured = _pixels(self.run.measured(table.task, image))
            if measured is not None:
                tiles.append(_tile([measured], "measured", "", f"{image}, measurement of {table.task}"))
            for r in records:
                tiles.append(self._restored_tile(r, truth, top, metric))
            blocks.append(f'<div class="row"><h4>{escape(image)}</h4><div class="tiles">{"".join(tiles)}</div></div>')
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
        return f'<h3>Images</h3><p class="small">{caption}</p>{"".join(blocks)}'

    def _restored_tile(self, r: Record, truth: np.ndarray | None, top: float, metric: Metric | None) -> str:
        restored = _pixels(self.run.image(r))
        if restored is None:
            why = r.error if not r.ok else "no picture kept"
            return (
                f'<figure class="tile"><div class="gap" title="{escape(str(why))}">{"failed" if not r.ok else "–"}</div>'
                f"<figcaption>{self._swatch(r.sampler)}{escape(r.sampler)}</figcaption></figure>"
            )
        value = None if metric is None else r.metrics.get(metric.name)
        said = "" if metric is None or value is None else f"{number(value, metric)} {_short(metric)}"
        pictures = [restored]
        if truth is not None and truth.shape == restored.shape:
            pictures.append(figures.error_map(restored, truth, top))
        return _tile(pictures, r.sampler, said, f"{r.image}, {r.sampler}, seed {r.seed}", self._swatch(r.sampler))

    def _worst(self, table: Table) -> str:
        metric = self.summary.leading_metric
        if metric is None:
            return ""
        top, cards = self._top(table.task, self._shown(table.task)), []
        pictured = any(r.file for r in self.summary.records if r.task == table.task)
        for row in table.rows if pictured else ():
            having: list[tuple[float, Record]] = []
            for r in self.summary.records:
                value = r.metrics.get(metric.name)
                if r.task == table.task and r.sampler == row.sampler and r.ok and value is not None:
                    having.append((tables.goodness_of(value, metric), r))
            if not having:
                continue
            r = min(having, key=lambda pair: pair[0])[1]
            truth, restored = _pixels(self.run.truth(r.image, r.task)), _pixels(self.run.image(r))
            pictures = [truth, _pixels(self.run.measured(r.task, r.image)), restored]
            names = ["truth", "measurement", "restoration", "error"]
            if truth is not None and restored is not None and truth.shape == restored.shape:
                pictures.append(figures.error_map(restored, truth, top))
            shown = "".join(
                _image(p, f"{r.image}, {n}, {r.sampler}")
                for p, n in zip(pictures, names, strict=False)
                if p is not None
            )
            value = r.metrics[metric.name]
            said = f"{r.image}, seed {r.seed}: {number(value, metric) if value is not None else ''} {_short(metric)}"
            cards.append(
                f'<figure class="worst"><div>{shown}</div><figcaption><b>{self._swatch(row.sampler)}{escape(row.sampler)}'
                f"</b><span>{escape(said)}</span></figcaption></figure>"
            )
        if not cards:
            return ""
        return (
            f'<h3>Worst cases</h3><p class="small">The restoration with the worst {escape(metric.label)} of every sampler: '
            f'truth, measurement, restoration, error.</p><div class="cards">{"".join(cards)}</div>'
        )

    # ---- the end of the page ------------------------------------------------------------------------------------

    def _failed(self) -> str:
        if not self.summary.failed:
            return ""
        alike: dict[tuple[str, str, str], list[Record]] = {}
        for r in self.summary.failed:
            alike.setdefault((r.task, r.sampler, str(r.error)), []).append(r)
        lines = []
        for (task, sampler, error), cells in list(alike.items())[:_ERRORS]:
            which = ", ".join(f"{r.image} (seed {r.seed})" for r in cells[:4]) + (", …" if len(cells) > 4 else "")
            lines.append(
                f"<tr><td>{escape(task)}</td><td>{escape(sampler)}</td><td>{len(cells)}</td>"
                f'<td class="text">{escape(error)}<small>{escape(which)}</small></td></tr>'
            )
        more = len(alike) - _ERRORS
        return (
            '<section id="failed"><h2>Failed cells</h2><p class="small">They are left out of the means. A sampler that has '
            "fewer images than the others for it is never marked as best.</p>"
            '<div class="scroll"><table><thead><tr><th>task</th><th>sampler</th><th>cells</th><th>error</th></tr></thead>'
            f"<tbody>{''.join(lines)}</tbody></table></div>"
            + (f'<p class="small">And {more:,} more kinds of failure, in cells.csv.</p>' if more > 0 else "")
            + "</section>"
        )

    def _settings(self) -> str:
        lines = []
        for sampler in self.summary.samplers:
            used = {r.task: r.settings for r in self.summary.records if r.sampler == sampler and r.ok}
            used = used or {r.task: r.settings for r in self.summary.records if r.sampler == sampler}
            keys = list(dict.fromkeys(k for values in used.values() for k in values if k != "sampler"))
            same = {
                k: v
                for k in keys
                for v in [next(iter(used.values())).get(k)]
                if all(u.get(k) == v for u in used.values())
            }
            chips = _chips(same)
            for task, values in used.items():
                other = {k: values.get(k) for k in keys if k not in same}
                chips += f'<div class="per-task"><span>{escape(task)}</span>{_chips(other)}</div>' if other else ""
            lines.append(
                f'<tr><th scope="row">{self._swatch(sampler)}{escape(sampler)}</th>'
                f'<td>{escape(self.families[sampler])}</td><td class="text">{chips}</td></tr>'
            )
        return (
            '<section id="settings"><h2>Settings</h2><div class="scroll"><table><thead><tr><th>label</th><th>sampler</th>'
            f"<th>settings, as they were used</th></tr></thead><tbody>{''.join(lines)}</tbody></table></div></section>"
        )

    def _method(self) -> str:
        n = len(self.summary.images)
        k = max(1, len(self.summary.samplers) - 1)
        needed = tables.statistics.images_needed(k)
        enough = "so marks are possible here" if n >= needed else f"this run has {n}, so nothing can be marked"
        metrics = "".join(
            f"<dt>{escape(heading(m))}</dt><dd>{escape(m.description)}</dd>"
            for m in (*self.summary.metrics, *self.summary.costs)
        )
        return (
            '<section id="method"><h2>Method</h2><div class="prose"><p>The unit is the image: seeds of one image are averaged '
            "first. Intervals are BCa bootstrap intervals of the mean over images (95 %), percentile ones where BCa has "
            "no answer.</p><p>A number is bold only if the sampler with the best mean beats every other one in a paired, two-sided "
            "Wilcoxon signed-rank test on the same images, at 5 % after Holm's correction over these comparisons. Samplers "
            "with identical results share the mark; one that lacks images which others have is never marked. Nothing is "
            f"corrected across tasks and metrics. With {k + 1} samplers at least {needed} images are needed; {enough}.</p>"
            "<p>Ranks are averaged over images (for an image used in several tasks, over the tasks first) and compared by "
            f'Nemenyi\'s critical difference.</p></div><dl class="metrics">{metrics}</dl></section>'
        )

    def _repeat(self) -> str:
        info = self.summary.info
        backbone = info.get("backbone") or {}
        sessions = info.get("sessions") or []
        commands = list(dict.fromkeys(_command(s.get("command")) for s in sessions if s.get("command")))
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
        rows = "".join(
            f"<dt>{escape(str(k))}</dt><dd>{escape(_plain(v))}</dd>"
            for k, v in facts.items()
            if v not in (None, "", [])
        )
        lines = "\n".join(commands)
        suite = self.run.suite.to_toml()
        return (
            '<section id="repeat"><h2>How to repeat it</h2>'
            + (f"<pre>{escape(lines)}</pre>" if lines else "")
            + f'<dl class="metrics">{rows}</dl>'
            + (
                f'<p class="small">{len(sessions)} sessions; versions and hardware of the last.</p>'
                if len(sessions) > 1
                else ""
            )
            + f"<details><summary>The suite, as it was run</summary><pre>{escape(suite)}</pre></details></section>"
        )

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


# ---- pieces of HTML ---------------------------------------------------------------------------------------------


def _figure(content: str, caption: str, kind: str) -> str:
    return f'<figure class="{kind}">{content}<figcaption class="small">{escape(caption)}</figcaption></figure>'


def _tabs(panels: Sequence[tuple[str, str]]) -> str:
    """Panels of which a script shows one at a time; without a script, all."""
    if len(panels) == 1:
        return panels[0][1]
    return '<div class="tabs">' + "".join(f'<div data-tab="{escape(n)}">{p}</div>' for n, p in panels) + "</div>"


def _tile(pictures: Sequence[np.ndarray], name: str, said: str, alt: str, swatch: str = "") -> str:
    shown = "".join(_image(p, alt + (", error" if k else "")) for k, p in enumerate(pictures))
    value = f"<span>{escape(said)}</span>" if said else ""
    return f'<figure class="tile">{shown}<figcaption>{swatch}{escape(name)}{value}</figcaption></figure>'


def _image(picture: np.ndarray, alt: str) -> str:
    """A picture as a data URI: PNG, or WebP where it is large."""
    image = Image.fromarray(picture.squeeze() if picture.shape[-1] == 1 else picture)
    large = max(image.size) > _TILE
    if large:
        image.thumbnail((_TILE, _TILE), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    lossy = max(image.size) > 96
    image.save(data, format="WEBP", quality=90) if lossy else image.save(data, format="PNG", optimize=True)
    text = base64.b64encode(data.getvalue()).decode()
    kind = "" if max(image.size) > 128 else ' class="pixels"'
    return (
        f'<img{kind} src="data:image/{"webp" if lossy else "png"};base64,{text}" alt="{escape(alt)}" '
        f'width="{image.size[0]}" height="{image.size[1]}">'
    )


def _pixels(image: Image.Image | None) -> np.ndarray | None:
    """(H, W, C) uint8."""
    if image is None:
        return None
    array = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    return array[..., None] if array.ndim == 2 else array


def _head_of(metric: Metric) -> str:
    """Label and direction, the unit below them."""
    unit = f"<small>{escape(metric.unit)}</small>" if metric.unit else ""
    return f"{escape(metric.label)}\u00a0{tables.ARROWS.get(metric.direction, '')}{unit}".replace("\u00a0<", "<")


def _chips(values: dict[str, Any]) -> str:
    return "".join(f"<code>{escape(k)} = {escape(_plain(v))}</code> " for k, v in values.items())


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
