"""The runner: same numbers whatever happens on the way, every failure in the records, nothing overwritten."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import gaussian_backbone
from PIL import Image

import invdiff as iv
from invdiff import InvdiffError, InvdiffWarning, solve
from invdiff.bench.report.report import make_report
from invdiff.bench.run import executors, store
from invdiff.bench.run.backbones import Backbones, fingerprint
from invdiff.bench.run.executors import parse_shard, shard_of
from invdiff.bench.run.images import pictures_in
from invdiff.bench.run.runner import bench, cost, failures, merge_runs, plan, run_suite
from invdiff.bench.run.score import score_folders
from invdiff.bench.run.store import Record, Run
from invdiff.bench.run.worker import Worker, measurement_seed, restoration_seed
from invdiff.bench.suite.suite import SamplerEntry, Suite, Task
from invdiff.files import slug
from invdiff.images import from_pil
from invdiff.metrics import psnr, ssim
from invdiff.pictures import covered

pytestmark = pytest.mark.usefixtures("one_thread")  # a process with threads of its own cannot be forked safely

BACKBONE = gaussian_backbone()
SUITE = Suite(
    "tiny",
    (
        Task("strokes", "mask", {"mask": "wide", "seed": 1}, per_image=True),
        Task("sr", "super_resolution", {"scale": 4, "kernel": "box"}, sigma_y=0.05),
        Task("grey", "colorization"),
    ),
    (
        SamplerEntry("DDNM", "ddnm", {"steps": 6}),
        SamplerEntry("RePaint 6", "repaint", {"steps": 6, "jump_length": 2, "jump_n_sample": 2}),
        SamplerEntry("PiGDM", "pigdm", {"steps": 4}),
    ),
    n_images=3,
    image_steps=10,
    seeds=(0, 5),
    metrics=("psnr", "ssim", "misfit", "diversity", "calibration"),
    batch_size=2,
)
CELLS = 3 * 3 * 3 * 2


def numbers(run: Run) -> list[Record]:
    """What must not depend on how a run came about."""
    return [replace(record, seconds=None, peak_memory=None) for record in run.records()]


def pictures(run: Run) -> dict[str, bytes]:
    return {str(p.relative_to(run.folder)): p.read_bytes() for p in sorted((run.folder / "images").rglob("*.png"))}


def tiny(out, suite=SUITE, **options):
    return run_suite(suite, out, backbone=BACKBONE, progress=False, **options)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Run:
    return tiny(tmp_path_factory.mktemp("runs") / "unbroken")


# ---- what a run holds --------------------------------------------------------------------------------------------


def test_a_run_holds_the_grid_in_order(unbroken):
    records = unbroken.records()
    assert len(records) == CELLS and all(r.ok for r in records)
    wanted = [
        (task.name, entry.label, f"prior-{i:03d}", seed)
        for task in SUITE.tasks
        for entry in SUITE.samplers
        for i in range(3)
        for seed in SUITE.seeds
    ]
    assert [(r.task, r.sampler, r.image, r.seed) for r in records] == wanted
    for record in records:
        image = unbroken.image(record)
        assert image is not None and image.size == (16, 16)
        assert unbroken.measured(record.task, record.image) is not None


def test_costs_are_counted(unbroken):
    price = cost(SUITE, Backbones(SUITE, BACKBONE))
    for record in unbroken.records():
        gradient = record.settings["sampler"] == "pigdm"
        assert record.vjps == (record.nfe if gradient else 0)
        assert record.forward_equivalents == record.nfe * (2.5 if gradient else 1)
        assert price[record.task, record.sampler] == (record.nfe, record.forward_equivalents)
        assert record.seconds is not None and record.seconds > 0
        assert record.peak_memory is None  # of the whole process, it would say nothing about the sampler


def test_a_cell_is_what_solve_gives_alone(unbroken):
    """Batches, per-image masks and simulated noise included: any cell can be had again by hand."""
    warnings.simplefilter("ignore", InvdiffWarning)
    for record in random.Random(0).sample(unbroken.records(), 8):
        task, entry = SUITE.task(record.task), SUITE.sampler(record.sampler)
        number = int(record.image[-3:])
        truth = from_pil(unbroken.truth(record.image))[None]
        operator = task.build((3, 16, 16), [number])
        y = operator.measure(truth, task.sigma_y, [measurement_seed(task.name, record.image)])
        alone = solve(
            operator,
            y,
            entry.name,
            backbone=BACKBONE,
            sigma_y=task.sigma_y,
            seed=restoration_seed(record.image, record.seed),
            **entry.options,
        )
        kept = np.asarray(unbroken.image(record)).astype(int)
        assert np.abs(kept - np.asarray(alone.image).astype(int)).max() <= 1
        assert record.metrics["psnr"] == pytest.approx(float(psnr(alone.x.clamp(0, 1), truth)[0]), abs=1e-3)
        assert record.settings["steps"] == entry.options["steps"]


def test_metrics_are_of_the_right_pair(unbroken):
    for record in unbroken.records()[::7]:
        x, truth = from_pil(unbroken.image(record))[None], from_pil(unbroken.truth(record.image))[None]
        assert record.metrics["psnr"] == pytest.approx(float(psnr(x, truth)[0]), abs=0.1)
        assert record.metrics["ssim"] == pytest.approx(float(ssim(x, truth)[0]), abs=0.02)
    noiseless = [r.metrics["misfit"] for r in unbroken.records() if r.sampler == "DDNM" and r.sigma_y == 0]
    assert max(noiseless) < 1e-5


def test_metrics_over_seeds(unbroken):
    groups = unbroken.groups()
    assert len(groups) == 3 * 3 * 3 * 2
    assert {g.metric for g in groups} == {"diversity", "calibration"}
    assert all(g.value is not None and g.value > 0 for g in groups)


def test_what_is_needed_to_repeat_it_is_there(unbroken):
    assert unbroken.suite == replace(SUITE, backbone=BACKBONE.name)
    info = unbroken.info
    assert info["backbone"]["sha256"] == fingerprint(BACKBONE) and len(info["backbone"]["sha256"]) == 64
    assert info["images_from_prior"] and info["images"] == ["prior-000", "prior-001", "prior-002"]
    session = info["sessions"][0]
    assert session["command"] and session["versions"]["torch"] and session["hardware"]["cores"]
    json.dumps(info)


def test_the_fingerprint_tells_backbones_apart():
    assert fingerprint(BACKBONE) == fingerprint(gaussian_backbone())
    assert fingerprint(BACKBONE) != fingerprint(gaussian_backbone(std=0.31))
    net = torch.nn.Conv2d(3, 3, 3)
    a = iv.NetworkBackbone(lambda x, t: net(x), image_shape=(3, 8, 8))
    assert fingerprint(a) == ""


# ---- stopped and resumed -----------------------------------------------------------------------------------------


def test_a_run_is_not_overwritten(unbroken):
    before = numbers(unbroken)
    with pytest.raises(InvdiffError, match="--resume"):
        tiny(unbroken.folder)
    with pytest.raises(InvdiffError, match="seeds"):
        tiny(unbroken.folder, replace(SUITE, seeds=(1,)), resume=True)
    with pytest.raises(InvdiffError, match="weights"):
        run_suite(SUITE, unbroken.folder, backbone=gaussian_backbone(std=0.31), resume=True)
    assert numbers(unbroken) == before


def test_resuming_a_finished_run_computes_nothing(unbroken, monkeypatch):
    monkeypatch.setattr(Worker, "run", lambda *_: pytest.fail("a batch was run again"))
    before = numbers(unbroken)
    assert numbers(tiny(unbroken.folder, resume=True)) == before


def killed(out, rng: random.Random, suite=SUITE) -> bool:
    """Run in another process that kills itself at a moment drawn from `rng`. True if it had finished before.

    The moment is counted in batches and then in calls, Python's and C's, from within the store: so it falls between any two
    things that are written, and on the same two on every machine.
    """
    batches, calls = rng.randrange(1, 4), rng.randrange(300)
    child = os.fork()
    if child == 0:

        def count(frame, event, _):
            nonlocal calls
            if frame.f_code.co_filename == store.__file__:
                calls -= 1
                if calls < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        def one_less(_):
            nonlocal batches
            batches -= 1
            if batches == 0:
                sys.setprofile(count)

        try:
            tiny(out, suite, resume=True, on_batch=one_less)
            sys.setprofile(None)
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return not os.WIFSIGNALED(status)


def kill_often(unbroken, out, least):
    rng, kills, sizes = random.Random(1), 0, [0]
    while not killed(out, rng):
        kills += 1
        if (out / "results.sqlite").exists():
            with_rows = Run.open(out)
            sizes.append(len(with_rows.records()))
            assert sizes[-1] >= sizes[-2], "a finished cell was lost"
            for record in with_rows.records():
                assert with_rows.image(record) is not None, "a record without its picture"
        if kills > 200:
            pytest.fail("the run never ends")
    if kills < least:
        return kills
    run = tiny(out, resume=True)
    assert numbers(run) == numbers(unbroken)
    assert run.groups() == unbroken.groups()
    assert pictures(run) == pictures(unbroken)
    return kills


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_random_moments_and_resumed_equals_unbroken(unbroken, tmp_path):
    assert kill_often(unbroken, tmp_path / "killed", 2) >= 2


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_many_times_equals_unbroken(tmp_path):
    suite = replace(SUITE, n_images=12)
    whole = tiny(tmp_path / "whole", suite)
    rng, kills = random.Random(2), 0
    while not killed(tmp_path / "killed", rng, suite):
        kills += 1
    assert kills >= 10
    assert numbers(Run.open(tmp_path / "killed")) == numbers(whole)


def test_a_stop_between_pictures_and_records_does_no_harm(unbroken, tmp_path, monkeypatch):
    calls = []

    def stops(self, records, unavailable=None):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(self, records, unavailable)

    original = Run.write
    monkeypatch.setattr(Run, "write", stops)
    with pytest.raises(KeyboardInterrupt):
        tiny(tmp_path / "r")
    monkeypatch.undo()
    assert len(Run.open(tmp_path / "r").records()) == 6
    run = tiny(tmp_path / "r", resume=True)
    assert numbers(run) == numbers(unbroken) and len(run.info["sessions"]) == 2


def test_a_transaction_is_all_or_nothing(unbroken, tmp_path):
    run = Run.create(tmp_path / "r", SUITE, {"images": []})
    good = unbroken.records()[0]
    with pytest.raises(Exception):  # noqa: B017
        run.write([good, replace(good, cell="other", error=object())])
    assert run.records() == []


# ---- split and merged --------------------------------------------------------------------------------------------


def test_shards_merged_equal_one_process(unbroken, tmp_path):
    parts = [tiny(tmp_path / f"part{i}", shard=f"{i}/3") for i in (3, 1, 2)]
    assert sum(len(p.records()) for p in parts) == CELLS
    merged = merge_runs([p.folder for p in parts], tmp_path / "merged")
    assert numbers(merged) == numbers(unbroken)
    assert merged.groups() == unbroken.groups()
    assert pictures(merged) == pictures(unbroken)
    assert merged.info["missing"] == 0
    with pytest.raises(InvdiffError, match="holds a run already"):
        merge_runs([parts[0].folder], tmp_path / "merged")


def test_merging_says_what_does_not_fit(unbroken, tmp_path):
    part = tiny(tmp_path / "part", shard="1/2")
    assert merge_runs([part.folder], tmp_path / "half").info["missing"] == CELLS - len(part.records())
    other = tiny(tmp_path / "other", replace(SUITE, seeds=(3,)), shard="1/9")
    with pytest.raises(InvdiffError, match="seeds"):
        merge_runs([part.folder, other.folder], tmp_path / "m1")
    record = part.records()[0]
    part.write([replace(record, metrics={"psnr": 1.0})])
    with pytest.raises(InvdiffError, match="different results"):
        merge_runs([unbroken.folder, part.folder], tmp_path / "m2")
    part.write([record])
    part.save("images/truth/prior-000.png", Image.new("RGB", (16, 16)))
    with pytest.raises(InvdiffError, match="true image 'prior-000'"):
        merge_runs([unbroken.folder, part.folder], tmp_path / "m3")


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_shards_are_a_partition(count):
    items = list(range(23))
    parts = [shard_of(items, (i, count)) for i in range(1, count + 1)]
    assert sorted(x for part in parts for x in part) == items
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("shard", ["0/4", "5/4", "1", "a/b", "1/2/3", (2, 1)])
def test_a_wrong_shard_is_refused(shard):
    with pytest.raises(InvdiffError, match="i/n"):
        parse_shard(shard)


def test_the_plan_covers_every_cell_once():
    names = ["a", "b", "c"]
    for size in (1, 4, 100):
        suite = replace(SUITE, batch_size=size)
        batches = plan(suite, names, Backbones(suite, BACKBONE))
        keys = [key for batch in batches for key in batch.keys]
        assert len(keys) == len(set(keys)) == CELLS
        assert max(len(batch.cells) for batch in batches) <= size


def test_the_batch_size_does_not_change_the_numbers(unbroken, tmp_path):
    run = tiny(tmp_path / "r", replace(SUITE, batch_size=5))
    for a, b in zip(run.records(), unbroken.records(), strict=True):
        assert a.cell == b.cell
        assert a.metrics["psnr"] == pytest.approx(b.metrics["psnr"], abs=1e-3)


# ---- failures ----------------------------------------------------------------------------------------------------


def test_what_cannot_be_run_is_refused_before_the_first_cell(tmp_path):
    Image.new("L", (5, 5), 255).save(tmp_path / "mask.png")
    bad = [
        (SamplerEntry("long", "repaint", {"steps": 4, "jump_length": 9, "jump_n_sample": 2}), None, "jump_length = 9"),
        (SamplerEntry("many", "ddnm", {"steps": 99999}), None, "steps must be"),
        (SamplerEntry("path", "ddnm", {"path": "jumpz"}), None, "'jumps'"),
        (SamplerEntry("exact", "exact"), None, "posterior is known"),
        (None, Task("size", "mask", {"mask": str(tmp_path / "mask.png")}), "5"),
        (None, Task("absent", "mask", {"mask": str(tmp_path / "none.png")}), "none.png"),
        (None, Task("scale", "super_resolution", {"scale": "a"}), "scale"),
        (None, Task("scale", "super_resolution", {"scale": float("nan")}), "scale"),
        (None, Task("drawn", "colorization", measurements=2), "value_range"),
    ]
    for entry, task, said in bad:
        suite = (
            replace(SUITE, samplers=(*SUITE.samplers, entry)) if entry else replace(SUITE, tasks=(*SUITE.tasks, task))
        )
        with pytest.raises(InvdiffError, match=said) as error:
            tiny(tmp_path / "r", suite)
        assert (entry.label if entry else task.name) in str(error.value)
        assert not (tmp_path / "r").exists()


def test_a_failing_cell_is_recorded_and_the_rest_goes_on(tmp_path, monkeypatch):
    from invdiff.bench.run import worker

    def fragile(operator, y, name, **options):
        if name == "pigdm":
            raise RuntimeError("broken on purpose")
        return solve(operator, y, name, **options)

    monkeypatch.setattr(worker, "solve", fragile)
    run = tiny(tmp_path / "r", replace(SUITE, samplers=(SUITE.samplers[0], SUITE.samplers[2])))
    records = run.records()
    assert len(records) == 2 * CELLS // 3
    for record in records:
        assert record.ok == (record.sampler == "DDNM")
        if not record.ok:
            assert "broken on purpose" in str(record.error) and record.file is None and record.nfe is None
            assert record.settings["steps"] == 4
    assert {g.sampler for g in run.groups()} == {"DDNM"}
    assert failures(run) == (
        f"{CELLS // 3} of {2 * CELLS // 3} cells failed ({CELLS // 3} with: RuntimeError: broken on purpose); --resume "
        "--retry-failed tries again"
    )


def test_one_bad_image_does_not_take_its_batch_along(tmp_path, monkeypatch):
    from invdiff.bench.run import worker

    def brittle(operator, y, *args, seed, **options):
        if set(seed) & fives:
            raise RuntimeError("seed 5 is out of memory")
        return solve(operator, y, *args, seed=seed, **options)

    fives = {worker.restoration_seed(f"prior-{number:03d}", 5) for number in range(100)}
    monkeypatch.setattr(worker, "solve", brittle)
    run = tiny(tmp_path / "r")
    assert all(record.ok == (record.seed == 0) for record in run.records())
    assert {record.error for record in run.records()} == {None, "RuntimeError: seed 5 is out of memory"}
    monkeypatch.undo()
    assert not all(record.ok for record in tiny(tmp_path / "r", resume=True).records())
    assert all(record.ok for record in tiny(tmp_path / "r", resume=True, retry_failed=True).records())


def test_a_metric_that_cannot_be_had_is_none_with_a_reason(tmp_path):
    suite = replace(SUITE, tasks=SUITE.tasks[:1], metrics=("psnr", "lpips", "fid", "diversity"), seeds=(0,))
    run = tiny(tmp_path / "r", suite)
    assert all(r.metrics["lpips"] is None and r.metrics["psnr"] is not None for r in run.records())
    assert set(run.unavailable) == {"lpips", "fid", "diversity"}
    assert "two seeds" in run.unavailable["diversity"]
    assert all(g.value is None and g.reason for g in run.groups())


def test_only_what_the_run_made_is_deleted(unbroken, tmp_path):
    run = tiny(tmp_path / "r", replace(SUITE, samplers=SUITE.samplers[:1], seeds=(0,)))
    own = [run.folder / ".env", run.folder / "images" / ".gitignore", run.folder / ".photo-abcdefgh.png"]
    own += [
        run.folder / "images" / "grey" / ".notes-12345678.txt",
        run.folder / "images" / "truth" / ".mine-12345678.png",
    ]
    left = [run.folder / ".run-abc_1234.json", run.folder / "images" / "truth" / ".prior-001-zyxw4321.png"]
    for path in (*own, *left):
        path.write_text("keep me")
    tiny(run.folder, run.suite, resume=True)
    assert all(path.read_text() == "keep me" for path in own) and not any(path.exists() for path in left)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("run.json", b""),
        ("run.json", b'{"images": ["a"'),
        ("run.json", b"[]"),
        ("suite.toml", b"\xff\xfe"),
        ("results.sqlite", b""),
        ("results.sqlite", b"some text, no database at all"),
        ("results.sqlite", None),
        ("results.sqlite", 100),
    ],
)
def test_a_damaged_run_is_told_in_a_line(unbroken, tmp_path, file, content):
    shutil.copytree(unbroken.folder, tmp_path / "r")
    path = tmp_path / "r" / file
    whole = path.read_bytes()
    if content is None:  # cut
        content = whole[: len(whole) // 2]
    elif isinstance(content, int):  # one number of one row is another
        at = whole.index(b'"psnr": ') + 8
        content = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    path.write_bytes(content)
    for look in (
        lambda: Run.open(tmp_path / "r").suite and Run.open(tmp_path / "r").records(),
        lambda: make_report(tmp_path / "r"),
    ):
        with pytest.raises(InvdiffError, match=file) as error:
            look()
        assert "\n" not in str(error.value)


def test_a_place_that_cannot_be_written_is_told_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(Worker, "run", lambda *_: pytest.fail("a batch was run"))
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InvdiffError, match="cannot be written"):
            tiny(out)


def test_what_is_no_run_is_said(tmp_path):
    with pytest.raises(InvdiffError, match="no benchmark run"):
        Run.open(tmp_path)
    with pytest.raises(InvdiffError, match="Did you mean 'ray'"):
        tiny(tmp_path / "r", executor="rya")
    assert not (tmp_path / "r").exists()


def test_a_run_can_be_read_where_it_cannot_be_written(unbroken, tmp_path, monkeypatch):
    import sqlite3

    real = sqlite3.connect

    def read_only(path, **options):
        if not options.get("uri"):
            raise sqlite3.OperationalError("attempt to write a readonly database")
        return real(path, **options)

    before = unbroken.records()
    monkeypatch.setattr(sqlite3, "connect", read_only)
    assert unbroken.records() == before


# ---- images ------------------------------------------------------------------------------------------------------


def test_images_of_a_folder(tmp_path):
    photos = tmp_path / "photos" / "sub"
    photos.mkdir(parents=True)
    for name, size in (("b.png", (40, 20)), ("a b.jpg", (16, 16)), ("c.png", (16, 33))):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)).save(photos / name)
    (photos / "notes.txt").write_text("no picture")
    assert list(pictures_in(tmp_path / "photos")) == ["sub-a-b", "sub-b", "sub-c"]
    run = bench(
        SUITE, tmp_path / "r", backbone=BACKBONE, images=photos.parent, n_images=2, samplers="ddnm", progress=False
    )
    assert run.info["images"] == ["sub-a-b", "sub-b"] and not run.info["images_from_prior"]
    assert run.truth("sub-b").size == (16, 16)
    with pytest.raises(InvdiffError, match="n_images must be at most 3"):
        bench(SUITE, tmp_path / "r2", backbone=BACKBONE, images=photos.parent, n_images=9)


def test_a_restoration_does_not_start_from_the_noise_of_its_truth(tmp_path):
    """Nothing is known: a sampler that walked the path of the drawing with its noise would return the truth itself."""
    suite = replace(
        SUITE,
        tasks=(Task("nothing", "mask", {"mask": "box", "fraction": 1.0}),),
        samplers=(SamplerEntry("prior", "replacement", {"steps": SUITE.image_steps, "clip": True}),),
        seeds=(0, 1, 2),
        metrics=("rmse",),
    )
    run = tiny(tmp_path / "r", suite)
    truths = torch.stack([from_pil(run.truth(name)) for name in run.info["images"]])
    by_chance = float((truths[0] - truths[1]).square().mean().sqrt())
    assert min(record.metrics["rmse"] for record in run.records()) > 0.5 * by_chance


def test_pictures_are_cropped_in_the_middle():
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, 10:30] = 255
    assert np.asarray(covered(Image.fromarray(wide), (10, 10))).min() > 230
    same = Image.fromarray(wide)
    assert covered(same, (20, 40)) is same


def test_names_make_good_file_names():
    assert slug("DDNM+ (100), η=0.5/x") == "DDNM+-100-η=0.5-x"
    assert slug("../..") == "-"


# ---- scores of other people's results ----------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("truth", "out/mine", "out/theirs", "measured"):
        (tmp_path / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(rng.integers(0, 255, (12, 12, 3), np.uint8)).save(tmp_path / name / f"{i}.png")
    return tmp_path


def test_scores_of_folders_are_a_run(folders):
    run = score_folders(folders / "truth", folders / "out", folders / "measured", out=folders / "r")
    records = Run.open(folders / "r").records()
    assert [(r.sampler, r.image) for r in records] == [(s, str(i)) for s in ("mine", "theirs") for i in range(3)]
    for record in records:
        x, truth = (
            from_pil(Image.open(folders / p / f"{record.image}.png"))[None] for p in (f"out/{record.sampler}", "truth")
        )
        assert record.metrics["psnr"] == pytest.approx(float(psnr(x, truth)[0]))
        assert record.nfe is None and run.measured("scored", record.image) is not None
    assert "fid" in run.unavailable and run.suite.samplers[0].name == "external"


def test_scoring_one_folder_and_a_wrong_size(folders):
    Image.new("RGB", (5, 5)).save(folders / "out/mine/1.png")
    run = score_folders(folders / "truth", folders / "out/mine", out=folders / "r", metrics=("psnr",))
    assert [r.ok for r in run.records()] == [True, False, True]
    assert "5 x 5" in str(run.records()[1].error)


def test_scoring_says_what_is_wrong(folders):
    Image.new("RGB", (12, 12)).save(folders / "out/mine/other.png")
    with pytest.raises(InvdiffError, match="'other' has no true image"):
        score_folders(folders / "truth", folders / "out", out=folders / "r")
    with pytest.raises(InvdiffError, match="metric must be one that needs pictures only"):
        score_folders(folders / "truth", folders / "out", out=folders / "r", metrics=("misfit",))


# ---- Ray ---------------------------------------------------------------------------------------------------------


def test_without_ray_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(InvdiffError, match=r"invdiff\[ray\]"):
        tiny(tmp_path / "r", executor="ray")


class FakeRay:
    """Ray's calls in one process, with workers that die when told to."""

    class exceptions:
        class RayError(Exception):
            pass

    def __init__(self, deaths):
        self.deaths, self.hired = list(deaths), 0

    def hire(self, spec):
        self.hired += 1
        inner, fake = spec.build(), self

        class Method:
            def remote(self, batch):
                return (inner, batch, fake.deaths.pop(0) if fake.deaths else False)

        return type("Actor", (), {"run": Method()})()

    def wait(self, references, num_returns):
        return references[-1:], references[:-1]

    def get(self, reference):
        inner, batch, dies = reference
        if dies:
            raise self.exceptions.RayError("the worker died")
        return inner.run(batch)


