"""The pages as Jupyter notebooks: the same words, the same code, and the outputs that are kept in docs/outputs.

python docs/notebooks.py FOLDER     # writes them all there; a build of the pages puts them beside each page

A notebook is made from the page's Markdown, so there is no second copy to keep: formulas become `$...$`, admonitions
become paragraphs, figures are attached, a console line becomes `!invdiff ...`, a file `%%writefile`. Pictures that a
block writes are shown by a cell of their own, so that they come back when the notebook is run again.
"""

from __future__ import annotations

import base64
import io
import posixpath
import re
import sys
import textwrap
import zipfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from outputs import DOCS, Block, alt, blocks, kept, keys, pages, read, store

FOLDERS = ("start/", "learn/", "howto/", "gallery/")
LARGEST = 400_000  # bytes of an attached picture; a larger animation stays on the page

SHOW = '''from pathlib import Path


def show(*files):
    """Show pictures that the cell above has written."""
    try:
        get_ipython()
    except NameError:  # run as a plain script
        return
    from IPython.display import Image, display

    for file in files:
        display(Image(Path(file).read_bytes()))
'''

Expand = Callable[[str, str], str]


@cache
def notebook_pages() -> list[str]:
    """The pages that can be had as notebooks: what one reads in order to do it."""
    return [page for page in pages() if page.startswith(FOLDERS)]


def path(page: str) -> str:
    return page.removesuffix(".md") + ".ipynb"


def notebook(page: str, expand: Expand) -> Any:
    """The notebook of a page; `expand` replaces the macros of a piece of Markdown."""
    from nbformat import v4

    text = re.sub(r"\A---\n.*?\n---\n", "", read(page), flags=re.DOTALL)
    found, entries = blocks(text), kept(page)
    parts, at = [], 0
    for number, block in enumerate(found):
        parts += [text[at : block.start], f"{block.indent}\0{number}\0"]
        at = block.end
    prose = plain(expand("".join([*parts, text[at:]]), page))
    needs = "*Needs `pip install invdiff`, or `pip install -e .` in the folder of its source; nothing is downloaded.*"
    prose = re.sub(r"\A\s*(# .*\n)", lambda m: f"{m[1]}\n{needs}\n", prose)
    cells: list[Any] = []
    all_keys = keys(found)
    for piece in re.split(
        r"^[ \t]*(\0\d+\0)[ \t]*$", prose, flags=re.MULTILINE
    ):
        if match := re.fullmatch(r"\0(\d+)\0", piece):
            number = int(match[1])
            cells += code_cells(
                found[number], entries.get(all_keys[number], {}), page
            )
        elif piece.strip():
            cells.append(markdown_cell(piece.strip(), page))
    if any(c.source.startswith("show(") for c in cells):
        at = next(i for i, c in enumerate(cells) if c.cell_type == "code")
        cells.insert(at, v4.new_code_cell(SHOW.strip(), execution_count=None))
    for count, cell in enumerate(
        (c for c in cells if c.cell_type == "code"), 1
    ):
        cell.execution_count = count
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"
    kernel = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    return v4.new_notebook(
        cells=cells,
        metadata={"kernelspec": kernel, "language_info": {"name": "python"}},
    )


def code_cells(block: Block, entry: dict[str, Any], page: str) -> list[Any]:
    """A block as cells: its code with what it printed, and the pictures it wrote."""
    from nbformat import v4

    ours = runnable(block)
    if not block.run or not ours:
        why = (
            f"(Not run here: {block.marks['not run']}.)\n\n"
            if not block.run
            else ""
        )
        return [
            v4.new_markdown_cell(
                f"{why}```{block.language}\n{block.text.rstrip()}\n```"
            )
        ]
    cell = v4.new_code_cell(ours)
    if "not shown" in block.marks:
        return [cell]
    if entry.get("text"):
        cell.outputs = [
            v4.new_output("stream", name="stdout", text=entry["text"] + "\n")
        ]
    if not entry.get("pictures"):
        return [cell]
    names = [one["name"] for one in entry["pictures"]]
    drawn = [display(one, block, page) for one in entry["pictures"]]
    if any(
        re.fullmatch(r"figure-\d+\.png", name) for name in names
    ):  # of pyplot, which shows them itself
        cell.outputs += drawn
        return [cell]
    return [
        cell,
        v4.new_code_cell(
            f"show({', '.join(map(repr, names))})".replace("'", '"'),
            outputs=drawn,
        ),
    ]


