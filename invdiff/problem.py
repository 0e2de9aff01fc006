"""What is asked: y = A x + sigma_y n, validated once, in model range and on the device."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from invdiff.backbones.base import Backbone
from invdiff.checks import array, real, shown
from invdiff.errors import InvdiffError, InvdiffWarning
from invdiff.images import Affine
from invdiff.operators.base import LinearOperator
from invdiff.operators.checking import refuse_nonlinear
from invdiff.operators.nonlinear import NonlinearOperator
from invdiff.photos import Photo
from invdiff.tensors import weighted_sum

MOST_NOISE = 1e6
"""Largest sigma_y in model range."""

_INTEGERS = {"uint8": 255, "uint16": 65535}


@dataclass(frozen=True, eq=False)
class Problem:
    """A measurement and how it came about: ``y = A x + sigma_y n``.

    Attributes:
        operator: A.
        y: (B, ...), the measurement in model range; 0 where it is not read (the unknown pixels of a mask).
        y_given: the same with what is not read as it was handed over.
        sigma_y: standard deviation of its noise, model range.
        image_shape: (C, H, W) of x.
        photos: what y was read from, one entry per image: a `Photo` where y was a file or a picture.
    """

    operator: LinearOperator | NonlinearOperator
    y: Tensor
    y_given: Tensor
    sigma_y: float
    image_shape: tuple[int, ...]
    photos: tuple[Photo | None, ...] = ()

    @cached_property
    def pinv_y(self) -> Tensor:
        """``A^+ y``, (B, C, H, W)."""
        return self.operator.pinv(self.y)

    @cached_property
    def known_pixels(self) -> Tensor | None:
        """Which pixels y holds, bool (1 or B, C, H, W), where it is the image itself with some pixels missing; else None."""
        A, shape = self.operator, tuple(self.image_shape)
        if A.task != "mask" or tuple(A.measurement_shape(shape)) != shape:
            return None
        read = A.reads(shape)
        return None if read is None or bool(read.all()) else read

    def filtered_residual(self, f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """The filtered residual ``A^T f(A A^T) (y - A x)``; f a function of the squared singular values."""
        return self.operator.filtered_residual(f, self.y, x)

    def replace_known(self, x: Tensor, alpha_bar: float = 1.0, n: Tensor | None = None) -> Tensor:
        """``A^+ (sqrt(a) y + sqrt(1 - a) A n) + (x - A^+ A x)``: x with its range part from y, at the level `alpha_bar`.

        At level 1 there is no noise and no `n`.
        """
        known = self.pinv_y
        if n is not None:
            known = weighted_sum((alpha_bar**0.5, known), ((1 - alpha_bar) ** 0.5, n))
        return self.operator.merge(known, x)

    def select(self, images: Tensor) -> Problem:
        """The same problem for some of its images."""
        return replace(self, operator=self.operator[images], y=self.y[images], y_given=self.y_given[images])


def build_problem(
    operator: LinearOperator | NonlinearOperator,
    y: Any,
    sigma_y: float,
    backbone: Backbone,
    value_range: tuple[float, float] = (0.0, 1.0),
) -> Problem:
    """Check everything that a user hands over, and bring it into model range on the backbone's device.

    Args:
        operator: A, for images of the backbone's shape; where that takes any size, the measurement tells it.
        y: PIL image, path, `Photo`, numpy array or tensor, or a list of these (one per image).
        sigma_y: noise of y, in the unit of y as passed (0..255 for files, PIL images and uint8 arrays).
        backbone: gives the shape, device and precision.
        value_range: what black and white are in a float array or tensor.

    Raises:
        InvdiffError: names the argument, what it was and what is accepted.
    """
    if not isinstance(operator, LinearOperator | NonlinearOperator):
        raise InvdiffError(
            f"operator must be an invdiff operator such as Mask(m) or SuperResolution(4), got {shown(operator)}; "
            "wrap a linear function as FunctionOperator(f)"
        )
    y = _pictures_read(y)
    shape = image_shape_of(operator, y, backbone)
    wanted = tuple(operator.measurement_shape(shape))
    if isinstance(operator, LinearOperator):
        refuse_nonlinear(operator, shape)
    values, unit = _measurement(y, wanted, Affine.from_range(value_range), operator, backbone)
    sigma_y = _sigma(sigma_y, unit)
    operator = operator.to(backbone.device).bind(shape)
    values = values.to(backbone.device, torch.float64)
    per_image = operator.batch_size
    if per_image is not None and len(values) not in (1, per_image):
        raise InvdiffError(
            f"y must hold 1 measurement, or {per_image}, as many as the operator has parameters for, got {len(values)}"
        )
    if per_image is not None and len(values) == 1:
        values = values.expand(per_image, *wanted)
    read = operator.reads(tuple(shape))
    if read is not None:
        _check_read(read)
        values = torch.where(read | torch.isfinite(values), values, 0.0)  # NaN where nothing is read is no harm
    if not bool(torch.isfinite(values).all()):
        bad = int((~torch.isfinite(values)).sum())
        raise InvdiffError(f"y must be finite, got {bad} values that are NaN or infinite")
    if isinstance(operator, NonlinearOperator):  # no range can be pushed through it: y is what h makes of model range
        if sigma_y > 0:
            raise InvdiffError(f"sigma_y must be 0 with {operator!r}, of which no noise is modelled, got {sigma_y:g}")
        given = values.to(backbone.dtype)
        return Problem(operator, given, given, 0.0, tuple(shape), _photos(y, len(given)))
    offset = operator(torch.full(_stack(operator, shape), unit.offset, device=values.device, dtype=torch.float64))
    given = (unit.scale * values + offset).to(backbone.dtype).contiguous()
    model = given if read is None else torch.where(read, given, 0.0)
    if not bool(torch.isfinite(model).all()):
        raise InvdiffError(
            f"y must fit into {str(backbone.dtype).removeprefix('torch.')}, got values up to {values.abs().max():.3g}"
        )
    if backbone.bounded:
        _check_range(model, values, unit, sigma_y, operator, shape)
    return Problem(operator, model, given, unit.scale * sigma_y, tuple(shape), _photos(y, len(given)))


def image_shape_of(operator: Any, y: Any, backbone: Backbone) -> tuple[int, ...]:
    """(C, H, W) of the picture that `y` measures: the backbone's, or, where that takes any size, what y and A tell.

    Raises:
        InvdiffError: they don't tell.
    """
    if None not in backbone.image_shape:
        return tuple(backbone.image_shape)
    channels = backbone.image_shape[0]
    if getattr(operator, "image_shape", None) is not None:
        return tuple(operator.image_shape)
    why = ""
    for shape in _measurement_shapes(y, channels):
        try:
            found = tuple(operator.infer_image_shape(shape))
            if found[0] == channels and tuple(operator.measurement_shape(found)) == shape:
                return found
        except InvdiffError as error:
            why = f" {error}"
    raise InvdiffError(
        f"y is {_described(y)}, from which {operator!r} cannot tell the size of its image ({channels} channels, as the backbone "
        f"makes them); y must be a measurement of the operator, else pass operator.bind((C, H, W)).{why}"
    )


def _measurement_shapes(y: Any, channels: int) -> list[tuple[int, ...]]:
    """The shapes that one measurement in `y` may have, the likeliest first."""
    if isinstance(y, list | tuple):
        return _measurement_shapes(y[0], channels) if y else []
    if isinstance(y, Photo):
        return [(c, *y.size) for c in dict.fromkeys((y.pixels.shape[2], channels, 1))]
    shape = tuple(int(n) for n in getattr(y, "shape", ()))
    found = [shape, shape[1:]] if len(shape) in (1, 3) else [shape[1:], shape]
    if isinstance(y, np.ndarray) and len(shape) in (3, 4) and shape[-1] in (1, 3) and shape[-3] not in (1, 3):
        found = [(shape[-1], *shape[-3:-1])]
    if len(shape) == 2:
        found += [(c, *shape) for c in dict.fromkeys((1, channels))]
    return [s for s in found if s and min(s) > 0]


def _described(y: Any) -> str:
    if isinstance(y, Photo):
        return f"a picture of {y.size[1]}x{y.size[0]} pixels"
    shape = getattr(y, "shape", None)
    return f"a {type(y).__name__}" + ("" if shape is None else f" of shape {tuple(shape)}")


def _pictures_read(y: Any) -> Any:
    """y, files and PIL images in it replaced by `Photo`s."""
    if isinstance(y, list | tuple):
        if any(isinstance(one, list | tuple) for one in y):
            raise InvdiffError(
                "y must be a list of pictures, arrays or tensors, got lists in a list; numpy.asarray(y) may do"
            )
        return [_pictures_read(one) for one in y]
    return Photo.read(y, "y") if isinstance(y, str | os.PathLike | Image.Image) else y


def _photos(y: Any, count: int) -> tuple[Photo | None, ...]:
    found = [one if isinstance(one, Photo) else None for one in (y if isinstance(y, list) else [y])]
    if len(found) == 1:  # one measurement may serve several operators
        found *= count
    return tuple(found) if len(found) == count and any(found) else ()


def _channels(photo: Photo, wanted: int, argument: str = "y") -> np.ndarray:
    """(H, W, wanted) float64 in 0..255: grey repeated, colour whose channels are equal taken as grey.

    Raises:
        InvdiffError: a colour picture where a grey one is wanted.
    """
    values = photo.values()
    if wanted == 3 and values.shape[2] == 1:
        return np.repeat(values, 3, -1)
    if wanted == 1 and values.shape[2] == 3:
        if np.ptp(values, axis=-1).max() > 0:
            raise InvdiffError(
                f"{argument} is a colour picture, but the measurement is grey (one channel). Pass the grey picture itself, or "
                "simulate a measurement of the colour one: operator.measure(x), or --simulate on the command line"
            )
        return values[..., :1]
    return values


def _measurement(
    y: Any, wanted: tuple[int, ...], unit: Affine, operator: Any, backbone: Backbone
) -> tuple[Tensor, Affine]:
    """y as a (B, *wanted) tensor in the caller's values, and the map from these to model range."""
    if isinstance(y, list | tuple):
        if not y:
            raise InvdiffError("y must hold one measurement at least, got an empty list")
        parts = [_measurement(one, wanted, unit, operator, backbone) for one in y]
        if len({unit for _, unit in parts}) > 1:
            raise InvdiffError("y must be all 8-bit images or all float arrays, got a mixture")
        return torch.cat([values for values, _ in parts]), parts[0][1]
    if isinstance(y, Photo):
        y, unit = (_channels(y, wanted[0]) if len(wanted) == 3 else y.values()), Affine.from_range((0, 255))
    if not isinstance(y, np.ndarray | Tensor):
        raise InvdiffError(
            f"y must be a PIL image, a path, a numpy array or a tensor, or a list of these, got {shown(y)}"
        )
    values = array("y", y, what="8- or 16-bit integers (0..255, 0..65535) or of floats in value_range")
    kind = getattr(y.dtype, "name", str(y.dtype).removeprefix("torch."))
    if kind in _INTEGERS:
        unit = Affine.from_range((0, _INTEGERS[kind]))
        _warn_binary(values, kind)
    elif not values.is_floating_point():
        raise InvdiffError(
            f"y must hold uint8 (0..255), uint16 (0..65535) or floats in value_range, got an array of {kind}"
        )
    values = values.double()
    fits = tuple(values.shape[-len(wanted) :]) == wanted
    if isinstance(y, np.ndarray) and len(wanted) == 3 and values.ndim in (3, 4) and not fits:
        channels_last = (*wanted[1:], wanted[0])
        if tuple(values.shape[-3:]) == channels_last:
            values = values.movedim(-1, -3)
    if len(wanted) == 3 and values.ndim == 2 and (wanted[0] == 1 or isinstance(y, np.ndarray)):
        values = values.expand(wanted[0], *values.shape)  # a grey array is a grey picture
    if values.ndim == len(wanted):
        values = values[None]
    if tuple(values.shape[1:]) != wanted:
        raise InvdiffError(
            f"y must have shape {wanted}, with or without a batch in front: such are the measurements of {operator!r} of the "
            f"images of {backbone.name} ({backbone.sizes_taken()}); got shape {tuple(values.shape)}"
        )
    if len(values) == 0:
        raise InvdiffError(f"y must hold one measurement at least, got an empty batch of shape {tuple(values.shape)}")
    return values, unit


