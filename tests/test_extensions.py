"""What comes from outside the package: registered names, entry points, `--import`."""

from __future__ import annotations

import json
import sys
from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch
from PIL import Image

from invdiff import registry
from invdiff.bench.suite.suite import Suite, load_suite
from invdiff.cli import main
from invdiff.cli.terminal import imports_first
from invdiff.data import chelsea64
from invdiff.errors import InvdiffError, InvdiffWarning
from invdiff.extensions import import_extensions, imported_extensions
from invdiff.priors import GaussianBackbone
from invdiff.registry import Registry
from invdiff.samplers import sampler_class

ONE_FILE = '''
from dataclasses import dataclass
from typing import ClassVar

import torch

from invdiff import NetworkBackbone, register_mask
from invdiff.checkpoints.formats import Format, register_format
from invdiff.metrics import Metric, register_metric
from invdiff.operators import LinearOperator, register_operator
from invdiff.samplers import Sampler, option, register_sampler
from invdiff.samplers.base import inverse


@register_sampler("fade-in")
@dataclass(frozen=True)
class Fade(Sampler):
    """DDNM with a correction that grows while the noise fades."""

    power: float = option(0.5, "of alpha_bar", low=0)
    default_spacing: ClassVar[str] = "leading"

    def step(self, x_t, t, s, problem, backbone, noise):
        a_t, a_s = (backbone.schedule.alpha_bar_at(u) for u in (t, s))
        x0 = backbone.predict(x_t, t).x0
        x0 = x0 + (1.0 if s < 0 else a_t**self.power) * problem.filtered_residual(inverse, x0)
        return (x0 if s < 0 else a_s**0.5 * x0 + (1 - a_s) ** 0.5 * noise("step")), x0


@register_operator("bands")
class Bands(LinearOperator):
    """Sums of `rows` horizontal bands."""

    rows_disjoint = channelwise = True

    def __init__(self, rows: int = 8):
        self.rows = rows

    def apply(self, x):
        return x.unflatten(-2, (self.rows, -1)).sum((-2, -1))

    def apply_adjoint(self, y, image_shape):
        height = image_shape[-2] // self.rows
        return y[..., None].repeat_interleave(height, -2).expand(*y.shape[:-1], *image_shape[-2:]).contiguous()


@register_mask("cross")
def cross(size, seed=0, width: int = 2):
    """A cross is missing."""
    mask = torch.ones(size, dtype=torch.bool)
    mask[size[0] // 2 :][:width] = mask[:, size[1] // 2 :][:, :width] = False
    return mask


def brightness(x, truth):
    return (x.mean((1, 2, 3)) - truth.mean((1, 2, 3))).abs()


register_metric(Metric("brightness", "brightness", "lower", "of [0, 1]", {"reference"}, "error of the mean", brightness))


@register_format("grey-world")
class GreyWorld(Format):
    def matches(self, path):
        return None if path.suffix == ".grey" else "its name does not end in .grey"

    def load(self, path, **options):
        size = int(path.read_text())
        return NetworkBackbone(lambda x, t: x, image_shape=(3, size, size), name="grey")
'''


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run the command in a folder with the file: words -> what it printed."""
    (tmp_path / "mine.py").write_text(ONE_FILE)
    chelsea64().save(tmp_path / "photo.png")
    (tmp_path / "small.grey").write_text("64")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")

    def run(*words, ok=True):
        monkeypatch.setattr(sys, "argv", ["invdiff", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
            sys.exit(0)
        printed = capsys.readouterr()
        said = " ".join((printed.out + printed.err).split())
        assert (end.value.code in (0, None)) == ok, said
        assert "Traceback" not in said
        return said

    return run


def test_one_file_brings_a_sampler_an_operator_a_mask_a_metric_and_a_format(command, tmp_path):
    words = ("solve", "photo.png", "--mask", "cross", "-A", "width=6", "-s", "fade-in", "--steps", 3, "-O", "power=1")
    assert "one of" in command(*words, "-q", ok=False)
    said = command(*words, "-o", "r.png", "--import", "mine.py")
    assert "fade-in: 3 network calls" in said and "82 % of the pixels are known" in said
    known = np.ones((64, 64), bool)
    known[32:38] = known[:, 32:38] = False
    restored = np.asarray(Image.open(tmp_path / "r.png"))
    assert np.array_equal(restored[known], np.asarray(chelsea64())[known])

    command("solve", "photo.png", "--simulate", "-a", "bands", "-A", "rows=4", "--steps", 2, "--import=mine.py")
    assert "fade-in" in command("list", "samplers", "--import", "mine.py")
    assert "Bands(rows=8)" in command("--import", "mine.py", "list", "operators")
    assert "cross" in command("list", "masks", "--import", "mine.py")
    assert "error of the mean" in command("list", "metrics", "--import", "mine.py")
    command("sample", "--backbone", "small.grey", "--steps", 2, "-o", "s.png", "--import", "mine.py")
    assert Image.open(tmp_path / "s.png").size == (64, 64)


SUITE = """
backbone = "cats64"
n_images = 1
image_steps = 2
metrics = ["brightness", "misfit"]

