"""Functions of A A^T and A^T A for operators whose spectrum has no closed form: a small SVD, or Lanczos.

Everywhere `f` is a vectorised function of the squared singular values `lambda = s^2 >= 0`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from invdiff.errors import InvdiffWarning

Filter = Callable[[Tensor], Tensor]

RELATIVE_ZERO = 1e-6
"""Singular values below this fraction of the largest one count as exactly zero."""


def number(value: float | list[float]) -> Tensor:
    """A double of no dimension, which mixes with tensors of any dtype and device, or several; never an inference tensor."""
    with torch.inference_mode(False):
        return torch.tensor(value, dtype=torch.float64)


def through(f: Filter, eigenvalues: Tensor) -> Tensor:
    """`f` at the eigenvalues, in their dtype: a filter made of Python numbers answers in PyTorch's default one."""
    return torch.as_tensor(f(eigenvalues)).to(eigenvalues.dtype)


def on_range(f: Filter, eigenvalues: Tensor) -> Tensor:
    """`f` at the non-zero eigenvalues and 0 at the zero ones, so that `1/lambda` is the pseudo-inverse's filter."""
    positive = eigenvalues > 0
    return torch.where(positive, through(f, torch.where(positive, eigenvalues, 1.0)), 0.0)


def reciprocal(eigenvalues: Tensor) -> Tensor:
    """`1/lambda`, the filter of the pseudo-inverse."""
    return 1.0 / eigenvalues


def above_zero(eigenvalues: Tensor) -> Tensor:
    """1 where `lambda > 0`, else 0: the filter of the projection onto what the measurement sees."""
    return (eigenvalues > 0).to(eigenvalues.dtype)


def slope_from_zero(f: Filter) -> Filter:
    """`h(lambda) = (f(lambda) - f(0)) / lambda`, for `f(A^T A) = f(0) I + A^T h(A A^T) A`."""

    def slope(eigenvalues: Tensor) -> Tensor:
        return (f(eigenvalues) - f(torch.zeros_like(eigenvalues))) / eigenvalues

    return slope


@dataclass(frozen=True)
class SingularSystem:
    """`A = U diag(s) V^T` for one matrix, or for one matrix per image of the batch.

    `left` is `(m, r)` or `(B, m, r)`, `values` `(r,)` or `(B, 1, r)`, `right` `(n, r)` or `(B, n, r)`.
    Images and measurements come flattened, `(B, n)` and `(B, m)`.
    """

    left: Tensor
    values: Tensor
    right: Tensor

    @classmethod
    def of(cls, matrix: Tensor, dtype: torch.dtype, device: torch.device) -> SingularSystem:
        """Decompose `matrix`, `(m, n)` or `(B, m, n)`, in double precision; small singular values become zero."""
        matrix = matrix.detach().cpu().double()
        wide = matrix.shape[-1] > matrix.shape[-2]
        orthonormal, triangular = torch.linalg.qr(matrix.mT if wide else matrix)  # much faster than svd alone
        small, values, adjoint = torch.linalg.svd(triangular)
        left, right = orthonormal @ small, adjoint.mT
        if wide:
            left, right = right, left
        largest = values.amax(-1, keepdim=True)
        values = torch.where(values > RELATIVE_ZERO * largest, values, 0.0)
        if matrix.ndim == 3:
            values = values.unsqueeze(-2)
        left, values, right = (part.contiguous().to(device, dtype) for part in (left, values, right))
        return cls(left, values, right)

    def filtered_adjoint(self, f: Filter, y: Tensor) -> Tensor:
        """`V s f(s^2) U^T y`, `f` on the range only."""
        return self._between(self.left, self.values * on_range(f, self.values**2), self.right, y)

    def cogram_filter(self, f: Filter, y: Tensor) -> Tensor:
        """`f(A A^T) y`, with `f(0)` off the range."""
        return self._about_zero(f, self.left, y)

    def gram_filter(self, f: Filter, x: Tensor) -> Tensor:
        """`f(A^T A) x`, with `f(0)` on the null space."""
        return self._about_zero(f, self.right, x)

    def _about_zero(self, f: Filter, basis: Tensor, v: Tensor) -> Tensor:
        at_zero = through(f, self.values.new_zeros(()))
        return at_zero * v + self._between(basis, through(f, self.values**2) - at_zero, basis, v)

    @staticmethod
    def _between(source: Tensor, weights: Tensor, target: Tensor, v: Tensor) -> Tensor:
        if source.ndim == 2:
            return ((v @ source) * weights) @ target.mT
        return (((v.unsqueeze(-2) @ source) * weights) @ target.mT).squeeze(-2)


@dataclass(frozen=True)
class LanczosRule:
    """When Lanczos stops: `tolerance` is the relative change of the result, `max_iterations` the longest run."""

    tolerance: float = 1e-6
    max_iterations: int = 300
    check_every: int = 5


class _SymmetricFilter(torch.autograd.Function):
    """`w -> f(M) w`, linear in `w` and symmetric, so that its vector-Jacobian product is itself."""

    @staticmethod
    def forward(w: Tensor, f: Filter, product: Callable[[Tensor], Tensor], rule: LanczosRule) -> Tensor:
        return _lanczos(w, f, product, rule)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        _, ctx.f, ctx.product, ctx.rule = inputs

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[override]
        return _SymmetricFilter.apply(gradient, ctx.f, ctx.product, ctx.rule), None, None, None


