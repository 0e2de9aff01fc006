"""What a run will take, known before it: the counts of the real run, from a call at its size, made twice where it is short."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import quiet_solve
from pictures import any_size, hole, photo_of

import invdiff as iv
from invdiff import InvdiffError, Mask, estimate
from invdiff.cli import main
from invdiff.data import chelsea64


@pytest.mark.parametrize(
    "sampler, options",
    [
        ("ddnm", {"steps": 7}),
        ("pigdm", {"steps": 5}),
        ("repaint", {"steps": 20, "jump_length": 5, "jump_n_sample": 2}),
        ("diffpir", {"steps": 6, "path": "travel", "travel_length": 2, "travel_repeat": 2}),
        ("tds", {"steps": 4, "particles": 4}),
        ("biharmonic", {}),
    ],
)
def test_the_counts_are_those_of_the_run_and_the_trial_is_a_call(clean, sampler, options):
    asked_for: list[tuple[int, ...]] = []

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        asked_for.append(tuple(x.shape))
        return 0.5 * x

    backbone = iv.NetworkBackbone(network, image_shape=(3, 16, 16), precision="float32")
    asked = {"backbone": backbone, "n_samples": 2, "value_range": (-1, 1), **options}
    A = Mask(iv.make_mask("box", 16))
    price = estimate(A, clean[:3], sampler, **asked)
    tried = asked_for.copy()
    asked_for.clear()
    answer = quiet_solve(A, clean[:3], sampler, **asked)
    assert (price.nfe, price.vjps, price.restorations) == (answer.nfe, answer.vjps, len(answer.x))
    assert len(tried) == 2 * (answer.nfe > 0) and price.batch >= (sampler != "biharmonic")
    if tried:
        assert tried[0] == max(asked_for) and tried[0][0] == price.batch
        assert price.seconds > 0 and price.peak_memory > 2**20
        assert f"{answer.nfe:,} network calls" in str(price)


def test_only_what_the_plan_computes_is_counted():
    photo, known = photo_of(200, 240), hole(200, 240)
    calls = iv.plan_restoration(Mask(known), (3, 200, 240), any_size(), 5).network_calls
    part = estimate(Mask(known), photo, "ddnm", backbone=any_size(), steps=5)
    whole = estimate(Mask(known), photo, "ddnm", backbone=any_size(), steps=5, region="all")
    assert list(part.parts) == calls and len(calls) > 0
    assert whole.parts == (((3, 200, 240), 5),)


def test_mistakes_are_those_of_solve():
    with pytest.raises(InvdiffError, match="steps"):
        estimate(Mask(np.eye(64)), chelsea64(), "ddnm", steps=0)
    with pytest.raises(TypeError):
        estimate(Mask(np.eye(64)))


@pytest.mark.parametrize("task", ["mask -A mask=box", "blur"])
def test_where_nothing_is_named_the_command_line_runs_what_python_runs(task, tmp_path, monkeypatch, capsys):
    """Its --preset is none unless given: naming the usual one would leave the library's own choice of steps out."""
    monkeypatch.chdir(tmp_path)
    chelsea64().save("photo.png")
    monkeypatch.setattr("sys.argv", ["invdiff", *f"solve photo.png --operator {task} --dry-run".split()])
    with pytest.raises(SystemExit):
        main()
        raise SystemExit(0)
    operator = iv.make_operator(task.split()[0], (3, 64, 64), **({"mask": "box"} if "box" in task else {}))
    assert f"{estimate(operator, chelsea64()).nfe} network calls" in capsys.readouterr().out


def test_a_dry_run_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    chelsea64().save("photo.png")
    words = "solve photo.png --mask box --steps 3 --dry-run --baselines --blend -o r.png"
    monkeypatch.setattr("sys.argv", ["invdiff", *words.split()])
    with pytest.raises(SystemExit) as end:
        main()
        raise SystemExit(0)
    said = capsys.readouterr().out
    assert end.value.code in (0, None) and "3 network calls" in said and "MiB" in said
    assert [p.name for p in tmp_path.iterdir()] == ["photo.png"]
