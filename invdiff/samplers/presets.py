"""Presets: settings per task, as data. What ``sampler="diffpir"`` means for a mask and for a blur, and what its paper had there.

Two are built in, both in the file ``presets.toml`` beside this module:

- ``"tuned"``, what a sampler's name stands for: settings that did better on held-out images or on exact posteriors, and
  mends of slips in the authors' code.
- ``"paper"``, as the authors run it: the settings under which the sampler agrees with recordings of their code.

A third, ``"auto"``, is what ``sampler="auto"`` stands for: settings of `AUTO_SAMPLER`, on top of ``"tuned"``.

A file of the same form may take their place: its rows come on top of ``"tuned"``. Whatever the caller passes wins over all of
them, and `Solution.settings` shows what was used. A sampler object or class has its own settings and takes no preset unasked.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from invdiff.checks import known, one_of, shown
from invdiff.errors import InvdiffError
from invdiff.samplers.base import SAMPLERS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TUNED, PAPER = "tuned", "paper"
PRESETS = (TUNED, PAPER)
AUTO_SAMPLER, AUTOMATIC = "ddnm+", "auto"
"""What ``sampler="auto"`` stands for (one network call a step, no gradient, and noise in y is modelled where there is some),
and the word that marks its rows, which no other sampler has."""
FILE = Path(__file__).with_name("presets.toml")

_HEAD = """\
# Settings of samplers per task; read by `invdiff.samplers.presets`. A row holds where its sampler is named, the operator's task is
# one of `tasks` (every one where it is left out) and there is noise in y or none (`noisy`, either where it is left out); later
# rows win over earlier ones. A row is left out as a whole where the caller sets one of the fields in `unless`, and with more
# than `most_steps` steps. Rows with `tuned_on` are written by benchmarks/tune.py, the others by hand.
"""


@dataclass(frozen=True)
class Row:
    """Settings of one sampler for some tasks.

    Attributes:
        sampler: its name.
        settings: values of the sampler's fields.
        presets: those that it belongs to.
        tasks: of operators (`LinearOperator.task`); empty for all.
        noisy: True for sigma_y > 0, False for sigma_y = 0, None for both.
        unless: fields that, set by the caller, make the row not hold.
        most_steps: it holds up to so many steps, those of the caller or else the sampler's own; None for any number.
        source: where the settings come from.
        tuned_on: what they were searched on; empty where they were not searched.
        objective: of that search.
    """

    sampler: str
    settings: dict[str, Any] = field(default_factory=dict)
    presets: tuple[str, ...] = PRESETS
    tasks: tuple[str, ...] = ()
    noisy: bool | None = None
    unless: tuple[str, ...] = ()
    source: str = ""
    tuned_on: str = ""
    objective: str = ""
    most_steps: int | None = None

    def holds(self, sampler: str, task: str, noisy: bool, given: Mapping[str, Any] = MappingProxyType({})) -> bool:
        """Whether it speaks of `sampler` on operators of `task`, where the caller sets the fields `given`."""
        return (
            self.sampler == sampler
            and (not self.tasks or task in self.tasks)
            and self.noisy in (None, noisy)
            and not set(self.unless) & set(given)
            and (self.most_steps is None or self._steps(given) <= self.most_steps)
        )

    def _steps(self, given: Mapping[str, Any]) -> int:
        return int(given["steps"] if "steps" in given else SAMPLERS.get(self.sampler)().steps)

    def to_dict(self) -> dict[str, Any]:
        """As in a file."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        kept = {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items() if v not in (None, (), "", PRESETS)}
        return {
            "sampler": kept.pop("sampler"),
            **{k: v for k, v in kept.items() if k != "settings"},
            "settings": self.settings,
        }


