"""Presets: what a sampler's name stands for on a task, what its paper had there, and files of one's own."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import torch
from conformance import classic, guided, particles, replay
from conformance.recordings import recordings
from PIL import Image
from test_conformance import HERE

from invdiff import InvdiffError, Mask, NoiseSchedule, SuperResolution, solve
from invdiff.bench.suite.suite import load_suite
from invdiff.cli import main
from invdiff.operators import OPERATORS, Identity
from invdiff.priors.named import correlated_gaussian
from invdiff.problem import Problem
from invdiff.samplers import DiffPIR, baseline_names, sampler_class, sampler_names
from invdiff.samplers.presets import FILE, PAPER, PRESETS, TUNED, Row, read, rows, settings_for, write
from invdiff.solve import resolve_sampler

HALF = Mask(torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0]]).bool())


@pytest.fixture
def prior():
    return correlated_gaussian()


def picked(sampler, operator=HALF, sigma_y=0.0, preset=None, **options):
    """The sampler object that `solve` would run."""
    empty = torch.empty(0)
    return resolve_sampler(sampler, Problem(operator, empty, empty, sigma_y, (1, 1, 8)), None, options, preset)[0]


# ---- the file in the package ------------------------------------------------------------------------------------


def test_the_rows_are_about_samplers_tasks_and_fields_that_exist():
    tasks = {cls.task for cls in OPERATORS._items.values()}
    for preset in PRESETS:
        for row in rows(preset):
            assert set(row.tasks) <= tasks and row.settings and row.source
            sampler_class(row.sampler)(**row.settings)


def test_a_row_changes_something_and_says_what_it_was_searched_on():
    for row in {id(r): r for preset in PRESETS for r in rows(preset)}.values():
        assert bool(row.tuned_on) == bool(row.objective), row
        if row.tuned_on:
            assert row.presets == (TUNED,), "what was searched is not the paper's"


def test_rows_written_are_rows_read(tmp_path):
    found = rows(TUNED)
    write(tmp_path / "again.toml", found)
    assert read(tmp_path / "again.toml") == found


# ---- the papers' settings ---------------------------------------------------------------------------------------

OWN = {"steps", "particles", "travel_length", "travel_repeat", "jump_length", "jump_n_sample", "visits"}
"""Fields in which a recording is a small run, not the paper's."""

REPLAYED = {
    "repaint_inpaint_t10_jl1_n2": (classic.repaint, "mask", 0),
    "diffpir_sr4_block": (classic.diffpir, "super_resolution", 0.1),
    "mcg_inpaint": (classic.mcg, "mask", 0),
    "dps_inpaint": (classic.dps, "mask", 0.1),
    "pigdm_inpaint_eta1": (classic.pigdm, "mask", 0),
    "ddrm_reddiff_sr4": (classic.ddrm, "super_resolution", 0),
    "ddnm_svd_inpainting_s0": (classic.ddnm, "mask", 0),
    "ddnm_svd_inpainting_s0.1": (classic.ddnm, "mask", 0.2),
}
SWEPT = {"diffpir_sr4_block": {"lambda_", "zeta"}}  # the recording stands at the first point of the script's sweep


@pytest.mark.parametrize("name", REPLAYED)
def test_the_paper_preset_is_what_the_recordings_were_made_with(name):
    make, task, sigma_y = REPLAYED[name]
    recording = next(r for r in recordings(HERE / "golden") if r.name == name)
    recorded = make(recording.config)
    paper = type(recorded)(**settings_for(recorded.name, task, sigma_y > 0, PAPER))
    for field in dataclasses.fields(recorded):
        if field.name not in OWN | SWEPT.get(name, set()):
            assert getattr(paper, field.name) == getattr(recorded, field.name), field.name


MADE = {
    "reddiff_inpaint": ("mask", False, set()),
    "reddiff_inpaint_noisy": ("mask", True, set()),
    "daps_sr4_box": ("super_resolution", True, set()),
    "copaint_inpaint": ("mask", False, set()),
    "mmps_ddim_inpaint": ("mask", True, {"spacing", "integrator", "eta"}),  # azula's DDIM: any integrator can follow
    "tmpd_mean_inpaint": ("mask", True, {"spacing", "integrator"}),
    "tds_inpaint": ("mask", False, {"result"}),  # the replay keeps all particles
    "mcgdiff_sr4": (
        "super_resolution",
        False,
        {"result", "resampling"},
    ),  # their multinomial draws, recorded as systematic
    "fps_smc_inpaint": ("mask", True, {"result", "resampling"}),
}
"""Recordings whose replayer makes the sampler itself: task, noise, and fields that are the replay's, not the paper's."""


