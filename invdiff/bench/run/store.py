"""A run folder: what was asked, what came out, and everything needed to repeat it.

    runs/NAME/
      suite.toml        the suite, resolved
      run.json          versions, hardware, command lines, backbone and hash of its checkpoint, images
      results.sqlite    tables `cells` (one row per task, sampler, image and seed), `groups`, `unavailable`; WAL mode
      images/truth/IMAGE.png
      images/TASK/measured/IMAGE.png
      images/TASK/SAMPLER/IMAGE-seedS.png
      images/TASK/truth/IMAGE.png, samples/TASK/SAMPLER/IMAGE-seedS.npy     where x was drawn from a known prior

A row is written when its batch is done, all rows of a batch in one transaction, after their pictures. So a process that
is killed loses the batch in flight and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from invdiff.errors import InvdiffError
from invdiff.files import atomic_write, slug

if TYPE_CHECKING:
    from invdiff.bench.suite.suite import Suite

SUITE, INFO, RESULTS, IMAGES = "suite.toml", "run.json", "results.sqlite", "images"
SAMPLES = "samples"


@dataclass(frozen=True)
class Record:
    """One cell of the grid: one restoration.

    Attributes:
        cell: its key, ``TASK/SAMPLER/IMAGE/SEED``.
        task: name of the task in the suite.
        operator: A as it prints, such as ``Mask(64x64, 50 % known)``.
        sigma_y: standard deviation of the measurement's noise, images in [0, 1].
        sampler: label of the sampler in the suite.
        settings: the sampler's name (key ``"sampler"``) and every hyper-parameter as it was used; for a failed cell
            those that the suite gives.
        image, seed: which.
        status: ``"ok"`` or ``"failed"``; error: what happened, for a failed one.
        nfe: network calls; vjps: vector-Jacobian products of the network; forward_equivalents: both in units of a
            forward call. Per image.
        seconds: wall-clock time of the batch over its size; peak_memory: of the GPU during the batch, MiB.
        metrics: by name; None where a metric was not to be had (see `Run.unavailable`).
        file: the restoration, relative to the run folder.

    Numbers are None where they are not known: for failed cells, and for results made elsewhere.
    """

    cell: str
    task: str
    operator: str
    sigma_y: float
    sampler: str
    settings: dict[str, Any]
    image: str
    seed: int
    status: str = "ok"
    error: str | None = None
    nfe: int | None = None
    vjps: int | None = None
    forward_equivalents: float | None = None
    seconds: float | None = None
    peak_memory: float | None = None
    metrics: dict[str, float | None] = field(default_factory=dict)
    file: str | None = None

    @property
    def ok(self) -> bool:
        """Whether there is a restoration."""
        return self.status == "ok"


@dataclass(frozen=True)
class GroupRecord:
    """A metric of several cells together.

    Attributes:
        task, sampler: which.
        image: of which image, for metrics over its seeds (diversity, calibration); ``""`` for metrics over the whole
            set of restorations (FID, KID, precision, recall).
        metric: its name in `invdiff.metrics`.
        value: None where it was not to be had; the reason stands in `reason`.
    """

    task: str
    sampler: str
    image: str
    metric: str
    value: float | None
    reason: str | None = None


_CELLS = """CREATE TABLE IF NOT EXISTS cells (
    cell TEXT PRIMARY KEY, task TEXT, operator TEXT, sigma_y REAL, sampler TEXT, settings TEXT, image TEXT,
    seed INTEGER, status TEXT, error TEXT, nfe INTEGER, vjps INTEGER, forward_equivalents REAL, seconds REAL,
    peak_memory REAL, metrics TEXT, file TEXT, digest TEXT)"""
_GROUPS = """CREATE TABLE IF NOT EXISTS groups (
    task TEXT, sampler TEXT, image TEXT, metric TEXT, value REAL, reason TEXT,
    PRIMARY KEY (task, sampler, image, metric))"""
_UNAVAILABLE = "CREATE TABLE IF NOT EXISTS unavailable (metric TEXT PRIMARY KEY, reason TEXT)"

_COLUMNS = [f.name for f in fields(Record)]
_DECODED = ("settings", "metrics")


class Run:
    """A run folder. Make one with `create`, open one with `open`.

    Attributes:
        folder: where it is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._suite: Suite | None = None

    # ---- made and opened ----------------------------------------------------------------------------------------

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """The run in `folder`.

        Raises:
            InvdiffError: there is none, or it is damaged.
        """
        path = Path(folder).expanduser()
        missing = [name for name in (SUITE, INFO, RESULTS) if not (path / name).is_file()]
        if missing:
            raise InvdiffError(
                f"{str(folder)!r} is no benchmark run: {missing[0]} is missing. "
                "`invdiff bench SUITE --out FOLDER` makes one; `invdiff score` makes one of restorations that exist"
            )
        run = cls(path)
        if not isinstance(run.info.get("images"), list):
            raise InvdiffError(f"{str(path / INFO)!r} is damaged: it must be the description of a run with its images")
        state = run._read("PRAGMA integrity_check(1)")
        found = {row[0] for row in run._read("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if state != [("ok",)] or not {"cells", "groups", "unavailable"} <= found:
            said = "tables are missing" if state == [("ok",)] else str(state[0][0]).splitlines()[0]
            raise InvdiffError(f"{str(path / RESULTS)!r} is damaged ({said}); take a copy, or run the suite again")
        return run

    @staticmethod
    def exists(folder: str | Path) -> bool:
        """Whether there is a run in `folder`, damaged or not."""
        return (Path(folder).expanduser() / RESULTS).exists()

    @classmethod
    def create(cls, folder: str | Path, suite: Suite, info: Mapping[str, Any]) -> Run:
        """A new, empty run.

        Args:
            folder: must not hold a run yet; made if it doesn't exist.
            suite: written to ``suite.toml``.
            info: written to ``run.json``.

        Raises:
            InvdiffError: `folder` holds a run, or cannot be written.
        """
        path = Path(folder).expanduser()
        if cls.exists(path):
            raise InvdiffError(
                f"{str(folder)!r} holds a run already. Go on with it (--resume, resume=True), take another folder, "
                "or delete it"
            )
        run = cls(path)
        try:
            (path / IMAGES).mkdir(parents=True, exist_ok=True)
            run._write_text(SUITE, suite.to_toml())
            run.write_info(info)
            with atomic_write(path / RESULTS) as temporary, _connection(temporary) as database:  # last: now it is a run
                database.execute("PRAGMA journal_mode=WAL")
                for table in (_CELLS, _GROUPS, _UNAVAILABLE):
                    database.execute(table)
        except (OSError, sqlite3.Error) as error:
            raise InvdiffError(f"the run folder {str(folder)!r} cannot be written: {error}") from None
        return run

    # ---- what was asked ------------------------------------------------------------------------------------------

    @property
    def suite(self) -> Suite:
        """The suite that was run, resolved. Its names are not looked up: a run can be read without its plug-ins."""
        if self._suite is None:
            from invdiff.bench.suite.suite import Suite

            self._suite = Suite.from_toml(self._text(SUITE), str(self.folder / SUITE), check=False)
        return self._suite

    @property
    def info(self) -> dict[str, Any]:
        """What ``run.json`` holds: ``invdiff`` (version), ``backbone`` (name, sha256, image_shape), ``backbones`` (likewise, by
        task, where a task has its own), ``images`` (their names, in order), ``images_from_prior`` (drawn from the backbone
        itself), ``seeds``, ``shard``, ``started``, and ``sessions``, one for every start and resume (command, started,
        versions, hardware).

        Raises:
            InvdiffError: it is damaged.
        """
        try:
            found = json.loads(self._text(INFO))
        except json.JSONDecodeError as error:
            raise InvdiffError(f"{str(self.folder / INFO)!r} is damaged, it is no JSON: {error}") from None
        if not isinstance(found, dict):
            raise InvdiffError(f"{str(self.folder / INFO)!r} is damaged: it must be the description of a run")
        return found

    def write_info(self, info: Mapping[str, Any]) -> None:
        """Replace ``run.json``."""
        self._write_text(INFO, json.dumps(info, indent=2) + "\n")

    # ---- what came out -------------------------------------------------------------------------------------------

    def records(self) -> list[Record]:
        """Every finished cell, in the order of the grid: by task, sampler, image, seed, as the suite lists them."""
        rows = self._read(f"SELECT {', '.join(_COLUMNS)}, digest FROM cells")
        for *row, digest in rows:
            if _digest(row) != digest:
                raise InvdiffError(
                    f"{str(self.folder / RESULTS)!r} is damaged: the cell {row[0]!r} is not as it was written. Take a copy, or "
                    "run the suite again"
                )
        found = [_record(row) for *row, _ in rows]
        order = self._order()
        return sorted(found, key=lambda r: (*order(r.task, r.sampler, r.image), r.seed))

    def groups(self) -> list[GroupRecord]:
        """Metrics over the seeds of an image and over whole sets, in the order of the grid. Written when a run ends."""
        found = [
            GroupRecord(*row) for row in self._read("SELECT task, sampler, image, metric, value, reason FROM groups")
        ]
        order = self._order()
        return sorted(found, key=lambda r: (*order(r.task, r.sampler, r.image), r.metric))

    @property
    def unavailable(self) -> dict[str, str]:
        """Metrics that could not be had for some or all cells, and why and what to do about it."""
        return dict(self._read("SELECT metric, reason FROM unavailable ORDER BY metric"))

    def finished_cells(self) -> set[str]:
        """Keys of the cells that are done, failed ones included."""
        return {row[0] for row in self._read("SELECT cell FROM cells")}

    def image(self, record: Record) -> Image.Image | None:
        """The restoration, or None where the cell failed."""
        return None if record.file is None else _opened(self.folder / record.file)

    def truth(self, image: str, task: str = "") -> Image.Image | None:
        """The true image (of a task that draws its own), or None where it isn't kept."""
        return _opened(self.folder / truth_file(image, task if image.startswith(DRAWN) else ""))

    def samples(self, record: Record) -> np.ndarray | None:
        """The samples of a cell, (n, C, H, W), where they are kept: for the first measurement of a known prior."""
        path = self.folder / samples_file(record.task, record.sampler, record.image, record.seed)
        return np.load(path, allow_pickle=False) if path.is_file() else None

    def measured(self, task: str, image: str) -> Image.Image | None:
        """The measurement as a picture (its pseudo-inverse, where it is none itself), or None where it isn't kept."""
        return _opened(self.folder / measured_file(task, image))

    # ---- written -------------------------------------------------------------------------------------------------

    def write(self, records: Iterable[Record], unavailable: Mapping[str, str] | None = None) -> None:
        """Add finished cells, all or none of them; a cell that is there already is replaced.

        Args:
            records: the cells of a batch.
            unavailable: metrics that could not be had, and why; the first reason is kept.
        """
        rows = [astuple(r) for r in records]
        for number, name in enumerate(_COLUMNS):
            if name in _DECODED:
                rows = [(*row[:number], json.dumps(row[number]), *row[number + 1 :]) for row in rows]
        rows = [(*row, _digest(row)) for row in rows]
        with self._written() as database:
            database.executemany(f"INSERT OR REPLACE INTO cells VALUES ({', '.join('?' * (len(_COLUMNS) + 1))})", rows)
            database.executemany("INSERT OR IGNORE INTO unavailable VALUES (?, ?)", list((unavailable or {}).items()))

    def write_groups(self, groups: Iterable[GroupRecord]) -> None:
        """Replace the metrics over several cells."""
        with self._written() as database:
            database.execute("DELETE FROM groups")
            database.executemany("INSERT INTO groups VALUES (?, ?, ?, ?, ?, ?)", [astuple(g) for g in groups])

    def clear_temporary(self) -> None:
        """Remove what a killed process of this run had half written (see `atomic_write`), and nothing else that lies here.
        Nobody else may be writing."""
        ours = {self.folder / name for name in (SUITE, INFO, RESULTS, *self.files())}
        for folder in {path.parent for path in ours}:
            for path in folder.glob(".*") if folder.is_dir() else ():
                name = re.fullmatch(r"\.(.+)-[a-z0-9_]{8}(\.\w+)", path.name)
                if name and folder / "".join(name.groups()) in ours and path.is_file() and not path.is_symlink():
                    path.unlink(missing_ok=True)

    def files(self) -> Iterator[str]:
        """Every picture and array that the run may hold."""
        suite, names = self.suite, self.info["images"]
        yield from map(truth_file, names)
        for task in suite.tasks:
            for image in suite.images_of(task, names):
                yield from (truth_file(image, task.name), measured_file(task.name, image))
        for task, entry in suite.pairs():
            for image in suite.images_of(task, names):
                for seed in suite.seeds:
                    yield restored_file(task.name, entry.label, image, seed)
                    yield samples_file(task.name, entry.label, image, seed)

    def save(self, file: str, content: np.ndarray | Image.Image) -> None:
        """Write a picture (an image, or uint8 (H, W, C)) or an array below the run folder, whole or not at all.

        Raises:
            InvdiffError: it cannot be written.
        """
        path = self.folder / file
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as temporary:
                if path.suffix == ".npy":
                    with open(temporary, "wb") as opened:
                        np.save(opened, np.asarray(content), allow_pickle=False)
                else:
                    image = Image.fromarray(content) if isinstance(content, np.ndarray) else content
                    image.save(temporary, format="PNG")
        except OSError as error:
            raise self._unwritable(error) from None

    # ---- inside --------------------------------------------------------------------------------------------------

    def _order(self) -> Any:
        suite = self.suite
        tasks = {task.name: i for i, task in enumerate(suite.tasks)}
        samplers = {entry.label: i for i, entry in enumerate(suite.samplers)}
        images = {name: i for i, name in enumerate(self.info.get("images", []))}

        def key(task: str, sampler: str, image: str) -> tuple[Any, ...]:
            last = 1 << 30
            return (tasks.get(task, last), task, samplers.get(sampler, last), sampler, images.get(image, last), image)

        return key

    def _text(self, name: str) -> str:
        try:
            return (self.folder / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvdiffError(f"{str(self.folder / name)!r} cannot be read: {error}") from None

    @contextmanager
    def _written(self) -> Iterator[sqlite3.Connection]:
        try:
            with _connection(self.folder / RESULTS) as database:
                yield database
        except (sqlite3.OperationalError, sqlite3.DatabaseError) as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: Exception) -> InvdiffError:
        return InvdiffError(
            f"the run folder {str(self.folder)!r} cannot be written: {error}. What is finished is kept; go on with --resume"
        )

    def _write_text(self, name: str, text: str) -> None:
        with atomic_write(self.folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def _read(self, query: str) -> list[tuple[Any, ...]]:
        path = self.folder / RESULTS
        try:
            try:
                with _connection(path) as database:
                    return database.execute(query).fetchall()
            except sqlite3.OperationalError:  # a folder that cannot be written, which WAL mode needs
                with closing(sqlite3.connect(f"{path.absolute().as_uri()}?immutable=1", uri=True)) as database:
                    return database.execute(query).fetchall()
        except sqlite3.DatabaseError as error:
            raise InvdiffError(f"{str(path)!r} is damaged: {error}; take a copy, or run the suite again") from None


@contextmanager
def _connection(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection whose changes are committed together at the end of the block, or not at all."""
    database = sqlite3.connect(path, timeout=60)
    try:
        with database:
            yield database
    finally:
        database.close()


# ---- names of files ----------------------------------------------------------------------------------------------


DRAWN = "x-"
"""How the names of images begin that a task draws from its backbone's known prior."""


def truth_file(image: str, task: str = "") -> str:
    """Where the true image is, relative to the run folder; below its task, where that draws its own."""
    return f"{IMAGES}/{slug(task)}/truth/{slug(image)}.png" if task else f"{IMAGES}/truth/{slug(image)}.png"


def samples_file(task: str, sampler: str, image: str, seed: int) -> str:
    """Where the samples of a cell are."""
    return f"{SAMPLES}/{slug(task)}/{slug(sampler)}/{slug(image)}-seed{seed}.npy"


def measured_file(task: str, image: str) -> str:
    """Where the picture of a measurement is."""
    return f"{IMAGES}/{slug(task)}/measured/{slug(image)}.png"


def restored_file(task: str, sampler: str, image: str, seed: int) -> str:
    """Where a restoration is."""
    return f"{IMAGES}/{slug(task)}/{slug(sampler)}/{slug(image)}-seed{seed}.png"


def cell_key(task: str, sampler: str, image: str, seed: int) -> str:
    """The key of a cell."""
    return f"{task}/{sampler}/{image}/{seed}"


def _digest(row: Sequence[Any]) -> str:
    """A checksum of a row: the database's own check does not see a changed number."""
    plain = [float(value) if isinstance(value, int | float) else value for value in row]
    return hashlib.blake2b(repr(plain).encode(), digest_size=8).hexdigest()


def _record(row: Sequence[Any]) -> Record:
    values = dict(zip(_COLUMNS, row, strict=True))
    for name in _DECODED:
        values[name] = json.loads(values[name])
    return Record(**values)


def _opened(path: Path) -> Image.Image | None:
    if not path.is_file():
        return None
    with Image.open(path) as image:
        image.load()
        return image
