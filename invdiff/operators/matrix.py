"""A measurement given by its matrix."""

from __future__ import annotations

from math import isqrt, prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invdiff.checks import array, whole
from invdiff.errors import InvdiffError
from invdiff.operators.base import LinearOperator, Shape
from invdiff.operators.options import called
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

    @classmethod
    def from_options(cls, image_shape: Shape, *, matrix: Any = None, **own: Any) -> MatrixOperator:
        """A matrix by name, from a file, or as it is.

        Args:
            image_shape: `(C, H, W)`.
            matrix: ``"random"`` for `random_matrix`, the path of a ``.npy`` file, or what the class takes.
            own: Options of `random_matrix`: rows, seed.
        """
        if isinstance(matrix, str) and matrix == "random":
            return cls(called(random_matrix, "matrix 'random'", own, prod(image_shape)))
        if matrix is None:
            raise InvdiffError("matrix must be given: 'random', the path of a .npy file, or an array; got None")
        called(lambda: None, "a matrix that is given", own)
        if isinstance(matrix, str):
            try:
                matrix = np.load(matrix, allow_pickle=False)
            except (OSError, ValueError) as error:
                raise InvdiffError(
                    f"matrix must be 'random' or the path of a .npy file, got {matrix!r}: {error}"
                ) from None
        return cls(matrix)

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
                f"image_shape must have {n} elements for {self!r}, got {tuple(image_shape)}, {prod(image_shape)} elements"
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


def random_matrix(columns: int, rows: int, seed: int = 0) -> Tensor:
    """`(rows, columns)` with random orthonormal singular vectors and singular values evenly from 1 down to 0.3.

    After MCGDiff (Cardoso et al., ICLR 2024), whose values are uniform on (0, 1): none here is so small that a noise-free
    measurement could not be inverted in single precision.

    Args:
        columns: Elements of an image, `C H W`.
        rows: Elements of the measurement, 1 to `columns`.
        seed: Of the singular vectors.
    """
    rows, seed = whole("rows", rows, 1, columns), whole("seed", seed, 0)

    def orthonormal(m: int, n: int, seed: int) -> Tensor:
        draws = torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return torch.linalg.qr(draws)[0]

    values = torch.linspace(1.0, 0.3, rows, dtype=torch.float64)
    return orthonormal(rows, rows, seed + 1) @ torch.diag(values) @ orthonormal(columns, rows, seed).mT
