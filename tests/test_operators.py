"""Every operator is linear, has the adjoint and pseudo-inverse it says it has, and filters as its matrix does."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional

from invdiff.errors import InvdiffError
from invdiff.operators import (
    Blur,
    Colorization,
    Fourier,
    FunctionOperator,
    Identity,
    LinearOperator,
    Mask,
    MatrixOperator,
    Stack,
    SuperResolution,
    WalshHadamard,
    fourier_mask,
    gaussian_kernel,
    get_operator,
    make_mask,
    motion_kernel,
    operator_names,
    register_operator,
    uniform_kernel,
)
from invdiff.operators.checking import refuse_nonlinear

pytestmark = pytest.mark.usefixtures("one_thread")


def random_mask(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) > 0.4


def random_matrix(m: int, n: int) -> torch.Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def edges(x: torch.Tensor) -> torch.Tensor:
    return x[..., 1:] - x[..., :-1]


KERNEL = random_matrix(3, 3)


def filtered(x: torch.Tensor) -> torch.Tensor:
    return functional.conv2d(x.mean(1, keepdim=True), KERNEL.to(x)[None, None], stride=2, padding=1)


GREY = (1, 16, 16)
COLOUR = (3, 16, 16)
ODD = (3, 9, 7)

CASES: dict[str, tuple[LinearOperator, tuple[int, int, int]]] = {
    "identity": (Identity(), COLOUR),
    "mask": (Mask(random_mask(16, 16)), COLOUR),
    "mask per channel": (Mask(random_mask(3, 16, 16)), COLOUR),
    "mask per image": (Mask(random_mask(2, 1, 16, 16)), COLOUR),
    "mask odd": (Mask(random_mask(9, 7)), ODD),
    "nearest": (SuperResolution(4), GREY),
    "nearest odd": (SuperResolution(2), ODD),
    "box": (SuperResolution(4, "box"), COLOUR),
    "box odd": (SuperResolution(2, "box"), ODD),
    "box by 5": (SuperResolution(5, "box"), GREY),
    "bicubic": (SuperResolution(4, "bicubic"), GREY),
    "bicubic by 3, odd": (SuperResolution(3, "bicubic"), ODD),
    "mean": (Colorization(), COLOUR),
    "luma": (Colorization("luma"), ODD),
    "gaussian blur": (Blur(gaussian_kernel(5, 0.8)), GREY),
    "uniform blur": (Blur(uniform_kernel(4)), GREY),
    "motion blur, odd": (Blur(motion_kernel(5, seed=1)), ODD),
    "hadamard": (WalshHadamard(0.4, seed=2), GREY),
    "hadamard 4x16": (WalshHadamard(0.5), (2, 4, 16)),
    "fourier": (Fourier(fourier_mask(16, 2.0)), GREY),
    "fourier, odd": (Fourier(random_mask(9, 7)), ODD),
    "wide matrix": (MatrixOperator(random_matrix(60, 256)), GREY),
    "tall matrix of low rank": (MatrixOperator(random_matrix(80, 20) @ random_matrix(20, 63)), (1, 9, 7)),
    "function": (FunctionOperator(edges), GREY),
    "function with adjoint": (FunctionOperator(lambda x: 2 * x.flip(-1), lambda y: 2 * y.flip(-1)), GREY),
    "convolution": (FunctionOperator(filtered), ODD),
    "scaled": (-0.5 * SuperResolution(2, "box"), GREY),
    "adjoint": (SuperResolution(2, "box").H, (1, 8, 8)),
    "mask of box": (Mask(random_mask(8, 8)) @ SuperResolution(2, "box"), COLOUR),
    "box of mask": (SuperResolution(2, "box") @ Mask(random_mask(16, 16)), GREY),
    "grey of mask per image": (Colorization() @ Mask(random_mask(2, 3, 9, 7)), ODD),
    "mask of blur": (Mask(random_mask(2, 1, 16, 16)) @ Blur(gaussian_kernel(3, 0.6)), GREY),
    "box of blur": (SuperResolution(2, "box") @ Blur(gaussian_kernel(3, 0.6)), COLOUR),
    "blur of colour": (Blur(gaussian_kernel(3, 0.6)) @ Colorization(), ODD),
    "hadamard of blur": (WalshHadamard(0.5) @ Blur(gaussian_kernel(3, 0.5)), GREY),
    "fourier of box": (Fourier(random_mask(8, 8)) @ SuperResolution(2, "box"), GREY),
    "three": (Colorization() @ SuperResolution(2, "box") @ Mask(random_mask(16, 16)), COLOUR),
    "three, generic": (Mask(random_mask(5, 4)) @ SuperResolution(2, "bicubic") @ Blur(uniform_kernel(3)), ODD),
    "matrix of grey": (MatrixOperator(random_matrix(20, 63)) @ Colorization(), ODD),
    "sum": (Identity() + 0.5 * Blur(uniform_kernel(3)), GREY),
    "sum of three": (Mask(random_mask(9, 7)) - 0.3 * Blur(uniform_kernel(3)) + 2 * Identity(), (1, 9, 7)),
    "stack": (Stack([Colorization(), SuperResolution(2, "box")]), ODD),
    "stack of masks": (Stack([Mask(random_mask(16, 16)), 2 * Mask(random_mask(16, 16, seed=1))]), GREY),
    "stack per image": (Stack([Mask(random_mask(2, 1, 9, 7)), SuperResolution(3)]), (1, 9, 7)),
}

FILTERS = {
    "regularised": lambda values: 1.0 / (values + 0.1),
    "constant": torch.ones_like,
    "step": lambda values: torch.where(values > 0.37, 2.0, -1.0).to(values.dtype),
    "linear": lambda values: 3.0 * values + 0.5,
    "root": lambda values: torch.sqrt(values + 0.2),
}

each_case = pytest.mark.parametrize("case", CASES)


def draw(shape, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def matrices(operator: LinearOperator, image_shape) -> list[np.ndarray]:
    """The matrix for each of two images, by applying A to the unit images."""
    dense = operator.dense(image_shape)
    return list(dense.numpy()) if dense.ndim == 3 else [dense.numpy()] * 2


def times(per_image: list[np.ndarray], v: torch.Tensor, shape) -> torch.Tensor:
    flat = v.reshape(2, -1).numpy()
    return torch.from_numpy(np.stack([matrix @ one for matrix, one in zip(per_image, flat, strict=True)])).reshape(
        2, *shape
    )


@each_case
def test_passes_its_own_check(case):
    operator, image_shape = CASES[case]
    report = operator.check(image_shape, tolerance=1e-9)
    assert report.passed and len(report.errors) == 12


@each_case
def test_is_its_matrix_and_the_adjoint_its_transpose(case):
    operator, image_shape = CASES[case]
    A = operator.bind(image_shape)
    x = draw(image_shape)
    y = A(x)
    dense = matrices(operator, image_shape)
    assert tuple(y.shape) == (2, *A.measurement_shape(image_shape))
    torch.testing.assert_close(times(dense, x, y.shape[1:]), y, atol=1e-10, rtol=1e-10)
    z = draw(y.shape[1:], seed=1)
    torch.testing.assert_close(times([one.T for one in dense], z, image_shape), A.adjoint(z), atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(A.H(z), A.adjoint(z))
    torch.testing.assert_close(A.H.H(x), y)


@each_case
def test_pseudo_inverse_is_that_of_the_matrix(case):
    operator, image_shape = CASES[case]
    A = operator.bind(image_shape)
    dense = matrices(operator, image_shape)
    inverses = [np.linalg.pinv(one, rcond=1e-9) for one in dense]
    z = draw(A.measurement_shape(image_shape))
    torch.testing.assert_close(A.pinv(z), times(inverses, z, image_shape), atol=1e-7, rtol=1e-7)
    x = draw(image_shape, seed=1)
    seen = times([inverse @ one for inverse, one in zip(inverses, dense, strict=True)], x, image_shape)
    torch.testing.assert_close(A.project(x), seen, atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(A.complement(x), x - seen, atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(A(A.complement(x)), torch.zeros_like(z), atol=1e-7, rtol=0)
    other = draw(image_shape, seed=2)
    torch.testing.assert_close(A.merge(other, x), A.project(other) + x - seen, atol=1e-7, rtol=1e-7)
    single = A.pinv(z.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), A.pinv(z), atol=2e-4, rtol=2e-4)


def spectral(f, symmetric: np.ndarray, range_only: bool = False) -> np.ndarray:
    values, vectors = np.linalg.eigh(symmetric)
    values = np.where(values > 1e-10 * values.max(), values, 0.0)
    weights = f(torch.from_numpy(values)).numpy()
    return (vectors * np.where(values > 0, weights, 0.0 if range_only else weights)) @ vectors.T


@each_case
@pytest.mark.parametrize("name", FILTERS)
def test_filters_are_those_of_the_eigendecomposition(case, name):
    operator, image_shape = CASES[case]
    A, f = operator.bind(image_shape), FILTERS[name]
    dense = matrices(operator, image_shape)
    if dense[0] is dense[1]:
        grams, cograms, backs = (
            [part] * 2
            for part in (
                spectral(f, dense[0].T @ dense[0]),
                spectral(f, dense[0] @ dense[0].T),
                dense[0].T @ spectral(f, dense[0] @ dense[0].T, range_only=True),
            )
        )
    else:
        grams = [spectral(f, one.T @ one) for one in dense]
        cograms = [spectral(f, one @ one.T) for one in dense]
        backs = [one.T @ spectral(f, one @ one.T, range_only=True) for one in dense]
    x, z = draw(image_shape), draw(A.measurement_shape(image_shape), seed=1)
    close = {"atol": 1e-7, "rtol": 1e-7}
    torch.testing.assert_close(A.gram_filter(f, x), times(grams, x, image_shape), **close)
    torch.testing.assert_close(A.cogram_filter(f, z), times(cograms, z, z.shape[1:]), **close)
    expected = times(backs, z - A(x), image_shape)
    torch.testing.assert_close(A.filtered_residual(f, z, x), expected, **close)
    single = A.filtered_residual(f, z.float(), x.float())
    assert single.dtype == torch.float32
    if name != "step":
        torch.testing.assert_close(single.double(), expected, atol=1e-4, rtol=1e-3)


@each_case
def test_infinite_filter_at_zero_stays_off_the_null_space(case):
    operator, image_shape = CASES[case]
    A = operator.bind(image_shape)
    x = draw(image_shape)
    z = A(draw(image_shape, seed=1))
    corrected = x + A.filtered_residual(lambda values: 1.0 / values, z, x)
    assert bool(torch.isfinite(corrected).all())
    torch.testing.assert_close(A(corrected), z, atol=1e-7, rtol=1e-7)


@each_case
def test_gradients_reach_x_and_y(case):
    operator, image_shape = CASES[case]
    A, f = operator.bind(image_shape), FILTERS["regularised"]
    x = draw(image_shape).requires_grad_()
    z = draw(A.measurement_shape(image_shape), seed=1).requires_grad_()
    v = draw(image_shape, seed=2)
    to_x, to_z = torch.autograd.grad((A.filtered_residual(f, z, x) * v).sum(), (x, z))
    # r is affine in (x, z): its transposes are -A^T f A and f A, and f commutes
    torch.testing.assert_close(to_x, A.filtered_residual(f, torch.zeros_like(z), v).detach(), atol=1e-8, rtol=1e-8)
    with torch.no_grad():
        torch.testing.assert_close((to_z * z).sum(), (v * A.filtered_adjoint(f, z)).sum(), atol=1e-8, rtol=1e-8)
    (through,) = torch.autograd.grad(A(x).square().sum(), x)
    torch.testing.assert_close(through, 2 * A.adjoint(A(x)).detach(), atol=1e-9, rtol=1e-9)


@each_case
def test_batches_do_not_matter_and_inference_mode_is_the_same(case):
    operator, image_shape = CASES[case]
    f = FILTERS["regularised"]
    A = operator.bind(image_shape)
    with torch.inference_mode():
        x = draw(image_shape, dtype=torch.float32)
        z = A(draw(image_shape, seed=1, dtype=torch.float32))
        inferred = A.filtered_residual(f, z, x)
        filtered_images = A.gram_filter(f, x)
    x, z = x.clone(), z.clone()
    torch.testing.assert_close(A.filtered_residual(f, z, x), inferred, atol=0, rtol=0)
    for i in range(2):
        one = A[i]
        torch.testing.assert_close(
            one.filtered_residual(f, z[i : i + 1], x[i : i + 1])[0], inferred[i], atol=2e-6, rtol=1e-5
        )
        torch.testing.assert_close(one.gram_filter(f, x[i : i + 1])[0], filtered_images[i], atol=2e-5, rtol=1e-5)
    # what inference mode left behind can be differentiated through
    x.requires_grad_()
    assert torch.autograd.grad(A.filtered_residual(f, z, x).sum(), x)[0].shape == x.shape


@each_case
def test_scipy_sees_the_same_matrix(case):
    operator, image_shape = CASES[case]
    one = operator[0]
    dense = one.dense(image_shape).numpy()
    as_scipy = one.as_scipy(image_shape)
    v, w = np.ones(dense.shape[1]), np.arange(dense.shape[0], dtype=float)
    np.testing.assert_allclose(as_scipy @ v, dense @ v, atol=1e-9)
    np.testing.assert_allclose(as_scipy.H @ w, dense.T @ w, atol=1e-8)


# What a family means


def test_nearest_super_resolution_sees_what_its_mask_sees():
    x = draw((3, 16, 10))
    A, M = SuperResolution(2, "nearest"), Mask(make_mask("super_resolve", (16, 10)))
    torch.testing.assert_close(A.project(x), M.project(x))
    torch.testing.assert_close(A(x), M(x)[..., ::2, ::2])
    f = FILTERS["regularised"]
    y = draw((3, 16, 10), seed=1)
    torch.testing.assert_close(A.filtered_residual(f, A(y), x), M.filtered_residual(f, M(y), x))


def test_box_averages_blocks_and_its_pseudo_inverse_repeats():
    x = draw((1, 8, 8))
    A = SuperResolution(4, "box")
    torch.testing.assert_close(A(x), x.reshape(2, 1, 2, 4, 2, 4).mean((3, 5)))
    torch.testing.assert_close(A.pinv(A(x)), A(x).repeat_interleave(4, 2).repeat_interleave(4, 3))
    odd = draw((1, 5, 5))
    torch.testing.assert_close(SuperResolution(2, "box")(odd)[..., 2, 2], odd[..., 4, 4])


def test_bicubic_keeps_constants_and_reproduces_smooth_slopes():
    ones = torch.ones(1, 1, 16, 12, dtype=torch.float64)
    torch.testing.assert_close(SuperResolution(4, "bicubic")(ones), torch.ones(1, 1, 4, 3, dtype=torch.float64))
    ramp = torch.arange(64, dtype=torch.float64).expand(1, 1, 64, 64)
    centres = 4 * torch.arange(16, dtype=torch.float64) + 1.5
    torch.testing.assert_close(SuperResolution(4, "bicubic")(ramp)[0, 0, 0, 2:-2], centres[2:-2])


@pytest.mark.parametrize("kernel", [gaussian_kernel(5, 1.0), motion_kernel(7, 0.7, seed=3), torch.rand(3, 5)])
def test_blur_is_a_circular_convolution(kernel):
    x = draw((1, 12, 11))
    expected = ndimage.convolve(x[0, 0].numpy(), np.asarray(kernel, dtype=float), mode="wrap")
    torch.testing.assert_close(Blur(kernel)(x)[0, 0], torch.from_numpy(expected), atol=2e-6, rtol=1e-5)


def test_kernels_sum_to_one_and_are_not_negative():
    for kernel in (gaussian_kernel(9, 2.0), uniform_kernel(4), motion_kernel(9), motion_kernel(2), motion_kernel(1)):
        assert float(kernel.sum()) == pytest.approx(1.0) and float(kernel.min()) >= 0
    assert torch.equal(motion_kernel(9, seed=4), motion_kernel(9, seed=4))
    assert not torch.equal(motion_kernel(9, seed=4), motion_kernel(9, seed=5))
    straight = motion_kernel(9, intensity=0.0, angle=0.0)
    assert torch.equal(straight.sum(1) > 0, torch.arange(9) == 4)


def test_hadamard_rows_are_orthonormal_signs_with_the_constant_one():
    dense = WalshHadamard(0.25, seed=3).dense((1, 8, 8))
    assert dense.shape == (16, 64)
    torch.testing.assert_close(dense @ dense.mT, torch.eye(16, dtype=torch.float64))
    torch.testing.assert_close(dense.abs(), torch.full_like(dense, 1 / 8))
    assert bool((dense[0] > 0).all())
    assert torch.equal(dense, WalshHadamard(0.25, seed=3).dense((1, 8, 8)))
    assert not torch.equal(dense, WalshHadamard(0.25, seed=4).dense((1, 8, 8)))


def test_fourier_of_all_frequencies_is_an_isometry():
    A = Fourier(torch.ones(8, 6))
    x = draw((2, 8, 6))
    torch.testing.assert_close(A(x).square().sum(), x.square().sum())
    torch.testing.assert_close(A.pinv(A(x)), x)
    mask = fourier_mask((32, 32), acceleration=4, center_fraction=0.1)
    assert int(mask[0].sum()) == 8 and bool(mask[:, [0, 1, 31]].all()) and bool((mask == mask[:1]).all())


def test_colorization_weights():
    x = draw((3, 4, 4))
    torch.testing.assert_close(Colorization()(x), x.mean(1, keepdim=True))
    torch.testing.assert_close(Colorization((0.2, 0.3, 0.5))(x)[:, 0], 0.2 * x[:, 0] + 0.3 * x[:, 1] + 0.5 * x[:, 2])


def test_masked_measurements_are_read_where_known_only():
    mask = random_mask(8, 8)
    A = Mask(mask)
    x = draw((3, 8, 8))
    y = torch.where(mask, x, torch.nan)
    assert torch.equal(A.pinv(y), torch.where(mask, x, 0.0))
    assert bool(torch.isfinite(A.filtered_residual(FILTERS["regularised"], y, 0 * x)).all())
    assert A.known_fraction == pytest.approx(float(mask.double().mean()))
    assert float(A.measure(x, 0.3)[:, :, ~mask].abs().max()) == 0


def test_empty_and_full_masks_are_legal():
    x = draw((3, 4, 4))
    empty, full = Mask(torch.zeros(4, 4)), Mask(torch.ones(4, 4))
    assert empty.known_fraction == 0 and full.known_fraction == 1
    assert float(empty.pinv(x).abs().max()) == 0 and torch.equal(full.project(x), x)
    nothing = SuperResolution(2, "box") @ empty
    assert float(nothing.pinv(nothing(x)).abs().max()) == 0


# Parts of the batch


def test_indexing_picks_the_parameters_of_an_image():
    masks = random_mask(4, 1, 9, 7)
    shared = SuperResolution(3)
    chain = Stack([2 * Mask(masks), Mask(masks.flip(0)) @ Blur(uniform_kernel(3)) + Identity()])
    assert chain.batch_size == 4 and shared.batch_size is None and shared[1:3] is shared
    x = draw((3, 9, 7), dtype=torch.float64).repeat(2, 1, 1, 1)
    y = chain(x)
    for index in ([2, 0], slice(1, 3), torch.tensor([3, 3])):
        part = chain[index]
        assert part.batch_size == 2
        torch.testing.assert_close(part(x[index]), y[index])
    assert chain[2].batch_size is None
    torch.testing.assert_close(chain[2](x[2:3]), y[2:3])
    with pytest.raises(InvdiffError, match="4"):
        chain(x[:3])


def test_masks_of_different_batches_do_not_mix():
    with pytest.raises(InvdiffError, match=r"\[2, 4\]"):
        Mask(random_mask(2, 1, 4, 4)) @ Mask(random_mask(4, 1, 4, 4))


def test_operators_are_immutable_and_move():
    A = Mask(random_mask(9, 7)) @ Blur(uniform_kernel(3))
    x = draw((3, 9, 7))
    before = repr(A)
    first = A.pinv(A(x))
    moved = A.to("cpu")
    assert moved is not A and repr(A) == before and A.image_shape is None
    torch.testing.assert_close(moved.pinv(moved(x)), first)
    bound = A.bind((3, 9, 7))
    assert bound.image_shape == (3, 9, 7) and A.image_shape is None
    assert A.device == torch.device("cpu")


def test_stack_splits_and_joins():
    stack = Stack([Colorization(), SuperResolution(2)])
    x = draw((3, 8, 8))
    grey, small = stack.split(stack(x), (3, 8, 8))
    torch.testing.assert_close(grey, Colorization()(x))
    torch.testing.assert_close(small, SuperResolution(2)(x))
    torch.testing.assert_close(stack.join([grey, small]), stack(x))
    with pytest.raises(InvdiffError, match="join"):
        stack.split(stack(x)[:, 1:], (3, 8, 8))


def test_operators_made_under_inference_mode_can_be_differentiated():
    with torch.inference_mode():
        made = [
            Mask(random_mask(2, 1, 8, 8))[[1, 0]].to("cpu"),
            Colorization(),
            WalshHadamard(),
            Blur(uniform_kernel(3)),
            SuperResolution(2, "bicubic"),
            Fourier(random_mask(8, 8)),
            MatrixOperator(random_matrix(20, 192)),
        ]
        for A in made:
            A.project(draw((3, 8, 8)))
    for A in made:
        x = draw((3, 8, 8)).requires_grad_()
        y = A(draw((3, 8, 8), seed=1))
        (gradient,) = torch.autograd.grad(A.bind((3, 8, 8)).filtered_residual(lambda values: values, y, x).sum(), x)
        assert bool(torch.isfinite(gradient).all())


def test_operators_survive_pickling_and_copying():
    A = Mask(random_mask(9, 7)) @ Blur(uniform_kernel(3))
    x = draw((3, 9, 7))
    expected = A.project(x)
    for other in (pickle.loads(pickle.dumps(A)), copy.deepcopy(A)):
        torch.testing.assert_close(other.project(x), expected)


# Measurements


def test_noise_is_that_of_the_image_and_the_seed():
    A = SuperResolution(2, "box")
    x = draw((3, 8, 8), dtype=torch.float32)
    state = torch.random.get_rng_state()
    noisy = A.measure(x, 0.5, seed=3)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(noisy, A.measure(x, 0.5, seed=3)) and not torch.equal(noisy, A.measure(x, 0.5, seed=4))
    assert torch.equal(noisy[:1], A.measure(x[:1], 0.5, seed=3))
    assert torch.equal(A.measure(x, 0.0), A(x))
    noise = (noisy - A(x)) / 0.5
    assert not torch.equal(noise[0], noise[1]) and 0.7 < float(noise.std()) < 1.3
    swapped = A.measure(x.flip(0), 0.5, seed=[8, 7])
    torch.testing.assert_close(swapped.flip(0), A.measure(x, 0.5, seed=[7, 8]))
    for bad in ({"sigma_y": -1.0}, {"sigma_y": 1.0, "seed": [1]}, {"sigma_y": 1.0, "seed": -1}):
        with pytest.raises(InvdiffError, match=r"sigma_y|seed"):
            A.measure(x, **bad)


# Errors


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SuperResolution(0), "scale must be .* got 0"),
        (lambda: SuperResolution(2, "bicubc"), "'bicubic'"),
        (lambda: Colorization("lumma"), "'luma'"),
        (lambda: Colorization((1, 2)), "three"),
        (lambda: Colorization((0, 0, 0)), "zero"),
        (lambda: Colorization()(torch.zeros(1, 1, 4, 4)), "3 channels.*got 1"),
        (lambda: Blur([1, 2, 3]), "2-dimensional"),
        (lambda: Blur(torch.full((3, 3), torch.nan)), "NaN"),
        (lambda: Blur(uniform_kernel(9))(torch.zeros(1, 1, 8, 8)), "8x8, got 9x9"),
        (lambda: gaussian_kernel(3, 0.0), "sigma"),
        (lambda: WalshHadamard(1.5), "ratio"),
        (lambda: WalshHadamard()(torch.zeros(1, 1, 6, 8)), "powers of two"),
        (lambda: Fourier(torch.ones(3, 4, 4)), "mask"),
        (lambda: Fourier(torch.ones(4, 4))(torch.zeros(1, 1, 8, 8)), "8x8"),
        (lambda: MatrixOperator(torch.ones(3)), "matrix"),
        (lambda: MatrixOperator(torch.ones(3, 5))(torch.zeros(1, 1, 2, 2)), "must have 5 elements"),
        (lambda: FunctionOperator(3), "forward"),
        (lambda: FunctionOperator(edges).adjoint(torch.zeros(1, 1, 4, 3)), "bind"),
        (lambda: FunctionOperator(lambda x: x.detach()).adjoint(torch.zeros(1, 1, 4, 4), (1, 4, 4)), "adjoint="),
        (lambda: FunctionOperator(torch.fft.fft2)(torch.zeros(1, 1, 4, 4)), "view_as_real"),
        (lambda: Stack([]), "at least one"),
        (lambda: Stack(Identity()), "list of at least one"),
        (lambda: Stack([3]), "linear operator, got 3"),
        (lambda: Identity()(torch.zeros(4, 4)), r"\(B, C, H, W\)"),
        (lambda: Identity()(torch.zeros(1, 1, 4, 4, dtype=torch.uint8)), "floating"),
        (lambda: Identity()(np.zeros((1, 1, 4, 4))), "ndarray"),
        (lambda: float("nan") * Identity(), "factor must be a number"),
        (lambda: get_operator("superresolutoin"), "'super_resolution'"),
        (lambda: Mask(torch.ones(4, 4))(torch.zeros(1, 3, 4, 5)), "3x4x5, got 4x4"),
    ],
)
def test_errors_say_what_was_wrong(make, words):
    with pytest.raises(InvdiffError, match=words):
        make()


def test_an_error_inside_a_chain_names_the_operator():
    A = Colorization() @ Blur(uniform_kernel(9)) @ SuperResolution(2)
    with pytest.raises(InvdiffError, match=r"in Blur\(9x9\), a part of"):
        A(torch.zeros(1, 3, 8, 8))
    with pytest.raises(InvdiffError, match="measure"):
        (Identity() + SuperResolution(2))(torch.zeros(1, 3, 8, 8))


def test_repr_reads_like_the_formula():
    A = 0.5 * (Identity() + SuperResolution(1)) @ Colorization().H
    assert repr(A) == "0.5 * (Identity() + SuperResolution(1, 'nearest')) @ (Colorization('mean')).H"
    assert repr(Stack([Identity(), Blur(np.ones((3, 3)))])) == "Stack([Identity(), Blur(3x3)])"


# Operators of others


class Halves(LinearOperator):
    """The two halves of an image, added: what a third package writes."""

    def apply(self, x):
        left, right = x.chunk(2, dim=-1)
        return left + right

    def apply_adjoint(self, y, image_shape):
        return torch.cat([y, y], dim=-1)


def test_two_methods_make_an_operator():
    assert Halves().check((3, 4, 8), tolerance=1e-9).passed
    assert (Halves() @ Blur(uniform_kernel(3))).check((3, 4, 8), tolerance=1e-9).passed


def test_check_finds_what_is_wrong():
    class WrongAdjoint(Halves):
        def apply_adjoint(self, y, image_shape):
            return torch.cat([y, 0 * y], dim=-1)

    with pytest.raises(InvdiffError, match="FAILED"):
        WrongAdjoint().check((1, 4, 8))
    report = WrongAdjoint().check((1, 4, 8), raise_=False)
    assert "<A x, y> = <x, A^T y>" in report.failures and "FAILED" in str(report)
    report = FunctionOperator(lambda x: x + 1.0).check((1, 4, 4), raise_=False)
    assert "A (a x + b z) = a A x + b A z" in report.failures


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (lambda x: x**2, "must be linear"),
        (lambda x: x.abs(), "must be linear"),
        (lambda x: x + 1, "must be linear"),
        (lambda x: x * float("nan"), "always measure alike"),
        (lambda x: x + torch.randn(x.shape), "always measure alike"),
        (lambda x: x - x.mean(0, keepdim=True), "every image of a batch alone"),
        (lambda x: x @ torch.ones(3, 3), "forward must take a batch of shape .* RuntimeError"),
        (lambda x: x["key"], "forward must take a batch"),
        (lambda x: None, "forward must return a real tensor"),
    ],
)
def test_a_function_that_is_not_linear_is_refused_before_a_run(forward, words):
    A = FunctionOperator(forward)
    for operator in (A, A @ Identity(), Stack([Identity(), A]), Identity() + A):
        with pytest.raises(InvdiffError, match=words):
            refuse_nonlinear(operator, (1, 4, 4))


def test_a_linear_function_passes_the_probe_and_is_asked_once():
    asked = []

    def forward(x):
        asked.append(tuple(x.shape))
        return 0.5 * x[..., ::2] - x[..., 1::2]

    A = FunctionOperator(forward)
    refuse_nonlinear(A, (1, 4, 4))
    count = len(asked)
    refuse_nonlinear(A, (1, 4, 4))
    assert 0 < count == len(asked)
    masks = Mask(torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.5)
    refuse_nonlinear(A @ masks, (1, 4, 4))


def test_an_operator_is_no_sequence():
    """Where all images share it A[i] is A for every i: to go through it would never end."""
    for loop in (list, tuple, lambda A: 3 in A):
        with pytest.raises(TypeError):
            loop(Identity())
    assert torch.equal((np.float64(2) * Identity())(torch.ones(1, 1, 2, 2)), torch.full((1, 1, 2, 2), 2.0))
    with pytest.raises(InvdiffError, match="factor"):
        Identity() / 0


def test_registered_operators_are_found_by_name():
    assert get_operator("mask") is Mask and "compressed_sensing" in operator_names()
    register_operator("halves for this test")(Halves)
    assert get_operator("halves for this test") is Halves
    with pytest.raises(InvdiffError, match="already"):
        register_operator("mask")(Halves)


def test_single_precision_callables_work():
    convolution = torch.nn.Conv2d(1, 2, 3, bias=False)
    assert FunctionOperator(convolution).check((1, 9, 7), tolerance=1e-5).passed


def test_to_copies_a_module_and_leaves_the_original():
    convolution = torch.nn.Conv2d(1, 1, 3, padding=1, bias=False)
    A = FunctionOperator(convolution)
    B = (Identity() @ A).to("meta")
    assert B.device == torch.device("meta") and A.device == torch.device("cpu")
    assert convolution.weight.device == torch.device("cpu")
    assert B(torch.zeros(2, 1, 8, 8, device="meta")).shape == (2, 1, 8, 8)
    assert Mask(random_mask(4, 4)).to("meta").device == torch.device("meta")
    with pytest.raises(InvdiffError, match=r"mask\.to"):
        Mask(random_mask(4, 4))(torch.zeros(1, 1, 4, 4, device="meta"))


# The generic fallback at sizes where no dense matrix is possible


def large() -> LinearOperator:
    return Mask(random_mask(64, 64)) @ Blur(gaussian_kernel(5, 0.7))


@pytest.mark.parametrize("name", ["regularised", "linear", "root"])
def test_lanczos_agrees_with_a_solver_at_64(name):
    A = large()
    x, y = draw((3, 64, 64), dtype=torch.float32), draw((3, 64, 64), seed=1, dtype=torch.float32)
    got = A.filtered_residual(FILTERS[name], y, x)
    assert got.dtype == torch.float32 and bool(torch.isfinite(got).all())
    residual = y.double() - A(x.double())
    if name == "regularised":  # (A^T A + 0.1) r = A^T (y - A x)
        again = A.adjoint(A(got.double())) + 0.1 * got.double()
        torch.testing.assert_close(again, A.adjoint(residual), atol=2e-5, rtol=1e-4)
    elif name == "linear":
        expected = A.adjoint(3.0 * A(A.adjoint(residual)) + 0.5 * residual)
        torch.testing.assert_close(got.double(), expected, atol=2e-5, rtol=1e-4)
    else:  # the root, twice, is l + 0.2
        twice = A.gram_filter(FILTERS[name], got.double())
        back = A.adjoint(residual)
        torch.testing.assert_close(twice, A.adjoint(A(back)) + 0.2 * back, atol=2e-5, rtol=1e-4)


def test_lanczos_projects_and_differentiates_at_64():
    A = Stack([SuperResolution(2, "box"), Mask(random_mask(64, 64))])
    x = draw((3, 64, 64), dtype=torch.float32).requires_grad_()
    projected = A.project(x)
    torch.testing.assert_close(A(projected), A(x), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(A.project(projected), projected, atol=1e-4, rtol=1e-4)
    v = draw((3, 64, 64), seed=1, dtype=torch.float32)
    (gradient,) = torch.autograd.grad((projected * v).sum(), x)
    torch.testing.assert_close(gradient, A.project(v), atol=1e-4, rtol=1e-4)


def test_lanczos_result_of_an_image_does_not_depend_on_the_batch():
    A = large()
    x, y = draw((3, 64, 64), dtype=torch.float32), draw((3, 64, 64), seed=1, dtype=torch.float32)
    x[1] *= 1e-3
    together = A.filtered_residual(FILTERS["regularised"], y, x)
    alone = A.filtered_residual(FILTERS["regularised"], y[1:], x[1:])
    torch.testing.assert_close(together[1:], alone, atol=1e-6, rtol=1e-6)


def test_a_kernel_s_name_is_refused_with_what_makes_kernels():
    with pytest.raises(InvdiffError, match=r"kernel must be .*got 'gaussian'; gaussian_kernel\(\)"):
        Blur("gaussian")
