"""Recorded outputs of the authors' own code, and what they were made with: denoisers, noise, measurements.

A recording is a pair of files. The JSON says which algorithm with which settings, the archive of arrays holds the inputs
(``x_true``, ``y``, ``x_T``, ``mask``, ...) and, per run such as ``gauss.fixed``, what came out (``x0``, some states ``xs``,
the network's times ``t``). The first word of a run names the denoiser, the second the noise: every draw of a shape
returned one fixed tensor (``fixed``) or zeros (``zero``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invdiff import NetworkBackbone, NoiseSchedule
from invdiff.checkpoints import load_guided_diffusion
from invdiff.operators import Colorization, Identity, LinearOperator, Mask, SuperResolution

TOLERANCE = 1e-4
"""Largest absolute difference that passes, where a recording does not state a larger round-off of its own."""

Noise = Callable[[tuple[int, ...]], Tensor]


@dataclass(frozen=True)
class Outcome:
    """One run replayed.

    Attributes:
        run: its name within the recording.
        difference: the largest absolute difference from what was recorded.
        tolerance: what passes.
        note: what else there is to say; "" if nothing.
        failed: a difference that is no number: another list of network times, an error.
        followed: False for a switch of the authors' code that the library has no counterpart of; the note says which.
    """

    run: str
    difference: float
    tolerance: float = TOLERANCE
    note: str = ""
    failed: bool = False
    followed: bool = True

    @property
    def passed(self) -> bool:
        return not self.followed or (not self.failed and self.difference <= self.tolerance)  # a NaN does not pass


class Recording:
    """A pair of files: settings, inputs and runs.

    Args:
        path: the JSON.

    Attributes:
        name, folder: where it lies.
        config: the JSON.
        inputs: arrays that belong to no run.
        runs: run -> its arrays, and what the JSON says about it under ``"about"``.
    """

    def __init__(self, path: Path) -> None:
        self.name, self.folder = path.stem, path.parent
        self.config: dict[str, Any] = json.loads(path.read_text())
        about = self.config.get("runs", {})
        self.runs: dict[str, dict[str, Any]] = {run: {"about": about[run]} for run in about}
        self.inputs: dict[str, Tensor] = {}
        arrays = path.with_suffix(".npz")
        if arrays.exists():
            with np.load(arrays) as stored:
                for key in stored.files:
                    value = torch.from_numpy(stored[key])
                    run = next((r for r in self.runs if key.startswith(f"{r}.")), None)
                    if run is None:
                        self.inputs[key] = value
                    else:
                        self.runs[run][key[len(run) + 1 :]] = value

    @property
    def algorithm(self) -> str:
        """What the JSON calls it; a tiny checkpoint with its output is known by what lies beside it."""
        if "algo" in self.config:
            return str(self.config["algo"])
        return "guided_diffusion checkpoint" if "unet_kwargs" in self.config else f"{self.name} checkpoint"

    @property
    def double(self) -> bool:
        """Whether the authors' code was run in float64."""
        return "float64" in str(self.config.get("precision", ""))

    def tolerance(self, run: str, array: str = "x0") -> float:
        """1e-4, or the round-off of the authors' own float32 code where the recording states a larger one."""
        key = "official_float32_minus_this_golden_max_abs"
        stated = self.config.get(key, {})
        found = stated.get(f"{run}.{array}", 0.0) if isinstance(stated, dict) else stated
        about = self.runs[run]["about"].get(key, 0.0)
        return max(TOLERANCE, float(found), float(about.get(array, 0.0) if isinstance(about, dict) else about))

    def measurement(self) -> Tensor:
        """y in the shape that the library's operators give it."""
        for key in ("y_img", "y", "x_true"):
            if key in self.inputs and self.inputs[key].ndim == 4:
                return self.inputs[key]
        return self.inputs["y"]

    def operator(self) -> LinearOperator:
        """A, from the recorded mask or from its name.

        Raises:
            KeyError: a name that says nothing to us.
        """
        name = str(self.config["operator"])
        if "mask" in self.inputs and name.startswith(("inpainting", "in2", "inp")):
            return Mask(self.inputs["mask"])
        if name.startswith("color"):
            return Colorization(weights=(0.3333, 0.3334, 0.3333))
        if name.startswith("deno"):
            return Identity()
        if name == "sr_averagepooling":
            return SuperResolution(int(self.config["scale"]), kernel="box")
        if name.startswith("sr block average"):
            return SuperResolution(int(self.config["sf"]), kernel="box")
        if name.startswith("sr") and name[2:].split("_")[0].isdigit():
            return SuperResolution(int(name[2:].split("_")[0]), kernel="box")
        raise KeyError(f"operator {name!r}")

    def first_state(self, run: str) -> Tensor:
        """What the network saw first, where it was kept, else x_T."""
        arrays = self.runs[run]
        if "xs" in arrays and int(arrays["xs_idx"][0]) == 0:
            return arrays["xs"][0]
        return self.inputs["x_T"]

    def noise(self, mode: str) -> Noise:
        """What `solve(noise=...)` takes: a function of the shape alone."""
        flat = _arrays(self.folder / "noise_flat.npz")["step"]
        if mode == "zero":
            return lambda shape: torch.zeros(tuple(shape))
        return lambda shape: flat[: math.prod(shape)].reshape(tuple(shape)).clone()

    def network(self, kind: str, size: int, double: bool = False) -> Denoiser:
        """The denoiser of a run, by the first word of its name."""
        return Denoiser(self.folder, kind, size, double)

    def backbone(self, run: str, double: bool | None = None) -> NetworkBackbone:
        """The denoiser of a run as the library takes it: in float64 where the authors' code was."""
        double = self.double if double is None else double
        size = self.inputs["x_true"].shape[-1]
        made = Double if double else NetworkBackbone
        return made(
            self.network(run.split(".")[0], size, double),
            schedule=NoiseSchedule.linear(1000),
            image_shape=(3, size, size),
            learned_variance=True,
            precision="float32",
        )


