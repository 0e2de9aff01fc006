"""Quality against network calls on held-out pictures, for `quality.py`.

Pictures that the backbone was not trained on are measured and restored, once each: single draws, never means of several, so that
methods that average and methods that draw are compared by what one run of them gives. Restorations are kept as files, a chunk of
pictures each, and go chunk by chunk through all methods: wherever it was stopped, all have restored the same pictures but for
RePaint at 2,410 calls and the other libraries, which get the first `FEW`, and are compared with the others on those.

The kernel distance (Binkowski et al., 2018) is between restorations and pictures that nobody restored, in features of an embedded
network that made none of the restorations: means and deviations of its innermost channels. It is no KID: Inception is not asked.
"""

from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from quality_peers import Job, PeerModel, peer_methods
from torch import Tensor

from invdiff import Blur, LinearOperator, Mask, SuperResolution, load_backbone, make_mask, solve
from invdiff.files import atomic_write
from invdiff.images import from_pil
from invdiff.metrics import psnr, ssim
from invdiff.metrics.cost import forward_equivalents
from invdiff.metrics.generative import kernel_distance
from invdiff.operators.blur import gaussian_kernel

CHUNK = 8
FEW = 32
MARK = "RePaint, 2,410 calls"

# ---- pictures ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Set:
    """Held-out pictures and the backbone that restores them.

    Attributes:
        name: of the set and of its backbone.
        file, folder: where they lie.
        judge: the embedded network whose features the kernel distance reads.
        count: at most so many are restored.
    """

    name: str
    file: str
    folder: str
    judge: str
    count: int


SETS = (
    Set("cats64", "cats64.zip", "cats64/val/", judge="photos", count=100),
    Set("photos", "photos.zip", "val/", judge="cats64", count=60),
)
SIZE = 64


