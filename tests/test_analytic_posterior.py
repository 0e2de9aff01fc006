"""Exact posteriors against dense linear algebra, Bayes' rule by weighting prior draws, and themselves."""

import math

import pytest
import torch

from invdiff.errors import InvdiffError
from invdiff.operators import (
    Blur,
    Colorization,
    FunctionOperator,
    Identity,
    Mask,
    MatrixOperator,
    Stack,
    SuperResolution,
    WalshHadamard,
    gaussian_kernel,
)
from invdiff.priors import GaussianBackbone, GaussianMixtureBackbone, posterior

SHAPE = (3, 4, 4)
D = math.prod(SHAPE)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_spectrum(shape, seed=0):
    raw = normal(*shape, seed=seed).square() + 0.05
    return raw + raw.flip(-2, -1).roll((1, 1), (-2, -1))


def gaussian(kind):
    mean = normal(*SHAPE, seed=1)
    if kind == "diagonal":
        return GaussianBackbone(mean, normal(*SHAPE, seed=2).square() + 0.01)
    if kind == "dense":
        root = normal(D, D, seed=3)
        return GaussianBackbone(mean, root @ root.mT / D)
    if kind == "singular":
        root = normal(D, 20, seed=3)
        return GaussianBackbone(mean, root @ root.mT / 20)
    return GaussianBackbone.circulant(mean, random_spectrum(SHAPE, seed=4))


def mixture(kind, K=3, dtype=torch.float64):
    weights, means = torch.arange(1, K + 1).to(dtype), 0.3 * normal(K, *SHAPE, seed=4).to(dtype)
    if kind == "isotropic":
        return GaussianMixtureBackbone(weights, means, torch.linspace(0.3, 0.5, K, dtype=dtype))
    if kind == "diagonal":
        return GaussianMixtureBackbone(weights, means, 0.3 + 0.1 * normal(K, *SHAPE, seed=5).square().to(dtype))
    factors, noise = 0.4 * normal(K, D, 3, seed=6).to(dtype), torch.linspace(0.2, 0.25, K, dtype=dtype)
    return GaussianMixtureBackbone.low_rank(weights, means, factors, noise)


def half_mask():
    mask = torch.ones(4, 4)
    mask[:, 2:] = 0
    return Mask(mask)


OPERATORS = {
    "mask": half_mask(),
    "box": SuperResolution(2, "box"),
    "bicubic": SuperResolution(2, "bicubic"),
    "grey": Colorization(),
    "blur": Blur(gaussian_kernel(3, 1.0)),
    "hadamard": WalshHadamard(0.5),
    "identity": Identity(),
    "matrix": MatrixOperator(normal(7, D, seed=8)),
    "redundant": Stack([half_mask(), half_mask(), Colorization()]),
    "chain": Colorization() @ SuperResolution(2, "box"),
    "cumulative": FunctionOperator(lambda x: x.cumsum(-1)[..., ::2]),
}
GAUSSIANS = ("diagonal", "dense", "singular", "circulant")
MIXTURES = ("isotropic", "diagonal", "low-rank")


def measure(operator, backbone, sigma_y, seed=9):
    x = backbone.prior_sample(1, seed=seed)
    y = operator(x)
    return y + sigma_y * normal(*y.shape, seed=seed)


def component_covariances(backbone):
    if backbone.noise is None:
        return torch.diag_embed(backbone.variances.flatten(1))
    identity = torch.eye(backbone.dimension, dtype=backbone.dtype)
    return backbone.factors @ backbone.factors.mT + backbone.noise[:, None, None] * identity


def conditioned(mean, covariance, matrix, y, sigma_y):
    """Textbook conditioning by pseudo-inverse, and the log-density of y on the range of A."""
    U, S, _ = torch.linalg.svd(matrix, full_matrices=False)
    U = U[:, 1e-6 * S[0] < S]
    matrix, y = U.mT @ matrix, U.mT @ y
    cross = covariance @ matrix.mT
    marginal = matrix @ cross + sigma_y**2 * torch.eye(len(y), dtype=torch.float64)
    gain = cross @ torch.linalg.pinv(marginal, rtol=1e-11, hermitian=True)
    residual = y - matrix @ mean
    evidence = -0.5 * (
        residual @ torch.linalg.lstsq(marginal, residual[:, None]).solution[:, 0]
        + marginal.logdet()
        + len(y) * math.log(2 * math.pi)
    )
    return mean + gain @ residual, covariance - gain @ cross.mT, evidence


