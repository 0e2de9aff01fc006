"""Routes through time: the list of times that a sampler visits, down to -1 (clean) and now and then up again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice, pairwise
from typing import Any

from invdiff.checks import shown, whole
from invdiff.errors import InvdiffError, near_match

MOST_MOVES = 1_000_000
"""Of a path: RePaint's own has 4,571."""


def plain(n: int) -> list[int]:
    """``[n-1, n-2, ..., 0, -1]``: one network call per time."""
    return list(range(n - 1, -2, -1))


def jumps(n: int, jump_length: int = 10, jump_n_sample: int = 10) -> list[int]:
    """RePaint's resampling (Lugmayr et al., 2022, section 4.2 and appendix B).

    Each time j in ``range(0, n - jump_length, jump_length)`` carries ``jump_n_sample - 1`` jumps: on reaching it, go up
    `jump_length` single steps and come down again. Never back from -1.

    Args:
        n: number of times of the schedule.
        jump_length: steps of one jump, 1..n-1 (any, where jump_n_sample = 1).
        jump_n_sample: how often each stretch is walked, at least 1; 1 is the plain descent.
    """
    jump_length, jump_n_sample = whole("jump_length", jump_length, low=1), whole("jump_n_sample", jump_n_sample, low=1)
    if jump_n_sample > 1 and jump_length >= n:
        raise InvdiffError(
            f"jump_length = {jump_length} is longer than the path: {n} steps allow jumps of 1 to {n - 1}; "
            "shorten the jump, take more steps, or set jump_n_sample = 1"
        )
    stretches = len(range(0, n - jump_length, jump_length))
    _affordable(n + stretches * (jump_n_sample - 1) * jump_length, f"jump_n_sample = {jump_n_sample}")
    left = dict.fromkeys(range(0, n - jump_length, jump_length), jump_n_sample - 1)
    times, t = [], n
    while t > 0:
        t -= 1
        times.append(t)
        if left.get(t, 0) > 0:
            left[t] -= 1
            for _ in range(jump_length):
                t += 1
                times.append(t)
    return [*times, -1]


def travel(n: int, travel_length: int = 1, travel_repeat: int = 1) -> list[int]:
    """DDNM's time travel (Wang et al., 2023, section 3.3): the same route as `jumps` under its own names."""
    travel_length, travel_repeat = (
        whole("travel_length", travel_length, low=1),
        whole("travel_repeat", travel_repeat, low=1),
    )
    if travel_repeat > 1 and travel_length >= n:
        raise InvdiffError(
            f"travel_length = {travel_length} is longer than the path: {n} steps allow travels of 1 to {n - 1}; "
            "shorten it, take more steps, or set travel_repeat = 1"
        )
    return jumps(n, travel_length, travel_repeat)


def network_calls(times: Sequence[int]) -> int:
    """How many of the moves go down: each of these asks the network once."""
    return sum(s < t for t, s in pairwise(times))


PATHS: dict[str, Callable[..., list[int]]] = {"plain": plain, "jumps": jumps, "travel": travel}


def make_path(path: str | Sequence[int] | Callable[[int], Sequence[int]], n: int, **options: Any) -> list[int]:
    """A path by name with its options, from a function of the number of times, or a list as it is; checked.

    Raises:
        InvdiffError: unknown name or option, or a list that is no route from a time of the schedule down to -1.
    """
    if isinstance(path, str):
        if path not in PATHS:
            raise InvdiffError(
                f"path must be one of {', '.join(PATHS)}, a list of times or a function of their number, got {shown(path)}."
                f"{near_match(path, PATHS)}"
            )
        return PATHS[path](n, **options)
    given = path(n) if callable(path) else path
    if isinstance(given, str | bytes) or not isinstance(given, Iterable) or getattr(given, "ndim", 1) != 1:
        raise InvdiffError(
            f"path must be one of {', '.join(PATHS)}, a list of times or a function of their number, got {shown(given)}"
        )
    times = [whole("path", t) for t in islice(given, MOST_MOVES + 1)]
    _affordable(len(times) - 1, "path")
    if len(times) < 2 or times[-1] != -1 or not all(-1 <= t < n for t in times):
        raise InvdiffError(
            f"path must be a list of times from 0 to {n - 1} that ends in -1 (clean), got {_short(times)}"
        )
    if -1 in times[:-1] or any(t == s for t, s in pairwise(times)):
        raise InvdiffError(f"path must reach -1 only at its end and never stand still, got {_short(times)}")
    return times


def _affordable(calls: int, what: str) -> None:
    """Refuse a route before it is laid out."""
    if calls > MOST_MOVES:
        raise InvdiffError(f"{what} must make at most {MOST_MOVES:,} network calls per image, got {calls:,}")


def _short(times: list[int]) -> str:
    return (
        str(times) if len(times) < 12 else f"[{', '.join(map(str, times[:5]))}, ..., {', '.join(map(str, times[-3:]))}]"
    )
