"""A network run by OpenVINO on the CPU, where that is faster and says the same.

    NetworkBackbone(net, ..., engine="openvino")

OpenVINO (the extra ``openvino``) compiles a network for one shape of batch: layers are fused, and memory is laid out for the
CPU at hand. A converted network and what was compiled of it are kept in a folder (`cache_folder`), so that the seconds which
that takes are spent once. It has no backward pass: samplers that differentiate the network stay with PyTorch.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import math
import os
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from invdiff.checks import one_of
from invdiff.errors import InvdiffError
from invdiff.files import replace_file

ENGINES = ("auto", "torch", "openvino")
ENVIRONMENT = "INVDIFF_ENGINE"
"""Environment variable that says what "auto" means, such as ``torch`` on a machine where nothing is to be compiled."""

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2}
"""Largest root mean square of the difference from PyTorch in float32, as a share of the output's, at which the two agree."""

_HINTS = {torch.float32: "f32", torch.bfloat16: "bf16"}
_SHAPES = 8
"""Shapes of batches kept ready at once; each holds memory for its activations."""

_log = logging.getLogger(__name__)


def available() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec("openvino") is not None


def only_torch(engine: str, what: str, runs: str) -> str:
    """``"torch"`` for a network that OpenVINO is not given: `what` it is, and what OpenVINO `runs` instead.

    Raises:
        InvdiffError: `engine` is none, or ``"openvino"``.
    """
    if one_of("engine", engine, ENGINES) == "openvino":
        raise InvdiffError(f"engine must be 'auto' or 'torch' for {what}, got 'openvino', which runs {runs}")
    return "torch"


def cache_folder() -> Path:
    """Where converted networks are kept: ``$INVDIFF_CACHE``, or ``invdiff`` in the user's cache folder."""
    base = os.environ.get("INVDIFF_CACHE")
    if base:
        return Path(base).expanduser() / "openvino"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "invdiff" / "openvino"


@dataclass(frozen=True)
class Trial:
    """One shape of batch, run both ways.

    Attributes:
        difference: root mean square of the difference from PyTorch in float32 over that of the output.
        seconds: of a call by OpenVINO.
        torch_seconds: of a call by PyTorch, as it would run otherwise.
        agrees: the difference is within `TOLERANCE`.
    """

    difference: float
    seconds: float
    torch_seconds: float
    agrees: bool

    @property
    def pays(self) -> bool:
        """It says the same and is faster."""
        return self.agrees and self.seconds < self.torch_seconds