def lanczos_filter(f: Filter, product: Callable[[Tensor], Tensor], w: Tensor, rule: LanczosRule) -> Tensor:
    """`f(M) w` on the range of a symmetric positive semi-definite `M`, by Lanczos with full re-orthogonalisation.

    Args:
        f: Function of the eigenvalues, evaluated at the non-zero Ritz values only.
        product: `v -> M v` on flattened vectors `(B, n)`.
        w: `(B, n)`, in the range of `M`.
        rule: Tolerance and longest run. An image that has reached the tolerance is left as it is, so a result does not
            depend on the batch the image is in.

    Returns:
        `(B, n)` in the dtype of `w`; the recurrence itself is in double precision where the device has it.

    Source: Golub and Van Loan, Matrix Computations, section 10.1; Higham, Functions of Matrices, chapter 13.
    """
    return _SymmetricFilter.apply(w, f, product, rule)  # type: ignore[no-any-return]


def _lanczos(w: Tensor, f: Filter, product: Callable[[Tensor], Tensor], rule: LanczosRule) -> Tensor:
    start = w.detach().to(torch.float32 if w.device.type == "mps" else torch.float64)
    norm = torch.linalg.vector_norm(start, dim=-1, keepdim=True)
    safe = torch.where(norm > 0, norm, 1.0)
    count = min(rule.max_iterations, start.shape[-1])
    basis = start.new_empty(start.shape[0], min(count, 32), start.shape[-1])
    vector = start / safe
    diagonal: list[Tensor] = []
    off_diagonal: list[Tensor] = []
    coefficients = torch.zeros(start.shape[0], 0, dtype=torch.float64)
    change = torch.full((start.shape[0],), torch.inf, dtype=torch.float64)
    for k in range(count):
        if k == basis.shape[1]:
            basis = torch.cat([basis, torch.empty_like(basis)], dim=1)
        basis[:, k] = vector
        image = product(vector)
        diagonal.append((image * vector).sum(-1))
        known = basis[:, : k + 1]
        for _ in range(2):  # twice is enough
            image = image - ((image.unsqueeze(1) @ known.mT) @ known).squeeze(1)
        beta = torch.linalg.vector_norm(image, dim=-1)
        exhausted = beta <= 1e-13 * torch.stack(diagonal).abs().amax(0)
        off_diagonal.append(torch.where(exhausted, 0.0, beta))
        vector = torch.where(exhausted, 0.0, 1.0)[:, None] * image / torch.where(exhausted, 1.0, beta)[:, None]
        last = k + 1 == count
        if (k + 1) % rule.check_every and not last:
            continue
        new, finished = _ritz_coefficients(f, torch.stack([torch.stack(diagonal, -1), torch.stack(off_diagonal, -1)]))
        grown = torch.nn.functional.pad(coefficients, (0, new.shape[-1] - coefficients.shape[-1]))
        size = torch.linalg.vector_norm(new, dim=-1).clamp_min(torch.finfo(torch.float64).tiny)
        open_ = change > rule.tolerance
        change = torch.where(open_, torch.linalg.vector_norm(new - grown, dim=-1) / size, change)
        change = torch.where(open_ & finished, 0.0, change)
        coefficients = torch.where(open_[:, None], new, grown)
        if bool((change <= rule.tolerance).all()):
            break
    if count < start.shape[-1] and bool((change > rule.tolerance).any()):
        warnings.warn(
            f"Lanczos stopped after {count} iterations with a relative change of {float(change.max()):.1e}, "
            f"above the tolerance {rule.tolerance:.1e}: the operator is ill-conditioned for this filter.",
            InvdiffWarning,
            stacklevel=2,
        )
    weights = coefficients.to(start) * norm
    return (weights.unsqueeze(1) @ basis[:, : weights.shape[-1]]).squeeze(1).to(w.dtype)


def _ritz_coefficients(f: Filter, recurrence: Tensor) -> tuple[Tensor, Tensor]:
    """`f(T) e_1` for the tridiagonal `T` of every image, `(B, k)`, on the CPU in double precision, and which are finished.

    `recurrence` holds the diagonal and what stands beside it, `(2, B, k)`: brought over from a GPU in one piece, since each
    such copy waits for all that the GPU has to do.
    """
    place = recurrence
    diagonal, beside = recurrence.cpu().double()
    finished, off_diagonal = beside[:, -1] == 0, beside[:, :-1]
    tridiagonal = torch.diag_embed(diagonal)
    tridiagonal = tridiagonal + torch.diag_embed(off_diagonal, 1) + torch.diag_embed(off_diagonal, -1)
    ritz, vectors = torch.linalg.eigh(tridiagonal)
    ritz = torch.where(ritz > RELATIVE_ZERO**2 * ritz.amax(-1, keepdim=True), ritz, 0.0)
    weights = on_range(f, ritz.to(place)).to(ritz)  # where the tensors that f holds are
    return (vectors @ (weights * vectors[:, 0]).unsqueeze(-1)).squeeze(-1), finished
