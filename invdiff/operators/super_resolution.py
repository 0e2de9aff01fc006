"""Super-resolution: the measurement is a smaller image."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from invdiff.checks import one_of, whole
from invdiff.operators.base import Eigenvalues, LinearOperator, Shape
from invdiff.operators.spectrum import RELATIVE_ZERO, Filter, on_range

KERNELS = ("nearest", "box", "bicubic")
MOST_SCALE = 4096


class SuperResolution(LinearOperator):
    """`A x`, `x` made smaller by an integer factor along both axes.

    - `"nearest"`: `x[..., ::s, ::s]`, A A^T = I.
    - `"box"`: the mean of every block of s x s pixels, A A^T = I / s^2; the pseudo-inverse repeats each value.
    - `"bicubic"`: the antialiased bicubic kernel (a = -1/2, stretched by s, rows normalised, half-sample symmetric
      borders); separable, A = K_h (x) K_w, so the SVD is that of two small matrices.

    The measurement is `(B, C, ceil(H/s), ceil(W/s))`; at sizes that s does not divide, the last blocks average the
    pixels that they have. A measurement's image is taken to be s times as large; `bind((C, H, W))` says otherwise.

    Args:
        scale: s, a whole number from 1 to 4096.
        kernel: One of the three above.

    Raises:
        InvdiffError: For another scale or kernel.

    Source: the operators of Kawar et al., Denoising Diffusion Restoration Models (NeurIPS 2022).
    """

    task = "super_resolution"
    keeps_range = True

    def __init__(self, scale: int, kernel: str = "nearest") -> None:
        self.scale = whole("scale", scale, 1, MOST_SCALE)
        self.kernel = one_of("kernel", kernel, KERNELS)
        self.rows_disjoint = kernel != "bicubic"
        self.columns_disjoint = kernel == "nearest"

    channelwise = True

    def apply(self, x: Tensor) -> Tensor:
        s = self.scale
        if self.kernel == "nearest":
            return x[..., ::s, ::s]
        if self.kernel == "box":
            return functional.avg_pool2d(x, s, ceil_mode=True)
        rows, columns = (axis.matrix for axis in self._axes(tuple(x.shape[1:]), x))
        return rows @ x @ columns.mT

    def apply_adjoint(self, y: Tensor, image_shape: Shape) -> Tensor:
        s, (height, width) = self.scale, image_shape[-2:]
        if self.kernel == "nearest":
            x = y.new_zeros(*y.shape[:-2], height, width)
            x[..., ::s, ::s] = y
            return x
        if self.kernel == "box":
            h, w = y.shape[-2:]
            shares = y / (s * s) if height == h * s and width == w * s else y / self._block_sizes(image_shape, y)
            x = shares[..., :, None, :, None].expand(*y.shape[:-2], h, s, w, s).reshape(*y.shape[:-2], h * s, w * s)
            return x[..., :height, :width]
        rows, columns = (axis.matrix for axis in self._axes(image_shape, y))
        return rows.mT @ y @ columns

    def infer_image_shape(self, measurement_shape: Shape) -> Shape:
        if len(measurement_shape) != 3:
            return super().infer_image_shape(measurement_shape)
        channels, h, w = measurement_shape
        return (channels, h * self.scale, w * self.scale)

    def measurement_shape(self, image_shape: Shape) -> Shape:
        channels, height, width = image_shape
        return (channels, -(-height // self.scale), -(-width // self.scale))

    def first_look(self, y: Tensor, image_shape: Shape) -> Tensor:
        return functional.interpolate(y, image_shape[1:], mode="bicubic", align_corners=False)

    def _cogram_diagonal(self, image_shape: Shape, like: Tensor) -> Eigenvalues | None:
        divides = image_shape[1] % self.scale == 0 and image_shape[2] % self.scale == 0
        if self.kernel == "nearest" or (self.kernel == "box" and divides):
            value = 1.0 if self.kernel == "nearest" else 1.0 / self.scale**2
            return self._remembered(("cogram", value), lambda: Eigenvalues.equal(value))
        return super()._cogram_diagonal(image_shape, like)

    def _block_sizes(self, image_shape: Shape, like: Tensor) -> Tensor:
        def build() -> Tensor:
            ones = torch.ones(1, 1, *image_shape[-2:], dtype=like.dtype, device=like.device)
            return functional.avg_pool2d(ones, self.scale, ceil_mode=True, divisor_override=1)

        return self._remembered(("blocks", image_shape[-2:], like.dtype, like.device), build)

    # The separable SVD of the bicubic kernel

    def _axes(self, image_shape: Shape, like: Tensor) -> tuple[Axis, Axis]:
        def build() -> tuple[Axis, Axis]:
            rows, columns = (Axis(bicubic_matrix(length, self.scale), like) for length in image_shape[-2:])
            return rows, columns

        return self._remembered(("axes", image_shape[-2:], like.dtype, like.device), build)

    def _values(self, image_shape: Shape, like: Tensor) -> tuple[Tensor, Tensor]:
        """The singular values as a small image `(r_h, r_w)`, and their squares."""

        def build() -> tuple[Tensor, Tensor]:
            rows, columns = self._axes(image_shape, like)
            values = rows.values[:, None] * columns.values[None, :]
            values = torch.where(values > RELATIVE_ZERO * values.max(), values, 0.0)
            return values, values**2

        return self._remembered(("values", image_shape[-2:], like.dtype, like.device), build)

    def filtered_adjoint(self, f: Filter, y: Tensor, image_shape: Shape | None = None) -> Tensor:
        if self.kernel != "bicubic":
            return super().filtered_adjoint(f, y, image_shape)
        image_shape = self.resolved_image_shape(y, image_shape)
        rows, columns = self._axes(image_shape, y)
        values, squares = self._values(image_shape, y)
        weights = values * on_range(f, squares).to(y.dtype)
        return rows.right @ (weights * (rows.left.mT @ y @ columns.left)) @ columns.right.mT

    def cogram_filter(self, f: Filter, y: Tensor, image_shape: Shape | None = None) -> Tensor:
        if self.kernel != "bicubic":
            return super().cogram_filter(f, y, image_shape)
        image_shape = self.resolved_image_shape(y, image_shape)
        rows, columns = self._axes(image_shape, y)
        weights = torch.as_tensor(f(self._values(image_shape, y)[1])).to(y.dtype)
        return rows.left @ (weights * (rows.left.mT @ y @ columns.left)) @ columns.left.mT

    def gram_filter(self, f: Filter, x: Tensor) -> Tensor:
        if self.kernel != "bicubic":
            return super().gram_filter(f, x)
        image_shape = tuple(x.shape[1:])
        rows, columns = self._axes(image_shape, x)
        at_zero = self._at_zero(f, x)
        weights = torch.as_tensor(f(self._values(image_shape, x)[1])).to(x.dtype) - at_zero
        return at_zero * x + rows.right @ (weights * (rows.right.mT @ x @ columns.right)) @ columns.right.mT

    def __repr__(self) -> str:
        return f"SuperResolution({self.scale}, {self.kernel!r})"


class Axis:
    """The down-sampling matrix of one axis, `(h, H)`, and its SVD `left diag(values) right^T`."""

    def __init__(self, matrix: Tensor, like: Tensor) -> None:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        self.matrix, self.left, self.values, self.right = (
            part.to(like.device, like.dtype) for part in (matrix, left, values, right.mT.contiguous())
        )


def bicubic_matrix(length: int, scale: int, a: float = -0.5) -> Tensor:
    """The antialiased bicubic down-sampling of one axis, `(ceil(length/scale), length)`, in double precision.

    Sample o is centred at `(o + 1/2) scale - 1/2`; the kernel is `scale` times as wide as the cubic of parameter `a`;
    rows sum to one; pixels beyond a border are those reflected in it (half-sample symmetric).
    """
    count = -(-length // scale)
    centres = (np.arange(count) + 0.5) * scale - 0.5
    taps = np.floor(centres - 2 * scale)[:, None] + np.arange(4 * scale + 2)[None, :]
    distance = np.abs(taps - centres[:, None]) / scale
    near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    far = a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a
    weights = np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
    weights /= weights.sum(axis=1, keepdims=True)
    folded = np.mod(taps.astype(int), 2 * length)
    folded = np.where(folded >= length, 2 * length - 1 - folded, folded)
    matrix = np.zeros((count, length))
    np.add.at(matrix, (np.arange(count)[:, None], folded), weights)
    return torch.from_numpy(matrix)
