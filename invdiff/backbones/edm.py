"""Denoisers in variance-exploding units, ``D(x0 + sigma n, sigma)``, as backbones (Karras et al., 2022)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from invdiff.backbones.network import PRECISIONS, NetworkBackbone, automatic_dtype
from invdiff.backbones.schedule import NoiseSchedule
from invdiff.errors import InvdiffError


class EDMBackbone(NetworkBackbone):
    """A denoiser ``D(x, sigma)`` of images with noise *added* to them, counting in a variance-preserving schedule:

        sigma_t = sqrt((1 - alpha_bar) / alpha_bar),     x0 = D(x_t / sqrt(alpha_bar), sigma_t).

        backbone = EDMBackbone(net, image_shape=(3, 64, 64))

    Such a denoiser knows no times, so any schedule serves. The linear one reaches sigma = 157 at its first time, EDM's
    published networks were sampled from sigma = 80 down.

    Args:
        denoiser: any callable ``D(x, sigma)``: x is float (B, C, H, W), the clean image in [-1, 1] plus ``sigma`` times
            standard normal noise; sigma is float (B,). It returns the clean image, or an object with ``.sample``, or a
            tuple whose first entry it is. A module is copied, put in evaluation mode and frozen.
        schedule: variance-preserving; linear with 1,000 times by default.
        image_shape: (C, H, W).
        precision: of the layers inside. The state and the denoiser's own preconditioning (``c_skip x + c_out F``) stay
            float32, the rest runs under `torch.autocast`: ``"auto"`` for modules where the hardware has bfloat16.
        class_labels: one label, or a long tensor (B,); passed as ``D(x, sigma, class_labels=...)``.
        num_classes: the labels are passed one-hot, (B, num_classes), as EDM's networks take them; by default the
            denoiser's own ``label_dim``. 0 passes the numbers themselves.
        compile, device, checkpointing, copy, name: see `NetworkBackbone`.

    Raises:
        InvdiffError: an argument out of its range.

    Source: Karras et al., "Elucidating the design space of diffusion-based generative models", NeurIPS 2022.
    """

    def __init__(
        self,
        denoiser: Callable[..., Any],
        schedule: NoiseSchedule | None = None,
        image_shape: tuple[int, ...] = (3, 64, 64),
        *,
        precision: str = "auto",
        compile: bool = False,
        device: torch.device | str | None = None,
        class_labels: int | Tensor | None = None,
        num_classes: int | None = None,
        checkpointing: bool = False,
        copy: bool = True,
        name: str | None = None,
    ) -> None:
        if not callable(denoiser):
            raise InvdiffError(
                f"denoiser must be callable as denoiser(x, sigma), got {type(denoiser).__name__}. EDM's files are "
                "pickles that hold code, which is not run here: load them in their own project and pass the network."
            )
        schedule = NoiseSchedule.linear() if schedule is None else schedule
        classes = int(getattr(denoiser, "label_dim", 0) or 0) if num_classes is None else num_classes
        if isinstance(classes, bool) or not isinstance(classes, int) or classes < 0:
            raise InvdiffError(f"num_classes must be a whole number of at least 0, got {num_classes!r}")
        if class_labels is not None and classes:
            values = torch.as_tensor(class_labels)
            if values.is_floating_point() or int(values.min()) < 0 or int(values.max()) >= classes:
                raise InvdiffError(f"class_labels must be whole numbers 0..{classes - 1}, got {class_labels!r}")
        super().__init__(
            VariancePreserving(denoiser, schedule, classes),
            schedule,
            image_shape,
            prediction="sample",
            precision=precision,
            compile=compile,
            device=device,
            class_labels=class_labels,
            checkpointing=checkpointing,
            copy=copy,
            name=name or getattr(denoiser, "__name__", type(denoiser).__name__),
        )

    def _place(self, network: Callable[..., Any], copy: bool) -> None:
        """Parameters stay float32 and autocast lowers the layers, so that the preconditioning is never rounded."""
        learned = isinstance(network, nn.Module) and any(True for _ in network.parameters())
        asked = PRECISIONS.get(self.precision, torch.float32)
        self._layers = (
            (automatic_dtype(self._device) if learned else torch.float32) if self.precision == "auto" else asked
        )
        super()._place(network, copy)
        wrapped = self.module
        assert isinstance(wrapped, VariancePreserving)
        wrapped.place(self._device)

    def _wanted_dtype(self, learned: bool) -> torch.dtype:
        return torch.float32

    def _lowered(self) -> torch.dtype | None:
        return None if self._layers == torch.float32 else self._layers

    def _float32_module(self) -> nn.Module:
        assert isinstance(self.module, nn.Module)
        return self.module  # whose parameters are float32

    def _call(self, network: Callable[..., Any], x: Tensor, t: Tensor, options: dict[str, Any]) -> Tensor:
        lower = self._lowered() is not None and self._layout.full_precision is None
        with torch.autocast(self._device.type, dtype=self._layers if lower else None, enabled=lower):
            return super()._call(network, x, t, options)

    def __repr__(self) -> str:
        precision = str(self._layers).removeprefix("torch.")
        return f"EDMBackbone({self.name}, image_shape={self.image_shape}, {precision}, {self._device})"


class VariancePreserving(nn.Module):
    """``(x_t, t) -> D(x_t / sqrt(alpha_bar[t]), sigma_t)``: a variance-exploding denoiser as `NetworkBackbone` asks.

    Args:
        denoiser: ``D(x, sigma)``.
        schedule: whose full chain `t` counts in.
        num_classes: labels become one-hot vectors of this length; 0 leaves them.
    """

    def __init__(self, denoiser: Callable[..., Any], schedule: NoiseSchedule, num_classes: int = 0) -> None:
        super().__init__()
        if isinstance(denoiser, nn.Module):
            self.denoiser: Callable[..., Any] = denoiser
        else:  # a function of it, so that a copy of this module shares it
            self.denoiser = lambda *inputs, **options: denoiser(*inputs, **options)
        self.num_classes = num_classes
        levels = schedule.chain.alpha_bar[:-1]
        self._sigma, self._scale = ((1 - levels) / levels).sqrt(), levels.rsqrt()  # no buffers: not to be rounded

    def place(self, device: torch.device) -> None:
        """Put the tables of levels where the computation is; in float64, where the device has it."""
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self._sigma, self._scale = self._sigma.to(device, dtype), self._scale.to(device, dtype)

    def forward(self, x_t: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Any:
        sigma = self._sigma[t].to(x_t.dtype)
        scale = self._scale[t].to(x_t.dtype).reshape(-1, *[1] * (x_t.ndim - 1))
        if class_labels is None:
            return self.denoiser(x_t * scale, sigma)
        if self.num_classes:
            class_labels = nn.functional.one_hot(class_labels, self.num_classes).to(x_t.dtype)
        return self.denoiser(x_t * scale, sigma, class_labels=class_labels)
