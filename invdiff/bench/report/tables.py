"""A run, summed up: one table per task, what its numbers allow to say, and the same as CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from invdiff.bench.report import statistics
from invdiff.bench.report.statistics import Interval, Ranking, average_over_seeds, bootstrap_interval
from invdiff.bench.run.store import GroupRecord, Record, Run
from invdiff.bench.suite.suite import EXACT
from invdiff.bench.votes.preference import Preferences, Share
from invdiff.markdown import markdown_table
from invdiff.metrics import METRICS, Metric

COSTS = ("nfe", "vjps", "forward_equivalents", "seconds", "peak_memory")
ARROWS = {"higher": "↑", "lower": "↓", "one": "→1", "none": ""}
NOT_AVAILABLE = "not available"
_SPELLED_OUT = 6  # tasks without a winner that get a sentence each


@dataclass(frozen=True)
class Entry:
    """One number of a table.

    Attributes:
        value: mean over images with its interval; None where there is no number.
        best: significantly better than every other sampler.
        reason: why there is no number.
    """

    value: Interval | None
    best: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Row:
    """A sampler's line: `entries` by name of metric or cost; of `cells` restorations `failed` did not come out."""

    sampler: str
    entries: dict[str, Entry]
    images: int
    cells: int
    failed: int


@dataclass(frozen=True)
class Published:
    """A number from a paper, and our mean where a sampler has the method's name. Never compared by a test, never in one
    column: weights, images, masks and the version of the metric differ."""

    setting: str
    method: str
    metric: Metric
    value: float
    ours: Interval | None


@dataclass(frozen=True)
class Table:
    """The table of a task. `metrics` and `costs` are its columns, those with a number in some row; `left_out` says of the other
    metrics why not: reason -> labels."""

    task: str
    operator: str
    sigma_y: float
    metrics: tuple[Metric, ...]
    costs: tuple[Metric, ...]
    rows: tuple[Row, ...]
    published: tuple[Published, ...] = ()
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def row(self, sampler: str) -> Row:
        """The line of a sampler."""
        return next(r for r in self.rows if r.sampler == sampler)


@dataclass(frozen=True)
class Point:
    """A sampler in the plane of cost and quality."""

    sampler: str
    cost: float
    quality: Interval


