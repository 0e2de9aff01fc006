"""Checkpoints in the layout of guided-diffusion (Dhariwal & Nichol, 2021), the base of most published image models.

backbone = load_guided_diffusion("256x256_diffusion_uncond.pt", preset="imagenet256-uncond")
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from invdiff.backbones.base import Backbone
from invdiff.backbones.network import NetworkBackbone
from invdiff.backbones.schedule import NoiseSchedule
from invdiff.backbones.unet import build
from invdiff.checkpoints import layout as unet
from invdiff.checkpoints.formats import TensorFormat, register_format
from invdiff.checkpoints.reading import read_state_dict
from invdiff.checks import flag, known, one_of, whole
from invdiff.errors import InvdiffError

_ADM: dict[str, Any] = {
    "image_size": 256,
    "model_channels": 256,
    "num_res_blocks": 2,
    "attention_resolutions": (8, 16, 32),
    "channel_mult": (1, 1, 2, 2, 4, 4),
    "num_head_channels": 64,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
    "learn_sigma": True,
}
_IDDPM: dict[str, Any] = {
    "image_size": 64,
    "model_channels": 128,
    "num_res_blocks": 3,
    "num_heads": 4,
    "attention_resolutions": "16,8",
    "use_scale_shift_norm": True,
    "learn_sigma": True,
    "noise_schedule": "cosine",
    "diffusion_steps": 4000,
    "rescale_timesteps": True,
}
PRESETS: dict[str, dict[str, Any]] = {
    "imagenet256-uncond": _ADM,
    "imagenet256-cond": {**_ADM, "class_cond": True},
    "imagenet64-cond": {
        **_ADM,
        "image_size": 64,
        "model_channels": 192,
        "num_res_blocks": 3,
        "attention_resolutions": "32,16,8",
        "channel_mult": (1, 2, 3, 4),
        "use_new_attention_order": True,
        "noise_schedule": "cosine",
        "class_cond": True,
    },
    "imagenet128-cond": {
        **_ADM,
        "image_size": 128,
        "attention_resolutions": "32,16,8",
        "channel_mult": (1, 1, 2, 3, 4),
        "num_head_channels": -1,
        "num_heads": 4,
        "class_cond": True,
    },
    "imagenet512-cond": {
        **_ADM,
        "image_size": 512,
        "attention_resolutions": "32,16,8",
        "channel_mult": (0.5, 1, 1, 2, 2, 4, 4),
        "class_cond": True,
    },
    "lsun-bedroom256": _ADM,
    "lsun-cat256": _ADM,
    "lsun-horse256": _ADM,
    "celebahq256-repaint": _ADM,
    "places256-repaint": _ADM,
    "ffhq256": {**_ADM, "model_channels": 128, "num_res_blocks": 1, "attention_resolutions": (16,)},
    "imagenet64-iddpm": _IDDPM,
    "imagenet64-cond-iddpm": {**_IDDPM, "model_channels": 192, "class_cond": True, "rescale_timesteps": False},
    "cifar10-iddpm": {**_IDDPM, "image_size": 32},
    "lsun-bedroom256-iddpm": {
        **_IDDPM,
        "image_size": 256,
        "num_res_blocks": 2,
        "num_heads": 1,
        "attention_resolutions": "16",
        "use_scale_shift_norm": False,
        "noise_schedule": "linear",
        "diffusion_steps": 1000,
        "rescale_timesteps": False,
    },
}
"""Configurations of published files, in the words of guided-diffusion and, for those called iddpm, improved-diffusion."""

CLASSES = 1000
"""What ``class_cond=True`` means in guided-diffusion: ImageNet's classes."""

_MULTIPLIERS = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}
_GROUPS = 32
_IRRELEVANT = (
    "dropout",
    "use_checkpoint",
    "use_fp16",
    "timestep_respacing",
    "use_kl",
    "rescale_learned_sigmas",
    "model_path",
    "sigma_small",
)
_FLAGS = ("use_scale_shift_norm", "resblock_updown", "use_new_attention_order", "predict_xstart", "rescale_timesteps")
_REQUIRED = ("image_size", "model_channels", "num_res_blocks", "attention_resolutions")