def runnable(block: Block) -> str:
    """The source of a code cell, or nothing where a notebook can't do it."""
    if block.kind == "file":
        return f"%%writefile {block.name}\n{block.text.rstrip()}"
    if block.kind == "python":
        return block.text.rstrip()
    lines = [
        line.removeprefix("$ ")
        for line in block.text.replace("\\\n", " ").splitlines()
        if line.startswith("$ invdiff ")
    ]
    return "\n".join(f"!{line}" for line in lines)


def display(picture: dict[str, Any], block: Block, page: str) -> Any:
    from nbformat import v4

    kind = {".png": "image/png", ".jpg": "image/jpeg", ".gif": "image/gif"}[
        Path(picture["file"]).suffix
    ]
    content = (store(page).parent / picture["file"]).read_bytes()
    data = {
        kind: base64.b64encode(content).decode(),
        "text/plain": alt(picture, block),
    }
    return v4.new_output(
        "display_data", data=data, metadata={kind: {"width": picture["width"]}}
    )


def code_of(book: Any) -> list[Block]:
    """The code cells of a notebook as blocks that `outputs.run` runs, with the cell's number as the line."""
    found = []
    for number, cell in enumerate(book.cells):
        if cell.cell_type != "code":
            continue
        kind, text, name = "python", cell.source, ""
        if text.startswith("%%writefile "):
            head, _, text = text.partition("\n")
            kind, name = "file", head.split()[1]
        elif text.startswith("!"):
            kind, text = (
                "console",
                re.sub(r"^!", "$ ", text, flags=re.MULTILINE),
            )
        found.append(
            Block(kind, text + "\n", start=number, line=number, name=name)
        )
    return found


# ---- words ------------------------------------------------------------------------------------------------------


def plain(text: str) -> str:
    """Markdown that any notebook viewer reads: without admonitions, attribute lists, tabs and HTML of the theme."""
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = unfold(text)
    text = re.sub(r"<figcaption[^>]*>(.*?)</figcaption>", r"*\1*", text)
    text = re.sub(
        r"^[ \t]*</?(?:div|figure)[^>]*>[ \t]*$", "", text, flags=re.MULTILINE
    )
    pieces = re.split(
        r"(^[ \t]*```.*?^[ \t]*```[ \t]*$|`[^`\n]*`)",
        text,
        flags=re.MULTILINE | re.DOTALL,
    )
    for i in range(0, len(pieces), 2):
        pieces[i] = re.sub(
            r"\\\[\s*(.*?)\s*\\\]", r"$$\1$$", pieces[i], flags=re.DOTALL
        )
        pieces[i] = re.sub(
            r"\\\((.*?)\\\)", r"$\1$", pieces[i], flags=re.DOTALL
        )
        pieces[i] = re.sub(
            r"(?<=\))\{[ :][^}\n]*\}|[ \t]+\{:?[ ]?#[\w-]+[ ]?\}(?=\n)",
            "",
            pieces[i],
        )
    return re.sub(r"\n{3,}", "\n\n", "".join(pieces))


_FOLD = re.compile(
    r"^(?P<indent>[ \t]*)(?:!!!|\?\?\?\+?|===)(?: (?P<kind>\w+))?(?: \"(?P<title>.*)\")?[ \t]*$"
)


