"""guided-diffusion's classifiers of noisy images, which guide any sampler towards a class (Dhariwal & Nichol, 2021).

classifier = load_classifier("256x256_classifier.pt", image_size=256)
solution = solve(A, y, "ddnm", backbone=backbone, guidance=Guidance(classifier.loss(281), weight=1.0, on="x_t"))
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invdiff.backbones.base import Backbone
from invdiff.backbones.network import available_device
from invdiff.checkpoints import layout as unet
from invdiff.checkpoints.formats import TensorFormat, register_format
from invdiff.checkpoints.reading import read_state_dict
from invdiff.checks import whole
from invdiff.errors import InvdiffError

_GROUPS = 32


@register_format("classifier")
class Classifier(TensorFormat):
    """A classifier of noisy images: no backbone, so named for what it is."""

    present = ("input_blocks.0.0.weight", "time_embed.0.weight", "middle_block.0.in_layers.0.weight")
    absent = ("output_blocks.",)

    def load(self, path: Path, **options: Any) -> Backbone:
        raise InvdiffError(
            f"{path} is a classifier of noisy images, no backbone: it guides one. from invdiff.checkpoints import load_classifier; "
            f'guidance = Guidance(load_classifier("{path.name}", image_size=...).loss(label), weight=1.0, on="x_t")'
        )


@dataclass(frozen=True)
class ClassifierConfig:
    """guided-diffusion's `EncoderUNetModel`, as far as its files tell and `load_classifier` is told.

    Attributes:
        image_size: height and width it was trained at.
        model_channels: channels that the time is embedded in.
        channels: of each level, finest first.
        num_res_blocks: residual blocks per level (``classifier_depth``).
        attended: for each level, whether attention follows its blocks.
        head_channels: channels per attention head.
        in_channels, classes: of the image, and how many classes.
        scale_shift: the time scales and shifts the second norm of a block, instead of being added.
        resblock_down: residual blocks halve the resolution, instead of single convolutions.
    """

    image_size: int
    model_channels: int
    channels: tuple[int, ...]
    num_res_blocks: int
    attended: tuple[bool, ...]
    head_channels: int
    in_channels: int
    classes: int
    scale_shift: bool
    resblock_down: bool

    @classmethod
    def infer(cls, state: Mapping[str, Tensor], image_size: int, head_channels: int, file: Path) -> ClassifierConfig:
        """From the tensors of a file.

        Raises:
            InvdiffError: it lacks the names that tell the shape, or `image_size` is not that of its pooling.
        """
        wanted = [*Classifier.present, "input_blocks.1.0.in_layers.2.weight", "input_blocks.1.0.emb_layers.1.weight"]
        wanted += ["out.2.positional_embedding", "out.2.c_proj.weight"]
        if missing := [name for name in wanted if name not in state]:
            raise InvdiffError(
                f"path {file} is no classifier of guided-diffusion with attention pooling: of {len(state)} tensors, "
                f"starting with {', '.join(list(state)[:3])}, none is {missing[0]}"
            )
        blocks = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("input_blocks."))
        ops = [n for n in range(blocks) if f"input_blocks.{n}.0.op.weight" in state]
        side = math.isqrt(state["out.2.positional_embedding"].shape[1] - 1)
        levels = int(math.log2(max(image_size // max(side, 1), 1))) + 1
        if side << (levels - 1) != image_size or (ops and levels != len(ops) + 1):
            raise InvdiffError(
                f"image_size must be {side} times a power of two, one for every level beyond the first: path {file} pools "
                f"{side}x{side} places; got {image_size}"
            )
        residual, rest = divmod(blocks - levels, levels)
        if rest or residual < 1:
            raise InvdiffError(
                f"image_size {image_size} does not go with the {blocks} blocks of path {file}; {levels} levels?"
            )
        firsts = [f"input_blocks.{1 + i * (residual + 1)}" for i in range(levels)]
        channels = tuple(state[f"{first}.0.in_layers.2.weight"].shape[0] for first in firsts)
        return cls(
            image_size=image_size,
            model_channels=state["time_embed.0.weight"].shape[1],
            channels=channels,
            num_res_blocks=residual,
            attended=tuple(f"{first}.1.qkv.weight" in state for first in firsts),
            head_channels=head_channels,
            in_channels=state["input_blocks.0.0.weight"].shape[1],
            classes=state["out.2.c_proj.weight"].shape[0],
            scale_shift=state["input_blocks.1.0.emb_layers.1.weight"].shape[0] == 2 * channels[0],
            resblock_down=not ops,
        )


class NoisyClassifier(nn.Module):
    """``log p(class | x_t)`` of images with the noise of time t, by the names and shapes of guided-diffusion's files.

    Args:
        config: its shape; `load_classifier` reads it off a file.
    """

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config, c = config, config
        time = 4 * c.model_channels
        self.time_embed = nn.Sequential(nn.Linear(c.model_channels, time), nn.SiLU(), nn.Linear(time, time))
        inside = c.channels[0]
        blocks: list[nn.Module] = [nn.ModuleList([nn.Conv2d(c.in_channels, inside, 3, padding=1)])]
        for level, (width, attended) in enumerate(zip(c.channels, c.attended, strict=True)):
            for _ in range(c.num_res_blocks):
                parts: list[nn.Module] = [_Residual(inside, width, time, c.scale_shift)]
                if attended:
                    parts.append(_Attention(width, c.head_channels))
                blocks.append(nn.ModuleList(parts))
                inside = width
            if level < len(c.channels) - 1:
                half = _Residual(width, width, time, c.scale_shift, down=True) if c.resblock_down else _Halve(width)
                blocks.append(nn.ModuleList([half]))
        self.input_blocks = nn.ModuleList(blocks)
        self.middle_block = nn.ModuleList(
            [
                _Residual(inside, inside, time, c.scale_shift),
                _Attention(inside, c.head_channels),
                _Residual(inside, inside, time, c.scale_shift),
            ]
        )
        places = (c.image_size >> (len(c.channels) - 1)) ** 2
        pool = _AttentionPool(inside, places, c.head_channels, c.classes)
        self.out = nn.Sequential(nn.GroupNorm(_GROUPS, inside), nn.SiLU(), pool)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Logits (B, classes) of x_t, (B, C, image_size, image_size) in model range plus noise, at times t, (B,), of 0..999."""
        c = self.config
        if x_t.shape[1:] != (c.in_channels, c.image_size, c.image_size):
            raise InvdiffError(
                f"the classifier takes images of {(c.in_channels, c.image_size, c.image_size)}, got {tuple(x_t.shape[1:])}"
            )
        time = self.time_embed(_embedded(t, c.model_channels))
        h = x_t
        for block in (*self.input_blocks, self.middle_block):
            for part in block:  # type: ignore[attr-defined]
                h = part(h, time) if isinstance(part, _Residual) else part(h)
        return self.out(h)

    def loss(self, label: int) -> Callable[[Tensor, Tensor], Tensor]:
        """``-log p(label | x_t)``, (B,), as a function of (x_t, t): what `Guidance(..., on="x_t")` takes.

        Its gradient times the weight moves the noise estimate as in Dhariwal & Nichol (2021), algorithm 2.

        Args:
            label: the class, one for all images.

        Raises:
            InvdiffError: no such class.
        """
        whole("label", label, 0, self.config.classes - 1)

        def minus_log_probability(x_t: Tensor, t: Tensor) -> Tensor:
            self.to(x_t.device)
            return -self(x_t.float(), t).log_softmax(-1)[:, label]

        return minus_log_probability


