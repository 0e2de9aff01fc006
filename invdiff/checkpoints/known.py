"""Public checkpoints: where they are published, under which licence, and how they are fetched."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from invdiff.checkpoints.reading import first_line, folder_weights
from invdiff.errors import InvdiffError, near_match
from invdiff.files import check_sha256

HUB_TIMEOUT = 5.0
"""Seconds to wait for the hub before a name is declared out of reach."""


@dataclass(frozen=True)
class KnownCheckpoint:
    """A public checkpoint: where it is and how it is loaded.

    Attributes:
        name: what `download` takes.
        title: one line for people.
        loader: ``"load_diffusers"``, ``"load_guided_diffusion"`` or ``"load_ddpm"``.
        source: where its authors publish it.
        licence: of the weights as far as their authors say; read it before use.
        image_size: height and width in pixels.
        repo: repository on the hub; None where it is published elsewhere.
        file: name of the file; None for a folder.
        preset: of `load_guided_diffusion`.
        parameters: of the network, where known.
        sha256: of `file`, where known.
        instructions: what to do where `download` cannot get it.
    """

    name: str
    title: str
    loader: str
    source: str
    licence: str
    image_size: int
    repo: str | None = None
    file: str | None = None
    preset: str | None = None
    parameters: int | None = None
    sha256: str | None = None
    instructions: str | None = None

    @property
    def call(self) -> str:
        """The line of Python that loads it from disk."""
        preset = f', preset="{self.preset}"' if self.preset else ""
        return f'{self.loader}("{self.repo or self.file}"{preset})'


def _ddpm(name: str, images: str, size: int, parameters: int | None = None) -> KnownCheckpoint:
    return KnownCheckpoint(
        name=name,
        title=f"DDPM, {images}, {size}x{size} (Ho et al., 2020)",
        loader="load_diffusers",
        source=f"https://huggingface.co/google/{name}",
        licence="Apache-2.0 (model card)",
        image_size=size,
        repo=f"google/{name}",
        parameters=parameters,
    )


def _elsewhere(
    name: str,
    title: str,
    source: str,
    file: str,
    licence: str,
    parameters: int,
    preset: str | None,
    address: str | None = None,
    size: int = 256,
) -> KnownCheckpoint:
    loader = "load_ddpm" if preset is None else "load_guided_diffusion"
    given = "" if preset is None else f', preset="{preset}"'
    return KnownCheckpoint(
        name=name,
        title=title,
        loader=loader,
        source=source,
        licence=licence,
        image_size=size,
        file=file,
        preset=preset,
        parameters=parameters,
        instructions=f'Get {file} from {address or source} in a browser, then {loader}("path/to/{file}"{given}).',
    )


def _openai(preset: str, title: str, file: str, parameters: int, size: int) -> KnownCheckpoint:
    """One of guided-diffusion's files, or of improved-diffusion's, whose presets are called iddpm."""
    improved = preset.endswith("iddpm")
    project, folder = ("improved-diffusion", "march-2021") if improved else ("guided-diffusion", "jul-2021")
    return _elsewhere(
        preset,
        title,
        f"https://github.com/openai/{project}",
        file,
        f"{_UNSTATED}; the code beside them is MIT" if improved else _RESEARCH,
        parameters,
        preset,
        address=f"https://openaipublic.blob.core.windows.net/diffusion/{folder}/{file}",
        size=size,
    )


_UNSTATED = "not stated for the weights"
_RESEARCH = "for research only, not for commercial use (model card); the code beside them is MIT"
KNOWN: dict[str, KnownCheckpoint] = {
    checkpoint.name: checkpoint
    for checkpoint in (
        _ddpm("ddpm-celebahq-256", "faces (CelebA-HQ)", 256, 113_673_219),
        _ddpm("ddpm-ema-celebahq-256", "faces (CelebA-HQ), averaged weights", 256, 113_673_219),
        _ddpm("ddpm-cat-256", "cats (LSUN)", 256),
        _ddpm("ddpm-church-256", "churches (LSUN)", 256),
        _ddpm("ddpm-ema-church-256", "churches (LSUN), averaged weights", 256),
        _ddpm("ddpm-bedroom-256", "bedrooms (LSUN)", 256),
        _ddpm("ddpm-ema-bedroom-256", "bedrooms (LSUN), averaged weights", 256),
        _ddpm("ddpm-cifar10-32", "small photographs (CIFAR-10)", 32),
        _openai(
            "imagenet256-uncond",
            "ImageNet, unconditional, 256x256 (Dhariwal & Nichol, 2021)",
            "256x256_diffusion_uncond.pt",
            552_814_086,
            256,
        ),
        _openai(
            "imagenet256-cond",
            "ImageNet, 1,000 classes, 256x256 (Dhariwal & Nichol, 2021)",
            "256x256_diffusion.pt",
            553_838_086,
            256,
        ),
        _openai(
            "imagenet64-cond",
            "ImageNet, 1,000 classes, 64x64 (Dhariwal & Nichol, 2021)",
            "64x64_diffusion.pt",
            295_904_454,
            64,
        ),
        _openai(
            "imagenet128-cond",
            "ImageNet, 1,000 classes, 128x128 (Dhariwal & Nichol, 2021)",
            "128x128_diffusion.pt",
            421_529_606,
            128,
        ),
        _openai(
            "imagenet512-cond",
            "ImageNet, 1,000 classes, 512x512 (Dhariwal & Nichol, 2021)",
            "512x512_diffusion.pt",
            558_997_638,
            512,
        ),
        _openai(
            "lsun-bedroom256", "bedrooms (LSUN), 256x256 (Dhariwal & Nichol, 2021)", "lsun_bedroom.pt", 552_814_086, 256
        ),
        _openai("lsun-cat256", "cats (LSUN), 256x256 (Dhariwal & Nichol, 2021)", "lsun_cat.pt", 552_814_086, 256),
        _openai("lsun-horse256", "horses (LSUN), 256x256 (Dhariwal & Nichol, 2021)", "lsun_horse.pt", 552_814_086, 256),
        _openai(
            "imagenet64-iddpm",
            "ImageNet, unconditional, 64x64 (Nichol & Dhariwal, 2021)",
            "imagenet64_uncond_100M_1500K.pt",
            121_063_942,
            64,
        ),
        _openai(
            "imagenet64-cond-iddpm",
            "ImageNet, 1,000 classes, 64x64 (Nichol & Dhariwal, 2021)",
            "imagenet64_cond_270M_250K.pt",
            273_049_350,
            64,
        ),
        _openai(
            "cifar10-iddpm",
            "small photographs (CIFAR-10), 32x32 (Nichol & Dhariwal, 2021)",
            "cifar10_uncond_50M_500K.pt",
            52_546_438,
            32,
        ),
        _openai(
            "lsun-bedroom256-iddpm",
            "bedrooms (LSUN), 256x256 (Nichol & Dhariwal, 2021)",
            "lsun_uncond_100M_1200K_bs128.pt",
            113_676_678,
            256,
        ),
        _elsewhere(
            "celebahq256-repaint",
            "faces (CelebA-HQ), 256x256 (Lugmayr et al., 2022)",
            "https://github.com/andreas128/RePaint",
            "celeba256_250000.pt",
            f"{_UNSTATED}; the code beside them is CC BY-NC-SA 4.0",
            552_814_086,
            "celebahq256-repaint",
        ),
        _elsewhere(
            "places256-repaint",
            "places, 256x256 (Lugmayr et al., 2022)",
            "https://github.com/andreas128/RePaint",
            "places256_300000.pt",
            f"{_UNSTATED}; the code beside them is CC BY-NC-SA 4.0",
            552_814_086,
            "places256-repaint",
        ),
        _elsewhere(
            "ffhq256",
            "faces (FFHQ), 256x256 (as used by DPS, MCG and DiffPIR)",
            "https://github.com/DPS2022/diffusion-posterior-sampling",
            "ffhq_10m.pt",
            _UNSTATED,
            93_563_910,
            "ffhq256",
        ),
        _elsewhere(
            "celebahq256-ddpm",
            "faces (CelebA-HQ), 256x256, the DDPM network (as used by DDNM)",
            "https://github.com/wyhuai/DDNM",
            "celeba_hq.ckpt",
            f"{_UNSTATED}; the code beside them is MIT",
            113_673_219,
            None,
        ),
    )
}
"""Known public checkpoints by name. Checksums are left out where they were not taken from a file in hand."""


def known_checkpoints() -> list[KnownCheckpoint]:
    """Every known public checkpoint, in the order of `KNOWN`."""
    return list(KNOWN.values())


def download(name: str, *, folder: str | os.PathLike[str] | None = None, quiet: bool = False) -> Path:
    """Fetch a known checkpoint. What is in the cache already is not fetched again, and a broken transfer is resumed.

    The licence is printed on standard error before anything is fetched.

    Args:
        name: one of `known_checkpoints`, or its repository on the hub, such as ``"google/ddpm-cat-256"``.
        folder: where to put it; the hub's cache by default.
        quiet: print nothing.

    Returns:
        The folder (diffusers' format) or file, ready for the loader.

    Raises:
        InvdiffError: an unknown name; one that its authors publish where no program can fetch it (the message says
            where and what to do); the hub out of reach (at once, with where to put the files); a wrong checksum.
    """
    by_repo = {c.repo: c for c in KNOWN.values() if c.repo}
    found = KNOWN.get(name) or by_repo.get(name)
    if found is None:
        raise InvdiffError(
            f"name {name!r} is no known checkpoint; one of {', '.join(KNOWN)}.{near_match(str(name), KNOWN)}"
        )
    if found.repo is None:
        raise InvdiffError(
            f"name {name!r} cannot be fetched by a program. {found.instructions} Licence: {found.licence}."
        )
    if not quiet:
        print(f"{found.title}\n  from {found.source}\n  licence: {found.licence}", file=sys.stderr)
    path = fetch_from_hub(found.repo, folder=folder, file=found.file)
    if found.file is not None and found.sha256 is not None:
        check_sha256(path, found.sha256)
    return path


def fetch_from_hub(repo: str, *, folder: str | os.PathLike[str] | None = None, file: str | None = None) -> Path:
    """A repository in diffusers' format (its configurations and unconditional network), or one file of it.

    The cache is looked at first, so that what is there needs no network.

    Args:
        repo: ``"owner/name"``.
        folder: where to put it; the hub's cache by default.
        file: one file only.

    Raises:
        InvdiffError: not in the cache and the hub out of reach, or no such repository.
    """
    import huggingface_hub

    target = None if folder is None else Path(folder).expanduser()
    if target is None and (cached := _cached(repo, file)) is not None:
        return cached
    where = target or Path("some/folder")
    by_hand = (
        f"Where the network is reachable, get the files of https://huggingface.co/{repo} (config.json or "
        f"model_index.json, and the weights), put them in a folder, and pass it: load_diffusers({str(where)!r})."
    )
    try:
        huggingface_hub.HfApi().model_info(repo, timeout=HUB_TIMEOUT)
    except Exception as error:  # whatever the client's transport raises
        if type(error).__name__ in ("RepositoryNotFoundError", "GatedRepoError", "HFValidationError"):
            raise InvdiffError(
                f"name {repo!r} is no public repository on the hub ({first_line(error)}). {by_hand}"
            ) from error
        raise InvdiffError(
            f"name {repo!r} is not in the cache and the hub is out of reach ({type(error).__name__}). {by_hand}"
        ) from error
    try:
        if file is not None:
            return Path(huggingface_hub.hf_hub_download(repo, file, local_dir=target))
        names = huggingface_hub.HfApi().list_repo_files(repo)
        return Path(huggingface_hub.snapshot_download(repo, local_dir=target, allow_patterns=_wanted(names)))
    except Exception as error:
        raise InvdiffError(
            f"the download of {repo!r} broke off ({type(error).__name__}: {first_line(error)}); call again to resume. "
            f"{by_hand}"
        ) from error


def _wanted(names: list[str]) -> list[str]:
    """Configurations, and the weights of the network in one format, safetensors where it is published."""
    configs = [n for n in names if n.endswith((".json", ".txt")) or n.upper().endswith(("README.MD", "LICENSE"))]
    weights = [
        n for n in names if re.fullmatch(r"(unet/)?diffusion_pytorch_model(-\d{5}-of-\d{5})?\.(safetensors|bin)", n)
    ]
    safe = [n for n in weights if n.endswith(".safetensors")]
    return configs + (safe or weights)


def _cached(repo: str, file: str | None) -> Path | None:
    """The cached copy, if one is complete."""
    import huggingface_hub

    try:
        if file is not None:
            return Path(huggingface_hub.hf_hub_download(repo, file, local_files_only=True))
        found = Path(huggingface_hub.snapshot_download(repo, local_files_only=True))
    except Exception:  # not there, or only in part
        return None
    places = (found / "unet", found)
    try:
        return found if any(folder_weights(place) for place in places) else None
    except InvdiffError:  # an interrupted download
        return None
