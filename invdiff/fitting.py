"""From the words of a command line to an operator, and from a picture of any size to the size of a backbone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from invdiff.errors import InvdiffError, near_match
from invdiff.files import atomic_write
from invdiff.images import open_image
from invdiff.operators import (
    Blur,
    Colorization,
    Fourier,
    Identity,
    Mask,
    SuperResolution,
    WalshHadamard,
    gaussian_kernel,
    get_operator,
    motion_kernel,
    operator_names,
    uniform_kernel,
)
from invdiff.operators.base import LinearOperator
from invdiff.operators.fourier import fourier_mask
from invdiff.operators.masks import make_mask, mask_names
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
            "stretched) or --fit pad (a smaller photo is set in a frame and cut out again), or choose a backbone of another "
            "size (--backbone)"
        )
    if fit in ("resize", "cover"):
        scale = min(given[0] / height, given[1] / width)
        high, wide = (float(n) for n in given) if fit == "resize" else (scale * height, scale * width)
        left, top = (given[1] - wide) / 2, (given[0] - high) / 2
        box = (left, top, left + wide, top + high)
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


@dataclass(frozen=True)
class OperatorSpec:
    """An operator in the words of the command line; see `invdiff solve --help`."""

    name: str
    mask: str | None = None
    invert_mask: bool = False
    scale: int = 4
    kernel: str | None = None
    weights: str = "mean"
    ratio: float = 0.5
    seed: int = 0

    @property
    def known_name(self) -> str:
        """The registered name that `name` stands for."""
        short = {
            "sr": "super_resolution",
            "superresolution": "super_resolution",
            "denoise": "identity",
            "denoising": "identity",
            "walsh_hadamard": "compressed_sensing",
        }
        name = self.name.lower().replace("-", "_")
        name = short.get(name, name)
        get_operator(name)  # raises with the near match
        return name

    def picture_size(self, size: tuple[int, int], simulate: bool) -> tuple[int, int] | None:
        """(height, width) of the picture that is handed over; None where the measurement is no picture."""
        name = self.known_name
        if simulate or name in ("mask", "colorization", "blur", "identity"):
            return size
        if name == "super_resolution":
            return (-(-size[0] // self.scale), -(-size[1] // self.scale))
        return None

    def make(self, size: tuple[int, int], placed: Placement) -> LinearOperator:
        """The operator for images of `size` (height, width); a mask file is placed as the picture was.

        Raises:
            InvdiffError: an unknown name, or a value that the operator doesn't take.
        """
        name = self.known_name
        if name == "mask":
            return Mask(self._mask(size, placed))
        if name == "super_resolution":
            return SuperResolution(self.scale, self.kernel or "nearest")
        if name == "colorization":
            return Colorization(self.weights if self.weights in ("mean", "luma") else _numbers(self.weights))
        if name == "blur":
            return Blur(self._blur(size))
        if name == "identity":
            return Identity()
        if name == "compressed_sensing":
            return WalshHadamard(self.ratio, self.seed)
        if name == "fourier":
            return Fourier(fourier_mask(size, seed=self.seed))
        try:
            return get_operator(name)()
        except TypeError as error:
            raise InvdiffError(
                f"operator {name!r} needs arguments that the command line has no words for ({error}); use the Python interface. "
                f"Ready here: {', '.join(operator_names())}"
            ) from None

    def _mask(self, size: tuple[int, int], placed: Placement) -> torch.Tensor:
        if self.mask is None:
            raise InvdiffError(
                f"--mask is missing: a file (white = known, black = missing) or one of {', '.join(mask_names())}"
            )
        if self.mask in mask_names() and not Path(self.mask).exists():
            known = make_mask(self.mask, size, seed=self.seed)
            return ~known if self.invert_mask else known
        if not Path(self.mask).exists() and "." not in self.mask and "/" not in self.mask:
            raise InvdiffError(
                f"--mask {self.mask!r} is neither a file nor one of {', '.join(mask_names())}.{near_match(self.mask, mask_names())}"
            )
        known = _black_or_white(open_image(self.mask, "mask"), self.mask)
        if self.invert_mask:
            known = ~known
        if tuple(known.shape) == placed.original:
            return placed.mask(known)
        if tuple(known.shape) == size:
            return known
        raise InvdiffError(
            f"mask {self.mask!r} is {known.shape[1]}x{known.shape[0]} pixels, but the photo is "
            f"{placed.original[1]}x{placed.original[0]}; both must have one size"
        )

    def _blur(self, size: tuple[int, int]) -> torch.Tensor:
        kind = self.kernel or "gaussian"
        side = min(9, *size) // 2 * 2 - 1 if min(size) < 9 else 9
        if kind == "gaussian":
            return gaussian_kernel(side, side / 6)
        if kind == "uniform":
            return uniform_kernel(side)
        if kind == "motion":
            return motion_kernel(side, seed=self.seed)
        if not Path(kind).exists():
            raise InvdiffError(f"--kernel for a blur must be gaussian, uniform, motion or an image file, got {kind!r}")
        weights = torch.from_numpy(np.asarray(ImageOps.grayscale(open_image(kind, "kernel"))).astype(np.float64))
        if float(weights.sum()) == 0:
            raise InvdiffError(f"kernel {kind!r} is black: it has no weight anywhere")
        return weights / weights.sum()


def _black_or_white(picture: Image.Image, name: str) -> torch.Tensor:
    """(H, W) bool of a mask file; what compression left near black and white counts as such.

    Raises:
        InvdiffError: greys in between.
    """
    grey = np.asarray(ImageOps.grayscale(picture))
    between = float(((grey > 48) & (grey < 207)).mean())
    if between > 0.01:
        raise InvdiffError(
            f"mask {name!r} is soft: {100 * between:.0f} % of it is neither black nor white. A pixel is known (white) or missing "
            "(black); draw the mask with hard edges, or threshold it in an image editor"
        )
    return torch.from_numpy(grey > 127)


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


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InvdiffError(
            f"--weights must be mean, luma or three numbers such as 0.3,0.59,0.11; got {text!r}"
        ) from None
