"""The report and the comparison of runs, on small run folders made by hand."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from invdiff.bench.report.compare import compare
from invdiff.bench.report.report import make_report
from invdiff.bench.report.statistics import Interval
from invdiff.bench.report.tables import Point, Summary, latex, markdown, number, pareto_front, tex
from invdiff.bench.run.store import GroupRecord, Record, Run, cell_key, measured_file, restored_file, truth_file
from invdiff.bench.suite.suite import Published, PublishedRow, SamplerEntry, Suite, Task
from invdiff.errors import InvdiffError
from invdiff.metrics import get_metric

QUALITY = {"DDNM": 30.0, "RePaint": 25.0, "DPS & co_<b>": 20.0}
CALLS = {"DDNM": (50, 0), "RePaint": (100, 0), "DPS & co_<b>": (50, 50)}


def make_run(
    folder: Path,
    *,
    images: int = 12,
    seeds: tuple[int, ...] = (0, 1),
    tasks: tuple[str, ...] = ("half", "superres"),
    quality: dict[str, float] = QUALITY,
    shift: float = 0.0,
    failing: str = "",
    costs: bool = True,
    pictures: bool = True,
    published: Published | None = None,
) -> Run:
    """A run folder whose PSNRs are the image's own level, plus the sampler's, plus a little."""
    rng = np.random.default_rng(0)
    suite = Suite(
        "small",
        tuple(Task(t, "mask", {"mask": "half"}) for t in tasks),
        tuple(SamplerEntry(label, "ddnm") for label in quality),
        description="Made by hand.",
        n_images=images,
        seeds=seeds,
        metrics=("psnr", "lpips", "misfit", "diversity"),
        published=published,
    )
    names = [f"image{i:02d}" for i in range(images)]
    info = {
        "invdiff": "0.1.0",
        "backbone": {"name": "cats64", "sha256": "abc123", "image_shape": [3, 8, 8]},
        "images": names,
        "images_from_prior": True,
        "seeds": list(seeds),
        "sessions": [
            {"command": ["invdiff", "bench", "small"], "versions": {"torch": "2.9"}, "hardware": {"cpu": "x"}}
        ],
    }
    run = Run.create(folder, suite, info)
    level = rng.normal(0, 2, images)
    picture = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
    for name in names if pictures else ():
        run.save(truth_file(name), Image.fromarray(picture))
        for task in tasks:
            run.save(measured_file(task, name), Image.fromarray(picture // 2))
    records = []
    for task in tasks:
        for label, base in quality.items():
            nfe, vjps = CALLS.get(label, (50, 0))
            for i, name in enumerate(names):
                for seed in seeds:
                    cell = cell_key(task, label, name, seed)
                    settings = {"sampler": label.lower(), "steps": 50, "eta": 0.85 if task == "half" else 0.5}
                    common = (cell, task, "Mask(8x8, 50 % known)", 0.0, label, settings, name, seed)
                    if label == failing and i < 2:
                        records.append(Record(*common, "failed", "DivergenceError: <not finite> & so on"))
                        continue
                    psnr = float(base + level[i] + rng.normal(0, 0.3) + shift)
                    file = restored_file(task, label, name, seed) if pictures else None
                    if file:
                        run.save(file, Image.fromarray(np.clip(picture + rng.integers(0, 20), 0, 255).astype("uint8")))
                    price = (nfe, vjps, nfe + 1.5 * vjps, 0.01 * nfe, 100.0) if costs else (None,) * 5
                    metrics = {"psnr": psnr, "lpips": None, "misfit": 1e-3 * (1 + i)}
                    records.append(Record(*common, "ok", None, *price, metrics, file))
    run.write(records, {"lpips": "the weights of AlexNet cannot be fetched; run `invdiff fetch lpips`"})
    run.write_groups(
        [GroupRecord(t, s, n, "diversity", 0.1 + 0.01 * i) for t in tasks for s in quality for i, n in enumerate(names)]
    )
    return run


@pytest.fixture(scope="module")
def reported(tmp_path_factory) -> tuple[Run, dict[str, Path]]:
    rows = (
        PublishedRow("CelebA-HQ", "RePaint", "lpips", {"half": 0.165}),
        PublishedRow("X", "LaMa", "psnr", {"half": 21.5}),
    )
    run = make_run(
        tmp_path_factory.mktemp("runs") / "a", failing="RePaint", published=Published("A paper, table 1", "", rows)
    )
    return run, {p.name: p for p in make_report(run.folder)}


class Page(HTMLParser):
    """Tags, ids, links and requests of a page."""

    VOID = frozenset({"meta", "link", "img", "br", "path", "use", "rect"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids, self.links, self.sources, self.open, self.wrong = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values["href"][1:]] if tag == "a" else []
        self.sources += [
            values[k] for k in ("src", "href", "xlink:href", "srcset", "action") if k in values and tag != "a"
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID and (not self.open or self.open.pop() != tag):
            self.wrong.append(tag)


# ---- the page ---------------------------------------------------------------------------------------------------


def test_every_format_is_written(reported):
    _, found = reported
    expected = {"report.html", "report.md", "tables.tex", "cells.csv", "summary.csv"}
    assert expected <= set(found)
    for stem in ("ranks-psnr", "quality-half-psnr", "quality-superres-psnr", "images-half"):
        assert found[f"{stem}.png"].read_bytes().startswith(b"\x89PNG")
        assert b"<svg" in found[f"{stem}.svg"].read_bytes()
    assert all(p.is_file() for p in found.values())


def test_page_stands_alone(reported):
    text = reported[1]["report.html"].read_text()
    page = Page(text)
    assert page.sources and all(s.startswith(("data:", "#")) for s in page.sources)
    assert not re.search(r"url\((?!['\"]?(#|data:))", text) and "@import" not in text
    assert "default-src 'none'" in text


def test_page_is_well_formed_and_its_links_lead_somewhere(reported):
    page = Page(reported[1]["report.html"].read_text())
    assert page.wrong == [] and page.open == []
    assert set(page.links) <= set(page.ids)


def test_names_and_errors_are_escaped(reported):
    text = reported[1]["report.html"].read_text()
    assert "co_<b>" not in text and "DPS &amp; co_&lt;b&gt;" in text
    assert "&lt;not finite&gt; &amp; so on" in text


def test_page_says_what_must_be_said(reported):
    text = reported[1]["report.html"].read_text()
    assert "drawn from the backbone&#39;s own prior" in text
    assert "LPIPS: the weights of AlexNet cannot be fetched" in text
    assert "abc123" in text and "invdiff bench small" in text
    assert "A paper, table 1" in text and "0.165" in text and "21.5" in text
    assert "Failed cells" in text


def test_pictures_are_on_the_page(reported):
    _, found = reported
    text = found["report.html"].read_text()
    assert text.count("data:image/png;base64") > 2 * 5 * (2 + 2 * 3)
    for part in ("truth", "measurement", "error", "Worst cases"):
        assert part in text


def test_only_the_significantly_best_is_bold(reported):
    _, found = reported
    text = found["report.html"].read_text()
    assert text.count("<strong>") == 2  # PSNR of DDNM on two tasks; misfit is the same for all
    for mark in re.findall(r"<strong>([\d.]+)</strong>", text):
        assert float(mark) == pytest.approx(30, abs=2.5)


def test_nothing_is_bold_with_few_images(tmp_path):
    run = make_run(tmp_path / "few", images=4)
    paths = {p.name: p for p in make_report(run.folder, tmp_path / "out", formats=("html", "md", "tex"))}
    assert "<strong>" not in paths["report.html"].read_text()
    assert "**" not in paths["report.md"].read_text() and "textbf" not in paths["tables.tex"].read_text()
    said = " ".join(Summary(run).headline())
    assert "no sampler is significantly best" in said and "at least 7 are needed" in said


def test_two_equal_samplers_are_never_told_apart(tmp_path):
    run = make_run(tmp_path / "r", quality={"a": 25.0, "b": 25.0}, pictures=False)
    same = [replace(r, sampler="b", cell=r.cell.replace("/a/", "/b/")) for r in run.records() if r.sampler == "a"]
    run.write(same)
    summary = Summary(run)
    assert not any(e.best for t in summary.tables for r in t.rows for e in r.entries.values())
    assert "Significantly" not in " ".join(summary.headline())


def test_a_run_without_costs_pictures_or_a_second_sampler_has_a_report(tmp_path):
    run = make_run(tmp_path / "bare", images=1, seeds=(0,), quality={"only": 20.0}, costs=False, pictures=False)
    paths = make_report(run.folder)
    page = next(p for p in paths if p.name == "report.html").read_text()
    assert "No costs were recorded" in page and "nothing to compare" in page


def test_a_run_in_which_all_failed_has_a_report(tmp_path):
    run = make_run(tmp_path / "bad", images=2, quality={"DDNM": 20.0}, failing="DDNM", pictures=False)
    page = next(p for p in make_report(run.folder) if p.name == "report.html").read_text()
    assert "no restoration came out" in page and "DivergenceError" in page


def test_a_file_name_gives_that_file_and_nothing_else(tmp_path):
    run = make_run(tmp_path / "r", images=1, pictures=False)
    whole = {p.name: p.read_text() for p in make_report(run.folder, tmp_path / "all", ("html", "md", "tex", "csv"))}
    for name, as_in in (
        ("a.html", "report.html"),
        ("b.MD", "report.md"),
        ("c.tex", "tables.tex"),
        ("d.csv", "summary.csv"),
    ):
        (file,) = make_report(run.folder, tmp_path / "new" / name)
        assert file == tmp_path / "new" / name and file.read_text() == whole[as_in]
    assert len(list((tmp_path / "new").iterdir())) == 4
    with pytest.raises(InvdiffError, match=r"out must be a folder for png files"):
        make_report(run.folder, tmp_path / "e.png")
    (tmp_path / "taken").write_text("")
    with pytest.raises(InvdiffError, match="taken"):
        make_report(run.folder, tmp_path / "taken")


def test_mistakes_are_refused(tmp_path):
    with pytest.raises(InvdiffError, match="no benchmark run"):
        make_report(tmp_path)
    run = make_run(tmp_path / "r", images=1, pictures=False)
    with pytest.raises(InvdiffError, match="Did you mean 'html'"):
        make_report(run.folder, formats=("htm",))
    empty = Run.create(tmp_path / "empty", run.suite, {"images": []})
    with pytest.raises(InvdiffError, match="no finished cell"):
        make_report(empty.folder)


def test_the_same_run_gives_the_same_page(reported, tmp_path):
    run, found = reported
    again = make_report(run.folder, tmp_path, formats=("html",))[0]
    assert again.read_text() == found["report.html"].read_text()


# ---- numbers ----------------------------------------------------------------------------------------------------


def test_csv_holds_every_cell(reported):
    run, found = reported
    rows = list(csv.DictReader(io.StringIO(found["cells.csv"].read_text())))
    assert [r["cell"] for r in rows] == [r.cell for r in run.records()]
    for row, record in zip(rows, run.records(), strict=True):
        assert row["status"] == record.status and json.loads(row["settings"]) == record.settings
        if record.ok:
            assert float(row["psnr"]) == record.metrics["psnr"] and row["lpips"] == ""


def test_means_are_means_over_images_of_means_over_seeds(reported):
    run, found = reported
    rows = list(csv.DictReader(io.StringIO(found["summary.csv"].read_text())))
    row = next(r for r in rows if (r["task"], r["sampler"], r["metric"]) == ("half", "DDNM", "psnr"))
    values = [r.metrics["psnr"] for r in run.records() if r.task == "half" and r.sampler == "DDNM"]
    assert float(row["mean"]) == pytest.approx(np.mean(values))
    assert float(row["low"]) < float(row["mean"]) < float(row["high"])
    assert row["images"] == "12" and row["significantly_best"] == "1"


def test_markdown_and_latex_hold_the_same_marks(reported):
    run, _ = reported
    summary = Summary(run)
    md, tabular = markdown(summary, "Small"), latex(summary)
    assert md.count("**") == 4 and tabular.count(r"\textbf") == 2
    assert tabular.count(r"\toprule") == tabular.count(r"\bottomrule") == 2
    columns = re.search(r"\\begin\{tabular\}\{(.*?)\}", tabular)[1]
    lines = [line for line in tabular.splitlines() if line.endswith(r"\\") and " & " in line]
    assert len(lines) == 2 * 4 and all(len(re.split(r"(?<!\\)&", line)) == len(columns) for line in lines)
    widths = {
        len(re.split(r"(?<!\\)\|", line))
        for line in md.split("## ")[1].splitlines()
        if line.startswith("| ") and "DDNM" in line
    }
    assert len(widths) == 1


def test_latex_escapes():
    assert tex("50 % of x_1 & {a}~b^c\\d") == (
        r"50 \% of x\_1 \& \{a\}\textasciitilde{}b\textasciicircum{}c\textbackslash{}d"
    )


def test_small_numbers_do_not_become_zero():
    metric = get_metric("misfit")
    assert float(number(1.2e-7, metric)) == pytest.approx(1.2e-7)
    assert float(number(0.0, metric)) == 0
    assert number(math.inf, metric) == "∞"


def test_pareto_front_has_exactly_what_nothing_beats():
    rng = np.random.default_rng(0)
    for name in ("psnr", "lpips"):
        metric = get_metric(name)
        sign = 1 if metric.direction == "higher" else -1
        points = [
            Point(str(i), float(c), Interval(float(q), math.nan, math.nan, 1, "none"))
            for i, (c, q) in enumerate(rng.integers(0, 12, (40, 2)))
        ]
        front = pareto_front(points, metric)

        def beaten(p, points=points, sign=sign):
            a = (p.cost, -sign * p.quality.mean)
            return any(
                (q.cost, -sign * q.quality.mean) != a and q.cost <= a[0] and -sign * q.quality.mean <= a[1]
                for q in points
            )

        assert {(p.cost, p.quality.mean) for p in front} == {(p.cost, p.quality.mean) for p in points if not beaten(p)}


def test_ranking_over_tasks_counts_an_image_once(reported):
    ranking = Summary(reported[0]).ranking(get_metric("psnr"))
    assert ranking.n == 10  # RePaint failed on two of twelve
    assert list(ranking.ranks) == ["DDNM", "RePaint", "DPS & co_<b>"]
    assert sum(ranking.ranks.values()) == pytest.approx(6)


# ---- compare ----------------------------------------------------------------------------------------------------


def test_a_run_compared_with_itself_shows_no_difference(tmp_path):
    run = make_run(tmp_path / "a", pictures=False)
    found = compare(run.folder, run.folder)
    assert found.identical and {c.verdict for c in found.changes} == {"no difference shown"}
    assert all(c.pvalue == 1 for c in found.changes) and "agree exactly" in str(found)


@pytest.mark.parametrize(("shift", "verdict"), [(0.5, "better"), (-0.5, "worse")])
def test_a_shift_is_found_and_has_the_right_sign(tmp_path, shift, verdict):
    a = make_run(tmp_path / "a", pictures=False, images=16)
    b = make_run(tmp_path / "b", pictures=False, images=16, shift=shift)
    psnr = [c for c in compare(a.folder, b.folder).changes if c.metric.name == "psnr"]
    assert len(psnr) == 6 and {c.verdict for c in psnr} == {verdict}
    for change in psnr:
        assert change.paired.difference == pytest.approx(shift)
        assert change.mean_b - change.mean_a == pytest.approx(shift)
    other = [c for c in compare(a, b).changes if c.metric.name in ("misfit", "seconds")]
    assert {c.verdict for c in other} == {"no difference shown"}


def test_lower_is_better_where_the_metric_says_so(tmp_path):
    a, b = (make_run(tmp_path / n, pictures=False, images=16) for n in "ab")
    b.write([replace(r, metrics={"misfit": r.metrics["misfit"] / 2}) for r in b.records()])
    found = {c.verdict for c in compare(a, b).changes if c.metric.name == "misfit"}
    assert found == {"better"}


def test_less_misfit_than_noise_is_no_merit(tmp_path):
    run = make_run(tmp_path / "a", pictures=False, images=16, tasks=("half",))
    low = [
        replace(r, metrics={"misfit": r.metrics["misfit"] * (1 if r.sampler == "DDNM" else 2)}) for r in run.records()
    ]
    for sigma_y, best in ((0.0, True), (0.1, False)):
        run.write([replace(r, sigma_y=sigma_y) for r in low])
        assert Summary(run).tables[0].row("DDNM").entries["misfit"].best == best


def test_rounding_is_no_difference(tmp_path):
    """Misfits of 5e-9 and 1e-6 are both nothing: no mark, no rank, no verdict."""
    a, b = (make_run(tmp_path / n, pictures=False, images=16, tasks=("half",)) for n in "ab")
    for run, factor in ((a, 1e-6), (b, 1e-7)):
        scale = {"DDNM": factor, "RePaint": 1e-8 * factor}
        run.write(
            [replace(r, metrics={"misfit": r.metrics["misfit"] * scale.get(r.sampler, 1)}) for r in run.records()]
        )
    summary = Summary(a)
    marked = {row.sampler for row in summary.tables[0].rows if row.entries["misfit"].best}
    assert marked == {"DDNM", "RePaint"}  # equal, and better than the third
    ranks = summary.ranking(get_metric("misfit")).ranks
    assert ranks["DDNM"] == ranks["RePaint"] == 1.5
    verdicts = {c.sampler: c.verdict for c in compare(a, b).changes if c.metric.name == "misfit"}
    assert set(verdicts.values()) == {"no difference shown"}


def test_noise_alone_is_no_difference_and_few_images_say_so(tmp_path):
    a = make_run(tmp_path / "a", pictures=False, images=4)
    b = make_run(tmp_path / "b", pictures=False, images=4, shift=3.0)
    psnr = [c for c in compare(a, b).changes if c.metric.name == "psnr"]
    assert {c.verdict for c in psnr} == {"no difference shown"}
    assert all("too few" in c.note for c in psnr)


def test_only_common_cells_count(tmp_path):
    a = make_run(tmp_path / "a", pictures=False, failing="DDNM")
    b = make_run(tmp_path / "b", pictures=False, images=14, tasks=("half",))
    found = compare(a, b)
    assert {c.task for c in found.changes} == {"half"}
    assert found.cells == 3 * 12 * 2 - 4
    assert found.only_a == 3 * 12 * 2 - 4 and found.only_b == 3 * 2 * 2 + 4
    assert "Left out" in str(found)


def test_runs_without_a_common_cell_are_refused(tmp_path):
    a = make_run(tmp_path / "a", pictures=False, images=2, tasks=("half",))
    b = make_run(tmp_path / "b", pictures=False, images=2, tasks=("other",))
    with pytest.raises(InvdiffError, match="no restored cell in common"):
        compare(a, b)


def test_comparison_as_table_and_markdown(tmp_path):
    a = make_run(tmp_path / "a", pictures=False)
    b = make_run(tmp_path / "b", pictures=False, shift=1.0)
    found = compare(a, b, costs=())
    assert all(len(row) == len(found.HEADINGS) and all(isinstance(t, str) for t in row) for row in found.rows())
    table = [line for line in found.markdown().splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(found.changes) and len({len(re.split(r"(?<!\\)\|", t)) for t in table}) == 1
    with pytest.raises(InvdiffError, match="costs"):
        compare(a, b, costs=("money",))
