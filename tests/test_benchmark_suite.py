"""Suites: what is read is what was written, and every mistake is told with its line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from invdiff import InvdiffError, Mask, make_mask
from invdiff.backbones.schedule import NoiseSchedule
from invdiff.bench.suite.suite import SUITES, SamplerEntry, Suite, Task, load_suite, suite_names

TEXT = """\
name = "mine"
seeds = 2
n_images = 3
metrics = ["psnr", "ssim"]

[[tasks]]
name = "half"
operator = "mask"
mask = "half"

[[tasks]]
name = "sr"
operator = "super_resolution"
scale = 4
kernel = "box"
sigma_y = 0.05

[[samplers]]
name = "ddnm"
steps = 5

[[samplers]]
label = "RePaint"
name = "repaint"
jump_length = 2
grid = { steps = [10, 20], jump_n_sample = [1, 2] }
"""


def test_what_is_read():
    suite = Suite.from_toml(TEXT)
    assert suite.seeds == (0, 1)
    assert [t.sigma_y for t in suite.tasks] == [0, 0.05]
    assert suite.samplers[0] == SamplerEntry("ddnm", "ddnm", {"steps": 5})
    assert [e.label for e in suite.samplers[1:]] == [
        f"RePaint steps={s} jump_n_sample={r}" for s in (10, 20) for r in (1, 2)
    ]
    assert suite.samplers[-1].options == {"jump_length": 2, "steps": 20, "jump_n_sample": 2}


@pytest.mark.parametrize("name", suite_names())
def test_the_suites_that_ship_are_right_and_survive_being_written(name):
    suite = load_suite(name)
    assert Suite.from_toml(suite.to_toml(), check=True) == suite
    assert suite.description


def test_every_sampler_is_in_quick_and_in_budget():
    from invdiff.samplers import sampler_names

    methods = set(sampler_names()) - {"unconditional"}
    assert {e.name for e in load_suite("quick").samplers} >= {
        "ddnm", "ddnm+", "ddrm", "diffpir", "dps", "mcg", "pigdm", "replacement", "repaint"
    } & methods  # fmt: skip
    for entry in load_suite("budget").samplers:
        if entry.name == "repaint":
            said = int(re.findall(r"\d+", entry.label)[0])
            assert entry.network_calls(Task("", "identity"), (3, 64, 64), NoiseSchedule.linear()) == said


def test_the_ablation_compares_at_equal_budget():
    suite, task = load_suite("repaint-ablation"), Task("", "identity")
    calls = {e.label: e.network_calls(task, (3, 64, 64), NoiseSchedule.linear()) for e in suite.samplers}
    for steps, r in ((490, 2), (730, 3), (970, 4)):
        assert calls[f"slow down steps={steps}"] == calls[f"resample jump_n_sample={r}"] == steps


def test_the_published_numbers_name_tasks_and_samplers():
    for name in suite_names():
        suite = load_suite(name)
        if suite.published is None:
            continue
        tasks = {t.name for t in suite.tasks}
        assert suite.published.rows and suite.published.source and suite.published.note
        assert all(set(row.values) <= tasks for row in suite.published.rows)
        labels = {row.method for row in suite.published.rows}
        assert labels & {e.label for e in suite.samplers}, name


@pytest.mark.parametrize(
    ("old", "new", "key", "said"),
    [
        ("seeds = 2", "seedz = 2", "", "Did you mean 'seeds'"),
        ("seeds = 2", "seeds = [1, 1]", "seeds", "different ones"),
        ("n_images = 3", "n_images = 0", "n_images", "at least 1"),
        ("n_images = 3", 'n_images = "3"', "n_images", "whole number"),
        ('"psnr", "ssim"', '"psnr", "sssim"', "metrics", "Did you mean 'ssim'"),
        ('mask = "half"', 'mask = "hlaf"', "tasks[0].mask", "Did you mean 'half'"),
        ('operator = "super_resolution"', 'operator = "superresolution"', "tasks[1].operator", "'super_resolution'"),
        ('kernel = "box"', 'kernle = "box"', "tasks[1].kernle", "Did you mean 'kernel'"),
        ("sigma_y = 0.05", "sigma_y = -1", "tasks[1].sigma_y", "at least 0"),
        ("sigma_y = 0.05", "grid = { sigma_y = 1 }", "tasks[1].grid", "lists of values"),
        ("scale = 4", "scale = 4\nmeasurements = -1", "tasks[1].measurements", "at least 0"),
        ('name = "ddnm"', 'name = "ddnmm"', "samplers[0].name", "Did you mean 'ddnm'"),
        ("steps = 5", "stpes = 5", "samplers[0]", "Did you mean 'steps'"),
        ("steps = 5", "steps = 0", "samplers[0].steps", "at least 1"),
        ("steps = 5", 'steps = 5\ntasks = ["nothing*"]', "samplers[0].tasks", "match a task"),
        ("jump_length = 2", "jump_lenght = 2", "samplers[1]", "Did you mean 'jump_length'"),
        ("jump_n_sample = [1, 2]", "jump_n_samples = [1, 2]", "samplers[1]", "Did you mean 'jump_n_sample'"),
        ('name = "sr"', 'name = "half"', "tasks", "there twice"),
        ("scale = 4", "scale = = 4", "", "no TOML"),
        ('name = "sr"\n', "", "tasks[1]", "must have name"),
        ('name = "mine"', 'name = "../../x"', "name", "below runs/"),
        ('name = "mine"', 'name = "/x"', "name", "below runs/"),
    ],
)
def test_a_mistake_is_told_with_its_key(old, new, key, said):
    with pytest.raises(InvdiffError, match=re.escape(said)) as error:
        Suite.from_toml(TEXT.replace(old, new, 1), "mine.toml")
    assert str(error.value).startswith("mine.toml") and key in str(error.value)


def test_tasks_and_samplers_of_a_grid_and_of_a_part():
    text = TEXT.replace(
        "sigma_y = 0.05", 'part = "noisy"\ngrid = { sigma_y = [0.05, 0.1] }\nsettings = { ddnm = { steps = 7 } }'
    )
    suite = Suite.from_toml(text.replace("steps = 5", 'steps = 5\ntasks = ["noisy"]'))
    assert [t.name for t in suite.tasks] == ["half", "sr sigma_y=0.05", "sr sigma_y=0.1"]
    assert [(t.name, e.label) for t, e in suite.pairs() if e.name == "ddnm"] == [
        (t.name, "ddnm") for t in suite.tasks[1:]
    ]
    assert suite.samplers[0].on(suite.tasks[0]) == {"steps": 5} and suite.samplers[0].on(suite.tasks[1]) == {"steps": 7}
    assert Suite.from_toml(suite.to_toml()) == suite


def test_overrides():
    suite = Suite.from_toml(TEXT)
    assert [e.label for e in suite.override(samplers="DDNM, pigdm").samplers] == ["ddnm", "pigdm"]
    assert suite.override(samplers=["ddnm"]).samplers[0].options == {"steps": 5}
    assert len(suite.override(samplers="repaint").samplers) == 4
    assert suite.override(seeds=[7, 8]).seeds == (7, 8)
    assert suite.override(n_images=1, backbone="other").backbone == "other"
    with pytest.raises(InvdiffError, match="Did you mean 'ddnm'"):
        suite.override(samplers="dnm")
    with pytest.raises(InvdiffError, match="does not exist"):
        suite.override(images="/no/such/folder")
    with pytest.raises(InvdiffError, match="at least 1"):
        suite.override(n_images=0)


def test_a_folder_of_images_is_found_beside_its_suite(tmp_path):
    (tmp_path / "mine.toml").write_text('images = "photos"\n' + TEXT)
    assert load_suite(tmp_path / "mine.toml").images == str(tmp_path / "photos")
    assert load_suite(tmp_path / "mine.toml").differences(Suite.from_toml(TEXT)) == ["images"]


def test_an_unknown_suite_is_told_the_near_match():
    with pytest.raises(InvdiffError, match="Did you mean 'inpainting'"):
        load_suite("inpaintings")


def test_masks_per_image_are_those_of_their_seeds():
    task = Task("wide", "mask", {"mask": "wide", "seed": 3}, per_image=True)
    masks = task.build((3, 16, 16), [2, 0])
    assert isinstance(masks, Mask)
    assert torch.equal(masks.mask[0, 0], make_mask("wide", 16, 5)) and torch.equal(
        masks.mask[1, 0], make_mask("wide", 16, 3)
    )


@pytest.mark.parametrize(
    ("operator", "options"),
    [
        ("mask", {"mask": "random_pixels", "fraction_known": 0.3}),
        ("super_resolution", {"scale": 2, "kernel": "bicubic"}),
        ("colorization", {"weights": "luma"}),
        ("blur", {"kernel": "gaussian", "size": 5, "sigma": 1.0}),
        ("blur", {"kernel": "motion", "size": 7, "seed": 1}),
        ("compressed_sensing", {"ratio": 0.5, "seed": 1}),
        ("fourier", {"acceleration": 2.0}),
        ("identity", {}),
    ],
)
def test_every_family_can_be_written_in_a_suite(operator, options):
    x = torch.rand(1, 3, 16, 16)
    y = Task("t", operator, options).build(x.shape[1:])(x)
    assert bool(torch.isfinite(y).all())
    if operator != "mask":
        with pytest.raises(InvdiffError, match="no option 'wrong'"):
            Task("t", operator, {**options, "wrong": 1}).build(x.shape[1:])


def test_the_link_at_the_root_leads_to_the_packaged_suites():
    link = Path(__file__).parent.parent / "benchmarks" / "suites"
    assert link.is_symlink() and link.resolve() == SUITES.resolve()
