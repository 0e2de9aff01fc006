"""Particles: resampling, their weights, what is exact in the limit, and what stays together."""

from __future__ import annotations

import math

import pytest
import torch

import invdiff as iv
from invdiff.bench.posterior.distances import gaussian_w2, total_variation
from invdiff.errors import InvdiffError, InvdiffWarning
from invdiff.noise import NoiseSource
from invdiff.operators.matrix import random_matrix
from invdiff.priors.named import correlated_gaussian, gmm25, two_modes16
from invdiff.samplers.local_gaussian import LocalGaussian, Seen
from invdiff.samplers.particles import effective_sample_size, multinomial, survivors, systematic

NAMES = ("tds", "mcg-diff", "fps-smc")


def few(name: str, **options):
    return {"sampler": name, "steps": 6, "particles": 4, "progress": False, "value_range": (-1, 1), **options}


@pytest.fixture(scope="module")
def gaussian():
    backbone = correlated_gaussian()
    x = backbone.prior_sample(2, seed=1)
    A = iv.Mask(torch.tensor([[1.0, 1, 1, 1, 0, 0, 0, 0]]))
    return backbone, A, x


# ---- resampling -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("u", [0.0, 0.3, 0.999])
def test_systematic_resampling_takes_every_particle_as_often_as_its_weight_says(u):
    weights = torch.tensor([[0.4, 0.06, 0.3, 0.24], [0.0, 0.0, 1.0, 0.0]], dtype=torch.float64)
    counts = torch.stack([torch.bincount(row, minlength=4) for row in systematic(weights, torch.full((2, 1), u))])
    assert bool(((counts - 4 * weights).abs() < 1).all()) and counts[1].tolist() == [0, 0, 4, 0]


@pytest.mark.parametrize("resample", [systematic, multinomial])
def test_resampling_is_unbiased(resample):
    weights = torch.tensor([0.45, 0.05, 0.3, 0.2], dtype=torch.float64).expand(4000, 4)
    u = torch.rand(4000, 1 if resample is systematic else 4, generator=torch.Generator().manual_seed(0))
    found = torch.bincount(resample(weights, u.double()).flatten(), minlength=4) / 16000
    assert float((found - weights[0]).abs().max()) < 0.02


def test_effective_sample_size_is_one_for_one_heavy_particle_and_all_for_equal_ones():
    log_weights = torch.tensor([[0.0, -1e3, -1e3], [5.0, 5.0, 5.0]], dtype=torch.float64)
    assert torch.allclose(effective_sample_size(log_weights), torch.tensor([1.0, 3.0], dtype=torch.float64))


def test_uniform_numbers_belong_to_the_image_the_step_and_the_role():
    many = NoiseSource([(s, j) for s in range(3) for j in range(4)], (1, 1, 8))
    one = NoiseSource([(2, j) for j in range(4)], (1, 1, 8))
    drawn = many.uniform(5, "resample", 4, 2)
    assert drawn.shape == (3, 2) and drawn.dtype == torch.float64
    assert torch.equal(drawn[2], one.uniform(5, "resample", 4, 2)[0])
    assert not torch.equal(drawn, many.uniform(6, "resample", 4, 2))
    assert not torch.equal(drawn, many.uniform(5, "draw", 4, 2))


# ---- what stays together ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_depends_neither_on_the_batch_nor_on_the_other_images(gaussian, name):
    backbone, A, x = gaussian
    y = A(x)
    together = iv.solve(A, y, backbone=backbone, sigma_y=0.1, n_samples=6, seed=[3, 4], **few(name))
    for batch_size in (1, 5, 16):
        again = iv.solve(
            A, y, backbone=backbone, sigma_y=0.1, n_samples=6, seed=[3, 4], batch_size=batch_size, **few(name)
        )
        assert torch.allclose(again.x, together.x, atol=1e-5)
    alone = iv.solve(A, y[1:], backbone=backbone, sigma_y=0.1, n_samples=6, seed=4, **few(name))
    assert torch.allclose(alone.x, together.x[6:], atol=1e-5)
    assert torch.equal(alone.diagnostics["ancestors"], together.diagnostics["ancestors"][1:])


