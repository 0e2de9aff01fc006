"""Classical methods: what each is for, what it promises, and that `solve`, suites and reports take them."""

from __future__ import annotations

import pytest
import torch
from conftest import operators, quiet_solve

import invdiff as iv
from invdiff import InvdiffError, Mask, SuperResolution, palette, solve
from invdiff.bench.report.report import make_report
from invdiff.bench.run.runner import bench
from invdiff.bench.suite.suite import Suite, load_suite
from invdiff.cli import main
from invdiff.data import chelsea64
from invdiff.samplers import baseline_names, baselines_for, sampler_class
from invdiff.samplers.baselines import _divergence, _gradient
from invdiff.solve import build_problem

FITTING = {
    "mask": {"biharmonic"},
    "masks": {"biharmonic"},
    "nearest": {"bicubic"},
    "box": {"bicubic"},
    "bicubic": {"bicubic"},
    "blur": {"wiener"},
}


def never(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    raise AssertionError("a baseline asked the network")


BACKBONE = iv.NetworkBackbone(never, image_shape=(3, 16, 16))


@pytest.mark.parametrize("name", operators(2))
def test_each_says_which_operators_it_takes_and_restores_these_without_a_network(name, clean):
    A = operators(2)[name]
    y = A.measure(clean[:2])
    fitting = baselines_for(build_problem(A, y, 0.0, BACKBONE, (-1, 1)))
    assert set(fitting) == FITTING.get(name, set()) | {"pseudo-inverse", "tv"}
    for method in baseline_names():
        if method in fitting:
            options = {"iterations": 5} if method == "tv" else {}
            s = quiet_solve(A, y, method, backbone=BACKBONE, n_samples=2, **options)
            assert s.nfe == s.vjps == 0 and s.timesteps == [] and s.x.shape == (4, 3, 16, 16)
            assert torch.equal(s.samples[:, 0], s.samples[:, 1]) and bool(torch.isfinite(s.x).all())
            one = quiet_solve(A[1], y[1:], method, backbone=BACKBONE, **options)
            torch.testing.assert_close(one.x[0], s.samples[1, 0], atol=2e-5, rtol=0)
        else:
            with pytest.raises(InvdiffError, match=f"'{method}' cannot restore .* it is for"):
                solve(A, y, method, backbone=BACKBONE, value_range=(-1, 1))


def test_they_are_told_apart_from_samplers_and_have_neither_steps_nor_a_path(clean):
    assert not set(baseline_names()) & set(iv.sampler_names())
    assert all(sampler_class(name)().cost(iv.NoiseSchedule.linear()).calls == 0 for name in baseline_names())
    A = Mask(iv.make_mask("box", 16))
    for options, word in [
        ({"steps": 5}, "steps"),
        ({"path": "jumps"}, "path"),
        ({"guidance": lambda x: x}, "guidance"),
    ]:
        with pytest.raises(InvdiffError, match=word):
            quiet_solve(A, clean[:1], "biharmonic", backbone=BACKBONE, **options)


@pytest.mark.parametrize("method", ["biharmonic", "tv"])
def test_masks_keep_what_is_known_and_continue_a_constant(method):
    A = Mask(torch.stack([iv.make_mask("box", 16), iv.make_mask("random_pixels", 16)])[:, None])
    flat = torch.full((2, 3, 16, 16), 0.25)
    torch.testing.assert_close(quiet_solve(A, flat, method, backbone=BACKBONE).x, flat, atol=1e-4, rtol=0)
    noise = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) - 0.5
    kept = quiet_solve(A, noise, method, backbone=BACKBONE).x
    known = A.mask.expand_as(noise)
    assert torch.equal(kept[known], noise[known])


