"""The pictures, figures of quality and times of the gallery: every page's own code is run, nothing is drawn besides.

python docs/figures/gallery.py                  # the pages whose code has changed since they were run
python docs/figures/gallery.py scratch colour   # these, changed or not

A page's block leaves three names behind: `truth`, `answer` (a Solution) and `results`, pictures or tensors by the name of what
made them, the diffusion first and the classical method last. What is damaged is the first file that it writes, or `answer.y`. A
table leaves `truth`, `table` and `results`. From these the picture (damaged, classical, answer, truth) and the thumbnail are put
together; the rest goes to docs/data/gallery.json. The seconds are those of the processor for the whole block on one thread,
the making of the damage and the classical method included. A page is run in a process of its own, and kept when it is done.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

DOCS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(DOCS))
import outputs  # noqa: E402

DATA = DOCS / "data" / "gallery.json"
PICTURES = DOCS / "assets" / "gallery"
PANEL = 384  # pixels that a panel may be wide; smaller pictures are enlarged by whole numbers
THUMBNAIL = (240, 180)


def names() -> list[str]:
    """The pages of the gallery."""
    return sorted(p.stem for p in (DOCS / "gallery").glob("*.md") if p.stem != "index")


def rows() -> dict[str, dict[str, Any]]:
    """What is kept, by page."""
    if not DATA.is_file():
        return {}
    return {row["page"]: row for row in json.loads(DATA.read_text(encoding="utf-8"))["rows"]}


def key(name: str) -> str:
    """Of the code of a page, as it stands."""
    return outputs.keys(outputs.blocks(outputs.read(f"gallery/{name}.md")))[-1]


def run(name: str) -> None:
    """Run a page's block, and keep its picture, its figures and (as `docs/outputs.py` does) what it printed and wrote."""
    import torch

    import invdiff
    import invdiff.tabular  # what a reader waits for once is no part of a page's time

    torch.set_num_threads(1)
    left: dict[str, Any] = {}

    def watched(*arguments: Any) -> Any:
        began = time.process_time()
        for block, output in outputs.run(*arguments):
            left.update(vars(sys.modules["page_of_the_documentation"]), seconds=time.process_time() - began)
            files = [p for n, p in output.pictures[:1] if n not in ("restored.png", "repaired.png")]
            left["damaged"] = files[0] if files else None
            print(output.text)
            yield block, output

    outputs.capture(f"gallery/{name}.md", watched)
    row = {"page": name, "key": key(name), "seconds": round(left["seconds"], 1), **figures(left)}
    draw(name, left, row)
    content = {
        "command": "python docs/figures/gallery.py",
        "settings": f"processor seconds of one thread; {invdiff.__name__} {invdiff.__version__}",
        "rows": sorted([*(r for r in rows().values() if r["page"] != name), row], key=lambda r: r["page"]),
    }
    DATA.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def figures(left: dict[str, Any]) -> dict[str, Any]:
    """What the page's answer is worth: of every method (name, PSNR, SSIM), or for a table its error."""
    from invdiff.metrics import psnr, ssim

    if "table" in left:
        truth, holes = left["truth"], np.isnan(left["table"])
        off = {n: ((x - truth) / truth.std(0))[holes] for n, x in left["results"].items()}
        return {"methods": [{"name": n, "error": round(float(np.sqrt((e**2).mean())), 2)} for n, e in off.items()]}
    truth, methods = picture(left["truth"])[None], []
    for name, x in left["results"].items():
        x = picture(x)[None]
        methods.append({"name": name, "psnr": round(psnr(x, truth).item(), 1), "ssim": round(ssim(x, truth).item(), 3)})
    answer = left["answer"]
    settings = {k: answer.settings[k] for k in ("sampler", "steps", "backbone", "n_samples")}
    return {"methods": methods, **settings, "calls": answer.nfe}


def picture(thing: Any) -> Any:
    """(C, H, W) in [0, 1] of a PIL image or a tensor with or without a batch of one in front."""
    from PIL import Image

    from invdiff.images import from_pil

    x = from_pil(thing) if isinstance(thing, Image.Image) else thing
    return (x[0] if x.ndim == 4 else x).clamp(0, 1)