def _warn_binary(values: Tensor, kind: str) -> None:
    """Integers that were meant as truth values are next to black."""
    if values.numel() and int(values.max()) == 1:
        warnings.warn(
            f"y holds the {kind} numbers 0 and 1 alone, which are read as 0..{_INTEGERS[kind]}: it is all but black. If 1 is "
            "white, pass floats, such as y.astype(float)",
            InvdiffWarning,
            stacklevel=5,
        )


def _sigma(sigma_y: float, unit: Affine) -> float:
    value = real("sigma_y", sigma_y, 0.0, MOST_NOISE / unit.scale, hint="It is the noise of y, in the unit of y.")
    if unit == Affine.from_range((0, 255)) and 0 < value < 1:
        warnings.warn(
            f"sigma_y = {value:g} is in the unit of y, which is 8-bit here (0..255): next to no noise. "
            f"For noise of {value:g} on a scale of 0 to 1 pass sigma_y = {255 * value:g}.",
            InvdiffWarning,
            stacklevel=5,
        )
    return value


def _stack(operator: Any, image_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the smallest stack of images that the operator takes."""
    return (operator.batch_size or 1, *image_shape)


def _check_read(read: Tensor) -> None:
    share = read.flatten(1).float().mean(1)
    if float(share.min()) == 0:
        warnings.warn(
            "the mask is empty: nothing is known, so the restoration is a draw from the prior. 1 (white) marks known pixels; "
            "is the mask inverted?",
            InvdiffWarning,
            stacklevel=5,
        )
    elif float(share.max()) == 1:
        warnings.warn("the mask is full: everything is known and nothing is missing", InvdiffWarning, stacklevel=5)


def _check_range(
    model: Tensor, values: Tensor, unit: Affine, sigma_y: float, operator: LinearOperator, shape: tuple[int, ...]
) -> None:
    """A measurement that averages pixels cannot leave their range by much."""
    if not operator.keeps_range:
        return
    gain = float(operator(torch.ones(*_stack(operator, shape), device=model.device)).abs().max())
    if gain > 1.01 or float(model.abs().max()) <= 1.5 + 8 * unit.scale * sigma_y:
        return
    low, high = unit.invert(-1.0), unit.invert(1.0)
    raise InvdiffError(
        f"y ranges from {values.min():.4g} to {values.max():.4g}, far outside value_range = ({low:g}, {high:g}); pass the "
        "range that your values have, such as value_range=(0, 255) or (-1, 1), or the noise of y as sigma_y"
    )
