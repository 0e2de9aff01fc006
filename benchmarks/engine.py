#!/usr/bin/env python3
"""What runs a network fastest on this CPU: PyTorch, our packed layers, OpenVINO; and a run beside other libraries.

    python benchmarks/engine.py --out docs/data            both tables (`--quick`: two minutes)
    python benchmarks/speed.py --parts engine --out docs/data     the same as a part of the larger script

Twice, each in a process of its own: with all that the processor has, and held back to AVX2 by
``ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2``, which PyTorch and OpenVINO both obey: a stand-in for a laptop without
bfloat16, of which only float32 is measured. What is compared is measured in turns within one run, in processor time of the
process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from peers import installed_peers
from speed import Clock, Job, Rows, digits, interleaved, measurement, median, ratio, run

from invdiff import InvdiffWarning, NetworkBackbone, load_backbone
from invdiff.backbones.network import native_bfloat16
from invdiff.backbones.openvino_engine import available
from invdiff.errors import InvdiffError
from invdiff.files import atomic_write
from invdiff.markdown import markdown_table
from invdiff.memory import keep_freed_memory
from invdiff.samplers import sampler_class

WHOLE, AVX2 = "all of it", "AVX2 only"
PROCESSORS: dict[str, dict[str, str]] = {
    WHOLE: {},
    AVX2: {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
}
"""What of the processor is used: the environment of the process that measures."""

FEATURES = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX-512 bfloat16", "amx_bf16": "AMX bfloat16"}

AIMS = {WHOLE: 2.0, AVX2: 1.25}
"""Times as fast as each library as installed, one image: where bfloat16 is native, and elsewhere in float32."""


def processor() -> str:
    """The processor's name and what it multiplies with, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = set(found.get("flags", "").split())
    features = ", ".join(name for flag, name in FEATURES.items() if flag in flags)
    name = found.get("model name", platform.machine())
    return f"{name} ({features})" if features else name


# ---- what is measured -------------------------------------------------------------------------------------------


def backbones(precision: str) -> dict[str, NetworkBackbone]:
    """The embedded network by what runs it, in one precision."""
    made: dict[str, Any] = {"packed": load_backbone("cats64", precision=precision, engine="torch")}
    full = load_backbone("cats64", precision="float32", engine="torch")
    if precision == "bfloat16":
        # PyTorch's own layers, in the order in memory that is the faster one in bfloat16.
        plain = load_backbone("cats64", precision="float32", engine="torch")
        plain.module.to(torch.bfloat16, memory_format=torch.channels_last)
        made = {"PyTorch": plain, **made}
    else:
        made = {"PyTorch": full}
    if available():
        made["OpenVINO"] = load_backbone("cats64", precision=precision, engine="openvino")
    return made


def call(backbone: NetworkBackbone, name: str, batch: int, calls: int) -> Job:
    x, t = torch.randn(batch, *backbone.image_shape), torch.full((batch,), 500)
    module: Any = backbone.module
    plain = name == "PyTorch" and next(module.parameters()).dtype != torch.float32

    def job() -> int:
        with torch.inference_mode():
            for _ in range(calls):
                if plain:
                    module(x.to(torch.bfloat16).contiguous(memory_format=torch.channels_last), t)
                else:
                    backbone.network(x.clone(), t)
        return calls

    return job


def calls_of_the_network(clock: Clock, batches: list[int], rounds: int) -> Rows:
    """Milliseconds of one call without a gradient, by precision and what runs it."""
    precisions = ["float32", "bfloat16"] if native_bfloat16("cpu") and not held_back() else ["float32"]
    rows: Rows = []
    every = {(precision, name): b for precision in precisions for name, b in backbones(precision).items()}
    for batch in batches:
        jobs = {str(key): call(b, key[1], batch, 5 if batch == 1 else 2) for key, b in every.items()}
        times = interleaved(clock, jobs, rounds)
        for precision, name in every:
            mine = times[str((precision, name))]
            rows.append(
                {
                    "batch": batch,
                    "precision": precision,
                    "runs": name,
                    "ms": 1e3 * median(mine),
                    "faster": ratio(times[str((precision, "PyTorch"))], mine),
                    "faster_float32": ratio(times[str(("float32", "PyTorch"))], mine),
                }
            )
            print(f"  {rows[-1]}", flush=True)
    return rows


