"""Options by name, checked by the signature of what takes them: one language for Python, TOML and the command line."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints

from invdiff.checks import flag, known, real, shown, whole
from invdiff.errors import InvdiffError

_SIMPLE = (bool, int, float, str, type(None))


def named_parameters(function: Callable[..., Any], skip: int = 0) -> list[inspect.Parameter]:
    """What a function or class takes by name, the first `skip` and any ``*args`` and ``**kwargs`` left out."""
    parameters = list(inspect.signature(function).parameters.values())[skip:]
    return [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def takes_others(function: Callable[..., Any]) -> bool:
    """Whether a function has ``**kwargs``."""
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())


def options_of(operator: Any) -> list[str]:
    """What an operator's `from_options` takes, as a list shows it: ``["scale", "kernel='nearest'"]``; "..." for what goes on to
    the generator or kernel that is named."""
    given = named_parameters(operator.from_options, 1)
    shown = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in given or named_parameters(operator)]
    return [*shown, "..."] if given and takes_others(operator.from_options) else shown


def called(
    function: Callable[..., Any], owner: str, options: Mapping[str, Any], *first: Any, what: str = "option"
) -> Any:
    """``function(*first, **options)``, every option known to the function's signature and of its type.

    A value is put into the type that the annotation names, or that the default has: a whole number serves for a float, and a
    number for a word. Where the annotation names more than numbers, truth values and words, the value is left to the function.

    Args:
        function: a function or a class.
        owner: of the options in messages, such as ``"operator blur"``.
        options: by name.
        *first: what comes before the options.
        what: an option is called in messages.

    Raises:
        InvdiffError: an unknown option (with the near match), a missing one, or a value of another type.
    """
    parameters = {p.name: p for p in named_parameters(function, len(first))}
    if not takes_others(function):
        known(owner, options, parameters, what)
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in options:
            raise InvdiffError(f"{owner} must be given the {what} {name!r}, got none; it takes {', '.join(parameters)}")
    hints = _hints(function)
    values = {
        name: _converted(f"{owner}: {name}", value, hints.get(name), parameters[name].default)
        if name in parameters
        else value
        for name, value in options.items()
    }
    return function(*first, **values)


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function.__init__ if isinstance(function, type) else function)  # type: ignore[misc]
    except (NameError, TypeError, AttributeError):  # names that exist for a type checker only
        return {}


def _converted(name: str, value: Any, hint: Any, default: Any) -> Any:
    if hint is None:
        hint = type(default) if isinstance(default, _SIMPLE[:-1]) else Any
    kinds = set(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else {hint}
    if not kinds <= set(_SIMPLE) or (value is None and type(None) in kinds):
        return value
    if str in kinds and isinstance(value, str):
        return value
    if bool in kinds and (isinstance(value, bool) or kinds <= {bool, type(None)}):
        return flag(name, value)
    if int in kinds and (float not in kinds or isinstance(value, int)):
        return whole(name, value)
    if float in kinds:
        return real(name, value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise InvdiffError(f"{name} must be a word, got {shown(value)}")