@pytest.mark.parametrize("name", NAMES)
def test_the_particles_of_an_image_and_what_they_cost_are_told(gaussian, name):
    backbone, A, x = gaussian
    asked = []

    class Counted(iv.GaussianBackbone):
        def predict(self, x_t, t):
            asked.append(len(x_t))
            return super().predict(x_t, t)

    counted = Counted(torch.zeros(1, 1, 8), backbone.covariance)
    s = iv.solve(A, A(x[:1]), backbone=counted, sigma_y=0.1, n_samples=6, **few(name))
    assert s.x.shape == (6, 1, 1, 8)  # from two populations of four
    assert s.diagnostics["ess"].shape[:2] == (1, 2) and s.diagnostics["log_evidence"].shape == (1, 2)
    assert s.diagnostics["ancestors"].shape[-1] == 4 and s.diagnostics["log_weights"].shape == (1, 8)
    assert float(s.diagnostics["log_weights"].exp().sum()) == pytest.approx(1)
    assert bool((s.diagnostics["ess"] <= 4 + 1e-9).all()) and bool((s.diagnostics["ess"] >= 1 - 1e-9).all())
    assert s.nfe == math.ceil(sum(asked) / 6)
    one = iv.solve(A, A(x[:1]), backbone=counted, sigma_y=0.1, **few(name))
    assert one.nfe == iv.samplers.sampler_class(name)(steps=6, particles=4).network_calls(backbone.schedule)


def test_survivors_are_the_first_particles_that_have_descendants():
    own, first, halves = torch.tensor([[0, 1, 2, 3], [0, 0, 0, 0], [1, 1, 3, 3]])
    pairs = torch.tensor([0, 1, 0, 1])
    runs = torch.stack([torch.stack(run) for run in ((own, own), (halves, own), (halves, pairs), (own, first))])
    assert survivors(runs).tolist() == [4, 2, 1, 1]


def test_particles_that_all_descend_from_one_say_so(recwarn):
    image = correlated_gaussian((1, 1, 64))
    A = iv.Mask((torch.arange(64) < 60).float()[None])
    y = A(image.prior_sample(1, seed=0))
    with pytest.warns(InvdiffWarning, match="descend from one"):
        s = iv.solve(A, y, backbone=image, n_samples=8, **few("tds", twisting="scalar"))
    assert s.diagnostics["survivors"].tolist() == [[1, 1]]
    recwarn.clear()
    s = iv.solve(A, y, backbone=image, n_samples=8, **few("tds", twisting="moments"))
    assert int(s.diagnostics["survivors"].min()) == 4 and not recwarn.list


def test_products_are_counted_for_the_problem(gaussian):
    backbone, A, x = gaussian
    products = []
    grad = torch.autograd.grad
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.autograd, "grad", lambda out, *a, **k: products.append(len(out)) or grad(out, *a, **k))
        for operator in (A, iv.MatrixOperator(torch.ones(1, 8) / 3)):
            products.clear()
            s = iv.solve(operator, operator(x[:1]), backbone=backbone, sigma_y=0.1, n_samples=4, **few("tds"))
            assert s.vjps == sum(products) / 4


def test_the_first_of_many_draws_are_draws_too(gaussian):
    backbone, A, x = gaussian
    many = iv.solve(A, A(x[:1]), backbone=backbone, sigma_y=0.1, n_samples=4, **few("tds"))
    few_ = iv.solve(A, A(x[:1]), backbone=backbone, sigma_y=0.1, n_samples=2, **few("tds"))
    assert torch.allclose(few_.x, many.x[:2], atol=1e-6)