class Double(NetworkBackbone):
    """A network that is run as it is, with a state in float64."""

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64


class Denoiser:
    """A network (x, t) -> (B, 6, H, W) = [epsilon, v], as the recordings' authors' code was given.

    ``gauss`` and ``gausscorr`` are exact for a Gaussian prior with a diagonal and a stationary covariance, with v = -1
    (the smaller fixed variance). ``gaussunet`` adds a tiny network to the first, and takes v from it; ``unet`` is that
    network alone. Times may lie between the whole ones where `alpha_bar` says which level they have.
    """

    def __init__(self, folder: Path, kind: str, size: int, double: bool = False) -> None:
        stored = "gausscorr" if kind == "gausscorr" else "gauss"
        arrays = _arrays(folder / f"denoiser_{stored}{size}.npz")
        self.kind, self.dtype = kind, torch.float64 if double else torch.float32
        self.mean = arrays["mu"].to(self.dtype)
        self.spread = arrays["s2" if kind == "gausscorr" else "var"].double()
        self.unet = tiny_network(folder, double) if "unet" in kind else None

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        a = alpha_bar(t, len(x))
        if self.unet is not None and self.kind == "unet":
            return self.unet(x, t)
        weight = ((1 - a).sqrt() / (a * self.spread + 1 - a)).to(self.dtype)
        r = x - a.sqrt().to(self.dtype) * self.mean
        if self.kind == "gausscorr":
            eps = torch.fft.irfft2(weight * torch.fft.rfft2(r), s=x.shape[-2:])
        else:
            eps = weight * r
        if self.unet is None:
            return torch.cat([eps, -torch.ones_like(eps)], 1)
        out = self.unet(x, t)
        return torch.cat([eps - 0.4 * a.sqrt().to(self.dtype) * torch.tanh(out[:, :3]), out[:, 3:]], 1)


def alpha_bar(t: Tensor, batch: int) -> Tensor:
    """The level of a time, (B, 1, 1, 1): the table's at whole times, else that of the continuous process
    ``exp(-0.1 u - 9.95 u^2)``, u = t / 999, which the table of 1,000 betas approximates."""
    t = torch.as_tensor(t).reshape(-1).cpu().expand(batch)
    if t.is_floating_point():
        u = t.double() / 999
        level = torch.exp(-0.1 * u - 9.95 * u**2)
    else:
        level = NoiseSchedule.linear(1000).alpha_bar[t.long()]
    return level.reshape(-1, 1, 1, 1)


@cache
def tiny_network(folder: Path, double: bool = False) -> Callable[[Tensor, Tensor], Tensor]:
    """The tiny checkpoint in guided-diffusion's own layout, through the library's loader."""
    config = folder / "unet_adm_tiny.json"
    if not config.exists():  # later recordings use the denoisers of the first
        folder, config = folder.parent / "golden", folder.parent / "golden" / "unet_adm_tiny.json"
    options = json.loads(config.read_text())["unet_kwargs"]
    backbone = load_guided_diffusion(folder / "unet_adm_tiny.pt", precision="float32", **options)
    if not double:
        return backbone.network
    module: Any = backbone.module
    module = module.double()

    def network(x: Tensor, t: Tensor) -> Tensor:
        out = module(x, t)
        return out if isinstance(out, Tensor) else out[0]

    return network


@cache
def _arrays(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        path = path.parents[1] / "golden" / path.name
    with np.load(path) as stored:
        return {key: torch.from_numpy(stored[key]) for key in stored.files}


def recordings(folder: Path, names: Sequence[str] = ()) -> Iterator[Recording]:
    """The recordings of a folder, in alphabetical order; with `names` those whose name begins with one of them."""
    for path in sorted(folder.glob("*.json")):
        if not names or path.stem.startswith(tuple(names)):
            yield Recording(path)


def largest_difference(a: Tensor, b: Tensor) -> float:
    """``max |a - b|`` in float64; infinite where the shapes differ."""
    if a.shape != b.shape:
        return math.inf
    return float((a.double() - b.double()).abs().max())
