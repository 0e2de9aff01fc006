"""From a TOML text to a `Suite`. Every complaint names its key: ``mine.toml: tasks[1].scale must be ...``."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import invdiff.bench.suite.suite as s
from invdiff.checks import flag, known, one_of, real, shown, whole
from invdiff.errors import InvdiffError
from invdiff.extensions import import_extensions
from invdiff.files import slug
from invdiff.metrics import metric_names
from invdiff.operators.registry import operator_names
from invdiff.samplers.base import sampler_class
from invdiff.samplers.paths import PATHS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_REPRESENTATIVE = (3, 64, 64)  # the size of image that a task is tried on when a suite is read


def read(text: str, source: str, check: bool, folder: Path | None) -> s.Suite:
    """See `Suite.from_toml`."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvdiffError(f"{source} is no TOML: {error}") from None
    try:
        return _suite(_Table(data, ""), Path(source).stem, check, folder)
    except InvdiffError as error:
        raise InvdiffError(f"{source}: {error}") from None


class _Table:
    """A table of the file and the key under which it stands; what is taken from it is checked."""

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, Mapping):
            raise InvdiffError(f"{where or 'the file'} must be a table, got {shown(values)}")
        self.values, self.where = dict(values), where

    def key(self, name: str) -> str:
        """Its full name, for messages."""
        return f"{self.where}.{name}" if self.where else name

    def take(self, name: str, check_value: Callable[..., Any], default: Any = None, /, **bounds: Any) -> Any:
        """The value of a key, checked, or `default`; the key is gone afterwards."""
        if name not in self.values:
            return default
        return check_value(self.key(name), self.values.pop(name), **bounds)

    def tables(self, name: str) -> list[_Table]:
        """An array of tables."""
        rows = self.values.pop(name, None)
        if not isinstance(rows, list) or not rows:
            raise InvdiffError(f"a suite needs at least one [[{name}]]")
        return [_Table(row, f"{self.key(name)}[{i}]") for i, row in enumerate(rows)]

    def expanded(self) -> Iterator[tuple[str, _Table]]:
        """The table once for every combination of its ``grid = { key = [values] }``, with ``key=value`` of that one."""
        grid = self.take("grid", _dict, {})
        for name, values in grid.items():
            if not isinstance(values, list) or not values:
                raise InvdiffError(
                    f"{self.key('grid')} must hold lists of values, such as grid = {{ steps = [10, 100] }}; "
                    f"got {name} = {shown(values)}"
                )
        for chosen in itertools.product(*grid.values()):
            point = dict(zip(grid, chosen, strict=True))
            said = " ".join(_short(v) if k == "name" else f"{k}={_short(v)}" for k, v in point.items())
            values = {**self.values, **point}
            if "name" in grid:  # the word for it is its name
                values.setdefault("label", "")
            yield said, _Table(values, self.where)

    def at(self, check: Callable[..., Any], *args: Any) -> Any:
        """The result of a check, its complaint with the key that it speaks of, if one is named in it."""
        try:
            return check(*args)
        except (InvdiffError, TypeError) as error:
            said = [k for k, v in self.values.items() if repr(k) in str(error) or repr(v) in str(error)]
            said += [k for k in self.values if f"{k} " in str(error)]
            raise InvdiffError(f"{self.key(said[0]) if said else self.where}: {error}") from None


def _suite(top: _Table, stem: str, check: bool, folder: Path | None) -> s.Suite:
    imports = top.take("imports", _texts, ())
    if check:
        import_extensions(imports, beside=folder)
    tasks, samplers = top.tables("tasks"), top.tables("samplers")
    published = top.values.pop("published", None)
    plain: dict[str, Any] = {
        "imports": imports,
        "name": top.take("name", _text, stem),
        "description": top.take("description", _text, ""),
        "backbone": top.take("backbone", _text, s.Suite.backbone),
        "backbone_options": top.take("backbone_options", _dict, {}),
        "images": top.take("images", _text, s.PRIOR),
        "n_images": top.take("n_images", whole, s.Suite.n_images, low=0),
        "image_seed": top.take("image_seed", whole, 0, low=0),
        "image_steps": top.take("image_steps", whole, s.Suite.image_steps, low=1),
        "seeds": top.take("seeds", _seeds, (0,)),
        "metrics": top.take("metrics", _metrics, s.Suite.metrics, check=check),
        "n_samples": top.take("n_samples", whole, 1, low=1),
        "measurements": top.take("measurements", whole, 0, low=0),
        "value_range": top.take("value_range", _range, (0.0, 1.0)),
        "batch_size": top.take("batch_size", whole, 0, low=0),
    }
    known("a suite", top.values, [*plain, "tasks", "samplers", "published"], "key")
    if plain["images"] == s.PRIOR and plain["n_images"] == 0:
        raise InvdiffError("n_images must be at least 1 where images = 'prior', got 0")
    suite = s.Suite(
        tasks=tuple(_task(point, name, check) for table in tasks for name, point in table.expanded()),
        samplers=tuple(_sampler(point, name, check) for table in samplers for name, point in table.expanded()),
        **plain,
    )
    _distinct("tasks", [t.name for t in suite.tasks], check)
    _distinct("samplers", [e.label for e in suite.samplers], check)
    if check:
        for task in suite.tasks:
            words = [w for e in suite.samplers for w in (e.label, e.name)]
            known(f"the settings of task {task.name!r}", task.settings, words, "sampler")
            for entry in suite.samplers:
                if entry.runs_on(task) and entry.name != s.EXACT and (task.settings or task is suite.tasks[0]):
                    _named(f"samplers, {entry.label}", entry.resolve, replaced(task), _REPRESENTATIVE)
        for number, entry in enumerate(suite.samplers):
            if not any(entry.runs_on(task) for task in suite.tasks):
                raise InvdiffError(f"samplers[{number}].tasks must match a task or a part, got {list(entry.tasks)}")
    if published is not None:
        names = [t.name for t in suite.tasks]
        suite = dataclasses.replace(suite, published=_published(_Table(published, "published"), names, check))
    return suite


