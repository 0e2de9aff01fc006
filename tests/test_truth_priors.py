"""The priors and measurements of the exact-truth benchmark."""

from __future__ import annotations

import math

import pytest
import torch

from invdiff import load_backbone
from invdiff.errors import InvdiffError
from invdiff.operators import make_operator
from invdiff.priors.named import PRIORS, correlated_gaussian, gmm25, image_gaussian, train_denoiser, two_modes16


def random_rows(rows: int, image_shape: tuple[int, ...], seed: int = 0):
    return make_operator("matrix", image_shape, matrix="random", rows=rows, seed=seed)


def test_the_correlated_gaussian_is_as_stated():
    C = correlated_gaussian((1, 1, 8)).covariance
    for i in range(8):
        for j in range(8):
            assert float(C[i, j]) == pytest.approx(0.0625 * 0.8 ** abs(i - j), rel=1e-5)


def test_channels_are_correlated_too():
    C = correlated_gaussian((3, 4, 4)).covariance
    assert float(C[0, 0]) == pytest.approx(0.0625, rel=1e-5) and float(C[0, 16]) == pytest.approx(0.03125, rel=1e-5)


def test_the_image_has_its_standard_deviation():
    backbone = image_gaussian()
    assert backbone.variance.sqrt().flatten().tolist() == pytest.approx([0.25] * 256, rel=1e-5)


@pytest.mark.parametrize("dim", [8, 80])
def test_the_25_modes_are_those_of_the_paper(dim):
    backbone = gmm25(dim)
    means = backbone.means.reshape(25, -1) * 20
    assert sorted({round(v) for v in means.flatten().tolist()}) == [-16, -8, 0, 8, 16]
    assert torch.equal(means[:, 0::2], means[:, :1].expand(-1, dim // 2))
    assert len({tuple(m.tolist()) for m in means[:, :2].round()}) == 25
    assert float(backbone.weights.sum()) == pytest.approx(1, abs=1e-5)
    assert torch.equal(gmm25(dim, seed=0).weights, backbone.weights) and not torch.equal(
        gmm25(dim, seed=1).weights, backbone.weights
    )
    inside = backbone.prior_sample(2000).abs() <= 1
    assert float(inside.double().mean()) > 0.9999


def test_scaling_changes_nothing_but_the_unit():
    small, large = gmm25(8), gmm25(8, scale=1.0)
    operator = random_rows(1, (1, 1, 8))
    y = operator(small.prior_sample(1, seed=3))
    a, b = small.posterior(operator, y, 0.05), large.posterior(operator, 20 * y, 1.0)
    assert torch.allclose(a.weights, b.weights, atol=1e-4)
    assert torch.allclose(20 * a.mean, b.mean, atol=1e-3)


@pytest.mark.parametrize("name", ["gmm25-8", "two-modes16"])
def test_posterior_weights_agree_with_importance_sampling(name):
    backbone = load_backbone(name)
    operator = random_rows(1, backbone.image_shape, seed=2)
    y = operator(backbone.prior_sample(1, seed=4))
    x = backbone.prior_sample(200_000, seed=5)
    likelihood = torch.exp(-0.5 * ((operator(x) - y).flatten(1) / 0.2).square().sum(1)).double()
    expected = (likelihood[:, None] * backbone.responsibilities(x)).sum(0) / likelihood.sum()
    assert torch.allclose(backbone.posterior(operator, y, 0.2).weights, expected, atol=0.01)


def test_seeing_14_of_16_pixels_leaves_both_modes_open():
    backbone = two_modes16()
    operator = make_operator("mask", backbone.image_shape, mask="half", fraction_known=0.875)
    y = operator(backbone.prior_sample(1, seed=0))
    weights = backbone.posterior(operator, y, 0.0).weights
    assert 0.01 < float(weights.min()) < 0.5


@pytest.mark.parametrize("name", PRIORS.names())
def test_every_prior_is_a_backbone_by_name(name):
    backbone = load_backbone(name)
    sample = backbone.prior_sample(50)
    assert sample.shape == (50, *backbone.image_shape) and bool(torch.isfinite(sample).all()) and backbone.name == name
    assert (name == "gmm25-8-original") == (float(sample.abs().quantile(0.9)) > 1)


def test_unknown_names_are_refused():
    with pytest.raises(InvdiffError, match="Did you mean 'gmm25-8'"):
        load_backbone("gmm25-9")
    with pytest.raises(InvdiffError, match="prior must be one of"):
        load_backbone("learned", prior="gmm26")
    with pytest.raises(InvdiffError, match="even"):
        gmm25(7)


def test_the_learned_denoiser_learns_and_leaves_the_global_generator_alone():
    backbone = two_modes16()
    before = torch.get_rng_state()
    network, again = (load_backbone("learned", prior="two-modes16", iterations=200) for _ in range(2))
    trained = [train_denoiser(backbone, 20, batch=64, width=32) for _ in range(2)]
    pairs = zip(trained[0].state_dict().values(), trained[1].state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    x0, noise = (
        backbone.prior_sample(500, seed=8),
        torch.randn(500, 1, 1, 16, generator=torch.Generator().manual_seed(0)),
    )
    a = backbone.schedule.alpha_bar_at(400)
    x_t = math.sqrt(a) * x0 + math.sqrt(1 - a) * noise
    exact, learned = backbone.predict(x_t, 400).eps, network.predict(x_t, 400).eps
    assert float((learned - exact).square().mean()) < 0.2 * float(exact.square().mean())
    assert torch.equal(learned, again.predict(x_t, 400).eps)
    assert torch.equal(torch.get_rng_state(), before)
