"""One network class for every layout: weights of other projects placed into diffusers' `UNet2DModel`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from invdiff.errors import InvdiffError

Split = Callable[[Tensor], tuple[Tensor, ...]]
"""Cuts one tensor of a file into the tensors of several parameters, along the rows."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a file, and the parameters of the network that it fills.

    Attributes:
        source: its name in the file.
        targets: names of the parameters, more than one where the file fuses them (query, key and value).
        split: how a fused tensor is cut; None for a single parameter.
    """

    source: str
    targets: tuple[str, ...]
    split: Split | None = None


def shapes(network: nn.Module, entries: Iterable[Entry]) -> dict[str, tuple[int, ...]]:
    """The shape that every tensor of the file must have; trailing ones (1x1 convolutions) are left out.

    Args:
        network: the network to fill.
        entries: all of them; between them they name every parameter once.
    """
    parameters = dict(network.named_parameters())
    expected = {}
    for entry in entries:
        rows = sum(parameters[t].shape[0] for t in entry.targets)
        expected[entry.source] = _stripped((rows, *parameters[entry.targets[0]].shape[1:]))
    return expected


def fill(
    network: nn.Module, entries: list[Entry], state: Mapping[str, Tensor], path: Path, hint: Callable[[], str]
) -> nn.Module:
    """Give a network without memory, from `backbones.unet.build`, its weights in float32. Nothing keeps pointing into the file.

    Args:
        network: of `backbones.unet.build`.
        entries: which tensor fills which parameters.
        state: the tensors of the file, of any floating type.
        path: the file, for messages.
        hint: what to say when they do not fit, asked for only then.

    Raises:
        InvdiffError: names or shapes differ; the message names the first missing, the first unexpected and the first of
            another shape.
    """
    expected = shapes(network, entries)
    missing = [k for k in expected if k not in state]
    unexpected = [k for k in state if k not in expected]
    other = [k for k in expected if k in state and _stripped(tuple(state[k].shape)) != expected[k]]
    if missing or unexpected or other:
        said = []
        if missing:
            said.append(f"{len(missing)} missing, the first {missing[0]}")
        if unexpected:
            said.append(f"{len(unexpected)} unexpected, the first {unexpected[0]}")
        if other:
            found = tuple(state[other[0]].shape)
            said.append(f"{len(other)} of another shape, the first {other[0]}: {found} instead of {expected[other[0]]}")
        raise InvdiffError(
            f"path {path} does not fit the configuration: of {len(expected)} tensors, {'; '.join(said)}. {hint()}"
        )
    parameters = dict(network.named_parameters())
    filled = {}
    for entry in entries:
        tensor = state[entry.source].to(torch.float32, copy=True)
        parts = (tensor,) if entry.split is None else entry.split(tensor)
        for target, part in zip(entry.targets, parts, strict=True):
            filled[target] = part.reshape(parameters[target].shape).contiguous()
    network.load_state_dict(filled, strict=True, assign=True)
    return network


def fill_by_name(network: nn.Module, state: Mapping[str, Tensor], path: Path, hint: str) -> nn.Module:
    """`fill` for a network whose parameters have the names of the file.

    Raises:
        InvdiffError: as `fill`.
    """
    entries = [Entry(name, (name,)) for name, _ in network.named_parameters()]
    return fill(network, entries, state, path, lambda: hint)


def overlap(expected: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor]) -> float:
    """How much of a file fits: tensors with the right name and shape over all names, 1 for a perfect fit."""
    same = sum(k in state and _stripped(tuple(state[k].shape)) == shape for k, shape in expected.items())
    return same / len(expected.keys() | state.keys())


def module_entries(names: Iterable[tuple[str, str]], network: nn.Module) -> list[Entry]:
    """Entries of modules that are the same in both: ``(theirs, ours)`` -> weight and bias, where ours has them."""
    parameters = dict(network.named_parameters())
    pairs = ((f"{theirs}.{leaf}", f"{ours}.{leaf}") for theirs, ours in names for leaf in ("weight", "bias"))
    return [Entry(source, (target,)) for source, target in pairs if target in parameters]


def _stripped(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return shape
