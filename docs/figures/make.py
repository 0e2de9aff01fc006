"""Make every figure of the documentation again, from runs that anyone can repeat.

python docs/figures/make.py                     # all of them
python docs/figures/make.py --only hero,jumps   # some
python docs/figures/make.py --missing           # those whose file does not exist
python docs/figures/make.py --list

A figure is a function below, named after its file in docs/assets/figures; tables that belong to a figure go to docs/data.
The pictures are Chelsea (`invdiff.data.chelsea64`) and draws from the embedded backbones, nothing else.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
import torch
from PIL import Image
from torch import Tensor

import invdiff
from invdiff import Blur, Colorization, Mask, SuperResolution, make_mask, palette, sample, solve
from invdiff.backbones import NoiseSchedule, backbone_names, load_backbone
from invdiff.data import chelsea64, raccoon
from invdiff.demo import repair_photo
from invdiff.images import from_pil
from invdiff.operators import FunctionOperator, WalshHadamard, gaussian_kernel, mask_names
from invdiff.palette import BLUE, GREEN, GREY, ORANGE, PURPLE, RED
from invdiff.plotting import new_figure, picture_grid, show_missing
from invdiff.priors import GaussianBackbone, GaussianMixtureBackbone
from invdiff.samplers import jumps, network_calls

DOCS = Path(__file__).resolve().parent.parent
FIGURES = DOCS / "assets" / "figures"
DATA = DOCS / "data"

NAMES = {
    "replacement": "Replacement",
    "repaint": "RePaint",
    "ddnm": "DDNM",
    "ddnm+": "DDNM+",
    "ddrm": "DDRM",
    "diffpir": "DiffPIR",
    "pigdm": "PiGDM",
    "mcg": "MCG",
    "dps": "DPS",
}
COLOURS = {name: palette.look(name)[0] for name in NAMES}

_figures: dict[str, Callable[[], Any]] = {}


def figure(function: Callable[[], Any]) -> Callable[[], Any]:
    """Register a figure under the name of its function."""
    _figures[function.__name__] = function
    return function


# ---- what the figures share -------------------------------------------------------------------------------------


@cache
def backbone(name: str = "cats64") -> Any:
    return load_backbone(name)


@cache
def photo() -> Tensor:
    """Chelsea, (1, 3, 64, 64) in [0, 1]."""
    return from_pil(chelsea64())[None]


def model(x: Tensor) -> Tensor:
    """From [0, 1] to model range."""
    return 2 * x - 1


def unit(x: Tensor) -> Tensor:
    """From model range to [0, 1]."""
    return (x + 1) / 2


def level_noise(seed: int = 0, shape: Sequence[int] = (1, 3, 64, 64)) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def keep_data(name: str, rows: list[dict[str, Any]], settings: str = "") -> None:
    DATA.mkdir(exist_ok=True)
    content = {
        "command": f"python docs/figures/make.py --only {name}",
        "settings": settings,
        "version": invdiff.__version__,
        "rows": rows,
    }
    (DATA / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def psnr(x: Tensor, truth: Tensor) -> float:
    return float(-10 * torch.log10((x.clamp(0, 1) - truth).square().mean()))


def save(drawn: Any, name: str) -> Path:
    """A matplotlib figure as a compact PNG. A page's column shows some 7 inches, and on a fine screen more dots."""
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=150 if drawn.get_figwidth() <= 7.3 else 110, facecolor="white")
    image = Image.open(buffer).convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    path = FIGURES / f"{name}.png"
    image.save(path, optimize=True)
    return path


def save_vector(drawn: Any, name: str) -> None:
    """The figure as SVG with the same bytes every time; those of thousands of points stay pictures only."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "path"}):
        buffer = io.BytesIO()
        drawn.savefig(buffer, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
    if len(buffer.getvalue()) <= 200_000:
        (FIGURES / f"{name}.svg").write_bytes(buffer.getvalue())


def film(path: Path) -> Path:
    """An animation as MP4 beside the GIF, where `imageio-ffmpeg` is installed; plays in what lectures are given with."""
    try:
        import imageio_ffmpeg
    except ImportError:
        print(f"{path.stem}: no MP4, for imageio-ffmpeg is not installed", file=sys.stderr)
        return path
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", "-i", path, "-pix_fmt", "yuv420p", "-crf", "26",
               "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-movflags", "+faststart", path.with_suffix(".mp4")]  # fmt: skip
    subprocess.run(list(map(str, command)), check=True)
    return path


def axes_figure(width: float, height: float, columns: int = 1, rows: int = 1, **options: Any) -> tuple[Any, Any]:
    drawn = new_figure(width, height)
    axes = drawn.subplots(rows, columns, **options)
    for one in np.atleast_1d(axes).ravel():
        one.spines[["top", "right"]].set_visible(False)
        one.tick_params(labelsize=8)
    return drawn, axes


# ---- Start ------------------------------------------------------------------------------------------------------

# The settings of the pictures on the Start page and of the measurements: enough for each method to show its hand.
SHOWN: dict[str, dict[str, Any]] = {
    "replacement": {"steps": 100},
    "repaint": {"steps": 100, "jump_length": 5, "jump_n_sample": 5},
    "ddnm": {"steps": 100},
    "ddrm": {"steps": 20},
    "diffpir": {"steps": 50},
    "pigdm": {"steps": 100},
    "mcg": {"steps": 250},
    "dps": {"steps": 250},
}


@figure
def hero() -> Any:
    """One damaged photo and every sampler's answer."""
    mask = make_mask("wide", 64, seed=3)
    operator = Mask(mask)
    y = operator.measure(photo())
    pictures = [show_missing(y[0], mask.float()[None])]
    heads, captions = ["damaged"], [f"{100 * operator.known_fraction:.0f} % known"]
    for name, settings in SHOWN.items():
        answer = solve(operator, y, name, backbone=backbone(), seed=1, **settings)
        pictures.append(answer.x[0].clamp(0, 1))
        heads.append(NAMES[name])
        captions.append(f"{answer.nfe} calls, {psnr(answer.x, photo()):.1f} dB")
    pictures.append(photo()[0])
    heads.append("truth")
    captions.append("")
    return two_rows(pictures, heads, captions, size=1.32)


@figure
def before_after() -> Path:
    """A damaged photograph of 640x480 pixels and its restoration, as `make demo` makes them."""
    path = FIGURES / "before_after.jpg"
    with tempfile.TemporaryDirectory() as folder:
        Image.open(repair_photo(folder).files[-1]).save(path, quality=86, optimize=True)
    return path


@figure
def photos_examples() -> Any:
    """Four kinds of damage to photographs: what a classical method, one sample and the mean of eight make of them."""
    side = 128
    parts = {
        "caption": (Mask(make_mask("text", side)), 0.0, "biharmonic", raccoon().crop((330, 140, 458, 268))),
        "scratches": (Mask(make_mask("narrow", side, seed=1)), 0.0, "biharmonic", skimage_part("chelsea", 180, 60)),
        "enlarged x2": (SuperResolution(2, "box"), 0.0, "bicubic", skimage_part("coffee", 250, 130)),
        "blur, noise": (Blur(gaussian_kernel(11, 1.6)), 2 / 255, "wiener", skimage_part("astronaut", 160, 40)),
    }
    pictures, captions = [], []
    for A, sigma_y, classical, picture in parts.values():
        truth = from_pil(picture)[None]
        y = A.measure(truth, sigma_y, seed=0)
        shown = show_missing(y[0], A.mask[0].float()) if isinstance(A, Mask) else y[0]
        plain = solve(A, y, classical, sigma_y=sigma_y).x
        drawn = solve(A, y, sigma_y=sigma_y, n_samples=8).x
        row = [plain, drawn[:1], drawn.mean(0, keepdim=True)]
        pictures.append([truth[0], shown, *(one[0].clamp(0, 1) for one in row)])
        captions.append(["", "", *(f"{psnr(one, truth):.1f}" for one in row)])
    heads = ["truth", "damaged", "classical", "one sample", "mean of 8"]
    return picture_grid(pictures, heads, list(parts), captions, size=1.7)


