"""What the pages read off the code and the data: `{{ options("repaint") }}` on a line of its own becomes a table.

A macro is a function of this file whose name stands in `MACROS`; its arguments are Python literals. Whatever a macro needs
that is not there yet (a model card, a table of results) becomes a note that says how it is made, never an error.
"""

from __future__ import annotations

import ast
import csv
import dataclasses
import importlib
import inspect
import json
import math
import pkgutil
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import notebooks
import slides
from invdiff.markdown import markdown_table
from outputs import with_outputs

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
DATA = DOCS / "data"

_CALL = re.compile(
    r"^(?P<indent>[ \t]*)\{\{ (?P<call>(?P<name>[a-z_]+)\(.*\)) \}\}[ \t]*$",
    re.MULTILINE,
)


# the same within a line of prose, for numbers
_INLINE = re.compile(r"\{\{= (?P<call>(?P<name>[a-z_]+)\(.*?\)) \}\}")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """mkdocs calls this with every page before it is rendered."""
    source = page.file.src_uri
    page.meta.setdefault("search", {}).setdefault("boost", boost(source))
    made = expand(with_outputs(markdown, source), source)
    if source in notebooks.notebook_pages():
        name = notebooks.path(source).rpartition("/")[2]
        link = f"[Download as notebook]({name}){{ .notebook download={name} data-search-exclude=1 }}"
        if source in slides.chapters():
            deck = slides.path(source).removeprefix("learn/")
            link += f" [Slides]({deck}){{ .notebook data-search-exclude=1 }}"
        made = re.sub(
            r"^# .*$",
            lambda m: f"{m[0]}\n\n{link}",
            made,
            count=1,
            flags=re.MULTILINE,
        )
    return made


# What a searcher means by a word is more often something to do than a class of that name.
BOOSTS = {
    "start/": 3.0,
    "howto/": 3.0,
    "gallery/": 1.2,
    "benchmarks/": 3.0,
    "learn/": 1.2,
    "results/": 0.4,
    "api/": 0.3,
    "changelog": 0.2,
}


def boost(source: str) -> float:
    """How much a page's words count in the search."""
    return next(
        (b for folder, b in BOOSTS.items() if source.startswith(folder)), 1.0
    )


def on_files(files: Any, config: Any, **_: Any) -> Any:
    """mkdocs calls this with the files of the site: the notebooks, their archive and the slides join them."""
    from mkdocs.structure.files import File

    books = {
        p: notebooks.written(p, expand) for p in notebooks.notebook_pages()
    }
    made = {notebooks.path(p): text for p, text in books.items()}
    made["learn/notebooks.zip"] = notebooks.archive(books)
    made |= {
        slides.path(p): slides.written(p, expand) for p in slides.chapters()
    }
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    return files


