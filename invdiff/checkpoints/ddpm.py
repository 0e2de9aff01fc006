"""Checkpoints of the DDPM network (Ho et al., 2020) in the layout of its PyTorch port, such as ``celeba_hq.ckpt``.

backbone = load_ddpm("celeba_hq.ckpt")
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from invdiff.backbones.base import Backbone
from invdiff.backbones.network import NetworkBackbone
from invdiff.backbones.schedule import NoiseSchedule
from invdiff.backbones.unet import build
from invdiff.checkpoints import layout as unet
from invdiff.checkpoints.formats import TensorFormat, call, register_format
from invdiff.checkpoints.reading import read_state_dict
from invdiff.checks import whole
from invdiff.errors import InvdiffError


@dataclass(frozen=True)
class DDPMConfig:
    """The shape of a DDPM network. All of it can be read off a file.

    Attributes:
        in_channels, out_channels: of the image and of the output.
        channels: channels of each level, finest first.
        num_res_blocks: residual blocks per level.
        attended: for each level, whether attention (one head) follows its blocks.
        resamp_with_conv: whether convolutions change the resolution, instead of averaging and repeating pixels.
    """

    in_channels: int
    out_channels: int
    channels: tuple[int, ...]
    num_res_blocks: int
    attended: tuple[bool, ...]
    resamp_with_conv: bool = True

    @classmethod
    def infer(cls, state: Mapping[str, Tensor], path: Path) -> DDPMConfig:
        """From the tensors of a file.

        Raises:
            InvdiffError: it lacks the names that tell the shape, so it is no file of this layout.
        """
        levels = _count(state, r"down\.(\d+)\.")
        wanted = ["conv_in.weight", "conv_out.weight", "temb.dense.0.weight", "mid.block_1.conv1.weight"]
        wanted += [f"down.{i}.block.0.conv1.weight" for i in range(max(levels, 1))]
        if missing := [k for k in wanted if k not in state or state[k].ndim < 2]:
            raise InvdiffError(
                f"path {path} is no file of the DDPM network: of {len(state)} tensors, starting with "
                f"{', '.join(list(state)[:3])}, none is {missing[0]}. Files of guided-diffusion (input_blocks...) go "
                "to load_guided_diffusion, folders in diffusers' format to load_diffusers."
            )
        return cls(
            in_channels=state["conv_in.weight"].shape[1],
            out_channels=state["conv_out.weight"].shape[0],
            channels=tuple(state[f"down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)),
            num_res_blocks=_count(state, r"down\.0\.block\.(\d+)\."),
            attended=tuple(_count(state, rf"down\.{i}\.attn\.(\d+)\.") > 0 for i in range(levels)),
            resamp_with_conv=levels == 1 or "down.0.downsample.conv.weight" in state,
        )

    def network(self) -> nn.Module:
        """diffusers' `UNet2DModel` of the same shape, without memory for its weights.

        Raises:
            InvdiffError: channels that 32 groups of the group norm do not divide.
        """
        if any(c % 32 for c in self.channels):
            raise InvdiffError(f"the channels of every level must be multiples of 32, the file has {self.channels}")
        network: Any = build(
            {
                "in_channels": self.in_channels,
                "out_channels": self.out_channels,
                "block_out_channels": self.channels,
                "layers_per_block": self.num_res_blocks,
                "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in self.attended],
                "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(self.attended)],
                "downsample_padding": 0,  # pads by one on the right and at the bottom only
                "freq_shift": 1,
                "flip_sin_to_cos": False,
                "attention_head_dim": None,  # one head
                "norm_num_groups": 32,
                "norm_eps": 1e-6,
            }
        )
        if not self.resamp_with_conv:
            from diffusers.models.downsampling import Downsample2D
            from diffusers.models.upsampling import Upsample2D

            for down in network.down_blocks[:-1]:
                down.downsamplers = nn.ModuleList([Downsample2D(down.downsamplers[0].channels)])
            for up in network.up_blocks[:-1]:
                up.upsamplers = nn.ModuleList([Upsample2D(up.upsamplers[0].channels)])
        return network

    def modules(self) -> Iterator[tuple[str, str]]:
        """``(theirs, ours)``, names of the same module in the file and in diffusers' network."""
        levels = len(self.channels)
        yield "temb.dense.0", "time_embedding.linear_1"
        yield "temb.dense.1", "time_embedding.linear_2"
        yield "conv_in", "conv_in"
        for level, attended in enumerate(self.attended):
            down, up = f"down_blocks.{level}", f"up_blocks.{levels - 1 - level}"
            for i in range(self.num_res_blocks):
                yield from _residual(f"down.{level}.block.{i}", f"{down}.resnets.{i}")
                if attended:
                    yield from _attention(f"down.{level}.attn.{i}", f"{down}.attentions.{i}")
            if level < levels - 1 and self.resamp_with_conv:
                yield f"down.{level}.downsample.conv", f"{down}.downsamplers.0.conv"
            for i in range(self.num_res_blocks + 1):
                yield from _residual(f"up.{level}.block.{i}", f"{up}.resnets.{i}")
                if attended:
                    yield from _attention(f"up.{level}.attn.{i}", f"{up}.attentions.{i}")
            if level > 0 and self.resamp_with_conv:
                yield f"up.{level}.upsample.conv", f"{up}.upsamplers.0.conv"
        yield from _residual("mid.block_1", "mid_block.resnets.0")
        yield from _attention("mid.attn_1", "mid_block.attentions.0")
        yield from _residual("mid.block_2", "mid_block.resnets.1")
        yield "norm_out", "conv_norm_out"
        yield "conv_out", "conv_out"


