"""Layers that eager PyTorch runs slowly in bfloat16 on a CPU, in a form that it runs fast.

They take a fifth to three tenths off a call of the embedded network, with and without a gradient, without compiling anything.
In float32 there is little to gain, and the network stays what its author wrote, to the last bit.

- `GroupNorm`: the channels-last kernel for feature maps below 32x32 is ten times slower in bfloat16 than in float32, and
  its backward pass is slow at every size.
- `Conv2d`, `Linear`: the matrix units want the weights in an order of their own, and PyTorch reorders them at every call.

All compute what `torch.nn`'s own do. They replace the layers of a frozen copy only, never those of a caller's module.

Packed weights are taken by operations of PyTorch's own compiler alone: the public `conv2d` and `linear` refuse them beside a
dense input. So whether they run, and compute the same, is tried once per data type on a tiny layer; where they don't,
the layers stay PyTorch's own.
"""

from __future__ import annotations

import copy
import logging
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SMALL = 1024  # pixels; below, PyTorch takes the channels-last kernel that is slow in 16 bits


def speed_up(network: nn.Module) -> nn.Module:
    """Change the layers of a frozen 16-bit network on the CPU in place; names and parameters stay, results up to rounding."""
    for layer in network.modules():
        if type(layer) is nn.GroupNorm and layer.affine:
            layer.__class__ = GroupNorm
        elif type(layer) in (nn.Conv2d, nn.Linear) and can_pack(layer.weight.dtype):
            _pack(layer)
    return network


def _pack(layer: nn.Module) -> None:
    if type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        layer.__class__ = Conv2d
    elif type(layer) is nn.Linear:
        layer.__class__ = Linear


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether packed layers of this data type run on this CPU and compute what the plain ones do in float32.

    Asked of a tiny layer of each kind, forward and, for the convolution, backward; once per process. What the CPU
    says of itself does not tell: the operations may be missing, refuse the data type, or be held back by
    ``ONEDNN_MAX_CPU_ISA``.
    """
    try:
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]), torch.device("cpu"):
            wrong = _largest_error(dtype)
    except Exception as error:
        _log.debug("packed layers in %s are not used: %s", dtype, error)
        return False
    if not wrong < _TOLERANCE:
        _log.debug("packed layers in %s are not used: their relative error is %.2g", dtype, wrong)
        return False
    return True


_log = logging.getLogger(__name__)
_TOLERANCE = 0.03  # a few roundings of bfloat16


def _largest_error(dtype: torch.dtype) -> float:
    """Of the packed layers against the plain ones in float32: results, and the convolution's vector-Jacobian product."""
    image = torch.sin(torch.arange(2 * 8 * 6 * 6, dtype=torch.float32)).reshape(2, 8, 6, 6)
    errors = []
    for plain, x in ((nn.Conv2d(8, 16, 3, padding=1), image), (nn.Linear(6, 16), image[:, 0])):
        plain = plain.to(torch.float32).requires_grad_(False)
        layer = copy.deepcopy(plain).to(dtype)
        _pack(layer)
        found, wanted = _result_and_product(layer, x.to(dtype)), _result_and_product(plain, x)
        errors += [float((a.float() - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True)]
    return max(errors)


def _result_and_product(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
    with torch.no_grad():
        alone = layer(x)
    with torch.enable_grad():
        out = layer(x := x.detach().requires_grad_())
        return alone, torch.autograd.grad(out, x, torch.ones_like(out))[0]


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


class _Packs(nn.Module):
    """A layer that keeps `_packed` weights, which can be neither copied nor stored, only made again."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_packed"}


class Conv2d(_Packs, nn.Conv2d):
    """`torch.nn.Conv2d` whose weights are put in the CPU's order once, at the first call.

    The vector-Jacobian product of a convolution with stride 1 is a convolution too, with the weights transposed, which
    are kept in that order likewise. Others are left to PyTorch where a gradient is wanted.
    """

    _packed: tuple[Tensor | None, Tensor | None] = (None, None)  # forward, and transposed

    def forward(self, x: Tensor) -> Tensor:
        ready = x.dtype == self.weight.dtype and x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
        if not ready or self.weight.requires_grad or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return self.convolve(x, self.bias)
        if not self._turns_round() or torch._C._are_functorch_transforms_active():
            return super().forward(x)
        return _Convolution.apply(x, self, self.bias, False)  # type: ignore[no-any-return]

    def convolve(self, x: Tensor, bias: Tensor | None, turned: bool = False) -> Tensor:
        """The convolution, or its adjoint."""
        padding = tuple((k - 1 - p if turned else p) for k, p in zip(self.kernel_size, self._pads(), strict=True))
        geometry = (padding, self.stride, self.dilation, self.groups)
        packed = self._packed[turned]
        if packed is None:
            with torch.inference_mode(False), torch.no_grad():
                weight = self.weight.flip(2, 3).transpose(0, 1) if turned else self.weight
                weight = weight.detach().contiguous(memory_format=torch.channels_last)
                packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, x.shape)
            self._packed = (self._packed[0], packed) if turned else (packed, self._packed[1])
        return torch.ops.mkldnn._convolution_pointwise(x, packed, bias, *geometry, "none", [], "")  # type: ignore[no-any-return]

    def _pads(self) -> tuple[int, ...]:
        return self.padding if isinstance(self.padding, tuple) else (0, 0)

    def _turns_round(self) -> bool:
        fits = all(k > p for k, p in zip(self.kernel_size, self._pads(), strict=True))
        return fits and self.groups == 1 and {*self.stride, *self.dilation} == {1}


class _Convolution(torch.autograd.Function):
    """A frozen `Conv2d` or its adjoint; the derivative of each is the other, as often as one likes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Conv2d, bias: Tensor | None, turned: bool) -> Tensor:
        ctx.layer, ctx.turned = layer, turned
        return layer.convolve(x, bias, turned)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        return _Convolution.apply(gradient, ctx.layer, None, not ctx.turned), None, None, None


class Linear(_Packs, nn.Linear):
    """`torch.nn.Linear` with the weights in the CPU's order, where no gradient is wanted."""

    _packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        wanted = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        if wanted or x.dtype != self.weight.dtype or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        if self._packed is None:
            with torch.inference_mode(False), torch.no_grad():
                self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), x.numel() // x.shape[-1])
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")  # type: ignore[no-any-return]
