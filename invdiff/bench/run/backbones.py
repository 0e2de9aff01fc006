"""The backbones of a run: loaded once, placed, and known by the hash of their weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from invdiff.backbones.base import Backbone
from invdiff.backbones.zoo import load_backbone
from invdiff.bench.suite.suite import Suite, Task
from invdiff.solve import resolve_backbone


class Backbones:
    """The backbones of a suite's tasks, loaded when they are asked for.

    Args:
        suite: names them.
        own: an object to be used instead of the suite's name.
        device: ``"auto"`` is a GPU where there is one.
        precision: of the networks; None for their own.
    """

    def __init__(
        self, suite: Suite, own: Backbone | None = None, device: str | None = "auto", precision: str | None = None
    ) -> None:
        self._suite, self._own, self._device, self._precision = suite, own, device, precision
        self._loaded: dict[str, Backbone] = {}

    def of(self, task: Task | None = None) -> Backbone:
        """The backbone of a task, or the suite's.

        Raises:
            InvdiffError: nothing of that name, or a damaged file.
        """
        if task is None:
            name, options = self._suite.backbone, self._suite.backbone_options
        else:
            name, options = self._suite.backbone_of(task)
        key = json.dumps([name, options], sort_keys=True, default=str)
        if key not in self._loaded:
            own = self._own if name == self._suite.backbone and self._own is not None else None
            self._loaded[key] = place_backbone(own or name, self._device, self._precision, options)
        return self._loaded[key]

    def described(self, task: Task | None = None) -> dict[str, Any]:
        """What ``run.json`` says of a backbone."""
        model = self.of(task)
        return {
            "name": model.name,
            "sha256": fingerprint(model),
            "image_shape": list(model.image_shape),
            "precision": getattr(model, "precision", str(model.dtype).removeprefix("torch.")),
            "device": str(model.device),
        }


def place_backbone(
    backbone: str | Backbone,
    device: str | None = "auto",
    precision: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Backbone:
    """The backbone where it shall run: one by name on a GPU if there is one, an object where it is, unless told.

    Args:
        backbone: name, path or object.
        device: ``"auto"``, a torch device, or None for the backbone's own.
        precision: of the network; None for its own.
        options: of the loader, for a backbone by name.
    """
    if isinstance(backbone, str):
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else None
        return load_backbone(backbone, precision=precision or "auto", device=device, **(options or {}))
    return resolve_backbone(backbone, None if device == "auto" else device, precision)


def fingerprint(backbone: Backbone) -> str:
    """SHA-256 of the backbone's parameters, in the precision they run in, by name; ``""`` for a plain callable."""
    tensors: dict[str, Any] = {n: getattr(backbone, n) for n in getattr(backbone, "_parameters", ())}
    for holder in (getattr(backbone, "_original", None), backbone):
        if isinstance(holder, torch.nn.Module):
            tensors = holder.state_dict()
            break
    total = hashlib.sha256()
    for name in sorted(n for n, v in tensors.items() if isinstance(v, Tensor)):
        value = tensors[name].detach().cpu().contiguous()
        total.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        total.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest() if tensors else ""
