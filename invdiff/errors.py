"""What goes wrong, said so that the reader knows what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InvdiffError(ValueError):
    """Bad input. The message names the argument, what it was and what is accepted."""


class DivergenceError(InvdiffError):
    """A run went non-finite. The message names the sampler, the step and the time."""


class InvdiffWarning(UserWarning):
    """Something legal that is rarely meant, such as an empty mask."""


def near_match(name: str, names: Iterable[str]) -> str:
    """``" Did you mean 'repaint'?"`` when one of `names` is close to `name`, else an empty string."""
    close = difflib.get_close_matches(name.lower(), list(names), n=2, cutoff=0.5)
    if not close:
        return ""
    like = [difflib.SequenceMatcher(None, name.lower(), other).ratio() for other in close]
    if len(close) == 2 and like[1] == like[0]:
        return f" Did you mean {close[0]!r} or {close[1]!r}?"
    return f" Did you mean {close[0]!r}?"