class OpenVINOEngine:
    """The forward pass of one network.

    Args:
        module: makes the network in float32, on the CPU.
        dtype: of the arithmetic, float32 or bfloat16.
        name: what messages call the network.
    """

    def __init__(self, module: Callable[[], nn.Module], dtype: torch.dtype, name: str) -> None:
        self.dtype, self.name = dtype, name
        self._make = module
        self._fingerprint: str | None = None
        self._model: Any = None
        self._one_shape_each = False
        self._requests: dict[tuple[int, ...], Any] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        # What is compiled belongs to this process.
        kept = {k: v for k, v in self.__dict__.items() if k != "_lock"}
        return {**kept, "_model": None, "_requests": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """The network's output for `x`, (B, C, H, W), at times `t`, (B,): float32.

        Raises:
            InvdiffError: OpenVINO cannot convert the network, or not compile it for this CPU.
        """
        with self._lock:
            network, times = self._request(tuple(x.shape))
            inputs = [x.detach().float().contiguous().numpy(), t.detach().contiguous().numpy()]
            if times is not None:
                inputs += times.infer(inputs, share_inputs=True).to_tuple()
            return torch.from_numpy(network.infer(inputs, share_inputs=True)[0])

    def trial(self, shape: tuple[int, ...], reference: Callable[[Tensor, Tensor], Tensor], last_time: int) -> Trial:
        """Run a batch of `shape` both ways, or look up what that gave before on this machine.

        Args:
            shape: (B, C, H, W).
            reference: the network as PyTorch runs it, `reference(x, t)`.
            last_time: the largest of the network's own times.
        """
        size, threads = "x".join(map(str, shape)), torch.get_num_threads()
        file = self._file(f"compared-{size}-{_HINTS[self.dtype]}-{threads}-{_processor()}.json")
        try:
            return Trial(**json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            pass
        difference = self._compared(shape, last_time)
        x, t = torch.zeros(shape, dtype=torch.float32), torch.full(shape[:1], last_time // 2)
        with torch.inference_mode():
            _, seconds = _timed(lambda: self(x, t))
            _, torch_seconds = _timed(lambda: reference(x, t))
        trial = Trial(difference, seconds, torch_seconds, difference <= TOLERANCE[self.dtype])
        _log.debug("OpenVINO for %s, %s: %s", self.name, shape, trial)
        _keep(file, json.dumps(trial.__dict__).encode())
        return trial

    def check(self, shape: tuple[int, ...], last_time: int) -> None:
        """Compare one batch of `shape` with PyTorch in float32.

        Raises:
            InvdiffError: the two do not agree within `TOLERANCE`.
        """
        difference, allowed = self._compared(shape, last_time), TOLERANCE[self.dtype]
        if not difference <= allowed:
            raise InvdiffError(
                f"engine 'openvino' does not compute what PyTorch does for {self.name} with batches of shape {shape}: it is "
                f"{difference:.1g} away, {allowed:g} is allowed. engine='torch' runs it"
            )

    def _compared(self, shape: tuple[int, ...], last_time: int) -> float:
        """The relative difference from PyTorch in float32 on noise, at four times or at as many as there are images.

        One time alone would say little: where the output is small, a share of it is next to nothing.
        """
        draw = torch.Generator().manual_seed(0)
        batches = -(-4 // shape[0])
        times = torch.linspace(0, last_time, batches * shape[0]).round().long().reshape(batches, shape[0])
        network = self._make()
        wrong = size = 0.0
        for t in times:
            x = torch.randn(shape, generator=draw, dtype=torch.float32)
            with torch.inference_mode():
                exact, found = _tensor(network(x, t)).float(), self(x, t)
            if exact.shape != found.shape:
                return float("inf")
            wrong += float((found - exact).square().sum())
            size += float(exact.square().sum())
        return math.sqrt(wrong / max(size, 1e-30))

    def _request(self, shape: tuple[int, ...]) -> Any:
        """What runs batches of one shape: the network, and in bfloat16 what makes its features of the time, or None."""
        if shape not in self._requests:
            model, times = self._for_shape(shape), None
            if self.dtype == torch.bfloat16:
                model, times = _times_apart(model)
            while len(self._requests) >= _SHAPES:
                self._requests.pop(next(iter(self._requests)))
            self._requests[shape] = self._compiled(model, self.dtype), times and self._compiled(times, torch.float32)
        return self._requests[shape]

    def _compiled(self, model: Any, dtype: torch.dtype) -> Any:
        """A request for inference in a precision, compiled for this CPU."""
        import openvino

        settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[dtype],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "CACHE_DIR": str(cache_folder() / "compiled"),
        }
        try:
            return openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
        except RuntimeError:  # a cache folder that cannot be written
            try:
                return openvino.Core().compile_model(model, "CPU", {**settings, "CACHE_DIR": ""}).create_infer_request()
            except RuntimeError as error:  # such as bfloat16 under ONEDNN_MAX_CPU_ISA=AVX2
                raise InvdiffError(
                    f"engine 'openvino' cannot compile {self.name} in {str(dtype).removeprefix('torch.')} for this CPU: "
                    f"{_last_line(error)}. engine='torch' runs it"
                ) from error

    def _for_shape(self, shape: tuple[int, ...]) -> Any:
        """The network in OpenVINO's form for batches of one shape: converted for it alone where the tracer took a size that the
        network's code asks for (`len(x)`, `x.shape`) for a constant."""
        if not self._one_shape_each:
            if self._model is None:
                self._model = self._converted()
            model = self._model.clone()
            try:
                model.reshape({model.inputs[0]: list(shape), model.inputs[1]: [shape[0]]})
                return model
            except RuntimeError as error:
                _log.debug("%s is converted for every shape: %s", self.name, error)
                self._one_shape_each, self._model = True, None
        return self._converted(shape)

    def _converted(self, shape: tuple[int, ...] | None = None) -> Any:
        """The network in OpenVINO's form, for batches of any size or of one, from the cache or made anew."""
        import openvino

        file = self._file("network.xml" if shape is None else f"network-{'x'.join(map(str, shape))}.xml")
        if file.is_file():
            try:
                return openvino.Core().read_model(file)
            except RuntimeError as error:
                _log.debug("OpenVINO's file %s cannot be read: %s", file, error)
        size = "" if shape is None else f" at {shape[-2]}x{shape[-1]}"
        _log.warning("converting %s%s for OpenVINO; this takes some seconds, once", self.name, size)
        network = self._make()
        if shape is None:
            channels, height, width = network_input(network)
            example: tuple[int, ...] = (2, channels, height, width)
            free = ([-1, channels, -1, -1], [-1])
        else:
            example, free = shape, (list(shape), [shape[0]])
        x, t = torch.zeros(example, dtype=torch.float32), torch.arange(1, example[0] + 1)
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the tracer about shapes, which stay free
                model = openvino.convert_model(
                    network, example_input=(x, t), input=[openvino.PartialShape(f) for f in free]
                )
        except Exception as error:  # the tracer raises whatever the network's code makes of it
            raise InvdiffError(
                f"engine 'openvino' cannot convert {self.name}: {type(error).__name__}: {str(error).splitlines()[0]}. "
                "engine='torch' runs it"
            ) from error
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            openvino.save_model(model, str(file), compress_to_fp16=False)
        except (OSError, RuntimeError) as error:
            _log.debug("OpenVINO's file %s cannot be written: %s", file, error)
        return model

    def _file(self, name: str) -> Path:
        if self._fingerprint is None:
            self._fingerprint = _fingerprint(self._make())
        return cache_folder() / self._fingerprint / name


def _times_apart(model: Any) -> tuple[Any, Any]:
    """The network without the features that it makes of its times, and those by themselves: both take (x, t).

    A time such as 670 is 672 in bfloat16, and its sines are another time's. What is made of the times alone before the
    first product with weights therefore runs in float32, and the network takes the result as an input more. None in
    place of the second where a network makes nothing of its times.
    """
    import openvino
    from openvino import opset13

    alone, network = model.clone(), model.clone()
    made = _made_of_times(alone)
    if not made:
        return model, None
    alone = openvino.Model([opset13.result(output) for output in made], [i.node for i in alone.inputs], "times")
    taken = []
    for output in _made_of_times(network):
        taken.append(opset13.parameter(output.get_partial_shape(), output.get_element_type()))
        for reader in output.get_target_inputs():
            reader.replace_source_output(taken[-1].output(0))
    network.add_parameters(taken)
    return network, alone


def _made_of_times(model: Any) -> list[Any]:
    """Outputs that depend on the times and on no weight or image, where something else reads them."""
    times = model.inputs[1].node.get_friendly_name()
    constant: set[str] = set()
    of_times: set[str] = set()
    nodes = model.get_ordered_ops()
    for node in nodes:
        name, kind = node.get_friendly_name(), node.get_type_name()
        read = {node.input_value(i).get_node().get_friendly_name() for i in range(node.get_input_size())}
        if kind in ("Constant", "ShapeOf") or (read and read <= constant):
            constant.add(name)
        elif name == times or (
            read and read <= constant | of_times and kind not in ("MatMul", "Convolution", "Result")
        ):
            of_times.add(name)
    inner = of_times | constant
    return [
        output
        for node in nodes
        if node.get_friendly_name() in of_times - {times}
        for output in node.outputs()
        if any(reader.get_node().get_friendly_name() not in inner for reader in output.get_target_inputs())
    ]


def network_input(network: nn.Module) -> tuple[int, int, int]:
    """(C, H, W) of an example for the tracer: the described size, or 64 pixels where any is taken."""
    channels, height, width = getattr(getattr(network, "description", None), "image_shape", (3, None, None))
    return int(channels), int(height or 64), int(width or 64)


def _fingerprint(network: nn.Module) -> str:
    """A name for a network with these weights under these versions."""
    import openvino

    digest = hashlib.blake2b(digest_size=12)
    digest.update(f"{type(network).__qualname__} {torch.__version__} {openvino.__version__} {network!r}".encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _processor() -> str:
    """A name for the CPU and for what it is allowed to use: what was faster on one need not be on another."""
    import openvino

    core = openvino.Core()
    said = [core.get_property("CPU", name) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")]
    said.append(torch.backends.cpu.get_cpu_capability())
    return hashlib.blake2b(repr(said).encode(), digest_size=6).hexdigest()


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def _keep(file: Path, content: bytes) -> None:
    """Write a file of the cache, where that is possible."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, content)
    except OSError as error:
        _log.debug("%s cannot be written: %s", file, error)


def _tensor(out: Any) -> Tensor:
    return out if isinstance(out, Tensor) else out.sample if hasattr(out, "sample") else out[0]


def _timed(call: Callable[[], Tensor], repeats: int = 5) -> tuple[Tensor, float]:
    """The result, and the least of some times: what the call takes when nothing else runs."""
    call()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        out = call()
        times.append(time.perf_counter() - began)
    return out, min(times)
