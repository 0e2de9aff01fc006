"""Blind votes: what a voter sees, what is kept, and what is made of it."""

from __future__ import annotations

import sqlite3

import numpy as np
import pytest
from PIL import Image

from invdiff.bench.report.report import make_report
from invdiff.bench.run.store import Run
from invdiff.bench.votes.pairs import CHECK_EVERY, Ballot
from invdiff.bench.votes.preference import Preferences, bradley_terry, share, votes_needed
from invdiff.bench.votes.store import POOR, TRUTH, Pair, Vote, Votes
from invdiff.errors import InvdiffError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of three "samplers" on four pictures, made by `invdiff score`'s function: no network is asked."""
    from invdiff.bench.run.score import score_folders

    root = tmp_path_factory.mktemp("votes")
    draw = np.random.default_rng(0)
    for place, noise in (("truth", 0), ("restored/a", 10), ("restored/b", 25), ("restored/c", 60)):
        (root / place).mkdir(parents=True)
        for i in range(4):
            clean = np.add.outer(np.arange(16) * 8, np.arange(16) * 4 + 10 * i)[..., None].repeat(3, -1)
            pixels = np.clip(clean + noise * draw.standard_normal(clean.shape), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / place / f"{i}.png")
    score_folders(root / "truth", root / "restored", None, root / "run")
    return root / "run"


# ---- what a voter sees ------------------------------------------------------------------------------------------


def test_a_voter_sees_every_pair_once_in_an_order_and_on_sides_of_their_own(folder):
    ballot = Ballot(Run.open(folder))
    ada, bob = ballot.of("ada"), ballot.of("bob")
    assert ada == Ballot(Run.open(folder)).of("ada"), "a restart goes on with the same order"
    for pairs in (ada, bob):
        real = [pair for pair in pairs if not pair.check]
        assert len({pair.key for pair in pairs}) == len(pairs)
        assert len(real) == 12 == len(ballot.pairs), "three samplers make three pairs on each of four pictures"
        assert 1 <= sum(pair.check for pair in pairs) <= 1 + len(real) // CHECK_EVERY
    assert [pair.key for pair in ada] != [pair.key for pair in bob]
    sides = [pair.left < pair.right for name in "abcdefgh" for pair in ballot.of(name)]
    assert 0.35 < np.mean(sides) < 0.65


def test_a_check_pair_is_the_truth_against_the_worst_picture(folder):
    run = Run.open(folder)
    ballot = Ballot(run)
    pair = next(pair for pair in ballot.of("ada") if pair.check)
    _, left, right = ballot.pictures(pair)
    truth, poor = (left, right) if pair.left == TRUTH else (right, left)
    assert np.array_equal(np.asarray(truth), np.asarray(run.truth(pair.image)))
    worst = run.folder / next(r.file for r in run.records() if r.sampler == "c" and r.image == pair.image)
    assert np.array_equal(np.asarray(poor), np.asarray(Image.open(worst)))


# ---- what is kept -----------------------------------------------------------------------------------------------


def test_a_vote_is_on_the_disk_at_once_and_no_pair_is_voted_on_twice(folder, tmp_path):
    votes = Votes(tmp_path).open()
    pair = Pair("t", "x", 0, "a", "b")
    cast = votes.cast("ada", pair, 2, 1.5)
    assert cast.winner == "b" and cast.number == 1 and Votes(tmp_path).all() == [cast]
    turned = Pair("t", "x", 0, "b", "a")
    for again in (pair, turned):
        with pytest.raises(InvdiffError, match="has voted on this pair already"):
            votes.cast("ada", again, 1)
    assert votes.cast("bob", turned, 0).winner is None and votes.cast("ada", Pair("t", "x", 1, "a", "b"), 1).number == 2
    assert votes.seen("ada") == {("t", "x", 0, "a", "b"), ("t", "x", 1, "a", "b")}
    with pytest.raises(InvdiffError, match="choice must be 1"):
        votes.cast("ada", Pair("t", "y", 0, "a", "b"), 3)
    assert [v.voter for v in Votes(tmp_path).all()] == ["ada", "bob", "ada"]


def test_a_damaged_file_of_votes_is_told_in_a_line(tmp_path):
    (tmp_path / "votes.sqlite").write_bytes(b"no database" * 200)
    with pytest.raises(InvdiffError, match="cannot be read or written"):
        Votes(tmp_path).open()
    with sqlite3.connect(tmp_path / "other.sqlite") as database:
        database.execute("CREATE TABLE a (b)")
    assert Votes(tmp_path / "nowhere").all() == []


# ---- what they show ---------------------------------------------------------------------------------------------


