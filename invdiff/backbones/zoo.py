"""Names -> backbones: embedded, registered, in a file or folder of yours, or on the hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from invdiff.backbones.base import Backbone
from invdiff.backbones.network import NETWORK_PRECISIONS, available_device
from invdiff.checks import flag, known, one_of, shown
from invdiff.errors import InvdiffError, near_match
from invdiff.registry import Registry

Loader = Callable[..., Backbone]

AUTO = "auto"
"""The backbone that `solve` takes when none is named: that for photographs."""

PHOTOS = "photos"
"""The embedded backbone for photographs of any size."""

DEFAULT_BACKBONE = "cats64"
"""The embedded backbone of one size that the pages teach with."""

EMBEDDED = Path(__file__).parent / "weights"
"""The embedded backbones, one folder each."""

_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".pkl")


def _loader(name: str, loader: Any) -> Loader:
    if not callable(loader):
        raise InvdiffError(f"loader of backbone {name!r} must be callable, got {type(loader).__name__}")
    return loader


BACKBONES: Registry[Loader] = Registry("backbone", "invdiff.backbones", check=_loader)
"""Loaders by name: registered by a running program, or announced by installed packages."""


def _maker(name: str, make: Any) -> Callable[..., Any]:
    if not callable(make):
        raise InvdiffError(f"maker of prior {name!r} must be callable, got {type(make).__name__}")
    return make  # type: ignore[no-any-return]


PRIORS: Registry[Callable[..., Any]] = Registry("prior", "invdiff.priors", check=_maker)
"""Name -> maker of a backbone whose posterior is known: registered by a running program, or announced by installed packages."""


def load_backbone(
    name_or_path: str | Path = DEFAULT_BACKBONE,
    *,
    precision: str = "auto",
    compile: bool = False,
    device: torch.device | str | None = None,
    format: str | None = None,
    **options: Any,
) -> Backbone:
    """A pretrained backbone by name or from disk. The embedded ones need no network and no other download.

        backbone = load_backbone("cats64")
        backbone = load_backbone("runs/mine")  # a folder written by `invdiff train`
        backbone = load_backbone("google/ddpm-celebahq-256")  # diffusers' hub
        backbone = load_backbone("256x256_diffusion_uncond.pt", preset="imagenet256-uncond")  # guided-diffusion

    Names are asked first, then the formats of files (`invdiff.checkpoints.FORMATS`) in turn, by content.

    Args:
        name_or_path: a registered or embedded name (`backbone_names`); a folder written by `invdiff train` or in diffusers'
            format; a checkpoint of guided-diffusion, improved-diffusion, DDPM or denoising-diffusion-pytorch, also inside a
            Lightning checkpoint; a mixture model's file; ``owner/name`` on diffusers' hub.
        precision: of the network, see `NetworkBackbone`. Mixture models keep the precision of their parameters.
        compile: wrap the network in `torch.compile`.
        device: where to run; the CPU by default.
        format: name of the format of a file or folder, where it should not be found out.
        options: passed on to the loader of the format or name: to `NetworkBackbone` for the trainer's folders, to
            `load_diffusers`, to `load_guided_diffusion` (``preset=`` and its configuration), to a registered loader.

    Raises:
        InvdiffError: nothing of that name; a file that no format knows (the message has each one's reason); a damaged file
            (the checksum of weights is verified); an option that the loader does not take.
    """
    from invdiff.checkpoints.diffusers import load_diffusers
    from invdiff.checkpoints.formats import accepted_options, load_checkpoint, takes_any

    if not isinstance(name_or_path, str | Path):
        raise InvdiffError(f"backbone must be a name or a path, got {shown(name_or_path)}")
    one_of("precision", precision, NETWORK_PRECISIONS)
    flag("compile", compile)
    device = None if device is None else available_device(device)
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    run: dict[str, Any] = {"precision": precision, "compile": compile, "device": device, **options}
    if name in _embedded():
        return load_checkpoint(EMBEDDED / name, format=format, **run)
    if name in BACKBONES or name in PRIORS:
        loader = BACKBONES.get(name) if name in BACKBONES else prior_loader(name)
        if not takes_any(loader):
            known(f"backbone {name}", options, accepted_options(loader))
        return loader(**run)
    if name and _exists(path):
        return load_checkpoint(path, format=format, **run)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and path.suffix not in _SUFFIXES:
        known("format diffusers", options, accepted_options(load_diffusers))
        return load_diffusers(name, **run)
    names = backbone_names()
    raise InvdiffError(
        f"unknown backbone {shown(name)}: neither a name ({', '.join(names)}) nor a file or folder that exists."
        f"{near_match(name, names)} Pass the path of a folder written by `invdiff train` or in diffusers' format, of a "
        "checkpoint file, or owner/name on the hub."
    )


def backbone_names() -> list[str]:
    """Every name that `load_backbone` knows, sorted: embedded, registered, and announced by installed packages; priors too."""
    return sorted({*BACKBONES.names(), *PRIORS.names(), *_embedded()})


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
    if name in _embedded():
        raise InvdiffError(f"a backbone named {name!r} exists already; take another name")
    return BACKBONES.add(name, loader)


def register_prior(name: str, make: Callable[..., Any] | None = None) -> Any:
    """Give a prior a name that `load_backbone`, the command line and the suites then take. ``@register_prior("mine")`` works too.

    Args:
        name: not taken yet, by a prior or another backbone.
        make: ``make(**options)`` returns the prior, such as a `GaussianBackbone`: a backbone with ``prior_sample(n, seed)`` and
            ``posterior(operator, y, sigma_y)``, and ``to(device)``.

    Raises:
        InvdiffError: the name is taken, or the maker cannot be called.
    """
    if make is None:
        return lambda function: register_prior(name, function)
    _maker(name, make)
    register_backbone(name, prior_loader(name, make))  # which refuses a name that a backbone has
    PRIORS.add(name, make)
    return make


def prior_loader(name: str, make: Callable[..., Any] | None = None) -> Callable[..., Backbone]:
    """The loader of the backbone that a prior of that name is; `make` makes it where it isn't registered yet."""
    from invdiff.checkpoints.formats import accepted_options, takes_any

    make = PRIORS.get(name) if make is None else make

    def load(
        *, precision: str = "auto", compile: bool = False, device: torch.device | str | None = None, **options: Any
    ) -> Backbone:
        if not takes_any(make):
            known(f"prior {name}", options, accepted_options(make))
        model = make(**options)
        model.name = name
        return model if device is None else model.to(device)

    # whose it is, so that the registry tells another prior of that name from the same one registered again
    load.__module__, load.__qualname__ = make.__module__, getattr(make, "__qualname__", f"the prior {name}")
    return load


def _embedded() -> list[str]:
    """Names of the embedded folders."""
    return sorted(f.name for f in EMBEDDED.iterdir() if f.is_dir()) if EMBEDDED.is_dir() else []


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, or with a NUL in it
        return False
