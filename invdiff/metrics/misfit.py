"""Whether the restoration explains the measurement."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from invdiff.metrics.base import Metric, register_metric

if TYPE_CHECKING:
    from invdiff.operators.base import LinearOperator


def misfit(x: Tensor, operator: LinearOperator, y: Tensor) -> Tensor:
    """The root mean square of ``A x - y`` over the elements that A reads, (B,), in the unit of y.

    Of a mask these are the known pixels; see `LinearOperator.reads`. With noise of standard deviation sigma_y a restoration
    that neither fits noise nor ignores the data has a misfit near sigma_y; without noise it should be 0.

    Args:
        x: (B, C, H, W), unclamped, in the unit of y.
        operator: A.
        y: (B, ...).
    """
    difference = operator(x).double() - y.double()
    read = operator.reads(tuple(x.shape[1:]))
    if read is None:
        return difference.flatten(1).square().mean(1).sqrt()
    squares = difference.where(read, 0.0).square().flatten(1).sum(1)
    return (squares / read.flatten(1).sum(1).clamp_min(1)).sqrt()


register_metric(
    Metric(
        "misfit",
        "misfit",
        "lower",
        "of [0, 1]",
        {"measurement"},
        "rms of A x - y over what A reads; noise-free 0, else about sigma_y",
        misfit,
        decimals=4,
        resolution=1e-4,
    )
)
