#!/usr/bin/env python3
"""Tables with holes: `DiffusionImputer` beside scikit-learn's imputers, on scikit-learn's bundled tables.

    python benchmarks/tables.py --out docs/data      every finished cell is kept and not done again

A fifth of the entries is missing, at random (every entry with the same probability) or not at random (the larger a value is
within its column, the likelier it is missing: from 0 to 40 %). Measured on the missing entries, in units of the column's standard
deviation: RMSE of the mean, CRPS of the draws (fair estimate; of a single value it is the absolute error), the share of truths
within the central 90 % of the draws; then the accuracy of a classifier (R2 of a regression) trained on the filled table, on a
held-out third with holes of its own. Three seeds of holes each; +- is half a 95 % interval over them (Student's t).
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from sklearn import datasets
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from invdiff.files import atomic_write
from invdiff.markdown import markdown_table
from invdiff.tabular import DiffusionImputer

TABLES = {
    "diabetes": datasets.load_diabetes,
    "wine": datasets.load_wine,
    "breast cancer": datasets.load_breast_cancer,
    "digits": datasets.load_digits,
}
ROWS = {"digits": 400}  # the first so many, for time
SEEDS = (0, 1, 2)
DRAWS = 20
MECHANISMS = ("at random", "not at random")
T_95 = 4.303  # Student's t, two degrees of freedom


def holes(X: np.ndarray, mechanism: str, rng: np.random.Generator) -> np.ndarray:
    """Where the table has none, (n, d) bool."""
    if mechanism == "at random":
        return rng.random(X.shape) < 0.2
    ranks = (X[:, None] > X[None]).mean(1) if len(X) <= 700 else X.argsort(0).argsort(0) / len(X)
    return rng.random(X.shape) < 0.4 * ranks


def iterative(seed: int, Y: np.ndarray, sample: bool) -> IterativeImputer:
    """Within the range that each column was seen in: without it, draws ran away on the digits."""
    near = 10 if Y.shape[1] > 40 else None
    low, high = np.nanmin(Y, 0), np.nanmax(Y, 0)
    return IterativeImputer(
        random_state=seed,
        max_iter=10,
        n_nearest_features=near,
        sample_posterior=sample,
        min_value=low,
        max_value=np.where(high > low, high, low + 1e-3),
    )


METHODS: dict[str, Any] = {
    "mean (SimpleImputer)": lambda seed, Y: SimpleImputer(keep_empty_features=True),
    "KNNImputer": lambda seed, Y: KNNImputer(keep_empty_features=True),
    "IterativeImputer": lambda seed, Y: iterative(seed, Y, False),
    "IterativeImputer, draws": lambda seed, Y: iterative(seed, Y, True),
    "DiffusionImputer": lambda seed, Y: DiffusionImputer(random_state=seed, n_samples=DRAWS),
    "DiffusionImputer, ddnm": lambda seed, Y: DiffusionImputer(
        random_state=seed, n_samples=DRAWS, sampler="ddnm", sampler_options={"steps": 50}
    ),
    "DiffusionImputer, repaint": lambda seed, Y: DiffusionImputer(
        random_state=seed,
        n_samples=DRAWS,
        sampler="repaint",
        sampler_options={"steps": 50, "jump_length": 5, "jump_n_sample": 5},
    ),
    "DiffusionImputer, network": lambda seed, Y: DiffusionImputer(
        random_state=seed, n_samples=DRAWS, prior="mlp", sampler="ddnm", sampler_options={"steps": 50}
    ),
}
SMALL_ONLY = {"DiffusionImputer, repaint", "DiffusionImputer, network", "DiffusionImputer, ddnm"}  # and one seed


def crps(draws: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Fair continuous ranked probability score, (n, m) and (m,) -> (m,): E|X - y| - E|X - X'| / 2."""
    n = len(draws)
    apart = np.abs(draws - truth).mean(0)
    if n == 1:
        return apart
    ordered = np.sort(draws, 0)
    return apart - (ordered * (2 * np.arange(1, n + 1) - n - 1)[:, None]).sum(0) / (n * (n - 1))


def drawn(method: str, seed: int, Y: np.ndarray) -> np.ndarray:
    """Completed tables, (draws, n, d); one for those that give a single answer."""
    if method == "IterativeImputer, draws":
        return np.stack([iterative(seed + 100 * i, Y, True).fit_transform(Y) for i in range(DRAWS)])
    imputer = METHODS[method](seed, Y)
    if isinstance(imputer, DiffusionImputer):
        return imputer.fit(Y).sample(DRAWS, Y)
    return imputer.fit_transform(Y)[None]