def expand(markdown: str, source: str = "") -> str:
    """`markdown` with every macro replaced by its text; `source` is the page's path within docs/."""
    up = "../" * source.count("/")

    def called(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in MACROS:
            raise KeyError(
                f"unknown macro {name!r}; one of {', '.join(MACROS)}"
            )
        call = ast.parse(match["call"], mode="eval").body
        assert isinstance(call, ast.Call)
        positional = [ast.literal_eval(a) for a in call.args]
        named = {
            k.arg: ast.literal_eval(k.value) for k in call.keywords if k.arg
        }
        return MACROS[name](*positional, **named).replace("%UP%", up)

    def block(match: re.Match[str]) -> str:
        return textwrap.indent(called(match), match["indent"])

    return _INLINE.sub(called, _CALL.sub(block, markdown))


# ---- parts ------------------------------------------------------------------------------------------------------


def note(text: str) -> str:
    return f'!!! note "Not here yet"\n    {text}'


def _first_line(thing: Any) -> str:
    return _plain_ticks(
        (inspect.getdoc(thing) or "").split("\n\n")[0].replace("\n", " ")
    )


def _plain_ticks(text: str) -> str:
    return re.sub(r"``([^`]*)``", r"`\1`", text)


# ---- samplers ---------------------------------------------------------------------------------------------------


def options(name: str) -> str:
    """The fields of a sampler, as its dataclass has them."""
    from invdiff.samplers import sampler_class

    rows = []
    for field in dataclasses.fields(sampler_class(name)):
        meta = field.metadata
        accepted = (
            ", ".join(f"`{c}`" for c in meta["choices"])
            if meta["choices"]
            else _range(meta)
        )
        rows.append(
            [
                f"`{field.name}`",
                f"`{field.default!r}`",
                accepted,
                _plain_ticks(meta["help"]),
            ]
        )
    return markdown_table(
        ["option", "default", "accepted", "what it does"], rows
    )


def _range(meta: Any) -> str:
    low, high = meta["low"], meta["high"]
    if low is None and high is None:
        return ""
    return f"{low:g} to {high:g}" if high is not None else f"{low:g} or more"


def presets(name: str) -> str:
    """What each preset sets for a task, where it is not the default."""
    from invdiff.samplers.presets import PRESETS
    from invdiff.samplers.presets import rows as rows_of

    table = []
    for preset in PRESETS:
        for row in rows_of(preset):
            if row.sampler == name:
                noise = {
                    None: "any",
                    True: "sigma_y > 0",
                    False: "sigma_y = 0",
                }[row.noisy]
                values = ", ".join(
                    f"`{k}={v!r}`" for k, v in row.settings.items()
                )
                unless = (
                    f"; not where {' or '.join(f'`{n}`' for n in row.unless)} is given"
                    if row.unless
                    else ""
                )
                if row.most_steps:
                    noise += f", up to {row.most_steps} steps"
                table.append(
                    [
                        preset,
                        ", ".join(row.tasks) or "every operator",
                        noise,
                        values,
                        row.source + unless,
                    ]
                )
    if not table:
        return "Both presets are the defaults above, for every operator."
    return markdown_table(
        ["preset", "operator", "noise", "settings", "from"], table
    )


def traits(name: str) -> str:
    """Cost and promises of a sampler."""
    from invdiff.backbones.schedule import NoiseSchedule
    from invdiff.samplers import sampler_class

    cls = sampler_class(name)
    cost = cls().cost(NoiseSchedule.linear())
    rows = [
        ["class", f"[`invdiff.{cls.__name__}`](%UP%api/samplers.md)"],
        ["network calls with the defaults", f"{cost.calls:,}"],
        [
            "gradient through the network",
            f"{cost.vjps:,} vector-Jacobian products" if cost.vjps else "none",
        ],
        [
            "noise in the measurement",
            "modelled"
            if cls.handles_noise
            else "not modelled: `solve` warns once",
        ],
        [
            "ends with A x = y where sigma_y = 0",
            "yes" if cls.consistent else "not promised",
        ],
        ["paper", cls.paper],
    ]
    return markdown_table(["", ""], rows)


def samplers_table() -> str:
    """Every sampler in a row."""
    from invdiff.backbones.schedule import NoiseSchedule
    from invdiff.samplers import sampler_class, sampler_names

    pages = {"ddnm+": "ddnm-plus"}
    rows = []
    for name in sampler_names():
        cls = sampler_class(name)
        page = pages.get(name, name)
        known = (DOCS / "samplers" / f"{page}.md").is_file()
        rows.append(
            [
                f"[`{name}`](%UP%samplers/{page}.md)" if known else f"`{name}`",
                f"{cls().network_calls(NoiseSchedule.linear()):,}",
                "yes" if cls.uses_gradient else "",
                "yes" if cls.handles_noise else "",
                "yes" if cls.consistent else "",
                _first_line(cls),
            ]
        )
    head = [
        "name",
        "network calls",
        "gradient",
        "models noise",
        "A x = y",
        "in one line",
    ]
    return markdown_table(head, rows, "lrcccl")


def code(*targets: str) -> str:
    """The source of classes or methods, such as ``invdiff.samplers.repaint:RePaint.path``, without their docstrings."""
    parts = []
    for target in targets:
        module, _, name = target.partition(":")
        thing: Any = importlib.import_module(module)
        for attribute in name.split("."):
            thing = getattr(thing, attribute)
        parts.append(
            _without_docstring(textwrap.dedent(inspect.getsource(thing)))
        )
    source = "\n\n".join(part.strip("\n") for part in parts)
    return f"```python\n{source}\n```"


def _without_docstring(source: str) -> str:
    """`source` of one class or function without its docstring; a function's head without types, so that it fits a page."""
    node = ast.parse(source).body[0]
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    lines, first = source.splitlines(), node.body[0]
    documented = isinstance(first, ast.Expr) and isinstance(
        first.value, ast.Constant
    )
    body = lines[(first.end_lineno or 0) if documented else first.lineno - 1 :]
    if isinstance(node, ast.ClassDef):
        return "\n".join([*lines[: first.lineno - 1], *body])
    for argument in (
        *node.args.posonlyargs,
        *node.args.args,
        *node.args.kwonlyargs,
    ):
        argument.annotation = None
    decorators = [f"@{ast.unparse(d)}" for d in node.decorator_list]
    return "\n".join(
        [*decorators, f"def {node.name}({ast.unparse(node.args)}):", *body]
    )


# ---- operators, backbones, metrics, suites ----------------------------------------------------------------------


def operators_table() -> str:
    from invdiff.operators import OPERATORS
    from invdiff.operators.options import options_of

    rows = [
        [
            f"`{name}`",
            f"`{cls.__name__}`",
            ", ".join(f"`{o}`" for o in options_of(cls)) or "none",
            _first_line(cls),
        ]
        for name, cls in OPERATORS.items()
    ]
    return markdown_table(
        ["name", "class", "options", "what it measures"], rows
    )


def masks_table() -> str:
    from invdiff.operators import make_mask, mask_names
    from invdiff.operators.masks import MASKS

    rows = []
    for name in mask_names():
        share = float(make_mask(name, 64).double().mean())
        rows.append(
            [
                f"`{name}`",
                f"{100 * share:.0f} %",
                _first_line(MASKS.get(name)),
            ]
        )
    return markdown_table(
        ["name", "known at 64x64", "which pixels"], rows, "lrl"
    )


def backbones_table() -> str:
    from invdiff.backbones import backbone_names, load_backbone

    rows = []
    for name in backbone_names():
        try:
            backbone = load_backbone(name)
            page = (
                f"[`{name}`](%UP%backbones/{name}.md)"
                if (DOCS / "backbones" / f"{name}.md").is_file()
                else name
            )
            shape = " x ".join(map(str, backbone.image_shape))
            rows.append(
                [page, type(backbone).__name__, shape, str(backbone.schedule.T)]
            )
        except Exception as error:
            rows.append(
                [
                    f"`{name}`",
                    "",
                    "",
                    f"cannot be loaded here: {type(error).__name__}",
                ]
            )
    if not rows:
        return note("No backbone is embedded in this copy.")
    return markdown_table(["name", "kind", "image", "times"], rows)


def formats_table() -> str:
    """Every registered format and what its class says of it."""
    from invdiff.checkpoints import FORMATS

    rows = [
        [f"`{name}`", _first_line(type(item))] for name, item in FORMATS.items()
    ]
    return markdown_table(["format", "what it is"], rows)


def metrics_table() -> str:
    try:
        from invdiff.metrics import METRICS
    except ImportError:
        return note("The metrics are not part of this copy.")
    arrows = {"higher": "higher", "lower": "lower", "one": "near 1", "none": ""}
    rows = [
        [
            f"`{m.name}`",
            m.label,
            arrows[m.direction],
            m.unit,
            ", ".join(sorted(m.needs)),
            _plain_ticks(m.description),
        ]
        for _, m in METRICS.items()
    ]
    return markdown_table(
        ["name", "label", "better", "unit", "computed from", "what it says"],
        rows,
    )


def suites_table() -> str:
    """The suites that ship with the package, with what they hold."""
    try:
        suite = importlib.import_module("invdiff.bench.suite.suite")
        names = suite.suite_names()
    except (ImportError, AttributeError):
        names = []
    rows = []
    for name in names:
        try:
            it = suite.load_suite(name)
            tasks, entries = (
                len(getattr(it, "tasks", ())),
                len(getattr(it, "samplers", ())),
            )
            about = getattr(it, "description", "") or getattr(it, "title", "")
            rows.append(
                [
                    f"`{name}`",
                    f"{tasks or ''}",
                    f"{entries or ''}",
                    " ".join(str(about).split()),
                ]
            )
        except Exception as error:
            rows.append([f"`{name}`", "", "", f"({type(error).__name__})"])
    if not rows:
        return note("This copy of the package ships no suite.")
    return markdown_table(
        ["suite", "tasks", "samplers", "what it asks"], rows, "lrrl"
    )


def card(name: str) -> str:
    """A backbone's model card, from beside its weights."""
    path = ROOT / "invdiff" / "backbones" / "weights" / name / "MODEL_CARD.md"
    if not path.is_file():
        return note(
            f"The model card of `{name}` is written when its training ends, beside its weights."
        )
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"\A# .*\n", "", text)  # the page has a title of its own
    text = text.replace(
        "(../../../../docs/", "(../"
    )  # pictures that the docs hold
    text = re.sub(
        r"!\[([^\]]*)\]\((?!https?:|\.\./assets/)[^)]*\)",
        r"*(\1: see the file beside the weights)*",
        text,
    )
    text = re.sub(r"(?<!!)\[([^\]]+)\]\((?!https?:|#)[^)]*\)", r"\1", text)
    return (
        re.sub(r"^#", "##", text, flags=re.MULTILINE)
        if re.search(r"^# ", text, re.MULTILINE)
        else text
    )


