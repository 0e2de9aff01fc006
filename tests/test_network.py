"""Networks as backbones: precision, layout, what is copied, what a compiled one computes."""

import copy
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

from invdiff import InvdiffError, InvdiffWarning, Mask, NetworkBackbone, solve
from invdiff.backbones import cpu_layers
from invdiff.backbones import network as network_module
from invdiff.backbones.cpu_layers import Conv2d, GroupNorm, Linear, can_pack, speed_up
from invdiff.backbones.network import available_device, native_bfloat16
from invdiff.samplers.base import estimate_with_pullback
from invdiff.samplers.guidance import GuidedBackbone

SHAPE = (3, 40, 40)
packs_bfloat16 = pytest.mark.skipif(not can_pack(torch.bfloat16), reason="packed layers do not run in bfloat16 here")


class Small(nn.Module):
    """Convolutions and norms above and below 32x32 pixels; `view` makes it refuse channels-last."""

    def __init__(self, view: bool = False) -> None:
        super().__init__()
        self.view = view
        self.enter = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.GroupNorm(4, 16)
        self.down = nn.Conv2d(16, 32, 3, stride=2, padding=1, groups=2)
        self.inner = nn.GroupNorm(8, 32)
        self.leave = nn.ConvTranspose2d(32, 3, 2, stride=2)
        self.seen: list[torch.Tensor] = []
        self.calls = 0

    def forward(self, x, t):
        self.calls += 1
        self.seen = [x.detach(), t]
        h = self.norm(self.enter(x))
        if self.view:
            h = h.view(len(h), -1).view(h.shape)
        h = nn.functional.silu(self.inner(self.down(nn.functional.silu(h))))
        return self.leave(h) * (1 + t.to(x.dtype).reshape(-1, 1, 1, 1) / 1000)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Small()


def backbone(net, **options):
    return NetworkBackbone(net, image_shape=SHAPE, **options)


def state(batch=2):
    return torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(1))


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(
    ("precision", "dtype", "rounding"),
    [("float32", torch.float32, 1e-6), ("bfloat16", torch.bfloat16, 2e-2), ("float16", torch.float16, 2e-3)],
)
@pytest.mark.parametrize("gradient", [False, True])
def test_the_network_runs_in_its_precision_and_agrees_with_the_module(net, precision, dtype, rounding, gradient):
    b, x, t = backbone(net, precision=precision), state(), torch.tensor([100, 900])
    with torch.set_grad_enabled(gradient):
        out = b.network(x.requires_grad_(gradient), t)
    assert b.module.seen[0].dtype == dtype
    assert out.dtype == torch.float32 and out.is_contiguous()
    with torch.no_grad():
        assert relative(out.detach(), net(x, t)) < rounding


@pytest.mark.parametrize(("precision", "rounding"), [("float32", 1e-5), ("bfloat16", 3e-2)])
def test_the_product_with_the_jacobian_is_the_modules(net, precision, rounding):
    x = state()
    ours, theirs = (
        estimate_with_pullback(b, x, 300)[2](torch.ones_like(x))
        for b in (backbone(net, precision=precision), backbone(lambda x, t: net(x, t)))
    )
    assert relative(ours, theirs) < rounding


def test_auto_means_bfloat16_for_modules_where_the_hardware_has_it(net, monkeypatch):
    for native in (True, False):
        monkeypatch.setattr(network_module, "native_bfloat16", lambda device, native=native: native)
        wanted = torch.bfloat16 if native else torch.float32
        assert next(backbone(net).module.parameters()).dtype == wanted
        assert "float32" in repr(backbone(lambda x, t: x))
        assert backbone(net).dtype == torch.float32  # of the state


def test_native_bfloat16_answers_for_every_device():
    assert native_bfloat16("cpu") in (True, False)
    assert native_bfloat16("meta") is False


def test_a_callers_module_is_left_alone(net):
    before = {k: v.clone() for k, v in net.state_dict().items()}
    kinds = [type(m) for m in net.modules()]
    net.train()
    backbone(net, precision="bfloat16").network(state(), torch.tensor([1, 2]))
    assert net.training and net.calls == 0
    assert all(p.requires_grad and p.dtype == torch.float32 for p in net.parameters())
    assert [type(m) for m in net.modules()] == kinds
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def test_copy_false_takes_the_module_but_never_rounds_what_it_was_given(net):
    assert backbone(net, precision="float32", copy=False).module is net
    exact = net.enter.weight.clone()
    low = backbone(net, precision="bfloat16", copy=False)
    assert torch.equal(low.with_precision("float32").module.enter.weight, exact)


