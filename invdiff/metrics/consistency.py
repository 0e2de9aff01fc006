"""Whether the restoration explains the measurement."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from invdiff.metrics.base import Metric, register_metric

if TYPE_CHECKING:
    from invdiff.operators.base import LinearOperator


def consistency(x: Tensor, operator: LinearOperator, y: Tensor) -> Tensor:
    """Data misfit, the root mean square of ``A x - y`` over the numbers measured, (B,).

    For a mask only the known pixels count. With noise of standard deviation sigma_y a restoration that neither fits
    noise nor ignores the data has a misfit near sigma_y; without noise it should be 0.

    Args:
        x: (B, C, H, W), unclamped, in the unit of y.
        operator: A.
        y: (B, ...).
    """
    squares = (operator(x) - y).double().square().flatten(1)
    share: float | Tensor = 1.0
    mask = getattr(operator, "mask", None)
    if operator.kind == "mask" and mask is not None:
        share = mask.double().expand(-1, x.shape[1], -1, -1).flatten(1).mean(1).clamp_min(1e-12)
        squares = squares * mask.expand(len(x), x.shape[1], -1, -1).flatten(1)
    return (squares.mean(1) / share).sqrt()


register_metric(
    Metric(
        "consistency",
        "misfit",
        "lower",
        "of [0, 1]",
        "measurement",
        "rms of A x - y; noise-free 0, else about sigma_y",
        consistency,
        decimals=4,
    )
)
