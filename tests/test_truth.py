"""Samplers against exact posteriors: written-out recursions, limits of many steps, and the suite that reports it all."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from invdiff import Mask, NoiseSchedule, solve
from invdiff.bench.posterior import reference
from invdiff.bench.report.report import make_report
from invdiff.bench.run.runner import bench, merge_runs, run_suite
from invdiff.bench.run.store import Record, Run
from invdiff.bench.run.worker import first_posterior
from invdiff.bench.suite.suite import EXACT, SamplerEntry, Suite, Task, load_suite, quick_selection
from invdiff.cli import main as command
from invdiff.errors import InvdiffError
from invdiff.priors.gaussian import GaussianBackbone
from invdiff.samplers import jumps

D, SEEN = 8, 4
COVARIANCE = 0.0625 * 0.8 ** np.abs(np.subtract.outer(np.arange(D), np.arange(D)))
GAIN = COVARIANCE[SEEN:, :SEEN] @ np.linalg.inv(COVARIANCE[:SEEN, :SEEN])  # posterior mean of the unseen half = GAIN y
LEFT = COVARIANCE[SEEN:, SEEN:] - GAIN @ COVARIANCE[:SEEN, SEEN:]  # its covariance
MASK = Mask(torch.tensor([[1.0] * SEEN + [0.0] * (D - SEEN)]))


# ---- moments of a sampler on a Gaussian prior -------------------------------------------------------------------


def exact_means(sampler: str, T: int = 1000, **options: Any) -> np.ndarray:
    """The sampler's mean of the unseen half as a matrix times y, without Monte Carlo: a Gaussian denoiser is linear, so the mean
    is the run with all noise set to zero."""
    schedule = NoiseSchedule.linear(T, 0.1 / T, 20 / T)
    backbone = GaussianBackbone(torch.zeros(1, 1, D).double(), torch.from_numpy(COVARIANCE), schedule)
    y = torch.zeros(SEEN, 1, 1, D, dtype=torch.float64)
    y[range(SEEN), 0, 0, range(SEEN)] = 0.5
    found = solve(
        MASK, y, sampler, backbone=backbone, value_range=(-1, 1), noise=torch.zeros, progress=False, **options
    )
    return (found.x.flatten(1)[:, SEEN:].double().numpy() / 0.5).T


def bias(means: np.ndarray) -> float:
    """rms error of the mean over all measurements of the prior, in posterior standard deviations."""
    error = means - GAIN
    return float(np.sqrt(np.trace(error @ COVARIANCE[:SEEN, :SEEN] @ error.T) / np.trace(LEFT)))


def sampled_covariance(sampler: str, n: int, T: int = 1000, **options: Any) -> np.ndarray:
    """Covariance of the unseen half from n draws."""
    schedule = NoiseSchedule.linear(T, 0.1 / T, 20 / T)
    backbone = GaussianBackbone(torch.zeros(1, 1, D), torch.from_numpy(COVARIANCE).float(), schedule)
    generator = torch.Generator().manual_seed(1)

    def noise(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator)

    y = torch.zeros(1, 1, 1, D)
    run = solve(
        MASK, y, sampler, backbone=backbone, value_range=(-1, 1), n_samples=n, noise=noise, progress=False, **options
    )
    return np.cov(run.x.flatten(1)[:, SEEN:].numpy().T)


# ---- the papers' algorithms written out as recursions of mean and covariance ------------------------------------

I, KNOWN = np.eye(D), np.diag([1.0] * SEEN + [0.0] * (D - SEEN))
FREE = I - KNOWN
EMBED = np.eye(D)[:, :SEEN]
ABAR = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))


def denoiser(a: float) -> tuple[np.ndarray, np.ndarray]:
    """x0 and eps as matrices times x_t."""
    inverse = np.linalg.inv(a * COVARIANCE + (1 - a) * I)
    return np.sqrt(a) * COVARIANCE @ inverse, np.sqrt(1 - a) * inverse


def repaint_moments(steps: int, length: int, repeats: int) -> tuple[np.ndarray, np.ndarray]:
    """RePaint with the fixed small variance (Lugmayr et al., algorithm 1)."""
    a = ABAR[np.round(np.arange(steps) * 999 / (steps - 1)).astype(int)]
    before = np.concatenate([[1.0], a[:-1]])
    beta = 1 - a / before
    M, V, first = np.zeros((D, SEEN)), I.copy(), True
    path = jumps(steps, length, repeats)
    for t, s in pairwise(path):
        if s > t:
            M, V = np.sqrt(1 - beta[s]) * M, (1 - beta[s]) * V + beta[s] * I
            continue
        if not first:
            M, V = np.sqrt(a[t]) * EMBED + FREE @ M, FREE @ V @ FREE + (1 - a[t]) * KNOWN
        first = False
        G = np.sqrt(before[t]) * beta[t] / (1 - a[t]) * denoiser(a[t])[0]
        G = G + np.sqrt(1 - beta[t]) * (1 - before[t]) / (1 - a[t]) * I
        M, V = G @ M, G @ V @ G.T
        if t > 0:
            V = V + beta[t] * (1 - before[t]) / (1 - a[t]) * I
    return M[SEEN:], V[SEEN:, SEEN:]


def ddnm_moments(steps: int, eta: float) -> tuple[np.ndarray, np.ndarray]:
    """DDNM (Wang et al., algorithm 1) on the leading clock."""
    a = ABAR[np.arange(0, 1000, 1000 // steps)]
    M, V = np.zeros((D, SEEN)), I.copy()
    for t in range(steps - 1, -1, -1):
        a_s = a[t - 1] if t else 1.0
        x0, eps = denoiser(a[t])
        c = np.sqrt(1 - a_s)
        G = np.sqrt(a_s) * FREE @ x0 + c * np.sqrt(1 - eta**2) * eps
        M, V = G @ M + np.sqrt(a_s) * EMBED, G @ V @ G.T + c**2 * eta**2 * I
    return M[SEEN:], V[SEEN:, SEEN:]


def pigdm_moments(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """PiGDM without noise, eta = 1, known part put in (the group's code for masks)."""
    a = ABAR[np.arange(0, 1000, 1000 // steps)]
    M, V = np.sqrt(a[-1]) * EMBED, (1 - a[-1]) * I
    for t in range(steps - 1, -1, -1):
        a_s = a[t - 1] if t else 1.0
        x0, eps = denoiser(a[t])
        fresh = (1 - a[t] / a_s) * (1 - a_s) / (1 - a[t])
        pull = np.sqrt(a_s * a[t]) * FREE @ x0.T @ KNOWN
        G = np.sqrt(a_s) * FREE @ x0 + np.sqrt(max(0.0, 1 - a_s - fresh)) * eps - pull @ x0
        M, V = G @ M + (np.sqrt(a_s) * I + pull) @ EMBED, G @ V @ G.T + fresh * I
    return M[SEEN:], V[SEEN:, SEEN:]


CASES: list[tuple[str, dict[str, Any], Callable[[], tuple[np.ndarray, np.ndarray]]]] = [
    ("repaint", {"steps": 100}, lambda: repaint_moments(100, 10, 10)),
    ("repaint", {"steps": 50, "jump_length": 5, "jump_n_sample": 4}, lambda: repaint_moments(50, 5, 4)),
    ("replacement", {}, lambda: repaint_moments(250, 10, 1)),
    ("ddnm", {}, lambda: ddnm_moments(100, 0.85)),
    ("ddnm", {"eta": 0.0, "steps": 250}, lambda: ddnm_moments(250, 0.0)),
    ("pigdm", {}, lambda: pigdm_moments(100)),
]


@pytest.mark.parametrize(("sampler", "options", "moments"), CASES)
def test_moments_are_those_of_the_written_out_algorithm(sampler, options, moments):
    means, covariance = moments()
    assert np.allclose(exact_means(sampler, **options), means, atol=2e-5)
    found = sampled_covariance(sampler, 8000, **options)
    assert np.allclose(found, covariance, atol=0.06 * np.trace(covariance) / (D - SEEN))


# ---- what the samplers are worth at their own settings, and in the limit ----------------------------------------


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        ("repaint", 0.148),
        ("replacement", 0.399),
        ("ddnm", 0.227),
        ("ddrm", 0.465),
        ("pigdm", 0.077),
        ("diffpir", 0.365),
    ],
)
def test_bias_of_the_mean_at_the_samplers_own_settings(sampler, expected):
    assert bias(exact_means(sampler)) == pytest.approx(expected, abs=0.002)


def test_resampling_and_more_steps_bring_repaint_to_the_truth():
    found = [bias(exact_means("repaint", steps=s, jump_n_sample=r)) for s, r in ((250, 1), (100, 10), (250, 10))]
    assert found[0] > found[1] > found[2]
    (few, _), (many, spread), (more, wide) = (
        repaint_moments(*a) for a in ((250, 10, 10), (1000, 10, 10), (1000, 10, 30))
    )
    assert bias(few) > bias(many) > bias(more) and bias(more) < 0.06
    assert np.trace(spread) / np.trace(LEFT) == pytest.approx(0.96, abs=0.005)
    assert np.trace(wide) / np.trace(LEFT) == pytest.approx(0.917, abs=0.005)


@pytest.mark.slow
def test_repaint_hits_the_posterior_with_many_steps():
    assert bias(exact_means("repaint", steps=1000)) == pytest.approx(0.1165, abs=0.001)
    assert bias(exact_means("repaint", steps=1000, jump_n_sample=30)) < 0.06
    ratio = np.trace(sampled_covariance("repaint", 4000, steps=1000)) / np.trace(LEFT)
    assert ratio == pytest.approx(0.96, abs=0.04)


@pytest.mark.parametrize(
    ("sampler", "options", "most_bias"), [("pigdm", {}, 0.005), ("ddnm", {"eta": 0.0}, 0.025), ("ddnm", {}, 0.1)]
)
def test_means_that_become_right_with_many_steps(sampler, options, most_bias):
    found = [bias(exact_means(sampler, steps=steps, **options)) for steps in (25, 100, 1000)]
    assert found[0] > found[1] > found[2] and found[2] < most_bias


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "options"), [("pigdm", {}), ("ddnm", {"eta": 0.0})])
def test_samplers_that_are_right_in_the_limit(sampler, options):
    for T, slack in ((1000, 0.13), (4000, 0.07)):
        assert bias(exact_means(sampler, T=T, steps=T, **options)) < 0.025
        covariance = sampled_covariance(sampler, 10_000, T=T, steps=T, **options)
        assert np.trace(covariance) / np.trace(LEFT) == pytest.approx(1, abs=slack)
        assert np.allclose(covariance, LEFT, atol=1.5 * slack * np.trace(LEFT) / (D - SEEN))


