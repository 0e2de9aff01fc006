"""Variance-exploding denoisers: the exact one of a Gaussian in closed form."""

import pytest
import torch
from torch import nn

from invdiff.backbones import EDMBackbone, NoiseSchedule
from invdiff.errors import InvdiffError
from invdiff.priors import GaussianBackbone

SHAPE = (3, 4, 4)


def gaussian(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(SHAPE, generator=generator, dtype=dtype)
    variance = 0.1 + torch.rand(SHAPE, generator=generator, dtype=dtype)
    return mean, variance


def exact(mean, variance):
    """E[x0 | x0 + sigma n] for x0 ~ N(mean, diag(variance))."""

    def denoiser(x, sigma):
        s2 = sigma.reshape(-1, 1, 1, 1) ** 2
        return mean + variance / (variance + s2) * (x - mean)

    return denoiser


def test_an_exact_denoiser_gives_the_exact_prediction_at_every_level():
    mean, variance = gaussian()
    schedule = NoiseSchedule.linear(1000)
    edm = EDMBackbone(exact(mean, variance), schedule, SHAPE)
    truth = GaussianBackbone(mean, variance, schedule)
    x = torch.randn(2, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for t in (0, 1, 400, 999):
        ours, theirs = edm.predict(x, t), truth.predict(x, t)
        torch.testing.assert_close(ours.x0, theirs.x0, atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(ours.eps, theirs.eps, atol=1e-7, rtol=1e-7)
        a = schedule.alpha_bar_at(t)
        torch.testing.assert_close(a**0.5 * ours.x0 + (1 - a) ** 0.5 * ours.eps, x)


def test_every_image_has_its_own_time_also_on_a_respaced_schedule():
    mean, variance = gaussian()
    schedule = NoiseSchedule.linear(1000).respaced(7)
    edm = EDMBackbone(exact(mean, variance), schedule, SHAPE)
    x = torch.randn(2, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    both = edm.predict(x, torch.tensor([2, 6])).x0
    for i, t in enumerate((2, 6)):
        torch.testing.assert_close(both[i], edm.predict(x[i : i + 1], t).x0[0])
        torch.testing.assert_close(both[i], GaussianBackbone(mean, variance, schedule).predict(x[i : i + 1], t).x0[0])


def test_the_gradient_passes_through():
    mean, variance = gaussian()
    edm = EDMBackbone(exact(mean, variance), None, SHAPE)
    x = torch.randn(1, *SHAPE, dtype=torch.float64).requires_grad_()
    edm.predict(x, 300).x0.sum().backward()
    a = edm.schedule.alpha_bar_at(300)
    torch.testing.assert_close(x.grad[0], variance * a**0.5 / (a * variance + 1 - a))


class Preconditioned(nn.Module):
    """EDM's form: c_skip x + c_out F(c_in x, label)."""

    label_dim = 4

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.label = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(4, 3)
        self.seen = None

    def forward(self, x, sigma, class_labels=None):
        self.seen = (x.dtype, None if class_labels is None else class_labels)
        sigma = sigma.reshape(-1, 1, 1, 1)
        c_skip, c_out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / (sigma**2 + 0.25).sqrt()
        h = self.conv(x / (sigma**2 + 0.25).sqrt())
        if class_labels is not None:
            h = h + self.label(class_labels)[..., None, None]
        return c_skip * x + c_out * h


def test_low_precision_leaves_the_preconditioning_alone():
    network, x = Preconditioned(), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    full = EDMBackbone(network, image_shape=(3, 8, 8), precision="float32")
    low = full.with_precision("bfloat16")
    assert "bfloat16" in repr(low) and "float32" in repr(full)
    # the network has weight sigma = 0.01 at the clean end; a state in bfloat16 would be off by 4e-3
    assert (low.predict(x, 0).x0 - full.predict(x, 0).x0).abs().max() < 3e-4
    difference = (low.predict(x, 999).x0 - full.predict(x, 999).x0).abs().max()
    assert 0 < difference < 2e-2
    assert low.predict(x, 999).x0.dtype == torch.float32
    assert next(network.parameters()).requires_grad


def test_labels_are_one_hot_as_the_network_asks():
    network, x = Preconditioned(), torch.randn(2, 3, 8, 8)
    edm = EDMBackbone(
        network, image_shape=(3, 8, 8), class_labels=torch.tensor([3, 1]), precision="float32", copy=False
    )
    both = edm.predict(x, 500).x0
    assert network.seen[1].tolist() == [[0, 0, 0, 1], [0, 1, 0, 0]]
    one = edm.select(torch.tensor([1])).predict(x[1:], 500).x0
    torch.testing.assert_close(both[1:], one)
    plain = EDMBackbone(
        lambda x, sigma, class_labels: x + class_labels.reshape(-1, 1, 1, 1), class_labels=2, num_classes=0
    )
    x = torch.zeros(1, 3, 4, 4)
    torch.testing.assert_close(plain.predict(x, 10).x0, torch.full_like(x, 2.0))


def test_bad_arguments_are_refused():
    with pytest.raises(InvdiffError, match=r"denoiser must be callable.*pickles"):
        EDMBackbone("edm-ffhq-64x64.pkl")
    with pytest.raises(InvdiffError, match=r"class_labels must be whole numbers 0\.\.3"):
        EDMBackbone(Preconditioned(), class_labels=4)
    with pytest.raises(InvdiffError, match="num_classes must be"):
        EDMBackbone(Preconditioned(), num_classes=-1)
    with pytest.raises(InvdiffError, match="precision must be"):
        EDMBackbone(Preconditioned(), precision="half")
