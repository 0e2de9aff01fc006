"""Measurements that are not linear but can be undone as far as they go: quantisation, JPEG, clipping."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from invdiff.checks import function, shown
from invdiff.errors import InvdiffError
from invdiff.operators.base import Shape
from invdiff.operators.spectrum import Filter


class NonlinearOperator:
    """A measurement ``y = h(x)`` with a pseudo-inverse h^+, that is ``h(h^+(h(x))) = h(x)`` (Song et al., 2023, eq. 9).

    For `PiGDM`, and for the other samplers that need no adjoint (RePaint, DDNM, DDRM, DiffPIR): ``h^+(h(x))`` stands for
    ``A^+ A x`` and every singular value counts as 1. MCG and DPS need an adjoint and refuse.

        levels = NonlinearOperator(lambda x: (4 * x).round(), lambda y: y / 4)

    Args:
        forward: h, on images (B, C, H, W) in model range [-1, 1].
        pinv: h^+, from h's own shape back to images.
        name: what messages call it.
    """

    task = "nonlinear"
    keeps_range = False
    batch_size = None

    def __init__(self, forward: Callable[[Tensor], Tensor], pinv: Callable[[Tensor], Tensor], name: str = "h") -> None:
        self._forward = function("forward", forward, "a function of a batch of images")
        self._pinv = function("pinv", pinv, "a function of measurements, the pseudo-inverse of forward")
        self.name = str(name)

    def __call__(self, x: Tensor) -> Tensor:
        """h(x)."""
        return self._forward(x)

    def pinv(self, y: Tensor, image_shape: Shape | None = None) -> Tensor:
        """h^+(y), (B, C, H, W)."""
        return self._pinv(y)

    def reads(self, image_shape: Shape) -> Tensor | None:
        """None: all elements of the measurement are read."""
        return None

    def first_look(self, y: Tensor, image_shape: Shape) -> Tensor:
        """y where it has the image's shape, else h^+(y)."""
        return y if tuple(y.shape[1:]) == tuple(image_shape) else self.pinv(y)

    def project(self, x: Tensor) -> Tensor:
        """h^+(h(x)): the part of x that y tells."""
        return self._pinv(self._forward(x))

    def complement(self, x: Tensor) -> Tensor:
        """x - h^+(h(x))."""
        return x - self.project(x)

    def merge(self, known: Tensor, x: Tensor) -> Tensor:
        """``h^+(h(known)) + (x - h^+(h(x)))``: what a measurement tells from `known`, the rest from `x`."""
        return self.project(known) + self.complement(x)

    def filtered_residual(self, f: Filter, y: Tensor, x: Tensor) -> Tensor:
        """``f(1) (h^+(y) - h^+(h(x)))``."""
        return torch.as_tensor(f(torch.ones((), dtype=torch.float64))).to(x.dtype) * (self._pinv(y) - self.project(x))

    def gram_filter(self, f: Filter, x: Tensor) -> Tensor:
        """``f(0) (x - h^+(h(x))) + f(1) h^+(h(x))``."""
        at_one, at_zero = (torch.as_tensor(f(torch.tensor(v, dtype=torch.float64))).to(x.dtype) for v in (1.0, 0.0))
        return at_zero * x + (at_one - at_zero) * self.project(x)

    def adjoint(self, y: Tensor, image_shape: Shape | None = None) -> Tensor:
        """There is none.

        Raises:
            InvdiffError: always.
        """
        raise InvdiffError(
            f"operator must be linear to have an adjoint, got {self!r}: MCG and DPS cannot use it; PiGDM and DDNM can"
        )

    def measure(self, x: Tensor, sigma_y: float = 0.0, seed: int | Sequence[int] = 0) -> Tensor:
        """h(x); noise-free only."""
        if sigma_y:
            raise InvdiffError(f"{self!r} measures without noise; sigma_y must be 0, got {sigma_y}")
        return self._forward(x)

    def measurement_shape(self, image_shape: Shape) -> Shape:
        """Shape of h's output for an image (C, H, W), without the batch.

        Raises:
            InvdiffError: h or h^+ fails there, or h^+ doesn't lead back to images.
        """
        y = self._tried("forward", self._forward, torch.zeros(1, *image_shape))
        x = self._tried("pinv", self._pinv, y)
        if tuple(x.shape) != (1, *image_shape):
            raise InvdiffError(f"pinv must return images of shape {(1, *image_shape)}, got {tuple(x.shape)}")
        return tuple(y.shape[1:])

    @staticmethod
    def _tried(name: str, function: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
        try:
            result = function(value)
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise InvdiffError(f"{name} must take a batch of shape {tuple(value.shape)}, got {what}") from error
        if not isinstance(result, Tensor) or result.ndim < 1 or len(result) != len(value):
            raise InvdiffError(f"{name} must return a tensor ({len(value)}, ...), got {shown(result)}")
        return result

    def infer_image_shape(self, measurement_shape: Shape) -> Shape:
        """(C, H, W) of h^+'s output for a measurement of this shape, without the batch."""
        return tuple(self._pinv(torch.zeros(1, *measurement_shape)).shape[1:])

    def bind(self, image_shape: Shape) -> NonlinearOperator:
        """Itself: its functions know their shapes."""
        return self

    def to(self, device: torch.device | str) -> NonlinearOperator:
        """Itself: its functions follow their argument."""
        return self

    def __getitem__(self, index: object) -> NonlinearOperator:
        """Itself: shared by all images."""
        return self

    def __repr__(self) -> str:
        return f"NonlinearOperator({self.name})"
