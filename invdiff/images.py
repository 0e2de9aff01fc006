"""The border between pictures and tensors: files, PIL images, value ranges."""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from invdiff.checks import array, real, shown, whole
from invdiff.errors import InvdiffError, InvdiffWarning
from invdiff.files import check_readable, check_writable


@dataclass(frozen=True)
class Affine:
    """``model = scale * value + offset``: from the caller's values to model range [-1, 1]."""

    scale: float
    offset: float

    @classmethod
    def from_range(cls, value_range: Sequence[float]) -> Affine:
        """The map that takes (low, high) to (-1, 1)."""
        several = isinstance(value_range, np.ndarray | Tensor)
        ends = array("value_range", value_range, ndim=1).tolist() if several else value_range
        if not isinstance(ends, list | tuple) or len(ends) != 2:
            raise InvdiffError(f"value_range must be two numbers (black, white), got {shown(value_range)}")
        low, high = (real("value_range", end, -1e9, 1e9) for end in ends)
        if not high - low > 1e-6 * max(abs(low), abs(high)):
            raise InvdiffError(
                f"value_range must be (black, white) with black < white, apart enough to be told apart, got {shown(value_range)}"
            )
        return cls(2 / (high - low), -(high + low) / (high - low))

    def invert(self, model: float | Tensor) -> float | Tensor:
        """Back from model range to the caller's values."""
        return (model - self.offset) / self.scale


_MODES = {
    "RGBA": "has an alpha channel (RGBA); flatten it first, for example image.convert('RGB')",
    "LA": "has an alpha channel (LA); flatten it first, for example image.convert('L')",
    "PA": "is a palette image with transparency (PA); convert it first: image.convert('RGB')",
    "P": "is a palette image (P); convert it first: image.convert('RGB')",
    "CMYK": "is in CMYK, a print colour space; convert it first: image.convert('RGB')",
    "YCbCr": "is in YCbCr; convert it first: image.convert('RGB')",
    "LAB": "is in Lab; convert it first",
    "HSV": "is in HSV; convert it first: image.convert('RGB')",
    "F": "holds 32-bit floats (mode F); pass it as a numpy array with value_range instead",
    "I": "holds 16- or 32-bit integers (mode I); scale it to 8 bits, or pass a float array with value_range",
}


