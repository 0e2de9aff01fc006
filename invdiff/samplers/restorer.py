"""A network that restores in one call, beside the samplers: what a method trained for one task buys, and where it ends."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from invdiff.backbones.haar import DESCRIPTION, RESTORATION, Description
from invdiff.backbones.network import NetworkBackbone
from invdiff.backbones.restoring import RestoringUNet
from invdiff.checks import shown
from invdiff.errors import InvdiffError, near_match
from invdiff.options import option
from invdiff.problem import Problem
from invdiff.samplers.base import Sampler, register_sampler, sampler_class
from invdiff.samplers.baselines import Baseline

EMBEDDED_RESTORERS = Path(__file__).parents[1] / "backbones" / "restorers"
"""The embedded ones, one folder each."""


@register_sampler("restorer")
@dataclass(frozen=True)
class Restorer(Baseline):
    """A network of `invdiff train --task inpaint`: it is shown y and the mask, and says what is missing, in one call.

        solve(Mask(m), y, Restorer("runs/mine"))
        solve(Mask(m), y, "runs/mine")

    It was taught the kinds of holes and the kind of pictures that it saw, of one size, and gives one answer, near the mean of
    those that are possible. It asks no backbone and draws nothing; known pixels stay as they are. Pixels of which a channel is
    missing are missing to it.
    """

    weights: str = option(
        "cats64-inpaint", "an embedded restorer, or a folder written by `invdiff train --task inpaint`"
    )

    takes: ClassVar[str] = "masks of pictures of the size that it was trained on"
    consistent: ClassVar[bool] = True
    learned: ClassVar[bool] = True
    paper: ClassVar[str] = "Pathak et al., Context Encoders: Feature Learning by Inpainting, CVPR 2016 (the idea)"

    def reason(self, problem: Problem) -> str:
        if problem.operator.task != "mask":
            return "it is for masks"
        shape = tuple(Description.read(restorer_folder(self.weights)).image_shape)
        if tuple(problem.image_shape) != shape:
            return f"it is for pictures of {' x '.join(map(str, shape))} (channels, height, width)"
        return ""

    def restore(self, problem: Problem) -> Tensor:
        known, y = problem.known_pixels, problem.y
        if known is None:
            return problem.pinv_y
        seen = torch.broadcast_to(known, y.shape).all(1, keepdim=True)
        network = _runner(str(restorer_folder(self.weights)), str(y.device))
        times = torch.zeros(len(y), dtype=torch.long, device=y.device)
        out = network.network(torch.cat([y * seen, seen.to(y)], 1).float(), times)
        return torch.where(known, y, out.to(y))


def restorer_folder(name: str) -> Path:
    """The folder of a restorer, by its name or path.

    Raises:
        InvdiffError: neither.
    """
    for folder in (EMBEDDED_RESTORERS / name, Path(name).expanduser()):
        if name and (folder / DESCRIPTION).is_file():
            return folder
    names = sorted(f.name for f in EMBEDDED_RESTORERS.iterdir()) if EMBEDDED_RESTORERS.is_dir() else []
    raise InvdiffError(
        f"weights must be an embedded restorer ({', '.join(names) or 'none here'}) or a folder written by "
        f"`invdiff train --task inpaint`, got {shown(name)}.{near_match(name, names)}"
    )


def named(name: str) -> tuple[type[Sampler], dict[str, Any]]:
    """What a name or path that stands for a sampler means: its class, and the fields that the name sets.

    Raises:
        InvdiffError: no sampler of that name, and no restorer's folder either.
    """
    try:
        description = Description.read(restorer_folder(name))
    except (InvdiffError, OSError, ValueError):
        return sampler_class(name), {}
    return (Restorer, {"weights": name}) if description.prediction == RESTORATION else (sampler_class(name), {})


@lru_cache(maxsize=4)
def _runner(folder: str, device: str) -> NetworkBackbone:
    return RestoringUNet.load(folder).runner(device=device)
