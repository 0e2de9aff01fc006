"""Pictures with holes, for a network that restores in one call: `invdiff train --task inpaint`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invdiff.backbones.haar import haar
from invdiff.operators.masks import make_mask

HELD_OUT = 64
"""Pictures that the held-out error is measured on."""


def masks(names: Sequence[str], size: tuple[int, int], seeds: Sequence[int]) -> Tensor:
    """One mask for every seed, the names in turn: float (B, 1, H, W), 1 = known.

    Raises:
        InvdiffError: no mask of that name.
    """
    made = [make_mask(names[seed % len(names)], size, seed // len(names)) for seed in seeds]
    return torch.stack(made)[:, None].float()


def masked(x: Tensor, known: Tensor) -> Tensor:
    """What the network is shown: the picture, 0 where it is missing, and the mask, (B, C + 1, H, W)."""
    return torch.cat([x * known, known.to(x)], 1)


def missing_error(out: Tensor, x: Tensor, known: Tensor) -> Tensor:
    """Mean absolute error of every picture over its missing pixels, (B,); 0 where none is missing."""
    missing = 1 - known
    count = missing.sum((1, 2, 3)).clamp(min=1) * x.shape[1]
    return ((out - x).abs() * missing).sum((1, 2, 3)) / count


class Adversary:
    """A discriminator of wavelet coefficients with the hinge loss, and its optimizer.

    It looks at the orthonormal Haar transform of a picture (and of its mask, where there is one): four times the channels at
    half the size, so that textures lie open to it and it is cheap. Spectral normalisation keeps it from running away.

    Args:
        channels: of what it is shown.
        lr: of Adam.

    Source: hinge loss, Lim & Ye, "Geometric GAN", 2017; spectral normalisation, Miyato et al., ICLR 2018; wavelets before a
    discriminator, Phung et al., CVPR 2023.
    """

    def __init__(self, channels: int, lr: float = 4e-4) -> None:
        def layer(inputs: int, outputs: int, stride: int) -> nn.Module:
            return nn.utils.parametrizations.spectral_norm(nn.Conv2d(inputs, outputs, 3, stride, 1))

        self.network = nn.Sequential(
            layer(4 * channels, 64, 1),
            nn.LeakyReLU(0.2),
            layer(64, 96, 2),
            nn.LeakyReLU(0.2),
            layer(96, 128, 2),
            nn.LeakyReLU(0.2),
            layer(128, 1, 1),
        )
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=lr, betas=(0.0, 0.99))

    def to(self, device: torch.device) -> Adversary:
        self.network.to(device)
        return self

    def score(self, shown: Tensor) -> Tensor:
        """How real each patch looks, (B, 1, h, w)."""
        return self.network(haar(shown)).float()

    def learn(self, real: Tensor, made: Tensor) -> None:
        """One step: real above 1, made below -1."""
        loss = F.relu(1 - self.score(real)).mean() + F.relu(1 + self.score(made.detach())).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def state_dict(self) -> dict[str, object]:
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.network.load_state_dict(state["network"])  # type: ignore[arg-type]
        self.optimizer.load_state_dict(state["optimizer"])  # type: ignore[arg-type]