def include(path: str, title: bool = False) -> str:
    """A file of the repository as it is; links to files beside it lose their target."""
    file = ROOT / path
    if not file.is_file():
        return note(f"`{path}` is not part of this copy.")
    text = file.read_text(encoding="utf-8")
    if not title:
        text = re.sub(r"\A# .*\n", "", text)
    return re.sub(r"\[([^\]]+)\]\((?!https?:|#)[^)]*\)", r"\1", text)


def api_modules(package: str) -> str:
    """mkdocstrings blocks for every public module of a package."""
    found = importlib.import_module(package)
    names = [
        m.name
        for m in pkgutil.iter_modules(found.__path__)
        if not m.name.startswith("_") and not m.ispkg
    ]
    if not names:
        return note(f"`{package}` has no modules in this copy.")
    return "\n\n".join(
        f"::: {package}.{name}\n    options:\n      show_root_full_path: true"
        for name in names
    )


# ---- data and figures -------------------------------------------------------------------------------------------


def figure(
    name: str, caption: str, width: int = 0, pixels: bool = False
) -> str:
    """A figure made by `docs/figures/make.py`, or a note where it has not been made."""
    for ending in (".png", ".gif", ".svg", ".jpg"):
        if (DOCS / "assets" / "figures" / f"{name}{ending}").is_file():
            alt = re.sub(r"[*_`$\\\[\]\"]", "", caption.split(". ")[0])
            marks = [
                "loading=lazy",
                *([f"width={width}"] if width else []),
                *([".pixels"] if pixels else []),
            ]
            image = f"![{alt}](%UP%assets/figures/{name}{ending}){{ {' '.join(marks)} }}"
            return f'<figure markdown="span">\n{image}\n<figcaption markdown="span">{caption}</figcaption>\n</figure>'
    return note(
        f"This figure is made by `python docs/figures/make.py --only {name}`."
    )


