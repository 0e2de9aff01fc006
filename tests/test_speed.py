"""The speed measurements: what they count and write. No time is asserted."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from invdiff import NetworkBackbone, load_backbone
from invdiff.samplers import sampler_class, sampler_names
from invdiff.samplers.base import finite

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def speed():
    sys.path.insert(0, str(FOLDER))
    try:
        import speed

        yield speed
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture
def clock(speed):
    return speed.Clock(torch.device("cpu"), wall=False)


class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x, t):
        return self.layer(x)


def test_every_sampler_is_measured(speed):
    assert set(speed.RUNS) >= {n for n in sampler_names() if sampler_class(n).__module__.startswith("invdiff.")}


def test_jobs_take_turns_and_the_first_round_is_not_counted(speed, clock):
    order = []
    jobs = {name: lambda name=name: order.append(name) or 2 for name in "ab"}
    found = speed.interleaved(clock, jobs, rounds=3)
    assert order == list("ab") * 4
    assert all(len(values) == 3 for values in found.values())


def test_a_run_is_set_against_the_bare_calls_on_both_sides(speed, clock):
    order = []
    jobs = {name: lambda name=name: order.append(name) or 1 for name in ("bare", "run")}
    found = speed.interleaved(clock, jobs, rounds=2, closing="bare")
    assert order == ["bare", "run"] * 3 + ["bare"]
    assert len(speed.between(found["bare"])) == len(found["run"]) == 2
    assert speed.between([1.0, 3.0, 4.0]) == [2.0, 3.5]


def test_a_ratio_is_the_median_of_the_rounds_own_ratios(speed):
    assert speed.ratio([2.0, 20.0, 9.0], [1.0, 10.0, 3.0]) == 2.0


@pytest.mark.parametrize("gradient", [False, True])
def test_a_bare_call_is_a_call_of_the_module_alone(speed, gradient):
    backbone = NetworkBackbone(Tiny(), image_shape=(3, 8, 8))
    seen = []
    backbone.module.register_forward_hook(lambda module, inputs, out: seen.append(out.requires_grad))
    assert speed.bare(backbone, 2, gradient, 3)() == 3
    assert seen == [gradient] * 3


def test_overhead_and_steps_give_a_row_per_sampler(speed, clock):
    torch.manual_seed(0)
    backbone = NetworkBackbone(Tiny(), image_shape=(3, 8, 8), name="tiny")
    rows = speed.overhead(clock, backbone, [2], 3, 1)
    assert [r["sampler"] for r in rows] == list(speed.RUNS)
    assert {r["sampler"] for r in rows if r["network"] != "forward"} == {
        n for n in speed.RUNS if sampler_class(n).uses_gradient
    }
    assert all(math.isfinite(r["ratio"]) for r in rows)


def test_figures_of_a_gpu_stand_beside_those_of_the_processor(speed):
    assert [speed.stem_for(torch.device(d)) for d in ("cpu", "cuda:0")] == ["speed", "speed-cuda"]


def test_the_report_holds_what_was_measured(speed, tmp_path):
    rows = [
        {"backbone": "b", "batch": 1, "sampler": n, "network": "forward", "bare_ms": 10, "run_ms": 11, "ratio": 1.125}
        for n in speed.RUNS
    ]
    about = {"machine": "m", "threads": 1, "torch": "t", "device": "cpu", "clock": "wall time", "rounds": 3}
    rows[3]["ratio"] = 1.25
    times = {"their_ms": 8, "our_ms": 4, "their_default_ms": 8, "our_default_ms": 2, "calls": 9, "library": "l"}
    peers = [
        {**times, "method": method, "batch": batch, "faster_float32": 2.0, "faster_default": factor}
        for method, batch, factor in (("DDRM", 1, 4.0), ("RePaint", 1, 5.0), ("DPS", 1, 3.0), ("DDRM", 8, 6.0))
    ]
    text = speed.markdown({"about": about, "overhead": rows, "peers": peers})
    assert text.count("1.125") == len(speed.RUNS) - 1
    assert f"The largest: b, batch 1: 1.250 ({rows[3]['sampler']})." in text
    assert "batch 1, without a gradient: 2.00 to 2.00 in float32, 4.0 to 5.0 by default;" in text
    assert "batch 1, with a gradient: 2.00 to 2.00 in float32, 3.0 to 3.0 by default;" in text
    assert "No GPU was at hand" in text
    speed.plot({"overhead": rows}, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").stat().st_size > 0


def test_the_table_of_engines_says_what_is_fastest_and_whether_the_aim_is_met(speed):
    import engine

    calls = [
        {"batch": 1, "precision": "float32", "runs": "PyTorch", "ms": 40.0, "faster": 1.0, "faster_float32": 1.0},
        {"batch": 1, "precision": "float32", "runs": "OpenVINO", "ms": 20.0, "faster": 2.0, "faster_float32": 2.0},
    ]
    row = {"library": "l", "batch": 1, "their_ms": 60.0, "float32_ms": 40.0, "float32_faster": 1.5}
    runs = [
        {**row, "method": "DDRM", "gradient": False, "float32_engine_ms": 20.0, "float32_engine_faster": 3.0},
        {**row, "method": "DPS", "gradient": True, "float32_faster": 1.1},
    ]
    about = {"processor": "p", "threads": 1, "torch": "t", "openvino": "o", "clock": "c", "rounds": 2, "date": "d"}
    text = engine.markdown({"about": about, "processors": {engine.AVX2: {"calls": calls, "runs": runs}}})
    assert "one image: OpenVINO in float32, 20.0 ms, 2.00 times as fast as PyTorch in float32" in text
    assert "without a gradient 3.00 to 3.00 times as fast (aim 1.25: met)" in text
    assert "with a gradient 1.10 to 1.10 times as fast (aim 1.25: missed)" in text
    assert "| l | DPS | 1 | 60.0 | 40.0 | 1.10 |  |  |" in text


def test_the_stand_in_for_a_laptop_holds_back_the_process_that_measures(speed, monkeypatch, tmp_path):
    import engine

    seen = []

    def run(command, env):
        seen.append({name: env.get(name) for name in engine.PROCESSORS[engine.AVX2]})
        Path(command[command.index("--measure") + 1]).write_text('{"calls": [], "runs": []}')
        return type("Done", (), {"returncode": 0})()

    for name in engine.PROCESSORS[engine.AVX2]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(engine.subprocess, "run", run)
    engine.compare(tmp_path, quick=True)
    assert seen == [dict.fromkeys(engine.PROCESSORS[engine.AVX2]), engine.PROCESSORS[engine.AVX2]]
    assert set(json.loads((tmp_path / "engine.json").read_text())["processors"]) == set(engine.PROCESSORS)


def test_recorded_quality_of_bfloat16_is_within_a_tenth_of_a_decibel():
    path = FOLDER.parent / "docs" / "data" / "bfloat16.json"
    if not path.is_file():
        pytest.skip("not measured yet: python benchmarks/bfloat16.py --out docs/data")
    rows = json.loads(path.read_text())
    assert {r["sampler"]: r["difference"] for r in rows if abs(r["difference"]) >= 0.1} == {}


@pytest.mark.slow
@pytest.mark.parametrize("library", ["diffusers", "deepinv", "azula"])
def test_peers_make_the_calls_that_they_are_compared_for(speed, library):
    pytest.importorskip(library)
    from peers import installed_peers

    mask, y = speed.measurement((3, 64, 64), 1)
    backbone = load_backbone("cats64", precision="float32")
    peers = [p for p in installed_peers(backbone, mask, y, 4) if p.library == library]
    assert peers
    for peer in peers:
        ours = speed.run(backbone, peer.sampler, 1, 4)()
        assert abs(peer.run() - ours) <= 1, peer.method


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([0.0, 1.0], True),
        ([3e38, 3e38], True),  # finite, though their sum is not
        ([float("inf"), -float("inf")], False),
        ([float("nan"), 0.0], False),
    ],
)
def test_finite_is_what_isfinite_says(values, wanted):
    assert finite(torch.tensor(values)) is wanted
