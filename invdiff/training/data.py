"""A folder or zip of pictures as one array."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from invdiff.checks import whole
from invdiff.errors import InvdiffError, InvdiffWarning
from invdiff.pictures import ENDINGS, Pictures, covered

DEEP = ("I", "I;16", "I;16B", "I;16L", "F")


def load_images(
    path: str | Path,
    size: int,
    *,
    split: str | None = None,
    exclude: Sequence[str] = (),
    limit: int | None = None,
    cache: str | Path | None = None,
) -> tuple[Tensor, list[str]]:
    """Decode the images of a folder (with all its subfolders) or of a zip file.

    Grey images become RGB. Images of another size are cropped to a centred square and resized; a warning says once how many.
    Broken images are named in a warning and skipped.

    Args:
        path: folder or ``.zip``.
        size: height and width of the result, in pixels.
        split: ``"train"`` or ``"val"``: only what lies under a folder of that name. Where there is no such ``train``
            folder, everything outside ``val`` is training.
        exclude: names or patterns of files or folders to leave out, such as ``"train_grey"`` or ``"*_mask.png"``.
        limit: the first so many, in the order of their names.
        cache: keep the decoded array in this file and map it, instead of holding it in memory. It is used again as long as
            the images are the same.

    Returns:
        Images, uint8 (N, 3, size, size), and their names inside the folder or zip, sorted.

    Raises:
        InvdiffError: no such folder or zip, no image in it, or none that can be read.
    """
    size = whole("size", size, 1, 4096)
    pictures = Pictures(path, "data")
    chosen = [n for n in pictures.sizes if not _excluded(n, exclude)]
    chosen = (chosen if split is None else _of_split(chosen, split))[:limit]
    if not chosen:
        where = f"{pictures.source}/{split}" if split else str(pictures.source)
        left_out = f", leaving out {', '.join(exclude)}" if exclude else ""
        raise InvdiffError(f"no image in {where}{left_out}; looked for {', '.join(ENDINGS)} in all subfolders")
    if cache is None:
        images = np.empty((len(chosen), 3, size, size), np.uint8)
        names = _decode_all(pictures, chosen, images)
        return torch.from_numpy(images[: len(names)]), names
    listing = [(n, pictures.sizes[n]) for n in chosen]
    return _cached(Path(cache), listing, size, lambda out: _decode_all(pictures, chosen, out))


def load_photos(
    path: str | Path, *, split: str | None = None, exclude: Sequence[str] = ()
) -> tuple[list[Tensor], list[str]]:
    """Decode the images of a folder or zip file at their own sizes.

    Args:
        path, split, exclude: see `load_images`.

    Returns:
        Images, uint8 (3, H, W) each, and their names inside the folder or zip, sorted.

    Raises:
        InvdiffError: no such folder or zip, or no image in it that can be read.
    """
    pictures = Pictures(path, "data")
    source = pictures.source
    photos: list[Tensor] = []
    good: list[str] = []
    broken: list[str] = []
    names = [n for n in pictures.sizes if not _excluded(n, exclude)]
    for name in names if split is None else _of_split(names, split):
        try:
            pixels = np.array(_upright(pictures.read(name)))
        except Exception as error:  # decoders raise anything, from OSError to struct.error
            broken.append(f"{name} ({type(error).__name__}: {error})")
            continue
        photos.append(torch.from_numpy(pixels).permute(2, 0, 1).contiguous())
        good.append(name)
    if not photos:
        said = f"; not readable: {', '.join(broken[:5])}" if broken else ""
        raise InvdiffError(f"no image in {source}{f'/{split}' if split else ''}{said}")
    if broken:
        warnings.warn(
            f"skipped {len(broken)} images of {source}: {', '.join(broken[:5])}", InvdiffWarning, stacklevel=3
        )
    return photos, good


def load_splits(
    path: str | Path,
    size: int,
    *,
    exclude: Sequence[str] = (),
    holdout: float = 0.02,
    seed: int = 0,
    cache: str | Path | None = None,
) -> tuple[Tensor, Tensor]:
    """Training and held-out images of a folder or zip, uint8 (N, 3, size, size) each.

    Args:
        path, size, exclude: see `load_images`.
        holdout: fraction held out where there is no ``val`` folder; at least one image.
        seed: of the choice which.
        cache: folder for the decoded arrays; in memory by default.

    Raises:
        InvdiffError: as `load_images`; or a single image where some must be held out.
    """
    folder = None if cache is None else Path(cache)
    file = {split: None if folder is None else folder / f"images-{split}-{size}.npy" for split in ("train", "val")}
    train, _ = load_images(path, size, split="train", exclude=exclude, cache=file["train"])
    if has_split(path, "val", exclude=exclude):
        return train, load_images(path, size, split="val", exclude=exclude, cache=file["val"])[0]
    if len(train) < 2:
        raise InvdiffError(f"{path} holds a single image: one to train on and one to hold out are needed at least")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    held = max(1, round(holdout * len(train)))
    return train[order[held:].sort().values], train[order[:held].sort().values]


def has_split(path: str | Path, split: str, *, exclude: Sequence[str] = ()) -> bool:
    """Whether a folder or zip holds images under a folder of that name."""
    return any(_under(n, split) and not _excluded(n, exclude) for n in Pictures(path, "data").sizes)


def _excluded(name: str, patterns: Sequence[str]) -> bool:
    parts = PurePosixPath(name).parts
    return any(fnmatch.fnmatch(name, p) or any(fnmatch.fnmatch(part, p) for part in parts) for p in patterns)


def _under(name: str, folder: str) -> bool:
    return folder in PurePosixPath(name).parts[:-1]


def _of_split(names: Sequence[str], split: str) -> list[str]:
    under = [n for n in names if _under(n, split)]
    if split == "train" and not under:
        return [n for n in names if not _under(n, "val")]
    return under


def _upright(content: bytes) -> Image.Image:
    """A picture of 8 bits, RGB, turned as its camera noted."""
    with Image.open(BytesIO(content)) as image:
        if image.mode in DEEP:
            raise ValueError(f"mode {image.mode} has more than 8 bits; convert it first")
        return ImageOps.exif_transpose(image).convert("RGB")


def _decode(content: bytes, size: int) -> tuple[np.ndarray, bool]:
    """(3, size, size) uint8, and whether it had to be cropped or resized."""
    upright = _upright(content)
    fits = upright.size == (size, size)
    return np.asarray(covered(upright, (size, size))).transpose(2, 0, 1), not fits


def _decode_all(pictures: Pictures, names: Sequence[str], out: np.ndarray) -> list[str]:
    """Fill `out` from the front; the names of those that could be read."""
    source, size, resized = pictures.source, out.shape[-1], 0
    good: list[str] = []
    broken: list[str] = []

    def decode(name: str) -> tuple[np.ndarray, bool] | str:
        try:
            return _decode(pictures.read(name), size)
        except Exception as error:  # decoders raise anything, from OSError to struct.error
            return f"{type(error).__name__}: {error}"

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results: Iterator[tuple[np.ndarray, bool] | str] = pool.map(decode, names)
        for name, result in zip(names, results, strict=True):
            if isinstance(result, str):
                broken.append(f"{name} ({result})")
            else:
                out[len(good)] = result[0]
                resized += result[1]
                good.append(name)
    if broken:
        shown = "\n  ".join(broken[:20]) + (f"\n  and {len(broken) - 20} more" if len(broken) > 20 else "")
        message = f"{len(broken)} of {len(names)} images in {source} cannot be read:\n  {shown}"
        if not good:
            raise InvdiffError(message)
        warnings.warn(f"skipped: {message}", InvdiffWarning, stacklevel=4)
    if resized:
        text = (
            f"{resized} of {len(good)} images in {source} were cropped to a centred square and resized to {size}x{size}"
        )
        warnings.warn(text, InvdiffWarning, stacklevel=4)
    return good


def _cached(
    file: Path, listing: list[tuple[str, int]], size: int, decode: Callable[[np.ndarray], list[str]]
) -> tuple[Tensor, list[str]]:
    """The array of `file` if it was made of this listing, else decoded into it; mapped either way."""
    key = hashlib.sha256(json.dumps([size, listing]).encode()).hexdigest()
    index = file.with_suffix(".json")
    try:
        known = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    if known.get("key") != key or not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
        array = np.lib.format.open_memmap(temporary, "w+", np.uint8, (len(listing), 3, size, size))
        known = {"key": key, "names": decode(array)}
        array.flush()
        index.unlink(missing_ok=True)
        os.replace(temporary, file)
        index.write_text(json.dumps(known), encoding="utf-8")
    # copy on write: torch wants writable memory, the file stays as it is
    return torch.from_numpy(np.load(file, mmap_mode="c")[: len(known["names"])]), known["names"]
