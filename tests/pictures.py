"""Pictures, holes and a small network of any size, for the tests of sizes."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from invdiff import NetworkBackbone, NoiseSchedule


class Convolutions(nn.Module):
    """A small fully convolutional noise predictor with strides of 4 and random weights; it sees 22 pixels far."""

    field_of_view = 22

    def __init__(self, seed: int = 0, width: int = 8) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.enter = nn.Conv2d(3, width, 3, padding=1)
            self.down = nn.Conv2d(width, width, 4, stride=4)
            self.middle = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(4))
            self.up = nn.ConvTranspose2d(width, width, 4, stride=4)
            self.leave = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        h = self.down(torch.tanh(self.enter(x)) + (t.float() / 1000)[:, None, None, None])
        for layer in self.middle:
            h = h + torch.tanh(layer(h))
        return x * 0.9 + 0.2 * self.leave(torch.tanh(self.up(h)))


def any_size(**options) -> NetworkBackbone:
    return NetworkBackbone(
        Convolutions(),
        NoiseSchedule.linear(),
        (3, None, None),
        multiple_of=4,
        field_of_view=22,
        precision="float32",
        name="convolutions",
        **options,
    )


def photo_of(height: int, width: int, seed: int = 0, deep: bool = False) -> np.ndarray:
    """(H, W, 3) of smooth colours and some grain, uint8 or uint16."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (7 + 5 * c) + c) * np.cos(y / (9 + 3 * c)) for c in range(3)]
    values = 0.5 + 0.3 * np.stack(waves, -1) + 0.05 * rng.standard_normal((height, width, 3))
    top = 65535 if deep else 255
    return np.clip(np.round(values * top), 0, top).astype(np.uint16 if deep else np.uint8)


def hole(height: int, width: int) -> np.ndarray:
    """(H, W) bool, True = known: a scratch and a spot are missing."""
    known = np.ones((height, width), bool)
    known[height // 3 : height // 3 + 3, width // 4 : width // 2] = False
    known[-7:-3, -9:-2] = False
    return known
