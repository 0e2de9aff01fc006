"""A disk that is full, for real: a sentence, nothing lost, and with more room it goes on.

``limited``: the kernel refuses files above a size (`RLIMIT_FSIZE`, which anybody may set). ``mounted``: a small file system in
memory, where mounting one is allowed.
"""

from __future__ import annotations

import contextlib
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_benchmark_runner import numbers, pictures, tiny

from invdiff import InvdiffError
from invdiff.bench.run.store import Run
from invdiff.checks import shown
from invdiff.cli import main
from invdiff.training.loop import CHECKPOINT, TrainingConfig, read_log, train

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(sys.platform != "linux", reason="Linux's limits"),
]


@dataclass
class Disk:
    """A folder, what fills its disk up to so many bytes more (`fill`), and what makes room again (`free`)."""

    folder: Path
    fill: Callable[[int], None]
    free: Callable[[], None]


@contextlib.contextmanager
def limited(folder: Path) -> Iterator[Disk]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(left: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (left, before[1]))

    def free() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    try:
        yield Disk(folder, fill, free)
    finally:
        free()


@contextlib.contextmanager
def mounted(folder: Path) -> Iterator[Disk]:
    size = 8 << 20
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"no mount: {error}")
    if done.returncode:
        pytest.skip(f"mounting is not allowed: {done.stderr.strip()}")
    ballast = folder / "ballast"

    def fill(left: int) -> None:
        ballast.write_bytes(b"")
        held = shutil.disk_usage(folder).free - left
        ballast.write_bytes(bytes(max(0, held)))

    try:
        yield Disk(folder, fill, lambda: ballast.unlink(missing_ok=True))
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


@pytest.fixture(params=[limited, mounted], ids=lambda kind: kind.__name__)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    with request.param(folder) as made:
        yield made


def left_over(folder: Path) -> list[str]:
    """Names of files that a write left half done."""
    return [p.name for p in folder.rglob(".*") if p.is_file()]


def test_a_restoration_is_kept_elsewhere(disk, tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "elsewhere"))
    from invdiff import Solution

    write = Solution.save

    def fills_up(self: Solution, path: Path) -> list[Path]:  # between the network's last call and the writing
        disk.fill(4096) if Path(path).parent == disk.folder else disk.free()
        return write(self, path)

    monkeypatch.setattr(Solution, "save", fills_up)
    out = disk.folder / "out.png"
    words = ("solve", tmp_path / "photo.png", "--mask", "half", "--steps", 2, "--backbone", "cats64", "-o", out)
    monkeypatch.setattr(sys, "argv", ["invdiff", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    said = " ".join(capsys.readouterr().err.split())
    assert end.value.code == 2 and "Traceback" not in said
    assert "cannot be written" in said and "What was computed is kept in" in said
    (kept,) = (tmp_path / "elsewhere").rglob("out.png")
    assert str(kept) in said and Image.open(kept).size == (64, 64)
    assert not out.exists() and not left_over(disk.folder)


def test_a_benchmark_keeps_what_is_finished_and_goes_on(disk, tmp_path):
    whole = tiny(tmp_path / "whole")
    run, batches = disk.folder / "run", []

    def fills_up(_: object) -> None:
        batches.append(1)
        if len(batches) == 5:
            disk.fill(4096)

    with pytest.raises(
        InvdiffError, match=r"cannot be written: .*What is finished is kept; go on with --resume"
    ) as error:
        tiny(run, on_batch=fills_up)
    assert "\n" not in str(error.value)
    finished = numbers(Run.open(run))
    assert 0 < len(finished) < len(numbers(whole))
    disk.free()
    again = tiny(run, resume=True)
    assert numbers(again) == numbers(whole) and pictures(again) == pictures(whole)
    kept = {record.cell: record for record in numbers(again)}
    assert all(kept[record.cell] == record for record in finished) and not left_over(run)


def test_a_training_keeps_its_last_checkpoint_and_goes_on(disk, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2)):
        (tmp_path / "photos" / split).mkdir(parents=True)
        for i in range(count):
            colours = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(colours).save(tmp_path / "photos" / split / f"{i}.png")
    small = {"size": 16, "channels": "8,8", "layers": 1, "attention": 0, "batch": 4, "samples": 0, "log_steps": 2}
    options = {**small, "compile": "no", "precision": "float32", "cache": False, "images": 40}
    assert set(options) <= set(TrainingConfig.__dataclass_fields__), shown(options)
    train(tmp_path / "photos", tmp_path / "whole", **options, progress=False)

    from invdiff.training import loop

    step = loop._Training.take_step

    def take_step(self: loop._Training) -> tuple[torch.Tensor, torch.Tensor]:
        if self.step == 4:
            self.checkpoint()
            disk.fill(300)
        return step(self)

    out = disk.folder / "training"
    monkeypatch.setattr(loop._Training, "take_step", take_step)
    with pytest.raises(InvdiffError, match=r"cannot be written: .*checkpoint before it is whole.*goes on from there"):
        train(tmp_path / "photos", out, **options, progress=False)
    monkeypatch.undo()
    disk.free()
    assert torch.load(out / CHECKPOINT, weights_only=True)["step"] == 4 and not left_over(out)
    train(tmp_path / "photos", out, **options, progress=False)
    whole, again = (read_log(folder) for folder in (tmp_path / "whole", out))
    assert [n for n, _ in again["loss"]] == [n for n, _ in whole["loss"]]
    assert [v for _, v in again["loss"]] == pytest.approx([v for _, v in whole["loss"]], rel=1e-5)
