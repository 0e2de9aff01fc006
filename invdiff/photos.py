"""A photograph as its file holds it: pixels of 8 or 16 bits, grey or colour, transparency, EXIF and colour profile."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from invdiff.errors import InvdiffError, InvdiffWarning
from invdiff.files import atomic_write
from invdiff.images import decoded, found_image

_ORIENTATION = 0x0112
_SIXTEEN_BITS = (".png", ".tif", ".tiff")
_TRANSPARENT = (".png", ".webp", ".tif", ".tiff")
_TAKEN = "Grey, RGB and palette pictures of 8 or 16 bits are accepted, with or without transparency"


@dataclass(frozen=True, eq=False)
class Photo:
    """A picture and what its file says beside it.

    Attributes:
        pixels: (H, W, 1 or 3), uint8 or uint16, upright: a rotation in the EXIF data has been carried out.
        alpha: (H, W) of the same type, the opacity; None where there is none.
        exif: as bytes, with the orientation set to upright; empty where there is none.
        icc: the colour profile; empty where there is none.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    exif: bytes = b""
    icc: bytes = b""

    @classmethod
    def read(cls, source: str | os.PathLike[str] | Image.Image, argument: str = "photo") -> Photo:
        """The picture of a file, or a PIL image.

        Raises:
            InvdiffError: missing file, directory, not an image, truncated, or in a colour space other than grey and RGB.
        """
        image, what = found_image(source, argument)
        raw = _raw_mode(image)
        pixels = _pixels(image, what, raw)
        exif, icc = image.getexif(), image.info.get("icc_profile") or b""
        turn = exif.get(_ORIENTATION, 1)
        exif[_ORIENTATION] = 1
        kept = exif.tobytes() if len(exif) > 1 else b""
        pixels = _upright(pixels, turn)
        if pixels.shape[2] in (2, 4):
            return cls(np.ascontiguousarray(pixels[..., :-1]), np.ascontiguousarray(pixels[..., -1]), kept, icc)
        return cls(np.ascontiguousarray(pixels), None, kept, icc)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @property
    def grey(self) -> bool:
        """Whether it has one channel."""
        return self.pixels.shape[2] == 1

    def coloured(self) -> Photo:
        """The same photo with three channels."""
        return replace(self, pixels=np.repeat(self.pixels, 3, -1)) if self.grey else self

    def values(self) -> np.ndarray:
        """(H, W, C) float64 from 0 to 255, whatever the number of bits."""
        return self.pixels / (257.0 if self.pixels.dtype == np.uint16 else 1.0)

    def with_pixels(self, x: Tensor, sixteen_bits: bool = False) -> Photo:
        """A restoration of this photo with its transparency, EXIF data and profile.

        Args:
            x: (C, H, W) in [0, 1]; values outside are clipped. Three channels become one where this photo is grey.
            sixteen_bits: keep 16 bits where this photo has them.
        """
        deep = sixteen_bits and self.pixels.dtype == np.uint16
        unit = x.detach().double().cpu().clamp(0, 1)
        if self.grey and len(unit) == 3:
            unit = unit.mean(0, keepdim=True)
        pixels = (unit * (65535 if deep else 255)).round().numpy().astype(np.uint16 if deep else np.uint8)
        alpha = self.alpha
        if alpha is not None:
            if alpha.dtype == np.uint16 and not deep:
                alpha = np.round(alpha / 257.0).astype(np.uint8)
            if alpha.shape != unit.shape[1:]:
                alpha = _resized(alpha, (unit.shape[1], unit.shape[2]))
        return Photo(np.ascontiguousarray(pixels.transpose(1, 2, 0)), alpha, self.exif, self.icc)

    def image(self) -> Image.Image:
        """As a PIL image, its EXIF data and profile in ``info``; 16 bits only where that has a mode (grey, opaque).

        A photo of 16 bits in colour becomes one of 8.
        """
        pixels = self.pixels
        if pixels.dtype == np.uint16 and (self.alpha is not None or not self.grey):
            pixels = np.round(pixels / 257.0).astype(np.uint8)
        if self.alpha is not None:
            alpha = self.alpha if self.alpha.dtype == np.uint8 else np.round(self.alpha / 257.0).astype(np.uint8)
            pixels = np.concatenate([pixels, alpha[..., None]], -1)
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        picture.info.update({k: v for k, v in (("exif", self.exif), ("icc_profile", self.icc)) if v})
        return picture

    def save(self, path: str | Path) -> Path:
        """Write it with its EXIF data and profile, whole or not at all; the ending chooses the format.

        JPEG has neither transparency nor 16 bits: the first is left out with a warning.
        """
        path = Path(path)
        ending = path.suffix.lower()
        photo = self
        if self.alpha is not None and ending not in _TRANSPARENT:
            warnings.warn(
                f"{path.name}: {ending} files have no transparency, which the photo has; .png keeps it",
                InvdiffWarning,
                stacklevel=2,
            )
            photo = replace(self, alpha=None)
        with atomic_write(path) as temporary:
            photo._write(temporary, ending)
        return path

    def _write(self, path: Path, ending: str) -> None:
        joined = self.pixels if self.alpha is None else np.concatenate([self.pixels, self.alpha[..., None]], -1)
        deep = joined.dtype == np.uint16
        if deep and ending == ".png":
            path.write_bytes(_png_of_16_bits(joined, self.exif, self.icc))
        elif deep and ending in _SIXTEEN_BITS:
            import tifffile

            tifffile.imwrite(
                path,
                joined[..., 0] if joined.shape[2] == 1 else joined,
                photometric="minisblack" if self.grey else "rgb",
                extrasamples=None if self.alpha is None else ["unassalpha"],
                iccprofile=self.icc or None,
            )
        else:
            picture = (Photo(np.round(self.pixels / 257.0).astype(np.uint8)) if deep else self).image()
            more: dict[str, Any] = {"quality": 95} if ending in (".jpg", ".jpeg", ".webp") else {}
            if self.exif:
                more["exif"] = self.exif
            if self.icc:
                more["icc_profile"] = self.icc
            picture.save(path, format=Image.registered_extensions()[ending], **more)


