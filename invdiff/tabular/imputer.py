"""`DiffusionImputer`: RePaint and its peers on the rows of a table."""

from __future__ import annotations

import hashlib
import warnings
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from invdiff.backbones.base import Backbone
from invdiff.backbones.schedule import NoiseSchedule
from invdiff.checks import one_of, real, shown, whole
from invdiff.errors import InvdiffError, InvdiffWarning
from invdiff.operators import Mask
from invdiff.solve import solve
from invdiff.tabular.columns import SCALES, Columns, is_number, missing
from invdiff.tabular.denoiser import train_denoiser
from invdiff.tabular.mixture import chosen_mixture

PRIORS = ("mixture", "mlp")
ROWS = 8192
"""States that travel together in one call of `solve`."""


class DiffusionImputer(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Fills the holes of a table with draws of a diffusion model's posterior given what is known of each row.

        imputer = DiffusionImputer(random_state=0).fit(X)     # NaN is missing
        X_filled = imputer.transform(X)                       # the mean of `n_samples` draws
        tables = imputer.sample(10, X)                        # ten completed tables: multiple imputation

    A row is an "image" of 1 x 1 x d entries and its holes a `Mask`, so every sampler of the library does: RePaint (Lugmayr
    et al., 2022), MMPS (Rozet et al., 2024) and their peers. The prior is learnt from the incomplete rows themselves, which
    is right when entries are missing at random (whether one is missing depends on known entries only).

    Args:
        prior: ``"mixture"``, a Gaussian mixture fitted by expectation maximisation, whose denoiser is exact; or ``"mlp"``, a
            small network trained on rows that the mixture completed, which pays with many rows only.
        sampler: a name of ``invdiff list samplers`` or a sampler; one that restores a mask without noise.
        sampler_options: its fields, such as ``{"steps": 20}``.
        n_samples: draws that `transform` averages (of a category: the most frequent).
        categorical: ``"auto"``, columns of a data frame that hold no numbers, and of an object array that hold strings; or
            their names or places, or one truth value per column. Each becomes analog bits.
        scale: of numerical columns: ``"standard"``, mean 0 and standard deviation 1; ``"quantile"``, to a normal distribution
            by their quantiles; or ``"auto"``, the latter for columns of a skewness above 1.
        components: of the mixture, or ``"auto"``, by the likelihood of held-out rows.
        shrinkage: how many rows the components' mean covariance counts for in each of them, or ``"auto"``, likewise.
        training_steps: of the network, with ``prior="mlp"``.
        random_state: None, a whole number or a `numpy.random.RandomState`. A row's result depends on it and on the row,
            never on the other rows that are transformed with it.

    Attributes:
        backbone_: the prior, a `Backbone` of image shape (1, 1, d).
        columns_: how columns become entries.
        scores_: with "auto": (components, shrinkage) -> mean log-likelihood of a held-out row.
        n_features_in_, feature_names_in_: as everywhere in scikit-learn.

    Raises:
        InvdiffError: (a ValueError) an argument out of its range, or a table with an empty column or an infinite number.
    """

    def __init__(
        self,
        *,
        prior: str = "mixture",
        sampler: Any = "mmps",
        sampler_options: dict[str, Any] | None = None,
        n_samples: int = 20,
        categorical: Any = "auto",
        scale: str = "auto",
        components: int | str = "auto",
        shrinkage: float | str = "auto",
        training_steps: int = 2000,
        random_state: Any = None,
    ) -> None:
        self.prior = prior
        self.sampler = sampler
        self.sampler_options = sampler_options
        self.n_samples = n_samples
        self.categorical = categorical
        self.scale = scale
        self.components = components
        self.shrinkage = shrinkage
        self.training_steps = training_steps
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> DiffusionImputer:
        """Learn the prior of the rows of X, (n, columns), NaN (or None) where it is missing."""
        one_of("prior", self.prior, PRIORS)
        one_of("scale", self.scale, SCALES)
        whole("n_samples", self.n_samples, low=1)
        whole("training_steps", self.training_steps, low=1)
        if self.components != "auto":
            whole("components", self.components, low=1)
        if self.shrinkage != "auto":
            real("shrinkage", self.shrinkage, low=0)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        table, names = self._columns_of(X, reset=True)
        is_category = self._categorical(table, names)
        self.columns_ = Columns.fit(table, is_category, self.scale, names)
        x, known = self.columns_.encode(table, names)
        schedule = NoiseSchedule.linear()
        mixture, self.scores_ = chosen_mixture(x, known, self.components, self.shrinkage, seed)
        self.backbone_: Backbone = mixture.as_backbone(schedule)
        self.seed_ = seed
        if self.prior == "mlp":
            seeds = [(seed + 7919 * i) % 2**31 for i in range(len(x))]
            filled = self._restored(x.float(), known, 4, seeds)
            self.backbone_ = train_denoiser(filled, known, schedule, steps=self.training_steps, seed=seed)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """X with its holes filled by the mean of `n_samples` draws (of a category: the most frequent), (n, columns).

        Known entries come back as they are. The same row gets the same answer, whatever rows come with it.
        """
        check_is_fitted(self)
        table, names = self._columns_of(X)
        x, known = self.columns_.encode(table, names)
        seeds = [self._seed_of(row, here) for row, here in zip(x.numpy(), known.numpy(), strict=True)]
        draws = self.columns_.decode(self._restored(x, known, self.n_samples, seeds))
        filled = [part.summary(column) for part, column in zip(self.columns_.parts, draws, strict=True)]
        return _joined(table, filled)

    def sample(self, n: int, X: Any) -> np.ndarray:
        """`n` completed tables, each a draw: (n, rows, columns). Their spread is the uncertainty of what was missing.

        Two equal rows get draws of their own, by their place in the table.
        """
        check_is_fitted(self)
        whole("n", n, low=1)
        table, names = self._columns_of(X)
        x, known = self.columns_.encode(table, names)
        seeds = [(self.seed_ + 7919 * (i + 1)) % 2**63 for i in range(len(x))]
        draws = self.columns_.decode(self._restored(x, known, n, seeds))
        return np.stack([_joined(table, [column[i] for column in draws]) for i in range(n)])

    # ---- parts ----------------------------------------------------------------------------------------------

    def _restored(self, x: Tensor, known: Tensor, n: int, seeds: list[int]) -> Tensor:
        """(n, rows, d): `n` draws of every row; rows without a hole are themselves."""
        out = x.to(self.backbone_.dtype).expand(n, *x.shape).clone()
        holes = (~known).any(1).nonzero()[:, 0]
        for rows in holes.split(max(1, ROWS // n)) if len(holes) else ():
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore", InvdiffWarning
                )  # a row of which nothing is known is drawn from the prior
                solution = solve(
                    Mask(known[rows][:, None, None]),
                    x[rows][:, None, None],
                    self.sampler,
                    backbone=self.backbone_,
                    n_samples=n,
                    seed=[seeds[i] for i in rows.tolist()],
                    value_range=(-1, 1),
                    progress=False,
                    **(self.sampler_options or {}),
                )
            out[:, rows] = solution.x.reshape(len(rows), n, -1).transpose(0, 1).to(out)
        return out

    def _seed_of(self, row: np.ndarray, known: np.ndarray) -> int:
        text = f"{self.seed_}/".encode() + row.tobytes() + known.tobytes()
        return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "big")

    def _columns_of(self, X: Any, reset: bool = False) -> tuple[list[np.ndarray], list[Any]]:
        """The table as one array per column, and their names (or places)."""
        frame = hasattr(X, "columns") and hasattr(X, "dtypes")
        if frame:
            validate_data(self, X, reset=reset, skip_check_array=True)
            table = [_plain(X.iloc[:, j] if hasattr(X, "iloc") else X[X.columns[j]]) for j in range(len(X.columns))]
            rows, least = len(X), "a minimum of 1 is required"
            if rows < 1 or not table:
                raise InvdiffError(
                    f"X must have rows and columns, got {rows} sample(s) and {len(table)} feature(s): {least}"
                )
            return table, list(X.columns)
        X = validate_data(self, X, reset=reset, dtype=None, ensure_all_finite="allow-nan" if _is_float(X) else False)
        if X.dtype.kind == "c":
            raise InvdiffError("X must hold real numbers or categories. Complex data not supported")
        return [_narrow(X[:, j]) for j in range(X.shape[1])], list(range(X.shape[1]))

    def _categorical(self, table: list[np.ndarray], names: list[Any]) -> list[bool]:
        asked = self.categorical
        if isinstance(asked, str) and asked == "auto":
            return [column.dtype.kind not in "fiub" for column in table]
        chosen = list(asked) if isinstance(asked, list | tuple | np.ndarray) else None
        if chosen is None:
            raise InvdiffError(f"categorical must be 'auto' or a list of columns, got {shown(asked)}")
        if len(chosen) == len(table) and all(isinstance(one, bool | np.bool_) for one in chosen):
            return [bool(one) for one in chosen]
        found = [False] * len(table)
        for one in chosen:
            place = names.index(one) if one in names else one
            if not is_number(place) or int(place) != place or not -len(table) <= place < len(table):
                raise InvdiffError(f"categorical must name columns of X, {shown(names)}, got {shown(one)}")
            found[int(place)] = True
        return found

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = tags.input_tags.string = True
        return tags


def _is_float(X: Any) -> bool:
    return not (hasattr(X, "dtype") and getattr(X.dtype, "kind", "f") not in "fiub")


def _plain(column: Any) -> np.ndarray:
    """A data frame's column as floats (NaN where missing) or as objects."""
    values = column.to_numpy()
    if values.dtype.kind in "fiu":
        return values
    return _narrow(np.asarray(values, dtype=object))


def _narrow(column: np.ndarray) -> np.ndarray:
    """An object column of numbers as floats; others as they are."""
    if column.dtype.kind not in "OUS":
        return column
    gone = missing(column.astype(object))
    if all(is_number(v) for v in column[~gone].tolist()):
        out = np.full(len(column), np.nan)
        out[~gone] = column[~gone].astype(np.float64)
        return out
    return column.astype(object)


def _joined(table: list[np.ndarray], filled: list[np.ndarray]) -> np.ndarray:
    """The columns side by side: what is known from `table`, the rest from `filled`; floats where all are numbers."""
    gone = [missing(column) for column in table]
    columns = [
        np.where(hole, values, column) if hole.any() else column
        for column, values, hole in zip(table, filled, gone, strict=True)
    ]
    kinds = {column.dtype.kind for column in columns}
    if kinds <= set("fiub"):
        return np.stack(columns, 1).astype(np.result_type(*columns, np.float32))
    return np.stack([column.astype(object) for column in columns], 1)
