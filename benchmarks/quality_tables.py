"""What `quality.py` measured, as tables for the documentation."""

from __future__ import annotations

import math
from typing import Any

from quality_images import FEW, MARK
from quality_truth import ABOVE_FLOOR, OURS, TARGET, reached, targets

from invdiff.bench.report.statistics import bootstrap_interval
from invdiff.markdown import markdown_table

Row = dict[str, Any]


# ---- time to the exact posterior --------------------------------------------------------------------------------


def method_rows(found: Row, task: str) -> dict[tuple[str, str], list[Row]]:
    """(library, method) -> its cells of a task, ours first."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in found.get("truth", {}).values():
        if row["task"] == task:
            groups.setdefault((row["library"], row["method"]), []).append(row)
    return dict(sorted(groups.items(), key=lambda item: item[0][0] != OURS))


def on_network(row: Row, factor: float, calls: Row) -> float:
    """Seconds per picture that `factor` times a row's calls and products take with the embedded network."""
    return factor * (row["calls"] * calls["forward_ms"] + row["vjps"] * calls["product_ms"]) / 1e3


def fastest(found: Row, task: str, target: float) -> list[Row]:
    """For every method: what it takes to reach `target`, or its best distance; those that reach it first, by their time."""
    out: list[Row] = []
    for (library, method), rows in method_rows(found, task).items():
        good = [r for r in rows if r.get("distance") is not None]
        if not good:
            errors = [r["error"] for r in rows if "error" in r]
            out.append({"library": library, "method": method, "failed": errors[0] if errors else "diverged"})
            continue
        best = min(good, key=lambda r: r["distance"])
        row: Row = {
            "library": library,
            "method": method,
            "named": rows[0]["named"],
            "best": best["distance"],
            "best_row": best,
            "tried": len({r["setting"] for r in rows}),
            "runs": len(rows),
            "most": max(r["forward_equivalents"] for r in good),
        }
        time, calls = (reached(rows, target, cost) for cost in ("seconds", "forward_equivalents"))
        if time is not None and calls is not None:
            row |= {"seconds": time[0], "fastest": time[1], "forward_equivalents": calls[0], "fewest": calls[1]}
            if "calls" in found:
                share = calls[0] / calls[1]["forward_equivalents"]
                row["on_network"] = on_network(calls[1], share, found["calls"]["cats64"])
        out.append(row)
    return sorted(out, key=lambda r: (r.get("seconds", math.inf), r.get("best", math.inf)))


def truth_markdown(found: Row) -> str:
    """A table for every task; empty where nothing was measured."""
    if not found.get("truth"):
        return ""
    about, parts = found["about"], []
    calls = found.get("calls", {}).get("cats64")
    line = f"{about['machine']}, one thread, torch {about['torch']}, processor time."
    if calls:
        line += (
            f" On cats64: seconds for one picture with as many calls and products of the embedded 64x64 network, which take "
            f"{calls['forward_ms']:.0f} and {calls['product_ms']:.0f} ms here in float32, eight pictures at once."
        )
    parts.append(line + "\n")
    for task, info in found["tasks"].items():
        wanted = targets(info["floor"])[0]
        rows = fastest(found, task, wanted)
        if not rows:
            continue
        measured = f"{info['measurements']} measurement{'s' * (info['measurements'] > 1)}"
        parts.append(f"### {task}\n")
        parts.append(
            f"{info['distance_name']} over the posterior's size, {info['samples']:,} samples of {measured}; exact draws score "
            f"{info['floor']:.3f}. To reach: {wanted:.3f}"
            + (
                f"; in brackets {info['floor'] + ABOVE_FLOOR:.3f}, which is {ABOVE_FLOOR} above that.\n"
                if wanted == TARGET
                else ".\n"
            )
        )
        closer = {(r["library"], r["method"]): r for r in fastest(found, task, info["floor"] + ABOVE_FLOOR)}
        body = [_truth_line(row, closer[row["library"], row["method"]], wanted == TARGET) for row in rows]
        head = ["library", "method", "seconds", "forward equivalents", "on cats64, s", "with", "best distance", "tried"]
        parts.append(markdown_table(head, body) + "\n")
    return "\n".join(parts)


def summary(found: Row) -> list[Row]:
    """What every method takes to reach the target of every task, for `quality.json`: its costs, or only its best distance."""
    keys = ("library", "method", "named", "best", "seconds", "forward_equivalents", "on_network", "failed")
    out = []
    for task, info in found.get("tasks", {}).items():
        wanted = targets(info["floor"])[0]
        for row in fastest(found, task, wanted):
            out.append({"task": task, "target": wanted, **{key: row[key] for key in keys if key in row}})
    return out


