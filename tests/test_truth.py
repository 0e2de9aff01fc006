"""Samplers against exact posteriors: written-out recursions, limits of many steps, and the suite that reports it all."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import invdiff.bench.posterior.truth as truth_module
import numpy as np
import pytest
import torch
from invdiff.bench.posterior.truth import (
    Cell,
    Problem,
    Setting,
    calibrate,
    load_suite,
    plan,
    posterior_table,
    read_results,
    run_cell,
    tables,
    truth,
)
from torch import Tensor

from invdiff import Mask, NoiseSchedule, solve
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


def test_without_data_only_discretisation_is_left():
    setting = Setting("t", "gaussian8", "mask-first-4", 0.0, 1, 4000, 0)
    coarse, fine = (run_cell(Cell("steps", setting, "unconditional", steps))["metrics"] for steps in (25, 1000))
    assert coarse["var_unseen"] == pytest.approx(0.59, abs=0.05) and coarse["w2"] > 0.2
    assert fine["var_unseen"] == pytest.approx(0.98, abs=0.04) and fine["w2"] < 0.05


# ---- one run ----------------------------------------------------------------------------------------------------

SMALL = Setting("small", "gaussian8", "mask-first-4", 0.1, 2, 400, 0)


def test_exact_samples_score_at_the_floor():
    row = run_cell(Cell("distances", SMALL, "exact"))
    assert row["metrics"]["c2st"] == pytest.approx(0.5, abs=0.05)
    assert row["metrics"]["w2"] < 0.12 and row["metrics"]["coverage_90"] == pytest.approx(0.9, abs=0.02)
    assert row["metrics"]["misfit"] == pytest.approx(0.1, abs=0.03)
    for sampler in ("ddnm", "dps"):
        found = run_cell(Cell("distances", SMALL, sampler, 50))
        assert found["metrics"]["w2"] > 2 * row["metrics"]["w2"]


def test_a_run_is_a_function_of_its_cell():
    cell = Cell("distances", SMALL, "ddnm+", 25)
    first = run_cell(cell)
    run_cell(Cell("distances", dataclasses.replace(SMALL, sigma_y=0.0), "ddnm", 10))
    truth_module._problem.cache_clear()
    assert run_cell(cell)["metrics"] == first["metrics"]
    assert first["nfe"] == 25 and first["vjp"] == 0 and first["settings"]["eta"] == 0.85


def test_gradients_are_counted():
    row = run_cell(Cell("distances", SMALL, "pigdm", 10))
    assert row["vjp"] == row["nfe"] == 10


def test_nothing_is_clipped_where_the_prior_leaves_the_range():
    setting = Setting("t", "gmm25-8-original", "random-1", 1.0, 1, 50, 0)
    assert run_cell(Cell("distances", setting, "replacement", 10))["settings"]["clip"] is False
    assert run_cell(Cell("distances", SMALL, "replacement", 10))["settings"]["clip"] is True


def test_the_exact_posterior_of_large_images_is_looked_at_along_its_leading_directions(monkeypatch):
    monkeypatch.setattr(truth_module, "_LARGEST_BASIS", 100)
    setting = Setting("t", "gaussian16x16", "super-resolution-4", 0.1, 1, 150, 0)
    exact, found = (run_cell(Cell("distances", setting, name, 10))["metrics"] for name in ("exact", "ddnm"))
    assert exact["var_unseen"] == pytest.approx(1, abs=0.1) and exact["var_seen"] == pytest.approx(1, abs=0.25)
    assert found["var_unseen"] < 0.8 and found["sw2"] > exact["sw2"]


# ---- calibration ------------------------------------------------------------------------------------------------


def test_exact_posteriors_are_calibrated_and_narrowed_ones_are_not():
    problem = Problem(Setting("t", "gaussian8", "mask-first-4", 0.1, 600, 19, 3))
    exact = torch.stack([p.sample(19, seed=i).flatten(1) for i, p in enumerate(problem.posteriors)])
    right = calibrate(problem, exact)
    assert right["p_unseen"] > 0.01 and right["p_seen"] > 0.01
    assert right["coverage_90_unseen"] == pytest.approx(0.9, abs=0.03) and sum(right["ranks_unseen"]) == 600
    centre = exact.mean(1, keepdim=True)
    narrow = calibrate(problem, centre + 0.5 * (exact - centre))
    assert narrow["p_unseen"] < 1e-4 and narrow["coverage_90_unseen"] < 0.75


def test_the_ranks_of_a_mixture_are_uniform_too():
    row = run_cell(Cell("calibration", Setting("t", "two-modes16", "mask-first-14", 0.0, 300, 19, 0), "exact"))
    assert row["metrics"]["p_unseen"] > 0.01 and "p_seen" not in row["metrics"]


# ---- the suite --------------------------------------------------------------------------------------------------

TINY = """
[suite]
seed = 0
samplers = ["ddnm", "ddrm"]
[[task]]
name = "small"
prior = "gaussian8"
operator = "mask-first-4"
sigma_y = [0.0, 0.1]
samples = 60
steps = { ddnm = 10 }
variants = [{ sampler = "ddnm", eta = 0.0 }]
[[task]]
name = "modes"
prior = "two-modes16"
operator = "mask-first-14"
sigma_y = [0.0]
samples = 60
picture = [14, 15]
[[task]]
name = "missing"
prior = "no-such-prior"
operator = "mask-first-4"
sigma_y = [0.0]
samples = 60
[[curve]]
name = "small"
prior = "gaussian8"
operator = "mask-first-4"
sigma_y = [0.0]
samples = 60
steps = [5, 10]
[[calibration]]
name = "small"
prior = "gaussian8"
operator = "mask-first-4"
sigma_y = [0.1]
measurements = 40
samples = 9
[[denoiser]]
name = "modes"
prior = "two-modes16"
operator = "mask-first-14"
sigma_y = [0.1]
samples = 60
iterations = 20
steps = [5, 10]
samplers = ["unconditional", "ddnm"]
[quick]
samples = 40
tasks = ["small"]
sigma_y = [0.0]
steps = [5]
curves = []
calibrations = []
calibration_measurements = 20
iterations = 10
"""


@pytest.fixture
def suite(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_a_whole_run_and_its_report(tmp_path, suite):
    seen = []
    run = truth(tmp_path / "out", suite=suite, progress=lambda done, total, what: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] == len(plan(load_suite(suite)))
    assert {row["part"] for row in run.rows} == {"distances", "steps", "calibration", "denoiser"}
    assert not [row for row in run.rows if "error" in row]
    assert len(run.skipped) == 3 and "no-such-prior" in run.skipped[0]
    names = {path.name for path in run.files}
    assert {"summary.csv", "summary.md", "overview.png", "distances.png", "steps.svg", "calibration.png"} <= names
    assert {"denoiser.png", "modes-modes-0.png", "density-modes-0.svg"} <= names
    assert all(path.stat().st_size > 0 for path in run.files)
    with open(tmp_path / "out" / "summary.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(run.rows) and float(table[1]["var_unseen"]) > 0
    assert "exact (floor)" in run.markdown and "ddnm, eta 0" in run.markdown and "prior only, DDIM" in run.markdown


def test_a_broken_run_goes_on_to_the_same_numbers(tmp_path, suite):
    whole = truth(tmp_path / "whole", suite=suite, figures=False)
    truth(tmp_path / "broken", suite=suite, figures=False)
    path = tmp_path / "broken" / "results.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:7]) + lines[7][:100])  # killed in the middle of a line
    again = truth(tmp_path / "broken", suite=suite, resume=True, figures=False)
    assert timeless(again.rows) == timeless(whole.rows)
    assert timeless(read_results(tmp_path / "broken")) == timeless(read_results(tmp_path / "whole"))


def test_results_are_never_overwritten_or_mixed(tmp_path, suite):
    truth(tmp_path, quick=True, suite=suite, figures=False)
    with pytest.raises(InvdiffError, match="resume=True"):
        truth(tmp_path, quick=True, suite=suite)
    with pytest.raises(InvdiffError, match="another suite or selection"):
        truth(tmp_path, suite=suite, resume=True)


def test_a_failing_run_is_recorded_and_the_rest_goes_on(tmp_path, suite, monkeypatch):
    real = truth_module.run_cell

    def fragile(cell: Cell) -> dict[str, Any]:
        if cell.sampler == "ddrm":
            raise ValueError("broken on purpose")
        return real(cell)

    monkeypatch.setattr(truth_module, "run_cell", fragile)
    run = truth(tmp_path, quick=True, suite=suite)
    failed = [row for row in run.rows if "error" in row]
    assert failed and all(row["sampler"] == "ddrm" for row in failed) and len(failed) < len(run.rows)
    assert "failed: ValueError: broken on purpose" in run.markdown


def test_the_packaged_suite_holds_what_the_benchmark_promises():
    cells = plan(load_suite())
    tasks = {cell.setting.operator.rsplit("-", 1)[0] for cell in cells if cell.part == "distances"}
    assert {"mask-first", "mask", "super-resolution", "colorization", "random"} <= tasks
    assert {0.0, 0.5} <= {cell.setting.sigma_y for cell in cells}
    assert {25, 100, 1000} <= {cell.steps for cell in cells if cell.part == "steps"}
    assert {"gmm25-8", "gmm25-80", "gmm25-800", "cats64-gmm"} <= {cell.setting.prior for cell in cells}
    assert len({cell.key for cell in cells}) == len(cells) == len({cell.slug for cell in cells})
    assert len(plan(load_suite(), quick=True)) < len(cells) / 2
    chosen = plan(load_suite(), samplers=["DDNM"])
    assert {cell.sampler for cell in chosen} == {"exact", "unconditional", "ddnm"}


def test_unknown_samplers_and_broken_suites_are_refused(tmp_path):
    with pytest.raises(InvdiffError, match="ddnm"):
        plan(load_suite(), samplers=["ddmn"])
    with pytest.raises(InvdiffError, match="cannot be read"):
        load_suite(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[suite")
    with pytest.raises(InvdiffError, match="not valid TOML"):
        load_suite(tmp_path / "bad.toml")


@pytest.mark.slow
def test_the_table_of_the_documentation():
    markdown, rows = posterior_table(n=50, measurements=1)
    assert markdown.count("exact (floor)") == 3 and markdown.count("| repaint |") == 2
    assert {row["sampler"] for row in rows} >= {
        "repaint",
        "replacement",
        "ddnm",
        "ddnm+",
        "mcg",
        "pigdm",
        "diffpir",
        "dps",
        "ddrm",
    }
    assert "prior only, DDPM, 1000 steps" in markdown and tables(rows) and json.dumps(rows)
