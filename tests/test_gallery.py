"""The gallery: what a page shows comes from the code that stands on it, and what it says of methods is so."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
sys.path[:0] = [str(DOCS), str(DOCS / "figures")]
import gallery  # noqa: E402
import outputs  # noqa: E402

NAMES = gallery.names()


def claims(text: str) -> list[list[str]]:
    """Orders that a page's prose rests on: `<!-- so that: mean of 4 > biharmonic > one sample -->`, better first."""
    return [[part.strip() for part in one.split(">")] for one in re.findall(r"<!-- so that: (.*?) -->", text)]


@pytest.mark.docs
def test_there_are_twelve_pages_and_all_are_found() -> None:
    index, nav = outputs.read("gallery/index.md"), (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert len(NAMES) == 12
    assert all(f'"{name}"' in index and f"gallery/{name}.md" in nav for name in NAMES)


@pytest.mark.docs
@pytest.mark.parametrize("name", NAMES)
def test_a_page_shows_what_its_code_gave(name: str) -> None:
    text = outputs.read(f"gallery/{name}.md")
    row: dict[str, Any] = gallery.rows()[name]
    assert len(outputs.blocks(text)) == 1 and row["key"] == gallery.key(name), f"python docs/figures/gallery.py {name}"
    assert all((gallery.PICTURES / f"{name}{kind}.jpg").is_file() for kind in ("", "-small"))
    assert row["seconds"] <= 20
    value = {m["name"]: m["psnr"] if "psnr" in m else -m["error"] for m in row["methods"]}
    for claim in claims(text):
        assert sorted(claim, key=lambda n: -value[n]) == claim and len({value[n] for n in claim}) == len(claim), claim


@pytest.mark.docs
def test_nothing_is_kept_of_pages_that_are_gone() -> None:
    assert [r["page"] for r in json.loads(gallery.DATA.read_text(encoding="utf-8"))["rows"]] == NAMES
    assert {f.name for f in gallery.PICTURES.iterdir()} == {f"{n}{k}.jpg" for n in NAMES for k in ("", "-small")}
