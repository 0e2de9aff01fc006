"""What the trainer of denoising-diffusion-pytorch writes (``results/model-1.pt``): network, schedule and what it predicts.

backbone = load_denoising_diffusion("results/model-1.pt", image_size=128)
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invdiff.backbones.base import Backbone
from invdiff.backbones.network import PREDICTIONS, NetworkBackbone
from invdiff.backbones.schedule import NoiseSchedule
from invdiff.checkpoints import layout as unet
from invdiff.checkpoints.formats import Format, call, register_format
from invdiff.checkpoints.reading import read_state_dict, shapes_in
from invdiff.checks import one_of, real, whole
from invdiff.errors import InvdiffError

PROJECT = "denoising-diffusion-pytorch"
_BY_HAND = (
    "Load it with the package and version that wrote it (Unet(...), GaussianDiffusion(...), Trainer.load), and hand over "
    "NetworkBackbone(diffusion.model, NoiseSchedule.from_betas(diffusion.betas.double()), (3, size, size), prediction=...)"
)


@register_format(PROJECT)
class DenoisingDiffusion(Format):
    """The trainer's file, a state dict of its ``GaussianDiffusion``, or one of its ``Unet``."""

    def matches(self, path: Path) -> str | None:
        if not path.is_file():
            return "it is a folder, not a checkpoint file"
        shapes = shapes_in(path)
        if any(name in shapes for name in ("init_conv.weight", "model.init_conv.weight")):
            return None
        return f"none of its {len(shapes)} tensors ({', '.join(list(shapes)[:2])}, ...) is init_conv.weight"

    def load(self, path: Path, **options: Any) -> Backbone:
        return call(load_denoising_diffusion, PROJECT, path, options)


@dataclass(frozen=True)
class UnetConfig:
    """Its ``Unet``, as far as a file tells.

    Attributes:
        channels: of the image; ``in_channels`` twice as many where it is conditioned on its own last estimate.
        in_channels, out_channels: of the first and the last convolution.
        dim: that the time is embedded in.
        widths: channels before the first level and after each, finest first.
        attention: for each level, and last for the middle: ``(full, heads, channels per head, memory)``; full attention
            over all places, or linear.
        bias: whether full attention ends with one.
    """

    in_channels: int
    out_channels: int
    dim: int
    widths: tuple[int, ...]
    attention: tuple[tuple[bool, int, int, int], ...]
    bias: bool

    @property
    def channels(self) -> int:
        """Of the image."""
        return self.in_channels // 2 if self.in_channels == 2 * self.out_channels else self.in_channels

    @classmethod
    def infer(cls, state: Mapping[str, Tensor], file: Path) -> UnetConfig:
        """From the tensors of a file.

        Raises:
            InvdiffError: they are of an older or newer version with other layers, or of another network.
        """
        levels = 1 + max((int(m[1]) for name in state if (m := re.match(r"downs\.(\d+)\.", name))), default=-1)
        wanted = [
            "init_conv.weight",
            "time_mlp.1.weight",
            "final_conv.weight",
            "mid_attn.mem_kv",
            "mid_block1.block1.norm.g",
        ]
        wanted += [f"downs.{i}.2.mem_kv" for i in range(max(levels, 1))]
        if missing := [name for name in wanted if name not in state or state[name].ndim < 2]:
            raise InvdiffError(
                f"path {file} is of a version of {PROJECT} whose layers are not known here (it has no {missing[0]}; 2.0 and later "
                f"have). {_BY_HAND}"
            )
        down = [state.get(f"downs.{i}.3.1.weight", state.get(f"downs.{i}.3.weight")) for i in range(levels)]
        if any(weight is None for weight in down):
            raise InvdiffError(f"path {file} lacks the weights downs.*.3 of {PROJECT}. {_BY_HAND}")
        attention = []
        for place in [f"downs.{i}.2" for i in range(levels)] + ["mid_attn"]:
            full = f"{place}.to_out.weight" in state
            memory = tuple(state[f"{place}.mem_kv"].shape)
            if len(memory) != 4:
                raise InvdiffError(f"path {file}: {place}.mem_kv has shape {memory}, expected 4 axes. {_BY_HAND}")
            attention.append((full, memory[1], memory[3], memory[2]) if full else (full, *memory[1:]))
        return cls(
            in_channels=state["init_conv.weight"].shape[1],
            out_channels=state["final_conv.weight"].shape[0],
            dim=state["time_mlp.1.weight"].shape[1],
            widths=(state["init_conv.weight"].shape[0], *(w.shape[0] for w in down if w is not None)),
            attention=tuple(attention),
            bias="mid_attn.to_out.bias" in state,
        )


