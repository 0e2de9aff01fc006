"""Unconditional diffusers networks: names on the hub, folders, pipelines and networks.

backbone = load_diffusers("google/ddpm-celebahq-256")
backbone = load_diffusers("my/folder")
backbone = load_diffusers(pipeline)
backbone = load_diffusers(unet, scheduler=scheduler)
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from invdiff.backbones.base import Backbone
from invdiff.backbones.flow import FlowBackbone
from invdiff.backbones.network import PREDICTIONS, NetworkBackbone
from invdiff.backbones.schedule import NoiseSchedule
from invdiff.backbones.unet import build
from invdiff.checkpoints import layout as unet
from invdiff.checkpoints.formats import Format, call, register_format
from invdiff.checkpoints.guided_diffusion import check_labels
from invdiff.checkpoints.known import fetch_from_hub
from invdiff.checkpoints.reading import folder_weights, read_json, read_state_dict
from invdiff.checks import whole
from invdiff.errors import InvdiffError

NETWORK = "UNet2DModel"
FLOW_SCHEDULERS = (
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
)
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")
_ACCEPTED = (
    "the name of a repository on the hub (owner/name), a folder, a pipeline of unet and scheduler, or a UNet2DModel"
)
_LATENT_CHANNELS = (4, 8, 16, 32, 64, 128)
_OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@register_format("diffusers")
class DiffusersFolder(Format):
    """A folder with a network's ``config.json`` or a pipeline's ``model_index.json``."""

    def matches(self, path: Path) -> str | None:
        if not path.is_dir():
            return "it is a file, not a folder in diffusers' format"
        if (path / "invdiff.json").is_file():
            return "it has an invdiff.json: it was written by `invdiff train`"
        named = ("config.json", "model_index.json", "unet/config.json")
        return None if any((path / n).is_file() for n in named) else "it holds no config.json and no model_index.json"

    def load(self, path: Path, **options: Any) -> Backbone:
        return call(load_diffusers, "diffusers", path, options)


def load_diffusers(
    source: str | os.PathLike[str] | Any,
    *,
    scheduler: Any = None,
    image_size: int | None = None,
    precision: str = "auto",
    compile: bool = False,
    device: torch.device | str | None = None,
    class_labels: int | Tensor | None = None,
    checkpointing: bool = False,
    name: str | None = None,
) -> NetworkBackbone:
    """An unconditional, pixel-space diffusers network as a backbone. Prediction type, betas and size are read from it.

    Args:
        source: ``"owner/name"`` on the hub (looked up in the cache first); a folder that holds a `UNet2DModel`
            (``config.json`` and weights) or a pipeline (``model_index.json``, ``unet/``, ``scheduler/``); a pipeline
            object such as `DDPMPipeline`; or a `UNet2DModel`.
        scheduler: a diffusers scheduler, or its configuration as a dictionary, in place of the one that comes with the
            source. A network without any counts in the linear schedule with 1,000 times and predicts the noise, as
            diffusers' schedulers do by default.
        image_size: height and width, where the configuration has no ``sample_size``.
        precision, compile, device, checkpointing, name: see `NetworkBackbone`.
        class_labels: for a class-conditional network: one label, or a long tensor (B,).

    Returns:
        `NetworkBackbone` on images (B, C, H, W) in [-1, 1]; twice the image's channels at the output are a learned
        variance. Objects are copied, so the caller's stay as they are. `FlowBackbone` where the scheduler is one of flow matching.

    Raises:
        InvdiffError: not there, or the hub out of reach (at once); a broken file; a pipeline that is latent or
            conditioned on text, or a scheduler that is neither variance-preserving nor of flow matching: refused by name.

    Source: diffusers' folder format.
    """
    if isinstance(source, str | os.PathLike):
        folder = _folder(source)
        network, found = _read_folder(folder, scheduler)
        title = str(source) if not Path(source).expanduser().is_dir() else folder.name
    else:
        network, found = _read_object(source)
        title = type(source).__name__
    config = dict(network.config)  # type: ignore[arg-type]
    if config.get("time_embedding_type") == "fourier":
        raise InvdiffError(
            "source is a network conditioned on sigma (time_embedding_type 'fourier'): variance-exploding "
            "networks go to EDMBackbone"
        )
    if config.get("class_embed_type") is not None:
        raise InvdiffError(
            f"source has class_embed_type {config['class_embed_type']!r}; supported are networks without classes, "
            "or with numbered ones"
        )
    check_labels(class_labels, config.get("num_class_embeds"))
    if scheduler is not None:
        found = _scheduler_config(scheduler)
    channels, out = config["in_channels"], config["out_channels"]
    if channels in _LATENT_CHANNELS:
        raise InvdiffError(
            f"source has images of {channels} channels, as latent models have: what it sees are no pixels, no operator measures "
            f"them. If they are pixels after all, NetworkBackbone(network, schedule, ({channels}, H, W)) takes them"
        )
    if out not in (channels, 2 * channels):
        raise InvdiffError(
            f"source has {out} output channels for {channels} of the image; expected as many, or "
            "twice as many with a learned variance"
        )
    if out == 2 * channels and found.get("variance_type") == "learned":
        raise InvdiffError(
            "the scheduler's variance_type 'learned' is not supported; 'learned_range' and fixed ones are"
        )
    if _is_flow(found) and out != channels:
        raise InvdiffError(f"source has {out} output channels for {channels} of the image; a velocity has as many")
    options: dict[str, Any] = {
        "image_shape": (channels, *_size(config, image_size)),
        "precision": precision,
        "compile": compile,
        "device": device,
        "class_labels": class_labels,
        "checkpointing": checkpointing,
        "copy": not isinstance(source, str | os.PathLike),
        "name": name or title,
    }
    if _is_flow(found):
        return _flow_backbone(network, found, **options)
    return NetworkBackbone(
        network, noise_schedule(found), prediction=_prediction(found), learned_variance=out == 2 * channels, **options
    )


def noise_schedule(config: Mapping[str, Any]) -> NoiseSchedule:
    """The betas of a diffusers scheduler's configuration, in float64.

    ``rescale_betas_zero_snr`` is followed as diffusers' DDPM scheduler does (Lin et al., 2024, algorithm 1), with at most
    2^-24 instead of 0 for the last level, and less than the one before it, so that every level can be divided by.

    Raises:
        InvdiffError: a scheduler that is not variance-preserving, or a name of betas that isn't known; named.
    """
    kind = str(config.get("_class_name", "DDPMScheduler"))
    told = "beta_schedule" in config or "beta_start" in config or config.get("trained_betas") is not None
    if config and not told:
        raise InvdiffError(
            f"scheduler {kind} has no betas: supported are variance-preserving ones such as "
            "DDPMScheduler and DDIMScheduler"
        )
    T = whole("num_train_timesteps", config.get("num_train_timesteps", config.get("timesteps", 1000)), 1, 1_000_000)
    start, end = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    shape = config.get("beta_schedule", "linear")
    if config.get("trained_betas") is not None:
        schedule = NoiseSchedule.from_betas(config["trained_betas"])
    elif shape == "linear":
        schedule = NoiseSchedule.linear(T, start, end)
    elif shape == "scaled_linear":
        schedule = NoiseSchedule.scaled_linear(T, start, end)
    elif shape == "squaredcos_cap_v2":
        schedule = NoiseSchedule.cosine(T)
    elif shape == "sigmoid":
        schedule = NoiseSchedule.from_betas(
            torch.linspace(-6, 6, T, dtype=torch.float64).sigmoid() * (end - start) + start
        )
    else:
        raise InvdiffError(
            f"scheduler {kind} has beta_schedule {shape!r}; supported are {', '.join(BETA_SCHEDULES)} and trained_betas"
        )
    return _without_signal_at_the_end(schedule) if config.get("rescale_betas_zero_snr") else schedule


def _without_signal_at_the_end(schedule: NoiseSchedule) -> NoiseSchedule:
    roots = schedule.alpha_bar[: schedule.T].sqrt()
    levels = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
    levels[-1] = min(2.0**-24, float(levels[-2]) / 2)
    return NoiseSchedule.from_betas(1 - levels / torch.cat([torch.ones(1, dtype=levels.dtype), levels[:-1]]))


def _is_flow(config: Mapping[str, Any]) -> bool:
    """Whether a scheduler's configuration is of a network that predicts a velocity along straight lines."""
    return (
        str(config.get("_class_name", "")).startswith("FlowMatch")
        or bool(config.get("use_flow_sigmas"))
        or config.get("prediction_type") == "flow_prediction"
    )


