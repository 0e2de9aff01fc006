"""Any network(x, t) as a backbone."""

from __future__ import annotations

import copy as copying
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from invdiff.backbones.base import Backbone, Prediction
from invdiff.backbones.cpu_layers import can_pack, speed_up
from invdiff.backbones.openvino_engine import ENGINES, ENVIRONMENT, TOLERANCE, OpenVINOEngine, available
from invdiff.backbones.schedule import NoiseSchedule, checked_schedule
from invdiff.checks import flag, function, one_of, shown, whole
from invdiff.errors import InvdiffError, InvdiffWarning
from invdiff.tensors import weighted_sum

PREDICTIONS = ("epsilon", "v_prediction", "sample")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NETWORK_PRECISIONS = ("auto", *PRECISIONS, "tf32")
_COMPILED_SHAPES = 4
_DTYPES = re.compile("dtype|scalar type|bias type|BFloat16|Half", re.IGNORECASE)


def native_bfloat16(device: torch.device | str) -> bool:
    """Whether the CPU or GPU multiplies bfloat16 matrices in hardware.

    A CPU has to say so, and the layers made for it have to run (`cpu_layers.can_pack`).
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        features = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(bool(getattr(torch.cpu, f, lambda: False)()) for f in features) and can_pack(torch.bfloat16)
    return False


def automatic_dtype(device: torch.device | str) -> torch.dtype:
    """What ``precision="auto"`` means for a module on `device`: the fastest data type that its hardware multiplies.

    bfloat16 on CPUs that have it and on NVIDIA GPUs from Ampere on (compute capability 8.0); float16 on those with
    tensor cores before (7.0 and 7.5); float32 elsewhere.
    """
    device = torch.device(device)
    if native_bfloat16(device):
        return torch.bfloat16
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (7, 0):
        return torch.float16
    return torch.float32


def available_device(device: torch.device | str) -> torch.device:
    """The device, if it is here, by its full name: ``"cuda"`` is ``cuda:0``, or whichever is the current one.

    Raises:
        InvdiffError: no such device, or one that this machine or this build of PyTorch does not have.
    """
    try:
        if not isinstance(device, str | torch.device):
            raise TypeError
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise InvdiffError(f"device must be cpu, cuda, cuda:1, mps, ..., got {shown(device)}") from None
    if found.type == "cpu":
        return torch.device("cpu")
    if found.type == "cuda":
        count = torch.cuda.device_count()
        if (found.index or 0) >= count:
            raise InvdiffError(
                f"device must be one that is here, got {device!r}: PyTorch sees {count} CUDA devices; cpu always works"
            )
        return torch.device("cuda", torch.cuda.current_device() if found.index is None else found.index)
    if found.type == "meta":
        raise InvdiffError(f"device must be one that is here and computes, got {device!r}; cpu always works")
    try:
        tried = torch.zeros(2, dtype=torch.float32, device=found)
        here = bool((tried + 1).cpu().sum() == 2)
    except (RuntimeError, AssertionError, ImportError):
        here = False
    if not here:
        raise InvdiffError(f"device must be one that is here and computes, got {device!r}; cpu always works")
    return tried.device


_log = logging.getLogger(__name__)


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
        precision: of the network: ``"auto"`` (for modules, bfloat16 where the hardware has it, float16 on NVIDIA's Volta and
            Turing, else float32; for other callables float32), ``"float32"``, ``"tf32"`` (float32 whose products an NVIDIA GPU
            from Ampere on rounds to 10 bits of mantissa; float32 elsewhere), ``"bfloat16"``, ``"float16"``. Any of them runs
            anywhere, though 16 bits are slow on a CPU without them. The state x_t is float32 in every case.
            A module that cannot run in what "auto" chose runs in float32, with a warning.
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
        engine: what runs the forward pass on the CPU where no gradient is asked for: ``"torch"``; ``"openvino"`` (the extra of
            that name; compiled once per shape of batch, kept on disk); ``"auto"``: OpenVINO for a network of one size where it is
            installed, a trial agrees with PyTorch and is faster. The environment variable ``INVDIFF_ENGINE`` says what "auto" is.
        name: what reports call it.

    Raises:
        InvdiffError: an argument out of its range; at the first call, an output of the wrong shape.
    """

    def __init__(
        self,
        network: Callable[..., Any],
        schedule: NoiseSchedule | None = None,
        image_shape: tuple[int | None, ...] = (3, 256, 256),
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
        engine: str = "auto",
        name: str | None = None,
    ) -> None:
        function("network", network, "a function of x and t, network(x, t)")
        shape = checked_shape(image_shape)
        self.multiple_of = whole("multiple_of", multiple_of, 1, 4096)
        self.field_of_view = None if field_of_view is None else whole("field_of_view", field_of_view, low=0)
        self.schedule = NoiseSchedule.linear() if schedule is None else checked_schedule(schedule)
        self.image_shape = shape
        self.prediction = one_of("prediction", prediction, PREDICTIONS)
        self.learned_variance = flag("learned_variance", learned_variance)
        self.precision = one_of("precision", precision, NETWORK_PRECISIONS)
        self.compile = flag("compile", compile)
        self.checkpointing = flag("checkpointing", checkpointing)
        self.class_labels = class_labels
        self.engine = one_of("engine", engine, ENGINES)
        if engine == "auto" and ENVIRONMENT in os.environ:
            self.engine = one_of(f"the environment variable {ENVIRONMENT}", os.environ[ENVIRONMENT], ENGINES)
        self.name = name or str(getattr(network, "__name__", type(network).__name__))
        self._original = network
        self._take(network, device, copy)

    @torch.inference_mode(False)  # tensors made in the caller's inference mode could not be differentiated later
    def _take(self, network: Callable[..., Any], device: torch.device | str | None, copy: bool) -> None:
        """Place the network on its device in its precision."""
        parameter = next(network.parameters(), None) if isinstance(network, nn.Module) else None
        found = torch.device("cpu") if parameter is None else parameter.device
        self._device = found if device is None else available_device(device)
        if self.class_labels is not None:
            self.class_labels = torch.as_tensor(self.class_labels, dtype=torch.long, device=self._device)
        self._network = network
        self._place(network, copy)

    def _place(self, network: Callable[..., Any], copy: bool) -> None:
        learned = isinstance(network, nn.Module) and any(True for _ in network.parameters())
        self._dtype = self._wanted_dtype(learned)
        self._layout = _Layout(self._dtype != torch.float32 or (learned and self._device.type == "cuda"))
        self._compiled: dict[tuple[Any, ...], Callable[..., Any]] = {}
        self._openvino: OpenVINOEngine | None = None
        if not isinstance(network, nn.Module):
            return
        tensors = list(chain(network.parameters(), network.buffers()))
        rounds = self._dtype != torch.float32 and any(p.dtype != self._dtype for p in network.parameters())
        made_for_inference = any(tensor.is_inference() for tensor in tensors)
        module = copying.deepcopy(network) if copy or rounds or made_for_inference else network
        module = module.to(self._device, self._dtype)
        if self._layout.channels_last:
            module = module.to(memory_format=torch.channels_last)
            if self._device.type == "cpu" and not self.compile:
                module = speed_up(module)
        self._network = module.eval().requires_grad_(False)
        self._openvino = self._made_engine()

    def _made_engine(self) -> OpenVINOEngine | None:
        """OpenVINO for this network, where it is asked for or may be worth it.

        Raises:
            InvdiffError: it was asked for by name and cannot be had.
        """
        possible = (
            self._device.type == "cpu" and self._dtype in TOLERANCE and not self.compile and self.class_labels is None
        )
        if self.engine == "openvino" and not available():
            raise InvdiffError(
                "engine 'openvino' needs its package: pip install 'invdiff[openvino]'; engine='torch' works without"
            )
        if self.engine == "openvino" and not possible:
            raise InvdiffError(
                f"engine 'openvino' runs on the CPU, in float32 or bfloat16, without class labels and compile; got device "
                f"{str(self._device)!r}, {str(self._dtype).removeprefix('torch.')}, class_labels={shown(self.class_labels)}, "
                f"compile={self.compile}"
            )
        fixed = None not in self.image_shape and self.precision == "auto"
        if not possible or self.engine == "torch" or (self.engine == "auto" and not (fixed and available())):
            return None
        return OpenVINOEngine(self._float32_module, self._dtype, self.name)

    def _by_engine(self, x: Tensor, t: Tensor) -> Tensor | None:
        """The output by OpenVINO, or None where PyTorch is to be asked."""
        if self._openvino is None or t.dtype != torch.long or (torch.is_grad_enabled() and x.requires_grad):
            return None
        shape = tuple(x.shape)
        if shape not in self._layout.engine_pays:
            self._layout.engine_pays[shape] = self._engine_pays(shape)
        if not self._layout.engine_pays[shape]:
            return None
        return self._openvino(x, t)

    def _engine_pays(self, shape: tuple[int, ...]) -> bool:
        assert self._openvino is not None
        last = int(self.schedule.chain.timesteps[-1])
        if self.engine == "openvino":  # asked for by name: it has to say the same, not to be faster
            self._openvino.check(shape, last)
            return True
        try:
            return self._openvino.trial(shape, lambda x, t: self._attempt(x, t, {}), last).pays
        except (InvdiffError, RuntimeError) as error:
            _log.debug("OpenVINO is left out for %s: %s", self.name, error)
            return False

    def _wanted_dtype(self, learned: bool) -> torch.dtype:
        """The data type that `precision` asks for; a network without parameters keeps its own under "auto"."""
        if self.precision == "auto":
            return automatic_dtype(self._device) if learned else torch.float32
        return PRECISIONS.get(self.precision, torch.float32)

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def module(self) -> Callable[..., Any]:
        """The network as it is run: the frozen copy of a module, or the callable itself."""
        return self._network

    def to(self, device: torch.device | str) -> NetworkBackbone:
        device = available_device(device)
        if device == self._device:
            return self
        other = copying.copy(self)
        other._take(self._original, device, copy=True)
        return other

    def with_precision(self, precision: str) -> NetworkBackbone:
        """The same backbone, its network run in another precision."""
        if precision == self.precision:
            return self
        other = copying.copy(self)
        other.precision = one_of("precision", precision, NETWORK_PRECISIONS)
        other._take(self._original, self._device, copy=True)
        return other

    def select(self, images: Tensor) -> NetworkBackbone:
        if not isinstance(self.class_labels, Tensor) or self.class_labels.ndim == 0:
            return self
        other = copying.copy(self)
        other.class_labels = self.class_labels[images.to(self.class_labels.device)]
        return other

    def arithmetic(self) -> AbstractContextManager:
        """TF32 for ``"tf32"`` and for what "auto" leaves in float32, true float32 otherwise; matters on an NVIDIA GPU only."""
        return tensor_float_32(self._device, self.precision in ("auto", "tf32"))

    def network(self, x: Tensor, t: Tensor) -> Tensor:
        """The network's own output at its own times `t`, (B,), in the precision of `x`.

        Raises:
            InvdiffError: the network cannot run in the precision that was asked for, or returned no tensor.
        """
        options = {} if self.class_labels is None else {"class_labels": self._labels(len(x))}
        done = self._by_engine(x, t)
        if done is not None:
            return done
        with self.arithmetic():
            out = self._attempt(x, t, options)
            if torch.is_grad_enabled() and x.requires_grad and self._needs_its_parameters(out, x, t, options):
                out = self._attempt(x, t, options)
        if self.compile and out.is_cuda:
            out = out.clone()  # a CUDA graph writes its next result to the same place
        return out.to(x.dtype, memory_format=torch.contiguous_format)

    def _attempt(self, x: Tensor, t: Tensor, options: dict[str, Any]) -> Tensor:
        """A call, once more in float32 where the network cannot run in less, or with the channels first."""
        layout = self._layout
        if layout.full_precision is not None:
            return self._call(layout.full_precision, x, t, options)
        try:
            out = self._call(self._runner(x), x, t, options)
        except (RuntimeError, AssertionError) as error:
            if layout.channels_last and "view" in str(error):  # views that need the channels first
                layout.channels_last = False
                if isinstance(self._network, nn.Module):
                    with torch.inference_mode(False):
                        self._network.to(memory_format=torch.contiguous_format)
                return self._attempt(x, t, options)
            if self._lowered() is None or not (isinstance(error, AssertionError) or _DTYPES.search(str(error))):
                raise
            return self._in_full_precision(error, x, t, options)
        if self.precision == "auto" and self._lowered() == torch.float16 and not bool(torch.isfinite(out.sum())):
            return self._in_full_precision(OverflowError("values above 65,504"), x, t, options)
        return out

    def _lowered(self) -> torch.dtype | None:
        """The 16-bit data type that a module is run in."""
        return self._dtype if isinstance(self._network, nn.Module) and self._dtype != torch.float32 else None

    def _in_full_precision(self, error: Exception, x: Tensor, t: Tensor, options: dict[str, Any]) -> Tensor:
        """The call in float32, and under "auto" all further ones; where that fails too, the network's own error."""
        with torch.inference_mode(False):  # or the copy could not be differentiated later
            full = self._float32_module()
        self._layout.full_precision, before = full, self._layout.channels_last
        self._layout.channels_last = False
        try:
            out = self._call(full, x, t, options)
        except Exception:
            self._layout.full_precision, self._layout.channels_last = None, before
            raise
        lower, why = str(self._lowered()).removeprefix("torch."), str(error).split("\n")[0] or type(error).__name__
        if self.precision != "auto":
            self._layout.full_precision, self._layout.channels_last = None, before
            raise InvdiffError(
                f"{self.name} does not run with precision={self.precision!r} ({why}); it does with 'float32'. Networks that make "
                "float32 tensors of their own have to cast them to x.dtype."
            ) from error
        warnings.warn(
            f"{self.name} does not run in {lower} ({why}) and runs in float32 instead; cast its own tensors to x.dtype to have it "
            "fast, or say precision='float32'",
            InvdiffWarning,
            stacklevel=2,
        )
        return out

    def _float32_module(self) -> nn.Module:
        module: Any = copying.deepcopy(self._original)
        return module.to(self._device, torch.float32).eval().requires_grad_(False)

    def _call(self, network: Callable[..., Any], x: Tensor, t: Tensor, options: dict[str, Any]) -> Tensor:
        """`network` on a copy of x, which it may write to."""
        lower = self._dtype != torch.float32 and self._layout.full_precision is None
        form = torch.channels_last if self._layout.channels_last else torch.preserve_format

        def once(x: Tensor) -> Any:
            x = (
                x.to(self._dtype, copy=True) if lower else x.clone()
            )  # with the format at once it would take twice as long
            return network(x if form is torch.preserve_format else x.contiguous(memory_format=form), t, **options)

        differentiates = torch.is_grad_enabled() and x.requires_grad
        if differentiates and self.checkpointing:
            out = checkpoint(once, x, use_reentrant=False)
        else:
            with torch.set_grad_enabled(differentiates) if isinstance(self._network, nn.Module) else nullcontext():
                out = once(x)
        if not isinstance(out, Tensor):
            out = out.sample if hasattr(out, "sample") else next(iter(out), None) if isinstance(out, tuple) else out
        if not isinstance(out, Tensor):
            raise InvdiffError(
                f"network must return a tensor of the shape of x, an object with .sample, or a tuple that begins with one; got "
                f"{type(out).__name__}"
            )
        return out

    def _needs_its_parameters(self, out: Tensor, x: Tensor, t: Tensor, options: dict[str, Any]) -> bool:
        """Let parameters require a gradient again where the network's own backward pass differentiates by them.

        guided-diffusion's and LDM's checkpointing does: `torch.autograd.grad` over inputs *and* parameters. Looked at once
        per network, and tried only where `out` came through an `autograd.Function` of somebody else's.

        Returns:
            Whether something was changed, so that `out` has to be made anew.
        """
        module = self._layout.full_precision or self._network
        if self._layout.differentiated or self.compile or not isinstance(module, nn.Module):
            return False
        self._layout.differentiated = True
        functions = _functions_of_others(out)
        if not functions:
            return False
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            trial = self._attempt(x, t, options)
            try:
                torch.autograd.grad(trial, x, torch.zeros_like(trial))
            except RuntimeError as error:
                if "not require grad" not in str(error):
                    raise
            else:
                return False
        held = {id(p) for function in functions for p in _parameters_held(function)}
        for parameter in module.parameters():
            parameter.requires_grad_(not held or id(parameter) in held)
        return True

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
        assert isinstance(self.class_labels, Tensor)
        labels = self.class_labels.reshape(-1)
        if len(labels) not in (1, batch):
            raise InvdiffError(f"class_labels must be one label or one per image ({batch}), got {len(labels)}")
        return labels.expand(batch)

    def predict(self, x_t: Tensor, t: int | Tensor) -> Prediction:
        schedule, batch = self.schedule, x_t.shape[0]
        if isinstance(t, Tensor) and t.ndim > 0:
            times = schedule.timesteps[t.detach().long().cpu()].to(x_t.device)
        else:
            time = schedule.timestep(int(t))
            dtype = torch.long if isinstance(time, int) else x_t.dtype
            times = torch.full((batch,), time, dtype=dtype, device=x_t.device)
        out = self._output(x_t, times)
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

    def _output(self, x: Tensor, times: Tensor) -> Tensor:
        """The network's output for pictures of any size, its shape checked."""
        channels, out = x.shape[1], self._at_any_size(x, times)
        wanted = (len(x), channels * (2 if self.learned_variance else 1), *x.shape[2:])
        if out.shape != wanted:
            also = ""
            if self.prediction in PREDICTIONS and out.shape[1:2] == (2 * channels,) and not self.learned_variance:
                also = " It has twice the channels of the image: say learned_variance=True if the second half is the variance."
            raise InvdiffError(f"network must return shape {wanted}, got {tuple(out.shape)}.{also}")
        return out

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
        if isinstance(image_shape, str | bytes | dict | set):
            raise TypeError
        shape = tuple(None if n is None else whole("image_shape", n, 1, 2**20) for n in islice(image_shape, 4))
    except (TypeError, InvdiffError):
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
        channels_last: order of the elements in memory.
        full_precision: the network in float32, once it turned out that it cannot run in a lower precision.
        engine_pays: by shape of batch, whether OpenVINO says the same as PyTorch and is faster.
        differentiated: whether its backward pass was looked at.
    """

    channels_last: bool
    full_precision: nn.Module | None = None
    engine_pays: dict[tuple[int, ...], bool] = field(default_factory=dict)
    differentiated: bool = False


def _functions_of_others(out: Tensor) -> list[Any]:
    """The nodes in the graph of `out` that are an `autograd.Function` which is neither PyTorch's nor ours."""
    found, seen, ahead = [], set(), [out.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        ahead.extend(parent for parent, _ in node.next_functions)
        function = getattr(type(node), "_forward_cls", None)
        if function is not None and function.__module__.split(".")[0] not in ("torch", "invdiff"):
            found.append(node)
    return found


def _parameters_held(function: Any) -> Iterator[nn.Parameter]:
    """Parameters that a node of the graph keeps for its backward pass, in an attribute or a list of them."""
    for value in vars(function).values():
        for item in value if isinstance(value, list | tuple) else (value,):
            if isinstance(item, nn.Parameter):
                yield item


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
def tensor_float_32(device: torch.device, allowed: bool) -> Iterator[None]:
    """On an NVIDIA GPU, multiply float32 in TF32 (10 bits of mantissa) or, unless `allowed`, in float32 to the last bit.

    PyTorch's own default is TF32 for convolutions and float32 for matrices. The settings hold for the process, so they are
    put back at the end.
    """
    if device.type != "cuda":
        yield
        return
    products: Any = torch.backends.cuda.matmul
    convolutions: Any = torch.backends.cudnn
    places: tuple[Any, ...] = (products, convolutions)
    name, value = "allow_tf32", allowed  # type: tuple[str, Any]
    try:
        before = [getattr(place, name) for place in places]
    except RuntimeError:  # the caller has set them by their newer names (PyTorch 2.9), and the two must not be mixed
        places, name, value = (products, convolutions.conv), "fp32_precision", "tf32" if allowed else "ieee"
        before = [getattr(place, name) for place in places]
    try:
        for place in places:
            setattr(place, name, value)
        yield
    finally:
        for place, setting in zip(places, before, strict=True):
            setattr(place, name, setting)
