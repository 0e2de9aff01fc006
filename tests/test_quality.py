"""The measurements of time to quality: what they interpolate, wrap, drop and go on with. No time is asserted."""

import json
import math
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from invdiff import Mask, NetworkBackbone, load_backbone
from invdiff.priors.named import PRIORS

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def folder():
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def truth(folder):
    import quality_truth

    return quality_truth


@pytest.fixture(scope="module")
def peers(folder):
    import quality_peers

    return quality_peers


@pytest.fixture(scope="module")
def quality(folder):
    import quality

    return quality


# ---- costs to a target ------------------------------------------------------------------------------------------


def test_cost_to_reach_is_interpolated_in_logarithms(truth):
    points = [(10.0, 0.4), (40.0, 0.1)]  # distance = 4 / cost
    assert truth.cost_to_reach(points, 0.2) == pytest.approx(20)
    assert truth.cost_to_reach(points[::-1], 0.1) == pytest.approx(40)


def test_cost_to_reach_does_not_extrapolate(truth):
    assert truth.cost_to_reach([(10.0, 0.04), (20.0, 0.03)], 0.05) == 10
    assert truth.cost_to_reach([(10.0, 0.4), (20.0, 0.3)], 0.05) is None
    assert truth.cost_to_reach([], 0.05) is None


def test_the_first_crossing_counts(truth):
    assert truth.cost_to_reach([(1.0, 0.5), (2.0, 0.05), (4.0, 0.2), (8.0, 0.01)], 0.05) == 2


def test_the_cheapest_setting_counts(truth):
    rows = [
        {"setting": "a", "seconds": 3.0, "distance": 0.01},
        {"setting": "b", "seconds": 1.0, "distance": 0.2},
        {"setting": "b", "seconds": 2.0, "distance": 0.05},
        {"setting": "c", "seconds": 0.5, "distance": None},
    ]
    least, row = truth.reached(rows, 0.05, "seconds")
    assert least == 2 and row["setting"] == "b"
    assert truth.reached(rows, 0.001, "seconds") is None


def test_the_target_is_above_the_floor(truth):
    assert truth.targets(0.02) == (0.05, 0.03)
    assert truth.targets(0.2) == pytest.approx((0.21, 0.21))


# ---- which settings go on ---------------------------------------------------------------------------------------


def swept(truth, distances, budgets=(1, 2, 4)):
    """The (setting, steps) that are run where `distances[setting]` gives the distance for so many steps."""
    ran = []

    def run(setting, steps):
        ran.append((setting["k"], steps))
        return {"distance": distances[setting["k"]](steps), "seconds": 0.0, "forward_equivalents": steps}

    method = truth.Method("x", "y", tuple({"k": k} for k in range(len(distances))), budgets, None)
    truth.sweep(method, 0.1, budgets, run)
    return ran


def test_the_better_half_goes_on(truth):
    ran = swept(truth, [lambda n, k=k: (1 + k) / n for k in range(8)])
    assert [len([1 for _, n in ran if n == steps]) for steps in (1, 2, 4)] == [8, 4, 2]
    assert {k for k, n in ran if n == 4} == {0, 1}


def test_what_does_not_get_nearer_stops(truth):
    assert (0, 4) not in swept(truth, [lambda n: 0.5, lambda n: 0.6])
    assert (0, 4) in swept(truth, [lambda n: 0.15, lambda n: 0.6])


def test_what_costs_least_goes_on_too(truth):
    ran = []

    def run(setting, steps):
        ran.append((setting["k"], steps))
        return {
            "distance": (8 - setting["k"]) / steps,
            "seconds": 0.0,
            "forward_equivalents": steps * (1 + setting["k"]),
        }

    truth.sweep(truth.Method("x", "y", tuple({"k": k} for k in range(4)), (1, 2), None), 0.1, (1, 2), run)
    assert (0, 2) in ran and (3, 2) in ran


def test_what_has_arrived_stops_and_what_takes_more_is_dropped(truth):
    ran = swept(truth, [lambda n: 0.05, lambda n: 0.5])
    assert ran == [(0, 1), (1, 1)]