def test_fresh_noise_keeps_ddnm_over_confident_at_any_number_of_steps():
    ratios = [np.trace(ddnm_moments(steps, 0.85)[1]) / np.trace(LEFT) for steps in (100, 500, 1000)]
    assert all(0.7 < r < 0.8 for r in ratios)


# ---- a suite whose posteriors are known -------------------------------------------------------------------------

DISTANCES = (
    "sw2",
    "w2",
    "w2_null",
    "bias_null",
    "var_null",
    "var_range",
    "c2st",
    "coverage_90",
    "mode_error",
    "misfit",
)
FIRST_HALF = Task("gaussian", "mask", {"mask": "half"}, 0.1, backbone="gaussian8")
MODES = Task(
    "modes", "mask", {"mask": "half", "fraction_known": 0.875}, backbone="two-modes16", n_samples=60, picture=(14, 15)
)
RANKS = ("rank_null", "rank_range", "p_null", "p_range", "holds_90_null", "holds_90_range")


def posterior_suite(tasks: tuple[Task, ...], *samplers: SamplerEntry, **keys: Any) -> Suite:
    """A suite of exact priors, with the exact samples and `samplers`."""
    keys = {"measurements": 2, "n_samples": 400, "metrics": DISTANCES, **keys}
    return Suite("exact", tasks, (SamplerEntry(EXACT, EXACT), *samplers), value_range=(-1.0, 1.0), **keys)


