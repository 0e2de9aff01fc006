"""Linear systems of every image of a batch by a few Krylov iterations; nothing is shared between images.

The matrix M is known by its products. Every product brings a companion along, some further linear function of the vector
(an image, where M lives on measurements), and the solution's companion is put together from those of the iterations: it costs
no product of its own. Iterations are run in the precision of the right-hand side.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Product = Callable[[Tensor], tuple[Tensor, Tensor]]  # p -> (M p, companion of p)
Pairs = tuple[tuple[Tensor, Tensor], ...]  # directions d and M d, both over the root of d^T M d, or zeros; float32
TELLING = 0.1
"""A direction is told to later systems only if the residual was longer than this share of b: shorter ones, of a network in float32
or bfloat16, are its rounding as much as M's doing, and carried on would make answers depend on it."""


def conjugate_gradients(
    product: Product,
    b: Tensor,
    iterations: int,
    start: Tensor | None = None,
    known: Pairs = (),
    keep: bool = True,
    most: Tensor | None = None,
) -> tuple[Tensor, Tensor, Pairs]:
    """Conjugate directions on M u = b, ``iterations`` of them (Hestenes & Stiefel, 1952).

    M should be symmetric and positive semi-definite, b in its range. The directions are the residuals, each made conjugate
    to all before it, so that these are conjugate gradients from 0; with a `start` it comes first, with the length that is
    best for it: it costs an iteration, and saves several where it is near the solution (Saad et al., 2000). An image stops
    where its residual is 0, and leaves out a direction of no positive curvature (M is then no covariance).

    Args:
        product: ``p -> (M p, companion of p)``.
        b: (B, ...).
        iterations: products.
        start: the first direction.
        known: pairs of systems like this one: the residuals go through the inverse that they tell, see `recalled`.
        keep: whether the pairs of this system are wanted.
        most: (1 or B,), after how many directions an image stops: what it comes to does not hang on the others' numbers.

    Returns:
        u, of the shape of b (B, ...), its companion, and the pairs of this system.
    """
    u, r = torch.zeros_like(b), b
    companion: Tensor | None = None
    before: list[tuple[Tensor, Tensor, Tensor]] = []  # directions, their products, their curvatures
    pairs, least = [], TELLING**2 * inner(b, b)
    for k in range(iterations):
        told = inner(r, r) > least
        p = recalled(known, r) if start is None or k > 0 else start
        for d, of_d, curvature in before:
            p = p - over(_ratio(inner(of_d, p), curvature), d) * d
        q, moved = product(p)
        curvature = inner(p, q)
        step = _ratio(inner(p, r), curvature)
        if most is not None:
            step, told = step * (most > k), told & (most > k)
        u, r = u + over(step, p) * p, r - over(step, q) * q
        companion = _add(companion, step, moved)
        before.append((p, q, curvature))
        if keep:
            root = (told * curvature.clamp(min=0)).sqrt()
            pairs.append((_divided(p, root, 0).float(), _divided(q, root, 0).float()))
    assert companion is not None
    return u, companion, tuple(pairs)


def recalled(pairs: Pairs, r: Tensor) -> Tensor:
    """``H r``, H the inverse of M as far as pairs of M, or of a matrix like it, tell (the two loops of Nocedal, 1980).

    H is symmetric and positive definite whatever the pairs, so that it may precondition conjugate gradients (Morales &
    Nocedal, 2000); without pairs it is the identity.
    """
    if not pairs:
        return r
    z, shares = r.float(), []
    for d, of_d in reversed(pairs):
        shares.append(inner(d, z))
        z = z - over(shares[-1], z) * of_d
    z = _divided(z, inner(pairs[-1][1], pairs[-1][1]))
    for (d, of_d), share in zip(pairs, reversed(shares), strict=True):
        z = z + over(share - inner(of_d, z), z) * d
    return z.to(r.dtype)


def gmres(product: Product, b: Tensor, iterations: int) -> tuple[Tensor, Tensor, Pairs]:
    """``iterations`` steps of GMRES from 0 on M u = b, without restarts (Saad & Schultz, 1986): any square M.

    Returns:
        u, of the shape of b (B, ...), its companion, and no pairs.
    """
    norm = inner(b, b).sqrt()
    basis, companions = [_divided(b, norm)], []
    H = b.new_zeros((len(b), iterations + 1, iterations))
    for k in range(iterations):
        w, of_v = product(basis[k])
        companions.append(of_v)
        for i, v in enumerate(basis):
            H[:, i, k] = inner(v, w)
            w = w - over(H[:, i, k], v) * v
        H[:, k + 1, k] = inner(w, w).sqrt()
        basis.append(_divided(w, H[:, k + 1, k]))
    weights = torch.linalg.pinv(H)[:, :, 0] * norm[:, None]
    u = torch.zeros_like(b)
    companion: Tensor | None = None
    for k in range(iterations):
        u = u + over(weights[:, k], b) * basis[k]
        companion = _add(companion, weights[:, k], companions[k])
    assert companion is not None
    return u, companion, ()


SOLVERS: dict[str, Callable[..., tuple[Tensor, Tensor, Pairs]]] = {
    "cg": conjugate_gradients,
    "gmres": gmres,
}


def not_beyond(seen: Tensor, residual: Tensor) -> Tensor:
    """The share of a shift, (B,), at most 1, that brings what A sees of it nearest to the residual; 1 where A sees nothing of it.

    For guesses of a covariance: along directions that vary more than they assume the whole would go far beyond, further at
    every step.
    """
    length = inner(seen, seen)
    return torch.where(length > 0, inner(seen, residual) / length.clamp(min=1e-300), 1.0).clamp(0, 1)


def inner(a: Tensor, b: Tensor) -> Tensor:
    """The dot product of every image, (B,)."""
    return (a.flatten(1) * b.flatten(1)).sum(1)


def over(values: Tensor, like: Tensor) -> Tensor:
    """(B,) numbers, shaped to multiply a batch such as `like`."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is not positive."""
    return torch.where(b > 0, a / torch.where(b > 0, b, 1.0), 0.0)


def _add(total: Tensor | None, weight: Tensor, term: Tensor) -> Tensor:
    scaled = over(weight, term).to(term.dtype) * term
    return scaled if total is None else total + scaled


def _divided(x: Tensor, norm: Tensor, by_none: float = 1) -> Tensor:
    """x over its image's number; times `by_none` where that is 0."""
    return x * over(torch.where(norm > 0, 1 / torch.where(norm > 0, norm, 1.0), by_none), x)