def test_changing_precision_returns_to_the_full_weights(net):
    x, t = state(), torch.tensor([5, 6])
    there_and_back = backbone(net, precision="bfloat16").with_precision("float32")
    with torch.no_grad():
        assert torch.equal(there_and_back.network(x, t), backbone(net, precision="float32").network(x, t))


@packs_bfloat16
def test_layers_of_the_copy_are_the_fast_ones_and_keep_their_parameters(net):
    module = backbone(net, precision="bfloat16").module
    assert type(module.enter) is Conv2d and type(module.norm) is GroupNorm
    assert type(module.leave) is nn.ConvTranspose2d
    assert module.state_dict().keys() == net.state_dict().keys()


def test_a_network_with_packed_weights_can_be_copied_and_batches_may_change(net):
    b = backbone(net, precision="bfloat16")
    with torch.inference_mode():
        one = b.network(state(1), torch.tensor([7]))
        again = b.with_precision("float32").with_precision("bfloat16").network(state(1), torch.tensor([7]))
        assert torch.equal(one, again)
        assert relative(b.network(state(1).repeat(5, 1, 1, 1), torch.full((5,), 7))[3:4], one) < 1e-2


CONVOLUTIONS = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "1x1": {"kernel_size": 1},
    "no padding": {"kernel_size": 3},
    "oblong": {"kernel_size": (3, 5), "padding": (0, 2)},
    "wide padding": {"kernel_size": 1, "padding": 2},  # its adjoint would crop
    "stride": {"kernel_size": 3, "padding": 1, "stride": 2},
    "dilation": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "groups": {"kernel_size": 3, "padding": 1, "groups": 2},
    "no bias": {"kernel_size": 3, "padding": 1, "bias": False},
}


@packs_bfloat16
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_a_packed_convolution_has_the_result_and_the_derivatives_of_the_plain_one(case):
    torch.manual_seed(0)
    plain = nn.Conv2d(8, 16, **CONVOLUTIONS[case]).to(torch.bfloat16, memory_format=torch.channels_last)
    plain.requires_grad_(False)
    packed = speed_up(copy.deepcopy(plain))
    assert type(packed) is Conv2d

    def all_of(layer):
        x = torch.randn(2, 8, 12, 10, generator=torch.Generator().manual_seed(1))
        x = x.to(torch.bfloat16).contiguous(memory_format=torch.channels_last).requires_grad_()
        with torch.no_grad():
            alone = layer(x)
        first = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)[0]
        return alone, first, torch.autograd.grad(first.square().sum(), x)[0]

    for ours, theirs in zip(all_of(packed), all_of(plain), strict=True):
        assert relative(ours.detach().float(), theirs.detach().float()) < 1e-2


@packs_bfloat16
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_linear_layer_has_the_result_and_the_gradient_of_the_plain_one(bias):
    torch.manual_seed(0)
    plain = nn.Linear(24, 40, bias=bias).to(torch.bfloat16).requires_grad_(False)
    packed = speed_up(copy.deepcopy(plain))
    assert type(packed) is Linear
    x = torch.randn(3, 24, 5).to(torch.bfloat16)
    with torch.inference_mode():
        for state in (x.transpose(1, 2), x[:1, :, 0], x[0, :, 0]):  # not contiguous, one row, no batch
            assert relative(packed(state).float(), plain(state).float()) < 1e-2
    x = x.transpose(1, 2).requires_grad_()
    ours, theirs = (torch.autograd.grad(layer(x).square().sum(), x)[0] for layer in (packed, plain))
    assert torch.equal(ours, theirs)


def test_float32_is_the_module_to_the_last_bit(net):
    with torch.no_grad():
        x, t = state(), torch.tensor([3, 4])
        assert torch.equal(backbone(net, precision="float32").network(x, t), net(x, t))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_network_that_needs_the_channels_first_gets_them(precision):
    torch.manual_seed(0)
    net = Small(view=True)
    b, x, t = backbone(net, precision=precision), state(), torch.tensor([1, 2])
    with torch.no_grad():
        assert relative(b.network(x, t), net(x, t)) < 3e-2
        calls = b.module.calls
        b.on(b.schedule.respaced(10)).network(x, t)
    assert b.module.calls == calls + 1  # learned once, for all views of the backbone


