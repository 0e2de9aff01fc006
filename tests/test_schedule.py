"""Noise schedules and the clocks of the samplers."""

from __future__ import annotations

import pytest
import torch

from invdiff import InvdiffError, NoiseSchedule, Prediction


@pytest.mark.parametrize("schedule", [NoiseSchedule.linear(), NoiseSchedule.cosine(), NoiseSchedule.scaled_linear()])
def test_levels_fall_from_clean_to_noise(schedule):
    levels = schedule.alpha_bar[:-1]
    assert schedule.alpha_bar[-1] == 1 and schedule.alpha_bar_at(-1) == 1
    assert bool((levels[1:] < levels[:-1]).all()) and 0 < levels[-1] < 0.01
    assert torch.allclose(torch.cumprod(1 - schedule.betas, 0), levels)


@pytest.mark.parametrize("spacing", ["respaced", "leading", "trailing", "quad", "uniform"])
@pytest.mark.parametrize("n", [1, 2, 3, 10, 250, 333, 600, 999, 1000])
def test_any_number_of_times_is_kept(spacing, n):
    full = NoiseSchedule.linear()
    thin = full.respaced(n, spacing)
    if spacing in ("respaced", "leading", "trailing"):
        assert len(thin) == n
    assert torch.equal(thin.alpha_bar[:-1], full.alpha_bar[thin.timesteps])
    assert bool((thin.timesteps.diff() > 0).all())
    assert thin.chain is full
    assert torch.allclose(torch.cumprod(1 - thin.betas, 0), thin.alpha_bar[:-1])


def test_the_clocks_of_the_papers():
    full = NoiseSchedule.linear()
    assert full.respaced(4, "respaced").timesteps.tolist() == [0, 333, 666, 999]
    assert full.respaced(4, "leading").timesteps.tolist() == [0, 250, 500, 750]
    assert full.respaced(4, "trailing").timesteps.tolist() == [249, 499, 749, 999]
    assert full.respaced(4, "uniform").timesteps.tolist() == [0, 249, 499, 749, 999]
    assert full.respaced(10, "quad").timesteps.tolist() == [0, 57, 118, 183, 254, 333, 422, 528, 666, 999]
    assert full.respaced(250, "respaced").timestep(249) == 999


def test_posterior_variance_is_clipped_at_the_clean_end():
    thin = NoiseSchedule.linear().respaced(50)
    assert thin.posterior_variance[0] == thin.posterior_variance[1] > 0
    assert bool((thin.posterior_variance <= thin.betas).all())
    low, high = thin.log_variance_bounds(10)[1], thin.log_variance_bounds(10)[0]
    assert low < high


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NoiseSchedule.from_betas([]), "non-empty"),
        (lambda: NoiseSchedule.from_betas([0.1, 1.5]), "strictly between 0 and 1"),
        (lambda: NoiseSchedule.linear(0), "T must be a whole number from 1 to 1,000,000, got 0"),
        (lambda: NoiseSchedule.linear(10**9), "T must be"),
        (lambda: NoiseSchedule.from_betas("ab"), "betas must be"),
        (lambda: NoiseSchedule.linear().respaced(0), "1 to 1,000"),
        (lambda: NoiseSchedule.linear().respaced(1001), "1 to 1,000"),
        (lambda: NoiseSchedule.linear().respaced(5, "leeding"), "Did you mean 'leading'"),
    ],
)
def test_impossible_schedules_are_refused(make, message):
    with pytest.raises(InvdiffError, match=message):
        make()


def test_nearest_level_and_prediction_identities():
    full = NoiseSchedule.linear()
    assert all(full.nearest(full.alpha_bar_at(t)) == t for t in (0, 1, 500, 999))
    x0, eps, a = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4), full.alpha_bar_at(300)
    x_t = a**0.5 * x0 + (1 - a) ** 0.5 * eps
    assert torch.allclose(Prediction.from_x0(x_t, x0, a).eps, eps, atol=1e-5)
    assert torch.allclose(Prediction.from_eps(x_t, eps, a).x0, x0, atol=1e-5)
