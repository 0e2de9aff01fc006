"""Which pairs a voter sees, in which order, and on which sides: drawn from the voter's name, so that a restart goes on."""

from __future__ import annotations

import hashlib
from itertools import combinations

import numpy as np
from PIL import Image

from invdiff.bench.run.store import Record, Run
from invdiff.bench.votes.store import POOR, TRUTH, Pair
from invdiff.errors import InvdiffError

CHECK_EVERY = 8
"""One check pair for so many others."""


class Ballot:
    """All pairs of a run: any two samplers that restored the same measurement from the same seed.

    Args:
        run: with pictures.

    Raises:
        InvdiffError: nothing to compare.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._cells: dict[tuple[str, str, int], dict[str, Record]] = {}
        for record in run.records():
            if record.ok and record.file:
                self._cells.setdefault((record.task, record.image, record.seed), {})[record.sampler] = record
        self.pairs = [(*cell, a, b) for cell, found in self._cells.items() for a, b in combinations(sorted(found), 2)]
        if not self.pairs:
            raise InvdiffError(
                f"the run in {str(run.folder)!r} has no two restorations of one measurement, so there is nothing to vote on"
            )
        self._checked = [cell for cell in self._cells if run.truth(cell[1], cell[0]) is not None]

    def of(self, voter: str) -> list[Pair]:
        """Every pair once, in this voter's own order, with check pairs in between where the truth is known."""
        draw = np.random.default_rng(int.from_bytes(hashlib.blake2b(voter.encode(), digest_size=8).digest(), "big"))
        chosen: list[Pair] = []
        checks = [self._checked[i] for i in draw.permutation(len(self._checked))]
        next_check = int(draw.integers(2, CHECK_EVERY))
        for count, number in enumerate(draw.permutation(len(self.pairs))):
            task, image, seed, a, b = self.pairs[number]
            chosen.append(_sided(draw, task, image, seed, a, b))
            if count == next_check and checks:
                task, image, seed = checks.pop()
                chosen.append(_sided(draw, task, image, seed, TRUTH, POOR))
                next_check += CHECK_EVERY
        return chosen

    def pictures(self, pair: Pair) -> tuple[Image.Image | None, Image.Image, Image.Image]:
        """Measurement, left and right.

        Raises:
            InvdiffError: a picture is gone.
        """
        return self.run.measured(pair.task, pair.image), self._picture(pair, pair.left), self._picture(pair, pair.right)

    def _picture(self, pair: Pair, label: str) -> Image.Image:
        cell = self._cells.get((pair.task, pair.image, pair.seed), {})
        if label == TRUTH:
            found = self.run.truth(pair.image, pair.task)
        elif label == POOR:
            found = self._poor(pair)
        else:
            found = self.run.image(cell[label]) if label in cell else None
        if found is None:
            raise InvdiffError(f"the picture of {label} for {pair.task}, {pair.image} is gone from the run folder")
        return found

    def _poor(self, pair: Pair) -> Image.Image | None:
        """Of the measurement and all restorations the one that is furthest from the truth."""
        truth = self.run.truth(pair.image, pair.task)
        if truth is None:
            return None
        records = self._cells[pair.task, pair.image, pair.seed].values()
        found = [self.run.measured(pair.task, pair.image), *(self.run.image(r) for r in records)]
        alike = [picture.convert("RGB") for picture in found if picture is not None and picture.size == truth.size]
        exact = np.asarray(truth.convert("RGB")).astype(float)
        return max(alike, key=lambda picture: float(((np.asarray(picture) - exact) ** 2).mean()), default=None)


def _sided(draw: np.random.Generator, task: str, image: str, seed: int, a: str, b: str) -> Pair:
    return Pair(task, image, seed, a, b) if draw.random() < 0.5 else Pair(task, image, seed, b, a)
