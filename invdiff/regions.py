"""Where a picture is computed: boxes around what is missing, and in a large box the tiles that touch it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from torch import Tensor

_CELL = 8  # pixels to a side of the cells in which neighbourhoods are found
_PIECES = 300  # at most, that a hole is cut into before they are joined to tiles
_CALL = 3_000  # pixels whose time a network call takes beside that for its own pixels
_PAYS = 0.8  # share of a part's pixels that its tiles may have in all; else it is computed as one

Pixels = TypeVar("Pixels", Tensor, np.ndarray)


@dataclass(frozen=True)
class Box:
    """A part of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, images: Pixels) -> Pixels:
        """This part of (..., H, W)."""
        return images[..., self.top : self.top + self.height, self.left : self.left + self.width]

    @property
    def area(self) -> int:
        """Pixels."""
        return self.height * self.width

    def shrunken(self, factor: int) -> Box:
        """The blocks of `factor` x `factor` pixels that this part is made of; it begins at one."""
        bottom, right = -(-(self.top + self.height) // factor), -(-(self.left + self.width) // factor)
        top, left = self.top // factor, self.left // factor
        return Box(top, left, bottom - top, right - left)


@dataclass(frozen=True)
class Tile:
    """What the network is asked about at once, and what is taken of its answer; relative to the part that it is a tile of.

    Attributes:
        seen: with its surroundings.
        kept: a part of `seen`. Where those of two tiles overlap, they say the same.
    """

    seen: Box
    kept: Box


def neighbourhoods(missing: np.ndarray, margin: int, multiple: int = 1) -> list[Box]:
    """Boxes around what is missing, that do not overlap.

    Args:
        missing: (H, W) bool.
        margin: known pixels to each side that a box holds at least, where the picture has them.
        multiple: boxes begin and end at multiples of it, or at the border of the picture.
    """
    from scipy import ndimage

    height, width = missing.shape
    padded = np.pad(missing, ((0, -height % _CELL), (0, -width % _CELL)))
    cells = padded.reshape(padded.shape[0] // _CELL, _CELL, -1, _CELL).any((1, 3))
    near = ndimage.maximum_filter(cells, 2 * -(-margin // _CELL) + 1, mode="constant")
    boxes = []
    for rows, columns in ndimage.find_objects(ndimage.label(near, np.ones((3, 3)))[0]):
        part = missing[
            rows.start * _CELL : rows.stop * _CELL, columns.start * _CELL : columns.stop * _CELL
        ]  # the cells are wider than what is missing: measure again
        down, across = (np.flatnonzero(part.any(axis)) for axis in (1, 0))
        top, left = rows.start * _CELL, columns.start * _CELL
        boxes.append(
            _grown(
                (top + int(down[0]), left + int(across[0]), top + int(down[-1]) + 1, left + int(across[-1]) + 1),
                margin,
                multiple,
                (height, width),
            )
        )
    return [Box(y0, x0, y1 - y0, x1 - x0) for y0, x0, y1, x1 in sorted(_merged(boxes))]


Edges = tuple[int, int, int, int]


def _grown(edges: Edges, margin: int, multiple: int, size: tuple[int, int]) -> Edges:
    top, left, bottom, right = edges
    return (
        max(0, (top - margin) // multiple * multiple),
        max(0, (left - margin) // multiple * multiple),
        min(size[0], -(-(bottom + margin) // multiple) * multiple),
        min(size[1], -(-(right + margin) // multiple) * multiple),
    )


def _merged(boxes: list[Edges]) -> list[Edges]:
    """Boxes that overlap joined to one, until none do."""
    done: list[Edges] = []
    for box in boxes:
        joined = True
        while joined:
            joined = False
            for other in done:
                if box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]:
                    done.remove(other)
                    box = (min(box[0], other[0]), min(box[1], other[1]), max(box[2], other[2]), max(box[3], other[3]))
                    joined = True
                    break
        done.append(box)
    return done


def tiles_of(missing: np.ndarray, margin: int, multiple: int = 1) -> tuple[Tile, ...]:
    """Tiles that hold everything that is missing with its margin, where they are cheaper than the whole; empty where they aren't.

    The box around a long slanting scratch is mostly known. Here the scratch is cut into small pieces, and the two pieces of which
    most is saved by joining them are joined, until nothing is.

    Args:
        missing: (H, W) bool, of one part.
        margin: known pixels to each side of what is missing that a tile sees at least, where the part has them.
        multiple: tiles begin and end at multiples of it, or at the border of the part.
    """
    height, width = missing.shape
    pieces = _pieces(missing)
    if not pieces:
        return ()

    def cost(edges: np.ndarray) -> np.ndarray:
        """Pixels that tiles (..., 4) stand for."""
        down = np.minimum(edges[..., 2] + margin, height) - np.maximum(edges[..., 0] - margin, 0)
        across = np.minimum(edges[..., 3] + margin, width) - np.maximum(edges[..., 1] - margin, 0)
        return down * across + _CALL

    kept = _joined(np.array(pieces), cost)
    if cost(kept).sum() > _PAYS * height * width:
        return ()
    found: list[Edges] = sorted((int(y0), int(x0), int(y1), int(x1)) for y0, x0, y1, x1 in kept)
    return tuple(Tile(_box(_grown(one, margin, multiple, (height, width))), _box(one)) for one in found)


def _pieces(missing: np.ndarray) -> list[Edges]:
    """The edges of what is missing in each square of a grid that is so coarse that there are not many of them."""
    side = _CELL
    while True:
        padded = np.pad(missing, ((0, -missing.shape[0] % side), (0, -missing.shape[1] % side)))
        squares = padded.reshape(padded.shape[0] // side, side, -1, side).any((1, 3))
        if squares.sum() <= _PIECES:
            break
        side *= 2
    found = []
    for row, column in np.argwhere(squares):
        top, left = int(row) * side, int(column) * side
        inside = missing[top : top + side, left : left + side]
        down, across = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        found.append((top + int(down[0]), left + int(across[0]), top + int(down[-1]) + 1, left + int(across[-1]) + 1))
    return found


def _joined(boxes: np.ndarray, cost: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Boxes (n, 4), joined two at a time as long as the one around both costs less than they do."""
    boxes = boxes.copy()

    def saved(one: np.ndarray) -> np.ndarray:
        """What is saved by joining one box with each of them."""
        around = np.concatenate([np.minimum(boxes[:, :2], one[:2]), np.maximum(boxes[:, 2:], one[2:])], 1)
        return cost(boxes) + cost(one) - cost(around)

    gain = np.stack([saved(one) for one in boxes]).astype(float)
    np.fill_diagonal(gain, -np.inf)
    here = np.ones(len(boxes), bool)
    while True:
        i, j = np.unravel_index(int(gain.argmax()), gain.shape)
        if not gain[i, j] > 0:
            return boxes[here]
        boxes[i] = (*np.minimum(boxes[i, :2], boxes[j, :2]), *np.maximum(boxes[i, 2:], boxes[j, 2:]))
        here[j] = False
        gain[i] = gain[:, i] = np.where(here, saved(boxes[i]), -np.inf)
        gain[i, i] = -np.inf
        gain[j] = gain[:, j] = -np.inf


def _box(edges: Edges) -> Box:
    top, left, bottom, right = edges
    return Box(top, left, bottom - top, right - left)
