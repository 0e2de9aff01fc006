"""What the first page shows, as HTML. Everything that is written into it is escaped."""

from __future__ import annotations

from html import escape
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from invdiff.app.restoring import Restoration, Track, data_uri

CANVAS = 1024  # pixels to a side of the picture that is painted on
_PIXELS = 128  # pictures up to this size are shown with their pixels


def said(text: str, wrong: bool = False) -> str:
    """A sentence for the visitor, read out by screen readers."""
    if not text:
        return ""
    role = "alert" if wrong else "status"
    return f'<div class="said{" wrong" if wrong else ""}" role="{role}" aria-live="polite">{escape(text)}</div>'


def painter(image: Image.Image | None) -> str:
    """The picture with a canvas above it; see `assets/painter.js`."""
    if image is None:
        return ""
    side = min(CANVAS, max(image.size))
    factor = side / max(image.size)
    width, height = (max(1, round(n * factor)) for n in image.size)
    small = ' class="pixels"' if max(image.size) <= _PIXELS else ""
    return (
        f'<div class="painter" data-width="{width}" data-height="{height}" data-strokes="0"><div class="board">'
        f'<img{small} src="{data_uri(image, side)}" alt="your photo" draggable="false">'
        '<canvas tabindex="0" role="application" aria-label="Paint what is to be filled. Arrow keys move the brush, with Shift '
        'they paint, Space paints a dot, Control Z undoes. A mask file or a ready mask does the same without painting."></canvas>'
        '<span class="cursor" aria-hidden="true"></span></div><div class="tools" role="toolbar" aria-label="Brush">'
        '<label>brush <input type="range" min="2" max="60" value="14" aria-label="size of the brush"></label>'
        '<button type="button" data-do="undo">Undo</button><button type="button" data-do="redo">Redo</button>'
        '<button type="button" data-do="erase" aria-pressed="false">Erase</button>'
        '<button type="button" data-do="clear">Clear</button><output aria-live="polite">nothing painted yet</output></div></div>'
    )


def live(restoration: Restoration | None) -> str:
    """Every sampler with its two pictures, its calls, seconds and time left."""
    if restoration is None:
        return ""
    _, height, width = restoration.recipe.image_shape
    small = max(height, width) <= _PIXELS
    cards = [_card(track, small, restoration) for track in restoration.tracks.values()]
    return f'<div class="live" style="--shape: {width} / {height}">{"".join(cards)}</div>'


def _card(track: Track, small: bool, restoration: Restoration) -> str:
    name = escape(track.sampler)
    others = sum(t.state == "running" for t in restoration.tracks.values())
    lines = [f"{track.calls:,} of {track.all_calls:,} network calls, {track.seconds:.1f} s"]
    if track.baseline:
        lines = [f"classical, no network, {track.seconds:.1f} s"]
    if track.state == "running" and track.left is not None:
        lines.append(f"about {_seconds(track.left * max(1, others))} left")
    elif track.state in ("stopped", "failed", "waiting"):
        lines.append(track.state if not track.error else f"failed: {track.error}")
    if track.quality is not None:
        lines.append(f"{track.quality:.2f} dB PSNR" if track.quality > 0 else "PSNR below 0 dB")
    if track.note:
        lines.append(track.note)
    kind = ' class="pixels"' if small else ""
    pictures = [(track.x_t, "x_t"), (track.x0, "x0")] if track.state == "running" else [(track.x0, "restoration")]
    shown = "".join(
        f'<img{kind} src="{uri}" alt="{name}, {what}">' if uri else '<div class="gap"></div>' for uri, what in pictures
    )
    one = "" if len(pictures) == 2 else " one"
    bar = f'<progress max="1" value="{track.share:.3f}" aria-label="{name}"></progress>' if not track.over else ""
    told = "".join(f"<small>{escape(line)}</small>" for line in lines)
    return (
        f'<figure data-sampler="{name}" data-state="{track.state}"><div class="pair{one}">{shown}</div>{bar}'
        f"<figcaption><b>{name}</b>{told}</figcaption></figure>"
    )


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value < 90 else f"{value / 60:.0f} min"


def url(path: Path) -> str:
    """Of a file of the server's folder."""
    return "gradio_api/file=" + quote(str(path))


def compare(restoration: Restoration) -> str:
    """Before and after with a slider and a zoom; see `assets/compare.js`."""
    left: list[tuple[str, Path]] = []
    if restoration.measured is not None:
        left.append(("measurement", restoration.measured))
    if restoration.recipe.simulate or restoration.recipe.known is not None:
        left.append(("photo", restoration.folder / "photo.png"))
    right = []
    for track in restoration.tracks.values():
        many = len(track.pictures) > 1
        right += [(f"{track.sampler} {i}" if many else track.sampler, path) for i, path in enumerate(track.pictures)]
    if not right:
        return ""
    choices = [_choice(label, entries) for label, entries in (("left", left + right), ("right", right + left))]
    _, height, width = restoration.recipe.image_shape
    kind = ' class="pixels"' if max(height, width) <= _PIXELS else ""
    return (
        f'<div class="compare"><div class="stage" tabindex="0" aria-label="pictures, scrolls when enlarged"><div class="inner">'
        f'<img{kind} alt=""><img{kind} alt=""><span class="line"></span></div></div>'
        '<input type="range" name="across" min="0" max="100" value="50" aria-label="before and after">'
        f'<div class="tools">{"".join(choices)}<label>zoom <input type="range" name="zoom" min="1" max="8" step="0.5" value="1">'
        "<output>1×</output></label></div></div>"
    )


def _choice(label: str, entries: list[tuple[str, Path]]) -> str:
    options = "".join(f'<option value="{escape(url(path))}">{escape(name)}</option>' for name, path in entries)
    return f"<label>{label} <select>{options}</select></label>"


def maps(restoration: Restoration) -> str:
    """Where the samples of a sampler differ."""
    found = [(track.sampler, track.spread) for track in restoration.tracks.values() if track.spread is not None]
    if not found:
        return ""
    figures = "".join(
        f'<figure><img src="{escape(url(path))}" alt="spread of {escape(name)}"><figcaption>{escape(name)}</figcaption></figure>'
        for name, path in found
    )
    return (
        f'<p class="quiet">Standard deviation over the samples: black is 0, bright where they differ.</p>'
        f'<div class="maps">{figures}</div>'
    )
