"""Replay recorded outputs of the samplers' authors' own code through the library.

    python tests/conformance/replay.py --golden DIR [NAME ...]

Every setting is read from the JSON beside a recording. One line per run: the largest absolute difference, and what
passes: 1e-4, or the round-off that the recording states for the authors' own code where that is larger. Exit status 1 if a run
differs by more, asks its network at other times or fails, or where a recording is of an algorithm that nothing here covers.
Runs with an ablation switch that the library does not have are named ("not followed") and counted.

An algorithm is a function from a `Recording` to its `Outcome`s, in one of the tables put together below.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # run as a script, only the script's own folder is on the path

from conformance import classic, generators, guided, particles
from conformance.recordings import Outcome, Recording, recordings

ALGORITHMS: dict[str, Callable[[Recording], Iterable[Outcome]]] = {
    **classic.ALGORITHMS,
    **generators.ALGORITHMS,
    **guided.ALGORITHMS,
    **particles.ALGORITHMS,
}


def outcomes(recording: Recording) -> Iterable[Outcome]:
    """The runs of a recording, one by one; what raises is a failed run."""
    try:
        yield from ALGORITHMS[recording.algorithm](recording)
    except Exception as error:  # what cannot be run is a failure of its line, and the others go on
        yield Outcome("error", math.inf, note=f"{type(error).__name__}: {error}", failed=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Replay recordings of the samplers' authors' own code.")
    parser.add_argument("--golden", type=Path, required=True, help="folder of recordings: pairs of .json and .npz")
    parser.add_argument("names", nargs="*", help="beginnings of names; all by default")
    options = parser.parse_args(arguments)
    runs = failed = uncovered = left = 0
    worst = 0.0
    for recording in recordings(options.golden, options.names):
        if recording.algorithm not in ALGORITHMS:
            print(f"not covered: {recording.name} ({recording.algorithm})", flush=True)
            uncovered += 1
            continue
        for outcome in outcomes(recording):
            runs += 1
            failed += not outcome.passed
            left += not outcome.followed
            if math.isfinite(outcome.difference):
                worst = max(worst, outcome.difference)
            verdict = "" if outcome.passed else "  FAILED"
            note = f"  {outcome.note}" if outcome.note else ""
            name = f"{recording.name} {outcome.run}"
            print(f"{name:56s} {outcome.difference:.1e} of {outcome.tolerance:.1e}{verdict}{note}", flush=True)
    print(
        f"{runs} runs, {failed} failed, {left} not followed, {uncovered} recordings not covered, "
        f"largest difference {worst:.1e}"
    )
    return 1 if failed or uncovered or not runs else 0


if __name__ == "__main__":
    sys.exit(main())
