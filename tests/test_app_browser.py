"""The browser app as visitors use it: headless Chromium against a server of its own. `make test-app` runs these.

Needs the extra `app`, Playwright and a Chromium (``$CHROMIUM``, or one on the path); skipped with a line where they are missing.
The server works on `cats64` with few steps, in a process that can be killed.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_app import wrong_files

from invdiff import solve
from invdiff.backbones import load_backbone
from invdiff.bench.run.score import score_folders
from invdiff.bench.votes.store import Votes
from invdiff.data import chelsea64

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
MISSING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
MISSING += [] if CHROMIUM else ["chromium"]
pytestmark = [
    pytest.mark.app,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
NAMELESS = """fields => fields.filter(field => field.offsetParent && field.type !== 'hidden' && !(
    field.getAttribute('aria-label') || field.getAttribute('aria-labelledby') || field.title || field.labels?.length
    || field.innerText?.trim())).map(field => field.outerHTML.slice(0, 160))"""
PATIENCE = 300_000  # milliseconds; a busy machine is no failure


@dataclass
class Server:
    """`invdiff app` in a process of its own."""

    words: tuple[str, ...] = ()
    port: int = 0
    watched: Path | None = None
    process: Any = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        if not self.port:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.port = free.getsockname()[1]
        words = [sys.executable, "-m", "invdiff", "app", "--port", str(self.port), *self.words]
        path = os.pathsep.join(filter(None, (str(self.watched or ""), os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        end = time.monotonic() + PATIENCE / 1000
        while time.monotonic() < end and self.process.poll() is None:
            try:
                urllib.request.urlopen(self.url, timeout=5).read()
                return
            except OSError:
                time.sleep(0.2)
        raise AssertionError(f"the server did not come up: {self.process.stdout.read().decode()}")

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.wait()


WATCH = """import pathlib, socket
found = socket.getaddrinfo
def getaddrinfo(host, *rest, **more):
    if str(host) not in ("127.0.0.1", "localhost", "0.0.0.0", "None"):
        with open(pathlib.Path(__file__).with_name("asked"), "a") as file:
            file.write(f"{host}\\n")
        raise OSError("the network is out of bounds")
    return found(host, *rest, **more)
socket.getaddrinfo = getaddrinfo
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    """One for all tests, in a process that may look up no other host."""
    folder = tmp_path_factory.mktemp("watch")
    (folder / "sitecustomize.py").write_text(WATCH)
    one = Server(watched=folder)
    one.start()
    yield one
    one.kill()
    assert not (folder / "asked").exists(), f"the server asked for {(folder / 'asked').read_text()}"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium) -> Iterator[Any]:
    """A new visitor's page; whatever it asks for, it asks of 127.0.0.1."""
    contexts, asked, errors = [], [], []

    def opened(url: str, **options: Any) -> Any:
        context = chromium.new_context(accept_downloads=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        return page

    yield opened
    for context in contexts:
        context.close()
    strangers = [url for url in asked if not re.match(r"(https?://127\.0\.0\.1[:/]|data:|blob:|about:)", url)]
    assert asked and not strangers, "a request to another host"
    assert not errors


def asks(
    page: Any, samplers: tuple[str, ...] = ("ddnm",), steps: int = 3, damage: str = "", backbone: str = "cats64"
) -> None:
    """Fill in the form of the first tab."""
    page.wait_for_selector("#restore")
    if damage:
        chosen(page, "damage", damage)
    chosen(page, "backbone", backbone)
    for name in samplers:
        page.locator("#samplers").get_by_label(name, exact=True).check()
    page.locator("#steps input").fill(str(steps))
    page.locator("#steps input").blur()


def chosen(page: Any, field_id: str, label: str) -> None:
    """Choose from a list."""
    page.locator(f"#{field_id} input").click()
    page.get_by_role("option", name=label, exact=True).click()


def said(page: Any, pattern: str) -> str:
    """Wait until the status says so."""
    page.wait_for_function(
        "pattern => new RegExp(pattern).test(document.querySelector('#status')?.innerText || '')", arg=pattern
    )
    return str(page.locator("#status").inner_text())


def paint(page: Any, x: float, y: float, to_x: float, to_y: float) -> None:
    """A stroke, places as shares of the picture."""
    page.locator("#painter canvas").scroll_into_view_if_needed()
    box = page.locator("#painter canvas").bounding_box()
    page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + to_x * box["width"], box["y"] + to_y * box["height"], steps=4)
    page.mouse.up()


