"""What `solve` returns."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from invdiff.blending import poisson_blend
from invdiff.errors import InvdiffError
from invdiff.files import atomic_write, check_writable
from invdiff.images import Affine, can_be_written, to_pil
from invdiff.photos import Photo

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Frame:
    """One move along the path, kept by ``keep_trajectory``: the state reached and the clean estimate, model range."""

    t: int
    s: int
    x: Tensor
    x0: Tensor


@dataclass(frozen=True, eq=False)
class Solution:
    """A restoration and how it was made.

    Attributes:
        x: (N, C, H, W) float tensor on the CPU, unclamped, in `value_range`. With several samples per measurement
            N = B * n_samples, image by image.
        nfe: network calls per restoration; of particles, those of all divided by the restorations drawn from them.
        vjps: vector-Jacobian products of the network per restoration.
        seconds: wall-clock time of the run.
        timesteps: the network's own time of every call.
        settings: everything needed to run it again: sampler and its fields, backbone, operator, seed, ...
        trajectory: `Frame`s, where ``keep_trajectory`` was asked for.
        y: the measurement as a picture, (B, C, H, W) in `value_range`: itself where it has that shape, else A^+ y.
        n_samples: samples per measurement.
        value_range: black and white of `x`.
        photos: what each measurement was read from, where it was a file or a picture: `images` and `save` follow it (grey
            stays grey; transparency, EXIF data and colour profile are kept; 16 bits stay 16 in .png and .tif).
        diagnostics: what a sampler tells of its run; of particles, see `ParticleSampler.run`.
        known: bool, (1 or B, C, H, W), which pixels `y` holds where others are missing (a `Mask`); else None.
    """

    x: Tensor
    nfe: int
    seconds: float
    timesteps: list[int]
    settings: dict[str, Any]
    y: Tensor
    n_samples: int = 1
    value_range: tuple[float, float] = (0.0, 1.0)
    trajectory: list[Frame] = field(default_factory=list, repr=False)
    vjps: int = 0
    photos: tuple[Photo | None, ...] = ()
    diagnostics: dict[str, Tensor] = field(default_factory=dict, repr=False)
    known: Tensor | None = field(default=None, repr=False)

    @property
    def samples(self) -> Tensor:
        """`x` as (B, n_samples, C, H, W)."""
        return self.x.reshape(-1, self.n_samples, *self.x.shape[1:])

    @property
    def mean(self) -> Tensor:
        """Mean over the samples of each measurement, (B, C, H, W)."""
        return self.samples.mean(1)

    @property
    def std(self) -> Tensor:
        """Standard deviation over the samples, (B, C, H, W): where the answer is uncertain. Needs two samples or more."""
        if self.n_samples < 2:
            raise InvdiffError(
                f"n_samples must be at least 2 for a standard deviation, got {self.n_samples}; solve(..., n_samples=8)"
            )
        return self.samples.std(1)

    @property
    def images(self) -> list[Image.Image]:
        """Every restoration as an 8-bit PIL image, dressed as the photo that was given."""
        return [self._image(i) for i in range(len(self.x))]

    @property
    def image(self) -> Image.Image:
        """The first restoration as an 8-bit PIL image, dressed as the photo that was given."""
        return self._image(0)

    def _image(self, number: int) -> Image.Image:
        photo, x = self._photo(number), self._unit(self.x[number])
        return to_pil(x) if photo is None else photo.with_pixels(x).image()

    def _photo(self, number: int) -> Photo | None:
        return self.photos[number // self.n_samples] if self.photos and self.x.shape[1] in (1, 3) else None

    def _unit(self, x: Tensor) -> Tensor:
        """From `value_range` to [0, 1]."""
        low, high = self.value_range
        return (x - low) / (high - low)

    def save(self, path: str | Path) -> list[Path]:
        """Write the restorations; several become ``name-0.png``, ``name-1.png``, ... Written whole or not at all.

        Args:
            path: file name; its ending chooses the format (.png, .jpg, .webp, .tif; .npy for the float array).

        Returns:
            The files written.

        Raises:
            InvdiffError: folder missing, or an ending that cannot be written.
        """
        path = check_output(path, count=len(self.x))
        try:
            return self._write(path)
        except OSError as error:
            raise InvdiffError(f"output {str(path)!r} cannot be written: {error.strerror or error}") from error

    def _write(self, path: Path) -> list[Path]:
        if path.suffix.lower() == ".npy":
            with atomic_write(path) as temporary:
                import numpy as np

                with open(temporary, "wb") as file:
                    np.save(file, self.x.numpy())
            return [path]
        names = [path] if len(self.x) == 1 else [path.with_stem(f"{path.stem}-{i}") for i in range(len(self.x))]
        for number, (x, name) in enumerate(zip(self.x, names, strict=True)):
            if (photo := self._photo(number)) is not None:
                photo.with_pixels(self._unit(x), sixteen_bits=True).save(name)
                continue
            with atomic_write(name) as temporary:
                to_pil(self._unit(x)).save(temporary, format=Image.registered_extensions()[name.suffix.lower()])
        return names

    def blended(self) -> Solution:
        """The same with every hole set into the photo without a seam: see `blending.poisson_blend`.

        The answer's gradients inside, the photo's values at the border; known pixels are the photo's. For samplers that do not
        keep the known part. Noise of a noisy `y` comes back with its known pixels.

        Raises:
            InvdiffError: the measurement is no picture of which some pixels are missing.
        """
        if self.known is None:
            raise InvdiffError(
                f"blended() needs the measurement of a mask, of which some pixels are missing, got that of "
                f"{self.settings.get('operator')}"
            )
        several = (
            part if len(part) == 1 else part.repeat_interleave(self.n_samples, 0) for part in (self.y, self.known)
        )
        return replace(
            self, x=poisson_blend(self.x, *several), settings={**self.settings, "blended": True}, trajectory=[]
        )

    def plot(self) -> Figure:
        """Measurement, restoration, samples and their spread in one figure."""
        from invdiff.plotting import plot_solution

        return plot_solution(self)

    def animate(self, path: str | Path, **options: Any) -> Path:
        """Write the run as an animated GIF; needs ``solve(..., keep_trajectory=True)``. See `plotting.animate`."""
        from invdiff.plotting import animate

        return animate(self, path, **options)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        images = self.images[:8]
        sheet = Image.new("RGB", (sum(i.width for i in images) + 2 * (len(images) - 1), images[0].height), "white")
        left = 0
        for image in images:
            sheet.paste(image, (left, 0))
            left += image.width + 2
        factor = max(1, 192 // sheet.height)
        sheet.resize((sheet.width * factor, sheet.height * factor), Image.Resampling.NEAREST).save(buffer, format="PNG")
        return buffer.getvalue()

    def __repr__(self) -> str:
        what = f"{len(self.x)} image{'s' if len(self.x) != 1 else ''} of {tuple(self.x.shape[1:])}"
        return f"Solution({self.settings.get('sampler')}, {what}, {self.nfe} network calls, {self.seconds:.2f} s)"


def check_output(path: str | Path, endings: Sequence[str] = (), count: int = 1) -> Path:
    """The path, if `count` files can be written there.

    Args:
        path: of the file; several get ``-0``, ``-1``, ... before the ending.
        endings: that are accepted, such as ``(".gif",)``; by default those of pictures, and ``.npy``.
        count: how many files.

    Raises:
        InvdiffError: see `files.check_writable`; or an ending that cannot be written.
    """
    path = check_writable(path)
    if count > 1:
        check_writable(path.with_stem(f"{path.stem}-{count - 1}"))
    ending = path.suffix.lower()
    if ending not in endings if endings else ending != ".npy" and not can_be_written(ending):
        accepted = ", ".join(endings or (".png", ".jpg", ".webp", ".tif", ".npy"))
        raise InvdiffError(f"output {str(path)!r} must end in one of {accepted}, got the ending {path.suffix!r}")
    return path


def npy_bytes(values: Tensor) -> bytes:
    """The content of a ``.npy`` file."""
    import numpy as np

    content = io.BytesIO()
    np.save(content, values.cpu().numpy())
    return content.getvalue()


def in_range(model: Tensor, unit: Affine) -> Tensor:
    """From model range to the caller's values, on the CPU."""
    values = unit.invert(model.detach())
    assert isinstance(values, torch.Tensor)
    return values.cpu()
