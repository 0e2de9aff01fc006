"""Checkpoint files: read without running them, recognised when broken, and where the known ones are published."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invdiff.errors import InvdiffError, near_match

StateDict = dict[str, Tensor]

AVERAGED = ("ema_state_dict", "model_ema", "params_ema", "ema")
WEIGHTS = ("state_dict", "model_state_dict", "model", "params", "net", "network", "unet")
_ORDINARY = ("collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter")
LAYOUTS = "a .safetensors file, or a .pt/.pth/.ckpt/.bin file of torch.save that holds tensors only"
HUB_TIMEOUT = 5.0
"""Seconds to wait for the hub before a name is declared out of reach."""


# ---- reading ------------------------------------------------------------------------------------------------


def read_state_dict(path: str | os.PathLike[str], *, sha256: str | None = None) -> StateDict:
    """The tensors of a checkpoint by name, on the CPU, in the file's own precision. No code in the file is ever run.

    The format is recognised by the content, not by the name. Wrappers are taken off: a dictionary or list that holds
    the weights beside an optimizer, and the prefix ``module.`` of a data-parallel run. Where a file holds the same
    weights twice, raw and averaged over the training, the averaged ones are taken: a model samples with those.

    Args:
        path: a safetensors file or what `torch.save` writes (zip or legacy).
        sha256: checksum of the file in hexadecimal; compared first when given.

    Returns:
        name -> tensor. Those of zip and safetensors files are mapped from the disk, so copy before the file goes.

    Raises:
        InvdiffError: no such file, a folder, an empty, truncated or text file, a pickle that holds code, no weights in
            it, or another checksum.
    """
    if not isinstance(path, str | os.PathLike):
        raise InvdiffError(
            f"path must be the path of a checkpoint file, got {type(path).__name__}; accepted: {LAYOUTS}"
        )
    file = Path(path).expanduser()
    if file.is_dir():
        raise InvdiffError(
            f"path {file} is a folder, expected {LAYOUTS}; folders in diffusers' format go to load_diffusers"
        )
    if not file.is_file():
        raise InvdiffError(f"path {file} does not exist{_neighbours(file)}; expected {LAYOUTS}")
    if sha256 is not None:
        check_sha256(file, sha256)
    with file.open("rb") as stream:
        head = stream.read(512)
    if not head:
        raise InvdiffError(f"path {file} is an empty file, expected {LAYOUTS}; was its download cut off?")
    if _is_text(head):
        raise InvdiffError(f"path {file} is {_kind_of_text(head)}, expected {LAYOUTS}")
    if head[8:9] == b"{":
        content: Any = _read_safetensors(file)
    else:
        content = _read_torch(file, head)
    return _bare(_weights(content, file))


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file in hexadecimal, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def check_sha256(path: str | os.PathLike[str], expected: str) -> None:
    """Compare the checksum of a file.

    Raises:
        InvdiffError: it is another one; the message has both.
    """
    found = sha256_of(path)
    if found != expected.strip().lower():
        raise InvdiffError(
            f"sha256 of {path} is {found}, expected {expected}: the file is damaged or another one; get it again"
        )


def _neighbours(file: Path) -> str:
    """``": the folder holds a.pt, b.pt"`` for a file that isn't there, so that a typing error is seen at once."""
    if not file.parent.is_dir():
        return f": there is no folder {file.parent}"
    suffixes = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
    names = sorted(f.name for f in file.parent.iterdir() if f.suffix in suffixes)
    if not names:
        return ""
    return f".{near_match(file.name, names)} The folder holds {', '.join(names[:5])}"


def _is_text(head: bytes) -> bool:
    try:
        text = head[: len(head) // 4 * 4 or len(head)].decode("utf-8", errors="strict")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # not merely a character cut in two
            return False
        text = head[: error.start].decode("utf-8")
    return all(c.isprintable() or c in "\r\n\t\f" for c in text)


def _kind_of_text(head: bytes) -> str:
    text = head.decode("utf-8", errors="replace").strip()
    if text.startswith("version https://git-lfs"):
        return "a pointer that git-lfs left in place of the real file (run `git lfs pull`, or download the file itself)"
    if text[:15].lower().startswith(("<!doctype", "<html", "<?xml", "<head")):
        return "a web page (the download gave a page instead of the file; open the address in a browser)"
    line = text.splitlines()[0][:40] if text else ""
    return f"a text file that starts with {line!r}"


def _read_safetensors(file: Path) -> StateDict:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, ValueError, OSError) as error:
        raise InvdiffError(f"path {file} is a damaged or truncated safetensors file ({error}); get it again") from error