@lru_cache
def pictures(data: Path, which: Set) -> tuple[Tensor, Tensor]:
    """(N, 3, 64, 64) in [0, 1] to restore, and others of the same kind to compare the set with.

    Pictures larger than that are reduced to half and cut in the middle; the others are then their corners.
    """
    with zipfile.ZipFile(data / which.file) as archive:
        names = sorted(n for n in archive.namelist() if n.startswith(which.folder) and n.endswith(".jpg"))
        read = [Image.open(io.BytesIO(archive.read(n))).convert("RGB") for n in names]
    if all(p.size == (SIZE, SIZE) for p in read):
        every = torch.stack([from_pil(p) for p in read])
        return every[: which.count], every[which.count :]
    half = [p.resize((p.width // 2, p.height // 2), Image.Resampling.LANCZOS) for p in read]
    middle = [p.crop(_box((p.width - SIZE) // 2, (p.height - SIZE) // 2)) for p in half]
    corners = [p.crop(_box(x * (p.width - SIZE), y * (p.height - SIZE))) for p in half for x in (0, 1) for y in (0, 1)]
    return torch.stack([from_pil(p) for p in middle])[: which.count], torch.stack([from_pil(p) for p in corners])


def _box(left: int, top: int) -> tuple[int, int, int, int]:
    return left, top, left + SIZE, top + SIZE


# ---- measurements -----------------------------------------------------------------------------------------------

TASKS: dict[str, tuple[Callable[[], LinearOperator], float]] = {
    "wide strokes missing": (lambda: Mask(make_mask("wide", SIZE)), 0.0),
    "super-resolution x4": (lambda: SuperResolution(4, "box"), 0.0),
    "blur and noise": (lambda: Blur(gaussian_kernel(sigma=1.5)), 0.02),
}
"""Name -> operator and noise, of images in [0, 1]."""


# ---- methods ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """What is run.

    Attributes:
        label: of the table.
        sampler: its name.
        options: of `solve`.
        few: whether it gets the first `FEW` pictures only.
        tasks: None for all.
        photos: whether it is run on photographs too.
        peer: the other library and its method, with `options` as its setting; then `sampler` is empty.
    """

    label: str
    sampler: str
    options: dict[str, Any] = field(default_factory=dict)
    few: bool = False
    tasks: tuple[str, ...] | None = None
    photos: bool = False
    peer: tuple[str, str] | None = None


STROKES, ENLARGE, SHARPEN = TASKS
FAST = {"integrator": "dpm++2m", "spacing": "karras"}
CALLS, FEWER = 50, 15


def methods() -> Iterator[Method]:
    """All, the quick ones first."""
    free = (STROKES, ENLARGE)
    for name, tasks, photos in (("ddnm", free, True), ("ddnm+", (SHARPEN,), True), ("diffpir", None, True)):
        yield Method(f"{name}, own step, {CALLS}", name, {"steps": CALLS}, tasks=tasks, photos=photos)
        yield Method(f"{name}, dpm++2m, {FEWER}", name, {"steps": FEWER, **FAST}, tasks=tasks, photos=photos)
    for steps in (20, 30):
        yield Method(f"ddnm, own step, {steps}", "ddnm", {"steps": steps}, tasks=free, photos=True)
        yield Method(f"diffpir, own step, {steps}", "diffpir", {"steps": steps}, tasks=(STROKES,), photos=True)
    yield Method(f"ddrm, own step, {CALLS}", "ddrm", {"steps": CALLS})
    yield Method(f"replacement, own step, {CALLS}", "replacement", {"steps": CALLS}, tasks=(STROKES,))
    short = {"steps": 20, "jump_length": 5, "jump_n_sample": 3}
    yield Method("repaint, own step, 50", "repaint", short, tasks=(STROKES,), photos=True)
    for steps in (8, FEWER):
        fast = {"steps": steps, **FAST, "iterations": 1}
        yield Method(f"mmps, dpm++2m, {steps}", "mmps", fast, photos=True)
    yield Method(f"pigdm, dpm++2m, {FEWER}", "pigdm", {"steps": FEWER, **FAST}, photos=True)
    yield Method(f"tmpd, dpm++2m, {FEWER}", "tmpd", {"steps": FEWER, **FAST})
    yield Method(f"pigdm, own step, {CALLS}", "pigdm", {"steps": CALLS}, photos=True)
    for name in ("mmps", "mcg", "dps", "reddiff"):
        way = "dpm++2m" if name == "mmps" else "own step"
        yield Method(f"{name}, {way}, {CALLS}", name, {"steps": CALLS}, few=True, tasks=(STROKES,))
    best = {"sampler": "REAB2", "schedule": "cosine", "iterations": 2}
    for library, name, steps, setting in (
        ("azula", "MMPS", 20, best),
        ("azula", "DiffPIR", 50, {"sampler": "ddpm", "lmbda": 1.0, "iterations": 1}),
        ("deepinv", "DiffPIR", 50, {"zeta": 0.5, "lambda_": 7.0}),
        ("deepinv", "DDRM", 50, {"eta": 0.85, "etab": 1.0}),
        ("diffusers", "RePaint", 50, {"eta": 1.0, "length": 10, "repeats": 3}),
    ):
        label = f"{library}: {name}, {steps} steps"
        setting = {"steps": steps, **setting}
        yield Method(label, "", setting, few=True, tasks=(STROKES,), peer=(library, name))
    yield Method(MARK, "repaint", {"steps": 250}, few=True, tasks=(STROKES,), photos=True)


# ---- running ----------------------------------------------------------------------------------------------------


@lru_cache
def _backbone(name: str, precision: str) -> Any:
    return load_backbone(name, precision=precision)


def restore(method: Method, which: Set, task: str, truth: Tensor, first: int) -> tuple[Tensor, dict[str, Any]]:
    """Single restorations of pictures, which are those from number `first` on, in [0, 1], and what one took."""
    make, sigma_y = TASKS[task]
    operator = make()
    seeds = list(range(first, first + len(truth)))
    y = operator.measure(truth, sigma_y, seed=1000 + first)
    start = time.process_time()
    if method.peer is None:
        backbone = _backbone(which.name, "auto")
        options = {"batch_size": len(truth), "progress": False, **method.options}
        solution = solve(operator, y, method.sampler, backbone=backbone, sigma_y=sigma_y, seed=seeds, **options)
        x, calls, vjps = solution.x, solution.nfe, solution.vjps
    else:
        peer = next(p for p in peer_methods() if (p.library, p.name) == method.peer)
        model = PeerModel(_backbone(which.name, "float32").sized((3, SIZE, SIZE)))
        job = Job(model, operator, 2 * y - 1, 2 * sigma_y, (3, SIZE, SIZE))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(first)
            x = (peer.make(job, **method.options)() + 1) / 2
        calls, vjps = model.count()
    seconds = (time.process_time() - start) / len(truth)
    cost = {"calls": calls, "vjps": vjps, "forward_equivalents": forward_equivalents(calls, vjps), "seconds": seconds}
    return x.detach().float().clamp(0, 1), cost


def run(store: Any, data: Path, work: Path, count: int, wanted: Callable[[str], bool]) -> None:
    """All restorations of up to `count` pictures that aren't there yet, and every method's scores."""
    for which in SETS:
        truth, others = pictures(data, which)
        truth, reference = truth[:count], lru_cache(lambda others=others, which=which: features(which.judge, others))
        todo = [
            (task, method)
            for task in TASKS
            for method in methods()
            if wanted(f"{which.name} {task}")
            and (method.tasks is None or task in method.tasks)
            and (which.name == "cats64" or method.photos)
        ]
        for first in range(0, len(truth), CHUNK):
            for task, method in todo:
                if not (method.few and first >= FEW):
                    part = truth[first : first + CHUNK]
                    name = f"{which.name} | {task} | {method.label} | {first}"
                    store.cell("restorations", name, lambda a=(method, which, task, part, first): _kept(work, *a))
        for task, method in todo:
            rows = {
                first: row
                for first in range(0, len(truth), CHUNK)
                if (row := store.part("restorations").get(f"{which.name} | {task} | {method.label} | {first}"))
                and "error" not in row
            }
            if rows:
                x = torch.cat([torch.from_numpy(np.load(work / row["file"])) for row in rows.values()]).float() / 255
                numbers = [first + i for first in rows for i in range(len(truth[first : first + CHUNK]))]
                name = f"{which.name} | {task} | {method.label}"
                store.part("scores")[name] = _scores(which, task, method, rows, x, truth, numbers, reference())
        store.write()


def _kept(work: Path, method: Method, which: Set, task: str, truth: Tensor, first: int) -> dict[str, Any]:
    """Restore and keep the result as bytes; a row with its file."""
    try:
        x, cost = restore(method, which, task, truth, first)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:200]}
    name = "-".join("".join(c if c.isalnum() else "_" for c in w) for w in (which.name, task, method.label, str(first)))
    work.mkdir(parents=True, exist_ok=True)
    with atomic_write(work / f"{name}.npy") as temporary, open(temporary, "wb") as file:
        np.save(file, (x * 255).round().byte().numpy())
    return {"file": f"{name}.npy", **cost, "psnr": float(psnr(x.double(), truth.double()).mean())}


def _scores(
    which: Set,
    task: str,
    method: Method,
    rows: dict[int, Any],
    x: Tensor,
    truth: Tensor,
    numbers: list[int],
    reference: np.ndarray,
) -> dict[str, Any]:
    """Scores of every picture, and the kernel distance of the first `FEW` and of all to the `features` of others."""
    wanted = truth[numbers].double()
    mine = features(which.judge, x)
    mean, deviation = reference.mean(0), reference.std(0) + 1e-6
    mine, reference = (mine - mean) / deviation, (reference - mean) / deviation
    row = next(iter(rows.values()))
    return {
        "set": which.name,
        "task": task,
        "method": method.label,
        **{key: row[key] for key in ("calls", "vjps", "forward_equivalents")},
        "seconds": float(np.mean([r["seconds"] for r in rows.values()])),
        "pictures": numbers,
        "psnr": [round(v, 4) for v in psnr(x.double(), wanted).tolist()],
        "ssim": [round(v, 5) for v in ssim(x.double(), wanted).tolist()],
        "kernel": kernel_with_error(mine, reference),
        "kernel_few": kernel_with_error(mine[:FEW], reference),
    }


# ---- features ---------------------------------------------------------------------------------------------------


def features(judge: str, x: Tensor) -> np.ndarray:
    """(N, 2 C): means and standard deviations over space of the innermost channels of an embedded network shown clean pictures."""
    backbone = _backbone(judge, "float32")
    module = backbone.module
    layers = module.middle if hasattr(module, "middle") else [module.unet.mid_block]
    found: list[Tensor] = []
    hook = layers[-1].register_forward_hook(lambda _m, _i, out: found.append(out.detach().float()))
    try:
        t = 20
        level = backbone.schedule.alpha_bar_at(t)
        with torch.inference_mode():
            for part in x.split(32):
                time_ = torch.full((len(part),), t)
                module(level**0.5 * (2 * part.float() - 1), time_)
    finally:
        hook.remove()
    h = torch.cat(found).flatten(2)
    return torch.cat([h.mean(2), h.std(2)], 1).double().numpy()


def kernel_with_error(a: np.ndarray, b: np.ndarray, halves: int = 40) -> tuple[float, float]:
    """The kernel distance and its standard error over the pictures: its deviation over random halves of `a`."""
    generator = np.random.default_rng(0)
    n = len(a)
    if n < 4:
        return float("nan"), float("nan")
    values = [kernel_distance(a[generator.permutation(n)[: n // 2]], b) for _ in range(halves)]
    return kernel_distance(a, b), float(np.std(values))
