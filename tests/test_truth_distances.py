"""The distances of the exact-truth benchmark: against closed forms, and exact samples at the floor."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import linalg, stats
from torch import Tensor

from invdiff.bench.posterior.distances import (
    Directions,
    Reference,
    average,
    classifier_two_sample,
    energy_distance,
    gaussian_w2,
    median_bandwidth,
    mmd,
    sliced_w2,
    total_variation,
)
from invdiff.errors import InvdiffError
from invdiff.metrics import coverage, rank_histogram, ranks, uniformity


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(d: int, seed: int) -> Tensor:
    root = normal(d, d, seed)
    return root @ root.mT / d + 0.1 * torch.eye(d, dtype=torch.float64)


# ---- single distances -------------------------------------------------------------------------------------------


def test_gaussian_w2_of_commuting_covariances():
    a, b = torch.tensor([1.0, 4.0, 0.25]).double(), torch.tensor([4.0, 1.0, 0.0]).double()
    shift = torch.tensor([0.0, 3.0, 0.0]).double()
    expected = math.sqrt(9 + 1 + 1 + 0.25)
    assert gaussian_w2(shift, a.diag(), 0 * shift, b.diag()) == pytest.approx(expected)


def test_gaussian_w2_of_any_covariances():
    a, b, zero = covariance(5, 1), covariance(5, 2), torch.zeros(5)
    root = linalg.sqrtm(b.numpy())
    squared = np.trace(a.numpy() + b.numpy() - 2 * linalg.sqrtm(root @ a.numpy() @ root)).real
    assert gaussian_w2(zero, a, zero, b) == pytest.approx(math.sqrt(squared))
    assert gaussian_w2(zero, a, zero, b) == pytest.approx(gaussian_w2(zero, b, zero, a))
    assert gaussian_w2(zero, a, zero, a) == pytest.approx(0, abs=1e-6)


def test_sliced_w2_in_one_dimension_is_that_of_quantiles():
    x, y = normal(500, 1, 0), 2 * normal(500, 1, 1) + 3
    expected = (x.sort(0).values - y.sort(0).values).square().mean().sqrt()
    assert sliced_w2(x, y) == pytest.approx((float(expected), float(expected)))


def test_sliced_w2_of_a_shift():
    x, shift = normal(300, 4, 0), torch.tensor([2.0, 0.0, 0.0, 0.0]).double()
    mean, most = sliced_w2(x, x + shift, projections=4000)
    assert mean == pytest.approx(2 / math.sqrt(4), rel=0.05)  # E (u, c)^2 = |c|^2 / d
    assert most == pytest.approx(2, rel=0.01)
    assert sliced_w2(x, x) == (0, 0)
    assert sliced_w2(x, x + shift, seed=1) == sliced_w2(x, x + shift, seed=1) != sliced_w2(x, x + shift, seed=2)


def test_mmd_of_two_gaussians():
    h, mu, n = 1.5, 0.8, 4000
    expected = 2 * math.sqrt(h**2 / (h**2 + 2)) * (1 - math.exp(-(mu**2) / (2 * (h**2 + 2))))
    assert mmd(normal(n, 1, 0), normal(n, 1, 1) + mu, h, limit=n) ** 2 == pytest.approx(expected, rel=0.1)
    assert mmd(normal(n, 1, 0), normal(n, 1, 1), h) < 0.05


def test_energy_distance_agrees_with_scipy():
    x, y = normal(1000, 1, 0), 1.5 * normal(1000, 1, 1) + 0.5
    assert energy_distance(x, y) == pytest.approx(stats.energy_distance(x[:, 0], y[:, 0]), abs=0.01)


def test_median_bandwidth_is_the_median_distance():
    x = torch.tensor([[0.0], [1.0], [3.0]])
    assert median_bandwidth(x) == pytest.approx(2)


@pytest.mark.parametrize("mu", [0.0, 1.0, 3.0])
def test_classifier_reaches_the_best_accuracy_for_a_shift(mu):
    x, y = normal(4000, 3, 0), normal(4000, 3, 1)
    y[:, 0] += mu
    assert classifier_two_sample(x, y) == pytest.approx(stats.norm.cdf(mu / 2), abs=0.015)


def test_classifier_reaches_the_best_accuracy_for_a_scale():
    x, y = normal(4000, 1, 0), 2 * normal(4000, 1, 1)
    edge = math.sqrt(8 / 3 * math.log(2))  # where the densities of N(0, 1) and N(0, 4) cross
    inside = [2 * stats.norm.cdf(edge / s) - 1 for s in (1, 2)]
    assert classifier_two_sample(x, y) == pytest.approx((inside[0] + 1 - inside[1]) / 2, abs=0.015)


def test_classifier_sees_variance_beyond_the_leading_directions():
    x, y = normal(1000, 60, 0), normal(1000, 60, 1)
    y[:, 20:] *= 1.3
    assert classifier_two_sample(x, y) > 0.75
    assert classifier_two_sample(x, normal(1000, 60, 2)) == pytest.approx(0.5, abs=0.04)


# ---- calibration ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [19, 39, 2000])
@pytest.mark.parametrize("level", [0.5, 0.9])
def test_exact_samples_cover_as_they_say(n, level):
    samples = normal(3000 * n, 1, n).reshape(-1, n, 1)[: 3000 if n < 100 else 20]
    truth = normal(len(samples) * (1 if n < 100 else 3000), 1, 7).reshape(len(samples), -1, 1)
    assert coverage(samples, truth, level) == pytest.approx(level, abs=0.025)


def test_narrow_samples_cover_too_little():
    expected = 2 * stats.norm.cdf(stats.norm.ppf(0.95) / 2) - 1
    assert coverage(normal(20_000, 1, 0) / 2, normal(20_000, 1, 1), 0.9) == pytest.approx(expected, abs=0.02)


def test_ranks_of_exact_samples_are_uniform_and_of_narrow_ones_are_not():
    truth, samples = normal(2000, 1, 0)[:, 0], normal(2000, 19, 1)
    assert uniformity(rank_histogram(ranks(truth, samples), 19)) > 0.01
    assert uniformity(rank_histogram(ranks(truth, samples / 2), 19)) < 1e-6
    assert uniformity(rank_histogram(ranks(truth, samples + 0.3), 19)) < 1e-6


def test_rank_histogram_counts_every_truth():
    rank = torch.tensor([0, 0, 3, 4, 9])
    assert rank_histogram(rank, 9).tolist() == [2, 0, 0, 1, 1, 0, 0, 0, 0, 1]
    assert rank_histogram(rank, 9, bins=5).tolist() == [2, 1, 1, 0, 1]
    with pytest.raises(InvdiffError, match="bins must divide"):
        rank_histogram(rank, 9, bins=3)


def test_uniformity_is_pearsons_test():
    assert uniformity([10, 20, 30]) == pytest.approx(stats.chi2.sf(10, 2))


def test_total_variation():
    assert total_variation(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])) == 1
    assert total_variation(torch.tensor([0.8, 0.2]), torch.tensor([0.5, 0.5])) == pytest.approx(0.3)


# ---- all together -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference() -> Reference:
    """A Gaussian in 6 dimensions of which 2 are seen with little variance left."""
    scale = torch.tensor([0.1, 0.1, 1.0, 0.8, 0.6, 0.4]).double()
    matrix = torch.eye(6, dtype=torch.float64)[:2]

    def draws(n: int, seed: int) -> Tensor:
        return 2 + normal(n, 6, seed) * scale

    mean = torch.full((6,), 2.0, dtype=torch.float64)
    directions = Directions.of(matrix)
    return Reference(draws(2000, 0), mean, scale.square().diag(), directions, True, draws)


def test_directions_split_the_space():
    directions = Directions.of(torch.tensor([[1.0, 1.0, 0.0], [2.0, 2.0, 0.0]]))
    assert directions.range.shape == (3, 1) and directions.null.shape == (3, 2)
    basis = torch.cat([directions.range, directions.null], 1)
    assert torch.allclose(basis.mT @ basis, torch.eye(3, dtype=torch.float64), atol=1e-12)
    assert directions.range[:, 0].abs().tolist() == pytest.approx([math.sqrt(0.5), math.sqrt(0.5), 0])


def test_exact_samples_score_at_the_floor(reference):
    floor, found = reference.floor(2000, repeats=4), reference.compare(reference.new_draws(2000, 99))
    for key in ("w2", "w2_null", "sw2", "max_sw2", "bias_range", "bias_null"):
        assert found[key] < 2 * floor[key] + 0.01, key
    assert found["mmd"] < 0.06 and found["energy"] < 0.1  # unbiased squares, so 0 or the root of a little
    for key, ideal, slack in (
        ("var_range", 1, 0.1),
        ("var_null", 1, 0.1),
        ("c2st", 0.5, 0.03),
        ("coverage_90", 0.9, 0.01),
    ):
        assert found[key] == pytest.approx(ideal, abs=slack), key


def test_a_known_error_is_found_where_it_is(reference):
    exact = reference.new_draws(20_000, 5)
    narrow = 2 + (exact - 2) / 2
    found = reference.compare(narrow)
    assert found["var_null"] == pytest.approx(0.25, abs=0.02) and found["var_range"] == pytest.approx(0.25, abs=0.02)
    assert found["w2"] == pytest.approx(0.5, abs=0.02)  # all standard deviations halved
    assert found["ratios_null"] == pytest.approx([0.25] * 4, abs=0.02)
    moved = exact.clone()
    moved[:, :2] += 0.1
    found = reference.compare(moved)
    assert found["bias_range"] == pytest.approx(1, abs=0.05) and found["bias_null"] < 0.03


def test_directions_without_variance_carry_no_distribution():
    variances = torch.tensor([0.0, 1.0, 1.0]).double()
    draws = normal(1000, 3, 0) * variances
    directions = Directions.of(torch.eye(3, dtype=torch.float64)[:1])
    reference = Reference(
        draws, torch.zeros(3), variances.diag(), directions, True, lambda n, seed: normal(n, 3, seed) * variances
    )
    off = normal(1000, 3, 3)
    found = reference.compare(off)
    assert "bias_range" not in found and found["c2st"] == pytest.approx(0.5, abs=0.05)
    assert found["w2"] == found["w2_null"]


def test_a_basis_reduces_large_images():
    basis = torch.eye(6, dtype=torch.float64)[:, 2:4]
    inner = Directions(torch.zeros(2, 0).double(), torch.eye(2).double())
    draws = normal(500, 6, 0)
    reference = Reference(draws, torch.zeros(2), torch.eye(2), inner, True, lambda n, s: normal(n, 6, s), basis=basis)
    wrong = normal(2000, 6, 1)
    wrong[:, 0] += 100  # not looked at
    assert reference.compare(wrong)["w2"] < 0.1


def test_average_of_results():
    assert average([{"a": 1.0, "b": [1.0, 2.0]}, {"a": 3.0, "b": [3.0, 4.0]}]) == {"a": 2.0, "b": [2.0, 3.0]}


@pytest.mark.parametrize("bad", [torch.zeros(3), torch.zeros(1, 2), torch.zeros(4, 2, dtype=torch.long)])
def test_samples_of_the_wrong_kind_are_refused(bad):
    with pytest.raises(InvdiffError, match="samples must be"):
        sliced_w2(bad, torch.zeros(4, 2))


def test_samples_of_different_dimensions_are_refused():
    with pytest.raises(InvdiffError, match="as many columns"):
        mmd(torch.zeros(4, 2), torch.zeros(4, 3), 1.0)
