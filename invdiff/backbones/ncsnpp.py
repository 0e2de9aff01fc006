"""The generator of denoising diffusion GANs and of wavelet diffusion: an NCSN++ whose group norms are steered by a latent.

Parameters have the names of the published files, where modules are numbered in the order of their use. A residual block takes
the sum of both ways over sqrt 2; the picture itself, brought to each size by a pyramid, is added to the way down.

Sources: Song et al., "Score-Based Generative Modeling through SDEs", ICLR 2021, appendix H (the network); Xiao et al., ICLR 2022
(latents); Phung et al., CVPR 2023 (wavelet blocks).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invdiff.backbones.haar import haar, inverse_haar

_HALF = 2**-0.5


@dataclass(frozen=True)
class GeneratorShape:
    """The shape of a generator.

    Attributes:
        channels: of the picture or of its coefficients, patches unfolded.
        width: of the first layer, and of the embedding of time.
        levels: channels of each resolution, finest first.
        blocks: residual blocks per resolution.
        attended: for each resolution, whether attention (one head) follows its blocks.
        latent: numbers of z.
        style: channels of what z becomes.
        layers: of the perceptron that makes it, beside the first.
        wavelet: whether resolution changes by the Haar transform, and not by smoothing with (1, 3, 3, 1).
        patch: side of the patches that become channels.
    """

    channels: int
    width: int
    levels: tuple[int, ...]
    blocks: int
    attended: tuple[bool, ...]
    latent: int
    style: int
    layers: int
    wavelet: bool = False
    patch: int = 1


class Generator(nn.Module):
    """``generator(x, t, z)``: x (B, channels / patch^2, H, W), t (B,), z (B, latent) -> a tensor of the shape of x in [-1, 1]."""

    def __init__(self, shape: GeneratorShape) -> None:
        super().__init__()
        self.shape = shape
        width, style, last = shape.width, shape.style, len(shape.levels) - 1
        block = _WaveletBlock if shape.wavelet else _SmoothBlock

        def residual(inputs: int, outputs: int, move: str = "", beside: int = 0) -> nn.Module:
            return block(inputs, outputs, 4 * width, style, move, beside)

        modules: list[nn.Module] = [
            nn.Linear(width, 4 * width),
            nn.Linear(4 * width, 4 * width),
            nn.Conv2d(shape.channels, width, 3, padding=1),
        ]
        kept, passed, here, pyramid = [width], [], width, shape.channels
        for i, channels in enumerate(shape.levels):
            for _ in range(shape.blocks):
                modules.append(residual(here, channels))
                here = channels
                modules += [_Attention(here)] if shape.attended[i] else []
                kept.append(here)
            if i < last:
                modules.append(residual(here, here, "down"))
                modules.append((_WaveletDown if shape.wavelet else _SmoothDown)(pyramid, here))
                passed.append(here)
                pyramid = here
                kept.append(here)
        modules += [residual(here, here), _Attention(here), residual(here, here)]
        for i in reversed(range(last + 1)):
            for _ in range(shape.blocks + 1):
                modules.append(residual(here + kept.pop(), shape.levels[i]))
                here = shape.levels[i]
            modules += [_Attention(here)] if shape.attended[i] else []
            if i > 0:
                modules.append(residual(here, here, "up", passed.pop()))
        modules += [_norm(here), nn.Conv2d(here, shape.channels, 3, padding=1)]
        self.all_modules = nn.ModuleList(modules)
        mapping: list[nn.Module] = [_PixelNorm(), nn.Linear(shape.latent, style), nn.SiLU()]
        for _ in range(shape.layers):
            mapping += [nn.Linear(style, style), nn.SiLU()]
        self.z_transform = nn.Sequential(*mapping)

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        shape, following = self.shape, iter(self.all_modules)
        style = self.z_transform(z)
        time = next(following)(_embedded(t, shape.width).to(x.dtype))
        time = F.silu(next(following)(F.silu(time)))
        picture = _patches(x, shape.patch)
        h = next(following)(picture)
        kept, details, last = [h], [], len(shape.levels) - 1
        for i in range(last + 1):
            for _ in range(shape.blocks):
                h = next(following)(h, time, style)
                if shape.attended[i]:
                    h = next(following)(h)
                kept.append(h)
            if i < last:
                h, detail = next(following).down(h, time, style)  # type: ignore[operator]
                details.append(detail)
                picture = h = (next(following)(picture) + h) * _HALF
                kept.append(h)
        first, attend, second = (next(following) for _ in range(3))
        if shape.wavelet:
            h = second(attend(_in_low_band(first, h, time, style)), time, style)
            h = _in_low_band(second, h, time, style)
        else:
            h = second(attend(first(h, time, style)), time, style)
        for i in reversed(range(last + 1)):
            for _ in range(shape.blocks + 1):
                h = next(following)(torch.cat([h, kept.pop()], 1), time, style)
            if shape.attended[i]:
                h = next(following)(h)
            if i > 0:
                h = next(following).up(h, time, style, details.pop())  # type: ignore[operator]
        norm, leave = following
        return torch.tanh(_unpatched(leave(F.silu(norm(h))), shape.patch))


# ---- blocks -----------------------------------------------------------------------------------------------------


class _StyledNorm(nn.Module):
    """A group norm whose scale and shift are linear in the style."""

    def __init__(self, channels: int, style: int) -> None:
        super().__init__()
        self.groups = min(channels // 4, 32)
        self.style = nn.Linear(style, 2 * channels)

    def forward(self, h: Tensor, style: Tensor) -> Tensor:
        scale, shift = self.style(style)[..., None, None].chunk(2, 1)
        return scale * F.group_norm(h, self.groups, eps=1e-6) + shift


class _Block(nn.Module):
    """norm, SiLU, [resolution], 3 x 3, time, norm, SiLU, 3 x 3, beside a way of its own."""

    def __init__(self, inputs: int, outputs: int, time: int, style: int, move: str, beside: int) -> None:
        super().__init__()
        self.GroupNorm_0 = _StyledNorm(inputs, style)
        self.Conv_0 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.Dense_0 = nn.Linear(time, outputs)
        self.GroupNorm_1 = _StyledNorm(outputs, style)
        self.Conv_1 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.Conv_2 = nn.Conv2d(inputs, outputs, 1) if move or inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, time: Tensor, style: Tensor) -> Tensor:
        h = self.Conv_0(F.silu(self.GroupNorm_0(x, style)))
        return self.ended(self.Conv_2(x), h, time, style)

    def ended(self, x: Tensor, h: Tensor, time: Tensor, style: Tensor) -> Tensor:
        h = h + self.Dense_0(time)[..., None, None]
        h = self.Conv_1(F.silu(self.GroupNorm_1(h, style)))
        return (x + h) * _HALF


class _SmoothBlock(_Block):
    def down(self, x: Tensor, time: Tensor, style: Tensor) -> tuple[Tensor, None]:
        h = self.Conv_0(_halved(F.silu(self.GroupNorm_0(x, style))))
        return self.ended(self.Conv_2(_halved(x)), h, time, style), None

    def up(self, x: Tensor, time: Tensor, style: Tensor, detail: None) -> Tensor:
        h = self.Conv_0(_doubled(F.silu(self.GroupNorm_0(x, style))))
        return self.ended(self.Conv_2(_doubled(x)), h, time, style)


class _WaveletBlock(_Block):
    """Resolution by the Haar transform, after the first convolution; what the way down puts aside comes back on the way up."""

    def __init__(self, inputs: int, outputs: int, time: int, style: int, move: str, beside: int) -> None:
        super().__init__(inputs, outputs, time, style, move, beside)
        if move == "up":
            self.convH_0 = nn.Conv2d(3 * beside, 3 * outputs, 3, padding=1, groups=3)

    def down(self, x: Tensor, time: Tensor, style: Tensor) -> tuple[Tensor, Tensor]:
        h, channels = haar(self.Conv_0(F.silu(self.GroupNorm_0(x, style)))), self.Conv_0.out_channels
        low = haar(self.Conv_2(x))[:, :channels]
        return self.ended(low / 2, h[:, :channels] / 2, time, style), h[:, channels:]

    def up(self, x: Tensor, time: Tensor, style: Tensor, detail: Tensor) -> Tensor:
        h = self.Conv_0(F.silu(self.GroupNorm_0(x, style)))
        detail = 2 * self.convH_0(detail / 2)
        h, x = (inverse_haar(torch.cat([2 * low, detail], 1)) for low in (h, self.Conv_2(x)))
        return self.ended(x, h, time, style)


class _Attention(nn.Module):
    """Self-attention over the pixels, one head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.GroupNorm_0 = _norm(channels)
        for i in range(4):
            setattr(self, f"NIN_{i}", _PerPixel(channels))

    def forward(self, x: Tensor) -> Tensor:
        h = self.GroupNorm_0(x).flatten(2).mT
        query, key, value, mix = (getattr(self, f"NIN_{i}") for i in range(4))
        mixed = mix(F.scaled_dot_product_attention(query(h), key(h), value(h)))
        return (x + mixed.mT.reshape(x.shape)) * _HALF


