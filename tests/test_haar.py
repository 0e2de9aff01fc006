"""The Haar transform, the network behind it, and its folder format."""

from __future__ import annotations

import json

import pytest
import torch

from invdiff.backbones.haar import Description, HaarUNet, haar, inverse_haar
from invdiff.backbones.weights_file import CONFIG, WEIGHTS
from invdiff.errors import InvdiffError


def tiny(**options) -> HaarUNet:
    torch.manual_seed(0)
    description = Description(image_shape=(3, 16, 16), provenance={"data": "none"}, **options)
    return HaarUNet.new(description, channels=(16, 32), layers=1, attention=4).eval()


@pytest.mark.parametrize("shape", [(1, 1, 2, 2), (2, 3, 6, 10)])
def test_inverse_and_adjoint_are_one(shape):
    x = torch.randn(shape, dtype=torch.float64)
    h = torch.randn(shape[0], 4 * shape[1], shape[2] // 2, shape[3] // 2, dtype=torch.float64)
    torch.testing.assert_close(inverse_haar(haar(x)), x)
    torch.testing.assert_close(haar(inverse_haar(h)), h)
    torch.testing.assert_close((haar(x) * h).sum(), (x * inverse_haar(h)).sum())
    torch.testing.assert_close(haar(x).square().sum(), x.square().sum())


def test_channels_are_mean_then_horizontal_vertical_and_diagonal_details():
    a, b, c, d = 1.0, 2.0, 4.0, 8.0
    block = torch.tensor([[a, b], [c, d]]).reshape(1, 1, 2, 2) * torch.tensor([1.0, 10.0, 100.0]).reshape(1, 3, 1, 1)
    details = torch.tensor([a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d]) / 2
    expected = details.reshape(4, 1) * torch.tensor([1.0, 10.0, 100.0])
    torch.testing.assert_close(haar(block).flatten(), expected.flatten())


def test_white_noise_stays_white():
    noise = torch.randn(400, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    channels = haar(noise).permute(1, 0, 2, 3).flatten(1)
    torch.testing.assert_close(torch.cov(channels), torch.eye(4), atol=0.03, rtol=0)


def test_gradients_pass_and_a_first_call_under_inference_mode_does_no_harm():
    with torch.inference_mode():
        haar(torch.zeros(1, 5, 4, 4))
    x = torch.randn(1, 5, 4, 4, requires_grad=True)
    haar(x).square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach())


def test_odd_sizes_are_refused():
    with pytest.raises(InvdiffError, match="even height and width"):
        haar(torch.zeros(1, 3, 5, 4))
    with pytest.raises(InvdiffError, match="multiple of 4"):
        HaarUNet.new(Description(image_shape=(3, 18, 18)), channels=(16, 32))


@pytest.mark.parametrize("transformed", [True, False])
def test_a_saved_folder_comes_back(tmp_path, transformed):
    network = tiny(haar=transformed, prediction="epsilon", schedule={"kind": "cosine", "T": 500})
    written = network.save(tmp_path)
    loaded = HaarUNet.load(tmp_path)
    assert loaded.description == written
    assert loaded.description.provenance == {"data": "none"}
    assert loaded.backbone().schedule.T == 500
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 400])
    with torch.no_grad():
        torch.testing.assert_close(loaded(x, t), network(x, t))


def test_half_precision_halves_the_file_and_costs_little(tmp_path):
    network = tiny()
    network.save(tmp_path / "full")
    network.save(tmp_path / "half", precision="bfloat16")
    sizes = [(tmp_path / f / WEIGHTS).stat().st_size for f in ("full", "half")]
    assert sizes[1] < 0.55 * sizes[0]
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 900])
    with torch.no_grad():
        full, half = network(x, t), HaarUNet.load(tmp_path / "half")(x, t)
    assert (full - half).norm() < 0.02 * full.norm()
    for stored in (p for p in HaarUNet.load(tmp_path / "half").parameters()):
        assert torch.equal(stored, stored.bfloat16().float())


def test_the_unet_is_diffusers_own(tmp_path):
    from diffusers import UNet2DModel

    network = tiny()
    network.save(tmp_path)
    unet = UNet2DModel.from_pretrained(tmp_path).eval()
    x, t = torch.randn(1, 3, 16, 16), torch.tensor([500])
    with torch.no_grad():
        torch.testing.assert_close(inverse_haar(unet(haar(x), t).sample), network(x, t), atol=1e-5, rtol=1e-5)


def test_damage_says_so(tmp_path):
    tiny().save(tmp_path)
    content = bytearray((tmp_path / WEIGHTS).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / WEIGHTS).write_bytes(content)
    with pytest.raises(InvdiffError, match=r"is damaged or another file: its sha256 is"):
        HaarUNet.load(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(InvdiffError, match=f"incomplete: {WEIGHTS} is missing"):
        HaarUNet.load(tmp_path)


def test_weights_of_another_network_are_refused(tmp_path):
    tiny().save(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    config["block_out_channels"] = [32, 32]
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(InvdiffError, match="does not hold the weights"):
        HaarUNet.load(tmp_path)