def data_table(
    name: str,
    columns: list[str] | None = None,
    head: list[str] | None = None,
    where: dict[str, Any] | None = None,
) -> str:
    """A table of `docs/data/NAME.json` (a list of rows, or a dictionary with `rows`) or `NAME.csv`.

    Args:
        name: of the file.
        columns: which, in this order; all of the first row by default.
        head: what to call them.
        where: only rows with these values.
    """
    rows = read_rows(name)
    if rows is None:
        return note(
            f"`docs/data/{name}.json` has not been written yet; `make figures` and the suites write it."
        )
    for key, value in (where or {}).items():
        rows = [row for row in rows if row.get(key) == value]
    if not rows:
        return note(f"`docs/data/{name}` holds no such rows yet.")
    columns = columns or list(rows[0])
    body = [
        [_number(row.get(column, "")) for column in columns] for row in rows
    ]
    numeric = [
        "r" if all(isinstance(row.get(c), int | float) for row in rows) else "l"
        for c in columns
    ]
    return markdown_table(head or columns, body, "".join(numeric))


def read_rows(name: str) -> list[dict[str, Any]] | None:
    """The rows of a data file, or None."""
    file = DATA / f"{name}.json"
    if file.is_file():
        content = json.loads(file.read_text(encoding="utf-8"))
        rows = content.get("rows") if isinstance(content, dict) else content
        return rows if isinstance(rows, list) else None
    file = DATA / f"{name}.csv"
    if file.is_file():
        with open(file, encoding="utf-8", newline="") as handle:
            return [dict(row) for row in csv.DictReader(handle)]
    return None


def datum(
    name: str, column: str, digits: int, where: dict[str, Any], per: str = ""
) -> str:
    """A number of the one row of a data file that has these values, for prose; divided by another column if `per` names it."""
    rows = read_rows(name)
    if rows is None:
        return "(not measured)"
    found = [
        row
        for row in rows
        if all(row.get(key) == value for key, value in where.items())
    ]
    if len(found) != 1:
        raise KeyError(f"{len(found)} rows of {name} have {where}")
    value = found[0][column]
    number = float(value[0] if isinstance(value, list) else value)
    if per:
        number /= float(found[0][per])
    return f"{number:.{digits}f}"


