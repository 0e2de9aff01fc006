"""Names -> backbones: embedded, registered, in a folder of yours, or on the hub."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch

from invdiff.backbones.base import Backbone
from invdiff.backbones.haar import CONFIG, DESCRIPTION, Description, HaarUNet, check_sha256
from invdiff.errors import InvdiffError, near_match

Loader = Callable[..., Backbone]

DEFAULT_BACKBONE = "cats64"
"""The backbone that `solve` takes when none is named."""

ENTRY_POINTS = "invdiff.backbones"
"""The entry-point group in which other packages announce backbones: name = a loader."""

EMBEDDED = Path(__file__).parent / "weights"
"""The embedded backbones, one folder each."""

_CHECKPOINTS = (".pt", ".pth")
_registered: dict[str, Loader] = {}


def load_backbone(
    name_or_path: str | Path = DEFAULT_BACKBONE,
    *,
    precision: str = "auto",
    compile: bool = False,
    device: torch.device | str | None = None,
    **options: Any,
) -> Backbone:
    """A pretrained backbone by name or from disk. The embedded ones need no network and no other download.

        backbone = load_backbone("cats64")
        backbone = load_backbone("runs/mine")  # a folder written by `invdiff train`
        backbone = load_backbone("google/ddpm-celebahq-256")  # diffusers' hub
        backbone = load_backbone("256x256_diffusion_uncond.pt", preset="imagenet256-uncond")  # guided-diffusion

    Args:
        name_or_path: a registered or embedded name (`backbone_names`); a folder saved by the trainer; a mixture model's
            ``.safetensors``; a folder in diffusers' format or ``owner/name`` on its hub; a guided-diffusion ``.pt``;
            a DDPM ``.ckpt``.
        precision: of the network, see `NetworkBackbone`. Mixture models keep the precision of their parameters.
        compile: wrap the network in `torch.compile`.
        device: where to run; the CPU by default.
        options: passed on to the loader: to `NetworkBackbone` for the trainer's folders, to `load_diffusers`, to
            `load_guided_diffusion` (``preset=`` and its configuration), to a registered loader.

    Raises:
        InvdiffError: nothing of that name, or a damaged file (the checksum of weights is verified).
    """
    if not isinstance(name_or_path, str | Path):
        raise InvdiffError(f"backbone must be a name or a path, got {type(name_or_path).__name__}")
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    run: dict[str, Any] = {"precision": precision, "compile": compile, "device": device}
    if name in _registered:
        return _registered[name](**run, **options)
    if name in _embedded():
        return _load_folder(_embedded()[name], **run, **options)
    if name in (points := _entry_points()):
        return points[name].load()(**run, **options)
    if path.is_dir():
        return _load_folder(path, **run, **options)
    if path.is_file() and path.suffix == ".safetensors":
        return _load_mixture(path, device=device, **options)
    if path.is_file() and path.suffix == ".ckpt":
        from invdiff.checkpoints.ddpm import load_ddpm

        return load_ddpm(path, **run, **options)
    if path.is_file() and path.suffix in _CHECKPOINTS:
        from invdiff.checkpoints.guided_diffusion import load_guided_diffusion

        return load_guided_diffusion(path, **run, **options)
    if path.is_file():
        raise InvdiffError(f"{path} is no backbone: give .safetensors (a mixture model) or .pt (guided-diffusion)")
    if (
        name.count("/") == 1
        and not name.startswith((".", "/", "~"))
        and path.suffix not in (*_CHECKPOINTS, ".ckpt", ".safetensors")
    ):
        from invdiff.checkpoints.diffusers import load_diffusers

        return load_diffusers(name, **run, **options)
    names = backbone_names()
    raise InvdiffError(
        f"unknown backbone {name!r}: neither a name ({', '.join(names)}) nor a file or folder that exists."
        f"{near_match(name, names)} Pass the path of a folder written by `invdiff train` or in diffusers' format, of a "
        "guided-diffusion .pt file, or owner/name on the hub."
    )


def backbone_names() -> list[str]:
    """Every name that `load_backbone` knows, sorted: embedded, registered, and announced by installed packages."""
    return sorted({*_registered, *_embedded(), *_entry_points()})


def register_backbone(name: str, loader: Loader | None = None) -> Any:
    """Give a loader a name that `solve`, the CLI and the benchmark then take. ``@register_backbone("mine")`` works too.

    Args:
        name: not taken yet.
        loader: ``loader(*, precision, compile, device, **options) -> Backbone``.

    Raises:
        InvdiffError: the name is taken by another loader, or the loader cannot be called.
    """
    if loader is None:
        return lambda function: register_backbone(name, function)
    if not callable(loader):
        raise InvdiffError(f"loader of backbone {name!r} must be callable, got {type(loader).__name__}")
    if name in _embedded() or _registered.get(name, loader) is not loader:
        raise InvdiffError(f"a backbone named {name!r} exists already; take another name")
    _registered[name] = loader
    return loader


def _entry_points() -> dict[str, Any]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def _embedded() -> dict[str, Path]:
    """The embedded folders by name."""
    if not EMBEDDED.is_dir():
        return {}
    return {folder.name: folder for folder in EMBEDDED.iterdir() if _is_network(folder) or _mixture_file(folder)}


def _is_network(folder: Path) -> bool:
    return (folder / DESCRIPTION).is_file() and (folder / CONFIG).is_file()


def _mixture_file(folder: Path) -> Path | None:
    """The only ``.safetensors`` of a folder without a network's configuration."""
    files = sorted(folder.glob("*.safetensors")) if not (folder / CONFIG).exists() else []
    return files[0] if len(files) == 1 else None


def _load_folder(
    folder: Path, *, precision: str, compile: bool, device: torch.device | str | None, **options: Any
) -> Backbone:
    if _is_network(folder):
        return HaarUNet.load(folder).backbone(precision=precision, compile=compile, device=device, **options)
    if mixture := _mixture_file(folder):
        return _load_mixture(mixture, device=device, **options)
    if (folder / CONFIG).is_file() or (folder / "model_index.json").is_file():
        from invdiff.checkpoints.diffusers import load_diffusers

        return load_diffusers(folder, precision=precision, compile=compile, device=device, **options)
    raise InvdiffError(
        f"{folder} holds no backbone: neither {DESCRIPTION} (written by `invdiff train`), a diffusers {CONFIG} or "
        "model_index.json, nor a mixture model's .safetensors"
    )


def _load_mixture(path: Path, *, device: torch.device | str | None, **options: Any) -> Backbone:
    """A mixture model; where an ``invdiff.json`` with a checksum stands beside it, that is verified."""
    from invdiff.priors.mixture import GaussianMixtureBackbone

    if (path.parent / DESCRIPTION).is_file():
        check_sha256(path, path.read_bytes(), Description.read(path.parent).sha256)
    backbone: Backbone = GaussianMixtureBackbone.load(path, **options)
    return backbone if device is None else backbone.to(device)
