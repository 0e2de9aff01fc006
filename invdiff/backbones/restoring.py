"""A network that restores in one call: it is shown what is known and where, and says the picture."""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from invdiff.backbones.haar import RESTORATION, Description, HaarUNet, haar
from invdiff.backbones.network import NetworkBackbone
from invdiff.errors import InvdiffError


class RestoringUNet(HaarUNet):
    """`HaarUNet` of a picture and its mask: ``network(x, t)`` with x = (masked picture, mask), (B, C + 1, H, W).

    The mask is 1 where the picture is known and 0 where it is missing; what is missing is 0 in the picture too. The time is
    not used. Its output is a whole picture, (B, C, H, W), of which the missing part is of use.

    Made by `invdiff train --task inpaint`; the ``prediction`` of its description is ``"restoration"``.
    """

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out = self.unet(haar(x), t).sample
        return F.conv_transpose2d(out.float(), self.filters.float(), stride=2)

    @classmethod
    def load(cls, folder: str | Path) -> RestoringUNet:
        """The network of a saved folder, float32, in evaluation mode.

        Raises:
            InvdiffError: as `HaarUNet.load`; or the folder holds a denoiser.
        """
        description = Description.read(folder)
        if description.prediction != RESTORATION:
            raise InvdiffError(
                f"{folder} holds a denoiser that predicts {description.prediction}, not a restorer; it is a backbone: "
                "solve(..., backbone=...)"
            )
        network = super().load(folder)
        assert isinstance(network, RestoringUNet)
        return network

    def runner(self, precision: str = "auto", device: object = None) -> NetworkBackbone:
        """The network in the precision and the place that are asked for, run by its method ``network(x, t)``."""
        channels, *size = self.description.image_shape
        assert channels is not None
        return NetworkBackbone(
            self,
            image_shape=(channels + 1, *size),
            prediction="sample",
            precision=precision,
            device=device,  # type: ignore[arg-type]
            copy=False,
            engine="torch",  # converting it would take longer than a thousand calls
            name=self.description.name,
        )
