"""Pictures larger than a network or than the memory: tiles of a network of any size, windows of one of a single size."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from invdiff.backbones.base import Backbone, Prediction, WrappedBackbone
from invdiff.backbones.network import checked_shape, pad_to_multiple
from invdiff.backbones.schedule import NoiseSchedule
from invdiff.checks import real, whole
from invdiff.errors import InvdiffError
from invdiff.regions import Tile

PatchedT = TypeVar("PatchedT", bound="Patched")

TILE = 1024
"""Pixels to a side of the tiles that a large picture is computed in."""
GRADIENT_TILE = 384
"""The same under a gradient, which holds all activations of one tile at a time."""
_NUMBERS_PER_BATCH = 2**19  # of windows evaluated at once: 42 of 64x64, 2 of 256x256


class Patched(WrappedBackbone):
    """A backbone that asks another one about parts of the picture, one after the other, and joins the answers."""

    def _around(self: PatchedT, backbone: Backbone) -> PatchedT:
        other = copy.copy(self)
        other.wrap(backbone)
        return other

    @property
    def precision(self) -> str:
        """Of the network."""
        return str(getattr(self.backbone, "precision", str(self.dtype).removeprefix("torch.")))

    def with_precision(self: PatchedT, precision: str) -> PatchedT:
        """The same, its network run in another precision."""
        change = getattr(self.backbone, "with_precision", None)
        return self if change is None else self._around(change(precision))

    def to(self: PatchedT, device: torch.device | str) -> PatchedT:
        return self._around(self.backbone.to(device))

    def select(self: PatchedT, images: Tensor) -> PatchedT:
        return self._around(self.backbone.select(images))

    def on(self: PatchedT, schedule: NoiseSchedule) -> PatchedT:
        return self._around(self.backbone.on(schedule))

    def _asked(self, backbone: Backbone, x_t: Tensor, t: int | Tensor) -> Tensor:
        """The prediction for one part, its members joined along the channels: (B, 2 C or 3 C, h, w).

        Under a gradient nothing of it is kept but its input: it is computed again in the backward pass.
        """

        def ask(x: Tensor) -> Tensor:
            return _joined(backbone.predict(x, t))

        if torch.is_grad_enabled() and x_t.requires_grad:
            return checkpoint(ask, x_t, use_reentrant=False, preserve_rng_state=False)
        return ask(x_t)


class Tiles(Patched):
    """A backbone of any size, computed in tiles with a halo as wide as its field of view: the whole, to rounding.

    `solve` does this by itself for pictures above a budget of pixels (`in_tiles`). Memory is that of one tile with its
    halo, forwards and, since each tile is computed again in the backward pass, for gradients too.

    Args:
        backbone: of any size, with a bounded `field_of_view`.
        tile: pixels to a side of a tile without its halo; `TILE` by default, `GRADIENT_TILE` under a gradient.

    Raises:
        InvdiffError: a backbone of one size, or one whose every pixel may depend on the whole picture.
    """

    def __init__(self, backbone: Backbone, tile: int | None = None) -> None:
        if not backbone.any_size or backbone.field_of_view is None:
            raise InvdiffError(
                "backbone must take any size and say how far a prediction looks (field_of_view) to be computed in tiles, got "
                f"{backbone.name}; for a network of one size there is Windows(backbone, (C, H, W))"
            )
        self.tile = None if tile is None else whole("tile", tile, low=1)
        self.wrap(backbone)

    def wrap(self, backbone: Backbone) -> None:
        super().wrap(backbone)
        self.image_shape, self._any_size = backbone.image_shape, True
        self.multiple_of, self.field_of_view = backbone.multiple_of, backbone.field_of_view

    def sized(self: PatchedT, image_shape: Sequence[int]) -> PatchedT:
        return self._around(self.backbone.sized(image_shape))

    def predict(self, x_t: Tensor, t: int | Tensor) -> Prediction:
        height, width = x_t.shape[-2:]
        multiple, reach = self.multiple_of, self.field_of_view or 0
        x = pad_to_multiple(x_t, multiple)
        side = self.tile or (GRADIENT_TILE if torch.is_grad_enabled() and x.requires_grad else TILE)
        side = -(-side // multiple) * multiple
        halo = -(-reach // multiple) * multiple
        rows, columns = (list(_tiles(length, side, halo)) for length in x.shape[-2:])
        lines = []
        for (top, bottom), (above, below) in rows:
            line = []
            for (left, right), (before, after) in columns:
                part = x[..., above:below, before:after]
                joined = self._asked(self.backbone, part, t)
                line.append(joined[..., top - above : bottom - above, left - before : right - before])
            lines.append(torch.cat(line, -1))
        return _parted(torch.cat(lines, -2)[..., :height, :width], x_t.shape[1])

    def __repr__(self) -> str:
        return f"Tiles({self.backbone!r})"


class Near(Patched):
    """A backbone that is asked about some tiles of the picture only; everywhere else the picture is known.

    There x0 is the picture itself, and the noise is what is then left of x_t. `solve` does this by itself for holes whose box is
    mostly known (`plan_restoration`).

    Args:
        backbone: of any size.
        tiles: what it is asked about, and what is kept of the answer.
        picture: (B or 1, C, H, W), model range; not read where an answer is kept.
    """

    def __init__(self, backbone: Backbone, tiles: Sequence[Tile], picture: Tensor) -> None:
        self.tiles, self.picture = tuple(tiles), picture
        self.wrap(backbone)

    def wrap(self, backbone: Backbone) -> None:
        super().wrap(backbone)
        self.image_shape, self._any_size = backbone.image_shape, backbone.any_size

    def select(self, images: Tensor) -> Near:
        other = self._around(self.backbone.select(images))
        other.picture = self.picture if len(self.picture) == 1 else self.picture[images]
        return other

    def predict(self, x_t: Tensor, t: int | Tensor) -> Prediction:
        known = Prediction.from_x0(x_t, self.picture.expand_as(x_t), self.alpha_bar(t, x_t))
        joined = _joined(known)
        for tile in self.tiles:
            found = self._asked(self.backbone, tile.seen.of(x_t), t)
            if found.shape[1] > joined.shape[1]:  # of what is known the next state is known too: the least variance
                joined = torch.cat([joined, _least_variance(self.schedule, x_t, t)], 1)
            top, left = tile.kept.top - tile.seen.top, tile.kept.left - tile.seen.left
            kept = found[..., top : top + tile.kept.height, left : left + tile.kept.width]
            tile.kept.of(joined).copy_(kept)
        return _parted(joined, x_t.shape[1])

    def __repr__(self) -> str:
        return f"Near({self.backbone!r}, {len(self.tiles)} tiles)"


class Windows(Patched):
    """A backbone of one size on larger pictures: the predictions of overlapping windows, averaged.

        backbone = Windows(load_backbone("cats64"), (3, 256, 384))

    MultiDiffusion (Bar-Tal et al., ICML 2023): in every step, every window is denoised by itself and a pixel takes the mean
    of the windows that it lies in, here weighted by sin^2 along both axes, so that no window's border shows. From step
    to step the windows are shifted, by an amount that is a function of the time only. Pictures smaller than a window are
    padded by reflection. Windows are evaluated in batches, whose size bounds the memory; under a gradient each batch is
    computed again in the backward pass.

    Args:
        backbone: of one size (C, h, w).
        image_shape: (C, H, W) of the pictures; by default any size, as `solve` finds it.
        overlap: share of a window that the next one covers too, 0 to below 1.
        shift: move the windows from step to step.
        batch_size: windows evaluated at once; by default as many as hold half a million elements.

    Raises:
        InvdiffError: a backbone that takes any size and needs no windows, other channels, or an argument out of its range.
    """

    def __init__(
        self,
        backbone: Backbone,
        image_shape: Sequence[int] | None = None,
        *,
        overlap: float = 0.5,
        shift: bool = True,
        batch_size: int | None = None,
    ) -> None:
        if backbone.any_size:
            raise InvdiffError(
                f"backbone must be of one size to need windows, got {backbone.name}, which {backbone.sizes_taken()}"
            )
        self.overlap = real("overlap", overlap, 0.0, 0.99)
        self.shift = bool(shift)
        self.batch_size = None if batch_size is None else whole("batch_size", batch_size, low=1)
        self.wrap(backbone)
        channels = backbone.image_shape[0]
        self.image_shape = checked_shape((channels, None, None) if image_shape is None else image_shape)
        if self.image_shape[0] != channels:
            raise InvdiffError(f"image_shape must have the backbone's {channels} channels, got {self.image_shape}")
        self._any_size = True

    @property
    def window(self) -> tuple[int, int]:
        """(height, width) of a window."""
        return self.backbone.image_shape[1], self.backbone.image_shape[2]

    @property
    def context(self) -> int | None:
        return -(-max(self.window) // 2)

    def unshifted(self) -> Windows:
        """The same with windows that stay where they are."""
        other = copy.copy(self)
        other.shift = False
        return other

    def places(self, size: Sequence[int], t: int = 0) -> list[tuple[int, int]]:
        """(top, left) of every window on a picture of `size` (height, width), not smaller than a window, at time t."""
        moment = self.schedule.timestep(t) if self.shift else 0
        axes = []
        for length, window, step in zip(size, self.window, _IRRATIONAL, strict=True):
            stride = max(1, round(window * (1 - self.overlap)))
            offset = int(stride * (moment * step % 1.0))
            last = length - window
            axes.append(sorted({min(max(k - offset, 0), last) for k in range(0, last + offset + stride, stride)}))
        rows, columns = axes
        return [(top, left) for top in rows for left in columns]

    def predict(self, x_t: Tensor, t: int | Tensor) -> Prediction:
        if isinstance(t, Tensor) and t.ndim > 0:
            if len(t) > 1 and bool((t != t[0]).any()):  # the windows lie elsewhere at every time
                alone = [self.select(torch.tensor([i])).predict(x_t[i : i + 1], int(t[i])) for i in range(len(t))]
                return _parted(torch.cat([_joined(one) for one in alone]), x_t.shape[1])
            t = int(t[0])
        t = int(t)
        batch, channels, height, width = x_t.shape
        h, w = self.window
        x = _at_least(x_t, h, w)
        weight = _bell(h, x)[:, None] * _bell(w, x)[None, :]
        places = self.places(x.shape[-2:], t)
        many = self.batch_size or max(1, _NUMBERS_PER_BATCH // (channels * h * w))
        total, weights = x.new_zeros(()), x.new_zeros(x.shape[-2:])
        for top, left in places:
            weights[top : top + h, left : left + w] += weight
        each = [(image, place) for place in places for image in range(batch)]
        for start in range(0, len(each), many):
            chunk = each[start : start + many]
            images = torch.tensor([image for image, _ in chunk])
            parts = torch.stack([x[i, :, y : y + h, z : z + w] for i, (y, z) in chunk])
            found = weight * self._asked(self.backbone.select(images), parts, t)
            if total.ndim == 0:
                total = x.new_zeros(batch, found.shape[1], *x.shape[-2:])
            for (i, (y, z)), one in zip(chunk, found, strict=True):
                total[i, :, y : y + h, z : z + w] += one
        return _parted((total / weights)[..., :height, :width], channels)

    def __repr__(self) -> str:
        return f"Windows({self.backbone!r}, {self.image_shape}, overlap={self.overlap:g}, shift={self.shift})"


_IRRATIONAL = (0.7548776662466927, 0.5698402909980532)  # of the plane's most even sequence, for shifts along both axes


def in_tiles(backbone: Backbone, gradient: bool = False) -> Backbone:
    """A sized backbone, in `Tiles` where its pictures are larger than what is computed at once.

    Args:
        backbone: of any size, sized; others come back as they are.
        gradient: of a sampler that differentiates the network.
    """
    if not backbone.any_size or backbone.field_of_view is None or isinstance(backbone, Patched):
        return backbone
    side = GRADIENT_TILE if gradient else TILE
    height, width = backbone.image_shape[1:]
    return Tiles(backbone) if height * width > 2 * side * side else backbone


def _tiles(length: int, side: int, halo: int) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """(start, end) of each tile along an axis, and of the same with its halo."""
    edges = [*range(0, length, side), length]
    for start, end in pairwise(edges):
        yield (start, end), (max(0, start - halo), min(length, end + halo))


def _at_least(x: Tensor, height: int, width: int) -> Tensor:
    """`x`, padded at bottom and right to this size where it is smaller."""
    while x.shape[-2] < height or x.shape[-1] < width:
        bottom = min(max(0, height - x.shape[-2]), max(1, x.shape[-2] - 1))
        right = min(max(0, width - x.shape[-1]), max(1, x.shape[-1] - 1))
        mode = "reflect" if bottom < x.shape[-2] and right < x.shape[-1] else "replicate"
        x = functional.pad(x, (0, right, 0, bottom), mode=mode)
    return x


def _bell(length: int, like: Tensor) -> Tensor:
    """sin^2 along a window, nowhere 0."""
    place = (torch.arange(length, device=like.device, dtype=like.dtype) + 0.5) / length
    return torch.sin(torch.pi * place) ** 2


def _least_variance(schedule: NoiseSchedule, like: Tensor, t: int | Tensor) -> Tensor:
    """The smaller of the two log-variances of each time, in the shape of `like`."""
    times = t.flatten().tolist() if isinstance(t, Tensor) else [t]
    least = torch.tensor([min(schedule.log_variance_bounds(int(one))) for one in times])
    return least.to(like).reshape(-1, 1, 1, 1).expand_as(like)


def _joined(found: Prediction) -> Tensor:
    """The members of a prediction along the channels: x0, eps and, where there is one, the log-variance."""
    return torch.cat([found.x0, found.eps, *([] if found.log_variance is None else [found.log_variance])], 1)


def _parted(joined: Tensor, channels: int) -> Prediction:
    return Prediction(*joined.split(channels, 1))
