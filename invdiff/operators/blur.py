"""Deblurring: a circular convolution, diagonal under the Fourier transform."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ImageOps
from torch import Tensor

from invdiff.checks import array, real, whole
from invdiff.errors import InvdiffError, near_match
from invdiff.images import open_image
from invdiff.operators.base import LinearOperator, Shape
from invdiff.operators.options import called
from invdiff.operators.spectrum import RELATIVE_ZERO, Filter, on_range, through

MOST_SIDE = 4096
LEAST_GAIN = 1e-6


class Blur(LinearOperator):
    """`A x = k * x`, circular convolution of every channel with a kernel centred at `(h // 2, w // 2)`.

    Diagonal under the FFT: `A = F^H diag(K) F`, singular values `|K|`. Transfer values below `threshold` times the
    largest one are taken as exactly zero, in A as well as in its filters: what they carry is below the rounding of
    single precision.

    Args:
        kernel: 2-D array or tensor, `(h, w)`; not normalised by us. `gaussian_kernel`, `uniform_kernel` and
            `motion_kernel` make the usual ones.
        threshold: Relative size below which a singular value is zero, 0 to 0.999999. A larger one (1e-3) keeps the
            pseudo-inverse of a smooth blur from amplifying noise.

    Raises:
        InvdiffError: For a kernel that is not 2-D, finite and of a sum that single precision can carry.
    """

    task = "blur"
    keeps_range = True
    channelwise = True

    def __init__(self, kernel: Any, threshold: float = RELATIVE_ZERO) -> None:
        if isinstance(kernel, str):
            raise InvdiffError(
                f"kernel must be a 2-dimensional array of numbers, got {kernel!r}; gaussian_kernel(), uniform_kernel() "
                "and motion_kernel() make such"
            )
        values = array("kernel", kernel, ndim=2).cpu().double()
        if values.numel() == 0:
            raise InvdiffError(f"kernel must have a pixel at least, got shape {tuple(values.shape)}")
        if not bool(torch.isfinite(values).all()) or not bool(values.any()):
            raise InvdiffError(
                "kernel must be finite and not zero everywhere, got NaN or infinite values or only zeros"
            )
        gain = float(values.abs().sum())
        if not LEAST_GAIN <= gain <= 1 / LEAST_GAIN:
            raise InvdiffError(
                f"kernel must have absolute values that add up to {LEAST_GAIN:g} to {1 / LEAST_GAIN:g}, got {gain:.3g}: beyond "
                "that single precision loses the image; kernel / kernel.sum() keeps its brightness"
            )
        with torch.inference_mode(False):
            self.kernel = values.clone()
        self.threshold = real("threshold", threshold, 0, 0.999999)

    @classmethod
    def from_options(
        cls, image_shape: Shape, *, kernel: Any = "gaussian", threshold: float = RELATIVE_ZERO, **own: Any
    ) -> Blur:
        """A blur by the name of its kernel, or from a picture of it.

        Args:
            image_shape: `(C, H, W)`.
            kernel: ``"gaussian"``, ``"uniform"``, ``"motion"``, the path of a grey picture (scaled to sum one), or an array.
            threshold: See the class.
            own: Further options of the named kernel: of `gaussian_kernel`, `uniform_kernel`, `motion_kernel`. A size that is
                not given is no larger than the image.
        """
        if not isinstance(kernel, str):
            called(lambda: None, "a kernel that is given", own)
            return cls(kernel, threshold)
        if kernel in KERNELS:
            made = called(KERNELS[kernel], f"kernel {kernel!r}", own)
            largest = min(image_shape[-2:])
            if "size" not in own and len(made) > largest:
                made = called(KERNELS[kernel], f"kernel {kernel!r}", {**own, "size": largest - (largest + 1) % 2})
            return cls(made, threshold)
        called(lambda: None, "a kernel from a file", own)
        if not Path(kernel).exists():
            raise InvdiffError(
                f"kernel must be one of {', '.join(KERNELS)}, or the path of a picture; got {kernel!r}, and no such file exists."
                f"{near_match(kernel, KERNELS)}"
            )
        weights = np.asarray(ImageOps.grayscale(open_image(kernel, "kernel"))).astype(np.float64)
        if weights.sum() == 0:
            raise InvdiffError(f"kernel must have weight somewhere, got {kernel!r}, which is black")
        return cls(weights / weights.sum(), threshold)

    def _transfer(self, image_shape: Shape, like: Tensor) -> tuple[Tensor, Tensor]:
        """The half spectrum of the kernel, and its squared modulus."""
        size = tuple(image_shape[-2:])

        def build() -> tuple[Tensor, Tensor]:
            h, w = self.kernel.shape
            if h > size[0] or w > size[1]:
                raise InvdiffError(
                    f"kernel must be at most as large as the image, {size[0]}x{size[1]}, got {h}x{w}; crop it"
                )
            padded = torch.zeros(size, dtype=torch.float64)
            padded[:h, :w] = self.kernel.cpu()
            spectrum = torch.fft.rfft2(torch.roll(padded, (-(h // 2), -(w // 2)), (0, 1)))
            modulus = spectrum.abs()
            spectrum = torch.where(modulus > self.threshold * modulus.max(), spectrum, 0.0)
            if like.dtype != torch.float64:
                spectrum = spectrum.to(torch.complex64)
            spectrum = spectrum.to(like.device)
            return spectrum, spectrum.real**2 + spectrum.imag**2

        return self._remembered((size, like.dtype, like.device), build)

    @staticmethod
    def _filtered(weights: Tensor, spectrum: Tensor, like: Tensor) -> Tensor:
        return torch.fft.irfft2(weights * spectrum, s=like.shape[-2:])

    def apply(self, x: Tensor) -> Tensor:
        return self._filtered(self._transfer(tuple(x.shape[1:]), x)[0], torch.fft.rfft2(x), x)

    def apply_adjoint(self, y: Tensor, image_shape: Shape) -> Tensor:
        return self._filtered(self._transfer(image_shape, y)[0].conj(), torch.fft.rfft2(y), y)

    def infer_image_shape(self, measurement_shape: Shape) -> Shape:
        return measurement_shape

    def measurement_shape(self, image_shape: Shape) -> Shape:
        return tuple(image_shape)

    def filtered_residual(self, f: Filter, y: Tensor, x: Tensor) -> Tensor:
        self.check_images(x)
        transfer, squares = self._transfer(tuple(x.shape[1:]), x)
        residual = torch.fft.rfft2(y) - transfer * torch.fft.rfft2(x)
        return self._filtered(transfer.conj() * on_range(f, squares), residual, x)

    def filtered_adjoint(self, f: Filter, y: Tensor, image_shape: Shape | None = None) -> Tensor:
        transfer, squares = self._transfer(self.resolved_image_shape(y, image_shape), y)
        return self._filtered(transfer.conj() * on_range(f, squares), torch.fft.rfft2(y), y)

    def gram_filter(self, f: Filter, x: Tensor) -> Tensor:
        squares = self._transfer(tuple(x.shape[1:]), x)[1]
        return self._filtered(through(f, squares), torch.fft.rfft2(x), x)

    def cogram_filter(self, f: Filter, y: Tensor, image_shape: Shape | None = None) -> Tensor:
        return self.gram_filter(f, y)

    def __repr__(self) -> str:
        return f"Blur({self.kernel.shape[0]}x{self.kernel.shape[1]})"


def gaussian_kernel(size: int | None = None, sigma: float = 1.5) -> Tensor:
    """A Gaussian of standard deviation `sigma` pixels on `size x size` pixels, of sum one; double precision.

    Without a size it is as large as 2.5 standard deviations on either side need.
    """
    sigma = real("sigma", sigma, low=1e-3, high=1e6)
    size = _side(2 * ceil(2.5 * sigma) + 1 if size is None else size)
    offsets = torch.arange(size, dtype=torch.float64) - size // 2
    profile = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = profile[:, None] * profile[None, :]
    return kernel / kernel.sum()


def uniform_kernel(size: int = 9) -> Tensor:
    """`size x size` equal weights of sum one; double precision."""
    size = _side(size)
    return torch.full((size, size), 1.0 / size**2, dtype=torch.float64)


def motion_kernel(size: int = 9, intensity: float = 0.5, angle: float | None = None, seed: int = 0) -> Tensor:
    """The path of a shaken camera, drawn on `size x size` pixels, of sum one; double precision.

    Args:
        size: Pixels along each side.
        intensity: How shaky, 0 (a straight line) to 1 (a tangle).
        angle: Direction of the motion at its start, in degrees from the first axis of columns; None draws one.
        seed: Of the path.
    """
    size, intensity = _side(size), real("intensity", intensity, 0, 1)
    if angle is not None:
        angle = real("angle", angle, -1e6, 1e6)
    generator = np.random.default_rng(whole("seed", seed, low=0))
    drawn = generator.uniform(0, 360)
    steps = 16 * size
    turns = generator.normal(size=steps) * intensity * np.pi / np.sqrt(size)
    headings = np.deg2rad(drawn if angle is None else angle) + np.cumsum(turns)
    path = np.cumsum(np.stack([-np.sin(headings), np.cos(headings)]), axis=1)
    path -= (path.max(axis=1, keepdims=True) + path.min(axis=1, keepdims=True)) / 2
    path *= max(size - 3, 0) / 2 / max(np.abs(path).max(), 1e-12)
    path += size // 2 if size % 2 else (size - 1) / 2
    corner = np.clip(np.floor(path).astype(int), 0, size - 1)
    share = path - corner
    kernel = np.zeros((size, size))
    for row in (0, 1):
        for column in (0, 1):
            weight = np.abs(1 - row - share[0]) * np.abs(1 - column - share[1])
            np.add.at(kernel, (np.minimum(corner[0] + row, size - 1), np.minimum(corner[1] + column, size - 1)), weight)
    return torch.from_numpy(kernel / kernel.sum())


def _side(size: int) -> int:
    return whole("size", size, 1, MOST_SIDE)


KERNELS: dict[str, Callable[..., Tensor]] = {
    "gaussian": gaussian_kernel,
    "uniform": uniform_kernel,
    "motion": motion_kernel,
}
"""Kernels that `make_operator("blur", ...)` makes by name."""
