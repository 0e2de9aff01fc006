"""The DDPM network's layout: a short network of our own in that layout against the loaded one."""

import pytest
import torch
from layouts import DDPM, ddpm_made

from invdiff.checkpoints import load_ddpm
from invdiff.checkpoints.ddpm import DDPMConfig
from invdiff.errors import InvdiffError


def inputs(channels=3):
    torch.manual_seed(1)
    return torch.randn(2, channels, 16, 16), torch.tensor([5, 940])


SHAPES = {
    "three-levels": {},
    "attention-at-two": {"attended": (0, 2), "mult": (1, 1, 2), "blocks": 1},
    "no-attention-gray": {"attended": (), "mult": (1, 2), "image": 1, "out": 1},
    "learned-variance": {"mult": (1, 2), "out": 6},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_loaded_network_is_the_saved_one(shape, tmp_path):
    network = ddpm_made(**SHAPES[shape])
    torch.save(network.state_dict(), tmp_path / "tiny.ckpt")
    backbone = load_ddpm(tmp_path / "tiny.ckpt", 16, precision="float32")
    x, t = inputs(backbone.image_shape[0])
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    ours, theirs = backbone.network(a, t), network(b, t)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    (ours**2).sum().backward()
    (theirs**2).sum().backward()
    torch.testing.assert_close(a.grad, b.grad, atol=1e-4, rtol=1e-4)
    assert backbone.learned_variance == (shape == "learned-variance")


def test_the_training_script_s_own_file_gives_the_averaged_weights(tmp_path):
    raw, averaged = ddpm_made(0), ddpm_made(1)
    optimizer = {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    parallel = {f"module.{k}": v for k, v in raw.state_dict().items()}
    torch.save([parallel, optimizer, 10, 1000, averaged.state_dict()], tmp_path / "run.ckpt")
    torch.save([parallel, optimizer], tmp_path / "raw.ckpt")
    torch.save({"state_dict": parallel, "epoch": 3}, tmp_path / "dict.ckpt")
    x, t = inputs()
    for name, network in (("run", averaged), ("raw", raw), ("dict", raw)):
        loaded = load_ddpm(tmp_path / f"{name}.ckpt", 16, precision="float32")
        torch.testing.assert_close(loaded.network(x, t), network(x, t), atol=1e-5, rtol=1e-5)


def test_the_published_network_has_the_published_size(tmp_path):
    config = DDPMConfig(3, 3, tuple(128 * m for m in (1, 1, 2, 2, 4, 4)), 2, (False, False, False, False, True, False))
    network = config.network()
    assert sum(p.numel() for p in network.parameters()) == 113_673_219
    with torch.device("meta"):
        ours = DDPM(128, (1, 1, 2, 2, 4, 4), 2, (4,))
    assert sum(p.numel() for p in ours.parameters()) == 113_673_219
    assert DDPMConfig.infer(ours.state_dict(), tmp_path) == config


def test_other_files_are_refused_with_what_to_do(tmp_path):
    state = ddpm_made().state_dict()
    torch.save({"input_blocks.0.0.weight": torch.ones(2, 2)}, tmp_path / "adm.pt")
    with pytest.raises(
        InvdiffError, match=r"starting with input_blocks.*none is conv_in\.weight.*load_guided_diffusion"
    ):
        load_ddpm(tmp_path / "adm.pt")
    del state["up.1.block.0.conv2.bias"]
    torch.save(state, tmp_path / "lost.pt")
    with pytest.raises(InvdiffError, match=r"1 missing, the first up\.1\.block\.0\.conv2\.bias"):
        load_ddpm(tmp_path / "lost.pt")
    with pytest.raises(InvdiffError, match="image_size must be"):
        load_ddpm(tmp_path / "lost.pt", 0)