class _PerPixel(nn.Module):
    """A linear layer whose weight has its inputs as rows."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.empty(channels, channels))
        self.b = nn.Parameter(torch.zeros(channels))
        nn.init.xavier_uniform_(self.W)

    def forward(self, h: Tensor) -> Tensor:
        return h @ self.W + self.b


class _SmoothDown(nn.Module):
    """A smoothed convolution of stride two."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.Conv2d_0 = nn.Conv2d(inputs, outputs, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.Conv2d_0(_smoothed(F.pad(x, (2, 2, 2, 2)), 1))


class _WaveletDown(nn.Conv2d):
    """A convolution of the halved Haar coefficients."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(4 * inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(haar(x) / 2)


class _PixelNorm(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()


# ---- pieces -----------------------------------------------------------------------------------------------------


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(min(channels // 4, 32), channels, eps=1e-6)


def _embedded(t: Tensor, width: int) -> Tensor:
    """Sines, then cosines of t at frequencies from 1 to 1/10,000, (B, width)."""
    half = width // 2
    frequency = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device) / (half - 1))
    angle = t.float()[:, None] * frequency
    return F.pad(torch.cat([angle.sin(), angle.cos()], 1), (0, width % 2))


def _in_low_band(block: nn.Module, h: Tensor, time: Tensor, style: Tensor) -> Tensor:
    """A block applied to the mean of every 2 x 2 pixels, the rest left as it is."""
    bands = haar(h)
    low, rest = bands[:, : h.shape[1]], bands[:, h.shape[1] :]
    return inverse_haar(torch.cat([2 * block(low / 2, time, style), rest], 1))


def _smoothed(x: Tensor, stride: int) -> Tensor:
    """Every channel with (1, 3, 3, 1) / 8 along both axes; edges are the caller's to pad."""
    row = torch.tensor([1, 3, 3, 1], device=x.device, dtype=x.dtype) / 8
    kernel = (row[:, None] * row).expand(x.shape[1], 1, 4, 4)
    return F.conv2d(x, kernel, stride=stride, groups=x.shape[1])


def _halved(x: Tensor) -> Tensor:
    return _smoothed(F.pad(x, (1, 1, 1, 1)), 2)


def _doubled(x: Tensor) -> Tensor:
    """Zeros between the pixels, smoothed with four times the weight."""
    apart = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    apart[..., ::2, ::2] = x
    return 4 * _smoothed(F.pad(apart, (2, 1, 2, 1)), 1)


def _patches(x: Tensor, side: int) -> Tensor:
    """(B, C, H, W) -> (B, side^2 C, H / side, W / side), the channels of a pixel together."""
    if side == 1:
        return x
    B, C, H, W = x.shape
    cut = x.reshape(B, C, H // side, side, W // side, side)
    return cut.permute(0, 3, 5, 1, 2, 4).reshape(B, side * side * C, H // side, W // side)


def _unpatched(h: Tensor, side: int) -> Tensor:
    """Back to pixels; in the files the pixels of a channel come together here, unlike in `_patches`."""
    return h if side == 1 else F.pixel_shuffle(h, side)
