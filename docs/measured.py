"""Macros that show what was measured: tables and sentences read from `docs/data`, written there by the suites and by `benchmarks`.

Where nothing has been measured for this copy of the pages, a macro becomes a note that says which command does it.
"""

from __future__ import annotations

import csv
import json
import math
import re
import textwrap
from pathlib import Path
from typing import Any

from invdiff.markdown import markdown_table

DATA = Path(__file__).resolve().parent / "data"


def note(text: str) -> str:
    return f'!!! note "Not here yet"\n    {text}'


NO_TRUTH = note(
    "The suite has not been run for this copy of the pages: `invdiff bench truth --out runs/truth`."
)


def data_table(
    name: str,
    columns: list[str] | None = None,
    head: list[str] | None = None,
    where: dict[str, Any] | None = None,
) -> str:
    """A table of `docs/data/NAME.json` (a list of rows, or a dictionary with `rows`) or `NAME.csv`.

    Args:
        name: of the file.
        columns: which, in this order; all of the first row by default.
        head: what to call them.
        where: only rows with these values.
    """
    rows = read_rows(name)
    if rows is None:
        return note(
            f"`docs/data/{name}.json` has not been written yet; `make figures` and the suites write it."
        )
    for key, value in (where or {}).items():
        rows = [row for row in rows if row.get(key) == value]
    if not rows:
        return note(f"`docs/data/{name}` holds no such rows yet.")
    columns = columns or list(rows[0])
    body = [[number(row.get(column, "")) for column in columns] for row in rows]
    numeric = [
        "r" if all(isinstance(row.get(c), int | float) for row in rows) else "l"
        for c in columns
    ]
    return markdown_table(head or columns, body, "".join(numeric))


def read_rows(name: str) -> list[dict[str, Any]] | None:
    """The rows of a data file, or None."""
    file = DATA / f"{name}.json"
    if file.is_file():
        content = json.loads(file.read_text(encoding="utf-8"))
        rows = content.get("rows") if isinstance(content, dict) else content
        return rows if isinstance(rows, list) else None
    file = DATA / f"{name}.csv"
    if file.is_file():
        with open(file, encoding="utf-8", newline="") as handle:
            return [dict(row) for row in csv.DictReader(handle)]
    return None


def datum(
    name: str, column: str, digits: int, where: dict[str, Any], per: str = ""
) -> str:
    """A number of the one row of a data file that has these values, for prose; divided by another column if `per` names it."""
    rows = read_rows(name)
    if rows is None:
        return "(not measured)"
    found = [
        row
        for row in rows
        if all(row.get(key) == value for key, value in where.items())
    ]
    if len(found) != 1:
        raise KeyError(f"{len(found)} rows of {name} have {where}")
    value = found[0][column]
    number = float(value[0] if isinstance(value, list) else value)
    if per:
        number /= float(found[0][per])
    return f"{number:.{digits}f}"


def which_sampler(task: str = "", sampler: str = "") -> str:
    """What `benchmarks/which_sampler.py` measured, of one task or of one sampler, best PSNR first; ± is half a 95 % interval."""
    rows = read_rows("which_sampler")
    if rows is None:
        return note(
            "Not measured for this copy of the pages: `python benchmarks/which_sampler.py` does it."
        )
    rows = [
        r
        for r in rows
        if (not task or r["task"] == task)
        and (not sampler or r["sampler"] == sampler)
    ]
    if not rows:
        return note("This sampler was not among those measured there.")

    def said(value: list[float] | None, digits: int) -> str:
        if value is None:
            return ""
        mean, low, high = value
        return f"{mean:.{digits}f} ± {(high - low) / 2:.{digits}f}"

    if task:
        rows = sorted(rows, key=lambda r: -r["psnr"][0])
    seam = any("seam" in r for r in rows)
    first = ["method"] if task else ["task", "method"]
    head = [*first, "pictures", "PSNR, dB", "SSIM", "detail"]
    head += [*(["seam"] if seam else []), "misfit", "calls", "seconds"]
    body = [
        [
            *(r[key] for key in first),
            f"{r['pictures']}",
            said(r["psnr"], 2),
            said(r["ssim"], 3),
            said(r["detail"], 2),
            *([said(r.get("seam"), 2)] if seam else []),
            f"{r['misfit'][0]:.3f}",
            f"{r['calls']}" + (f", {r['vjps']} gradients" if r["vjps"] else ""),
            f"{r['seconds']:.2f}",
        ]
        for r in rows
    ]
    align = "l" * len(first) + "r" * (len(head) - len(first))
    return markdown_table(head, body, align)


