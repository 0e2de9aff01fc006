"""Fitting a mixture of probabilistic principal component analysers, and keeping it in a file."""

import itertools
import json
import math
import os

import pytest
import torch
from safetensors.torch import save_file

from invdiff.backbones import NoiseSchedule
from invdiff.errors import InvdiffError
from invdiff.priors import GaussianMixtureBackbone
from invdiff.priors import fit as mixture_fit

SHAPE = (1, 4, 5)
D = math.prod(SHAPE)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def truth():
    factors = 0.6 * normal(3, D, 2, seed=1)
    noise = torch.tensor([0.02, 0.05, 0.03]).double()
    return GaussianMixtureBackbone.low_rank([0.5, 0.3, 0.2], normal(3, *SHAPE, seed=2), factors, noise)


@pytest.fixture(scope="module")
def fitted(truth):
    images = truth.prior_sample(6000, seed=3)
    return GaussianMixtureBackbone.fit(images, 3, 2, seed=0, iterations=60, tolerance=1e-9)


def matched(truth, fitted):
    """The component of the fit that is nearest to each of the truth."""
    return torch.cdist(truth.means.flatten(1), fitted.means.flatten(1)).argmin(1)


def test_the_fit_finds_the_mixture_that_made_the_images(truth, fitted):
    order = matched(truth, fitted)
    assert sorted(order.tolist()) == [0, 1, 2]
    torch.testing.assert_close(fitted.weights[order], truth.weights, rtol=0, atol=0.03)
    torch.testing.assert_close(fitted.means[order], truth.means, rtol=0, atol=0.12)
    torch.testing.assert_close(fitted.noise[order], truth.noise, rtol=0.05, atol=0)
    found, wanted = fitted.factors[order], truth.factors
    torch.testing.assert_close(found @ found.mT, wanted @ wanted.mT, rtol=0.08, atol=0.1)


def test_the_fit_is_as_likely_as_the_truth_on_new_images(truth, fitted):
    images = truth.prior_sample(2000, seed=4)
    assert fitted.log_prob(images).mean() > truth.log_prob(images).mean() - 0.05


def test_likelihood_never_falls(truth):
    images = truth.prior_sample(800, seed=5)
    for seed in range(3):
        history = GaussianMixtureBackbone.fit(images, 5, 3, seed=seed, iterations=30, tolerance=0.0).log_likelihoods
        assert len(history) > 3
        assert all(later >= earlier - 1e-9 for earlier, later in itertools.pairwise(history))


def test_reported_likelihood_is_that_of_the_backbone(truth):
    images = truth.prior_sample(300, seed=6)
    backbone = GaussianMixtureBackbone.fit(images, 2, 2, iterations=5)
    assert float(backbone.log_prob(images).mean()) == pytest.approx(backbone.log_likelihoods[-1], rel=1e-9)


def test_one_component_is_probabilistic_principal_component_analysis(truth):
    """Tipping & Bishop: the noise is the mean of the eigenvalues left out."""
    images = truth.prior_sample(500, seed=7)
    backbone = GaussianMixtureBackbone.fit(images, 1, 3)
    flat = images.flatten(1)
    values = torch.linalg.eigvalsh(flat.mT.cov(correction=0))
    assert float(backbone.noise[0]) == pytest.approx(float(values[:-3].mean()))
    spectrum = torch.linalg.eigvalsh(backbone.factors[0].mT @ backbone.factors[0]) + backbone.noise[0]
    torch.testing.assert_close(spectrum, values[-3:])
    torch.testing.assert_close(backbone.means[0], images.mean(0))


def test_a_seed_fixes_the_fit_and_nothing_else_does(truth):
    images = truth.prior_sample(400, seed=8).float()
    torch.manual_seed(1)
    first = GaussianMixtureBackbone.fit(images, 4, 2, seed=0, iterations=4)
    torch.manual_seed(2)
    again = GaussianMixtureBackbone.fit(images, 4, 2, seed=0, iterations=4)
    assert first.dtype == torch.float32
    assert torch.equal(first.means, again.means) and torch.equal(first.factors, again.factors)


def test_the_randomised_way_agrees_with_the_exact_one(truth, monkeypatch):
    images = truth.prior_sample(900, seed=9)
    exact = GaussianMixtureBackbone.fit(images, 2, 2, iterations=8)
    monkeypatch.setattr(mixture_fit, "EXACT_SIDE", 4)
    randomised = GaussianMixtureBackbone.fit(images, 2, 2, iterations=8)
    torch.testing.assert_close(randomised.noise, exact.noise, rtol=1e-3, atol=0)
    assert randomised.log_likelihoods[-1] == pytest.approx(exact.log_likelihoods[-1], abs=1e-2)


