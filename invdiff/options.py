"""Options that know their meaning and range: the fields of samplers and of trainings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from invdiff.checks import flag, one_of, real, shown, whole
from invdiff.errors import InvdiffError


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
        return flag(name, value)
    if isinstance(default, str):
        if meta["choices"]:
            return one_of(name, value, meta["choices"])
        if not isinstance(value, str):
            raise InvdiffError(f"{name} must be a word, got {shown(value)}")
        return value
    check = whole if isinstance(default, int) else real
    return check(name, value, meta["low"], meta["high"])