def downloaded(page: Any, name: str, folder: Path) -> Path:
    """A file of the list of results."""
    with page.expect_download() as download:
        page.locator("#files tr.file").nth(names(page).index(name)).locator("a").first.click()
    path = folder / name
    download.value.save_as(path)
    return path


def names(page: Any) -> list[str]:
    """Of the files that can be downloaded."""
    page.wait_for_selector("#files tr.file")
    rows = "rows => rows.map(row => row.querySelector('td').innerText.replace(/\\s/g, ''))"
    found = page.locator("#files tr.file").evaluate_all(rows)
    return [str(name) for name in found]


# ---- restore ----------------------------------------------------------------------------------------------------


def test_upload_paint_two_samplers_at_once_and_what_is_downloaded_is_what_solve_gives(server, visit, tmp_path):
    chelsea64().save(tmp_path / "cat.png")
    page = visit(server.url)
    asks(page, ("ddnm", "mcg"))
    page.locator("#photo input[type=file]").set_input_files(tmp_path / "cat.png")
    page.wait_for_selector("#painter .painter[data-ready]")
    paint(page, 0.2, 0.3, 0.6, 0.4)
    paint(page, 0.7, 0.7, 0.8, 0.9)
    page.locator("#painter [data-do=undo]").click()
    assert page.locator("#painter .painter").get_attribute("data-strokes") == "1"
    page.locator("#painter canvas").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    assert page.locator("#painter .painter").get_attribute("data-strokes") == "2"
    page.locator("#restore").click()
    page.wait_for_selector("#live figure[data-sampler=mcg]")
    said(page, "^Done")
    assert page.locator("#live figure[data-state=done]").count() == 2
    assert {
        "ddnm.png",
        "mcg.png",
        "mask.png",
        "photo.png",
        "ddnm-way.gif",
        "repeat.py",
        "repeat.sh",
        "restoration.zip",
    } <= set(names(page))
    mask, got = downloaded(page, "mask.png", tmp_path), downloaded(page, "ddnm.png", tmp_path)
    missing = np.asarray(Image.open(mask)) == 0
    assert 0.02 < missing.mean() < 0.5 and missing[20:24, 20:30].any()
    from invdiff import make_operator

    again = solve(
        make_operator("mask", (3, 64, 64), mask=str(mask)),
        str(tmp_path / "cat.png"),
        "ddnm",
        backbone=load_backbone("cats64", engine="torch"),
        steps=3,
        seed=0,
    )
    assert np.array_equal(np.asarray(Image.open(got)), np.asarray(again.image)), "equal to solve at the same seed"
    assert "invdiff solve photo.png --operator mask --mask mask.png" in page.locator("#shell").inner_text()
    page.set_viewport_size({"width": 390, "height": 800})
    page.wait_for_function("document.documentElement.scrollWidth <= 390")  # results on a phone
    slider = page.locator("#compare [name=across]")
    slider.focus()
    page.keyboard.press("Home")
    assert page.locator("#compare .line").evaluate("line => line.style.left") == "0%"


def test_stop_one_and_the_other_goes_on_then_stop_all(server, visit):
    page = visit(server.url)
    asks(page, ("ddnm", "repaint"), steps=250, damage="A ready mask")
    page.locator("#restore").click()
    button = page.get_by_role("button", name="Stop repaint", exact=True)
    button.click()
    page.wait_for_selector("#live figure[data-sampler=repaint][data-state=stopped]")
    assert page.locator("#live figure[data-sampler=ddnm]").get_attribute("data-state") == "running"
    page.locator("#stop").click()
    said(page, "Stopped")


def test_two_visitors_wait_for_each_other_and_a_closed_tab_makes_room(server, visit):
    first, second = visit(server.url), visit(server.url)
    for page, steps in ((first, 250), (second, 2)):
        asks(page, ("ddnm",) if page is second else ("ddnm", "repaint"), steps=steps, damage="A ready mask")
    first.locator("#restore").click()
    said(first, "Working")
    second.locator("#restore").click()
    assert "Place 1 of 1" in said(second, "Place")
    first.close()
    said(second, "^Done")