def test_a_diverged_setting_is_the_worst(truth):
    ran = swept(truth, [lambda n: None, lambda n: 0.3 / n, lambda n: 0.4 / n, lambda n: 0.5 / n, lambda n: 0.6 / n])
    assert (0, 2) not in ran and (1, 2) in ran


# ---- what is measured -------------------------------------------------------------------------------------------


def test_exact_draws_score_the_floor(truth):
    for task in (truth.quick()[0], truth.Task("two", "two-modes16", lambda: Mask(torch.ones(1, 16)), 0.1, 2, 300)):
        exact = torch.cat([p.sample(task.samples, seed=7) for p in task.posteriors])
        assert task.distance(exact) < 2 * task.floor(3)
        assert task.distance(exact + 0.2) > 4 * task.floor(3)


def test_a_cell_of_ours_counts_calls_and_products(truth):
    task = truth.Task("t", "gaussian8", truth.half(4), 0.1, samples=50)
    mmps = next(m for m in truth.our_methods() if m.name == "mmps")
    row = truth.run_cell(task, mmps, mmps.settings[0], 4)
    assert (row["calls"], row["vjps"], row["forward_equivalents"]) == (4, 8, 16)
    assert 0 < row["distance"] < 10


def test_every_setting_of_a_method_has_a_name_of_its_own(truth):
    for method in (*truth.our_methods(), *truth.their_methods()):
        assert len({truth.words(s) for s in method.settings}) == len(method.settings), method.name


def test_what_fails_is_a_row(truth):
    task = truth.quick()[0]
    row = truth.run_cell(task, next(truth.our_methods()), {"integrator": "nonesuch"}, 4)
    assert "nonesuch" in row["error"] and "distance" not in row


# ---- other libraries' models ------------------------------------------------------------------------------------


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x, t):
        return self.layer(x) * (1 + t.float()[:, None, None, None] / 1000)


def backbones():
    torch.manual_seed(0)
    return [
        PRIORS["gaussian8"](),
        PRIORS["gmm25-8"](),
        NetworkBackbone(Small(), image_shape=(3, 8, 8), precision="float32"),
    ]


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("t", [3, 400, 900])
def test_the_wrapped_model_is_ours(peers, number, t):
    backbone = backbones()[number]
    model = peers.PeerModel(backbone)
    level = backbone.schedule.alpha_bar_at(t)
    x = torch.randn(5, *backbone.image_shape, generator=torch.Generator().manual_seed(1))
    ours = backbone.predict(x, t).x0.detach()
    theirs = model(x / level**0.5, ((1 - level) / level) ** 0.5).detach()
    assert float((theirs - ours).abs().max()) < 1e-5 * max(1.0, float(ours.abs().max()))
    assert model.count() == (1, 0)


def test_products_are_counted_whoever_asks(peers):
    model = peers.PeerModel(PRIORS["gaussian8"]())
    x = torch.randn(3, 1, 1, 8, requires_grad=True)
    out = model(x, 0.5)
    for _ in range(2):
        torch.autograd.grad(out, x, torch.ones_like(out), retain_graph=True)
    _, pullback = torch.func.vjp(lambda z: model(z, 0.5), x.detach())
    pullback(torch.ones(3, 1, 1, 8))
    assert model.count() == (2, 3)


@pytest.mark.parametrize("library", ["diffusers", "deepinv", "azula"])
@pytest.mark.parametrize("masked", [True, False])
def test_every_method_of_a_library_runs(peers, truth, library, masked):
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    prior = PRIORS["gaussian8"]()
    operator = (truth.half(4) if masked else truth.directions(4))()
    y = operator.measure(prior.prior_sample(1, seed=0), 0.1, seed=0).repeat_interleave(6, 0)
    for method in peers.peer_methods():
        if method.library == library and (masked or not method.masks_only):
            model = peers.PeerModel(prior)
            torch.manual_seed(0)
            x = method.make(peers.Job(model, operator, y, 0.1, (1, 1, 8)), 6, **method.settings[0])()
            assert tuple(x.shape) == (6, 1, 1, 8), method.name
            assert model.calls >= 6, method.name


