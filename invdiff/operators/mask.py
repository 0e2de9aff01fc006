"""Inpainting: some pixels are known, the others are missing."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from invdiff.checks import array, shown
from invdiff.errors import InvdiffError, near_match
from invdiff.images import decoded, found_image, open_image, read_image
from invdiff.operators.base import Index, LinearOperator, Shape
from invdiff.operators.masks import MASKS, make_mask
from invdiff.operators.options import called
from invdiff.operators.spectrum import Filter, number

_COLOUR = 96  # grey levels between the channels of a pixel, from which on it is no black, grey or white


class Mask(LinearOperator):
    """`A x = mask * x`: 1 (white) = known, keep; 0 (black) = missing, fill.

    The measurement is an image of full size, of which only the known pixels are read (the others may even be NaN).
    A A^T = A^T A = diag(mask), so every filter is one multiplication.

    Args:
        mask: `(H, W)`, `(1, H, W)`, `(C, H, W)`, `(1, 1, H, W)` or `(1, C, H, W)` for all images, `(B, 1, H, W)` or
            `(B, C, H, W)` for one mask per image. A tensor or array of bool or of the numbers 0 and 1 (uint8 arrays
            may be 0 and 255), a black and white PIL image in mode 1, L or RGB, or the path to one (see `read_mask`).

    Raises:
        InvdiffError: For any other shape or value; a soft mask has to be thresholded by its owner.

    Attributes:
        mask: Bool tensor, `(1 or B, 1 or C, H, W)`.
    """

    task = "mask"
    keeps_range = True
    framed = ("mask",)
    rows_disjoint = True
    columns_disjoint = True

    def __init__(self, mask: Any) -> None:
        self.mask = _known_pixels(mask)
        self._one, self._both = number(1.0), number([1.0, 0.0])

    @classmethod
    def from_options(
        cls, image_shape: Shape, *, mask: Any = None, invert: bool = False, seed: Any = 0, **own: Any
    ) -> Mask:
        """A mask by the name of its generator, or from a picture.

        Args:
            image_shape: `(C, H, W)`.
            mask: One of `mask_names()`, or what the class takes: a path, a picture, an array.
            invert: White marks what is missing.
            seed: Of the generator; a list of seeds gives one mask for every image of a batch.
            own: Further options of the generator.
        """
        height, width = image_shape[-2:]
        if mask is None:
            raise InvdiffError(
                "mask must be given (--mask on the command line): a picture (white = known, black = missing) or one of "
                f"{', '.join(MASKS.names())}; got None"
            )
        if isinstance(mask, str) and mask in MASKS:
            seeds = list(seed) if isinstance(seed, Sequence) and not isinstance(seed, str) else [seed]
            known = torch.stack([make_mask(mask, (height, width), one, **own)[None] for one in seeds])
        else:
            called(lambda: None, "a mask that is given", own)
            if isinstance(mask, str) and not Path(mask).exists():
                raise InvdiffError(
                    f"mask must be the path of a picture or one of {', '.join(MASKS.names())}; got {mask!r}, and no such file "
                    f"exists.{near_match(mask, MASKS.names())}"
                )
            known = _known_pixels(mask)
        if tuple(known.shape[-2:]) != (height, width):
            raise InvdiffError(f"mask must be of the image's size, {height}x{width}, got {_size(known)}")
        return cls(~known if invert else known)

    def reads(self, image_shape: Shape) -> Tensor | None:
        self.check_images(torch.empty((), device=self.mask.device).expand(len(self.mask), *image_shape))
        return self.mask.expand(-1, *image_shape)

    @property
    def batch_size(self) -> int | None:  # type: ignore[override]
        return self.mask.shape[0] if self.mask.shape[0] > 1 else None

    @property
    def channelwise(self) -> bool:  # type: ignore[override]
        return self.mask.shape[1] == 1

    @property
    def known_fraction(self) -> float:
        """Share of the pixels that are known, 0 to 1."""
        return float(self.mask.double().mean())

    def check_images(self, x: Tensor) -> None:
        super().check_images(x)
        mask = self.mask
        if x.device != mask.device:
            raise InvdiffError(
                f"mask must be on the image's device, {x.device}, got {mask.device}; use mask.to({str(x.device)!r})"
            )
        if x.shape[2:] != mask.shape[2:] or mask.shape[1] not in (1, x.shape[1]):
            raise InvdiffError(f"mask must be of the image's size, {_size(x)}, got {_size(mask)}")

    def apply(self, x: Tensor) -> Tensor:
        return torch.where(self.mask, x, 0.0)

    def apply_adjoint(self, y: Tensor, image_shape: Shape) -> Tensor:
        return torch.where(self.mask, y, 0.0)

    def infer_image_shape(self, measurement_shape: Shape) -> Shape:
        return measurement_shape

    def measurement_shape(self, image_shape: Shape) -> Shape:
        return tuple(image_shape)

    def adjoint(self, y: Tensor, image_shape: Shape | None = None) -> Tensor:
        return self(y)

    def pinv(self, y: Tensor, image_shape: Shape | None = None) -> Tensor:
        return self(y)

    def project(self, x: Tensor) -> Tensor:
        self.check_images(x)
        return x * self.mask

    def complement(self, x: Tensor) -> Tensor:
        self.check_images(x)
        return x * ~self.mask

    def merge(self, known: Tensor, x: Tensor) -> Tensor:
        self.check_images(x)
        return torch.lerp(x, known, self.mask.to(x.dtype))  # exact at 0 and 1, and faster than torch.where

    def filtered_residual(self, f: Filter, y: Tensor, x: Tensor) -> Tensor:
        self.check_images(x)
        return torch.where(self.mask, y - x, 0.0).mul_(f(self._one))

    def filtered_adjoint(self, f: Filter, y: Tensor, image_shape: Shape | None = None) -> Tensor:
        return self(y) * f(self._one)

    def gram_filter(self, f: Filter, x: Tensor) -> Tensor:
        self.check_images(x)
        known, missing = torch.as_tensor(f(self._both)).to(x).expand(2)
        return torch.where(self.mask, known, missing) * x

    def cogram_filter(self, f: Filter, y: Tensor, image_shape: Shape | None = None) -> Tensor:
        return self.gram_filter(f, y)

    def measure(self, x: Tensor, sigma_y: float = 0.0, seed: Any = 0) -> Tensor:
        return self(super().measure(x, sigma_y, seed))  # missing pixels stay 0, also with noise

    def __getitem__(self, index: Index) -> Mask:
        if self.batch_size is None:
            return self
        if isinstance(index, Tensor):
            index = index.to(self.mask.device)
        with torch.inference_mode(False):
            picked = self.mask[index]
        return self.replace(mask=picked if picked.ndim == 4 else picked.unsqueeze(0))

    def to(self, device: torch.device | str) -> Mask:
        with torch.inference_mode(False):
            return self.replace(mask=self.mask.to(device))

    @property
    def H(self) -> LinearOperator:
        return self

    def __repr__(self) -> str:
        count = "" if self.batch_size is None else f"{self.batch_size} x "
        return f"Mask({count}{_size(self.mask)}, {100 * self.known_fraction:.0f} % known)"


def _size(images: Tensor) -> str:
    _, channels, height, width = images.shape
    return f"{height}x{width}" if channels == 1 else f"{channels}x{height}x{width}"


def read_mask(path: str | os.PathLike[str]) -> Tensor:
    """Bool `(H, W)` of a mask's file: white or transparent = known, black or a strong colour = missing.

    So a layer that was painted over the damage and saved by itself will do, whatever the brush's colour (but white). What
    compression left near black and white counts as such.

    Raises:
        InvdiffError: No readable picture, or one with greys in between.
    """
    name = os.fspath(path)
    picture = _on_white(Path(path))
    grey = np.where(
        np.ptp(np.asarray(picture).astype(int), axis=-1) > _COLOUR, 0, np.asarray(ImageOps.grayscale(picture))
    )
    between = float(((grey > 48) & (grey < 207)).mean())
    if between > 0.01:
        raise InvdiffError(
            f"mask {name!r} is soft: {100 * between:.0f} % of it is neither black nor white. A pixel is known (white) or missing "
            "(black); draw the mask with hard edges, or threshold it in an image editor"
        )
    return torch.from_numpy(grey > 127)


def _on_white(path: Path) -> Image.Image:
    """The picture of a file in RGB, upright; what is transparent is white."""
    image, what = found_image(path, "mask")
    if image.mode not in ("P", "PA", "LA", "RGBA") and image.info.get("transparency") is None:
        return open_image(path, "mask").convert("RGB")
    layer = ImageOps.exif_transpose(decoded(image, what)).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def _known_pixels(mask: Any) -> Tensor:
    """The mask as a bool tensor `(1 or B, 1 or C, H, W)`."""
    white = 1.0
    if isinstance(mask, str | os.PathLike):
        mask = read_mask(mask)
    if isinstance(mask, Image.Image):
        picture = read_image(mask, "mask").transpose(2, 0, 1)
        white = 255.0
        values = torch.from_numpy(np.array(picture[:1] if (picture == picture[:1]).all() else picture))
    elif isinstance(mask, Tensor | np.ndarray):
        values = array("mask", mask, what="truth values or numbers")
        if values.dtype == torch.uint8 and values.numel() and int(values.max()) == 255:
            white = 255.0
    else:
        raise InvdiffError(f"mask must be a tensor, a numpy array, a PIL image or the path to one, got {shown(mask)}")
    if values.ndim not in (2, 3, 4) or values.numel() == 0:
        raise InvdiffError(
            "mask must be (H, W), (1, H, W), (C, H, W), (1, 1, H, W), (1, C, H, W), (B, 1, H, W) or (B, C, H, W), "
            f"got shape {tuple(values.shape)}"
        )
    if values.shape[-1] in (1, 3, 4) and values.ndim >= 3 and values.shape[-3] > 4:
        raise InvdiffError(f"mask must have its channels first, (C, H, W), got shape {tuple(values.shape)}")
    if values.dtype == torch.bool:
        known = values.clone()
    else:
        if bool(torch.isnan(values).any()):
            raise InvdiffError("mask must be 1 (known) or 0 (missing) at every pixel, got NaN")
        known = values == white
        if not bool((known | (values == 0)).all()):
            other = float(values[~(known | (values == 0))].reshape(-1)[0])
            raise InvdiffError(
                f"mask must be {white:g} (known) or 0 (missing) at every pixel, got values other than these (one is {other:g}). "
                f"Threshold a soft mask first, for example Mask(mask > {white / 2:g})."
            )
    with torch.inference_mode(False):
        return known.clone().reshape((1,) * (4 - known.ndim) + tuple(known.shape))
