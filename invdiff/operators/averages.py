"""Known pixels and, where pixels are missing, what is believed of their average: the further measurement of coarse to fine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from invdiff.checks import real
from invdiff.operators.algebra import Stack
from invdiff.operators.mask import Mask
from invdiff.operators.super_resolution import SuperResolution


class MaskAndAverages(Stack):
    """`[M x ; w S (1 - M) x]`: the known pixels, and the averages S over blocks of what is missing in them.

    An average over a block of known and missing pixels says of the missing ones what is left when the known ones are taken
    out, and this is how it enters here: `S x - S M x = S (1 - M) x`. So no pixel is measured twice, A A^T is diagonal, and
    every filter is one multiplication for each row. The weight w stands for the noise of the averages: rows of noise
    sigma / w are rows of noise sigma once multiplied by w, so a sampler that knows one `sigma_y` handles both.

    Args:
        mask: as for `Mask`, 1 = known.
        scale: side of a block, pixels.
        weight: w, the noise of the known pixels over that of the averages.
    """

    def __init__(self, mask: Any, scale: int = 2, weight: float = 1.0) -> None:
        known = mask if isinstance(mask, Mask) else Mask(mask)
        self.averaging = SuperResolution(scale, "box")
        self.weight = real("weight", weight, above=0.0)
        super().__init__([known, self.weight * (self.averaging @ Mask(~known.mask))])
        self.rows_disjoint = True

    def measurement(self, y: Tensor, averages: Tensor) -> Tensor:
        """The measurement (B, m) of known pixels (B, C, H, W), the others not read, and averages (B, C, h, w) of all pixels."""
        known = self.operators[0]
        assert isinstance(known, Mask)
        seen = known(y)
        missing = torch.broadcast_to(~known.mask, (len(seen), *seen.shape[1:])).to(seen.dtype)
        left = self.weight * (averages - self.averaging(seen))
        return self.join([seen, torch.where(self.averaging(missing) > 0, left, 0.0)])

    def __repr__(self) -> str:
        return f"MaskAndAverages({self.operators[0]!r}, {self.averaging.scale}, weight={self.weight:g})"
