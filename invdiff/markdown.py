"""Markdown tables: the one way in which reports, the documentation and `benchmarks/` write them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def markdown_table(head: Sequence[Any], rows: Iterable[Sequence[Any]], align: str = "") -> str:
    """A table, one line per row, without a line break at its end.

    Args:
        head: of the columns.
        rows: as many cells each; what is no string is written by `str`. Bars and line breaks in them do no harm.
        align: one of l, r, c per column; all to the left by default.
    """
    marks = {"l": ":---", "r": "---:", "c": ":---:"}
    lines = [_line(head), "|" + "|".join(marks.get(c, "---") for c in align.ljust(len(head))) + "|"]
    return "\n".join([*lines, *map(_line, rows)])


def _line(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
