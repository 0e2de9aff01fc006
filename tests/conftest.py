"""What several test files share: small priors, one of every operator."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator

import pytest
import torch

import invdiff as iv
from invdiff import extensions
from invdiff.backbones.zoo import BACKBONES
from invdiff.checkpoints.formats import FORMATS
from invdiff.metrics import METRICS
from invdiff.operators import OPERATORS
from invdiff.operators.masks import MASKS
from invdiff.samplers.base import SAMPLERS

REGISTERS = (SAMPLERS, OPERATORS, MASKS, METRICS, FORMATS, BACKBONES)
SHAPE = (3, 16, 16)


def quiet_solve(*args, **kwargs) -> iv.Solution:
    """`solve` in model range, without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", iv.InvdiffWarning)
        return iv.solve(*args, **{"value_range": (-1, 1), **kwargs})


def gaussian_backbone(
    shape: tuple[int, ...] = SHAPE, correlation: float = 0.9, std: float = 0.3
) -> iv.GaussianBackbone:
    """A prior of smooth pictures: circulant covariance falling off with the distance."""
    _, height, width = shape
    dy = torch.minimum(torch.arange(height), height - torch.arange(height))
    dx = torch.minimum(torch.arange(width), width - torch.arange(width))
    kernel = std**2 * correlation ** (dy[:, None] ** 2 + dx[None] ** 2).double().sqrt()
    spectrum = torch.fft.fft2(kernel).real.clamp(min=1e-4)
    return iv.GaussianBackbone.circulant(torch.zeros(shape), spectrum.float())


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    """A test that sets the number of threads sets it for itself."""
    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def registers_as_before(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a test (or a block of the docs) registers or imports is forgotten: the next one may take the same name."""
    before = [(register, dict(register._items)) for register in REGISTERS]
    path, imported, modules = list(sys.path), list(extensions._imported), len(sys.modules)
    yield
    for register, items in before:
        register._items = items
    if len(sys.modules) != modules:
        files = str(tmp_path_factory.getbasetemp())
        for name in [n for n, m in sys.modules.items() if str(getattr(m, "__file__", "")).startswith(files)]:
            del sys.modules[name]
    extensions._imported[:] = imported
    sys.path[:] = path


@pytest.fixture
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def plain_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch runs the networks: what a trial of another engine says depends on the machine."""
    monkeypatch.setenv("INVDIFF_ENGINE", "torch")


@pytest.fixture(scope="session")
def gaussian() -> iv.GaussianBackbone:
    return gaussian_backbone()


@pytest.fixture(scope="session")
def clean(gaussian: iv.GaussianBackbone) -> torch.Tensor:
    """Four draws from the prior, model range."""
    return gaussian.prior_sample(4, seed=1).float()


def operators(batch: int) -> dict[str, iv.LinearOperator]:
    """One of every kind, for images of `SHAPE`."""
    masks = torch.stack([iv.make_mask("random_pixels", 16, seed=i) for i in range(batch)])[:, None]
    return {
        "mask": iv.Mask(iv.make_mask("box", 16)),
        "masks": iv.Mask(masks),
        "colorization": iv.Colorization(),
        "nearest": iv.SuperResolution(4, "nearest"),
        "box": iv.SuperResolution(4, "box"),
        "bicubic": iv.SuperResolution(2, "bicubic"),
        "blur": iv.Blur(iv.gaussian_kernel(5, 1.0)),
        "walsh-hadamard": iv.WalshHadamard(0.5),
        "fourier": iv.Fourier(iv.fourier_mask((16, 16), acceleration=2)),
        "function": iv.FunctionOperator(lambda x: x[..., ::2] + 0.5 * x[..., 1::2]),
        "composition": iv.SuperResolution(2, "box") @ iv.Blur(iv.uniform_kernel(3)),
        "stack": iv.Stack([iv.Colorization(), iv.Mask(iv.make_mask("half", 16))]),
    }


FEW_STEPS = {
    "repaint": {"steps": 12, "jump_length": 3, "jump_n_sample": 2},
    "replacement": {"steps": 12},
    "ddnm": {"steps": 12},
    "ddnm+": {"steps": 12},
    "ddrm": {"steps": 12},
    "diffpir": {"steps": 12},
    "pigdm": {"steps": 12},
    "mcg": {"steps": 12},
    "dps": {"steps": 12},
    "mmps": {"steps": 12},
    "tmpd": {"steps": 12},
    "copaint": {"steps": 12, "lr": 0.5},
    "reddiff": {"steps": 12},
    "daps": {"steps": 20, "ode_steps": 2, "sigma_min": 0.02},
}
