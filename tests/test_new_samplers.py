"""CoPaint, RED-diff and DAPS beyond their recordings: what they promise by default, image by image, and what they cost."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from conftest import quiet_solve

import invdiff as iv
from invdiff import NoiseSchedule
from invdiff.backbones.base import Prediction
from invdiff.priors.named import correlated_gaussian
from invdiff.problem import build_problem

HALF = iv.Mask(iv.make_mask("half", 16))
SMALL = {"copaint": {"steps": 6}, "reddiff": {"steps": 6}, "daps": {"steps": 5}}


class Nonsense(iv.samplers.base.Backbone):
    """A backbone whose estimate is so steep that every gradient step overshoots."""

    def __init__(self, inner: iv.GaussianBackbone, gain: float) -> None:
        self.inner, self.gain = inner, gain
        self.schedule, self.image_shape = inner.schedule, inner.image_shape

    def predict(self, x_t, t):
        x0 = torch.tanh(self.gain * self.inner.on(self.schedule).predict(x_t, t).x0)
        return Prediction.from_x0(x_t, x0, self.schedule.alpha_bar_at(int(t)))


@pytest.mark.parametrize("sampler", SMALL)
def test_an_image_does_not_depend_on_its_batch(sampler, gaussian, clean):
    A = iv.SuperResolution(2, "box")
    y = A(clean)
    y[1] *= 3  # one hard image must not slow the others down
    options = {"backbone": gaussian, "seed": [1, 2, 3, 4], **SMALL[sampler]}
    together = quiet_solve(A, y, sampler, batch_size=4, **options).x
    alone = quiet_solve(A, y, sampler, batch_size=1, **options).x
    assert torch.allclose(together, alone, atol=2e-5)


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        ("copaint", {"steps": 6, "backtrack": False}),
        ("copaint", {"steps": 12, "travel_length": 3, "travel_repeat": 2, "backtrack": False}),
        ("copaint", {"steps": 12, "visits": 5, "iterations": 1, "backtrack": False}),
        ("reddiff", {"steps": 7}),
        ("daps", {"steps": 6}),
        (
            "daps",
            {"steps": 6, "mcmc": "langevin", "mcmc_steps": 3, "prior": "score", "tau": 0.05, "times": "continuous"},
        ),
    ],
)
def test_costs_are_known_before_a_run(sampler, options, gaussian, clean):
    s = quiet_solve(HALF, clean[:1], sampler, backbone=gaussian, **options)
    cost = iv.samplers.sampler_class(sampler)(**options).cost(gaussian.schedule)
    assert (s.nfe, s.vjps) == (cost.calls, cost.vjps)
    assert len(s.timesteps) == s.nfe


def test_the_papers_costs():
    full, fast = iv.CoPaint(ending="state"), iv.CoPaint(ending="state", visits=100, iterations=1, lr_growth=1.03)
    travel = iv.CoPaint(ending="state", travel_repeat=2)
    schedule = NoiseSchedule.linear()
    costs = [(c.calls, c.vjps) for c in (m.cost(schedule) for m in (full, fast, travel))]
    assert costs == [
        (1245, 498),
        (297, 99),
        (2565 - 24, 1026),
    ]  # their code asks once more before each of 24 travels, for nothing
    assert iv.REDDiff().cost(schedule).vjps == iv.DAPS().cost(schedule).vjps == 0
    assert iv.DAPS(times="continuous").cost(schedule).calls == 1000


def test_copaints_back_tracking_ends_and_is_counted(gaussian, clean):
    """On a backbone where no step helps, the trials are used up, the state is left alone, and the run goes on."""
    method = iv.CoPaint(steps=4, trials=3, lr=50.0)
    s = quiet_solve(HALF, clean[:1], method, backbone=Nonsense(gaussian, 200.0))
    cost = method.cost(gaussian.schedule)
    assert cost.calls < s.nfe <= cost.calls + cost.trials
    assert torch.isfinite(s.x).all()


def test_copaint_agrees_with_y_better_than_without_its_optimisation(gaussian, clean):
    A = iv.SuperResolution(2, "box")
    options = {"backbone": gaussian, "steps": 30, "paste_known": False, "smart_lr": False}
    misfit = [
        float((A(quiet_solve(A, A(clean), "copaint", lr=lr, **options).x) - A(clean)).square().mean())
        for lr in (0.05, 0.0)
    ]
    assert misfit[0] < 0.3 * misfit[1]


def test_reddiff_returns_the_last_image_or_the_one_before(gaussian, clean):
    after, before = (
        quiet_solve(HALF, clean[:1], iv.REDDiff(steps=8, ending=e), backbone=gaussian).x for e in ("after", "before")
    )
    longest = (after - before).abs().max()
    assert 0 < longest < 3 * 0.1  # one step of Adam, a few lr at most


def test_reddiff_restores(gaussian, clean):
    A = iv.SuperResolution(2, "nearest")
    s = quiet_solve(A, A(clean), iv.REDDiff(steps=100), backbone=gaussian)
    assert (s.x - clean).square().mean() < 0.6 * (A.pinv(A(clean)) - clean).square().mean()


class Rounded(iv.samplers.base.Backbone):
    """What another machine or batch says: the same but for the last digits."""

    def __init__(self, inner: iv.GaussianBackbone) -> None:
        self.inner = inner
        self.schedule, self.image_shape = inner.schedule, inner.image_shape

    def predict(self, x_t, t):
        exact = self.inner.on(self.schedule).predict(x_t, t)
        draw = torch.Generator().manual_seed(int(t))
        digits = 1e-7 * torch.randn(2, *x_t.shape, generator=draw)
        return Prediction(exact.x0 * (1 + digits[0]), exact.eps + digits[1])


def test_adam_does_not_magnify_the_last_digits(gaussian, clean):
    """Where the measurement says nothing, a first step of Adam is as long whatever the gradient: it must not be of rounding."""
    A = iv.SuperResolution(4, "nearest")
    one, other = (quiet_solve(A, A(clean), iv.REDDiff(steps=12), backbone=b).x for b in (gaussian, Rounded(gaussian)))
    assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("sigma_y", [0.0, 0.2])
def test_daps_exact_draw_is_the_gaussian_that_langevin_walks_in(sigma_y):
    """Mean and covariance of N(y; A q, v) N(q; x, s^2), against the dense formula."""
    prior = correlated_gaussian().double()
    A = iv.MatrixOperator(torch.randn(3, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64) / 3)
    y = A(prior.prior_sample(1, seed=1))
    problem = build_problem(A, y.expand(20_000, *y.shape[1:]), sigma_y, prior, (-1, 1))
    x = torch.randn(1, 1, 1, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64).expand(
        20_000, -1, -1, -1
    )
    n = torch.randn(20_000, 1, 1, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    long = iv.DAPS(lr=1e3)  # until nothing is left of where the walk began
    q = long._drawn(x, 0.7, problem, lambda role: n).flatten(1)
    M = A.dense((1, 1, 8)).double()
    gain = 0.49 * M.mT @ torch.linalg.inv(0.49 * M @ M.mT + sigma_y**2 * torch.eye(3))
    mean = x[0].flatten() + gain @ (y.flatten() - M @ x[0].flatten())
    assert torch.allclose(q.mean(0), mean, atol=0.03)
    assert torch.allclose(torch.cov(q.mT), 0.49 * (torch.eye(8) - gain @ M), atol=0.03)


def test_langevin_reaches_what_is_drawn_exactly():
    prior = correlated_gaussian().double()
    A = iv.Mask(torch.tensor([[1.0] * 4 + [0.0] * 4]))
    y = prior.prior_sample(1, seed=1)
    problem = build_problem(A, y.expand(2000, -1, -1, -1), 0.2, prior, (-1, 1))
    x = torch.zeros(2000, 1, 1, 8, dtype=torch.float64)
    walk = iv.DAPS(mcmc="langevin", mcmc_steps=400, lr=2e-3, lr_min_ratio=1.0)
    draws = torch.randn(401, 2000, 1, 1, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q = walk._walked(x, 0.3, None, problem, lambda role: draws[int(role.split()[-1])]).flatten(1)
    exact = iv.DAPS(lr=1e3)._drawn(x, 0.3, problem, lambda role: draws[400]).flatten(1)
    assert torch.allclose(q.mean(0), exact.mean(0), atol=0.04)
    assert torch.allclose(q.var(0), exact.var(0), rtol=0.2)


def test_what_is_drawn_spreads_no_further_than_a_walk_in_unknown_directions():
    prior = correlated_gaussian().double()
    A = iv.Mask(torch.tensor([[1.0] * 4 + [0.0] * 4]))
    y = prior.prior_sample(1, seed=1)
    problem = build_problem(A, y.expand(2000, -1, -1, -1), 0.2, prior, (-1, 1))
    x = torch.zeros(2000, 1, 1, 8, dtype=torch.float64)
    draws = torch.randn(101, 2000, 1, 1, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q = iv.DAPS(mcmc="langevin")._walked(x, 3.0, None, problem, lambda role: draws[int(role.split()[-1])]).flatten(1)
    drawn = iv.DAPS()._drawn(x, 3.0, problem, lambda role: draws[100]).flatten(1)
    assert torch.allclose(q[:, 4:].var(0), drawn[:, 4:].var(0), rtol=0.15)
    assert drawn[:, 4:].std() < 0.2


def test_daps_ends_with_the_right_spread():
    """With all of s_k for its spread and the next level's noise on top, what is not seen had twice its variance."""
    prior = correlated_gaussian().double()
    A = iv.Mask(torch.tensor([[1.0] * 4 + [0.0] * 4]))
    y = A(prior.prior_sample(1, seed=1))
    x = quiet_solve(A, y, iv.DAPS(steps=50), backbone=prior, n_samples=500, batch_size=500).x.flatten(1)[:, 4:]
    exact = prior.posterior(A, y, 0.0).covariance[4:, 4:]
    assert 0.75 < float(torch.cov(x.double().mT).trace() / exact.trace()) < 1.25


