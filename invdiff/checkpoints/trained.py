"""Folders written by `invdiff train`: a network, its configuration and a description with the checksum of the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from invdiff.backbones.base import Backbone
from invdiff.backbones.haar import DESCRIPTION, RESTORATION, Description, HaarUNet
from invdiff.backbones.local_unet import LocalUNet
from invdiff.backbones.network import NetworkBackbone
from invdiff.backbones.weights_file import CONFIG
from invdiff.checkpoints.formats import Format, accepted_options, register_format
from invdiff.checks import known
from invdiff.errors import InvdiffError
from invdiff.files import read_json


@register_format("invdiff")
class Trained(Format):
    """A folder with ``invdiff.json`` and ``config.json``."""

    def matches(self, path: Path) -> str | None:
        if not path.is_dir():
            return "it is a file, not a folder written by `invdiff train`"
        for name in (DESCRIPTION, CONFIG):
            if not (path / name).is_file():
                return f"it holds no {name} (written by `invdiff train`)"
        return None

    def load(self, path: Path, **options: Any) -> Backbone:
        # What the folder says itself is no option.
        names = set(accepted_options(NetworkBackbone)) - {"schedule", "image_shape", "prediction", "learned_variance"}
        known("format invdiff", options, sorted(names))
        if Description.read(path).prediction == RESTORATION:
            raise InvdiffError(
                f"{path} holds a network that restores in one call, which is no backbone but a sampler: "
                f"solve(..., sampler={str(path)!r})"
            )
        local = read_json(path / CONFIG).get("_class_name") == LocalUNet.__name__
        return LocalUNet.load(path).backbone(**options) if local else HaarUNet.load(path).backbone(**options)