@pytest.mark.parametrize("deaths", [[], [False, True, False, True], [True, True]])
def test_what_a_lost_worker_was_at_is_run_again(unbroken, tmp_path, monkeypatch, deaths):
    fake = FakeRay(deaths)
    monkeypatch.setattr(
        executors,
        "_on_ray",
        lambda spec, batches, *_: executors._spread(fake, lambda: fake.hire(spec), spec, batches, 2),
    )
    run = tiny(tmp_path / "r", executor="ray")
    assert numbers(run) == numbers(unbroken)
    assert fake.hired == 2 + sum(deaths)


def test_a_batch_that_kills_every_worker_is_recorded_as_failed(tmp_path, monkeypatch):
    fake = FakeRay([True] * executors.ATTEMPTS)
    monkeypatch.setattr(
        executors,
        "_on_ray",
        lambda spec, batches, *_: executors._spread(fake, lambda: fake.hire(spec), spec, batches, 1),
    )
    failures = [r for r in tiny(tmp_path / "r", executor="ray").records() if not r.ok]
    assert len(failures) == 2 and "workers were lost" in str(failures[0].error)


@pytest.mark.slow
def test_two_ray_workers_one_of_them_killed_equal_one_process(unbroken, tmp_path):
    ray = pytest.importorskip("ray")
    seen: list[int] = []

    def kill_one(outcome):
        if outcome.process not in seen:
            seen.append(outcome.process)
        if len(seen) == 1 and outcome.process == seen[0] and not getattr(kill_one, "done", False):
            kill_one.done = True
            os.kill(outcome.process, signal.SIGKILL)

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="warning")
    try:
        run = tiny(tmp_path / "r", executor="ray", workers=2, on_batch=kill_one)
    finally:
        ray.shutdown()
    assert kill_one.done and len(seen) >= 2
    assert numbers(run) == numbers(unbroken)
    assert pictures(run) == pictures(unbroken)
