"""Weights of a folder in diffusers' layout, written and read whole; in eight bits where they are to be small.

Eight bits: a matrix or filter bank is stored as whole numbers from -127 to 127 and one float32 scale per row, under its
name and ``NAME.scale``; vectors stay float32. That is storage only: a network always computes with floating-point weights.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invdiff.checks import one_of
from invdiff.errors import InvdiffError
from invdiff.files import check_sha256, read_json, replace_file

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
STORED = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}
SCALE = ".scale"


def write_weights(folder: Path, state: dict[str, Tensor], precision: str) -> str:
    """Write the weights of `state` in one of `STORED`; returns the file's SHA-256.

    Raises:
        InvdiffError: no such precision.
    """
    from safetensors.torch import save

    one_of("precision", precision, STORED)
    stored: dict[str, Tensor] = {}
    for name, tensor in state.items():
        value = tensor.detach().cpu().contiguous()
        if precision == "int8" and value.ndim >= 2:
            stored[name], stored[name + SCALE] = to_int8(value)
        else:
            stored[name] = value if precision == "int8" else value.to(STORED[precision])
    content = save(stored, metadata={"format": "pt"})
    replace_file(folder / WEIGHTS, content)
    return hashlib.sha256(content).hexdigest()


def read_weights(folder: Path, sha256: str = "") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration of a folder and its weights in float32, in memory of their own.

    Args:
        folder: with ``config.json`` and the weights.
        sha256: of the weights; not checked where empty.

    Raises:
        InvdiffError: a missing or damaged file.
    """
    from safetensors.torch import load_file

    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise InvdiffError(f"{folder} is incomplete: {name} is missing")
    config = read_json(folder / CONFIG)
    if sha256:
        check_sha256(folder / WEIGHTS, sha256)
    try:
        stored = load_file(folder / WEIGHTS)
    except Exception as error:
        raise InvdiffError(f"{folder / WEIGHTS} cannot be read: {error}") from error
    state = {}
    for name, tensor in stored.items():
        if name + SCALE in stored:
            state[name] = from_int8(tensor, stored[name + SCALE])
        elif not (name.endswith(SCALE) and name.removesuffix(SCALE) in stored):
            state[name] = tensor.to(torch.float32, copy=True)
    return config, state


def to_int8(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """A tensor (rows, ...) as int8 and one float32 scale per row, (rows, 1, ...)."""
    rows = tensor.double().flatten(1)
    scale = (rows.abs().amax(1) / 127).clamp(min=1e-30).float()
    shape = (-1, *[1] * (tensor.ndim - 1))
    whole = (tensor.double() / scale.double().reshape(shape)).round().clamp(-127, 127).to(torch.int8)
    return whole, scale.reshape(shape)


def from_int8(whole: Tensor, scale: Tensor) -> Tensor:
    """What `to_int8` stored, float32."""
    return whole.float() * scale.float()
