"""Arguments checked in one place, so that every message has one form: what it must be, what it was."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invdiff.errors import InvdiffError, near_match

MOST_PIXELS = 2**28
"""Of one picture or mask: 268 megapixels, more than any camera has. Beyond it a size is a slip of the pen."""


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
        truth = isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")
        if truth or isinstance(value, str | bytes) or getattr(value, "ndim", 0) != 0:
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


def array(name: str, value: Any, ndim: int | None = None, what: str = "numbers") -> Tensor:
    """`value` as a dense, detached tensor of real numbers or truth values, on the device where it is.

    Args:
        name: of the argument.
        value: a tensor, a NumPy array of any layout and byte order, or nested lists of numbers.
        ndim: how many axes it must have; any by default.
        what: it holds, for the message.

    Raises:
        InvdiffError: it is sparse, quantised, complex, without data, of words or ragged, has hidden (masked) entries, or
            another number of axes.
    """
    if isinstance(value, np.ma.MaskedArray):
        if np.ma.is_masked(value):
            raise InvdiffError(
                f"{name} has {int(np.ma.count_masked(value))} masked entries, which would be read as if they were not; fill them "
                "(value.filled(0)) and say which pixels are known with Mask(~numpy.ma.getmaskarray(value))"
            )
        value = value.data
    try:
        found = _dense(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        found = None
    if found is None or (ndim is not None and found.ndim != ndim):
        axes = "an" if ndim is None else f"a {ndim}-dimensional"
        got = "" if found is None else f" of shape {tuple(found.shape)}"
        raise InvdiffError(
            f"{name} must be {axes} array of {what}, got {_kind(value)}{got}"
            if isinstance(value, Tensor | np.ndarray)
            else _sentence(name, f"{axes} array of {what}", value)
        )
    return found


def shape_of(name: str, value: Any, axes: str = "channels, height, width") -> tuple[int, ...]:
    """`value` as a tuple of whole numbers of at least 1, one for each of `axes`.

    Raises:
        InvdiffError: it is none, or stands for more than `MOST_PIXELS` numbers per channel.
    """
    accepted = f"({axes}), whole numbers of at least 1"
    try:
        if isinstance(value, str | bytes | dict | set | frozenset):
            raise TypeError
        parts = tuple(islice(value, 10))
        sizes = tuple(whole(name, part, low=1) for part in parts)
    except (TypeError, InvdiffError):
        raise InvdiffError(_sentence(name, accepted, value)) from None
    if len(sizes) != axes.count(",") + 1:
        raise InvdiffError(_sentence(name, accepted, value))
    if math.prod(sizes[-2:]) > MOST_PIXELS:
        raise InvdiffError(_sentence(name, f"of at most {MOST_PIXELS:,} pixels", value))
    return sizes


def function(name: str, value: Any, what: str = "a function") -> Callable[..., Any]:
    """`value`, which can be called.

    Raises:
        InvdiffError: it cannot.
    """
    if not callable(value):
        raise InvdiffError(_sentence(name, what, value))
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


def _dense(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        found = value.detach()
        if found.layout != torch.strided or found.is_quantized or found.device.type == "meta":
            return None
    else:
        held = np.asarray(value)
        if isinstance(value, str | bytes) or held.dtype.kind not in "fiub":
            return None
        native = held.dtype.newbyteorder("=")
        if held.dtype.itemsize > 8 or held.dtype == np.uint64:
            native = np.dtype(np.float64)
        elif held.dtype in (np.uint16, np.uint32):
            native = np.dtype(np.int64)
        found = torch.from_numpy(held.astype(native, order="C"))
    if found.is_complex():
        return None
    if found.dtype in (torch.uint16, torch.uint32, torch.uint64):  # torch can hardly compute with these
        return found.to(torch.int64)
    return found.float() if found.is_floating_point() and found.dtype.itemsize == 1 else found


def _kind(value: Any) -> str:
    """What an array is, without its numbers."""
    if isinstance(value, Tensor):
        layout = "" if value.layout == torch.strided else f"{str(value.layout).removeprefix('torch.')} "
        place = "" if value.device.type == "cpu" else f" on {value.device}"
        return f"a {layout}tensor of {str(value.dtype).removeprefix('torch.')}{place}"
    return f"an array of {value.dtype}"


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
