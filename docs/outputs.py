"""What the code of the pages prints and draws: run once, kept in docs/outputs, shown below each block.

python docs/outputs.py --changed             # the pages whose code has changed since (or was never run)
python docs/outputs.py learn/01-noise.md     # these pages, changed or not
python docs/outputs.py --list                # which pages are out of date
python docs/outputs.py --all                 # everything again: after a change that alters what the code gives

A page's Python and console blocks are run in order, in one namespace and one folder that is thrown away. What a block
printed and the pictures that it wrote stand in `docs/outputs/PAGE.json` under a key made of its code and of all code
above it, so an output is shown only where the code that gave it stands unchanged. Seconds are left out: they are this
machine's. Above a block a comment may say

    <!-- not run: why -->       it is shown only
    <!-- shows: alt text -->    what its pictures show, for those who cannot see them
    <!-- not shown: why -->     it is run, and its output left out
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import re
import shlex
import sys
import tempfile
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

DOCS = Path(__file__).resolve().parent
STORE = DOCS / "outputs"
FOLDERS = (
    "start",
    "learn",
    "howto",
    "gallery",
    "samplers",
    "operators",
    "metrics",
)
COLUMNS = 80  # of the terminal that console blocks believe in
LONG = 25  # lines; longer outputs are folded
SHOWN = 4  # pictures of one block; the rest is counted
WIDEST = 900  # pixels of a kept picture
LARGEST = 300_000  # bytes of a kept animation

_FENCE = re.compile(
    r"^(?P<indent>[ \t]*)```(?P<language>\w+)(?: title=\"(?P<file>[\w.-]+)\")?[ \t]*\n(?P<body>.*?)^(?P=indent)```[ \t]*$",
    re.MULTILINE | re.DOTALL,
)
_MARK = re.compile(r"<!-- (not run|not shown|shows): ([^>]+?) -->\s*\Z")


# ---- the code of a page -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """A fenced block of a page that does something, or that a `not run` comment keeps from it.

    Attributes:
        kind: "python", "console", or "file" (a block with a title, written under that name).
        text: the code, without the page's indentation.
        start: where the block starts in the page.
        end: where it ends.
        line: how many lines of the page are above its first.
        indent: what every line of it starts with.
        marks: what the comment above says, by "not run", "not shown" or "shows".
        name: of the file.
        language: as the fence has it.
    """

    kind: str
    text: str
    start: int = 0
    end: int = 0
    line: int = 0
    indent: str = ""
    marks: dict[str, str] = field(default_factory=dict)
    name: str = ""
    language: str = "python"

    @property
    def run(self) -> bool:
        return "not run" not in self.marks


def blocks(text: str) -> list[Block]:
    """The blocks of a page's Markdown that are Python, console, or a file with a name."""
    found = []
    for match in _FENCE.finditer(text):
        kind = "file" if match["file"] else match["language"]
        if kind not in ("python", "console", "file"):
            continue
        marks, above = {}, text[: match.start()]
        while mark := _MARK.search(above):
            marks[mark[1]] = mark[2]
            above = above[: mark.start()]
        found.append(
            Block(
                kind,
                textwrap.dedent(match["body"]),
                match.start(),
                match.end(),
                text.count("\n", 0, match.start("body")),
                match["indent"],
                marks,
                match["file"] or "",
                match["language"],
            )
        )
    return found


def keys(found: Sequence[Block]) -> list[str]:
    """Of every block: a hash of its code and of all that ran before it; "" for what is not run."""
    seen, all_keys = hashlib.sha256(), []
    for block in found:
        if not block.run:
            all_keys.append("")
            continue
        seen.update(
            f"{block.kind}\0{block.name}\0{block.text.strip()}\0".encode()
        )
        all_keys.append(seen.copy().hexdigest()[:16])
    return all_keys


def pages() -> list[str]:
    """The pages whose code is run, as paths within docs/."""
    found = [p for f in FOLDERS for p in sorted((DOCS / f).rglob("*.md"))]
    names = ["index.md", *(p.relative_to(DOCS).as_posix() for p in found)]
    return [n for n in names if any(b.run for b in blocks(read(n)))]