@pytest.mark.parametrize("sigma_y", [0.0, 0.2])
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("kind", GAUSSIANS)
def test_gaussian_posterior_is_the_closed_form(kind, operator, sigma_y):
    backbone, A = gaussian(kind), OPERATORS[operator]
    y = measure(A, backbone, sigma_y)
    found = backbone.posterior(A, y, sigma_y)
    mean, covariance, _ = conditioned(
        backbone.mean.flatten(), backbone.covariance, A.dense(SHAPE), y.flatten(), sigma_y
    )
    torch.testing.assert_close(found.mean.flatten(), mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.covariance, covariance, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.variance.flatten(), covariance.diagonal(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sigma_y", [0.0, 0.2])
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("kind", MIXTURES)
def test_mixture_posterior_is_the_closed_form(kind, operator, sigma_y):
    backbone, A = mixture(kind), OPERATORS[operator]
    y = measure(A, backbone, sigma_y)
    found = backbone.posterior(A, y, sigma_y)
    parts = [
        conditioned(m.flatten(), S, A.dense(SHAPE), y.flatten(), sigma_y)
        for m, S in zip(backbone.means, component_covariances(backbone), strict=True)
    ]
    means, covariances = torch.stack([p[0] for p in parts]), torch.stack([p[1] for p in parts])
    joint = torch.stack([p[2] for p in parts]) + backbone.weights.log()
    weights = joint.softmax(0)
    torch.testing.assert_close(found.weights, weights, rtol=1e-5, atol=1e-7)
    assert found.log_evidence == pytest.approx(float(joint.logsumexp(0)), rel=1e-6, abs=1e-6)
    torch.testing.assert_close(found.means.flatten(1), means, rtol=1e-6, atol=1e-6)
    mean = weights @ means
    apart = means - mean
    covariance = torch.einsum("k,kij->ij", weights, covariances) + (weights * apart.mT) @ apart
    torch.testing.assert_close(found.mean.flatten(), mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.covariance, covariance, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.variance.flatten(), covariance.diagonal(), rtol=1e-6, atol=1e-6)
    for component, expected in zip(found.components, covariances, strict=True):
        torch.testing.assert_close(component.covariance, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize(
    "backbone", [*(gaussian(k) for k in GAUSSIANS), *(mixture(k) for k in MIXTURES)], ids=[*GAUSSIANS, *MIXTURES]
)
def test_without_noise_every_sample_reproduces_the_measurement(backbone, operator):
    A = OPERATORS[operator]
    y = measure(A, backbone, 0.0)
    found = backbone.posterior(A, y[0])
    torch.testing.assert_close(A(found.sample(20, seed=1)), y.expand(20, *y.shape[1:]), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(A(found.mean[None]), y, rtol=1e-6, atol=1e-6)
    matrix = A.dense(SHAPE)
    assert (matrix @ found.covariance @ matrix.mT).abs().max() < 1e-6


@pytest.mark.parametrize("sigma_y", [0.0, 0.3])
@pytest.mark.parametrize(
    "backbone", [*(gaussian(k) for k in GAUSSIANS), *(mixture(k) for k in MIXTURES)], ids=[*GAUSSIANS, *MIXTURES]
)
def test_samples_have_the_moments_of_the_posterior(backbone, sigma_y):
    A = OPERATORS["box"]
    found = backbone.posterior(A, measure(A, backbone, sigma_y), sigma_y)
    x = found.sample(20_000, seed=2).flatten(1)
    scale = found.variance.max().sqrt()
    assert (x.mean(0) - found.mean.flatten()).abs().max() < 0.04 * scale
    assert (x.mT.cov() - found.covariance).abs().max() < 0.06 * scale**2


@pytest.mark.parametrize("way", ["svd", "cogram"])
@pytest.mark.parametrize("sigma_y", [0.0, 0.2])
@pytest.mark.parametrize("backbone", [gaussian("circulant"), mixture("low-rank")], ids=["circulant", "low-rank"])
def test_the_ways_to_the_singular_system_agree(backbone, sigma_y, way, monkeypatch):
    """A measurement with disjoint rows is read off; hidden in a rotation, it is decomposed in one of two ways."""
    if way == "cogram":
        monkeypatch.setattr(posterior, "SVD_WORK", 0)
    box = SuperResolution(2, "box")
    rotation = torch.linalg.qr(normal(12, 12, seed=3)).Q
    rotated = MatrixOperator(rotation @ box.dense(SHAPE))
    y = measure(box, backbone, sigma_y)
    straight = backbone.posterior(box, y, sigma_y)
    turned = backbone.posterior(rotated, (rotation @ y.flatten()).reshape(rotated.measurement_shape(SHAPE)), sigma_y)
    torch.testing.assert_close(turned.mean, straight.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(turned.covariance, straight.covariance, rtol=1e-5, atol=1e-5)
    assert turned.log_evidence == pytest.approx(straight.log_evidence, rel=1e-4)
    x = straight.sample(3)
    torch.testing.assert_close(turned.log_prob(x), straight.log_prob(x), rtol=1e-4, atol=1e-4)


def test_mixture_posterior_in_two_dimensions_is_bayes_rule():
    """Prior draws weighted by the likelihood: nothing shared with the closed form."""
    means = torch.tensor([[-1.0, 0.5], [1.0, 0.0], [0.5, -1.0]]).double().reshape(3, 1, 1, 2)
    factors = torch.tensor([[[0.5], [0.2]], [[0.1], [0.6]], [[0.3], [-0.3]]]).double()
    backbone = GaussianMixtureBackbone.low_rank([0.2, 0.5, 0.3], means, factors, torch.tensor(0.05).double())
    A, sigma_y = MatrixOperator(torch.tensor([[1.0, 0.6]]).double()), 0.3
    y = torch.tensor([0.4]).double()
    found = backbone.posterior(A, y.reshape(A.measurement_shape((1, 1, 2))), sigma_y)
    x = backbone.prior_sample(400_000, seed=1)
    share = (-0.5 * ((A(x).flatten() - y) / sigma_y).square()).softmax(0)
    mean = (share[:, None] * x.flatten(1)).sum(0)
    covariance = (share[:, None] * (x.flatten(1) - mean)).mT @ (x.flatten(1) - mean)
    torch.testing.assert_close(found.mean.flatten(), mean, rtol=0, atol=0.01)
    torch.testing.assert_close(found.covariance, covariance, rtol=0, atol=0.01)
    torch.testing.assert_close(found.weights, share @ backbone.responsibilities(x), rtol=0, atol=0.01)


@pytest.mark.parametrize("sigma_y", [0.0, 0.25])
@pytest.mark.parametrize("kind", ["mixture", "gaussian"])
def test_density_integrates_to_one_and_follows_the_samples(kind, sigma_y):
    """On the plane for sigma_y > 0, on the line A x = y without noise."""
    if kind == "mixture":
        means = torch.tensor([[-1.0, 0.5], [1.0, 0.0]]).double().reshape(2, 1, 1, 2)
        factors = torch.tensor([[[0.5], [0.2]], [[0.1], [0.6]]]).double()
        backbone = GaussianMixtureBackbone.low_rank([0.4, 0.6], means, factors, torch.tensor(0.1).double())
    else:
        backbone = GaussianBackbone(torch.zeros(1, 1, 2), torch.tensor([[1.0, 0.4], [0.4, 0.5]]).double())
    row = torch.tensor([[2.0, 1.0]]).double()
    A = MatrixOperator(row)
    found = backbone.posterior(A, torch.tensor(0.3).double().reshape(1, *A.measurement_shape((1, 1, 2))), sigma_y)
    if sigma_y == 0:
        s = torch.linspace(-6, 6, 4001).double()
        along = torch.tensor([-1.0, 2.0]).double() / 5**0.5
        points, cell = 0.3 / 5 * row[0] + s[:, None] * along, s[1] - s[0]
    else:
        s = torch.linspace(-5, 5, 601).double()
        points, cell = torch.cartesian_prod(s, s), (s[1] - s[0]) ** 2
    density = found.log_prob(points.reshape(-1, 1, 1, 2)).exp()
    assert float(density.sum() * cell) == pytest.approx(1, abs=1e-3)
    torch.testing.assert_close((density[:, None] * points).sum(0) * cell, found.mean.flatten(), rtol=1e-3, atol=1e-3)
    if sigma_y == 0:
        assert (found.log_prob(torch.tensor([[[[1.0, 1.0]]]]).double()) == -math.inf).all()


def test_gaussian_density_is_that_of_its_moments():
    backbone = gaussian("circulant")
    A = OPERATORS["grey"]
    found = backbone.posterior(A, measure(A, backbone, 0.2), 0.2)
    x = found.sample(4)
    reference = torch.distributions.MultivariateNormal(found.mean.flatten(), found.covariance)
    torch.testing.assert_close(found.log_prob(x), reference.log_prob(x.flatten(1)))


def test_density_on_the_support_of_a_singular_prior():
    """Both ways to a noiseless density agree: by Bayes' rule, and by the eigenvalues of the posterior covariance."""
    backbone = gaussian("dense")
    A = OPERATORS["box"]
    found = backbone.posterior(A, measure(A, backbone, 0.0))
    x = found.sample(4)
    torch.testing.assert_close(found._log_prob_on_support(x.flatten(1), 1e-6), found.log_prob(x), rtol=1e-6, atol=1e-5)
    singular = gaussian("singular")
    below = singular.posterior(A, measure(A, singular, 0.0))
    assert torch.isfinite(below.log_prob(below.sample(3))).all()
    assert (below.log_prob(below.sample(3) + 0.1 * normal(3, *SHAPE)) == -math.inf).all()


def test_inconsistent_redundant_measurements_are_met_in_the_least_squares_sense():
    backbone = gaussian("dense")
    twice = Stack([half_mask(), half_mask()])
    y = measure(half_mask(), backbone, 0.0).flatten(1)
    found = backbone.posterior(twice, torch.cat([y - 0.1, y + 0.1], 1))
    torch.testing.assert_close(found.mean, backbone.posterior(half_mask(), y.reshape(1, *SHAPE)).mean)


@pytest.mark.parametrize(
    "backbone", [gaussian("dense"), gaussian("diagonal"), mixture("low-rank"), mixture("diagonal")]
)
@pytest.mark.parametrize("junk", [7.0, math.nan])
def test_unknown_pixels_of_a_measurement_are_not_read(backbone, junk):
    A = half_mask()
    y = measure(A, backbone, 0.0)
    filled = y.clone()
    filled[..., 2:] = junk
    for sigma_y in (0.0, 0.1):
        clean, dirty = backbone.posterior(A, y, sigma_y), backbone.posterior(A, filled, sigma_y)
        torch.testing.assert_close(dirty.mean, clean.mean)
        torch.testing.assert_close(dirty.sample(2), clean.sample(2))


def test_a_measurement_that_says_nothing_leaves_the_prior():
    for backbone in (gaussian("circulant"), mixture("low-rank")):
        found = backbone.posterior(Mask(torch.zeros(4, 4)), torch.zeros(1, *SHAPE))
        torch.testing.assert_close(found.mean, backbone.mean)
    torch.testing.assert_close(found.weights, backbone.weights)


def test_small_noise_tends_to_no_noise():
    for backbone in (gaussian("circulant"), mixture("low-rank"), mixture("diagonal")):
        A = OPERATORS["grey"]
        y = measure(A, backbone, 0.0)
        exact, near = backbone.posterior(A, y), backbone.posterior(A, y, 1e-7)
        torch.testing.assert_close(near.mean, exact.mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(near.variance, exact.variance, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(near.log_prob(exact.mean[None]).isfinite(), torch.tensor([True]))


def test_weights_survive_evidences_that_underflow():
    """Components thousands of standard deviations away: weights stay a distribution and name the nearest."""
    means = torch.stack([torch.full(SHAPE, v) for v in (-500.0, 0.0, 400.0)])
    backbone = GaussianMixtureBackbone([1.0, 1.0, 1.0], means, 1e-4)
    found = backbone.posterior(Identity(), torch.full(SHAPE, 390.0), 1e-3)
    torch.testing.assert_close(found.weights, torch.tensor([0.0, 0.0, 1.0]).double())
    assert found.mean.dtype == torch.float32 and torch.isfinite(found.sample(3)).all()


def test_components_without_variance():
    """Points: the nearest to the measurement takes it all. A low-rank component without noise stays on its plane."""
    points = normal(3, *SHAPE, seed=2)
    for covariances in (torch.zeros(3), torch.zeros(3, *SHAPE)):
        cloud = GaussianMixtureBackbone(torch.ones(3), points, covariances)
        A = OPERATORS["grey"]
        found = cloud.posterior(A, A(points[1:2]))
        torch.testing.assert_close(found.weights, torch.tensor([0.0, 1.0, 0.0]).double())
        torch.testing.assert_close(found.sample(2), points[1:2].expand(2, *SHAPE))
        with pytest.raises(InvdiffError, match="zero variances"):
            found.log_prob(points)
    factors = normal(3, D, 2, seed=3)
    flat = GaussianMixtureBackbone.low_rank(torch.ones(3), points, factors, 0.0)
    y = A(flat.prior_sample(1, seed=1))
    found = flat.posterior(A, y)
    x = found.sample(5)
    torch.testing.assert_close(A(x), y.expand(5, *y.shape[1:]), rtol=1e-6, atol=1e-6)
    assert float(found.weights.max()) > 0.999


def test_mixture_with_one_component_is_the_gaussian():
    factors, A = normal(1, D, 3, seed=14), OPERATORS["bicubic"]
    one = GaussianMixtureBackbone.low_rank([1.0], normal(1, *SHAPE, seed=1), factors, torch.tensor(0.2).double())
    gauss = GaussianBackbone(normal(*SHAPE, seed=1), factors[0] @ factors[0].mT + 0.2 * torch.eye(D).double())
    y = measure(A, one, 0.1)
    left, right = one.posterior(A, y, 0.1), gauss.posterior(A, y, 0.1)
    torch.testing.assert_close(left.mean, right.mean)
    torch.testing.assert_close(left.covariance, right.covariance)
    assert left.log_evidence == pytest.approx(right.log_evidence)


@pytest.mark.parametrize("sigma_y", [0.0, 0.1])
@pytest.mark.parametrize("backbone", [gaussian("circulant"), mixture("low-rank")], ids=["circulant", "low-rank"])
def test_blurs_are_conditioned_under_the_fourier_transform(backbone, sigma_y, monkeypatch):
    """Where the prior is stationary too, nothing of the measurement's size squared is made."""
    monkeypatch.setattr(posterior, "SVD_WORK", 0)
    monkeypatch.setattr(posterior, "COGRAM_SIDE", 0)
    kernel = torch.tensor([[0.0, 0.1, 0.0], [0.3, 0.5, 0.0], [0.0, 0.0, 0.1]]).double()
    A = Blur(kernel)
    y = measure(A, backbone, sigma_y)
    fast = backbone.posterior(A, y, sigma_y)
    monkeypatch.undo()
    dense = MatrixOperator(A.dense(SHAPE))
    straight = backbone.posterior(dense, y.reshape(1, *dense.measurement_shape(SHAPE)), sigma_y)
    torch.testing.assert_close(fast.mean, straight.mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(fast.covariance, straight.covariance, rtol=1e-6, atol=1e-6)
    assert fast.log_evidence == pytest.approx(straight.log_evidence, rel=1e-6)


@pytest.mark.parametrize("operator", ["mask", "box", "grey", "blur"])
def test_pictures_of_single_precision(operator):
    """64 x 64 colour, low rank: no matrix of the image's size is made, and the measurement comes back."""
    shape, K, r = (3, 64, 64), 4, 5
    factors = 0.2 * normal(K, math.prod(shape), r, seed=1).float()
    backbone = GaussianMixtureBackbone.low_rank(
        torch.ones(K), 0.1 * normal(K, *shape, seed=2).float(), factors, torch.full((K,), 0.01)
    )
    mask = torch.ones(64, 64)
    mask[:, 32:] = 0
    A = {
        "mask": Mask(mask),
        "box": SuperResolution(4, "box"),
        "grey": Colorization(),
        "blur": Blur(gaussian_kernel(9, 2.0)),
    }[operator]
    x = backbone.prior_sample(1, seed=3)
    sigma_y = 0.1 if operator == "blur" else 0.0
    found = backbone.posterior(A, A(x) + sigma_y * normal(*A(x).shape, seed=4).float(), sigma_y)
    draws = found.sample(3)
    assert draws.dtype == torch.float32
    if sigma_y == 0:
        torch.testing.assert_close(A(draws), A(x).expand(3, *A(x).shape[1:]), rtol=1e-5, atol=1e-5)
    assert int(found.weights.argmax()) == int(backbone.responsibilities(x).argmax())
    error = (found.mean - x[0]).square().mean()
    assert error < 1.3 * found.variance.mean() < 0.02
    with pytest.raises(InvdiffError, match="12288"):
        _ = found.covariance


def test_draws_repeat_and_leave_the_global_generator_alone():
    A = OPERATORS["mask"]
    for backbone in (gaussian("dense"), mixture("low-rank")):
        found = backbone.posterior(A, measure(A, backbone, 0.1), 0.1)
        torch.manual_seed(5)
        expected = torch.rand(1)
        torch.manual_seed(5)
        first, again, other = (found.sample(3, seed=s) for s in (0, 0, 1))
        assert torch.equal(torch.rand(1), expected)
        assert torch.equal(first, again) and not torch.equal(first, other)


def test_bad_arguments_are_refused():
    backbone, A = gaussian("diagonal"), Colorization()
    y = torch.zeros(1, 1, 4, 4)
    with pytest.raises(InvdiffError, match=r"y must be of shape \(1, 4, 4\).* got \(1, 3, 4, 4\)"):
        backbone.posterior(A, torch.zeros(1, 3, 4, 4))
    with pytest.raises(InvdiffError, match=r"y must be of shape .* got \(2, 1, 4, 4\)"):
        backbone.posterior(A, y.expand(2, 1, 4, 4))
    for sigma_y in (-1.0, math.nan, math.inf, "loud"):
        with pytest.raises(InvdiffError, match="sigma_y must"):
            backbone.posterior(A, y, sigma_y)
    with pytest.raises(InvdiffError, match="y must be finite"):
        backbone.posterior(A, y + math.nan)
    with pytest.raises(InvdiffError, match="parameters for 2"):
        backbone.posterior(Mask(torch.ones(2, 1, 4, 4)), torch.zeros(SHAPE))
    found = backbone.posterior(A, y)
    with pytest.raises(InvdiffError, match="x must be"):
        found.log_prob(torch.zeros(4))
    with pytest.raises(InvdiffError, match="n must"):
        found.sample(0)
    with pytest.raises(InvdiffError, match="seed must"):
        found.sample(1, seed=-3)


def test_too_large_a_measurement_is_refused_with_a_way_out(monkeypatch):
    monkeypatch.setattr(posterior, "SVD_WORK", 0)
    monkeypatch.setattr(posterior, "COGRAM_SIDE", 8)
    with pytest.raises(InvdiffError, match="up to 8 such numbers"):
        gaussian("dense").posterior(Blur(gaussian_kernel(3, 1.0)), torch.zeros(1, *SHAPE))