def held_back() -> bool:
    return "ONEDNN_MAX_CPU_ISA" in os.environ


def runs_beside_peers(clock: Clock, batch: int, steps: int, rounds: int) -> Rows:
    """Whole runs as each library runs them when nothing is said, and ours with and without OpenVINO."""
    precision = "auto" if native_bfloat16("cpu") and not held_back() else "float32"
    full = load_backbone("cats64", precision="float32", engine="torch")
    ours: dict[str, Any] = {
        "float32": full,
        "default": load_backbone("cats64", precision=precision, engine="torch"),
    }
    if available():
        ours["float32_engine"] = load_backbone("cats64", precision="float32", engine="openvino")
        ours["default_engine"] = load_backbone("cats64", precision=precision, engine="openvino")
    if precision == "float32":
        ours.pop("default"), ours.pop("default_engine", None)
    mask, y = measurement((3, 64, 64), batch)
    rows: Rows = []
    for peer in installed_peers(full, mask, y, steps):
        gradient = sampler_class(peer.sampler).uses_gradient
        jobs = {
            name: run(b, peer.sampler, batch, steps)
            for name, b in ours.items()
            if not (gradient and name.endswith("engine"))  # a gradient is PyTorch's in any case
        }
        times = interleaved(clock, {"peer": peer.default or peer.run, **jobs}, rounds)
        row: dict[str, Any] = {
            "library": peer.library,
            "method": peer.method,
            "batch": batch,
            "gradient": gradient,
            "their_ms": 1e3 * median(times["peer"]),
        }
        for name in jobs:
            row[f"{name}_ms"] = 1e3 * median(times[name])
            row[f"{name}_faster"] = ratio(times["peer"], times[name])
        rows.append(row)
        print(
            f"  {peer.library} {peer.method}: { {k: round(v, 2) for k, v in row.items() if 'faster' in k} }", flush=True
        )
    return rows