def test_daps_follows_the_noise_of_y(gaussian):
    """The misfit comes near sigma_y where the paper's fixed tau makes it fit the noise."""
    x = gaussian.prior_sample(8, seed=3).float()
    A = iv.Mask(iv.make_mask("half", 16))
    y = A.measure(x, 0.3, seed=0)
    error = [
        float(
            (quiet_solve(A, y, iv.DAPS(steps=30, **o), backbone=gaussian, sigma_y=0.3).x - x)[:, :, :, :8]
            .square()
            .mean()
        )
        for o in ({}, {"tau": 0.01})
    ]
    assert error[0] < 0.7 * error[1]


@pytest.mark.parametrize("schedule", [NoiseSchedule.linear(), NoiseSchedule.cosine()])
def test_times_between_the_tables_lie_where_the_levels_say(schedule):
    levels = schedule.alpha_bar[torch.tensor([5, 100, 500, 900])]
    between = (levels[:-1] * levels[1:]).sqrt()
    found = schedule.at_levels(torch.cat([levels, between, levels[:1]]))
    assert found.T == 7 and torch.equal(found.alpha_bar[:-1], found.alpha_bar[:-1].sort(descending=True).values)
    assert bool((found.timesteps.diff() > 0).all())
    exact = found.timesteps[torch.isin(found.alpha_bar[:-1], levels)]
    assert (
        exact - torch.tensor([5.0, 100, 500, 900])
    ).abs().max() < 3  # the discrete betas are off the continuous process by this


def test_a_network_is_asked_at_times_in_between_only_on_demand(clean):
    asked = []

    def network(x, t):
        asked.append(t)
        return torch.zeros_like(x)

    backbone = iv.NetworkBackbone(network, image_shape=(3, 16, 16), precision="float32")
    for times, whole in (("discrete", True), ("continuous", False)):
        asked.clear()
        quiet_solve(HALF, clean[:1], iv.DAPS(steps=4, times=times), backbone=backbone)
        assert all(t.dtype == (torch.long if whole else torch.float32) for t in asked)


def test_options_are_those_of_the_fields():
    for cls in (iv.CoPaint, iv.REDDiff, iv.DAPS, iv.MMPS, iv.TMPD):
        assert all(f.metadata["help"] for f in dataclasses.fields(cls))