def test_particles_themselves_come_with_their_weights(gaussian):
    backbone, A, x = gaussian
    s = iv.solve(A, A(x[:1]), backbone=backbone, sigma_y=0.1, n_samples=4, **few("tds", result="particles"))
    drawn = iv.solve(A, A(x[:1]), backbone=backbone, sigma_y=0.1, n_samples=4, **few("tds"))
    kept = {tuple(row) for row in s.x.flatten(1).tolist()}
    assert all(tuple(row) in kept for row in drawn.x.flatten(1).tolist())
    assert s.diagnostics["log_weights"].shape == (1, 4)
    with pytest.raises(InvdiffError, match=r"n_samples must be a multiple of particles=4 .*, got 6"):
        iv.solve(A, A(x[:1]), backbone=backbone, sigma_y=0.1, n_samples=6, **few("tds", result="particles"))


def test_a_variance_that_the_authors_have_not_is_refused():
    with pytest.raises(InvdiffError, match=r"var_type must be 1, 2, 3, 4 or 6, got 5"):
        iv.TDS(twisting="paper", var_type=5)


@pytest.mark.parametrize("name", NAMES)
def test_without_noise_the_measurement_comes_back(gaussian, name):
    backbone, A, x = gaussian
    matrix = iv.MatrixOperator(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)))
    for operator in (A, matrix):
        s = iv.solve(operator, operator(x), backbone=backbone, n_samples=2, **few(name))
        assert float((operator(s.x) - operator(x).repeat_interleave(2, 0)).abs().max()) < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_masks_may_differ_between_images(gaussian, name):
    backbone, _, x = gaussian
    masks = torch.tensor([[1.0, 1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1, 0, 1]]).reshape(2, 1, 1, 8)
    both = iv.solve(iv.Mask(masks), iv.Mask(masks)(x), backbone=backbone, n_samples=4, seed=[1, 2], **few(name))
    one = iv.solve(iv.Mask(masks[1]), iv.Mask(masks[1])(x[1:]), backbone=backbone, n_samples=4, seed=2, **few(name))
    assert torch.allclose(both.x[4:], one.x, atol=1e-5)


def test_what_cannot_be_done_is_refused_before_a_network_call(gaussian):
    backbone, A, x = gaussian
    with pytest.raises(InvdiffError, match="path must only go down for tds"):
        iv.solve(A, A(x), backbone=backbone, path="jumps", jump_length=2, jump_n_sample=2, **few("tds"))
    rounded = iv.NonlinearOperator(lambda x: (4 * x).round(), lambda y: y / 4)
    for name in NAMES:
        with pytest.raises(InvdiffError, match=f"operator must be linear for {name}"):
            iv.solve(rounded, rounded(x), backbone=backbone, **few(name))
    with pytest.raises(InvdiffError, match="particles must be a whole number of at least 1"):
        iv.TDS(particles=0)


# ---- exact in the limit -----------------------------------------------------------------------------------------


def test_a_local_gaussian_is_the_full_one_where_it_is_looked_at():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(2, 2, generator=generator, dtype=torch.float64)
    V, _ = torch.linalg.qr(torch.randn(12, 2, generator=generator, dtype=torch.float64))
    C = 0.3 * torch.eye(12, dtype=torch.float64) + V @ root @ root.mT @ V.mT
    seen = Seen(
        V[None, :, :1] * 0.8**0.5 + V[None, :, 1:] * 0.2**0.5,
        torch.zeros(1, 1, dtype=torch.float64),
        torch.full((1, 1), 0.01, dtype=torch.float64),
    )
    mean = torch.randn(1, 12, generator=generator, dtype=torch.float64)
    local = LocalGaussian.of(mean, lambda v: v @ C, seen, torch.randn(1, 12, generator=generator))
    v = torch.randn(1, 12, generator=generator, dtype=torch.float64)
    assert torch.allclose(local.filtered(lambda values: values, v), v @ C, atol=1e-10)
    a = seen.directions[0]
    variance = float(a.mT @ C @ a) + 0.01
    wanted = -0.5 * float(mean @ a) ** 2 / variance - 0.5 * math.log(variance)
    assert float(local.log_likelihood(seen)) == pytest.approx(wanted, abs=1e-8)


