"""The true images of a run: drawn from the backbone, or read from a folder or zip. Kept in the run folder as 8-bit PNG."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
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
from invdiff.pictures import ENDINGS, Pictures, covered
from invdiff.solve import sample

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
        run.save(truth_file(name), covered(image, (height, width)))


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


def pictures_in(source: str | Path) -> dict[str, Reader]:
    """Readers of the pictures of a folder (with its subfolders), a zip or a single file, by name, sorted.

    A name is the file's path below the source without its ending, in letters that suit a file name.

    Raises:
        InvdiffError: nothing there, or no pictures in it.
    """
    pictures = Pictures(source, "images")
    if not pictures.sizes:
        raise InvdiffError(f"images: {str(source)!r} holds no pictures ({', '.join(ENDINGS)})")
    found: dict[str, Reader] = {}
    for name in pictures.sizes:
        key = slug(str(Path(name).with_suffix("")).replace("/", "-"))
        if key in found:  # a.png beside a.jpg
            key = slug(name.replace("/", "-"))
        found[key] = partial(_read, pictures, name)
    return found


def _read(pictures: Pictures, name: str) -> Image.Image:
    try:
        return open_image(Image.open(io.BytesIO(pictures.read(name))), f"{pictures.source.name}/{name}")
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, InvdiffError):
            raise
        raise InvdiffError(f"images: {name!r} in {pictures.source.name} cannot be read: {error}") from None


def _chosen(suite: Suite) -> dict[str, Reader]:
    found = pictures_in(suite.images)
    if suite.n_images > len(found):
        raise InvdiffError(
            f"n_images must be at most {len(found)}, the pictures in {suite.images!r}, got {suite.n_images}"
        )
    kept = list(found)[: suite.n_images or None]
    return {name: found[name] for name in kept}