def _read_torch(file: Path, head: bytes) -> Any:
    zipped = zipfile.is_zipfile(file)
    if head.startswith(b"PK\x03\x04") and not zipped:
        size = file.stat().st_size
        raise InvdiffError(
            f"path {file} is truncated: its table of contents, at the end, is missing ({size:,} bytes are there); "
            "get it again"
        )
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|function|class) ([\w.]+)", str(error))
        if found and not any(name.startswith(found[1]) for name in _ORDINARY):  # else: a name cut in two
            raise InvdiffError(
                f"path {file} is a pickle that holds code or objects besides tensors ({found[1]}): refused, because "
                f"reading it would run it. Accepted is {LAYOUTS}. If you trust the file, open it in the project that "
                "made it and save model.state_dict() again."
            ) from None
        raise InvdiffError(
            f"path {file} is no checkpoint, or a damaged one ({_first_line(error)}); accepted is {LAYOUTS}"
        ) from error
    except Exception as error:  # what a broken file raises depends on where it is broken
        reason = f"{type(error).__name__}: {_first_line(error)}"
        raise InvdiffError(
            f"path {file} is damaged, truncated or no checkpoint ({reason}); accepted is {LAYOUTS}"
        ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else "no message"


def _is_state_dict(content: Any) -> bool:
    if not isinstance(content, Mapping) or not all(isinstance(k, str) for k in content):
        return False
    kinds = [isinstance(v, Tensor) for v in content.values()]
    scalars = [isinstance(v, int | float | str | bool | type(None)) for v in content.values()]
    return any(kinds) and all(k or s for k, s in zip(kinds, scalars, strict=True))


def _weights(content: Any, file: Path) -> StateDict:
    """The state dict inside the wrappers of training scripts."""
    if _is_state_dict(content):
        return {k: v for k, v in content.items() if isinstance(v, Tensor)}
    if isinstance(content, Mapping):
        for key in (*AVERAGED, *WEIGHTS):
            if isinstance(content.get(key), Mapping | list | tuple) and content[key]:
                return _weights(content[key], file)
        held = ", ".join(repr(k) for k in list(content)[:8]) or "nothing"
        raise InvdiffError(
            f"path {file} holds no weights: its entries are {held}; looked for {', '.join((*AVERAGED, *WEIGHTS))}"
        )
    if isinstance(content, list | tuple):
        found = [_weights(c, file) for c in content if _is_state_dict(c)]
        if found:  # [model, optimizer, epoch, step, averaged model]: the last set with the names of the first
            names = _bare(found[0]).keys()
            return [c for c in found if _bare(c).keys() == names][-1]
    raise InvdiffError(f"path {file} holds a {type(content).__name__} and no weights; accepted is {LAYOUTS}")


def _bare(state: StateDict) -> StateDict:
    """Without the prefixes of data-parallel and compiled modules."""
    for prefix in ("module.", "_orig_mod."):
        if state and all(k.startswith(prefix) for k in state):
            return _bare({k[len(prefix) :]: v for k, v in state.items()})
    return state


# ---- what is published where --------------------------------------------------------------------------------


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
) -> KnownCheckpoint:
    loader = "load_ddpm" if preset is None else "load_guided_diffusion"
    size = 256
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


_UNSTATED = "not stated for the weights"
_RESEARCH = "for research only, not for commercial use (model card); the code beside them is MIT"
_OPENAI = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021"
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
        _elsewhere(
            "imagenet256-uncond",
            "ImageNet, unconditional, 256x256 (Dhariwal & Nichol, 2021)",
            "https://github.com/openai/guided-diffusion",
            "256x256_diffusion_uncond.pt",
            _RESEARCH,
            552_814_086,
            "imagenet256-uncond",
            address=f"{_OPENAI}/256x256_diffusion_uncond.pt",
        ),
        _elsewhere(
            "imagenet256-cond",
            "ImageNet, 1,000 classes, 256x256 (Dhariwal & Nichol, 2021)",
            "https://github.com/openai/guided-diffusion",
            "256x256_diffusion.pt",
            _RESEARCH,
            553_838_086,
            "imagenet256-cond",
            address=f"{_OPENAI}/256x256_diffusion.pt",
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
                f"name {repo!r} is no public repository on the hub ({_first_line(error)}). {by_hand}"
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
            f"the download of {repo!r} broke off ({type(error).__name__}: {_first_line(error)}); call again to resume. "
            f"{by_hand}"
        ) from error


def _wanted(names: list[str]) -> list[str]:
    """Configurations, and the weights of the network in one format, safetensors where it is published."""
    configs = [n for n in names if n.endswith((".json", ".txt")) or n.upper().endswith(("README.MD", "LICENSE"))]
    weights = [n for n in names if re.fullmatch(r"(unet/)?diffusion_pytorch_model\.(safetensors|bin)", n)]
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
    return found if weights_file(found) is not None else None


def weights_file(folder: Path) -> Path | None:
    """The network's weights in a folder in diffusers' format, or in its ``unet``; safetensors first."""
    for place in (folder / "unet", folder):
        for suffix in ("safetensors", "bin"):
            for variant in ("", ".fp16"):
                if (file := place / f"diffusion_pytorch_model{variant}.{suffix}").is_file():
                    return file
    return None