def time_to_quality() -> str:
    """Per task the best mean PSNR, and the least time for which it can be had up to 0.5 dB; of both measurements of pictures."""
    parts = []
    if rows := read_rows("which_sampler"):
        named = [r for r in rows if r["sampler"]]
        parts.append(_quickest([{**r, "mean": r["psnr"][0]} for r in named]))
    if rows := _quality("scores"):
        several = [
            {
                **r,
                "task": f"{r['set']}: {r['task']}",
                "mean": sum(r["psnr"]) / len(r["psnr"]),
                "pictures": len(r["psnr"]),
            }
            for r in rows
        ]
        parts.append(
            "And of [another measurement](%UP%results/quality.md#on-held-out-pictures), with other budgets and libraries:\n\n"
            + _quickest(several)
        )
    if not parts:
        return note(
            "Not measured for this copy of the pages: `python benchmarks/which_sampler.py` does it."
        )
    return "\n\n".join(parts)


def _quality(part: str) -> list[dict[str, Any]]:
    """The rows of a part of what `benchmarks/quality.py` wrote."""
    file = DATA / "quality.json"
    if not file.is_file():
        return []
    found = json.loads(file.read_text(encoding="utf-8")).get(part, [])
    return list(found.values()) if isinstance(found, dict) else found


def _quickest(rows: list[dict[str, Any]], near: float = 0.5) -> str:
    """The table of `time_to_quality`, from rows with task, method, seconds, mean PSNR and how many dB that is "below best"."""
    body = []
    for task in dict.fromkeys(r["task"] for r in rows):
        mine = [r for r in rows if r["task"] == task]
        most = max(r["pictures"] for r in mine)
        best = max(
            (r for r in mine if r["pictures"] == most), key=lambda r: r["mean"]
        )
        fast = min(
            (r for r in mine if r["below best"][0] <= near),
            key=lambda r: r["seconds"],
        )
        lost = (
            f"{max(0.0, fast['below best'][0]):.2f} dB less"
            if fast is not best
            else "the same"
        )
        body.append(
            [
                task,
                f"{best['method']}, {best['mean']:.2f} dB",
                f"{best['seconds']:.2f}",
                f"{fast['method']}, {lost}",
                f"{fast['seconds']:.2f}",
            ]
        )
    return markdown_table(
        [
            "task",
            "best mean PSNR",
            "seconds",
            f"quickest within {near} dB of it",
            "seconds",
        ],
        body,
        "llrlr",
    )


def quality_words() -> str:
    """Per task of the exact posteriors: our fastest method, the next library's, and which never came there."""
    found = _quality("reached")
    if not found:
        return note(
            "Not measured for this copy of the pages: `python benchmarks/quality.py --parts truth` does it."
        )

    def cost(row: dict[str, Any]) -> str:
        return f"{row['method']}, {row['forward_equivalents']:.0f} forward equivalents and {row['seconds']:.2g} s"

    said = []
    for task in dict.fromkeys(r["task"] for r in found):
        rows = [r for r in found if r["task"] == task]
        came = sorted(
            (r for r in rows if "seconds" in r), key=lambda r: r["seconds"]
        )
        ours = [r for r in came if r["library"] == "invdiff"]
        theirs = [r for r in came if r["library"] != "invdiff"]
        first = f"first {cost(ours[0])}" if ours else "none"
        words = (
            f"* **{task}**, distance {rows[0]['target']:.3f}: of ours {first}"
        )
        words += (
            f"; of the other libraries' first {theirs[0]['library']}'s {cost(theirs[0])}."
            if theirs
            else "; of the other libraries' none came there."
        )
        never = [
            r
            for r in rows
            if r["library"] != "invdiff" and "seconds" not in r and "best" in r
        ]
        if never:
            near = min(never, key=lambda r: r["best"])
            words += (
                f" {len(never)} of their methods never did, the nearest of those "
                f"{near['library']}'s {near['method']} ({near['best']:.3f})."
            )
        said.append(words)
    return "\n".join(said)


