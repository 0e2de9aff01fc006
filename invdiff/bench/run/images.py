"""The true images of a run: drawn from the backbone, or read from a folder or zip. Kept in the run folder as 8-bit PNG."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor

from invdiff.backbones.base import Backbone
from invdiff.bench.run.store import Run, truth_file
from invdiff.bench.suite.suite import PRIOR, Suite
from invdiff.errors import InvdiffError
from invdiff.files import slug
from invdiff.images import from_pil, open_image, to_pil
from invdiff.noise import positive_seed_of
from invdiff.solve import sample

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

Reader = Callable[[], Image.Image]


def image_names(suite: Suite) -> list[str]:
    """Names of the suite's true images, in order: ``prior-000``, ... or those of the files, sorted.

    Raises:
        InvdiffError: the folder or zip does not exist, or holds no pictures or too few.
    """
    if not suite.uses_images:
        return []
    if suite.images == PRIOR:
        return [f"prior-{i:03d}" for i in range(suite.n_images)]
    return list(_chosen(suite))


def prepare_images(run: Run, suite: Suite, names: Sequence[str], backbone: Backbone) -> None:
    """Write the true images that the run folder does not hold yet.

    Pictures are cropped in the middle to the backbone's proportions and resized to its size.

    Raises:
        InvdiffError: a picture that cannot be read, or colour where the backbone is grey.
    """
    missing = [name for name in names if not (run.folder / truth_file(name)).is_file()]
    if not missing:
        return
    if suite.images == PRIOR:
        seed = drawing_seed(suite.image_seed)
        drawn = sample(backbone, len(names), steps=suite.image_steps, seed=seed, progress=False).x
        for name, x in zip(names, drawn, strict=True):
            run.save(truth_file(name), to_pil(x))
        return
    channels, height, width = backbone.image_shape
    readers = _chosen(suite)
    for name in missing:
        image = ImageOps.exif_transpose(readers[name]()).convert("RGB" if channels == 3 else "L")
        run.save(truth_file(name), fitted(image, (height, width)))


def drawing_seed(image_seed: int) -> int:
    """The seed that true images are drawn with: one that no restoration has.

    A restoration that started from the very noise of its truth would retrace it, whatever the measurement says.
    """
    return positive_seed_of("invdiff/true images", image_seed)


def drawn_from_prior(backbone: Any, n: int, image_seed: int) -> Tensor:
    """x of a task that measures a known prior, (n, C, H, W), exact draws in the prior's own range; the first ones do not depend
    on n."""
    seeds = [positive_seed_of("invdiff/draws of the prior", backbone.name, image_seed, i) for i in range(n)]
    return torch.cat([backbone.prior_sample(1, seed=seed) for seed in seeds])


def read_truths(run: Run, names: Sequence[str]) -> Tensor:
    """The true images, (N, C, H, W) float32 in [0, 1], as the run folder holds them; (0,) where the suite uses none."""
    if not names:
        return torch.empty(0)
    return torch.stack([from_pil(picture(run, truth_file(name))) for name in names])


def picture(run: Run, file: str) -> Image.Image:
    """A picture of the run folder.

    Raises:
        InvdiffError: it is missing or damaged.
    """
    return open_image(run.folder / file, "picture of the run")


def fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The largest middle part of the proportions of `size` (height, width), resized to it (Lanczos, antialiased)."""
    height, width = size
    scale = min(image.width / width, image.height / height)
    crop_width, crop_height = scale * width, scale * height
    left, top = (image.width - crop_width) / 2, (image.height - crop_height) / 2
    if (image.height, image.width) == (height, width):
        return image
    edges = (left, top, left + crop_width, top + crop_height)
    return image.resize((width, height), Image.Resampling.LANCZOS, box=edges, reducing_gap=None)


def pictures_in(source: str | Path) -> dict[str, Reader]:
    """Readers of the pictures of a folder (with its subfolders), a zip or a single file, by name, sorted.

    A name is the file's path below the source without its ending, in letters that suit a file name.

    Raises:
        InvdiffError: nothing there, or no pictures in it.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if _is_picture(p.relative_to(path).as_posix()) and p.is_file())
        found = _named((p.relative_to(path).as_posix(), _opener(p)) for p in files)
    elif path.suffix.lower() == ".zip" and path.is_file():
        try:
            with zipfile.ZipFile(path) as archive:
                members = sorted(name for name in archive.namelist() if _is_picture(name))
        except zipfile.BadZipFile:
            raise InvdiffError(f"images: {str(source)!r} is a damaged zip") from None
        found = _named((name, _unzipper(path, name)) for name in members)
    elif path.is_file():
        found = _named([(path.name, _opener(path))])
    else:
        raise InvdiffError(
            f"images: {str(source)!r} does not exist; a folder, a zip or a picture is expected, or 'prior'"
        )
    if not found:
        raise InvdiffError(f"images: {str(source)!r} holds no pictures ({', '.join(ENDINGS)})")
    return found


def _chosen(suite: Suite) -> dict[str, Reader]:
    found = pictures_in(suite.images)
    if suite.n_images > len(found):
        raise InvdiffError(f"n_images is {suite.n_images}, but {suite.images!r} holds {len(found)} pictures")
    kept = list(found)[: suite.n_images or None]
    return {name: found[name] for name in kept}


def _is_picture(name: str) -> bool:
    parts = name.split("/")
    return Path(name).suffix.lower() in ENDINGS and not any(p.startswith((".", "__MACOSX")) for p in parts)


def _named(files: Iterable[tuple[str, Reader]]) -> dict[str, Reader]:
    found: dict[str, Reader] = {}
    for name, reader in files:
        key = slug(str(Path(name).with_suffix("")).replace("/", "-"))
        if key in found:  # a.png beside a.jpg
            key = slug(name.replace("/", "-"))
        found[key] = reader
    return found


def _opener(path: Path) -> Reader:
    return lambda: open_image(path)


def _unzipper(path: Path, name: str) -> Reader:
    def read() -> Image.Image:
        with zipfile.ZipFile(path) as archive:
            data = archive.read(name)
        try:
            return open_image(Image.open(io.BytesIO(data)), f"{path.name}/{name}")
        except OSError as error:
            raise InvdiffError(f"images: {name!r} in {path.name} cannot be read: {error}") from None

    return read