def read(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


# ---- running it -------------------------------------------------------------------------------------------------


@dataclass
class Output:
    """What a block gave: text, and pictures as (name, PIL image or bytes of an animation)."""

    text: str = ""
    pictures: list[tuple[str, Any]] = field(default_factory=list)


def run(
    found: Sequence[Block], folder: Path, source: str = "page"
) -> Iterator[tuple[Block, Output]]:
    """Run blocks in order, in `folder` (which becomes the working directory), and give what each of them showed.

    An error of a block is raised as it is; its traceback names `source` and the line there.
    """
    module = ModuleType("page_of_the_documentation")
    with _in_folder(folder, module):
        for block in found:
            if not block.run:
                continue
            if block.kind == "file":
                (folder / block.name).write_text(block.text, encoding="utf-8")
                continue
            before, printed = _hashes(folder), io.StringIO()
            with (
                warnings.catch_warnings(record=True) as caught,
                contextlib.redirect_stdout(printed),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                warnings.simplefilter("always")
                if block.kind == "console":
                    commands(block.text)
                else:
                    code = "\n" * block.line + block.text
                    exec(compile(code, source, "exec"), module.__dict__)
            text = _notes(caught, block.kind) + printed.getvalue()
            yield (
                block,
                Output(
                    clean(text, folder), _pictures(folder, before) + _figures()
                ),
            )


@contextlib.contextmanager
def _in_folder(folder: Path, module: ModuleType) -> Iterator[None]:
    """The folder is where we are and where modules are looked for; the module is known, since dataclasses look names up in it."""
    here, variables, path = Path.cwd(), dict(os.environ), list(sys.path)
    os.chdir(folder)
    os.environ |= {"COLUMNS": str(COLUMNS), "MPLBACKEND": "Agg", "TERM": "dumb"}
    sys.path.insert(0, str(folder))
    sys.modules[module.__name__] = module
    try:
        import torch

        torch.manual_seed(0)
        yield
    finally:
        os.chdir(here)
        os.environ.clear()
        os.environ.update(variables)
        sys.path[:] = path
        del sys.modules[module.__name__]


def commands(text: str) -> None:
    """The lines of a console block that are commands of ours, run as the command line would."""
    from typer.testing import CliRunner

    from invdiff.cli import app
    from invdiff.cli.terminal import console, errors, imports_first

    for line in text.replace("\\\n", " ").splitlines():
        words = (
            shlex.split(line.removeprefix("$ "), comments=True)
            if line.startswith("$ ")
            else []
        )
        if words[:1] != ["invdiff"]:
            continue
        console.width = errors.width = COLUMNS
        result = CliRunner().invoke(
            app, imports_first(words[1:]), prog_name="invdiff"
        )
        if result.exit_code:
            raise RuntimeError(f"{line}\n{result.output}\n{result.exception!r}")
        print(result.stdout, end="")


def _notes(caught: Sequence[warnings.WarningMessage], kind: str) -> str:
    """The library's own warnings, each once, as the reader will see them; those of other packages come and go with versions."""
    from invdiff.errors import InvdiffWarning

    ours = dict.fromkeys(
        str(w.message) for w in caught if issubclass(w.category, InvdiffWarning)
    )
    start = "note" if kind == "console" else "InvdiffWarning"
    wrapped = (
        textwrap.fill(f"{start}: {message}", COLUMNS, subsequent_indent="  ")
        for message in ours
    )
    return "".join(f"{one}\n" for one in wrapped)


_TIME = re.compile(
    r"(?<![\w.])\d[\d.,]*(?:e-\d+)?(?=\s?(?:s|ms|seconds?|min|minutes?|h|hours?)(?![\w/]))"
)


def clean(text: str, folder: Path) -> str:
    """Printed text without colours, without what a progress bar overwrote, without the folder's name and without seconds."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    text = text.replace(f"{folder}{os.sep}", "").replace(str(folder), ".")
    lines = [
        line.rsplit("\r", 1)[-1].rstrip()
        for line in text.replace("\r\n", "\n").split("\n")
    ]
    return _TIME.sub("…", "\n".join(lines).strip("\n"))


def words(text: str) -> str:
    """`text` without its numbers, precisions and spacing: what two machines must agree on."""
    text = re.sub(r"\bb?float(?:16|32)\b", "#", text)
    text = re.sub(
        r"[-+]?\b\d[\d.,]*(?:e[-+]?\d+)?|\b(?:nan|inf)\b|…", "#", text
    )
    return " ".join(re.sub(r"[─━┄╌-]{2,}", "-", text).split())


def _images(folder: Path) -> Iterator[Path]:
    for depth in ("*", "*/*"):
        yield from (
            f
            for f in sorted(folder.glob(depth))
            if f.suffix.lower() in (".png", ".jpg", ".jpeg", ".gif", ".webp")
        )


def _hashes(folder: Path) -> dict[Path, str]:
    return {
        f: hashlib.sha256(f.read_bytes()).hexdigest() for f in _images(folder)
    }


def _pictures(folder: Path, before: dict[Path, str]) -> list[tuple[str, Any]]:
    """The pictures in `folder` that were not there or were others, in the order in which they were written."""
    from PIL import Image

    new = [
        f for f, content in _hashes(folder).items() if before.get(f) != content
    ]
    pictures = []
    for file in sorted(new, key=lambda f: f.stat().st_mtime_ns):
        with Image.open(file) as image:
            moving = getattr(image, "is_animated", False)
            pictures.append(
                (
                    file.relative_to(folder).as_posix(),
                    file.read_bytes() if moving else image.copy(),
                )
            )
    return pictures


def _figures() -> list[tuple[str, Any]]:
    """The open figures of pyplot that the block didn't save; they are closed, as a notebook does."""
    if "matplotlib.pyplot" not in sys.modules:
        return []
    from matplotlib import pyplot
    from PIL import Image

    drawn = []
    for number in pyplot.get_fignums():
        buffer = io.BytesIO()
        pyplot.figure(number).savefig(buffer, format="png", dpi=110)
        drawn.append((f"figure-{number}.png", Image.open(buffer)))
    pyplot.close("all")
    return drawn


# ---- keeping it -------------------------------------------------------------------------------------------------


def store(page: str) -> Path:
    return (STORE / page).with_suffix(".json")


def kept(page: str) -> dict[str, dict[str, Any]]:
    """What is kept of a page, by key."""
    file = store(page)
    return (
        json.loads(file.read_text(encoding="utf-8"))["blocks"]
        if file.is_file()
        else {}
    )


def changed(page: str) -> bool:
    """Whether some block of the page has not been run as it stands."""
    return not {k for k in keys(blocks(read(page))) if k} <= set(kept(page))


def capture(page: str, runs: Callable[..., Any] = run) -> None:
    """Run a page, by `run` or something that does as it does, and keep what it shows."""
    text = read(page)
    found = blocks(text)
    with tempfile.TemporaryDirectory() as folder:
        shown = dict(_by_start(runs(found, Path(folder).resolve(), page)))
        for old in store(page).parent.glob(f"{store(page).stem}-[0-9][0-9]-*"):
            old.unlink()
        entries = {}
        for number, (block, key) in enumerate(
            zip(found, keys(found), strict=True), 1
        ):
            output = shown.get(block.start, Output())
            if not block.run:
                continue
            entries[key] = {"text": output.text}
            if output.pictures and "not shown" not in block.marks:
                entries[key]["pictures"] = [
                    _keep(page, number, *one) for one in output.pictures[:SHOWN]
                ]
                if len(output.pictures) > SHOWN:
                    entries[key]["more"] = [
                        name for name, _ in output.pictures[SHOWN:]
                    ]
    content = {"made_by": f"python docs/outputs.py {page}", "blocks": entries}
    store(page).parent.mkdir(parents=True, exist_ok=True)
    store(page).write_text(
        json.dumps(content, indent=1, ensure_ascii=False) + "\n",
        encoding="utf-8",
    )


def _by_start(
    results: Iterator[tuple[Block, Output]],
) -> Iterator[tuple[int, Output]]:
    return ((block.start, output) for block, output in results)


def _keep(page: str, number: int, name: str, picture: Any) -> dict[str, Any]:
    """Write a picture small, as `PAGE-NUMBER-NAME`; small originals are shown enlarged, pixel by pixel."""
    from PIL import Image

    stem = f"{store(page).stem}-{number:02d}-{re.sub(r'[^a-z0-9]+', '-', Path(name).stem.lower())}"
    folder = store(page).parent
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(picture, bytes):
        file = folder / f"{stem}.gif"
        file.write_bytes(as_small_animation(picture))
        size = Image.open(file).size
    else:
        file = folder / f"{stem}.png"
        picture = as_small(picture)
        size = picture.size
        picture.save(file, optimize=True)
        if file.stat().st_size > 40_000 and picture.mode != "RGBA":
            file.unlink()
            file = file.with_suffix(".jpg")
            picture.save(file, quality=88, optimize=True)
    enlarge = max(1, min(3, 640 // size[0], 400 // size[1]))
    return {
        "name": name,
        "file": file.name,
        "width": size[0] * enlarge,
        "pixels": enlarge > 1,
    }


def as_small_animation(content: bytes) -> bytes:
    """A GIF in fewer colours, then with every second frame, then at half its size, until it is small: noise packs badly."""
    from PIL import Image, ImageSequence

    for step, shrink in ((1, 1), (2, 1), (2, 2)):
        if len(content) <= LARGEST:
            break
        with Image.open(io.BytesIO(content)) as moving:
            frames = [f.convert("RGB") for f in ImageSequence.Iterator(moving)]
            wait = moving.info.get("duration", 100)
        few = [
            f.reduce(shrink).quantize(64, dither=Image.Dither.NONE)
            for f in frames[::step]
        ]
        buffer = io.BytesIO()
        few[0].save(
            buffer,
            "GIF",
            save_all=True,
            append_images=few[1:],
            duration=wait * step,
            loop=0,
        )
        content = (
            buffer.getvalue()
            if len(buffer.getvalue()) < len(content)
            else content
        )
    return content


def as_small(picture: Any) -> Any:
    """The picture in the size in which it was computed (`save_grid` repeats every pixel), and no wider than a page."""
    import numpy as np
    from PIL import Image

    picture = (
        picture
        if picture.mode in ("L", "RGB", "RGBA")
        else picture.convert("RGB")
    )
    if picture.mode == "RGBA" and picture.getextrema()[3][0] == 255:
        picture = picture.convert("RGB")
    pixels = np.asarray(picture)
    for zoom in (8, 6, 5, 4, 3, 2):
        if not (picture.width % zoom or picture.height % zoom):
            few = pixels[::zoom, ::zoom]
            if np.array_equal(few.repeat(zoom, 0).repeat(zoom, 1), pixels):
                return Image.fromarray(few)
    if picture.width <= WIDEST:
        return picture
    return picture.resize(
        (WIDEST, round(picture.height * WIDEST / picture.width)),
        Image.Resampling.LANCZOS,
    )


# ---- showing it -------------------------------------------------------------------------------------------------


def with_outputs(text: str, page: str) -> str:
    """The Markdown of a page with what its blocks gave below each of them."""
    known, parts, at = kept(page), [], 0
    found = blocks(text)
    for block, key in zip(found, keys(found), strict=True):
        parts.append(text[at : block.end])
        at = block.end
        if key in known and "not shown" not in block.marks:
            parts.append(
                textwrap.indent(shown(known[key], block, page), block.indent)
            )
    return "".join([*parts, text[at:]])


def shown(entry: dict[str, Any], block: Block, page: str) -> str:
    """An output as Markdown, to stand right below its block."""
    parts, text = [], entry["text"]
    if text:
        fence = f"```{{ .text .output .no-copy }}\n{text}\n```"
        if text.count("\n") >= LONG:
            title = f"What this prints ({text.count(chr(10)) + 1} lines)"
            fence = f'??? output "{title}"\n{textwrap.indent(fence, "    ")}'
        parts.append(fence)
    up = "../" * page.count("/")
    pictures = []
    for picture in entry.get("pictures", ()):
        where = (
            f"{up}outputs/{page.rpartition('/')[0]}/".replace("//", "/")
            + picture["file"]
        )
        look = ".output .pixels" if picture["pixels"] else ".output"
        pictures.append(
            f"![{alt(picture, block)}]({where}){{ {look} width={picture['width']} loading=lazy }}"
        )
    if pictures:
        parts.append("\n".join(pictures))
    if entry.get("more"):
        parts.append("and " + ", ".join(f"`{name}`" for name in entry["more"]))
    return "".join(f"\n\n{part}" for part in parts) + "\n" if parts else ""


def alt(picture: dict[str, Any], block: Block) -> str:
    """What a picture shows, in words: those of the page where it has some."""
    name = picture["name"]
    return block.marks.get("shows") or f"{name}, which the code above makes"


# ---- from the command line --------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "pages",
        nargs="*",
        help="paths within docs/, such as learn/01-noise.md, or folders",
    )
    parser.add_argument(
        "--changed",
        action="store_true",
        help="only those whose code has changed",
    )
    parser.add_argument(
        "--all", action="store_true", help="every page, changed or not"
    )
    parser.add_argument(
        "--list",
        action="store_true",
        help="name the pages whose code has changed, and stop",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=float("inf"),
        help="start no further page after so many",
    )
    arguments = parser.parse_args()
    chosen = [
        p
        for p in pages()
        if not arguments.pages
        or any(p == a or p.startswith(f"{a}/") for a in arguments.pages)
    ]
    named = arguments.pages or arguments.all
    if arguments.changed or arguments.list or not named:
        chosen = [p for p in chosen if changed(p)]
    if arguments.list:
        print("\n".join(chosen) or "every output is that of the code above it")
        return 0
    _forget_pages_that_are_gone()
    import invdiff.cli  # noqa: F401  (once, before the fork)

    start, failed = time.monotonic(), []
    for page in chosen:
        if time.monotonic() - start > arguments.seconds:
            print("more is left")
            break
        begun = time.monotonic()
        child = multiprocessing.get_context(
            "fork" if hasattr(os, "fork") else "spawn"
        ).Process(target=capture, args=(page,))
        child.start()
        child.join()
        failed += [page] if child.exitcode else []
        print(
            f"{page}: {'FAILED' if child.exitcode else 'done'} in {time.monotonic() - begun:.0f} s",
            flush=True,
        )
    return 1 if failed else 0


def _forget_pages_that_are_gone() -> None:
    """Remove what is kept of pages that have no code any more."""
    known = {store(p) for p in pages()}
    for file in STORE.rglob("*.json"):
        if file not in known:
            for old in (*file.parent.glob(f"{file.stem}-[0-9][0-9]-*"), file):
                old.unlink()


if __name__ == "__main__":
    sys.exit(main())
