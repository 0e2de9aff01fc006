"""The documentation does what it says: its code runs, its macros expand, its figures and data are there."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import sys
from pathlib import Path
from types import ModuleType

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md"))
sys.path.insert(0, str(DOCS))
import notebooks  # noqa: E402
import outputs  # noqa: E402

RUN = outputs.pages()
SLOW = {p for p in RUN if p.startswith(("gallery/", "learn/")) or p == "howto/train-a-backbone.md"}


def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def published(page: str) -> tuple[list[outputs.Block], dict[int, str]]:
    """The code that a reader can take from a page, and what it is said to print: the cells of its notebook where there is
    one, else its blocks.
    """
    if page in notebooks.notebook_pages():
        book = notebooks.notebook(page, hooks().expand)
        code = notebooks.code_of(book)
        return code, {b.start: "".join(o.get("text", "") for o in book.cells[b.start].outputs) for b in code}
    code, kept = outputs.blocks(outputs.read(page)), outputs.kept(page)
    keys = outputs.keys(code)
    return code, {b.start: kept[k]["text"] for b, k in zip(code, keys, strict=True) if k in kept}


@pytest.mark.docs
@pytest.mark.parametrize("page", [pytest.param(p, marks=pytest.mark.slow) if p in SLOW else p for p in RUN])
def test_the_code_of_a_page_runs_and_prints_what_the_page_shows(page: str, tmp_path: Path) -> None:
    """The words are those of the page; numbers may differ in their digits from machine to machine."""
    code, said = published(page)
    fresh = not outputs.changed(page)  # else the test below says so
    for block, output in outputs.run(code, tmp_path, str(DOCS / page)):
        if fresh and "not shown" not in block.marks:
            assert outputs.words(output.text) == outputs.words(said[block.start]), f"{page}: {block.text}"


@pytest.mark.docs
@pytest.mark.parametrize("page", [p for p in RUN if p.startswith(notebooks.FOLDERS)])
def test_a_notebook_holds_the_code_of_its_page_and_nothing_of_the_theme(page: str) -> None:
    book = notebooks.notebook(page, hooks().expand)
    nbformat.validate(book)
    own = ("show(", notebooks.SHOW.split("(")[0])  # how pictures are shown is the notebook's affair
    code = [b.text.strip() for b in notebooks.code_of(book) if not b.text.startswith(own)]
    on_page = [b for b in outputs.blocks(outputs.read(page)) if b.run and notebooks.runnable(b)]
    assert code == [
        "\n".join(line for line in b.text.replace("\\\n", " ").splitlines() if line.startswith("$ invdiff "))
        if b.kind == "console"
        else b.text.strip()
        for b in on_page
    ]
    words = "\n".join(c.source for c in book.cells if c.cell_type == "markdown")
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", words, flags=re.DOTALL)
    for mark in (
        "{{ ",
        " }}",
        "!!! ",
        "??? ",
        '=== "',
        "\\(",
        "\\[",
        "<div",
        "<figure",
        "loading=lazy",
        "<!--",
        "\0",
        ".md)",
    ):
        assert mark not in prose, f"{mark!r} in {prose[max(0, prose.index(mark) - 80) :][:160]}"
    for cell in book.cells:
        named = re.findall(r"\(attachment:([^)]+)\)", cell.source) if cell.cell_type == "markdown" else []
        assert set(named) == set(cell.get("attachments", {}))


@pytest.mark.docs
@pytest.mark.slow
def test_a_notebook_runs_in_jupyter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("COLUMNS", str(outputs.COLUMNS))
    book = notebooks.notebook("start/first-restoration.md", hooks().expand)
    said = [outputs.words("".join(o.get("text", "") for o in c.get("outputs", []))) for c in book.cells]
    pictures = sum(o.output_type == "display_data" for c in book.cells for o in c.get("outputs", []))
    nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    for cell, before in zip(book.cells, said, strict=True):
        streams = [o for o in cell.get("outputs", []) if o.output_type == "stream" and o.name == "stdout"]
        now = outputs.words(outputs.clean("".join(o.text for o in streams), tmp_path))
        if cell.source.startswith("!"):  # a terminal: progress bars come between
            assert set(before.split()) <= set(now.split())
        else:
            assert now == before
    shown = [
        o for c in book.cells for o in c.get("outputs", []) if o.output_type == "display_data" and "image/png" in o.data
    ]
    assert pictures and len(shown) >= pictures


@pytest.mark.docs
def test_every_output_on_a_page_is_that_of_the_code_above_it() -> None:
    stale = [page for page in RUN if outputs.changed(page)]
    assert not stale, f"`python docs/outputs.py --changed` runs {', '.join(stale)}"
    used = {
        outputs.store(p).parent / one["file"]
        for p in RUN
        for e in outputs.kept(p).values()
        for one in e.get("pictures", [])
    }
    files = {f for f in outputs.STORE.rglob("*") if f.is_file()}
    assert files == used | {outputs.store(page) for page in RUN}


@pytest.mark.docs
@pytest.mark.parametrize("page", PAGES)
def test_every_macro_expands(page: str) -> None:
    made = hooks().expand((DOCS / page).read_text(encoding="utf-8"), page)
    assert "{{" not in re.sub(r"^```.*?^```|`[^`\n]*`", "", made, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.docs
def test_every_figure_on_a_page_has_a_function_that_makes_it() -> None:
    made = set(
        re.findall(r"^@figure\ndef (\w+)", (DOCS / "figures" / "make.py").read_text(encoding="utf-8"), re.MULTILINE)
    )
    used = {n for p in PAGES for n in re.findall(r"\{\{ figure\(\"(\w+)\"", (DOCS / p).read_text(encoding="utf-8"))}
    made |= {
        "quality",
        "quality-truth",
        "quality-images",
        "particles",
    }  # of benchmarks/quality.py and benchmarks/particles.py
    assert used <= made, f"no function makes {used - made}"
    files = {f.stem for f in (DOCS / "assets" / "figures").iterdir()}
    files = {f for f in files if not re.match(r"(cats64|eurosat64)(-gmm)?-", f)}  # of benchmarks/model_card.py
    assert files <= made, f"no function makes the files {files - made}"


@pytest.mark.docs
def test_figures_are_small() -> None:
    files = [f for folder in ("assets", "data", "outputs") for f in (DOCS / folder).rglob("*.*") if f.is_file()]
    assert all(f.stat().st_size < 2 * 2**20 for f in files)
    assert sum(f.stat().st_size for f in files) < 20 * 2**20  # of which a third are what the code of the pages draws


@pytest.mark.docs
def test_nothing_is_fetched_from_elsewhere() -> None:
    """No page, style or script of ours names a resource on another host (links that a reader may follow are fine)."""
    for file in [*DOCS.rglob("*.md"), *DOCS.rglob("*.css"), ROOT / "mkdocs.yml"]:
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"(?:src=|url\(|@import\s+|!\[[^\]]*\]\()[\"']?https?:", text), file
    assert "font: false" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


@pytest.mark.docs
def test_every_sampler_has_a_page_and_every_option_is_on_it() -> None:
    from invdiff.samplers import sampler_class, sampler_names

    module = hooks()
    for name in sampler_names():
        if not sampler_class(name).__module__.startswith("invdiff."):
            continue  # registered by another test
        page = DOCS / "samplers" / f"{name.replace('+', '-plus')}.md"
        assert page.is_file(), f"docs/samplers has no page for {name!r}"
        text = module.expand(page.read_text(encoding="utf-8"), f"samplers/{page.name}")
        for option in (field.name for field in dataclasses.fields(sampler_class(name))):
            assert f"`{option}`" in text