def means(run: Run, sampler: str, task: str = "gaussian") -> dict[str, float]:
    """Every metric of a sampler on a task, averaged over the measurements."""
    found = [r for r in run.records() if (r.task, r.sampler) == (task, sampler)]
    assert found and all(r.ok for r in found), [r.error for r in found]
    return {k: float(np.mean([r.metrics[k] for r in found])) for k, v in found[0].metrics.items() if v is not None}


def test_exact_samples_score_at_the_floor_and_samplers_above(tmp_path):
    entries = [SamplerEntry(name, name, {"steps": 50}) for name in ("ddnm", "dps")]
    run = run_suite(posterior_suite((FIRST_HALF,), *entries), tmp_path / "r", progress=False)
    floor = means(run, EXACT)
    assert floor["c2st"] == pytest.approx(0.5, abs=0.05) and floor["w2"] < 0.15
    assert floor["coverage_90"] == pytest.approx(0.9, abs=0.03) and floor["misfit"] == pytest.approx(0.095, abs=0.03)
    assert floor["var_null"] == pytest.approx(1, abs=0.15) and "mode_error" not in floor
    for entry in entries:
        assert means(run, entry.label)["w2"] > 2 * floor["w2"]
    records = run.records()
    assert {r.settings["n_samples"] for r in records} == {400} and not any(r.file for r in records)
    assert run.samples(records[0]).shape == (400, 1, 1, 8) and run.samples(records[1]) is None
    costs = {r.sampler: (r.nfe, r.vjps) for r in records}
    assert costs == {EXACT: (None, None), "ddnm": (50, 0), "dps": (50, 50)}


