"""Operators by name with options by name: the same words in Python, in a suite and on the command line."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from PIL import Image

from invdiff import (
    Blur,
    Colorization,
    Fourier,
    FunctionOperator,
    InvdiffError,
    LinearOperator,
    Mask,
    MatrixOperator,
    NonlinearOperator,
    Stack,
    SuperResolution,
    WalshHadamard,
    fourier_mask,
    gaussian_kernel,
    make_mask,
    make_operator,
    motion_kernel,
    solve,
)
from invdiff.bench.suite.suite import Task
from invdiff.cli.words import key_values
from invdiff.metrics import misfit
from invdiff.operators import OPERATORS, register_operator
from invdiff.samplers.presets import settings_for

SHAPE = (3, 16, 16)

SAID = [
    ("super_resolution", "scale=4 kernel=box", SuperResolution(4, "box")),
    ("blur", "kernel=gaussian sigma=1.6", Blur(gaussian_kernel(9, 1.6))),
    ("blur", "kernel=motion size=5 intensity=1 seed=3", Blur(motion_kernel(5, 1.0, seed=3))),
    ("blur", "size=3 threshold=0.001", Blur(gaussian_kernel(3, 1.5), 1e-3)),
    ("mask", "mask=wide seed=3", Mask(make_mask("wide", 16, 3))),
    ("mask", "mask=box fraction=0.25 invert=yes", Mask(~make_mask("box", 16, fraction=0.25))),
    ("colorization", "weights=luma", Colorization("luma")),
    ("colorization", "weights=0.5,0.25,0.25", Colorization((0.5, 0.25, 0.25))),
    ("compressed_sensing", "ratio=0.25 seed=2", WalshHadamard(0.25, 2)),
    ("fourier", "acceleration=2 seed=1", Fourier(fourier_mask(16, 2, seed=1))),
    ("Super-Resolution", "scale=2", SuperResolution(2)),
]


@pytest.mark.parametrize(("name", "words", "meant"), SAID)
def test_python_a_suite_and_the_command_line_say_the_same(name, words, meant):
    options = key_values(words.split())
    x = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    for made in (make_operator(name, SHAPE, **options), Task("t", name, options).build(SHAPE)):
        assert type(made) is type(meant) and repr(made) == repr(meant)
        assert torch.equal(made(x), meant(x))


def test_every_operator_is_built_from_options_by_itself():
    for name, cls in OPERATORS.items():
        assert inspect.ismethod(cls.from_options) and issubclass(cls, LinearOperator), name


def test_masks_kernels_and_matrices_come_from_files_too(tmp_path):
    known = make_mask("wide", 16, 1)
    Image.fromarray(255 * known.numpy().astype("uint8")).save(tmp_path / "m.png")
    assert torch.equal(make_operator("mask", SHAPE, mask=str(tmp_path / "m.png")).mask[0, 0], known)
    Image.fromarray((np.eye(5) * 200).astype("uint8")).save(tmp_path / "k.png")
    kernel = make_operator("blur", SHAPE, kernel=str(tmp_path / "k.png")).kernel
    assert torch.allclose(kernel, torch.eye(5, dtype=torch.float64) / 5)
    matrix = np.random.default_rng(0).normal(size=(4, 768))
    np.save(tmp_path / "a.npy", matrix)
    assert np.allclose(make_operator("matrix", SHAPE, matrix=str(tmp_path / "a.npy")).matrix, matrix)


def test_a_random_matrix_has_its_singular_values():
    A = make_operator("matrix", (1, 1, 8), matrix="random", rows=4, seed=2)
    assert isinstance(A, MatrixOperator)
    values = torch.linalg.svdvals(A.matrix)
    assert torch.allclose(values, torch.linspace(1.0, 0.3, 4, dtype=torch.float64))
    assert torch.equal(A.matrix, make_operator("matrix", (1, 1, 8), matrix="random", rows=4, seed=2).matrix)


def test_a_kernel_without_a_size_is_never_larger_than_the_image():
    assert make_operator("blur", (1, 6, 20), sigma=10).kernel.shape == (5, 5)
    assert make_operator("blur", (1, 6, 20), kernel="motion").kernel.shape == (5, 5)
    assert make_operator("blur", (1, 64, 64), sigma=3).kernel.shape == (17, 17)


def test_a_list_of_seeds_draws_a_mask_for_every_image():
    A = make_operator("mask", SHAPE, mask="wide", seed=[5, 6])
    assert torch.equal(A.mask[1, 0], make_mask("wide", 16, 6)) and A.batch_size == 2
    per_image = Task("t", "mask", {"mask": "wide", "seed": 3}, per_image=True).build(SHAPE, images=[2, 3])
    assert torch.equal(per_image.mask, A.mask)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("maks", {}, "Did you mean 'mask'"),
        ("super_resolution", {}, "must be given the option 'scale'"),
        ("super_resolution", {"scale": 2, "kernl": "box"}, "Did you mean 'kernel'"),
        ("super_resolution", {"scale": "two"}, "scale must be a whole number, got 'two'"),
        ("super_resolution", {"scale": 2.5}, "scale must be a whole number, got 2.5"),
        ("super_resolution", {"scale": 2, "kernel": True}, "kernel must be a word, got True"),
        ("blur", {"kernel": "gausian"}, "Did you mean 'gaussian'"),
        ("blur", {"kernel": "gaussian", "sigm": 1}, "Did you mean 'sigma'"),
        ("blur", {"sigma": "wide"}, "sigma must be a number, got 'wide'"),
        ("blur", {"kernel": torch.ones(3, 3), "sigma": 2}, "a kernel that is given has no option 'sigma'"),
        ("mask", {}, "mask must be given"),
        ("mask", {"mask": "halve"}, "Did you mean 'half'"),
        ("mask", {"mask": "wide", "invert": 2}, "invert must be True or False, got 2"),
        ("mask", {"mask": "box", "fractoin": 0.2}, "Did you mean 'fraction'"),
        ("mask", {"mask": "wide", "seed": "a"}, "seed"),
        ("mask", {"mask": torch.ones(8, 8)}, "size, 16x16, got 8x8"),
        ("compressed_sensing", {"ratio": "half"}, "ratio must be a number, got 'half'"),
        ("compressed_sensing", {"seed": 1.5}, "seed must be a whole number, got 1.5"),
        ("fourier", {"aceleration": 3}, "Did you mean 'acceleration'"),
        ("matrix", {}, "matrix must be given"),
        ("matrix", {"matrix": "random"}, "must be given the option 'rows'"),
        ("matrix", {"matrix": "random", "rows": 0}, "rows must be a whole number from 1 to 768, got 0"),
        ("matrix", {"matrix": "gone.npy"}, "gone.npy"),
        ("function", {}, "must be given the option 'forward'"),
        ("identity", {"scale": 2}, "it has none"),
    ],
)
def test_what_is_wrong_is_named(name, options, message):
    with pytest.raises(InvdiffError) as error:
        make_operator(name, SHAPE, **options)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("pairs", "message"), [(["scale"], "name=value"), (["=3"], "name=value"), (["a=1", "a=2"], "twice")]
)
def test_words_that_are_no_options(pairs, message):
    with pytest.raises(InvdiffError, match=message):
        key_values(pairs)


# ---- what an operator says of itself ------------------------------------------------------------------------------


class Ring(LinearOperator):
    """A x = x within a circle; elsewhere nothing is read."""

    task = "mask"
    keeps_range = rows_disjoint = columns_disjoint = channelwise = True

    def __init__(self, radius: float = 4) -> None:
        self.radius = radius

    def inside(self, like):
        rows, columns = (torch.arange(n, device=like.device) - (n - 1) / 2 for n in like.shape[-2:])
        return rows[:, None] ** 2 + columns[None] ** 2 <= self.radius**2

    def apply(self, x):
        return x * self.inside(x)

    def apply_adjoint(self, y, image_shape):
        return y * self.inside(y)

    def reads(self, image_shape):
        return self.inside(torch.zeros(image_shape)).expand(1, *image_shape)

    def infer_image_shape(self, measurement_shape):
        return measurement_shape


@pytest.fixture
def ring():
    register_operator("ring")(Ring)
    yield "ring"
    OPERATORS.remove("ring")


def test_a_third_operator_asks_for_tuned_settings_and_is_scored_like_a_mask(ring):
    A = make_operator(ring, (3, 64, 64), radius=20)
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    y = A(x)
    y[~A.reads((3, 64, 64))] = float("nan")  # what isn't read may hold anything
    solution = solve(A, y, "diffpir", steps=2)
    assert solution.settings["lambda_"] == settings_for("diffpir", "mask", False)["lambda_"]
    assert solution.settings["zeta"] == 1.0
    assert float(misfit(x, A, y)) == 0
    assert float(misfit(x + 0.25, A, y)) == pytest.approx(0.25, abs=1e-6)


def test_reads_follows_the_algebra():
    mask = Mask(make_mask("box", 16))
    read = mask.reads(SHAPE)
    assert torch.equal((2 * mask).reads(SHAPE), read)
    assert torch.equal((mask @ Blur(gaussian_kernel(3, 1.0))).reads(SHAPE), read)
    assert SuperResolution(2).reads(SHAPE) is None
    stack = Stack([mask, SuperResolution(2)]).reads(SHAPE)
    assert torch.equal(stack[:, : 3 * 256], read.flatten(1)) and bool(stack[:, 3 * 256 :].all())
    assert Stack([SuperResolution(2), Colorization()]).reads(SHAPE) is None


def test_a_first_look_has_the_shape_of_the_image():
    x = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(2))
    for A in (
        SuperResolution(4, "box"),
        Colorization(),
        Mask(make_mask("half", 16)),
        WalshHadamard(0.5),
        FunctionOperator(lambda x: x.mean(-1), image_shape=SHAPE),
        NonlinearOperator(lambda x: (4 * x).round(), lambda y: y / 4),
    ):
        assert A.first_look(A(x), SHAPE).shape == x.shape
