"""What the corpus of wrong inputs is made of: odd values that know what they are, and cases.

A file ``tests/wrong_inputs_NAME.py`` with a function ``cases() -> list[Case]`` adds its cases to `test_wrong_inputs.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Unprintable:
    """Its own description fails."""

    def __repr__(self) -> str:
        raise RuntimeError("no words")


@dataclass(frozen=True)
class Odd:
    """A value that is rarely meant.

    Attributes:
        name: for the test's name.
        make: makes it anew.
        kind: what it can pass for: "whole", "real", "flag", "word", or "" for none of these.
        number: its value, where it is a number.
    """

    name: str
    make: Callable[[], Any]
    kind: str = ""
    number: float = math.nan

    def passes_for(self, kind: str, low: float | None = None, high: float | None = None) -> bool:
        """Whether an option of this kind and range has to take it."""
        if kind == "flag":
            return self.kind == "flag"
        fits = self.kind == kind == "whole" or (kind == "real" and math.isfinite(self.number))
        return fits and (low is None or self.number >= low) and (high is None or self.number <= high)


def _whole(name: str, make: Callable[[], Any], number: float) -> Odd:
    return Odd(name, make, "whole", number)


ODD: tuple[Odd, ...] = (
    Odd("None", lambda: None),
    Odd("True", lambda: True, "flag"),
    Odd("False", lambda: False, "flag"),
    Odd("empty-word", str, "word"),
    Odd("word", lambda: "a", "word"),
    Odd("number-in-a-word", lambda: "1", "word"),
    Odd("bytes", lambda: b"a"),
    _whole("minus-one", lambda: -1, -1),
    _whole("zero", lambda: 0, 0),
    Odd("1.7", lambda: 1.7, "real", 1.7),
    Odd("2.0", lambda: 2.0, "real", 2.0),
    Odd("nan", lambda: math.nan),
    Odd("inf", lambda: math.inf),
    Odd("minus-inf", lambda: -math.inf),
    _whole("10**30", lambda: 10**30, 1e30),
    Odd("10**400", lambda: 10**400, "whole", math.inf),
    Odd("1e300", lambda: 1e300, "real", 1e300),
    Odd("complex", lambda: 1j),
    Odd("decimal-nan", lambda: Decimal("NaN")),
    Odd("numpy-nan", lambda: np.float32("nan")),
    Odd("numpy-bool", lambda: np.bool_(True)),
    Odd("empty-list", list),
    Odd("list-of-words", lambda: ["a", -1]),
    Odd("list-of-reals", lambda: [1.7, -1]),
    Odd("nested-list", lambda: [[1, 2], [3]]),
    Odd("list-in-itself", lambda: (x := [], x.append(x))[0]),
    Odd("empty-tuple", tuple),
    Odd("dict", lambda: {"a": 1}),
    Odd("set", lambda: {1, 2}),
    Odd("object", object),
    Odd("unprintable", Unprintable),
    Odd("type", lambda: int),
    Odd("error", lambda: ValueError("no")),
    Odd("endless", lambda: iter(int, 1)),
    Odd("array-of-two", lambda: np.array([1.0, 2.0])),
    Odd("array-of-words", lambda: np.array(["a", "b"])),
    Odd("array-of-objects", lambda: np.array([object(), None])),
    Odd("array-of-nan", lambda: np.full((2, 2), math.nan)),
    Odd("empty-array", lambda: np.zeros((0, 2))),
    Odd("masked-array", lambda: np.ma.masked_array(np.ones((2, 2)), np.eye(2))),
    Odd("tensor-of-two", lambda: torch.tensor([1.0, 2.0])),
    Odd("sparse-tensor", lambda: torch.eye(3).to_sparse()),
    Odd("meta-tensor", lambda: torch.ones(2, 2, device="meta")),
    Odd("complex-tensor", lambda: torch.ones(2, 2, dtype=torch.complex64)),
    Odd("half-a-kind", lambda: torch.float16),
    Odd("path", lambda: Path("no-such-file")),
)


@dataclass(frozen=True)
class Case:
    """A call and what has to come of it.

    Attributes:
        name: of the test.
        call: without arguments.
        says: a regular expression that the error's message must match, such as the argument's name; None where the call must
            be accepted: it returns, or asks the network.
    """

    name: str
    call: Callable[[], Any]
    says: str | None


def odd_cases(
    name: str,
    argument: str,
    call: Callable[[Any], Any],
    *,
    valid: Callable[[Odd], bool] | Iterable[str] = (),
    skip: Iterable[str] = (),
    says: str = "",
) -> list[Case]:
    """One case per odd value.

    Args:
        name: of the group.
        argument: that the value is given for; the message must name it.
        call: of the value.
        valid: names of the odd values that are accepted, or a function that tells.
        skip: names of those that mean nothing here.
        says: a regular expression for the message, instead of the argument's name.
    """
    accepted = valid if callable(valid) else (lambda odd, names=frozenset(valid): odd.name in names)
    pattern = says or rf"\b{re.escape(argument)}\b"
    return [
        Case(f"{name}({argument}={odd.name})", lambda odd=odd: call(odd.make()), None if accepted(odd) else pattern)
        for odd in ODD
        if odd.name not in frozenset(skip)
    ]
