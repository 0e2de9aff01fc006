"""The DDPM network's layout: a short network of our own in that layout against the loaded one."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from invdiff.checkpoints import load_ddpm
from invdiff.checkpoints.ddpm import DDPMConfig
from invdiff.errors import InvdiffError


def norm(channels):
    return nn.GroupNorm(32, channels, eps=1e-6)


class Residual(nn.Module):
    def __init__(self, inside, outside, time):
        super().__init__()
        self.norm1, self.conv1 = norm(inside), nn.Conv2d(inside, outside, 3, padding=1)
        self.temb_proj = nn.Linear(time, outside)
        self.norm2, self.conv2 = norm(outside), nn.Conv2d(outside, outside, 3, padding=1)
        if inside != outside:
            self.nin_shortcut = nn.Conv2d(inside, outside, 1)

    def forward(self, x, time):
        h = self.conv1(F.silu(self.norm1(x))) + self.temb_proj(F.silu(time))[..., None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x):
        h = self.norm(x)
        q, k, v = (f(h).flatten(2) for f in (self.q, self.k, self.v))
        weight = (q.transpose(1, 2) @ k / math.sqrt(x.shape[1])).softmax(-1)
        return x + self.proj_out((v @ weight.transpose(1, 2)).reshape(x.shape))


class Resample(nn.Module):
    def __init__(self, channels, stride):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride, padding=0 if stride == 2 else 1)

    def forward(self, x):
        if self.conv.stride == (2, 2):
            return self.conv(F.pad(x, (0, 1, 0, 1)))
        return self.conv(F.interpolate(x, scale_factor=2.0))


class Level(nn.Module):
    def __init__(self, ins, outside, time, attended):
        super().__init__()
        self.block = nn.ModuleList(Residual(i, outside, time) for i in ins)
        self.attn = nn.ModuleList(Attention(outside) for _ in ins if attended)


class DDPM(nn.Module):
    def __init__(self, ch=32, mult=(1, 2, 2), blocks=2, attended=(1,), image=3, out=3):
        super().__init__()
        self.ch, time, widths = ch, 4 * ch, [ch * m for m in mult]
        self.temb = nn.Module()
        self.temb.dense = nn.ModuleList([nn.Linear(ch, time), nn.Linear(time, time)])
        self.conv_in = nn.Conv2d(image, ch, 3, padding=1)
        self.down, kept, inside = nn.ModuleList(), [ch], ch
        for i, width in enumerate(widths):
            level = Level([inside, *[width] * (blocks - 1)], width, time, i in attended)
            kept, inside = kept + [width] * blocks, width
            if i < len(mult) - 1:
                level.downsample = Resample(width, 2)
                kept.append(width)
            self.down.append(level)
        self.mid = nn.Module()
        self.mid.block_1, self.mid.attn_1 = Residual(inside, inside, time), Attention(inside)
        self.mid.block_2 = Residual(inside, inside, time)
        ups = []
        for i, width in reversed(list(enumerate(widths))):
            ins = []
            for _ in range(blocks + 1):
                ins.append(inside + kept.pop())
                inside = width
            level = Level(ins, width, time, i in attended)
            if i > 0:
                level.upsample = Resample(width, 1)
            ups.insert(0, level)
        self.up = nn.ModuleList(ups)
        self.norm_out, self.conv_out = norm(inside), nn.Conv2d(inside, out, 3, padding=1)

    def forward(self, x, t):
        half = self.ch // 2
        angles = t[:, None].float() * torch.exp(-math.log(1e4) * torch.arange(half) / (half - 1))
        first, second = self.temb.dense
        time = second(F.silu(first(torch.cat([angles.sin(), angles.cos()], 1))))
        kept = [self.conv_in(x)]
        for level in self.down:
            for i, block in enumerate(level.block):
                h = block(kept[-1], time)
                kept.append(level.attn[i](h) if level.attn else h)
            if hasattr(level, "downsample"):
                kept.append(level.downsample(kept[-1]))
        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(kept[-1], time)), time)
        for level in reversed(self.up):
            for i, block in enumerate(level.block):
                h = block(torch.cat([h, kept.pop()], 1), time)
                h = level.attn[i](h) if level.attn else h
            if hasattr(level, "upsample"):
                h = level.upsample(h)
        return self.conv_out(F.silu(self.norm_out(h)))


def made(seed=0, **shape):
    """A reference network whose norms and biases are not the trivial ones."""
    torch.manual_seed(seed)
    network = DDPM(**shape).eval()
    for p in network.parameters():
        if p.ndim == 1:
            p.data += 0.1 * torch.randn_like(p)
    return network


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
    network = made(**SHAPES[shape])
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
    raw, averaged = made(0), made(1)
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
    state = made().state_dict()
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
