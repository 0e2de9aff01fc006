"""Colorization: the measurement is a grey image."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import torch
from torch import Tensor

from invdiff.checks import array, one_of, shown
from invdiff.errors import InvdiffError
from invdiff.operators.base import Eigenvalues, LinearOperator, Shape

LEAST_WEIGHT = 1e-6
WEIGHTS = {"mean": (1 / 3, 1 / 3, 1 / 3), "luma": (0.299, 0.587, 0.114)}


class Colorization(LinearOperator):
    """`A x = sum_c w_c x_c`, the grey image `(B, 1, H, W)` of an RGB image; A A^T = |w|^2 I.

    Args:
        weights: `"mean"` (a third each, as in DDRM and DDNM), `"luma"` (0.299, 0.587, 0.114 of ITU-R BT.601), or
            three numbers.

    Raises:
        InvdiffError: For anything else, or weights that single precision cannot carry.
    """

    task = "colorization"
    keeps_range = True
    rows_disjoint = True

    def __init__(self, weights: str | Sequence[float] = "mean") -> None:
        self.name = weights if isinstance(weights, str) else None
        if isinstance(weights, str):
            given: Sequence[float] = WEIGHTS[one_of("weights", weights, WEIGHTS)]
        else:
            given = array("weights", weights, ndim=1).tolist() if weights is not None else ()
        largest = max(map(abs, given), default=0.0)
        if len(given) != 3 or not LEAST_WEIGHT <= largest <= 1 / LEAST_WEIGHT or not all(map(isfinite, given)):
            raise InvdiffError(
                f"weights must be {', '.join(WEIGHTS)} or three numbers that are not all zero, the largest of size "
                f"{LEAST_WEIGHT:g} to {1 / LEAST_WEIGHT:g}, got {shown(weights)}"
            )
        self.weights = tuple(map(float, given))
        self._square = Eigenvalues.equal(sum(weight**2 for weight in self.weights))

    def check_images(self, x: Tensor) -> None:
        super().check_images(x)
        if x.shape[1] != 3:
            raise InvdiffError(f"x must be images of 3 channels for {self!r}, got {x.shape[1]}")

    def apply(self, x: Tensor) -> Tensor:
        red, green, blue = self.weights
        return torch.add(torch.add(x[:, :1] * red, x[:, 1:2], alpha=green), x[:, 2:], alpha=blue)

    def apply_adjoint(self, y: Tensor, image_shape: Shape) -> Tensor:
        return torch.cat([y * weight for weight in self.weights], dim=1)

    def infer_image_shape(self, measurement_shape: Shape) -> Shape:
        return (3, *measurement_shape[1:])

    def measurement_shape(self, image_shape: Shape) -> Shape:
        if image_shape[0] != 3:
            raise InvdiffError(f"image_shape must have 3 channels for {self!r}, got {tuple(image_shape)}")
        return (1, *image_shape[1:])

    def _cogram_diagonal(self, image_shape: Shape, like: Tensor) -> Eigenvalues | None:
        return self._square

    def __repr__(self) -> str:
        return f"Colorization({self.name!r})" if self.name else f"Colorization({self.weights})"
