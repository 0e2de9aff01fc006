"""A small denoiser of rows, trained on the incomplete rows themselves."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from invdiff.backbones.network import NetworkBackbone
from invdiff.backbones.schedule import NoiseSchedule


class RowDenoiser(nn.Module):
    """v(x_t, t) of rows: residual blocks of two linear layers, each told the level by a scale and a shift.

    Maps (B, 1, 1, d) and (B,) to (B, 1, 1, d).
    """

    levels: Tensor

    def __init__(self, d: int, schedule: NoiseSchedule, width: int, blocks: int) -> None:
        super().__init__()
        self.register_buffer("levels", torch.logit(schedule.alpha_bar.double()).float() / 4)
        self.level = nn.Sequential(nn.Linear(33, width), nn.SiLU())
        self.enter, self.leave = nn.Linear(d, width), nn.Linear(width, d)
        self.first = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.second = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.told = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(blocks))
        nn.init.zeros_(self.leave.weight)
        for layer in self.second:
            assert isinstance(layer, nn.Linear)
            nn.init.zeros_(layer.weight)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        u = self.levels[t.long()][:, None]
        waves = u * torch.exp2(torch.arange(16, device=x.device) / 3) / 4
        e = self.level(torch.cat([u, waves.sin(), waves.cos()], 1))
        h = self.enter(x.flatten(1))
        for first, second, told in zip(self.first, self.second, self.told, strict=True):
            scale, shift = told(e).chunk(2, 1)
            inner = nn.functional.layer_norm(h, h.shape[1:]) * (1 + scale) + shift
            h = h + second(nn.functional.silu(first(inner)))
        return self.leave(nn.functional.silu(h)).reshape(x.shape)


class RowBackbone(NetworkBackbone):
    """A network of rows, whose entries have no black and no white."""

    bounded = False


def train_denoiser(
    tables: Tensor,
    known: Tensor,
    schedule: NoiseSchedule,
    *,
    steps: int,
    seed: int,
    width: int = 192,
    blocks: int = 3,
    batch: int = 256,
) -> RowBackbone:
    """A denoiser of rows from several completed copies of a table, of which only the known entries are believed.

    The squared error of v is taken over the known entries alone; what fills the holes (draws of a first prior, another
    for every copy) only serves as the surroundings from which the known entries are predicted.

    Args:
        tables: (copies, n, d).
        known: (n, d) bool.
        schedule: the times that it counts in.
        steps: of Adam.
        seed: of the weights, the batches and the noise.
        width, blocks: of the network.
        batch: rows per step.
    """
    copies, n, d = tables.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = RowDenoiser(d, schedule, width, blocks)
        mean = copy.deepcopy(network).requires_grad_(False)
        optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
        alpha_bar = schedule.alpha_bar.float()
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = 2e-3 * min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
            rows = torch.randint(n, (batch,))
            x0 = tables[torch.randint(copies, (batch,)), rows].float()
            t = ((torch.arange(batch) + torch.rand(batch)) / batch * len(schedule)).long()
            a = alpha_bar[t][:, None]
            eps = torch.randn_like(x0)
            v = network((a.sqrt() * x0 + (1 - a).sqrt() * eps)[:, None, None], t)[:, 0, 0]
            believed = known[rows].float()
            loss = ((v - (a.sqrt() * eps - (1 - a).sqrt() * x0)).square() * believed).sum() / believed.sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                keep = min(0.99, (1 + step) / (10 + step))
                for slow, fast in zip(mean.parameters(), network.parameters(), strict=True):
                    slow.lerp_(fast, 1 - keep)
    return RowBackbone(
        mean.eval(),
        schedule=schedule,
        image_shape=(1, 1, d),
        prediction="v_prediction",
        precision="float32",
        name="rows",
    )
