"""The network for pictures of any size: its pixels see their surroundings only, and eight bits store it."""

import copy
import json
import subprocess
import sys

import pytest
import torch

from invdiff import InvdiffError
from invdiff.backbones.haar import Description
from invdiff.backbones.local_unet import LocalUNet
from invdiff.backbones.weights_file import from_int8, to_int8


@pytest.fixture
def net():
    torch.manual_seed(0)
    network = LocalUNet((8, 16), (1, 1), description=Description(name="small", image_shape=(3, None, None)))
    network.scale.data.fill_(1.0)
    for block in network.modules():
        if hasattr(block, "gain"):
            torch.nn.init.normal_(block.gain.weight, std=0.1)
    return network.eval()


def test_a_pixel_depends_on_its_field_of_view_only(net):
    x = torch.randn(1, 3, 96, 96, requires_grad=True)
    net(x, torch.tensor([300]))[0, :, 47, 48].sum().backward()
    seen = x.grad[0].abs().sum(0).nonzero()
    reach = (seen - torch.tensor([47, 48])).abs().max()
    assert 0.7 * net.field_of_view < reach <= net.field_of_view


def test_a_tile_with_a_halo_equals_the_whole(net):
    x, t = torch.randn(1, 3, 128, 128), torch.tensor([100])
    halo = -(-net.field_of_view // net.stride) * net.stride
    with torch.no_grad():
        whole = net(x, t)[..., 48:80, 48:80]
        tile = net(x[..., 48 - halo : 80 + halo, 48 - halo : 80 + halo], t)[..., halo:-halo, halo:-halo]
    torch.testing.assert_close(tile, whole, atol=2e-6, rtol=1e-5)


def test_white_noise_in_gives_unit_variance_out(net):
    """The constants keep magnitudes: at every layer about one, without a normalisation."""
    sizes = []
    for layer, _ in net.balanced():
        layer.register_forward_hook(lambda _, __, out: sizes.append(float(out.detach().square().mean().sqrt())))
    with torch.no_grad():
        net(torch.randn(4, 3, 64, 64), torch.tensor([999] * 4))
    assert min(sizes) > 0.3 and max(sizes) < 3


def test_balance_restores_every_row(net):
    for layer, _ in net.balanced():
        layer.weight.data.mul_(3.7)
    net.balance()
    first = net.down[0][0].first
    norms = first.weight.flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.full_like(norms, first.magnitude))


def test_eight_bits_come_back_within_half_a_step():
    w = torch.randn(7, 5, 3, 3) * torch.logspace(-6, 2, 7).reshape(-1, 1, 1, 1)
    whole, scale = to_int8(w)
    assert whole.dtype == torch.int8 and scale.dtype == torch.float32
    assert bool(((from_int8(whole, scale) - w).abs() <= 0.5001 * scale).all())
    assert bool((from_int8(*to_int8(torch.zeros(2, 3))) == 0).all())


@pytest.mark.parametrize(("precision", "bound"), [("float32", 0), ("bfloat16", 0.02), ("int8", 0.02)])
def test_saved_and_loaded_it_is_the_same_network(net, tmp_path, precision, bound):
    net.save(tmp_path, precision=precision)
    state = torch.random.get_rng_state()
    again = LocalUNet.load(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state)
    x, t = torch.randn(2, 3, 32, 48), torch.tensor([10, 700])
    with torch.no_grad():
        assert float((again(x, t) - net(x, t)).square().mean().sqrt()) <= bound
    assert again.description.image_shape == (3, None, None)


def test_damage_is_named(net, tmp_path):
    net.save(tmp_path)
    with pytest.raises(InvdiffError, match="multiples of 4"):
        net(torch.zeros(1, 3, 30, 32), torch.tensor([1]))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InvdiffError, match="must hold a dictionary"):
        LocalUNet.load(tmp_path)
    (tmp_path / "config.json").write_text('{"width": [8]}')
    with pytest.raises(InvdiffError, match=r"no option 'width'.*widths"):
        LocalUNet.load(tmp_path)


def test_it_loads_without_diffusers(net, tmp_path):
    net.save(tmp_path)
    code = (
        "import sys\nfrom invdiff.backbones.local_unet import LocalUNet\n"
        f"LocalUNet.load({str(tmp_path)!r})\nassert 'diffusers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_in_bfloat16_its_times_stay_exact(net):
    half = copy.deepcopy(net).bfloat16()
    assert half.alpha_bar.dtype == torch.float32 and half.frequencies.dtype == torch.float32
    x = torch.randn(2, 3, 16, 16)
    for t in (0, 999):
        with torch.no_grad():
            exact, rounded = net(x, torch.tensor([t, t])), half(x.bfloat16(), torch.tensor([t, t]))
        assert rounded.dtype == torch.float32
        assert float((rounded - exact).square().mean().sqrt()) < 0.02 * float(exact.square().mean().sqrt())


def test_as_a_backbone_it_takes_pictures_of_any_size(net):
    backbone = net.backbone(precision="float32")
    x = torch.randn(1, 3, 21, 34)
    assert backbone.predict(x, 500).x0.shape == x.shape
    assert backbone.field_of_view == net.field_of_view and backbone.multiple_of == net.stride


@pytest.mark.parametrize("change", [{"widths": [8, 10**6]}, {"embedding": 10**9}, {"blocks": [1, "many"]}])
def test_absurd_widths_take_no_memory(net, tmp_path, change):
    net.save(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(InvdiffError, match=rf"config\.json: {next(iter(change))} must be a whole number"):
        LocalUNet.load(tmp_path)
