"""A progress bar that is quiet when nobody watches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(what: str, total: int, show: bool | None = None) -> Iterator[Callable[[int], None]]:
    """A bar of `total` moves; yields a function that advances it by so many, or back.

    Args:
        what: shown in front.
        total: moves.
        show: True or False; None shows it on a terminal only.
    """
    if show is None:
        show = sys.stderr.isatty()
    if not show:
        yield lambda moves: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=Console(stderr=True), transient=True, speed_estimate_period=600
    ) as bar:  # slow moves
        task = bar.add_task(what, total=total)
        yield lambda moves: bar.advance(task, moves)
