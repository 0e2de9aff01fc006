"""Bring finished benchmark runs into the documentation's data.

python docs/figures/results.py runs/quick runs/inpainting     # docs/data/suite_NAME.json and .md
python docs/figures/results.py --truth runs/truth             # docs/data/truth/
python docs/figures/results.py --posterior runs/posterior     # docs/data/posterior_table.md and .json

The pages read these files; where one is missing they say which command writes it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent
DATA = DOCS / "data"


def suite(folder: Path) -> Path:
    """The tables of a run of `invdiff bench`, as Markdown, and the command that made it."""
    from invdiff.bench.report.tables import Summary, markdown
    from invdiff.bench.run.store import Run

    summary = Summary(Run.open(folder))
    name = summary.run.suite.name.replace("/", "_")
    text = markdown(summary, name)
    # Why a metric could not be had names places outside the documentation; that it could not is enough here.
    text = re.sub(r"^(- not available: [\w, ]+)\. .*$", r"\1.", text, flags=re.MULTILINE)
    (DATA / f"suite_{name}.md").write_text(text, encoding="utf-8")
    info = {
        "command": f"invdiff bench {summary.run.suite.name} --out runs/{name}",
        "images": len(summary.images),
        "seeds": summary.seeds,
        "cells": len(summary.records),
        "failed": len(summary.failed),
    }
    file = DATA / f"suite_{name}.json"
    file.write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")
    return file


def truth(folder: Path) -> Path:
    """Tables and figures of a run of `invdiff bench truth`."""
    from invdiff.bench.posterior.figures import posterior_figures
    from invdiff.bench.report.tables import Summary, markdown, summary_csv
    from invdiff.bench.run.store import Run

    target = DATA / "truth"
    target.mkdir(exist_ok=True)
    for old in target.iterdir():
        old.unlink()
    summary = Summary(Run.open(folder))
    text = markdown(summary, "Distance to the exact posterior", intervals=False)
    (target / "summary.md").write_text(text, encoding="utf-8")
    (target / "summary.csv").write_text(summary_csv(summary), encoding="utf-8")
    info = {key: summary.info[key] for key in ("invdiff", "suite", "backbones", "seeds")}
    (target / "run.json").write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")
    for name, figure in posterior_figures(summary):
        figure.savefig(target / f"{name}.png", dpi=150)
    return target


def posterior(folder: Path) -> Path:
    """Every sampler against a Gaussian posterior, from a run of `invdiff bench posterior`."""
    from invdiff.bench.report.tables import Summary
    from invdiff.bench.run.store import Run
    from invdiff.markdown import markdown_table

    summary = Summary(Run.open(folder))
    parts = [
        "Prior: 8 pixels, standard deviation 0.25, correlation 0.8^|i-j|; the first 4 observed. "
        f"{summary.run.suite.measurements} measurements, {summary.run.suite.n_samples:,} samples of each. bias: of the "
        "mean of the unobserved half, in posterior standard deviations; variance: ratio of variances there (1 is right); "
        "W2: Wasserstein-2 distance there over the posterior's size (0 is right); misfit: rms of A x - y. *exact* is what a "
        "second set of exact samples scores; *prior only* is sampling without data, against the prior: pure "
        "discretisation."
    ]
    rows = []
    for table in summary.tables:
        body = []
        for row in table.rows:
            calls = row.entries["nfe"].value
            vjps = row.entries["vjps"].value
            cost = "" if calls is None else f"{calls.mean:.0f}" + ("\\*" if vjps is not None and vjps.mean else "")
            values = {m.name: row.entries[m.name].value for m in table.metrics}
            body.append([row.sampler, cost, *("" if v is None else f"{v.mean:.3f}" for v in values.values())])
            numbers = {name: None if v is None else v.mean for name, v in values.items()}
            rows.append(
                {"task": table.task, "sampler": row.sampler, "nfe": None if calls is None else calls.mean, **numbers}
            )
        head = ["sampler", "NFE", *(m.label for m in table.metrics)]
        parts += [f"{table.task.replace('gaussian8 ', '')}", markdown_table(head, body, "l" + "r" * (len(head) - 1))]
    parts.append("NFE: network calls, \\* with as many gradients.")
    (DATA / "posterior_table.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    command = "invdiff bench posterior --out runs/posterior"
    text = json.dumps({"command": command, "rows": rows}, indent=1)
    (DATA / "posterior_table.json").write_text(text + "\n", encoding="utf-8")
    return DATA / "posterior_table.md"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Bring finished benchmark runs into the documentation's data.")
    parser.add_argument("runs", nargs="*", type=Path, help="run folders of `invdiff bench`")
    parser.add_argument("--truth", type=Path, help="run folder of `invdiff bench truth`")
    parser.add_argument("--posterior", type=Path, help="run folder of `invdiff bench posterior`")
    given = parser.parse_args(arguments)
    DATA.mkdir(exist_ok=True)
    written: list[Path] = [suite(folder) for folder in given.runs]
    if given.truth:
        written.append(truth(given.truth))
    if given.posterior:
        written.append(posterior(given.posterior))
    for file in written:
        print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
