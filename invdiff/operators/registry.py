"""Operators by name, so that other packages can add their own."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from invdiff.errors import InvdiffError, near_match
from invdiff.operators.base import LinearOperator

_OPERATORS: dict[str, type[LinearOperator]] = {}


def register_operator(name: str) -> Callable[[type[LinearOperator]], type[LinearOperator]]:
    """Class decorator that makes an operator known as `name` to `get_operator`, `solve`, the CLI and the benchmark.

    A package does the same without being imported through the entry-point group `invdiff.operators`.

    Raises:
        InvdiffError: When the name is taken by another class, or what is registered is not a `LinearOperator` class.
    """

    def register(operator: type[LinearOperator]) -> type[LinearOperator]:
        if not (isinstance(operator, type) and issubclass(operator, LinearOperator)):
            raise InvdiffError(f"operator is {operator!r}, but register_operator takes a subclass of LinearOperator.")
        taken = _OPERATORS.get(name)
        if taken is not None and (taken.__module__, taken.__qualname__) != (operator.__module__, operator.__qualname__):
            raise InvdiffError(
                f"name is {name!r}, which is already {taken.__module__}.{taken.__qualname__}; choose another."
            )
        _OPERATORS[name] = operator
        return operator

    return register


def _entry_points() -> dict[str, Any]:
    return {point.name: point for point in entry_points(group="invdiff.operators")}


def operator_names() -> list[str]:
    """Names of all operators: ours, registered ones and those of installed packages."""
    return sorted({*_OPERATORS, *_entry_points()})


def get_operator(name: str) -> type[LinearOperator]:
    """The operator class known as `name`.

    Raises:
        InvdiffError: For an unknown name.
    """
    if name in _OPERATORS:
        return _OPERATORS[name]
    points = _entry_points()
    if name in points:
        return register_operator(name)(points[name].load())
    names = operator_names()
    raise InvdiffError(f"operator is {name!r}, but it must be one of {', '.join(names)}.{near_match(str(name), names)}")