def which_sampler(task: str = "", sampler: str = "") -> str:
    """What `benchmarks/which_sampler.py` measured, of one task or of one sampler, best PSNR first; ± is half a 95 % interval."""
    rows = read_rows("which_sampler")
    if rows is None:
        return note(
            "Not measured for this copy of the pages: `python benchmarks/which_sampler.py` does it."
        )
    rows = [
        r
        for r in rows
        if (not task or r["task"] == task)
        and (not sampler or r["sampler"] == sampler)
    ]
    if not rows:
        return note("This sampler was not among those measured there.")

    def said(value: list[float] | None, digits: int) -> str:
        if value is None:
            return ""
        mean, low, high = value
        return f"{mean:.{digits}f} ± {(high - low) / 2:.{digits}f}"

    if task:
        rows = sorted(rows, key=lambda r: -r["psnr"][0])
    seam = any("seam" in r for r in rows)
    first = ["method"] if task else ["task", "method"]
    head = [*first, "pictures", "PSNR, dB", "SSIM", "detail"]
    head += [*(["seam"] if seam else []), "misfit", "calls", "seconds"]
    body = [
        [
            *(r[key] for key in first),
            f"{r['pictures']}",
            said(r["psnr"], 2),
            said(r["ssim"], 3),
            said(r["detail"], 2),
            *([said(r.get("seam"), 2)] if seam else []),
            f"{r['misfit'][0]:.3f}",
            f"{r['calls']}" + (f", {r['vjps']} gradients" if r["vjps"] else ""),
            f"{r['seconds']:.2f}",
        ]
        for r in rows
    ]
    align = "l" * len(first) + "r" * (len(head) - len(first))
    return markdown_table(head, body, align)


def time_to_quality() -> str:
    """Per task the best mean PSNR, and the least time for which it can be had up to 0.5 dB; of both measurements of pictures."""
    parts = []
    if rows := read_rows("which_sampler"):
        parts.append(
            _quickest(
                [
                    {
                        "task": r["task"],
                        "method": r["method"],
                        "below": r["below best"],
                        "seconds": r["seconds"],
                        "psnr": r["psnr"][0],
                        "pictures": r["pictures"],
                    }
                    for r in rows
                    if r["sampler"]
                ]
            )
        )
    if (DATA / "quality.json").is_file():
        content = json.loads(
            (DATA / "quality.json").read_text(encoding="utf-8")
        )
        rows = []
        for r in content.get("scores", {}).values():
            mine = list(content["scores"].values())
            same = [
                s
                for s in mine
                if (s["set"], s["task"]) == (r["set"], r["task"])
            ]
            most = max(len(s["psnr"]) for s in same)
            best = max(
                (s for s in same if len(s["psnr"]) == most),
                key=lambda s: sum(s["psnr"]),
            )
            theirs = dict(zip(best["pictures"], best["psnr"], strict=True))
            less = [
                theirs[n] - v
                for n, v in zip(r["pictures"], r["psnr"], strict=True)
                if n in theirs
            ]
            rows.append(
                {
                    "task": f"{r['set']}: {r['task']}",
                    "method": r["method"],
                    "below": [sum(less) / max(1, len(less))],
                    "seconds": r["seconds"],
                    "psnr": sum(r["psnr"]) / len(r["psnr"]),
                    "pictures": len(r["psnr"]),
                }
            )
        if rows:
            parts.append(
                "And of [another measurement](%UP%results/quality.md#on-held-out-pictures), with other budgets and libraries:\n\n"
                + _quickest(rows)
            )
    if not parts:
        return note(
            "Not measured for this copy of the pages: `python benchmarks/which_sampler.py` does it."
        )
    return "\n\n".join(parts)


def _quickest(rows: list[dict[str, Any]], near: float = 0.5) -> str:
    """The table of `time_to_quality`, from rows with task, method, seconds, psnr and how many dB they are below the best."""
    body = []
    for task in dict.fromkeys(r["task"] for r in rows):
        mine = [r for r in rows if r["task"] == task]
        most = max(r["pictures"] for r in mine)
        best = max(
            (r for r in mine if r["pictures"] == most), key=lambda r: r["psnr"]
        )
        fast = min(
            (r for r in mine if r["below"][0] <= near),
            key=lambda r: r["seconds"],
        )
        lost = (
            f"{max(0.0, fast['below'][0]):.2f} dB less"
            if fast is not best
            else "the same"
        )
        body.append(
            [
                task,
                f"{best['method']}, {best['psnr']:.2f} dB",
                f"{best['seconds']:.2f}",
                f"{fast['method']}, {lost}",
                f"{fast['seconds']:.2f}",
            ]
        )
    return markdown_table(
        [
            "task",
            "best mean PSNR",
            "seconds",
            f"quickest within {near} dB of it",
            "seconds",
        ],
        body,
        "llrlr",
    )


