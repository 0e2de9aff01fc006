"""Layers that eager PyTorch runs slowly in bfloat16 on a processor, in a form that it runs fast.

They take a fifth off a call of the embedded network without compiling anything. In float32 there is little to gain, and
the network stays what its author wrote, to the last bit.

- `GroupNorm`: the channels-last kernel for feature maps below 32x32 is ten times slower in bfloat16 than in float32, and
  its backward pass is slow at every size.
- `Conv2d`: the matrix units want the weights in an order of their own, and PyTorch reorders them at every call.

Both compute what `torch.nn`'s own do. They replace the layers of a frozen copy only, never those of a caller's module.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SMALL = 1024  # pixels; below, PyTorch takes the channels-last kernel that is slow in 16 bits


def speed_up(network: nn.Module) -> nn.Module:
    """Change the layers of a frozen 16-bit network on the CPU in place; names and parameters stay, results up to rounding."""
    packs = _can_pack()
    for layer in network.modules():
        if type(layer) is nn.GroupNorm and layer.affine:
            layer.__class__ = GroupNorm
        elif (
            packs and type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        ):
            layer.__class__ = Conv2d
    return network


class GroupNorm(nn.GroupNorm):
    """`torch.nn.GroupNorm` by way of the kernel that is fast for the size: in float32, or with the channels first."""

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.is_contiguous() or x.dtype == torch.float32:
            return super().forward(x)
        if x.shape[2] * x.shape[3] < _SMALL:
            full = F.group_norm(x.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps)
            return full.to(x.dtype)
        if x.requires_grad:
            return super().forward(x.contiguous()).contiguous(memory_format=torch.channels_last)
        return super().forward(x)


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d` whose weights are put in the processor's order once, at the first call without a gradient."""

    _packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        ready = x.dtype == self.weight.dtype and x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
        if not ready or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        geometry = (self.padding, self.stride, self.dilation, self.groups)
        if self._packed is None:
            with torch.inference_mode(False), torch.no_grad():
                self._packed = _reorder(self.weight, *geometry, x.shape)
        return _convolve(x, self._packed, self.bias, *geometry, "none", [], "")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_packed"}  # cannot be copied


def _can_pack() -> bool:
    """Whether this build of PyTorch has the operations that `Conv2d` calls (those of its own compiler)."""
    mkldnn = torch.ops.mkldnn
    return torch.backends.mkldnn.is_available() and all(
        hasattr(mkldnn, name) for name in ("_reorder_convolution_weight", "_convolution_pointwise")
    )


def _reorder(weight: Tensor, *arguments: Any) -> Tensor:
    return torch.ops.mkldnn._reorder_convolution_weight(weight.detach(), *arguments)


def _convolve(x: Tensor, packed: Tensor, bias: Tensor | None, *arguments: Any) -> Tensor:
    return torch.ops.mkldnn._convolution_pointwise(x, packed, bias, *arguments)
