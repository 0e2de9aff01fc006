"""Networks as users write them, with the habits of published ones, under every kind of sampler."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import invdiff as iv
from invdiff.backbones import edm, network

SHAPE = (3, 16, 16)


class MakesItsOwnTensors(nn.Module):
    """Adds the time in float32, as many networks do: it cannot run in a lower precision."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x, t):
        return self.b(torch.relu(self.a(x) + t.float().view(-1, 1, 1, 1) / 1000))


class TimeThroughALinear(MakesItsOwnTensors):
    """lucidrains' habit: float32 features of the time into a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 8))

    def forward(self, x, t):
        features = torch.sin(t.float()[:, None] * torch.tensor([1.0, 0.1, 0.01, 0.001], device=t.device))
        return self.b(torch.relu(self.a(x) + self.embed(features)[:, :, None, None]))


class Recompute(torch.autograd.Function):
    """Checkpointing over inputs and parameters at once, as guided-diffusion and LDM have it."""

    @staticmethod
    def forward(ctx, function, count, *tensors):
        ctx.function, ctx.inputs, ctx.parameters = function, list(tensors[:count]), list(tensors[count:])
        with torch.no_grad():
            return function(*ctx.inputs)

    @staticmethod
    def backward(ctx, *gradients):
        inputs = [x.detach().requires_grad_(True) for x in ctx.inputs]
        with torch.enable_grad():
            out = ctx.function(*[x.view_as(x) for x in inputs])
        found = torch.autograd.grad(out, inputs + ctx.parameters, gradients, allow_unused=True)
        del ctx.inputs, ctx.parameters  # so that there is no second time
        return None, None, *found


class ChecksPointsOverItsParameters(MakesItsOwnTensors):
    def __init__(self, casts: bool = True) -> None:
        super().__init__()
        self.casts = casts
        self.attend = nn.Conv1d(8, 8, 1)

    def forward(self, x, t):
        times = t.to(x.dtype if self.casts else torch.float32).view(-1, 1, 1, 1) / 1000
        h = self.a(x) + times
        flat = Recompute.apply(lambda v: v + self.attend(v), 1, h.flatten(2), *self.attend.parameters())
        return self.b(torch.relu(flat.reshape(h.shape)))


class ChecksPointsInFloat32(ChecksPointsOverItsParameters):
    def __init__(self) -> None:
        super().__init__(casts=False)


class OwnFunction(torch.autograd.Function):
    """Somebody's fused layer: an `autograd.Function` that needs no gradient of the parameters."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(weight)
        return x * weight

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0], None


class HasAFunctionOfItsOwn(MakesItsOwnTensors):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1, 8, 1, 1), 0.5))

    def forward(self, x, t):
        return self.b(OwnFunction.apply(self.a(x) + t.to(x.dtype).view(-1, 1, 1, 1) / 1000, self.scale))


class WritesToItsInput(MakesItsOwnTensors):
    def forward(self, x, t):
        x.mul_(0.9)
        return self.b(torch.relu_(self.a(x) + t.to(x.dtype).view(-1, 1, 1, 1) / 1000))


class BeginsWithAnActivationInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LeakyReLU(0.5, inplace=True), nn.Conv2d(3, 3, 3, padding=1))

    def forward(self, x, t):
        return self.layers(x)


NETWORKS = [
    MakesItsOwnTensors,
    TimeThroughALinear,
    ChecksPointsOverItsParameters,
    ChecksPointsInFloat32,
    HasAFunctionOfItsOwn,
    WritesToItsInput,
    BeginsWithAnActivationInPlace,
]


class AssertsItsType(nn.Module):
    """EDM's preconditioners (all four end in this assertion; c_skip, c_out, c_in, c_noise differ)."""

    def __init__(self) -> None:
        super().__init__()
        self.model = TimeThroughALinear()

    def forward(self, x, sigma, class_labels=None, force_fp32=False):
        x, sigma = x.to(torch.float32), sigma.to(torch.float32).reshape(-1, 1, 1, 1)
        wanted = torch.float32  # float16 on a GPU only
        inner = self.model((x / (1 + sigma**2).sqrt()).to(wanted), (sigma.log() / 4).flatten())
        assert inner.dtype == wanted
        return x / (1 + sigma**2) + sigma / (1 + sigma**2).sqrt() * inner


