"""Options that know their meaning and range: the fields of samplers and of trainings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from invdiff.errors import InvdiffError, near_match


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[str] | None = None,
) -> Any:
    """A dataclass field with a default, a line of help and a range. The command line, grids and docs read them from here."""
    return dataclasses.field(default=default, metadata={"help": help, "low": low, "high": high, "choices": choices})


def check_options(instance: Any, owner: str) -> None:
    """Check every field of a frozen dataclass against its `option`, and put it into the type of its default.

    Args:
        instance: called from its ``__post_init__``.
        owner: named in the message.

    Raises:
        InvdiffError: the field, what it was and what is accepted.
    """
    for field in dataclasses.fields(instance):
        object.__setattr__(instance, field.name, checked(owner, field, getattr(instance, field.name)))


def checked(owner: str, field: dataclasses.Field, value: Any) -> Any:
    """`value` in the type of the field's default, or an InvdiffError that says what is accepted."""
    default: Any = field.default
    meta, name = field.metadata, f"{owner}: {field.name}"
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise InvdiffError(f"{name} must be True or False, got {value!r}")
        return value
    if isinstance(default, str):
        if meta["choices"] and value not in meta["choices"]:
            hint = near_match(str(value), meta["choices"])
            raise InvdiffError(f"{name} must be one of {', '.join(meta['choices'])}; got {value!r}.{hint}")
        if not isinstance(value, str):
            raise InvdiffError(f"{name} must be a word, got {value!r}")
        return value
    whole = isinstance(default, int)
    try:
        number = int(value) if whole else float(value)
        good = number == value if whole else number - number == 0
    except (TypeError, ValueError, OverflowError):
        good = False
    if not good or isinstance(value, bool | str):
        raise InvdiffError(f"{name} must be a {'whole ' if whole else ''}number, got {value!r}")
    low, high = meta["low"], meta["high"]
    if (low is not None and number < low) or (high is not None and number > high):
        accepted = f"at least {low:g}" if high is None else f"{low:g} to {high:g}"
        raise InvdiffError(f"{name} must be {accepted}, got {value!r}")
    return number