def test_components_on_few_images_keep_the_noise_floor():
    """Fewer images than directions, copies among them: the mixture stays a proper density."""
    images = normal(6, *SHAPE).float().repeat(2, 1, 1, 1)
    backbone = GaussianMixtureBackbone.fit(images, 5, 8, noise_floor=1e-3)
    assert float(backbone.noise.min()) >= 0.999e-3
    assert torch.isfinite(backbone.log_prob(images)).all()
    assert torch.isfinite(backbone.predict(images, 0).eps).all()


@pytest.mark.parametrize("kind", ["low-rank", "diagonal", "isotropic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_file_gives_the_same_backbone_back(kind, dtype, tmp_path):
    means = normal(3, *SHAPE).to(dtype)
    schedule = NoiseSchedule.cosine(50)
    if kind == "low-rank":
        factors, noise = normal(3, D, 2, seed=1).to(dtype), torch.tensor([0.1, 0.2, 0.3], dtype=dtype)
        backbone = GaussianMixtureBackbone.low_rank([1.0, 2.0, 3.0], means, factors, noise, schedule, name="faces")
    else:
        covariances = normal(3, *SHAPE, seed=1).square() if kind == "diagonal" else torch.tensor([0.1, 0.2, 0.3])
        backbone = GaussianMixtureBackbone([1.0, 2.0, 3.0], means, covariances.to(dtype), schedule, name="faces")
    path = backbone.save(tmp_path / "mixture.safetensors", metadata={"images": "drawn"})
    assert os.listdir(tmp_path) == ["mixture.safetensors"]
    back = GaussianMixtureBackbone.load(path)
    assert back.name == "faces" and back.dtype == dtype and back.image_shape == SHAPE
    assert torch.equal(back.schedule.alpha_bar, schedule.alpha_bar)
    x_t = normal(2, *SHAPE, seed=3)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    for t in (0, 25, 49):
        torch.testing.assert_close(back.predict(x_t, t).x0, backbone.predict(x_t, t).x0, rtol=tolerance, atol=tolerance)
    other = GaussianMixtureBackbone.load(path, schedule=NoiseSchedule.linear())
    assert other.schedule.T == 1000


def test_half_precision_halves_the_file_and_keeps_three_digits(fitted, tmp_path):
    backbone = GaussianMixtureBackbone.low_rank(
        [0.5, 0.5], normal(2, 3, 16, 16), 0.1 * normal(2, 768, 4), 0.01, NoiseSchedule.linear(10)
    )
    whole, half = tmp_path / "whole.safetensors", tmp_path / "half.safetensors"
    backbone.save(whole)
    backbone.save(half, half=True)
    assert half.stat().st_size < 0.35 * whole.stat().st_size
    back = GaussianMixtureBackbone.load(half)
    assert back.dtype == torch.float64
    torch.testing.assert_close(back.means, backbone.means, rtol=1e-3, atol=1e-4)
    old, new = backbone.factors, back.factors
    torch.testing.assert_close(new @ new.mT, old @ old.mT, rtol=2e-3, atol=1e-3)
    fitted.save(tmp_path / "fit.safetensors")
    assert GaussianMixtureBackbone.load(tmp_path / "fit.safetensors").log_likelihoods == fitted.log_likelihoods


def test_files_of_another_kind_are_refused(tmp_path):
    with pytest.raises(InvdiffError, match=r"path .*none.safetensors"):
        GaussianMixtureBackbone.load(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text(json.dumps({"no": "tensors"}))
    with pytest.raises(InvdiffError, match=r"path .*text.safetensors"):
        GaussianMixtureBackbone.load(tmp_path / "text.safetensors")
    save_file({"weight": torch.zeros(2)}, tmp_path / "net.safetensors")
    with pytest.raises(InvdiffError, match="no saved Gaussian mixture"):
        GaussianMixtureBackbone.load(tmp_path / "net.safetensors")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3, 4), 1, 1), r"images must be .*\(N, C, H, W\).*\(3, 4\)"),
        ((torch.zeros(3, *SHAPE, dtype=torch.uint8), 1, 1), "images must be a floating point.*uint8"),
        ((torch.full((3, *SHAPE), math.nan), 1, 1), "images must be finite"),
        ((torch.zeros(3, *SHAPE), 4, 1), r"images must be at least as many as components \(4\), got 3"),
        ((torch.zeros(3, *SHAPE), 0, 1), "components must be a whole number of at least 1"),
        ((torch.zeros(3, *SHAPE), 1, -1), "rank must be a whole number of at least 0"),
        ((torch.zeros(3, *SHAPE), 1, D), f"rank must be below the {D} numbers"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(InvdiffError, match=message):
        GaussianMixtureBackbone.fit(*arguments)
    with pytest.raises(InvdiffError, match="noise_floor must be above 0"):
        GaussianMixtureBackbone.fit(torch.zeros(3, *SHAPE), 1, 1, noise_floor=0.0)
