"""The documentation does what it says: its code runs, its macros expand, its figures and data are there."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import shlex
import sys
import textwrap
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md"))
RUN = [
    p
    for p in PAGES
    if p == "index.md" or p.startswith(("start/", "learn/", "howto/", "samplers/", "operators/", "metrics/"))
]
SLOW = {p for p in RUN if p.startswith("learn/") or p == "howto/train-a-backbone.md"}

_FENCE = re.compile(
    r"^(?P<indent>[ \t]*)```(?P<language>python|console)[ \t]*\n(?P<body>.*?)^(?P=indent)```[ \t]*$",
    re.MULTILINE | re.DOTALL,
)
_FILE = re.compile(
    r"^(?P<indent>[ \t]*)```\w+ title=\"(?P<file>[\w.-]+)\"[ \t]*\n(?P<body>.*?)^(?P=indent)```[ \t]*$",
    re.MULTILINE | re.DOTALL,
)
_NOT_RUN = re.compile(r"<!-- not run: .+ -->\s*\Z")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    line: int
    run: bool


def blocks(page: str) -> list[Block]:
    """The Python and console blocks of a page, in order; those below a `not run: why` comment are not run."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return [
        Block(
            match["language"],
            textwrap.dedent(match["body"]),
            text.count("\n", 0, match.start("body")),
            _NOT_RUN.search(text[: match.start()]) is None,
        )
        for match in _FENCE.finditer(text)
    ]


def files(page: str) -> dict[str, str]:
    """The files that a page shows: blocks with a title."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return {match["file"]: textwrap.dedent(match["body"]) for match in _FILE.finditer(text)}


def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def run_console(command: str) -> None:
    """A line of a console block, where it is a command of ours."""
    from typer.testing import CliRunner

    from invdiff.cli import app
    from invdiff.cli.terminal import imports_first

    words = shlex.split(command, comments=True)
    if not words or words[0] != "invdiff":
        return
    result = CliRunner().invoke(app, imports_first(words[1:]), catch_exceptions=True)
    assert result.exit_code == 0, f"$ {command}\n{result.output}\n{result.exception!r}"


@pytest.mark.docs
@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=pytest.mark.slow) if p in SLOW else p for p in RUN if blocks(p)]
)
def test_the_code_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in files(page).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    module = ModuleType("page_of_the_documentation")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where dataclasses look for their names
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for block in blocks(page):
            if not block.run:
                continue
            if block.language == "console":
                for line in block.text.splitlines():
                    if line.startswith("$ "):
                        run_console(line[2:])
                continue
            source = "\n" * block.line + block.text  # so that a traceback names the page's own line
            exec(compile(source, str(DOCS / page), "exec"), module.__dict__)


@pytest.mark.docs
@pytest.mark.parametrize("page", PAGES)
def test_every_macro_expands(page: str) -> None:
    made = hooks().expand((DOCS / page).read_text(encoding="utf-8"), page)
    assert "{{" not in re.sub(r"`[^`\n]*`|^```.*?^```", "", made, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.docs
def test_every_figure_on_a_page_has_a_function_that_makes_it() -> None:
    made = set(
        re.findall(r"^@figure\ndef (\w+)", (DOCS / "figures" / "make.py").read_text(encoding="utf-8"), re.MULTILINE)
    )
    used = {n for p in PAGES for n in re.findall(r"\{\{ figure\(\"(\w+)\"", (DOCS / p).read_text(encoding="utf-8"))}
    made |= {"quality", "quality-truth", "particles"}  # of benchmarks/quality.py and benchmarks/particles.py
    assert used <= made, f"no function makes {used - made}"
    files = {f.stem for f in (DOCS / "assets" / "figures").iterdir()}
    files = {f for f in files if not re.match(r"(cats64|eurosat64)(-gmm)?-", f)}  # of benchmarks/model_card.py
    assert files <= made, f"no function makes the files {files - made}"


@pytest.mark.docs
def test_figures_are_small() -> None:
    files = [f for folder in ("assets", "data") for f in (DOCS / folder).rglob("*.*") if f.is_file()]
    assert all(f.stat().st_size < 2 * 2**20 for f in files)
    assert sum(f.stat().st_size for f in files) < 12 * 2**20


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
