"""Generators of a few steps as backbones: ``generator(x_t, t, z)`` *draws* a clean picture with a latent z."""

from __future__ import annotations

import copy as copying
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from invdiff.backbones.base import Prediction
from invdiff.backbones.haar import haar, inverse_haar
from invdiff.backbones.network import NetworkBackbone
from invdiff.backbones.openvino_engine import only_torch
from invdiff.backbones.schedule import NoiseSchedule, checked_schedule
from invdiff.checks import flag, one_of, real, whole
from invdiff.errors import InvdiffError
from invdiff.noise import NoiseSource

MOST_STEPS = 64
"""Of a generator: the published ones have 2 to 8."""

COEFFICIENTS = ("none", "haar", "haar-rows-first")
"""What a generator sees: pixels, or half the orthonormal Haar coefficients, ordered as `haar` orders them or with the second
and the third kind exchanged."""

_NOBODY = [(0, 0)]
"""Whose latents are used outside of a run."""


def few_steps(
    steps: int = 4, *, geometric: bool = False, beta_min: float | None = None, beta_max: float | None = None
) -> NoiseSchedule:
    """The schedule of denoising diffusion GANs: a continuous one at ``u_k = 0.001 + 0.999 k / N``, k = 0..N.

    ``alpha_bar(u) = exp(-(beta_max - beta_min) u^2 / 2 - beta_min u)``, counted from its value at u_0; or, geometric,
    ``1 - alpha_bar(u) = beta_min (beta_max / beta_min)^u``.

    Args:
        steps: N.
        geometric: which of the two.
        beta_min, beta_max: 0.1 and 20 by default; geometric 1e-4 and 0.9.

    Raises:
        InvdiffError: a number out of its range.
    """
    steps, geometric = whole("steps", steps, 1, MOST_STEPS), flag("geometric", geometric)
    low = real("beta_min", (1e-4 if geometric else 0.1) if beta_min is None else beta_min, above=0)
    high = real("beta_max", (0.9 if geometric else 20.0) if beta_max is None else beta_max, above=low)
    if geometric and high >= 1:
        raise InvdiffError(f"beta_max must be below 1 for a geometric schedule, got {high:g}")
    u = 0.001 + 0.999 * torch.arange(steps + 1, dtype=torch.float64) / steps
    level = 1 - low * (high / low) ** u if geometric else torch.exp(-(high - low) * u**2 / 2 - low * u)
    return NoiseSchedule.from_betas(1 - level[1:] / level[:-1])