def _truth_line(row: Row, closer: Row, both: bool) -> list[str]:
    if "failed" in row:
        return [row["library"], row["method"], "failed", "", "", row["failed"][:60], "", ""]
    tried = f"{row['tried']} setting{'s' * (row['tried'] > 1)}, {row['runs']} runs, up to {row['most']:,.0f}"
    best = f"{row['best']:.3f}"
    if "seconds" not in row:
        setting, steps = row["best_row"]["setting"], row["best_row"]["steps"]
        return [row["library"], row["method"], "never", "", "", f"best: {setting}, {steps} steps", best, tried]

    def value(key: str, form: str) -> str:
        text = format(row[key], form) if key in row else ""
        return f"{text} ({format(closer[key], form) if key in closer else 'never'})" if both and text else text

    setting, steps = row["fewest"]["setting"], row["fewest"]["steps"]
    return [
        row["library"],
        row["method"],
        value("seconds", ".3f"),
        value("forward_equivalents", ".0f"),
        value("on_network", ".1f"),
        f"{setting}, {steps} steps",
        best,
        tried,
    ]


def beside_peers(found: Row, task: str) -> list[Row]:
    """Of every other library's methods: how many times longer they take than our fastest, in seconds and in calls."""
    info = found["tasks"][task]
    rows = fastest(found, task, targets(info["floor"])[0])
    ours = [r for r in rows if r["library"] == OURS and "seconds" in r]
    if not ours:
        return []
    seconds, calls = (min(r[key] for r in ours) for key in ("seconds", "forward_equivalents"))
    return [
        {
            **{key: r[key] for key in ("library", "method", "named", "best")},
            "times": r["seconds"] / seconds if "seconds" in r else None,
            "calls": r["forward_equivalents"] / calls if "seconds" in r else None,
        }
        for r in rows
        if r["library"] != OURS and "failed" not in r
    ]


# ---- quality against cost on pictures ---------------------------------------------------------------------------


def interval(values: list[float], digits: int) -> str:
    """Mean and half the width of its 95 % interval over pictures."""
    found = bootstrap_interval(values, resamples=2000)
    return f"{found.mean:.{digits}f}\u00a0±\u00a0{(found.high - found.low) / 2:.{digits}f}"


def on_common(row: Row, mark: Row, score: str) -> list[float]:
    """Differences of a score to the mark's on the pictures that both have."""
    theirs = dict(zip(mark["pictures"], mark[score], strict=True))
    return [v - theirs[n] for n, v in zip(row["pictures"], row[score], strict=True) if n in theirs]


def below_best(scores: list[Row]) -> None:
    """Put into every row how many dB it is below the best of its set and task on their common pictures: mean, low, high."""
    for which in dict.fromkeys((r["set"], r["task"]) for r in scores):
        rows = [r for r in scores if (r["set"], r["task"]) == which]
        most = max(len(r["psnr"]) for r in rows)
        best = max((r for r in rows if len(r["psnr"]) == most), key=lambda r: sum(r["psnr"]))
        for row in rows:
            less = bootstrap_interval([-v for v in on_common(row, best, "psnr")], resamples=2000)
            row["below best"] = [round(v, 4) for v in (less.mean, less.low, less.high)]


def images_markdown(found: Row) -> str:
    """A table for every set of pictures and task; empty where nothing was measured."""
    scores = list(found.get("scores", {}).values())
    parts: list[str] = []
    for which, task in dict.fromkeys((r["set"], r["task"]) for r in scores):
        rows = sorted(
            (r for r in scores if (r["set"], r["task"]) == (which, task)), key=lambda r: r["forward_equivalents"]
        )
        mark = next((r for r in rows if r["method"] == MARK), None)
        head = ["method", "pictures", "network calls", "forward equivalents", "PSNR, dB", "SSIM", "kernel distance"]
        head += [f"kernel distance of the first {FEW}"] + (
            ["PSNR less RePaint's", "SSIM less RePaint's"] if mark else []
        )
        body = []
        for row in rows:
            line = [row["method"], len(row["pictures"]), row["calls"], f"{row['forward_equivalents']:.0f}"]
            line += [interval(row["psnr"], 2), interval(row["ssim"], 3)]
            line += [f"{row[key][0]:.2f}\u00a0±\u00a0{1.96 * row[key][1]:.2f}" for key in ("kernel", "kernel_few")]
            if mark:
                line += (
                    ["", ""]
                    if row is mark
                    else [interval(on_common(row, mark, s), d) for s, d in (("psnr", 2), ("ssim", 3))]
                )
            body.append(line)
        parts += [f"### {which}: {task}\n", markdown_table(head, body) + "\n"]
    return "\n".join(parts)