def integrators(
    task: str, sigma_y: float, samplers: list[str], digits: int = 2
) -> str:
    """Distance above the floor on one task, a line for each sampler and number of steps, a column for each integrator."""
    found = read_rows("integrators")
    rows = [
        r
        for r in found or []
        if (r["task"], r["sigma_y"]) == (task, sigma_y)
        and r["sampler"] in samplers
        and r["way"].partition(" ")[2] in ("", "spacing=karras")
    ]
    if not rows:
        return note(
            "Not measured for this copy of the pages: `python benchmarks/integrators.py --out docs/data` does it."
        )
    names = ("own", "ancestral", "ddim", "dpm++2m", "eab3", "heun")
    used = [n for n in names if any(r["way"].split()[0] == n for r in rows)]
    body = []
    for sampler, steps in dict.fromkeys(
        (s, r["steps"]) for s in samplers for r in rows if r["sampler"] == s
    ):
        mine = {
            r["way"].split()[0]: r
            for r in rows
            if (r["sampler"], r["steps"]) == (sampler, steps)
        }
        cells = [_both(mine.get(n, {}), "above", digits) for n in used]
        costs = {r["equivalents"] for r in mine.values()}
        cost = (
            f"{min(costs)}"
            if len(costs) == 1
            else f"{min(costs)} to {max(costs)}"
        )
        body.append([f"`{sampler}`", f"{steps}", cost, *cells])
    head = [
        "sampler",
        "steps",
        "forward equivalents",
        *(f"`{n}`" for n in used),
    ]
    counts = sorted({r["measurements"] for r in rows})
    about = (
        f"{task}, σ_y = {sigma_y:g}: above the floor ({rows[0]['floor']:.3f}), mean of "
        f"{' or '.join(map(str, counts))} measurements ± its standard error."
    )
    return f"{about}\n\n{markdown_table(head, body, 'lrr' + 'r' * len(used))}"


def across_tasks(
    sampler: str,
    ways: dict[str, str],
    score: str = "above",
    priors: tuple[str, ...] = ("",),
) -> str:
    """One sampler on every task, a column for each of its ways.

    Args:
        sampler: of all.
        ways: steps and what the file calls a way -> the head of its column: ``{"30 dpm++2m": "30 steps"}``.
        score: "above" the floor, "c2st" or "mode_error"; tasks without it are left out.
        priors: only tasks whose names begin with one of these.
    """
    found = {
        (r["task"], r["sigma_y"], f"{r['steps']} {r['way']}"): r
        for r in read_rows("integrators") or []
        if r["sampler"] == sampler and score in r
    }
    body = []
    for task, sigma_y in dict.fromkeys((t, s) for t, s, _ in found):
        mine = [found.get((task, sigma_y, way)) for way in ways]
        if task.startswith(priors) and None not in mine:
            body.append(
                [task, f"{sigma_y:g}", *(_both(r, score, 3) for r in mine if r)]
            )
    if not body:
        return note(
            "Not measured for this copy of the pages: `python benchmarks/integrators.py --out docs/data` does it."
        )
    return markdown_table(
        ["task", "σ_y", *ways.values()], body, "lr" + "r" * len(ways)
    )