class Summary:
    """Everything that a report says about a run, computed once.

    Args:
        run: an opened run.
        resamples: of the bootstrap.
    """

    def __init__(self, run: Run, resamples: int = statistics.RESAMPLES) -> None:
        self.run = run
        self.resamples = resamples
        self.info: dict[str, Any] = run.info
        self.records: list[Record] = run.records()
        self.groups: list[GroupRecord] = run.groups()
        self.unavailable: dict[str, str] = run.unavailable
        self.tasks = _unique(r.task for r in self.records)
        self.samplers = _unique(r.sampler for r in self.records)
        self.images = _unique(r.image for r in self.records)
        self.seeds = sorted({r.seed for r in self.records})
        self.failed = [r for r in self.records if not r.ok]
        self.exact = {e.label for e in run.suite.samplers if e.name == EXACT}
        self._scores: dict[tuple[str, str], dict[str, dict[str, float]]] = {}

    # ---- numbers ------------------------------------------------------------------------------------------------

    @cached_property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics of the run, in the suite's order; those that could not be had included."""
        suite = self.run.suite
        wanted = [*suite.metrics, *(name for task in suite.tasks for name in suite.metrics_of(task))]
        seen = _unique(
            [*(m for r in self.records for m in r.metrics), *(g.metric for g in self.groups), *self.unavailable]
        )
        names = [n for n in _unique([*wanted, *seen]) if n not in COSTS]
        return tuple(metric_of(n) for n in names)

    @cached_property
    def costs(self) -> tuple[Metric, ...]:
        """The costs that are known for at least one cell."""
        return tuple(metric_of(c) for c in COSTS if any(getattr(r, c) is not None for r in self.records))

    @property
    def missing(self) -> int:
        """Cells of the grid that were not run, or not yet."""
        suite = self.run.suite
        images = self.info.get("images") or self.images
        cells = sum(len(suite.images_of(task, images)) for task, _ in suite.pairs())
        return cells * len(suite.seeds) - len(self.records)

    @cached_property
    def quality_metrics(self) -> tuple[Metric, ...]:
        """Metrics with a direction and a number per image, best suited to lead the report first in the suite's order."""
        return tuple(
            m
            for m in self.metrics
            if m.direction != "none" and any(any(self.scores(t, m.name).values()) for t in self.tasks)
        )

    @property
    def leading_metric(self) -> Metric | None:
        """The metric that sentences, ranks and worst cases use: the first one that says how near the truth is."""
        of_truth = [m for m in self.quality_metrics if m.needs & {"reference", "posterior"}]
        return next(iter([*of_truth, *self.quality_metrics]), None)

    def scores(self, task: str, metric: str) -> dict[str, dict[str, float]]:
        """sampler -> image -> value, seeds averaged, for the samplers that ran on the task."""
        key = (task, metric)
        if key not in self._scores:
            cells = [r for r in self.records if r.task == task]
            found = {}
            for sampler in [s for s in self.samplers if any(r.sampler == s for r in cells)]:
                mine = [r for r in cells if r.sampler == sampler and r.ok]
                pairs = [(r.image, getattr(r, metric) if metric in COSTS else r.metrics.get(metric)) for r in mine]
                pairs += [(g.image, g.value) for g in self._grouped(task, sampler, metric) if g.image]
                found[sampler] = average_over_seeds(pairs)
            self._scores[key] = found
        return self._scores[key]

    def _grouped(self, task: str, sampler: str, metric: str) -> list[GroupRecord]:
        return [g for g in self.groups if (g.task, g.sampler, g.metric) == (task, sampler, metric)]

    # ---- tables -------------------------------------------------------------------------------------------------

    @cached_property
    def tables(self) -> tuple[Table, ...]:
        """One table per task."""
        return tuple(self._table(task) for task in self.tasks)

    def table(self, task: str) -> Table:
        """The table of a task."""
        return next(t for t in self.tables if t.task == task)

    def _table(self, task: str) -> Table:
        cells = [r for r in self.records if r.task == task]
        metrics = tuple(metric_of(m.name, cells[0].sigma_y) for m in self.metrics)
        best = {}
        for m in metrics:
            scores = {s: v for s, v in self.scores(task, m.name).items() if s not in self.exact}
            if m.direction != "none":
                best[m.name] = statistics.significantly_best(scores, m.direction, resolution=m.resolution)
        rows = []
        for sampler in self.scores(task, "nfe"):
            mine = [r for r in cells if r.sampler == sampler]
            entries = {m.name: self._entry(task, sampler, m.name, best.get(m.name, frozenset())) for m in self.metrics}
            for cost in self.costs:
                values = self.scores(task, cost.name)[sampler]
                mean = math.fsum(values.values()) / len(values) if values else math.nan
                entries[cost.name] = (
                    Entry(Interval(mean, math.nan, math.nan, len(values), "none"))
                    if values
                    else Entry(None, reason="not recorded")
                )
            done = {r.image for r in mine if r.ok}
            rows.append(Row(sampler, entries, len(done), len(mine), sum(not r.ok for r in mine)))
        left_out: dict[str, list[str]] = {}
        failed = [r for r in cells if not r.ok]
        wanted = {name for t in self.run.suite.tasks if t.name == task for name in self.run.suite.metrics_of(t)}
        for m in metrics:
            tried = any(m.name in r.metrics for r in cells) or any(self._grouped(task, r.sampler, m.name) for r in rows)
            if (
                all(row.entries[m.name].value is None for row in rows)
                and m.name in wanted
                and (tried or len(failed) == len(cells))
            ):
                left_out.setdefault(rows[0].entries[m.name].reason, []).append(m.label)
        return Table(
            task,
            next(iter(_unique(r.operator for r in cells)), ""),
            cells[0].sigma_y,
            tuple(m for m in metrics if any(row.entries[m.name].value is not None for row in rows)),
            self.costs,
            tuple(rows),
            tuple(self._published(task, rows)),
            left_out,
        )

    def _published(self, task: str, rows: Sequence[Row]) -> list[Published]:
        published, found = self.run.suite.published, []
        for line in published.rows if published else ():
            if task in line.values:
                mine = [
                    r.entries[line.metric].value
                    for r in rows
                    if _same_name(r.sampler, line.method) and line.metric in r.entries
                ]
                metric = metric_of(line.metric)
                found.append(Published(line.setting, line.method, metric, line.values[task], mine[0] if mine else None))
        return found

    def _entry(self, task: str, sampler: str, metric: str, best: frozenset[str]) -> Entry:
        values = self.scores(task, metric)[sampler]
        if values:
            interval = bootstrap_interval(list(values.values()), resamples=self.resamples)
            return Entry(interval, sampler in best)
        groups = self._grouped(task, sampler, metric)
        for g in groups:
            if g.value is not None:
                return Entry(Interval(g.value, math.nan, math.nan, self._images_done(task, sampler), "none"))
        reason = next((g.reason for g in groups if g.reason), None) or self.unavailable.get(metric)
        if not reason:
            reason = (
                "no restoration came out"
                if not self._images_done(task, sampler)
                else "not computed in this run"
                if self.missing <= 0
                else "not computed, for the run has not ended"
            )
        return Entry(None, reason=reason)

    def _images_done(self, task: str, sampler: str) -> int:
        return len({r.image for r in self.records if r.ok and r.task == task and r.sampler == sampler})

    # ---- cost and quality ---------------------------------------------------------------------------------------

    def points(self, task: str, metric: str, cost: str) -> list[Point]:
        """Samplers of a task by mean cost and mean quality; those that lack one are left out."""
        found = []
        for row in self.table(task).rows:
            quality, price = row.entries[metric].value, row.entries.get(cost, Entry(None)).value
            if quality is not None and price is not None and math.isfinite(quality.mean) and math.isfinite(price.mean):
                found.append(Point(row.sampler, price.mean, quality))
        return found

    # ---- ranks --------------------------------------------------------------------------------------------------

    def ranking(self, metric: Metric) -> Ranking | None:
        """Average ranks over all tasks with Nemenyi's critical difference, for the samplers that ran on every task.

        An image is one block, however many tasks it was used in: its ranks are averaged over the tasks and ranked again.
        None where fewer than two samplers or no image are common to all.
        """
        per_task = [self.scores(task, metric.name) for task in self.tasks]
        names = [s for s in self.samplers if s not in self.exact and all(scores.get(s) for scores in per_task)]
        blocks: dict[str, list[dict[str, float]]] = {}
        for scores in per_task:
            for image in self.images:
                here = {n: {image: scores[n][image]} for n in names if image in scores[n]}
                row = statistics.ranking(here, metric.direction, resolution=metric.resolution)
                if row is not None and len(row.ranks) == len(names):
                    blocks.setdefault(image, []).append(row.ranks)
        means = {n: {i: math.fsum(r[n] for r in rows) / len(rows) for i, rows in blocks.items()} for n in names}
        return statistics.ranking(means, "lower") if blocks else None

    # ---- words --------------------------------------------------------------------------------------------------

    def headline(self) -> list[str]:
        """What the run shows, in sentences, from its numbers only."""
        said = [self._what_ran()]
        leading = self.leading_metric
        if leading is None:
            return [
                *said,
                "No metric with a direction has a number, so nothing can be said about quality.",
                *self._caveats(),
            ]
        clear: list[tuple[Table, list[Row]]] = []
        unclear: list[tuple[Table, list[Row]]] = []
        for table in self.tables:
            marked = [r for r in table.rows if r.entries[leading.name].best]
            (clear if marked else unclear).append((table, marked))
        if clear:
            names = [
                f"{_and([r.sampler for r in rows])} on {t.task} ({with_interval(rows[0].entries[leading.name], leading)})"
                for t, rows in clear
            ]
            said.append(f"Significantly better than every other sampler in {leading.label}: {'; '.join(names)}.")
        if len(unclear) > _SPELLED_OUT:
            said.append(
                f"On {len(unclear)} of {len(self.tables)} tasks no sampler is significantly best in {leading.label}."
            )
        else:
            said += [self._undecided(table, leading) for table, _ in unclear]
        if len(self.samplers) > 1:
            said.extend(self._other_metrics(leading))
        return [*said, *self._caveats()]

    def _what_ran(self) -> str:
        seeds = f", {_count(len(self.seeds), 'seed')} each" if len(self.seeds) > 1 else ""
        done = len(self.records) - len(self.failed)
        text = (
            f"{_count(len(self.samplers), 'sampler')} on {_count(len(self.tasks), 'task')} and "
            f"{_count(len(self.images), 'image')}{seeds}: {_count(done, 'restoration')}"
        )
        return text + (f", and {_count(len(self.failed), 'cell')} that failed." if self.failed else ", none failed.")

    def _undecided(self, table: Table, metric: Metric) -> str:
        rows = [r for r in table.rows if r.entries[metric.name].value is not None and r.sampler not in self.exact]
        if len(rows) == 0:
            return f"On {table.task}, {metric.label} has no number."
        if len(rows) == 1:
            return f"On {table.task} only {rows[0].sampler} has a result, so there is nothing to compare."
        lead = max(rows, key=lambda r: _better(r.entries[metric.name], metric))
        text = (
            f"On {table.task} no sampler is significantly best in {metric.label}; the best mean is {lead.sampler}'s, "
            f"{with_interval(lead.entries[metric.name], metric)}"
        )
        why = statistics.too_few(lead.images, len(rows) - 1)
        needed = statistics.images_needed(len(rows) - 1)
        return text + (
            f" (with {_count(lead.images, 'image')} none could be: at least {needed} are needed)." if why else "."
        )

    def _other_metrics(self, leading: Metric) -> list[str]:
        """Where another metric marks another sampler than the leading one does."""
        said = []
        for metric in self.quality_metrics:
            if metric.name == leading.name or not metric.needs & {"reference", "posterior"}:
                continue
            others = []
            for table in self.tables:
                marked = [r.sampler for r in table.rows if r.entries[metric.name].best]
                if marked and marked != [r.sampler for r in table.rows if r.entries[leading.name].best]:
                    others.append(f"{_and(marked)} on {table.task}")
            if others:
                said.append(f"{metric.label} says otherwise: significantly best is {'; '.join(others)}.")
        return said

    def _caveats(self) -> list[str]:
        said = []
        if self.missing > 0:
            whole = self.missing + len(self.records)
            said.append(f"The run is not complete: {_count(self.missing, 'cell')} of {whole:,} are missing.")
        if self.info.get("images_from_prior"):
            said.append(
                "The true images were drawn from the backbone's own prior, the setting that suits it best; on photographs "
                "expect other numbers, and perhaps another order."
            )
        if 1 < len(self.images) < 10:
            said.append(f"With {len(self.images)} images the intervals are narrower than they should be.")
        return said


