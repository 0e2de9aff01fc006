"""The samplers against recorded outputs of their authors' code, where the recordings are at hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHECK = Path(__file__).parents[2] / "shared" / "conformance" / "check.py"


@pytest.mark.skipif(not CHECK.exists(), reason="the recordings are not part of the repository")
def test_every_sampler_reproduces_its_authors_code_to_1e_4():
    done = subprocess.run([sys.executable, str(CHECK)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 failed" in done.stdout.splitlines()[-1]