def _flow_backbone(network: nn.Module, config: Mapping[str, Any], **options: Any) -> FlowBackbone:
    """A network trained with one of diffusers' flow-matching schedulers.

    They call it with ``num_train_timesteps`` times the share of noise in ``(1 - u) data + u noise``, and it returns
    ``noise - data``; with `invert_sigmas` it is the share of data and the other sign. The times of the backbone are those of the
    scheduler's training, shifted by `shift`; a shift that depends on the size of the picture is left to the path.

    Raises:
        InvdiffError: a scheduler that is not known, or one that says that the network predicts something else.
    """
    kind = str(config.get("_class_name", ""))
    if kind.startswith("FlowMatch") and kind not in FLOW_SCHEDULERS:
        raise InvdiffError(f"scheduler {kind} is not known; of flow matching, {', '.join(FLOW_SCHEDULERS)} are")
    if kind not in FLOW_SCHEDULERS and not (
        config.get("use_flow_sigmas") and config.get("prediction_type") == "flow_prediction"
    ):
        raise InvdiffError(
            f"scheduler {kind or 'of the source'} is half one of flow matching: its prediction_type is "
            f"{config.get('prediction_type', 'epsilon')!r} and use_flow_sigmas {bool(config.get('use_flow_sigmas'))}; a velocity "
            "has 'flow_prediction' and True"
        )
    T = whole("num_train_timesteps", config.get("num_train_timesteps", 1000), 1, 1_000_000)
    shift = config.get("shift" if kind in FLOW_SCHEDULERS else "flow_shift", 1.0)
    return FlowBackbone(
        network,
        NoiseSchedule.flow(T, 1.0 if config.get("use_dynamic_shifting") else shift),
        data_at=1 if config.get("invert_sigmas") else 0,
        time_scale=T,
        **options,
    )