@pytest.mark.parametrize("name", MADE)
def test_the_same_where_a_replayer_makes_the_sampler_itself(name, monkeypatch):
    task, noisy, left = MADE[name]

    class Made(Exception):
        pass

    def caught(sampler):
        raise Made(sampler)

    monkeypatch.setattr(guided, "_replayed", lambda recording, sampler, *_, **__: caught(sampler))
    monkeypatch.setattr(particles, "_run", lambda recording, run, sampler, *_, **__: caught(sampler))
    estimator = guided._estimator
    monkeypatch.setattr(guided, "_estimator", lambda word: caught(estimator(word)))
    recording = next(r for r in recordings(HERE / "golden") if r.name == name)
    with pytest.raises(Made) as found:
        list(replay.ALGORITHMS[recording.algorithm](recording))
    (recorded,) = found.value.args
    paper = sampler_class(recorded.name)(**settings_for(recorded.name, task, noisy, PAPER))
    for field in dataclasses.fields(recorded):
        if field.name not in OWN | left:
            assert getattr(paper, field.name) == getattr(recorded, field.name), field.name


# ---- who wins ---------------------------------------------------------------------------------------------------


def test_a_name_is_tuned_and_what_the_caller_says_wins():
    tuned = settings_for("diffpir", "mask", False)
    assert tuned and picked("diffpir") == picked("diffpir", preset="tuned") == DiffPIR(**tuned)
    for preset in PRESETS:
        assert picked("diffpir", preset=preset, lambda_=7.0, steps=3).lambda_ == 7.0
        assert picked("diffpir", preset=preset, lambda_=7.0, steps=3).steps == 3


def test_a_class_takes_a_preset_when_asked_an_object_none():
    assert picked(DiffPIR) == DiffPIR() != picked("diffpir")
    assert picked(DiffPIR, preset="paper") == picked("diffpir", preset="paper")
    with pytest.raises(InvdiffError, match=r"preset must be None with a sampler object.*got 'paper'"):
        picked(DiffPIR(), preset="paper")


def test_a_row_steps_back_as_a_whole_where_the_caller_sets_what_it_stands_against():
    row = Row("dps", {"clip": False, "norm": "known"}, unless=("scale",))
    assert row.holds("dps", "mask", False) and not row.holds("dps", "mask", False, {"scale": 1})


def test_what_was_searched_with_few_steps_does_not_hold_for_many():
    blurred = SuperResolution(4)
    few, own = (picked("dps", blurred, 0.1, **given) for given in ({"steps": 100}, {}))
    assert few.rule == "likelihood" and (own.rule, own.scale, own.steps) == ("constant", 0.3, 1000)
    row = Row("ddnm", {"eta": 0.5}, most_steps=50)
    assert row.holds("ddnm", "mask", False, {"steps": 50}) and not row.holds("ddnm", "mask", False)


def test_what_auto_stands_for_is_in_the_file_and_in_no_other_preset():
    mask, other = picked("auto"), picked("auto", SuperResolution(4), 0.1)
    assert (mask.name, mask.steps, other.steps) == ("ddnm+", 50, 30)
    assert (mask.eta, mask.spacing, other.eta, other.spacing) == (0.85, "leading", 0.85, "karras")
    assert picked("auto", steps=7, eta=0.5) == dataclasses.replace(mask, steps=7, eta=0.5)
    assert not [row for preset in PRESETS for row in rows(preset) if row.sampler == "ddnm+" and "steps" in row.settings]
    assert picked("auto", preset="tuned") == picked("ddnm+")


@pytest.mark.parametrize("wrong", ["papr", "", 3, None, ["paper"]])
def test_an_unknown_preset_is_refused_with_the_names(wrong):
    with pytest.raises(InvdiffError, match="preset must be one of tuned, paper"):
        rows(wrong)


def test_solve_refuses_and_tells_before_the_network_is_asked(prior):
    prior.predict = None  # would raise if it were called
    with pytest.raises(InvdiffError, match=r"preset must be one of tuned, paper, got 'papr'.*paper"):
        solve(HALF, torch.zeros(1, 1, 8), "ddnm", backbone=prior, preset="papr")


@pytest.mark.parametrize("name", sampler_names())
def test_every_sampler_has_a_paper(name, prior):
    """Cheap ones run; the settings of all can be had for every task."""
    for task in ("mask", "super_resolution", "blur", "", "colorization"):
        for noisy in (False, True):
            made = sampler_class(name)(**settings_for(name, task, noisy, PAPER))
            assert made.cost(NoiseSchedule.linear()).calls > 0


def test_solve_says_which_preset_it_took(prior):
    y = torch.zeros(1, 1, 8)
    plain = solve(HALF, y, "repaint", backbone=prior, steps=4, jump_length=1, jump_n_sample=1)
    paper = solve(HALF, y, "repaint", backbone=prior, steps=4, jump_length=1, jump_n_sample=1, preset="paper")
    assert "preset" not in plain.settings and plain.settings["paste_known"]
    assert paper.settings["preset"] == "paper" and not paper.settings["paste_known"]


# ---- files ------------------------------------------------------------------------------------------------------