def skimage_part(name: str, left: int, top: int, side: int = 128) -> Image.Image:
    """Part of a photograph that scikit-image ships."""
    return Image.fromarray(getattr(skimage.data, name)()).crop((left, top, left + side, top + side))


def two_rows(pictures: list[Tensor], heads: list[str], captions: list[str], size: float = 1.4, columns: int = 5) -> Any:
    """Pictures in rows of `columns`, each with a head of its own."""
    rows = -(-len(pictures) // columns)
    step = size + 0.46
    drawn = new_figure(columns * (size + 0.08) + 0.08, rows * step + 0.04)
    width, height = drawn.get_size_inches()
    for k, picture in enumerate(pictures):
        i, j = divmod(k, columns)
        left, bottom = 0.08 + j * (size + 0.08), height - (i + 1) * step + 0.2
        axes = drawn.add_axes((left / width, bottom / height, size / width, size / height))
        axes.imshow(np.asarray(picture.clamp(0, 1).movedim(0, -1)), interpolation="nearest", aspect="auto")
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_title(heads[k], fontsize=9.5, pad=3, fontweight="bold" if heads[k] in ("damaged", "truth") else None)
        axes.set_xlabel(captions[k], fontsize=7.5, labelpad=2, color="0.35")
    return drawn


@figure
def first_restoration() -> Any:
    """The half-missing cat of the first steps: measurement, four samples, mean and spread."""
    operator = Mask(make_mask("half", 64))
    answer = solve(operator, chelsea64(), "repaint", backbone=backbone(), n_samples=4, steps=50, jump_length=5,
                   jump_n_sample=5, value_range=(0, 1))  # fmt: skip
    return answer.plot()


# ---- Learn 1 and 2 ----------------------------------------------------------------------------------------------


@figure
def forward() -> Any:
    """The forward process and what the network makes of it."""
    schedule, b = backbone().schedule, backbone()
    times = [0, 100, 250, 400, 600, 800, 999]
    noise = level_noise(1)
    noisy, clean, eps = [], [], []
    with torch.no_grad():
        for t in times:
            a = schedule.alpha_bar_at(t)
            x_t = a**0.5 * model(photo()) + (1 - a) ** 0.5 * noise
            prediction = b.predict(x_t, t)
            noisy.append((0.5 + x_t[0] / 4).clamp(0, 1))
            clean.append(unit(prediction.x0[0]).clamp(0, 1))
            eps.append((0.5 + prediction.eps[0] / 6).clamp(0, 1))
    captions = [
        [f"ᾱ = {schedule.alpha_bar_at(t):.2g}" for t in times],
        [""] * len(times),
        [f"{psnr(c[None], photo()):.1f} dB" for c in clean],
    ]
    columns = [f"t = {t}" for t in times]
    return picture_grid([noisy, eps, clean], columns, ["x_t", "predicted noise", "estimate x0"], captions, size=1.15)


@figure
def schedules() -> Any:
    """Signal left over time, and what thinning keeps."""
    drawn, (one, two) = axes_figure(8.4, 2.6, 2)
    for name, schedule, colour in (
        ("linear", NoiseSchedule.linear(), BLUE),
        ("scaled linear", NoiseSchedule.scaled_linear(), GREEN),
        ("cosine", NoiseSchedule.cosine(), ORANGE),
    ):
        one.plot(schedule.alpha_bar[:-1], color=colour, label=name)
    one.set_xlabel("time t", fontsize=9)
    one.set_ylabel("signal left, ᾱ", fontsize=9)
    one.legend(fontsize=8, frameon=False)
    full = NoiseSchedule.linear()
    for i, (spacing, who) in enumerate(
        [("respaced", "RePaint, MCG, DPS"), ("leading", "DDNM, DDRM, PiGDM"), ("quad", "DiffPIR")]
    ):
        kept = full.respaced(20, spacing).timesteps
        two.plot(kept, [-i] * len(kept), ".", color=[BLUE, GREEN, ORANGE][i])
        two.text(500, -i + 0.22, f"{spacing}  ({who})", fontsize=8, ha="center")
    two.set_yticks([])
    two.set_ylim(-2.6, 0.7)
    two.set_xlabel("which 20 of 1,000 times are kept", fontsize=9)
    two.spines["left"].set_visible(False)
    drawn.tight_layout()
    return drawn


@figure
def denoising_error() -> Any:
    """How well the network knows the noise, and the clean image, at every level."""
    b, schedule = backbone(), backbone().schedule
    images = torch.cat([photo(), sample(b, 7, steps=50, seed=5).x.clamp(0, 1)])
    times = list(range(19, 1000, 70))
    e, x = [], []
    with torch.no_grad():
        for t in times:
            a, noise = schedule.alpha_bar_at(t), level_noise(t, images.shape)
            p = b.predict(a**0.5 * model(images) + (1 - a) ** 0.5 * noise, t)
            e.append(float((p.eps - noise).square().mean()))
            x.append(float((p.x0.clamp(-1, 1) - model(images)).square().mean()))
    drawn, axes = axes_figure(5.6, 2.7)
    axes.semilogy(times, e, ".-", color=BLUE, label="of the noise ε")
    axes.semilogy(times, x, ".-", color=RED, label="of the clean image x0")
    axes.set_xlabel("time t", fontsize=9)
    axes.set_ylabel("mean squared error", fontsize=9)
    axes.legend(fontsize=8, frameon=False)
    drawn.tight_layout()
    return drawn


@figure
def sampling_path() -> Any:
    """A picture emerging: x_t and the clean estimate along an ancestral run."""
    answer = sample(backbone(), 1, steps=100, seed=7, keep_trajectory=True)
    chosen = [0, 20, 40, 55, 70, 80, 90, 99]
    frames = [answer.trajectory[k] for k in chosen]
    state = [(0.5 + f.x[0] / (2 * max(1.0, float(f.x[0].std()) * 1.5))).clamp(0, 1) for f in frames]
    clean = [unit(f.x0[0]).clamp(0, 1) for f in frames]
    columns = [f"after {k + 1} steps" for k in chosen]
    return picture_grid([state, clean], columns, ["x_t", "estimate x0"], size=1.05)


@figure
def steps_eta() -> Any:
    """Ancestral sampling and DDIM with few and many steps, the same seeds."""
    rows, labels = [], []
    for eta, name in ((1.0, "ancestral, η = 1"), (0.0, "DDIM, η = 0")):
        pictures = []
        for steps in (10, 25, 50, 100, 250):
            x = sample(backbone(), 1, steps=steps, eta=eta, seed=11).x
            pictures.append(x[0].clamp(0, 1))
        rows.append(pictures)
        labels.append(name)
    return picture_grid(rows, [f"{n} calls" for n in (10, 25, 50, 100, 250)], labels, size=1.25)


@figure
def prior_cats64_gmm() -> Any:
    """Eight exact draws from cats64-gmm, where it is embedded."""
    if "cats64-gmm" not in backbone_names():
        return None
    return sheet(unit(load_backbone("cats64-gmm").prior_sample(8, seed=0)))


def sheet(x: Tensor, columns: int = 8) -> Any:
    rows = -(-len(x) // columns)
    drawn = new_figure(columns * 1.0, rows * 1.0)
    for k, picture in enumerate(x):
        i, j = divmod(k, columns)
        axes = drawn.add_axes((j / columns + 0.003, 1 - (i + 1) / rows + 0.006, 1 / columns - 0.006, 1 / rows - 0.012))
        axes.imshow(np.asarray(picture.clamp(0, 1).float().movedim(0, -1)), interpolation="nearest", aspect="auto")
        axes.set_axis_off()
    return drawn


@figure
def sampling() -> Path:
    """An animation of ancestral sampling."""
    answer = sample(backbone(), 1, steps=100, seed=7, keep_trajectory=True)
    return answer.animate(FIGURES / "sampling.gif", seconds=4, rate=12, scale=2)


# ---- Learn 3 ----------------------------------------------------------------------------------------------------


@figure
def operators() -> Any:
    """What each operator measures, what the pseudo-inverse makes of it, and what no measurement sees."""
    mask = make_mask("wide", 64, seed=3)
    shelf: list[tuple[str, Any]] = [
        ("mask", Mask(mask)),
        ("box ×4", SuperResolution(4, "box")),
        ("nearest ×4", SuperResolution(4, "nearest")),
        ("colorization", Colorization()),
        ("blur", Blur(gaussian_kernel(9, 1.6))),
        ("50 % Hadamard", WalshHadamard(0.5)),
    ]
    x = model(photo())
    measured: list[Tensor] = []
    back: list[Tensor] = []
    unseen: list[Tensor] = []
    for name, A in shelf:
        y = A(x)
        if name == "mask":
            measured.append(show_missing(unit(y)[0], mask.float()[None]))
        elif y.ndim == 4 and y.shape[1] in (1, 3) and y.shape[-1] > 4:
            measured.append(unit(y)[0].clamp(0, 1))
        else:
            flat = y.flatten()[: 3 * 45 * 45].reshape(3, 45, 45)
            measured.append((0.5 + flat / (6 * flat.std())).clamp(0, 1))
        back.append(unit(A.pinv(y))[0].clamp(0, 1))
        unseen.append((0.5 + A.complement(x)[0] / 2).clamp(0, 1))
    labels = ["measurement y", "A⁺ y", "null part of x"]
    return picture_grid([measured, back, unseen], [name for name, _ in shelf], labels, size=1.25)


@figure
def infinitely_many() -> Any:
    """Cats with one and the same thumbnail."""
    A = SuperResolution(8, "box")
    y = A(photo())
    answer = solve(A, y, "ddnm", backbone=backbone(), n_samples=5, steps=50, seed=2)
    restored = [x.clamp(0, 1) for x in answer.x]
    small = [A(x[None])[0].clamp(0, 1) for x in answer.x]
    columns = ["truth", "A⁺ y", *(f"answer {i}" for i in range(1, 6))]
    return picture_grid(
        [[photo()[0], A.pinv(y)[0], *restored], [y[0], A(A.pinv(y))[0], *small]],
        columns,
        ["picture x", "A x, 8×8"],
        size=1.15,
    )


@figure
def masks() -> Any:
    """Every mask generator at 64x64."""
    names = mask_names()
    columns = -(-len(names) // 2)
    drawn = new_figure(7.1, 2.9)
    for k, name in enumerate(names):
        i, j = divmod(k, columns)
        axes = drawn.add_axes((0.008 + j / columns, 0.52 - 0.5 * i, 0.9 / columns, 0.9 / columns * 7.1 / 2.9))
        axes.imshow(np.asarray(make_mask(name, 64, seed=3), dtype=float), cmap="gray", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_edgecolor("0.5")
        axes.set_title(name, fontsize=9, pad=3)
    return drawn


# ---- Learn 4 and 5 ----------------------------------------------------------------------------------------------

HALF = make_mask("half", 64)


def seam(x: Tensor) -> float:
    """Mean step across the middle, over that of the true photo: 1 = no seam."""
    step = lambda z: float((z[..., :, 32] - z[..., :, 31]).abs().mean())  # noqa: E731
    return step(x) / step(photo())


@figure
def replacement_seams() -> Any:
    """Replacement on half a face: the seam, close up."""
    A = Mask(HALF)
    answer = solve(A, photo(), "replacement", backbone=backbone(), n_samples=4, steps=250, seed=0)
    row = [show_missing(A(photo())[0], HALF.float()[None]), *(x.clamp(0, 1) for x in answer.x), photo()[0]]
    close = [x[:, 16:48, 16:48] for x in row]
    columns = ["measurement", *(f"sample {i}" for i in range(4)), "truth"]
    return picture_grid([row, close], columns, ["", "middle, ×2"], size=1.25)


@figure
def jump_schedule() -> Any:
    """RePaint's route through time."""
    drawn, (one, two) = axes_figure(8.6, 2.6, 2, gridspec_kw={"width_ratios": [3, 2]})
    full = jumps(250, 10, 10)
    one.plot(full, lw=0.5, color=BLUE)
    one.set_title(f"250 steps, j = 10, r = 10: {network_calls(full):,} network calls", fontsize=9)
    small = jumps(20, 5, 3)
    two.plot(small, ".-", lw=0.8, ms=3, color=BLUE)
    two.set_title(f"20 steps, j = 5, r = 3: {network_calls(small)} network calls", fontsize=9)
    for axes in (one, two):
        axes.set_xlabel("move", fontsize=9)
        axes.set_ylabel("time index", fontsize=9)
    drawn.tight_layout()
    return drawn


@figure
def resampling() -> Any:
    """n = 1, 2, 5, 10, 20 passes, and the same number of network calls spent on a slower descent."""
    A, count = Mask(HALF), 3
    known = show_missing(A(photo())[0], HALF.float()[None])
    rows, labels, table = [], [], []
    columns = ["measurement"]
    resampled, slowed, below, below2 = [known], [known], [""], [""]
    for n in (1, 2, 5, 10, 20):
        options = {"steps": 40, "jump_length": 5, "jump_n_sample": n}
        a = solve(A, photo(), "repaint", backbone=backbone(), n_samples=count, seed=0, **options)
        resampled.append(a.x[0].clamp(0, 1))
        b = solve(A, photo(), "repaint", backbone=backbone(), n_samples=count, seed=0, steps=a.nfe, jump_n_sample=1)
        slowed.append(b.x[0].clamp(0, 1))
        columns.append(f"r = {n}, {a.nfe} calls")
        below.append(f"seam {seam(a.x):.2f}")
        below2.append(f"seam {seam(b.x):.2f}")
        for what, it in (("resampling", a), ("slowing down", b)):
            table.append(
                {
                    "how": what,
                    "r": n if what == "resampling" else 1,
                    "steps": 40 if what == "resampling" else a.nfe,
                    "network calls": it.nfe,
                    "seam": round(seam(it.x), 3),
                    "PSNR": round(float(np.mean([psnr(x[None], photo()) for x in it.x])), 2),
                }
            )
    rows, labels = [resampled, slowed], ["resampling", "slowing down"]
    keep_data("resampling", table, f"Half of Chelsea's face missing, {count} samples, cats64")
    return picture_grid(rows, columns, labels, [below, below2], size=1.3)


@figure
def resampling_truth() -> Any:
    """RePaint's two ablations against an exact posterior: passes against a slower descent, and the length of a jump."""
    score = line_problem()
    table = []

    def run(**options: Any) -> tuple[int, float, float]:
        answer = solve(score.operator, score.y, "repaint", backbone=score.prior, n_samples=score.count,
                       value_range=(-1, 1), batch_size=4 * score.count, clip=False, **options)  # fmt: skip
        return answer.nfe, *score(answer.x)

    def keep(how: str, **options: Any) -> None:
        calls, distance, ratio = run(**options)
        table.append({"how": how, "network calls": calls, "W2": distance, "variance": ratio})

    for r in (1, 2, 4, 10):
        keep(f"r = {r}, j = 10, 250 steps", steps=250, jump_length=10, jump_n_sample=r)
    for steps in (490, 970):
        keep(f"no jumps, {steps} steps", steps=steps, jump_n_sample=1)
    for j in (1, 5, 20):
        keep(f"r = 10, j = {j}, 250 steps", steps=250, jump_length=j, jump_n_sample=10)
    keep_data("resampling_truth", table, f"Eight correlated numbers, four of them seen, {score.count} samples of each of "
              "four measurements, exact denoiser")  # fmt: skip
    return draw_resampling_truth(table)


def draw_resampling_truth(table: list[dict[str, Any]]) -> Any:
    """Distance against calls; distance, and variance, against the length of a jump: a panel for each quantity."""
    rows = {row["how"]: row for row in table}
    drawn, (one, two, three) = axes_figure(7.2, 2.5, 3)
    plain = rows["r = 1, j = 10, 250 steps"]
    for name, colour, chosen in (
        ("resampling", BLUE, [plain, *(rows[f"r = {r}, j = 10, 250 steps"] for r in (2, 4, 10))]),
        ("slowing down", GREY, [plain, *(rows[f"no jumps, {steps} steps"] for steps in (490, 970))]),
    ):
        one.plot([r["network calls"] for r in chosen], [r["W2"] for r in chosen], ".-", color=colour, label=name)
    one.set_xlabel("network calls", fontsize=9)
    one.set_ylabel("distance (W2)", fontsize=9)
    one.legend(fontsize=8, frameon=False)
    lengths = (1, 5, 10, 20)
    chosen = [rows[f"r = 10, j = {j}, 250 steps"] for j in lengths]
    two.plot(lengths, [r["W2"] for r in chosen], ".-", color=BLUE)
    two.set_ylabel("distance (W2)", fontsize=9)
    three.axhline(1, color="0.5", ls=":", lw=1)
    three.text(20, 1.02, "right", fontsize=8, color="0.4", ha="right")
    three.plot(lengths, [r["variance"] for r in chosen], ".-", color=ORANGE)
    three.set_ylabel("variance of the answers", fontsize=9)
    for axes in (two, three):
        axes.set_xlabel("length of a jump", fontsize=9)
        axes.set_xticks(lengths)
    for axes, top in ((one, 0.4), (two, 0.4), (three, 1.2)):
        axes.set_ylim(0, top)
    drawn.tight_layout()
    return drawn


@figure
def repaint() -> Path:
    """An animation of RePaint with its jumps."""
    answer = solve(Mask(HALF), photo(), "repaint", backbone=backbone(), steps=40, jump_length=5, jump_n_sample=4,
                   seed=0, keep_trajectory=True)  # fmt: skip
    return answer.animate(FIGURES / "repaint.gif", seconds=8, rate=8, scale=2)


# ---- Learn 6 and 7 ----------------------------------------------------------------------------------------------


@figure
def ddnm_parts() -> Any:
    """The estimate, its two parts, and the corrected estimate, on the way down."""
    A = SuperResolution(8, "box")
    y = A(model(photo()))
    frames = solve(
        A, y, "ddnm", backbone=backbone(), steps=50, seed=2, value_range=(-1, 1), keep_trajectory=True
    ).trajectory
    chosen = [0, 15, 30, 40, 49]
    estimate = [frames[k].x0 for k in chosen]
    seen = A.pinv(y)
    rows = [
        [unit(x)[0].clamp(0, 1) for x in estimate],
        [(0.5 + A.complement(x)[0] / 2).clamp(0, 1) for x in estimate],
        [unit(seen)[0].clamp(0, 1)] * len(chosen),
        [unit(seen + A.complement(x))[0].clamp(0, 1) for x in estimate],
    ]
    labels = ["estimate x0", "its null part", "A⁺ y", "corrected"]
    return picture_grid(rows, [f"call {k + 1}" for k in chosen], labels, size=1.2)


def mixed(x: Tensor) -> Tensor:
    """A linear camera of nobody's: every picture plus a quarter of its mirror image, then averaged 4x4."""
    return torch.nn.functional.avg_pool2d(0.75 * x + 0.25 * x.flip(-1), 4)


@figure
def ddnm_operators() -> Any:
    """DDNM on one operator after another, without a change."""
    mask = make_mask("wide", 64, seed=3)
    shelf = {
        "mask": Mask(mask),
        "colorization": Colorization(),
        "box ×4": SuperResolution(4, "box"),
        "bicubic ×4": SuperResolution(4, "bicubic"),
        "blur": Blur(gaussian_kernel(9, 1.6)),
        "grey and ×2": SuperResolution(2, "box") @ Colorization(),
        "own function": FunctionOperator(mixed, image_shape=(3, 64, 64)),
    }
    first, second = [], []
    captions = []
    for A in shelf.values():
        y = A(photo())
        answer = solve(A, y, "ddnm", backbone=backbone(), steps=50, seed=0)
        back = A.pinv(y)[0]
        first.append(show_missing(y[0], mask.float()[None]) if A.task == "mask" else back.clamp(0, 1))
        second.append(answer.x[0].clamp(0, 1))
        captions.append(f"{psnr(answer.x, photo()):.1f} dB")
    rows = [first, second, [photo()[0]] * len(shelf)]
    return picture_grid(rows, list(shelf), ["A⁺ y", "DDNM", "truth"], [[""] * len(shelf), captions, [""] * len(shelf)],
                        size=1.15)  # fmt: skip


@figure
def one_call() -> Any:
    """A network that restores in one call beside diffusion, on holes that it has seen and that it has not."""
    kinds = {"wide": {"seed": 10_003}, "alternating_lines": {}, "random_pixels": {"fraction_known": 0.2}, "text": {}}
    truth, pictures = photo(), []
    for name, options in kinds.items():
        mask = make_mask(name, 64, **options)
        answers = [
            solve(Mask(mask), truth, sampler, backbone=backbone(), seed=0, **more).x.clamp(0, 1)
            for sampler, more in (("restorer", {}), ("ddnm", {"steps": 50}))
        ]
        pictures += [torch.where(mask, truth, 0.5), *answers, truth]
    return sheet(torch.cat(pictures), columns=4)


@figure
def noisy() -> Any:
    """DDNM pins the noise, DDNM+ weighs it."""
    A, rows, captions, table = SuperResolution(4, "box"), [], [], []
    labels = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for sigma in (0.0, 0.05, 0.1, 0.2):
            y = A.measure(photo(), sigma, seed=1)
            row, below = [A.pinv(y)[0].clamp(0, 1)], [""]
            for name in ("ddnm", "ddnm+", "ddrm", "diffpir", "pigdm"):
                answer = solve(A, y, name, backbone=backbone(), sigma_y=sigma, steps=50, seed=0, n_samples=2)
                row.append(answer.x[0].clamp(0, 1))
                value = float(np.mean([psnr(x[None], photo()) for x in answer.x]))
                below.append(f"{value:.1f} dB")
                misfit = float((A(answer.x) - y).square().mean().sqrt())
                table.append({"sigma_y": sigma, "sampler": name, "PSNR": round(value, 2), "misfit": round(misfit, 4)})
            rows.append(row)
            captions.append(below)
            labels.append(f"σ_y = {sigma:g}")
    keep_data("noisy", table, "Box super-resolution x4 of Chelsea, 50 steps each, mean of two samples, cats64")
    heads = ["A⁺ y", "DDNM", "DDNM+", "DDRM", "DiffPIR", "PiGDM"]
    return picture_grid(rows, heads, labels, captions, size=0.98)


# ---- Learn 8, 9, 10 ---------------------------------------------------------------------------------------------


@figure
def gradients() -> Any:
    """Three methods that differentiate the network, and two that do not, on three tasks."""
    mask = make_mask("half", 64)
    tasks = {
        "half": Mask(mask),
        "box ×4": SuperResolution(4, "box"),
        "blur": Blur(gaussian_kernel(9, 1.6)),
    }
    settings = {"ddnm": {"steps": 100}, "dps": {"steps": 150}, "mcg": {"steps": 150}, "pigdm": {"steps": 60}}
    rows, captions, table = [], [], []
    for task, A in tasks.items():
        y = A(photo())
        row = [show_missing(y[0], mask.float()[None]) if task == "half" else A.pinv(y)[0].clamp(0, 1)]
        below = [""]
        for name, options in settings.items():
            answer = solve(A, y, name, backbone=backbone(), seed=0, **options)
            misfit = float((A(answer.x) - y).square().mean().sqrt())
            row.append(answer.x[0].clamp(0, 1))
            below.append(f"misfit {misfit:.1e}")
            table.append(
                {
                    "task": task,
                    "sampler": name,
                    "network calls": answer.nfe,
                    "seconds": round(answer.seconds, 1),
                    "seconds per call": round(answer.seconds / answer.nfe, 4),
                    "PSNR": round(psnr(answer.x, photo()), 2),
                    "misfit": misfit,
                }
            )
        rows.append(row)
        captions.append(below)
    keep_data("gradients", table, "Chelsea, one image at a time, cats64; seconds of one run on a CPU")
    return picture_grid(rows, ["A⁺ y", "DDNM", "DPS", "MCG", "PiGDM"], list(tasks), captions, size=1.3)


@figure
def proximal() -> Any:
    """DiffPIR's weight through time, and what lambda and zeta do."""
    A, sigma = SuperResolution(4, "box"), 0.05
    y = A.measure(photo(), sigma, seed=1)
    lambdas, zetas = (0.02, 0.2, 1.5, 10.0, 100.0), (0.0, 0.3, 1.0)
    rows, captions = [], []
    for zeta in zetas:
        row, below = [], []
        for lambda_ in lambdas:
            x = solve(
                A, y, "diffpir", backbone=backbone(), sigma_y=sigma, steps=30, lambda_=lambda_, zeta=zeta, seed=0
            ).x
            row.append(x[0].clamp(0, 1))
            below.append(f"{psnr(x, photo()):.1f} dB")
        rows.append(row)
        captions.append(below)
    return picture_grid(rows, [f"λ = {v:g}" for v in lambdas], [f"ζ = {z:g}" for z in zetas], captions, size=1.2)


@figure
def filters() -> Any:
    """f(lambda) of every method: how much of the residual is taken up in a direction of squared singular value lambda."""
    drawn, axes = axes_figure(8.6, 3.1, 3, sharey=True)
    squared = torch.logspace(-3, 0, 200, dtype=torch.float64)
    schedule, sigma, eta = NoiseSchedule.linear(), 0.1, 0.85
    for one, t in zip(axes, (800, 400, 100), strict=True):
        a, a_s = schedule.alpha_bar_at(t), schedule.alpha_bar_at(t - 10)
        c, s = (1 - a_s) ** 0.5, squared.sqrt()
        thr = a_s**0.5 * sigma
        rho = 1.5 * sigma**2 * a / (1 - a)
        plus = torch.where(c * s >= thr, 1.0, s * c * (1 - eta**2) ** 0.5 / thr)
        one.semilogx(squared, torch.ones_like(squared), color=GREEN, label="DDNM, RePaint")
        one.semilogx(squared, plus, color=COLOURS["ddnm+"], ls="--", label="DDNM+")
        one.semilogx(squared, squared / (squared + rho), color=ORANGE, label="DiffPIR")
        one.semilogx(squared, squared / (squared + sigma**2 / (1 - a)), color=PURPLE, label="PiGDM")
        one.semilogx(squared, squared, color=RED, ls=":", label="DPS, MCG (direction)")
        one.set_title(f"t = {t}, ᾱ = {a:.2g}", fontsize=9)
        one.set_xlabel("squared singular value λ", fontsize=9)
    axes[0].set_ylabel("share taken up, λ f(λ)", fontsize=9)
    drawn.legend(*axes[2].get_legend_handles_labels(), fontsize=8, frameon=False, loc="lower center", ncol=5)
    drawn.tight_layout(rect=(0, 0.1, 1, 1))
    return drawn


# ---- Learn 11 ---------------------------------------------------------------------------------------------------


def two_bananas() -> GaussianMixtureBackbone:
    """A mixture on the plane whose posterior given the first number has two unequal modes."""
    means = torch.tensor([[-0.5, -0.55], [-0.15, 0.45], [0.25, -0.2], [0.6, 0.5]]).reshape(4, 1, 1, 2)
    scale = torch.tensor([[0.012, 0.02], [0.03, 0.012], [0.02, 0.02], [0.01, 0.03]]).reshape(4, 1, 1, 2)
    return GaussianMixtureBackbone(torch.tensor([0.3, 0.25, 0.25, 0.2]), means, scale)


TOY_SETTINGS: dict[str, dict[str, Any]] = {
    "replacement": {"steps": 250, "clip": False},
    "repaint": {"steps": 100, "jump_length": 10, "jump_n_sample": 10, "clip": False},
    "ddnm": {"steps": 250},
    "ddnm+": {"steps": 250},
    "ddrm": {"steps": 250},
    "diffpir": {"steps": 250},
    "pigdm": {"steps": 250},
    "mcg": {"steps": 250, "clip": False},
    "dps": {"steps": 250, "clip": False},
}


@figure
def toy_posterior() -> Any:
    """Samples of every method on the exact density of a posterior that has two modes."""
    b = two_bananas()
    A = Mask(torch.tensor([[1.0, 0.0]]))
    y, sigma, count = torch.tensor([[[[0.05, 0.0]]]]), 0.1, 1000
    exact = b.posterior(A, y, sigma)
    grid = torch.linspace(-1.1, 1.1, 110)
    places = torch.stack(torch.meshgrid(grid, grid, indexing="xy"), -1).reshape(-1, 1, 1, 2)
    prior = b.log_prob(places).exp().reshape(110, 110)
    density = exact.log_prob(places).exp().reshape(110, 110)
    names = [n for n in TOY_SETTINGS if n != "ddnm"]
    drawn, axes = axes_figure(8.6, 3.9, 5, 2, sharex=True, sharey=True)
    panels = axes.ravel()
    extent = (-1.1, 1.1, -1.1, 1.1)
    panels[0].imshow(prior, origin="lower", extent=extent, cmap="Blues", aspect="auto")
    panels[0].axvspan(0.05 - sigma, 0.05 + sigma, color=RED, alpha=0.25, lw=0)
    panels[0].set_title("prior and measurement", fontsize=8.5)
    draws = {"exact draws": exact.sample(count, seed=0)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            draws[NAMES[name]] = solve(A, y, name, backbone=b, sigma_y=sigma, n_samples=count, value_range=(-1, 1),
                                       batch_size=count, precision=None, norm="known", **TOY_SETTINGS[name]).x \
                if name == "dps" else solve(A, y, name, backbone=b, sigma_y=sigma, n_samples=count,
                                            value_range=(-1, 1), batch_size=count, **TOY_SETTINGS[name]).x  # fmt: skip
    table = []
    for one, (name, x) in zip(panels[1:], draws.items(), strict=True):
        flat = x.reshape(-1, 2)
        one.contour(grid, grid, density, levels=6, colors="0.75", linewidths=0.6)
        one.plot(flat[:, 0], flat[:, 1], ".", ms=1.2, color=BLUE if name == "exact draws" else RED, alpha=0.45, mew=0)
        upper = float((flat[:, 1] > 0.15).double().mean())
        one.set_title(f"{name}: {100 * upper:.0f} % above", fontsize=8.5)
        table.append(
            {
                "method": name,
                "share in the upper mode": round(upper, 3),
                "std of the seen number": round(float(flat[:, 0].std()), 3),
                "std of the unseen number": round(float(flat[:, 1].std()), 3),
            }
        )
    for one in panels:
        one.set_xlim(-1.1, 1.1)
        one.set_ylim(-1.1, 1.1)
        one.set_xticks([])
        one.set_yticks([])
        for spine in one.spines.values():
            spine.set_visible(True)
            spine.set_color("0.8")
    keep_data("toy_posterior", table, f"{count} samples each, sigma_y = {sigma}, exact denoiser")
    drawn.tight_layout()
    return drawn


def line_prior(d: int = 8, std: float = 0.25, correlation: float = 0.8) -> GaussianBackbone:
    """Eight correlated numbers in a row: an "image" whose every posterior is known."""
    gap = (torch.arange(d)[:, None] - torch.arange(d)[None]).abs()
    return GaussianBackbone(torch.zeros(1, 1, d), (std**2 * correlation**gap).double())


class LineProblem:
    """Four of eight correlated numbers are seen, without noise; a call scores samples of the other four."""

    count = 500

    def __init__(self) -> None:
        self.prior = line_prior()
        self.operator = Mask(torch.tensor([[1.0] * 4 + [0.0] * 4]))
        self.y = self.operator(self.prior.prior_sample(4, seed=3))
        self.exact = [self.prior.posterior(self.operator, one[None], 0.0) for one in self.y]

    def __call__(self, x: Tensor) -> tuple[float, float]:
        """Gaussian Wasserstein-2 distance in units of the posterior's size, and the ratio of variances; means over
        the measurements."""
        found, ratios = [], []
        for z, posterior in zip(x.reshape(4, -1, 8)[..., 4:].double(), self.exact, strict=True):
            mean, spread = posterior.mean.reshape(-1)[4:], posterior.covariance.reshape(8, 8)[4:, 4:]
            got, cov, root = z.mean(0), torch.cov(z.T), _root(spread)
            w2 = (got - mean).square().sum() + torch.trace(cov + spread - 2 * _root(root @ cov @ root))
            found.append(float((w2.clamp(min=0) / torch.trace(spread)) ** 0.5))
            ratios.append(float(torch.trace(cov) / torch.trace(spread)))
        return round(float(np.mean(found)), 4), round(float(np.mean(ratios)), 4)


line_problem = cache(LineProblem)


@figure
def step_curve() -> Any:
    """Error against network calls with the exact denoiser: what more steps mend, and what they do not."""
    score = line_problem()
    b, A, y, count, table = score.prior, score.operator, score.y, score.count, []

    runs: dict[str, list[tuple[int, dict[str, Any]]]] = {
        "replacement": [(n, {"steps": n, "clip": False}) for n in (25, 100, 400, 1000)],
        "repaint": [(n, {"steps": n, "jump_length": 10, "jump_n_sample": 5, "clip": False}) for n in (25, 100, 250)],
        "ddnm": [(n, {"steps": n}) for n in (25, 100, 400, 1000)],
        "ddrm": [(n, {"steps": n}) for n in (25, 100, 400, 1000)],
        "diffpir": [(n, {"steps": n}) for n in (25, 100, 400, 1000)],
        "pigdm": [(n, {"steps": n}) for n in (25, 100, 400, 1000)],
        "mcg": [(n, {"steps": n, "clip": False}) for n in (25, 100, 400, 1000)],
        "dps": [(n, {"steps": n, "clip": False}) for n in (25, 100, 400, 1000)],
    }
    for name, list_ in runs.items():
        for _, options in list_:
            answer = solve(
                A, y, name, backbone=b, n_samples=count, value_range=(-1, 1), batch_size=4 * count, **options
            )
            table.append({"sampler": name, "network calls": answer.nfe, "W2": score(answer.x)[0]})
    floor = score(torch.stack([posterior.sample(count, seed=1) for posterior in score.exact]))[0]
    table.append({"sampler": "exact draws (the floor)", "network calls": 0, "W2": floor})
    keep_data(
        "step_curve",
        table,
        f"Eight correlated numbers, four of them seen, {count} samples of each of four measurements, exact denoiser",
    )
    return draw_step_curve(table)


def draw_step_curve(table: list[dict[str, Any]]) -> Any:
    """A line per sampler, its name at the end of it."""
    from matplotlib.ticker import NullFormatter

    drawn, axes = axes_figure(6.6, 3.4)
    *rows, floor = table
    ends = []
    for name in dict.fromkeys(r["sampler"] for r in rows):
        line = [(r["network calls"], r["W2"]) for r in rows if r["sampler"] == name]
        axes.loglog(*zip(*line, strict=True), ".-", color=COLOURS[name], lw=1.3)
        ends.append((line[-1][1], name))
    last = 0.0
    for value, name in sorted(ends):  # names one above the other, each as near to its line as the one below allows
        place = max(value, 1.16 * last)
        axes.plot([1300, 1600], [value, place], color=COLOURS[name], lw=0.6, clip_on=False)
        axes.text(1650, place, NAMES[name], color=COLOURS[name], fontsize=9, va="center")
        last = place
    axes.axhline(floor["W2"], color="0.5", ls=":", lw=1)
    axes.text(26, floor["W2"] * 1.06, "exact draws", fontsize=8.5, color="0.4")
    axes.set_xlim(22, 1300)
    axes.set_xticks([25, 100, 250, 1000], ["25", "100", "250", "1,000"])
    axes.set_yticks([0.05, 0.1, 0.2, 0.4, 0.8], ["0.05", "0.1", "0.2", "0.4", "0.8"])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("network calls", fontsize=9)
    axes.set_ylabel("distance to the posterior (W2)", fontsize=9)
    drawn.tight_layout()
    drawn.subplots_adjust(right=0.83)
    return drawn


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T


# ---- Learn 12 ---------------------------------------------------------------------------------------------------


@figure
def diversity() -> Any:
    """Eight answers to one question, their mean and their spread."""
    A = Mask(make_mask("box", 64, fraction=0.6))
    rows, captions, labels = [], [], []
    for name in ("repaint", "ddnm", "diffpir"):
        options = {"steps": 50, "jump_length": 5, "jump_n_sample": 5} if name == "repaint" else {"steps": 50}
        answer = solve(A, photo(), name, backbone=backbone(), n_samples=6, seed=4, **options)
        spread = answer.std[0].mean(0, keepdim=True)
        rows.append([*(x.clamp(0, 1) for x in answer.x[:4]), answer.mean[0].clamp(0, 1), (4 * spread).clamp(0, 1)])
        captions.append([""] * 5 + [f"mean {float(answer.std[0][:, ~A.mask[0, 0]].mean()):.3f}"])
        labels.append(NAMES[name])
    heads = [*(f"sample {i}" for i in range(4)), "mean of 6", "spread"]
    return picture_grid(rows, heads, labels, captions, size=1.2)


def fields(seed: int = 0) -> Tensor:
    """A made-up country from above: fields, a road and a river, (1, 3, 64, 64)."""
    g = np.random.default_rng(seed)
    rows, columns = np.mgrid[:64, :64]
    picture = np.zeros((64, 64, 3))
    colours = g.uniform([0.25, 0.32, 0.18], [0.62, 0.58, 0.38], size=(12, 3))
    a, b = (rows * 0.9 + columns * 0.35) // 17, (columns * 0.9 - rows * 0.3) // 21
    picture += colours[((a * 3 + b * 5) % 12).astype(int)]
    picture[np.abs(columns - 40 - 6 * np.sin(rows / 9)) < 2.2] = (0.22, 0.33, 0.42)
    picture[np.abs(rows - 0.5 * columns - 9) < 0.9] = (0.75, 0.72, 0.68)
    picture += g.normal(0, 0.015, picture.shape)
    return torch.from_numpy(picture).float().clamp(0, 1).movedim(-1, 0)[None]


@figure
def wrong_prior() -> Any:
    """A model that knows only cats, asked about country seen from above."""
    if "eurosat64" in backbone_names():
        ground = sample("eurosat64", 1, steps=250, seed=3).x.clamp(0, 1)
    else:
        ground = fields()
    mask = make_mask("box", 64, fraction=0.6)
    tasks = {"box missing": Mask(mask), "box ×8": SuperResolution(8, "box"), "colorization": Colorization()}
    rows = []
    columns = ["truth", "A⁺ y", "cats64", "cats64", "cats64"]
    if "eurosat64" in backbone_names():
        columns.append("eurosat64")
    for task, A in tasks.items():
        y = A(ground)
        shown = show_missing(y[0], mask.float()[None]) if task == "box missing" else A.pinv(y)[0].clamp(0, 1)
        answer = solve(A, y, "repaint", backbone=backbone(), n_samples=3, seed=0, steps=50, jump_length=5,
                       jump_n_sample=5)  # fmt: skip
        row = [ground[0], shown, *(x.clamp(0, 1) for x in answer.x)]
        if "eurosat64" in backbone_names():
            other = solve(A, y, "repaint", backbone="eurosat64", seed=0, steps=50, jump_length=5, jump_n_sample=5)
            row.append(other.x[0].clamp(0, 1))
        rows.append(row)
    return picture_grid(rows, columns, list(tasks), size=1.2)


# ---- Learn 16 and 17 --------------------------------------------------------------------------------------------


def page_code(page: str, *words: str) -> dict[str, Any]:
    """The names that the blocks of Python on a page define, run in order up to the last that holds all `words`."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    last = max(k for k, block in enumerate(found) if all(word in block for word in words))
    names: dict[str, Any] = {"__name__": "page"}
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:  # what a page writes
        os.chdir(folder)
        try:
            for block in found[: last + 1]:
                exec(compile(block, page, "exec"), names)
        finally:
            os.chdir(here)
    return names


@figure
def digits() -> Any:
    """What the network of chapter 16 makes of digits that it has not seen; trained and restored by the chapter's own code."""
    names = page_code("learn/16-train.md", "n_samples=8", "tasks.items()")
    truth, count = names["truth"], 7
    heads = ["known", "nearest seen", "one draw", "mean of 8", "truth"]
    drawn = new_figure(7.2, 2.7)
    for k, (task, title) in enumerate((("half", "lower half missing"), ("4 x 4", "means of 2 x 2 pixels known"))):
        rows = list(names["rows"][task])
        A, errors = names["tasks"][task], [float((r - truth).square().mean().sqrt()) for r in rows]
        for i, row in enumerate(rows):
            for j in range(count):
                left, bottom = 0.115 + 0.445 * k + 0.0555 * j, 0.765 - 0.182 * i
                axes = drawn.add_axes((left, bottom, 0.052, 0.142))
                picture = unit(row[j, 0]).clamp(0, 1)
                shown = np.asarray(picture[..., None].expand(-1, -1, 3)).copy()
                if i == 0 and isinstance(A, Mask):
                    shown[~np.asarray(A.mask[0, 0], dtype=bool)] = (0.62, 0.7, 0.85)
                axes.imshow(shown, interpolation="nearest", vmin=0, vmax=1)
                axes.set_xticks([])
                axes.set_yticks([])
                for spine in axes.spines.values():
                    spine.set_edgecolor("0.6")
            if errors[i] and i:
                drawn.text(0.507 + 0.445 * k, 0.84 - 0.182 * i, f"{errors[i]:.2f}", fontsize=8.5, va="center")
            if k == 0:
                drawn.text(0.108, 0.84 - 0.182 * i, heads[i], fontsize=8.5, ha="right", va="center")
        drawn.text(0.115 + 0.445 * k + 0.0555 * count / 2, 0.955, title, fontsize=9, ha="center")
    return drawn


@figure
def windows() -> Any:
    """Two pictures side by side, windows that overlap, windows that only move; drawn by the code of chapter 17."""
    from invdiff import Windows

    names = page_code("learn/17-any-size.md", "apart", "joined")
    moving = sample(Windows(names["land"], (3, 64, 128), overlap=0.0), 1, steps=25, size=(64, 128)).x
    pictures = [unit(names["apart"])[0], unit(names["joined"])[0], moving[0]]
    drawn = new_figure(8.6, 1.75)
    heads = ["two pictures", "windows that overlap by half", "windows that only move"]
    for k, (picture, head) in enumerate(zip(pictures, heads, strict=True)):
        axes = drawn.add_axes((0.01 + 0.33 * k, 0.02, 0.32, 0.82))
        axes.imshow(np.asarray(picture.clamp(0, 1).movedim(0, -1)), interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(head, fontsize=9, pad=3)
    return drawn


# ---- Results ----------------------------------------------------------------------------------------------------


@figure
def measured() -> Any:
    """Every sampler on six tasks, with intervals: what `benchmarks/which_sampler.py` measured."""
    file = DATA / "which_sampler.json"
    if not file.is_file():
        return None
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    tasks = list(dict.fromkeys(r["task"] for r in rows))
    chosen = {
        task: sorted(
            (r for r in rows if r["task"] == task and r["sampler"] and r["below best"][0] < 5),
            key=lambda r: -r["below best"][0],
        )
        for task in tasks
    }
    high = [max(len(chosen[t]) for t in tasks[i : i + 2]) for i in range(0, len(tasks), 2)]
    drawn = new_figure(7.2, 0.6 * len(high) + 0.185 * sum(high))
    grid = drawn.add_gridspec(len(high), 2, height_ratios=high, hspace=0.34, wspace=1.12)
    for k, task in enumerate(tasks):
        axes = drawn.add_subplot(grid[k // 2, k % 2])
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.axvline(0, color="0.8", lw=1)
        for i, r in enumerate(chosen[task]):
            mean, least, most = (-v for v in r["below best"])
            colour = COLOURS.get(r["sampler"], "0.3")
            axes.plot([least, most], [i, i], color=colour, lw=2.2, alpha=0.45, solid_capstyle="butt")
            axes.plot(mean, i, "o", ms=5, color=colour)
            axes.text(1.02, i, f"{r['seconds']:.2f} s", fontsize=7.5, color="0.35", va="center",
                      transform=axes.get_yaxis_transform())  # fmt: skip
        axes.set_yticks(range(len(chosen[task])), [r["method"] for r in chosen[task]])
        axes.tick_params(axis="y", length=0)
        axes.tick_params(labelsize=8)
        axes.set_ylim(-0.7, len(chosen[task]) - 0.3)
        best = next(r for r in chosen[task] if not any(r["below best"]))
        axes.set_title(f"{task} (best: {best['psnr'][0]:.1f} dB)", fontsize=8.5, loc="left", x=-0.15)
        if k >= len(tasks) - 2:
            axes.set_xlabel("dB from the best", fontsize=8.5)
    drawn.subplots_adjust(left=0.205, right=0.945, top=0.97, bottom=0.055)
    return drawn


@figure
def integrator_order() -> Any:
    """Distance to the exact posterior by integrator: of an estimate that is right, and of two that are not."""
    score = line_problem()
    count, table = score.count, []
    drawn, axes = axes_figure(7.6, 3.2, 2, sharey=True)
    looks = {"own": (GREY, ":"), "ancestral": (ORANGE, "-"), "ddim": (GREEN, "-"), "dpm++2m": (BLUE, "-"), "eab3": (PURPLE, "-"),
             "heun": (RED, "-")}  # fmt: skip
    panels: tuple[tuple[str, list[tuple[str, tuple[str, ...], tuple[int, ...]]]], ...] = (
        ("right: MMPS", [("mmps", ("ancestral", "ddim", "dpm++2m", "eab3", "heun"), (10, 20, 40))]),
        (
            "biased: DDNM (solid), PiGDM (dashed)",
            [(n, ("own", "ancestral", "dpm++2m"), (15, 50, 150)) for n in ("ddnm", "pigdm")],
        ),
    )
    for one, (title, methods) in zip(axes, panels, strict=True):
        for sampler, names, steps in methods:
            for name in names:
                worth, errors = [], []
                for n in steps:
                    options: dict[str, Any] = {} if name == "own" else {"spacing": "karras"}
                    options["steps"] = n // 2 if name == "heun" else n
                    answer = solve(score.operator, score.y, sampler, backbone=score.prior, n_samples=count, value_range=(-1, 1),
                                   batch_size=4 * count, integrator=name, **options)  # fmt: skip
                    worth.append(round(answer.nfe + 1.5 * answer.vjps))
                    errors.append(score(answer.x)[0])
                    table.append(
                        {"sampler": sampler, "integrator": name, "forward equivalents": worth[-1], "W2": errors[-1]}
                    )
                colour, line = looks[name]
                one.loglog(worth, errors, line if sampler != "pigdm" else "--", marker=".", color=colour, lw=1.2,
                           label=name if sampler != "pigdm" else None)  # fmt: skip
        one.set_title(title, fontsize=9)
        one.set_xlabel("forward equivalents", fontsize=9)
        one.legend(fontsize=7.5, frameon=False)
    floor = score(torch.stack([posterior.sample(count, seed=1) for posterior in score.exact]))[0]
    table.append({"sampler": "exact draws (the floor)", "integrator": "", "forward equivalents": 0, "W2": floor})
    for one in axes:
        one.axhline(floor, color="0.5", ls=":", lw=1)
        one.set_xticks([20, 50, 100, 200, 400], ["20", "50", "100", "200", "400"])
        one.minorticks_off()
    axes[0].set_xlim(60, 320)
    axes[0].set_ylabel("distance to the posterior (W2)", fontsize=9)
    keep_data(
        "integrator_order",
        table,
        f"Eight correlated numbers, four of them seen, {count} samples of each of four measurements, exact denoiser",
    )
    drawn.tight_layout()
    return drawn


@figure
def exactness() -> Any:
    """The toy posterior once more: the moment-matched estimate, and particles."""
    b, A, y, sigma, count = two_bananas(), Mask(torch.tensor([[1.0, 0.0]])), torch.tensor([[[[0.05, 0.0]]]]), 0.1, 1000
    exact = b.posterior(A, y, sigma)
    grid = torch.linspace(-1.1, 1.1, 110)
    density = exact.log_prob(torch.stack(torch.meshgrid(grid, grid, indexing="xy"), -1).reshape(-1, 1, 1, 2)).exp()
    runs: dict[str, tuple[str, dict[str, Any]]] = {
        "PiGDM": ("pigdm", {"steps": 100}),
        "MMPS": ("mmps", {}),
        "TDS, 4 particles": ("tds", {"particles": 4, "steps": 50}),
        "TDS, 64 particles": ("tds", {"particles": 64, "steps": 50}),
    }
    draws = {"exact draws": exact.sample(count, seed=0)}
    for name, (sampler, options) in runs.items():
        draws[name] = solve(A, y, sampler, backbone=b, sigma_y=sigma, n_samples=count, value_range=(-1, 1), batch_size=count,
                            **options).x  # fmt: skip
    drawn, axes = axes_figure(8.6, 2.1, len(draws), sharex=True, sharey=True)
    table = []
    for one, (name, x) in zip(axes, draws.items(), strict=True):
        flat = x.reshape(-1, 2)
        one.contour(grid, grid, density.reshape(110, 110), levels=6, colors="0.75", linewidths=0.6)
        one.plot(flat[:, 0], flat[:, 1], ".", ms=1.2, color=BLUE if name == "exact draws" else RED, alpha=0.45, mew=0)
        upper = float((flat[:, 1] > 0.15).double().mean())
        error = 0.5 * float((b.responsibilities(x).double().mean(0) - exact.weights).abs().sum())
        one.set_title(f"{name}\n{100 * error:.1f} % misplaced", fontsize=8.5)
        one.set_xlim(-0.6, 0.7)
        one.set_ylim(-0.9, 0.9)
        one.set_xticks([])
        one.set_yticks([])
        table.append({"method": name, "share in the upper mode": round(upper, 3), "mode error": round(error, 3)})
    keep_data("exactness", table, f"{count} samples each, sigma_y = {sigma}, exact denoiser")
    drawn.tight_layout()
    return drawn


# ---- the command ------------------------------------------------------------------------------------------------


@figure
def tables() -> Any:
    """The error of filled tables, from docs/data/tables.json (benchmarks/tables.py)."""
    path = DATA / "tables.json"
    if not path.exists():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    shown = {
        "mean (SimpleImputer)": "#bbbbbb",
        "KNNImputer": "#8c8c8c",
        "IterativeImputer": "#c9a227",
        "IterativeImputer, draws": "#e8c66a",
        "DiffusionImputer": BLUE,
    }
    names = list(dict.fromkeys(key.split("/")[0] for key in found))
    drawn, axes = axes_figure(9, 3.2, 2, sharey=True)
    highest = 1.0
    for axis, mechanism in zip(axes, ("at random", "not at random"), strict=True):
        for j, (method, colour) in enumerate(shown.items()):
            for i, table in enumerate(names):
                values = [
                    v["crps"]
                    for k, v in found.items()
                    if k.startswith(f"{table}/{mechanism}/") and k.endswith(f"/{method}")
                ]
                if not values:
                    continue
                mean, place = sum(values) / len(values), i + (j - 2) * 0.16
                axis.bar(place, min(mean, highest), 0.15, color=colour, label=method if i == 0 else None)
                if mean > highest:
                    axis.annotate(f"{mean:.0f}", (place, highest), ha="center", va="bottom", fontsize=7)
        axis.set_xticks(range(len(names)), names)
        axis.set_title(f"missing {mechanism}", fontsize=10)
    axes[0].set_ylabel("CRPS, in standard deviations", fontsize=9)
    axes[0].legend(fontsize=8, frameon=False, ncol=5, loc="upper center", bbox_to_anchor=(1.05, -0.12))
    drawn.subplots_adjust(left=0.07, right=0.98, bottom=0.2)
    return drawn


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--only", help="names, separated by commas")
    parser.add_argument("--missing", action="store_true", help="leave out those whose file exists")
    parser.add_argument("--list", action="store_true", help="names of the figures")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the work")
    given = parser.parse_args(arguments)
    names = list(_figures) if given.only is None else given.only.split(",")
    if unknown := [n for n in names if n not in _figures]:
        parser.error(f"unknown figure {', '.join(unknown)}; one of {', '.join(_figures)}")
    if given.list:
        print("\n".join(f"{n:20s} {(_figures[n].__doc__ or '').splitlines()[0]}" for n in names))
        return 0
    FIGURES.mkdir(parents=True, exist_ok=True)
    if given.missing:
        names = [n for n in names if not any((FIGURES / f"{n}{e}").exists() for e in (".png", ".gif", ".jpg"))]
    if given.jobs > 1 and len(names) > 1:
        parts = [names[i :: given.jobs] for i in range(given.jobs)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        running = [
            subprocess.Popen([sys.executable, __file__, "--only", ",".join(part)], env=environment)
            for part in parts
            if part
        ]
        return max(process.wait() for process in running)
    failed = []
    for name in names:
        started = time.perf_counter()
        try:
            made = _figures[name]()
        except Exception as error:
            failed.append(name)
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        if made is None:
            print(f"{name}: nothing to draw in this copy")
            continue
        path = made if isinstance(made, Path) else save(made, name)
        if path.suffix == ".gif":
            film(path)
        print(f"{name}: {path.stat().st_size / 1024:.0f} KiB, {time.perf_counter() - started:.1f} s", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