def quality_words() -> str:
    """Per task of `docs/data/quality.md`: our fastest method, the next library's, and which never came there."""
    file = DATA / "quality.md"
    if not file.is_file():
        return note(
            "Not measured for this copy of the pages: `python benchmarks/quality.py --parts truth` does it."
        )
    said = []
    for part in re.split(
        r"^### ", file.read_text(encoding="utf-8"), flags=re.MULTILINE
    )[1:]:
        task, _, body = part.partition("\n")
        target = re.search(r"To reach: ([\d.]+\d)", body)
        rows = [
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in body.splitlines()
            if line.startswith("| ") and not line.startswith("| library")
        ]
        came = [r for r in rows if r[2] not in ("never", "failed")]
        ours = [r for r in came if r[0] == "invdiff"]
        theirs = [r for r in came if r[0] != "invdiff"]
        if not ours or target is None:
            continue

        def cost(row: list[str]) -> str:
            seconds, calls = (row[k].split()[0] for k in (2, 3))
            return f"{row[1]}, {calls} forward equivalents and {float(seconds):.2g} s"

        words = f"* **{task}**, distance {target[1]}: {cost(ours[0])}"
        words += (
            f"; of the other libraries first {theirs[0][0]}'s {cost(theirs[0])}."
            if theirs
            else "; no other library came there."
        )
        never = [r for r in rows if r[0] != "invdiff" and r[2] == "never"]
        if never:
            near = min(never, key=lambda r: float(r[6]))
            words += (
                f" {len(never)} of their methods never did, the nearest of those "
                f"{near[0]}'s {near[1]} ({near[6]})."
            )
        said.append(words)
    return "\n".join(said)


def truth_overview(metric: str = "sw2") -> str:
    """A score of every sampler on every task as a table with colours.

    Args:
        metric: ``"sw2"``, coloured by how many times the floor it is, to 20; or ``"c2st"``, coloured from 0.5 to 1.
    """
    file = DATA / "truth" / "summary.csv"
    if not file.is_file():
        return note(
            "The suite has not been run for this copy of the pages: `invdiff bench truth --out runs/truth`."
        )
    with open(file, encoding="utf-8", newline="") as handle:
        found = {
            (r["task"], r["sampler"]): float(r["mean"])
            for r in csv.DictReader(handle)
            if r["metric"] == metric and r["mean"]
        }
    # sweeps over steps and scales, and runs without a measurement, have figures of their own
    tasks = [
        t
        for t in dict.fromkeys(t for t, _ in found)
        if t.split()[0] not in ("prior", "steps", "learned", "calibration")
    ]
    samplers = [
        s
        for s in dict.fromkeys(s for t, s in found if t in tasks)
        if s not in ("exact", "prior only") and "=" not in s
    ]
    head = "".join(f"<th><span>{s}</span></th>" for s in samplers)
    lines = [
        f'<div class="overview"><table class="overview"><thead><tr><th></th><th><span>floor</span></th>{head}</tr></thead><tbody>'
    ]
    for task in tasks:
        floor = found[task, "exact"]
        values = [found.get((task, s)) for s in samplers]
        least = min(v for v in values if v is not None)
        cells = []
        for value in values:
            if value is None:
                cells.append("<td></td>")
                continue
            heat = (
                math.log(value / floor) / math.log(20)
                if metric == "sw2"
                else 2 * value - 1
            )
            digits = f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"
            bold = value == least if metric == "sw2" else value <= 0.55
            text = f"<b>{digits}</b>" if bold else digits
            share = 100 * min(1.0, max(0.0, heat))
            cells.append(f'<td style="--heat: {share:.0f}%">{text}</td>')
        name = task.replace(" sigma_y=", ", σ = ")
        lines.append(
            f"<tr><th>{name}</th><td>{floor:.2f}</td>{''.join(cells)}</tr>"
        )
    return "\n".join([*lines, "</tbody></table></div>"])


def data_markdown(name: str, level: int = 0) -> str:
    """`docs/data/NAME.md`, written by a script; its title is left out, other headings sink below `level` (0 drops all)."""
    file = DATA / f"{name}.md"
    if not file.is_file():
        return note(f"`docs/data/{name}.md` has not been written yet.")
    text = re.sub(r"\A# .*\n", "", file.read_text(encoding="utf-8"))
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text)
    if level == 0:
        return re.sub(r"^#+ .*\n", "", text, flags=re.MULTILINE).strip()
    return re.sub(
        r"^(#+) ",
        lambda m: "#" * min(6, len(m[1]) + level - 1) + " ",
        text,
        flags=re.MULTILINE,
    ).strip()