def load_denoising_diffusion(
    path: str | os.PathLike[str],
    image_size: int | None = None,
    *,
    prediction: str | None = None,
    schedule: NoiseSchedule | None = None,
    theta: float = 10_000.0,
    precision: str = "auto",
    compile: bool = False,
    device: torch.device | str | None = None,
    checkpointing: bool = False,
    sha256: str | None = None,
) -> NetworkBackbone:
    """A checkpoint of denoising-diffusion-pytorch, version 2.0 or later, as a backbone; the averaged weights of the trainer's.

    Args:
        path: ``model-1.pt`` of its trainer, or a state dict of its ``GaussianDiffusion`` or ``Unet``.
        image_size: height and width it was trained at: the file doesn't tell, so it must be given.
        prediction: what the network returns, see `NetworkBackbone`; by default read off the weights of the training's loss
            that lie in the file (its objectives ``pred_noise``, ``pred_x0`` and ``pred_v``).
        schedule: of its training; by default the betas that lie in the file.
        theta: of the embedding of the time (``sinusoidal_pos_emb_theta``).
        precision, compile, device, checkpointing: see `NetworkBackbone`.
        sha256: checksum of the file, compared first when given.

    Returns:
        `NetworkBackbone` on images in [-1, 1], as the package's ``auto_normalize=True`` has them. A network that is conditioned
        on its own last estimate (``self_condition``) is given zeros there.

    Raises:
        InvdiffError: a file that cannot be read (`read_state_dict`), of another version (with how to load it), or that leaves
            open what was asked for above.

    Source: the layout of github.com/lucidrains/denoising-diffusion-pytorch.
    """
    if image_size is None:
        raise InvdiffError(
            f"image_size must be given: a file of {PROJECT} does not tell the size that it was trained at"
        )
    whole("image_size", image_size, 1, 1 << 16)
    real("theta", theta, above=0)
    if prediction is not None:
        one_of("prediction", prediction, PREDICTIONS)
    state, file = read_state_dict(path, sha256=sha256), Path(path).expanduser()
    weights = {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")} or state
    config = UnetConfig.infer(weights, file)
    schedule, prediction = _trained_with(state, schedule, prediction, file)
    if config.dim % 2 or config.dim < 4 or weights["time_mlp.1.weight"].shape[0] != 4 * config.dim:
        raise InvdiffError(
            f"path {file} embeds the time by learned or random frequencies, which is not supported. {_BY_HAND}"
        )
    with torch.device("meta"):
        network: nn.Module = Unet(config, theta)
    unet.fill_by_name(network, weights, file, f"It is of another version of {PROJECT}. {_BY_HAND}.")
    return NetworkBackbone(
        network,
        schedule,
        (config.channels, image_size, image_size),
        prediction=prediction,
        learned_variance=config.out_channels == 2 * config.channels,
        precision=precision,
        compile=compile,
        device=device,
        checkpointing=checkpointing,
        copy=False,
        multiple_of=2 ** (len(config.widths) - 2),
        name=file.stem,
    )


def _trained_with(
    state: Mapping[str, Tensor], schedule: NoiseSchedule | None, prediction: str | None, file: Path
) -> tuple[NoiseSchedule, str]:
    if schedule is None:
        if "betas" not in state:
            raise InvdiffError(f"path {file} holds a network without its betas: schedule must be given")
        schedule = NoiseSchedule.from_betas(state["betas"].double())
    if prediction is None:
        prediction = _objective(state)
        if prediction is None:
            raise InvdiffError(
                f"path {file} does not tell what its network predicts: prediction must be given, one of "
                f"{', '.join(PREDICTIONS)} (pred_noise, pred_v, pred_x0)"
            )
    return schedule, prediction


def _objective(state: Mapping[str, Tensor]) -> str | None:
    """From the weights of the loss: 1, snr or snr / (snr + 1), also where its largest values are cut (min-SNR)."""
    if "loss_weight" not in state or "alphas_cumprod" not in state:
        return None
    weight, level = state["loss_weight"].double(), state["alphas_cumprod"].double()
    snr = level / (1 - level)
    low = (snr > 1e-3) & (snr < 1)  # where min-SNR cuts nothing
    expected = {"epsilon": torch.ones_like(snr), "sample": snr, "v_prediction": snr / (snr + 1)}
    if weight.shape != snr.shape or not bool(low.any()):
        return None
    far = {name: float((weight - w)[low].abs().max()) for name, w in expected.items()}
    nearest = min(far, key=lambda name: far[name])
    return nearest if far[nearest] < 1e-3 else None


# ---- the network, its layers named as in the files --------------------------------------------------------------


class Unet(nn.Module):
    """The network of denoising-diffusion-pytorch: ``(x, t) -> (B, out_channels, H, W)``, module for module of the same names.

    Args:
        config: its shape.
        theta: slowest frequency of the embedded time, as its inverse.
    """

    def __init__(self, config: UnetConfig, theta: float = 10_000.0) -> None:
        super().__init__()
        widths, time = config.widths, 4 * config.dim
        self.dim, self.theta, self.self_condition = config.dim, theta, config.in_channels != config.channels
        self.init_conv = nn.Conv2d(config.in_channels, widths[0], 7, padding=3)
        self.time_mlp = nn.Sequential(nn.Identity(), nn.Linear(config.dim, time), nn.GELU(), nn.Linear(time, time))
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        pairs = list(zip(widths, widths[1:], config.attention, strict=False))
        for i, (fine, coarse, attention) in enumerate(pairs):
            last = i == len(pairs) - 1
            blocks = [
                _Residual(fine, fine, time),
                _Residual(fine, fine, time),
                _attention(fine, attention, config.bias),
            ]
            self.downs.append(nn.ModuleList([*blocks, _convolution(fine, coarse) if last else _half(fine, coarse)]))
        for i, (fine, coarse, attention) in reversed(list(enumerate(pairs))):
            wide = coarse + fine
            blocks = [
                _Residual(wide, coarse, time),
                _Residual(wide, coarse, time),
                _attention(coarse, attention, config.bias),
            ]
            self.ups.append(nn.ModuleList([*blocks, _convolution(coarse, fine) if i == 0 else _double(coarse, fine)]))
        middle = widths[-1]
        self.mid_block1, self.mid_block2 = _Residual(middle, middle, time), _Residual(middle, middle, time)
        self.mid_attn = _attention(middle, config.attention[-1], config.bias)
        self.final_res_block = _Residual(2 * widths[0], widths[0], time)
        self.final_conv = nn.Conv2d(widths[0], config.out_channels, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        half = self.dim // 2
        frequencies = torch.exp(-math.log(self.theta) * torch.arange(half, device=x.device) / (half - 1))
        angles = t[:, None].float() * frequencies
        time = self.time_mlp(torch.cat([angles.sin(), angles.cos()], 1).to(x.dtype))
        if self.self_condition:
            x = torch.cat([torch.zeros_like(x), x], 1)
        first = h = self.init_conv(x)
        kept = []
        for one, two, attend, resample in _fours(self.downs):
            h = one(h, time)
            kept.append(h)
            h = two(h, time)
            h = attend(h) + h
            kept.append(h)
            h = resample(h)
        h = self.mid_block1(h, time)
        h = self.mid_attn(h) + h
        h = self.mid_block2(h, time)
        for one, two, attend, resample in _fours(self.ups):
            h = one(torch.cat([h, kept.pop()], 1), time)
            h = two(torch.cat([h, kept.pop()], 1), time)
            h = attend(h) + h
            h = resample(h)
        return self.final_conv(self.final_res_block(torch.cat([h, first], 1), time))


def _fours(levels: nn.ModuleList) -> Iterable[Any]:
    return levels


def _convolution(inside: int, outside: int) -> nn.Module:
    return nn.Conv2d(inside, outside, 3, padding=1)


def _half(inside: int, outside: int) -> nn.Module:
    return nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * inside, outside, 1))


