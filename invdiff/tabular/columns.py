"""Rows of a table as vectors: numbers standardised, categories as analog bits, and back."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invdiff.checks import shown
from invdiff.errors import InvdiffError

SCALES = ("auto", "quantile", "standard")
SKEWED = 1.0
"""Skewness from which a column goes through its quantiles, with ``scale="auto"``."""
MARGIN = 0.5
"""How far beyond its smallest and largest value a column may be continued, in steps between its outermost normal scores."""


def missing(values: np.ndarray) -> np.ndarray:
    """Where a column of any dtype has nothing: NaN, None or pandas' NA."""
    if values.dtype.kind == "f":
        return np.isnan(values)
    if values.dtype.kind in "iub":
        return np.zeros(len(values), dtype=bool)
    return np.array([v is None or v != v or type(v).__name__ in ("NAType", "NaTType") for v in values.tolist()])


@dataclass(frozen=True)
class Numbers:
    """One numerical column as one entry of mean 0 and standard deviation 1.

    `knots` (increasing) are values and `scores` what they become, with straight lines between and beyond. Two knots:
    standardised. Many: the quantiles of the column at the quantiles of a standard normal distribution, so that what is
    skewed or heavy-tailed becomes Gaussian.
    """

    knots: np.ndarray
    scores: np.ndarray
    width = 1

    @classmethod
    def fit(cls, values: np.ndarray, scale: str) -> Numbers:
        """From what is known of a column, (n,) with n of 1 or more."""
        values = values.astype(np.float64)
        found, counts = np.unique(values, return_counts=True)
        if len(found) == 1:
            return cls(found, np.zeros(1))
        centre, spread = float(values.mean()), float(values.std())
        skewness = float((((values - centre) / spread) ** 3).mean())
        if len(found) == 2 or scale == "standard" or (scale == "auto" and abs(skewness) < SKEWED):
            return cls(np.array([centre - spread, centre + spread]), np.array([-1.0, 1.0]))
        rank = (np.cumsum(counts) - 0.5 * counts) / len(values)  # of the middle of its ties, within (0, 1)
        scores = math.sqrt(2) * torch.erfinv(torch.from_numpy(2 * rank - 1)).numpy()
        mean = float((scores * counts).sum() / len(values))
        spread = math.sqrt(float((counts * (scores - mean) ** 2).sum() / len(values)))
        return cls(found, (scores - mean) / spread)

    def encode(self, values: np.ndarray) -> np.ndarray:
        if len(self.knots) == 1:
            return np.zeros((len(values), 1))
        return _through(values.astype(np.float64), self.knots, self.scores)[:, None]

    def decode(self, entries: np.ndarray) -> np.ndarray:
        """(..., 1) -> (...) float64."""
        entries = entries[..., 0]
        if len(self.knots) == 1:
            return np.full(entries.shape, self.knots[0])
        if len(self.knots) > 2:  # beyond the quantiles nothing is known of the tail
            low, high = self.scores[[0, -1]] + MARGIN * np.diff(self.scores)[[0, -1]] * (-1, 1)
            entries = entries.clip(low, high)
        return _through(entries, self.scores, self.knots)

    def summary(self, draws: np.ndarray) -> np.ndarray:
        """Of (n, rows) draws: their mean."""
        return draws.mean(0)


