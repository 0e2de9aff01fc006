"""Any network(x, t) as a backbone."""

from __future__ import annotations

import copy as copying
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from invdiff.backbones.base import Backbone, Prediction
from invdiff.backbones.cpu_layers import speed_up
from invdiff.backbones.schedule import NoiseSchedule
from invdiff.checks import shown, whole
from invdiff.errors import InvdiffError, InvdiffWarning, near_match
from invdiff.tensors import weighted_sum

PREDICTIONS = ("epsilon", "v_prediction", "sample")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_COMPILED_SHAPES = 4
_DTYPES = re.compile("dtype|scalar type|bias type|BFloat16|Half", re.IGNORECASE)


def native_bfloat16(device: torch.device | str) -> bool:
    """Whether the processor or GPU multiplies bfloat16 matrices in hardware."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        features = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(bool(getattr(torch.cpu, f, lambda: False)()) for f in features)
    return False


def available_device(device: torch.device | str) -> torch.device:
    """The device, if it is here.

    Raises:
        InvdiffError: no such device, or one that this machine or this build of PyTorch does not have.
    """
    try:
        if not isinstance(device, str | torch.device):
            raise TypeError
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise InvdiffError(f"device must be cpu, cuda, cuda:1, mps, ..., got {shown(device)}") from None
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise InvdiffError(
            f"device {device!r} is not here: PyTorch sees {torch.cuda.device_count()} CUDA devices; cpu always works"
        )
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise InvdiffError(f"device {device!r} is not here; cpu always works")
    if found.type not in ("cpu", "cuda", "mps"):
        try:
            here = bool((torch.zeros(2, device=found) + 1).cpu().sum() == 2)
        except (RuntimeError, AssertionError, ImportError):
            here = False
        if not here:
            raise InvdiffError(f"device {device!r} is not here, or computes nothing; cpu always works")
    return found


class NetworkBackbone(Backbone):
    """A denoiser made of a pretrained network and the schedule that it was trained with.

        backbone = NetworkBackbone(net, schedule=NoiseSchedule.linear(1000), image_shape=(3, 256, 256))

    Args:
        network: any callable ``network(x, t)``; x is float (B, C, H, W) in [-1, 1] plus noise, t a long tensor (B,) of
            the network's own times. It returns a tensor of the shape of x, or an object with ``.sample``, or a tuple
            whose first entry it is. A module is copied, put in evaluation mode and frozen; the caller's is left alone.
        schedule: the schedule of the training; linear with 1,000 times by default.
        image_shape: (C, H, W); (C, None, None) for a network that takes any height and width.
        prediction: what the network returns, ``"epsilon"`` (the noise), ``"v_prediction"`` (Salimans & Ho, 2022:
            ``v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0``) or ``"sample"`` (the clean image).
        learned_variance: the network returns 2 C channels, the second half interpolating the log-variance
            (Nichol & Dhariwal, 2021, eq. 15).
        precision: of the network: ``"auto"`` (bfloat16 for modules where the hardware has it, else float32),
            ``"float32"``, ``"bfloat16"``, ``"float16"``. The state x_t is float32 in every case.
        compile: wrap the module in `torch.compile`: the first call takes a minute or more. Each batch size is compiled
            for itself, up to four; further ones run uncompiled, with a warning.
        device: where to run; by default where the module's parameters are, else the CPU.
        class_labels: for a class-conditional network, one label for all images or a long tensor (B,) of one per image;
            passed on as ``network(x, t, class_labels=...)``.
        checkpointing: recompute activations in the backward pass of gradient samplers: less memory, one more forward.
        copy: False takes the module itself, for loaders that own it, unless its weights have to be rounded.
        multiple_of: what the network's strides ask heights and widths to be a multiple of; others are padded by reflection.
        field_of_view: pixels that a prediction looks to each side, for networks without attention or statistics over the
            picture: then large pictures are computed in tiles (`Tiles`), and small holes in large pictures alone.
        name: what reports call it.

    Raises:
        InvdiffError: an argument out of its range; at the first call, an output of the wrong shape.
    """

    def __init__(
        self,
        network: Callable[..., Any],
        schedule: NoiseSchedule | None = None,
        image_shape: tuple[int, ...] = (3, 256, 256),
        *,
        prediction: str = "epsilon",
        learned_variance: bool = False,
        precision: str = "auto",
        compile: bool = False,
        device: torch.device | str | None = None,
        class_labels: int | Tensor | None = None,
        checkpointing: bool = False,
        copy: bool = True,
        multiple_of: int = 1,
        field_of_view: int | None = None,
        name: str | None = None,
    ) -> None:
        if not callable(network):
            raise InvdiffError(f"network must be callable as network(x, t), got {type(network).__name__}")
        if prediction not in PREDICTIONS:
            hint = near_match(prediction, PREDICTIONS)
            raise InvdiffError(f"prediction must be one of {', '.join(PREDICTIONS)}; got {prediction!r}.{hint}")
        if precision not in (*PRECISIONS, "auto"):
            hint = near_match(precision, [*PRECISIONS, "auto"])
            raise InvdiffError(f"precision must be one of auto, {', '.join(PRECISIONS)}; got {precision!r}.{hint}")
        shape = checked_shape(image_shape)
        self.multiple_of = whole("multiple_of", multiple_of, low=1)
        self.field_of_view = None if field_of_view is None else whole("field_of_view", field_of_view, low=0)
        self.schedule = NoiseSchedule.linear() if schedule is None else schedule
        self.image_shape = shape
        self.prediction = prediction
        self.learned_variance = learned_variance
        self.precision = precision
        self.compile = compile
        self.checkpointing = checkpointing
        self.class_labels = class_labels
        self.name = name or str(getattr(network, "__name__", type(network).__name__))
        self._original = network
        self._take(network, device, copy)

    def _take(self, network: Callable[..., Any], device: torch.device | str | None, copy: bool) -> None:
        """Place the network on its device in its precision."""
        parameter = next(network.parameters(), None) if isinstance(network, nn.Module) else None
        found = torch.device("cpu") if parameter is None else parameter.device
        self._device = found if device is None else available_device(device)
        if self.precision == "auto":
            fast = isinstance(network, nn.Module) and parameter is not None and native_bfloat16(self._device)
            self._dtype = torch.bfloat16 if fast else torch.float32
        else:
            self._dtype = PRECISIONS[self.precision]
        self._network = network
        self._layout = _Layout(self._dtype != torch.float32)
        self._compiled: dict[tuple[Any, ...], Callable[..., Any]] = {}
        if isinstance(network, nn.Module):
            rounds = self._dtype != torch.float32 and parameter is not None and parameter.dtype != self._dtype
            module = copying.deepcopy(network) if copy or rounds else network
            module = module.to(self._device, self._dtype)
            if self._layout.channels_last:
                module = module.to(memory_format=torch.channels_last)
                if self._device.type == "cpu" and not self.compile:
                    module = speed_up(module)
            self._network = module.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def module(self) -> Callable[..., Any]:
        """The network as it is run: the frozen copy of a module, or the callable itself."""
        return self._network

    def to(self, device: torch.device | str) -> NetworkBackbone:
        if torch.device(device) == self._device:
            return self
        other = copying.copy(self)
        other._take(self._original, device, copy=True)
        return other

    def with_precision(self, precision: str) -> NetworkBackbone:
        """The same backbone, its network run in another precision."""
        if precision == self.precision:
            return self
        if precision not in (*PRECISIONS, "auto"):
            hint = near_match(precision, [*PRECISIONS, "auto"])
            raise InvdiffError(f"precision must be one of auto, {', '.join(PRECISIONS)}; got {precision!r}.{hint}")
        other = copying.copy(self)
        other.precision = precision
        other._take(self._original, self._device, copy=True)
        return other

    def select(self, images: Tensor) -> NetworkBackbone:
        if not isinstance(self.class_labels, Tensor) or self.class_labels.ndim == 0:
            return self
        other = copying.copy(self)
        other.class_labels = self.class_labels[images.to(self.class_labels.device)]
        return other

    def network(self, x: Tensor, t: Tensor) -> Tensor:
        """The network's own output at its own times `t`, (B,), in the precision of `x`."""
        options = {} if self.class_labels is None else {"class_labels": self._labels(len(x))}
        with tensor_float_32(self._device):
            try:
                out = self._call(x, t, options)
            except RuntimeError as error:
                if self._rounds_by_itself() and _DTYPES.search(str(error)):
                    self._layout.full_precision = self._in_full_precision()
                elif not self._layout.channels_last or "view" not in str(error):
                    raise
                self._layout.channels_last = False  # the network takes views that need the channels first
                if isinstance(self._network, nn.Module):
                    self._network.to(memory_format=torch.contiguous_format)
                out = self._call(x, t, options)
        if not isinstance(out, Tensor):
            out = out.sample if hasattr(out, "sample") else out[0]
        if self.compile and out.is_cuda:
            out = out.clone()  # a CUDA graph writes its next result to the same place
        return out.to(x.dtype, memory_format=torch.contiguous_format)

    def _rounds_by_itself(self) -> bool:
        """Whether "auto" chose a lower precision for a module that may make float32 tensors of its own."""
        return self.precision == "auto" and self._dtype != torch.float32 and self._layout.full_precision is None

    def _in_full_precision(self) -> nn.Module:
        warnings.warn(
            f"{self.name} mixes data types in {str(self._dtype).removeprefix('torch.')} and runs in float32 instead; cast its own "
            "tensors to x.dtype to have it fast, or say precision='float32'",
            InvdiffWarning,
            stacklevel=2,
        )
        module: Any = copying.deepcopy(self._original)
        return module.to(self._device, torch.float32).eval().requires_grad_(False)

    def _call(self, x: Tensor, t: Tensor, options: dict[str, Any]) -> Any:
        if self._layout.full_precision is not None:
            return self._layout.full_precision(x, t, **options)
        if self._layout.channels_last:
            x = x.to(self._dtype).contiguous(memory_format=torch.channels_last)  # at once it would take twice as long
        elif self._dtype != torch.float32:
            x = x.to(self._dtype)
        if not (self.checkpointing and torch.is_grad_enabled() and x.requires_grad):
            return self._runner(x)(x, t, **options)
        return checkpoint(lambda x: self._runner(x)(x, t, **options), x, use_reentrant=False)

    def _runner(self, x: Tensor) -> Callable[..., Any]:
        """The network, or what it was compiled to for batches such as `x`."""
        if not self.compile:
            return self._network
        if x.is_inference() != torch.is_inference_mode_enabled():  # PyTorch would compile once more for these
            return self._network
        key = (tuple(x.shape), x.dtype, x.requires_grad, torch.is_grad_enabled(), x.is_inference())
        if key not in self._compiled:
            if len(self._compiled) == _COMPILED_SHAPES:
                warnings.warn(
                    f"{self.name} was compiled for {_COMPILED_SHAPES} kinds of batches; one of shape {tuple(x.shape)} runs "
                    "uncompiled. Choose a batch_size that divides the number of images.",
                    InvdiffWarning,
                    stacklevel=2,
                )
                self._compiled[key] = self._network
            elif len(self._compiled) > _COMPILED_SHAPES:
                return self._network
            else:
                self._compiled[key] = _compiled(self._network, self._device, key[3])
        return self._compiled[key]

    def _labels(self, batch: int) -> Tensor:
        labels = torch.as_tensor(self.class_labels, dtype=torch.long, device=self._device).reshape(-1)
        if len(labels) not in (1, batch):
            raise InvdiffError(f"class_labels must be one label or one per image ({batch}), got {len(labels)}")
        return labels.expand(batch)

    def predict(self, x_t: Tensor, t: int | Tensor) -> Prediction:
        schedule, batch = self.schedule, x_t.shape[0]
        if isinstance(t, Tensor) and t.ndim > 0:
            times = schedule.timesteps[t.detach().long().cpu()].to(x_t.device)
        else:
            times = torch.full((batch,), schedule.timestep(int(t)), dtype=torch.long, device=x_t.device)
        out = self._at_any_size(x_t, times)
        channels = x_t.shape[1]
        wanted = (batch, channels * (2 if self.learned_variance else 1), *x_t.shape[2:])
        if out.shape != wanted:
            also = ""
            if out.shape[1] == 2 * channels and not self.learned_variance:
                also = " It has twice the channels of the image: say learned_variance=True if the second half is the variance."
            raise InvdiffError(f"network returned shape {tuple(out.shape)}, expected {wanted}.{also}")
        log_variance = None
        if self.learned_variance:
            out, v = out.chunk(2, 1)
            log_variance = self._log_variance(v, t)
        a = self.alpha_bar(t, x_t)
        if self.prediction == "epsilon":
            return Prediction.from_eps(x_t, out, a, log_variance)
        if self.prediction == "v_prediction":
            signal, noise = a**0.5, (1 - a) ** 0.5
            x0 = weighted_sum((signal, x_t), (-noise, out))
            return Prediction(x0, weighted_sum((noise, x_t), (signal, out)), log_variance)
        prediction = Prediction.from_x0(x_t, out, a)
        return Prediction(prediction.x0, prediction.eps, log_variance)

    def _at_any_size(self, x: Tensor, times: Tensor) -> Tensor:
        """The network's output, the picture padded at its bottom and right to what the strides divide and cut again."""
        height, width = x.shape[-2:]
        padded = pad_to_multiple(x, self.multiple_of)
        out = self.network(padded, times)
        return out if padded is x else out[..., :height, :width]

    def _log_variance(self, v: Tensor, t: int | Tensor) -> Tensor:
        """``w log beta + (1 - w) log posterior variance`` with ``w = (v + 1) / 2``."""
        w = (v + 1) / 2
        if isinstance(t, Tensor) and t.ndim > 0:
            bounds = torch.tensor(
                [self.schedule.log_variance_bounds(int(i)) for i in t], device=v.device, dtype=v.dtype
            )
            high, low = (b.reshape(-1, 1, 1, 1) for b in bounds.unbind(1))
            return w * high + (1 - w) * low
        upper, lower = self.schedule.log_variance_bounds(int(t))
        return w * (upper - lower) + lower

    def __repr__(self) -> str:
        precision = str(self._dtype).removeprefix("torch.")
        return f"NetworkBackbone({self.name}, image_shape={self.image_shape}, {self.prediction}, {precision}, {self._device})"


