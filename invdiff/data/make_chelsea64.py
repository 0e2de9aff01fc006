"""Cut the demonstration photo from scikit-image's Chelsea: eyes level, at two fifths of the height, the face filling the frame.

python -m invdiff.data.make_chelsea64
"""

from __future__ import annotations

import math
from pathlib import Path

import skimage.data
from PIL import Image

EYES = (245.5, 125.5)  # the point midway between the pupils, pixels of the original (451 x 300)
SIDE = 270  # of the square that is cut out, pixels of the original
TILT = 5.0  # degrees by which the head leans
HEIGHT = 0.41  # where the eyes come to lie, as a share of the frame


def make() -> Image.Image:
    """The 64x64 photo."""
    side = 256
    turn, scale = math.radians(TILT), SIDE / side
    a, d = scale * math.cos(turn), scale * math.sin(turn)
    u, v = side / 2, HEIGHT * side
    matrix = (a, -d, EYES[0] - a * u + d * v, d, a, EYES[1] - d * u - a * v)
    photo = Image.fromarray(skimage.data.chelsea())
    cut = photo.transform((side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    return cut.resize((64, 64), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    make().save(Path(__file__).parent / "chelsea64.png")