def found_image(source: str | os.PathLike[str] | Image.Image, argument: str = "image") -> tuple[Image.Image, str]:
    """A picture, not decoded yet, and what messages call it. Of several frames in a file the first is taken, with a warning.

    Raises:
        InvdiffError: missing file, directory, pipe, not an image, or one of more than some 180 megapixels.
    """
    if isinstance(source, Image.Image):
        return source, f"{argument} (a PIL image)"
    what = f"{argument} {str(source)!r}"
    path = check_readable(source, what, "an image file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # a photo may have 100 megapixels
            image = Image.open(path)
        frames = getattr(image, "n_frames", 1)
    except UnidentifiedImageError:
        raise InvdiffError(f"{what} is not an image file that can be read (PNG, JPEG, WebP, TIFF, BMP, ...)") from None
    except Image.DecompressionBombError as error:
        raise InvdiffError(f"{what} is too large: {error}") from None
    except Exception as error:  # decoders raise anything, from OSError to struct.error
        raise InvdiffError(f"{what} cannot be read: {error}") from None
    if frames > 1 and image.format != "MPO":  # phones keep a second, small picture in these
        warnings.warn(f"{what} holds {frames} frames; the first is taken", InvdiffWarning, stacklevel=3)
    return image, what


def decoded(image: Image.Image, what: str) -> Image.Image:
    """The picture with its pixels read.

    Raises:
        InvdiffError: a damaged or truncated file.
    """
    try:
        image.load()
    except Exception as error:
        raise InvdiffError(f"{what} is damaged or truncated: {error}") from None
    return image


def open_image(source: str | os.PathLike[str] | Image.Image, argument: str = "image") -> Image.Image:
    """A PIL image in mode L or RGB, fully decoded and upright: a rotation that the camera noted (EXIF) is applied.

    Of several frames the first is taken, with a warning.

    Raises:
        InvdiffError: missing file, directory, pipe, not an image, truncated, a mode that is neither grey nor RGB, or more than
            some 180 megapixels.
    """
    image, what = found_image(source, argument)
    mode = "I" if image.mode.startswith("I") else image.mode
    if mode == "1":
        image = image.convert("L")
    elif mode not in ("L", "RGB"):
        why = _MODES.get(mode, f"has mode {image.mode}")
        raise InvdiffError(f"{what} {why}. 8-bit grey (L) and RGB images are accepted.")
    if mode == "RGB" and image.info.get("transparency") is not None:
        raise InvdiffError(f"{what} has a transparent colour; flatten it first, for example onto white")
    return ImageOps.exif_transpose(decoded(image, what))


def read_image(
    source: str | os.PathLike[str] | Image.Image, argument: str = "image", channels: int | None = None
) -> np.ndarray:
    """(H, W, C) uint8 array of a picture with the wanted number of channels.

    A grey picture becomes three equal channels where three are wanted; a colour one whose three channels are equal
    becomes one where one is wanted.

    Raises:
        InvdiffError: see `open_image`; also a colour picture where a grey one is wanted.
    """
    array = np.asarray(open_image(source, argument))
    if array.ndim == 2:
        array = array[..., None]
    if channels == 3 and array.shape[-1] == 1:
        array = np.repeat(array, 3, -1)
    if channels == 1 and array.shape[-1] == 3:
        if np.ptp(array.astype(np.int16), axis=-1).max() > 0:
            raise InvdiffError(
                f"{argument} is a colour picture, but the measurement is grey (one channel). Pass the grey picture itself, or "
                "simulate a measurement of the colour one: operator.measure(x), or --simulate on the command line"
            )
        array = array[..., :1]
    return array


def to_pil(x: Tensor) -> Image.Image:
    """(C, H, W) in [0, 1] to an 8-bit PIL image, values outside clipped. One or three channels as they are, else the first."""
    array = (x.detach().float().cpu().clamp(0, 1) * 255).round().byte().numpy()
    if array.shape[0] == 3:
        return Image.fromarray(array.transpose(1, 2, 0))
    return Image.fromarray(array[0])


def can_be_written(ending: str) -> bool:
    """Whether Pillow writes colour pictures with this ending: it knows some by name only."""
    Image.init()
    try:
        Image.new("RGB", (1, 1)).save(io.BytesIO(), format=Image.registered_extensions()[ending])
    except (KeyError, OSError, ValueError):
        return False
    return True


def sample_sheet(images: Tensor, *, columns: int = 0, scale: int = 2, gap: int = 2) -> Image.Image:
    """Images side by side on white.

    Args:
        images: (N, 3 or 1, H, W), uint8 or in model range.
        columns: 0 makes the sheet about square.
        scale: pixels per pixel.
        gap: pixels between two images.
    """
    import torch

    tiles = images if images.dtype == torch.uint8 else ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    N, C, H, W = tiles.shape
    columns = columns or math.ceil(N**0.5)
    rows = math.ceil(N / columns)
    sheet = np.full((rows * (H * scale + gap) - gap, columns * (W * scale + gap) - gap, 3), 255, np.uint8)
    for i, tile in enumerate(tiles.expand(-1, 3 if C == 1 else C, -1, -1).permute(0, 2, 3, 1).cpu().numpy()):
        top, left = i // columns * (H * scale + gap), i % columns * (W * scale + gap)
        sheet[top : top + H * scale, left : left + W * scale] = tile.repeat(scale, 0).repeat(scale, 1)
    return Image.fromarray(sheet)


def save_grid(
    path: str | os.PathLike[str], *rows: Tensor, value_range: tuple[float, float] = (-1.0, 1.0), zoom: int = 3
) -> None:
    """Save batches of images as one picture, a row for each batch.

    Args:
        path: the ending says the format, such as ``.png``.
        *rows: each (B, C, H, W), grey or colour; heights and widths alike, shorter rows are filled up with black.
        value_range: black and white.
        zoom: every pixel becomes this many in both directions.

    Raises:
        InvdiffError: no rows, or images that do not fit together.
    """
    import torch

    if not can_be_written(check_writable(path).suffix.lower()):
        raise InvdiffError(f"output {str(path)!r} must end in .png, .jpg, .webp or another ending of pictures")
    zoom = whole("zoom", zoom, 1, 64)
    low, high = (Affine.from_range(value_range).invert(end) for end in (-1.0, 1.0))
    shapes = [tuple(row.shape) if isinstance(row, Tensor) else type(row).__name__ for row in rows]
    fit = all(len(s) == 4 and s[1] in (1, 3) and s[2:] == shapes[0][2:] for s in shapes if not isinstance(s, str))
    if not rows or any(isinstance(shape, str) for shape in shapes) or not fit:
        raise InvdiffError(f"rows must be batches (B, 1 or 3, H, W) of images of one size, got {shapes or 'none'}")
    most = max(shape[0] for shape in shapes)
    grid = torch.full((len(rows), most, 3, *shapes[0][2:]), -1.0, dtype=torch.float32)
    for line, row in zip(grid, rows, strict=True):
        line[: len(row)] = 2 * (row.detach().float().cpu() - low) / (high - low) - 1
    sample_sheet(grid.flatten(0, 1), columns=most, scale=zoom, gap=0).save(path)


def from_pil(image: Image.Image) -> Tensor:
    """(C, H, W) float32 in [0, 1] of an 8-bit grey or RGB image."""
    import torch

    return torch.from_numpy(read_image(image).astype(np.float32) / 255).movedim(-1, 0).contiguous()
