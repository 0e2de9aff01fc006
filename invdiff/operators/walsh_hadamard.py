"""Compressed sensing with a part of the Walsh-Hadamard transform."""

from __future__ import annotations

from math import ceil, isqrt, log2

import numpy as np
import torch
from torch import Tensor

from invdiff.checks import real, whole
from invdiff.errors import InvdiffError
from invdiff.operators.base import Eigenvalues, LinearOperator, Shape


class WalshHadamard(LinearOperator):
    """`A x = R W Q x` for every channel, A A^T = I.

    Q is a random order of the pixels, W the orthonormal Walsh-Hadamard transform, R a random choice of its rows.

    Both height and width are powers of two. Of the `H W` rows `ceil(ratio H W)` are kept, always the constant one
    among them. The measurement is `(B, C, m)`; its image is taken to be square, `bind((C, H, W))` says otherwise.

    Args:
        ratio: Share of the rows that are kept, above 0 and up to 1.
        seed: Of the order of the pixels and the choice of the rows.

    Source: the operator of Kawar et al., Denoising Diffusion Restoration Models (NeurIPS 2022).
    """

    task = "compressed_sensing"
    channelwise = True

    def __init__(self, ratio: float = 0.5, seed: int = 0) -> None:
        self.ratio = real("ratio", ratio, above=0, high=1)
        self.seed = whole("seed", seed, low=0)
        self._unit = Eigenvalues.equal(1.0)

    def apply(self, x: Tensor) -> Tensor:
        order, _, rows = self._choices(tuple(x.shape[-2:]), x)
        return self._transform(x.flatten(2)[..., order], x)[..., rows]

    def apply_adjoint(self, y: Tensor, image_shape: Shape) -> Tensor:
        height, width = image_shape[-2:]
        _, back, rows = self._choices((height, width), y)
        spectrum = y.new_zeros(*y.shape[:-1], height * width).index_copy(-1, rows, y)
        return self._transform(spectrum, y)[..., back].unflatten(-1, (height, width))

    def _transform(self, v: Tensor, like: Tensor) -> Tensor:
        """The orthonormal transform of the last axis, as that of the rows and columns of a near-square array."""
        bits = int(log2(v.shape[-1]))
        left, right = self._hadamard(bits - bits // 2, like), self._hadamard(bits // 2, like)
        return (left @ v.unflatten(-1, (left.shape[0], right.shape[0])) @ right).flatten(-2)

    def _hadamard(self, bits: int, like: Tensor) -> Tensor:
        def build() -> Tensor:
            matrix = torch.ones(1, 1, dtype=torch.float64)
            for _ in range(bits):
                matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)], 0)
            return (matrix / 2 ** (bits / 2)).to(like.device, like.dtype)

        return self._remembered(("hadamard", bits, like.dtype, like.device), build)

    def _choices(self, size: Shape, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The order of the pixels, its inverse, and the rows that are kept."""

        def build() -> tuple[Tensor, Tensor, Tensor]:
            height, width = size
            if height & (height - 1) or width & (width - 1):
                raise InvdiffError(
                    f"x must have a height and width that are powers of two for {self!r}, got {height}x{width}"
                )
            count = height * width
            generator = np.random.default_rng([self.seed, height, width])
            order = generator.permutation(count)
            others = 1 + generator.permutation(count - 1)[: self._row_count(count) - 1]
            rows = np.sort(np.concatenate([[0], others]))
            return tuple(torch.from_numpy(part).to(like.device) for part in (order, np.argsort(order), rows))  # type: ignore[return-value]

        return self._remembered(("choices", tuple(size), like.device), build)

    def _row_count(self, count: int) -> int:
        return max(1, ceil(round(self.ratio * count, 9)))

    def measurement_shape(self, image_shape: Shape) -> Shape:
        channels, height, width = image_shape
        return (channels, self._row_count(height * width))

    def infer_image_shape(self, measurement_shape: Shape) -> Shape:
        if len(measurement_shape) == 2:
            channels, m = measurement_shape
            for bits in range(16):
                if self._row_count(4**bits) == m:
                    return (channels, isqrt(4**bits), isqrt(4**bits))
        return super().infer_image_shape(measurement_shape)

    def _cogram_diagonal(self, image_shape: Shape, like: Tensor) -> Eigenvalues | None:
        return self._unit

    def __repr__(self) -> str:
        return f"WalshHadamard({self.ratio:g}, seed={self.seed})"