def test_without_data_only_discretisation_is_left(tmp_path):
    nothing = replace(FIRST_HALF, options={"mask": "box", "fraction": 1.0}, sigma_y=0.0, n_samples=4000, measurements=1)
    entries = [SamplerEntry(f"{n}", "unconditional", {"steps": n}) for n in (25, 1000)]
    run = run_suite(posterior_suite((nothing,), *entries), tmp_path / "r", progress=False)
    coarse, fine = (means(run, entry.label) for entry in entries)
    assert coarse["var_null"] == pytest.approx(0.59, abs=0.05) and coarse["w2"] > 0.2
    assert fine["var_null"] == pytest.approx(0.98, abs=0.04) and fine["w2"] < 0.05
    assert "var_range" not in fine and "var_range" in run.unavailable


def test_pictures_of_a_known_prior_are_kept_and_looked_at_along_leading_directions(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "LARGEST_BASIS", 100)
    task = Task(
        "image", "super_resolution", {"scale": 4, "kernel": "box"}, 0.1, backbone="gaussian16x16", n_samples=150
    )
    suite = posterior_suite((task,), SamplerEntry("ddnm", "ddnm", {"steps": 10}), metrics=(*DISTANCES, "psnr"))
    run = run_suite(suite, tmp_path / "r", progress=False)
    exact, found = means(run, EXACT, "image"), means(run, "ddnm", "image")
    assert exact["var_null"] == pytest.approx(1, abs=0.1) and exact["var_range"] == pytest.approx(1, abs=0.25)
    assert found["var_null"] < 0.8 and found["sw2"] > exact["sw2"] and 10 < found["psnr"] < 40
    first = run.records()[0]
    assert run.image(first).size == run.truth(first.image, "image").size == run.measured("image", first.image).size
    assert run.image(first).size == (16, 16) and run.truth("x-001", "image") is None


def test_the_truth_is_one_more_sample_of_the_exact_posterior(tmp_path):
    """Ranks are uniform for exact samples, of a Gaussian and of a mixture, and those of a narrow sampler are not."""
    tasks = (FIRST_HALF, replace(MODES, name="modes", n_samples=19))
    entries = (SamplerEntry("ddnm", "ddnm", {"steps": 25}),)
    suite = posterior_suite(tasks, *entries, metrics=RANKS, measurements=300, n_samples=19)
    run = run_suite(suite, tmp_path / "r", progress=False)
    groups = {(g.task, g.sampler, g.metric): g.value for g in run.groups()}
    assert min(groups["gaussian", EXACT, "p_null"], groups["gaussian", EXACT, "p_range"]) > 0.01
    assert groups["modes", EXACT, "p_null"] > 0.01 and groups["modes", EXACT, "p_range"] is None
    assert means(run, EXACT)["holds_90_null"] == pytest.approx(0.9, abs=0.03)
    assert groups["gaussian", "ddnm", "p_range"] < 1e-4 and means(run, "ddnm")["holds_90_range"] < 0.5


