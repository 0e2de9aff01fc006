"""Recorded runs of the authors' code, and the same runs by this library; see README.md beside this."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import invdiff as iv

GOLDEN = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Recording:
    """One run: the settings, what went in, what came out.

    Attributes:
        name: of the file and the run, such as ``"dps_inpaint/gauss.fixed"``.
        settings: of the authors' code.
        inputs: mask, measurement and the like, by name.
        outputs: `x0`, `xs`, `xs_idx`, `t`, ...
    """

    name: str
    settings: dict[str, Any]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]

    @property
    def kind(self) -> str:
        """The denoiser: gauss or gausscorr."""
        return self.name.split("/")[1].split(".")[0]

    @property
    def noise(self) -> str:
        """fixed or zero."""
        return self.name.split("/")[1].split(".")[1]


def recordings() -> list[Recording]:
    """Every run whose sampler `sampler_of` knows."""
    found = []
    for path in sorted(GOLDEN.glob("*.json")):
        settings = json.loads(path.read_text())
        arrays = {k: torch.from_numpy(v) for k, v in np.load(path.with_suffix(".npz")).items()}
        runs = settings["runs"]
        inputs = {k: v for k, v in arrays.items() if not k.startswith(tuple(f"{r}." for r in runs))}
        for run in runs:
            outputs = {k.removeprefix(f"{run}."): v for k, v in arrays.items() if k.startswith(f"{run}.")}
            one = Recording(f"{path.stem}/{run}", settings, inputs, outputs)
            if settings["algo"] in SAMPLERS and not (settings["algo"] == "reddiff_ddrm" and one.noise == "fixed"):
                found.append(one)  # DDRM's authors draw in a basis of their own
    return found


def replay(recording: Recording) -> iv.Solution:
    """The run with this library's sampler, on the same denoiser, measurement, first state and noise."""
    settings, inputs, outputs = recording.settings, recording.inputs, recording.outputs
    shape = tuple(outputs["x0"].shape[1:])
    backbone = iv.NetworkBackbone(
        denoiser(recording.kind, shape[-1]), image_shape=shape, learned_variance=True, precision="float32"
    )
    starts_recorded = int(outputs["xs_idx"][0]) == 0
    return iv.solve(
        _operator(settings, inputs),
        next(inputs[k] for k in ("y_img", "y", "x_true") if k in inputs),
        SAMPLERS[settings["algo"]](settings),
        backbone=backbone,
        sigma_y=_sigma_y(settings),
        value_range=(-1, 1),
        x_init=outputs["xs"][0] if starts_recorded else inputs["x_T"],
        noise=noise(recording.noise),
        progress=False,
    )


def same_times(recording: Recording, asked: list[int]) -> bool:
    """Whether the network was asked at the recorded times. DiffPIR's code asks once more at the end, for nothing."""
    recorded = recording.outputs["t"].tolist()
    surplus = recording.settings.get("iter_num_U", 1) if recording.settings["algo"] == "diffpir" else 0
    return asked in [recorded[: len(recorded) - k] for k in range(surplus + 1)]


@cache
def denoiser(kind: str, size: int) -> Callable[[Tensor, Tensor], Tensor]:
    """``network(x, t)`` -> (B, 6, H, W): the noise that a Gaussian prior expects, and -1, the smaller of the two variances."""
    arrays = np.load(GOLDEN / f"denoiser_{kind}{size}.npz")
    mean, variance = (torch.from_numpy(arrays[k]) for k in ("mu", "s2" if kind == "gausscorr" else "var"))
    levels = iv.NoiseSchedule.linear().alpha_bar

    def network(x: Tensor, t: Tensor) -> Tensor:
        a = levels[t.cpu()].reshape(-1, 1, 1, 1)
        weight = ((1 - a).sqrt() / (a * variance.double() + 1 - a)).float()
        centred = x - a.sqrt().float() * mean
        if kind == "gausscorr":
            eps = torch.fft.irfft2(weight * torch.fft.rfft2(centred), s=x.shape[-2:])
        else:
            eps = weight * centred
        return torch.cat([eps, -torch.ones_like(eps)], 1)

    return network


def noise(kind: str) -> Callable[[tuple[int, ...]], Tensor]:
    """What `solve(noise=...)` takes."""
    if kind == "zero":
        return torch.zeros
    flat = torch.from_numpy(np.load(GOLDEN / "noise_flat.npz")["step"])
    return lambda shape: flat[: math.prod(shape)].reshape(shape).clone()


def _repaint(c: dict[str, Any]) -> iv.Sampler:
    jump = c["schedule_jump_params"]
    return iv.RePaint(
        steps=jump["t_T"],
        jump_length=jump["jump_length"],
        jump_n_sample=jump["jump_n_sample"],
        clip=c["clip_denoised"],
        paste_known=False,
    )


def _ddnm(c: dict[str, Any]) -> iv.Sampler:
    method = iv.DDNMPlus if c["sigma_y_used"] > 0 else iv.DDNM
    travel = {k: c[k] for k in ("travel_length", "travel_repeat")}
    return method(steps=c["T_sampling"], eta=c["eta"], **travel)


def _diffpir(c: dict[str, Any]) -> iv.Sampler:
    return iv.DiffPIR(
        steps=c["iter_num"],
        lambda_=c["lambda_"] / 4,  # their sigma is on a scale of [0, 1] for images in [-1, 1]
        zeta=c["zeta"],
        eta=c["eta"],
        spacing=c["skip_type"],
        guidance_scale=c.get("guidance_scale", 1.0),
        inner_iterations=c.get("iter_num_U", 1),
        ending="state",
    )


def _mcg(c: dict[str, Any]) -> iv.Sampler:
    steps = int(c["timestep_respacing"])
    return iv.MCG(steps=steps, scale=c["weight"], clip=c["clip_denoised"], known_level="source")


def _pigdm(c: dict[str, Any]) -> iv.Sampler:
    own = c["cfg_algo"]
    project = c["operator"].startswith("in2")
    return iv.PiGDM(steps=c["num_steps"], eta=own["eta"], weight=own["grad_term_weight"], project=project)


def _dps(c: dict[str, Any]) -> iv.Sampler:
    return iv.DPS(steps=c["timestep_respacing"], scale=c["scale"], clip=c["clip_denoised"])


def _ddrm(c: dict[str, Any]) -> iv.Sampler:
    return iv.DDRM(steps=c["num_steps"], eta=c["cfg_algo"]["eta"], eta_b=c["cfg_algo"]["eta_b"])


SAMPLERS: dict[str, Callable[[dict[str, Any]], iv.Sampler]] = {
    "repaint": _repaint,
    "ddnm_svd": _ddnm,
    "diffpir": _diffpir,
    "mcg_official": _mcg,
    "reddiff_pgdm": _pigdm,
    "dps_official": _dps,
    "reddiff_ddrm": _ddrm,
}
"""The authors' names of their methods -> ours, with their settings."""


def _operator(c: dict[str, Any], inputs: dict[str, Tensor]) -> iv.LinearOperator:
    if "mask" in inputs:
        return iv.Mask(inputs["mask"])
    name = c["operator"]
    scale = int(c["sf"]) if "sf" in c else int("".join(letter for letter in name if letter.isdigit()))
    return iv.SuperResolution(scale, "box")


def _sigma_y(c: dict[str, Any]) -> float:
    if c["algo"] == "diffpir":
        return 2 * max(0.001, c["sigma_n"])
    return c["sigma_y_used"] if c["algo"] in ("ddnm_svd", "reddiff_ddrm") else 0.0