def load_classifier(
    path: str | os.PathLike[str],
    image_size: int = 256,
    *,
    head_channels: int = 64,
    device: torch.device | str | None = None,
    sha256: str | None = None,
) -> NoisyClassifier:
    """A classifier of noisy images, such as guided-diffusion's ``256x256_classifier.pt``, in float32, frozen.

    Args:
        path: the file; float16 ones are widened.
        image_size: height and width that it was trained at; the file tells everything else but the heads.
        head_channels: channels per attention head, 64 in all published files.
        device: where to run; `loss` follows the images that it is given.
        sha256: checksum of the file, compared first when given.

    Raises:
        InvdiffError: a file that cannot be read (`read_state_dict`) or is none of this layout.

    Source: the layout of github.com/openai/guided-diffusion, `EncoderUNetModel` with ``pool="attention"``.
    """
    whole("image_size", image_size, 1, 1 << 16)
    whole("head_channels", head_channels, 1, 1 << 16)
    state, file = read_state_dict(path, sha256=sha256), Path(path).expanduser()
    config = ClassifierConfig.infer(state, image_size, head_channels, file)
    attending = {w for w, a in zip(config.channels, config.attended, strict=True) if a} | {config.channels[-1]}
    for width in (*config.channels, *attending):
        if width % _GROUPS or (width in attending and width % head_channels):
            raise InvdiffError(
                f"head_channels must divide the {width} channels of a level with attention (all are multiples of {_GROUPS}), "
                f"got {head_channels}"
            )
    with torch.device("meta"):
        network = NoisyClassifier(config)
    unet.fill_by_name(network, state, file, f"Is it a classifier of {image_size} pixels?")
    network = network.eval().requires_grad_(False)
    return network if device is None else network.to(available_device(device))


