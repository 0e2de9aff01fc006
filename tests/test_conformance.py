"""The samplers against recorded outputs of their authors' code; see tests/conformance/README.md."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conformance.recordings import SAMPLERS, Recording, recordings, replay, same_times

CHECK = Path(__file__).parents[2] / "shared" / "conformance" / "check.py"
RECORDED = recordings()


@pytest.mark.parametrize("recording", RECORDED, ids=lambda recording: recording.name)
def test_a_sampler_gives_what_its_authors_code_gave(recording: Recording):
    answer = replay(recording)
    assert float((answer.x - recording.outputs["x0"]).abs().max()) < 1e-4
    assert same_times(recording, answer.timesteps)


def test_there_is_a_recording_of_every_published_method():
    """Each of these has at least one run with drawn noise and one without, DDRM's (drawn in another basis) apart."""
    kinds = {(r.settings["algo"], r.noise) for r in RECORDED}
    wanted = {(algo, noise) for algo in SAMPLERS for noise in ("fixed", "zero")} - {("reddiff_ddrm", "fixed")}
    assert wanted <= kinds
    assert {type(SAMPLERS[r.settings["algo"]](r.settings)).name for r in RECORDED} >= {
        *("repaint", "ddnm", "ddnm+", "diffpir", "mcg", "pigdm", "dps", "ddrm")
    }


@pytest.mark.skipif(not CHECK.exists(), reason="the full set of recordings is not part of the repository")
def test_the_full_set_of_recordings():
    done = subprocess.run([sys.executable, str(CHECK)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 failed" in done.stdout.splitlines()[-1]
