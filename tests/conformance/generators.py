"""Denoising diffusion GANs and wavelet diffusion: the network on its own, and the whole run of a few steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from conformance.recordings import Noise, Outcome, Recording, largest_difference
from torch import Tensor

from invdiff import Identity, solve
from invdiff.backbones.generator import GeneratorBackbone
from invdiff.backbones.haar import inverse_haar
from invdiff.checkpoints import load_ddgan
from invdiff.samplers import Unconditional


def loaded(recording: Recording, name: str, options: dict[str, Any], **more: Any) -> GeneratorBackbone:
    """The tiny checkpoint beside a recording, through the library's loader."""
    side = options["image_size"] * (2 if options["num_channels"] == 12 else 1)
    return load_ddgan(recording.folder / name, side, precision="float32", **more)


def network(recording: Recording) -> Iterator[Outcome]:
    """The generator's output for recorded x, t and z."""
    given = recording.inputs
    backbone: Any = loaded(recording, f"{recording.name}.pt", recording.config["args"])
    with torch.no_grad():
        yield Outcome("out", largest_difference(backbone.module(given["x"], given["t"], given["z"]), given["out"]))


def run(recording: Recording) -> Iterator[Outcome]:
    """All steps; of wavelet diffusion the recorded states and draws are coefficients, of which pictures are made."""
    config, options = recording.config, recording.config["generator_args"]
    wavelets = config["algo"] == "wavediff"
    backbone = loaded(
        recording,
        config["generator"],
        options,
        steps=config["num_timesteps"],
        geometric=config["use_geometric"],
        beta_min=config["beta_min"],
        beta_max=config["beta_max"],
    )
    last = backbone.schedule.alpha_bar_at(config["num_timesteps"] - 1)
    first = recording.inputs["x_T"]
    if wavelets:
        first = inverse_haar(first) * (1 + 3 * last) ** 0.5  # the unit noise of pictures is not that of coefficients
    for name, recorded in recording.runs.items():
        noise = recording.noise(name.split(".")[1])
        solution = solve(
            Identity(),
            torch.zeros(1, *backbone.image_shape),
            Unconditional(steps=config["num_timesteps"], clip=False),
            backbone=backbone,
            value_range=(-1, 1),
            x_init=first,
            noise=_of_coefficients(noise) if wavelets else noise,
            progress=False,
        )
        asked = [float(t) for t in recorded["t"].flatten()]
        same = [float(t) for t in solution.timesteps] == asked
        wanted = recorded["image_unclamped"] if wavelets else recorded["x0"]
        yield Outcome(name, largest_difference(solution.x, wanted), note="" if same else "other times", failed=not same)
        if wavelets:  # the other convention is another order of the same coefficients
            low, across, down, both = (2 * recorded["coefficients"]).chunk(4, 1)
            image = inverse_haar(torch.cat([low, down, across, both], 1)).clamp(-1, 1)
            difference = largest_difference(image, recorded["image_pytorch_wavelets"].clamp(-1, 1))
            yield Outcome(f"{name} other order", difference)


def _of_coefficients(noise: Noise) -> Noise:
    def pictures(shape: tuple[int, ...]) -> Tensor:
        if len(shape) != 4:
            return noise(shape)
        batch, channels, height, width = shape
        return inverse_haar(noise((batch, 4 * channels, height // 2, width // 2)))

    return pictures


ALGORITHMS = {
    "ddgan": run,
    "wavediff": run,
    "ddgan_tiny checkpoint": network,
    "wavediff_tiny checkpoint": network,
}
