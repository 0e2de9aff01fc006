"""Masks of every kind and size, from a seed: bool `(H, W)`, True (1, white) = known, False (0, black) = missing.

`wide`, `narrow`, `half`, `expand`, `alternating_lines` and `super_resolve` are in the manner of the six test masks of
Lugmayr et al., RePaint (CVPR 2022), the brush strokes of which follow Suvorov et al., LaMa (WACV 2022); they are
drawn anew, not copied.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, isqrt
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from invdiff.checks import MOST_PIXELS, real, shape_of, shown, whole
from invdiff.errors import InvdiffError
from invdiff.operators.options import called
from invdiff.registry import Registry

Size = int | tuple[int, int]
Generator = Callable[..., Tensor]


def _generator_of_masks(name: str, function: Any) -> Generator:
    if not callable(function):
        raise InvdiffError(
            f"mask {name!r} must be a function of (size, seed) that returns a mask, got {shown(function)}"
        )
    return function  # type: ignore[no-any-return]


MASKS: Registry[Generator] = Registry(
    "mask", "invdiff.masks", _generator_of_masks, lambda name: name.lower().replace("-", "_")
)
"""Every mask generator by name: ``f(size, seed, **options)`` with `size` = `(H, W)`, returns bool `(H, W)`."""


def register_mask(name: str) -> Callable[[Generator], Generator]:
    """Decorator that makes a mask generator known as `name` to `make_mask`, the command line and the suites.

    Raises:
        InvdiffError: The name is taken by another generator.
    """
    return lambda function: MASKS.add(name, function)


def wide(size: Size, seed: int = 0) -> Tensor:
    """A few broad brush strokes are missing."""
    return _strokes(size, seed, count=(2, 4), width=(0.12, 0.22), length=(0.25, 0.5))


def narrow(size: Size, seed: int = 0) -> Tensor:
    """Many thin brush strokes are missing."""
    return _strokes(size, seed, count=(6, 10), width=(0.03, 0.06), length=(0.15, 0.35))


def half(size: Size, seed: int = 0, fraction_known: float = 0.5) -> Tensor:
    """The right half is missing; `fraction_known` of the columns, from the left, are known."""
    height, width = checked_size(size)
    fraction_known = real("fraction_known", fraction_known, 0, 1)
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[:, : int(fraction_known * width + 1e-9)] = True
    return mask


def expand(size: Size, seed: int = 0) -> Tensor:
    """Only the middle quarter of the area is known."""
    return ~box(size)


def box(size: Size, seed: int = 0, fraction: float = 0.5) -> Tensor:
    """A box in the middle is missing, of `fraction` of each side."""
    height, width = checked_size(size)
    fraction = real("fraction", fraction, 0, 1)
    tall, broad = round(fraction * height), round(fraction * width)
    top, left = (height - tall) // 2, (width - broad) // 2
    mask = torch.ones(height, width, dtype=torch.bool)
    mask[top : top + tall, left : left + broad] = False
    return mask


def alternating_lines(size: Size, seed: int = 0) -> Tensor:
    """Every second row is missing; the first is known."""
    height, width = checked_size(size)
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[::2] = True
    return mask


def super_resolve(size: Size, seed: int = 0, scale: int = 2) -> Tensor:
    """One pixel of every `scale x scale` is known, the first: what `SuperResolution(scale, "nearest")` measures."""
    height, width = checked_size(size)
    scale = whole("scale", scale, low=1)
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[:: min(scale, height), :: min(scale, width)] = True
    return mask


def random_pixels(size: Size, seed: int = 0, fraction_known: float = 0.5) -> Tensor:
    """Pixels are known at random, exactly `round(fraction_known * H * W)` of them."""
    height, width = checked_size(size)
    fraction_known = real("fraction_known", fraction_known, 0, 1)
    known = np.zeros(height * width, dtype=bool)
    known[_generator(seed).permutation(height * width)[: round(fraction_known * height * width)]] = True
    return torch.from_numpy(known.reshape(height, width))


def scan_lines(size: Size, seed: int = 0, period: float = 0.125, widest: float = 0.8, slope: float = 0.2) -> Tensor:
    """Wedge-shaped gaps in the manner of a satellite whose scan-line corrector is off, at any scale; `slc_off` has Landsat 7's own.

    Tilted stripes are missing: none in the middle of the swath, wider towards its left and right edges.

    Args:
        size: Height and width, or one int for both.
        seed: Shifts the stripes along their period.
        period: Distance between stripes, as a share of the height.
        widest: Share of a period that is missing at the edges.
        slope: Rows that a stripe climbs per column.
    """
    height, width = checked_size(size)
    period, widest = real("period", period, above=0, high=1e6), real("widest", widest, 0, 1)
    slope = real("slope", slope, -1e6, 1e6)
    spacing = max(period * height, 2.0)
    rows, columns = np.mgrid[:height, :width].astype(float)
    phase = ((rows + slope * columns) / spacing + _generator(seed).uniform()) % 1.0
    from_middle = np.abs(columns - (width - 1) / 2) / max((width - 1) / 2, 0.5)
    gap = widest * np.clip((from_middle - 0.15) / 0.85, 0.0, 1.0)
    return torch.from_numpy(np.abs(phase - 0.5) * 2 >= gap)


def slc_off(
    size: Size, seed: int = 0, swath: float | None = None, off_nadir: float = 0.0, tilt: float = 0.19
) -> Tensor:
    """The gaps of Landsat 7 since 2003, pixel for pixel: none at the ground track, 14 lines of every 32.5 at the swath's edges.

    The mirror sweeps a band of lines eastwards, the next one westwards, while the satellite moves on. With the scan-line
    corrector off nothing straightens that zigzag: bands overlap on one side and leave a wedge on the other, in turns, so that the
    gaps on the left lie half a period from those on the right. Averaged over the swath 22 % are lost.

    Args:
        size: Height and width, or one int for both.
        seed: Shifts the gaps along the track.
        swath: Pixels from edge to edge, about 6100 in a scene of 30 m; None for the picture's width, which shows the wedges whole
            (squeezed sideways, the gaps' height still in lines of 30 m).
        off_nadir: Pixels from the ground track to the middle of the picture, to the east; beyond the edge it is as at the edge.
        tilt: Rows that a line falls per column in a picture whose top is north: 0.19 at a latitude of 40 degrees, 0 along
            the track.

    Source: 22 % lost, wedges from the centre to the edges: U.S. Geological Survey, Landsat 7 SLC-off products; the zigzag from
    the corrector's purpose.
    """
    height, width = checked_size(size)
    swath = float(width) if swath is None else real("swath", swath, low=1, high=1e6)
    off_nadir, tilt = real("off_nadir", off_nadir, -1e6, 1e6), real("tilt", tilt, -1e3, 1e3)
    rows, columns = np.mgrid[:height, :width].astype(float)
    rows, columns = rows - (height - 1) / 2, columns - (width - 1) / 2 + off_nadir
    across = np.clip(2 * (columns + tilt * rows) / swath, -1.0, 1.0)
    along = rows - tilt * columns + 2 * _SCAN * _generator(seed).uniform()
    eastward = (along - _DRIFT / 2 * across) % (2 * _SCAN) < _SCAN
    westward = (along + _DRIFT / 2 * across + _SCAN) % (2 * _SCAN) < _SCAN
    return torch.from_numpy(eastward | westward)


_SCAN = 16.25  # lines of one sweep of ETM+'s mirror, and from one sweep to the next
_DRIFT = 14.0  # lines that the satellite moves on while a sweep goes from edge to edge


def text(size: Size, seed: int = 0, string: str = "invdiff", lines: int | None = None) -> Tensor:
    """Pixels under a text are missing.

    Args:
        size: Height and width, or one int for both.
        seed: Shifts the lines sideways.
        string: What is written, over and over, across the image.
        lines: How many lines; None for as many as stay legible.
    """
    height, width = checked_size(size)
    if not isinstance(string, str) or not string.strip() or not string.isprintable() or len(string) > 1000:
        raise InvdiffError(f"string must be a line of 1 to 1,000 characters, not all blank, got {shown(string)}")
    count = max(1, min(5, height // 14)) if lines is None else whole("lines", lines, 1, height)
    generator = _generator(seed)
    pitch = height / count
    canvas = Image.new("L", (width, height), 255)
    draw = ImageDraw.Draw(canvas)
    draw.fontmode = "1"
    font = ImageFont.load_default(size=max(6.0, 0.8 * pitch))
    once = max(1.0, draw.textlength(string + " ", font=font))
    written = (string + " ") * (ceil(width / once) + 2)
    for line in range(count):
        draw.text((-generator.uniform() * once, (line + 0.5) * pitch), written, fill=0, font=font, anchor="lm")
    return torch.from_numpy(np.array(canvas) > 127)


for _function in (
    alternating_lines,
    box,
    expand,
    half,
    narrow,
    random_pixels,
    scan_lines,
    slc_off,
    super_resolve,
    text,
    wide,
):
    register_mask(_function.__name__)(_function)


def mask_names() -> list[str]:
    """Names that `make_mask` takes."""
    return sorted(MASKS.names())


def make_mask(name: str, size: Size, seed: int = 0, **options: Any) -> Tensor:
    """The mask called `name`.

    Args:
        name: One of `mask_names()`.
        size: Height and width, or one int for both.
        seed: Of what is random in it; masks without randomness ignore it.
        options: Further arguments of the function of that name.

    Returns:
        Bool `(H, W)`, True = known.

    Raises:
        InvdiffError: For an unknown name, an option that the mask doesn't have, or a size that isn't positive.
    """
    size = checked_size(size)
    made = called(MASKS.get(name), f"mask {name!r}", options, size, whole("seed", seed, low=0))
    if not isinstance(made, Tensor) or made.dtype != torch.bool or tuple(made.shape) != size:
        got = f"{made.dtype} of shape {tuple(made.shape)}" if isinstance(made, Tensor) else shown(made)
        raise InvdiffError(f"mask {name!r} must return a bool tensor of shape {size}, got {got}")
    return made


def checked_size(size: Size, name: str = "size") -> tuple[int, int]:
    """(height, width) of a size written as one number or as a pair.

    Raises:
        InvdiffError: it is neither, or has more than `MOST_PIXELS` pixels.
    """
    sides = (size, size) if isinstance(size, int | np.integer) and not isinstance(size, bool) else size
    height, width = shape_of(name, sides, "height, width")
    return height, width


def _generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(whole("seed", seed, low=0))


def _strokes(
    size: Size, seed: int, count: tuple[int, int], width: tuple[float, float], length: tuple[float, float]
) -> Tensor:
    """Everything but some bent brush strokes; widths and lengths are shares of the shorter side."""
    height, breadth = checked_size(size)
    generator = _generator(seed)
    side = min(height, breadth)
    detail = max(1, ceil(256 / side))  # drawn large, so that a seed gives the same strokes at every size
    detail = max(1, min(detail, isqrt(MOST_PIXELS // (height * breadth))))  # unless one side is thousands of the other
    canvas = Image.new("L", (breadth * detail, height * detail), 255)
    draw = ImageDraw.Draw(canvas)
    unit = side * detail
    for _ in range(generator.integers(count[0], count[1] + 1)):
        brush = generator.uniform(*width) * unit
        position = generator.uniform(0.05, 0.95, size=2) * (breadth * detail, height * detail)
        heading = generator.uniform(0, 2 * np.pi)
        for _ in range(generator.integers(2, 6)):
            heading += generator.uniform(-0.9, 0.9) + (np.pi if generator.uniform() < 0.3 else 0.0)
            target = position + generator.uniform(*length) * unit * np.array([np.cos(heading), np.sin(heading)])
            target = np.clip(target, 0, (breadth * detail - 1, height * detail - 1))
            draw.line([*position, *target], fill=0, width=max(1, round(brush)))
            for x, y in (position, target):
                draw.ellipse([x - brush / 2, y - brush / 2, x + brush / 2, y + brush / 2], fill=0)
            position = target
    small = np.array(canvas).reshape(height, detail, breadth, detail).mean(axis=(1, 3))
    return torch.from_numpy(small > 127)