class WrapsANoisePredictor(nn.Module):
    """k-diffusion's wrapper: levels looked up in a buffer, the inner network asked at a time between two of them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = ChecksPointsInFloat32()
        levels = iv.NoiseSchedule.linear(1000).alpha_bar[:-1]
        self.register_buffer("log_sigmas", (((1 - levels) / levels) ** 0.5).log().float())

    def forward(self, x, sigma):
        distance = sigma.log() - self.log_sigmas[:, None]
        t = distance.abs().argmin(0)
        return x - sigma.view(-1, 1, 1, 1) * self.inner(x / (sigma.view(-1, 1, 1, 1) ** 2 + 1).sqrt(), t)


class NormalisesItsWeights(nn.Module):
    """EDM2's layers: weights normalised in float32 at every call and rounded to the type of what comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3, 3, 3))

    def forward(self, x, sigma, class_labels=None, force_fp32=False):
        x, sigma = x.to(torch.float32), sigma.to(torch.float32).reshape(-1, 1, 1, 1)
        weight = self.weight.to(torch.float32)
        weight = weight / (1e-4 + weight.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1))
        inner = nn.functional.conv2d((x / (1 + sigma**2).sqrt()).to(torch.float32), weight, padding=1)
        return x / (1 + sigma**2) + sigma / (1 + sigma**2).sqrt() * inner.to(torch.float32)


DENOISERS = [AssertsItsType, WrapsANoisePredictor, NormalisesItsWeights]
GRADIENT_FREE, GRADIENT = ("ddnm", "repaint", "diffpir"), ("pigdm", "dps", "mcg", "mmps")


@pytest.fixture(params=["auto", "float32"])
def precision(request, monkeypatch):
    """ "auto" on a machine that has bfloat16, whether or not this one does."""
    for module in (network, edm):
        monkeypatch.setattr(module, "automatic_dtype", lambda device: torch.bfloat16)
    return request.param


def plain(net, denoises):
    """The same network as a function in float32, which nothing is done to."""
    kind = edm.EDMBackbone if denoises else iv.NetworkBackbone
    return kind(lambda *inputs: net(*inputs), image_shape=SHAPE)


def restored(backbone, sampler, inference=False):
    y = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    options = {"jump_length": 2, "jump_n_sample": 2} if sampler == "repaint" else {}
    with warnings.catch_warnings(), torch.inference_mode(inference):
        warnings.simplefilter("ignore", iv.InvdiffWarning)
        mask = iv.Mask(iv.make_mask("half", 16))
        return iv.solve(mask, y, sampler, backbone=backbone, steps=4, progress=False, **options).x.clone()


@pytest.mark.parametrize("kind", [*NETWORKS, *DENOISERS])
@pytest.mark.parametrize(
    "order", [(*GRADIENT_FREE, *GRADIENT), (*GRADIENT, *GRADIENT_FREE)], ids=["free first", "last"]
)
def test_every_sampler_runs_on_every_network_after_any_other(kind, order, precision):
    torch.manual_seed(0)
    net = kind()
    denoises = kind in DENOISERS
    backbone = (edm.EDMBackbone if denoises else iv.NetworkBackbone)(net, image_shape=SHAPE, precision=precision)
    for sampler in order:
        ours, theirs = restored(backbone, sampler), restored(plain(net, denoises), sampler)
        tolerance = 1e-4 if precision == "float32" else 0.1  # bfloat16 after four steps of an untrained network
        assert float((ours - theirs).norm() / theirs.norm()) < tolerance, sampler
    assert all(p.requires_grad for p in net.parameters())  # the caller's own


@pytest.mark.parametrize("kind", [MakesItsOwnTensors, ChecksPointsOverItsParameters, BeginsWithAnActivationInPlace])
@pytest.mark.parametrize("sampler", ["ddnm", *GRADIENT])
def test_the_callers_inference_mode_changes_nothing(kind, sampler, precision):
    torch.manual_seed(0)
    net = kind()
    with torch.inference_mode():
        made_inside = iv.NetworkBackbone(net, image_shape=SHAPE, precision=precision)
    made_outside = iv.NetworkBackbone(net, image_shape=SHAPE, precision=precision)
    wanted = restored(made_outside, sampler)
    for backbone in (made_inside, made_outside):
        assert torch.equal(restored(backbone, sampler, inference=True), wanted)
        assert torch.equal(restored(backbone, sampler), wanted)


def test_a_module_made_in_inference_mode_can_be_differentiated(precision):
    with torch.inference_mode():
        net = BeginsWithAnActivationInPlace()
    for copy in (True, False):
        backbone = iv.NetworkBackbone(net, image_shape=SHAPE, precision=precision, copy=copy)
        assert bool(torch.isfinite(restored(backbone, "dps")).all())


def test_only_parameters_that_the_networks_own_checkpointing_asks_for_require_a_gradient():
    for kind, wanted in (
        (ChecksPointsOverItsParameters, {"attend.weight", "attend.bias"}),
        (HasAFunctionOfItsOwn, set()),
        (MakesItsOwnTensors, set()),
    ):
        backbone = iv.NetworkBackbone(kind(), image_shape=SHAPE, precision="float32")
        for sampler in ("ddnm", "dps"):
            restored(backbone, sampler)
        assert {name for name, p in backbone.module.named_parameters() if p.requires_grad} == wanted
        x = torch.zeros(1, *SHAPE)
        assert not backbone.predict(x, 5).x0.requires_grad  # where x does not ask for it