def _prediction(config: Mapping[str, Any]) -> str:
    found = config.get("prediction_type", "epsilon")
    if found not in PREDICTIONS:
        raise InvdiffError(f"the scheduler's prediction_type is {found!r}; supported are {', '.join(PREDICTIONS)}")
    return str(found)


def _size(config: Mapping[str, Any], image_size: int | None) -> tuple[int, int]:
    size = config.get("sample_size") if image_size is None else image_size
    if isinstance(size, bool) or not isinstance(size, int | list | tuple):
        raise InvdiffError(
            f"image_size must be given as a whole number: the network's configuration has sample_size {size!r}"
        )
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


# ---- objects ------------------------------------------------------------------------------------------------


def _read_object(source: Any) -> tuple[nn.Module, Mapping[str, Any]]:
    """Network and scheduler configuration of a pipeline or network."""
    kind = type(source).__name__
    if _is_unet(source):
        return source, {}
    components = getattr(source, "components", None)
    if isinstance(components, Mapping) and "unet" in components:
        _refuse_components(kind, {k: type(v).__name__ for k, v in components.items() if v is not None})
        return components["unet"], _scheduler_config(components.get("scheduler"))
    if isinstance(source, nn.Module):
        raise InvdiffError(
            f"source is a {kind}, expected {_ACCEPTED}. Any network(x, t) goes to NetworkBackbone, EDM's "
            "to EDMBackbone."
        )
    raise InvdiffError(f"source is a {kind}, expected {_ACCEPTED}")


def _is_unet(thing: Any) -> bool:
    return any(c.__name__ == NETWORK for c in type(thing).__mro__)


def _refuse_components(kind: str, classes: Mapping[str, str]) -> None:
    """Only pipelines of one unconditional network: everything else changes what the network's input is."""
    others = [f"{k} ({v})" for k, v in classes.items() if k not in ("unet", "scheduler")]
    if others:
        raise InvdiffError(
            f"source is a {kind} with {', '.join(others[:4])}: latent and text-conditioned models are not "
            f"supported; expected a pixel-space pipeline of unet ({NETWORK}) and scheduler, such as DDPMPipeline"
        )
    if classes.get("unet", NETWORK) != NETWORK:
        raise InvdiffError(
            f"source is a {kind} whose unet is a {classes['unet']}; supported is the unconditional {NETWORK}"
        )


