"""Other libraries' samplers on our network, for `speed.py`: each where it is installed (`pip install invdiff[peers]`)."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from invdiff import Mask


@dataclass(frozen=True)
class Peer:
    """A job of another library: `run` does it in float32 and returns the number of network calls.

    Attributes:
        library, method: what the table calls them.
        sampler: ours to compare with.
        run: with float32 states.
        default: in the library's own default precision, where that is another.
    """

    library: str
    method: str
    sampler: str
    run: Callable[[], int]
    default: Callable[[], int] | None = None


class Network(nn.Module):
    """Our float32 network in the terms of the others: noise, or the clean image, at a time or a noise level."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.inner = backbone.module
        self.levels = backbone.schedule.alpha_bar[:-1].tolist()
        self.sigmas = [((1 - a) / a) ** 0.5 for a in self.levels]
        self.calls = 0

    def count(self) -> int:
        """Calls since the last count."""
        calls, self.calls = self.calls, 0
        return calls

    def x0(self, x: Tensor, t: int) -> Tensor:
        """E[x0 | x_t] of a network that predicts v."""
        self.calls += 1
        a = self.levels[t]
        return a**0.5 * x - (1 - a) ** 0.5 * self.inner(x, torch.full((len(x),), t, device=x.device))

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """The clean image of ``x0 + sigma n``, model range, at the nearest time."""
        t = min(bisect.bisect_left(self.sigmas, sigma), len(self.sigmas) - 1)
        return self.x0(self.levels[t] ** 0.5 * x, t)


def installed_peers(backbone: Any, mask: Mask, y: Tensor, steps: int) -> Iterator[Peer]:
    """Every job that can be run here, for images `y` in [0, 1] and `steps` times."""
    network = Network(backbone).eval()
    for library, jobs in (("diffusers", _diffusers), ("deepinv", _deepinv), ("azula", _azula)):
        if find_spec(library) is None:
            print(f"  {library} is not installed: left out")
            continue
        yield from jobs(network, mask.mask, y.to(backbone.device), steps)


def _diffusers(network: Network, mask: Tensor, y: Tensor, steps: int) -> Iterator[Peer]:
    from diffusers import RePaintPipeline, RePaintScheduler

    class Noise(nn.Module):
        dtype, device = torch.float32, y.device

        def forward(self, x: Tensor, t: Tensor) -> Any:
            t = int(t)
            a = network.levels[t]
            return _Sample((x - a**0.5 * network.x0(x, t)) / (1 - a) ** 0.5)

    pipeline = RePaintPipeline(Noise(), RePaintScheduler())
    pipeline.set_progress_bar_config(disable=True)
    known = mask.float().expand(1, 1, *mask.shape[2:])

    def job() -> int:
        pipeline(
            image=2 * y - 1,
            mask_image=known,
            num_inference_steps=steps,
            eta=1.0,
            jump_length=1,
            jump_n_sample=2,
            output_type="np",
        )
        return network.count()

    yield Peer("diffusers", "RePaint", "repaint", job)


@dataclass
class _Sample:
    sample: Tensor


def _deepinv(network: Network, mask: Tensor, y: Tensor, steps: int) -> Iterator[Peer]:
    import deepinv

    class Denoiser(deepinv.models.Denoiser):
        """deepinv's images are in [0, 1] and sigma with them."""

        def forward(self, x: Tensor, sigma: Any, **_: Any) -> Tensor:
            return (network.denoise(2 * x - 1, 2 * float(torch.as_tensor(sigma).flatten()[0])) + 1) / 2

    denoiser = Denoiser()
    known = mask.float().expand(1, *y.shape[1:]).contiguous()
    physics = deepinv.physics.Inpainting(
        img_size=tuple(y.shape[1:]), mask=known, noise_model=deepinv.physics.GaussianNoise(0.01)
    )
    observed = known * y

    def counted(model: Any) -> Callable[[], int]:
        def job() -> int:
            model(observed, physics)
            return network.count()

        return job

    fidelity = deepinv.optim.data_fidelity.L2()
    diffpir = deepinv.sampling.DiffPIR(denoiser, fidelity, sigma=0.01, max_iter=steps)
    yield Peer("deepinv", "DiffPIR", "diffpir", counted(diffpir))
    sigmas = [1 - k / steps for k in range(steps)]
    yield Peer("deepinv", "DDRM", "ddrm", counted(deepinv.sampling.DDRM(denoiser, sigmas=sigmas)))
    dps = [deepinv.sampling.DPS(denoiser, num_steps=steps, dtype=d) for d in (torch.float32, torch.float64)]
    yield Peer("deepinv", "DPS", "dps", counted(dps[0]), counted(dps[1]))


def _azula(network: Network, mask: Tensor, y: Tensor, steps: int) -> Iterator[Peer]:
    from azula.denoise import Denoiser, DiracPosterior
    from azula.guidance.diffpir import DiffPIRDenoiser
    from azula.guidance.pgdm import PGDMSampler
    from azula.guidance.repaint import RePaintSampler
    from azula.noise import VPSchedule
    from azula.sample import DDIMSampler

    class Clean(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = VPSchedule()

        def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> DiracPosterior:
            alpha, sigma = self.schedule(t)
            return DiracPosterior(network.denoise(x_t / alpha, float(sigma / alpha)))

    clean, image = Clean(), 2 * y - 1
    known = mask.expand(y.shape)

    def A(x: Tensor) -> Tensor:
        return x * known

    def counted(sampler: Any) -> Callable[[], int]:
        def job() -> int:
            sampler(sampler.init(tuple(y.shape)))
            return network.count()

        return job

    options = {"steps": steps, "eta": 1.0, "silent": True}
    # Two walks of every step, as in our run.
    yield Peer("azula", "RePaint", "repaint", counted(RePaintSampler(clean, image, known, iterations=2, **options)))
    proximal = DiffPIRDenoiser(clean, A(image), A, var_y=4e-4)
    yield Peer("azula", "DiffPIR", "diffpir", counted(DDIMSampler(proximal, **options)))
    yield Peer("azula", "PiGDM", "pigdm", counted(PGDMSampler(clean, A(image), A, A, **options)))
