"""Pictures that ship with the package.

For the demo, the documentation and the tests; it knows nothing of the package.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image


def chelsea64() -> Image.Image:
    """Chelsea the cat, 64x64 RGB: a real photograph that no embedded backbone was trained on (see README.md beside this)."""
    with Image.open(Path(__file__).parent / "chelsea64.png") as image:
        return image.convert("RGB")


def raccoon() -> Image.Image:
    """A raccoon among leaves, 640x480 RGB: another photograph that no embedded backbone was trained on (README.md)."""
    with Image.open(Path(__file__).parent / "raccoon.jpg") as image:
        return image.convert("RGB")
