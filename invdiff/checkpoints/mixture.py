"""Gaussian mixtures in a safetensors file, alone or the only one of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from invdiff.backbones.base import Backbone
from invdiff.backbones.haar import DESCRIPTION, Description
from invdiff.backbones.schedule import NoiseSchedule
from invdiff.backbones.weights_file import CONFIG
from invdiff.checkpoints.formats import Format, call, register_format
from invdiff.checkpoints.reading import metadata
from invdiff.files import check_sha256


@register_format("mixture")
class Mixture(Format):
    """What `GaussianMixtureBackbone.save` writes."""

    def matches(self, path: Path) -> str | None:
        from invdiff.priors.mixture import FORMAT

        file = _file(path)
        if file is None:
            return "it holds no single .safetensors file of a mixture model"
        found = metadata(file).get("format")
        return None if found == FORMAT else "it does not say of itself that it is a Gaussian mixture"

    def load(self, path: Path, **options: Any) -> Backbone:
        return call(load_mixture, "mixture", path, options)


def load_mixture(
    path: Path,
    *,
    schedule: NoiseSchedule | None = None,
    device: torch.device | str | None = None,
    precision: str = "auto",
    compile: bool = False,
) -> Backbone:
    """A mixture model; where an ``invdiff.json`` stands beside it, its checksum is verified.

    Args:
        path: the file, or a folder with no other safetensors file.
        schedule: other times than those it was saved with.
        device: where to put it; the CPU by default.
        precision, compile: of no effect: a mixture keeps the precision of its parameters and has no network.

    Raises:
        InvdiffError: a damaged file, or one of another kind.
    """
    from invdiff.priors.mixture import GaussianMixtureBackbone

    file = _file(path) or path
    if (file.parent / DESCRIPTION).is_file() and not (file.parent / CONFIG).is_file():
        check_sha256(file, Description.read(file.parent).sha256)
    return GaussianMixtureBackbone.load(file, schedule=schedule, device="cpu" if device is None else device)


def _file(path: Path) -> Path | None:
    if path.is_file():
        return path
    files = sorted(path.glob("*.safetensors")) if not (path / CONFIG).exists() else []
    return files[0] if len(files) == 1 else None