@pytest.mark.skipif(find_spec("azula") is None, reason="azula is not installed")
def test_their_denoiser_says_what_ours_says(peers):
    prior = PRIORS["gaussian8"]()
    job = peers.Job(peers.PeerModel(prior), Mask(torch.ones(1, 8)), torch.zeros(4, 1, 1, 8), 0.1, (1, 1, 8))
    clean = peers._azula_denoiser(job, "cosine")
    t = torch.tensor(0.4)
    alpha, sigma = clean.schedule(t)
    x = torch.randn(4, 1, 1, 8)
    level = float(alpha**2 / (alpha**2 + sigma**2))
    view = prior.on(prior.schedule.at_levels(torch.tensor([level], dtype=torch.float64)))
    ours = view.predict(x / alpha * level**0.5, 0).x0
    torch.testing.assert_close(clean(x, t).mean, ours, rtol=0, atol=1e-5)


@pytest.mark.skipif(find_spec("deepinv") is None, reason="deepinv is not installed")
@pytest.mark.parametrize("masked", [True, False])
def test_their_operator_measures_what_ours_measures(peers, truth, masked):
    operator = (truth.half(4) if masked else truth.directions(4))()
    x = torch.rand(3, 1, 1, 8) * 2 - 1
    job = peers.Job(peers.PeerModel(PRIORS["gaussian8"]()), operator, operator(x), 0.0, (1, 1, 8))
    physics, y = peers._physics(job, 0.0)
    torch.testing.assert_close(physics.A((x + 1) / 2), y, rtol=0, atol=1e-5)


# ---- resuming ---------------------------------------------------------------------------------------------------


def test_a_cell_is_written_at_once_and_not_made_again(quality, tmp_path):
    path, made = tmp_path / "quality.json", []
    store = quality.Store(path)
    store.cell("truth", "a", lambda: made.append(1) or {"distance": 0.5})
    assert json.loads(path.read_text())["truth"]["a"] == {"distance": 0.5}
    again = quality.Store(path)
    assert again.cell("truth", "a", lambda: made.append(2) or {}) == {"distance": 0.5}
    assert made == [1]


def test_the_clock_stops_before_a_cell_not_in_it(quality, tmp_path):
    store = quality.Store(tmp_path / "quality.json", minutes=0)
    with pytest.raises(quality.Enough):
        store.cell("truth", "a", dict)
    store.part("truth")["b"] = {"distance": 1.0}
    assert store.cell("truth", "b", dict) == {"distance": 1.0}


# ---- pictures ---------------------------------------------------------------------------------------------------


def test_a_kernel_distance_tells_sets_apart(folder):
    import numpy as np
    import quality_images

    generator = np.random.default_rng(0)
    a, b, c = (generator.normal(size=(60, 5)) + shift for shift in (0, 0, 1))
    same, error = quality_images.kernel_with_error(a, b)
    other, _ = quality_images.kernel_with_error(c, b)
    assert abs(same) < 4 * error + 0.05 and other > 5 * abs(same) and math.isfinite(error)


@pytest.mark.parametrize("judge", ["photos", "cats64"])
def test_features_of_the_embedded_networks(folder, judge):
    import quality_images

    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = quality_images.features(judge, x)
    assert found.shape[0] == 2 and (found.std(0) > 0).mean() > 0.9
    assert load_backbone(judge) is not None


def test_a_restoration_depends_on_its_picture_only(folder):
    import quality_images as images

    method = next(m for m in images.methods() if m.label.startswith("ddnm, dpm++2m"))
    short = images.Method(method.label, method.sampler, {**method.options, "steps": 2})
    truth = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    both, cost = images.restore(short, images.SETS[0], images.STROKES, truth, 0)
    alone, _ = images.restore(short, images.SETS[0], images.STROKES, truth[1:], 1)
    assert cost["calls"] == 2
    torch.testing.assert_close(both[1:], alone, rtol=0, atol=0.02)


def test_every_sampler_of_ours_is_in_the_truth_part(truth):
    from invdiff.samplers import sampler_class, sampler_names

    own = {n for n in sampler_names() if sampler_class(n).__module__.startswith("invdiff.")}
    assert own - {"unconditional", "mask_shift"} <= {m.name for m in truth.our_methods()}
