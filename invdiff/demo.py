"""The demonstration: a damaged photograph repaired, and a cat's face: three tasks, every sampler, one figure and one table."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch import Tensor

from invdiff.backbones import DEFAULT_BACKBONE
from invdiff.backbones.base import Backbone
from invdiff.data import chelsea64, raccoon
from invdiff.files import atomic_write, make_folder
from invdiff.images import from_pil
from invdiff.metrics import misfit, psnr, ssim
from invdiff.operators import Colorization, Mask, SuperResolution
from invdiff.operators.base import LinearOperator
from invdiff.operators.masks import half
from invdiff.samplers import sampler_class
from invdiff.solution import check_output
from invdiff.solve import resolve_backbone, solve

# ---- every sampler on a cat's face --------------------------------------------------------------------------------

SAMPLERS = ("replacement", "repaint", "ddnm", "ddnm+", "ddrm", "diffpir", "pigdm", "mcg", "dps")

# A few seconds each on two cores, instead of the papers' settings (`--full`).
FAST: dict[str, dict[str, Any]] = {
    "replacement": {"steps": 100},
    "repaint": {"steps": 50, "jump_length": 5, "jump_n_sample": 5},
    "ddnm": {"steps": 50},
    "ddnm+": {"steps": 50},
    "ddrm": {"steps": 20},
    "diffpir": {"steps": 50},
    "pigdm": {"steps": 50},
    "mcg": {"steps": 100},
    "dps": {"steps": 100},
}


@dataclass(frozen=True)
class Row:
    """One restoration of the demonstration."""

    task: str
    sampler: str
    psnr: float
    ssim: float
    misfit: float
    nfe: int
    seconds: float
    image: Tensor


def tasks(size: int = 64) -> dict[str, LinearOperator]:
    """Half of the face missing, colours missing, three quarters of the pixels of every row and column missing."""
    return {
        "half missing": Mask(half(size)),
        "colorization": Colorization(),
        "nearest ×4": SuperResolution(4, "nearest"),
    }


def run_demo(
    out: str | Path = "demo/comparison.png",
    *,
    full: bool = False,
    backbone: str | Backbone | None = None,
    seed: int = 0,
    on_row: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Restore Chelsea with every sampler and write the figure.

    Args:
        out: the figure, PNG; its folder is made.
        full: the papers' settings instead of the fast ones.
        backbone: a 64x64 one; the embedded default.
        seed: of the draws.
        on_row: called after every restoration.

    Returns:
        One `Row` per task and sampler.
    """
    out = Path(out)
    make_folder(out.parent, "out")
    check_output(out, (".png",))
    from invdiff.plotting import picture_grid, save_figure

    model = resolve_backbone(DEFAULT_BACKBONE if backbone is None else backbone)
    truth = from_pil(chelsea64())
    rows: list[Row] = []
    pictures, captions = [], []
    for task, operator in tasks().items():
        y = operator.measure(2 * truth[None] - 1)
        line = [_shown(operator, (y + 1) / 2)]
        below = [""]
        for name in SAMPLERS:
            settings = {} if full else FAST[name]
            started = time.perf_counter()
            answer = solve(operator, y, name, backbone=model, value_range=(-1, 1), seed=seed, **settings)
            x = (answer.x[0] + 1) / 2
            shown = x.clamp(0, 1)
            row = Row(
                task,
                name,
                float(psnr(shown[None], truth[None])[0]),
                float(ssim(shown[None], truth[None])[0]),
                float(misfit(answer.x, operator, y)[0]) / 2,  # of a range of 2, on a scale of [0, 1]
                answer.nfe,
                time.perf_counter() - started,
                x,
            )
            rows.append(row)
            line.append(x)
            below.append(f"{row.psnr:.1f} dB, {row.nfe} calls")
            if on_row is not None:
                on_row(row)
        pictures.append([*line, truth])
        captions.append([*below, ""])
    columns = ["measurement", *(sampler_class(name).__name__.replace("Plus", "+") for name in SAMPLERS), "truth"]
    figure = picture_grid(pictures, columns, list(tasks()), captions, size=1.2)
    save_figure(figure, out)
    return rows


