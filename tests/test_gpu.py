"""What needs an NVIDIA GPU: every sampler against the CPU, 16 bits at 256 pixels, compiled networks, memory. `make test-gpu`."""

from __future__ import annotations

import warnings

import pytest
import torch
from conftest import FEW_STEPS, SHAPE, operators

import invdiff as iv
from invdiff.backbones.network import automatic_dtype
from invdiff.batches import Batches
from invdiff.noise import NoiseSource
from invdiff.samplers import sampler_names

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore::invdiff.InvdiffWarning"),
]


class Small(torch.nn.Module):
    """Convolutions, a norm and attention, on any size."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.enter = torch.nn.Conv2d(3, width, 3, padding=1)
        self.norm = torch.nn.GroupNorm(8, width)
        self.down = torch.nn.Conv2d(width, width, 4, stride=4)
        self.mix = torch.nn.Linear(width, 3 * width)
        self.leave = torch.nn.ConvTranspose2d(width, 3, 4, stride=4)

    def forward(self, x, t):
        h = self.down(torch.nn.functional.silu(self.norm(self.enter(x))))
        q, k, v = self.mix(h.flatten(2).transpose(1, 2)).chunk(3, 2)
        h = h + torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(h.shape)
        return self.leave(h) * (1 + t.to(x.dtype).reshape(-1, 1, 1, 1) / 1000)


def network(shape=SHAPE, **options):
    torch.manual_seed(0)
    return iv.NetworkBackbone(Small(), image_shape=shape, **options)


def relative(found, wanted):
    return float((found.cpu() - wanted.cpu()).norm() / wanted.cpu().norm())


@pytest.mark.parametrize("sampler", sampler_names())
@pytest.mark.parametrize("kind", ["mask", "bicubic", "blur", "function"])
def test_every_sampler_agrees_with_the_cpu_in_true_float32(sampler, kind):
    operator, y0 = operators(2)[kind], torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    y, options = operator(y0), {"steps": 6, **FEW_STEPS.get(sampler, {})}
    backbone = network(precision="float32", device="cpu")
    cpu, gpu = (
        iv.solve(operator, y, sampler, backbone=backbone, device=device, progress=False, **options).x
        for device in ("cpu", "cuda")
    )
    assert relative(gpu, cpu) < 1e-3


def test_a_seed_means_the_same_numbers_on_the_gpu():
    for shape in (SHAPE, (3, 256, 256)):
        on = [NoiseSource([(0, 0), (3, 1)], shape, device).draw(2, "step") for device in ("cpu", "cuda")]
        assert on[1].is_cuda and torch.equal(on[0], on[1].cpu())


@pytest.mark.parametrize(("precision", "rounding"), [("tf32", 5e-3), ("bfloat16", 5e-2), ("float16", 5e-3)])
@pytest.mark.parametrize("gradient", [False, True])
def test_lower_precisions_of_a_256_pixel_network_agree_up_to_their_rounding(precision, rounding, gradient):
    shape = (3, 256, 256)
    x, t = torch.randn(2, *shape, device="cuda"), torch.tensor([100, 900], device="cuda")
    outs = []
    for name in ("float32", precision):
        backbone, state = network(shape, precision=name, device="cuda"), x.clone().requires_grad_(gradient)
        with torch.set_grad_enabled(gradient):
            out = backbone.network(state, t)
        outs.append(torch.autograd.grad(out.square().sum(), state)[0] if gradient else out)
    assert outs[1].dtype == torch.float32 and relative(outs[1], outs[0]) < rounding


def test_float32_means_float32_forward_and_backward():
    module, x = torch.nn.Linear(512, 512, bias=False), torch.randn(1, 1, 512, 512)
    backbone = iv.NetworkBackbone(
        lambda x, t: x @ module.weight.to(x.device).mT, image_shape=(1, 512, 512), precision="float32", device="cuda"
    )
    state = x.cuda().requires_grad_()
    out = backbone.network(state, torch.tensor([5], device="cuda"))
    with backbone.arithmetic():
        product = torch.autograd.grad(out, state, x.cuda())[0]
    weight = module.weight.detach().double()
    assert relative(out.detach(), x.double() @ weight.mT) < 1e-6
    assert relative(product, x.double() @ weight) < 1e-6


def test_auto_takes_what_the_card_multiplies_and_is_not_copied_again():
    backbone = network(device="cuda")
    assert next(backbone.module.parameters()).dtype == automatic_dtype("cuda")
    assert backbone.to("cuda") is backbone is backbone.to(torch.device("cuda", torch.cuda.current_device()))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_compiled_network_computes_the_same(precision):
    problem = iv.Mask(iv.make_mask("half", 16)), torch.rand(2, *SHAPE)
    for sampler in ("ddnm", "dps"):
        found = [
            iv.solve(*problem, sampler, backbone=network(precision=precision, device="cuda", compile=c), steps=4).x
            for c in (False, True)
        ]
        assert relative(found[1], found[0]) < (1e-4 if precision == "float32" else 5e-2)


def test_a_batch_larger_than_the_card_is_halved_until_it_fits():
    total = torch.cuda.get_device_properties(0).total_memory

    def work(rows):
        return torch.empty(len(rows) * total // 4, dtype=torch.uint8, device="cuda")[: len(rows)].float()

    cut = Batches(8, 1000, torch.device("cuda", 0), gradient=False, size=8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert len(cut.run(work)) == 8
    assert cut.size in (1, 2) and any("out of memory" in str(w.message) for w in caught)


def test_batches_grow_to_the_memory_that_a_run_was_measured_to_take():
    backbone, sizes = network(device="cuda", precision="float32"), []
    mask, y = iv.Mask(iv.make_mask("half", 16)), torch.rand(1, *SHAPE)
    iv.solve(
        mask, y, backbone=backbone, steps=2, n_samples=3000, callback=lambda p: sizes.append(len(p.x)), progress=False
    )
    assert max(sizes) > sizes[0]
