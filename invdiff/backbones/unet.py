"""diffusers' `UNet2DModel`: the one network class that every layout of files is placed into."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from invdiff.checks import shown
from invdiff.errors import InvdiffError

_LEVELS = 32
_BLOCKS = 64
_CHANNELS = 16_384


def unet_class() -> type[nn.Module]:
    """diffusers' `UNet2DModel`, imported also where torchvision is broken.

    diffusers imports torchvision, which this network doesn't use, wherever a package of that name is installed; a build
    that doesn't match torch raises there. It is then imported once more without.

    Raises:
        InvdiffError: diffusers cannot be imported either way.
    """
    try:
        from diffusers.models.unets.unet_2d import UNet2DModel
    except Exception as first:  # a RuntimeError from torch's operator registry, an ImportError, an OSError
        try:
            from diffusers.utils import import_utils

            import_utils._torchvision_available = False
            from diffusers.models.unets.unet_2d import UNet2DModel
        except Exception as error:
            raise InvdiffError(
                f"diffusers cannot be imported ({first}). Install it (pip install 'diffusers>=0.32'); if the message "
                "names torchvision, the pair of torch and torchvision doesn't match: install both together."
            ) from error
    logging.getLogger("diffusers.models.modeling_utils").addFilter(_is_meant)
    return UNet2DModel


def build(config: Mapping[str, Any], place: object = "configuration") -> nn.Module:
    """The network of a configuration of diffusers, with shapes but without memory for its weights (the meta device).

    Args:
        config: names of `UNet2DModel`'s arguments; a ``config.json``'s own further entries are passed over.
        place: where it comes from, for messages.

    Raises:
        InvdiffError: it describes no network, or one beyond any published (32 levels, 64 blocks a level, 16,384 channels).
    """
    channels = config.get("block_out_channels", ())
    _bounded(place, "block_out_channels", channels if isinstance(channels, list | tuple) else [channels], _CHANNELS)
    if isinstance(channels, list | tuple) and len(channels) > _LEVELS:
        raise InvdiffError(f"{place}: block_out_channels must have at most {_LEVELS} levels, got {len(channels)}")
    for name, largest in {
        "layers_per_block": _BLOCKS,
        "in_channels": _CHANNELS,
        "out_channels": _CHANNELS,
        "time_embedding_dim": 4 * _CHANNELS,
        "num_class_embeds": 1 << 24,
    }.items():
        if config.get(name) is not None:
            _bounded(place, name, [config[name]], largest)
    model: Any = unet_class()
    try:
        with torch.device("meta"):
            return model.from_config(dict(config))
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, ZeroDivisionError, RuntimeError) as error:
        raise InvdiffError(f"{place} does not describe a UNet2DModel: {error}") from error


def _bounded(place: object, name: str, values: Any, largest: int) -> None:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
            raise InvdiffError(f"{place}: {name} must be whole numbers from 1 to {largest:,}, got {shown(value)}")


def _is_meant(record: logging.LogRecord) -> bool:
    """False for diffusers 0.42's warning, at every change of precision, of an empty list of modules to leave alone."""
    return "should be kept in float32: []" not in record.getMessage()