def filling(method: str, X: np.ndarray, hole: np.ndarray, seed: int) -> dict[str, float]:
    """How near the truth the filled entries are."""
    Y = np.where(hole, np.nan, X)
    started = time.process_time()
    tables = drawn(method, seed, Y)
    seconds = time.process_time() - started
    spread = X.std(0) if X.shape[1] != 64 else np.full(64, X.std())  # a corner of a digit hardly varies
    scale = np.where(spread > 0, spread, 1)[np.nonzero(hole)[1]]
    draws, truth = tables[:, hole] / scale, X[hole] / scale
    low, high = np.quantile(draws, [0.05, 0.95], axis=0)
    inside = float(((low <= truth) & (truth <= high)).mean()) if len(draws) > 1 else float("nan")
    return {
        "rmse": float(np.sqrt(np.square(draws.mean(0) - truth).mean())),
        "crps": float(crps(draws, truth).mean()),
        "coverage": inside,
        "seconds": seconds,
    }


def after(method: str, X: np.ndarray, y: np.ndarray, hole: np.ndarray, seed: int) -> dict[str, float]:
    """Accuracy (or R2) on a held-out third, both parts with holes, the imputer fitted on the first."""
    order = np.random.default_rng(seed).permutation(len(X))
    test, train = order[: len(X) // 3], order[len(X) // 3 :]
    Y, regression = np.where(hole, np.nan, X), len(np.unique(y)) > 20
    boosting = HistGradientBoostingRegressor if regression else HistGradientBoostingClassifier
    if method == "boosting's own":
        model = boosting(random_state=0).fit(Y[train], y[train])
        return {"boosting": float(model.score(Y[test], y[test]))}
    imputer = METHODS[method](seed, Y[train]).fit(Y[train])
    filled, held_out = imputer.transform(Y[train]), imputer.transform(Y[test])
    linear = make_pipeline(StandardScaler(), Ridge() if regression else LogisticRegression(max_iter=2000))
    return {
        "linear": float(linear.fit(filled, y[train]).score(held_out, y[test])),
        "boosting": float(boosting(random_state=0).fit(filled, y[train]).score(held_out, y[test])),
    }


def measure(path: Path, minutes: float) -> dict[str, dict[str, float]]:
    """Every cell that is not there yet, each written when it is done."""
    found: dict[str, dict[str, float]] = json.loads(path.read_text()) if path.exists() else {}
    started = time.monotonic()
    for table, load in TABLES.items():
        bunch = load()
        X, y = bunch.data[: ROWS.get(table)].astype(float), bunch.target[: ROWS.get(table)]
        for mechanism in MECHANISMS:
            for seed in SEEDS:
                rng = np.random.default_rng([seed, MECHANISMS.index(mechanism), len(X)])
                hole = holes(X, mechanism, rng)
                for method in (*METHODS, "boosting's own"):
                    if method in SMALL_ONLY and (
                        table in ("digits", "breast cancer") or seed or mechanism != "at random"
                    ):
                        continue
                    key = f"{table}/{mechanism}/{seed}/{method}"
                    if key in found or time.monotonic() - started > 60 * minutes:
                        continue
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        cell = {} if method == "boosting's own" else filling(method, X, hole, seed)
                        if method not in SMALL_ONLY and method != "IterativeImputer, draws":
                            cell.update(after(method, X, y, hole, seed))
                    found[key] = {name: round(value, 5) for name, value in cell.items() if np.isfinite(value)}
                    with atomic_write(path) as temporary:
                        temporary.write_text(json.dumps(found, indent=1) + "\n")
                    print(key, found[key], flush=True)
    return found


def summary(found: dict[str, dict[str, float]], table: str, mechanism: str, method: str, name: str) -> str:
    """Mean over the seeds, and half an interval."""
    values = [
        cell[name]
        for key, cell in found.items()
        if key.split("/")[:2] == [table, mechanism] and key.split("/")[3] == method and name in cell
    ]
    values = [v for v in values if np.isfinite(v)]
    if not values:
        return ""
    digits = 0 if name == "seconds" else 3 if name in ("rmse", "crps") else 2
    mean = f"{np.mean(values):.{digits}f}"
    if len(values) < 3 or name == "seconds":
        return mean
    return f"{mean} ± {T_95 * np.std(values, ddof=1) / np.sqrt(len(values)):.{digits}f}"


def tables(found: dict[str, dict[str, float]]) -> str:
    heads = {
        "rmse": "RMSE",
        "crps": "CRPS",
        "coverage": "in 90 %",
        "linear": "linear",
        "boosting": "boosting",
        "seconds": "s",
    }
    parts = []
    for table in TABLES:
        for mechanism in MECHANISMS:
            rows = []
            for method in (*METHODS, "boosting's own"):
                row = [summary(found, table, mechanism, method, name) for name in heads]
                if any(row):
                    rows.append([method, *row])
            if rows:
                parts.append(f"**{table}, missing {mechanism}**\n\n" + markdown_table(["", *heads.values()], rows))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/data"))
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no cell after this long")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    found = measure(args.out / "tables.json", args.minutes)
    (args.out / "tables.md").write_text(tables(found), encoding="utf-8")


if __name__ == "__main__":
    main()