def test_an_error_of_the_network_is_its_own():
    class Broken(Small):
        def forward(self, x, t):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        backbone(Broken(), precision="bfloat16").network(state(), torch.tensor([1, 2]))


@pytest.mark.parametrize("sampler", ["dps", "pigdm", "mcg"])
def test_gradient_samplers_call_the_network_once_per_step(net, sampler):
    b = backbone(net, precision="float32")
    solution = solve(Mask(torch.ones(40, 40)), torch.rand(1, *SHAPE), sampler, backbone=b, steps=5, progress=False)
    assert b.module.calls == solution.nfe == 5


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_checkpointing_recomputes_and_changes_no_gradient(net, precision):
    x = state()
    kept, recomputed = (backbone(net, precision=precision, checkpointing=c) for c in (False, True))
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    gradients = [estimate_with_pullback(b, x, 300)[2](v) for b in (kept, recomputed)]
    assert torch.equal(*gradients)
    assert (kept.module.calls, recomputed.module.calls) == (1, 2)
    with torch.inference_mode():
        recomputed.network(x, torch.tensor([1, 2]))
    assert recomputed.module.calls == 3  # nothing is recomputed where no gradient is asked for


def test_memory_of_a_gradient_sampler_does_not_grow_with_its_steps(net):
    import gc
    import weakref

    b, alive = backbone(net, precision="float32"), []
    b.module.down.register_forward_hook(lambda layer, inputs, out: alive.append(weakref.ref(out)))
    counts = []

    def count(progress):
        gc.collect()
        counts.append(sum(r() is not None for r in alive))

    solve(Mask(torch.ones(40, 40)), torch.rand(1, *SHAPE), "dps", backbone=b, steps=6, progress=False, callback=count)
    assert max(counts) <= 1 and len(alive) == 6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("missing", ["refused", "wrong", "absent"])
def test_where_packed_layers_fail_the_plain_ones_answer(net, monkeypatch, dtype, missing):
    class Operations:
        def __getattr__(self, name):
            if missing == "absent":
                raise AttributeError(name)
            return self.call

        def call(self, x, *rest):
            if missing == "refused":
                raise RuntimeError("the path needs a processor with more")
            return x.new_zeros(2, 16, 6, 6)

    can_pack.cache_clear()
    monkeypatch.setattr(torch.ops, "mkldnn", Operations())
    try:
        assert not can_pack(dtype)
        b, x, t = backbone(net, precision=str(dtype).removeprefix("torch.")), state(), torch.tensor([100, 900])
        assert type(b.module.enter) is nn.Conv2d
        with torch.no_grad():
            assert relative(b.network(x, t), net(x, t)) < 2e-2
    finally:
        monkeypatch.undo()
        can_pack.cache_clear()


def test_the_trial_of_packed_layers_is_made_once_and_draws_nothing(monkeypatch):
    trials = []
    monkeypatch.setattr(cpu_layers, "_largest_error", lambda dtype: trials.append(dtype) or torch.rand(1).item() * 0)
    can_pack.cache_clear()
    before = torch.random.get_rng_state()
    assert all(can_pack(torch.bfloat16) for _ in range(3)) and trials == [torch.bfloat16]
    assert torch.equal(before, torch.random.get_rng_state())
    can_pack.cache_clear()


TF32 = """
import sys, torch
from invdiff import NetworkBackbone
from invdiff.backbones.network import tensor_float_32

matmul, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn

def settings():
    return [matmul.fp32_precision, convolutions.conv.fp32_precision] if newer else [matmul.allow_tf32, convolutions.allow_tf32]

newer = sys.argv[1] == "newer names"
if newer:
    matmul.fp32_precision = "tf32"
b = NetworkBackbone(lambda x, t: x)
before = settings()
for precision, allowed in (("float32", False), ("tf32", True), ("auto", True)):
    b = b.with_precision(precision)
    b._device = torch.device("cuda", 0)  # the settings can be made without one
    with b.arithmetic():
        assert settings() == ([["ieee", "tf32"][allowed]] * 2 if newer else [allowed] * 2), settings()
    assert settings() == before
    with tensor_float_32(torch.device("cpu"), not allowed):
        assert settings() == before
    b._device = torch.device("cpu")
"""


@pytest.mark.parametrize("names", ["newer names", "older names"])
def test_float32_on_a_gpu_is_float32_unless_tf32_is_asked_for_and_its_settings_are_put_back(names):
    if names == "newer names" and not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("this PyTorch knows the older names only")
    subprocess.run(
        [sys.executable, "-c", TF32, names], check=True
    )  # they are the process's, and mixing them is an error


