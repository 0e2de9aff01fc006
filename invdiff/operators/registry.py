"""Operators by name, so that other packages can add their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from invdiff.checks import shown
from invdiff.errors import InvdiffError
from invdiff.operators.base import LinearOperator, Shape
from invdiff.operators.options import called
from invdiff.registry import Registry


def _operator(name: str, operator: Any) -> type[LinearOperator]:
    if not (isinstance(operator, type) and issubclass(operator, LinearOperator)):
        raise InvdiffError(f"operator {name!r} must be a subclass of LinearOperator, got {shown(operator)}")
    return operator


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "").replace(" ", "")


OPERATORS: Registry[type[LinearOperator]] = Registry("operator", "invdiff.operators", _operator, _plain)
"""Every operator by name; case, and ``-``, ``_``, blanks do not matter."""


def register_operator(name: str) -> Callable[[type[LinearOperator]], type[LinearOperator]]:
    """Class decorator that makes an operator known as `name` to `make_operator`, the command line and the suites.

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


def make_operator(name: str, image_shape: Shape, **options: Any) -> LinearOperator:
    """An operator by name, its options by name: what suites and the command line say.

        make_operator("super_resolution", (3, 64, 64), scale=4, kernel="box")
        make_operator("blur", (3, 64, 64), kernel="gaussian", sigma=1.6)
        make_operator("mask", (3, 64, 64), mask="wide", seed=3)

    Args:
        name: one of `operator_names`.
        image_shape: `(C, H, W)` of the images that are measured.
        options: as the operator's `from_options` takes them; for most, the arguments of its class.

    Raises:
        InvdiffError: an unknown name or option (with the near match), or a value that is not accepted.
    """
    return called(get_operator(name).from_options, f"operator {name}", options, tuple(image_shape))
