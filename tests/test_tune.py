"""The search for settings (benchmarks/tune.py), and the step of DPS and MCG that needs none."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from invdiff import InvdiffError, Mask, SuperResolution
from invdiff.operators import make_operator
from invdiff.priors.named import image_gaussian
from invdiff.problem import build_problem
from invdiff.samplers import DPS, MCG
from invdiff.samplers.dps import data_step
from invdiff.samplers.presets import Row, read, write

pytest.importorskip("optuna")


@pytest.fixture(scope="module")
def tune():
    folder = str(Path(__file__).parents[1] / "benchmarks")
    sys.path.insert(0, folder)
    try:
        import tune

        yield tune
    finally:
        sys.path.remove(folder)


# ---- the step by likelihood -------------------------------------------------------------------------------------


def posed(operator, y, sigma_y=0.0, shape=(1, 16, 16)):
    return build_problem(operator, y, sigma_y, image_gaussian(shape), (-1, 1))


@pytest.mark.parametrize("sigma_y", [0.0, 0.05, 10.0])
def test_it_is_the_gradient_of_a_gaussian_with_the_residuals_variance(sigma_y):
    A, draw = SuperResolution(4, kernel="box"), torch.Generator().manual_seed(0)
    x0, y = torch.randn(3, 1, 16, 16, generator=draw), torch.randn(3, 1, 4, 4, generator=draw)
    problem, ratio = posed(A, y, sigma_y), 0.9
    step = data_step(y, problem, x0, lambda v: v, ratio, "likelihood", 1.0)
    with torch.enable_grad():
        at = x0.clone().requires_grad_()
        r = y - problem.operator(at)
        v = r.detach().square().mean((1, 2, 3)).clamp(min=sigma_y**2)
        log = (-0.5 * r.square().sum((1, 2, 3)) / v).sum()
        (gradient,) = torch.autograd.grad(log, at)
    torch.testing.assert_close(step, (1 - ratio) / ratio**0.5 * gradient)


def test_it_does_not_depend_on_the_size_of_the_problem_as_a_constant_scale_does():
    draw = torch.Generator().manual_seed(0)
    x0, y = torch.randn(1, 1, 8, 16, generator=draw), torch.randn(1, 1, 8, 16, generator=draw)
    mask = (torch.rand(8, 16, generator=draw) > 0.5).float()
    steps = {}
    for rule in ("constant", "likelihood"):
        once = posed(Mask(mask), y, shape=(1, 8, 16))
        twice = posed(Mask(mask.repeat(2, 1)), y.repeat(1, 1, 2, 1))
        steps[rule] = [
            data_step(p.y, p, x, lambda v: v, 0.9, rule, 1.0)[:, :, :8]
            for p, x in ((once, x0), (twice, x0.repeat(1, 1, 2, 1)))
        ]
    torch.testing.assert_close(*steps["likelihood"])
    torch.testing.assert_close(steps["constant"][0], steps["constant"][1] * 2**0.5)


def test_images_with_their_own_masks_have_their_own_variance():
    draw = torch.Generator().manual_seed(0)
    x0, y = torch.randn(2, 1, 16, 16, generator=draw), torch.randn(2, 1, 16, 16, generator=draw)
    masks = torch.stack([(torch.rand(1, 16, 16, generator=draw) > share).float() for share in (0.2, 0.8)])

    def of(rows):
        problem = posed(Mask(masks[rows]), y[rows])
        return data_step(problem.y, problem, x0[rows], lambda v: v, 0.9, "likelihood", 1.0)

    torch.testing.assert_close(of([0, 1]), torch.cat([of([0]), of([1])]))


@pytest.mark.parametrize("steps", [20, 100])
@pytest.mark.parametrize("sampler", [DPS, MCG])
def test_it_comes_near_the_posterior_whatever_the_number_of_steps(tune, sampler, steps):
    """Energy scores: within a fifth of those of MMPS, which is exact there."""
    prior = image_gaussian()
    x = prior.prior_sample(60, seed=3) / 2 + 0.5
    place = tune.Domain("image", prior, x, x)

    def energy(name, settings, count):
        found = tune.scores(place, x, tune.KINDS["mask"], name, settings, count, 0, 2)["energy"]
        return sum(found) / len(found)

    exact = energy("mmps", {"iterations": 4}, 50)
    assert energy(sampler.name, {"rule": "likelihood"}, steps) < 1.2 * exact


def test_explicit_scales_keep_their_meaning():
    from test_presets import picked

    for name in ("dps", "mcg"):
        assert picked(name, scale=0.3).rule == "constant"


# ---- the search -------------------------------------------------------------------------------------------------


def test_the_energy_score_prefers_the_truths_distribution(tune):
    draw = torch.Generator().manual_seed(0)
    truth, right = torch.randn(4000, 3, generator=draw), torch.randn(4000, 2, 3, generator=draw)

    def mean(samples):
        return float(tune.energy_score(samples, truth).mean())

    assert mean(right) < min(mean(0.7 * right), mean(1.4 * right), mean(right + 0.5), mean(0 * right))


def table(energy=-0.1, se=0.01, psnr=0.0, energy_paper=-0.1):
    entry = {"sampler": "ddnm", "kind": "mask", "backbone": "b", "steps": 5, "images": 8, "settings": {"eta": 0.5}}
    entry["searched on"] = ["b"]
    for name, change in (("before", energy), ("paper", energy_paper)):
        entry |= {f"energy over {name}": change, f"energy over {name} se": se, f"energy {name}": 1.0}
        entry |= {f"psnr over {name}": psnr, f"psnr over {name} se": 0.1, f"psnr {name}": 20.0}
    return {**entry, "energy tuned": 1 + energy, "psnr tuned": 20.0 + psnr}


def test_settings_are_taken_only_where_they_are_better_and_nowhere_worse(tune):
    def better(found):
        return tune.is_better(found, [5])

    assert not tune.is_better([table()], [5, 100]), "not checked with a hundred steps"
    assert not better([{**table(), "searched on": ["b", "c"]}]), "not checked on c"
    assert better([table()])
    assert better([table(), table(energy=0.005, energy_paper=0.0)])
    assert not better([])
    assert not better([table(se=0.2)]), "within the standard error"
    assert not better([table(), table(energy=0.02)]), "worse than before on one backbone"
    assert not better([table(energy_paper=0.02)]), "worse than the paper's"
    assert not better([table(psnr=-0.2)]), "worse in PSNR"
    assert not better([table(energy=0.0, energy_paper=0.0)])
    assert better([{**table(psnr=-0.2), "backbone": "gaussian8", "searched on": ["gaussian8"]}]), (
        "where exact draws are wanted"
    )


def test_rows_found_take_the_place_of_earlier_ones_and_of_no_others(tune, tmp_path):
    file = tmp_path / "presets.toml"
    hand = Row("ddnm", {"eta": 0.1}, source="by hand")
    old = [
        Row("ddnm", {"eta": e}, ("tuned",), ("mask",), noisy, (), "s", "o", "e")
        for e, noisy in ((0.2, False), (0.3, True))
    ]
    write(file, [hand, *old])
    tune.written(file, [[table()]], 8, [5])
    assert [row.settings["eta"] for row in read(file)] == [0.1, 0.3, 0.5]
    assert read(file)[-1].tuned_on.startswith("8 training images each of b; checked on 8 held-out ones")
    tune.written(file, [[table(psnr=-1.0)]], 8, [5])
    assert [row.settings["eta"] for row in read(file)] == [0.1, 0.3], "no longer better: out"


def test_a_search_goes_on_where_it_was_stopped(tune, tmp_path):
    words = ["--on", "gaussian16x16", "--storage", str(tmp_path / "t.log"), "--samplers", "ddnm", "--kinds", "mask"]
    words += ["--trials", "3", "--train", "3", "--held-out", "6", "--steps", "4", "--check-steps", "4"]
    said: list[str] = []
    assert not tune.main([*words, "--minutes", "0"], said.append)
    assert tune.main(words, said.append)
    size = (tmp_path / "t.log").stat().st_size
    assert tune.main([*words, "--write", str(tmp_path / "p.toml"), "--out", str(tmp_path)], said.append)
    assert (tmp_path / "t.log").read_text().count('"trial_id"') and (tmp_path / "t.log").stat().st_size <= size + 400
    entries = json.loads((tmp_path / "presets.json").read_text())
    assert [e["kind"] for e in entries] == ["mask"] and math.isfinite(entries[0]["energy tuned"])
    assert all(row.sampler == "ddnm" for row in read(tmp_path / "p.toml"))
    assert "| ddnm | mask |" in (tmp_path / "presets.md").read_text() and "| ddnm | mask |" in said[-1]


def test_pictures_are_of_two_parts_and_enough(tune, tmp_path):
    from invdiff.data import chelsea64

    for part, count in (("train", 3), ("val", 2)):
        (tmp_path / part).mkdir()
        for i in range(count):
            chelsea64().save(tmp_path / part / f"{i}.png")
    found = tune.domain(f"gaussian-colour={tmp_path}", 3, 2, 64)
    assert found.train.shape == (3, 3, 8, 8) and found.held_out.shape == (2, 3, 8, 8)
    with pytest.raises(InvdiffError, match=r"must hold 3 pictures in train/ and val/ each, got 2"):
        tune.domain(f"gaussian-colour={tmp_path}", 3, 3, 64)


def test_unknown_words_are_refused(tune, tmp_path):
    for words in (["--samplers", "ddmn"], ["--kinds", "maks"]):
        with pytest.raises(InvdiffError, match=f"no (sampler|kind of task) '{words[1]}'"):
            tune.main(["--storage", str(tmp_path / "t.log"), *words])


def test_the_spaces_are_fields_that_exist_within_their_ranges(tune):
    import optuna

    for name, space in tune.SPACES.items():
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        for _ in range(5):
            tune.sampler_class(name)(**space.propose(study.ask()))
        for kind in space.kinds:
            made = tune.KINDS[kind]
            assert make_operator(made.operator, (3, 64, 64), **made.options).task == made.task
