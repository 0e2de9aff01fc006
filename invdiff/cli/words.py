"""From words of the command line to options: ``-A scale=4 -A kernel=box``."""

from __future__ import annotations

from typing import Any

from invdiff.cli.terminal import stop


def key_values(pairs: list[str] | None) -> dict[str, Any]:
    """``["eta=0.5", "clip=false", "weights=0.3,0.6,0.1"]`` as a dictionary of numbers, truth values, words and lists of numbers.

    Raises:
        InvdiffError: one that is not written name=value, or a name that is there twice.
    """
    out: dict[str, Any] = {}
    for pair in pairs or []:
        name, sign, text = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not sign or not name:
            stop(f"option {pair!r} must be written name=value, such as eta=0.5")
        if name in out:
            stop(f"option {name!r} is given twice")
        out[name] = _value(text.strip())
    return out


def _value(text: str) -> Any:
    if text.lower() in ("true", "yes", "on", "false", "no", "off"):
        return text.lower() in ("true", "yes", "on")
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    parts = [_value(part) for part in text.split(",")] if "," in text else []
    return parts if parts and all(isinstance(part, int | float) for part in parts) else text
