"""A UNet behind an orthonormal Haar transform: a pixel-space denoiser at a quarter of the cost.

At 64x64 most of a UNet's time goes into its full-resolution layers. The Haar transform trades resolution for
channels, (C, H, W) -> (4 C, H/2, W/2), and because it is orthonormal it keeps white noise white:

    network(x, t) = H^-1 unet(H x, t)

is a denoiser of the image itself, trained with the same loss. The idea of wavelet diffusion models (Phung et al.,
2023).

Saved in diffusers' folder format, see `SavedNetwork`.
"""

from __future__ import annotations

import json
import math
import re
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invdiff.backbones.flow import FlowBackbone
from invdiff.backbones.network import PREDICTIONS, NetworkBackbone
from invdiff.backbones.schedule import NoiseSchedule
from invdiff.backbones.unet import build, unet_class
from invdiff.backbones.weights_file import CONFIG, WEIGHTS, read_weights, write_weights
from invdiff.checks import one_of, shown, whole
from invdiff.errors import InvdiffError
from invdiff.files import read_json, replace_file

NetworkT = TypeVar("NetworkT", bound="SavedNetwork")

DESCRIPTION = "invdiff.json"

DDPM: dict[str, Any] = {"kind": "linear", "T": 1000, "beta_start": 1e-4, "beta_end": 0.02}
"""The schedule of Ho et al. (2020)."""

FLOW: dict[str, Any] = {"kind": "flow", "T": 1000}
"""Evenly spaced shares of noise, 1/T to 1."""

LEARNED = (*PREDICTIONS, "flow")
"""What a trained network can predict: ``"flow"`` is the velocity ``noise - data`` in ``(1 - u) data + u noise``, asked with the
point on that line and the time T u, as diffusers' flow-matching schedulers ask."""

RESTORATION = "restoration"
"""Of a network that is no denoiser: it is shown a picture with holes and says the whole, see `restoring.RestoringUNet`."""

_SCHEDULES: dict[str, Callable[..., NoiseSchedule]] = {
    "linear": NoiseSchedule.linear,
    "scaled_linear": NoiseSchedule.scaled_linear,
    "cosine": NoiseSchedule.cosine,
    "flow": NoiseSchedule.flow,
    "betas": NoiseSchedule.from_betas,
}


# ---- the transform ----------------------------------------------------------------------------------------------


def haar(x: Tensor) -> Tensor:
    """Orthonormal Haar transform of every 2x2 block: (B, C, H, W) -> (B, 4 C, H/2, W/2), H and W even.

    With ``a b`` the upper and ``c d`` the lower pixels of a block, the output channels are ``(a+b+c+d)/2`` of the C
    channels, then ``(a-b+c-d)/2``, ``(a+b-c-d)/2`` and ``(a-b-c+d)/2`` likewise. Differentiable; the inverse and the
    adjoint are both `inverse_haar`.

    Raises:
        InvdiffError: an odd height or width.
    """
    return _analyse(x, _filters(x.shape[1], x.dtype, x.device))


def inverse_haar(h: Tensor) -> Tensor:
    """The inverse of `haar`: (B, 4 C, H, W) -> (B, C, 2 H, 2 W).

    Raises:
        InvdiffError: a number of channels that isn't a multiple of four.
    """
    if h.ndim != 4 or h.shape[1] % 4:
        raise InvdiffError(f"h must be of shape (B, 4 C, H, W), got {tuple(h.shape)}")
    return F.conv_transpose2d(h, _filters(h.shape[1] // 4, h.dtype, h.device), stride=2)


def _analyse(x: Tensor, filters: Tensor) -> Tensor:
    if x.ndim != 4 or x.shape[-1] % 2 or x.shape[-2] % 2:
        raise InvdiffError(
            f"Haar transform: images must be (B, C, H, W) of even height and width, got {tuple(x.shape)}"
        )
    return F.conv2d(x, filters, stride=2)


def _haar_filters(channels: int) -> Tensor:
    """The transform as the weight of a convolution with stride 2, (4 C, C, 2, 2): twice as fast as slicing."""
    signs = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], dtype=torch.float32)
    signs = signs.reshape(4, 1, 1, 2, 2)
    same = torch.eye(channels, dtype=torch.float32).reshape(1, channels, channels, 1, 1)
    return (signs * same / 2).reshape(4 * channels, channels, 2, 2)