@register_format("ddpm")
class DDPM(TensorFormat):
    """A file of the DDPM network, of any suffix."""

    present = ("conv_in.weight", "temb.dense.0.weight", "mid.block_1.conv1.weight")

    def load(self, path: Path, **options: Any) -> Backbone:
        return call(load_ddpm, "ddpm", path, options)


def load_ddpm(
    path: str | os.PathLike[str],
    image_size: int = 256,
    *,
    schedule: NoiseSchedule | None = None,
    precision: str = "auto",
    compile: bool = False,
    device: torch.device | str | None = None,
    checkpointing: bool = False,
    sha256: str | None = None,
) -> NetworkBackbone:
    """A checkpoint of the DDPM network as a backbone; predicts the noise. Its shape is read off the file.

    Args:
        path: the file, alone (a state dict) or beside the optimizer as the training script saves it; averaged weights
            are taken where there are any.
        image_size: height and width that it was trained at, the only thing the file doesn't tell.
        schedule: of its training; linear with 1,000 times by default.
        precision, compile, device, checkpointing: see `NetworkBackbone`.
        sha256: checksum of the file, compared first when given.

    Returns:
        `NetworkBackbone` on images (B, C, image_size, image_size) in [-1, 1].

    Raises:
        InvdiffError: a file that cannot be read (`read_state_dict`) or is none of this layout.

    Source: the layout of github.com/ermongroup/ddim, `models/diffusion.py`.
    """
    whole("image_size", image_size, 1, 1 << 16)
    state = read_state_dict(path, sha256=sha256)
    state.pop("logvar", None)  # of `type: bayesian`: variances that the network itself doesn't use
    file = Path(path).expanduser()
    config = DDPMConfig.infer(state, file)
    if config.out_channels not in (config.in_channels, 2 * config.in_channels):
        raise InvdiffError(
            f"path {file} has {config.out_channels} output channels for {config.in_channels} of the image; expected as "
            "many, or twice as many with a learned variance"
        )
    network = config.network()
    entries = unet.module_entries(config.modules(), network)
    unet.fill(network, entries, state, file, lambda: "The configuration was read off the file itself.")
    return NetworkBackbone(
        network,
        schedule,
        (config.in_channels, image_size, image_size),
        learned_variance=config.out_channels == 2 * config.in_channels,
        precision=precision,
        compile=compile,
        device=device,
        checkpointing=checkpointing,
        copy=False,
        name=file.stem,
    )


def _residual(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    same = ("norm1", "conv1", "norm2", "conv2")
    yield from ((f"{theirs}.{n}", f"{ours}.{n}") for n in same)
    yield f"{theirs}.temb_proj", f"{ours}.time_emb_proj"
    yield f"{theirs}.nin_shortcut", f"{ours}.conv_shortcut"


def _attention(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    yield f"{theirs}.norm", f"{ours}.group_norm"
    yield from ((f"{theirs}.{n}", f"{ours}.to_{n}") for n in "qkv")
    yield f"{theirs}.proj_out", f"{ours}.to_out.0"


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """One more than the largest number that stands in the group of the pattern."""
    found = (re.match(pattern, name) for name in state)
    return max((int(match[1]) + 1 for match in found if match), default=0)