def test_a_file_of_ones_own_comes_on_top(tmp_path, prior):
    file = tmp_path / "mine.toml"
    write(file, [Row("ddnm", {"eta": 0.25}, (TUNED,), ("mask",), source="ours")])
    assert picked("ddnm", preset=file).eta == picked("ddnm", preset=str(file)).eta == 0.25
    assert picked("ddnm", operator=Identity(), preset=file).eta == picked("ddnm").eta
    assert picked("diffpir", preset=file) == picked("diffpir")
    assert solve(HALF, torch.zeros(1, 1, 8), "ddnm", backbone=prior, steps=3, preset=file).settings["eta"] == 0.25


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[row]]\nsampler='ddmn'\nsettings={eta=1.0}", r"row\[0\]: sampler must be one of .* got 'ddmn'.*ddnm"),
        ("[[row]]\nsampler='ddnm'\nsettings={eat=1.0}", r"row\[0\]: unknown option 'eat' for sampler ddnm.*eta"),
        ("[[row]]\nsampler='ddnm'\nsettings={eta=7.0}", r"row\[0\]: ddnm: eta must be a number from 0 to 1, got 7"),
        ("[[row]]\nsampler='ddnm'\nsettings={}\nunless=['x']", r"row\[0\]: unknown option 'x'"),
        ("[[row]]\nsampler='ddnm'\nsettings={}\ntask=['mask']", r"row\[0\] has no key 'task'.*tasks"),
        (
            "[[row]]\nsampler='ddnm'\nsettings={}\ntasks='mask'",
            r"row\[0\]: tasks must be a list of strings, got 'mask'",
        ),
        ("[[row]]\nsampler='ddnm'\nsettings={}\nnoisy=1", r"row\[0\]: noisy must be true or false, got 1"),
        ("[[row]]\nsampler='ddnm'\nsettings={}\npresets=['papr']", r"row\[0\]: presets must be one of tuned, paper"),
        ("[[row]]\nsettings={}", r"row\[0\]: sampler must be a string, got None"),
        ("[[row]]\nsampler='ddnm'", r"row\[0\]: settings must be a table of fields, got None"),
        ("rows = 3", "has no key 'rows'; it has row"),
        ("row = 3", r"row must be an array of tables, \[\[row\]\], got 3"),
        ("row = [", "is no TOML"),
    ],
)
def test_a_wrong_file_is_refused_with_the_row(tmp_path, text, said):
    file = tmp_path / "wrong.toml"
    file.write_text(text)
    with pytest.raises(InvdiffError, match=said):
        rows(file)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InvdiffError, match=r"preset must be a file that can be read, got .*none.toml: No such file"):
        rows(tmp_path / "none.toml")


# ---- suites and the command line --------------------------------------------------------------------------------

SUITE = """
images = "prior"
backbone = "gaussian8"
metrics = ["psnr"]
[[tasks]]
name = "half"
operator = "mask"
mask = "half"
fraction_known = 0.5
[[samplers]]
name = "repaint"
{}
"""


def test_a_suite_names_presets_like_any_other_key(tmp_path):
    file = tmp_path / "s.toml"
    file.write_text(SUITE.format('grid = { preset = ["tuned", "paper"] }'))
    suite = load_suite(file)
    pasted = [entry.resolve(suite.tasks[0], (1, 1, 8))[0].paste_known for entry in suite.samplers]
    assert pasted == [True, False]
    file.write_text(SUITE.format('preset = "papr"'))
    with pytest.raises(InvdiffError, match=r"samplers\[0\].preset: preset must be one of tuned, paper, got 'papr'"):
        load_suite(file)


def test_the_suites_after_papers_take_the_papers_settings():
    suite = load_suite("papers/diffpir")
    assert all(entry.options.get("preset") == "paper" for entry in suite.samplers if entry.name not in baseline_names())


@pytest.fixture
def invdiff(monkeypatch, capsys):
    """Run the command in this process: words -> (whether it ended well, what it printed)."""

    def run(*words: object) -> tuple[bool, str]:
        monkeypatch.setenv("COLUMNS", "400")
        monkeypatch.setattr(sys, "argv", ["invdiff", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
            sys.exit(0)
        printed = capsys.readouterr()
        return end.value.code in (0, None), printed.out + printed.err

    return run


def test_the_command_line(tmp_path, invdiff):
    photo = tmp_path / "in.png"
    Image.new("RGB", (64, 64), (90, 120, 150)).save(photo)
    words = ("solve", photo, "--mask", "half", "-s", "repaint", "--dry-run", "--steps", 3, "-O", "jump_length=1")
    well, said = invdiff(*words, "--preset", "papr")
    assert not well and "preset must be one of tuned, paper, got 'papr'" in said
    well, said = invdiff(*words, "--preset", "paper")
    assert well and "repaint: " in said


def test_the_list_says_which_preset_changes_what(invdiff):
    well, said = invdiff("list", "samplers")
    assert well and "preset paper, for every operator: known_level='source'" in said
    assert "preset tuned, for mask" in said


def test_the_shipped_file_is_read_by_any_path_to_it(monkeypatch):
    """`tune.py --write` is given a path of the caller's; only the shipped file may say what "auto" stands for."""
    monkeypatch.chdir(FILE.parent)
    assert read("presets.toml") == read(FILE)
    assert any(row.presets == ("auto",) for row in read("presets.toml"))
