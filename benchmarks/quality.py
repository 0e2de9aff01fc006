#!/usr/bin/env python3
"""Time to quality: what a run costs until it is as good as it has to be, here and in other libraries.

    python benchmarks/quality.py --out docs/data --figures docs/assets/figures --data FOLDER
    python benchmarks/quality.py --parts truth                     one part
    python benchmarks/quality.py --minutes 10                      as much as fits; the same command goes on from there
    python benchmarks/quality.py --parts write                     tables and figures of what is there
    python benchmarks/quality.py --quick                           minutes: one task, few samples

Parts: `truth` (seconds and forward equivalents until the samples are within a distance of the exact posterior, see
`quality_truth.py`), `images` (PSNR, SSIM and a kernel distance against network calls on held-out pictures, see
`quality_images.py`; needs the folder with ``cats64.zip`` and ``photos.zip``). Every finished cell is written at once.

Written: ``quality.json`` (every cell), ``quality.md`` (truth), ``quality-images.md``, figures ``quality.png`` and
``quality-images.png``. Clock: processor time of this process on one thread, in float32 beside other libraries.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
import quality_images
import quality_truth
from quality_tables import below_best, images_markdown, summary, truth_markdown

from invdiff import InvdiffWarning
from invdiff.files import atomic_write
from invdiff.memory import keep_freed_memory

Row = dict[str, Any]


class Store:
    """Cells by their names in a JSON file, written whenever one is added; and the clock that says when to stop.

    Args:
        path: of the file; what is there is gone on with.
        minutes: of processor time after which `Enough` is raised instead of starting another cell.
    """

    def __init__(self, path: Path, minutes: float | None = None) -> None:
        self.path, self.minutes = path, minutes
        self.found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def part(self, name: str) -> dict[str, Row]:
        """The cells of a part."""
        return self.found.setdefault(name, {})

    def cell(self, part: str, name: str, make: Any) -> Row:
        """The cell of this name; made by ``make()`` where it isn't there yet."""
        cells = self.part(part)
        if name not in cells:
            if self.minutes is not None and time.process_time() > 60 * self.minutes:
                raise Enough
            cells[name] = make()
            self.write()
            print(f"  {name}: {shown(cells[name])}", flush=True)
        return cells[name]

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.path) as temporary:
            temporary.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")


class Enough(Exception):
    """The minutes are used up."""


def shown(row: Row) -> str:
    """Numbers of a cell for the terminal."""
    keys = ("distance", "forward_equivalents", "seconds", "psnr", "floor", "error")
    return ", ".join(f"{k} {row[k]:.4g}" if isinstance(row[k], float) else f"{k} {row[k]}" for k in keys if k in row)


def truth(store: Store, tasks: tuple[quality_truth.Task, ...], only: set[str] | None) -> None:
    """All cells of the part `truth`, task by task."""
    for task in tasks:
        about = store.cell(
            "tasks",
            task.label,
            lambda task=task: {
                "floor": task.floor(),
                "distance_name": task.distance_name,
                "samples": task.samples,
                "measurements": task.measurements,
                "sigma_y": task.sigma_y,
            },
        )
        targets = quality_truth.targets(about["floor"])
        for method in (*quality_truth.our_methods(), *quality_truth.their_methods()):
            if (only and method.library not in only) or (method.masks_only and not quality_truth.masked(task)):
                continue

            def run(setting: Row, steps: int, task: Any = task, method: Any = method) -> Row:
                name = f"{task.label} | {method.library} | {method.name} | {quality_truth.words(setting)} | {steps}"
                return store.cell("truth", name, lambda: quality_truth.run_cell(task, method, setting, steps))

            quality_truth.sweep(method, min(targets), method.budgets, run)


def call_times(store: Store) -> None:
    """Milliseconds per picture of a forward call and of a product, of the embedded network in float32, eight at once."""

    def measure() -> Row:
        from invdiff import load_backbone
        from invdiff.samplers.base import estimate_with_pullback

        backbone = load_backbone("cats64", precision="float32", engine="torch")
        x = torch.randn(8, *backbone.image_shape, generator=torch.Generator().manual_seed(0))
        forward, product = [], []
        for _ in range(4):
            start = time.process_time()
            with torch.inference_mode():
                backbone.predict(x, 500)
            forward.append(time.process_time() - start)
            start = time.process_time()
            _, x0, pullback = estimate_with_pullback(backbone, x, 500)
            pullback(x0)
            product.append(time.process_time() - start - forward[-1])
        return {"forward_ms": 1e3 * min(forward[1:]) / 8, "product_ms": 1e3 * min(product[1:]) / 8}

    store.cell("calls", "cats64", measure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/data"), help="folder for quality.json and the tables")
    parser.add_argument("--figures", type=Path, help="folder for the figures; none by default")
    parser.add_argument("--data", type=Path, help="folder with cats64.zip and photos.zip, for the part images")
    parser.add_argument("--work", type=Path, default=Path("runs/quality"), help="folder that keeps the restorations")
    parser.add_argument("--parts", nargs="+", choices=("truth", "images", "write"), default=["truth", "images"])
    parser.add_argument("--tasks", nargs="+", help="only the tasks whose names begin with one of these")
    parser.add_argument("--libraries", nargs="+", help="only these: invdiff, diffusers, deepinv, azula")
    parser.add_argument("--images", type=int, default=100, help="held-out pictures, at most")
    parser.add_argument("--minutes", type=float, help="of processor time; then it stops, and can be gone on with")
    parser.add_argument("--quick", action="store_true", help="one task, few samples, few pictures")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    warnings.simplefilter("ignore", InvdiffWarning)
    store = Store(given.out / "quality.json", given.minutes)
    store.found["about"] = {
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }

    def wanted(name: str) -> bool:
        return not given.tasks or name.startswith(tuple(given.tasks))

    try:
        if "truth" in given.parts:
            call_times(store)
            tasks = quality_truth.quick() if given.quick else quality_truth.TASKS
            truth(store, tuple(t for t in tasks if wanted(t.label)), set(given.libraries or ()) or None)
        if "images" in given.parts:
            if given.data is None:
                parser.error("the part images needs --data, the folder with cats64.zip and photos.zip")
            count = 2 if given.quick else given.images
            quality_images.run(store, given.data, given.work, count, wanted)
    except Enough:
        print(f"stopped after {given.minutes} minutes; the same command goes on")
    store.found["reached"] = summary(store.found)
    below_best(list(store.found.get("scores", {}).values()))
    store.write()
    for name, text in (("quality", truth_markdown(store.found)), ("quality-images", images_markdown(store.found))):
        if text:
            with atomic_write(given.out / f"{name}.md") as temporary:
                temporary.write_text(text, encoding="utf-8")
    if given.figures is not None:
        from quality_figures import draw

        draw(store.found, given.figures)


if __name__ == "__main__":
    main()