def unfold(text: str) -> str:
    """Admonitions, folds and tabs become a bold title and what they hold, unindented."""
    lines, made, deep = text.split("\n"), [], []
    for line in lines:
        inside = len(line) - len(line.lstrip(" "))
        while deep and line.strip() and inside < deep[-1]:
            deep.pop()
        line = line[deep[-1] :] if deep and line.strip() else line
        if match := _FOLD.match(line):
            deep.append((deep[-1] if deep else 0) + len(match["indent"]) + 4)
            made += [
                f"**{match['title'] or (match['kind'] or '').capitalize()}**",
                "",
            ]
        else:
            made.append(line)
    return "\n".join(made)


def markdown_cell(text: str, page: str) -> Any:
    """A cell with its pictures attached and its links to other pages turned into links to their notebooks."""
    from nbformat import v4

    attachments: dict[str, dict[str, str]] = {}
    known = set(notebook_pages())
    here = posixpath.dirname(page)

    def image(match: re.Match[str]) -> str:
        file = DOCS / posixpath.normpath(posixpath.join(here, match[2]))
        content, kind = small(file)
        attachments[file.name] = {kind: base64.b64encode(content).decode()}
        return f"![{match[1]}](attachment:{file.name})"

    def link(match: re.Match[str]) -> str:
        where = match[2].partition("#")[0]
        if re.match(r"https?:|mailto:", match[2]):
            return match[0]
        target = (
            posixpath.normpath(posixpath.join(here, where)) if where else page
        )
        if not where or target not in known:
            return match[1]
        return f"[{match[1]}]({path(where)})"

    text = re.sub(r"!\[([^\]]*)\]\(([^)\s]+)\)", image, text)
    text = re.sub(
        r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)", link, text
    )
    return v4.new_markdown_cell(
        text, **({"attachments": attachments} if attachments else {})
    )


def small(file: Path) -> tuple[bytes, str]:
    """A picture of the pages for a notebook; of a large animation its last frame."""
    kind = {
        ".png": "image/png",
        ".jpg": "image/jpeg",
        ".gif": "image/gif",
        ".svg": "image/svg+xml",
    }[file.suffix]
    if file.suffix != ".gif" or file.stat().st_size <= LARGEST:
        return file.read_bytes(), kind
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(file) as moving:
        moving.seek(getattr(moving, "n_frames", 1) - 1)
        moving.convert("RGB").save(buffer, "JPEG", quality=88)
    return buffer.getvalue(), "image/jpeg"


# ---- files ------------------------------------------------------------------------------------------------------


def written(page: str, expand: Expand) -> str:
    """The notebook of a page as the text of its file."""
    import nbformat

    book = notebook(page, expand)
    nbformat.validate(book)
    return nbformat.writes(book) + "\n"


def index(chosen: Sequence[str]) -> str:
    """The table of contents that goes into the archive."""
    parts = ["# invdiff: the pages as notebooks\n"]
    for folder in FOLDERS:
        inside = [p for p in chosen if p.startswith(folder)]
        if inside:
            parts.append(f"\n## {folder.rstrip('/').capitalize()}\n")
            parts += [f"* [{title(p)}]({path(p)})" for p in inside]
    return "\n".join(parts) + "\n"


def title(page: str) -> str:
    found = re.search(r"^# (.+)$", read(page), re.MULTILINE)
    return found[1] if found else page


def archive(books: dict[str, str]) -> bytes:
    """All notebooks with an index, as a ZIP whose bytes depend on nothing else."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in {
            "README.md": index(list(books)),
            **{path(p): t for p, t in books.items()},
        }.items():
            file.writestr(
                zipfile.ZipInfo(
                    f"invdiff-notebooks/{name}", (2020, 1, 1, 0, 0, 0)
                ),
                content,
                zipfile.ZIP_DEFLATED,
            )
    return buffer.getvalue()


def main() -> int:
    if len(sys.argv) != 2:
        print(textwrap.dedent(__doc__ or ""))
        return 2
    from hooks import expand

    for page in notebook_pages():
        file = Path(sys.argv[1]) / path(page)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(written(page, expand), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
