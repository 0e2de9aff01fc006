"""The analytic backbones are the denoisers that they say they are: against matrices, against scores, at every level."""

import math

import pytest
import torch

from invdiff.backbones import NoiseSchedule
from invdiff.errors import InvdiffError
from invdiff.priors.gaussian import GaussianBackbone
from invdiff.priors.mixture import GaussianMixtureBackbone

SHAPE = (2, 3, 2)
D = math.prod(SHAPE)
LEVELS = (0, 17, 500, 999)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_covariance(d=D, rank=None, seed=0):
    root = normal(d, rank or d, seed=seed)
    return root @ root.mT / d


def random_spectrum(shape, seed=0):
    raw = normal(*shape, seed=seed).square()
    return raw + raw.flip(-2, -1).roll((1, 1), (-2, -1))


def gaussian(kind, dtype=torch.float64):
    mean = normal(*SHAPE, seed=1).to(dtype)
    if kind == "isotropic":
        return GaussianBackbone(mean, torch.tensor(0.3, dtype=dtype))
    if kind == "diagonal":
        return GaussianBackbone(mean, normal(*SHAPE, seed=2).square().to(dtype))
    if kind == "dense":
        return GaussianBackbone(mean, random_covariance().to(dtype))
    if kind == "singular":
        return GaussianBackbone(mean, random_covariance(rank=4).to(dtype))
    return GaussianBackbone.circulant(mean, random_spectrum(SHAPE, seed=3).to(dtype))


def mixture(kind, K=4, dtype=torch.float64, shape=SHAPE):
    d = math.prod(shape)
    weights, means = torch.arange(1, K + 1).to(dtype), 1.5 * normal(K, *shape, seed=4).to(dtype)
    if kind == "isotropic":
        return GaussianMixtureBackbone(weights, means, normal(K, seed=5).square().to(dtype) + 0.05)
    if kind == "diagonal":
        return GaussianMixtureBackbone(weights, means, normal(K, *shape, seed=5).square().to(dtype) + 0.01)
    factors = normal(K, d, 3, seed=6).to(dtype)
    return GaussianMixtureBackbone.low_rank(weights, means, factors, normal(K, seed=5).square().to(dtype) + 0.05)


def component_covariances(backbone):
    """(K, d, d)."""
    if backbone.noise is None:
        return torch.diag_embed(backbone.variances.flatten(1))
    identity = torch.eye(backbone.dimension, dtype=backbone.dtype)
    return backbone.factors @ backbone.factors.mT + backbone.noise[:, None, None] * identity


def brute_force(x_t, a, weights, means, covariances):
    """E[x0 | x_t] and log p(x_t) by matrix inversion."""
    d = x_t.shape[1]
    identity = torch.eye(d, dtype=torch.float64)
    logs, estimates = [], []
    for w, m, S in zip(weights, means.flatten(1), covariances, strict=True):
        marginal = a * S + (1 - a) * identity
        apart = x_t - a**0.5 * m
        solved = torch.linalg.solve(marginal, apart.mT).mT
        logs.append(w.log() - 0.5 * ((apart * solved).sum(1) + marginal.logdet() + d * math.log(2 * math.pi)))
        estimates.append(m + a**0.5 * solved @ S)
    joint = torch.stack(logs, 1)
    return torch.einsum("bk,kbd->bd", joint.softmax(1), torch.stack(estimates)), joint.logsumexp(1)


GAUSSIANS = ("isotropic", "diagonal", "dense", "singular", "circulant")
MIXTURES = ("isotropic", "diagonal", "low-rank")


