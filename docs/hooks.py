"""What the pages read off the code and the data: `{{ options("repaint") }}` on a line of its own becomes a table.

A macro is a function of this file, or of `measured.py` and `galleries.py`, whose name stands in `MACROS`; its arguments are Python literals. Whatever a macro needs
that is not there yet (a model card, a table of results) becomes a note that says how it is made, never an error.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import galleries
import measured
import notebooks
import slides
from invdiff.markdown import markdown_table
from measured import note
from outputs import with_outputs

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"

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


def takers(option: str, but: str = "") -> str:
    """The samplers with an option, and without another, as a phrase."""
    from invdiff.samplers import sampler_class, sampler_names

    names = [
        f"`{n}`"
        for n in sampler_names()
        if option in sampler_class(n).__dataclass_fields__
        and but not in sampler_class(n).__dataclass_fields__
    ]
    return " and ".join([", ".join(names[:-1]), names[-1]]).removeprefix(
        " and "
    )


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


# ---- figures, references, chapters -------------------------------------------------------------------------------------------


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


MACROS: dict[str, Callable[..., str]] = {
    function.__name__: function
    for function in (
        options,
        presets,
        traits,
        samplers_table,
        takers,
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
        bibtex,
        chapters_table,
        figures_table,
        *measured.MACROS,
        *galleries.MACROS,
    )
}