def draw(name: str, left: dict[str, Any], row: dict[str, Any]) -> None:
    """Damaged, classical, answer, truth, two by two; and the thumbnail, half damaged and half answered."""
    from PIL import Image, ImageDraw, ImageFont

    parts = panels(left, row)
    width, height = parts[0][0].size
    font, gap, below = ImageFont.load_default(size=15), 8, 26
    sheet = Image.new("RGB", (2 * width + gap, 2 * (height + below)), "white")
    for place, (panel, caption) in enumerate(parts):
        x, y = (place % 2) * (width + gap), (place // 2) * (height + below)
        sheet.paste(panel, (x, y))
        ImageDraw.Draw(sheet).text((x + width / 2, y + height + 3), caption, fill="#333333", font=font, anchor="ma")
    PICTURES.mkdir(exist_ok=True)
    sheet.save(PICTURES / f"{name}.jpg", quality=88, optimize=True)
    before, after = (parts[i][0].resize(THUMBNAIL, Image.Resampling.BOX if width > 400 else 1) for i in (0, 2))
    half = THUMBNAIL[0] // 2
    after.paste(before.crop((0, 0, half, THUMBNAIL[1])), (0, 0))
    ImageDraw.Draw(after).line([(half, 0), (half, THUMBNAIL[1])], fill="white", width=3)
    after.save(PICTURES / f"{name}-small.jpg", quality=82, optimize=True)


def panels(left: dict[str, Any], row: dict[str, Any]) -> list[tuple[Any, str]]:
    """The four pictures of a page with what stands below them."""
    from PIL import Image

    from invdiff.images import to_pil

    first, *_, last = left["results"]
    if "table" in left:
        shown = {
            "damaged": left["table"],
            last: left["results"][last],
            first: left["results"][first],
            "truth": left["truth"],
        }
        return [(heat(x, left["truth"]), n) for n, x in shown.items()]
    answer = left["answer"]
    damaged = answer.y if left["damaged"] is None else left["damaged"]
    worth = {m["name"]: m["psnr"] for m in row["methods"]}
    shown = [
        (damaged, "damaged"),
        (left["results"][last], f"{last}: {worth[last]} dB"),
        (left["results"][first], f"{first}: {worth[first]} dB"),
        (left["truth"], "truth"),
    ]
    height, width = picture(left["truth"]).shape[-2:]
    size = width * max(1, PANEL // width), height * max(1, PANEL // width)
    return [(to_pil(picture(x)).convert("RGB").resize(size, Image.Resampling.NEAREST), words) for x, words in shown]


def heat(table: Any, truth: Any) -> Any:
    """The first rows of a table in colours, blue below the column's mean and red above, holes white; 24 x 18 pixels a cell."""
    from matplotlib import colormaps
    from PIL import Image

    scaled = ((table - truth.mean(0)) / truth.std(0))[:14]
    colours = colormaps["RdBu_r"](np.clip(scaled / 5 + 0.5, 0, 1))[..., :3]
    pixels = np.where(np.isnan(scaled)[..., None], 1.0, 0.94 * colours) * 255
    return Image.fromarray(np.kron(pixels.round().astype(np.uint8), np.ones((18, 24, 1), np.uint8)))


def main() -> int:
    os.environ["OMP_NUM_THREADS"] = "1"
    wanted = sys.argv[1:] or [n for n in names() if rows().get(n, {}).get("key") != key(n)]
    unknown = set(wanted) - set(names())
    if unknown:
        sys.exit(f"no page {', '.join(sorted(unknown))}; the gallery has {', '.join(names())}")
    failed = 0
    for name in wanted:
        child = multiprocessing.get_context("spawn").Process(target=run, args=(name,))
        child.start()
        child.join()
        failed += bool(child.exitcode)
        print(f"{name}: {'FAILED' if child.exitcode else rows()[name]['seconds']}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
