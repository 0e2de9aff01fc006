"""Blind votes: two restorations beside their measurement, three keys, each vote written before the next pair is shown."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from invdiff.app import views
from invdiff.app.restoring import data_uri
from invdiff.bench.run.store import Run
from invdiff.bench.votes.pairs import Ballot
from invdiff.bench.votes.store import LEFT, NEITHER, RIGHT, Pair, Votes
from invdiff.errors import InvdiffError

_SIDE = 768  # pixels of a picture as it is sent
_LONGEST_NAME = 60


class Booth:
    """The votes of one run, as the page asks for them.

    Args:
        folder: of the run.

    Raises:
        InvdiffError: no run, nothing to vote on, or a folder that cannot be written.
    """

    def __init__(self, folder: str | Path) -> None:
        self.ballot = Ballot(Run.open(folder))
        self.votes = Votes(folder).open()

    def next(self, voter: str) -> tuple[Pair | None, int, int]:
        """The first pair that the voter has not voted on, or None; how many are done, and how many there are."""
        seen, pairs = self.votes.seen(voter), self.ballot.of(voter)
        left = [pair for pair in pairs if pair.key not in seen]
        return (left[0] if left else None), len(pairs) - len(left), len(pairs)

    def shown(self, voter: str) -> tuple[str, str, Pair | None]:
        """The pictures as HTML, a sentence, and the pair."""
        pair, done, all_ = self.next(voter)
        if pair is None:
            return "", views.said(f"All {all_} pairs are done. Thank you, {voter}."), None
        measured, left, right = self.ballot.pictures(pair)
        figures = [] if measured is None else [("measurement", measured)]
        figures += [("1", left), ("2", right)]
        drawn = "".join(_figure(label, picture) for label, picture in figures)
        return (
            f'<div class="vote"><div class="row">{drawn}</div></div>',
            views.said(f"{done} of {all_} pairs done."),
            pair,
        )


def _figure(label: str, picture: Image.Image) -> str:
    kind = " class=pixels" if max(picture.size) <= 128 else ""
    said = escape(label if label == "measurement" else f"restoration {label}")
    uri = data_uri(picture, _SIDE, lossless=True)
    return f'<figure><img{kind} src="{uri}" alt="{said}"><figcaption>{escape(label)}</figcaption></figure>'


def vote_page(booth: Booth, page: Any) -> None:
    """Put the page's components into the page under construction, and connect them."""
    from invdiff.app.server import asset

    stored = gr.BrowserState("", storage_key="invdiff-voter", secret="invdiff")
    current = gr.State(None)
    gr.Markdown("## Which of the two looks more real?")
    gr.Markdown(
        "Press 1 or 2 on the keyboard, or 0 where you see no difference. Both were made from the measurement.",
        elem_classes="lede",
    )
    pictures = gr.HTML(elem_id="pair", js_on_load=asset("vote.js"))
    with gr.Row():
        buttons = [
            (LEFT, gr.Button("1: the first", elem_id="vote-1")),
            (NEITHER, gr.Button("0: no difference", elem_id="vote-0")),
            (RIGHT, gr.Button("2: the second", elem_id="vote-2")),
        ]
    status = gr.HTML(elem_id="status")
    with gr.Accordion("Who votes", open=False):
        name = gr.Textbox(label="Your name, or what this browser was called", max_length=_LONGEST_NAME, elem_id="voter")
    outputs = [pictures, status, current, name, stored]

    def shown(voter: str) -> tuple[Any, ...]:
        html, text, pair = booth.shown(voter)
        return html, text, None if pair is None else (pair, time.monotonic()), voter, voter

    def begin(known: str | None) -> tuple[Any, ...]:
        return shown(known or f"voter-{secrets.token_hex(4)}")

    def rename(new: str | None, known: str | None) -> tuple[Any, ...]:
        return shown((new or "").strip()[:_LONGEST_NAME] or known or f"voter-{secrets.token_hex(4)}")

    def caster(choice: int) -> Callable[..., tuple[Any, ...]]:
        def cast(voter: str, asked: tuple[Pair, float] | None) -> tuple[Any, ...]:
            if asked is not None:
                pair, since = asked
                try:
                    booth.votes.cast(voter, pair, choice, time.monotonic() - since)
                except InvdiffError as error:
                    if "already" not in str(error):  # a key pressed twice does no harm
                        return "", views.said(str(error), wrong=True), None, voter, voter
            return shown(voter)

        return cast

    hidden: Any = {"show_progress": "hidden", "api_visibility": "private"}
    page.load(begin, stored, outputs, **hidden)
    name.submit(rename, [name, stored], outputs, **hidden)
    name.blur(rename, [name, stored], outputs, **hidden)
    for choice, button in buttons:
        button.click(caster(choice), [stored, current], outputs, **hidden)