def _both(row: dict[str, Any], key: str, digits: int) -> str:
    """A score ± its standard error, which no line break parts; empty where it was not measured."""
    if key not in row:
        return ""
    return f"{row[key]:.{digits}f}\u00a0±\u00a0{row[f'{key}_error']:.{digits}f}"


def nearness(sampler: str, way: str, steps: int) -> str:
    """One setting's distance above the floor, C2ST and mode error on every task of `benchmarks/integrators.py`."""
    rows = [
        r
        for r in read_rows("integrators") or []
        if (r["sampler"], r["way"], r["steps"]) == (sampler, way, steps)
    ]
    if not rows:
        return note(
            "Not measured for this copy of the pages: `python benchmarks/integrators.py --out docs/data` does it."
        )

    body = [
        [
            r["task"],
            f"{r['sigma_y']:g}",
            f"{r['floor']:.3f}",
            _both(r, "above", 3),
            _both(r, "c2st", 3),
            _both(r, "mode_error", 3),
            f"{r['mode_error_floor']:.3f}" if "mode_error" in r else "",
            f"{r['measurements']}",
        ]
        for r in rows
    ]
    head = ["task", "σ_y", "floor", "above it", "C2ST", "mode error", "its floor", "measurements"]  # fmt: skip
    return markdown_table(head, body, "lrrrrrrr")


def truth_overview(metric: str = "sw2") -> str:
    """A score of every sampler on every task as a table with colours.

    Args:
        metric: ``"sw2"``, coloured by how many times the floor it is, to 20; or ``"c2st"``, coloured from 0.5 to 1.
    """
    rows = read_rows("truth/summary")
    if rows is None:
        return NO_TRUTH
    found = {
        (r["task"], r["sampler"]): float(r["mean"])
        for r in rows
        if r["metric"] == metric and r["mean"]
    }
    # sweeps over steps and scales, and runs without a measurement, have figures of their own
    tasks = [
        t
        for t in dict.fromkeys(t for t, _ in found)
        if t.split()[0] not in ("prior", "steps", "learned", "calibration")
    ]
    samplers = [
        s
        for s in dict.fromkeys(s for t, s in found if t in tasks)
        if s not in ("exact", "prior only") and "=" not in s
    ]
    head = "".join(f"<th><span>{s}</span></th>" for s in samplers)
    lines = [
        f'<div class="overview"><table class="overview"><thead><tr><th></th><th><span>floor</span></th>{head}</tr></thead><tbody>'
    ]
    for task in tasks:
        floor = found[task, "exact"]
        values = [found.get((task, s)) for s in samplers]
        least = min(v for v in values if v is not None)
        cells = []
        for value in values:
            if value is None:
                cells.append("<td></td>")
                continue
            heat = (
                math.log(value / floor) / math.log(20)
                if metric == "sw2"
                else 2 * value - 1
            )
            digits = f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"
            bold = value == least if metric == "sw2" else value <= 0.55
            text = f"<b>{digits}</b>" if bold else digits
            share = 100 * min(1.0, max(0.0, heat))
            cells.append(f'<td style="--heat: {share:.0f}%">{text}</td>')
        name = task.replace(" sigma_y=", ", σ = ")
        lines.append(
            f"<tr><th>{name}</th><td>{floor:.2f}</td>{''.join(cells)}</tr>"
        )
    return "\n".join([*lines, "</tbody></table></div>"])


def exactness(sampler: str, priors: tuple[str, ...] = ("gaussian8",)) -> str:
    """What the suite `truth` found of one sampler with the settings there: distance, bias and variance, beside the floor.

    Args:
        sampler: as the suite calls it.
        priors: tasks whose names begin with one of these.
    """
    rows = read_rows("truth/summary")
    if rows is None:
        return NO_TRUTH
    found = {
        (r["task"], r["sampler"], r["metric"]): r
        for r in rows
        if r["mean"] and r["task"].startswith(priors)
    }
    body = []
    for task in dict.fromkeys(t for t, s, _ in found if s == sampler):
        distance = "w2" if (task, sampler, "w2") in found else "sw2"

        def value(metric: str, who: str = sampler, task: str = task) -> str:
            row = found.get((task, who, metric))
            return f"{float(row['mean']):.2f}" if row else ""

        keys = ("c2st", "bias_null", "var_null", "bias_range", "var_range")
        body.append(
            [
                task.replace(" sigma_y=", ", σ = "),
                found[task, sampler, distance]["images"],
                value(distance, "exact"),
                value(distance),
                *map(value, keys),
            ]
        )
    head = ["task", "measurements", "floor", "distance", "C2ST", "bias, unseen", "variance, unseen", "bias, seen", "variance, seen"]  # fmt: skip
    return markdown_table(head, body, "l" + "r" * (len(head) - 1))