def _pixels(image: Image.Image, what: str, raw: str) -> np.ndarray:
    """(H, W, 1 to 4), uint8 or uint16, as the file has them; `raw` is Pillow's word for how a PNG stores them."""
    mode = image.mode
    if image.format == "PNG" and mode in ("RGB", "RGBA") and ";16" in raw:
        return _png_pixels_of_16_bits(image, what, raw)
    if image.format == "TIFF" and mode in ("RGB", "RGBA") and set(image.tag_v2.get(258, (8,))) == {16}:  # type: ignore[attr-defined]
        import tifffile

        return np.asarray(tifffile.imread(_source(image))).astype(np.uint16)
    image = decoded(image, what)
    if mode in ("I;16", "I;16B", "I;16L", "I;16N") or mode == "I":
        array = np.asarray(image).astype(np.int64)
        if array.min() < 0 or array.max() > 65535:
            raise InvdiffError(f"{what} holds integers outside 0..65535 (mode {mode}). {_TAKEN}")
        return array[..., None].astype(np.uint16)
    if mode == "1":
        image = image.convert("L")
    elif mode in ("P", "PA") or (mode in ("L", "RGB") and image.info.get("transparency") is not None):
        seen_through = mode == "PA" or image.info.get("transparency") is not None
        image = image.convert(("LA" if mode == "L" else "RGBA") if seen_through else "RGB")
    elif mode not in ("L", "LA", "RGB", "RGBA"):
        raise InvdiffError(f"{what} has mode {mode}; convert it first: image.convert('RGB'). {_TAKEN}")
    array = np.asarray(image)
    return array if array.ndim == 3 else array[..., None]


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The picture as it is to be seen, by the EXIF standard's eight orientations."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _resized(alpha: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    deep = alpha.dtype == np.uint16
    picture = Image.fromarray(alpha.astype(np.float32)).resize(size[::-1], Image.Resampling.BILINEAR)
    return np.round(np.asarray(picture)).clip(0, 65535 if deep else 255).astype(alpha.dtype)


def _raw_mode(image: Image.Image) -> str:
    """How Pillow is about to read the samples of a PNG file, such as ``RGB;16B``; known until it has."""
    tiles = getattr(image, "tile", None) or [("", (), 0, "")]
    return str(tiles[0][3])


def _png_pixels_of_16_bits(image: Image.Image, what: str, raw: str) -> np.ndarray:
    """All 16 bits of a colour PNG, of which Pillow keeps the upper 8: it is decoded twice, once for each byte."""
    if not raw.startswith(image.mode + ";16"):
        warnings.warn(f"{what}: grey of 16 bits with transparency is read in 8 bits", InvdiffWarning, stacklevel=4)
        return np.asarray(decoded(image, what))
    halves = []
    for byte in ("B", "L"):  # the samples are big-endian; read as little-endian the lower byte comes first
        again = Image.open(_source(image))
        again.tile = [(*again.tile[0][:3], f"{raw[:-1]}{byte}")]  # type: ignore[list-item]
        halves.append(np.asarray(decoded(again, what)).astype(np.uint16))
    return halves[0] << 8 | halves[1]


def _source(image: Image.Image) -> Any:
    """The file that a picture is read from: its name, or the open file at its beginning."""
    if name := getattr(image, "filename", ""):
        return name
    file: Any = getattr(image, "fp", None)
    file.seek(0)
    return file


def _png_of_16_bits(pixels: np.ndarray, exif: bytes, icc: bytes) -> bytes:
    """A PNG file (ISO/IEC 15948) of (H, W, 1 to 4) samples of 16 bits, which Pillow can write for grey only."""
    height, width, channels = pixels.shape

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = np.ascontiguousarray(pixels.astype(">u2")).view(np.uint8).reshape(height, -1)
    up = np.diff(
        rows, axis=0, prepend=np.zeros((1, rows.shape[1]), np.uint8)
    )  # filter 2: less the row above, modulo 256
    data = np.concatenate([np.full((height, 1), 2, np.uint8), up], 1).tobytes()
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    parts = [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))]
    if icc:
        parts.append(chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc)))
    if exif:
        parts.append(chunk(b"eXIf", exif.removeprefix(b"Exif\0\0")))
    return b"".join([*parts, chunk(b"IDAT", zlib.compress(data, 6)), chunk(b"IEND", b"")])
