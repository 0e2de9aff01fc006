"""A UNet whose every pixel depends on its surroundings only, for pictures of any size.

No attention and no statistics over the picture: what becomes of a pixel is a function of the pixels within
`field_of_view` of it, so a picture may be cut into tiles, or only the neighbourhood of a hole be computed, and the answer
is the same. In place of normalisation every layer keeps the magnitude of what it is given: weights have rows of a fixed
norm, sums are scaled (Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models, CVPR 2024). The
constants of that are part of the stored weights, so that what is left at run time is convolutions, SiLUs and sums.

Input and output are preconditioned as in EDM (Karras et al., 2022, table 1), written for a variance-preserving state: with
pictures of standard deviation ``d`` and ``D = alpha_bar d^2 + 1 - alpha_bar``, the layers see ``x_t / sqrt(D)`` and the time
as its logarithmic signal-to-noise ratio, and their output f, of unit variance, gives

    v = sqrt(alpha_bar (1 - alpha_bar)) (1 - d^2) / D x_t - d / sqrt(D) f.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invdiff.backbones.haar import Description, SavedNetwork, haar, inverse_haar
from invdiff.backbones.network import NetworkBackbone
from invdiff.backbones.weights_file import CONFIG
from invdiff.checks import known, whole
from invdiff.errors import InvdiffError

BRANCH = 0.3
"""Share of a block's branch in its sum with what the block was given."""

SILU = 0.596
"""Root mean square of ``silu(z)`` for standard normal z."""

_TIME_SCALE = 8.0  # logarithmic signal-to-noise ratios run from -10 to 9


def _kept(share: float) -> tuple[float, float]:
    """Factors a, b of ``a x + b h`` that keep the magnitude of a sum in which h has this share."""
    scale = math.hypot(1 - share, share)
    return (1 - share) / scale, share / scale


_X, _H = _kept(BRANCH)
_SKIP, _GROWN = _kept(0.5)