def replaced(task: s.Task) -> s.Task:
    """The task with an operator that needs nothing, to try a sampler's settings on."""
    return dataclasses.replace(task, operator="identity", options={}, per_image=False)


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise InvdiffError(f"{name} must be a list of strings, got {shown(value)}")
    return tuple(_text(f"{name}[{number}]", item) for number, item in enumerate(value))


def _task(table: _Table, suffix: str, check: bool) -> s.Task:
    for key in ("name", "operator"):
        if key not in table.values:
            raise InvdiffError(f"{table.where} must have {key} = a string")
    own: dict[str, Any] = {
        "name": f"{table.take('name', _text)} {suffix}".strip(),
        "operator": table.take("operator", _text),
        "sigma_y": table.take("sigma_y", real, 0.0, low=0),
        "per_image": table.take("per_image", flag, False),
        "part": table.take("part", _text, ""),
        "backbone": table.take("backbone", _text),
        "backbone_options": table.take("backbone_options", _dict, {}),
        "n_samples": table.take("n_samples", whole, None, low=1),
        "measurements": table.take("measurements", whole, None, low=0),
        "metrics": table.take("metrics", _metrics, None, check=check),
        "settings": table.take("settings", _dict, {}),
        "picture": tuple(table.take("picture", _list, [])),
    }
    task = s.Task(options=table.values, **own)
    if check:
        one_of(f"{table.where}.operator", task.operator, operator_names())
        from_file = task.reads_files()
        if task.per_image and (task.operator != "mask" or from_file):
            raise InvdiffError(f"{table.where}.per_image is for masks that are drawn by a generator")
        if task.backbone is None and not from_file:
            table.at(task.build, _REPRESENTATIVE)
    return task


def _sampler(table: _Table, suffix: str, check: bool) -> s.SamplerEntry:
    if "name" not in table.values:
        raise InvdiffError(f"{table.where} must have name = a string")
    name = table.take("name", _text)
    label = f"{table.take('label', _text, name)} {suffix}".strip()
    tasks = tuple(_text(table.key("tasks"), p) for p in table.take("tasks", _list, []))
    entry = s.SamplerEntry(label, name, table.values, tasks)
    if check and name == s.EXACT:
        known(f"{table.where}: {s.EXACT}", table.values, [])
    elif check:
        cls = _named(f"{table.where}.name", sampler_class, name)
        fields = [*(f.name for f in dataclasses.fields(cls)), "path", "preset"]
        if table.values.get("path") in PATHS:
            fields += list(inspect.signature(PATHS[table.values["path"]]).parameters)[1:]
        known(f"{table.where}: sampler {name}", table.values, fields)
        table.at(entry.resolve, s.Task("", "identity"), _REPRESENTATIVE)
    return entry


def _published(table: _Table, tasks: list[str], check: bool) -> s.Published:
    rows = []
    for row in table.tables("rows") if "rows" in table.values else []:
        if set(row.values) != {"setting", "method", "metric", "values"}:
            raise InvdiffError(f"{row.where} must have setting, method, metric, values; got {', '.join(row.values)}")
        for name in row.values["values"] if check else ():
            one_of(f"{row.where}.values", name, tasks)
        rows.append(s.PublishedRow(**{**row.values, "values": {k: float(v) for k, v in row.values["values"].items()}}))
    source, note = table.take("source", _text, ""), table.take("note", _text, "")
    known("published", table.values, ["source", "note", "rows"], "key")
    return s.Published(source, note, tuple(rows))


def _distinct(key: str, names: list[str], check: bool) -> None:
    seen: dict[str, str] = {}
    for name in names:
        folder = slug(name).lower()
        if folder in ("measured", "truth", "samples") and check:
            raise InvdiffError(f"{name!r} cannot be a name in {key}: the run folder uses it")
        if folder in seen:
            what = f"{name!r} is there twice" if seen[folder] == name else f"{seen[folder]!r} and {name!r} are alike"
            raise InvdiffError(f"names must differ in {key}, also as folder names: {what}")
        seen[folder] = name


# ---- single values -----------------------------------------------------------------------------------------------


def _named(where: str, check: Callable[..., Any], *args: Any) -> Any:
    try:
        return check(*args)
    except (InvdiffError, TypeError) as error:
        raise InvdiffError(f"{where}: {error}") from None


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvdiffError(f"{name} must be a string, got {shown(value)}")
    return value


def _dict(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvdiffError(f"{name} must be a table, got {shown(value)}")
    return value


def _list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise InvdiffError(f"{name} must be a list, got {shown(value)}")
    return value


def _seeds(name: str, value: Any) -> tuple[int, ...]:
    return s.seed_list(value if isinstance(value, list) else whole(name, value, 1))


def _metrics(name: str, value: Any, check: bool) -> tuple[str, ...]:
    return tuple(one_of(name, m, metric_names()) if check else m for m in _list(name, value))


def _range(name: str, value: Any) -> tuple[float, float]:
    if len(_list(name, value)) != 2:
        raise InvdiffError(f"{name} must be two numbers, black and white, got {shown(value)}")
    low = real(name, value[0])
    return low, real(name, value[1], above=low)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


__all__ = ["read"]