def suite_results() -> str:
    """The tables of every suite whose results are in docs/data, each below the command that made it."""
    parts = []
    for file in sorted(DATA.glob("suite_*.json")):
        info = json.loads(file.read_text(encoding="utf-8"))
        seeds = info.get("seeds", [])
        about = f"{info.get('images')} images, {len(seeds)} seed{'s' if len(seeds) != 1 else ''}"
        name = file.stem.removeprefix("suite_")
        parts.append(
            f"### {name}\n\n`{info.get('command')}`: {about}.\n\n{data_markdown(file.stem, 3)}"
        )
    if not parts:
        return note(
            "No suite has been run for this copy of the pages. `invdiff bench quick --out runs/quick` runs the first one, and "
            "`python docs/figures/results.py runs/quick` puts its tables here."
        )
    return "\n\n".join(parts)


def posterior_table() -> str:
    """The Gaussian table of the benchmark's truth part."""
    if not (DATA / "posterior_table.md").is_file():
        return note(
            "`python docs/figures/results.py --posterior` makes this table."
        )
    return (
        data_markdown("posterior_table")
        + "\n\n"
        + provenance("posterior_table")
    )


def truth_figure(name: str, caption: str) -> str:
    """A figure that `invdiff bench truth` drew."""
    if not (DATA / "truth" / f"{name}.png").is_file():
        return note(
            f"This figure is drawn by `invdiff bench truth --out docs/data/truth` ({name}.png)."
        )
    alt = re.sub(r"[*_`$\\\[\]\"]", "", caption.split(". ")[0])
    image = f"![{alt}](%UP%data/truth/{name}.png){{ loading=lazy }}"
    return f'<figure markdown="span">\n{image}\n<figcaption markdown="span">{caption}</figcaption>\n</figure>'


def truth_tables() -> str:
    """Every table of `invdiff bench truth`, folded."""
    if not (DATA / "truth" / "summary.md").is_file():
        return note(
            "The suite has not been run for this copy of the pages: `invdiff bench truth --out runs/truth`."
        )
    text = data_markdown("truth/summary", 1)
    about, *parts = re.split(r"^## ", text, flags=re.MULTILINE)
    out = [about.strip()]
    for part in parts:
        title, _, body = part.partition("\n")
        body = re.sub(
            r"^### (.*)$", r"**\1**", body, flags=re.MULTILINE
        ).strip()
        out.append(
            f'??? note "{title}: all tables"\n\n'
            + textwrap.indent(body, "    ")
        )
    return "\n\n".join(out)


def measured_markdown(name: str, command: str) -> str:
    """`docs/data/NAME.md` with its picture, or a note with the command that writes them."""
    if not (DATA / f"{name}.md").is_file():
        return note(
            f"Not measured for this copy of the pages: `{command}` does it."
        )
    parts = []
    if (DATA / f"{name}.png").is_file():
        parts.append(f"![{name}](%UP%data/{name}.png){{ loading=lazy }}")
    return "\n\n".join([*parts, data_markdown(name, 2)])


def provenance(name: str) -> str:
    """The command, date and machine that `docs/data/NAME.json` says it comes from."""
    file = DATA / f"{name}.json"
    if not file.is_file():
        return ""
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        return ""
    parts = []
    if made := content.get("command") or content.get("made_by"):
        parts.append(f"Made by `{made}`")
    if content.get("settings"):
        parts.append(str(content["settings"]))
    return ". ".join(parts) + "." if parts else ""


def sampler_seconds() -> str:
    """Calls of every sampler with its defaults, and what they take with cats64 on the machine of `docs/data/speed.json`."""
    from invdiff.backbones.schedule import NoiseSchedule
    from invdiff.samplers import sampler_class

    file = DATA / "speed.json"
    if not file.is_file():
        return note("`python benchmarks/speed.py --out docs/data` measures it.")
    found = json.loads(file.read_text(encoding="utf-8"))
    measured = [
        r
        for r in found["overhead"]
        if r["backbone"] == "cats64" and r["batch"] == 1
    ]
    rows = []
    for row in sorted(
        measured, key=lambda r: r["run_ms"] * _calls(r["sampler"])
    ):
        calls = _calls(row["sampler"])
        gradient = (
            "yes"
            if sampler_class(row["sampler"])().cost(NoiseSchedule.linear()).vjps
            else ""
        )
        seconds = calls * row["run_ms"] / 1000
        rows.append(
            [
                f"`{row['sampler']}`",
                f"{calls:,}",
                gradient,
                f"{row['run_ms']:.0f}",
                f"{seconds:.1f}",
            ]
        )
    about = found["about"]
    where = f"{about['machine']}, {about['threads']} thread(s), PyTorch {about['torch'].split('+')[0]}, precision `auto`, {about['clock']}"
    head = ["sampler", "network calls", "gradient", "ms a call", "seconds"]
    return (
        markdown_table(head, rows, "lrcrr")
        + f"\n\n{where}. Made by `python benchmarks/speed.py --out docs/data`."
    )