def _scheduler_config(scheduler: Any) -> Mapping[str, Any]:
    if scheduler is None:
        return {}
    if isinstance(scheduler, Mapping):
        return scheduler
    config = getattr(scheduler, "config", None)
    if not isinstance(config, Mapping):
        raise InvdiffError(
            f"scheduler must be a diffusers scheduler or its configuration, got {type(scheduler).__name__}"
        )
    return {**config, "_class_name": type(scheduler).__name__}


# ---- folders ------------------------------------------------------------------------------------------------


def _folder(source: str | os.PathLike[str]) -> Path:
    """The folder itself, or what the hub has under that name."""
    path, name = Path(source).expanduser(), os.fspath(source)
    if path.is_dir():
        return path
    if path.is_file():
        raise InvdiffError(
            f"source {path} is a file, expected {_ACCEPTED}. Single files go to load_guided_diffusion or load_ddpm."
        )
    parts = str(name).split("/")
    if len(parts) != 2 or not all(parts) or str(name).startswith((".", "~")):
        raise InvdiffError(
            f"source {str(name)!r} is no folder that exists, and no name of the form owner/name; expected {_ACCEPTED}"
        )
    return fetch_from_hub(str(name))


def _read_folder(folder: Path, scheduler: Any = None) -> tuple[nn.Module, Mapping[str, Any]]:
    """Network and scheduler configuration of a folder; both layouts of pipelines, with sub-folders and flat.

    A pipeline whose scheduler is missing is refused unless the caller gives one: prediction and betas would be a guess.
    """
    index = folder / "model_index.json"
    files = (folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json")
    told = next((file for file in files if file.is_file()), None)
    if index.is_file():
        listed = read_json(index)
        classes = {k: str(v[1]) for k, v in listed.items() if isinstance(v, list) and len(v) == 2 and v[1] is not None}
        if "unet" not in classes:
            raise InvdiffError(
                f"source {folder} is a {listed.get('_class_name', 'pipeline')} without a unet; expected {_ACCEPTED}"
            )
        _refuse_components(str(listed.get("_class_name", "pipeline")), classes)
        if scheduler is None and (told is None or "scheduler" not in classes):
            what = f"names {classes['scheduler']}" if "scheduler" in classes else "names none"
            raise InvdiffError(
                f"source {folder} lacks scheduler/scheduler_config.json ({index.name} {what}), so its betas and what it predicts "
                "are not known: was its download cut off? Get it again, or give scheduler="
            )
    place = folder / "unet" if (folder / "unet" / "config.json").is_file() else folder
    if not (place / "config.json").is_file():
        raise InvdiffError(
            f"source {folder} has no config.json and no unet/config.json: no folder in diffusers' format"
        )
    config = read_json(place / "config.json")
    kind = config.get("_class_name", NETWORK)
    if kind != NETWORK:
        raise InvdiffError(f"source {folder} holds a {kind}; supported is the unconditional, pixel-space {NETWORK}")
    network = _network(place, config)
    return network, {} if told is None else read_json(told)


def _network(place: Path, config: dict[str, Any]) -> nn.Module:
    files = folder_weights(place)
    if not files:
        raise InvdiffError(
            f"source {place} has no weights: expected diffusion_pytorch_model.safetensors or .bin of that name, or an index "
            "and its shards"
        )
    state: dict[str, Tensor] = {}
    for file in files:
        state |= read_state_dict(file)
    network = build(config, f"source {place / 'config.json'}")
    names = [n for n, _ in network.named_parameters()]
    entries = [unet.Entry(_old_name(n) if n not in state and _old_name(n) in state else n, (n,)) for n in names]
    return unet.fill(network, entries, state, files[0], lambda: f"Do config.json and {files[0].name} belong together?")


def _old_name(name: str) -> str:
    """The name of an attention's weight in files written by diffusers before 0.17."""
    for new, old in _OLD_NAMES.items():
        name = name.replace(f".{new}.", f".{old}.")
    return name
