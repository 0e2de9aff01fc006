"""A measurement given by its matrix."""

from __future__ import annotations

from math import isqrt, prod
from typing import Any

import torch
from torch import Tensor

from invdiff.checks import array
from invdiff.errors import InvdiffError
from invdiff.operators.base import LinearOperator, Shape
from invdiff.operators.spectrum import SingularSystem


class MatrixOperator(LinearOperator):
    """`A x = M vec(x)`, a matrix `(m, n)` on the flattened image, `n = C H W`; its SVD is computed once.

    The measurement is `(B, m)`. Where the image's shape is not told by a call or by `bind`, it is taken to be square,
    with one channel or three.

    Args:
        matrix: Tensor or array of numbers, `(m, n)`. Singular values below 1e-6 times the largest one count as zero.
    """

    def __init__(self, matrix: Any) -> None:
        values = array("matrix", matrix, ndim=2, what="real numbers")
        if values.numel() == 0:
            raise InvdiffError(f"matrix must have a row and a column at least, got shape {tuple(values.shape)}")
        values = values if values.is_floating_point() else values.double()
        if not bool(torch.isfinite(values).all()):
            raise InvdiffError("matrix must be finite, got NaN or infinite values")
        with torch.inference_mode(False):
            self.matrix = values.clone()

    def _as(self, like: Tensor) -> Tensor:
        if self.matrix.dtype == like.dtype and self.matrix.device == like.device:
            return self.matrix
        place = (like.dtype, like.device)
        return self._remembered(("matrix", *place), lambda: self.matrix.to(dtype=like.dtype, device=like.device))

    def check_images(self, x: Tensor) -> None:
        super().check_images(x)
        self.measurement_shape(tuple(x.shape[1:]))

    def apply(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self._as(x).mT

    def apply_adjoint(self, y: Tensor, image_shape: Shape) -> Tensor:
        self.measurement_shape(image_shape)
        return (y @ self._as(y)).unflatten(1, image_shape)

    def measurement_shape(self, image_shape: Shape) -> Shape:
        m, n = self.matrix.shape
        if prod(image_shape) != n:
            raise InvdiffError(
                f"image_shape is {tuple(image_shape)}, {prod(image_shape)} numbers, but {self!r} takes images of {n}."
            )
        return (m,)

    def infer_image_shape(self, measurement_shape: Shape) -> Shape:
        n = self.matrix.shape[1]
        for channels in (1, 3):
            side = isqrt(n // channels)
            if channels * side * side == n:
                return (channels, side, side)
        return super().infer_image_shape(measurement_shape)

    def _singular_system(self, image_shape: Shape, like: Tensor) -> SingularSystem:
        def build() -> SingularSystem:
            return SingularSystem.of(self.matrix, like.dtype, like.device)

        return self._remembered(("svd", like.dtype, like.device), build)

    def __repr__(self) -> str:
        return f"MatrixOperator({self.matrix.shape[0]}x{self.matrix.shape[1]})"
