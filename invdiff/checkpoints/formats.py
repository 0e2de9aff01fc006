"""What a file or folder may be: one `Format` per layout, asked in turn, each says yes or why not.

backbone = load_backbone("model.pt")  # asks them
backbone = load_backbone("model.pt", format="ddpm")  # asks one
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from invdiff.backbones.base import Backbone
from invdiff.checkpoints.reading import shapes_in
from invdiff.checks import known
from invdiff.errors import InvdiffError
from invdiff.registry import Registry


class Format(ABC):
    """A layout of files or folders that becomes a backbone.

    A new one is a class of two methods, made known by `register_format` or announced by an installed package under the
    entry-point group ``invdiff.formats``:

        @register_format("numpy-gaussian")
        class NumpyGaussian(Format):
            def matches(self, path):
                return None if path.suffix == ".npz" else "its name does not end in .npz"

            def load(self, path, *, precision="auto", compile=False, device=None):
                ...
    """

    @abstractmethod
    def matches(self, path: Path) -> str | None:
        """None where `path`, which exists, is of this format; else why not, in words that follow "it is not, because".

        It looks at names and heads of files, never runs what is in them, and takes no memory to speak of. An `InvdiffError`
        is taken as the reason.
        """

    @abstractmethod
    def load(self, path: Path, **options: Any) -> Backbone:
        """The backbone in `path`.

        Args:
            path: a file or folder that `matches`.
            options: of `load_backbone`: ``precision``, ``compile``, ``device`` and whatever the caller gave beside.

        Raises:
            InvdiffError: damaged, incomplete, or an option that this format does not know.
        """


class TensorFormat(Format):
    """A layout of tensors in one file, known by their names.

    Attributes:
        present: names that every file of this layout has.
        absent: beginnings of names that none has.
    """

    present: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()

    def matches(self, path: Path) -> str | None:
        if not path.is_file():
            return "it is a folder, not a checkpoint file"
        shapes = shapes_in(path)
        if missing := [name for name in self.present if name not in shapes]:
            return f"none of its {len(shapes)} tensors ({', '.join(list(shapes)[:2])}, ...) is {missing[0]}"
        for start in self.absent:
            if found := [name for name in shapes if name.startswith(start)]:
                return f"it has a tensor {found[0]}"
        return None


def _format(name: str, item: Any) -> Format:
    made = item() if isinstance(item, type) else item
    for method in ("matches", "load"):
        if not callable(getattr(made, method, None)):
            raise InvdiffError(f"format {name!r} must have a method {method}(path), got {type(made).__name__}")
    return made


FORMATS: Registry[Format] = Registry("format", "invdiff.formats", check=_format, definition=type)
"""Every format by name, in the order in which they are asked: ours, those registered, those of installed packages."""


def register_format(name: str, format: Any = None) -> Any:
    """Make a `Format` known, so that `load_backbone` asks it. ``@register_format("mine")`` above a class works too.

    Args:
        name: what messages call it, and what ``load_backbone(path, format=...)`` takes.
        format: an object or class with ``matches(path)`` and ``load(path, **options)``. The same class may be registered
            again, as when a notebook cell is run twice.

    Raises:
        InvdiffError: the name is taken by another one, or `format` lacks a method.
    """
    if format is None:
        return lambda given: register_format(name, given)
    FORMATS.add(name, format)
    return format


def load_checkpoint(path: Path, *, format: str | None = None, **options: Any) -> Backbone:
    """The backbone in a file or folder that exists.

    Args:
        path: the file or folder.
        format: name of the format; by default they are asked in turn.
        options: passed on to `Format.load`.

    Raises:
        InvdiffError: no format says yes; the message has the reasons of all. Or what the format's `load` raises.
    """
    if format is not None:
        return FORMATS.get(format).load(path, **options)
    reasons: dict[str, list[str]] = {}
    for name, candidate in FORMATS.items():
        try:
            reason = candidate.matches(path)
        except InvdiffError as error:
            reason = str(error)
        if reason is None:
            return candidate.load(path, **options)
        reasons.setdefault(reason, []).append(name)
    if len(reasons) == 1:
        raise InvdiffError(f"{path} is no backbone: {next(iter(reasons))} (asked: {', '.join(FORMATS.names())})")
    said = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
    raise InvdiffError(f"{path} is no backbone of a known format. Asked and refused: {said}")


def call(loader: Callable[..., Backbone], format: str, path: Path, options: dict[str, Any]) -> Backbone:
    """``loader(path, **options)`` after a check that it takes these options.

    Raises:
        InvdiffError: it does not; the message has the near match.
    """
    known(f"format {format}", options, accepted_options(loader))
    return loader(path, **options)


def takes_any(function: Callable[..., Any]) -> bool:
    """Whether a callable takes keyword arguments of any name, so that it has to check them itself."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # no signature to be had
        return True
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def accepted_options(*callables: Callable[..., Any]) -> Collection[str]:
    """Names of the keyword arguments of all, without the first parameters that a loader is given in any case."""
    names: dict[str, None] = {}
    for function in callables:
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY or parameter.default is not parameter.empty:
                names[name] = None
    return list(names)