def data_markdown(name: str, level: int = 0) -> str:
    """`docs/data/NAME.md`, written by a script; its title is left out, other headings sink below `level` (0 drops all)."""
    file = DATA / f"{name}.md"
    if not file.is_file():
        return note(f"`docs/data/{name}.md` has not been written yet.")
    text = re.sub(r"\A# .*\n", "", file.read_text(encoding="utf-8"))
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text)
    if level == 0:
        return re.sub(r"^#+ .*\n", "", text, flags=re.MULTILINE).strip()
    return re.sub(
        r"^(#+) ",
        lambda m: "#" * min(6, len(m[1]) + level - 1) + " ",
        text,
        flags=re.MULTILINE,
    ).strip()


def suite_results() -> str:
    """The tables of every suite whose results are in docs/data, each below the command that made it."""
    parts = []
    for file in sorted(DATA.glob("suite_*.json")):
        info = json.loads(file.read_text(encoding="utf-8"))
        seeds = info.get("seeds", [])
        about = f"{info.get('images')} images, {len(seeds)} seed{'s' if len(seeds) != 1 else ''}"
        name = file.stem.removeprefix("suite_")
        parts.append(
            f"### {name}\n\n`{info.get('command')}`: {about}.\n\n{data_markdown(file.stem, 3)}"
        )
    if not parts:
        return note(
            "No suite has been run for this copy of the pages. `invdiff bench quick --out runs/quick` runs the first one, and "
            "`python docs/figures/results.py runs/quick` puts its tables here."
        )
    return "\n\n".join(parts)


def posterior_table() -> str:
    """The Gaussian table of the benchmark's truth part."""
    if not (DATA / "posterior_table.md").is_file():
        return note(
            "`python docs/figures/results.py --posterior` makes this table."
        )
    return (
        data_markdown("posterior_table")
        + "\n\n"
        + provenance("posterior_table")
    )


def truth_figure(name: str, caption: str) -> str:
    """A figure that `invdiff bench truth` drew."""
    if not (DATA / "truth" / f"{name}.png").is_file():
        return note(
            f"This figure is drawn by `invdiff bench truth --out docs/data/truth` ({name}.png)."
        )
    alt = re.sub(r"[*_`$\\\[\]\"]", "", caption.split(". ")[0])
    image = f"![{alt}](%UP%data/truth/{name}.png){{ loading=lazy }}"
    return f'<figure markdown="span">\n{image}\n<figcaption markdown="span">{caption}</figcaption>\n</figure>'


def truth_tables() -> str:
    """Every table of `invdiff bench truth`, folded."""
    if not (DATA / "truth" / "summary.md").is_file():
        return NO_TRUTH
    text = data_markdown("truth/summary", 1)
    about, *parts = re.split(r"^## ", text, flags=re.MULTILINE)
    out = [about.strip()]
    for part in parts:
        title, _, body = part.partition("\n")
        body = re.sub(
            r"^### (.*)$", r"**\1**", body, flags=re.MULTILINE
        ).strip()
        out.append(
            f'??? note "{title}: all tables"\n\n'
            + textwrap.indent(body, "    ")
        )
    return "\n\n".join(out)


