"""Generators of denoising diffusion GANs and of wavelet diffusion, ``netG_<epoch>.pth``, as backbones.

backbone = load_ddgan("netG_1200.pth", image_size=32)
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invdiff.backbones.base import Backbone
from invdiff.backbones.generator import MOST_STEPS, GeneratorBackbone, few_steps
from invdiff.backbones.ncsnpp import Generator, GeneratorShape
from invdiff.checkpoints import layout
from invdiff.checkpoints.formats import TensorFormat, call, register_format
from invdiff.checkpoints.reading import read_state_dict
from invdiff.checks import flag, one_of, whole
from invdiff.errors import InvdiffError

PRESETS: dict[str, dict[str, Any]] = {
    "ddgan-cifar10": {"image_size": 32, "steps": 4},
    "ddgan-celebahq256": {"image_size": 256, "steps": 2},
    "ddgan-lsun-church": {"image_size": 256, "steps": 4},
    "wavediff-cifar10": {"image_size": 32, "steps": 4, "pytorch_wavelet": True},
    "wavediff-celebahq256": {"image_size": 256, "steps": 2},
    "wavediff-celebahq512": {"image_size": 512, "steps": 2, "pytorch_wavelet": True},
    "wavediff-celebahq1024": {"image_size": 1024, "steps": 2},
}
"""What the published files do not say about themselves."""


@register_format("ddgan")
class DDGAN(TensorFormat):
    """A file of one of these generators, of any suffix."""

    present = ("all_modules.0.weight", "all_modules.3.GroupNorm_0.style.weight", "z_transform.1.weight")

    def load(self, path: Path, **options: Any) -> Backbone:
        return call(load_ddgan, "ddgan", path, options)


def load_ddgan(
    path: str | os.PathLike[str],
    image_size: int | None = None,
    *,
    preset: str | None = None,
    steps: int | None = None,
    geometric: bool = False,
    beta_min: float | None = None,
    beta_max: float | None = None,
    pytorch_wavelet: bool | None = None,
    precision: str = "auto",
    compile: bool = False,
    device: torch.device | str | None = None,
    checkpointing: bool = False,
    sha256: str | None = None,
) -> GeneratorBackbone:
    """A generator ``G(x_t, t, z)`` as a backbone of a few steps. The shape of the network is read off the file.

    Args:
        path: ``netG_<epoch>.pth``, a state dict of averaged weights; not ``content.pth``, the training's state.
        image_size: height and width of its pictures, which the file does not tell: 32 by default where nothing else does.
        preset: one of `PRESETS`, for the published files; what is given beside it wins.
        steps: of the training (``--num_timesteps``), 4 by default.
        geometric, beta_min, beta_max: of the schedule, see `few_steps`.
        pytorch_wavelet: whether a wavelet diffusion was trained with ``--use_pytorch_wavelet`` (CIFAR-10, STL-10, LSUN, 512 x
            512): its coefficients come in another order.
        precision, compile, device, checkpointing: see `NetworkBackbone`.
        sha256: checksum of the file, compared first when given.

    Raises:
        InvdiffError: a file that cannot be read (`read_state_dict`), is none of this layout, or is of another shape than its own
            names say.

    Source: the layout of github.com/NVlabs/denoising-diffusion-gan and github.com/VinAIResearch/WaveDiff.
    """
    known = {} if preset is None else PRESETS[one_of("preset", preset, PRESETS)]
    size = whole("image_size", known.get("image_size", 32) if image_size is None else image_size, 8, 1 << 14)
    N = whole("steps", known.get("steps", 4) if steps is None else steps, 1, MOST_STEPS)
    rows_first = known.get("pytorch_wavelet", False) if pytorch_wavelet is None else pytorch_wavelet
    flag("pytorch_wavelet", rows_first)
    state, file = read_state_dict(path, sha256=sha256), Path(path).expanduser()
    shape = generator_shape(state, file)
    wavelets = shape.channels // shape.patch**2 == 12
    strides = shape.patch * 2 ** (len(shape.levels) - 1) * (2 if wavelets else 1) * (2 if shape.wavelet else 1)
    if size % strides:
        raise InvdiffError(f"image_size must be a multiple of {strides} for {file}, got {size}")
    with torch.device("meta"):
        network = Generator(shape)
    layout.fill_by_name(network, state, file, "The configuration was read off the file itself.")
    return GeneratorBackbone(
        network,
        few_steps(N, geometric=geometric, beta_min=beta_min, beta_max=beta_max),
        (3, size, size),
        latent=shape.latent,
        coefficients=("haar-rows-first" if rows_first else "haar") if wavelets else "none",
        precision=precision,
        compile=compile,
        device=device,
        checkpointing=checkpointing,
        copy=False,
        name=file.stem,
    )


def generator_shape(state: Mapping[str, Tensor], path: Path) -> GeneratorShape:
    """The shape of the generator whose tensors these are: modules are numbered in the order of their use.

    Raises:
        InvdiffError: they follow no such order.
    """
    kinds = _kinds(state)
    try:
        return _shape(state, kinds)
    except (KeyError, IndexError, ValueError) as error:
        said = ", ".join(f"{i}: {kind}" for i, kind in enumerate(kinds[:8]))
        raise InvdiffError(
            f"path {path} is no generator of a denoising diffusion GAN or of wavelet diffusion: of its {len(kinds)} numbered "
            f"modules ({said}, ...) {error}"
        ) from error


def _shape(state: Mapping[str, Tensor], kinds: Sequence[str]) -> GeneratorShape:
    if list(kinds[:3]) != ["linear", "linear", "convolution"] or list(kinds[-2:]) != ["norm", "convolution"]:
        raise ValueError("the first three and the last two are not those of one")
    pyramid = [i for i, kind in enumerate(kinds[3:-2], 3) if kind in ("pyramid", "convolution")]
    levels, residual = len(pyramid) + 1, kinds.count("residual")
    blocks, rest = divmod(residual - 3 * levels, 2 * levels)
    if blocks < 1 or rest:
        raise ValueError(f"{residual} are residual blocks, which is not 2 L n + 3 L for L = {levels} resolutions")
    starts = [3, *(i + 1 for i in pyramid)]
    attended = tuple(kinds[start + 1] == "attention" for start in starts)
    widths = tuple(state[f"all_modules.{start}.Conv_1.weight"].shape[0] for start in starts)
    for (start, after), attends in zip(pairwise(starts), attended, strict=False):
        if after - start != blocks * (2 if attends else 1) + 2:
            raise ValueError(f"those from {start} to {after - 1} are no {blocks} blocks of one resolution")
    inputs = state["all_modules.2.weight"].shape[1]
    if inputs not in (3, 12, 48):
        raise ValueError(f"the first convolution has {inputs} channels: 3 (pixels), 12 or 48 (wavelets) are known")
    mapping = sorted({int(n.split(".")[1]) for n in state if n.startswith("z_transform.")})
    style, latent = state["z_transform.1.weight"].shape
    return GeneratorShape(
        channels=inputs,
        width=state["all_modules.0.weight"].shape[1],
        levels=widths,
        blocks=blocks,
        attended=attended,
        latent=latent,
        style=style,
        layers=len(mapping) - 1,
        wavelet=any(".convH_0." in name for name in state),
        patch=2 if inputs == 48 else 1,
    )


def _kinds(state: Mapping[str, Tensor]) -> list[str]:
    """What each numbered module is, by the names and shapes of its tensors."""
    parts: dict[int, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        words = name.split(".")
        if words[0] == "all_modules" and len(words) > 2 and words[1].isdigit():
            parts.setdefault(int(words[1]), {})[".".join(words[2:])] = tensor
    return [_kind(parts.get(i, {})) for i in range(max(parts, default=-1) + 1)]


def _kind(part: Mapping[str, Tensor]) -> str:
    for name, kind in (("Conv_0.weight", "residual"), ("NIN_0.W", "attention"), ("Conv2d_0.weight", "pyramid")):
        if name in part:
            return kind
    dimensions = part["weight"].ndim if "weight" in part else 0
    return {1: "norm", 2: "linear", 4: "convolution"}.get(dimensions, "missing")
