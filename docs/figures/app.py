"""Take the screenshots of the page about the browser app: wide, narrow, dark.

    python docs/figures/app.py

Needs the extra `app`, Playwright, and a Chromium ($CHROMIUM, or one on the path). A server of its own is started; the pictures are
Chelsea's, restored with few steps by `cats64`.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

from invdiff.bench.run.score import score_folders
from invdiff.data import chelsea64

SCREENS = Path(__file__).resolve().parent.parent / "assets" / "app"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


def served(*words: str) -> tuple[subprocess.Popen, str]:
    """A server, once it answers, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "invdiff", "app", "--port", str(port), *words])
    while process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5).read()
            break
        except OSError:
            time.sleep(0.3)
    return process, f"http://127.0.0.1:{port}"


def kept(page: Any, name: str) -> None:
    """A screenshot, as a small PNG."""
    path = SCREENS / f"{name}.png"
    page.screenshot(path=path, full_page=True)
    image = Image.open(path).convert("RGB")
    image.quantize(200, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path, optimize=True)


def painted(page: Any) -> None:
    """A hole over an eye, two samplers, few steps."""
    page.wait_for_selector("#painter .painter[data-ready]")
    page.locator("#painter canvas").scroll_into_view_if_needed()
    box = page.locator("#painter canvas").bounding_box()
    place = lambda x, y: (box["x"] + x * box["width"], box["y"] + y * box["height"])  # noqa: E731
    page.mouse.move(*place(0.1, 0.42))
    page.mouse.down()
    page.mouse.move(*place(0.34, 0.47), steps=6)
    page.mouse.up()
    page.locator("#backbone input").click()
    page.get_by_role("option", name="cats64", exact=True).click()
    page.locator("#samplers").get_by_label("mcg", exact=True).check()
    page.locator("#steps input").fill("12")
    page.locator("#steps input").blur()
    page.locator("#restore").click()


def done(page: Any) -> None:
    """Wait for the restoration."""
    page.wait_for_function("/^Done/.test(document.querySelector('#status')?.innerText || '')")
    page.wait_for_selector("#compare .compare[data-ready]")
    page.wait_for_timeout(500)
    page.evaluate("scrollTo(0, 0)")


def a_run(folder: Path) -> Path:
    """A run to vote on: blurred and noisy copies stand for methods."""
    base, draw = np.asarray(chelsea64()).astype(float), np.random.default_rng(0)
    for place, noise in (("truth", 0), ("measured", 0), ("restored/a", 12), ("restored/b", 30)):
        (folder / place).mkdir(parents=True)
        for i in range(4):
            pixels = np.clip(base + noise * draw.standard_normal(base.shape), 0, 255)
            if place == "measured":
                pixels[:, 32:] = 0
            Image.fromarray(pixels.astype(np.uint8)).save(folder / place / f"{i}.png")
    score_folders(folder / "truth", folder / "restored", folder / "measured", folder / "run")
    return folder / "run"


def main() -> None:
    SCREENS.mkdir(exist_ok=True)
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        process, url = served()
        try:
            for name, width, scheme in (
                ("wide", 1200, "light"),
                ("narrow", 390, "light"),
                ("dark", 1200, "dark"),
            ):
                page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
                page.set_default_timeout(180_000)
                page.goto(url)
                painted(page)
                done(page)
                kept(page, name)
                if scheme == "dark":
                    page.get_by_role("tab", name="Learn").click()
                    page.wait_for_selector("#plane-figure svg")
                    kept(page, "learn")
                page.close()
        finally:
            process.terminate()
        process, url = served("--vote", str(a_run(Path(folder))))
        try:
            page = browser.new_page(viewport={"width": 1000, "height": 600})
            page.set_default_timeout(180_000)
            page.goto(url)
            page.wait_for_selector("#pair img")
            page.keyboard.press("1")
            page.wait_for_function("/^1 of/.test(document.querySelector('#status')?.innerText || '')")
            kept(page, "vote")
        finally:
            process.terminate()
        browser.close()


if __name__ == "__main__":
    main()
