"""EDM's published networks are pickles that hold code: named for what they are, never run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from invdiff.backbones.base import Backbone
from invdiff.checkpoints.formats import Format, register_format
from invdiff.errors import InvdiffError


@register_format("edm")
class EDMPickle(Format):
    """``edm-ffhq-64x64-uncond-vp.pkl`` and the like (Karras et al., 2022)."""

    def matches(self, path: Path) -> str | None:
        if not path.is_file():
            return "it is a folder, not a checkpoint file"
        return None if path.suffix == ".pkl" else "its name does not end in .pkl"

    def load(self, path: Path, **options: Any) -> Backbone:
        raise InvdiffError(
            f"{path} is a pickle, as EDM's published networks are: it holds code, which is not run here. If you trust it, load it "
            "where their code can be imported, and hand the network to the adapter: "
            f'net = pickle.load(open("{path.name}", "rb"))["ema"]; from invdiff.backbones import EDMBackbone; '
            "backbone = EDMBackbone(net, image_shape=(net.img_channels, net.img_resolution, net.img_resolution))"
        )
