"""Magnetic resonance imaging: a part of the Fourier transform."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from invdiff.checks import real, whole
from invdiff.errors import InvdiffError
from invdiff.operators.base import LinearOperator, Shape
from invdiff.operators.mask import _known_pixels
from invdiff.operators.masks import checked_size
from invdiff.operators.options import called
from invdiff.operators.spectrum import Filter, on_range, slope_from_zero


class Fourier(LinearOperator):
    """`A x = m * F x` for every channel, F the orthonormal 2-D FFT and m a mask of frequencies, 1 = measured.

    A real-linear map of real images; the measurement is real, `(B, C, H, W, 2)` with real and imaginary parts last
    (`torch.view_as_real`), and zero at frequencies that are not measured. A^T A is diagonal under the FFT, with
    eigenvalues `(m(k) + m(-k)) / 2`.

    Args:
        mask: `(H, W)`, bool or 0 and 1, in the layout of `torch.fft.fft2` (frequency zero first). `fourier_mask`
            makes the usual ones.
    """

    task = "fourier"

    def __init__(self, mask: Any) -> None:
        known = _known_pixels(mask)
        if known.shape[:2] != (1, 1):
            raise InvdiffError(f"mask must be one mask of frequencies, (H, W), got shape {tuple(known.shape)}")
        self.mask = known[0, 0]

    @classmethod
    def from_options(cls, image_shape: Shape, *, mask: Any = None, **own: Any) -> Fourier:
        """The frequencies of `fourier_mask` for the images' size, or a mask of your own.

        Args:
            image_shape: `(C, H, W)`.
            mask: What the class takes, or a picture's path; None for `fourier_mask`.
            own: Options of `fourier_mask`: acceleration, center_fraction, seed.
        """
        if mask is None:
            return cls(called(fourier_mask, "operator fourier", own, tuple(image_shape[-2:])))
        called(lambda: None, "a mask that is given", own)
        return cls(mask)

    def reads(self, image_shape: Shape) -> Tensor | None:
        return self.mask[None, None, :, :, None].expand(1, *self.measurement_shape(image_shape))

    def check_images(self, x: Tensor) -> None:
        super().check_images(x)
        if x.shape[2:] != self.mask.shape:
            raise InvdiffError(
                f"x must be images of {self.mask.shape[0]}x{self.mask.shape[1]}, those of the mask of {self!r}, got "
                f"{x.shape[2]}x{x.shape[3]}"
            )

    def _constants(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The mask as numbers, and the eigenvalues of A^T A."""

        def build() -> tuple[Tensor, Tensor]:
            measured = self.mask.to(like.device, like.dtype)
            mirrored = torch.roll(measured.flip(0, 1), (1, 1), (0, 1))
            return measured, (measured + mirrored) / 2

        return self._remembered((like.dtype, like.device), build)

    def apply(self, x: Tensor) -> Tensor:
        return torch.view_as_real(torch.fft.fft2(x, norm="ortho") * self._constants(x)[0])

    def apply_adjoint(self, y: Tensor, image_shape: Shape) -> Tensor:
        return self._back(self._constants(y)[0], y)

    @staticmethod
    def _back(weights: Tensor, y: Tensor) -> Tensor:
        return torch.fft.ifft2(weights * torch.view_as_complex(y.contiguous()), norm="ortho").real

    def filtered_adjoint(self, f: Filter, y: Tensor, image_shape: Shape | None = None) -> Tensor:
        measured, eigenvalues = self._constants(y)
        return self._back(measured * on_range(f, eigenvalues).to(y.dtype), y)  # f(A A^T) A = A f(A^T A)

    def gram_filter(self, f: Filter, x: Tensor) -> Tensor:
        self.check_images(x)
        eigenvalues = self._constants(x)[1][:, : x.shape[-1] // 2 + 1]
        return torch.fft.irfft2(torch.as_tensor(f(eigenvalues)).to(x.dtype) * torch.fft.rfft2(x), s=x.shape[-2:])

    def cogram_filter(self, f: Filter, y: Tensor, image_shape: Shape | None = None) -> Tensor:
        return self._at_zero(f, y) * y + self.apply(self.filtered_adjoint(slope_from_zero(f), y))

    def measure(self, x: Tensor, sigma_y: float = 0.0, seed: Any = 0) -> Tensor:
        noisy = super().measure(x, sigma_y, seed)
        return noisy * self._constants(noisy)[0][..., None]  # what isn't measured stays 0, also with noise

    def infer_image_shape(self, measurement_shape: Shape) -> Shape:
        return measurement_shape[:3]

    def measurement_shape(self, image_shape: Shape) -> Shape:
        return (*image_shape, 2)

    def __repr__(self) -> str:
        height, width = self.mask.shape
        return f"Fourier({height}x{width}, {100 * float(self.mask.double().mean()):.0f} % measured)"


def fourier_mask(
    shape: tuple[int, int] | int, acceleration: float = 4.0, center_fraction: float = 0.08, seed: int = 0
) -> Tensor:
    """Columns of frequencies as an MRI scanner measures them: all of the lowest ones, and some of the others at random.

    Args:
        shape: Height and width, or one int for both.
        acceleration: Columns there are for every one that is measured, from 1.
        center_fraction: Share of the columns, around frequency zero, that are always measured.
        seed: Of the random columns.

    Returns:
        Bool `(H, W)` in the layout of `torch.fft.fft2`.
    """
    height, width = checked_size(shape, "shape")
    acceleration = real("acceleration", acceleration, low=1)
    center_fraction = real("center_fraction", center_fraction, 0, 1)
    seed = whole("seed", seed, low=0)
    from_zero = np.argsort(np.minimum(np.arange(width), width - np.arange(width)), kind="stable")
    low = max(1, round(center_fraction * width))
    others = np.random.default_rng(seed).permutation(from_zero[low:])[: max(0, round(width / acceleration) - low)]
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[:, torch.from_numpy(np.concatenate([from_zero[:low], others]))] = True
    return mask