def _shown(operator: LinearOperator, y: Tensor) -> Tensor:
    from invdiff.plotting import show_missing

    return show_missing(y[0], operator.mask[0].to(y.dtype)) if isinstance(operator, Mask) else y[0]


# ---- a photograph of any size -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Repair:
    """The damaged photograph and its restoration.

    Attributes:
        missing: share of the pixels that had to be filled.
        psnr: of the filled pixels alone, in dB.
        nfe: network calls.
        seconds: of the restoration.
        files: what was written: damaged photo, mask, restoration, and the two side by side.
    """

    missing: float
    psnr: float
    nfe: int
    seconds: float
    files: tuple[Path, ...]


def damaged(photo: Image.Image) -> tuple[Image.Image, Image.Image]:
    """A photo with a scratch, a caption and a date stamp painted on it, and the mask of what they hide (black = missing)."""
    width, height = photo.size
    unit = height / 480
    paint = Image.new("RGBA", photo.size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(paint)
    x = np.linspace(0, 1, 60)
    y = 0.12 + 0.72 * x + 0.012 * np.sin(21 * x) + 0.006 * np.sin(67 * x)
    scratch = [(float(a) * width, float(b) * height) for a, b in zip(x, y, strict=True)]
    draw.line(scratch, fill=(238, 232, 220, 255), width=max(1, round(6 * unit)), joint="curve")
    branch = [
        (0.52 * width, 0.505 * height),
        (0.58 * width, 0.40 * height),
        (0.66 * width, 0.33 * height),
        (0.83 * width, 0.02 * height),
    ]
    draw.line(branch, fill=(238, 232, 220, 255), width=max(1, round(3 * unit)), joint="curve")
    caption = ImageFont.load_default(size=30 * unit)
    draw.text(
        (0.03 * width, 0.955 * height), "Breakfast in the garden", fill=(255, 255, 255, 255), font=caption, anchor="ls"
    )
    stamp = ImageFont.load_default(size=22 * unit)
    draw.text((0.97 * width, 0.955 * height), "'98  7 14", fill=(255, 140, 40, 255), font=stamp, anchor="rs")
    hidden = paint.getchannel("A").point(lambda a: 255 if a else 0).filter(ImageFilter.MaxFilter(3))
    return Image.alpha_composite(photo.convert("RGBA"), paint).convert("RGB"), hidden.point(lambda a: 255 - a)


def repair_photo(out: str | Path = "demo", *, seed: int = 0, steps: int | None = None) -> Repair:
    """Damage the raccoon's photograph, restore it with the default backbone and sampler, and write all of it.

    Args:
        out: a folder, which is made.
        seed: of the draws.
        steps: of the sampler; its own number by default.
    """
    folder = Path(out)
    make_folder(folder, "out")
    photo = raccoon()
    broken, mask = damaged(photo)
    files = tuple(folder / f"{name}.png" for name in ("damaged", "mask", "repaired", "before-after"))
    started = time.perf_counter()
    answer = solve(Mask(mask), broken, seed=seed, steps=steps)
    seconds = time.perf_counter() - started
    repaired = answer.image
    sheet = Image.new("RGB", (2 * photo.width + 8, photo.height), "white")
    sheet.paste(broken, (0, 0))
    sheet.paste(repaired, (photo.width + 8, 0))
    for picture, file in zip((broken, mask, repaired, sheet), files, strict=True):
        with atomic_write(file) as temporary:
            picture.save(temporary, format="PNG")
    holes = np.asarray(mask) == 0
    off = (np.asarray(repaired, float) - np.asarray(photo, float))[holes] / 255
    return Repair(float(holes.mean()), float(-10 * np.log10(np.mean(off**2))), answer.nfe, seconds, files)
