"""Velocities along straight lines between noise and image, as backbones (flow matching, rectified flow)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from invdiff.backbones.base import Prediction
from invdiff.backbones.network import NetworkBackbone
from invdiff.backbones.openvino_engine import only_torch
from invdiff.backbones.schedule import NoiseSchedule
from invdiff.checks import flag, real, whole
from invdiff.tensors import weighted_sum


class FlowBackbone(NetworkBackbone):
    """A velocity ``network(x, t) = dx/dt`` along ``x = (1 - t) noise + t data``, counting in a variance-preserving schedule.

        backbone = FlowBackbone(net, image_shape=(3, 64, 64))
        backbone = FlowBackbone(net, image_shape=(3, 64, 64), time_first=True)  # torchcfm: net(t, x)
        backbone = FlowBackbone(net, image_shape=(3, 64, 64), data_at=0, time_scale=1000)  # diffusers

    With ``c = sqrt(alpha_bar)`` and ``s = sqrt(1 - alpha_bar)`` the state ``x_t = c x0 + s eps`` lies on such a line once it is
    divided by c + s, at the time where the share of the image is c / (c + s); and from the velocity ``v = x0 - eps`` there follow

        x0 = (x_t + s v) / (c + s),     eps = (x_t - c v) / (c + s).

    c + s lies between 1 and sqrt(2), so nothing is lost at either end. A velocity knows every time between 0 and 1, so any
    schedule serves; `NoiseSchedule.flow` is the one of evenly spaced t.

    Args:
        network: any callable; x is float (B, C, H, W), the point on the line between noise and the image in [-1, 1]; t is a
            float tensor (B,) in [0, 1]. It returns the velocity, or an object with ``.sample``, or a tuple whose first entry it
            is. A module is copied, put in evaluation mode and frozen.
        schedule: variance-preserving; linear with 1,000 times by default.
        image_shape: (C, H, W); (C, None, None) for a network that takes any height and width.
        data_at: the time of the images: 1, or 0 for ``x = (1 - t) data + t noise`` and the velocity ``noise - data``.
        time_scale: the network is given ``time_scale * t``: 1000 for networks trained with diffusers' flow-matching schedulers,
            999 for those of the rectified-flow authors.
        time_first: call ``network(t, x)``, as torchcfm's networks ask.
        precision, compile, device, checkpointing, copy, multiple_of, field_of_view, name: see `NetworkBackbone`.
        engine: ``"auto"`` or ``"torch"``; OpenVINO runs networks whose times are whole numbers.
        class_labels: one label, or a long tensor (B,); passed as ``network(x, t, class_labels=...)``.

    Raises:
        InvdiffError: an argument out of its range; at the first call, an output of the wrong shape.

    Source: Lipman et al., "Flow Matching for Generative Modeling", ICLR 2023, with sigma_min = 0; Liu et al., "Flow Straight and
    Fast", ICLR 2023.
    """

    def __init__(
        self,
        network: Callable[..., Any],
        schedule: NoiseSchedule | None = None,
        image_shape: tuple[int | None, ...] = (3, 64, 64),
        *,
        data_at: int = 1,
        time_scale: float = 1.0,
        time_first: bool = False,
        precision: str = "auto",
        compile: bool = False,
        device: torch.device | str | None = None,
        class_labels: int | Tensor | None = None,
        checkpointing: bool = False,
        copy: bool = True,
        multiple_of: int = 1,
        field_of_view: int | None = None,
        engine: str = "auto",
        name: str | None = None,
    ) -> None:
        self.data_at = whole("data_at", data_at, 0, 1)
        self.time_scale = real("time_scale", time_scale, above=0)
        self.time_first = flag("time_first", time_first)
        engine = only_torch(engine, "a velocity", "networks whose times are whole numbers")
        super().__init__(
            network,
            schedule,
            image_shape,
            precision=precision,
            compile=compile,
            device=device,
            class_labels=class_labels,
            checkpointing=checkpointing,
            copy=copy,
            multiple_of=multiple_of,
            field_of_view=field_of_view,
            engine=engine,
            name=name,
        )
        self.prediction = "flow"

    def predict(self, x_t: Tensor, t: int | Tensor) -> Prediction:
        per_image = isinstance(t, Tensor) and t.ndim > 0
        # In float64 on the CPU: 1 - alpha_bar has few digits left in float32, and not every device knows float64.
        index = t.detach().long().cpu() if isinstance(t, Tensor) and per_image else [int(t)]
        level = self.schedule.alpha_bar[index]
        c, s = level.sqrt(), (1 - level).sqrt()
        time = self.time_scale * (c if self.data_at else s) / (c + s)
        towards_data = 1 if self.data_at else -1
        scale, noise, signal = (
            w.to(x_t.device, x_t.dtype).reshape(-1, *[1] * (x_t.ndim - 1)) if per_image else float(w)
            for w in (1 / (c + s), towards_data * s / (c + s), towards_data * c / (c + s))
        )
        x = scale * x_t
        v = self._output(x, time.to(x_t.device, x_t.dtype).expand(len(x_t)).clone())
        return Prediction(weighted_sum((1.0, x), (noise, v)), weighted_sum((1.0, x), (-signal, v)))

    def _call(self, network: Callable[..., Any], x: Tensor, t: Tensor, options: dict[str, Any]) -> Tensor:
        if not self.time_first:
            return super()._call(network, x, t, options)
        return super()._call(lambda x, t, **options: network(t, x, **options), x, t, options)

    def __repr__(self) -> str:
        precision = str(self._dtype).removeprefix("torch.")
        return f"FlowBackbone({self.name}, image_shape={self.image_shape}, data_at={self.data_at}, {precision}, {self._device})"
