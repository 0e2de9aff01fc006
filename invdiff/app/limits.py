"""What a visitor may hand in, and the sentence for everything else."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from invdiff.errors import InvdiffError, InvdiffWarning
from invdiff.images import found_image
from invdiff.operators.mask import read_mask
from invdiff.photos import Photo

LARGEST_SIDE = 20_000
SMALLEST_SIDE = 8


@dataclass(frozen=True)
class Limits:
    """Of one server.

    Attributes:
        megabytes: of an upload.
        megapixels: that are worked on; larger photos are shrunken.
        most_megapixels: of a file that is opened at all.
        samplers: side by side.
        samples: of each.
        calls: of the network, all samplers and samples together.
        backbones: paths of backbones that may be chosen beside those that have names.
    """

    megabytes: float = 30.0
    megapixels: float = 2.0
    most_megapixels: float = 100.0
    samplers: int = 6
    samples: int = 8
    calls: int = 50_000
    backbones: tuple[str, ...] = ()


def read_photo(path: str | os.PathLike[str], limits: Limits) -> tuple[Image.Image, list[str]]:
    """The photo in a file as an upright 8-bit picture, mode L or RGB, and what was done to it, as sentences.

    Raises:
        InvdiffError: no picture, a damaged one, too large or too small a one.
    """
    said: list[str] = []
    with _by_its_name(path):
        _check_size(path, "photo", limits)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", InvdiffWarning)
            photo = Photo.read(path)
    for warning in caught:
        if issubclass(warning.category, InvdiffWarning):
            said.append(str(warning.message).replace(str(path), Path(path).name) + ".")
    if photo.alpha is not None:
        said.append("Its transparency is left out.")
    pixels = photo.pixels if photo.pixels.dtype == np.uint8 else np.round(photo.pixels / 257.0).astype(np.uint8)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    if min(image.size) < SMALLEST_SIDE:
        raise InvdiffError(
            f"photo must be at least {SMALLEST_SIDE} pixels wide and high, got {image.width}x{image.height}"
        )
    smaller = shrunken(image, limits.megapixels)
    if smaller.size != image.size:
        said.append(
            f"The photo has {image.width * image.height / 1e6:.1f} megapixels ({image.width}x{image.height}); this server works on "
            f"{limits.megapixels:g} at most, so it was shrunken to {smaller.width}x{smaller.height}."
        )
    return smaller, said


def shrunken(image: Image.Image, megapixels: float) -> Image.Image:
    """The picture, smaller where it has more pixels than that."""
    factor = (megapixels * 1e6 / (image.width * image.height)) ** 0.5
    if factor >= 1:
        return image
    size = max(1, int(image.width * factor)), max(1, int(image.height * factor))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def read_mask_file(path: str | os.PathLike[str], size: tuple[int, int], limits: Limits) -> tuple[Tensor, list[str]]:
    """The known pixels (H, W) in a mask's file, white = known, brought to the photo's size, and what was done.

    Args:
        path: of the file.
        size: (H, W) of the photo that is worked on.
        limits: of the server.

    Raises:
        InvdiffError: no picture, greys in between, or another shape than the photo's.
    """
    with _by_its_name(path):
        _check_size(path, "mask", limits)
        known = read_mask(Path(path))
    if tuple(known.shape) == size:
        return known, []
    height, width = known.shape
    if abs(width / height - size[1] / size[0]) > 0.02 * size[1] / size[0]:
        raise InvdiffError(
            f"mask must have the photo's shape, {size[1]}x{size[0]} or a multiple of it, got {width}x{height}"
        )
    return resized_mask(known, size), [f"The mask was brought from {width}x{height} to {size[1]}x{size[0]}."]


def resized_mask(known: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask (H, W) at another size: a pixel that a missing one has a share in is missing."""
    missing = (~known).float()[None, None]
    if known.shape[0] >= size[0] and known.shape[1] >= size[1]:
        found = torch.nn.functional.adaptive_max_pool2d(missing, size)
    else:
        found = torch.nn.functional.interpolate(missing, size, mode="nearest")
    return found[0, 0] == 0


@contextmanager
def _by_its_name(path: str | os.PathLike[str]) -> Iterator[None]:
    """Messages call the file what its owner does; where it lies on the server is nobody's business."""
    try:
        yield
    except InvdiffError as error:
        raise InvdiffError(str(error).replace(str(path), Path(path).name)) from None


def _check_size(path: str | os.PathLike[str], what: str, limits: Limits) -> None:
    """Refuse by the number of bytes, and by the size that the head of the file tells, before anything is decoded."""
    named = f"{what} {Path(path).name!r}"
    if not os.path.isfile(path):
        raise InvdiffError(f"{named} must be a file, got a folder or nothing of that name")
    size = os.path.getsize(path)
    if size == 0:
        raise InvdiffError(f"{named} is empty")
    if size > limits.megabytes * 1e6:
        raise InvdiffError(f"{named} has {size / 1e6:.1f} MB; at most {limits.megabytes:g} MB are taken")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image, _ = found_image(path, what)
    with image:
        width, height = image.size
    if max(width, height) > LARGEST_SIDE or width * height > limits.most_megapixels * 1e6:
        raise InvdiffError(
            f"{named} has {width}x{height} pixels; at most {limits.most_megapixels:g} megapixels are taken, "
            f"{LARGEST_SIDE:,} to a side"
        )
