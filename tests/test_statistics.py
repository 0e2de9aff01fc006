"""Statistics of the benchmark: against scipy, against textbooks, and by what they must never say."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from invdiff.bench.report import statistics as st
from invdiff.errors import InvdiffError

NAMES = ["a", "b", "c", "d"]


def scores(values) -> dict[str, float]:
    return {f"image{i}": float(v) for i, v in enumerate(values)}


# ---- seeds and intervals ----------------------------------------------------------------------------------------


def test_seeds_are_averaged_per_image_and_gaps_left_out():
    pairs = [("a", 1.0), ("b", 5.0), ("a", 3.0), ("b", None), ("c", None), ("a", math.nan)]
    assert st.average_over_seeds(pairs) == {"a": 2.0, "b": 5.0}


def test_interval_is_scipys_bca_and_is_repeatable():
    x = np.random.default_rng(1).gamma(2.0, size=40)
    ours = st.bootstrap_interval(x, resamples=999)
    theirs = stats.bootstrap(
        (x,), np.mean, n_resamples=999, method="BCa", random_state=np.random.default_rng(0)
    ).confidence_interval
    assert (ours.low, ours.high, ours.method) == pytest.approx((theirs.low, theirs.high, "BCa"))
    assert ours == st.bootstrap_interval(x, resamples=999)
    assert ours.mean == pytest.approx(x.mean())
    assert ours.low < ours.mean < ours.high


def test_interval_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        found = st.bootstrap_interval(rng.normal(size=30), resamples=400)
        hits += found.low <= 0 <= found.high
    assert 0.90 <= hits / 300 <= 0.98


@pytest.mark.parametrize(
    ("values", "method", "has_interval"),
    [([3.0], "none", False), ([2.0, 2.0, 2.0], "constant", True), ([1.0, math.inf], "none", False)],
)
def test_interval_of_little_data(values, method, has_interval):
    found = st.bootstrap_interval(values)
    assert found.method == method
    assert math.isfinite(found.low) == has_interval
    assert found.n == len(values)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [[1.0]]])
def test_interval_refuses_what_is_not_a_list_of_numbers(values):
    with pytest.raises(InvdiffError, match="values"):
        st.bootstrap_interval(values)


# ---- signed ranks -----------------------------------------------------------------------------------------------


def test_signed_rank_of_darwins_maize():
    d = [6, 8, 14, 16, 23, 24, 28, 29, 41, -48, 49, 56, 60, -67, 75]  # Fisher (1935); W = 24, p = 0.0413
    assert st.signed_rank_pvalue(d) == pytest.approx(0.04125976562, abs=1e-9)


@pytest.mark.parametrize("n", [3, 8, 20, 50])
def test_signed_rank_is_scipys_exact_one_without_ties(n):
    d = np.random.default_rng(n).normal(0.3, 1, n)
    assert st.signed_rank_pvalue(d) == pytest.approx(stats.wilcoxon(d, method="exact").pvalue, rel=1e-9)


def test_signed_rank_is_scipys_normal_one_above_fifty():
    d = np.random.default_rng(0).normal(0.1, 1, 80)
    assert st.signed_rank_pvalue(d) == pytest.approx(stats.wilcoxon(d, correction=True, method="approx").pvalue)


def test_signed_rank_with_ties_counts_every_sign_pattern():
    d = np.array([1.0, 1.0, -1.0, 2.0, 2.0, 3.0, -0.5, 3.0])
    ranks = stats.rankdata(abs(d))
    sums = np.array([sum(r for r, s in zip(ranks, c, strict=True) if s) for c in itertools.product([0, 1], repeat=8)])
    seen = ranks[d > 0].sum()
    by_hand = min(1.0, 2 * min((sums >= seen).mean(), (sums <= seen).mean()))
    assert st.signed_rank_pvalue(d) == pytest.approx(by_hand)


def test_signed_rank_is_symmetric_and_ignores_zeros():
    d = np.random.default_rng(5).normal(0.5, 1, 12)
    assert st.signed_rank_pvalue(d) == pytest.approx(st.signed_rank_pvalue(-d))
    assert st.signed_rank_pvalue(np.r_[d, 0, 0]) == pytest.approx(st.signed_rank_pvalue(d))
    assert st.signed_rank_pvalue(np.zeros(9)) == 1.0


def test_signed_rank_keeps_its_level():
    rng = np.random.default_rng(0)
    rejected = sum(st.signed_rank_pvalue(rng.normal(size=12)) <= 0.05 for _ in range(2000))
    assert rejected / 2000 <= 0.06


def test_paired_says_when_there_are_too_few_images():
    few = st.paired(scores([2, 3, 4, 5, 6]), scores([1, 1, 1, 1, 1]))
    assert few.pvalue > 0.05 and "at least 6" in few.note
    enough = st.paired(scores([2, 3, 4, 5, 6, 7]), scores([1, 1, 1, 1, 1, 1]))
    assert enough.pvalue < 0.05 and enough.note == ""
    assert (enough.wins, enough.losses, enough.ties, enough.n) == (6, 0, 0, 6)


def test_paired_with_itself_shows_nothing():
    x = scores(np.random.default_rng(0).normal(size=30))
    same = st.paired(x, x)
    assert (same.pvalue, same.difference, same.ties) == (1.0, 0.0, 30)
    assert same.note == "no difference on any image"


def test_rounding_is_no_difference():
    x = np.random.default_rng(0).uniform(20, 30, 40)
    assert st.paired(scores(x * (1 + 1e-7)), scores(x)).ties == 40


def test_infinite_values_are_ranked_and_equal_ones_tie():
    found = st.paired(scores([math.inf, math.inf, 3]), scores([math.inf, 40, 2]))
    assert (found.wins, found.ties) == (2, 1)
    assert math.isinf(found.difference)


def test_only_common_images_are_compared():
    found = st.paired({"a": 1.0, "b": 2.0, "c": 3.0}, {"b": 1.0, "c": 1.0, "d": 9.0})
    assert (found.n, found.difference) == (2, 1.5)
    with pytest.raises(InvdiffError, match="no image in common"):
        st.paired({"a": 1.0}, {"b": 1.0})


# ---- many tests -------------------------------------------------------------------------------------------------


def test_holm_by_hand_and_in_the_order_given():
    assert st.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert st.holm([]) == []
    assert st.holm([0.9, 0.8]) == [1.0, 1.0]


def test_holm_lies_between_no_correction_and_bonferroni():
    p = np.random.default_rng(0).uniform(size=15)
    adjusted = np.array(st.holm(list(p)))
    assert (adjusted >= p).all() and (adjusted <= np.minimum(1, 15 * p) + 1e-12).all()


@pytest.mark.parametrize("comparisons", [1, 2, 4, 6, 10])
def test_images_needed_is_the_first_number_that_can_be_significant(comparisons):
    n = st.images_needed(comparisons)

    def best(count: int) -> float:
        return max(st.holm([st.signed_rank_pvalue(np.arange(1, count + 1))] * comparisons))

    assert best(n) <= 0.05 < best(n - 1)
    assert st.too_few(n, comparisons) == "" and str(n) in st.too_few(n - 1, comparisons)


# ---- the best ---------------------------------------------------------------------------------------------------


def separated(n: int) -> dict[str, dict[str, float]]:
    base = np.random.default_rng(0).normal(size=n)
    return {"good": scores(base + 2), "fair": scores(base + 1), "poor": scores(base)}


def test_best_is_found_when_it_is_clear_in_both_directions():
    assert st.significantly_best(separated(12), "higher") == {"good"}
    assert st.significantly_best(separated(12), "lower") == {"poor"}


def test_nothing_is_best_with_few_images():
    assert st.significantly_best(separated(6), "higher") == frozenset()


def test_nothing_is_best_when_two_lead_without_a_difference():
    rng = np.random.default_rng(3)
    x = rng.normal(size=20)
    table = {"a": scores(x + 5), "b": scores(x + 5 + rng.normal(0, 0.1, 20)), "c": scores(x)}
    assert st.significantly_best(table, "higher") == frozenset()


def test_a_sampler_is_never_better_than_itself():
    x = scores(np.random.default_rng(0).normal(size=200))
    assert st.significantly_best({"a": x, "again": dict(x)}, "higher") == frozenset()
    assert st.significantly_best({"a": x}, "higher") == frozenset()


def test_equal_leaders_share_the_mark():
    table = separated(20)
    table["twin"] = dict(table["good"])
    assert st.significantly_best(table, "higher") == {"good", "twin"}


def test_a_sampler_that_failed_on_images_is_not_best():
    table = separated(20)
    table["good"].pop("image0")
    assert st.significantly_best(table, "higher") == frozenset()
    assert st.significantly_best({}, "higher") == frozenset()
    assert st.significantly_best({"a": {}, "b": scores([1, 2])}, "higher") == frozenset()


def test_false_marks_stay_below_the_level():
    rng = np.random.default_rng(0)
    marked = sum(
        bool(st.significantly_best({k: scores(rng.normal(size=15)) for k in "abc"}, "higher")) for _ in range(600)
    )
    assert marked / 600 <= 0.05


def test_nearer_to_one_can_be_better():
    rng = np.random.default_rng(0)
    table = {"calibrated": scores(1 + rng.normal(0, 0.05, 20)), "wide": scores(rng.uniform(2, 3, 20))}
    table["narrow"] = scores(rng.uniform(0.1, 0.4, 20))
    assert st.significantly_best(table, "one") == {"calibrated"}
    assert next(iter(st.ranking(table, "one").ranks)) == "calibrated"


def test_unknown_direction_is_refused():
    with pytest.raises(InvdiffError, match="direction"):
        st.significantly_best({"a": scores([1])}, "up")


# ---- ranks ------------------------------------------------------------------------------------------------------


def test_demsars_worked_example():
    """Demšar (2006), section 3.2: four classifiers, 14 data sets, CD = 1.25; with two classifiers it is a z-test."""
    assert st.critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)
    assert st.critical_difference(2, 14) == pytest.approx(1.96 * math.sqrt(1 / 14), rel=1e-3)


def test_groups_are_the_runs_within_the_critical_difference():
    order = np.tile([1.0, 2.0, 3.0, 4.0], (30, 1))
    clear = st.rank_table(NAMES, order)
    assert clear.critical_difference < 1 and clear.groups == ()
    few = st.rank_table(NAMES, order[:6])  # CD = 1.91: neighbours cannot be told apart
    assert few.groups == (("a", "b"), ("b", "c"), ("c", "d"))
    assert st.rank_table(NAMES, order[:2]).groups == (("a", "b", "c", "d"),)


@pytest.mark.parametrize(("k", "q"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)])
def test_critical_values_are_demsars_table(k, q):
    assert st.critical_difference(k, 100) == pytest.approx(q * math.sqrt(k * (k + 1) / 600), rel=1e-3)


def test_friedman_is_scipys():
    table = np.random.default_rng(0).normal(size=(20, 4)) + np.arange(4) * 0.5
    assert st.rank_table(NAMES, table).pvalue == pytest.approx(stats.friedmanchisquare(*table.T).pvalue)


def test_ranks_sum_to_what_they_must_and_ties_share():
    table = {"a": scores([1, 1, 1]), "b": scores([1, 1, 1]), "c": scores([0, 0, 0])}
    found = st.ranking(table, "higher")
    assert found.ranks == {"a": 1.5, "b": 1.5, "c": 3.0}
    assert sum(found.ranks.values()) == 6
    alike = st.ranking({"a": scores([1, 1]), "b": scores([1, 1]), "c": scores([1, 1])}, "lower")
    assert alike.pvalue == 1.0 and alike.groups == (("a", "b", "c"),)


def test_ranking_needs_two_samplers_and_a_common_image():
    assert st.ranking({"a": scores([1])}, "higher") is None
    assert st.ranking({"a": {"x": 1.0}, "b": {"y": 1.0}}, "higher") is None
    assert st.ranking({}, "higher") is None