@dataclass(frozen=True)
class Categories:
    """One categorical column of K categories as K analog bits, 1 for the own and -1 for the others (Chen, Zhang & Hinton,
    2023), standardised; a draw is the category of the largest."""

    names: tuple[Any, ...]
    centres: np.ndarray
    spreads: np.ndarray

    @property
    def width(self) -> int:
        return len(self.names)

    @classmethod
    def fit(cls, values: np.ndarray) -> Categories:
        try:
            names = tuple(sorted(set(values.tolist()), key=lambda name: (str(type(name)), str(name))))
        except TypeError as error:
            raise InvdiffError(f"X must hold numbers and categories, got an entry that is neither: {error}") from None
        bits = _bits(values, names)
        return cls(names, bits.mean(0), np.maximum(bits.std(0), 1e-3))

    def encode(self, values: np.ndarray) -> np.ndarray:
        strange = set(values.tolist()) - set(self.names)
        if strange:
            raise InvdiffError(
                f"X must have the categories seen in fit, {shown(list(self.names))}, got {shown(sorted(map(str, strange)))}"
            )
        return (_bits(values, self.names) - self.centres) / self.spreads

    def decode(self, entries: np.ndarray) -> np.ndarray:
        """(..., K) -> (...) of the categories."""
        chosen = (entries * self.spreads + self.centres).argmax(-1)
        return np.array([*self.names, None], dtype=object)[:-1][chosen]

    def summary(self, draws: np.ndarray) -> np.ndarray:
        """Of (n, rows) draws: the most frequent, of several the first."""
        counts = np.stack([(draws == name).sum(0) for name in self.names])
        return np.array([*self.names, None], dtype=object)[:-1][counts.argmax(0)]


@dataclass
class Columns:
    """All columns of a table: (n, columns) of any dtypes <-> (n, width) float64 and what of it is known."""

    parts: list[Numbers | Categories] = field(default_factory=list)

    @classmethod
    def fit(cls, table: Sequence[np.ndarray], categorical: Sequence[bool], scale: str, names: Sequence[Any]) -> Columns:
        """From the columns of a table.

        Raises:
            InvdiffError: a column of which nothing is known, or a numerical one with other things than numbers.
        """
        made = cls()
        for values, is_category, name in zip(table, categorical, names, strict=True):
            here = values[~missing(values)]
            if not len(here):
                raise InvdiffError(
                    f"X must have a known value in every column, got none in column {name!r}; leave it out"
                )
            made.parts.append(Categories.fit(here) if is_category else Numbers.fit(_numbers(here, name), scale))
        return made

    @property
    def width(self) -> int:
        return sum(part.width for part in self.parts)

    def encode(self, table: Sequence[np.ndarray], names: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """The table as (n, width) float64, zero where it is missing, and (n, width) bool, true where it is known."""
        values, known = [], []
        for column, part, name in zip(table, self.parts, names, strict=True):
            gone = missing(column)
            block = np.zeros((len(column), part.width))
            here = column[~gone]
            block[~gone] = part.encode(here if isinstance(part, Categories) else _numbers(here, name))
            values.append(block)
            known.append(np.repeat(~gone[:, None], part.width, 1))
        return torch.from_numpy(np.concatenate(values, 1)), torch.from_numpy(np.concatenate(known, 1))

    def decode(self, entries: Tensor) -> list[np.ndarray]:
        """(..., width) -> one array (...) per column."""
        found, start = [], 0
        for part in self.parts:
            found.append(part.decode(entries[..., start : start + part.width].double().numpy()))
            start += part.width
        return found


def is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_)


def _numbers(values: np.ndarray, name: Any) -> np.ndarray:
    try:
        found = values.astype(np.float64)
    except (TypeError, ValueError):
        odd = next(v for v in values.tolist() if not is_number(v))
        raise InvdiffError(
            f"X must have numbers in the numerical column {name!r}, got {shown(odd)}; name it in `categorical`"
        ) from None
    if not np.isfinite(found).all():
        raise InvdiffError(f"X must be finite where it is known, got infinity in column {name!r}")
    return found


def _bits(values: np.ndarray, names: Sequence[Any]) -> np.ndarray:
    place = {name: k for k, name in enumerate(names)}
    bits = -np.ones((len(values), len(names)))
    bits[np.arange(len(values)), [place[v] for v in values.tolist()]] = 1
    return bits


def _through(x: np.ndarray, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """The broken line through (xs, ys), its first and last piece continued."""
    inside = np.interp(x, xs, ys)
    below = ys[0] + (x - xs[0]) * (ys[1] - ys[0]) / (xs[1] - xs[0])
    above = ys[-1] + (x - xs[-1]) * (ys[-1] - ys[-2]) / (xs[-1] - xs[-2])
    return np.where(x < xs[0], below, np.where(x > xs[-1], above, inside))