def test_ten_wrong_files_get_a_sentence_each_and_the_page_lives(server, visit, tmp_path):
    page = visit(server.url)
    page.wait_for_selector("#restore")
    wrong = wrong_files(tmp_path)
    assert len(wrong) == 10
    for name, pattern in wrong.items():
        page.locator("#photo input[type=file]").set_input_files(tmp_path / name)
        said(page, f"({pattern})")
        assert page.locator("#status [role=alert]").count() == 1
        page.locator("#photo").get_by_label(re.compile("clear|remove", re.I)).first.click()
        said(page, "^$")
    asks(page, steps=2, damage="A ready mask")
    page.locator("#restore").click()
    said(page, "^Done")


def test_a_photo_of_twenty_megapixels_is_shrunken_with_a_sentence(server, visit, tmp_path):
    Image.effect_noise((1300, 975), 20).resize((5200, 3900)).convert("RGB").save(tmp_path / "large.jpg", quality=60)
    page = visit(server.url)
    page.wait_for_selector("#restore")
    page.locator("#photo input[type=file]").set_input_files(tmp_path / "large.jpg")
    assert "20.3 megapixels" in said(page, "megapixels")
    page.wait_for_selector("#painter .painter[data-width='1024']")


# ---- learn ------------------------------------------------------------------------------------------------------


def test_a_figure_is_drawn_again_when_a_field_is_moved(server, visit):
    page = visit(server.url)
    page.get_by_role("tab", name="Learn").click()
    before = page.locator("#plane-figure svg").get_attribute("aria-label")
    page.locator("#way input[type=range]").focus()
    page.keyboard.press("Home")
    page.wait_for_function(
        "before => document.querySelector('#plane-figure svg')?.getAttribute('aria-label') !== before", arg=before
    )
    assert "after 1 of" in page.locator("#plane-figure svg").get_attribute("aria-label")


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_the_screen_and_every_field_has_a_name(server, visit, width):
    page = visit(server.url, viewport={"width": width, "height": 800}, color_scheme="dark")
    page.wait_for_selector("#restore")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.body.classList.contains('dark')")
    nameless = page.locator("input, textarea, select, button, canvas").evaluate_all(NAMELESS)
    assert not nameless


# ---- votes ------------------------------------------------------------------------------------------------------


@pytest.fixture
def run_folder(tmp_path) -> Path:
    """A run of three methods on eight pictures: 24 pairs."""
    base, draw = np.asarray(chelsea64()).astype(float), np.random.default_rng(0)
    for place, noise in (("truth", 0), ("restored/a", 10), ("restored/b", 30), ("restored/c", 60)):
        (tmp_path / place).mkdir(parents=True)
        for i in range(8):
            pixels = np.clip(np.roll(base, 8 * i, 1) + noise * draw.standard_normal(base.shape), 0, 255).astype(
                np.uint8
            )
            Image.fromarray(pixels).save(tmp_path / place / f"{i}.png")
    score_folders(tmp_path / "truth", tmp_path / "restored", None, tmp_path / "run")
    return tmp_path / "run"


def test_twenty_votes_by_keyboard_outlive_a_kill(run_folder, visit):
    booth = Server(("--vote", str(run_folder)))
    booth.start()
    try:
        page = visit(booth.url)
        said(page, "^0 of")
        assert page.locator("#pair figure").count() >= 2
        assert "sampler" not in page.locator("#pair").inner_html(), "nothing tells who made which"
        for number in range(20):
            page.keyboard.press("120"[number % 3])
            said(page, f"^{number + 1} of")
        booth.kill()
        votes = Votes(run_folder).all()
        assert len(votes) == 20 and [vote.number for vote in votes] == list(range(1, 21))
        assert [vote.choice for vote in votes[:3]] == [1, 2, 0]
        booth.start()
        page.reload()
        said(page, "^20 of"), "the same voter goes on"
        page.keyboard.press("1")
        said(page, "^21 of")
        kept = Votes(run_folder).all()
        assert (
            kept[:20] == votes
            and len({(v.voter, v.pair.key) for v in kept}) == 21
            and len({v.voter for v in kept}) == 1
        )
    finally:
        booth.kill()
