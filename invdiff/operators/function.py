"""A measurement given by any linear callable."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from invdiff.checks import function, real, shape_of, shown, whole
from invdiff.errors import InvdiffError
from invdiff.operators.base import LinearOperator, Shape
from invdiff.operators.spectrum import LanczosRule

Map = Callable[[Tensor], Tensor]


class FunctionOperator(LinearOperator):
    """`A x = forward(x)` for any linear callable on batches of images.

    The adjoint comes from automatic differentiation when it is not given. Filters come from a dense SVD where the
    smaller side of the matrix is at most 1024, else from Lanczos with full re-orthogonalisation. Both work in double
    precision; a callable that takes one precision only is called in that one. `solve` asks it for the images of two small
    batches first and refuses a callable that isn't linear, draws at random or mixes the images of a batch. Run
    `check((C, H, W))` once on an operator of your own: it also tests the adjoint and the filters.

    Args:
        forward: Linear, `(B, C, H, W)` to `(B, ...)`, real, acting on every image of the batch alone.
        adjoint: `(B, ...)` to `(B, C, H, W)`; None differentiates `forward`, which must then be made of torch
            operations.
        image_shape: `(C, H, W)`, needed by `adjoint` and `pinv`, whose argument does not tell it; same as `bind`.
        tolerance: Relative change at which Lanczos stops, above 0 and at most 0.1.
        max_iterations: Longest run of Lanczos, up to 10,000; a run that ends there warns.
        name: What `repr` shows.

    Raises:
        InvdiffError: For an argument out of its range; when called, for a callable that fails or returns no real tensor.
    """

    unverified = True

    def __init__(
        self,
        forward: Map,
        adjoint: Map | None = None,
        *,
        image_shape: Shape | None = None,
        tolerance: float = 1e-6,
        max_iterations: int = 300,
        name: str | None = None,
    ) -> None:
        self.forward = function("forward", forward, "a function of a batch of images")
        self.given_adjoint = None if adjoint is None else function("adjoint", adjoint, "a function of measurements")
        self.image_shape = None if image_shape is None else shape_of("image_shape", image_shape)
        self.lanczos = LanczosRule(
            tolerance=real("tolerance", tolerance, above=0, high=0.1),
            max_iterations=whole("max_iterations", max_iterations, 1, 10_000),
        )
        if name is not None and not isinstance(name, str):
            raise InvdiffError(f"name must be a word, got {shown(name)}")
        self.name = name or getattr(forward, "__name__", type(forward).__name__)

    def to(self, device: torch.device | str) -> FunctionOperator:
        """The same operator on `device`: a copy of `forward` and `adjoint` there where they are `torch.nn.Module`s.

        Tensors that a plain function holds are its owner's to move.
        """

        def moved(function: Any) -> Any:
            return copy.deepcopy(function).to(device) if isinstance(function, torch.nn.Module) else function

        return self.replace(
            forward=moved(self.forward), given_adjoint=moved(self.given_adjoint), _placed=torch.device(device)
        )

    def _found_device(self) -> torch.device | None:
        if self._placed is None and isinstance(self.forward, torch.nn.Module):
            return next((parameter.device for parameter in self.forward.parameters()), None)
        return self._placed

    def apply(self, x: Tensor) -> Tensor:
        y = _called("forward", self.forward, x)
        if not isinstance(y, Tensor) or y.is_complex() or y.ndim < 1 or y.shape[0] != x.shape[0]:
            got = f"{y.dtype} of shape {tuple(y.shape)}" if isinstance(y, Tensor) else f"a {type(y).__name__}"
            raise InvdiffError(
                f"forward must return a real tensor ({x.shape[0]}, ...) for images of shape {tuple(x.shape)}, got {got}; "
                "torch.view_as_real makes a complex one real"
            )
        return y

    def apply_adjoint(self, y: Tensor, image_shape: Shape) -> Tensor:
        if self.given_adjoint is None:
            return _AdjointByAutograd.apply(y, self.forward, image_shape)  # type: ignore[no-any-return]
        x = _called("adjoint", self.given_adjoint, y)
        if not isinstance(x, Tensor):
            raise InvdiffError(f"adjoint must return a tensor, got {shown(x)}")
        if tuple(x.shape) != (y.shape[0], *image_shape):
            raise InvdiffError(
                f"adjoint must return the images' shape, {(y.shape[0], *image_shape)}, got {tuple(x.shape)}"
            )
        return x

    def __repr__(self) -> str:
        return f"FunctionOperator({self.name})"


def _called(name: str, function: Map, value: Tensor) -> Any:
    """`function(value)`; what the caller's code raises is put into one sentence, with the shape it was called with."""
    try:
        return _in_some_precision(function, value)
    except InvdiffError:
        raise
    except Exception as error:
        raise InvdiffError(
            f"{name} must take a batch of shape {tuple(value.shape)}, got {type(error).__name__}: {error}"
        ) from error


def _in_some_precision(function: Map, value: Tensor) -> Tensor:
    """`function(value)`, in the other of single and double precision where the function refuses the value's own."""
    try:
        return function(value)
    except RuntimeError:
        other = torch.float32 if value.dtype == torch.float64 else torch.float64
        try:
            result = function(value.to(other))
        except RuntimeError:
            result = None
        if result is None:
            raise
        return result.to(value.dtype)


class _AdjointByAutograd(torch.autograd.Function):
    """`y -> A^T y`, the vector-Jacobian product of A at zero; linear in y, so that its own is A."""

    @staticmethod
    def forward(y: Tensor, function: Map, image_shape: Shape) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            x = torch.zeros(y.shape[0], *image_shape, dtype=y.dtype, device=y.device, requires_grad=True)
            image = _called("forward", function, x)
            if not image.requires_grad:
                raise InvdiffError(
                    "forward cannot be differentiated: it leaves torch's operations, or ignores its argument. "
                    "Pass adjoint=, the transpose of forward."
                )
            (gradient,) = torch.autograd.grad(image, x, y.detach().clone(), materialize_grads=True)
        return gradient

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, ctx.function, _ = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _in_some_precision(ctx.function, gradient), None, None