class _Conv(nn.Conv2d):
    """A convolution without bias whose rows have norm `magnitude`: one means unit variance in, unit variance out."""

    def __init__(self, channels: int, out: int, size: int, magnitude: float, stride: int = 1) -> None:
        super().__init__(channels, out, size, stride=stride, padding=(size - 1) // 2, bias=False)
        self.magnitude = magnitude


class _Grow(nn.ConvTranspose2d):
    """Twice the height and width; every output pixel sees one input pixel."""

    def __init__(self, channels: int, out: int, magnitude: float) -> None:
        super().__init__(channels, out, 2, stride=2, bias=False)
        self.magnitude = magnitude


class _Block(nn.Module):
    """``x <- a x + b conv(silu(gain(t) conv(silu(x))))``."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.first = _Conv(width, width, 3, 1 / SILU)
        self.gain = nn.Linear(embedding, width, bias=False)
        self.second = _Conv(width, width, 3, _H / SILU)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.first(F.silu(x)) * (1 + self.gain(time))[:, :, None, None]
        return torch.add(self.second(F.silu(h)), x, alpha=_X)


class LocalUNet(SavedNetwork):
    """A denoiser of pictures of any size whose pixels depend on their surroundings only, behind the Haar transform.

        network = LocalUNet()
        backbone = LocalUNet.load("folder").backbone()

    Args:
        widths: channels of each resolution, from the finest (half the picture's); each next one has half the size.
        blocks: residual blocks of each resolution on the way down and again on the way up; the last number once.
        embedding: length of the vector that carries the time.
        features: frequencies that the time is written in.
        deviation: standard deviation d of the pictures, model range.
        description: schedule and provenance; saved with the weights.
    """

    frequencies: Tensor
    phases: Tensor
    alpha_bar: Tensor

    def __init__(
        self,
        widths: tuple[int, ...] = (64, 128, 256),
        blocks: tuple[int, ...] = (2, 2, 4),
        embedding: int = 128,
        features: int = 64,
        deviation: float = 0.5,
        description: Description | None = None,
    ) -> None:
        super().__init__()
        if len(widths) != len(blocks) or not widths:
            raise InvdiffError(f"blocks must have as many numbers as widths, got {tuple(blocks)} for {tuple(widths)}")
        self.widths, self.blocks = tuple(widths), tuple(blocks)
        self.config = {
            "widths": list(widths),
            "blocks": list(blocks),
            "embedding": embedding,
            "features": features,
            "deviation": deviation,
        }
        self.description = description or Description(image_shape=(3, None, None))
        self.deviation = float(deviation)
        self.stride = 2 ** len(widths)
        levels = self.description.noise_schedule().alpha_bar[:-1]
        self.register_buffer("alpha_bar", levels.float(), persistent=False)
        self.register_buffer("frequencies", torch.randn(features))
        self.register_buffer("phases", torch.rand(features))
        self.embed = nn.Linear(features, embedding, bias=False)
        self.enter = _Conv(13, widths[0], 3, 1.0)
        inner, deepest = list(zip(widths[:-1], blocks[:-1], strict=True)), (widths[-1], blocks[-1])
        pairs = list(pairwise(widths))

        def row(width: int, count: int) -> nn.ModuleList:
            return nn.ModuleList(_Block(width, embedding) for _ in range(count))

        self.down = nn.ModuleList(row(*level) for level in inner)
        self.shrink = nn.ModuleList(_Conv(fine, coarse, 2, 1.0, stride=2) for fine, coarse in pairs)
        self.middle = row(*deepest)
        self.grow = nn.ModuleList(_Grow(coarse, fine, _GROWN) for fine, coarse in pairs)
        self.up = nn.ModuleList(row(*level) for level in inner)
        self.leave = _Conv(widths[0], 12, 3, 1 / SILU)
        self.scale = nn.Parameter(torch.zeros(()))
        for layer, _ in self.balanced():
            nn.init.normal_(layer.weight)
        nn.init.normal_(self.embed.weight)
        for module in self.modules():
            if isinstance(module, _Block):
                nn.init.zeros_(module.gain.weight)
        self.balance()

    def _apply(self, fn: Any, recurse: bool = True) -> LocalUNet:
        exact = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, buffer in exact.items():  # a time in bfloat16 would be another time: 1 - alpha_bar_0 would be 0
            setattr(self, name, buffer.to(getattr(self, name).device))
        return self

    @property
    def field_of_view(self) -> int:
        """How far a pixel of the output looks, in pixels of the picture to each side."""
        reach = 0
        for level, count in enumerate(self.blocks):
            ways = 1 if level == len(self.blocks) - 1 else 2
            reach += 2 * ways * count * 2 ** (level + 1)
        return reach + 2 * 2 + self.stride  # the first and last convolution; where in its cell a pixel lies

    def balanced(self) -> Iterator[tuple[_Conv | _Grow, int]]:
        """The layers whose rows have a fixed norm, and the number of inputs of a row."""
        for module in self.modules():
            if isinstance(module, _Grow):
                yield module, module.weight.shape[0]
            elif isinstance(module, _Conv):
                yield module, module.weight[0].numel()

    @torch.no_grad()
    def balance(self) -> None:
        """Put every row back to its norm; the trainer does so after every step."""
        for layer, _ in self.balanced():
            rows = (0,) if isinstance(layer, _Grow) else (1, 2, 3)
            norm = torch.linalg.vector_norm(layer.weight, dim=rows, keepdim=True)
            layer.weight.mul_(layer.magnitude / norm.clamp(min=1e-12))
        self.embed.weight.div_(torch.linalg.vector_norm(self.embed.weight, dim=1, keepdim=True).clamp(min=1e-12))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """v for noisy pictures `x`, (B, 3, H, W) with H and W multiples of `stride`, at times `t`, long (B,): float32.

        Raises:
            InvdiffError: a height or width that isn't such a multiple.
        """
        if x.shape[-1] % self.stride or x.shape[-2] % self.stride:
            raise InvdiffError(
                f"x must have a height and width that are multiples of {self.stride}, got {tuple(x.shape[-2:])}"
            )
        a = self.alpha_bar[t].float().reshape(-1, 1, 1, 1)
        total = a * self.deviation**2 + 1 - a
        time = self._time(a.flatten()).to(self.embed.weight.dtype)
        h = haar(x * total.rsqrt().to(x.dtype))
        one = h.new_ones(()).expand(len(h), 1, *h.shape[2:])
        h = self.enter(torch.cat([h, one], 1).contiguous(memory_format=torch.channels_last))
        skips = []
        for blocks, shrink in zip(self.down, self.shrink, strict=True):
            h = _unit(h)
            h = _through(blocks, h, time)
            skips.append(h)
            h = shrink(h)
        h = _through(self.middle, h, time)
        for blocks, grow in zip(reversed(self.up), reversed(self.grow), strict=True):
            h = torch.add(grow(h), skips.pop(), alpha=_SKIP)
            h = _through(blocks, h, time)
        f = self.leave(F.silu(h))
        with torch.autocast(f.device.type, enabled=False):
            f = inverse_haar(f.float()) * self.scale.float()
            kept = (a * (1 - a)).sqrt() * ((1 - self.deviation**2) / total)
            return kept * x.float() - (self.deviation * total.rsqrt()) * f

    def _time(self, a: Tensor) -> Tensor:
        """The vector of a time, (B, embedding)."""
        ratio = torch.log(a) - torch.log1p(-a)
        angles = self.frequencies.float() * (ratio / _TIME_SCALE)[:, None] + self.phases.float()
        waves = math.sqrt(2) * torch.cos(2 * math.pi * angles)
        return F.silu(F.linear(waves, self.embed.weight.float())) / SILU

    # ---- files ----------------------------------------------------------------------------------------------

    def configuration(self) -> str:
        return json.dumps({"_class_name": type(self).__name__, **self.config}, indent=2) + "\n"

    @classmethod
    def made_of(cls, config: dict[str, Any], description: Description, folder: Path) -> LocalUNet:
        config = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items() if not k.startswith("_")}
        known(f"{folder / CONFIG}", config, ("widths", "blocks", "embedding", "features", "deviation"))
        for name, most in {
            "widths": 4_096,
            "blocks": 64,
            "embedding": 4_096,
            "features": 4_096,
        }.items():  # before memory is taken
            values = config.get(name, 1)
            for value in values if isinstance(values, tuple) else (values,):
                whole(f"{folder / CONFIG}: {name}", value, 0, most)
        with torch.random.fork_rng(devices=[]):  # the weights to be replaced must not move the caller's generator
            return cls(**config, description=description)

    def backbone(self, *, name: str | None = None, **options: Any) -> NetworkBackbone:
        """This network as a `Backbone`; the options are those of `NetworkBackbone`."""
        d = self.description
        return NetworkBackbone(
            self,
            d.noise_schedule(),
            d.image_shape,
            prediction=d.prediction,
            multiple_of=self.stride,
            field_of_view=self.field_of_view,
            name=name or d.name,
            **options,
        )


def _through(blocks: nn.Module, h: Tensor, time: Tensor) -> Tensor:
    for block in blocks.children():
        h = block(h, time)
    return h


def _unit(h: Tensor) -> Tensor:
    """Every pixel scaled to a root mean square of one over its channels."""
    return F.rms_norm(h.movedim(1, -1), (h.shape[1],), eps=1e-4).movedim(-1, 1)
