"""The samplers against recorded outputs of their authors' code; see tests/conformance/README.md."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conformance.recordings import Recording, recordings
from conformance.replay import ALGORITHMS, outcomes

HERE = Path(__file__).parent / "conformance"
CHECK = Path(__file__).parents[2] / "shared" / "conformance" / "check.py"
RECORDED = list(recordings(HERE / "golden"))


@pytest.mark.parametrize("recording", RECORDED, ids=lambda recording: recording.name)
def test_a_sampler_gives_what_its_authors_code_gave(recording: Recording):
    assert recording.algorithm in ALGORITHMS, f"nothing replays {recording.algorithm}"
    replayed = list(outcomes(recording))
    assert replayed and {o.run for o in replayed} >= set(recording.runs)  # a network by itself has no run
    for outcome in replayed:
        assert outcome.followed and outcome.passed, f"{outcome.run}: {outcome.difference:.1e} {outcome.note}"


def test_there_is_a_recording_of_every_published_method():
    """Each of these has at least one run with drawn noise and one without."""
    kinds = {(r.algorithm, run.split(".")[1]) for r in RECORDED for run in r.runs}
    methods = ("repaint", "ddnm_svd", "diffpir", "mcg_official", "reddiff_pgdm", "dps_official", "reddiff_ddrm")
    assert {(m, noise) for m in methods for noise in ("fixed", "zero")} <= kinds


@pytest.mark.slow
@pytest.mark.skipif(not CHECK.exists(), reason="the full set of recordings is not part of the repository")
def test_the_full_set_of_recordings():
    replay = [str(HERE / "replay.py"), "--golden"]
    folders = [str(CHECK.parent / name) for name in ("golden", "golden2")]
    for command in ([str(CHECK)], *([*replay, folder] for folder in folders)):
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert " 0 failed" in done.stdout.splitlines()[-1]


def test_replay_names_what_it_does_not_cover(tmp_path):
    (tmp_path / "strange.json").write_text('{"algo": "strange", "runs": {}}')
    command = [sys.executable, str(HERE / "replay.py"), "--golden", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "not covered: strange" in done.stdout
