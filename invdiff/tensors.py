"""Sums of scaled images: what the steps of all samplers are made of."""

from __future__ import annotations

from torch import Tensor


def weighted_sum(first: tuple[float | Tensor, Tensor], *others: tuple[float | Tensor, Tensor]) -> Tensor:
    """``w_1 x_1 + w_2 x_2 + ...`` of the pairs (w, x), in one new tensor.

    Written as Python arithmetic every product and every sum takes memory of its own, and for a batch that no longer fits
    into the CPU's cache a step spends its time there. Differentiable in the x.

    Args:
        first: a weight (a number, or a tensor that broadcasts to the x) and a tensor.
        *others: likewise, the tensors of the same shape.
    """
    weight, x = first
    total = weight * x
    for weight, x in others:
        total = total.addcmul_(weight, x) if isinstance(weight, Tensor) else total.add_(x, alpha=weight)
    return total
