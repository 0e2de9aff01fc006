"""A network as users write them."""

from __future__ import annotations

import pytest
import torch

import invdiff as iv
from invdiff.backbones import network


class MakesItsOwnTensors(torch.nn.Module):
    """Adds the time in float32, as many networks do: it cannot run in a lower precision."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.b = torch.nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x, t):
        return self.b(torch.relu(self.a(x) + t.float().view(-1, 1, 1, 1) / 1000))


def test_auto_falls_back_to_float32_where_a_network_needs_it(monkeypatch):
    monkeypatch.setattr(network, "native_bfloat16", lambda device: True)
    torch.manual_seed(0)
    net = MakesItsOwnTensors()
    wanted = iv.NetworkBackbone(net, image_shape=(3, 16, 16), precision="float32")
    backbone = iv.NetworkBackbone(net, image_shape=(3, 16, 16))
    x = torch.randn(2, 3, 16, 16)
    with pytest.warns(iv.InvdiffWarning, match="runs in float32 instead"):
        first = backbone.predict(x, 500).eps
    assert torch.allclose(first, wanted.predict(x, 500).eps, atol=1e-6)
    assert torch.allclose(
        backbone.on(backbone.schedule.respaced(10)).predict(x, 3).eps,
        wanted.on(backbone.schedule.respaced(10)).predict(x, 3).eps,
    )
    assert next(net.parameters()).requires_grad and net.training


def test_devices_that_are_not_here_are_refused_by_name():
    mask = iv.Mask(iv.make_mask("half", 16))
    for device, message in (("cuda:7", "is not here"), ("gpu", "device must be")):
        with pytest.raises(iv.InvdiffError, match=message):
            iv.solve(mask, torch.zeros(3, 16, 16), backbone="cats64", device=device)
        with pytest.raises(iv.InvdiffError, match=message):
            iv.NetworkBackbone(MakesItsOwnTensors(), image_shape=(3, 16, 16), device=device)


def test_a_restoration_far_out_of_range_is_noticed():
    wild = iv.NetworkBackbone(lambda x, t: -3 * x, image_shape=(3, 16, 16))
    with pytest.warns(iv.InvdiffWarning, match="times the range of an image"):
        iv.solve(iv.Mask(iv.make_mask("half", 16)), torch.zeros(3, 16, 16), "ddnm", backbone=wild, steps=5)