def measured_markdown(name: str, command: str) -> str:
    """`docs/data/NAME.md` with its picture, or a note with the command that writes them."""
    if not (DATA / f"{name}.md").is_file():
        return note(
            f"Not measured for this copy of the pages: `{command}` does it."
        )
    parts = []
    if (DATA / f"{name}.png").is_file():
        parts.append(f"![{name}](%UP%data/{name}.png){{ loading=lazy }}")
    return "\n\n".join([*parts, data_markdown(name, 2)])


def folded_markdown(name: str, command: str, unfolded: int = 1) -> str:
    """`docs/data/NAME.md` with each of its parts but the first ones folded, or a note with the command that writes it."""
    if not (DATA / f"{name}.md").is_file():
        return note(
            f"Not measured for this copy of the pages: `{command}` does it."
        )
    about, *parts = re.split(
        r"^### ", data_markdown(name, 1), flags=re.MULTILINE
    )
    out = [about.strip()]
    for k, part in enumerate(parts):
        title, _, body = part.partition("\n")
        out.append(
            f"### {part.strip()}"
            if k < unfolded
            else f'??? note "{title}"\n\n'
            + textwrap.indent(body.strip(), "    ")
        )
    return "\n\n".join(out)


def provenance(name: str) -> str:
    """The command, date and machine that `docs/data/NAME.json` says it comes from."""
    file = DATA / f"{name}.json"
    if not file.is_file():
        return ""
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        return ""
    parts = []
    if made := content.get("command") or content.get("made_by"):
        parts.append(f"Made by `{made}`")
    if content.get("settings"):
        parts.append(str(content["settings"]))
    return ". ".join(parts) + "." if parts else ""


def sampler_seconds() -> str:
    """Calls of every sampler with its defaults, and what they take with cats64 on the machine of `docs/data/speed.json`."""
    from invdiff.backbones.schedule import NoiseSchedule
    from invdiff.samplers import sampler_class

    file = DATA / "speed.json"
    if not file.is_file():
        return note("`python benchmarks/speed.py --out docs/data` measures it.")
    found = json.loads(file.read_text(encoding="utf-8"))
    measured = [
        r
        for r in found["overhead"]
        if r["backbone"] == "cats64" and r["batch"] == 1
    ]
    rows = []
    for row in sorted(
        measured, key=lambda r: r["run_ms"] * _calls(r["sampler"])
    ):
        calls = _calls(row["sampler"])
        gradient = (
            "yes"
            if sampler_class(row["sampler"])().cost(NoiseSchedule.linear()).vjps
            else ""
        )
        seconds = calls * row["run_ms"] / 1000
        rows.append(
            [
                f"`{row['sampler']}`",
                f"{calls:,}",
                gradient,
                f"{row['run_ms']:.0f}",
                f"{seconds:.1f}",
            ]
        )
    about = found["about"]
    where = f"{about['machine']}, {about['threads']} thread(s), PyTorch {about['torch'].split('+')[0]}, precision `auto`, {about['clock']}"
    head = ["sampler", "network calls", "gradient", "ms a call", "seconds"]
    return (
        markdown_table(head, rows, "lrcrr")
        + f"\n\n{where}. Made by `python benchmarks/speed.py --out docs/data`."
    )


def _calls(name: str) -> int:
    from invdiff.backbones.schedule import NoiseSchedule
    from invdiff.samplers import sampler_class

    return sampler_class(name)().network_calls(NoiseSchedule.linear())


def number(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, float):
        return (
            f"{value:.1e}"
            if 0 < abs(value) < 1e-3
            else f"{value:.3g}"
            if abs(value) < 10
            else f"{value:.1f}"
        )
    return "" if value is None else str(value)


MACROS = (
    data_table,
    datum,
    which_sampler,
    time_to_quality,
    quality_words,
    integrators,
    nearness,
    across_tasks,
    truth_overview,
    exactness,
    data_markdown,
    suite_results,
    posterior_table,
    truth_figure,
    truth_tables,
    measured_markdown,
    folded_markdown,
    provenance,
    sampler_seconds,
)