@pytest.mark.parametrize("kind", GAUSSIANS)
@pytest.mark.parametrize("t", LEVELS)
def test_gaussian_denoiser_is_the_conditional_mean(kind, t):
    backbone = gaussian(kind)
    x_t = normal(5, *SHAPE, seed=7)
    a = backbone.schedule.alpha_bar_at(t)
    covariance = backbone.covariance[None]
    expected, log_prob = brute_force(x_t.flatten(1), a, torch.ones(1).double(), backbone.mean[None], covariance)
    prediction = backbone.predict(x_t, t)
    torch.testing.assert_close(prediction.x0.flatten(1), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(a**0.5 * prediction.x0 + (1 - a) ** 0.5 * prediction.eps, x_t)
    torch.testing.assert_close(backbone.log_prob(x_t, t), log_prob)


@pytest.mark.parametrize("kind", MIXTURES)
@pytest.mark.parametrize("t", LEVELS)
def test_mixture_denoiser_is_the_conditional_mean(kind, t):
    backbone = mixture(kind)
    x_t = backbone.prior_sample(6, seed=1) + 0.1 * normal(6, *SHAPE, seed=7)
    a = backbone.schedule.alpha_bar_at(t)
    expected, log_prob = brute_force(
        x_t.flatten(1), a, backbone.weights, backbone.means, component_covariances(backbone)
    )
    prediction = backbone.predict(x_t, t)
    torch.testing.assert_close(prediction.x0.flatten(1), expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(a**0.5 * prediction.x0 + (1 - a) ** 0.5 * prediction.eps, x_t)
    torch.testing.assert_close(backbone.log_prob(x_t, t), log_prob)


@pytest.mark.parametrize(
    "backbone", [*(gaussian(k) for k in GAUSSIANS), *(mixture(k) for k in MIXTURES)], ids=[*GAUSSIANS, *MIXTURES]
)
def test_noise_estimate_is_the_scaled_score(backbone):
    """Tweedie: eps = -sqrt(1 - alpha_bar) grad log p_t(x_t), at many levels at once."""
    t = torch.tensor(LEVELS)
    x_t = normal(len(t), *SHAPE, seed=8).requires_grad_()
    (score,) = torch.autograd.grad(backbone.log_prob(x_t, t).sum(), x_t)
    level = backbone.schedule.alpha_bar[t].reshape(-1, 1, 1, 1)
    torch.testing.assert_close(backbone.predict(x_t, t).eps, -((1 - level) ** 0.5) * score, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "backbone", [*(gaussian(k) for k in GAUSSIANS), *(mixture(k) for k in MIXTURES)], ids=[*GAUSSIANS, *MIXTURES]
)
class TestEveryBackbone:
    def test_gradients(self, backbone):
        x_t = normal(2, *SHAPE, seed=9).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: backbone.predict(x, 300).x0, x_t)
        assert torch.autograd.gradcheck(lambda x: backbone.predict(x, torch.tensor([20, 800])).eps, x_t)
        assert torch.autograd.gradgradcheck(
            lambda x: backbone.predict(x, 300).x0.square().sum(), x_t[:1].detach().requires_grad_()
        )

    def test_an_image_does_not_depend_on_its_batch(self, backbone):
        x_t, t = normal(4, *SHAPE, seed=10), torch.tensor([0, 40, 999, -1])
        together = backbone.predict(x_t, t)
        for i in range(4):
            alone = backbone.predict(x_t[i : i + 1], int(t[i]))
            torch.testing.assert_close(together.x0[i : i + 1], alone.x0, rtol=1e-11, atol=1e-11)
            torch.testing.assert_close(together.eps[i : i + 1], alone.eps, rtol=1e-9, atol=1e-9)

    def test_samples_have_the_moments_of_the_prior(self, backbone):
        x = backbone.prior_sample(40_000, seed=3).flatten(1)
        if isinstance(backbone, GaussianBackbone):
            mean, covariance = backbone.mean.flatten(), backbone.covariance
        else:
            mean = backbone.mean.flatten()
            apart = backbone.means.flatten(1) - mean
            between = torch.einsum("k,ki,kj->ij", backbone.weights, apart, apart)
            covariance = between + torch.einsum("k,kij->ij", backbone.weights, component_covariances(backbone))
        scale = covariance.diagonal().max().sqrt()
        assert (x.mean(0) - mean).abs().max() < 0.03 * scale
        assert (x.mT.cov() - covariance).abs().max() < 0.05 * scale**2

    def test_draws_repeat_and_leave_the_global_generator_alone(self, backbone):
        torch.manual_seed(5)
        expected = torch.rand(1)
        torch.manual_seed(5)
        first, again, other = (backbone.prior_sample(3, seed=s) for s in (0, 0, 1))
        generated = backbone.prior_sample(3, torch.Generator().manual_seed(0))
        assert torch.equal(torch.rand(1), expected)
        assert torch.equal(first, again) and torch.equal(first, generated) and not torch.equal(first, other)

    def test_inference_mode_gives_the_same(self, backbone):
        x_t = normal(2, *SHAPE, seed=11)
        with torch.inference_mode():
            inside = backbone.predict(x_t, 400)
        assert torch.equal(inside.x0, backbone.predict(x_t, 400).x0)

    def test_counts_in_the_times_of_a_respaced_schedule(self, backbone):
        short = backbone.schedule.respaced(10)
        x_t = normal(2, *SHAPE, seed=12)
        for t in (0, 4, 9):
            expected = backbone.predict(x_t, int(short.timesteps[t])).x0
            torch.testing.assert_close(backbone.on(short).predict(x_t, t).x0, expected)

    def test_clean_images_come_back(self, backbone):
        x = backbone.prior_sample(3, seed=2)
        torch.testing.assert_close(backbone.predict(x, -1).x0, x, rtol=1e-6, atol=1e-6)

    def test_precision_and_shape_are_those_of_the_parameters(self, backbone):
        assert (
            backbone.dtype == torch.float64
            and backbone.image_shape == SHAPE
            and backbone.to("cpu").dtype == torch.float64
        )
        assert backbone.predict(normal(1, *SHAPE).float(), 5).x0.dtype == torch.float64

    def test_bad_images_and_times_are_refused(self, backbone):
        with pytest.raises(InvdiffError, match=r"x_t .*\(B, 2, 3, 2\).*\(1, 3, 2\)"):
            backbone.predict(torch.zeros(1, 3, 2), 0)
        for t in (1000, -2, torch.tensor([0, 1000])):
            with pytest.raises(InvdiffError, match="999"):
                backbone.predict(torch.zeros(2, *SHAPE), t)
        with pytest.raises(InvdiffError, match="one for each of the 2 images"):
            backbone.predict(torch.zeros(2, *SHAPE), torch.tensor([0, 1, 2]))
        with pytest.raises(InvdiffError, match="n must"):
            backbone.prior_sample(0)
        with pytest.raises(InvdiffError, match="seed must"):
            backbone.prior_sample(1, seed=-1)


@pytest.mark.parametrize("kind", GAUSSIANS)
def test_single_precision_gaussian_is_accurate_at_every_level(kind):
    coarse, fine = gaussian(kind, torch.float32), gaussian(kind, torch.float32).double()
    assert coarse.dtype == torch.float32
    for t in range(0, 1000, 37):
        a = coarse.schedule.alpha_bar_at(t)
        x_t = a**0.5 * coarse.prior_sample(4, seed=t) + (1 - a) ** 0.5 * normal(4, *SHAPE, seed=t).float()
        got, wanted = coarse.predict(x_t, t), fine.predict(x_t.double(), t)
        torch.testing.assert_close(got.x0.double(), wanted.x0, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(got.eps.double(), wanted.eps, rtol=1e-3, atol=2e-4)


def test_single_precision_mixture_of_pictures_is_safe_at_the_extremes():
    """Thousands of dimensions: densities differ by thousands of nats, and no NaN nor wrong component comes of it."""
    backbone = mixture("low-rank", K=6, dtype=torch.float32, shape=(3, 32, 32))
    fine = backbone.double()
    for t in (0, 1, 500, 999):
        a = backbone.schedule.alpha_bar_at(t)
        x0 = backbone.prior_sample(6, seed=t)
        x_t = a**0.5 * x0 + (1 - a) ** 0.5 * normal(*x0.shape, seed=t).float()
        got, wanted = backbone.predict(x_t, t), fine.predict(x_t.double(), t)
        torch.testing.assert_close(got.x0.double(), wanted.x0, rtol=1e-3, atol=1e-3)
        assert torch.isfinite(got.eps).all()
    far = 1e4 * torch.ones(1, 3, 32, 32)
    assert torch.isfinite(backbone.predict(far, 0).x0).all() and torch.isfinite(backbone.predict(far, 999).x0).all()


def test_backbones_made_in_inference_mode_have_gradients_outside():
    with torch.inference_mode():
        made = [*(gaussian(k) for k in GAUSSIANS), *(mixture(k) for k in MIXTURES)]
        made += [backbone.double() for backbone in made]
    for backbone in made:
        x_t = normal(1, *SHAPE, seed=1).requires_grad_()
        (gradient,) = torch.autograd.grad(backbone.predict(x_t, 500).x0.sum(), x_t)
        assert torch.isfinite(gradient).all() and gradient.abs().max() > 0


def test_one_component_is_a_gaussian():
    x_t = normal(3, *SHAPE, seed=13)
    factors, noise = normal(1, D, 3, seed=14), torch.tensor(0.2).double()
    one = GaussianMixtureBackbone.low_rank([1.0], normal(1, *SHAPE, seed=1), factors, noise)
    covariance = factors[0] @ factors[0].mT + noise * torch.eye(D).double()
    gauss = GaussianBackbone(normal(*SHAPE, seed=1), covariance)
    for t in LEVELS:
        torch.testing.assert_close(one.predict(x_t, t).x0, gauss.predict(x_t, t).x0)
        torch.testing.assert_close(one.log_prob(x_t, t), gauss.log_prob(x_t, t))
    torch.testing.assert_close(one.log_prob(x_t), gauss.log_prob(x_t))


def test_isotropic_diagonal_and_low_rank_agree_where_they_coincide():
    weights, means = [0.2, 0.8], normal(2, *SHAPE)
    spread = torch.tensor([0.1, 0.7]).double()
    kinds = [
        GaussianMixtureBackbone(weights, means, spread),
        GaussianMixtureBackbone(weights, means, spread[:, None, None, None].expand(2, *SHAPE)),
        GaussianMixtureBackbone.low_rank(weights, means, torch.zeros(2, D, 2), spread),
    ]
    x_t = normal(3, *SHAPE, seed=2)
    first, *others = (k.predict(x_t, 200).eps for k in kinds)
    for other in others:
        torch.testing.assert_close(other, first)


def test_responsibilities_are_bayes_rule():
    backbone = mixture("low-rank")
    x = backbone.prior_sample(5, seed=0)
    densities = []
    for mean, covariance in zip(backbone.means, component_covariances(backbone), strict=True):
        densities.append(torch.distributions.MultivariateNormal(mean.flatten(), covariance).log_prob(x.flatten(1)))
    expected = (torch.stack(densities, 1) + backbone.weights.log()).softmax(1)
    torch.testing.assert_close(backbone.responsibilities(x), expected)
    torch.testing.assert_close(backbone.responsibilities(x, 999).sum(1), torch.ones(5).double())


def test_a_component_of_weight_zero_is_not_there():
    means = normal(2, *SHAPE)
    with_zero = GaussianMixtureBackbone([1.0, 0.0], means, 0.1)
    without = GaussianMixtureBackbone([1.0], means[:1], 0.1)
    x_t = normal(2, *SHAPE, seed=3)
    torch.testing.assert_close(with_zero.predict(x_t, 100).x0, without.predict(x_t, 100).x0)


def test_mixture_of_points_is_a_softmax_over_them():
    """No variance at all: the prior of a finite data set."""
    points = normal(5, *SHAPE)
    backbone = GaussianMixtureBackbone(torch.ones(5), points, 0.0)
    x_t = normal(3, *SHAPE, seed=1)
    a = backbone.schedule.alpha_bar_at(300)
    distance = (x_t.flatten(1)[:, None] - a**0.5 * points.flatten(1)).square().sum(-1)
    expected = (-distance / (2 * (1 - a))).softmax(1) @ points.flatten(1)
    torch.testing.assert_close(backbone.predict(x_t, 300).x0.flatten(1), expected)


def test_circulant_is_the_matrix_of_a_stationary_covariance():
    spectrum = random_spectrum((4, 4))
    backbone = GaussianBackbone.circulant(torch.zeros(1, 4, 4), spectrum)
    torch.testing.assert_close(torch.linalg.eigvalsh(backbone.covariance), spectrum.flatten().sort().values)
    covariance = backbone.covariance.reshape(4, 4, 4, 4)
    torch.testing.assert_close(covariance.roll((1, 2, 1, 2), (0, 1, 2, 3)), covariance)
    torch.testing.assert_close(backbone.variance.flatten(), backbone.covariance.diagonal())


def test_density_off_the_support_of_a_singular_covariance_is_zero():
    backbone = GaussianBackbone(torch.zeros(1, 1, 2), torch.tensor([[[1.0, 0.0]]]))
    on, off = torch.tensor([[[[0.5, 0.0]]]]), torch.tensor([[[[0.5, 0.5]]]])
    assert backbone.log_prob(off) == -math.inf
    torch.testing.assert_close(backbone.log_prob(on), torch.tensor([-0.125 - 0.5 * math.log(2 * math.pi)]))


def test_one_dimensional_images_and_batched_means():
    backbone = GaussianBackbone(torch.zeros(1, 1, 1, 8), torch.eye(8), NoiseSchedule.cosine(50))
    assert backbone.image_shape == (1, 1, 8) and backbone.dtype == torch.float32 and backbone.schedule.T == 50
    assert backbone.predict(torch.zeros(3, 1, 1, 8), 49).x0.shape == (3, 1, 1, 8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianBackbone(torch.zeros(4), torch.ones(4)), r"mean must be one image .*\(4,\)"),
        (lambda: GaussianBackbone(torch.zeros(1, 2, 2), torch.ones(3)), r"covariance has shape \(3,\); accepted"),
        (lambda: GaussianBackbone(torch.zeros(1, 2, 2), -torch.ones(1, 2, 2)), "covariance must hold variances"),
        (lambda: GaussianBackbone(torch.zeros(1, 2, 2), torch.ones(4, 4).triu()), "covariance must be symmetric"),
        (
            lambda: GaussianBackbone(torch.zeros(1, 2, 2), torch.diag(torch.tensor([1.0, 1, 1, -1]))),
            "semi-definite.*-1",
        ),
        (lambda: GaussianBackbone(torch.full((1, 2, 2), math.nan), 1.0), "mean must be finite"),
        (lambda: GaussianBackbone("flat", 1.0), "mean must be an array of numbers, got 'flat'"),
        (
            lambda: GaussianBackbone.circulant(torch.zeros(1, 2, 3), torch.ones(3, 2)),
            r"spectrum must be of shape .* got \(3, 2\)",
        ),
        (lambda: GaussianBackbone.circulant(torch.zeros(1, 1, 4), torch.arange(4.0)[None]), "negative .*not real"),
        (lambda: GaussianBackbone.circulant(torch.zeros(1, 2, 2), -torch.ones(2, 2)), "spectrum must hold variances"),
        (lambda: GaussianMixtureBackbone([1.0], torch.zeros(1, 2, 2), 1.0), r"means must be .*\(K, C, H, W\)"),
        (lambda: GaussianMixtureBackbone([1.0, 1.0], torch.zeros(3, 1, 2, 2), 1.0), r"weights must have shape \(3,\)"),
        (lambda: GaussianMixtureBackbone([1.0, -1.0], torch.zeros(2, 1, 2, 2), 1.0), "weights must be 0 or more"),
        (lambda: GaussianMixtureBackbone([1.0, 1.0], torch.zeros(2, 1, 2, 2), torch.ones(4)), "low_rank"),
        (lambda: GaussianMixtureBackbone([1.0, 1.0], torch.zeros(2, 1, 2, 2), -1.0), "covariances|noise"),
        (
            lambda: GaussianMixtureBackbone.low_rank([1.0], torch.zeros(1, 1, 2, 2), torch.zeros(1, 3, 2), 1.0),
            r"factors must have shape \(1, 4, r\)",
        ),
        (
            lambda: GaussianMixtureBackbone.low_rank(
                [1.0], torch.zeros(1, 1, 2, 2), torch.zeros(1, 4, 2), torch.ones(2)
            ),
            r"noise must be a number or have shape \(1,\)",
        ),
    ],
)
def test_bad_parameters_are_refused(make, message):
    with pytest.raises(InvdiffError, match=message):
        make()
