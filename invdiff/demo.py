"""The demonstration: one real photograph, three tasks, every sampler, one figure and one table."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from invdiff.backbones import DEFAULT_BACKBONE
from invdiff.backbones.base import Backbone
from invdiff.data import chelsea64
from invdiff.files import make_folder
from invdiff.images import from_pil
from invdiff.metrics import misfit, psnr, ssim
from invdiff.operators import Colorization, Mask, SuperResolution
from invdiff.operators.base import LinearOperator
from invdiff.operators.masks import half
from invdiff.samplers import sampler_class
from invdiff.solution import check_output
from invdiff.solve import resolve_backbone, solve

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