def test_the_backward_pass_is_under_the_networks_settings_too(net, monkeypatch):
    b, inside = backbone(net, precision="float32"), []

    class Settings:
        def __enter__(self):
            inside.append(True)

        def __exit__(self, *error):
            inside.append(False)

    monkeypatch.setattr(b, "arithmetic", Settings)
    b.module.enter.register_full_backward_hook(lambda layer, grad_in, grad_out: seen.append(inside[-1]))
    seen = []
    for one in (b, GuidedBackbone(b, ())):
        pull = estimate_with_pullback(one, state(), 300)[2]
        assert inside[-1] is False
        pull(torch.ones(2, *SHAPE))
    assert seen == [True, True] and inside[-1] is False


def test_what_auto_means_on_a_gpu_follows_its_age(monkeypatch):
    for capability, wanted in (
        ((9, 0), torch.bfloat16),
        ((8, 0), torch.bfloat16),
        ((7, 5), torch.float16),
        ((7, 0), torch.float16),
        ((6, 1), torch.float32),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert network_module.automatic_dtype("cuda:0") == wanted


def test_a_device_has_one_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert available_device("cuda") == torch.device("cuda:1") and available_device("cuda:0") == torch.device("cuda:0")
    assert available_device("cpu:0") == torch.device("cpu")
    b = backbone(lambda x, t: x)
    b._device = torch.device("cuda:1")
    assert b.to("cuda") is b  # nothing is copied or compiled anew


@pytest.mark.parametrize("device", ["gpu", 1.5, None, "meta", "xpu", "cuda:9"])
def test_a_device_that_is_not_here_is_refused(device):
    with pytest.raises(InvdiffError, match="device"):
        available_device(device)


def test_labels_are_moved_once(net):
    class Labelled(Small):
        def forward(self, x, t, class_labels):
            seen.append(class_labels)
            return super().forward(x, t)

    seen = []
    b = backbone(Labelled(), class_labels=[3, 1], precision="float32")
    with torch.no_grad():
        b.network(state(), torch.tensor([1, 2]))
        b.network(state(), torch.tensor([1, 2]))
        b.select(torch.tensor([1])).network(state(), torch.tensor([1, 2]))
    assert [labels.tolist() for labels in seen] == [[3, 1], [3, 1], [1, 1]]
    assert seen[0].data_ptr() == seen[1].data_ptr() == b.class_labels.data_ptr()


@pytest.mark.parametrize("name", ["precision", "prediction"])
def test_unknown_names_are_refused(net, name):
    with pytest.raises(InvdiffError, match=name):
        backbone(net, **{name: "bfloat15"})


# ---- compiled ---------------------------------------------------------------------------------------------------


@pytest.fixture
def instant(monkeypatch):
    """torch.compile without compiling: what is asked of it, as a list."""
    asked = []

    def compile(network, **options):
        asked.append(options)
        return network

    monkeypatch.setattr(torch, "compile", compile)
    return asked


def test_each_kind_of_batch_is_compiled_once(net, instant):
    b = backbone(net, compile=True, precision="bfloat16")
    with torch.inference_mode():
        for _ in range(3):
            b.network(state(1), torch.tensor([1]))
            b.on(b.schedule.respaced(10)).network(state(2), torch.tensor([1, 2]))
    assert len(instant) == 2 and all(options["dynamic"] is False for options in instant)


def test_batch_sizes_do_not_recompile_without_bound(net, instant):
    b = backbone(net, compile=True, precision="bfloat16")
    with torch.inference_mode(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for batch in (1, 2, 3, 4, 5, 6, 7, 5, 1):
            b.network(state(batch), torch.full((batch,), 3))
    assert len(instant) == 4
    assert [w.category for w in caught] == [InvdiffWarning] and "batch_size" in str(caught[0].message)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "rounding"), [("float32", 1e-5), ("bfloat16", 3e-2)])
def test_a_compiled_network_computes_the_same_with_and_without_gradient(net, precision, rounding):
    eager, compiled = (backbone(net, precision=precision, compile=c) for c in (False, True))
    problem = Mask(torch.rand(40, 40) > 0.5), torch.rand(1, *SHAPE)
    for sampler in ("ddnm", "dps"):
        a, b = (solve(*problem, sampler, backbone=n, steps=4, progress=False).x for n in (eager, compiled))
        assert relative(b, a) < rounding
