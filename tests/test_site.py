"""The built site: its links lead somewhere, its search finds what people ask for, and it fits on a phone."""

from __future__ import annotations

import functools
import html
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A word that somebody types, and the pages of which one should come first.
ASKED = {
    "stable diffusion": ("start/own-checkpoint",),
    "lucidrains": ("start/own-checkpoint",),
    "my own model": ("start/own-checkpoint",),
    "diffusers": ("start/own-checkpoint", "backbones/formats"),
    "flow matching": ("howto/own-network",),
    "edm": ("howto/own-network",),
    "512": ("start/any-size",),
    "large photo": ("start/any-size",),
    "how long": ("start/how-long",),
    "slow": ("start/how-long", "start/faq"),
    "gpu": ("start/gpu",),
    "cuda": ("start/gpu",),
    "out of memory": ("start/faq", "start/how-long", "start/gpu"),
    "scratch": ("howto/repair-a-photograph", "gallery/"),
    "old photo": ("howto/repair-a-photograph", "gallery/", "start/own-photo"),
    "remove text from photo": ("howto/repair-a-photograph", "gallery/"),
    "deblur": ("howto/repair-a-photograph", "operators", "gallery/"),
    "super resolution": ("howto/repair-a-photograph", "operators", "gallery/"),
    "which sampler": ("start/which-sampler",),
    "uncertainty": ("howto/uncertainty",),
    "compare your sampler": ("benchmarks",),
    "cite": ("howto/cite",),
    "bibtex": ("howto/cite",),
    "notebook": ("learn/instructors", "learn"),
    "slides": ("learn/instructors",),
    "tables missing values": ("howto/fill-a-table", "learn/15-tables"),
    "landsat stripes": ("gallery/",),
}


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages as `make docs` builds them, once a session; an existing build may be named in $INVDIFF_SITE."""
    if given := os.environ.get("INVDIFF_SITE"):
        return Path(given)
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    ran = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return folder


class Links(HTMLParser):
    """The targets that a page names, and the places in it that others can name."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.places: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in ("href", "src") and value is not None:
                self.targets.append(html.unescape(value))
            elif name in ("id", "name") and value:
                self.places.add(value)


@pytest.mark.docs
@pytest.mark.site
def test_every_link_and_picture_of_the_site_is_there(site: Path) -> None:
    """Links to other hosts are not followed."""
    found: dict[Path, Links] = {}
    for file in site.rglob("*.html"):
        found[file] = Links()
        found[file].feed(file.read_text(encoding="utf-8"))
    broken = []
    for file, links in found.items():
        if file.name == "404.html":
            continue  # its links are from the root of wherever it is served
        for target in links.targets:
            address = urllib.parse.urlsplit(target)
            if address.scheme or address.netloc:
                continue
            path = file if not address.path else (file.parent / urllib.parse.unquote(address.path)).resolve()
            path = path / "index.html" if path.is_dir() else path
            if not path.is_file():
                broken.append(f"{file.relative_to(site)}: {target}")
            elif address.fragment and path in found:
                place = urllib.parse.unquote(address.fragment)
                slide = path.parent.name == "slides"
                if place not in found[path].places and not slide and not place.startswith("__"):
                    broken.append(f"{file.relative_to(site)}: {target} (no such place)")
    assert not broken, "\n".join(broken)


@pytest.mark.docs
@pytest.mark.site
def test_every_picture_says_what_it_shows(site: Path) -> None:
    for file in site.rglob("*.html"):
        text = re.sub(
            r'<a class="card".*?</a>', "", file.read_text(encoding="utf-8"), flags=re.DOTALL
        )  # words beside it
        for image in re.findall(r"<img\b[^>]*>", text):
            assert re.search(r'alt="[^"]{3,}', image), f"{file.relative_to(site)}: {image[:200]}"


# ---- in a browser -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def address(site: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    sync = pytest.importorskip("playwright.sync_api")
    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not program:
        pytest.skip("no Chromium here")
    with sync.sync_playwright() as play:
        opened = play.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.app
@pytest.mark.site
def test_the_search_finds_what_people_ask_for(address: str, site: Path, browser: Any) -> None:
    """By the site's own search box: the first hit is the page that answers."""
    page = browser.new_page()
    page.goto(f"{address}/start/faq/")
    page.wait_for_load_state("networkidle")  # the index is there
    hit, missed = ".md-search-result__list .md-search-result__link", {}
    found = f"""() => {{
        const link = document.querySelector('{hit}');
        return link ? !link.dataset.old : /^No /.test(document.querySelector('.md-search-result__meta').innerText);
    }}"""
    for phrase, wanted in ASKED.items():
        if all(not any(site.glob(f"{w.rstrip('/')}*")) for w in wanted):
            continue  # a part of the site that this copy does not have
        page.evaluate(f"document.querySelectorAll('{hit}').forEach(link => link.dataset.old = 1)")
        page.click("input.md-search__input")
        page.fill("input.md-search__input", phrase)
        page.keyboard.press("End")  # keys are what it listens to
        page.wait_for_function(found)
        first = (page.locator(hit).first.get_attribute("href") or "") if page.locator(hit).count() else ""
        first = urllib.parse.urlsplit(urllib.parse.urljoin(page.url, first)).path.strip("/")
        if not any(first == w.rstrip("/") or first.startswith(w if w.endswith("/") else f"{w}/") for w in wanted):
            missed[phrase] = first
    assert not missed


@pytest.mark.app
@pytest.mark.site
def test_no_page_is_wider_than_a_phone(address: str, site: Path, browser: Any) -> None:
    """Code, tables and formulas scroll inside themselves."""
    page = browser.new_page(viewport={"width": 360, "height": 740})
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    wide = {}
    for where in sorted({doc["location"].partition("#")[0] for doc in index["docs"]}):
        if where.startswith("api/"):
            continue  # from docstrings
        page.goto(f"{address}/{where}")
        width = page.evaluate("document.documentElement.scrollWidth")
        if width > 360:
            wide[where] = width
    assert not wide


@pytest.mark.app
@pytest.mark.site
def test_slides_go_on_and_fit(address: str, site: Path, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 720})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    for deck in sorted((site / "learn" / "slides").glob("*.html")):
        page.goto(f"{address}/learn/slides/{deck.name}")
        count = page.locator(".slide").count()
        assert count > 4
        for number in range(1, count + 1):
            assert page.locator(".slide.now").get_attribute("id") == str(number)
            over = page.evaluate(
                "() => { const i = document.querySelector('.slide.now .inner'); return i.scrollHeight - i.clientHeight }"
            )
            assert over <= 2, f"{deck.name}, slide {number}: {over} pixels too high"
            assert page.locator(".slide.now .katex-error").count() == 0
            page.keyboard.press("ArrowRight")
    assert not errors
