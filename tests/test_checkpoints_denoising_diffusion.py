"""denoising-diffusion-pytorch's files: what lies in them beside the network. What that computes: test_formats.py."""

import pytest
import torch
from layouts import denoising_diffusion, denoising_diffusion_file, denoising_diffusion_weights

from invdiff import NoiseSchedule, load_backbone
from invdiff.checkpoints import load_denoising_diffusion
from invdiff.errors import InvdiffError


@pytest.fixture
def saved(tmp_path):
    def save(content, name="model-1.pt"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return save


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize(
    ("objective", "prediction"), [("pred_noise", "epsilon"), ("pred_x0", "sample"), ("pred_v", "v_prediction")]
)
def test_schedule_and_objective_are_read_off_the_file(objective, prediction, clipped, saved):
    content = denoising_diffusion_file(denoising_diffusion_weights(), objective, T=300, clipped=clipped)
    backbone = load_backbone(saved(content), image_size=16)
    assert backbone.prediction == prediction
    torch.testing.assert_close(backbone.schedule.alpha_bar, NoiseSchedule.linear(300).alpha_bar, atol=1e-6, rtol=1e-4)


def test_a_bare_network_needs_to_be_told(saved):
    state = denoising_diffusion_weights()
    file = saved(state)
    with pytest.raises(InvdiffError, match="image_size must be given"):
        load_backbone(file)
    with pytest.raises(InvdiffError, match="schedule must be given"):
        load_backbone(file, image_size=16)
    schedule = NoiseSchedule.cosine(100)
    with pytest.raises(InvdiffError, match=r"prediction must be given, one of epsilon, v_prediction, sample"):
        load_backbone(file, image_size=16, schedule=schedule)
    backbone = load_backbone(file, image_size=16, schedule=schedule, prediction="epsilon", precision="float32")
    x, t = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([31])
    torch.testing.assert_close(backbone.network(x, t), denoising_diffusion(state, x, t), atol=1e-5, rtol=1e-5)


def test_sizes_that_the_levels_do_not_divide_are_padded(saved):
    state = denoising_diffusion_weights()
    backbone = load_backbone(saved(denoising_diffusion_file(state)), image_size=15, precision="float32")
    assert backbone.predict(torch.zeros(1, 3, 15, 15), 3).x0.shape == (1, 3, 15, 15)


def test_other_versions_are_refused_with_how_to_load_them(saved):
    state = denoising_diffusion_weights()
    old = {k.replace(".2.norm.g", ".2.fn.norm.g"): v for k, v in state.items() if "mem_kv" not in k}
    with pytest.raises(
        InvdiffError, match=r"version of denoising-diffusion-pytorch.*no mid_attn\.mem_kv.*NetworkBackbone\("
    ):
        load_denoising_diffusion(saved(denoising_diffusion_file(old)), 16)
    other = {**state, "mid_block3.weight": torch.ones(2)}
    with pytest.raises(InvdiffError, match=r"1 unexpected, the first mid_block3.*another version.*NetworkBackbone\("):
        load_denoising_diffusion(saved(denoising_diffusion_file(other)), 16)
    learned = {**state, "time_mlp.1.weight": torch.ones(64, 17)}
    with pytest.raises(InvdiffError, match="learned or random frequencies"):
        load_denoising_diffusion(saved(denoising_diffusion_file(learned)), 16)
    with pytest.raises(InvdiffError, match=r"no option 'objective'"):
        load_backbone(saved(denoising_diffusion_file(state)), image_size=16, objective="pred_v")