def pareto_front(points: Sequence[Point], metric: Metric) -> list[Point]:
    """The points that no other one beats in both mean cost and mean quality, cheapest first."""
    front: list[Point] = []
    for p in sorted(points, key=lambda p: (p.cost, -goodness_of(p.quality.mean, metric))):
        if not front or goodness_of(p.quality.mean, metric) > goodness_of(front[-1].quality.mean, metric):
            front.append(p)
    return front


# ---- numbers as text --------------------------------------------------------------------------------------------


def number(value: float, metric: Metric) -> str:
    """A value with the metric's decimals; small ones that these would show as zero in scientific notation."""
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: "-∞"}.get(value, NOT_AVAILABLE)
    text = f"{value:.{metric.decimals}f}"
    return f"{value:.1e}" if value != 0 and float(text) == 0 else text


def bounds(value: Interval, metric: Metric) -> str:
    """``low to high`` of the interval, or an empty string."""
    return f"{number(value.low, metric)} to {number(value.high, metric)}" if math.isfinite(value.low) else ""


def with_interval(entry: Entry, metric: Metric) -> str:
    """``24.10 dB [23.01 to 25.20]``."""
    if entry.value is None:
        return NOT_AVAILABLE
    unit = f" {metric.unit}" if metric.unit and not metric.unit.startswith("of ") else ""
    limits = bounds(entry.value, metric)
    return f"{number(entry.value.mean, metric)}{unit}" + (f" [{limits}]" if limits else "")


