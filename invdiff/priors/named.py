"""Priors with names: backbones whose posterior is known, made when `load_backbone` is asked for one.

    backbone = load_backbone("gmm25-8")                          # also as the `backbone` of a suite
    backbone = load_backbone("learned", prior="gmm25-8")         # a small network trained on draws of it

All live in model range. The 25-mode mixture of the MCGDiff paper has its means at up to +-16 with unit variance;
here it is multiplied by 1/20, so that the modes lie within +-0.8 with standard deviation 0.05, and a sampler's clipping to
[-1, 1] touches no more than the tails beyond four standard deviations. The posterior stays the same but for the unit:
sigma_y = 0.05 here is 1 there. ``gmm25-8-original`` has the original units; it leaves [-1, 1], so samplers need
``clip=False`` there (DiffPIR always clips).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from invdiff.backbones.base import Backbone
from invdiff.backbones.network import NetworkBackbone
from invdiff.backbones.schedule import NoiseSchedule
from invdiff.backbones.zoo import PRIORS, register_backbone, register_prior
from invdiff.checks import whole
from invdiff.errors import InvdiffError
from invdiff.priors.gaussian import GaussianBackbone
from invdiff.priors.mixture import GaussianMixtureBackbone

AnalyticPrior = GaussianBackbone | GaussianMixtureBackbone


# ---- the priors -------------------------------------------------------------------------------------------------


def correlated_gaussian(
    shape: tuple[int, int, int] = (1, 1, 8), std: float = 0.25, correlation: float = 0.8
) -> GaussianBackbone:
    """A stationary Gaussian: ``C_ij = std^2 correlation^|i - j|`` along height and width, 0.5 between channels.

    Args:
        shape: (C, H, W), d = C H W up to a few hundred (the covariance is dense).
        std: of every pixel, model range.
        correlation: of neighbouring pixels.
    """
    channels, height, width = shape
    across = 0.5 * torch.eye(channels, dtype=torch.float64) + 0.5 * torch.ones(channels, channels, dtype=torch.float64)
    covariance = std**2 * torch.kron(across, torch.kron(_decay(height, correlation), _decay(width, correlation)))
    return GaussianBackbone(torch.zeros(shape), covariance.float(), name=f"gaussian{height}x{width}")


def image_gaussian(
    shape: tuple[int, int, int] = (1, 16, 16), std: float = 0.25, slope: float = 2.0
) -> GaussianBackbone:
    """A Gaussian "image": power falls with spatial frequency as ``(f^2 + f_0^2)^(-slope / 2)``, as in photographs.

    Args:
        shape: (C, H, W); channels are independent. Periodic, so the covariance is diagonal under the Fourier transform.
        std: of every pixel, model range.
        slope: of the power spectrum; 2 is that of natural images.
    """
    _, height, width = shape
    f2 = torch.fft.fftfreq(height).square()[:, None] + torch.fft.fftfreq(width).square()[None]
    spectrum = (f2 + 1 / max(height, width) ** 2) ** (-slope / 2)
    spectrum = spectrum * std**2 / spectrum.mean()
    return GaussianBackbone.circulant(torch.zeros(shape), spectrum, name=f"gaussian-image{height}x{width}")


def gmm25(dim: int = 8, seed: int = 0, scale: float = 1 / 20) -> GaussianMixtureBackbone:
    """The 25-mode mixture of MCGDiff (Cardoso et al., ICLR 2024, arXiv:2308.07983), times `scale`.

    Means (8 i, 8 j, 8 i, 8 j, ...) for i, j in -2..2, unit covariance, random weights (squares of normal numbers, normalised).

    Args:
        dim: 8, 80 and 800 in the paper; even. Images are (1, 1, dim).
        seed: of the weights.
        scale: multiplies x; see the module's docstring.
    """
    if whole("dim", dim, 2) % 2:
        raise InvdiffError(f"dim must be an even number of at least 2, got {dim}")
    grid = torch.tensor([(8.0 * i, 8.0 * j) for i in range(-2, 3) for j in range(-2, 3)])
    means = scale * grid.repeat(1, dim // 2).reshape(25, 1, 1, dim)
    weights = torch.randn(25, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).square()
    return GaussianMixtureBackbone(weights.float(), means, torch.tensor(scale**2), name=f"gmm25-{dim}")


def two_modes16() -> GaussianMixtureBackbone:
    """Two modes in 16 dimensions, weights 0.8 and 0.2, made for a measurement that sees 14 of them and hardly tells which.

    After the test of Qiu et al. (arXiv:2602.04189); the means are ours: +-0.5 in the last two pixels, +-0.02 in the others,
    standard deviation 0.1.
    """
    mean = torch.full((16,), 0.02)
    mean[14:] = 0.5
    means = torch.stack([mean, -mean]).reshape(2, 1, 1, 16)
    return GaussianMixtureBackbone(torch.tensor([0.8, 0.2]), means, torch.tensor(0.01), name="two-modes16")


def _decay(n: int, correlation: float) -> Tensor:
    index = torch.arange(n, dtype=torch.float64)
    return correlation ** (index[:, None] - index[None]).abs()


_NAMED: dict[str, Callable[..., AnalyticPrior]] = {
    "gaussian8": correlated_gaussian,
    "gaussian16x16": image_gaussian,
    "gaussian-colour": partial(correlated_gaussian, (3, 8, 8)),
    "gmm25-8": partial(gmm25, 8),
    "gmm25-80": partial(gmm25, 80),
    "gmm25-800": partial(gmm25, 800),
    "gmm25-8-original": partial(gmm25, 8, scale=1.0),
    "two-modes16": two_modes16,
}
for _name, _make in _NAMED.items():
    # 8 correlated pixels; a 16 x 16 image with the power spectrum of photographs; an 8 x 8 colour image, correlated in space and
    # between channels; 25 modes in 8, 80 and 800 dimensions; two modes, 0.8 and 0.2, in 16 dimensions
    register_prior(_name, _make)


# ---- a learned denoiser of the same prior -----------------------------------------------------------------------


class SmallDenoiser(nn.Module):
    """A residual perceptron that predicts the noise in x_t, for priors of a few dimensions; it sees x_t and its sines and
    cosines at four frequencies, so that it can learn narrow modes.

    Args:
        image_shape: (C, H, W).
        T: number of times of its schedule.
        width, blocks: size of the hidden layers, and how many residual blocks there are.
        seed: of the first weights; the global generator is left alone.
    """

    def __init__(self, image_shape: tuple[int, ...], T: int, width: int = 128, blocks: int = 3, seed: int = 0) -> None:
        super().__init__()
        d = math.prod(image_shape)
        self.T = T
        self.first = nn.Linear(9 * d + 17, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width + 17, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(blocks)
        )
        self.last = nn.Linear(width, d)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in self.modules():
                if isinstance(layer, nn.Linear):
                    layer.weight.normal_(0, layer.in_features**-0.5, generator=generator)
                    layer.bias.zero_()
            self.last.weight.zero_()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        u = (t.to(x.dtype) / self.T)[:, None]
        waves = u * math.pi * 2 ** torch.arange(8, dtype=x.dtype, device=x.device) / 2
        time = torch.cat([u, waves.sin(), waves.cos()], 1)
        flat = x.flatten(1)
        phases = (flat[..., None] * math.pi * 2 ** torch.arange(4, dtype=x.dtype, device=x.device)).flatten(1)
        h = self.first(torch.cat([flat, phases.sin(), phases.cos(), time], 1))
        for block in self.blocks:
            h = h + block(torch.cat([h, time], 1))
        return self.last(nn.functional.silu(h)).reshape(x.shape)


def train_denoiser(
    backbone: AnalyticPrior, iterations: int = 4000, batch: int = 512, width: int = 128, seed: int = 0
) -> nn.Module:
    """A small network trained on draws of `backbone`'s prior.

    Adam with a cosine learning rate on the mean squared error of the noise; the weights are averaged over the second half.

    Args:
        backbone: gives the draws, the image's shape and the schedule.
        iterations, batch: of the training; 4,000 x 512 take about 20 s on one core in 8 dimensions.
        width: of the network.
        seed: of weights, draws and noise: the same seed gives the same network on the same machine.
    """
    schedule: NoiseSchedule = backbone.schedule.chain
    with torch.random.fork_rng(devices=[]):  # the layers are first filled from the global generator
        network = SmallDenoiser(backbone.image_shape, schedule.T, width, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, iterations, eta_min=1e-5)
    mean = torch.optim.swa_utils.AveragedModel(network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995))
    levels = schedule.alpha_bar[: schedule.T].float()[:, None, None, None]
    pool = backbone.prior_sample(max(20 * batch, 20_000), seed=seed).float()
    with torch.enable_grad():
        for step in range(iterations):
            x0 = pool[torch.randint(len(pool), (batch,), generator=generator)]
            t = torch.randint(schedule.T, (batch,), generator=generator)
            noise = torch.randn(x0.shape, generator=generator)
            x_t = levels[t] ** 0.5 * x0 + (1 - levels[t]) ** 0.5 * noise
            loss = (network(x_t, t) - noise).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            decay.step()
            if step >= iterations // 2:
                mean.update_parameters(network)
    return mean.module.eval().requires_grad_(False)


# ---- their names ------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def _trained(prior: str, iterations: int, seed: int) -> nn.Module:
    with torch.inference_mode(False):  # the first call comes from a sampler
        return train_denoiser(PRIORS.get(prior)(), iterations, batch=256, seed=seed)


def learned(
    prior: str = "gmm25-8",
    iterations: int = 6000,
    seed: int = 0,
    *,
    precision: str = "float32",
    compile: bool = False,
    device: torch.device | str | None = None,
) -> Backbone:
    """A backbone like any user's, whose error is known: a small network trained on draws of a prior, when it is first called.

    Args:
        prior: a name of `PRIORS`; the backbone's ``prior`` is that one, exact.
        iterations: of the training; 6,000 take about half a minute in 8 dimensions.
        seed: of weights, draws and noise: the same seed gives the same network on the same machine.
        precision, compile: not used; it runs in float32.
        device: where to run.
    """
    exact = PRIORS.get(prior)()
    whole("iterations", iterations, 1), whole("seed", seed, 0)

    def network(x: Tensor, t: Tensor) -> Tensor:
        return _trained(prior, iterations, seed).to(x.device)(x, t)

    model: Any = NetworkBackbone(
        network, exact.schedule.chain, exact.image_shape, precision="float32", name=f"learned-{prior}", device=device
    )
    model.prior = exact
    return model


register_backbone("learned", learned)
