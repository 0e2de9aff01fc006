"""guided-diffusion's layout: a functional reference, written from the names in a file, against the loaded network."""

import pytest
import torch
from layouts import TINY, guided_diffusion, guided_diffusion_weights

from invdiff.checkpoints import layout as unet
from invdiff.checkpoints import load_guided_diffusion
from invdiff.checkpoints.guided_diffusion import PRESETS, UNetConfig, told_by
from invdiff.errors import InvdiffError


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
    read, state = UNetConfig.read(config), guided_diffusion_weights(config)
    y = torch.tensor([1, 4]) if "num_classes" in config else None
    backbone = load_guided_diffusion(saved(state), precision="float32", class_labels=y, **config)
    x, t = inputs()
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    ours = backbone.network(a, t)
    theirs, used = guided_diffusion(
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
    path, (x, t) = saved(guided_diffusion_weights(TINY)), inputs()
    outputs = [
        load_guided_diffusion(path, precision="float32", use_new_attention_order=new, **TINY).network(x, t)
        for new in (False, True)
    ]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3


def test_a_float16_file_is_widened(saved):
    state, (x, t) = guided_diffusion_weights(TINY, dtype=torch.float16), inputs()
    half = load_guided_diffusion(saved(state), precision="float32", **TINY)
    full = load_guided_diffusion(
        saved({k: v.float() for k, v in state.items()}, "full.pt"), precision="float32", **TINY
    )
    assert {p.dtype for p in half.module.parameters()} == {torch.float32}
    assert torch.equal(half.network(x, t), full.network(x, t))


def test_a_labelled_batch_is_its_images_one_by_one(saved):
    config = {**TINY, "num_classes": 5}
    path, (x, t) = saved(guided_diffusion_weights(config)), inputs()
    both = load_guided_diffusion(path, precision="float32", class_labels=torch.tensor([1, 4]), **config)
    second = load_guided_diffusion(path, precision="float32", class_labels=4, **config)
    torch.testing.assert_close(both.network(x, t)[1:], second.network(x[1:], t[1:]), atol=1e-5, rtol=1e-5)
    assert (both.network(x[[1, 1]], t[[1, 1]])[0] - second.network(x[1:], t[1:])[0]).abs().max() > 1e-3


def test_the_variance_is_learned_and_bounded_by_the_schedule(saved):
    backbone = load_guided_diffusion(saved(guided_diffusion_weights(TINY)), precision="float32", **TINY)
    x, _ = inputs()
    prediction = backbone.predict(x, 500)
    a = backbone.schedule.alpha_bar_at(500)
    torch.testing.assert_close(a**0.5 * prediction.x0 + (1 - a) ** 0.5 * prediction.eps, x, atol=1e-5, rtol=1e-5)
    assert prediction.log_variance is not None and prediction.log_variance.shape == x.shape


def test_other_sizes_than_the_training_pass_through(saved):
    state, config = guided_diffusion_weights(TINY), TINY
    backbone = load_guided_diffusion(saved(state), precision="float32", **config)
    x, t = inputs(24)
    theirs, _ = guided_diffusion(state, x, t, channels=32, res_blocks=1, heads=lambda c: c // 16)
    torch.testing.assert_close(backbone.network(x, t), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("preset", "parameters", "tensors"),
    [
        ("imagenet256-uncond", 552_814_086, 566),
        ("celebahq256-repaint", 552_814_086, 566),
        ("places256-repaint", 552_814_086, 566),
        ("imagenet256-cond", 553_838_086, 567),
        ("ffhq256", 93_563_910, 362),
        ("imagenet64-cond", 295_904_454, 541),  # 296, 422 and 559 million in the paper's table of models
        ("imagenet128-cond", 421_529_606, 493),
        ("imagenet512-cond", 558_997_638, 645),
        ("lsun-bedroom256", 552_814_086, 566),
        ("lsun-cat256", 552_814_086, 566),
        ("lsun-horse256", 552_814_086, 566),
        ("imagenet64-iddpm", 121_063_942, 450),
        ("imagenet64-cond-iddpm", 273_049_350, 451),  # called 270M in the file's name
        ("cifar10-iddpm", 52_546_438, 446),
        ("lsun-bedroom256-iddpm", 113_676_678, 426),
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
    state = guided_diffusion_weights(TINY)
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
        ({"num_head_channels": 24}, "64 channels at level 1 cannot be divided into heads of 24"),
        ({"num_channels": 40}, "multiple of 32, got 40"),
        ({"attention_resolutions": "a"}, "attention_resolutions must be"),
        ({"channel_mult": "1,x"}, "channel_mult must be"),
        ({"out_channels": 5}, "out_channels and what learn_sigma makes .* contradict each other: 5 and 6"),
        ({"model_channels": 64}, "num_channels and model_channels contradict each other: 32 and 64"),
        ({"class_cond": False, "num_classes": 5}, "class_cond and num_classes is not None contradict"),
        ({"use_scale_shift_norm": "yes"}, "use_scale_shift_norm must be True or False, got 'yes'"),
        ({"diffusion_steps": 10**9}, "diffusion_steps must be a whole number from 1 to 1,000,000"),
        ({"num_channels": 10**9}, "num_channels must be a whole number"),
        ({"noise_schedule": "quadratic"}, "noise_schedule must be"),
        ({"dims": 3}, "dims must be 2"),
        ({"num_res_blocks": 0}, "num_res_blocks must be"),
        ({"class_labels": 3}, "class_labels must be left out"),
        ({"class_cond": True}, "class_labels must be given"),
        ({"class_cond": True, "class_labels": 1000}, r"class_labels must be 0\.\.999"),
        ({"class_cond": True, "class_labels": 0.5}, "class_labels must be a whole number"),
        ({"preset": "imagenet256"}, r"preset must be one of .*got 'imagenet256'.*Did you mean"),
    ],
)
def test_bad_configurations_are_refused_before_the_file_is_read(change, message):
    with pytest.raises(InvdiffError, match=message):
        load_guided_diffusion("nowhere.pt", **{**TINY, **change})


def test_without_a_configuration_the_file_must_fit_a_preset(saved):
    with pytest.raises(InvdiffError, match=r"fits no preset exactly.*It tells model_channels=32, num_res_blocks=1"):
        load_guided_diffusion(saved(guided_diffusion_weights(TINY)))
    with pytest.raises(InvdiffError, match=r"no file of guided-diffusion: of 1 tensors, starting with conv_in"):
        load_guided_diffusion(saved({"conv_in.weight": torch.ones(3)}))


@pytest.mark.parametrize("preset", PRESETS)
def test_the_file_tells_all_but_the_size_the_heads_and_the_schedule(preset):
    config = UNetConfig.read(PRESETS[preset])
    network = config.network()
    state = {k: torch.zeros(()).expand(s) for k, s in unet.shapes(network, config.entries(network)).items()}
    not_told = ("image_size", "num_heads", "num_head_channels", "use_new_attention_order")
    not_told += ("noise_schedule", "diffusion_steps", "rescale_timesteps")
    given = {k: v for k, v in PRESETS[preset].items() if k in not_told}
    assert UNetConfig.read(given, told_by(state)) == config


def test_a_preset_is_changed_by_either_name():
    for name in ("num_channels", "model_channels"):
        assert UNetConfig.read({name: 64}, PRESETS["ffhq256"]).model_channels == 64
    read = UNetConfig.read({"learn_sigma": False}, PRESETS["ffhq256"])
    assert read.out_channels == 3 and UNetConfig.read({"in_channels": 1}, PRESETS["ffhq256"]).out_channels == 2
    assert UNetConfig.read({"out_channels": 3}, PRESETS["ffhq256"]).out_channels == 3
    assert UNetConfig.read({"class_cond": False}, PRESETS["imagenet256-cond"]).num_classes is None


def test_heads_count_only_where_there_is_attention():
    config = {**TINY, "num_channels": 32, "channel_mult": (1, 2), "num_head_channels": 64}
    assert UNetConfig.read(config).head_size(64) == 64  # not a divisor of the first level's 32


def test_rescaled_times_are_what_the_network_is_told(saved):
    config = {**TINY, "diffusion_steps": 4000, "noise_schedule": "cosine"}
    path, (x, _) = saved(guided_diffusion_weights(config)), inputs()
    rescaled = load_guided_diffusion(path, precision="float32", rescale_timesteps=True, **config)
    plain = load_guided_diffusion(path, precision="float32", **config)
    assert rescaled.schedule.T == 4000
    t = torch.tensor([12, 3484])
    assert torch.equal(rescaled.network(x, t), plain.network(x, t // 4))
    thinned = rescaled.on(rescaled.schedule.respaced(20))
    expected = rescaled.network(x, torch.full((2,), thinned.schedule.timestep(7)))
    torch.testing.assert_close(thinned.predict(x, 7).eps, expected[:, :3])
