"""Checkpoint files: read without running them, and recognised when broken, before memory is taken."""

from __future__ import annotations

import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from invdiff.checks import shown
from invdiff.errors import InvdiffError, near_match
from invdiff.files import check_sha256, read_json

StateDict = dict[str, Tensor]

AVERAGED = ("ema_state_dict", "model_ema", "params_ema", "ema")
WEIGHTS = ("state_dict", "model_state_dict", "model", "params", "net", "network", "unet")
_ORDINARY = ("collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter")
LAYOUTS = "a .safetensors file, or a .pt/.pth/.ckpt/.bin file of torch.save that holds tensors only"
_V = TypeVar("_V")
_PREFIXES = (
    "module.",
    "_orig_mod.",
    "model.",
    "net.",
    "network.",
    "unet.",
    "diffusion_model.",
    "denoiser.",
    "denoise_fn.",
)
_DIFFUSION = "model.diffusion_model."
_SLACK = 1 << 20


def read_state_dict(path: str | os.PathLike[str], *, sha256: str | None = None) -> StateDict:
    """The tensors of a checkpoint by name, on the CPU, in the file's own precision. No code in the file is ever run.

    The format is recognised by the content, not by the name. Wrappers are taken off: a dictionary or list that holds
    the weights beside an optimizer, and the prefixes of data-parallel runs, of Lightning modules and of LDM's. Where a file
    holds the same weights twice, raw and averaged over the training, the averaged ones are taken: a model samples with those.

    Args:
        path: a safetensors file or what `torch.save` writes (zip or legacy).
        sha256: checksum of the file in hexadecimal; compared first when given.

    Returns:
        name -> tensor. Those of zip and safetensors files are mapped from the disk, so copy before the file goes.

    Raises:
        InvdiffError: no such file, a folder, an empty, truncated or text file, a pickle that holds code, a file that unpacks
            to more than it is, no weights in it, or another checksum.
    """
    file, head = _opened(path)
    if sha256 is not None:
        check_sha256(file, sha256)
    return bare(_weights(_read_safetensors(file) if _is_safetensors(head) else _read_torch(file, head), file))


def shapes_in(path: str | os.PathLike[str]) -> Mapping[str, tuple[int, ...]]:
    """Names and shapes of the tensors that `read_state_dict` would give; of a safetensors file only the head is read.

    Raises:
        InvdiffError: as `read_state_dict`.
    """
    file, _ = _opened(path)
    stat = file.stat()
    return _shapes(file.resolve(), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4)
def _shapes(file: Path, size: int, changed: int) -> Mapping[str, tuple[int, ...]]:
    """Kept for a few files, since every format asks for them; `size` and `changed` tell a new file of the same name."""
    _, head = _opened(file)
    if not _is_safetensors(head):
        return {name: tuple(t.shape) for name, t in bare(_weights(_read_torch(file, head), file)).items()}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), "pt") as content:
            return bare({name: tuple(content.get_slice(name).get_shape()) for name in content.keys()})  # noqa: SIM118
    except (SafetensorError, ValueError, OSError) as error:
        raise _damaged_safetensors(file, error) from error


def metadata(path: str | os.PathLike[str]) -> Mapping[str, str]:
    """What a safetensors file says about itself; empty for any other file."""
    file, head = _opened(path)
    if not _is_safetensors(head):
        return {}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), "pt") as content:
            return dict(content.metadata() or {})
    except (SafetensorError, ValueError, OSError) as error:
        raise _damaged_safetensors(file, error) from error


def folder_weights(folder: Path) -> list[Path]:
    """The files of a network's weights in a folder in diffusers' format, one or its shards; safetensors first.

    Raises:
        InvdiffError: an index that cannot be read, or that names files which are not there (half a download).
    """
    for name in ("diffusion_pytorch_model", "model"):
        for suffix in ("safetensors", "bin"):
            for variant in ("", ".fp16"):
                if (file := folder / f"{name}{variant}.{suffix}").is_file():
                    return [file]
                if (index := folder / f"{name}.{suffix}.index{variant}.json").is_file():
                    return _shards(index)
    return []


def _shards(index: Path) -> list[Path]:
    listed = read_json(index).get("weight_map")
    names = sorted({str(name) for name in listed.values()}) if isinstance(listed, dict) else []
    if not names or any(Path(name).name != name for name in names):
        raise InvdiffError(
            f"path {index} must name the files beside it in a dictionary weight_map, got {shown(listed)}"
        )
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise InvdiffError(
            f"path {index.parent} lacks {len(missing)} of the {len(names)} files of its weights, the first {missing[0]}: "
            "was its download cut off? Get it again"
        )
    return [index.parent / name for name in names]


