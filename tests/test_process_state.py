"""What the process is set to, its default data type and its random state, is neither read nor changed."""

from __future__ import annotations

import warnings

import pytest
import torch
from conftest import FEW_STEPS, SHAPE, gaussian_backbone, operators

import invdiff as iv
from invdiff.noise import NoiseSource


@pytest.fixture
def float64_by_default():
    before = torch.get_default_dtype()

    def set_to(dtype):
        torch.set_default_dtype(dtype)

    yield set_to
    torch.set_default_dtype(before)


def restorations(kind):
    """With one operator, by every sampler, everything made anew."""
    operator = operators(2)[kind]
    y = operator.measure(torch.linspace(0, 1, 2 * 768, dtype=torch.float32).reshape(2, *SHAPE), 0.05)
    network = iv.NetworkBackbone(lambda x, t: 0.5 * x, image_shape=SHAPE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", iv.InvdiffWarning)
        return {
            (sampler, sigma): iv.solve(
                operator, y, sampler, backbone=network, sigma_y=sigma, **{**options, "steps": 6}
            ).x
            for sampler, options in FEW_STEPS.items()
            for sigma in (0.0, 0.05)
        }


@pytest.mark.parametrize("kind", ["mask", "blur", "bicubic", "walsh-hadamard", "fourier", "function"])
def test_the_default_data_type_changes_no_bit(kind, float64_by_default):
    wanted = restorations(kind)
    float64_by_default(torch.float64)
    found = restorations(kind)
    for case, x in found.items():
        assert x.dtype == torch.float32 and torch.equal(x, wanted[case]), case


def test_embedded_backbones_are_the_same_under_any_default_and_draw_nothing(float64_by_default):
    x, outputs = torch.zeros(1, 3, 64, 64), []
    for dtype in (torch.float32, torch.float64):
        float64_by_default(dtype)
        before = torch.random.get_rng_state()
        for name in ("cats64", "cats64-gmm"):
            with torch.no_grad():
                outputs.append(iv.load_backbone(name, precision="float32").predict(x, 500).x0)
        assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(outputs[0], outputs[2]) and torch.equal(outputs[1], outputs[3])


def test_a_solve_leaves_the_random_state_alone():
    before = torch.random.get_rng_state()
    iv.solve(iv.Mask(iv.make_mask("half", 16)), torch.full(SHAPE, 0.5), "ddnm", backbone=gaussian_backbone(), steps=3)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_seed_means_the_same_numbers_on_every_device(monkeypatch):
    """The draws are made on the CPU wherever they are wanted: seen on the one other device that every machine has."""
    drawn = []
    monkeypatch.setattr(
        torch.Tensor, "normal_", lambda row, generator: drawn.append((row.device, generator.device)) or row
    )
    noise = NoiseSource([(0, 0), (1, 0)], SHAPE, "meta").draw(3, "step")
    assert noise.device.type == "meta" and noise.shape == (2, *SHAPE)
    assert {str(device) for pair in drawn for device in pair} == {"cpu"} and len(drawn) == 2