@pytest.mark.parametrize("sigma_y", [0.0, 0.1, 0.5])
def test_tds_on_a_gaussian_is_exact_at_any_number_of_steps_with_equal_weights(gaussian, sigma_y):
    backbone, A, x = gaussian
    y = A.measure(x[:1], sigma_y, seed=0)
    posterior = backbone.posterior(A, y, sigma_y)
    s = iv.solve(A, y, "tds", backbone=backbone, sigma_y=sigma_y, steps=8, n_samples=2000, particles=100, progress=False,
                 value_range=(-1, 1))  # fmt: skip
    assert float(s.diagnostics["ess"].min()) > 99
    z = s.x.flatten(1).double()
    exact = posterior.sample(2000, seed=1).flatten(1).double()
    scale = float(posterior.covariance.double().trace()) ** 0.5

    def distance(samples):
        mean, covariance = posterior.mean.flatten(), posterior.covariance
        return gaussian_w2(samples.mean(0), torch.cov(samples.T), mean, covariance) / scale

    assert distance(z) < distance(exact) + 0.03


def mode_errors(prior, A, y, sigma_y, x, sets):
    """Share of mass in the wrong mode, of samples x and on average of as many exact draws."""
    posterior = prior.posterior(A, y, sigma_y)
    draws = [x, *(posterior.sample(len(x), seed=k) for k in range(sets))]
    found = [total_variation(prior.responsibilities(z.float()).double().mean(0), posterior.weights) for z in draws]
    return found[0], sum(found[1:]) / sets


def test_the_weights_of_the_modes_are_right_with_few_particles():
    prior, A = two_modes16(), iv.Mask((torch.arange(16) < 14).float()[None])
    y = A.measure(prior.prior_sample(1, seed=0), 0.1, seed=0)
    s = iv.solve(A, y, "tds", backbone=prior, sigma_y=0.1, steps=30, n_samples=256, particles=64, progress=False,
                 value_range=(-1, 1))  # fmt: skip
    assert mode_errors(prior, A, y, 0.1, s.x, 4)[0] < 0.06


@pytest.mark.parametrize(("name", "most"), [("mcg-diff", 0.15), ("tds", 0.15)])
@pytest.mark.parametrize("sigma_y", [0.0, 0.2])
def test_other_proposals_reach_a_gaussian_posterior_with_many_particles_and_steps(gaussian, name, most, sigma_y):
    """One number is measured: with more, single populations of this size lose too many ancestors."""
    backbone, _, x = gaussian
    A = iv.MatrixOperator(torch.full((1, 8), 8**-0.5))
    y = A.measure(x[:1], sigma_y, seed=0)
    options = {"twisting": "scalar", "tausq": 0.3} if name == "tds" else {}
    s = iv.solve(A, y, name, backbone=backbone, sigma_y=sigma_y, steps=250, n_samples=2000, particles=2000,
                 progress=False, value_range=(-1, 1), **options)  # fmt: skip
    posterior = backbone.posterior(A, y, sigma_y)
    z, covariance = s.x.flatten(1).double(), posterior.covariance
    distance = gaussian_w2(z.mean(0), torch.cov(z.T), posterior.mean.flatten(), covariance)
    assert distance / float(covariance.double().trace()) ** 0.5 < most


@pytest.mark.slow
@pytest.mark.parametrize(("d", "rows"), [(8, 1), (80, 2)])
def test_tds_with_64_particles_has_the_modes_within_twice_the_floor(d, rows):
    prior, A = gmm25(d), iv.MatrixOperator(random_matrix(d, rows=rows))
    y = A.measure(prior.prior_sample(3, seed=0), 0.05, seed=0)
    s = iv.solve(A, y, "tds", backbone=prior, sigma_y=0.05, n_samples=500, particles=64, progress=False,
                 value_range=(-1, 1))  # fmt: skip
    errors = [mode_errors(prior, A, y[i : i + 1], 0.05, s.samples[i], 8) for i in range(3)]
    assert sum(found for found, _ in errors) < 2 * sum(floor for _, floor in errors)