[[tasks]]
name = "bands"
operator = "bands"
rows = 4

[[tasks]]
name = "cross"
operator = "mask"
mask = "cross"

[[samplers]]
name = "fade-in"
steps = 2
grid = { power = [0.0, 1.0] }
"""


def records(folder):
    from invdiff.bench.run.store import Run

    return sorted((r.task, r.sampler, r.metrics["brightness"], r.metrics["misfit"]) for r in Run.open(folder).records())


def test_a_suite_of_things_from_one_file_runs(command, tmp_path):
    (tmp_path / "own.toml").write_text(SUITE)
    assert "one of" in command("bench", "own.toml", ok=False)
    command("bench", "own.toml", "--import", "mine.py", "--out", "run", "--no-report")
    found = records(tmp_path / "run")
    assert len(found) == 4 and all(np.isfinite(row[2]) and row[3] < 1e-3 for row in found if row[0] == "cross")


def test_a_suite_imports_what_stands_beside_it_and_remembers_it(command, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "own.toml").write_text('imports = ["mine.py"]\n' + SUITE)
    monkeypatch.chdir(elsewhere)
    suite = load_suite(tmp_path / "own.toml")
    assert suite.imports == ("mine.py",) and imported_extensions() == (str(tmp_path / "mine.py"),)
    assert Suite.from_toml(suite.to_toml(), folder=tmp_path) == suite


@pytest.mark.slow
def test_ray_s_workers_import_it_too(command, tmp_path):
    pytest.importorskip("ray")
    (tmp_path / "own.toml").write_text(SUITE)
    words = ("bench", "own.toml", "--import", "mine.py", "--no-report", "--out")
    command(*words, "here")
    command(*words, "there", "--executor", "ray", "--workers", 1)
    assert records(tmp_path / "there") == records(tmp_path / "here")


def test_an_import_may_stand_anywhere_and_stays_behind_a_double_dash():
    assert imports_first(["solve", "a.png", "--import", "m.py", "-q"]) == ["--import", "m.py", "solve", "a.png", "-q"]
    assert imports_first(["list", "masks", "--import=m.py"]) == ["--import=m.py", "list", "masks"]
    assert imports_first(["solve", "--", "--import", "m.py"]) == ["solve", "--", "--import", "m.py"]
    assert imports_first(["solve", "--import"]) == ["--import", "solve"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("gone.py", None, "exists or the name of a module, got 'gone.py'"),
        ("no_such_module_at_all", None, "no_such_module_at_all"),
        ("broken.py", "x = 1\nx +\n", "SyntaxError"),
        ("raising.py", "def f():\n    raise ValueError('why')\nf()\n", r"ValueError: why \(raising.py, line 2\)"),
        ("needs.py", "import no_such_module_at_all\n", "No module named 'no_such_module_at_all'"),
        ("json.py", "", "rename the file"),
    ],
)
def test_what_cannot_be_imported_is_said(tmp_path, monkeypatch, name, text, message):
    monkeypatch.chdir(tmp_path)
    assert json.__name__ in sys.modules
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InvdiffError, match=message):
        import_extensions([name])
    assert imported_extensions() == ()


def test_a_file_is_imported_once_and_finds_what_stands_beside_it(tmp_path, monkeypatch):
    (tmp_path / "beside_it.py").write_text("value = 3\n")
    (tmp_path / "once.py").write_text(
        "import beside_it\nassert not hasattr(beside_it, 'seen')\nbeside_it.seen = True\n"
    )
    import_extensions(["once.py"], beside=tmp_path)
    import_extensions([str(tmp_path / "once.py")])
    assert imported_extensions() == (str(tmp_path / "once.py"),)


# ---- the registry --------------------------------------------------------------------------------------------------


def points(monkeypatch, *values):
    group = "invdiff.things"
    found = [EntryPoint("theirs", value, group) for value in values]
    monkeypatch.setattr(registry, "entry_points", lambda group: found if group == "invdiff.things" else [])
    return Registry("thing", group)


def test_nothing_is_overwritten_and_the_same_definition_may_be_registered_again():
    things = Registry("thing", "invdiff.things", plain=str.lower)

    def first(): ...

    def second(): ...

    assert things.add("one", first) is first and things.add("One", first) is first
    with pytest.raises(InvdiffError, match=r"a thing named 'one' exists already .*first"):
        things.add("ONE", second)
    things.add("anonymous", lambda: 1)
    with pytest.raises(InvdiffError, match="exists already"):
        things.add("anonymous", lambda: 2)
    assert things.names() == ["one", "anonymous"] and "oNe" in things
    with pytest.raises(InvdiffError, match="Did you mean 'one'"):
        things.get("on")


def test_a_name_that_a_package_announces_is_taken(monkeypatch):
    things = points(monkeypatch, "torch:ones")
    with pytest.raises(InvdiffError, match=r"announced as torch:ones"):
        things.add("theirs", test_a_name_that_a_package_announces_is_taken)
    assert things.get("theirs") is torch.ones and things.names() == ["theirs"]


def test_a_prior_is_a_backbone_by_its_name_registered_or_announced(monkeypatch):
    from invdiff.backbones.zoo import BACKBONES, backbone_names, load_backbone
    from invdiff.priors import PRIORS, register_prior

    @register_prior("flat")
    def flat(width: float = 0.5):
        return GaussianBackbone(torch.zeros(1, 2, 2), torch.full((1, 2, 2), width**2))

    try:
        assert float(load_backbone("flat", width=0.25).variance.max()) == 0.0625
        assert load_backbone("flat").name == "flat" and "flat" in backbone_names()
        with pytest.raises(InvdiffError, match="Did you mean 'width'"):
            load_backbone("flat", widht=1)
        with pytest.raises(InvdiffError, match="exists already"):
            register_prior("cats64", flat)
        with pytest.raises(InvdiffError, match="must be callable"):
            register_prior("other", 3)
    finally:
        PRIORS.remove("flat"), BACKBONES.remove("flat")
    found = [EntryPoint("theirs", "invdiff.priors.named:two_modes16", "invdiff.priors")]
    monkeypatch.setattr(registry, "entry_points", lambda group: found if group == "invdiff.priors" else [])
    assert "theirs" in backbone_names() and load_backbone("theirs").image_shape == (1, 1, 16)
    PRIORS.remove("theirs")


def test_two_packages_with_one_name_and_a_broken_one_are_said(monkeypatch):
    things = points(monkeypatch, "torch:ones", "numpy:ones")
    with pytest.raises(InvdiffError, match=r"several packages \(torch:ones, numpy:ones\)"):
        things.get("theirs")
    things = points(monkeypatch, "no_such_package:x")
    with pytest.raises(InvdiffError, match="cannot be imported from no_such_package:x"):
        things.get("theirs")
    with pytest.warns(InvdiffWarning, match="no_such_package"):
        assert list(things.items()) == []


def test_an_unknown_name_like_none_there_is_says_how_ones_own_gets_known():
    with pytest.raises(
        InvdiffError, match=r"got 'zzz'\. A sampler of your own has to be imported first.*--import FILE"
    ):
        sampler_class("zzz")
    with pytest.raises(InvdiffError, match="Did you mean 'repaint'") as error:
        sampler_class("repant")
    assert "--import" not in str(error.value)
