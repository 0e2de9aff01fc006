"""A suite: what is compared on what. Written as a TOML file, read with the line of every mistake.

backbone = "cats64"
images = "prior"            # drawn from the backbone itself; or a folder or zip of pictures
n_images = 8
seeds = [0, 1]
metrics = ["psnr", "lpips", "misfit"]

[[tasks]]
name = "half"
operator = "mask"           # the rest are options of the operator; masks and kernels by the name of their generator
mask = "half"
sigma_y = 0.0               # images in [0, 1]

[[samplers]]
name = "repaint"            # the rest are options of the sampler, as for `solve`
label = "RePaint"
steps = 50
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from invdiff.checks import whole
from invdiff.errors import InvdiffError, near_match
from invdiff.files import slug
from invdiff.metrics import metric_names
from invdiff.operators.base import LinearOperator
from invdiff.operators.registry import get_operator, make_operator, operator_names
from invdiff.problem import Problem
from invdiff.samplers.base import Cost, Sampler, sampler_class, sampler_names
from invdiff.samplers.paths import PATHS, make_path
from invdiff.solve import resolve_sampler

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PRIOR = "prior"
SUITES = Path(__file__).parent / "suites"

_REPRESENTATIVE = (3, 64, 64)  # the size of image that a task is tried on when a suite is read


# ---- the parts of a suite ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """A measurement to be inverted.

    Attributes:
        name: unique in the suite.
        operator: a name of `operator_names`.
        options: of the operator, as `make_operator` takes them: ``mask``, ``kernel``, ``scale``, ...
        sigma_y: standard deviation of the noise, images in [0, 1].
        per_image: draw another mask for every image: its seed is the option ``seed`` + the number of the image.
    """

    name: str
    operator: str
    options: dict[str, Any] = field(default_factory=dict)
    sigma_y: float = 0.0
    per_image: bool = False

    def build(self, image_shape: Sequence[int], images: Sequence[int] = (0,)) -> LinearOperator:
        """The operator for images of (C, H, W).

        Args:
            image_shape: of the images.
            images: their numbers in the suite, one per image of the batch; read where `per_image` is set only.

        Raises:
            InvdiffError: unknown operator or option (with the near match), or a value that it doesn't take.
        """
        options = dict(self.options)
        if self.per_image:
            seed = whole("seed", options.get("seed", 0), 0)
            options["seed"] = [seed + i for i in images]
        return make_operator(self.operator, tuple(int(n) for n in image_shape), **options)

    def reads_files(self) -> bool:
        """Whether an option is a picture's path, so that the operator is for images of that picture's size only."""
        return any(_is_picture(self.options.get(name)) for name in get_operator(self.operator).framed)

    def to_dict(self) -> dict[str, Any]:
        """As in the suite's file."""
        extra = {"per_image": True} if self.per_image else {}
        return {"name": self.name, "operator": self.operator, **self.options, "sigma_y": self.sigma_y, **extra}


@dataclass(frozen=True)
class SamplerEntry:
    """A sampler with its settings.

    Attributes:
        label: what the report calls it; unique in the suite.
        name: a name of `sampler_names`.
        options: as `solve` takes them: fields of the sampler, ``path`` and its options.
    """

    label: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def resolve(self, task: Task, image_shape: Sequence[int]) -> tuple[Sampler, Any, dict[str, Any]]:
        """The sampler object for a task, tuned settings included, its path and the path's options.

        Raises:
            InvdiffError: unknown sampler or option, or a value out of its range.
        """
        empty = torch.empty(0)
        options = dict(self.options)
        path = options.pop("path", None)
        problem = Problem(task.build(image_shape), empty, empty, task.sigma_y, tuple(image_shape))
        sampler, path_options = resolve_sampler(self.name, problem, path, None, options)
        return sampler, path, path_options

    def cost(self, task: Task, image_shape: Sequence[int], schedule: Any) -> Cost:
        """Network calls and vector-Jacobian products per image, known before a run.

        Raises:
            InvdiffError: as `resolve`; also a path that doesn't fit the number of steps.
        """
        sampler, path, path_options = self.resolve(task, image_shape)
        clock = sampler.respaced(schedule)
        return sampler.cost(schedule, None if path is None else make_path(path, len(clock), **path_options))

    def network_calls(self, task: Task, image_shape: Sequence[int], schedule: Any) -> int:
        """Network calls per image, known before a run; raises as `cost`."""
        return self.cost(task, image_shape, schedule).calls

    def to_dict(self) -> dict[str, Any]:
        """As in the suite's file."""
        return {"label": self.label, "name": self.name, **self.options}