@lru_cache(maxsize=16)
def _filters(channels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # an inference tensor in the cache would break a later backward pass
        return _haar_filters(channels).to(device, dtype)


# ---- what a folder says about itself ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Description:
    """What the network's wrapper needs to know, and where the weights come from (``invdiff.json``).

    Attributes:
        name: what reports call it.
        image_shape: (C, H, W), or (C, None, None) for pictures of any size.
        haar: whether the Haar transform stands around the network.
        prediction: ``"epsilon"``, ``"v_prediction"`` or ``"sample"``, see `NetworkBackbone`, ``"flow"``, see `LEARNED`, or
            `RESTORATION`.
        schedule: ``{"kind": "linear", "T": 1000, "beta_start": 1e-4, "beta_end": 0.02}``; the kind names a maker of
            `NoiseSchedule` (``"betas"`` for `from_betas`), the rest are its arguments; ``"times"`` lists the only ones that a
            network of a few calls knows.
        provenance: free: data, licence, recipe, images seen, held-out error.
        sha256: of the weights file; empty until saved.
    """

    name: str = "backbone"
    image_shape: tuple[int | None, ...] = (3, 64, 64)
    haar: bool = True
    prediction: str = "v_prediction"
    schedule: dict[str, Any] = field(default_factory=lambda: dict(DDPM))
    provenance: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""

    def __post_init__(self) -> None:
        one_of("prediction", self.prediction, (*LEARNED, RESTORATION))
        shape = self.image_shape
        if not isinstance(shape, list | tuple) or len(shape) != 3:
            raise InvdiffError(f"image_shape must be (channels, height, width), got {shown(shape)}")
        object.__setattr__(
            self, "image_shape", tuple(None if n is None else whole("image_shape", n, 1, 1 << 16) for n in shape)
        )
        if not isinstance(self.name, str) or not isinstance(self.haar, bool) or not isinstance(self.schedule, dict):
            raise InvdiffError(
                f"a description has a name (a word), haar (true or false) and a schedule (a dictionary), got {shown(self.name)}, "
                f"{shown(self.haar)} and {shown(self.schedule)}"
            )

    def noise_schedule(self) -> NoiseSchedule:
        """The schedule of the training.

        Raises:
            InvdiffError: a kind that isn't known.
        """
        arguments = dict(self.schedule)
        kind, times = arguments.pop("kind", "linear"), arguments.pop("times", None)
        one_of("schedule kind", kind, _SCHEDULES)
        if "T" in arguments:
            whole("schedule T", arguments["T"], 1, 1_000_000)
        try:
            full = _SCHEDULES[kind](**arguments)
        except TypeError as error:
            raise InvdiffError(f"schedule of kind {kind!r} does not take {shown(arguments)}: {error}") from error
        if times is not None and not isinstance(times, list | tuple):
            raise InvdiffError(f"schedule times must be a list of whole numbers, got {shown(times)}")
        return full if times is None else full.at_times(times)

    @classmethod
    def read(cls, folder: str | Path) -> Description:
        """The description of a saved folder.

        Raises:
            InvdiffError: no ``invdiff.json``, or one that cannot be read.
        """
        path = Path(folder) / DESCRIPTION
        if not path.is_file():
            raise InvdiffError(f"{folder} holds no {DESCRIPTION}: it wasn't saved by `invdiff train`")
        values = read_json(path)
        if not re.fullmatch(r"[0-9a-fA-F]{64}", str(values.get("sha256", ""))):
            raise InvdiffError(
                f"{path} must hold the sha256 of the weights, 64 hexadecimal digits, got {shown(values.get('sha256'))}; "
                "if you changed the weights on purpose, save them with HaarUNet.save"
            )
        try:
            return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})
        except (ValueError, TypeError) as error:
            raise InvdiffError(f"{path} cannot be read: {error}") from error

    def write(self, folder: str | Path) -> None:
        """Write ``invdiff.json``, whole or not at all."""
        replace_file(Path(folder) / DESCRIPTION, (json.dumps(asdict(self), indent=2) + "\n").encode())


