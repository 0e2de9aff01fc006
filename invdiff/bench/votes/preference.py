"""What votes show: shares with intervals, Bradley-Terry scores, and how many more votes a difference needs.

A vote for neither counts as half a vote for each. Voters who fail the check pairs are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from invdiff.bench.votes.store import TRUTH, Vote
from invdiff.errors import InvdiffError

LEVEL = 0.95
POWER = 0.8
ATTENTIVE = 0.75
"""Share of the check pairs that an attentive voter has right, half a point for "no difference"."""
FEWEST_CHECKS = 2
"""With fewer nobody is left out."""


@dataclass(frozen=True)
class Share:
    """Of the votes between a sampler and another, or all others, those for the sampler.

    Attributes:
        votes: how many; won: of them, halves for neither.
        value: won / votes; low, high: Wilson's score interval, 95 %.
    """

    votes: int
    won: float
    value: float
    low: float
    high: float

    @property
    def shown(self) -> bool:
        """Whether the interval leaves out an even half."""
        return self.low > 0.5 or self.high < 0.5

    @property
    def needed(self) -> int | None:
        """Further votes with which, at this share, the interval would leave out a half in 8 of 10 studies; 0 where it does
        already, None where there is no difference to show."""
        if self.shown:
            return 0
        wanted = votes_needed(self.value)
        return None if wanted is None else max(1, wanted - self.votes)


def share(won: float, votes: int) -> Share:
    """A share with Wilson's (1927) score interval.

    Raises:
        InvdiffError: no vote, or more won than cast.
    """
    if votes < 1 or not 0 <= won <= votes:
        raise InvdiffError(f"won must be 0 to votes, and votes at least 1, got {won} of {votes}")
    z = float(stats.norm.ppf((1 + LEVEL) / 2))
    p = won / votes
    middle = (p + z * z / (2 * votes)) / (1 + z * z / votes)
    half = z / (1 + z * z / votes) * math.sqrt(p * (1 - p) / votes + z * z / (4 * votes**2))
    return Share(votes, won, p, max(0.0, middle - half), min(1.0, middle + half))


def votes_needed(value: float, power: float = POWER) -> int | None:
    """Votes with which a two-sided test at 5 % tells a true share of `value` from a half with this power; None for a half."""
    if abs(value - 0.5) < 1e-9:
        return None
    z, zp = float(stats.norm.ppf((1 + LEVEL) / 2)), float(stats.norm.ppf(power))
    return math.ceil(((z * 0.5 + zp * math.sqrt(value * (1 - value))) / abs(value - 0.5)) ** 2)


@dataclass(frozen=True)
class Score:
    """Strength of a sampler in the model of Bradley and Terry.

    Attributes:
        value: natural logarithm, mean 0 over the samplers: a beats b with probability ``1 / (1 + exp(b - a))``.
        low, high: 95 % interval, from the information at the optimum.
    """

    value: float
    low: float
    high: float


def bradley_terry(wins: NDArray[np.float64]) -> list[Score] | None:
    """Scores from a table of wins (Bradley & Terry, 1952), by Newton's method.

    Two samplers that were compared get one vote for neither on top, so that one that won every time has a finite score.

    Args:
        wins: (k, k), how often row beat column; halves for neither.

    Returns:
        One score for each of the k, or None where not all are joined by comparisons.

    Raises:
        InvdiffError: no square table of numbers from 0 on.
    """
    table = np.asarray(wins, float)
    if table.ndim != 2 or table.shape[0] != table.shape[1] or not (table >= 0).all() or len(table) < 2:
        raise InvdiffError(
            f"wins must be a square table of numbers of at least 0, two rows or more, got shape {table.shape}"
        )
    met = (table + table.T) > 0
    np.fill_diagonal(met, False)
    k = len(table)
    if not _joined(met):
        return None
    table = np.where(met, table + 0.5, 0.0)
    games, won = table + table.T, table.sum(1)
    scores = np.zeros(k)
    for _ in range(100):
        chance = 1 / (1 + np.exp(scores[None] - scores[:, None]))
        gradient = won - (games * chance).sum(1)
        weight = games * chance * (1 - chance)
        information = np.diag(weight.sum(1)) - weight
        step = np.linalg.solve(information + 1 / k, gradient)  # the added constant fixes the mean
        scores = scores + np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-10:
            break
    scores -= scores.mean()
    spread = np.sqrt(np.clip(np.diag(np.linalg.pinv(information)), 0, None))
    z = float(stats.norm.ppf((1 + LEVEL) / 2))
    return [Score(float(s), float(s - z * d), float(s + z * d)) for s, d in zip(scores, spread, strict=True)]


def _joined(met: NDArray[np.bool_]) -> bool:
    reached = {0}
    while more := {int(j) for i in reached for j in np.flatnonzero(met[i])} - reached:
        reached |= more
    return len(reached) == len(met)


@dataclass(frozen=True)
class Voter:
    """How one voter did on the check pairs.

    Attributes:
        name: whose.
        votes: on pairs of samplers.
        checks: pairs of the truth and a poor picture; right: points on them.
    """

    name: str
    votes: int
    checks: int
    right: float

    @property
    def attentive(self) -> bool:
        """Whether the votes count."""
        return self.checks < FEWEST_CHECKS or self.right >= ATTENTIVE * self.checks


def voters(votes: Iterable[Vote]) -> list[Voter]:
    """Every voter, in order of appearance."""
    found: dict[str, list[Vote]] = {}
    for vote in votes:
        found.setdefault(vote.voter, []).append(vote)
    return [
        Voter(
            name,
            sum(not vote.pair.check for vote in cast),
            sum(vote.pair.check for vote in cast),
            sum(1.0 if v.winner == TRUTH else 0.5 if v.winner is None else 0.0 for v in cast if v.pair.check),
        )
        for name, cast in found.items()
    ]


@dataclass(frozen=True)
class Row:
    """A sampler in a table of votes: against all others, against the reference, and its score."""

    sampler: str
    overall: Share
    against: Share | None
    score: Score | None


@dataclass(frozen=True)
class Table:
    """The votes on one task, or on all.

    Attributes:
        task: its name, empty for all.
        reference: the sampler that the others are set against.
        rows: the strongest first.
        votes: how many are in it.
    """

    task: str
    reference: str
    rows: tuple[Row, ...]
    votes: int


class Preferences:
    """The votes of a run, counted.

    Args:
        votes: all of them.
        samplers: labels, in the order of the suite.
        reference: that the others are set against; ``"repaint"`` where it is among them, else the one that won most.
    """

    def __init__(self, votes: Sequence[Vote], samplers: Sequence[str], reference: str | None = None) -> None:
        self.voters = voters(votes)
        self.left_out = [voter for voter in self.voters if not voter.attentive]
        ignored = {voter.name for voter in self.left_out}
        self.votes = [vote for vote in votes if not vote.pair.check and vote.voter not in ignored]
        among = {label for vote in self.votes for label in (vote.left, vote.right)}
        self.samplers = [name for name in samplers if name in among] + sorted(among - set(samplers))
        self._reference = reference

    @cached_property
    def reference(self) -> str:
        """The sampler that the others are set against."""
        if self._reference in self.samplers:
            return str(self._reference)
        if "repaint" in self.samplers:
            return "repaint"
        wins = self._wins(self.votes)
        return self.samplers[int(np.argmax(wins.sum(1) / np.maximum((wins + wins.T).sum(1), 1)))]

    @cached_property
    def tables(self) -> list[Table]:
        """All tasks together, then task by task; empty without a vote that counts."""
        if not self.votes:
            return []
        tasks = list(dict.fromkeys(vote.task for vote in self.votes))
        return [self._table("")] + ([self._table(task) for task in tasks] if len(tasks) > 1 else [])

    def _wins(self, votes: Iterable[Vote]) -> NDArray[np.float64]:
        place = {name: i for i, name in enumerate(self.samplers)}
        wins = np.zeros((len(place), len(place)))
        for vote in votes:
            left, right = place[vote.left], place[vote.right]
            if vote.winner is None:
                wins[left, right] += 0.5
                wins[right, left] += 0.5
            else:
                wins[(left, right) if vote.winner == vote.left else (right, left)] += 1
        return wins

    def _table(self, task: str) -> Table:
        votes = [vote for vote in self.votes if not task or vote.task == task]
        wins = self._wins(votes)
        there = [i for i in range(len(self.samplers)) if (wins[i] + wins[:, i]).sum() > 0]
        scores = bradley_terry(wins[np.ix_(there, there)])
        reference = self.samplers.index(self.reference)
        rows = []
        for place, i in enumerate(there):
            met = wins[i, reference] + wins[reference, i]
            rows.append(
                Row(
                    self.samplers[i],
                    share(wins[i].sum(), round((wins[i] + wins[:, i]).sum())),
                    None if i == reference or not met else share(wins[i, reference], round(met)),
                    None if scores is None else scores[place],
                )
            )
        rows.sort(key=lambda row: -(row.score.value if row.score else row.overall.value))
        return Table(task, self.reference, tuple(rows), len(votes))
