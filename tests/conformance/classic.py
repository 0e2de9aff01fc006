"""RePaint, DDNM, DDRM, DiffPIR, MCG, DPS and PiGDM: settings from a recording's JSON, replayed through `solve`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from conformance.recordings import TOLERANCE, Noise, Outcome, Recording, largest_difference, tiny_network
from torch import Tensor

from invdiff import NetworkBackbone, Windows, solve
from invdiff.samplers import DDNM, DDRM, DPS, MCG, DDNMPlus, DiffPIR, MaskShift, PiGDM, RePaint, Sampler


class NotFollowed(Exception):
    """A setting of the authors' code that the library does not have; the message says which and why."""


def repaint(config: dict[str, Any]) -> Sampler:
    p = config["schedule_jump_params"]
    if config.get("cond_fn"):
        raise NotFollowed("classifier guidance with the recording's own classifier")
    return RePaint(
        steps=p["t_T"],
        jump_length=p["jump_length"],
        jump_n_sample=p["jump_n_sample"],
        clip=config["clip_denoised"],
        paste_known=False,
    )


def ddnm(config: dict[str, Any]) -> Sampler:
    cls = DDNMPlus if config["sigma_y_used"] > 0 else DDNM
    return cls(
        steps=config["T_sampling"],
        eta=config["eta"],
        travel_length=config["travel_length"],
        travel_repeat=config["travel_repeat"],
    )


def diffpir(config: dict[str, Any]) -> Sampler:
    # Their sigma is in units of [0, 1] although their images are in [-1, 1]: a quarter of lambda in one unit.
    return DiffPIR(
        steps=config["iter_num"],
        lambda_=config["lambda_"] / 4,
        zeta=config["zeta"],
        eta=config["eta"],
        spacing=config["skip_type"],
        guidance_scale=config.get("guidance_scale", 1.0),
        inner_iterations=config.get("iter_num_U", 1),
        ending="state",
    )


def mcg(config: dict[str, Any]) -> Sampler:
    return MCG(
        steps=int(config["timestep_respacing"]),
        scale=config["weight"],
        clip=config["clip_denoised"],
        known_level="source",
    )


def dps(config: dict[str, Any]) -> Sampler:
    if config.get("sampler", "ddpm") != "ddpm":
        raise NotFollowed(f"DPS with {config['sampler']} steps: the paper's are ancestral")
    return DPS(steps=int(config["timestep_respacing"]), scale=config["scale"], clip=config["clip_denoised"])


def pigdm(config: dict[str, Any]) -> Sampler:
    c = config["cfg_algo"]
    if not c.get("awd", True):
        raise NotFollowed("awd=False, an ablation switch")
    if c.get("mcg"):
        raise NotFollowed("mcg=True, an ablation switch")
    return PiGDM(
        steps=config["num_steps"],
        eta=c["eta"],
        weight=c["grad_term_weight"],
        project=config["operator"].startswith("in2"),
    )


def ddrm(config: dict[str, Any]) -> Sampler:
    c = config["cfg_algo"]
    return DDRM(steps=config["num_steps"], eta=c["eta"], eta_b=c["eta_b"])


def replayed(make: Callable[[dict[str, Any]], Sampler], sigma: Callable[[dict[str, Any]], float] | None = None) -> Any:
    """A replayer of an algorithm: `make` reads the sampler from the JSON, `sigma` the noise that it is told."""

    def replay(recording: Recording) -> Iterator[Outcome]:
        for run, recorded in recording.runs.items():
            try:
                sampler = make(recording.config)
                noise = _noise(recording, run)
            except NotFollowed as why:
                yield Outcome(run, math.nan, note=f"not followed: {why}", followed=False)
                continue
            solution = solve(
                recording.operator(),
                recording.measurement(),
                sampler,
                backbone=recording.backbone(run),
                sigma_y=sigma(recording.config) if sigma else 0.0,
                value_range=(-1, 1),
                x_init=recording.first_state(run),
                noise=noise,
                progress=False,
            )
            asked = recorded["t"].tolist()  # DiffPIR's authors ask again at the end and throw the answers away
            unused = recording.config.get("iter_num_U", 1) if recording.config["algo"] == "diffpir" else 0
            same = list(solution.timesteps) in [asked[: len(asked) - k] for k in range(unused + 1)]
            difference = largest_difference(solution.x, recorded["x0"])
            tolerance = recording.tolerance(run)
            yield Outcome(run, difference, tolerance, "" if same else "asked at other times", failed=not same)

    return replay


