"""Small networks in the layouts of published files, and what they compute.

Each is written once more here from the names and shapes of the layout, independently of the loaders, so that a loader and
its check share nothing. `CASES` are files of every layout with the function that they hold: the tests compare, and
`benchmarks/formats.py` writes the differences into the documentation.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from invdiff.checkpoints import layout as unet
from invdiff.checkpoints.guided_diffusion import UNetConfig

# ---- guided-diffusion and improved-diffusion --------------------------------------------------------------------

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


def guided_diffusion(state, x, t, *, channels, res_blocks, heads, new_order=False, y=None):
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


def guided_diffusion_weights(config, seed=0, dtype=torch.float32):
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


# ---- guided-diffusion's classifier ------------------------------------------------------------------------------


def classifier(state, x, t, *, channels, res_blocks, head):
    """The logits of guided-diffusion's classifier with attention pooling, read off the names of a state dict."""
    used = set()

    def take(name):
        used.update((f"{name}.weight", f"{name}.bias"))
        return state[f"{name}.weight"], state[f"{name}.bias"]

    def norm(name, h):
        return F.group_norm(h, 32, *take(name), eps=1e-5)

    def softmax_mean(q, k, v):
        weight = torch.einsum("bnct,bncs->bnts", q * q.shape[2] ** -0.25, k * q.shape[2] ** -0.25)
        return torch.einsum("bnts,bncs->bnct", weight.softmax(-1), v).flatten(1, 2)

    def residual(name, h, down):
        shortcut, h = h, F.silu(norm(f"{name}.in_layers.0", h))
        if down:
            shortcut, h = F.avg_pool2d(shortcut, 2), F.avg_pool2d(h, 2)
        h = F.conv2d(h, *take(f"{name}.in_layers.2"), padding=1)
        shift = F.linear(F.silu(time), *take(f"{name}.emb_layers.1"))[..., None, None]
        if shift.shape[1] == 2 * h.shape[1]:
            scale, shift = shift.chunk(2, 1)
            h = F.silu(norm(f"{name}.out_layers.0", h) * (1 + scale) + shift)
        else:
            h = F.silu(norm(f"{name}.out_layers.0", h + shift))
        h = F.conv2d(h, *take(f"{name}.out_layers.3"), padding=1)
        if f"{name}.skip_connection.weight" in state:
            shortcut = F.conv2d(shortcut, *take(f"{name}.skip_connection"))
        return shortcut + h

    def attention(name, h):
        qkv = F.conv1d(norm(f"{name}.norm", h.flatten(2)), *take(f"{name}.qkv"))
        q, k, v = qkv.unflatten(1, (h.shape[1] // head, -1)).split(head, 2)
        return h + F.conv1d(softmax_mean(q, k, v), *take(f"{name}.proj_out")).reshape(h.shape)

    half = channels // 2
    angles = t[:, None].double() * torch.exp(-math.log(1e4) * torch.arange(half, dtype=torch.float64) / half)
    time = torch.cat([angles.cos(), angles.sin()], 1).to(x.dtype)
    time = F.linear(F.silu(F.linear(time, *take("time_embed.0"))), *take("time_embed.2"))
    h = F.conv2d(x, *take("input_blocks.0.0"), padding=1)
    n = 1
    while any(k.startswith(f"input_blocks.{n}.") for k in state):
        if f"input_blocks.{n}.0.op.weight" in state:
            h, n = F.conv2d(h, *take(f"input_blocks.{n}.0.op"), stride=2, padding=1), n + 1
            continue
        h = residual(f"input_blocks.{n}.0", h, n % (res_blocks + 1) == 0)
        if f"input_blocks.{n}.1.qkv.weight" in state:
            h = attention(f"input_blocks.{n}.1", h)
        n += 1
    h = residual("middle_block.0", h, False)
    h = residual("middle_block.2", attention("middle_block.1", h), False)
    h = F.silu(norm("out.0", h)).flatten(2)
    h = torch.cat([h.mean(2, keepdim=True), h], 2) + state["out.2.positional_embedding"]
    used.add("out.2.positional_embedding")
    q, k, v = F.conv1d(h, *take("out.2.qkv_proj")).chunk(3, 1)
    h = softmax_mean(*(part.unflatten(1, (-1, head)) for part in (q, k, v)))
    assert used | {"out.2.c_proj.weight", "out.2.c_proj.bias"} == state.keys()
    return F.conv1d(h, *take("out.2.c_proj"))[:, :, 0]


def classifier_weights(channels=32, mult=(1, 2), res_blocks=2, attended=(1,), size=16, classes=10, plain=False, seed=0):
    """Random weights of moderate size, under the names and in the shapes of guided-diffusion's classifier.

    `plain`: single convolutions halve the resolution, and the time is added.
    """
    generator, state, time = torch.Generator().manual_seed(seed), {}, 4 * channels

    def put(name, rows, columns, *kernel):
        weight = torch.randn(rows, columns, *kernel, generator=generator)
        state[f"{name}.weight"] = weight / math.sqrt(columns * math.prod(kernel))
        state[f"{name}.bias"] = 0.1 * torch.randn(rows, generator=generator)

    def put_norm(name, width):
        state[f"{name}.weight"] = 1 + 0.1 * torch.randn(width, generator=generator)
        state[f"{name}.bias"] = 0.1 * torch.randn(width, generator=generator)

    def put_residual(name, inside, width):
        put_norm(f"{name}.in_layers.0", inside)
        put(f"{name}.in_layers.2", width, inside, 3, 3)
        put(f"{name}.emb_layers.1", width if plain else 2 * width, time)
        put_norm(f"{name}.out_layers.0", width)
        put(f"{name}.out_layers.3", width, width, 3, 3)
        if inside != width:
            put(f"{name}.skip_connection", width, inside, 1, 1)

    def put_attention(name, width):
        put_norm(f"{name}.norm", width)
        put(f"{name}.qkv", 3 * width, width, 1)
        put(f"{name}.proj_out", width, width, 1)

    put("time_embed.0", time, channels)
    put("time_embed.2", time, time)
    put("input_blocks.0.0", channels * mult[0], 3, 3, 3)
    n, inside = 1, channels * mult[0]
    for level, m in enumerate(mult):
        for _ in range(res_blocks):
            put_residual(f"input_blocks.{n}.0", inside, channels * m)
            inside = channels * m
            if level in attended:
                put_attention(f"input_blocks.{n}.1", inside)
            n += 1
        if level < len(mult) - 1:
            if plain:
                put(f"input_blocks.{n}.0.op", inside, inside, 3, 3)
            else:
                put_residual(f"input_blocks.{n}.0", inside, inside)
            n += 1
    put_residual("middle_block.0", inside, inside)
    put_attention("middle_block.1", inside)
    put_residual("middle_block.2", inside, inside)
    put_norm("out.0", inside)
    places = (size >> (len(mult) - 1)) ** 2
    state["out.2.positional_embedding"] = torch.randn(inside, places + 1, generator=generator) / inside**0.5
    put("out.2.qkv_proj", 3 * inside, inside, 1)
    put("out.2.c_proj", classes, inside, 1)
    return state


# ---- the DDPM network -------------------------------------------------------------------------------------------


def ddpm_norm(channels):
    return nn.GroupNorm(32, channels, eps=1e-6)


class Residual(nn.Module):
    def __init__(self, inside, outside, time):
        super().__init__()
        self.norm1, self.conv1 = ddpm_norm(inside), nn.Conv2d(inside, outside, 3, padding=1)
        self.temb_proj = nn.Linear(time, outside)
        self.norm2, self.conv2 = ddpm_norm(outside), nn.Conv2d(outside, outside, 3, padding=1)
        if inside != outside:
            self.nin_shortcut = nn.Conv2d(inside, outside, 1)

    def forward(self, x, time):
        h = self.conv1(F.silu(self.norm1(x))) + self.temb_proj(F.silu(time))[..., None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm = ddpm_norm(channels)
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
    def __init__(self, ch=32, mult=(1, 2, 2), blocks=2, attended=(1,), image=3, out=3, convolve=True, bayesian=False):
        super().__init__()
        if bayesian:
            self.logvar = nn.Parameter(torch.zeros(1000))
        self.ch, time, widths = ch, 4 * ch, [ch * m for m in mult]
        self.temb = nn.Module()
        self.temb.dense = nn.ModuleList([nn.Linear(ch, time), nn.Linear(time, time)])
        self.conv_in = nn.Conv2d(image, ch, 3, padding=1)
        self.down, kept, inside = nn.ModuleList(), [ch], ch
        for i, width in enumerate(widths):
            level = Level([inside, *[width] * (blocks - 1)], width, time, i in attended)
            kept, inside = kept + [width] * blocks, width
            if i < len(mult) - 1:
                level.downsample = Resample(width, 2) if convolve else Plain(2)
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
                level.upsample = Resample(width, 1) if convolve else Plain(1)
            ups.insert(0, level)
        self.up = nn.ModuleList(ups)
        self.norm_out, self.conv_out = ddpm_norm(inside), nn.Conv2d(inside, out, 3, padding=1)

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


class Plain(nn.Module):
    """Where `resamp_with_conv` is off: nothing to learn."""

    def __init__(self, stride):
        super().__init__()
        self.stride = stride

    def forward(self, x):
        return F.avg_pool2d(x, 2) if self.stride == 2 else F.interpolate(x, scale_factor=2.0)


def ddpm_made(seed=0, **shape):
    """A reference network whose norms and biases are not the trivial ones."""
    torch.manual_seed(seed)
    network = DDPM(**shape).eval()
    for p in network.parameters():
        if p.ndim == 1:
            p.data += 0.1 * torch.randn_like(p)
    return network


# ---- denoising-diffusion-pytorch --------------------------------------------------------------------------------


def denoising_diffusion(state, x, t):
    """The output of denoising-diffusion-pytorch's Unet, read off the names and shapes of a state dict."""
    used = set()

    def take(name):
        used.update(n for n in (f"{name}.weight", f"{name}.bias") if n in state)
        return state[f"{name}.weight"], state.get(f"{name}.bias")

    def norm(name, h):
        used.add(f"{name}.g")
        length = (h**2).sum(1, keepdim=True).sqrt().clamp(min=1e-12)
        return h / length * state[f"{name}.g"] * math.sqrt(h.shape[1])

    def block(name, h, time=None):
        h = norm(f"{name}.norm", F.conv2d(h, *take(f"{name}.proj"), padding=1))
        if time is not None:
            scale, shift = time[:, : h.shape[1], None, None], time[:, h.shape[1] :, None, None]
            h = h * (scale + 1) + shift
        return F.silu(h)

    def residual(name, h):
        inner = block(f"{name}.block1", h, F.linear(F.silu(time), *take(f"{name}.mlp.1")))
        inner = block(f"{name}.block2", inner)
        return inner + (F.conv2d(h, *take(f"{name}.res_conv")) if f"{name}.res_conv.weight" in state else h)

    def attention(name, h):
        used.add(f"{name}.mem_kv")
        memory, full = state[f"{name}.mem_kv"], f"{name}.to_out.weight" in state
        heads, size = memory.shape[1], memory.shape[3 if full else 2]
        rows = F.conv2d(norm(f"{name}.norm", h), *take(f"{name}.to_qkv")).flatten(2)
        out = []
        for image in rows:
            parts = []
            for n in range(heads):
                q, k, v = (image[(j * heads + n) * size :][:size] for j in range(3))  # (size, places)
                mk, mv = (memory[i, n].T if full else memory[i, n] for i in range(2))
                k, v = torch.cat([mk, k], 1), torch.cat([mv, v], 1)
                if full:
                    parts.append(v @ (q.T @ k / math.sqrt(size)).softmax(1).T)
                else:
                    parts.append(v @ k.softmax(1).T @ (q.softmax(0) / math.sqrt(size)))
            out.append(torch.cat(parts))
        mixed = torch.stack(out).reshape(len(h), -1, *h.shape[2:])
        if full:
            return h + F.conv2d(mixed, *take(f"{name}.to_out"))
        return h + norm(f"{name}.to_out.1", F.conv2d(mixed, *take(f"{name}.to_out.0")))

    def folded(h):
        b, c, height, width = h.shape
        h = h.reshape(b, c, height // 2, 2, width // 2, 2).permute(0, 1, 3, 5, 2, 4)
        return h.reshape(b, 4 * c, height // 2, width // 2)

    half = state["time_mlp.1.weight"].shape[1] // 2
    angles = t[:, None].float() * torch.exp(-math.log(1e4) / (half - 1) * torch.arange(half))
    time = F.gelu(F.linear(torch.cat([angles.sin(), angles.cos()], 1), *take("time_mlp.1")))
    time = F.linear(time, *take("time_mlp.3"))
    if state["init_conv.weight"].shape[1] == 2 * x.shape[1]:
        x = torch.cat([torch.zeros_like(x), x], 1)
    first = h = F.conv2d(x, *take("init_conv"), padding=3)
    kept, levels = [], len({k.split(".")[1] for k in state if k.startswith("downs.")})
    for i in range(levels):
        h = residual(f"downs.{i}.0", h)
        kept.append(h)
        h = attention(f"downs.{i}.2", residual(f"downs.{i}.1", h))
        kept.append(h)
        last = i == levels - 1
        h = F.conv2d(h, *take(f"downs.{i}.3"), padding=1) if last else F.conv2d(folded(h), *take(f"downs.{i}.3.1"))
    h = residual("mid_block2", attention("mid_attn", residual("mid_block1", h)))
    for i in range(levels):
        h = residual(f"ups.{i}.0", torch.cat([h, kept.pop()], 1))
        h = attention(f"ups.{i}.2", residual(f"ups.{i}.1", torch.cat([h, kept.pop()], 1)))
        if i == levels - 1:
            h = F.conv2d(h, *take(f"ups.{i}.3"), padding=1)
        else:
            h = F.conv2d(F.interpolate(h, scale_factor=2), *take(f"ups.{i}.3.1"), padding=1)
    h = F.conv2d(residual("final_res_block", torch.cat([h, first], 1)), *take("final_conv"))
    assert used == state.keys()
    return h


def denoising_diffusion_weights(dim=16, mults=(1, 2), inside=3, out=3, full=(False, True), heads=2, size=8, seed=0):
    """Random weights of moderate size, under the names and in the shapes of denoising-diffusion-pytorch's Unet."""
    generator, state, time = torch.Generator().manual_seed(seed), {}, 4 * dim

    def put(name, rows, columns, kernel=None, bias=True):
        shape = (rows, columns) if kernel is None else (rows, columns, kernel, kernel)
        weight = torch.randn(shape, generator=generator)
        state[f"{name}.weight"] = weight / math.sqrt(math.prod(shape[1:]))
        if bias:
            state[f"{name}.bias"] = 0.1 * torch.randn(rows, generator=generator)

    def put_norm(name, width):
        state[f"{name}.g"] = 1 + 0.1 * torch.randn(1, width, 1, 1, generator=generator)

    def put_residual(name, a, b):
        put(f"{name}.mlp.1", 2 * b, time)
        for block, columns in (("block1", a), ("block2", b)):
            put(f"{name}.{block}.proj", b, columns, 3)
            put_norm(f"{name}.{block}.norm", b)
        if a != b:
            put(f"{name}.res_conv", b, a, 1)

    def put_attention(name, width, is_full):
        put_norm(f"{name}.norm", width)
        memory = (2, heads, 4, size) if is_full else (2, heads, size, 4)
        state[f"{name}.mem_kv"] = torch.randn(memory, generator=generator)
        put(f"{name}.to_qkv", 3 * heads * size, width, 1, bias=False)
        put(f"{name}.to_out" if is_full else f"{name}.to_out.0", width, heads * size, 1)
        if not is_full:
            put_norm(f"{name}.to_out.1", width)

    widths = [dim, *(dim * m for m in mults)]
    pairs = list(zip(widths, widths[1:], full, strict=False))
    put("init_conv", dim, inside, 7)
    put("time_mlp.1", time, dim)
    put("time_mlp.3", time, time)
    for i, (a, b, is_full) in enumerate(pairs):
        last = i == len(pairs) - 1
        put_residual(f"downs.{i}.0", a, a)
        put_residual(f"downs.{i}.1", a, a)
        put_attention(f"downs.{i}.2", a, is_full)
        put(f"downs.{i}.3" if last else f"downs.{i}.3.1", b, a if last else 4 * a, 3 if last else 1)
    for i, (a, b, is_full) in enumerate(reversed(pairs)):
        put_residual(f"ups.{i}.0", a + b, b)
        put_residual(f"ups.{i}.1", a + b, b)
        put_attention(f"ups.{i}.2", b, is_full)
        put(f"ups.{i}.3" if i == len(pairs) - 1 else f"ups.{i}.3.1", a, b, 3)
    put_residual("mid_block1", widths[-1], widths[-1])
    put_attention("mid_attn", widths[-1], True)
    put_residual("mid_block2", widths[-1], widths[-1])
    put_residual("final_res_block", 2 * dim, dim)
    put("final_conv", out, dim, 1)
    return state


def denoising_diffusion_file(state, objective="pred_v", T=1000, clipped=False, raw=None):
    """What the trainer of denoising-diffusion-pytorch saves: the raw and the averaged model, each with its buffers."""
    betas = torch.linspace(1e-4, 0.02, T, dtype=torch.float64)
    level = torch.cumprod(1 - betas, 0)
    snr = level / (1 - level)
    kept = snr.clamp(max=5) if clipped else snr
    weight = {"pred_noise": kept / snr, "pred_x0": kept, "pred_v": kept / (snr + 1)}[objective]
    buffers = {"betas": betas.float(), "alphas_cumprod": level.float(), "loss_weight": weight.float()}
    raw = {k: v + 1 for k, v in state.items()} if raw is None else raw
    model, averaged = ({**buffers, **{f"model.{k}": v for k, v in s.items()}} for s in (raw, state))
    ema = {"initted": torch.tensor(True), "step": torch.tensor(7)}
    ema |= {f"online_model.{k}": v for k, v in model.items()} | {f"ema_model.{k}": v for k, v in averaged.items()}
    return {"step": 7, "model": model, "opt": {"state": {}}, "ema": ema, "scaler": None, "version": "2.2.5"}


# ---- files of every layout, and the function that they hold -----------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A file of some layout.

    Attributes:
        layout: whose it is.
        variant: what is particular about it.
        make: writes it into a folder; returns ``(ours, theirs)``, two functions of (x, t): the loaded network and the reference.
        shape: of the images, (C, H, W).
        times: of a batch of two.
    """

    layout: str
    variant: str
    make: Callable[[Path], tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]]
    shape: tuple[int, int, int] = (3, 16, 16)
    times: tuple[int, int] = (3, 871)

    def __str__(self) -> str:
        return f"{self.layout}: {self.variant}"

    def compare(self, folder: Path, seed: int = 1) -> tuple[float, float]:
        """Largest difference over largest value, of the output and of the gradient of its squares' sum by the image."""
        ours, theirs = self.make(folder)
        generator = torch.Generator().manual_seed(seed)
        x, t = torch.randn(2, *self.shape, generator=generator), torch.tensor(self.times)
        results = []
        for function in (ours, theirs):
            image = x.clone().requires_grad_()
            out = function(image, t)
            (out**2).sum().backward()
            results.append((out.detach(), image.grad))
        return tuple(
            float((a - b).abs().max() / b.abs().max())
            for a, b in zip(*results, strict=True)  # type: ignore[union-attr]
        )


def _loaded(path: Path, **options: Any) -> Callable[[Tensor, Tensor], Tensor]:
    from invdiff import load_backbone

    return load_backbone(path, precision="float32", **options).network


def guided_diffusion_case(
    write: Callable[[dict[str, Tensor], Path], Path], told: tuple[str, ...] | None = None, **changes: Any
) -> Callable[[Path], Any]:
    """A file with the configuration `TINY`, changed; `told` names what the loader is given of it, by default all."""

    def make(folder: Path) -> Any:
        config = {**TINY, **changes}
        config = {k: v for k, v in config.items() if v is not None}
        read, state = UNetConfig.read(config), guided_diffusion_weights(config)
        labels = torch.tensor([1, 4]) if "num_classes" in config else None
        given = config if told is None else {k: config[k] for k in told}

        def theirs(x: Tensor, t: Tensor) -> Tensor:
            scale = 1000 / read.diffusion_steps if read.rescale_timesteps else 1
            out, used = guided_diffusion(
                state,
                x,
                t * scale,
                channels=read.model_channels,
                res_blocks=read.num_res_blocks,
                heads=lambda c: c // read.head_size(c),
                new_order=read.use_new_attention_order,
                y=labels,
            )
            assert used == state.keys()
            return out

        return _loaded(write(state, folder), class_labels=labels, **given), theirs

    return make


def classifier_case(**shape: Any) -> Callable[[Path], Any]:
    def make(folder: Path) -> Any:
        from invdiff.checkpoints import load_classifier

        state = classifier_weights(**shape)
        torch.save(state, folder / "classifier.pt")
        ours = load_classifier(folder / "classifier.pt", image_size=16, head_channels=16)
        return ours, lambda x, t: classifier(state, x, t, channels=32, res_blocks=shape.get("res_blocks", 2), head=16)

    return make


def ddpm_case(**shape: Any) -> Callable[[Path], Any]:
    def make(folder: Path) -> Any:
        network = ddpm_made(**shape)
        torch.save(network.state_dict(), folder / "ddpm.ckpt")
        return _loaded(folder / "ddpm.ckpt", image_size=16), network

    return make


def diffusers_case(**settings: Any) -> Callable[[Path], Any]:
    def make(folder: Path) -> Any:
        from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

        torch.manual_seed(0)
        network: Any = UNet2DModel(
            sample_size=16,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        )
        DDPMPipeline(network.eval(), DDPMScheduler()).save_pretrained(folder)
        network.save_pretrained(folder / "unet", **settings)
        if settings:
            (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink(missing_ok=True)
        return _loaded(folder), lambda x, t: network(x, t).sample

    return make


def flow_case(folder: Path) -> Any:
    """A pipeline with a flow-matching scheduler: the clean image, against the last step of theirs, from sigma to 0."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    from invdiff import load_backbone

    _, network = diffusers_case()(folder)
    theirs, index = FlowMatchEulerDiscreteScheduler(shift=3.0), folder / "model_index.json"
    theirs.save_pretrained(folder / "scheduler")
    index.write_text(index.read_text().replace("DDPMScheduler", type(theirs).__name__))
    backbone = load_backbone(folder, precision="float32")

    def last_step(x: Tensor, t: Tensor) -> Tensor:
        sigma, time = (table.flip(0)[t] for table in (theirs.sigmas, theirs.timesteps))
        share = sigma.reshape(-1, 1, 1, 1)
        point = x * ((1 - share) ** 2 + share**2).sqrt()
        return point - share * network(point, time)

    return lambda x, t: backbone.predict(x, t).x0, last_step


def denoising_diffusion_case(**shape: Any) -> Callable[[Path], Any]:
    def make(folder: Path) -> Any:
        state = denoising_diffusion_weights(**shape)
        torch.save(denoising_diffusion_file(state), folder / "model-1.pt")
        return _loaded(folder / "model-1.pt", image_size=16), lambda x, t: denoising_diffusion(state, x, t)

    return make


def torch_file(name: str, wrap: Callable[[dict[str, Tensor]], Any] = dict) -> Callable[[dict[str, Tensor], Path], Path]:
    def write(state: dict[str, Tensor], folder: Path) -> Path:
        torch.save(wrap(state), folder / name)
        return folder / name

    return write


def safetensors_file(state: dict[str, Tensor], folder: Path) -> Path:
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "model.safetensors")
    return folder / "model.safetensors"


def ldm(state: dict[str, Tensor]) -> dict[str, Any]:
    """A Lightning checkpoint of a pixel-space model of LDM's code: raw weights, averaged ones, the schedule's buffers."""
    raw = {f"model.diffusion_model.{k}": v + 1 for k, v in state.items()}
    averaged = {f"model_ema.diffusion_model{k.replace('.', '')}": v for k, v in state.items()}
    other = {"betas": torch.linspace(1e-4, 0.02, 1000), "model_ema.decay": torch.tensor(0.9999)}
    return {"epoch": 3, "global_step": 7, "state_dict": {**raw, **averaged, **other}, "optimizer_states": []}


def lightning(state: dict[str, Tensor]) -> dict[str, Any]:
    """A Lightning checkpoint whose module holds the network as ``self.model``."""
    return {"epoch": 3, "pytorch-lightning_version": "2.0", "state_dict": {f"model.{k}": v for k, v in state.items()}}


IDDPM = {
    "num_head_channels": None,
    "num_heads": 2,
    "resblock_updown": None,
    "num_res_blocks": 2,
    "noise_schedule": "cosine",
    "diffusion_steps": 4000,
    "rescale_timesteps": True,
}

CASES: list[Case] = [
    Case("guided-diffusion", "as published for 256 pixels", guided_diffusion_case(torch_file("adm.pt"))),
    Case(
        "guided-diffusion",
        "64 pixels: classes, new order of heads",
        guided_diffusion_case(torch_file("adm64.pt"), num_classes=5, use_new_attention_order=True, num_res_blocks=2),
    ),
    Case(
        "guided-diffusion",
        "128 pixels: a number of heads",
        guided_diffusion_case(torch_file("adm128.pt"), num_head_channels=None, num_heads=2),
    ),
    Case(
        "guided-diffusion",
        "512 pixels: a narrow first level",
        guided_diffusion_case(torch_file("adm512.pt"), num_channels=64, channel_mult="0.5,1"),
    ),
    Case(
        "guided-diffusion",
        "configuration read off the file",
        guided_diffusion_case(torch_file("told.pt"), ("image_size", "num_head_channels"), num_res_blocks=2),
    ),
    Case("guided-diffusion", "safetensors", guided_diffusion_case(safetensors_file)),
    Case("guided-diffusion", "Lightning, `self.model`", guided_diffusion_case(torch_file("a.ckpt", lightning))),
    Case("guided-diffusion", "Lightning, LDM's names, averaged", guided_diffusion_case(torch_file("ldm.ckpt", ldm))),
    Case(
        "improved-diffusion",
        "4,000 times, cosine, rescaled",
        guided_diffusion_case(torch_file("iddpm.pt"), **IDDPM),
        times=(7, 3871),
    ),
    Case(
        "improved-diffusion",
        "4,000 times, not rescaled, additive time",
        guided_diffusion_case(
            torch_file("iddpm.pt"),
            **{**IDDPM, "rescale_timesteps": False, "use_scale_shift_norm": False, "num_heads": 1},
        ),
        times=(7, 3871),
    ),
    Case("guided-diffusion", "noisy classifier, as published for 256 pixels", classifier_case()),
    Case(
        "guided-diffusion",
        "noisy classifier, as published for 64 pixels: four blocks",
        classifier_case(res_blocks=4, mult=(1, 2, 2), attended=(1, 2)),
    ),
    Case("guided-diffusion", "noisy classifier, plain halving, additive time", classifier_case(plain=True)),
    Case("DDPM", "as published", ddpm_case()),
    Case("DDPM", "`resamp_with_conv=False`", ddpm_case(convolve=False)),
    Case("DDPM", "`type: bayesian`", ddpm_case(bayesian=True, mult=(1, 2))),
    Case("denoising-diffusion-pytorch", "`model-1.pt` of its trainer", denoising_diffusion_case()),
    Case(
        "denoising-diffusion-pytorch",
        "self-conditioned, full attention everywhere",
        denoising_diffusion_case(inside=6, full=(True, True, True), mults=(1, 2, 4)),
    ),
    Case("diffusers", "a pipeline's folder", diffusers_case()),
    Case("diffusers", "sharded weights", diffusers_case(max_shard_size="300KB")),
    Case("diffusers", "a flow-matching pipeline's folder, `shift=3`", flow_case),
]


# ---- the authors' own networks, where a package that has them is installed ---------------------------------------


def moved(network: nn.Module) -> nn.Module:
    """In evaluation mode, every weight a little elsewhere: networks begin with zeros in their last layers."""
    generator = torch.Generator().manual_seed(0)
    for p in network.parameters():
        p.data += 0.05 * torch.randn(p.shape, generator=generator)
    return network.eval()


def guided_diffusion_authors(folder: Path) -> Any:
    from azula.plugins.adm._src.unet import UNetModel

    settings = {"model_channels": 32, "num_res_blocks": 2, "attention_resolutions": (2, 4), "channel_mult": (1, 2, 2)}
    flags = {"use_scale_shift_norm": True, "resblock_updown": True, "use_new_attention_order": True}
    settings |= {"image_size": 16, "in_channels": 3, "out_channels": 6, "num_head_channels": 16, **flags}
    network = moved(UNetModel(**settings))
    torch.save(network.state_dict(), folder / "adm.pt")
    return _loaded(folder / "adm.pt", **settings), network


def classifier_authors(folder: Path) -> Any:
    from azula.plugins.adm._src.unet import EncoderUNetModel

    from invdiff.checkpoints import load_classifier

    settings = {"model_channels": 32, "num_res_blocks": 2, "attention_resolutions": (2, 4), "channel_mult": (1, 2, 2)}
    settings |= {"image_size": 16, "in_channels": 3, "out_channels": 10, "num_head_channels": 16, "pool": "attention"}
    network = moved(EncoderUNetModel(**settings, use_scale_shift_norm=True, resblock_updown=True))
    torch.save(network.state_dict(), folder / "classifier.pt")
    return load_classifier(folder / "classifier.pt", image_size=16, head_channels=16), network


def denoising_diffusion_authors(folder: Path) -> Any:
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from ema_pytorch import EMA

    network = moved(Unet(dim=16, dim_mults=(1, 2, 4), self_condition=True))
    diffusion = GaussianDiffusion(network, image_size=16, timesteps=900, objective="pred_noise")
    content = {"step": 1, "model": diffusion.state_dict(), "ema": EMA(diffusion).state_dict(), "version": "2"}
    torch.save(content, folder / "model-1.pt")
    return _loaded(folder / "model-1.pt", image_size=16), network.eval()


if importlib.util.find_spec("azula") is not None:
    CASES += [
        Case("guided-diffusion", "the authors' network, as packaged by azula", guided_diffusion_authors),
        Case("guided-diffusion", "the authors' noisy classifier, as packaged by azula", classifier_authors),
    ]
if importlib.util.find_spec("denoising_diffusion_pytorch") is not None:
    CASES.append(
        Case("denoising-diffusion-pytorch", "the package's own network and trainer", denoising_diffusion_authors)
    )
CASES.sort(key=lambda case: case.layout)
