"""The whole image, as it is: denoising."""

from __future__ import annotations

from torch import Tensor

from invdiff.operators.base import LinearOperator, Shape


class Identity(LinearOperator):
    """`A x = x`. The measurement is the image itself; with noise it is the denoising problem."""

    task = "identity"
    keeps_range = True
    rows_disjoint = True
    columns_disjoint = True
    channelwise = True

    def apply(self, x: Tensor) -> Tensor:
        return x

    def apply_adjoint(self, y: Tensor, image_shape: Shape) -> Tensor:
        return y

    def infer_image_shape(self, measurement_shape: Shape) -> Shape:
        return measurement_shape

    def measurement_shape(self, image_shape: Shape) -> Shape:
        return tuple(image_shape)

    @property
    def H(self) -> LinearOperator:
        return self