def heading(metric: Metric) -> str:
    """Label, direction and unit, such as ``PSNR ↑ (dB)``."""
    arrow = ARROWS.get(metric.direction, "")
    return " ".join(p for p in (metric.label, arrow, f"({metric.unit})" if metric.unit else "") if p)


# ---- CSV --------------------------------------------------------------------------------------------------------


def cells_csv(summary: Summary) -> str:
    """Every cell of the run, one line each; metrics are columns, settings JSON."""
    names = _unique(m for r in summary.records for m in r.metrics)
    plain = ["cell", "task", "operator", "sigma_y", "sampler", "image", "seed", "status", "error", *COSTS]
    lines: list[list[Any]] = [[*plain, *names, "file", "settings"]]
    for r in summary.records:
        values = [*(getattr(r, c) for c in plain), *(r.metrics.get(m) for m in names)]
        lines.append([*values, r.file, json.dumps(r.settings, sort_keys=True)])
    return _csv(lines)


def summary_csv(summary: Summary) -> str:
    """The tables, one line per task, sampler and metric."""
    lines: list[list[Any]] = [
        [
            "task",
            "sampler",
            "metric",
            "unit",
            "direction",
            "mean",
            "low",
            "high",
            "images",
            "significantly_best",
            "reason",
        ]
    ]
    for table in summary.tables:
        for row in table.rows:
            for m in (*table.metrics, *table.costs):
                e = row.entries[m.name]
                v = e.value
                numbers = [None] * 4 if v is None else [v.mean, *(_or_none(x) for x in (v.low, v.high)), v.n]
                lines.append([table.task, row.sampler, m.name, m.unit, m.direction, *numbers, int(e.best), e.reason])
    return _csv(lines)


