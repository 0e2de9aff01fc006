"""The house as designed: who imports whom, read off the source, nothing imported."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "invdiff"

# What everybody may use: no room of its own, no knowledge of the others.
GROUND = {
    "errors", "checks", "registry", "options", "files", "images", "markdown", "memory", "noise", "photos", "pictures", "progress",
    "tensors", "extensions", "regions",
}  # fmt: skip

# Room -> the rooms that it may import, at module level or within functions. A module of the root is a room of its own.
MAY_KNOW: dict[str, set[str]] = {
    "operators": set(),
    "backbones": {"checkpoints"},  # load_backbone, within functions, and only there: see ONLY_INSIDE
    "checkpoints": {"backbones", "priors"},
    "priors": {"backbones", "operators", "checkpoints"},
    "training": {"backbones", "checkpoints", "operators", "priors"},
    "problem": {"operators", "backbones"},
    "samplers": {"operators", "backbones", "problem"},
    "blending": set(),
    "solution": {"problem", "samplers", "blending"},
    "plan": {"backbones", "operators", "problem"},
    "solve": {"operators", "backbones", "checkpoints", "priors", "plan", "problem", "samplers", "solution", "batches"},
    "costs": {"backbones", "batches", "problem", "samplers", "solve"},
    "metrics": {"operators"},  # for annotations
    "palette": {"samplers"},  # their names, for colours that stay the same in every figure
    "batches": {"backbones", "problem", "samplers"},
    "data": set(),
}
LEAVES = {"cli", "app", "plotting", "tabular", "demo", "fitting"}
FREE = {"bench", "__init__", "__main__", *LEAVES}  # know anything that is no leaf
ONLY_INSIDE = {("backbones", "checkpoints")}
MAY_SHOW = {  # who asks a leaf, within a function: methods that draw, and the command of a leaf
    ("solution", "plotting"), ("bench", "plotting"), ("cli", "app"), ("cli", "demo"), ("cli", "fitting"), ("app", "fitting"),
    ("cli", "plotting"), ("app", "plotting"), ("demo", "plotting"), ("__main__", "cli"), ("app", "demo"), ("cli", "tabular"),
}  # fmt: skip


def modules() -> dict[str, Path]:
    """Dotted name without "invdiff." -> file; "" for the package itself."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(name: str) -> tuple[tuple[str, bool, bool], ...]:
    """(module of ours, whether at module level, whether for a type checker only) of everything a module imports."""
    known = modules()
    found = []

    def note(target: str, names: list[str], level: bool, typing: bool) -> None:
        if target != "invdiff" and not target.startswith("invdiff."):
            return
        base = target.removeprefix("invdiff").removeprefix(".")
        for one in names:
            inner = f"{base}.{one}".removeprefix(".")
            found.append((inner if inner in known else base, level, typing))

    def walk(nodes: list[ast.stmt], level: bool, typing: bool) -> None:
        for node in nodes:
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name} has a relative import"
                note(node.module or "", [alias.name for alias in node.names], level, typing)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    note(alias.name, [""], level, typing)
            else:
                inside = level and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                checker = typing or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
                walk([n for n in ast.iter_child_nodes(node) if isinstance(n, ast.AST)], inside, checker)  # type: ignore[misc]

    walk(ast.parse(known[name].read_text(encoding="utf-8")).body, True, False)
    return tuple(found)


def room(name: str) -> str:
    return name.split(".")[0] or "__init__"


def test_no_circle_of_imports_at_module_level():
    known = modules()
    graph = {
        name: {target for target, level, typing in imports(name) if level and not typing and target != name}
        for name in known
    }
    # a package's __init__ is run before its modules, but names of it are only read by those outside of it
    for name in graph:
        graph[name] -= {name.rpartition(".")[0]}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, "a circle: " + " -> ".join((*way[way.index(name) :], name))
        if name not in done:
            for target in sorted(graph[name]):
                visit(target, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("name", sorted(modules()))
def test_a_module_imports_only_what_it_may_know(name):
    own = room(name)
    assert own in MAY_KNOW or own in FREE or own in GROUND, f"{name}: a new room; say here what it may know"
    for target, level, typing in imports(name):
        other = room(target)
        if other == own or other in GROUND or typing or own == "__init__":
            continue
        if other == "__init__":  # `from invdiff import __version__`, within a function
            assert not level and own in FREE, f"{name} imports the whole package"
        elif other in LEAVES:
            assert (own == "__main__" or not level) and (own, other) in MAY_SHOW, f"{name} imports the leaf {target}"
        elif own not in FREE:
            assert own not in GROUND, f"{name} is common ground, but imports {target}"
            assert other in MAY_KNOW[own], f"{name} imports {target}; {own} may know {sorted(MAY_KNOW[own])}"
            assert not (level and (own, other) in ONLY_INSIDE), f"{name} imports {target} at module level"


def test_heavy_libraries_are_imported_within_functions_only():
    heavy = {
        "ray",
        "gradio",
        "openvino",
        "lpips",
        "matplotlib",
        "sklearn",
        "diffusers",
        "torchvision",
        "transformers",
        "jinja2",
    }
    free = {"tabular", "app"}  # behind their own extras
    for name, path in modules().items():
        if room(name) in free:
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not heavy & {n.split(".")[0] for n in names}, f"{name} imports {names} at module level"


@pytest.mark.parametrize("folder", sorted({p.parent.relative_to(ROOT).as_posix() for p in ROOT.rglob("__init__.py")}))
def test_a_folder_says_what_lives_there(folder):
    text = ast.get_docstring(ast.parse((ROOT / folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    assert len([line for line in text.splitlines() if line.strip()]) >= 2, f"{folder}/__init__.py: two lines at least"
