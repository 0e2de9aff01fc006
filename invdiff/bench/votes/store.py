"""The votes of a run, in `votes.sqlite` beside its results: one row for each, written before the next pair is shown."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from invdiff.errors import InvdiffError

VOTES = "votes.sqlite"
LEFT, RIGHT, NEITHER = 1, 2, 0
TRUTH, POOR = "truth", "poor"
"""What stands for a sampler's name in a check pair."""


@dataclass(frozen=True)
class Pair:
    """Two pictures of one measurement, as a voter sees them.

    Attributes:
        task, image, seed: whose restorations.
        left, right: labels of the samplers; `TRUTH` and `POOR` in a check pair.
    """

    task: str
    image: str
    seed: int
    left: str
    right: str

    @property
    def check(self) -> bool:
        """Whether it tells attentive voters: the truth against a poor picture."""
        return TRUTH in (self.left, self.right)

    @property
    def key(self) -> tuple[str, str, int, str, str]:
        """The same whichever side is which."""
        first, second = sorted((self.left, self.right))
        return self.task, self.image, self.seed, first, second


@dataclass(frozen=True)
class Vote:
    """One answer.

    Attributes:
        voter: a name, or what the browser was called.
        task, image, seed, left, right: the `Pair`.
        choice: `LEFT`, `RIGHT` or `NEITHER` (no difference seen).
        number: of this voter's votes, from 1.
        time: seconds since 1970; seconds: that the pair was looked at.
    """

    voter: str
    task: str
    image: str
    seed: int
    left: str
    right: str
    choice: int
    number: int
    time: float
    seconds: float

    @property
    def pair(self) -> Pair:
        """What was asked."""
        return Pair(self.task, self.image, self.seed, self.left, self.right)

    @property
    def winner(self) -> str | None:
        """The label that was chosen; None where no difference was seen."""
        return {LEFT: self.left, RIGHT: self.right}.get(self.choice)


_COLUMNS = [f.name for f in fields(Vote)]
_TABLE = """CREATE TABLE IF NOT EXISTS votes (
    voter TEXT NOT NULL, task TEXT NOT NULL, image TEXT NOT NULL, seed INTEGER NOT NULL, "left" TEXT NOT NULL,
    "right" TEXT NOT NULL, choice INTEGER NOT NULL CHECK (choice IN (0, 1, 2)), number INTEGER NOT NULL, time REAL NOT NULL,
    seconds REAL NOT NULL, first TEXT NOT NULL, second TEXT NOT NULL,
    PRIMARY KEY (voter, task, image, seed, first, second))"""
_NAMES = ", ".join(f'"{name}"' for name in _COLUMNS)


class Votes:
    """The votes in a run folder.

    Args:
        folder: of the run.

    Raises:
        InvdiffError: what is there is no table of votes.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder).expanduser() / VOTES

    def open(self) -> Votes:
        """Make the file where there is none, and see that it can be written.

        Raises:
            InvdiffError: it cannot, or is damaged.
        """
        with self._connection() as database:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute(_TABLE)
        return self

    def cast(self, voter: str, pair: Pair, choice: int, seconds: float = 0.0) -> Vote:
        """Write one vote; when this returns it is on the disk.

        Args:
            voter: whose.
            pair: as it was shown.
            choice: 1 left, 2 right, 0 neither.
            seconds: that the pair was looked at.

        Raises:
            InvdiffError: another choice, or a pair that the voter has voted on.
        """
        if choice not in (LEFT, RIGHT, NEITHER):
            raise InvdiffError(f"choice must be 1 (left), 2 (right) or 0 (no difference), got {choice!r}")
        try:
            with self._connection() as database:
                number = 1 + database.execute("SELECT COUNT(*) FROM votes WHERE voter = ?", (voter,)).fetchone()[0]
                vote = Vote(
                    voter,
                    pair.task,
                    pair.image,
                    pair.seed,
                    pair.left,
                    pair.right,
                    choice,
                    number,
                    time.time(),
                    float(seconds),
                )
                marks = ", ".join("?" * (len(_COLUMNS) + 2))
                database.execute(
                    f"INSERT INTO votes ({_NAMES}, first, second) VALUES ({marks})", (*astuple(vote), *pair.key[-2:])
                )
        except sqlite3.IntegrityError:
            raise InvdiffError(f"voter {voter!r} has voted on this pair already") from None
        return vote

    def all(self) -> list[Vote]:
        """Every vote, in the order in which they were cast; none where there is no file."""
        if not self.path.is_file():
            return []
        with self._connection() as database:
            return [Vote(*row) for row in database.execute(f"SELECT {_NAMES} FROM votes ORDER BY time, rowid")]

    def seen(self, voter: str) -> set[tuple[str, str, int, str, str]]:
        """Keys of the pairs that a voter has voted on."""
        return {vote.pair.key for vote in self.all() if vote.voter == voter}

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, timeout=60)) as database:
                database.execute("PRAGMA synchronous=FULL")  # a vote outlives the machine's power
                with database:
                    yield database
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as error:
            raise InvdiffError(f"the votes in {str(self.path)!r} cannot be read or written: {error}") from None