@dataclass(frozen=True)
class UNetConfig:
    """guided-diffusion's `UNetModel`, by its own names.

    Attributes:
        image_size: height and width it was trained at.
        model_channels: channels of the first level (``num_channels`` in guided-diffusion's scripts).
        num_res_blocks: residual blocks per level.
        attention_resolutions: **down-sampling factors** at which attention applies, as the constructor takes them:
            ``(8,)`` means at 32 pixels of 256. A string such as ``"32,16,8"`` is read as the scripts do: in pixels.
        num_head_channels: channels per attention head; -1 to give `num_heads` instead. A file doesn't tell, so one
            of the two must be given.
        num_heads: attention heads at every level, where `num_head_channels` is -1.
        channel_mult: channels of each level over `model_channels`; by default what the scripts take for `image_size`.
        in_channels, out_channels: of the image and of the output; `learn_sigma` doubles the latter.
        num_classes: of a class-conditional network; None for an unconditional one.
        use_scale_shift_norm: the time scales and shifts the second norm of a block, instead of being added.
        resblock_updown: residual blocks change the resolution, instead of single convolutions.
        use_new_attention_order: rows of the fused q, k, v are [3, heads, channels] instead of [heads, 3, channels].
        noise_schedule, diffusion_steps: ``"linear"`` or ``"cosine"``, and how many times.
        predict_xstart: the network returns the clean image instead of the noise.
        rescale_timesteps: the network is told the time times ``1000 / diffusion_steps``, as improved-diffusion's scripts
            have it by default and guided-diffusion's have not.
    """

    image_size: int
    model_channels: int
    num_res_blocks: int
    attention_resolutions: tuple[int, ...]
    num_head_channels: int = -1
    num_heads: int = -1
    channel_mult: tuple[float, ...] = ()
    in_channels: int = 3
    out_channels: int = 3
    num_classes: int | None = None
    use_scale_shift_norm: bool = False
    resblock_updown: bool = False
    use_new_attention_order: bool = False
    noise_schedule: str = "linear"
    diffusion_steps: int = 1000
    predict_xstart: bool = False
    rescale_timesteps: bool = False

    @classmethod
    def read(cls, config: Mapping[str, Any], over: Mapping[str, Any] | None = None) -> UNetConfig:
        """From guided-diffusion's names, of its constructor or of its scripts.

        Args:
            config: the names and their values.
            over: a configuration that `config` changes single entries of, such as a preset.

        Raises:
            InvdiffError: a name that isn't known, a value out of its range, two that contradict each other, or a feature
                that isn't supported.
        """
        given = {**_own_names(over or {}), **_own_names(config)}
        for key in _REQUIRED:
            if key not in given:
                raise InvdiffError(f"the configuration lacks {key}; give it, or preset=, one of {', '.join(PRESETS)}")
        given["channel_mult"] = _multipliers(given.get("channel_mult"), given["image_size"])
        given["attention_resolutions"] = _factors(given["attention_resolutions"], given["image_size"])
        learn_sigma = given.pop("learn_sigma", None)
        if learn_sigma is not None:
            given.setdefault("in_channels", 3)
            given["out_channels"] = given["in_channels"] * (2 if learn_sigma else 1)
        read = cls(**given)
        read._check()
        return read

    def _check(self) -> None:
        if self.num_head_channels < 1 and self.num_heads < 1:
            raise InvdiffError(
                "give num_head_channels or num_heads: the file does not tell how attention is divided into heads"
            )
        for level, channels in enumerate(self.channels):
            if channels % _GROUPS or channels < _GROUPS:
                raise InvdiffError(
                    f"model_channels * channel_mult must be a multiple of {_GROUPS}, got {channels} at level {level}"
                )
            last = level == len(self.channels) - 1  # the middle attends at its size
            heads = self.head_size(channels)
            if (last or 2**level in self.attention_resolutions) and (heads < 1 or channels % heads):
                raise InvdiffError(f"{channels} channels at level {level} cannot be divided into heads of {heads}")
        if self.out_channels not in (self.in_channels, 2 * self.in_channels):
            raise InvdiffError(
                f"out_channels must be {self.in_channels} or, with a learned variance, {2 * self.in_channels}; "
                f"got {self.out_channels}"
            )
        if self.noise_schedule not in ("linear", "cosine"):
            raise InvdiffError(f"noise_schedule must be linear or cosine, got {self.noise_schedule!r}")

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(int(m * self.model_channels) for m in self.channel_mult)

    def head_size(self, channels: int) -> int:
        """Channels of one attention head where there are `channels` in all."""
        return self.num_head_channels if self.num_head_channels > 0 else channels // self.num_heads

    def schedule(self) -> NoiseSchedule:
        """guided-diffusion's betas: linear ones are scaled with the number of times."""
        if self.noise_schedule == "cosine":
            return NoiseSchedule.cosine(self.diffusion_steps)
        scale = 1000 / self.diffusion_steps
        return NoiseSchedule.linear(self.diffusion_steps, scale * 1e-4, scale * 0.02)

    def network(self) -> nn.Module:
        """diffusers' `UNet2DModel` of the same shape, without memory for its weights."""
        levels = [2**i in self.attention_resolutions for i in range(len(self.channels))]
        plain = "Resnet{}sampleBlock2D" if self.resblock_updown else "{}Block2D"
        resample = "resnet" if self.resblock_updown else "conv"
        network = build(
            {
                "sample_size": self.image_size,
                "in_channels": self.in_channels,
                "out_channels": self.out_channels,
                "block_out_channels": self.channels,
                "layers_per_block": self.num_res_blocks,
                "down_block_types": ["AttnDownBlock2D" if a else plain.format("Down") for a in levels],
                "up_block_types": ["AttnUpBlock2D" if a else plain.format("Up") for a in reversed(levels)],
                "downsample_type": resample,
                "upsample_type": resample,
                "time_embedding_dim": 4 * self.model_channels,
                "freq_shift": 0,
                "flip_sin_to_cos": True,
                "attention_head_dim": self.num_head_channels if self.num_head_channels > 0 else None,
                "norm_num_groups": _GROUPS,
                "attn_norm_num_groups": _GROUPS,
                "norm_eps": 1e-5,
                "resnet_time_scale_shift": "scale_shift" if self.use_scale_shift_norm else "default",
                "num_class_embeds": self.num_classes,
            }
        )
        if self.channels[0] != self.model_channels:  # the time is embedded at the size of model_channels all the same
            from diffusers.models.embeddings import TimestepEmbedding, Timesteps

            network.time_proj = Timesteps(self.model_channels, True, 0)
            with torch.device("meta"):
                network.time_embedding = TimestepEmbedding(self.model_channels, 4 * self.model_channels)
        if self.rescale_timesteps:
            network.time_proj.scale = 1000 / self.diffusion_steps  # type: ignore[union-attr, assignment]
        for module in network.modules():
            if type(module).__name__ == "Attention":
                attention: Any = module
                attention.heads = attention.inner_dim // self.head_size(attention.inner_dim)
        return network

    def entries(self, network: nn.Module) -> list[unet.Entry]:
        """Which tensor of a file fills which parameters of `network`."""
        entries = unet.module_entries(_same_modules(self, network), network)
        for theirs, ours in _attentions(self):
            targets = [f"{ours}.to_{n}" for n in "qkv"]
            for leaf in ("weight", "bias"):
                entries.append(unet.Entry(f"{theirs}.qkv.{leaf}", tuple(f"{t}.{leaf}" for t in targets), self._split))
        if self.num_classes is not None:
            entries.append(unet.Entry("label_emb.weight", ("class_embedding.weight",)))
        return entries

    def _split(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Fused q, k, v -> each, rows ordered [heads, channels]."""
        if self.use_new_attention_order:
            return rows.chunk(3, 0)
        size = self.head_size(rows.shape[0] // 3)
        return tuple(part.flatten(0, 1) for part in rows.unflatten(0, (-1, 3, size)).unbind(1))


@register_format("guided-diffusion")
class GuidedDiffusion(TensorFormat):
    """A file of guided-diffusion or improved-diffusion."""

    present = ("input_blocks.0.0.weight", "time_embed.0.weight", "out.2.weight", "output_blocks.0.0.in_layers.0.weight")

    def load(self, path: Path, **options: Any) -> Backbone:
        return load_guided_diffusion(path, **options)  # names the options that it doesn't know itself


def load_guided_diffusion(
    path: str | os.PathLike[str],
    preset: str | None = None,
    *,
    precision: str = "auto",
    compile: bool = False,
    device: torch.device | str | None = None,
    class_labels: int | Tensor | None = None,
    checkpointing: bool = False,
    sha256: str | None = None,
    **model_config: Any,
) -> NetworkBackbone:
    """A checkpoint in guided-diffusion's layout as a backbone, for images (B, 3, H, W) in [-1, 1].

        load_guided_diffusion("256x256_diffusion_uncond.pt", preset="imagenet256-uncond")
        load_guided_diffusion("mine.pt", image_size=64, num_heads=4)
        load_guided_diffusion("mine.pt", image_size=64, num_channels=128, num_res_blocks=2, num_heads=4,
                              attention_resolutions="16,8", use_scale_shift_norm=True, learn_sigma=True)

    Args:
        path: the file, `torch.save`'s or safetensors; float16 ones are widened.
        preset: one of `PRESETS`. With neither a preset nor a configuration, the preset that fits the file is taken.
            Without a preset, what is left out of the configuration and the file tells (all but the image size, the
            heads and the schedule) is read off the file.
        precision, compile, device, checkpointing: see `NetworkBackbone`.
        class_labels: for a class-conditional network: one label, or a long tensor (B,).
        sha256: checksum of the file, compared first when given.
        model_config: guided-diffusion's own names, see `UNetConfig`; over a preset they change single entries. Note
            that ``attention_resolutions`` are down-sampling factors as numbers and pixels as a string.

    Returns:
        `NetworkBackbone` whose ``network(x, t)`` gives guided-diffusion's own output: (B, 6, H, W) where the
        variance is learned.

    Raises:
        InvdiffError: a file that cannot be read (`read_state_dict`) or doesn't fit: the message names the first
            missing and the first unexpected tensor and the preset that fits best; labels missing, out of range or
            of no use.

    Source: the layout of github.com/openai/guided-diffusion, `guided_diffusion/unet.py`, and of openai/improved-diffusion.
    """
    if preset is not None:
        one_of("preset", preset, PRESETS)
    config = None
    if preset is not None or all(key in _own_names(model_config) for key in _REQUIRED):
        config = UNetConfig.read(model_config, PRESETS.get(preset or ""))
        check_labels(class_labels, config.num_classes)
    file = Path(path).expanduser() if isinstance(path, str | os.PathLike) else path
    state = read_state_dict(file, sha256=sha256)
    if config is None:
        _check_layout(state, file)
        if not model_config:
            preset = _fitting(state, file)
        told = told_by(state)
        if told["in_channels"] == told["out_channels"] == 6 and "in_channels" not in model_config:
            raise InvdiffError(
                f"path {file} takes 6 channels and returns 6: an upsampler, which sees a small image beside the noisy "
                "one. Restore with a plain model and SuperResolution instead; in_channels=6 takes it for images of 6 channels"
            )
        config = UNetConfig.read(model_config, PRESETS[preset] if preset else told)
        check_labels(class_labels, config.num_classes)
    network = config.network()
    unet.fill(network, config.entries(network), state, file, lambda: _best_preset(state))
    return NetworkBackbone(
        network,
        config.schedule(),
        (config.in_channels, config.image_size, config.image_size),
        prediction="sample" if config.predict_xstart else "epsilon",
        learned_variance=config.out_channels == 2 * config.in_channels,
        precision=precision,
        compile=compile,
        device=device,
        class_labels=class_labels,
        checkpointing=checkpointing,
        copy=False,
        name=preset or file.stem,
    )


# ---- the two layouts side by side ---------------------------------------------------------------------------

_RESIDUAL = (
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
)


def _blocks(config: UNetConfig) -> Iterator[tuple[str, str, str]]:
    """(kind, theirs, ours) of every block, in guided-diffusion's order; kind is residual, attention or resample."""
    levels, residual = len(config.channels), config.num_res_blocks
    n = 1
    for level in range(levels):
        ours, attended = f"down_blocks.{level}", 2**level in config.attention_resolutions
        for i in range(residual):
            yield "residual", f"input_blocks.{n}.0", f"{ours}.resnets.{i}"
            if attended:
                yield "attention", f"input_blocks.{n}.1", f"{ours}.attentions.{i}"
            n += 1
        if level < levels - 1:
            name = "residual" if config.resblock_updown else "resample"
            yield name, f"input_blocks.{n}.0" + ("" if config.resblock_updown else ".op"), f"{ours}.downsamplers.0"
            n += 1
    yield "residual", "middle_block.0", "mid_block.resnets.0"
    yield "attention", "middle_block.1", "mid_block.attentions.0"
    yield "residual", "middle_block.2", "mid_block.resnets.1"
    n = 0
    for step, level in enumerate(reversed(range(levels))):
        ours, attended = f"up_blocks.{step}", 2**level in config.attention_resolutions
        for i in range(residual + 1):
            yield "residual", f"output_blocks.{n}.0", f"{ours}.resnets.{i}"
            if attended:
                yield "attention", f"output_blocks.{n}.1", f"{ours}.attentions.{i}"
            if level > 0 and i == residual:
                place = f"output_blocks.{n}.{2 if attended else 1}"
                name = "residual" if config.resblock_updown else "resample"
                yield name, place + ("" if config.resblock_updown else ".conv"), f"{ours}.upsamplers.0"
            n += 1


def _same_modules(config: UNetConfig, network: nn.Module) -> Iterator[tuple[str, str]]:
    yield "time_embed.0", "time_embedding.linear_1"
    yield "time_embed.2", "time_embedding.linear_2"
    yield "input_blocks.0.0", "conv_in"
    for kind, theirs, ours in _blocks(config):
        if kind == "residual":
            yield from ((f"{theirs}.{a}", f"{ours}.{b}") for a, b in _RESIDUAL)
        elif kind == "attention":
            yield f"{theirs}.norm", f"{ours}.group_norm"
            yield f"{theirs}.proj_out", f"{ours}.to_out.0"
        else:
            yield theirs, f"{ours}.conv"
    yield "out.0", "conv_norm_out"
    yield "out.2", "conv_out"


def _attentions(config: UNetConfig) -> Iterator[tuple[str, str]]:
    return ((theirs, ours) for kind, theirs, ours in _blocks(config) if kind == "attention")


# ---- reading what was given ---------------------------------------------------------------------------------


def _own_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration in the names of `UNetConfig`'s attributes, and ``learn_sigma`` where out_channels is not given."""
    given = {k: v for k, v in config.items() if k not in _IRRELEVANT}
    names = [f.name for f in fields(UNetConfig)]
    for name in ("dims", "conv_resample", "num_heads_upsample"):
        accepted = {"dims": (2,), "conv_resample": (True,), "num_heads_upsample": (-1, config.get("num_heads", -1))}[
            name
        ]
        if given.pop(name, accepted[0]) not in accepted:
            raise InvdiffError(f"{name} must be {accepted[0]}, the only supported value, got {config[name]!r}")
    known("guided-diffusion", given, [*names, "num_channels", "class_cond", "learn_sigma"], "configuration name")
    for name in (*_FLAGS, "class_cond", "learn_sigma"):
        if name in given:
            flag(name, given[name])
    for name in ("image_size", "model_channels", "num_channels", "num_res_blocks", "in_channels", "out_channels"):
        if name in given:
            whole(name, given[name], 1, 1 << 16)
    if "diffusion_steps" in given:
        whole("diffusion_steps", given["diffusion_steps"], 1, 1_000_000)
    if given.get("num_classes") is not None:
        whole("num_classes", given["num_classes"], 1)
    for name in ("num_heads", "num_head_channels"):
        whole(name, given.get(name, -1), -1)
    if "num_channels" in given:
        _same(
            "num_channels", "model_channels", given["num_channels"], given.get("model_channels", given["num_channels"])
        )
        given["model_channels"] = given.pop("num_channels")
    if "class_cond" in given:
        conditional = given.pop("class_cond")
        classes = given.get("num_classes", CLASSES if conditional else None)
        _same("class_cond", "num_classes is not None", conditional, classes is not None)
        given["num_classes"] = classes
    if "out_channels" in given and "learn_sigma" in given:
        channels = given.get("in_channels", 3) * (2 if given.pop("learn_sigma") else 1)
        _same("out_channels", "what learn_sigma makes of in_channels", given["out_channels"], channels)
    elif "out_channels" in given:
        given["learn_sigma"] = None  # over a preset's
    return given


def _same(one: str, other: str, value: Any, expected: Any) -> None:
    if value != expected:
        raise InvdiffError(f"{one} and {other} contradict each other: {value!r} and {expected!r}; give one of them")


def told_by(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the tensors of a file tell of its configuration: all but the image size, the heads and the schedule.

    Args:
        state: the tensors, with the names of the layout.
    """
    n, ends = 0, []  # blocks of the way up after which the resolution changes: the last of each level but the finest
    while f"output_blocks.{n}.0.in_layers.0.weight" in state:
        further = [f"output_blocks.{n}.{i}.{leaf}" for i in (1, 2) for leaf in ("conv.weight", "in_layers.0.weight")]
        if any(name in state for name in further):
            ends.append(n)
        n += 1
    residual, base = (ends[0] if ends else n - 1), state["time_embed.0.weight"].shape[1]
    firsts = [f"input_blocks.{1 + level * (residual + 1)}" for level in range(len(ends) + 1)]
    outs = [state[f"{first}.0.in_layers.2.weight"].shape[0] for first in firsts]
    return {
        "model_channels": base,
        "num_res_blocks": residual,
        "channel_mult": tuple(c // base if c % base == 0 else c / base for c in outs),
        "attention_resolutions": tuple(2**i for i, first in enumerate(firsts) if f"{first}.1.qkv.weight" in state),
        "in_channels": state["input_blocks.0.0.weight"].shape[1],
        "out_channels": state["out.2.weight"].shape[0],
        "num_classes": state["label_emb.weight"].shape[0] if "label_emb.weight" in state else None,
        "use_scale_shift_norm": state[f"{firsts[0]}.0.emb_layers.1.weight"].shape[0] == 2 * outs[0],
        "resblock_updown": not any(name.endswith(".0.op.weight") for name in state),
    }


def _multipliers(given: Any, image_size: int) -> tuple[float, ...]:
    if given is None or given == "" or given == ():
        if image_size not in _MULTIPLIERS:
            raise InvdiffError(
                f"channel_mult must be given for image_size {image_size}; known are {', '.join(map(str, _MULTIPLIERS))}"
            )
        return _MULTIPLIERS[image_size]
    try:
        values = tuple(float(m) for m in (given.split(",") if isinstance(given, str) else given))
    except (TypeError, ValueError):
        values = ()
    if not values or min(values) <= 0:
        raise InvdiffError(f"channel_mult must be positive numbers such as (1, 2, 4) or '1,2,4', got {given!r}")
    return values


def _factors(given: Any, image_size: int) -> tuple[int, ...]:
    """Down-sampling factors: numbers as they are, a string in pixels as guided-diffusion's scripts have it."""
    try:
        if isinstance(given, str):
            return tuple(image_size // int(pixels) for pixels in given.split(",") if pixels.strip())
        return tuple(int(factor) for factor in ([given] if isinstance(given, int) else given))
    except (TypeError, ValueError, ZeroDivisionError):
        raise InvdiffError(
            "attention_resolutions must be down-sampling factors such as (8, 16, 32), or a string of resolutions in "
            f"pixels such as '32,16,8', got {given!r}"
        ) from None


def check_labels(labels: int | Tensor | None, classes: int | None) -> None:
    """Labels of an unconditional (`classes` None) or class-conditional network, before it is read or run.

    Raises:
        InvdiffError: labels missing, of no use, not whole numbers, or out of range.
    """
    if classes is None:
        if labels is not None:
            raise InvdiffError(f"class_labels must be left out, got {labels!r}: this network is unconditional")
        return
    if labels is None:
        raise InvdiffError(
            f"class_labels must be given: this network is conditioned on one of {classes} classes, 0..{classes - 1}"
        )
    try:
        values = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError):
        raise InvdiffError(f"class_labels must be a whole number or a long tensor (B,), got {labels!r}") from None
    if values.is_floating_point() or values.dtype == torch.bool or values.ndim > 1 or values.numel() == 0:
        raise InvdiffError(f"class_labels must be a whole number or a long tensor (B,), got {labels!r}")
    if int(values.min()) < 0 or int(values.max()) >= classes:
        raise InvdiffError(f"class_labels must be 0..{classes - 1}, got {int(values.min())} to {int(values.max())}")


def _check_layout(state: Mapping[str, Tensor], file: Path) -> None:
    wanted = (*GuidedDiffusion.present, "input_blocks.1.0.in_layers.2.weight", "input_blocks.1.0.emb_layers.1.weight")
    if missing := [name for name in wanted if name not in state]:
        raise InvdiffError(
            f"path {file} is no file of guided-diffusion: of {len(state)} tensors, starting with {', '.join(list(state)[:3])}, "
            f"none is {missing[0]}. A file without output_blocks is a classifier: load_classifier."
        )


@lru_cache(maxsize=32)
def _preset_shapes(config: UNetConfig) -> Mapping[str, tuple[int, ...]]:
    network = config.network()
    return unet.shapes(network, config.entries(network))


def _fits(state: Mapping[str, Tensor]) -> dict[str, float]:
    """How well each preset fits, 1 for perfectly."""
    base = state["time_embed.0.weight"].shape[-1] if "time_embed.0.weight" in state else None
    configs = {name: UNetConfig.read(preset) for name, preset in PRESETS.items()}
    return {
        name: unet.overlap(_preset_shapes(config), state) if config.model_channels == base else 0.0
        for name, config in configs.items()
    }


def _best_preset(state: Mapping[str, Tensor]) -> str:
    fits = _fits(state)
    best = max(fits.values())
    names = " or ".join(n for n, f in fits.items() if f == best)
    if best == 1:
        return f"The file fits preset {names} exactly."
    if best < 0.1:
        return "No preset comes near: give its own configuration, if it is a file of guided-diffusion at all."
    return f"The preset that fits best is {names}, {100 * best:.0f} % of its tensors."


def _fitting(state: Mapping[str, Tensor], file: Path) -> str:
    fits = _fits(state)
    if max(fits.values()) < 1:
        told = ", ".join(f"{name}={value!r}" for name, value in told_by(state).items())
        raise InvdiffError(
            f"path {file} fits no preset exactly; give what a file doesn't tell: image_size=, num_head_channels= or num_heads=, "
            f"and where they are not the defaults noise_schedule=, diffusion_steps=, ... It tells {told}. {_best_preset(state)}"
        )
    return max(fits, key=lambda n: fits[n])
