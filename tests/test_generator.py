"""Generators of a few steps: their files, their schedule, their draws, and what samplers make of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from invdiff import GeneratorBackbone, Identity, Mask, NoiseSchedule, make_mask, sample, solve
from invdiff.backbones.generator import few_steps
from invdiff.backbones.haar import haar, inverse_haar
from invdiff.backbones.ncsnpp import Generator, GeneratorShape
from invdiff.checkpoints import load_checkpoint, load_ddgan
from invdiff.checkpoints.ddgan import generator_shape
from invdiff.errors import InvdiffError
from invdiff.noise import NoiseSource

GOLDEN = Path(__file__).parent / "conformance" / "golden"

WIDE = {"latent": 100, "style": 256}
PUBLISHED = {
    "ddgan cifar10": (
        GeneratorShape(3, 128, (128, 256, 256, 256), 2, (False, True, False, False), layers=4, **WIDE),
        48_432_515,
        384,
    ),
    "ddgan celebahq256": (
        GeneratorShape(3, 64, (64, 64, 128, 128, 256, 256), 2, (False,) * 4 + (True, False), layers=3, **WIDE),
        39_726_979,
        548,
    ),
    "wavediff celebahq256": (
        GeneratorShape(12, 64, (64, 128, 128, 128, 256), 2, (False,) * 3 + (True, False), layers=3, wavelet=True, **WIDE),
        31_485_452,
        474,
    ),
    "wavediff cifar10": (GeneratorShape(12, 128, (128, 256, 256), 2, (False,) * 3, layers=4, **WIDE), 33_370_124, 272),
    "wavediff celebahq1024": (
        GeneratorShape(48, 64, (64, 64, 128, 128, 256, 256), 2, (False,) * 6, layers=3, wavelet=True, patch=2, **WIDE),
        44_186_416,
        528,
    ),
}  # fmt: skip


def blur(x, t, z):
    """A generator in a line: the picture pulled towards a colour that its latent chooses."""
    return torch.tanh(0.7 * x + 0.3 * z[:, :3, None, None] + 0.01 * t.reshape(-1, 1, 1, 1))


def made(**options) -> GeneratorBackbone:
    return GeneratorBackbone(blur, few_steps(4), (3, 8, 8), latent=5, **options)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_networks_have_the_published_size_and_are_read_off_their_tensors(name):
    shape, parameters, keys = PUBLISHED[name]
    with torch.device("meta"):
        state = Generator(shape).state_dict()
    assert (sum(p.numel() for p in state.values()), len(state)) == (parameters, keys)
    assert generator_shape(state, Path("netG.pth")) == shape


@pytest.mark.parametrize("name", ["ddgan_tiny", "wavediff_tiny"])
def test_a_file_is_known_by_its_content_and_has_the_recorded_names(name):
    backbone = load_checkpoint(GOLDEN / f"{name}.pt", image_size=16)
    assert isinstance(backbone, GeneratorBackbone)
    assert (backbone.image_shape, backbone.latent, len(backbone.schedule)) == ((3, 16, 16), 10, 4)
    listed = json.loads((GOLDEN / f"{name}.json").read_text())["state_dict"]
    assert {k: list(v.shape) for k, v in backbone._original.state_dict().items()} == listed


def test_presets_and_options_of_files():
    two = load_ddgan(GOLDEN / "ddgan_tiny.pt", preset="ddgan-celebahq256")
    assert (two.image_shape, len(two.schedule)) == ((3, 256, 256), 2)
    assert load_ddgan(GOLDEN / "wavediff_tiny.pt", preset="wavediff-cifar10").coefficients == "haar-rows-first"
    for options, said in (
        ({"image_size": 18}, "image_size must be a multiple of 8"),
        ({"preset": "ddgan-cifar"}, "preset must be .*ddgan-cifar10"),
        ({"steps": 0}, "steps must be"),
        ({"beta_min": 3, "beta_max": 2}, "beta_max must be"),
    ):
        with pytest.raises(InvdiffError, match=said):
            load_ddgan(GOLDEN / "wavediff_tiny.pt", **options)


def test_files_that_are_something_else_are_refused_with_what_they_lack(tmp_path):
    state = torch.load(GOLDEN / "ddgan_tiny.pt", weights_only=True)
    names = list(state)
    for broken, said in (
        ({k: v for k, v in state.items() if k != names[9]}, "1 missing, the first"),
        ({k: v for k, v in state.items() if ".12." not in k}, "which is not 2 L n"),
        ({k: v for k, v in state.items() if ".all_modules.2." not in f".{k}"}, "the first three and the last two"),
    ):
        torch.save(broken, tmp_path / "netG.pth")
        with pytest.raises(InvdiffError, match=said):
            load_ddgan(tmp_path / "netG.pth", 16)
    torch.save({"netG_dict": 3}, tmp_path / "content.pth")
    with pytest.raises(InvdiffError):
        load_checkpoint(tmp_path / "content.pth")


def test_the_schedule_is_that_of_the_papers():
    assert few_steps(4).betas.tolist() == pytest.approx([0.47826, 0.84921, 0.95642, 0.98740], abs=1e-5)
    assert few_steps(2).betas.tolist() == pytest.approx([0.92132, 0.99945], abs=1e-5)
    geometric = few_steps(3, geometric=True).alpha_bar
    assert float(1 - geometric[2]) == pytest.approx((0.9 - 1e-4 * 9000**0.001) / (1 - 1e-4 * 9000**0.001), rel=1e-6)
    for options in ({"steps": 65}, {"geometric": True, "beta_max": 1.5}, {"beta_min": -1}):
        with pytest.raises(InvdiffError):
            few_steps(**options)


@pytest.mark.parametrize("sampler", ["repaint", "ddnm", "pigdm", "ddrm", "diffpir", "unconditional"])
def test_a_result_depends_on_its_seed_and_never_on_its_batch(sampler):
    y = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    operator = Mask(make_mask("box", 8))
    together = solve(operator, y, sampler, backbone=made(), seed=[5, 6, 7], batch_size=3)
    assert len({tuple(image.flatten().tolist()) for image in together.x}) == 3
    for i, seed in enumerate((5, 6, 7)):
        alone = solve(operator, y[i], sampler, backbone=made(), seed=seed)
        torch.testing.assert_close(alone.x[0], together.x[i], atol=1e-6, rtol=0)
    two = solve(operator, y, sampler, backbone=made(), seed=[5, 6, 7], batch_size=2)
    torch.testing.assert_close(two.x, together.x, atol=1e-6, rtol=0)


def test_latents_are_fresh_at_every_call_and_standard_normal():
    seen = []

    def watching(x, t, z):
        seen.append(z.clone())
        return 0 * x

    backbone = GeneratorBackbone(watching, few_steps(4), (3, 8, 8), latent=400)
    solve(Identity(), torch.zeros(2, 3, 8, 8), "unconditional", backbone=backbone, n_samples=2, seed=[1, 2])
    latents = torch.stack(seen)
    assert latents.shape == (4, 4, 400)
    correlation = torch.corrcoef(latents.flatten(0, 1)) - torch.eye(16)
    assert float(correlation.abs().max()) < 0.2
    assert float(latents.mean().abs()) < 0.05
    assert float(latents.var()) == pytest.approx(1, abs=0.06)
    with torch.no_grad():  # outside of a run: one latent for all
        backbone.predict(torch.zeros(2, 3, 8, 8), 1)
    assert torch.equal(seen[-1][0], seen[-1][1])


def test_the_caller_s_noise_is_asked_for_the_latents_too():
    shapes = []

    def noise(shape):
        shapes.append(tuple(shape))
        return torch.zeros(shape)

    solve(Identity(), torch.zeros(3, 8, 8), "unconditional", backbone=made(), noise=noise)
    assert shapes.count((1, 5)) == 4


def test_wavelet_coefficients_are_a_change_of_variables():
    """The chain in pixels is the chain of the halved coefficients, step by step."""

    def shrink(c, t, z):
        return 0.4 * c + 0.05 * z[:, :1, None, None]

    own = few_steps(4)
    backbone = GeneratorBackbone(shrink, own, (3, 8, 8), latent=2, coefficients="haar")
    drawn = {k: torch.randn(1, 12, 4, 4, generator=torch.Generator().manual_seed(k)) for k in range(5)}
    order = iter([drawn[4], drawn[0], drawn[1], drawn[2]])

    def noise(shape):
        return torch.ones(shape) if len(shape) == 2 else inverse_haar(next(order))

    x = solve(Identity(), torch.zeros(3, 8, 8), "unconditional", backbone=backbone, noise=noise, clip=False).x * 2 - 1
    first = float(backbone.schedule.alpha_bar_at(3))
    c = drawn[4] * (4 / (1 + 3 * first)) ** 0.5 / 2  # the unit noise of pictures, in coefficients
    for k, t in enumerate((3, 2, 1, 0)):
        a, a_s = own.alpha_bar_at(t), own.alpha_bar_at(t - 1)
        beta, x0 = 1 - a / a_s, shrink(c, t, torch.ones(1, 2))
        c = a_s**0.5 * beta / (1 - a) * x0 + (a / a_s) ** 0.5 * (1 - a_s) / (1 - a) * c
        if t > 0:
            c = c + (beta * (1 - a_s) / (1 - a)) ** 0.5 * drawn[k]
    torch.testing.assert_close(haar(x) / 2, c, atol=1e-5, rtol=1e-5)


def test_bad_input_is_named():
    for options, said in (
        ({"latent": 0}, "latent must be"),
        ({"coefficients": "db2"}, "coefficients must be"),
        ({"engine": "openvino"}, "a generator, which has a latent"),
    ):
        with pytest.raises(InvdiffError, match=said):
            GeneratorBackbone(blur, few_steps(4), (3, 8, 8), **options)
    with pytest.raises(InvdiffError, match="steps of the schedule"):
        GeneratorBackbone(blur, NoiseSchedule.linear(1000), (3, 8, 8))
    with pytest.raises(InvdiffError, match="network must return shape"):
        GeneratorBackbone(lambda x, t, z: x[:, :2], few_steps(2), (3, 8, 8)).predict(torch.zeros(1, 3, 8, 8), 0)


def test_samplers_fit_themselves_to_a_schedule_of_few_times():
    operator, y = Mask(make_mask("box", 8)), torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert solve(operator, y, "ddnm", backbone=made()).nfe == 4
    assert solve(operator, y, "repaint", backbone=made()).settings["jump_length"] == 1
    assert solve(operator, y, "repaint", backbone=made(), jump_n_sample=1).nfe == 4
    assert sample(made(), 2, steps=4).x.shape == (2, 3, 8, 8)
    with pytest.raises(InvdiffError, match="steps must be"):
        solve(operator, y, "ddnm", backbone=made(), steps=5)


def test_a_view_for_a_run_leaves_the_backbone_alone():
    backbone = made()
    view = backbone.drawing(NoiseSource([(1, 0)], (3, 8, 8)))
    x = torch.zeros(1, 3, 8, 8)
    first, second = view.predict(x, 2).x0, view.predict(x, 2).x0
    assert not torch.equal(first, second)
    torch.testing.assert_close(backbone.predict(x, 2).x0, backbone.predict(x, 2).x0)
