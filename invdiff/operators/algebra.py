"""Operators made of operators: adjoints, multiples, compositions, sums and stacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor

from invdiff.checks import real, shown
from invdiff.errors import InvdiffError
from invdiff.operators.base import Eigenvalues, LinearOperator, Shape, common_batch_size
from invdiff.operators.spectrum import Filter, on_range


class ChainError(InvdiffError):
    """An error inside a chain of operators; the message names the operator that it came from."""


def _inside(chain: LinearOperator, part: LinearOperator, call: Callable[..., Any], *arguments: Any) -> Any:
    """`call(*arguments)`, with an error that says which part of the chain it came from."""
    try:
        return call(*arguments)
    except ChainError:
        raise
    except (InvdiffError, RuntimeError, TypeError, IndexError) as error:
        raise ChainError(f"in {part!r}, a part of {chain!r}: {error}") from error


def _check_operator(name: str, value: Any) -> None:
    if not isinstance(value, LinearOperator):
        raise InvdiffError(f"{name} must be a linear operator, got {shown(value)}")


def _bracketed(part: LinearOperator) -> str:
    return f"({part!r})" if isinstance(part, Sum) else repr(part)


class Adjoint(LinearOperator):
    """`A.H`: maps measurements to images, `y -> A^T y`; its singular values are those of A."""

    def __init__(self, operator: LinearOperator) -> None:
        self.operator = operator
        self.batch_size = operator.batch_size
        self.rows_disjoint = operator.columns_disjoint
        self.columns_disjoint = operator.rows_disjoint

    def check_images(self, x: Tensor) -> None:
        self.check_batch("y", x)

    def apply(self, x: Tensor) -> Tensor:
        return self.operator.adjoint(x)

    def apply_adjoint(self, y: Tensor, image_shape: Shape) -> Tensor:
        return self.operator(y)

    def measurement_shape(self, image_shape: Shape) -> Shape:
        return self.operator.image_shape or self.operator.infer_image_shape(tuple(image_shape))

    def infer_image_shape(self, measurement_shape: Shape) -> Shape:
        return self.operator.measurement_shape(measurement_shape)

    def filtered_adjoint(self, f: Filter, y: Tensor, image_shape: Shape | None = None) -> Tensor:
        return self.operator(self.operator.gram_filter(lambda values: on_range(f, values), y))

    def cogram_filter(self, f: Filter, y: Tensor, image_shape: Shape | None = None) -> Tensor:
        return self.operator.gram_filter(f, y)

    def gram_filter(self, f: Filter, x: Tensor) -> Tensor:
        return self.operator.cogram_filter(f, x)

    def bind(self, image_shape: Shape) -> LinearOperator:
        return self

    @property
    def H(self) -> LinearOperator:
        return self.operator

    def __repr__(self) -> str:
        return f"({self.operator!r}).H"


class Scaled(LinearOperator):
    """`c * A`: `f` of its squared singular values is `f(c^2 lambda)` of those of A."""

    def __init__(self, factor: float, operator: LinearOperator) -> None:
        _check_operator("operator", operator)
        self.factor = real("factor", factor, -1e12, 1e12)
        self.operator = operator
        self.batch_size = operator.batch_size
        self.image_shape = operator.image_shape
        self.rows_disjoint = operator.rows_disjoint
        self.columns_disjoint = operator.columns_disjoint

    def check_images(self, x: Tensor) -> None:
        self.operator.check_images(x)

    def apply(self, x: Tensor) -> Tensor:
        return self.factor * self.operator(x)

    def apply_adjoint(self, y: Tensor, image_shape: Shape) -> Tensor:
        return self.factor * self.operator.apply_adjoint(y, image_shape)

    def infer_image_shape(self, measurement_shape: Shape) -> Shape:
        return self.operator.infer_image_shape(measurement_shape)

    def measurement_shape(self, image_shape: Shape) -> Shape:
        return self.operator.measurement_shape(image_shape)

    def reads(self, image_shape: Shape) -> Tensor | None:
        return self.operator.reads(image_shape)

    def filtered_adjoint(self, f: Filter, y: Tensor, image_shape: Shape | None = None) -> Tensor:
        image_shape = self.resolved_image_shape(y, image_shape)
        if self.factor == 0:
            return self.apply_adjoint(y, image_shape)
        return self.factor * self.operator.filtered_adjoint(_scaled(f, self.factor**2), y, image_shape)

    def cogram_filter(self, f: Filter, y: Tensor, image_shape: Shape | None = None) -> Tensor:
        return self.operator.cogram_filter(_scaled(f, self.factor**2), y, self.resolved_image_shape(y, image_shape))

    def gram_filter(self, f: Filter, x: Tensor) -> Tensor:
        return self.operator.gram_filter(_scaled(f, self.factor**2), x)

    def _cogram_diagonal(self, image_shape: Shape, like: Tensor) -> Eigenvalues | None:
        return _multiple(self.operator._cogram_diagonal(image_shape, like), self.factor**2)

    def _gram_diagonal(self, image_shape: Shape, like: Tensor) -> Eigenvalues | None:
        return _multiple(self.operator._gram_diagonal(image_shape, like), self.factor**2)

    def __mul__(self, factor: float) -> LinearOperator:
        return Scaled(self.factor * factor, self.operator)

    __rmul__ = __mul__

    def __repr__(self) -> str:
        return f"{self.factor:g} * {_bracketed(self.operator)}"


def _scaled(f: Filter, square: float) -> Filter:
    """`lambda -> f(square * lambda)`."""
    return lambda values: f(square * values)


def _multiple(eigenvalues: Eigenvalues | None, square: float) -> Eigenvalues | None:
    if eigenvalues is None:
        return None
    return Eigenvalues(eigenvalues.values * square, eigenvalues.all_positive and square > 0)


class Composition(LinearOperator):
    """`A @ B`, first B, then A.

    Where B B^T = c I, `(AB)(AB)^T = c A A^T`; where A^T A = c I, `(AB)^T(AB) = c B^T B`; where the rows (columns) of
    both are disjoint, so are those of the product, and `(AB)(AB)^T` (or `(AB)^T(AB)`) is diagonal. Otherwise the
    generic fallback.
    """

    def __init__(self, outer: LinearOperator, inner: LinearOperator) -> None:
        _check_operator("outer", outer)
        _check_operator("inner", inner)
        self.outer, self.inner = outer, inner
        self.batch_size = common_batch_size([outer, inner])
        self.image_shape = inner.image_shape
        self.rows_disjoint = outer.rows_disjoint and inner.rows_disjoint
        self.columns_disjoint = outer.columns_disjoint and inner.columns_disjoint
        self.channelwise = outer.channelwise and inner.channelwise

    def check_images(self, x: Tensor) -> None:
        self.inner.check_images(x)

    def apply(self, x: Tensor) -> Tensor:
        return _inside(self, self.outer, self.outer, _inside(self, self.inner, self.inner, x))

    def apply_adjoint(self, y: Tensor, image_shape: Shape) -> Tensor:
        between = _inside(self, self.inner, self.inner.measurement_shape, image_shape)
        back = _inside(self, self.outer, self.outer.apply_adjoint, y, between)
        return _inside(self, self.inner, self.inner.apply_adjoint, back, image_shape)

    def measurement_shape(self, image_shape: Shape) -> Shape:
        between = _inside(self, self.inner, self.inner.measurement_shape, image_shape)
        return _inside(self, self.outer, self.outer.measurement_shape, between)

    def reads(self, image_shape: Shape) -> Tensor | None:
        return self.outer.reads(self.inner.measurement_shape(image_shape))

    def infer_image_shape(self, measurement_shape: Shape) -> Shape:
        between = self.outer.image_shape or self.outer.infer_image_shape(measurement_shape)
        return self.inner.infer_image_shape(between)

    def filtered_adjoint(self, f: Filter, y: Tensor, image_shape: Shape | None = None) -> Tensor:
        image_shape = self.resolved_image_shape(y, image_shape)
        between = self.inner.measurement_shape(image_shape)
        if (c := _constant(self.inner._cogram_diagonal(image_shape, y))) is not None:
            back = self.outer.filtered_adjoint(_scaled(f, c), y, between)
            return self.inner.apply_adjoint(back, image_shape)
        if (c := _constant(self.outer._gram_diagonal(between, y))) is not None:
            back = self.outer.apply_adjoint(y, between)
            return self.inner.filtered_adjoint(_scaled(f, c), back, image_shape)
        return super().filtered_adjoint(f, y, image_shape)

    def cogram_filter(self, f: Filter, y: Tensor, image_shape: Shape | None = None) -> Tensor:
        image_shape = self.resolved_image_shape(y, image_shape)
        if (c := _constant(self.inner._cogram_diagonal(image_shape, y))) is not None:
            return self.outer.cogram_filter(_scaled(f, c), y, self.inner.measurement_shape(image_shape))
        return super().cogram_filter(f, y, image_shape)

    def gram_filter(self, f: Filter, x: Tensor) -> Tensor:
        image_shape = tuple(x.shape[1:])
        if (c := _constant(self.outer._gram_diagonal(self.inner.measurement_shape(image_shape), x))) is not None:
            return self.inner.gram_filter(_scaled(f, c), x)
        if (c := _constant(self.inner._cogram_diagonal(image_shape, x))) is not None:
            # A^T A = c B^T (outer gram) B / c, and B^T B / c is the projection on the rows of B
            seen = self.inner(x)
            at_zero = self._at_zero(f, x)
            changed = self.outer.gram_filter(_scaled(f, c), seen) - at_zero * seen
            return at_zero * x + self.inner.apply_adjoint(changed, image_shape) / c
        return super().gram_filter(f, x)

    def _cogram_diagonal(self, image_shape: Shape, like: Tensor) -> Eigenvalues | None:
        if (c := _constant(self.inner._cogram_diagonal(image_shape, like))) is not None:
            return _multiple(self.outer._cogram_diagonal(self.inner.measurement_shape(image_shape), like), c)
        return super()._cogram_diagonal(image_shape, like)

    def _gram_diagonal(self, image_shape: Shape, like: Tensor) -> Eigenvalues | None:
        if (c := _constant(self.outer._gram_diagonal(self.inner.measurement_shape(image_shape), like))) is not None:
            return _multiple(self.inner._gram_diagonal(image_shape, like), c)
        return super()._gram_diagonal(image_shape, like)

    def __repr__(self) -> str:
        return f"{_bracketed(self.outer)} @ {_bracketed(self.inner)}"


def _constant(eigenvalues: Eigenvalues | None) -> float | None:
    """c > 0 where all eigenvalues are c, else None."""
    if eigenvalues is None or eigenvalues.values.ndim or not eigenvalues.all_positive:
        return None
    return float(eigenvalues.values)


class Sum(LinearOperator):
    """`A + B`, of operators with measurements of the same shape."""

    def __init__(self, *terms: LinearOperator) -> None:
        for term in terms:
            _check_operator("term", term)
        flat: list[LinearOperator] = []
        for term in terms:
            flat.extend(term.terms if isinstance(term, Sum) else [term])
        self.terms: tuple[LinearOperator, ...] = tuple(flat)
        self.batch_size = common_batch_size(flat)
        self.image_shape = next((term.image_shape for term in flat if term.image_shape), None)
        self.columns_disjoint = self.rows_disjoint = False
        self.channelwise = all(term.channelwise for term in flat)

    def check_images(self, x: Tensor) -> None:
        for term in self.terms:
            term.check_images(x)

    def apply(self, x: Tensor) -> Tensor:
        self.measurement_shape(tuple(x.shape[1:]))
        first, *others = (_inside(self, term, term, x) for term in self.terms)
        return sum(others, first)

    def apply_adjoint(self, y: Tensor, image_shape: Shape) -> Tensor:
        first, *others = (_inside(self, term, term.apply_adjoint, y, image_shape) for term in self.terms)
        return sum(others, first)

    def measurement_shape(self, image_shape: Shape) -> Shape:
        shapes = [_inside(self, term, term.measurement_shape, image_shape) for term in self.terms]
        for (first, one), (second, other) in pairwise(zip(self.terms, shapes, strict=True)):
            if one != other:
                raise InvdiffError(
                    f"the terms of a sum must measure alike, got {one} of {first!r} and {other} of {second!r}"
                )
        return shapes[0]

    def infer_image_shape(self, measurement_shape: Shape) -> Shape:
        return _first_that_tells(self, measurement_shape)

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.terms)).replace("+ -", "- ")


def _first_that_tells(operator: Sum, measurement_shape: Shape) -> Shape:
    for term in operator.terms:
        try:
            return term.infer_image_shape(measurement_shape)
        except InvdiffError:
            continue
    return LinearOperator.infer_image_shape(operator, measurement_shape)


class Stack(LinearOperator):
    """Several measurements of one image: `A x = [A_1 x; A_2 x; ...]`, flattened and joined, `(B, m_1 + m_2 + ...)`.

    `stack.join([y_1, y_2])` makes such a measurement of its parts, `stack.split(y, image_shape)` gives them back.

    Args:
        operators: At least one operator.
    """

    def __init__(self, operators: Sequence[LinearOperator]) -> None:
        if not isinstance(operators, Sequence) or isinstance(operators, str) or not operators:
            raise InvdiffError(f"operators must be a list of at least one operator, got {shown(operators)}")
        operators = tuple(operators)
        for operator in operators:
            _check_operator("operators", operator)
        self.operators = operators
        self.batch_size = common_batch_size(operators)
        self.image_shape = next((one.image_shape for one in operators if one.image_shape), None)
        self.columns_disjoint = all(one.columns_disjoint for one in operators)

    def check_images(self, x: Tensor) -> None:
        for operator in self.operators:
            operator.check_images(x)

    def apply(self, x: Tensor) -> Tensor:
        return self.join([_inside(self, operator, operator, x) for operator in self.operators])

    def apply_adjoint(self, y: Tensor, image_shape: Shape) -> Tensor:
        parts = zip(self.operators, self.split(y, image_shape), strict=True)
        first, *others = (
            _inside(self, operator, operator.apply_adjoint, part, image_shape) for operator, part in parts
        )
        return sum(others, first)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The measurement `(B, m)` of which these are the parts, each in the shape of its operator's measurement."""
        if len(parts) != len(self.operators):
            raise InvdiffError(
                f"parts must be one measurement for each of the {len(self.operators)} operators of {self!r}, got {len(parts)}"
            )
        return torch.cat([part.flatten(1) for part in parts], dim=1)

    def split(self, y: Tensor, image_shape: Shape | None = None) -> list[Tensor]:
        """The parts of a measurement `(B, m)`, each in the shape of its operator's measurement."""
        image_shape = self.resolved_image_shape(y, image_shape)
        shapes = [operator.measurement_shape(image_shape) for operator in self.operators]
        sizes = [prod(shape) for shape in shapes]
        if y.ndim != 2 or y.shape[1] != sum(sizes):
            raise InvdiffError(
                f"y must be of shape (B, {sum(sizes)}), as {self!r} measures images {image_shape}, got {tuple(y.shape)}; "
                "join([y_1, y_2, ...]) makes it of its parts"
            )
        parts = y.split(sizes, dim=1)
        return [part.reshape(part.shape[0], *shape) for part, shape in zip(parts, shapes, strict=True)]

    def measurement_shape(self, image_shape: Shape) -> Shape:
        return (sum(prod(operator.measurement_shape(image_shape)) for operator in self.operators),)

    def reads(self, image_shape: Shape) -> Tensor | None:
        parts = [operator.reads(image_shape) for operator in self.operators]
        if all(part is None for part in parts):
            return None
        count = self.batch_size or 1
        return torch.cat(
            [
                torch.ones(count, prod(operator.measurement_shape(image_shape)), dtype=torch.bool, device=self.device)
                if part is None
                else part.flatten(1).expand(count, -1)
                for operator, part in zip(self.operators, parts, strict=True)
            ],
            dim=1,
        )

    def __repr__(self) -> str:
        return f"Stack([{', '.join(map(repr, self.operators))}])"