def checked_shape(image_shape: Any) -> tuple[Any, ...]:
    """(C, H, W), or (C, None, None) for any size.

    Raises:
        InvdiffError: it is neither.
    """
    try:
        shape = tuple(None if n is None else int(n) for n in image_shape)
    except (TypeError, ValueError):
        shape = ()
    sides = [n for n in shape[1:] if n is not None]
    if len(shape) != 3 or shape[0] is None or len(sides) == 1 or min(shape[0], *sides, 1) < 1:
        raise InvdiffError(
            f"image_shape must be (channels, height, width), or (channels, None, None) for any size, got {shown(image_shape)}"
        )
    return shape


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """`x` (..., H, W), padded at bottom and right by reflection to the next multiples; by repetition where it is too small."""
    bottom, right = -x.shape[-2] % multiple, -x.shape[-1] % multiple
    if not (bottom or right):
        return x
    mode = "reflect" if bottom < x.shape[-2] and right < x.shape[-1] else "replicate"
    return nn.functional.pad(x, (0, right, 0, bottom), mode=mode)


@dataclass
class _Layout:
    """What is learned of a network by running it; shared by all views of a backbone (`on`, `select`), so once.

    Attributes:
        channels_last: order of the numbers in memory.
        full_precision: the network in float32, once it turned out that it cannot run in a lower precision.
    """

    channels_last: bool
    full_precision: nn.Module | None = None


def _compiled(network: Callable[..., Any], device: torch.device, with_gradient: bool) -> Callable[..., Any]:
    """`torch.compile` for one kind of batch, with what pays there: packed weights on the CPU, CUDA graphs on the GPU."""
    if device.type == "cuda":
        compiled = torch.compile(network, dynamic=False, mode="default" if with_gradient else "reduce-overhead")

        def replay(*inputs: Any, **options: Any) -> Any:
            torch.compiler.cudagraph_mark_step_begin()
            return compiled(*inputs, **options)

        return compiled if with_gradient else replay
    compiled = torch.compile(network, dynamic=False)
    if with_gradient:
        return compiled

    def frozen(*inputs: Any, **options: Any) -> Any:
        # An option of torch.compile would come too late: the tracer reads this setting as well.
        with inductor.patch(freezing=True):
            return compiled(*inputs, **options)

    import torch._inductor.config as inductor

    return frozen


@contextmanager
def tensor_float_32(device: torch.device) -> Iterator[None]:
    """On an NVIDIA GPU, multiply float32 in TF32 (10 bits of mantissa, as torch's convolutions do by default)."""
    if device.type != "cuda":
        yield
        return
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = True
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before
