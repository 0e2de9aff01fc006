"""Macros of the gallery: pictures, figures and cards of its pages, from `docs/data/gallery.json`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from invdiff.markdown import markdown_table
from measured import note, read_rows

DOCS = Path(__file__).resolve().parent


def gallery(name: str) -> str:
    """The picture of a page of the gallery, as `docs/figures/gallery.py` made it by running the page's own code."""
    if not (DOCS / "assets" / "gallery" / f"{name}.jpg").is_file():
        return note(
            f"This picture is made by `python docs/figures/gallery.py {name}`."
        )
    alt = f"{_title(name)}: damaged, classical, answer, truth"
    return f"![{alt}](%UP%assets/gallery/{name}.jpg)"


def gallery_figures(name: str) -> str:
    """What a page's methods are worth, and what its block cost."""
    row = _gallery_rows().get(name)
    if row is None:
        return note(
            f"These figures come from `python docs/figures/gallery.py {name}`."
        )
    if "error" in row["methods"][0]:
        head, align = ["", "error, standard deviations"], "lr"
        body = [[m["name"], f"{m['error']:.2f}"] for m in row["methods"]]
    else:
        head, align = ["", "PSNR, dB", "SSIM"], "lrr"
        body = [
            [m["name"], f"{m['psnr']:.1f}", f"{m['ssim']:.3f}"]
            for m in row["methods"]
        ]
    cost = f"The whole block took {row['seconds']:.0f} s of one processor core"
    if "sampler" in row:
        cost += (
            f": `{row['sampler']}` with `{row['backbone']}`, {row['calls']} network calls for each of "
            f"{row['n_samples']} samples, and the classical method"
        )
    return f"{markdown_table(head, body, align)}\n\n{cost}."


def gallery_grid(names: list[str]) -> str:
    """A card for every page: half damaged, half answered, with its title and its one line."""
    cards = [
        f'<a class="card" href="{name}/"><img src="%UP%assets/gallery/{name}-small.jpg" alt="" loading="lazy">'
        f"<strong>{_title(name)}</strong><span>{_one_line(name)}</span></a>"
        for name in names
    ]
    return '<div class="gallery">\n' + "\n".join(cards) + "\n</div>"


def gallery_table() -> str:
    """Every page's sample, mean and classical figure, and its time."""
    body = []
    for name, row in _gallery_rows().items():
        unit = "error" if "error" in row["methods"][0] else "psnr"
        worth = [
            f"{m[unit]:.2f}" if unit == "error" else f"{m[unit]:.1f} dB"
            for m in row["methods"]
        ]
        sample, mean, *_ = worth if unit == "psnr" else worth[1::-1]
        rival = (min if unit == "error" else max)(
            row["methods"][2:], key=lambda m: m[unit]
        )
        classical = (
            f"{rival[unit]:.2f}" if unit == "error" else f"{rival[unit]:.1f} dB"
        )
        body.append(
            [
                f"[{_title(name)}]({name}.md)",
                sample,
                mean,
                f"{classical} ({rival['name']})",
                f"{row['seconds']:.0f} s",
            ]
        )
    head = ["", "one sample", "mean of several", "classical", "processor time"]
    return markdown_table(head, body, "lrrlr")


def gallery_ahead() -> str:
    """On how many pages the mean of the samples is nearer to the truth than the classical method."""
    rows = [r for r in _gallery_rows().values() if "psnr" in r["methods"][0]]
    mean = sum(r["methods"][1]["psnr"] > r["methods"][-1]["psnr"] for r in rows)
    one = sum(r["methods"][0]["psnr"] > r["methods"][-1]["psnr"] for r in rows)
    return (
        f"Of the {len(rows)} pictures, the mean is nearer to the truth than the classical method on {mean}, "
        f"a single sample on {one}."
    )


def _gallery_rows() -> dict[str, dict[str, Any]]:
    return {row["page"]: row for row in read_rows("gallery") or []}


def _title(name: str) -> str:
    text = (DOCS / "gallery" / f"{name}.md").read_text(encoding="utf-8")
    return text.splitlines()[0].removeprefix("# ")


def _one_line(name: str) -> str:
    text = (DOCS / "gallery" / f"{name}.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- in one line: (.*?) -->", text)
    return found[1] if found else ""


MACROS = (
    gallery,
    gallery_figures,
    gallery_grid,
    gallery_table,
    gallery_ahead,
)
