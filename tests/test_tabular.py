"""Tables with holes."""

from __future__ import annotations

import csv
import math
import sys

import numpy as np
import pytest
import torch

from invdiff.cli import main
from invdiff.errors import InvdiffError

pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from invdiff.tabular import DiffusionImputer
from invdiff.tabular.columns import Categories, Numbers, missing
from invdiff.tabular.mixture import Mixture, conditional_means, fit_mixture, log_joint, update

QUICK = {"sampler_options": {"steps": 6}, "n_samples": 2, "components": 1, "shrinkage": 1.0}


@parametrize_with_checks([DiffusionImputer(random_state=0, **QUICK)])
def test_it_is_a_scikit_learn_transformer(estimator, check):
    check(estimator)


def gaussian_table(rows: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of N(mean, S) and S."""
    rng = np.random.default_rng(seed)
    root = np.array([[1.0, 0, 0, 0], [0.8, 0.6, 0, 0], [-0.5, 0.5, 0.7, 0], [0.3, 0.2, 0.4, 0.9]])
    mean = np.array([1.0, -2.0, 0.5, 10.0])
    return mean + rng.standard_normal((rows, 4)) @ root.T, mean, root @ root.T


def with_holes(X: np.ndarray, share: float = 0.3, seed: int = 1) -> np.ndarray:
    Y = X.copy()
    Y[np.random.default_rng(seed).random(X.shape) < share] = np.nan
    return Y


# ---- the mixture ------------------------------------------------------------------------------------------------


def test_one_gaussian_of_incomplete_rows_is_the_one_they_were_drawn_from():
    X, mean, covariance = gaussian_table(4000)
    known = torch.from_numpy(~np.isnan(with_holes(X)))
    found = fit_mixture(torch.from_numpy(X) * known, known, 1, 0.0, seed=0, iterations=200, tolerance=1e-7)
    assert torch.allclose(found.means[0], torch.from_numpy(mean), atol=0.08)
    assert torch.allclose(found.covariances[0], torch.from_numpy(covariance), atol=0.1)


def test_two_clusters_are_found_through_the_holes():
    rng = np.random.default_rng(0)
    side = rng.random(600) < 0.3
    X = rng.standard_normal((600, 3)) * 0.2 + np.where(side, 2.0, -2.0)[:, None]
    known = torch.from_numpy(~np.isnan(with_holes(X)))
    found = fit_mixture(torch.from_numpy(X) * known, known, 2, 1.0, seed=0)
    order = found.means[:, 0].argsort()
    assert torch.allclose(found.weights[order], torch.tensor([1 - side.mean(), side.mean()]).double(), atol=0.02)
    assert torch.allclose(found.means[order], torch.tensor([[-2.0], [2.0]]).double().expand(2, 3), atol=0.1)


def test_a_step_of_expectation_maximisation_never_lowers_the_likelihood():
    X, *_ = gaussian_table(80)
    known = torch.from_numpy(~np.isnan(with_holes(X, 0.4)))
    x = torch.from_numpy((X - X.mean(0)) / X.std(0)) * known
    mixture = fit_mixture(x, known, 3, 0.0, seed=0, iterations=1)
    before = -math.inf
    for _ in range(8):
        joint = log_joint(mixture, x, known)
        now = float(joint.logsumexp(1).sum())
        assert now > before - 1e-3
        before, mixture = now, update(mixture, x, known, joint.softmax(1), 0.0)


def test_conditional_means_are_those_of_a_gaussian():
    _, mean, covariance = gaussian_table(2)
    S, m = torch.from_numpy(covariance), torch.from_numpy(mean)
    one = Mixture(torch.ones(1).double(), m[None], S[None])
    known = torch.tensor([[True, False, True, False], [False] * 4, [True] * 4])
    x = torch.tensor([[0.3, 0, -1.0, 0], [0, 0, 0, 0], [1.0, 2, 3, 4]]).double()
    found = conditional_means(one, x, known)
    a, b = [0, 2], [1, 3]
    expected = m[b] + S[b][:, a] @ torch.linalg.solve(S[a][:, a], x[0, a] - m[a])
    assert torch.allclose(found[0, b], expected) and torch.equal(found[0, a], x[0, a])
    assert torch.allclose(found[1], m) and torch.equal(found[2], x[2])


# ---- the imputer ------------------------------------------------------------------------------------------------


def test_draws_have_the_conditional_mean_and_spread():
    X, mean, covariance = gaussian_table(500)
    imputer = DiffusionImputer(components=1, shrinkage=0.0, scale="standard", random_state=0).fit(X)
    row = np.array([[1.5, np.nan, 0.0, np.nan]])
    draws = imputer.sample(400, row)[:, 0]
    a, b = [0, 2], [1, 3]
    gain = covariance[b][:, a] @ np.linalg.inv(covariance[a][:, a])
    spread = covariance[b][:, b] - gain @ covariance[a][:, b]
    assert np.allclose(draws[:, a], row[0, a])
    assert np.allclose(draws[:, b].mean(0), mean[b] + gain @ (row[0, a] - mean[a]), atol=0.2)
    assert np.allclose(np.cov(draws[:, b].T), spread, atol=0.2)


def test_what_is_known_comes_back_as_it_was_and_nothing_is_left_missing():
    X, *_ = gaussian_table(60)
    Y = with_holes(X)
    imputer = DiffusionImputer(random_state=0, **QUICK).fit(Y)
    known = ~np.isnan(Y)
    for table in (imputer.transform(Y), *imputer.sample(3, Y)):
        assert np.array_equal(table[known], Y[known]) and np.isfinite(table).all()


def test_a_row_s_answer_depends_on_the_row_and_the_seed_alone():
    X, *_ = gaussian_table(40)
    Y = with_holes(X)
    imputer = DiffusionImputer(random_state=3, **QUICK).fit(Y)
    whole = imputer.transform(Y)
    assert np.allclose(whole[[7, 3]], imputer.transform(Y[[7, 3]]), atol=1e-5)
    assert np.array_equal(whole, clone(imputer).fit(Y).transform(Y))
    hole = np.isnan(Y)
    assert not np.allclose(whole[hole], DiffusionImputer(random_state=4, **QUICK).fit(Y).transform(Y)[hole])


def test_equal_rows_get_draws_of_their_own():
    X, *_ = gaussian_table(40)
    imputer = DiffusionImputer(random_state=0, **QUICK).fit(X)
    drawn = imputer.sample(1, np.array([[1.0, np.nan, 0, 0]] * 2))[0, :, 1]
    assert abs(drawn[0] - drawn[1]) > 1e-3


@pytest.mark.parametrize("sampler", ["repaint", "ddnm", "pigdm", "replacement"])
def test_other_samplers_fill_tables_too(sampler):
    X, *_ = gaussian_table(40)
    Y = with_holes(X)
    options = {"steps": 6, **({"jump_length": 2, "jump_n_sample": 2} if sampler == "repaint" else {})}
    filled = DiffusionImputer(sampler=sampler, random_state=0, **{**QUICK, "sampler_options": options}).fit_transform(Y)
    assert np.isfinite(filled).all() and np.abs(filled - X).max() < 10


def test_a_network_learns_what_the_mixture_knows():
    X, *_ = gaussian_table(400)
    Y = with_holes(X)
    hole = np.isnan(Y)
    settings = {**QUICK, "n_samples": 8, "sampler": "ddnm", "sampler_options": {"steps": 20}}
    filled = DiffusionImputer(prior="mlp", training_steps=300, random_state=0, **settings).fit_transform(Y)
    error, alone = filled[hole] - X[hole], np.broadcast_to(np.nanmean(Y, 0), X.shape)[hole] - X[hole]
    assert np.square(error).mean() < 0.8 * np.square(alone).mean()


def test_categories_are_filled_with_categories():
    rng = np.random.default_rng(0)
    kind = rng.integers(3, size=200)
    X = np.empty((200, 3), dtype=object)
    X[:, 0] = np.array(["low", "mid", "high"], dtype=object)[kind]
    X[:, 1] = kind * 2.0 + 0.1 * rng.standard_normal(200)
    X[:, 2] = rng.standard_normal(200)
    Y = X.copy()
    Y[:40, 0] = None
    Y[60:80, 1] = np.nan
    filled = DiffusionImputer(random_state=0, n_samples=4).fit_transform(Y)
    assert set(filled[:40, 0]) <= {"low", "mid", "high"}
    assert (filled[:40, 0] == X[:40, 0]).mean() > 0.95
    assert np.abs(filled[60:80, 1].astype(float) - X[60:80, 1].astype(float)).mean() < 0.3
    assert (filled[40:, 0] == X[40:, 0]).all()


def test_data_frames_keep_their_names():
    pandas = pytest.importorskip("pandas")
    X, *_ = gaussian_table(40)
    frame = pandas.DataFrame(with_holes(X), columns=list("abcd"))
    frame["e"] = pandas.Categorical(["x", "y", None, "x"] * 10)
    imputer = DiffusionImputer(random_state=0, **QUICK).set_output(transform="pandas")
    filled = imputer.fit_transform(frame)
    assert list(filled.columns) == list("abcde") and not filled.isna().any().any()
    assert set(filled["e"]) == {"x", "y"}


# ---- columns ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["auto", "standard", "quantile"])
def test_numbers_come_back_through_their_scale(scale):
    values = np.random.default_rng(0).lognormal(size=200)
    column = Numbers.fit(values, scale)
    entries = column.encode(values)
    assert np.allclose(column.decode(entries), values)
    assert abs(entries.mean()) < 1e-9 and abs(entries.std() - 1) < 1e-9
    lowest = column.decode(np.full((1, 1), -8.0))[0]
    assert (lowest > -0.05) == (scale != "standard")  # skewed, so "auto" goes through the quantiles


def test_a_column_of_one_value_stays_it():
    column = Numbers.fit(np.full(5, 3.0), "auto")
    assert (column.decode(np.random.default_rng(0).standard_normal((7, 1))) == 3).all()


def test_categories_come_back_through_their_bits():
    values = np.array(["b", "a", "c", "a"], dtype=object)
    column = Categories.fit(values)
    assert column.width == 3 and list(column.decode(column.encode(values))) == list(values)


def test_missing_is_nan_none_and_nothing_else():
    assert list(missing(np.array([1.0, np.nan]))) == [False, True]
    assert list(missing(np.array(["x", None, float("nan"), 0], dtype=object))) == [False, True, True, False]


# ---- wrong input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior": "gan"}, "prior must be one of mixture, mlp"),
        ({"scale": "log"}, "scale must be one of"),
        ({"n_samples": 0}, "n_samples must be"),
        ({"components": 0}, "components must be"),
        ({"shrinkage": -1}, "shrinkage must be"),
        ({"categorical": "all"}, "categorical must be 'auto' or a list"),
        ({"categorical": [9]}, "categorical must name columns"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(InvdiffError, match=message):
        DiffusionImputer(**options).fit(np.eye(4))


def test_wrong_tables_are_refused():
    with pytest.raises(InvdiffError, match="got none in column 1"):
        DiffusionImputer().fit(np.array([[1.0, np.nan], [2.0, np.nan]]))
    with pytest.raises(ValueError, match="infinity"):
        DiffusionImputer().fit(np.array([[1.0, np.inf], [2.0, 0.0]]))
    words = np.array([["a", 1.0], ["b", 2.0], ["a", 3.0]], dtype=object)
    with pytest.raises(InvdiffError, match="numbers in the numerical column 0"):
        DiffusionImputer(categorical=[1]).fit(words)
    imputer = DiffusionImputer(random_state=0, **QUICK).fit(words)
    with pytest.raises(InvdiffError, match="categories seen in fit"):
        imputer.transform(np.array([["z", np.nan]], dtype=object))
    with pytest.raises(InvdiffError, match="n must be"):
        imputer.sample(0, words)


# ---- the command ------------------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch, capsys):
    """Words -> (exit status, what was printed)."""
    monkeypatch.setenv("COLUMNS", "400")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["invdiff", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
            sys.exit(0)
        printed = capsys.readouterr()
        return end.value.code or 0, " ".join((printed.out + printed.err).split())

    return run


def test_a_csv_file_is_filled_and_its_known_cells_stay_to_the_letter(tmp_path, command):
    X, *_ = gaussian_table(30)
    rows = [[f"{a:.2f}0", f"{b:.3f}", "yes" if c > 0.5 else "no"] for a, b, c, _ in X]
    holes = {(3, 0), (5, 1), (8, 2)}
    rows[3][0] = rows[5][1] = ""
    rows[8][2] = "NA"
    path, full = tmp_path / "t.csv", tmp_path / "full.csv"
    path.write_text("\n".join(",".join(row) for row in [["a", "b", "c"], *rows]) + "\n", encoding="utf-8")
    words = ("impute", path, "-o", full, "--samples", 2, "--draws", 2)
    status, said = command(*words)
    assert status == 0 and "3 of 90 cells filled" in said
    for name in ("full.csv", "full-1.csv", "full-2.csv"):
        found = list(csv.reader((tmp_path / name).open(encoding="utf-8")))[1:]
        changed = {(i, j) for i, row in enumerate(found) for j, cell in enumerate(row) if cell != rows[i][j]}
        assert changed == holes
        assert abs(float(found[3][0])) < 10 and abs(float(found[5][1])) < 10 and found[8][2] in ("yes", "no")
    before = full.read_bytes()
    status, said = command(*words)
    assert status != 0 and "full.csv exists" in said and full.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [("a,b\n", "at least one row"), ("a,b\n1\n", "2 cells in every row"), ("a,b\n1,\n2,\n", "got none in column 1")],
)
def test_a_wrong_csv_file_gets_a_sentence(tmp_path, command, text, message):
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    status, said = command("impute", tmp_path / "t.csv", "-o", tmp_path / "o.csv")
    assert status != 0 and message in said and "Traceback" not in said and not (tmp_path / "o.csv").exists()