def test_a_learned_denoiser_is_compared_with_the_prior_that_it_has_learned(tmp_path):
    options = {"prior": "two-modes16", "iterations": 150}
    task = replace(MODES, backbone="learned", backbone_options=options, sigma_y=0.1)
    tasks = (MODES, replace(task, name="learned"))
    run = run_suite(posterior_suite(tasks, SamplerEntry("ddnm", "ddnm", {"steps": 10})), tmp_path / "r", progress=False)
    exact, learned = means(run, "ddnm", "modes"), means(run, "ddnm", "learned")
    assert exact["mode_error"] != learned["mode_error"] and learned["sw2"] > 0
    assert run.info["backbones"]["learned"]["name"] == "learned-two-modes16"


# ---- it is run like any other -----------------------------------------------------------------------------------

TINY = posterior_suite(
    (
        FIRST_HALF,
        MODES,
        replace(FIRST_HALF, name="ranks", part="calibration", metrics=RANKS, measurements=110, n_samples=9),
    ),
    SamplerEntry("ddnm", "ddnm", {"steps": 5}),
    SamplerEntry("ddrm", "ddrm", {"steps": 5}),
    n_samples=60,
)


def timeless(run: Run) -> list[Record]:
    return [replace(record, seconds=None) for record in run.records()]


def test_stopped_resumed_split_and_merged_it_is_the_same(tmp_path):
    whole = run_suite(TINY, tmp_path / "whole", progress=False)

    def stops(outcome: Any) -> None:
        if outcome.batch.number == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_suite(TINY, tmp_path / "broken", progress=False, on_batch=stops)
    assert 0 < len(Run.open(tmp_path / "broken").records()) < len(whole.records())
    again = run_suite(TINY, tmp_path / "broken", resume=True, progress=False)
    parts = [run_suite(TINY, tmp_path / f"{i}", shard=f"{i}/2", progress=False).folder for i in (1, 2)]
    merged = merge_runs(parts, tmp_path / "merged")
    assert timeless(again) == timeless(merged) == timeless(whole)
    assert again.groups() == merged.groups() == whole.groups()
    assert merged.info["missing"] == 0
    for record in whole.records():
        kept = [run.samples(record) for run in (whole, again, merged)]
        assert all((k is None) == (record.image != "x-000") for k in kept)
        assert kept[0] is None or all(np.array_equal(kept[0], k) for k in kept)
    files = {path.name for path in make_report(merged.folder)}
    assert {
        "report.html",
        "overview.png",
        "distances.svg",
        "calibration.png",
        "modes-modes.png",
        "density-modes.png",
    } <= files
    with open(merged.folder / "report" / "summary.csv", newline="") as file:
        rows = {(r["task"], r["sampler"], r["metric"]): r for r in csv.DictReader(file)}
    assert float(rows["gaussian", "ddnm", "sw2"]["mean"]) > float(rows["gaussian", EXACT, "sw2"]["mean"])
    assert ("gaussian", "ddnm", "mode_error") not in rows and ("modes", "ddnm", "mode_error") in rows
    assert not any(r["significantly_best"] == "1" for r in rows.values() if r["sampler"] == EXACT)