@dataclass(frozen=True)
class PublishedRow:
    """A row of a paper's table.

    Attributes:
        setting: data and conditions, such as ``"CelebA-HQ 256"``.
        method: as the paper calls it; where it equals a sampler's label, the report sets the two side by side.
        metric: in the words of `invdiff.metrics` where it is one of those, such as ``"lpips"``.
        values: by name of the task.
    """

    setting: str
    method: str
    metric: str
    values: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """As in the suite's file."""
        return {"setting": self.setting, "method": self.method, "metric": self.metric, "values": self.values}


@dataclass(frozen=True)
class Published:
    """Numbers that others published, to be set beside ours. Never to be put in one column: weights, images, masks and
    the version of a metric differ.

    Attributes:
        source: paper and table.
        note: what differs, what is missing.
        rows: the table.
    """

    source: str
    note: str = ""
    rows: tuple[PublishedRow, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As in the suite's file."""
        return {"source": self.source, "note": self.note, "rows": [row.to_dict() for row in self.rows]}


@dataclass(frozen=True)
class Suite:
    """A grid: every task by every sampler by every image by every seed.

    Attributes:
        name: of the suite.
        tasks, samplers: see `Task`, `SamplerEntry`.
        description: what it shows, for the report's head.
        backbone: a name or path for `load_backbone`; backbone_options: further arguments of it, such as ``preset``.
        images: ``"prior"``, images drawn from the backbone itself, so that truth comes from the very prior; or a
            folder, a zip or a picture.
        n_images: how many; 0 for all of a folder.
        image_seed, image_steps: of the draws, where `images` is ``"prior"``.
        seeds: of the restorations; seed s of a cell is ``solve(seed=s)``.
        metrics: names of `metric_names`; what a run costs is recorded in any case.
        batch_size: restorations run at once; 0 for as many as fit into modest memory. Part of the suite, for a network
            in reduced precision rounds differently in another batch.
        published: numbers from a paper.
    """

    name: str
    tasks: tuple[Task, ...]
    samplers: tuple[SamplerEntry, ...]
    description: str = ""
    backbone: str = "cats64"
    backbone_options: dict[str, Any] = field(default_factory=dict)
    images: str = PRIOR
    n_images: int = 8
    image_seed: int = 0
    image_steps: int = 100
    seeds: tuple[int, ...] = (0,)
    metrics: tuple[str, ...] = ("psnr", "ssim", "lpips", "misfit")
    batch_size: int = 0
    published: Published | None = None

    # ---- read and written ----------------------------------------------------------------------------------------

    @classmethod
    def from_toml(cls, text: str, source: str = "suite", *, check: bool = True) -> Suite:
        """The suite that a TOML text describes.

        Args:
            text: TOML.
            source: its file, for messages.
            check: look names and options up, and try every operator; False to read an old run.

        Raises:
            InvdiffError: with the line of the mistake.
        """
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise InvdiffError(f"{source} is no TOML: {error}") from None
        return _Reader(data, source, _lines(text), check).suite()

    def to_toml(self) -> str:
        """The suite as TOML; `from_toml` gives it back."""
        return _toml(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """As in the suite's file, everything spelled out."""
        data: dict[str, Any] = {
            "name": self.name,
            "description": self.description,
            "backbone": self.backbone,
            "backbone_options": self.backbone_options,
            "images": self.images,
            "n_images": self.n_images,
            "image_seed": self.image_seed,
            "image_steps": self.image_steps,
            "seeds": list(self.seeds),
            "metrics": list(self.metrics),
            "batch_size": self.batch_size,
            "tasks": [task.to_dict() for task in self.tasks],
            "samplers": [entry.to_dict() for entry in self.samplers],
        }
        return data if self.published is None else {**data, "published": self.published.to_dict()}

    def differences(self, other: Suite) -> list[str]:
        """Names of what differs between two suites and matters for the numbers."""
        a, b = self.to_dict(), other.to_dict()
        return [key for key in a if key not in ("name", "description", "published") and a[key] != b[key]]

    # ---- changed and looked up -----------------------------------------------------------------------------------

    def override(
        self,
        *,
        samplers: str | Sequence[str] | None = None,
        images: str | Path | None = None,
        backbone: str | Path | None = None,
        seeds: int | Sequence[int] | None = None,
        n_images: int | None = None,
        metrics: str | Sequence[str] | None = None,
    ) -> Suite:
        """The suite with parts replaced, as the command line does it.

        Args:
            samplers: labels or names, a list or separated by commas. Those that the suite has are taken with its
                settings (a name takes all entries of that sampler), others with their defaults.
            images: ``"prior"``, a folder, a zip or a picture; n_images is then all, unless given.
            backbone: name or path. The suite's options for its own are kept for a file of the same kind (.pt).
            seeds: how many (0, 1, ...), or which.
            n_images: how many; 0 for all.
            metrics: names, a list or separated by commas.

        Raises:
            InvdiffError: an unknown name, with the near match, or a number that makes no sense.
        """
        changes: dict[str, Any] = {}
        if samplers is not None:
            changes["samplers"] = self._picked(_names(samplers))
        if images is not None:
            changes["images"] = str(images) if str(images) == PRIOR else str(_existing(Path(images)))
            if changes["images"] != PRIOR and n_images is None:
                changes["n_images"] = 0
        if backbone is not None:
            path = Path(backbone).expanduser()
            changes["backbone"] = str(path.resolve()) if path.exists() else str(backbone)
            if Path(self.backbone).suffix != path.suffix:
                changes["backbone_options"] = {}
        if seeds is not None:
            changes["seeds"] = _seeds(seeds)
        if n_images is not None:
            changes["n_images"] = _whole("n_images", n_images, 0)
        if metrics is not None:
            changes["metrics"] = tuple(_known("metric", name, metric_names()) for name in _names(metrics))
        new = replace(self, **changes)
        if new.images == PRIOR and new.n_images == 0:
            raise InvdiffError(
                "n_images must be at least 1 where images are drawn from the backbone (images = 'prior')"
            )
        return new

    def _picked(self, names: Sequence[str]) -> tuple[SamplerEntry, ...]:
        found: list[SamplerEntry] = []
        for name in names:
            key = name.lower()
            mine = [e for e in self.samplers if key in (e.label.lower(), e.name.lower())]
            if not mine:
                known = [*(e.label for e in self.samplers), *sampler_names()]
                if name not in sampler_names():
                    raise InvdiffError(f"unknown sampler {name!r}; one of {', '.join(known)}.{near_match(name, known)}")
                mine = [SamplerEntry(name, name)]
            found += [entry for entry in mine if entry not in found]
        return tuple(found)

    def task(self, name: str) -> Task:
        """The task of that name."""
        return next(task for task in self.tasks if task.name == name)

    def sampler(self, label: str) -> SamplerEntry:
        """The sampler with that label."""
        return next(entry for entry in self.samplers if entry.label == label)


# ---- where suites come from --------------------------------------------------------------------------------------


def suite_names() -> list[str]:
    """Names of the suites that ship with the package, such as ``quick`` and ``papers/repaint``."""
    return sorted(path.relative_to(SUITES).with_suffix("").as_posix() for path in SUITES.rglob("*.toml"))


def load_suite(name_or_path: str | Path, **overrides: Any) -> Suite:
    """A suite that ships with the package, or one of your own.

    Args:
        name_or_path: a name of `suite_names`, or the path of a TOML file.
        **overrides: see `Suite.override`.

    Raises:
        InvdiffError: there is none, or it has a mistake: the message names its line.
    """
    name = str(name_or_path)
    ours = name in suite_names()
    path = SUITES / f"{name}.toml" if ours else Path(name).expanduser()
    if not path.is_file():
        names = suite_names()
        raise InvdiffError(
            f"unknown suite {name!r}: neither one of {', '.join(names)} nor a file that exists.{near_match(name, names)}"
        )
    suite = Suite.from_toml(path.read_text(encoding="utf-8"), str(name_or_path))
    if suite.images != PRIOR:
        beside = (Path() if ours else path.parent).joinpath(Path(suite.images).expanduser()).resolve()
        suite = replace(suite, images=str(beside))
    return suite.override(**overrides)


# ---- reading, with lines -----------------------------------------------------------------------------------------

_TOP: dict[str, Any] = {
    "name": str, "description": str, "backbone": str, "backbone_options": dict, "images": str, "n_images": int, "image_seed": int,
    "image_steps": int, "seeds": (int, list), "metrics": list, "batch_size": int, "tasks": list, "samplers": list,
    "published": dict,
}  # fmt: skip


class _Reader:
    """From a parsed TOML file to a `Suite`; every complaint has a line."""

    def __init__(self, data: dict[str, Any], source: str, lines: dict[tuple[Any, ...], int], check: bool) -> None:
        self.data, self.source, self.lines, self.check = data, source, lines, check

    def suite(self) -> Suite:
        data = self.data
        for key, value in data.items():
            if key not in _TOP:
                self.fail((key,), f"unknown key {key!r}; a suite has {', '.join(_TOP)}.{near_match(key, _TOP)}")
            if not isinstance(value, _TOP[key]) or isinstance(value, bool):
                kinds = _TOP[key] if isinstance(_TOP[key], tuple) else (_TOP[key],)
                self.fail((key,), f"{key} must be {' or '.join(_KINDS[k] for k in kinds)}, got {value!r}")
        for key in ("tasks", "samplers"):
            if not data.get(key) or not all(isinstance(row, dict) for row in data[key]):
                self.fail((key,), f"a suite needs at least one [[{key}]]")
        plain: dict[str, Any] = {
            k: data[k] for k in ("description", "backbone", "backbone_options", "images") if k in data
        }
        for key, least in (("n_images", 0), ("image_seed", 0), ("image_steps", 1), ("batch_size", 0)):
            if key in data:
                plain[key] = self.at((key,), _whole, key, data[key], least)
        if "seeds" in data:
            plain["seeds"] = self.at(("seeds",), _seeds, data["seeds"])
        if "metrics" in data:
            known = partial(_known, "metric", names=metric_names())
            plain["metrics"] = tuple(self.at(("metrics",), known, m) if self.check else m for m in data["metrics"])
        if plain.get("images", PRIOR) == PRIOR and plain.get("n_images") == 0:
            self.fail(("n_images",), "n_images must be at least 1 where images = 'prior'")
        tasks = [self.task(i, dict(row)) for i, row in enumerate(data["tasks"])]
        samplers = [e for i, row in enumerate(data["samplers"]) for e in self.samplers(i, dict(row))]
        self.distinct("tasks", [t.name for t in tasks])
        self.distinct("samplers", [e.label for e in samplers])
        suite = Suite(data.get("name", Path(self.source).stem), tuple(tasks), tuple(samplers), **plain)
        if "published" in data:
            suite = replace(suite, published=self.published(data["published"], [t.name for t in tasks]))
        return suite

    def task(self, number: int, row: dict[str, Any]) -> Task:
        where = ("tasks", number)
        for key in ("name", "operator"):
            if not isinstance(row.get(key), str):
                self.fail((*where, key), f"a task needs {key} = a string")
        name, operator = row.pop("name"), row.pop("operator")
        sigma_y, per_image = row.pop("sigma_y", 0.0), row.pop("per_image", False)
        if isinstance(sigma_y, bool) or not isinstance(sigma_y, int | float) or not 0 <= sigma_y < float("inf"):
            self.fail((*where, "sigma_y"), f"sigma_y must be a number of at least 0, got {sigma_y!r}")
        if per_image not in (True, False):
            self.fail((*where, "per_image"), f"per_image must be true or false, got {per_image!r}")
        task = Task(name, operator, row, float(sigma_y), bool(per_image))
        if self.check:
            self.at((*where, "operator"), _known, "operator", operator, operator_names())
            if per_image and (operator != "mask" or task.reads_files()):
                self.fail((*where, "per_image"), "per_image is for masks that are drawn by a generator")
            if not task.reads_files():
                try:
                    task.build(_REPRESENTATIVE)
                except InvdiffError as error:
                    said = [key for key, value in row.items() if repr(key) in str(error) or repr(value) in str(error)]
                    self.fail((*where, *said[:1]), str(error))
        return task

    def samplers(self, number: int, row: dict[str, Any]) -> list[SamplerEntry]:
        """The entries of one table: several, where it holds a grid."""
        where = ("samplers", number)
        if not isinstance(row.get("name"), str):
            self.fail((*where, "name"), "a sampler needs name = a string")
        name, grid = row.pop("name"), row.pop("grid", {})
        label = row.pop("label", name)
        if not isinstance(label, str) or not label:
            self.fail((*where, "label"), f"label must be a string, got {label!r}")
        if not isinstance(grid, dict) or not all(isinstance(v, list) and v for v in grid.values()):
            self.fail((*where, "grid"), "grid must hold lists of values, such as grid = { steps = [10, 100] }")
        if self.check:
            self.at((*where, "name"), sampler_class, name)
            fields = [*(f.name for f in dataclasses.fields(sampler_class(name))), "path"]
            if row.get("path") in PATHS:
                fields += list(inspect.signature(PATHS[row["path"]]).parameters)[1:]
            for key in (*row, *grid):
                if key not in fields:
                    line = (*where, key) if key in row else (*where, "grid", key)
                    has = f"it has {', '.join(fields)}"
                    self.fail(line, f"unknown option {key!r} for sampler {name}; {has}.{near_match(key, fields)}")
        entries = []
        for values in itertools.product(*grid.values()):
            chosen = dict(zip(grid, values, strict=True))
            suffix = " ".join(f"{k}={v}" for k, v in chosen.items())
            entry = SamplerEntry(f"{label} {suffix}".strip(), name, {**row, **chosen})
            if self.check:
                self.at(where, entry.resolve, Task("", "identity"), _REPRESENTATIVE)
            entries.append(entry)
        return entries

    def published(self, table: dict[str, Any], tasks: list[str]) -> Published:
        for key in table:
            if key not in ("source", "note", "rows"):
                self.fail(("published", key), f"unknown key {key!r}; published has source, note, rows")
        rows = []
        for number, row in enumerate(table.get("rows", [])):
            where = ("published", "rows", number)
            if set(row) != {"setting", "method", "metric", "values"}:
                self.fail(where, f"a published row has setting, method, metric, values; got {', '.join(row)}")
            for name in row["values"] if self.check else ():
                self.at(where, _known, "task", name, tasks)
            rows.append(PublishedRow(**{**row, "values": {k: float(v) for k, v in row["values"].items()}}))
        return Published(table.get("source", ""), table.get("note", ""), tuple(rows))

    def distinct(self, key: str, names: list[str]) -> None:
        seen: dict[str, str] = {}
        for name in names:
            folder = slug(name).lower()
            if folder in ("measured", "truth") and self.check:
                self.fail((key,), f"{name!r} cannot be a name in {key}: the run folder uses it")
            if folder in seen:
                what = (
                    f"{name!r} is there twice" if seen[folder] == name else f"{seen[folder]!r} and {name!r} are alike"
                )
                self.fail((key,), f"names must differ in {key}, also as folder names: {what}")
            seen[folder] = name

    def at(self, where: tuple[Any, ...], check: Callable[..., Any], *args: Any) -> Any:
        """The result of a check, its complaint with a line."""
        try:
            return check(*args)
        except (InvdiffError, TypeError) as error:
            self.fail(where, str(error))

    def fail(self, where: tuple[Any, ...], what: str) -> Any:
        while where and where not in self.lines:
            where = where[:-1]
        line = f", line {self.lines[where]}" if where else ""
        raise InvdiffError(f"{self.source}{line}: {what}")


_KINDS = {str: "a string", int: "a whole number", list: "a list", dict: "a table"}
_TOKEN = re.compile(
    r'"""[\s\S]*?"""|\'\'\'[\s\S]*?\'\'\'|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'|#[^\n]*|[\[\]{},=\n]|[^\s\[\]{},=#"\']+|[^\S\n]+'
)
_HEADER = re.compile(r"\[\[?\s*([^\[\]\n]+?)\s*\]\]?[^\n]*")


def _lines(text: str) -> dict[tuple[Any, ...], int]:
    """The line of every key and table of a TOML text that parses: ``("samplers", 1, "steps") -> 12``."""
    found: dict[tuple[Any, ...], int] = {}
    count: dict[tuple[Any, ...], int] = {}  # tables seen of every array of tables
    base: tuple[Any, ...] = ()
    stack: list[list[Any]] = []  # [path, number of the element or None] of the open brackets of a value
    key: tuple[Any, ...] = ()
    start, at = True, 0
    while at < len(text):
        line = text.count("\n", 0, at) + 1
        if start and not stack and (header := _HEADER.match(text, at)):
            base = ()
            for part in _parts(header[1]):
                base = (*base, part)
                if base in count and not (header[0].startswith("[[") and part == _parts(header[1])[-1]):
                    base = (*base, count[base] - 1)
            if header[0].startswith("[["):
                found.setdefault(base, line)
                count[base] = count.get(base, 0) + 1
                base = (*base, count[base] - 1)
            found.setdefault(base, line)
            at, start = header.end(), False
            continue
        match = _TOKEN.match(text, at)
        if match is None:
            at += 1
            continue
        token, at = match[0], match.end()
        in_table = not stack or stack[-1][1] is None
        here = (stack[-1][0] if stack[-1][1] is None else (*stack[-1][0], stack[-1][1])) if stack else base
        if token == "\n":
            start = True
            continue
        if token[0] in " \t\r#":
            continue
        if token == "[":
            stack.append([key if in_table else here, 0])
        elif token == "{":
            stack.append([key if in_table else here, None])
            found.setdefault(stack[-1][0], line)
        elif token in "]}":
            stack.pop()
        elif token == "," and not in_table:
            stack[-1][1] += 1
        elif in_table and re.match(r"[^\S\n]*=", text[at:]):
            key = (*here, *_parts(token))
            found.setdefault(key, line)
        start = False
    return found


def _parts(key: str) -> list[str]:
    """The parts of a dotted key."""
    return [part.strip("\"'") for part in re.findall(r'"[^"]*"|\'[^\']*\'|[^.\s]+', key)]


# ---- writing -----------------------------------------------------------------------------------------------------


def _toml(data: Mapping[str, Any]) -> str:
    tables = [key for key in ("tasks", "samplers") if key in data]
    out = [f"{_key(k)} = {_value(v)}" for k, v in data.items() if k not in tables and k != "published"]
    for key in tables:
        for row in data[key]:
            out += ["", f"[[{key}]]", *(f"{_key(k)} = {_value(v)}" for k, v in row.items())]
    if "published" in data:
        table = dict(data["published"])
        rows = ",\n".join(f"  {_value(row)}" for row in table.pop("rows"))
        out += ["", "[published]", *(f"{_key(k)} = {_value(v)}" for k, v in table.items()), f"rows = [\n{rows}\n]"]
    return "\n".join(out) + "\n"


def _key(key: str) -> str:
    return key if re.fullmatch(r"[\w-]+", key, re.ASCII) else json.dumps(key, ensure_ascii=False)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, Iterable):
        return "[" + ", ".join(map(_value, value)) + "]"
    raise InvdiffError(f"a suite cannot hold {value!r}")


# ---- small checks ------------------------------------------------------------------------------------------------


def _known(what: str, name: Any, names: Sequence[str]) -> str:
    if name not in names:
        raise InvdiffError(f"unknown {what} {name!r}; one of {', '.join(names)}.{near_match(str(name), names)}")
    return str(name)


def _whole(what: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvdiffError(f"{what} must be a whole number of at least {least}, got {value!r}")
    return value


def _seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    """How many, or which."""
    if isinstance(seeds, int):
        return tuple(range(_whole("seeds", seeds, 1)))
    found = tuple(_whole("a seed", s, 0) for s in seeds)
    if not found or len(set(found)) != len(found):
        raise InvdiffError(f"seeds must be a number of seeds, or a list of different ones; got {list(found)}")
    return found


def _names(names: str | Sequence[str]) -> list[str]:
    parts = names.split(",") if isinstance(names, str) else list(names)
    found = [part.strip() for part in parts if part.strip()]
    if not found:
        raise InvdiffError(f"expected names, a list or separated by commas, got {names!r}")
    return found


def _existing(path: Path) -> Path:
    full = path.expanduser().resolve()
    if not full.exists():
        raise InvdiffError(
            f"images: {str(path)!r} does not exist; a folder, a zip or a picture is expected, or 'prior'"
        )
    return full


def _is_picture(mask: Any) -> bool:
    return isinstance(mask, str) and bool(Path(mask).suffix)