class SavedNetwork(nn.Module):
    """A network that is saved as a folder: ``config.json``, ``diffusion_pytorch_model.safetensors`` and ``invdiff.json``.

    To write one, give `configuration` and `made_of`; `stored` where the weights are those of a part of it.

    Attributes:
        description: shape of the images, schedule, prediction; saved with the weights.
    """

    description: Description

    @abstractmethod
    def configuration(self) -> str:
        """The text of ``config.json``."""

    @classmethod
    @abstractmethod
    def made_of(cls: type[NetworkT], config: dict[str, Any], description: Description, folder: Path) -> NetworkT:
        """The network that a configuration describes, its weights still to be filled in.

        Raises:
            InvdiffError: a configuration, that of `folder`, that it doesn't take.
        """

    def stored(self) -> nn.Module:
        """Whose weights are in the file."""
        return self

    def save(self, folder: str | Path, *, precision: str = "float32") -> Description:
        """Write the three files, each whole or not at all, and return the description as written.

        Args:
            folder: made if it isn't there.
            precision: of the stored weights: ``"float32"``, ``"bfloat16"``, ``"float16"`` or ``"int8"``.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        description = replace(self.description, sha256=write_weights(folder, self.stored().state_dict(), precision))
        replace_file(folder / CONFIG, self.configuration().encode())
        description.write(folder)
        return description

    @classmethod
    def load(cls: type[NetworkT], folder: str | Path) -> NetworkT:
        """The network of a saved folder, float32, in evaluation mode.

        Raises:
            InvdiffError: a missing file, or weights that don't match their checksum or their configuration.
        """
        folder = Path(folder)
        description = Description.read(folder)
        config, state = read_weights(folder, description.sha256)
        network = cls.made_of(config, description, folder)
        try:
            network.stored().load_state_dict(state, assign=True)
        except Exception as error:
            raise InvdiffError(f"{folder / WEIGHTS} does not hold the weights of {folder / CONFIG}: {error}") from error
        return network.eval()


# ---- the network ------------------------------------------------------------------------------------------------


class HaarUNet(SavedNetwork):
    """diffusers' `UNet2DModel` behind the Haar transform, or plain with ``description.haar=False``.

        network = HaarUNet.new(channels=(64, 128, 160))
        backbone = HaarUNet.load("folder").backbone()

    Args:
        unet: network of (4 C, H/2, W/2), or of (C, H, W) for a plain one; called as ``unet(x, t).sample``.
        description: shape of the images, schedule, prediction; saved with the weights.
    """

    filters: Tensor

    def __init__(self, unet: nn.Module, description: Description | None = None) -> None:
        super().__init__()
        self.unet = unet
        self.description = description or Description()
        self.register_buffer("filters", _haar_filters(cast(int, self.description.image_shape[0])), persistent=False)

    @classmethod
    def new(
        cls,
        description: Description | None = None,
        *,
        channels: tuple[int, ...] = (64, 128, 160),
        layers: int = 2,
        attention: int = 8,
        dropout: float = 0.0,
        beside: int = 0,
    ) -> HaarUNet:
        """An untrained network. Its initial weights come from torch's global generator.

        Args:
            description: shape of the images, schedule, prediction; 64x64 RGB behind the transform by default.
            channels: of each resolution, from the finest; each next one has half the size.
            layers: residual blocks per resolution.
            attention: self-attention at resolutions of this many pixels and below; always in the middle block.
            dropout: probability in every residual block, while training.
            beside: channels that the input has beside the image's.

        Raises:
            InvdiffError: a size that cannot be halved as often as there are resolutions.
        """
        description = description or Description()
        C, height, width = cast(tuple[int, int, int], description.image_shape)
        fold = 2 if description.haar else 1
        halvings = fold * 2 ** (len(channels) - 1)
        if height % halvings or width % halvings:
            raise InvdiffError(
                f"image size must be a multiple of {halvings} for {len(channels)} resolutions"
                f"{' behind the Haar transform' if description.haar else ''}, got {height}x{width}"
            )
        attends = [min(height, width) // fold // 2**level <= attention for level in range(len(channels))]
        unet: Any = unet_class()(
            sample_size=height // fold if height == width else (height // fold, width // fold),
            in_channels=(C + beside) * fold**2,
            out_channels=C * fold**2,
            block_out_channels=tuple(channels),
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
            layers_per_block=layers,
            attention_head_dim=min(64, *channels),
            norm_num_groups=math.gcd(32, *channels),
            dropout=dropout,
        )
        return cls(unet, description)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The prediction for noisy images `x`, (B, C, H, W), at times `t`, (B,): float32, of the shape of x."""
        if not self.description.haar:
            return self.unet(x, t).sample.float()
        h = _analyse(x, self.filters if x.dtype == self.filters.dtype else self.filters.to(x.dtype))
        out = self.unet(h, t).sample
        with torch.autocast(out.device.type, enabled=False):
            return F.conv_transpose2d(out.float(), self.filters.float(), stride=2)

    def configuration(self) -> str:
        return str(self.unet.to_json_string())  # type: ignore[operator]

    def stored(self) -> nn.Module:
        return self.unet

    @classmethod
    def made_of(cls, config: dict[str, Any], description: Description, folder: Path) -> HaarUNet:
        if description.prediction == RESTORATION and cls is HaarUNet:
            raise InvdiffError(
                f"{folder} holds a restorer, which is no denoiser; it is a sampler: Restorer({str(folder)!r})"
            )
        return cls(build(config, folder / CONFIG), description)

    def backbone(
        self,
        *,
        precision: str = "auto",
        compile: bool = False,
        device: torch.device | str | None = None,
        copy: bool = True,
        **options: Any,
    ) -> NetworkBackbone:
        """This network as a `Backbone`; the arguments are those of `NetworkBackbone`."""
        d = self.description
        options |= {"precision": precision, "compile": compile, "device": device, "copy": copy}
        options.setdefault("name", d.name)
        schedule = d.noise_schedule()
        if d.prediction == "flow":
            return FlowBackbone(self, schedule, d.image_shape, data_at=0, time_scale=schedule.T, **options)
        return NetworkBackbone(self, schedule, d.image_shape, prediction=d.prediction, **options)
