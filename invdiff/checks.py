"""Arguments checked in one place, so that every message has one form: what it must be, what it was."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any

from invdiff.errors import InvdiffError, near_match


def whole(name: str, value: Any, low: int | None = None, high: int | None = None, hint: str = "") -> int:
    """`value` as an int.

    Args:
        name: of the argument, for the message.
        value: an int or a NumPy integer or a tensor of one integer; neither a bool, a float nor a word.
        low, high: what is accepted, both included.
        hint: a further sentence for the message.

    Raises:
        InvdiffError: it is none, or out of range.
    """
    try:
        if (
            isinstance(value, bool)
            or getattr(value, "ndim", 0) != 0
            or str(getattr(value, "dtype", "")).endswith("bool")
        ):
            raise TypeError
        number = operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        number = None
    if number is None or (low is not None and number < low) or (high is not None and number > high):
        raise InvdiffError(_sentence(name, f"a whole number{_range(low, high)}", value, hint))
    return number


def real(
    name: str,
    value: Any,
    low: float | None = None,
    high: float | None = None,
    *,
    above: float | None = None,
    hint: str = "",
) -> float:
    """`value` as a finite float.

    Args:
        name: of the argument.
        value: an int, a float, or a NumPy or torch scalar; neither a bool nor a word.
        low, high: what is accepted, both included.
        above: it must be greater than this.
        hint: a further sentence for the message.

    Raises:
        InvdiffError: it is none, not finite, or out of range.
    """
    try:
        if isinstance(value, bool | str | bytes) or getattr(value, "ndim", 0) != 0:
            raise TypeError
        number = float(value)
        good = math.isfinite(number)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number, good = math.nan, False
    good = good and (low is None or number >= low) and (high is None or number <= high)
    if not (good and (above is None or number > above)):
        bounds = f" above {above:g}" if above is not None else _range(low, high)
        if above is not None and high is not None:
            bounds += f" and at most {high:g}"
        raise InvdiffError(_sentence(name, f"a number{bounds}", value, hint))
    return number


def flag(name: str, value: Any) -> bool:
    """`value`, True or False.

    Raises:
        InvdiffError: it is anything else.
    """
    if not isinstance(value, bool):
        raise InvdiffError(_sentence(name, "True or False", value))
    return value


def one_of(name: str, value: Any, choices: Iterable[str]) -> str:
    """`value`, one of `choices`.

    Raises:
        InvdiffError: it is none of them; the message has the near match.
    """
    names = list(choices)
    if not isinstance(value, str) or value not in names:
        raise InvdiffError(
            _sentence(
                name,
                f"one of {', '.join(names)}",
                value,
                near_match(value, names).strip() if isinstance(value, str) else "",
            )
        )
    return value


def known(name: str, found: Iterable[Any], names: Iterable[str], what: str = "option") -> None:
    """Refuse words that are none of `names`.

    Args:
        name: whose they are, such as ``"sampler ddnm"``.
        found: the words given.
        names: those that exist.
        what: what such a word is called.

    Raises:
        InvdiffError: the first unknown one, with the near match.
    """
    names = list(names)
    for word in found:
        if word not in names:
            has = f"it has {', '.join(names)}" if names else "it has none"
            raise InvdiffError(f"{name} has no {what} {word!r}; {has}.{near_match(str(word), names)}")


def shown(value: Any, length: int = 80) -> str:
    """`repr(value)` for a message: one line, cut where it is long."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a broken __repr__ must not hide the message
        text = f"<{type(value).__name__}>"
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _range(low: float | None, high: float | None) -> str:
    if low is None and high is None:
        return ""
    if high is None:
        return f" of at least {low:g}" if isinstance(low, float) else f" of at least {low}"
    if low is None:
        return f" of at most {high}"
    return (
        f" from {low:,} to {high:,}" if isinstance(low, int) and isinstance(high, int) else f" from {low:g} to {high:g}"
    )


def _sentence(name: str, accepted: str, value: Any, hint: str = "") -> str:
    return f"{name} must be {accepted}, got {shown(value)}" + (f". {hint}" if hint else "")