def _csv(lines: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


# ---- Markdown and LaTeX -----------------------------------------------------------------------------------------


def markdown(summary: Summary, title: str, intervals: bool = True) -> str:
    """The report's words and tables, by part of the suite where it has parts; `intervals` False leaves the bounds out."""
    said = [f"# {title}", "", *(f"- {line}" for line in summary.headline()), ""]
    parts = {task.name: task.part for task in summary.run.suite.tasks}
    part = ""
    for table in summary.tables:
        if parts.get(table.task, "") != part:
            part = parts[table.task]
            said += [f"## {part}", ""]
        said += [f"##{'#' * bool(part)} {table.task}", "", f"`{table.operator}`, noise {table.sigma_y:g}", ""]
        columns = (*table.metrics, *table.costs)
        rows = [
            [
                row.sampler,
                *(_marked(row.entries[m.name], m, "**{}**".format, intervals) for m in columns),
                row.images,
                row.failed,
            ]
            for row in table.rows
        ]
        said += [markdown_table(["sampler", *map(heading, columns), "images", "failed"], rows), ""]
        said += [f"- {NOT_AVAILABLE}: {', '.join(names)}. {why}" for why, names in reasons(table).items()]
        if table.published and summary.run.suite.published is not None:
            said += ["", f"Published: {summary.run.suite.published.source}. {summary.run.suite.published.note}", ""]
            published = [
                [
                    p.setting,
                    p.method,
                    heading(p.metric),
                    f"{p.value:g}",
                    "" if p.ours is None else number(p.ours.mean, p.metric),
                ]
                for p in table.published
            ]
            said.append(markdown_table(["setting", "method", "metric", "published", "ours"], published))
        said.append("")
    said += [
        "Mean over images and 95 % bootstrap interval. Bold: significantly better than every other sampler "
        "(paired Wilcoxon signed-rank tests, Holm correction, 5 %). Costs are not tested.",
        "",
    ]
    return "\n".join(said)


def votes_markdown(votes: Preferences) -> str:
    """The tables of votes; nothing where there are none."""
    said: list[str] = []
    for table in votes.tables:
        rows = [
            [
                row.sampler,
                _percent(row.overall),
                "" if row.against is None else _percent(row.against),
                "" if row.against is None or row.against.needed is None else row.against.needed or "shown",
                "" if row.score is None else f"{row.score.value:+.2f} ({row.score.low:+.2f} to {row.score.high:+.2f})",
                row.overall.votes,
            ]
            for row in table.rows
        ]
        heads = ["sampler", "preferred", f"preferred to {table.reference}", "votes still needed"]
        said += ["", f"## Votes{', ' if table.task else ''}{table.task}", ""]
        said += [markdown_table([*heads, "Bradley-Terry score", "votes"], rows), ""]
    return "\n".join(said)


def votes_csv(votes: Preferences) -> str:
    """The tables of votes, one line per task and sampler; shares against all others and against the reference."""
    names = ("value", "low", "high")
    heads = [f"{what}_{name}" for what in ("preferred", "to_reference", "score") for name in names]
    lines: list[list[Any]] = [["task", "sampler", "reference", "votes", *heads, "votes_needed"]]
    for table in votes.tables:
        for row in table.rows:
            found = [None if v is None else getattr(v, n) for v in (row.overall, row.against, row.score) for n in names]
            needed = None if row.against is None else row.against.needed
            lines.append([table.task, row.sampler, table.reference, row.overall.votes, *found, needed])
    return _csv(lines)


def _percent(share: Share) -> str:
    return f"{100 * share.value:.0f} % ({100 * share.low:.0f} to {100 * share.high:.0f})"


def latex(summary: Summary) -> str:
    r"""The tables in LaTeX, for ``\usepackage{booktabs}``; columns without any number, VJPs and memory are left out."""
    said = ["% \\usepackage{booktabs}", ""]
    for table in summary.tables:
        columns = [
            m
            for m in (*table.metrics, *table.costs)
            if m.name not in ("vjps", "peak_memory") and any(r.entries[m.name].value is not None for r in table.rows)
        ]
        arrows = {"↑": r"$\uparrow$", "↓": r"$\downarrow$", "→1": r"$\to 1$"}
        heads = []
        for m in columns:
            arrow = arrows.get(ARROWS.get(m.direction, ""), "")
            heads.append(" ".join(p for p in (tex(m.label), arrow, f"({tex(m.unit)})" if m.unit else "") if p))
        said += [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{tex(table.task)}: mean over images with 95\,\% bootstrap intervals. Bold: significantly better than "
            r"every other sampler (paired Wilcoxon signed-rank tests, Holm correction, 5\,\%).}",
            rf"\label{{tab:{tex_label(table.task)}}}",
            rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
            r"\toprule",
            "sampler & " + " & ".join(heads) + r" \\",
            r"\midrule",
        ]
        for row in table.rows:
            cells = []
            for m in columns:
                e = row.entries[m.name]
                limits = "" if e.value is None else bounds(e.value, m).replace(" to ", ", ")
                mean = "--" if e.value is None else tex(number(e.value.mean, m))
                mean = rf"\textbf{{{mean}}}" if e.best else mean
                cells.append(mean + (rf" {{\scriptsize [{limits}]}}" if limits else ""))
            said.append(f"{tex(row.sampler)} & " + " & ".join(cells) + r" \\")
        said += [r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
    return "\n".join(said)


def reasons(table: Table) -> dict[str, list[str]]:
    """Why numbers are missing in some line of the table -> the labels of their metrics."""
    found = {why: list(labels) for why, labels in table.left_out.items()}
    for row in table.rows:
        for m in table.metrics:
            if row.entries[m.name].value is None:
                labels = found.setdefault(row.entries[m.name].reason, [])
                labels += [m.label] * (m.label not in labels)
    return found


def tex(text: str) -> str:
    """`text` with LaTeX's special characters escaped."""
    special = {c: "\\" + c for c in "&%$#_{}"} | {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "∞": r"$\infty$",
        "Π": r"$\Pi$",
        "σ": r"$\sigma$",
    }
    return "".join(special.get(c, c) for c in text)


def tex_label(task: str) -> str:
    """`task` as a LaTeX label."""
    return "".join(c if c.isalnum() and c.isascii() else "-" for c in task).strip("-").lower()


def _marked(entry: Entry, metric: Metric, bold: Callable[[str], str], intervals: bool = True) -> str:
    if entry.value is None:
        return NOT_AVAILABLE
    mean, limits = number(entry.value.mean, metric), bounds(entry.value, metric) if intervals else ""
    return (bold(mean) if entry.best else mean) + (f" [{limits}]" if limits else "")


# ---- the rest ---------------------------------------------------------------------------------------------------


def _same_name(a: str, b: str) -> bool:
    return a.casefold() == b.casefold()


def metric_of(name: str, sigma_y: float = 0.0) -> Metric:
    """The metric called `name`, on a task with this noise.

    One that isn't registered (any more) has no direction. Neither has the misfit of a noisy measurement, where less than
    the noise means that the noise was restored too.
    """
    metric = (
        METRICS.get(name) if name in METRICS else Metric(name, name, "none", "", {"reference"}, "not registered here")
    )
    return replace(metric, direction="none") if "measurement" in metric.needs and sigma_y > 0 else metric


def goodness_of(value: float, metric: Metric) -> float:
    """`value` turned so that higher is better."""
    return statistics.goodness({"": value}, metric.direction)[""]


def _better(entry: Entry, metric: Metric) -> float:
    return -math.inf if entry.value is None else goodness_of(entry.value.mean, metric)


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _count(n: int, word: str) -> str:
    return f"{n:,} {word}{'' if n == 1 else 's'}"


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