def _calls(name: str) -> int:
    from invdiff.backbones.schedule import NoiseSchedule
    from invdiff.samplers import sampler_class

    return sampler_class(name)().network_calls(NoiseSchedule.linear())


def bibtex() -> str:
    """The library and its references as BibTeX, from CITATION.cff."""
    import yaml

    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    entries = [
        _entry(
            "software",
            "invdiff",
            cff["title"],
            cff["authors"],
            {"version": cff["version"], "license": cff["license"]},
        )
    ]
    for paper in cff["references"]:
        first = paper["authors"][0]["family-names"].lower().replace(" ", "")
        word = re.findall(r"[a-z]+", paper["title"].lower())[0]
        more = {"booktitle": paper["collection-title"], "year": paper["year"]}
        entries.append(
            _entry(
                "inproceedings",
                f"{first}{paper['year']}{word}",
                paper["title"],
                paper["authors"],
                more,
            )
        )
    return "```bibtex\n" + "\n\n".join(entries) + "\n```"


def _entry(
    kind: str,
    key: str,
    title: str,
    authors: list[dict[str, str]],
    more: dict[str, Any],
) -> str:
    names = " and ".join(
        f"{a['family-names']}, {a['given-names']}"
        if "family-names" in a
        else f"{{{a['name']}}}"
        for a in authors
    )
    fields = {"title": f"{{{title}}}", "author": names, **more}
    lines = ",\n".join(
        f"  {name} = {{{value}}}" for name, value in fields.items()
    )
    return f"@{kind}{{{key},\n{lines}\n}}"


def chapters_table() -> str:
    """Every chapter as slides and as a notebook."""
    rows = []
    for page in slides.chapters():
        stem = page.removeprefix("learn/").removesuffix(".md")
        rows.append([f"[{notebooks.title(page)}](%UP%learn/{stem}.md)", f"[slides](%UP%{slides.path(page)})",
                     f"[notebook](%UP%{notebooks.path(page)})"])  # fmt: skip
    return markdown_table(["chapter", "", ""], rows)


def figures_table() -> str:
    """Every figure that `docs/figures/make.py` makes: what it shows, its files, and the command."""
    source = (DOCS / "figures" / "make.py").read_text(encoding="utf-8")
    rows = []
    for node in ast.parse(source).body:
        drawn = isinstance(node, ast.FunctionDef) and any(
            getattr(d, "id", "") == "figure" for d in node.decorator_list
        )
        if not drawn or not isinstance(node, ast.FunctionDef):
            continue
        found = [
            DOCS / "assets" / "figures" / f"{node.name}{e}"
            for e in (".png", ".jpg", ".svg", ".gif", ".mp4")
        ]
        files = [f for f in found if f.is_file()]
        if files:
            links = ", ".join(
                f"[{f.suffix[1:].upper()}](%UP%assets/figures/{f.name})"
                for f in files
            )
            says = (ast.get_docstring(node) or "").splitlines()[0]
            small = next(
                (f for f in files if f.suffix in (".png", ".jpg", ".gif")), None
            )
            image = (
                f"![{node.name}](%UP%assets/figures/{small.name}){{ width=160 loading=lazy }}"
                if small
                else ""
            )
            rows.append([image, says, links, f"`--only {node.name}`"])
    return markdown_table(
        ["", "shows", "files", "`python docs/figures/make.py`"], rows
    )


# ---- the gallery ------------------------------------------------------------------------------------------------


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


def _number(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, float):
        return (
            f"{value:.1e}"
            if 0 < abs(value) < 1e-3
            else f"{value:.3g}"
            if abs(value) < 10
            else f"{value:.1f}"
        )
    return "" if value is None else str(value)


MACROS: dict[str, Callable[..., str]] = {
    function.__name__: function
    for function in (
        options,
        presets,
        traits,
        samplers_table,
        code,
        operators_table,
        masks_table,
        backbones_table,
        formats_table,
        metrics_table,
        suites_table,
        card,
        include,
        api_modules,
        figure,
        data_table,
        datum,
        which_sampler,
        time_to_quality,
        quality_words,
        truth_overview,
        data_markdown,
        suite_results,
        posterior_table,
        truth_figure,
        truth_tables,
        measured_markdown,
        provenance,
        sampler_seconds,
        bibtex,
        chapters_table,
        figures_table,
        gallery,
        gallery_figures,
        gallery_grid,
        gallery_table,
        gallery_ahead,
    )
}