def measure(quick: bool, threads: int, rounds: int) -> dict[str, Rows]:
    """Both tables for this process's processor."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    warnings.simplefilter("ignore", InvdiffWarning)
    clock = Clock(torch.device("cpu"), wall=False)
    rounds = 2 if quick else rounds
    calls = calls_of_the_network(clock, [1, 8], rounds)
    runs = []
    for batch, steps in [(1, 8)] if quick else [(1, 20), (8, 6)]:
        runs += runs_beside_peers(clock, batch, steps, min(rounds, 5))
    return {"calls": calls, "runs": runs}


# ---- tables -----------------------------------------------------------------------------------------------------


def fastest(calls: Rows) -> list[str]:
    """Sentences: what is the fastest way by batch."""
    parts = []
    for batch in sorted({r["batch"] for r in calls}):
        best = min((r for r in calls if r["batch"] == batch), key=lambda r: r["ms"])
        images = "one image" if batch == 1 else f"{batch} images"
        parts.append(
            f"{images}: {best['runs'].replace('packed', 'packed layers')} in {best['precision']}, {best['ms']:.1f} ms, "
            f"{best['faster_float32']:.2f} times as fast as PyTorch in float32"
        )
    return parts


def against_the_aim(runs: Rows, what: str) -> str:
    """One image without and with a gradient: the smallest and largest ratio, beside the aim."""
    names = ["default", "default_engine"] if what == WHOLE else ["float32", "float32_engine"]
    parts = []
    for gradient in (False, True):
        mine = [
            max(r[f"{n}_faster"] for n in names if f"{n}_faster" in r)
            for r in runs
            if r["batch"] == 1 and r["gradient"] == gradient
        ]
        if mine:
            how = "with a gradient" if gradient else "without a gradient"
            verdict = "met" if min(mine) >= AIMS[what] else "missed"
            parts.append(f"{how} {min(mine):.2f} to {max(mine):.2f} times as fast (aim {AIMS[what]:g}: {verdict})")
    return f"One image beside the other libraries: {'; '.join(parts)}." if parts else ""


def cells(row: dict[str, Any], name: str) -> list[str]:
    if f"{name}_ms" not in row:
        return ["", ""]
    return [*digits(1, row[f"{name}_ms"]), *digits(2, row[f"{name}_faster"])]


def markdown(found: dict[str, Any]) -> str:
    about = found["about"]
    parts = [
        f"{about['processor']}, {about['threads']} thread(s), torch {about['torch']}, openvino {about['openvino']}; "
        f"{about['clock']}, medians of {about['rounds']} interleaved rounds (at most 5 beside other libraries); {about['date']}.\n"
    ]
    for what, measured in found["processors"].items():
        title = "The whole processor" if what == WHOLE else "Held back to AVX2, the stand-in for a laptop"
        parts.append(f"\n### {title}\n")
        parts.append("Fastest, a call without a gradient: " + "; ".join(fastest(measured["calls"])) + ".\n")
        head = ["images", "precision", "run by", "ms a call", "over PyTorch, same precision", "over PyTorch, float32"]
        body = [
            [
                *(str(r["batch"]), r["precision"], r["runs"].replace("packed", "our packed layers")),
                *(*digits(1, r["ms"]), *digits(2, r["faster"], r["faster_float32"])),
            ]
            for r in measured["calls"]
        ]
        parts.append(markdown_table(head, body, "rllrrr"))
        if measured["runs"]:
            columns = {"float32": "float32, PyTorch", "float32_engine": "float32, OpenVINO"}
            if what == WHOLE:
                columns |= {"default": "bfloat16, packed", "default_engine": "bfloat16, OpenVINO"}
            head = ["library", "method", "images", "theirs"]
            head += [part for title in columns.values() for part in (f"ours: {title}", "times as fast")]
            body = [
                [
                    r["library"],
                    r["method"],
                    str(r["batch"]),
                    *digits(1, r["their_ms"]),
                    *(cell for n in columns for cell in cells(r, n)),
                ]
                for r in measured["runs"]
            ]
            parts.append(
                "\nMilliseconds a network call of whole runs, theirs as installed; a gradient is PyTorch's in any case. "
                + against_the_aim(measured["runs"], what)
                + "\n"
            )
            parts.append(markdown_table(head, body, "ll" + "r" * (len(head) - 2)))
    return "\n".join(parts)


# ---- the command ------------------------------------------------------------------------------------------------


def compare(out: Path, quick: bool = False, threads: int = 1, rounds: int = 9) -> dict[str, Any]:
    """Measure in a process per processor and write ``engine.md`` and ``engine.json`` to the folder `out`."""
    openvino = "not installed"
    if available():
        from importlib.metadata import version

        openvino = version("openvino")
    found: dict[str, Any] = {
        "about": {
            "processor": processor(),
            "threads": threads,
            "torch": torch.__version__,
            "openvino": openvino,
            "clock": "processor time" if threads == 1 else "wall time",
            "rounds": 2 if quick else rounds,
            "date": time.strftime("%Y-%m-%d"),
        },
        "processors": {},
    }
    for what, environment in PROCESSORS.items():
        print(what, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "measured.json"
            command = [
                sys.executable,
                __file__,
                "--measure",
                str(file),
                "--threads",
                str(threads),
                "--rounds",
                str(rounds),
            ]
            done = subprocess.run([*command, *(["--quick"] if quick else [])], env={**os.environ, **environment})
            if done.returncode:
                raise InvdiffError(f"the measurement of {what!r} ended with status {done.returncode}")
            found["processors"][what] = json.loads(file.read_text(encoding="utf-8"))
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(out / "engine.json") as temporary:
        temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    with atomic_write(out / "engine.md") as temporary:
        temporary.write_text(markdown(found), encoding="utf-8")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("speed"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="two rounds, one image, few steps")
    parser.add_argument(
        "--measure", type=Path, help=argparse.SUPPRESS
    )  # a process of `compare`: its rows, to this file
    given = parser.parse_args()
    if given.measure:
        given.measure.write_text(json.dumps(measure(given.quick, given.threads, given.rounds)), encoding="utf-8")
    else:
        compare(given.out, given.quick, given.threads, given.rounds)
        print((given.out / "engine.md").read_text())


if __name__ == "__main__":
    main()