def test_wilsons_interval_is_the_textbooks_and_covers_the_truth():
    found = share(8, 10)
    assert (round(found.low, 4), round(found.high, 4)) == (0.4902, 0.9433)  # Wilson, 1927, at 8 of 10
    assert share(0, 20).low == 0 and share(20, 20).high == 1
    draw = np.random.default_rng(1)
    covered = [share(float(won), 40).low <= 0.7 <= share(float(won), 40).high for won in draw.binomial(40, 0.7, 2000)]
    assert 0.92 < np.mean(covered) < 0.98
    with pytest.raises(InvdiffError, match="won must be"):
        share(3, 2)


def test_the_votes_still_needed_make_the_difference_show_in_eight_of_ten_studies():
    n = votes_needed(0.62)
    assert n is not None and votes_needed(0.38) == n and votes_needed(0.5) is None
    won = np.random.default_rng(2).binomial(n, 0.62, 2000)
    assert abs(np.mean([share(float(w), n).shown for w in won]) - 0.8) < 0.04
    assert (
        share(30, 40).needed == 0 and share(22, 40).needed == votes_needed(0.55) - 40 and share(20, 40).needed is None
    )


def test_bradley_terry_recovers_strengths_and_its_intervals_cover_them():
    truth = np.array([0.8, 0.1, -0.2, -0.7])
    chance = 1 / (1 + np.exp(truth[None] - truth[:, None]))
    draw = np.random.default_rng(3)
    covered, found = [], []
    for _ in range(200):
        wins = np.triu(draw.binomial(60, np.triu(chance, 1)), 1).astype(float)
        wins += np.tril(60 - wins.T, -1)
        scores = bradley_terry(wins)
        assert scores is not None
        found.append([s.value for s in scores])
        covered += [s.low <= t <= s.high for s, t in zip(scores, truth, strict=True)]
    assert np.abs(np.mean(found, 0) - truth).max() < 0.03 and 0.92 < np.mean(covered) < 0.98


def test_bradley_terry_of_two_is_the_logarithm_of_their_odds_and_a_clean_sweep_stays_finite():
    scores = bradley_terry(np.array([[0, 30.0], [10, 0]]))
    assert scores is not None and scores[0].value - scores[1].value == pytest.approx(np.log(30.5 / 10.5))
    swept = bradley_terry(np.array([[0, 20.0, 20], [0, 0, 20], [0, 0, 0]]))
    assert swept is not None and all(np.isfinite([s.value, s.low, s.high]).all() for s in swept)
    assert bradley_terry(np.array([[0, 1.0, 0], [1, 0, 0], [0, 0, 0]])) is None, "the third met nobody"
    with pytest.raises(InvdiffError, match="square table"):
        bradley_terry(np.ones((2, 3)))


def test_voters_who_fail_the_checks_are_left_out():
    ok, bad = [], []
    for i in range(4):
        ok.append(vote("ada", Pair("t", str(i), 0, "repaint", "ddnm"), 1))
        bad.append(vote("eve", Pair("t", str(i), 0, "repaint", "ddnm"), 2))
    for i in range(2):
        ok.append(vote("ada", Pair("t", str(i), 0, TRUTH, POOR), 1))
        bad.append(vote("eve", Pair("t", str(i), 0, TRUTH, POOR), 2))
    found = Preferences(ok + bad, ["ddnm", "repaint"])
    assert [v.name for v in found.left_out] == ["eve"] and len(found.votes) == 4
    (table,) = found.tables
    assert table.reference == "repaint" and [row.sampler for row in table.rows] == ["repaint", "ddnm"]
    assert table.rows[1].against is not None and table.rows[1].against.value == 0
    assert Preferences(bad[:4], ["ddnm", "repaint"]).left_out == [], "nobody is left out without check pairs"
    assert Preferences([], ["a"]).tables == []


def vote(voter: str, pair: Pair, choice: int) -> Vote:
    return Vote(voter, pair.task, pair.image, pair.seed, pair.left, pair.right, choice, 1, 0.0, 1.0)


def test_the_report_shows_the_votes_task_by_task(folder, tmp_path):
    out = tmp_path / "report"
    make_report(folder, out, ["html", "csv", "md"])
    assert "Bradley-Terry" not in (out / "report.html").read_text() and not (out / "votes.csv").exists()
    votes = Votes(folder).open()
    for voter in ("ada", "<script>bob"):
        for pair in Ballot(Run.open(folder)).of(voter):
            better = {TRUTH: 0, "a": 1, "b": 2, "c": 3, POOR: 4}
            votes.cast(voter, pair, 1 if better[pair.left] < better[pair.right] else 2)
    make_report(folder, out, ["html", "csv", "md"])
    page, table, lines = ((out / n).read_text() for n in ("report.html", "report.md", "votes.csv"))
    assert "24 blind votes" in page and "2 voters" in page and "Bradley-Terry" in page and "<script>bob" not in page
    assert "| a | 100 % (81 to 100) |" in table and "preferred to a" in table
    assert lines.splitlines()[1].startswith(",a,a,16,1.0,")
    (folder / "votes.sqlite").unlink()
