"""Bring finished benchmark runs into the documentation's data.

python docs/figures/results.py runs/quick runs/inpainting     # docs/data/suite_NAME.json and .md
python docs/figures/results.py --truth runs/truth             # docs/data/truth/
python docs/figures/results.py --posterior                    # runs it: docs/data/posterior_table.md and .json (minutes)

The pages read these files; where one is missing they say which command writes it.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
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
    target = DATA / "truth"
    target.mkdir(exist_ok=True)
    wanted = [*folder.glob("*.png"), *(folder / n for n in ("summary.md", "summary.csv", "run.json"))]
    for old in target.iterdir():
        if old.name not in {file.name for file in wanted}:
            old.unlink()
    for file in wanted:
        if file.is_file():
            shutil.copyfile(file, target / file.name)
    return target


def posterior() -> Path:
    """Every sampler against a Gaussian posterior."""
    from invdiff.bench.posterior.truth import posterior_table

    text, rows = posterior_table()
    (DATA / "posterior_table.md").write_text(text + "\n", encoding="utf-8")
    content = {"command": "python docs/figures/results.py --posterior", "rows": rows}
    (DATA / "posterior_table.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return DATA / "posterior_table.md"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Bring finished benchmark runs into the documentation's data.")
    parser.add_argument("runs", nargs="*", type=Path, help="run folders of `invdiff bench`")
    parser.add_argument("--truth", type=Path, help="run folder of `invdiff bench truth`")
    parser.add_argument("--posterior", action="store_true", help="run the Gaussian table")
    given = parser.parse_args(arguments)
    DATA.mkdir(exist_ok=True)
    written: list[Path] = [suite(folder) for folder in given.runs]
    if given.truth:
        written.append(truth(given.truth))
    if given.posterior:
        written.append(posterior())
    for file in written:
        print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