def _opened(path: str | os.PathLike[str]) -> tuple[Path, bytes]:
    """The file and its first bytes, if it can be a checkpoint at all."""
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
    with file.open("rb") as stream:
        head = stream.read(512)
    if not head:
        raise InvdiffError(f"path {file} is an empty file, expected {LAYOUTS}; was its download cut off?")
    if _is_text(head):
        raise InvdiffError(f"path {file} is {_kind_of_text(head)}, expected {LAYOUTS}")
    return file, head


def _is_safetensors(head: bytes) -> bool:
    return head[8:9] == b"{"


def _damaged_safetensors(file: Path, error: Exception) -> InvdiffError:
    return InvdiffError(f"path {file} is a damaged or truncated safetensors file ({error}); get it again")


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
        raise _damaged_safetensors(file, error) from error


def _read_torch(file: Path, head: bytes) -> Any:
    zipped = zipfile.is_zipfile(file)
    if head.startswith(b"PK\x03\x04") and not zipped:
        size = file.stat().st_size
        raise InvdiffError(
            f"path {file} is truncated: its table of contents, at the end, is missing ({size:,} bytes are there); "
            "get it again"
        )
    if zipped:
        _check_unpacked(file)
    try:
        with (
            warnings.catch_warnings()
        ):  # of pickle protocols that torch.save doesn't write: the message below says more
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
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
            f"path {file} is no checkpoint, or a damaged one ({first_line(error)}); accepted is {LAYOUTS}"
        ) from error
    except Exception as error:  # what a broken file raises depends on where it is broken
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InvdiffError(
            f"path {file} is damaged, truncated or no checkpoint ({reason}); accepted is {LAYOUTS}"
        ) from error


def _check_unpacked(file: Path) -> None:
    """Refuse a zip whose members are larger than the file: torch.save stores them as they are, a bomb does not."""
    try:
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise InvdiffError(
            f"path {file} is damaged, truncated or no checkpoint ({first_line(error)}); accepted is {LAYOUTS}"
        ) from error
    size = file.stat().st_size
    if unpacked > size + _SLACK:
        raise InvdiffError(
            f"path {file} is a compressed archive of {size:,} bytes that unpacks to {unpacked:,}: refused; torch.save "
            "compresses nothing. If you trust it, unpack it and save its tensors again."
        )


def first_line(error: Exception) -> str:
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
        return _not_larger({k: v for k, v in content.items() if isinstance(v, Tensor)}, file)
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
            names = bare(found[0]).keys()
            return [c for c in found if bare(c).keys() == names][-1]
    raise InvdiffError(f"path {file} holds a {type(content).__name__} and no weights; accepted is {LAYOUTS}")


def _not_larger(state: StateDict, file: Path) -> StateDict:
    """Refuse views that claim more memory than the file could fill, such as one number seen as a huge matrix."""
    claimed = sum(t.numel() * t.element_size() for t in state.values())
    size = file.stat().st_size
    if claimed > 16 * size + _SLACK:
        raise InvdiffError(
            f"path {file} of {size:,} bytes claims tensors of {claimed:,} bytes: refused, no checkpoint repeats itself so often"
        )
    return state


def bare(state: Mapping[str, _V]) -> dict[str, _V]:
    """Without what training scripts put around a network's names: prefixes, and the weights of other things beside.

    - ``module.``, ``_orig_mod.`` (data-parallel and compiled modules), ``net.``, ``model.``, ... (Lightning modules), where
      all names have them;
    - ``ema_model.`` beside ``online_model.`` (ema_pytorch): the averaged network;
    - ``model.diffusion_model.`` (LDM): the averaged weights under ``model_ema.``, where there are any.
    """
    state = dict(state)
    if any(k.startswith("ema_model.") for k in state):
        return bare(_under("ema_model.", state))
    if any(k.startswith(_DIFFUSION) for k in state):
        if latent := [k for k in state if k.startswith(("first_stage_model.", "cond_stage_model."))]:
            raise InvdiffError(
                f"a latent or conditioned diffusion model is not supported, it has {latent[0]}: its network sees no pixels"
            )
        raw = _under(_DIFFUSION, state)
        averaged = {k: f"model_ema.diffusion_model{k.replace('.', '')}" for k in raw}
        return bare({k: state.get(averaged[k], v) for k, v in raw.items()})
    for prefix in _PREFIXES:
        if state and all(k.startswith(prefix) for k in state):
            return bare(_under(prefix, state))
    return state


def _under(prefix: str, state: Mapping[str, _V]) -> dict[str, _V]:
    return {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
