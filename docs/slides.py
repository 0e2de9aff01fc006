"""The chapters as slides: headings, first sentences, formulas, figures, and code beside what it gave.

Made from the chapters' Markdown when the site is built, so that there is no second text to keep. The whole paragraphs are
the speaker's notes. One HTML file per chapter, with the KaTeX of the site and forty lines of script; nothing is fetched.
"""

from __future__ import annotations

import html
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from notebooks import Expand, plain, title
from outputs import DOCS, Block, alt, blocks, kept, keys, read

MOST = 5  # sentences and formulas on one slide


def chapters() -> list[str]:
    """The pages that have slides."""
    return [
        f"learn/{p.name}"
        for p in sorted((DOCS / "learn").glob("[0-9][0-9]-*.md"))
    ]


def path(page: str) -> str:
    return posixpath.join(
        posixpath.dirname(page),
        "slides",
        posixpath.basename(page).removesuffix(".md") + ".html",
    )


@dataclass
class Slide:
    heading: str
    parts: list[str] = field(default_factory=list)  # of HTML
    notes: list[str] = field(default_factory=list)  # paragraphs of Markdown
    count: int = 0
    kind: str = ""


# ---- what a chapter consists of ---------------------------------------------------------------------------------


def elements(text: str) -> Iterator[tuple[str, str]]:
    """A chapter in plain Markdown as (kind, text): "1" to "6" for headings, formula, figure, table, list, block, words."""
    fences = re.split(
        r"(^```.*?^```[ \t]*$)", text.strip(), flags=re.MULTILINE | re.DOTALL
    )
    pieces = [
        p
        for i, f in enumerate(fences)
        for p in ([f] if i % 2 else re.split(r"\n[ \t]*\n", f))
    ]
    for piece in (p.strip("\n") for p in pieces):
        if piece.startswith("```"):
            yield "code", piece
            continue
        if match := re.match(r"(#{1,6}) (.*)", piece):
            yield str(len(match[1])), match[2]
            piece = piece.partition("\n")[2]
        for part in re.split(
            r"(^[ \t]*\0\d+\0[ \t]*$|\$\$.*?\$\$)",
            piece,
            flags=re.MULTILINE | re.DOTALL,
        ):
            if not (part := part.strip()):
                continue
            if part.startswith("\0"):
                yield "block", part.strip("\0")
            elif part.startswith("$$"):
                yield "formula", part
            elif part.startswith("!["):
                yield "figure", part
            elif part.startswith("|"):
                yield "table", part
            elif re.match(r"([*-]|\d+\.) ", part):
                yield "list", part
            else:
                yield "words", part


def sentences(text: str) -> list[str]:
    """A paragraph cut after full stops that a capital, a formula or a code word follows."""
    return re.split(r"(?<=[.!?])\s+(?=[A-Z$`*(\[])", " ".join(text.split()))


def deck(page: str, expand: Expand) -> list[Slide]:
    """The slides of a chapter."""
    text = read(page)
    found = blocks(text)
    parts, at = [], 0
    for number, block in enumerate(found):
        parts += [text[at : block.start], f"{block.indent}\0{number}\0"]
        at = block.end
    prose = plain(expand("".join([*parts, text[at:]]), page))
    entries, all_keys = kept(page), keys(found)
    slides, answer, chapter, heading = [], False, "", ""
    items = list(elements(prose))
    for number, (kind, piece) in enumerate(items):
        after = items[number + 1][0] if number + 1 < len(items) else ""
        if kind.isdigit():
            chapter, heading, answer = chapter or piece, piece, False
            slides.append(Slide(piece, kind="title" if kind == "1" else ""))
            continue
        if piece.startswith("**Answer"):
            answer = True
        elif kind == "words" and re.match(r"\*\*\d+\.\*\*|Next: ", piece):
            answer = False
        if answer or piece.startswith(("Next: ", "Made by ")):
            if answer and kind == "words":
                slides[-1].notes.append(piece)
            continue
        if kind in ("figure", "block", "table", "code"):
            block = found[int(piece)] if kind == "block" else None
            entry = (
                entries.get(all_keys[int(piece)], {}) if kind == "block" else {}
            )
            if slides[-1].count > 2 or slides[-1].kind:
                slides.append(Slide(heading))
            slides[-1].kind = f"one {kind}"
            slides[-1].parts.append(one(kind, piece, page, block, entry))
            slides.append(Slide(heading))
            continue
        if slides[-1].count >= MOST:
            slides.append(Slide(heading))
        slide = slides[-1]
        if kind == "formula":
            slide.parts.append(f'<p class="formula">{html.escape(piece)}</p>')
        elif kind == "list":
            slide.parts.append(rendered(piece, page))
        else:
            said = sentences(piece)
            short = said[:1] + (
                said[-1:] if after == "formula" and len(said) > 1 else []
            )
            slide.parts.append(
                rendered(
                    " ".join(short) if not piece.startswith("**") else piece,
                    page,
                )
            )
            slide.notes.append(piece)
        slide.count += 1
    return joined(
        [slide for slide in slides if slide.parts or slide.kind == "title"]
    )


