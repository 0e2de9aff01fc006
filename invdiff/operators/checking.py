"""The tests that tell a linear operator from one that only looks like it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from invdiff.errors import InvdiffError
from invdiff.operators.base import LinearOperator, Shape


@dataclass(frozen=True)
class CheckReport:
    """Relative errors of the tests of `LinearOperator.check`; prints as a table."""

    operator: str
    image_shape: Shape
    tolerance: float
    errors: dict[str, float] = field(default_factory=dict)

    @property
    def failures(self) -> list[str]:
        """Names of the tests that failed."""
        return [name for name, error in self.errors.items() if not error <= self.tolerance]

    @property
    def passed(self) -> bool:
        """Whether every error is within the tolerance."""
        return not self.failures

    def __str__(self) -> str:
        verdict = "passed" if self.passed else "FAILED"
        lines = [f"{self.operator} on images {self.image_shape}: {verdict} (tolerance {self.tolerance:.0e})"]
        width = max(map(len, self.errors), default=0)
        for name, error in self.errors.items():
            lines.append(f"  {name:<{width}}  {error:.1e}  {'ok' if error <= self.tolerance else 'FAILED'}")
        return "\n".join(lines)


@torch.no_grad()
def check_operator(
    operator: LinearOperator, image_shape: Shape, *, batch: int, tolerance: float, seed: int, raise_: bool
) -> CheckReport:
    """See `LinearOperator.check`."""
    image_shape = tuple(image_shape)
    A = operator.bind(image_shape)
    generator = torch.Generator().manual_seed(seed)
    batch = A.batch_size or batch

    def draw(shape: Shape) -> Tensor:
        return torch.randn(batch, *shape, generator=generator, dtype=torch.float64).to(A.device)

    x, x2 = draw(image_shape), draw(image_shape)
    y = A(x)
    errors: dict[str, float] = {}
    shape = A.measurement_shape(image_shape)
    errors["measurement_shape is the shape of A x"] = 0.0 if tuple(y.shape) == (batch, *shape) else float("inf")
    if errors["measurement_shape is the shape of A x"] == 0.0:
        errors.update(_errors(A, x, x2, y, draw(shape)))
    report = CheckReport(repr(operator), image_shape, tolerance, errors)
    if raise_ and not report.passed:
        raise InvdiffError(str(report))
    return report


@torch.no_grad()
def refuse_nonlinear(operator: LinearOperator, image_shape: Shape, tolerance: float = 1e-2) -> None:
    """Probe an operator that holds a user's code on two small batches: is it linear, always the same, and image by image?

    What was probed once is remembered in the operator. Those whose map is ours are taken at their word.

    Raises:
        InvdiffError: it is not.
    """
    if _unverified(operator):
        operator._remembered(("linear", tuple(image_shape)), lambda: _probe(operator, tuple(image_shape), tolerance))


def _unverified(operator: LinearOperator) -> bool:
    return operator.unverified or any(map(_unverified, operator._parts()))


def _probe(A: LinearOperator, image_shape: Shape, tolerance: float) -> bool:
    generator = torch.Generator().manual_seed(0)
    batch = A.batch_size or 2
    x, z = (torch.rand(batch, *image_shape, generator=generator).to(A.device) for _ in range(2))
    first, second = A(x).clone(), A(z).clone()
    if not _distance(A(x), first) <= tolerance:
        raise InvdiffError(
            f"operator must always measure alike, got two answers to one image from {A!r}: it draws at random"
        )
    if not _distance(A[0](x[:1]), first[:1]) <= tolerance:
        raise InvdiffError(
            f"operator must act on every image of a batch alone, got another answer for an image by itself from {A!r}"
        )
    if not _distance(A(2.0 * x - 3.0 * z), 2.0 * first - 3.0 * second) <= tolerance:
        raise InvdiffError(
            f"operator must be linear, A(2 x - 3 z) = 2 A(x) - 3 A(z), got another answer from {A!r}. A measurement "
            "y = h(x) with a pseudo-inverse that is not linear is a NonlinearOperator(h, pinv)"
        )
    return True


def _errors(A: LinearOperator, x: Tensor, x2: Tensor, y: Tensor, z: Tensor) -> dict[str, float]:
    def smooth(values: Tensor) -> Tensor:
        return 1.0 / (values + 0.1)

    back = A.adjoint(z)
    seen = A.pinv(y)
    inverse = A.pinv(z)
    return {
        "A (a x + b z) = a A x + b A z": _distance(A(2.0 * x - 3.0 * x2), 2.0 * y - 3.0 * A(x2)),
        "<A x, y> = <x, A^T y>": _gap(y, z, x, back),
        "A A^+ A = A": _distance(A(seen), y),
        "A^+ A A^+ = A^+": _distance(A.pinv(A(inverse)), inverse),
        "A A^+ is symmetric": _gap(A(inverse), y + 1.0, z, A(A.pinv(y + 1.0))),
        "A^+ A is symmetric": _gap(seen, x2, x, A.pinv(A(x2))),
        "project = A^+ A": _distance(A.project(x), seen),
        "gram_filter(lambda) = A^T A": _distance(A.gram_filter(lambda values: values, x), A.adjoint(y)),
        "cogram_filter(lambda) = A A^T": _distance(A.cogram_filter(lambda values: values, z), A(back)),
        "A^T f(A A^T) = f(A^T A) A^T": _distance(A.adjoint(A.cogram_filter(smooth, z)), A.gram_filter(smooth, back)),
        "filtered_residual = A^T f(A A^T) (y - A x)": _distance(
            A.filtered_residual(smooth, z, x), A.adjoint(A.cogram_filter(smooth, z - y))
        ),
    }


def _distance(one: Tensor, other: Tensor) -> float:
    if one.shape != other.shape:
        return float("inf")
    scale = max(float(one.norm()), float(other.norm()))
    return 0.0 if scale <= 1e-12 else float((one - other).norm()) / scale  # NaN stays NaN


def _gap(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> float:
    """Relative difference of the inner products `<a, b>` and `<c, d>`."""
    scale = max(float(a.norm() * b.norm()), float(c.norm() * d.norm()))
    return 0.0 if scale <= 1e-12 else abs(float((a * b).sum() - (c * d).sum())) / scale
