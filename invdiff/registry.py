"""Names -> things: the one register behind samplers, operators, backbones, formats, metrics and priors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from invdiff.checks import shown
from invdiff.errors import InvdiffError, InvdiffWarning, near_match

T = TypeVar("T")


class Registry(Generic[T]):
    """Things known by name: ours, those registered by a running program, those announced by installed packages.

    An installed package announces its own in its ``pyproject.toml`` under ``[project.entry-points."invdiff.KIND"]``; it is
    imported only when it is asked for.

    Args:
        what: what one of them is called in messages, such as ``"sampler"``.
        group: of the entry points, such as ``"invdiff.samplers"``.
        check: raises an `InvdiffError` or returns the thing to be kept, given (name, thing).
        plain: the form of a name in which spellings are compared; by default names are taken literally.
        definition: the class or function behind a thing, which tells whether the same one is registered again (a notebook
            cell run twice); by default the thing itself.
    """

    def __init__(
        self,
        what: str,
        group: str,
        check: Callable[[str, Any], T] | None = None,
        plain: Callable[[str], str] = str,
        definition: Callable[[Any], Any] = lambda item: item,
    ) -> None:
        self.what, self.group = what, group
        self._check, self._plain, self._definition = check, plain, definition
        self._items: dict[str, T] = {}

    def add(self, name: str, item: Any) -> T:
        """Make `item` known as `name`.

        Raises:
            InvdiffError: the name is empty or taken by something else, or `item` is nothing that belongs here.
        """
        if not isinstance(name, str) or not name.strip():
            raise InvdiffError(f"the name of a {self.what} must be a word, got {shown(name)}")
        item = self._check(name, item) if self._check else item
        for point in self._points(name) if self._find(name) is None else ():
            if _package(point.module) != _package(getattr(self._definition(item), "__module__", None) or ""):
                raise InvdiffError(
                    f"a {self.what} named {point.name!r} exists already (announced as {point.value}); take another name"
                )
        return self._kept(name, item)

    def _kept(self, name: str, item: T) -> T:
        taken = self._find(name)
        if taken is not None and not _same(*(self._definition(x) for x in (self._items[taken], item))):
            by = _origin(self._definition(self._items[taken]))
            raise InvdiffError(f"a {self.what} named {taken!r} exists already ({by}); take another name")
        self._items[taken or name] = item
        return item

    def remove(self, name: str) -> None:
        """Forget `name`, for tests and notebooks that register the same thing again."""
        self._items.pop(self._find(name) or name, None)

    def get(self, name: Any) -> T:
        """What is known as `name`.

        Raises:
            InvdiffError: nothing is; the message lists the names and the near match. Or two installed packages announce the
                same name, or the one that does cannot be imported.
        """
        if isinstance(name, str):
            found = self._find(name)
            if found is not None:
                return self._items[found]
            if points := self._points(name):
                return self._announced(points)
        names = self.names()
        hint = near_match(name, names) if isinstance(name, str) else ""
        if not hint and isinstance(name, str):
            hint = f" A {self.what} of your own has to be imported first (on the command line: --import FILE)"
        raise InvdiffError(f"{self.what} must be one of {', '.join(names)}; got {shown(name)}.{hint}")

    def __getitem__(self, name: str) -> T:
        return self.get(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def names(self) -> list[str]:
        """Every name: in the order of registration, then those of installed packages."""
        own = list(self._items)
        return own + sorted({p.name for p in entry_points(group=self.group) if self._find(p.name) is None})

    def items(self) -> Iterator[tuple[str, T]]:
        """Names and things, installed packages' included; one that cannot be had is left out with a warning."""
        for name in self.names():
            try:
                item = self.get(name)
            except InvdiffError as error:
                warnings.warn(str(error), InvdiffWarning, stacklevel=3)
                continue
            yield name, item

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (self._find(name) is not None or bool(self._points(name)))

    def _points(self, name: str) -> list[EntryPoint]:
        """The entry points of that name, each value once."""
        found = {p.value: p for p in entry_points(group=self.group) if self._plain(p.name) == self._plain(name)}
        return list(found.values())

    def _announced(self, points: list[EntryPoint]) -> T:
        point = points[0]
        if len(points) > 1:
            raise InvdiffError(
                f"{self.what} {point.name!r} is announced by several packages ({', '.join(p.value for p in points)}); "
                "uninstall all but one"
            )
        try:
            item = point.load()
        except Exception as error:
            raise InvdiffError(
                f"{self.what} {point.name!r} cannot be imported from {point.value}: {type(error).__name__}: {error}"
            ) from error
        return self._kept(point.name, self._check(point.name, item) if self._check else item)

    def _find(self, name: str) -> str | None:
        key = self._plain(name)
        return next((known for known in self._items if self._plain(known) == key), None)


def _same(a: Any, b: Any) -> bool:
    """The same thing, or the same definition run again (a notebook cell)."""
    if a is b:
        return True
    names = [(getattr(x, "__module__", None), getattr(x, "__qualname__", None)) for x in (a, b)]
    return names[0] == names[1] and None not in names[0] and "<lambda>" not in str(names[0][1])


def _package(module: str) -> str:
    return module.split(".")[0]


def _origin(item: Any) -> str:
    name = getattr(item, "__qualname__", type(item).__qualname__)
    return f"{getattr(item, '__module__', None) or type(item).__module__}.{name}"
