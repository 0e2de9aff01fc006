"""What a restoration will take, before it runs: network calls, time and memory, from a call of the network."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from invdiff.backbones.windows import in_tiles
from invdiff.backbones.zoo import AUTO
from invdiff.batches import Batches
from invdiff.samplers.base import estimate_with_pullback
from invdiff.samplers.guidance import as_guidance
from invdiff.solve import posed, prepared, solve

_LONG = 5.0
"""Seconds: a first call that takes less is one of preparations mostly, and a second one is timed."""
_SAID = 6  # parts of a picture that are spelled out


@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    Attributes:
        nfe: network calls per restoration, as `Solution.nfe`.
        vjps: vector-Jacobian products of the network per restoration, as `Solution.vjps`.
        restorations: how many there will be.
        parts: ((C, height, width), network calls) of every part of the picture that is computed, for one restoration: each takes
            `nfe` calls.
        batch: restorations in the batch that was tried, the largest of the run.
        seconds: of all network calls on this machine; what the sampler does between them is not counted.
        peak_memory: bytes.
        memory_is: of what, and how it was found.
        device: where it was tried.
    """

    nfe: int
    vjps: int
    restorations: int
    parts: tuple[tuple[tuple[int, int, int], int], ...]
    batch: int
    seconds: float
    peak_memory: int
    memory_is: str
    device: str

    def __str__(self) -> str:
        sizes = ", ".join(f"{width}x{height}: {calls}" for (_, height, width), calls in self.parts[:_SAID])
        if len(self.parts) > _SAID:
            sizes += f", and {len(self.parts) - _SAID} parts more"
        several = "one restoration" if self.restorations == 1 else f"each of {self.restorations} restorations"
        products = f" and {self.vjps:,} vector-Jacobian products" if self.vjps else ""
        return (
            f"{self.nfe:,} network calls{products} for {several} ({sizes}), "
            f"{self.batch} at once; about {self.seconds:.3g} s on {self.device}, from a trial; "
            f"{self.peak_memory / 2**20:,.0f} MiB ({self.memory_is})"
        )


def estimate(operator: Any, y: Any, sampler: Any = AUTO, **arguments: Any) -> Estimate:
    """What ``solve(operator, y, sampler, **arguments)`` will take, from a network call at the size of the largest part.

    The call has the run's batch, and a gradient where the sampler takes one. The first call of a network prepares it for the size:
    where it is over within 5 s, a second one is timed. Smaller parts are reckoned by their pixels. A method that asks no network is
    not tried.

    Args:
        operator, y, sampler, **arguments: as in `solve`.

    Raises:
        InvdiffError: as `solve`.
    """
    given = inspect.signature(solve).bind(operator, y, sampler, **arguments)
    given.apply_defaults()
    asked = given.arguments
    options = dict(asked["sampler_options"])
    if asked["steps"] is not None:
        options["steps"] = asked["steps"]
    terms = as_guidance(asked["guidance"])
    place = asked["backbone"], asked["device"], asked["precision"]
    model, problem = posed(operator, y, asked["sigma_y"], *place, asked["value_range"])
    run = prepared(
        model,
        problem,
        sampler,
        path=asked["path"],
        preset=asked["preset"],
        options=options,
        seed=asked["seed"],
        n_samples=asked["n_samples"],
        x_init=asked["x_init"],
        region=asked["region"],
        coarse_to_fine=asked["coarse_to_fine"],
        whole_only=bool(terms or asked["keep_trajectory"] or asked["noise"] is not None),
    )
    method, n_samples = run.method, asked["n_samples"]
    cost = method.cost(model.schedule, run.times, n_samples, problem)
    parts = run.plan.network_calls
    shape = max((size for size, _ in parts), key=math.prod)
    batch = Batches(
        len(run.keys),
        math.prod(shape),
        model.device,
        method.uses_gradient,
        asked["batch_size"],
        together=run.states if method.together else 1,
    ).size
    seconds = 0.0
    with _peak_memory(model.device) as peak:
        if cost.calls:
            part = in_tiles(model.sized(shape), gradient=method.uses_gradient or bool(terms))
            part = part.on(method.respaced(model.schedule))
            x = torch.zeros(batch, *shape, device=model.device, dtype=model.dtype)
            for _ in range(2):
                started = time.perf_counter()
                if method.uses_gradient or terms:
                    _, x0, pullback = estimate_with_pullback(part, x, run.times[0])
                    pullback(torch.ones_like(x0))
                else:
                    with torch.inference_mode():
                        part.predict(x, run.times[0])
                if model.device.type == "cuda":
                    torch.cuda.synchronize(model.device)
                seconds = time.perf_counter() - started
                if seconds > _LONG:
                    break
    share = sum(height * width for (_, height, width), _ in parts) / (batch * math.prod(shape[1:]))
    return Estimate(
        nfe=cost.calls,
        vjps=cost.vjps,
        restorations=len(problem.y) * n_samples,
        parts=tuple(parts),
        batch=batch,
        seconds=seconds * share * len(run.keys) * len(method.asked(run.times)),
        peak_memory=peak[0][0],
        memory_is=peak[0][1],
        device=str(model.device),
    )


_PEAK = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@contextmanager
def _peak_memory(device: torch.device) -> Iterator[list[tuple[int, str]]]:
    """The most memory held within the block, in bytes, and what that is."""
    found: list[tuple[int, str]] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield found
        found.append((torch.cuda.max_memory_allocated(device), "of the GPU, measured in the call"))
        return
    try:
        _PEAK[0].write_text("5")  # Linux: the peak begins anew
        what = "of this process, measured in the call"
    except OSError:
        what = "of this process since it began, the call included"
    yield found
    try:
        line = next(line for line in _PEAK[1].read_text().splitlines() if line.startswith("VmHWM"))
        found.append((1024 * int(line.split()[1]), what))
    except (OSError, StopIteration):
        import resource

        found.append((1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, what))