# ---- its layers, named as in the files --------------------------------------------------------------------------


class _Residual(nn.Module):
    def __init__(self, inside: int, outside: int, time: int, scale_shift: bool, down: bool = False) -> None:
        super().__init__()
        self.scale_shift, self.down = scale_shift, down
        self.in_layers = nn.Sequential(
            nn.GroupNorm(_GROUPS, inside), nn.SiLU(), nn.Conv2d(inside, outside, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time, (2 if scale_shift else 1) * outside))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(_GROUPS, outside), nn.SiLU(), nn.Identity(), nn.Conv2d(outside, outside, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if inside == outside else nn.Conv2d(inside, outside, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        norm, act, convolve = self.in_layers
        h = act(norm(x))
        if self.down:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        h = convolve(h)
        shift = self.emb_layers(time)[..., None, None]
        norm, *rest = self.out_layers
        if self.scale_shift:
            scale, shift = shift.chunk(2, 1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + shift)
        for layer in rest:
            h = layer(h)
        return self.skip_connection(x) + h


class _Halve(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class _Attention(nn.Module):
    """Over all places; rows of the fused q, k, v are [heads, 3, channels]."""

    def __init__(self, channels: int, head_channels: int) -> None:
        super().__init__()
        self.heads = channels // head_channels
        self.norm = nn.GroupNorm(_GROUPS, channels)
        self.qkv, self.proj_out = nn.Conv1d(channels, 3 * channels, 1), nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        q, k, v = self.qkv(self.norm(flat)).unflatten(1, (self.heads, 3, -1)).unbind(2)
        return (flat + self.proj_out(_attend(q, k, v))).reshape(x.shape)


class _AttentionPool(nn.Module):
    """The mean of all places attends to them; rows of the fused q, k, v are [3, heads, channels]."""

    def __init__(self, channels: int, places: int, head_channels: int, classes: int) -> None:
        super().__init__()
        self.heads = channels // head_channels
        self.positional_embedding = nn.Parameter(torch.zeros(channels, places + 1))
        self.qkv_proj, self.c_proj = nn.Conv1d(channels, 3 * channels, 1), nn.Conv1d(channels, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        flat = torch.cat([flat.mean(-1, keepdim=True), flat], -1) + self.positional_embedding
        q, k, v = self.qkv_proj(flat).unflatten(1, (3, self.heads, -1)).unbind(1)
        return self.c_proj(_attend(q[..., :1], k, v))[..., 0]


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of (B, heads, channels, places) -> (B, heads channels, places)."""
    mixed = F.scaled_dot_product_attention(q.transpose(2, 3), k.transpose(2, 3), v.transpose(2, 3))
    return mixed.transpose(2, 3).flatten(1, 2)


def _embedded(t: Tensor, channels: int) -> Tensor:
    """Cosines, then sines, of the time at frequencies 1 down to 1/10,000."""
    half = channels // 2
    angles = t[:, None].float() * torch.exp(-math.log(1e4) * torch.arange(half, device=t.device) / half)
    return torch.cat([angles.cos(), angles.sin()], 1)
