"""Figures and animations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from invdiff.checks import real, whole
from invdiff.errors import InvdiffError
from invdiff.files import atomic_write
from invdiff.images import to_pil
from invdiff.solution import check_output

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from invdiff.solution import Solution


def new_figure(width: float, height: float) -> Figure:
    """A figure that no window system and no global state knows of, inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150)
    FigureCanvasAgg(figure)
    return figure


FIGURES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".pdf", ".svg")
"""Endings of files that a figure can be written to."""


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure, whole or not at all; the ending chooses the format, one of `FIGURES`.

    Raises:
        InvdiffError: another ending, or a place that cannot be written.
    """
    path = check_output(path, FIGURES)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower())
    return path


def picture_grid(
    rows: Sequence[Sequence[Tensor | None]],
    columns: Sequence[str],
    labels: Sequence[str],
    captions: Sequence[Sequence[str]] | None = None,
    title: str = "",
    size: float = 1.25,
) -> Figure:
    """Pictures in rows and columns.

    Args:
        rows: (C, H, W) tensors in [0, 1], of any size (one and three channels); None leaves a gap.
        columns: heads.
        labels: one per row.
        captions: below the pictures.
        title: above all.
        size: inches per picture.
    """
    high, wide = len(rows), len(columns)
    step = size + (0.2 if captions else 0.06)
    top = 0.32 + (0.32 if title else 0)
    figure = new_figure(0.75 + wide * (size + 0.06), top + high * step)
    total_w, total_h = figure.get_size_inches()
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            left, bottom = 0.7 + j * (size + 0.06), total_h - top - i * step - size
            axes = figure.add_axes((left / total_w, bottom / total_h, size / total_w, size / total_h))
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set_visible(False)
            if picture is None:
                axes.set_axis_off()
            else:
                axes.imshow(
                    np.asarray(to_pil(picture)), cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto"
                )
            if i == 0:
                axes.set_title(columns[j], fontsize=8.5, pad=4)
            if j == 0:
                axes.set_ylabel(labels[i], fontsize=8.5, labelpad=5)
            if captions and captions[i][j]:
                axes.set_xlabel(captions[i][j], fontsize=7.5, labelpad=2, color="0.3")
    if title:
        figure.text(0.5, 1 - 0.16 / total_h, title, ha="center", va="center", fontsize=10.5)
    return figure


def show_missing(y: Tensor, mask: Tensor) -> Tensor:
    """A masked picture with its unknown pixels as a light checkerboard, (C, H, W) in [0, 1]."""
    height, width = y.shape[-2:]
    cells = np.add.outer(np.arange(height) // 4, np.arange(width) // 4) % 2
    board = y.new_tensor(0.80 + 0.12 * cells)
    return y * mask + board * (1 - mask)


def plot_solution(solution: Solution, most: int = 6) -> Figure:
    """Measurement, restorations and, with several samples, their mean and spread: one row per measurement.

    Args:
        solution: what `solve` returned.
        most: samples and rows shown.
    """
    low, high = solution.value_range
    unit = lambda x: (x - low) / (high - low)  # noqa: E731
    shown = min(most, solution.n_samples)
    columns = ["measurement", *([f"sample {j}" for j in range(shown)] if shown > 1 else ["restoration"])]
    several = solution.n_samples > 1
    if several:
        columns += ["mean", "spread"]
    rows: list[list[Tensor]] = []
    for i, samples in enumerate(solution.samples[:most]):
        row = [unit(solution.y[i]), *(unit(x) for x in samples[:shown])]
        if several:
            spread = unit(low + solution.std[i]).mean(0, keepdim=True)
            row += [unit(solution.mean[i]), spread / spread.max().clamp(min=1e-9)]
        rows.append(row)
    labels = [f"image {i}" if len(rows) > 1 else "" for i in range(len(rows))]
    return picture_grid(
        rows, columns, labels, title=f"{solution.settings.get('sampler')}, {solution.nfe} network calls"
    )


def animate(
    solution: Solution, path: str | Path, *, seconds: float = 6.0, rate: int = 10, scale: int | None = None
) -> Path:
    """Write the run as an animated GIF: x_t and the clean estimate x0 side by side, the clock drawn below.

    Args:
        solution: of ``solve(..., keep_trajectory=True)``; its first image is shown.
        path: ends in .gif.
        seconds: length, without the hold at the end.
        rate: pictures per second; moves are skipped evenly to fit.
        scale: enlargement; by default to about 192 pixels.

    Returns:
        The path.

    Raises:
        InvdiffError: no trajectory was kept, or another ending than .gif.
    """
    seconds, rate = real("seconds", seconds, above=0, high=3600), whole("rate", rate, 1, 50)
    scale = None if scale is None else whole("scale", scale, 1, 64)
    if not solution.trajectory:
        raise InvdiffError("nothing to animate: the run kept no trajectory; solve(..., keep_trajectory=True)")
    path = check_output(path, (".gif",))
    frames = solution.trajectory
    count = max(2, min(len(frames), round(seconds * rate)))
    chosen = sorted({round(i * (len(frames) - 1) / (count - 1)) for i in range(count)}) if len(frames) > 1 else [0]
    side = frames[0].x.shape[-1]
    scale = scale or max(1, round(192 / side))
    times = [frames[0].t, *(f.s for f in frames)]
    pictures = [_animation_frame(frames[i], times, i + 1, scale) for i in chosen]
    palette = pictures[-1].quantize(192, method=Image.Quantize.MEDIANCUT)
    small = [p.quantize(palette=palette, dither=Image.Dither.NONE) for p in pictures]
    durations = [round(1000 / rate)] * (len(small) - 1) + [1500]
    with atomic_write(path) as temporary:
        small[0].save(
            temporary, format="GIF", save_all=True, append_images=small[1:], duration=durations, loop=0, optimize=True
        )
    return path


def _animation_frame(frame: Any, times: list[int], reached: int, scale: int) -> Image.Image:
    """One picture: the state, the clean estimate, and the path through time up to here."""
    state = [to_pil((x[0].float() + 1) / 2) for x in (frame.x / max(1.0, float(frame.x[0].std()) * 1.5), frame.x0)]
    width, height = (scale * n for n in state[0].size)
    gap, clock = 8, 56
    sheet = Image.new("RGB", (2 * width + gap, height + 18 + clock), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (picture, name) in enumerate(zip(state, ("x_t", "x0"), strict=True)):
        left = i * (width + gap)
        sheet.paste(picture.convert("RGB").resize((width, height), Image.Resampling.NEAREST), (left, 18))
        draw.text((left + width / 2, 9), name, fill="black", anchor="mm")
    top, bottom = height + 24, height + 18 + clock - 6
    most = max(times)
    spot = lambda k: (  # noqa: E731
        4 + (sheet.width - 9) * k / max(1, len(times) - 1),
        bottom - (bottom - top) * (times[k] + 1) / (most + 1),
    )
    line = [spot(k) for k in range(len(times))]
    draw.line(line, fill=(205, 205, 205), width=1)
    draw.line(line[: reached + 1], fill=(32, 96, 200), width=2)
    x, y = line[reached]
    draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=(220, 60, 40))
    draw.text((sheet.width - 4, top), f"t = {frame.s}", fill="black", anchor="ra")
    return sheet
