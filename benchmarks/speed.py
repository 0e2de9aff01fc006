#!/usr/bin/env python3
"""How much of a run's time is the network's, for every sampler, and beside other libraries on the same network.

    python benchmarks/speed.py --out docs/data            everything, one command (`--quick`: two minutes)
    python benchmarks/speed.py --parts overhead steps     some parts
    python benchmarks/speed.py --parts bfloat16           what bfloat16 costs in quality (benchmarks/bfloat16.py)
    python benchmarks/speed.py --parts engine --out docs/data  PyTorch, packed layers, OpenVINO (benchmarks/engine.py)
    python benchmarks/speed.py --device cuda --out docs/data   on an NVIDIA GPU: docs/data/speed-cuda.*

Parts: `overhead` (total time over network calls times one bare call), `steps` (a network that costs nothing), `compile`,
`peers` (those of diffusers, deepinv and azula that are installed), `adm` (GPU only: images per second of the 552 M
parameter network for 256x256), `bfloat16`, `engine` (CPU only).

What is compared is always measured in turns within one run: bare calls, the run, bare calls, the run, ...; a run is set
against the bare calls before and after it, and the ratio is the median over the rounds. On one CPU thread the clock is
the processor time of this process, which other work on the machine disturbs little; with more threads or on a GPU it is
the wall. On Linux the process keeps the memory that it freed (`invdiff.memory`), as the command line does: fresh pages for
every call would otherwise be charged now to the one side and now to the other.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from invdiff import InvdiffWarning, Mask, NetworkBackbone, load_backbone, solve
from invdiff.files import atomic_write
from invdiff.markdown import markdown_table
from invdiff.memory import keep_freed_memory
from invdiff.samplers import sampler_class
from invdiff.samplers.base import estimate_with_pullback

Rows = list[dict[str, Any]]
Job = Callable[[], int]  # runs something and returns how many network calls it made

# Short runs of every sampler: what a step costs does not depend on how many there are.
RUNS: dict[str, dict[str, Any]] = {
    "unconditional": {},
    "replacement": {},
    "repaint": {"jump_length": 1, "jump_n_sample": 2},
    "ddnm": {},
    "ddnm+": {},
    "ddrm": {},
    "diffpir": {"spacing": "uniform"},
    "pigdm": {},
    "mcg": {},
    "dps": {},
    "mmps": {},
    "tmpd": {},
    "copaint": {},
    "reddiff": {},
    "daps": {"ode_steps": 2},
    "mask_shift": {"jump_length": 1, "jump_n_sample": 2},
    "mcg-diff": {"particles": 1},
    "fps-smc": {"particles": 1},
    "tds": {"particles": 1},
}

AIMS = {"repaint": 0.45, "ddnm": 0.6, "diffpir": 0.6, "pigdm": 0.5, "mcg": 0.5, "dps": 0.5}
"""Milliseconds that a step may spend outside the network."""


# ---- measuring --------------------------------------------------------------------------------------------------


class Clock:
    """Seconds of work: of the processor on one CPU thread, else of the wall with the GPU's queue emptied."""

    def __init__(self, device: torch.device, wall: bool) -> None:
        self.cuda = device.type == "cuda"
        self.read = time.perf_counter if wall or self.cuda or torch.get_num_threads() > 1 else time.process_time
        self.name = "processor time" if self.read is time.process_time else "wall time"

    def __call__(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        return self.read()

    def seconds(self, job: Job) -> tuple[float, int]:
        """Time of one run of `job` and its number of network calls."""
        start = self()
        calls = job()
        return self() - start, calls


def interleaved(clock: Clock, jobs: dict[str, Job], rounds: int, closing: str | None = None) -> dict[str, list[float]]:
    """Seconds per network call of every job, once per round, the jobs in turns; the first round warms up.

    The job `closing` is measured once more at the end.
    """
    found: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(rounds + 1):
        for name, job in jobs.items():
            seconds, calls = clock.seconds(job)
            if number:
                found[name].append(seconds / calls)
    if closing is not None:
        seconds, calls = clock.seconds(jobs[closing])
        found[closing].append(seconds / calls)
    return found


def between(values: list[float]) -> list[float]:
    """Means of neighbours: what a bare call took while something else was measured between two of them."""
    return [(a + b) / 2 for a, b in pairwise(values)]


def median(values: list[float]) -> float:
    return float(statistics.median(values))


def ratio(over: list[float], under: list[float]) -> float:
    """Median over the rounds of the ratio within a round."""
    return median([a / b for a, b in zip(over, under, strict=True)])


# ---- what is measured -------------------------------------------------------------------------------------------


def adm_network(channels: int, device: torch.device) -> torch.nn.Module:
    """guided-diffusion's network for 256x256 (552 M parameters at 256 channels), random weights."""
    from invdiff.checkpoints.guided_diffusion import PRESETS, UNetConfig

    head = min(64, channels)
    config = UNetConfig.read({**PRESETS["imagenet256-uncond"], "model_channels": channels, "num_head_channels": head})
    network = config.network().to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    for parameter in network.parameters():
        fan_in = max(1, parameter[0].numel())
        with torch.no_grad():
            if parameter.ndim == 1:
                parameter.fill_(0.5)
            else:
                parameter.normal_(0, fan_in**-0.5, generator=generator)
    return network


def adm_backbone(channels: int, device: torch.device, **options: Any) -> NetworkBackbone:
    network = adm_network(channels, device)
    name = f"ADM 256x256, {sum(p.numel() for p in network.parameters()) / 1e6:.1f} M"
    return NetworkBackbone(network, image_shape=(3, 256, 256), learned_variance=True, name=name, copy=False, **options)


def measurement(shape: tuple[int, ...], batch: int) -> tuple[Mask, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return Mask(torch.rand(shape[1:], generator=generator) > 0.5), torch.rand(batch, *shape, generator=generator)


def run(backbone: Any, sampler: str, batch: int, steps: int) -> Job:
    mask, y = measurement(backbone.image_shape, batch)

    def job() -> int:
        options = {"steps": steps, "batch_size": batch, "progress": False, **RUNS[sampler]}
        return int(solve(mask, y, sampler, backbone=backbone, **options).nfe)

    return job


def bare(backbone: NetworkBackbone, batch: int, gradient: bool, calls: int) -> Job:
    """The module alone on an input that is ready in its precision and layout; with a vector-Jacobian product."""
    x = torch.randn(batch, *backbone.image_shape, device=backbone.device)
    t = torch.full((batch,), 500, device=backbone.device)
    parameter = next(backbone.module.parameters())  # type: ignore[union-attr]
    if parameter.dtype != torch.float32 or x.is_cuda:
        x = x.to(parameter.dtype, memory_format=torch.channels_last)

    def once() -> Tensor:
        out = backbone.network(x, t) if backbone.compile else backbone.module(x, t)
        return out if isinstance(out, Tensor) else out.sample

    def job() -> int:
        with backbone.arithmetic():
            for _ in range(calls):
                if gradient:
                    x.requires_grad_(True)
                    out = once()
                    torch.autograd.grad(out, x, torch.ones_like(out))
                    x.requires_grad_(False)
                else:
                    with torch.inference_mode():
                        once()
        return calls

    return job


# ---- the parts --------------------------------------------------------------------------------------------------


def overhead(clock: Clock, backbone: NetworkBackbone, batches: list[int], steps: int, rounds: int) -> Rows:
    """Total time of a run over network calls times a bare call (for gradient samplers: forward and product)."""
    rows = []
    for batch in batches:
        for sampler in RUNS:
            gradient = sampler_class(sampler).uses_gradient
            jobs = {"bare": bare(backbone, batch, gradient, steps), "run": run(backbone, sampler, batch, steps)}
            times = interleaved(clock, jobs, rounds, closing="bare")
            rows.append(
                {
                    "backbone": backbone.name,
                    "batch": batch,
                    "sampler": sampler,
                    "network": "forward + product" if gradient else "forward",
                    "bare_ms": 1e3 * median(times["bare"]),
                    "run_ms": 1e3 * median(times["run"]),
                    "ratio": ratio(times["run"], between(times["bare"])),
                }
            )
            print(f"  {backbone.name} batch {batch} {sampler}: {rows[-1]['ratio']:.3f}", flush=True)
    return rows


def free_network(x: Tensor, t: Tensor) -> Tensor:
    """Costs nothing, and lets a gradient through."""
    return x


def step_overhead(clock: Clock, device: torch.device, rounds: int) -> Rows:
    """Milliseconds per network call that a run spends outside the network: 64x64, one image.

    For gradient samplers those beyond the vector-Jacobian product of the clean estimate are given as well.
    """
    backbone = NetworkBackbone(free_network, image_shape=(3, 64, 64), device=device, name="free")
    x = torch.randn(1, 3, 64, 64, device=device)

    def product() -> int:
        for _ in range(100):
            estimate_with_pullback(backbone, x, 500)[2](x)
        return 100

    jobs: dict[str, Job] = {"product": product, **{name: run(backbone, name, 1, 100) for name in RUNS}}
    times = interleaved(clock, jobs, rounds)
    rows: Rows = []
    for name in RUNS:
        gradient = sampler_class(name).uses_gradient
        outside = [a - b for a, b in zip(times[name], times["product"], strict=True)] if gradient else times[name]
        rows.append({"sampler": name, "ms": 1e3 * median(times[name]), "outside_ms": 1e3 * median(outside)})
        rows[-1].update(least_ms=1e3 * min(outside), aim=AIMS.get(name))
    return rows


def compiled(clock: Clock, device: torch.device, batches: list[int], rounds: int) -> Rows:
    """A call of the embedded network per precision, as it is and compiled."""
    backbones = {
        (precision, compile): load_backbone("cats64", precision=precision, compile=compile, device=device)
        for precision in (("float32", "auto") if device.type == "cpu" else ("float32", "tf32", "bfloat16", "float16"))
        for compile in (False, True)
    }
    rows: Rows = []
    for batch in batches:
        x, t = torch.randn(batch, 3, 64, 64, device=device), torch.full((batch,), 500, device=device)

        def job(backbone: Any, x: Tensor = x, t: Tensor = t) -> Job:
            def call() -> int:
                with torch.inference_mode():
                    for _ in range(5):
                        backbone.network(x.clone(), t)
                return 5

            return call

        times = interleaved(clock, {str(k): job(b) for k, b in backbones.items()}, rounds)
        slowest = times[str(("float32", False))]
        for key, backbone in backbones.items():
            dtype = str(next(backbone.module.parameters()).dtype).removeprefix("torch.")  # type: ignore[attr-defined]
            values = times[str(key)]
            rows.append(
                {
                    "batch": batch,
                    "precision": dtype if key[0] == "auto" else key[0],
                    "compiled": key[1],
                    "ms": 1e3 * median(values),
                    "speedup": ratio(slowest, values),
                }
            )
            print(f"  {rows[-1]}", flush=True)
    return rows


def adm_throughput(clock: Clock, device: torch.device, batch: int, rounds: int) -> Rows:
    """Images per second per network call of the full ADM network, bare and within a DDNM run. Needs a GPU."""
    rows = []
    for precision in ("float32", "tf32", "bfloat16", "float16"):
        for compile in (False, True):
            backbone = adm_backbone(256, device, precision=precision, compile=compile)
            times = interleaved(
                clock, {"bare": bare(backbone, batch, False, 4), "run": run(backbone, "ddnm", batch, 20)}, rounds
            )
            rows.append(
                {
                    "precision": precision,
                    "compiled": compile,
                    "batch": batch,
                    "bare_images_per_s": batch / median(times["bare"]),
                    "run_images_per_s": batch / median(times["run"]),
                    "fraction": 1 / ratio(times["run"], times["bare"]),
                }
            )
            print(f"  {rows[-1]}", flush=True)
            del backbone
            torch.cuda.empty_cache()
    return rows


def against_peers(clock: Clock, device: torch.device, batch: int, steps: int, rounds: int) -> Rows:
    """The same job, network and number of calls in other libraries: float32 against float32, and each by default."""
    from peers import installed_peers

    full = load_backbone("cats64", precision="float32", device=device)
    default = load_backbone("cats64", device=device)
    mask, y = measurement((3, 64, 64), batch)
    rows = []
    for peer in installed_peers(full, mask, y, steps):
        ours = {"float32": run(full, peer.sampler, batch, steps), "default": run(default, peer.sampler, batch, steps)}
        times = interleaved(
            clock, {"peer": peer.run, **ours, **({"own": peer.default} if peer.default else {})}, rounds
        )
        own = times["own"] if peer.default else times["peer"]
        rows.append(
            {
                "library": peer.library,
                "method": peer.method,
                "batch": batch,
                "calls": peer.run(),
                "their_ms": 1e3 * median(times["peer"]),
                "our_ms": 1e3 * median(times["float32"]),
                "faster_float32": ratio(times["peer"], times["float32"]),
                "their_default_ms": 1e3 * median(own),
                "our_default_ms": 1e3 * median(times["default"]),
                "faster_default": ratio(own, times["default"]),
            }
        )
        print(f"  {peer.library} {peer.method}: {rows[-1]['faster_float32']:.2f}", flush=True)
    return rows


# ---- tables -----------------------------------------------------------------------------------------------------


def digits(places: int, *values: float) -> list[str]:
    return [f"{value:.{places}f}" for value in values]


def largest(rows: Rows) -> str:
    """The worst sampler of every backbone and batch size."""
    groups: dict[tuple[str, int], dict[str, Any]] = {}
    for row in rows:
        key = (row["backbone"], row["batch"])
        groups[key] = max(groups.get(key, row), row, key=lambda r: r["ratio"])
    worst = [f"{name}, batch {batch}: {row['ratio']:.3f} ({row['sampler']})" for (name, batch), row in groups.items()]
    return f"The largest: {'; '.join(worst)}.\n"


def least(rows: Rows) -> str:
    """The smallest and largest factor per batch size, with and without a gradient."""
    parts = []
    for batch in sorted({r["batch"] for r in rows}):
        for gradient in (False, True):
            mine = [r for r in rows if r["batch"] == batch and sampler_class(r["method"]).uses_gradient == gradient]
            if mine:
                how = "with a gradient" if gradient else "without a gradient"
                plain, default = ([r[k] for r in mine] for k in ("faster_float32", "faster_default"))
                parts.append(
                    f"batch {batch}, {how}: {min(plain):.2f} to {max(plain):.2f} in float32, "
                    f"{min(default):.1f} to {max(default):.1f} by default"
                )
    return f"In short: {'; '.join(parts)}.\n"


def markdown(found: dict[str, Any]) -> str:
    about = found["about"]
    parts = [
        f"{about['machine']}, {about['threads']} thread(s), torch {about['torch']}, {about['device']}; "
        f"{about['clock']}, medians of {about['rounds']} interleaved rounds (at "
        "most 5 beside other libraries and at 256x256, 3 there at batch 8).\n"
    ]
    if found.get("overhead"):
        rows = [
            [
                r["backbone"],
                r["batch"],
                r["sampler"],
                r["network"],
                *digits(1, r["bare_ms"], r["run_ms"]),
                *digits(3, r["ratio"]),
            ]
            for r in found["overhead"]
        ]
        parts += [
            "### A run's time over its network's\n",
            "Milliseconds per network call; 1.000 would be a run that is nothing but network calls. "
            + largest(found["overhead"]),
            markdown_table(["backbone", "batch", "sampler", "network call", "bare", "run", "ratio"], rows),
        ]
    if found.get("steps"):
        rows = [
            [
                r["sampler"],
                *digits(2, r["ms"], r["outside_ms"], r["least_ms"]),
                *(digits(2, r["aim"]) if r["aim"] else [""]),
            ]
            for r in found["steps"]
        ]
        parts += [
            "### A step with a network that costs nothing\n",
            "Milliseconds per network call, one 64x64 image. For PiGDM, MCG and DPS the empty network's own vector-Jacobian "
            "product is taken off in the second column; the third is the least of the rounds.\n",
            markdown_table(["sampler", "in all", "outside the network", "least", "aim"], rows),
        ]
    if found.get("compile"):
        rows = [
            [str(r["batch"]), r["precision"], "yes" if r["compiled"] else "no", f"{r['ms']:.1f}", f"{r['speedup']:.2f}"]
            for r in found["compile"]
        ]
        parts += [
            "### The embedded network per precision\n",
            "Milliseconds of one call.\n",
            markdown_table(["batch", "precision", "compiled", "ms", "times as fast as float32"], rows),
        ]
    if found.get("peers"):
        rows = [
            [
                *(r["library"], r["method"], r["batch"], r["calls"]),
                *(*digits(1, r["their_ms"], r["our_ms"]), *digits(2, r["faster_float32"])),
                *(*digits(1, r["their_default_ms"], r["our_default_ms"]), *digits(2, r["faster_default"])),
            ]
            for r in found["peers"]
        ]
        head = [
            "library",
            "method",
            "batch",
            "calls",
            "theirs",
            "ours",
            "ratio",
            "theirs by default",
            "ours by default",
            "ratio",
        ]
        parts += [
            "### Beside other libraries\n",
            "The same network, 64x64 images, a random mask, the same number of network calls; milliseconds per call "
            "and times that ours is faster, in float32 and in each library's default precision. "
            + least(found["peers"]),
            markdown_table(head, rows),
        ]
    if found.get("adm"):
        rows = [
            [
                *(r["precision"], "yes" if r["compiled"] else "no", r["batch"]),
                *(*digits(2, r["bare_images_per_s"], r["run_images_per_s"]), *digits(3, r["fraction"])),
            ]
            for r in found["adm"]
        ]
        parts += [
            "### 256x256 ADM network, 552 M parameters\n",
            "Images per second and network call, bare and within a DDNM run.\n",
            markdown_table(["precision", "compiled", "batch", "bare", "run", "fraction"], rows),
        ]
    elif about["device"] == "cpu":
        parts.append("No GPU was at hand: the part of this script for the 552 M parameter network was not run.\n")
    return "\n".join(parts)


def plot(found: dict[str, Any], path: Path) -> None:
    """The ratio of every sampler, a panel per backbone."""
    from invdiff.plotting import new_figure

    rows = found.get("overhead")
    if not rows:
        return
    names = list(dict.fromkeys(r["backbone"] for r in rows))
    figure = new_figure(4.5 * len(names), 3.2)
    for column, name in enumerate(names):
        axes = figure.add_subplot(1, len(names), column + 1)
        mine = [r for r in rows if r["backbone"] == name]
        batches = sorted({r["batch"] for r in mine})
        width = 0.8 / len(batches)
        for k, batch in enumerate(batches):
            values = [r for r in mine if r["batch"] == batch]
            places = [i + (k - (len(batches) - 1) / 2) * width for i in range(len(values))]
            axes.barh(places, [100 * (r["ratio"] - 1) for r in values], width, label=f"batch {batch}")
        axes.set_yticks(range(len(RUNS)), list(RUNS))
        axes.invert_yaxis()
        axes.set_xlabel("time beside the network, %")
        axes.set_title(name, fontsize=9)
        axes.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")


# ---- the command ------------------------------------------------------------------------------------------------


def stem_for(device: torch.device) -> str:
    """What the files are called: a GPU's stand beside the processor's."""
    return "speed" if device.type == "cpu" else f"speed-{device.type}"


PARTS = ("steps", "overhead", "peers", "compile", "adm", "bfloat16", "engine")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("speed"), help="folder for speed.md, .json, .png; speed-cuda.* on a GPU"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--width", type=int, default=None, help="channels of the 256x256 network: 32 on the CPU, else 256"
    )
    parser.add_argument("--large-batches", type=int, nargs="+", default=[1, 8], help="of it; 8 takes minutes on a CPU")
    parser.add_argument("--wall", action="store_true", help="wall time also on one CPU thread")
    parser.add_argument("--quick", action="store_true", help="fewer steps and rounds, one batch size, nothing compiled")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_freed_memory()
    warnings.simplefilter("ignore", InvdiffWarning)
    device, quick = torch.device(given.device), given.quick
    on_cpu = device.type == "cpu"
    clock, rounds = Clock(device, given.wall), 2 if quick else given.rounds
    given.out.mkdir(parents=True, exist_ok=True)
    stem = stem_for(device)
    path = given.out / f"{stem}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}  # parts can be run one by one
    found["about"] = {
        "machine": platform.processor() or platform.machine(),
        "device": str(device) if on_cpu else torch.cuda.get_device_name(device),
        "threads": given.threads,
        "torch": torch.__version__,
        "clock": clock.name,
        "rounds": rounds,
        "date": time.strftime("%Y-%m-%d"),
    }

    def part(name: str, work: Callable[[], Rows]) -> None:
        if name in given.parts:
            print(name, flush=True)
            found[name] = work()
            with atomic_write(path) as temporary:
                Path(temporary).write_text(json.dumps(found, indent=1) + "\n")
            with atomic_write(given.out / f"{stem}.md") as temporary:
                Path(temporary).write_text(markdown(found))

    def both_networks() -> Rows:
        width = given.width or (32 if on_cpu else 256)
        small = load_backbone("cats64", device=device)
        assert isinstance(small, NetworkBackbone)
        rows: Rows = []
        for batch, steps in [(1, 12)] if quick else [(1, 30), (8, 20)]:
            rows += overhead(clock, small, [batch], steps, rounds)
        large = adm_backbone(width, device)
        for batch in [1] if quick else given.large_batches:
            rows += overhead(clock, large, [batch], 4 if on_cpu else 12, min(rounds, 5 if batch == 1 else 3))
        return rows

    part("steps", lambda: step_overhead(clock, device, rounds))
    part("overhead", both_networks)
    part(
        "peers",
        lambda: [
            row
            for batch in ([1] if quick else [1, 8])
            for row in against_peers(clock, device, batch, 20 if batch == 1 and not quick else 6, min(rounds, 5))
        ],
    )
    if not quick:
        part("compile", lambda: compiled(clock, device, [1, 8], rounds))
    if not on_cpu:
        part("adm", lambda: adm_throughput(clock, device, 8, rounds))
    plot(found, given.out / f"{stem}.png")
    if "bfloat16" in given.parts:
        from bfloat16 import compare

        compare(given.out, device, quick)
    if "engine" in given.parts and on_cpu:
        import engine

        engine.compare(given.out, quick, given.threads, given.rounds)
    if set(given.parts) - {"bfloat16", "engine"}:
        print(markdown(found))
    print(f"written to {given.out}")


if __name__ == "__main__":
    main()