def joined(slides: list[Slide]) -> list[Slide]:
    """A single sentence that ends a section goes below the picture or the code before it."""
    made: list[Slide] = []
    for slide, after in zip(slides, [*slides[1:], None], strict=True):
        last = after is None or after.heading != slide.heading
        if (
            last
            and not slide.kind
            and slide.count == 1
            and made
            and made[-1].kind.startswith("one")
            and made[-1].heading == slide.heading
        ):
            made[-1].parts += slide.parts
            made[-1].notes += slide.notes
        else:
            made.append(slide)
    return made


# ---- as HTML ----------------------------------------------------------------------------------------------------


def one(
    kind: str, piece: str, page: str, block: Block | None, entry: dict[str, Any]
) -> str:
    """A figure, a table, or code with its output, for a slide of its own."""
    if block is None:
        if kind == "figure":
            image, _, caption = piece.partition("\n")
            drawn = rendered(
                f"{image}\n\n{sentences(caption.strip().strip('*'))[0]}", page
            )
            return f'<div class="drawn">{drawn}</div>'
        return rendered(piece, page)
    lines = block.text.count("\n")
    look = "short" if lines < 14 else "long" if lines > 28 else ""
    code = f'<pre class="code {look}"><code>{html.escape(block.text.rstrip())}</code></pre>'
    gave = (
        f'<pre class="gave">{html.escape(entry["text"])}</pre>'
        if entry.get("text")
        else ""
    )
    for picture in entry.get("pictures", ()):
        where = f"../../outputs/{posixpath.dirname(page)}/{picture['file']}"
        grain = ' class="pixels"' if picture["pixels"] else ""
        gave += f'<img src="{where}" alt="{html.escape(alt(picture, block))}" width="{picture["width"]}"{grain}>'
    beside = (
        " beside"
        if gave and max(map(len, block.text.splitlines())) < 68
        else ""
    )
    return (
        f'<div class="pair{beside}">{code}<div class="output">{gave}</div></div>'
        if gave
        else code
    )


def rendered(text: str, page: str) -> str:
    """Markdown as HTML; formulas go through untouched, links become plain words, pictures are found from the slides' folder."""
    import markdown

    formulas: list[str] = []

    def hide(match: re.Match[str]) -> str:
        formulas.append(match[0])
        return f"FORMULA{len(formulas) - 1}END"

    folder = posixpath.dirname(page)
    text = re.sub(
        r"!\[([^\]]*)\]\(([^)\s]+)\)",
        lambda m: (
            f"![{m[1]}](../../{posixpath.normpath(posixpath.join(folder, m[2]))})"
        ),
        text,
    )
    text = re.sub(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"\$\$.*?\$\$|\$[^$\n]+\$", hide, text, flags=re.DOTALL)
    made = markdown.markdown(
        text, extensions=["tables", "fenced_code", "sane_lists"]
    )
    return re.sub(
        r"FORMULA(\d+)END", lambda m: html.escape(formulas[int(m[1])]), made
    )


def written(page: str, expand: Expand) -> str:
    """The HTML file of a chapter's slides."""
    slides = deck(page, expand)
    body = []
    for number, slide in enumerate(slides, 1):
        head = "h1" if slide.kind == "title" else "h2"
        notes = "".join(rendered(note, page) for note in slide.notes)
        aside = f'<aside class="notes">{notes}</aside>' if notes else ""
        body.append(
            f'<section class="slide {slide.kind}" id="{number}"><div class="inner"><{head}>{rendered(slide.heading, page)[3:-4]}</{head}>\n'
            + "\n".join(slide.parts)
            + f'</div><footer>invdiff · <a href="../{posixpath.basename(page).removesuffix(".md")}/">the chapter</a> · {number} of {len(slides)}'
            + f"</footer>{aside}</section>"
        )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(re.sub(r"[$*`]", "", title(page)))}: slides</title>
<link rel="stylesheet" href="../../assets/katex/katex.min.css">
<link rel="stylesheet" href="../../assets/slides/slides.css">
</head>
<body>
{chr(10).join(body)}
<p id="keys">arrows, space or a tap: go · N: notes · F: whole screen · D: dark · P: print</p>
<script src="../../assets/katex/katex.min.js"></script>
<script src="../../assets/katex/auto-render.min.js"></script>
<script src="../../assets/slides/slides.js"></script>
</body>
</html>
"""
