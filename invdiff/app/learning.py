"""The figures of the second tab, each from a few numbers, drawn again whenever one is moved: SVG in the page's own colours."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from invdiff.backbones.schedule import SPACINGS, NoiseSchedule
from invdiff.bench.report.figures import INK, inline_svg
from invdiff.checks import one_of, real, whole
from invdiff.operators import Blur, Colorization, Mask, SuperResolution, gaussian_kernel, make_mask
from invdiff.operators.base import LinearOperator
from invdiff.palette import BLUE, GREY, RED, look
from invdiff.priors import GaussianMixtureBackbone
from invdiff.samplers.paths import PATHS, make_path, network_calls
from invdiff.solve import solve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCHEDULES: dict[str, Callable[[], NoiseSchedule]] = {
    "linear": NoiseSchedule.linear,
    "scaled linear": NoiseSchedule.scaled_linear,
    "cosine": NoiseSchedule.cosine,
}
OPERATORS: dict[str, tuple[tuple[int, int, int], Callable[[], LinearOperator]]] = {
    "mask": ((1, 16, 16), lambda: Mask(make_mask("box", 16))),
    "super-resolution, box, 4 times": ((1, 16, 16), lambda: SuperResolution(4, "box")),
    "super-resolution, bicubic, 4 times": ((1, 16, 16), lambda: SuperResolution(4, "bicubic")),
    "colorization": ((3, 8, 8), Colorization),
    "gaussian blur": ((1, 16, 16), lambda: Blur(gaussian_kernel(9, 1.6))),
}
FILTERS = ("ddnm", "repaint", "replacement", "ddnm+", "ddrm", "diffpir", "pigdm", "dps", "mcg")
"""Samplers whose step is a filter of the residual in closed form."""
TOY = ("ddnm", "replacement", "repaint", "ddnm+", "ddrm", "diffpir", "pigdm", "mcg", "dps", "mmps")
PARTICLES = 250
_Y, _REACH = 0.05, 1.2
_drawing = threading.Lock()  # matplotlib's settings are the process's


def schedule_figure(name: str, steps: int, spacing: str) -> str:
    """Signal and noise over time, and which times are kept.

    Args:
        name: one of `SCHEDULES`.
        steps: times kept.
        spacing: one of the schedule's spacings.
    """
    schedule = SCHEDULES[one_of("schedule", name, SCHEDULES)]()
    kept = schedule.respaced(whole("steps", steps, 1, len(schedule)), one_of("spacing", spacing, SPACINGS)).timesteps
    a = np.asarray(schedule.alpha_bar[:-1])

    def draw(axes: Axes) -> None:
        axes.plot(a**0.5, color=BLUE, label="signal, √ᾱ")
        axes.plot((1 - a) ** 0.5, color=RED, label="noise, √(1 − ᾱ)")
        axes.plot(kept, np.full(len(kept), -0.06), "|", color=INK, ms=8, label=f"the {len(kept)} times kept")
        axes.set_xlabel("time t")
        _legend(axes)

    return _svg(draw, f"{name} schedule, {len(kept)} times kept")


def path_figure(name: str, steps: int, length: int, repeats: int) -> str:
    """A path through time: where the sampler is after every move.

    Args:
        name: one of `PATHS`.
        steps: times kept.
        length, repeats: of the jumps, where the path has some.
    """
    steps = whole("steps", steps, 2, 250)
    given = {"jumps": ("jump_length", "jump_n_sample"), "travel": ("travel_length", "travel_repeat")}
    options = dict(zip(given.get(one_of("path", name, PATHS), ()), (length, repeats), strict=False))
    times = make_path(name, steps, **options)
    calls = network_calls(times)

    def draw(axes: Axes) -> None:
        for (t, s), at in zip(pairwise(times), range(len(times)), strict=False):
            axes.plot([at, at + 1], [t, s], color=BLUE if s < t else RED, lw=1)
        axes.set_xlabel(f"move; {calls} of {len(times) - 1} ask the network")
        axes.set_ylabel("time, of those kept")

    return _svg(draw, f"path {name} over {steps} times, {calls} network calls")


def filter_figure(sampler: str, operator: str, t: int, sigma_y: float) -> str:
    """How much of the residual a sampler takes up at time t, by squared singular value, and which of these the operator has.

    Args:
        sampler: one of `FILTERS`.
        operator: one of `OPERATORS`.
        t: 1 to 999, on the linear schedule of 1,000 times.
        sigma_y: of the noise in y, images in [-1, 1].
    """
    shape, make = OPERATORS[one_of("operator", operator, OPERATORS)]
    values = torch.linalg.svdvals(make().dense(shape).double()) ** 2
    values = values[values > 1e-9 * values.max()].numpy()
    x = np.logspace(np.log10(min(1e-4, values.min())), np.log10(max(1.0, values.max())), 300)
    taken = taken_up(sampler, whole("t", t, 1, 999), real("sigma_y", sigma_y, 0, 2))

    def draw(axes: Axes) -> None:
        axes.semilogx(x, taken(x), color=look(sampler)[0], label=f"{sampler} at t = {t}")
        axes.plot(
            values, taken(values), "o", ms=4, color=look(sampler)[0], alpha=0.5, mew=0, label="the operator's own"
        )
        axes.plot(values, np.full(len(values), -0.06), "|", color=INK, ms=8)
        axes.set_xlabel("squared singular value λ")
        axes.set_ylabel("share of the residual taken up, λ f(λ)")
        axes.set_ylim(-0.1, max(1.1, 1.05 * float(taken(values).max())))
        _legend(axes)

    return _svg(draw, f"filter of {sampler} for {operator} at time {t}")


def taken_up(sampler: str, t: int, sigma_y: float) -> Callable[[Any], Any]:
    """``lambda f(lambda)`` of a sampler at time t: see chapter 10 of the course for each of them."""
    one_of("sampler", sampler, FILTERS)
    schedule = NoiseSchedule.linear()
    a, a_s = schedule.alpha_bar_at(t), schedule.alpha_bar_at(max(0, t - 10))
    ratio = sigma_y**2 * a / (1 - a)  # of the two variances, in the state's clock
    eta = 0.85

    def share(squared: Any) -> Any:
        squared = np.asarray(squared, float)
        s = np.sqrt(squared)
        if sampler in ("ddnm", "repaint", "replacement") or (sigma_y == 0 and sampler not in ("dps", "mcg")):
            return np.ones_like(squared)
        if sampler == "ddnm+":
            c, least = (1 - a_s) ** 0.5, a_s**0.5 * sigma_y
            return np.where(c * s >= least, 1.0, s * c * (1 - eta**2) ** 0.5 / least)
        if sampler == "ddrm":
            sigma_s = ((1 - a_s) / a_s) ** 0.5
            return np.where(sigma_s * s >= sigma_y, 1.0, (1 - eta**2) ** 0.5 * sigma_s * s / sigma_y)
        if sampler == "diffpir":
            return squared / (squared + ratio)
        if sampler == "pigdm":
            return squared / (squared + sigma_y**2 / (1 - a))
        return squared  # dps, mcg: the direction of the gradient

    return share


# ---- particles on a plane ---------------------------------------------------------------------------------------


def plane() -> GaussianMixtureBackbone:
    """A prior on the plane whose posterior given the first number has two unequal modes."""
    means = torch.tensor([[-0.5, -0.55], [-0.15, 0.45], [0.25, -0.2], [0.6, 0.5]]).reshape(4, 1, 1, 2)
    variances = torch.tensor([[0.012, 0.02], [0.03, 0.012], [0.02, 0.02], [0.01, 0.03]]).reshape(4, 1, 1, 2)
    return GaussianMixtureBackbone(torch.tensor([0.3, 0.25, 0.25, 0.2]), means, variances)


@lru_cache(maxsize=32)
def walk(sampler: str, steps: int, sigma_y: float, seed: int) -> tuple[Tensor, ...]:
    """Where `PARTICLES` samples are after every move, (n, 2), the first state left out, what is returned at the end."""
    options: dict[str, Any] = {"steps": steps}
    if sampler == "repaint":
        options |= {"jump_length": max(1, min(10, steps - 1)), "jump_n_sample": 3}
    if sampler in ("replacement", "repaint", "mcg", "dps"):
        options["clip"] = False
    if sampler == "dps":
        options["norm"] = "known"
    y = torch.tensor([[[[_Y, 0.0]]]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answer = solve(
            Mask(torch.tensor([[1.0, 0.0]])),
            y,
            sampler,
            backbone=plane(),
            sigma_y=sigma_y,
            n_samples=PARTICLES,
            batch_size=PARTICLES,
            seed=seed,
            value_range=(-1, 1),
            keep_trajectory=True,
            progress=False,
            **options,
        )
    return (*(frame.x.reshape(-1, 2).clone() for frame in answer.trajectory), answer.x.reshape(-1, 2))


@lru_cache(maxsize=8)
def _density(sigma_y: float) -> tuple[np.ndarray, np.ndarray]:
    grid = torch.linspace(-_REACH, _REACH, 90)
    places = torch.stack(torch.meshgrid(grid, grid, indexing="xy"), -1).reshape(-1, 1, 1, 2)
    exact = plane().posterior(Mask(torch.tensor([[1.0, 0.0]])), torch.tensor([[[[_Y, 0.0]]]]), max(sigma_y, 0.02))
    return grid.numpy(), exact.log_prob(places).exp().reshape(90, 90).numpy()


def plane_figure(sampler: str, steps: int, sigma_y: float, share: float, seed: int = 0) -> str:
    """The particles part of the way, on the exact posterior.

    Args:
        sampler: one of `TOY`.
        steps: times kept.
        sigma_y: noise of the first number.
        share: of the way, 0 to 1.
        seed: of the draws.
    """
    one_of("sampler", sampler, TOY)
    frames = walk(sampler, whole("steps", steps, 2, 200), real("sigma_y", sigma_y, 0.02, 1), whole("seed", seed, 0))
    at = round(real("share", share, 0, 1) * (len(frames) - 1))
    here = frames[at].numpy()
    grid, density = _density(sigma_y)
    upper = float((frames[at][:, 1] > 0.15).double().mean())
    cell = (grid[1] - grid[0]) ** 2
    exact = float(density[grid > 0.15].sum() * cell)

    def draw(axes: Axes) -> None:
        axes.contour(grid, grid, density, levels=6, colors=GREY, linewidths=0.8)
        axes.plot(here[:, 0], here[:, 1], ".", ms=4.5, color=look(sampler)[0], alpha=0.6, mew=0)
        axes.axvspan(_Y - sigma_y, _Y + sigma_y, color=RED, alpha=0.1, lw=0)
        axes.set_xlim(-_REACH, _REACH)
        axes.set_ylim(-_REACH, _REACH)
        axes.set_aspect("equal")
        axes.set_xlabel("the number that is measured (band: y ± σ)")
        axes.set_ylabel("the number that is not")
        axes.set_title(
            f"move {at + 1} of {len(frames)}: {100 * upper:.0f} % in the upper mode, {100 * exact:.0f} % exactly",
            fontsize=9,
            color=INK,
        )

    return _svg(draw, f"{sampler}, {PARTICLES} particles after {at + 1} of {len(frames)} moves", height=4.6)


# ---- drawing ----------------------------------------------------------------------------------------------------


def _svg(draw: Callable[[Axes], None], label: str, width: float = 6.4, height: float = 3.1) -> str:
    from invdiff.plotting import new_figure

    with _drawing:
        figure: Figure = new_figure(width, height)
        axes = figure.add_subplot()
        draw(axes)
        axes.spines[["top", "right"]].set_visible(False)
        for spine in axes.spines.values():
            spine.set_color(INK)
        axes.tick_params(labelsize=8, colors=INK)
        for part in (axes.xaxis.label, axes.yaxis.label):
            part.set_color(INK)
            part.set_fontsize(9)
        figure.tight_layout()
        return f'<div class="drawing">{inline_svg(figure, label)}</div>'


def _legend(axes: Axes) -> None:
    axes.legend(fontsize=8, frameon=False, labelcolor=INK)
