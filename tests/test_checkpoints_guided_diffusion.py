"""guided-diffusion's layout: a functional reference, written from the names in a file, against the loaded network."""

import math

import pytest
import torch
import torch.nn.functional as F

from invdiff.checkpoints import layout as unet
from invdiff.checkpoints import load_guided_diffusion
from invdiff.checkpoints.guided_diffusion import PRESETS, UNetConfig
from invdiff.errors import InvdiffError

TINY = {
    "image_size": 16,
    "num_channels": 32,
    "num_res_blocks": 1,
    "attention_resolutions": "8",
    "channel_mult": (1, 2),
    "num_head_channels": 16,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
    "learn_sigma": True,
}


def reference(state, x, t, *, channels, res_blocks, heads, new_order=False, y=None):
    """guided-diffusion's forward pass, read off the names of a state dict. Returns the output and the names it used."""
    used = set()

    def take(name):
        used.update(n for n in (f"{name}.weight", f"{name}.bias") if n in state)
        return state[f"{name}.weight"], state.get(f"{name}.bias")

    def norm(name, h):
        return F.group_norm(h, 32, *take(name), eps=1e-5)

    def conv(name, h, **options):
        return F.conv2d(h, *take(name), **options)

    def residual(name, h, resample=None):
        shortcut, h = h, F.silu(norm(f"{name}.in_layers.0", h))
        if resample is not None:
            shortcut, h = resample(shortcut), resample(h)
        h = conv(f"{name}.in_layers.2", h, padding=1)
        shift = F.linear(F.silu(emb), *take(f"{name}.emb_layers.1"))[..., None, None]
        if shift.shape[1] == 2 * h.shape[1]:
            scale, shift = shift.chunk(2, 1)
            h = norm(f"{name}.out_layers.0", h) * (1 + scale) + shift
        else:
            h = norm(f"{name}.out_layers.0", h + shift)
        h = conv(f"{name}.out_layers.3", F.silu(h), padding=1)
        if f"{name}.skip_connection.weight" in state:
            shortcut = conv(f"{name}.skip_connection", shortcut)
        return shortcut + h

    def attention(name, h):
        flat = h.flatten(2)
        qkv = F.conv1d(norm(f"{name}.norm", flat), *take(f"{name}.qkv"))
        n = heads(h.shape[1])
        if new_order:
            q, k, v = (part.unflatten(1, (n, -1)) for part in qkv.chunk(3, 1))
        else:
            q, k, v = qkv.unflatten(1, (n, -1)).chunk(3, 2)
        weight = torch.einsum("bnct,bncs->bnts", q, k) / math.sqrt(q.shape[2])
        mixed = torch.einsum("bnts,bncs->bnct", weight.softmax(-1), v).flatten(1, 2)
        return (flat + F.conv1d(mixed, *take(f"{name}.proj_out"))).reshape(h.shape)

    def double(h):
        return F.interpolate(h, scale_factor=2, mode="nearest")

    def block(name, h, up=False):
        i = 0
        while any(k.startswith(f"{name}.{i}.") for k in state):
            part = f"{name}.{i}"
            if f"{part}.qkv.weight" in state:
                h = attention(part, h)
            elif f"{part}.op.weight" in state:
                h = conv(f"{part}.op", h, stride=2, padding=1)
            elif f"{part}.conv.weight" in state:
                h = conv(f"{part}.conv", double(h), padding=1)
            elif f"{part}.in_layers.0.weight" in state:
                down = name.startswith("input") and int(name.split(".")[1]) % (res_blocks + 1) == 0
                resample = (lambda z: F.avg_pool2d(z, 2)) if down else double if up and i > 0 else None
                h = residual(part, h, resample)
            else:
                h = conv(part, h, padding=1)
            i += 1
        return h

    half = channels // 2
    angles = t[:, None].double() * torch.exp(-math.log(1e4) * torch.arange(half, dtype=torch.float64) / half)
    emb = torch.cat([angles.cos(), angles.sin()], 1).to(x.dtype)
    emb = F.linear(F.silu(F.linear(emb, *take("time_embed.0"))), *take("time_embed.2"))
    if y is not None:
        used.add("label_emb.weight")
        emb = emb + state["label_emb.weight"][y]
    h, kept = x, []
    for n in range(1 + max(int(k.split(".")[1]) for k in state if k.startswith("input_blocks"))):
        h = block(f"input_blocks.{n}", h)
        kept.append(h)
    h = residual("middle_block.2", attention("middle_block.1", residual("middle_block.0", h)))
    for n in range(len(kept)):
        h = block(f"output_blocks.{n}", torch.cat([h, kept.pop()], 1), up=True)
    return conv("out.2", F.silu(norm("out.0", h)), padding=1), used