def test_the_state_handed_to_a_network_is_its_own_to_write_to(precision):
    x = torch.randn(2, *SHAPE)
    before = x.clone()
    for checkpointing in (False, True):
        backbone = iv.NetworkBackbone(
            WritesToItsInput(), image_shape=SHAPE, precision=precision, checkpointing=checkpointing
        )
        for inference in (True, False):
            with torch.inference_mode(inference):
                backbone.predict(x, 500)
        torch.autograd.grad(backbone.predict(x.requires_grad_(), 500).x0.sum(), x)
        assert torch.equal(x.detach_(), before)


def test_auto_falls_back_to_float32_where_a_network_needs_it(monkeypatch):
    monkeypatch.setattr(network, "automatic_dtype", lambda device: torch.bfloat16)
    torch.manual_seed(0)
    net = MakesItsOwnTensors()
    wanted = iv.NetworkBackbone(net, image_shape=SHAPE, precision="float32")
    backbone = iv.NetworkBackbone(net, image_shape=SHAPE)
    x = torch.randn(2, *SHAPE)
    with pytest.warns(iv.InvdiffWarning, match="runs in float32 instead"):
        first = backbone.predict(x, 500).eps
    assert torch.allclose(first, wanted.predict(x, 500).eps, atol=1e-6)
    assert torch.allclose(
        backbone.on(backbone.schedule.respaced(10)).predict(x, 3).eps,
        wanted.on(backbone.schedule.respaced(10)).predict(x, 3).eps,
    )
    assert next(net.parameters()).requires_grad and net.training


@pytest.mark.parametrize("kind", [MakesItsOwnTensors, AssertsItsType])
def test_a_precision_that_was_asked_for_and_does_not_run_is_refused_by_name(kind):
    make = edm.EDMBackbone if kind in DENOISERS else iv.NetworkBackbone
    backbone = make(kind(), image_shape=SHAPE, precision="bfloat16")
    for _ in range(2):
        with pytest.raises(iv.InvdiffError, match="precision='bfloat16'"):
            backbone.predict(torch.randn(1, *SHAPE), 500)


def test_an_assertion_that_has_nothing_to_do_with_precision_is_the_networks_own(monkeypatch):
    class Asserts(MakesItsOwnTensors):
        def forward(self, x, t):
            assert x.shape[-1] == 17, "seventeen pixels"

    monkeypatch.setattr(network, "automatic_dtype", lambda device: torch.bfloat16)
    for precision in ("auto", "float32", "bfloat16"):
        with pytest.raises(AssertionError, match="seventeen"):
            iv.NetworkBackbone(Asserts(), image_shape=SHAPE, precision=precision).predict(torch.zeros(1, *SHAPE), 5)


def test_values_too_large_for_float16_are_noticed_under_auto(monkeypatch):
    class Large(MakesItsOwnTensors):
        def forward(self, x, t):
            return self.b(self.a(x) * 1e5) / 1e5

    monkeypatch.setattr(network, "automatic_dtype", lambda device: torch.float16)
    net, x = Large(), torch.randn(1, *SHAPE)
    wanted = iv.NetworkBackbone(net, image_shape=SHAPE, precision="float32").predict(x, 500).eps
    with pytest.warns(iv.InvdiffWarning, match=r"float16 .*65,504.*float32 instead"):
        found = iv.NetworkBackbone(net, image_shape=SHAPE).predict(x, 500).eps
    assert torch.allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("answer", [None, 1.0, {}, [], ()])
def test_what_is_no_tensor_is_refused(answer):
    backbone = iv.NetworkBackbone(lambda x, t: answer, image_shape=SHAPE)
    with pytest.raises(iv.InvdiffError, match="network must return a tensor"):
        backbone.predict(torch.zeros(1, *SHAPE), 5)


def test_devices_that_are_not_here_are_refused_by_name():
    mask = iv.Mask(iv.make_mask("half", 16))
    for device, message in (("cuda:7", "device must be one that is here"), ("gpu", "device must be")):
        with pytest.raises(iv.InvdiffError, match=message):
            iv.solve(mask, torch.zeros(3, 16, 16), backbone="cats64", device=device)
        with pytest.raises(iv.InvdiffError, match=message):
            iv.NetworkBackbone(MakesItsOwnTensors(), image_shape=(3, 16, 16), device=device)


def test_a_restoration_far_out_of_range_is_noticed():
    wild = iv.NetworkBackbone(lambda x, t: -3 * x, image_shape=(3, 16, 16))
    with pytest.warns(iv.InvdiffWarning, match="times the range of an image"):
        iv.solve(iv.Mask(iv.make_mask("half", 16)), torch.zeros(3, 16, 16), "ddnm", backbone=wild, steps=5)
