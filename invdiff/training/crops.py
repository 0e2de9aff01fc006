"""Random crops of photographs at random scales, for a backbone that is to take pictures of any size."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from invdiff.errors import InvdiffError

SIDES = {64: 0.45, 96: 0.3, 128: 0.25}
"""Height and width of the crops of a step, and how often: small ones for variety, large ones for what is far apart."""

SCALES = {1: 0.6, 2: 0.25, 4: 0.15}
"""How many times smaller a photograph is made before it is cut, and how often: detail, and on a sixteenth of the area, layout."""


class Crops:
    """Photographs of any size, each at several scales, and batches of crops of them.

    Args:
        photos: uint8 (3, H, W) each, at least 64 pixels high and wide.
        names: of the photos.
        turned: names or patterns of those that have no up, such as textures: they are turned by quarters as well.
        flips: mirror half of the crops left to right.

    Raises:
        InvdiffError: no photo is large enough for a crop.
    """

    def __init__(
        self, photos: Sequence[Tensor], names: Sequence[str], turned: Sequence[str] = (), flips: bool = True
    ) -> None:
        self.photos, self.flips = list(photos), flips
        self._levels: dict[int, list[tuple[Tensor, bool]]] = {}
        self._areas: dict[tuple[int, int], Tensor] = {}
        free = [any(fnmatch.fnmatch(name, pattern) for pattern in turned) for name in names]
        for scale in SCALES:
            smaller = [photo if scale == 1 else _shrunk(photo, scale) for photo in photos]
            self._levels[scale] = list(zip(smaller, free, strict=True))
            for side in SIDES:
                fits = [p.shape[1] * p.shape[2] if min(p.shape[1:]) >= side else 0 for p in smaller]
                self._areas[scale, side] = torch.tensor(fits, dtype=torch.float64).cumsum(0)
        if not photos or float(self._areas[1, min(SIDES)][-1]) == 0:
            raise InvdiffError(f"data must hold photographs of at least {min(SIDES)} x {min(SIDES)} pixels for crops")

    def __len__(self) -> int:
        return len(self.photos)

    def batch(self, pixels: int, draw: torch.Generator) -> Tensor:
        """Crops of one size, uint8 (N, 3, S, S) with N S^2 about `pixels`, as a function of the state of `draw` (CPU)."""
        side = _pick(SIDES, draw)
        if float(self._areas[1, side][-1]) == 0:
            side = min(SIDES)
        return torch.stack([self._crop(side, draw) for _ in range(max(1, pixels // side**2))])

    def _crop(self, side: int, draw: torch.Generator) -> Tensor:
        scale = _pick(SCALES, draw)
        while float(self._areas[scale, side][-1]) == 0:  # no photo is that large so far down
            scale = max(1, scale // 2)
        areas = self._areas[scale, side]
        where = torch.rand((), generator=draw, dtype=torch.float64) * areas[-1]
        photo, free = self._levels[scale][int(torch.searchsorted(areas, where, right=True).clamp(max=len(areas) - 1))]
        top = int(torch.randint(photo.shape[1] - side + 1, (), generator=draw))
        left = int(torch.randint(photo.shape[2] - side + 1, (), generator=draw))
        mirror, turns = torch.randint(2, (), generator=draw), int(torch.randint(4, (), generator=draw))
        crop = photo[:, top : top + side, left : left + side]
        if self.flips and bool(mirror):
            crop = crop.flip(2)
        return torch.rot90(crop, turns, (1, 2)) if free else crop


def _shrunk(photo: Tensor, scale: int) -> Tensor:
    """The photo with every `scale` x `scale` block averaged."""
    height, width = (n // scale * scale for n in photo.shape[1:])
    if not height or not width:
        return photo[:, :0, :0]
    return F.avg_pool2d(photo[None, :, :height, :width].float(), scale)[0].round().to(torch.uint8)


def _pick(choices: dict[int, float], draw: torch.Generator) -> int:
    """One of the keys, as often as its value says."""
    u, total = float(torch.rand((), generator=draw)), 0.0
    for key, share in choices.items():
        total += share
        if u < total:
            return key
    return next(iter(choices))