def automatic(task: str, noisy: bool, given: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """What ``sampler="auto"`` sets for an operator's task; arguments as in `settings_for`."""
    found: dict[str, Any] = {}
    for row in _built_in():
        if row.presets == (AUTOMATIC,) and row.holds(AUTO_SAMPLER, task, noisy, given):
            found.update(row.settings)
    return {name: value for name, value in found.items() if name not in given}


def rows(preset: str | os.PathLike[str] = TUNED) -> tuple[Row, ...]:
    """The rows of a preset, in the order in which they come into force.

    Args:
        preset: ``"tuned"``, ``"paper"``, or a file (.toml).

    Raises:
        InvdiffError: unknown name (with the near match); a file that cannot be read or is not of the form.
    """
    name = os.fspath(preset) if isinstance(preset, str | os.PathLike) else preset
    if isinstance(name, str) and name.endswith(".toml"):
        return (*rows(TUNED), *read(name))
    if not isinstance(name, str) or name not in PRESETS:
        try:
            one_of("preset", name, PRESETS)
        except InvdiffError as error:
            raise InvdiffError(f"{error}. A file of settings ends in .toml") from None
    return tuple(row for row in _built_in() if name in row.presets)


def settings_for(
    sampler: str,
    task: str,
    noisy: bool,
    preset: str | os.PathLike[str] = TUNED,
    given: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """What a preset sets for one sampler and task; an empty dict where that is nothing.

    Args:
        sampler: a name of the register.
        task: of the operator.
        noisy: whether sigma_y > 0.
        preset: as in `rows`.
        given: fields that the caller sets, and their values; they are left out.

    Raises:
        InvdiffError: as `rows`.
    """
    found: dict[str, Any] = {}
    for row in rows(preset):
        if row.holds(sampler, task, noisy, given):
            found.update(row.settings)
    return {name: value for name, value in found.items() if name not in given}


def read(file: str | os.PathLike[str]) -> tuple[Row, ...]:
    """The rows of a file, checked against the samplers that they speak of.

    Raises:
        InvdiffError: no such file, no TOML; an unknown key, sampler, preset or field, or a value out of its range. The message
            names the row.
    """
    file = Path(file)
    try:
        held = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvdiffError(f"preset must be a file that can be read, got {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvdiffError(f"preset {file} is no TOML: {error}") from None
    known(f"preset {file}", held, ["row"], "key")
    found = held.get("row", [])
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise InvdiffError(f"preset {file}: row must be an array of tables, [[row]], got {shown(found)}")
    presets = (*PRESETS, AUTOMATIC) if file.resolve() == FILE.resolve() else PRESETS
    return tuple(_row(f"preset {file}: row[{i}]", row, presets) for i, row in enumerate(found))


def write(file: str | os.PathLike[str], found: Iterable[Row]) -> None:
    """Write rows as a file that `read` takes."""
    from invdiff.files import atomic_write

    tables = []
    for row in found:
        lines = [f"{key} = {_toml(value)}" for key, value in row.to_dict().items()]
        tables.append("\n".join(["[[row]]", *lines, ""]))
    with atomic_write(Path(file)) as temporary:
        temporary.write_text("\n".join([_HEAD, *tables]), encoding="utf-8")


def _toml(value: Any) -> str:
    """One line of TOML, in which words, numbers, truth values and lists of them are written as in JSON."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items()) + " }"
    return json.dumps(value)


@lru_cache
def _built_in() -> tuple[Row, ...]:
    return read(FILE)


def _row(where: str, table: Mapping[str, Any], presets: Collection[str]) -> Row:
    known(where, table, [f.name for f in dataclasses.fields(Row)], "key")
    for name, kind, accepted in (
        ("sampler", str, "a string"),
        ("settings", dict, "a table of fields"),
        ("noisy", bool, "true or false"),
        ("source", str, "a string"),
        ("tuned_on", str, "a string"),
        ("objective", str, "a string"),
        ("most_steps", int, "a whole number"),
    ):
        if (name in table or name in ("sampler", "settings")) and not isinstance(table.get(name), kind):
            raise InvdiffError(f"{where}: {name} must be {accepted}, got {shown(table.get(name))}")
    values = dict(table)
    for name in ("presets", "tasks", "unless"):
        words = values.get(name, [])
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise InvdiffError(f"{where}: {name} must be a list of strings, got {shown(words)}")
        if name in values:
            values[name] = tuple(words)
    for preset in values.get("presets", ()):
        one_of(f"{where}: presets", preset, presets)
    try:
        cls = SAMPLERS.get(values["sampler"])
        cls.check_names([*values["settings"], *values.get("unless", ())])
        cls(**values["settings"])
    except InvdiffError as error:
        raise InvdiffError(f"{where}: {error}") from None
    return Row(**{**values, "sampler": cls.name})