def test_a_quick_selection_stopped_resumed_and_split_on_the_command_line_gives_one_table(tmp_path, monkeypatch):
    (tmp_path / "suites").mkdir()
    tiny = posterior_suite((FIRST_HALF,), SamplerEntry("ddnm", "ddnm", {"steps": 5}), n_samples=20)
    (tmp_path / "suites" / "tiny.toml").write_text("its long form is not read")
    (tmp_path / "suites" / "tiny-quick.toml").write_text(replace(tiny, batch_size=1).to_toml())
    monkeypatch.setattr("invdiff.bench.suite.suite.SUITES", tmp_path / "suites")
    monkeypatch.chdir(tmp_path)

    def invdiff(*words: object) -> int:
        monkeypatch.setattr("sys.argv", ["invdiff", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            command()
        return int(end.value.code or 0)

    def table(run: str) -> list[dict[str, str]]:
        assert invdiff("report", run, "--out", f"{run}.csv") == 0
        with open(f"{run}.csv", newline="") as file:
            return [row for row in csv.DictReader(file) if row["metric"] not in ("seconds", "peak_memory")]

    bench_quick = ("bench", "tiny", "--quick", "--no-report", "--out")
    assert invdiff(*bench_quick, "whole") == 0
    with monkeypatch.context() as patch:
        write = Run.write

        def stop_after(run: Run, *what: Any) -> None:
            write(run, *what)
            raise KeyboardInterrupt

        patch.setattr(Run, "write", stop_after)
        assert invdiff(*bench_quick, "broken") == 130
    assert len(Run.open("broken").records()) == 1 < len(Run.open("whole").records()) == 4
    assert invdiff(*bench_quick, "broken", "--resume") == 0
    for part in (1, 2):
        assert invdiff(*bench_quick, f"part{part}", "--shard", f"{part}/2") == 0
    assert invdiff("merge", "part1", "part2", "--out", "merged") == 0
    assert len(table("whole")) > 10
    assert table("broken") == table("merged") == table("whole")


def test_draws_do_not_depend_on_how_many_there_are(tmp_path):
    few, more = (
        run_suite(replace(TINY, measurements=n, tasks=TINY.tasks[:1]), tmp_path / f"{n}", progress=False)
        for n in (1, 2)
    )
    assert timeless(few) == [r for r in timeless(more) if r.image == "x-000"]


def test_the_exact_posterior_of_a_run_can_be_had_again(tmp_path):
    found = first_posterior(TINY, MODES)
    assert found.posterior.weights.shape == (2,) and found.responsibilities is not None
    assert torch.equal(found.sample(5, "a"), first_posterior(TINY, MODES).sample(5, "a"))


def test_what_has_no_posterior_is_refused(tmp_path):
    with pytest.raises(InvdiffError, match="whose prior is not known"):
        run_suite(replace(TINY, tasks=(replace(FIRST_HALF, backbone="cats64"),)), tmp_path / "r", progress=False)
    with pytest.raises(InvdiffError, match=r"value_range must be \[-1, 1\]"):
        run_suite(replace(TINY, value_range=(0.0, 1.0)), tmp_path / "r", progress=False)


# ---- the suites that ship ---------------------------------------------------------------------------------------


def test_the_packaged_suite_holds_what_the_benchmark_promises():
    suite = load_suite("truth")
    parts = {task.part for task in suite.tasks}
    assert parts == {"distances", "steps", "prior", "learned", "learned prior", "calibration"}
    assert {"mask", "super_resolution", "colorization", "matrix"} == {task.operator for task in suite.tasks}
    assert {0.0, 0.5} <= {task.sigma_y for task in suite.tasks}
    assert {"gmm25-8", "gmm25-80", "gmm25-800", "cats64-gmm", "learned"} <= {task.backbone for task in suite.tasks}
    steps = {entry.on(task).get("steps") for task, entry in suite.pairs() if task.part == "steps"}
    assert steps == {None, 10, 25, 100, 1000}
    names = {entry.name for task, entry in suite.pairs() if task.backbone == "cats64-gmm"}
    assert {EXACT, "mmps", "tmpd", "copaint", "reddiff", "daps", "tds", "mcg-diff", "fps-smc"} <= names
    quick = load_suite(quick_selection("truth"))
    assert len(quick.pairs()) < len(suite.pairs()) / 2
    assert {t.name for t in quick.tasks} <= {t.name for t in suite.tasks}
    with pytest.raises(InvdiffError, match="quick selection"):
        quick_selection("noisy")


@pytest.mark.slow
def test_the_table_of_the_documentation(tmp_path):
    suite = replace(load_suite("posterior"), n_samples=50, measurements=1)
    run = bench(suite, tmp_path / "r", samplers="exact,ddnm,mcg scale=0.02,unconditional", progress=False)
    assert {r.task for r in run.records()} == {"gaussian8 sigma_y=0", "gaussian8 sigma_y=0.1", "prior only"}
    assert all(r.ok for r in run.records())
