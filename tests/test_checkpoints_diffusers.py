"""diffusers' folders, pipelines and networks: the network's numbers, and what its configurations say."""

import json
import subprocess
import sys

import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    PNDMScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
)

from invdiff.backbones import FlowBackbone, NoiseSchedule, load_backbone
from invdiff.checkpoints import load_diffusers
from invdiff.checkpoints.diffusers import noise_schedule
from invdiff.errors import InvdiffError


def unet(**changes):
    torch.manual_seed(0)
    shape = {
        "sample_size": 8,
        "block_out_channels": (32, 32),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    return UNet2DModel(**{**shape, **changes}).eval()


def inputs():
    torch.manual_seed(1)
    return torch.randn(2, 3, 8, 8), torch.tensor([3, 871])


def assert_same(backbone, network):
    x, t = inputs()
    with torch.no_grad():
        torch.testing.assert_close(backbone.network(x, t), network(x, t).sample, atol=1e-6, rtol=1e-6)


def legacy(state):
    """Attention under the names of the files that diffusers wrote in 2022, as the hub's DDPM files still have them."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, name in old.items():
        state = {k.replace(f".{new}.", f".{name}."): v for k, v in state.items()}
    return state


# ---- where it comes from ------------------------------------------------------------------------------------


@pytest.mark.parametrize("safe", [True, False])
def test_every_kind_of_source_gives_the_same_network(safe, tmp_path):
    network, scheduler = unet(), DDPMScheduler(beta_schedule="squaredcos_cap_v2", num_train_timesteps=50)
    pipeline = DDPMPipeline(network, scheduler)
    network.save_pretrained(tmp_path / "unet-only", safe_serialization=safe)
    pipeline.save_pretrained(tmp_path / "pipeline", safe_serialization=safe)
    network.save_pretrained(tmp_path / "flat", safe_serialization=safe)
    scheduler.save_pretrained(tmp_path / "flat")
    sources = [tmp_path / "pipeline", str(tmp_path / "flat"), pipeline, DDIMPipeline(network, scheduler)]
    backbones = [load_diffusers(s, precision="float32") for s in sources]
    backbones.append(load_diffusers(network, scheduler=scheduler, precision="float32"))
    backbones.append(load_diffusers(tmp_path / "unet-only", scheduler=dict(scheduler.config), precision="float32"))
    backbones.append(load_backbone(tmp_path / "pipeline", precision="float32"))
    for backbone in backbones:
        assert_same(backbone, network)
        assert backbone.image_shape == (3, 8, 8) and backbone.prediction == "epsilon"
        torch.testing.assert_close(
            backbone.schedule.alpha_bar[:-1].float(), scheduler.alphas_cumprod, atol=1e-6, rtol=1e-4
        )
    assert all(p.requires_grad for p in network.parameters())


def test_files_of_2022_load(tmp_path):
    network = unet()
    network.save_config(tmp_path)
    torch.save(legacy(network.state_dict()), tmp_path / "diffusion_pytorch_model.bin")
    old = {
        "_class_name": "DDPMScheduler",
        "timesteps": 20,
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "beta_schedule": "linear",
    }
    (tmp_path / "scheduler_config.json").write_text(
        json.dumps({**old, "trained_betas": None, "variance_type": "fixed_small"})
    )
    backbone = load_diffusers(tmp_path, precision="float32")
    assert_same(backbone, network)
    assert backbone.schedule.T == 20


@pytest.mark.parametrize("safe", [True, False])
def test_shards_are_read_together(safe, tmp_path):
    network = unet()
    network.save_pretrained(tmp_path, max_shard_size="300KB", safe_serialization=safe)
    shards = sorted(tmp_path.glob("diffusion_pytorch_model-*"))
    assert len(shards) > 1 and len(list(tmp_path.glob("*.index.json"))) == 1
    assert_same(load_backbone(tmp_path, precision="float32", format="diffusers"), network)
    for file in [*shards, *tmp_path.glob("*.index.json")]:  # the name that some other tools write
        file.rename(tmp_path / file.name.replace("diffusion_pytorch_model", "model"))
    [index] = tmp_path.glob("*.index.json")
    index.write_text(index.read_text().replace("diffusion_pytorch_model", "model"))
    assert_same(load_backbone(tmp_path, precision="float32"), network)
    (tmp_path / shards[1].name.replace("diffusion_pytorch_model", "model")).unlink()
    with pytest.raises(InvdiffError, match=r"lacks 1 of the \d files of its weights, the first model-00002"):
        load_diffusers(tmp_path)
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": "../elsewhere.safetensors"}}))
    with pytest.raises(InvdiffError, match="must name the files beside it"):
        load_diffusers(tmp_path)


def test_half_a_download_of_a_pipeline_is_refused(tmp_path):
    DDPMPipeline(unet(), DDPMScheduler(prediction_type="v_prediction")).save_pretrained(tmp_path)
    (tmp_path / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(
        InvdiffError, match=r"lacks scheduler/scheduler_config\.json \(model_index\.json names DDPMScheduler\)"
    ):
        load_backbone(tmp_path)
    backbone = load_diffusers(tmp_path, scheduler=DDPMScheduler(prediction_type="v_prediction"))
    assert backbone.prediction == "v_prediction"
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "scheduler": [None, None]}))
    with pytest.raises(InvdiffError, match=r"\(model_index\.json names none\)"):
        load_backbone(tmp_path)


def test_latent_channels_are_refused():
    with pytest.raises(InvdiffError, match=r"images of 4 channels, as latent models have"):
        load_diffusers(unet(in_channels=4, out_channels=4))


def test_a_half_precision_variant_is_widened(tmp_path):
    network = unet()
    network.half().save_pretrained(tmp_path, variant="fp16")
    assert_same(load_diffusers(tmp_path, precision="float32"), network.float())


def test_conditioning_and_learned_variance_are_read_from_the_network():
    network, (x, t) = unet(num_class_embeds=4, out_channels=6), inputs()
    backbone = load_diffusers(network, class_labels=torch.tensor([0, 3]), precision="float32")
    assert backbone.learned_variance and backbone.predict(x, 10).log_variance.shape == x.shape
    with torch.no_grad():
        torch.testing.assert_close(backbone.network(x, t), network(x, t, torch.tensor([0, 3])).sample)
    with pytest.raises(InvdiffError, match=r"conditioned on one of 4 classes, 0\.\.3"):
        load_diffusers(network)
    with pytest.raises(InvdiffError, match="class_labels must be left out"):
        load_diffusers(unet(), class_labels=1)


# ---- what the scheduler says --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_train_timesteps": 40, "beta_end": 0.3},
        {"beta_schedule": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_schedule": "sigmoid"},
        {"trained_betas": [0.01, 0.1, 0.3], "num_train_timesteps": 3},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    ],
)
def test_levels_are_those_of_the_scheduler(settings):
    theirs = DDPMScheduler(**settings)
    backbone = load_diffusers(unet(), scheduler=theirs)
    levels, expected = backbone.schedule.alpha_bar[:-1].float(), theirs.alphas_cumprod
    torch.testing.assert_close(levels, expected, atol=1e-6, rtol=2e-3)
    assert backbone.prediction == settings.get("prediction_type", "epsilon")


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_one_step_of_diffusers_own_sampler_sees_the_same_clean_image(kind):
    scheduler = DDIMScheduler(prediction_type=kind, clip_sample=False)
    network, (x, _) = unet(), inputs()
    backbone = load_diffusers(network, scheduler=scheduler, precision="float32")
    scheduler.set_timesteps(1000)
    with torch.no_grad():
        expected = scheduler.step(network(x, 700).sample, 700, x).pred_original_sample
        torch.testing.assert_close(backbone.predict(x, 700).x0, expected, atol=1e-4, rtol=1e-4)


def test_any_variance_preserving_scheduler_will_do():
    assert noise_schedule(PNDMScheduler(beta_end=0.1).config).beta(999) == pytest.approx(0.1)
    assert noise_schedule({}).T == 1000


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ({"_class_name": "IPNDMScheduler", "trained_betas": None}, "IPNDMScheduler has no betas"),
        ({"beta_schedule": "laplace"}, "beta_schedule 'laplace'; supported are linear"),
        (
            {"_class_name": "FlowMatchOtherScheduler"},
            "FlowMatchOtherScheduler is not known; of flow matching, FlowMatchEuler",
        ),
        ({"beta_start": 1e-4, "prediction_type": "flow_prediction"}, "'flow_prediction' and use_flow_sigmas False"),
        (UniPCMultistepScheduler(use_flow_sigmas=True), "'epsilon' and use_flow_sigmas True; a velocity"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 0}, "shift must be"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1.5}, "num_train_timesteps must be"),
        ({"beta_start": 1e-4, "num_train_timesteps": 10**9}, "num_train_timesteps must be a whole number"),
        (3, "scheduler must be a diffusers scheduler"),
    ],
)
def test_other_schedulers_are_refused_by_name(scheduler, message):
    with pytest.raises(InvdiffError, match=message):
        load_diffusers(unet(), scheduler=scheduler)


# ---- flow matching ------------------------------------------------------------------------------------------


def folder_of_a_flow(tmp_path, scheduler):
    """What a pipeline of `UNet2DModel` and a flow-matching scheduler saves."""
    unet().save_pretrained(tmp_path / "unet")
    scheduler.save_pretrained(tmp_path / "scheduler")
    write_index(
        tmp_path, unet=["diffusers", "UNet2DModel"], scheduler=["diffusers", type(scheduler).__name__], _class_name="P"
    )
    return tmp_path


@pytest.mark.parametrize(
    "settings", [{}, {"shift": 3.0}, {"num_train_timesteps": 200, "shift": 0.5}, {"invert_sigmas": True}]
)
def test_one_step_of_a_flow_matching_scheduler_to_the_end_sees_the_same_clean_image(settings, tmp_path):
    theirs = FlowMatchEulerDiscreteScheduler(**settings)
    table = theirs.sigmas.double()
    backbone = load_backbone(folder_of_a_flow(tmp_path, theirs), precision="float32")
    assert isinstance(backbone, FlowBackbone)
    levels = backbone.schedule.alpha_bar[:-1]
    share = (1 - levels).sqrt() / (levels.sqrt() + (1 - levels).sqrt())  # of noise, as their sigma
    torch.testing.assert_close(
        share.flip(0)[1:], table[1:], atol=2e-7, rtol=1e-6
    )  # all but sigma = 1, without an image
    network, (data, noise) = unet(), (inputs()[0], inputs()[0].flip(0))
    shift = settings.get("shift", 1.0)
    for t in (0, 57, len(levels) - 2, len(levels) - 1):
        sigma = float(share[t])
        theirs.set_timesteps(sigmas=[sigma / (shift + (1 - shift) * sigma)])  # which they shift once more
        time = theirs.timesteps[0]
        x = (1 - sigma) * data + sigma * noise
        with torch.no_grad():
            expected = theirs.step(network(x, time).sample, time, x).prev_sample
            found = backbone.predict(x / float((1 - sigma) ** 2 + sigma**2) ** 0.5, t).x0
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def test_every_scheduler_of_flow_matching_names_the_same_network():
    x, _ = inputs()
    first = load_diffusers(unet(), scheduler=FlowMatchEulerDiscreteScheduler(shift=2.0), precision="float32")
    for scheduler in (
        FlowMatchHeunDiscreteScheduler(shift=2.0),
        UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=2.0),
        {"_class_name": "FlowMatchLCMScheduler", "shift": 2.0},
    ):
        other = load_diffusers(unet(), scheduler=scheduler, precision="float32")
        assert torch.equal(other.predict(x, 300).x0, first.predict(x, 300).x0)
    sized = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    plain = load_diffusers(unet(), scheduler=sized).schedule
    assert torch.equal(plain.alpha_bar, NoiseSchedule.flow(1000).alpha_bar)


def test_a_velocity_has_the_channels_of_the_image():
    with pytest.raises(InvdiffError, match="6 output channels for 3"):
        load_diffusers(unet(out_channels=6), scheduler=FlowMatchEulerDiscreteScheduler())


# ---- what is refused ----------------------------------------------------------------------------------------


def write_index(folder, **components):
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "SomePipeline", **components}))


def test_latent_and_conditioned_models_are_refused_by_name(tmp_path):
    ours = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}
    write_index(tmp_path, **ours, vae=["diffusers", "AutoencoderKL"], text_encoder=["transformers", "CLIPTextModel"])
    with pytest.raises(
        InvdiffError, match=r"SomePipeline with vae \(AutoencoderKL\), text_encoder \(CLIPTextModel\).*not supported"
    ):
        load_diffusers(tmp_path)
    write_index(tmp_path, **{**ours, "unet": ["diffusers", "UNet2DConditionModel"]})
    with pytest.raises(InvdiffError, match="unet is a UNet2DConditionModel"):
        load_diffusers(tmp_path)
    write_index(tmp_path, transformer=["diffusers", "FluxTransformer2DModel"])
    with pytest.raises(InvdiffError, match="SomePipeline without a unet"):
        load_diffusers(tmp_path)
    (tmp_path / "model_index.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    with pytest.raises(InvdiffError, match="holds a UNet2DConditionModel"):
        load_diffusers(tmp_path)


class Latent:
    components = {"unet": unet(), "vae": torch.nn.Identity()}  # noqa: RUF012


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Latent(), r"Latent with vae \(Identity\)"),
        (torch.nn.Conv2d(3, 3, 1), "source is a Conv2d.*NetworkBackbone"),
        (3, "source is a int, expected the name"),
        ("no-such-folder", "no folder that exists, and no name of the form owner/name"),
        ("a/b/c", "no folder that exists"),
    ],
)
def test_other_sources_are_refused_by_name(source, message):
    with pytest.raises(InvdiffError, match=message):
        load_diffusers(source)


def test_other_networks_are_refused_by_name():
    with pytest.raises(InvdiffError, match=r"fourier.*EDMBackbone"):
        load_diffusers(unet(time_embedding_type="fourier"))
    with pytest.raises(InvdiffError, match="class_embed_type 'timestep'"):
        load_diffusers(unet(class_embed_type="timestep"))
    with pytest.raises(InvdiffError, match="5 output channels for 3"):
        load_diffusers(unet(out_channels=5))
    with pytest.raises(InvdiffError, match="image_size must be given"):
        load_diffusers(unet(sample_size=None))
    assert load_diffusers(unet(sample_size=None), image_size=16).image_shape == (3, 16, 16)


def test_damaged_folders_say_what_is_wrong(tmp_path):
    with pytest.raises(InvdiffError, match="no folder in diffusers' format"):
        load_diffusers(tmp_path)
    network = unet()
    network.save_config(tmp_path)
    with pytest.raises(InvdiffError, match="has no weights"):
        load_diffusers(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.bin"
    state = network.state_dict()
    torch.save({k: v for k, v in state.items() if k != "conv_in.bias"}, file)
    with pytest.raises(InvdiffError, match=r"1 missing, the first conv_in\.bias"):
        load_diffusers(tmp_path)
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(InvdiffError, match="truncated"):
        load_diffusers(tmp_path)
    with pytest.raises(InvdiffError, match=r"is a file.*load_guided_diffusion"):
        load_diffusers(file)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InvdiffError, match="cannot be read as JSON"):
        load_diffusers(tmp_path)


def test_a_name_out_of_reach_fails_at_once(monkeypatch):
    import huggingface_hub

    def unreachable(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(InvdiffError, match=r"google/ddpm-celebahq-256.*out of reach.*put them in a folder"):
        load_diffusers("google/ddpm-celebahq-256")


def test_a_torchvision_that_does_not_match_is_no_obstacle(tmp_path):
    unet().save_pretrained(tmp_path / "net")
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        'raise RuntimeError("operator torchvision::nms does not exist")'
    )
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import torch, invdiff.checkpoints as b\n"
        "assert not {'torchvision', 'diffusers'} & set(sys.modules)\n"
        f"net = b.load_diffusers({str(tmp_path / 'net')!r}, precision='float32')\n"
        "print(tuple(net.predict(torch.zeros(1, 3, 8, 8), 5).x0.shape))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(1, 3, 8, 8)", done.stderr
