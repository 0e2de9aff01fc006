"""From a picture of any size to the size of a backbone, and its mask with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from invdiff.errors import InvdiffError, near_match
from invdiff.files import atomic_write
from invdiff.operators.base import LinearOperator
from invdiff.operators.mask import read_mask
from invdiff.operators.masks import MASKS
from invdiff.pictures import middle
from invdiff.solution import Solution

FITS = ("cover", "crop", "pad", "resize")


@dataclass(frozen=True)
class Placement:
    """Where a picture came to lie in the backbone's frame.

    Attributes:
        how: "", "cover", "crop", "pad" or "resize".
        original: (height, width) before.
        size: (height, width) after.
        top, left: of the picture in the frame (pad), or of the frame in the picture (crop).
        box: (left, top, right, bottom) of the part of the picture that fills the frame (cover, resize).
    """

    how: str
    original: tuple[int, int]
    size: tuple[int, int]
    top: int = 0
    left: int = 0
    box: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)

    def mask(self, known: torch.Tensor) -> torch.Tensor:
        """A mask (H, W) of the original picture, placed alike: a pixel that a missing one has a share in is missing.

        Raises:
            InvdiffError: the frame shows nothing of what is missing.
        """
        array = known.numpy()
        if self.how == "pad":
            bottom, right = self.size[0] - self.original[0] - self.top, self.size[1] - self.original[1] - self.left
            array = np.pad(array, ((self.top, bottom), (self.left, right)), mode="reflect")
        elif self.how == "crop":
            array = array[self.top : self.top + self.size[0], self.left : self.left + self.size[1]]
        elif self.how in ("cover", "resize"):
            rows = _shares(self.original[0], self.size[0], self.box[1], self.box[3])
            columns = _shares(self.original[1], self.size[1], self.box[0], self.box[2])
            array = rows @ (~array).astype(np.float32) @ columns.T == 0
        if array.all() and not bool(known.all()):
            raise InvdiffError(
                f"--fit {self.how}: everything that is missing lies outside the middle that is kept, so there is nothing to "
                "restore; try --fit resize, crop the photo yourself, or take a backbone of any size"
            )
        return torch.from_numpy(array)


def _shares(before: int, after: int, start: float, end: float) -> np.ndarray:
    """(after, before), 1 where a pixel of an axis has a share in one of the scaled axis, else 0.

    Lanczos' window reaches 3 pixels of the coarser of the two sides, as Pillow carries it out.
    """
    scale = (end - start) / after
    centres = start + (np.arange(after) + 0.5) * scale
    return (np.abs(np.arange(before) + 0.5 - centres[:, None]) < 3 * max(scale, 1.0) + 0.5).astype(np.float32)


def fit_picture(image: Image.Image, size: tuple[int, int], fit: str | None) -> tuple[Image.Image, Placement]:
    """A picture of exactly `size` (height, width).

    Raises:
        InvdiffError: another size and no `fit`, an unknown one, or one that cannot serve.
    """
    height, width = size
    given = (image.height, image.width)
    if fit is not None and fit not in FITS:
        raise InvdiffError(f"--fit must be cover, crop, pad or resize, got {fit!r}.{near_match(fit, FITS)}")
    if given == size:
        return image, Placement("", given, size)
    if fit is None:
        raise InvdiffError(
            f"the photo is {given[1]}x{given[0]} pixels, but this backbone and operator take {width}x{height}. Say "
            "--fit cover (scaled, then its middle), --fit crop (its middle, full resolution), --fit resize (all of it, "
            "stretched) or --fit pad (a smaller photo is set in a frame and cut out again), or choose a backbone of "
            "another size (--backbone); in Python, invdiff.Windows(backbone) restores larger pictures by windows"
        )
    if fit in ("resize", "cover"):
        box = (0.0, 0.0, float(given[1]), float(given[0])) if fit == "resize" else middle(given, size)
        return image.resize((width, height), Image.Resampling.LANCZOS, box=box), Placement(fit, given, size, box=box)
    if fit == "crop":
        if given[0] < height or given[1] < width:
            raise InvdiffError(
                f"--fit crop needs a photo of at least {width}x{height}, got {given[1]}x{given[0]}; try --fit cover, pad or resize"
            )
        top, left = (given[0] - height) // 2, (given[1] - width) // 2
        return image.crop((left, top, left + width, top + height)), Placement("crop", given, size, top, left)
    if given[0] > height or given[1] > width:
        raise InvdiffError(
            f"--fit pad needs a photo of at most {width}x{height}, got {given[1]}x{given[0]}; try --fit cover, crop or resize"
        )
    if height - given[0] >= 2 * given[0] or width - given[1] >= 2 * given[1]:
        raise InvdiffError(
            f"--fit pad: a photo of {given[1]}x{given[0]} is too small for a frame of {width}x{height}; try --fit resize"
        )
    top, left = (height - given[0]) // 2, (width - given[1]) // 2
    array = np.asarray(image)
    edges = ((top, height - given[0] - top), (left, width - given[1] - left), (0, 0))[: array.ndim]
    return Image.fromarray(np.pad(array, edges, mode="reflect")), Placement("pad", given, size, top, left)


def placed_options(operator: type[LinearOperator], options: dict[str, Any], placed: Placement) -> dict[str, Any]:
    """The options of an operator for a photo that was placed: its masks' files (`LinearOperator.framed`) placed alike.

    Raises:
        InvdiffError: a file that is no mask, or of another size than the photo before or after.
    """
    options = dict(options)
    for name in operator.framed:
        path = options.get(name)
        if not isinstance(path, str) or path in MASKS or not Path(path).exists():
            continue
        known = read_mask(path)
        if tuple(known.shape) == placed.original:
            options[name] = placed.mask(known)
        elif tuple(known.shape) != placed.size:
            raise InvdiffError(
                f"{name} {path!r} is {known.shape[1]}x{known.shape[0]} pixels, but the photo is "
                f"{placed.original[1]}x{placed.original[0]}; both must have one size"
            )
    return options


def save(answer: Solution, output: Path, placed: Placement) -> list[Path]:
    """Write the restorations, a padded frame cut off again."""
    if placed.how != "pad" or output.suffix.lower() == ".npy":
        return answer.save(output)
    files = answer.save(output)
    high, wide = answer.x.shape[-2:]
    factor = high // placed.size[0] if placed.size[0] else 1
    box = (
        placed.left * factor,
        placed.top * factor,
        min(wide, (placed.left + placed.original[1]) * factor),
        min(high, (placed.top + placed.original[0]) * factor),
    )
    for file, image in zip(files, answer.images, strict=True):
        with atomic_write(file) as temporary:
            image.crop(box).save(temporary)
    return files