def make(config, seed=0, dtype=torch.float32):
    """Random weights of moderate size, under guided-diffusion's names and in its shapes."""
    read, state = UNetConfig.read(config), {}
    network, generator = read.network(), torch.Generator().manual_seed(seed)
    for name, shape in unet.shapes(network, read.entries(network)).items():
        values = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            values /= math.sqrt(math.prod(shape[1:]))
            if name.endswith(("qkv.weight", "proj_out.weight")):
                values = values[..., None]
            elif "skip_connection" in name:
                values = values[..., None, None]
        else:
            values = 0.1 * values + (name.endswith("weight"))
        state[name] = values.to(dtype)
    return state


@pytest.fixture
def saved(tmp_path):
    def save(state, name="tiny.pt"):
        torch.save(state, tmp_path / name)
        return tmp_path / name

    return save


def inputs(size=16, batch=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, size, size, generator=generator), torch.tensor([3, 871])[:batch]


VARIANTS = {
    "published": {},
    "new-order": {"use_new_attention_order": True},
    "fixed-heads": {"num_head_channels": -1, "num_heads": 2},
    "fixed-heads-new-order": {"num_head_channels": -1, "num_heads": 4, "use_new_attention_order": True},
    "additive-time": {"use_scale_shift_norm": False},
    "convolutions": {"resblock_updown": False},
    "attention-above": {"attention_resolutions": "16", "num_res_blocks": 2},
    "attention-everywhere": {"attention_resolutions": (1, 2), "resblock_updown": False, "learn_sigma": False},
    "narrow-start": {"num_channels": 64, "channel_mult": "0.5,1"},
    "classes": {"num_classes": 5},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loaded_network_computes_what_the_layout_says(variant, saved):
    config = {**TINY, **VARIANTS[variant]}
    read, state = UNetConfig.read(config), make(config)
    y = torch.tensor([1, 4]) if "num_classes" in config else None
    backbone = load_guided_diffusion(saved(state), precision="float32", class_labels=y, **config)
    x, t = inputs()
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    ours = backbone.network(a, t)
    theirs, used = reference(
        state,
        b,
        t,
        channels=read.model_channels,
        res_blocks=read.num_res_blocks,
        heads=lambda c: c // read.head_size(c),
        new_order=read.use_new_attention_order,
        y=y,
    )
    assert used == state.keys()
    assert ours.shape[1] == (6 if config["learn_sigma"] else 3)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    (ours[:, :3] ** 2).sum().backward()
    (theirs[:, :3] ** 2).sum().backward()
    torch.testing.assert_close(a.grad, b.grad, atol=1e-4, rtol=1e-4)


def test_the_two_orders_of_heads_differ(saved):
    path, (x, t) = saved(make(TINY)), inputs()
    outputs = [
        load_guided_diffusion(path, precision="float32", use_new_attention_order=new, **TINY).network(x, t)
        for new in (False, True)
    ]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3


def test_a_float16_file_is_widened(saved):
    state, (x, t) = make(TINY, dtype=torch.float16), inputs()
    half = load_guided_diffusion(saved(state), precision="float32", **TINY)
    full = load_guided_diffusion(
        saved({k: v.float() for k, v in state.items()}, "full.pt"), precision="float32", **TINY
    )
    assert {p.dtype for p in half.module.parameters()} == {torch.float32}
    assert torch.equal(half.network(x, t), full.network(x, t))


def test_a_labelled_batch_is_its_images_one_by_one(saved):
    config = {**TINY, "num_classes": 5}
    path, (x, t) = saved(make(config)), inputs()
    both = load_guided_diffusion(path, precision="float32", class_labels=torch.tensor([1, 4]), **config)
    second = load_guided_diffusion(path, precision="float32", class_labels=4, **config)
    torch.testing.assert_close(both.network(x, t)[1:], second.network(x[1:], t[1:]), atol=1e-5, rtol=1e-5)
    assert (both.network(x[[1, 1]], t[[1, 1]])[0] - second.network(x[1:], t[1:])[0]).abs().max() > 1e-3


def test_the_variance_is_learned_and_bounded_by_the_schedule(saved):
    backbone = load_guided_diffusion(saved(make(TINY)), precision="float32", **TINY)
    x, _ = inputs()
    prediction = backbone.predict(x, 500)
    a = backbone.schedule.alpha_bar_at(500)
    torch.testing.assert_close(a**0.5 * prediction.x0 + (1 - a) ** 0.5 * prediction.eps, x, atol=1e-5, rtol=1e-5)
    assert prediction.log_variance is not None and prediction.log_variance.shape == x.shape


def test_other_sizes_than_the_training_pass_through(saved):
    state, config = make(TINY), TINY
    backbone = load_guided_diffusion(saved(state), precision="float32", **config)
    x, t = inputs(24)
    theirs, _ = reference(state, x, t, channels=32, res_blocks=1, heads=lambda c: c // 16)
    torch.testing.assert_close(backbone.network(x, t), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("preset", "parameters", "tensors"),
    [
        ("imagenet256-uncond", 552_814_086, 566),
        ("celebahq256-repaint", 552_814_086, 566),
        ("places256-repaint", 552_814_086, 566),
        ("imagenet256-cond", 553_838_086, 567),
        ("ffhq256", 93_563_910, 362),
    ],
)
def test_presets_have_the_published_sizes(preset, parameters, tensors):
    config = UNetConfig.read(PRESETS[preset])
    network = config.network()
    entries = config.entries(network)
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert len(entries) == len({e.source for e in entries}) == tensors
    assert sorted(t for e in entries for t in e.targets) == sorted(n for n, _ in network.named_parameters())


def test_strings_are_pixels_and_numbers_are_factors():
    as_pixels = UNetConfig.read({**PRESETS["ffhq256"], "attention_resolutions": "32,16,8"})
    as_factors = UNetConfig.read({**PRESETS["ffhq256"], "attention_resolutions": [8, 16, 32]})
    assert as_pixels == as_factors
    assert UNetConfig.read({**PRESETS["ffhq256"], "channel_mult": ""}) == UNetConfig.read(PRESETS["ffhq256"])


def test_schedules_follow_the_number_of_times():
    short = UNetConfig.read({**TINY, "diffusion_steps": 250}).schedule()
    assert short.T == 250 and short.beta(249) == pytest.approx(0.08) and short.beta(0) == pytest.approx(4e-4)
    assert UNetConfig.read({**TINY, "noise_schedule": "cosine"}).schedule().beta(999) == pytest.approx(0.999)


def test_a_file_that_does_not_fit_names_the_first_difference_and_the_nearest_preset(saved):
    state = make(TINY)
    lost = saved({k: v for k, v in state.items() if k != "middle_block.1.qkv.weight"} | {"extra.weight": torch.ones(1)})
    with pytest.raises(
        InvdiffError, match=r"1 missing, the first middle_block\.1\.qkv\.weight; 1 unexpected, the first extra\.w"
    ):
        load_guided_diffusion(lost, **TINY)
    with pytest.raises(
        InvdiffError, match=r"another shape, the first .*emb_layers\.1\.weight: \(64, 128\) instead of \(32, 128\)"
    ):
        load_guided_diffusion(saved(state), **{**TINY, "use_scale_shift_norm": False})
    shapes = UNetConfig.read(PRESETS["ffhq256"])
    network = shapes.network()
    ffhq = {k: torch.zeros(()).expand(s) for k, s in unet.shapes(network, shapes.entries(network)).items()}
    from invdiff.checkpoints import guided_diffusion

    assert "fits preset ffhq256 exactly" in guided_diffusion._best_preset(ffhq)
    ffhq.pop("out.2.bias")
    assert "fits best is ffhq256, 100 %" in guided_diffusion._best_preset(ffhq)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_chanels": 32}, r"'num_chanels'.*Did you mean 'num_channels'"),
        ({"num_head_channels": -1}, "num_head_channels or num_heads"),
        ({"num_head_channels": 24}, "32 channels at level 0 cannot be divided into heads of 24"),
        ({"num_channels": 40}, "multiple of 32, got 40"),
        ({"attention_resolutions": "a"}, "attention_resolutions must be"),
        ({"channel_mult": "1,x"}, "channel_mult must be"),
        ({"out_channels": 5}, "out_channels must be 3 or"),
        ({"noise_schedule": "quadratic"}, "noise_schedule must be"),
        ({"dims": 3}, "dims must be 2"),
        ({"num_res_blocks": 0}, "num_res_blocks must be"),
        ({"class_labels": 3}, "class_labels must be left out"),
        ({"class_cond": True}, "class_labels must be given"),
        ({"class_cond": True, "class_labels": 1000}, r"class_labels must be 0\.\.999"),
        ({"class_cond": True, "class_labels": 0.5}, "class_labels must be a whole number"),
        ({"preset": "imagenet256"}, r"unknown preset 'imagenet256'.*Did you mean"),
    ],
)
def test_bad_configurations_are_refused_before_the_file_is_read(change, message):
    with pytest.raises(InvdiffError, match=message):
        load_guided_diffusion("nowhere.pt", **{**TINY, **change})


def test_without_a_configuration_the_file_must_fit_a_preset(saved):
    with pytest.raises(InvdiffError, match="fits no preset exactly"):
        load_guided_diffusion(saved(make(TINY)))
