"""The pictures of a folder, a zip or a single file: their names, and how each is read."""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from PIL import Image

from invdiff.errors import InvdiffError, InvdiffWarning

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
MOST_BYTES = 2**28
"""Of one picture, unpacked: a zip of some kilobytes may hold gigabytes."""


class Pictures:
    """The pictures of a folder (with its subfolders, links followed), of a zip, or one picture.

    Args:
        source: which.
        argument: what messages call it.

    Attributes:
        sizes: bytes of every picture by its name: the path below the source; sorted. Hidden files are left out.

    Raises:
        InvdiffError: nothing there, or a damaged zip.
    """

    def __init__(self, source: str | Path, argument: str) -> None:
        self.source = Path(source).expanduser()
        self._archive: zipfile.ZipFile | None = None
        if self.source.is_dir():
            found = self._in_folder()
        elif self.source.is_file() and zipfile.is_zipfile(self.source):
            try:
                self._archive = zipfile.ZipFile(self.source)
            except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
                raise InvdiffError(f"{argument}: {self.source} is a damaged zip: {error}") from None
            infos = self._archive.infolist()
            found = {i.filename: i.file_size for i in infos if not i.is_dir() and is_picture(i.filename)}
        elif self.source.is_file() and self.source.suffix.lower() in ENDINGS:
            found = {self.source.name: self.source.stat().st_size}
        else:
            what = "is none of these" if self.source.exists() else "does not exist"
            raise InvdiffError(f"{argument} must be a folder, a .zip or a picture, got {str(source)!r}, which {what}")
        self.sizes = dict(sorted(found.items()))

    def _in_folder(self) -> dict[str, int]:
        files = [Path(root, name) for root, name in _walk(self.source)]
        files = [file for file in files if is_picture(file.relative_to(self.source).as_posix())]
        sizes = {f.relative_to(self.source).as_posix(): f.stat().st_size for f in files if f.is_file()}
        if len(sizes) < len(files):
            text = f"{len(files) - len(sizes)} names in {self.source} are broken links or no ordinary files: skipped"
            warnings.warn(text, InvdiffWarning, stacklevel=5)
        return sizes

    def read(self, name: str) -> bytes:
        """The file of that name.

        Raises:
            ValueError, OSError, zipfile.BadZipFile: it is too large, or cannot be read.
        """
        if self.sizes[name] > MOST_BYTES:
            raise ValueError(f"{self.sizes[name]:,} bytes; a picture has at most {MOST_BYTES:,}")
        if self._archive is not None:
            return self._archive.read(name)
        return (self.source / name if self.source.is_dir() else self.source).read_bytes()


def is_picture(name: str) -> bool:
    """Whether a path below a folder or zip is that of a picture, and not hidden."""
    file = PurePosixPath(name)
    hidden = any(part.startswith((".", "__MACOSX")) for part in file.parts)
    return file.suffix.lower() in ENDINGS and not hidden


def middle(given: tuple[int, int], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The largest middle part of a picture of `given` height and width with the proportions of `size`: left, top, right, bottom."""
    scale = min(given[0] / size[0], given[1] / size[1])
    high, wide = scale * size[0], scale * size[1]
    left, top = (given[1] - wide) / 2, (given[0] - high) / 2
    return left, top, left + wide, top + high


def covered(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The `middle` of a picture, cut out at whole pixels and resized to `size` (height, width; Lanczos, antialiased); the picture
    itself where it has that size. What lies outside does not shine in, as it would with a box given to `resize`."""
    given = (image.height, image.width)
    if given == size:
        return image
    left, top, right, bottom = middle(given, size)
    wide, high = max(1, round(right - left)), max(1, round(bottom - top))
    part = image.crop((int(left), int(top), int(left) + wide, int(top) + high))
    return part.resize((size[1], size[0]), Image.Resampling.LANCZOS)


def _walk(folder: Path) -> Iterator[tuple[str, str]]:
    """(folder, name) of every file below, links followed, but none in a circle."""
    seen: set[tuple[int, int]] = set()
    for root, below, found in os.walk(folder, followlinks=True):
        place = os.stat(root)
        if (place.st_dev, place.st_ino) in seen:
            below.clear()
            continue
        seen.add((place.st_dev, place.st_ino))
        yield from ((root, name) for name in found)