def _noise(recording: Recording, run: str) -> Noise:
    """The recording's draws; where the authors draw in the coordinates of the singular vectors, taken to images."""
    mode = run.split(".")[1]
    noise = recording.noise(mode)
    config = recording.config
    if mode == "zero" or config["algo"] != "reddiff_ddrm":
        return noise
    if not str(config["operator"]).startswith("sr") or "V_small" not in recording.inputs:
        raise NotFollowed("their draws are in a basis of singular vectors that the recording does not hold")
    small = recording.inputs["V_small"]
    factor = round(len(small) ** 0.5)
    return lambda shape: from_block_basis(noise(shape), small, factor)


def from_block_basis(drawn: Tensor, small: Tensor, factor: int) -> Tensor:
    """Images from coefficients in the order of DDRM's code for block means: the mean of every block first, then, block by
    block, the others."""
    batch, channels, height, width = drawn.shape
    rows, columns, n = height // factor, width // factor, factor**2
    flat, blocks = drawn.reshape(batch, -1), channels * rows * columns
    coefficients = torch.cat([flat[:, :blocks, None], flat[:, blocks:].reshape(batch, blocks, n - 1)], 2)
    patches = (coefficients @ small.mT).reshape(batch, channels, rows, columns, factor, factor)
    return patches.permute(0, 1, 2, 4, 3, 5).reshape(drawn.shape)


def checkpoint(recording: Recording) -> Iterator[Outcome]:
    """The tiny guided-diffusion network: output, and gradient of the sum of squares of its first half."""
    network = tiny_network(recording.folder)
    given = recording.inputs
    with torch.enable_grad():
        x = given["x"].clone().requires_grad_()
        out = network(x, given["t"])
        gradient = torch.autograd.grad(out.chunk(2, 1)[0].square().sum(), x)[0]
    yield Outcome("out", largest_difference(out.detach(), given["out"]))
    scale = max(1.0, float(given["grad_x"].abs().max()))
    yield Outcome("grad_x", largest_difference(gradient, given["grad_x"]), TOLERANCE * scale)
    if "x16" in given:
        with torch.no_grad():
            yield Outcome("out16", largest_difference(network(given["x16"], given["t16"]), given["out16"]))


def _sigma_used(config: dict[str, Any]) -> float:
    return float(config["sigma_y_used"])


def _diffpir_sigma(config: dict[str, Any]) -> float:
    return 2 * max(0.001, config["sigma_n"])


def mask_shift(recording: Recording) -> Iterator[Outcome]:
    """DDNM's high-resolution demo: windows one after the other, each from the result before, the first from x_T."""
    config, p = recording.config, recording.config["schedule_jump_params"]
    sampler = MaskShift(
        steps=p["t_T"], jump_length=p["jump_length"], jump_n_sample=p["jump_n_sample"], start="previous"
    )
    side = config["window"]
    first = torch.zeros(1, 3, config["H"], config["W"])
    first[..., :side, :side] = recording.inputs["x_T"]
    for run, recorded in recording.runs.items():
        kind, mode = run.split(".")
        network = NetworkBackbone(
            recording.network(kind, side), image_shape=(3, side, side), learned_variance=True, precision="float32"
        )
        solution = solve(
            recording.operator(),
            recording.measurement(),
            sampler,
            backbone=Windows(network, overlap=1 - config["stride"] / side),
            value_range=(-1, 1),
            x_init=first,
            noise=recording.noise(mode),
            progress=False,
        )
        same = list(solution.timesteps) == recorded["t"].tolist()
        difference = largest_difference(solution.x, recorded["x0"])
        yield Outcome(
            run, difference, recording.tolerance(run), "" if same else "asked at other times", failed=not same
        )


ALGORITHMS = {
    "ddnm_hq_maskshift": mask_shift,
    "repaint": replayed(repaint),
    "ddnm_svd": replayed(ddnm, _sigma_used),
    "diffpir": replayed(diffpir, _diffpir_sigma),
    "mcg_official": replayed(mcg),
    "dps_official": replayed(dps),
    "reddiff_pgdm": replayed(pigdm),
    "reddiff_ddrm": replayed(ddrm, _sigma_used),
    "guided_diffusion checkpoint": checkpoint,
}