@pytest.mark.parametrize("kernel", ["nearest", "box", "bicubic"])
@pytest.mark.parametrize("size", [(36, 36), (35, 38)])
def test_bicubic_meets_a_ramp_where_the_operator_takes_its_pixels_from(kernel, size):
    rows, columns = torch.meshgrid(*(torch.arange(n) / 40 for n in size), indexing="ij")
    ramp = (rows - 0.5 * columns).expand(1, 3, *size)
    A = SuperResolution(2, kernel).bind((3, *size))
    x = quiet_solve(A, A(ramp), "bicubic", backbone=iv.NetworkBackbone(never, image_shape=(3, *size))).x
    inside = (..., slice(12, -12), slice(12, -12))
    torch.testing.assert_close(x[inside], ramp[inside], atol=1e-4, rtol=0)


def test_wiener_and_total_variation_take_noise_away(gaussian, clean):
    for A in (iv.Identity(), iv.Blur(iv.gaussian_kernel(5, 1.0))):
        y = A.measure(clean, 0.2, seed=1)
        for method in ("wiener", "tv"):
            x = quiet_solve(A, y, method, backbone=BACKBONE, sigma_y=0.2).x
            assert float((x - clean).square().mean()) < 0.6 * float((y - clean).square().mean())


def test_the_divergence_is_the_negative_adjoint_of_the_gradient():
    x, p = torch.randn(2, 3, 5, 7, dtype=torch.float64), torch.randn(2, 2, 3, 5, 7, dtype=torch.float64)
    torch.testing.assert_close((_gradient(x) * p).sum(), -(x * _divergence(p)).sum())


SUITE = """
n_images = 1
image_steps = 2
metrics = ["psnr", "misfit"]
[[tasks]]
name = "box"
operator = "mask"
mask = "box"
[[tasks]]
name = "small [x2]"
operator = "super_resolution"
scale = 2
kernel = "box"
[[samplers]]
name = "ddnm"
steps = 2
"""


def test_a_suite_with_baselines_runs_and_reports_those_that_fit(gaussian, tmp_path):
    run = bench(Suite.from_toml(SUITE), tmp_path / "run", backbone=gaussian, baselines=True, progress=False)
    done = {(r.task, r.sampler): r for r in run.records()}
    assert set(done) == {(t, s) for t in ("box", "small [x2]") for s in ("ddnm", "pseudo-inverse", "tv")} | {
        ("box", "biharmonic"),
        ("small [x2]", "bicubic"),
    }
    assert all(r.ok and (r.nfe == 0) == (r.sampler != "ddnm") for r in done.values())
    (table,) = make_report(run.folder, tmp_path / "report", ["csv"])[:1]
    assert "biharmonic" in table.read_text()
    with pytest.raises(InvdiffError, match=r"'biharmonic' cannot be run on task 'small \[x2\]'.*masks"):
        bench(Suite.from_toml(SUITE), tmp_path / "other", backbone=gaussian, samplers="biharmonic", progress=False)


def test_the_command_line_sets_baselines_beside_a_restoration(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    chelsea64().save("photo.png")
    words = "solve photo.png --simulate --mask box --steps 2 --baselines -o r.png"
    monkeypatch.setattr("sys.argv", ["invdiff", *words.split()])
    with pytest.raises(SystemExit) as end:
        main()
        raise SystemExit(0)
    said = capsys.readouterr().out
    assert end.value.code in (0, None) and said.count("PSNR") == 4
    assert {p.name for p in tmp_path.glob("r*")} == {"r.png", "r-biharmonic.png", "r-pseudo-inverse.png", "r-tv.png"}


def test_shipped_suites_set_classical_methods_beside_every_restoration():
    for name in ("quick", "inpainting", "superres", "colorization", "noisy", "budget"):
        suite = load_suite(name)
        for task in suite.tasks:
            beside = {entry.name for entry in suite.samplers if entry.runs_on(task)} & set(baseline_names())
            assert {"pseudo-inverse", "tv"} <= beside, (name, task.name)
            assert "biharmonic" in beside or task.operator != "mask"
            assert "bicubic" in beside or task.operator != "super_resolution"


def test_classical_methods_are_grey_and_told_apart_by_their_markers():
    looks = [palette.look(name) for name in baseline_names()]
    assert {colour for colour, _ in looks} == {palette.CLASSICAL} and len(set(looks)) == len(looks)
    assert not {palette.look(name)[0] for name in iv.sampler_names()} & {palette.CLASSICAL}