class GeneratorBackbone(NetworkBackbone):
    """A generator ``x0 = G(x_t, t, z)`` with standard normal latents z, of 2 to 8 steps, and the schedule of these.

        backbone = GeneratorBackbone(generator, few_steps(4), (3, 32, 32), latent=100)

    It *draws* a clean picture that x_t may have come from, where a denoiser says the mean of them all; two calls differ.
    Samplers take it for their x0: the ancestral step with it is that of Xiao et al. In a run, z comes from the noise source of
    each image (a function of its seed and the number of the call), so results do not depend on the batch; asked outside of a
    run it uses one fixed latent.

    A generator of wavelet coefficients (`coefficients`) sees ``c = H x / 2`` with the orthonormal Haar transform H and unit noise
    on c. In pixels that is noise of twice the size, so its level a is the level ``a / (a + 4 (1 - a))`` of pictures, which is
    what `schedule` then holds; the posterior of a step is the same in both.

    Args:
        generator: any callable ``G(x, t, z)``; x float (B, C, H, W), t a long tensor (B,) of whole numbers from 0 to N - 1, z
            float (B, latent). It returns the clean picture (or its coefficients, for such).
        schedule: of the generator, in its own space, such as `few_steps`.
        image_shape: (C, H, W) of the pictures.
        latent: how many numbers z has.
        coefficients: one of `COEFFICIENTS`.
        precision, compile, device, checkpointing, copy, class_labels, name: see `NetworkBackbone`.
        engine: ``"auto"`` or ``"torch"``.

    Raises:
        InvdiffError: an argument out of its range; at the first call, an output of the wrong shape.

    Source: Xiao, Kreis & Vahdat, "Tackling the Generative Learning Trilemma with Denoising Diffusion GANs", ICLR 2022; Phung, Dao
    & Tran, "Wavelet Diffusion Models are fast and scalable Image Generators", CVPR 2023.
    """

    def __init__(
        self,
        generator: Callable[..., Any],
        schedule: NoiseSchedule | None = None,
        image_shape: tuple[int | None, ...] = (3, 32, 32),
        *,
        latent: int = 100,
        coefficients: str = "none",
        precision: str = "auto",
        compile: bool = False,
        device: torch.device | str | None = None,
        class_labels: int | Tensor | None = None,
        checkpointing: bool = False,
        copy: bool = True,
        engine: str = "auto",
        name: str | None = None,
    ) -> None:
        self.latent = whole("latent", latent, 1, 1 << 16)
        self.coefficients = one_of("coefficients", coefficients, COEFFICIENTS)
        engine = only_torch(engine, "a generator, which has a latent", "networks of x and t alone")
        own = few_steps() if schedule is None else checked_schedule(schedule)
        whole("steps of the schedule", len(own), 1, MOST_STEPS)
        super().__init__(
            generator,
            own if coefficients == "none" else _of_pictures(own),
            image_shape,
            prediction="sample",
            precision=precision,
            compile=compile,
            device=device,
            class_labels=class_labels,
            checkpointing=checkpointing,
            copy=copy,
            multiple_of=1 if coefficients == "none" else 2,
            engine=engine,
            name=name,
        )
        self._source: NoiseSource | None = None
        self._calls = 0
        self._z = self._fixed()

    def drawing(self, noise: NoiseSource) -> GeneratorBackbone:
        view = copying.copy(self)
        view._source, view._calls = noise.of((self.latent,), "latent"), 0
        return view

    def predict(self, x_t: Tensor, t: int | Tensor) -> Prediction:
        if self._source is not None:  # a view for one run: no one else asks it
            self._z = self._source.draw(self._calls, "z")
            self._calls += 1
        a = self.alpha_bar(t, x_t)
        if self.coefficients == "none":
            return super().predict(x_t, t)
        time = self.schedule.timesteps[t.detach().long().cpu() if isinstance(t, Tensor) else torch.tensor(t)]
        shown = _exchanged(haar(x_t), self.coefficients) * (1 / (1 + 3 * a) ** 0.5)  # sqrt(4 - 3 own level) / 2
        out = self.network(shown, time.to(x_t.device).expand(len(x_t)))
        if out.shape != shown.shape:
            raise InvdiffError(f"generator returned shape {tuple(out.shape)}, expected {tuple(shown.shape)}")
        return Prediction.from_x0(x_t, inverse_haar(2 * _exchanged(out, self.coefficients)), a)

    def _call(self, network: Callable[..., Any], x: Tensor, t: Tensor, options: dict[str, Any]) -> Tensor:
        rows = torch.arange(len(x)) % len(self._z)
        z = self._z.to(x.device)[rows]
        return super()._call(lambda x, t, **more: network(x, t, z.to(x.dtype), **more), x, t, options)

    def _fixed(self) -> Tensor:
        return NoiseSource(_NOBODY, (self.latent,)).draw(0, "z")

    def __repr__(self) -> str:
        precision = str(self._dtype).removeprefix("torch.")
        return (
            f"GeneratorBackbone({self.name}, image_shape={self.image_shape}, {len(self.schedule)} steps, latent {self.latent}, "
            f"{precision}, {self._device})"
        )


def _of_pictures(schedule: NoiseSchedule) -> NoiseSchedule:
    """The levels of pictures whose halved wavelet coefficients have the levels of `schedule`."""
    a = schedule.alpha_bar
    return NoiseSchedule(a / (a + 4 * (1 - a)), schedule.timesteps)


def _exchanged(h: Tensor, order: str) -> Tensor:
    """(B, 4 C, H, W) with the second and the third kind of coefficients in the other order, where that is asked for."""
    if order != "haar-rows-first":
        return h
    low, across, down, both = h.chunk(4, 1)
    return torch.cat([low, down, across, both], 1)