def _double(inside: int, outside: int) -> nn.Module:
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(inside, outside, 3, padding=1))


def _attention(width: int, shape: tuple[bool, int, int, int], bias: bool) -> nn.Module:
    full, heads, size, memory = shape
    return _FullAttention(width, heads, size, memory, bias) if full else _LinearAttention(width, heads, size, memory)


class _Norm(nn.Module):
    """Every pixel's channels divided by their root mean square."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * self.g * x.shape[1] ** 0.5


class _Block(nn.Module):
    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.proj, self.norm = nn.Conv2d(inside, outside, 3, padding=1), _Norm(outside)


class _Residual(nn.Module):
    def __init__(self, inside: int, outside: int, time: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(time, 2 * outside))
        self.block1, self.block2 = _Block(inside, outside), _Block(outside, outside)
        self.res_conv = nn.Identity() if inside == outside else nn.Conv2d(inside, outside, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.mlp(time)[..., None, None].chunk(2, 1)
        h = F.silu(self.block1.norm(self.block1.proj(x)) * (scale + 1) + shift)
        return F.silu(self.block2.norm(self.block2.proj(h))) + self.res_conv(x)


class _FullAttention(nn.Module):
    """Softmax attention over all places and a few learned ones."""

    def __init__(self, width: int, heads: int, size: int, memory: int, bias: bool) -> None:
        super().__init__()
        self.norm, self.mem_kv = _Norm(width), nn.Parameter(torch.zeros(2, heads, memory, size))
        self.to_qkv = nn.Conv2d(width, 3 * heads * size, 1, bias=False)
        self.to_out = nn.Conv2d(heads * size, width, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        heads, size = self.mem_kv.shape[1], self.mem_kv.shape[3]
        q, k, v = self.to_qkv(self.norm(x)).flatten(2).unflatten(1, (3, heads, size)).transpose(3, 4).unbind(1)
        k, v = (torch.cat([m.expand(len(x), -1, -1, -1), p], 2) for m, p in zip(self.mem_kv, (k, v), strict=True))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.to_out(mixed.transpose(2, 3).reshape(len(x), heads * size, *x.shape[2:]))


class _LinearAttention(nn.Module):
    """Attention that is linear in the number of places (Shen et al., 2021), with a few learned ones."""

    def __init__(self, width: int, heads: int, size: int, memory: int) -> None:
        super().__init__()
        self.norm, self.mem_kv = _Norm(width), nn.Parameter(torch.zeros(2, heads, size, memory))
        self.to_qkv = nn.Conv2d(width, 3 * heads * size, 1, bias=False)
        self.to_out = nn.Sequential(nn.Conv2d(heads * size, width, 1), _Norm(width))

    def forward(self, x: Tensor) -> Tensor:
        heads, size = self.mem_kv.shape[1:3]
        q, k, v = self.to_qkv(self.norm(x)).flatten(2).unflatten(1, (3, heads, size)).unbind(1)
        k, v = (torch.cat([m.expand(len(x), -1, -1, -1), p], 3) for m, p in zip(self.mem_kv, (k, v), strict=True))
        context = k.softmax(3) @ v.transpose(2, 3)
        mixed = context.transpose(2, 3) @ (q.softmax(2) * size**-0.5)
        return self.to_out(mixed.reshape(len(x), heads * size, *x.shape[2:]))
