"""Operators by name, so that other packages can add their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from invdiff.checks import shown
from invdiff.errors import InvdiffError
from invdiff.operators.base import LinearOperator
from invdiff.registry import Registry


def _operator(name: str, operator: Any) -> type[LinearOperator]:
    if not (isinstance(operator, type) and issubclass(operator, LinearOperator)):
        raise InvdiffError(f"operator {name!r} must be a subclass of LinearOperator, got {shown(operator)}")
    return operator


OPERATORS: Registry[type[LinearOperator]] = Registry("operator", "invdiff.operators", _operator)
"""Every operator by name."""


def register_operator(name: str) -> Callable[[type[LinearOperator]], type[LinearOperator]]:
    """Class decorator that makes an operator known as `name` to `get_operator`, `solve`, the CLI and the benchmark.

    A package does the same without being imported through the entry-point group `invdiff.operators`.

    Raises:
        InvdiffError: the name is taken by another class, or what is registered is not a `LinearOperator` class.
    """
    return lambda operator: OPERATORS.add(name, operator)


def operator_names() -> list[str]:
    """Names of all operators: ours, registered ones and those of installed packages."""
    return sorted(OPERATORS.names())


def get_operator(name: str) -> type[LinearOperator]:
    """The operator class known as `name`.

    Raises:
        InvdiffError: unknown name, with the near match.
    """
    return OPERATORS.get(name)
