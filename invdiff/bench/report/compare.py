"""Did a change make it better? Two runs compared cell by cell: same task, sampler, image and seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from invdiff.bench.report import statistics
from invdiff.bench.report.statistics import Paired, average_over_seeds, goodness, holm, paired, too_few
from invdiff.bench.report.tables import COSTS, heading, metric_of, number
from invdiff.bench.run.store import Record, Run
from invdiff.errors import InvdiffError
from invdiff.markdown import markdown_table
from invdiff.metrics import Metric

BETTER, WORSE, DIFFERS, NO_DIFFERENCE = "better", "worse", "differs", "no difference shown"


@dataclass(frozen=True)
class Change:
    """What changed from run a to run b in one metric of one sampler on one task.

    Attributes:
        task, sampler, metric: which.
        mean_a, mean_b: over the images that both runs have, seeds averaged.
        paired: the differences b - a.
        pvalue: of the Wilcoxon signed-rank test, after Holm's correction over all tests of the comparison.
        verdict: ``"better"``, ``"worse"`` or ``"no difference shown"`` for b against a; ``"differs"`` or ``"no difference
            shown"`` where the metric has no direction.
        note: why there is no verdict, or why it could not be another one.
    """

    task: str
    sampler: str
    metric: Metric
    mean_a: float
    mean_b: float
    paired: Paired
    pvalue: float
    verdict: str
    note: str = ""

    def row(self) -> tuple[str, ...]:
        """As text, in the order of `Comparison.HEADINGS`."""
        m, interval = self.metric, self.paired.interval
        limits = f"{_signed(interval.low, m)} to {_signed(interval.high, m)}" if math.isfinite(interval.low) else "–"
        p = f"{self.pvalue:.2g}" if self.pvalue >= 1e-4 else "< 0.0001"
        verdict = self.verdict + (f" ({self.note})" if self.note else "")
        means = number(self.mean_a, m), number(self.mean_b, m)
        return (
            self.task,
            self.sampler,
            heading(m),
            *means,
            _signed(interval.mean, m),
            limits,
            p,
            str(self.paired.n),
            verdict,
        )


@dataclass(frozen=True)
class Comparison:
    """Two runs, compared. `str` is a summary in words, `markdown` the whole; rows are ready for a table.

    Attributes:
        a, b: the run folders; b is compared against a.
        changes: by task, sampler and metric.
        cells: how many cells both runs have restored; only_a, only_b: cells that only one has restored.
        identical: on all common cells all metrics agree exactly.
        warnings: what differs between the runs beside the change that is meant.
    """

    a: str
    b: str
    changes: tuple[Change, ...]
    cells: int
    only_a: int
    only_b: int
    identical: bool
    warnings: tuple[str, ...] = ()

    HEADINGS = ("task", "sampler", "metric", "a", "b", "b - a", "95 % interval", "p (Holm)", "images", "verdict for b")

    def rows(self) -> list[tuple[str, ...]]:
        """The changes as text, one tuple per line in the order of `HEADINGS`."""
        return [c.row() for c in self.changes]

    def sentence(self) -> str:
        """What the comparison shows, in one sentence."""
        if self.identical:
            return f"The two runs agree exactly on all {self.cells:,} cells they share."
        counts = {v: sum(c.verdict == v for c in self.changes) for v in (BETTER, WORSE, DIFFERS, NO_DIFFERENCE)}
        said = [f"{n} {verdict}" for verdict, n in counts.items() if n]
        return f"Of {len(self.changes)} comparisons on {self.cells:,} shared cells, b against a: {', '.join(said)}."

    def markdown(self) -> str:
        """The whole comparison."""
        said = [f"# {self.b} against {self.a}", "", self.sentence(), ""]
        said += [f"- {w}" for w in self.warnings] + [""] * bool(self.warnings)
        said.append(markdown_table(self.HEADINGS, self.rows()))
        said += [
            "",
            "a is the first run, b the second. Means over the images both runs have, seeds averaged first; bootstrap "
            "intervals of the paired differences; Wilcoxon signed-rank tests with Holm's correction over all of them, 5 %.",
            "",
        ]
        return "\n".join(said)

    def __str__(self) -> str:
        return "\n".join([self.sentence(), *self.warnings])


def compare(
    run_a: str | Path | Run,
    run_b: str | Path | Run,
    *,
    alpha: float = statistics.ALPHA,
    costs: Sequence[str] = ("seconds",),
) -> Comparison:
    """Paired differences between two runs, on the cells (task, sampler, image, seed) that both have restored.

    A verdict needs a significant test and a mean difference that points the same way; a run compared with itself never
    has one. Seeds of an image are averaged before they are compared.

    Args:
        run_a: the run to compare against, a folder or an opened run.
        run_b: the run with the change.
        alpha: of the tests, after Holm's correction over all of them.
        costs: columns of a record that are compared along with the metrics, of ``nfe``, ``vjps``,
            ``forward_equivalents``, ``seconds``, ``peak_memory``. Timings of two runs differ for many reasons.

    Raises:
        InvdiffError: the runs share no cell, or no metric; unknown cost.
    """
    for cost in costs:
        if cost not in COSTS:
            raise InvdiffError(f"costs must be of {', '.join(COSTS)}; got {cost!r}")
    a, b = (run if isinstance(run, Run) else Run.open(run) for run in (run_a, run_b))
    of_a, of_b = ({_key(r): r for r in run.records() if r.ok} for run in (a, b))
    common = [k for k in of_a if k in of_b]
    if not common:
        raise InvdiffError(
            f"{a.folder} and {b.folder} have no restored cell in common (same task, sampler, image and seed), so there is "
            f"nothing to compare. The first has {_what(of_a)}; the second has {_what(of_b)}"
        )
    found: list[tuple[str, str, Metric, float, float, Paired]] = []
    gains: list[Paired] = []
    identical = True
    for task, sampler in dict.fromkeys(k[:2] for k in common):
        keys = [k for k in common if k[:2] == (task, sampler)]
        for name in [*dict.fromkeys(m for k in keys for m in of_a[k].metrics if m in of_b[k].metrics), *costs]:
            metric = metric_of(name, of_b[keys[0]].sigma_y)
            # only cells in which both are known, so that an image's seeds are the same on both sides
            values = [(k[2], _value(of_a[k], name), _value(of_b[k], name)) for k in keys]
            values = [v for v in values if not (math.isnan(v[1]) or math.isnan(v[2]))]
            if not values:
                continue
            x, y = average_over_seeds(v[:2] for v in values), average_over_seeds((v[0], v[2]) for v in values)
            shown = paired(y, x, alpha=alpha, resolution=metric.resolution)
            identical = identical and (name in costs or all(v[1] == v[2] for v in values))
            found.append((task, sampler, metric, _mean(x), _mean(y), shown))
            gains.append(_gain(x, y, metric, shown, alpha))
    if not found:
        raise InvdiffError(f"{a.folder} and {b.folder} have no metric in common")
    adjusted = holm([g.pvalue for g in gains])
    changes = tuple(
        Change(*entry, p, *_verdict(entry[2], gain, p, len(found), alpha))
        for entry, gain, p in zip(found, gains, adjusted, strict=True)
    )
    only = len(of_a) - len(common), len(of_b) - len(common)
    return Comparison(
        str(a.folder), str(b.folder), changes, len(common), *only, identical, tuple(_warnings(a, b, *only))
    )


def _gain(x: dict[str, float], y: dict[str, float], metric: Metric, shown: Paired, alpha: float) -> Paired:
    """The differences turned so that above zero is better, where the metric says what is."""
    if metric.direction in ("higher", "none"):
        return shown
    return paired(
        goodness(y, metric.direction), goodness(x, metric.direction), alpha=alpha, resolution=metric.resolution
    )


def _verdict(metric: Metric, gain: Paired, pvalue: float, tests: int, alpha: float) -> tuple[str, str]:
    if pvalue > alpha:
        return NO_DIFFERENCE, gain.note or too_few(gain.wins + gain.losses, tests, alpha)
    if not gain.ranks_agree:
        return NO_DIFFERENCE, "the mean and most images point different ways"
    if metric.direction == "none":
        return DIFFERS, ""
    return (BETTER if gain.difference > 0 else WORSE), ""


def _warnings(a: Run, b: Run, only_a: int, only_b: int) -> list[str]:
    said = []
    if only_a or only_b:
        said.append(
            f"Left out: {only_a:,} cells that only the first run has restored, {only_b:,} that only the second has."
        )
    backbones = [(run.info.get("backbone") or {}).get("sha256") for run in (a, b)]
    if backbones[0] != backbones[1]:
        said.append("The runs used different backbones (their checkpoint hashes differ).")
    changed = [key for key in a.suite.differences(b.suite) if key not in ("seeds", "n_images", "backbone")]
    if changed:
        said.append(f"The suites differ in: {', '.join(changed)}.")
    return said


def _key(r: Record) -> tuple[str, str, str, int]:
    return r.task, r.sampler, r.image, r.seed


def _value(r: Record, name: str) -> float:
    """NaN where it is not known."""
    value = getattr(r, name) if name in COSTS else r.metrics.get(name)
    return math.nan if value is None else float(value)


def _mean(scores: dict[str, float]) -> float:
    return sum(scores.values()) / len(scores)


def _signed(value: float, metric: Metric) -> str:
    return ("+" if value > 0 else "") + number(value, metric)


def _what(cells: dict[tuple[str, str, str, int], Record]) -> str:
    if not cells:
        return "none at all"
    parts = [sorted({str(k[i]) for k in cells}) for i in range(3)]
    short = [", ".join(p[:4]) + (", ..." if len(p) > 4 else "") for p in parts]
    return f"tasks {short[0]}; samplers {short[1]}; images {short[2]}"
