"""Measure an embedded backbone and write its model card: MODEL_CARD.md beside the weights, pictures for the docs.

python benchmarks/model_card.py cats64 --data cats64.zip

The data is needed for the held-out error, the restorations and the nearest neighbours; none of its pictures is written at
more than 16x16 grey pixels, and the samples are the model's own.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from invdiff import Backbone, Colorization, LinearOperator, Mask, SuperResolution, load_backbone, make_mask, solve
from invdiff.backbones.zoo import EMBEDDED
from invdiff.files import atomic_write
from invdiff.images import sample_sheet
from invdiff.markdown import markdown_table
from invdiff.metrics import psnr, ssim
from invdiff.training.data import load_splits
from invdiff.training.evaluation import draw_samples, evaluate, nearest_neighbours

DOCS = Path(__file__).parents[1] / "docs"
TASKS = {
    "half": Mask(make_mask("half", 64)),
    "colorization": Colorization(),
    "box x4": SuperResolution(4, "box"),
}
SAMPLERS = {"ddnm": {"steps": 100}, "repaint": {"steps": 50, "jump_length": 5, "jump_n_sample": 5}}


def unit(images: Tensor) -> Tensor:
    """uint8 to [0, 1]."""
    return images.float() / 255


def classical(task: str, truth: Tensor, y: Tensor) -> Tensor | None:
    """What one would do without a model: biharmonic inpainting, bicubic enlargement; nothing for colour."""
    if task == "half":
        from skimage.restoration import inpaint_biharmonic

        missing = ~make_mask("half", 64).numpy()
        # the far columns of so wide a hole cost much and tell little: half resolution, enlarged
        small = torch.nn.functional.interpolate(truth, scale_factor=0.5, mode="area").permute(0, 2, 3, 1).numpy()
        filled = [inpaint_biharmonic(image, missing[::2, ::2], channel_axis=-1) for image in small]
        large = torch.nn.functional.interpolate(
            torch.from_numpy(np.stack(filled)).permute(0, 3, 1, 2).float(), scale_factor=2, mode="bicubic"
        ).clamp(0, 1)
        return torch.where(make_mask("half", 64), truth, large)
    if task.startswith("box"):
        return torch.nn.functional.interpolate(y, size=truth.shape[-2:], mode="bicubic").clamp(0, 1)
    return None


def restorations(name: str, images: Tensor) -> list[dict]:
    """PSNR and SSIM of two samplers, of the pseudo-inverse and of a classical method, over `images` in [0, 1]."""
    backbone = load_backbone(name)
    rows = []
    for task, operator in TASKS.items():
        y = operator(images)
        candidates: dict[str, Tensor | None] = {
            "pseudo-inverse": operator.pinv(y).clamp(0, 1),
            "classical": classical(task, images, y),
        }
        for sampler, options in SAMPLERS.items():
            seeds = list(range(len(images)))
            candidates[sampler] = solve(
                operator, y, sampler, backbone=backbone, seed=seeds, batch_size=16, **options
            ).x.clamp(0, 1)
            if sampler == "ddnm":
                candidates["ddnm, mean of 4"] = mean_of_samples(operator, y, sampler, backbone, options)
        for method, x in candidates.items():
            if x is not None:
                rows.append(
                    {
                        "task": task,
                        "method": method,
                        "psnr": float(psnr(x, images).mean()),
                        "ssim": float(ssim(x, images).mean()),
                    }
                )
                print(rows[-1], flush=True)
    return rows


def mean_of_samples(operator: LinearOperator, y: Tensor, sampler: str, backbone: Backbone, options: dict) -> Tensor:
    """The mean of four restorations of each image: nearer to the truth in the mean square than any one of them."""
    answer = solve(operator, y, sampler, backbone=backbone, n_samples=4, batch_size=16, **options)
    return answer.mean.clamp(0, 1)


def neighbours_sheet(samples: Tensor, training: Tensor, nearest: Tensor) -> Image.Image:
    """Each sample beside its nearest training image, both as 16x16 grey pictures: the scale at which they are compared."""
    tiles = []
    for sample, index in zip(samples, nearest[:, 0] if nearest.ndim > 1 else nearest, strict=True):
        pair = torch.stack([sample * 0.5 + 0.5, unit(training[int(index)])])
        grey = torch.nn.functional.interpolate(pair, size=(16, 16), mode="area").mean(1)
        tiles.append(torch.cat([grey[0], torch.ones(16, 1), grey[1]], 1))
    rows = [
        torch.cat([torch.nn.functional.pad(t, (2, 2, 2, 2), value=1.0) for t in tiles[i : i + 4]], 1)
        for i in range(0, 16, 4)
    ]
    sheet = (torch.cat(rows, 0).clamp(0, 1) * 255).byte().numpy()
    return Image.fromarray(sheet).resize((sheet.shape[1] * 4, sheet.shape[0] * 4), Image.Resampling.NEAREST)


ABOUT = {
    "cats64": """\
Faces of cats, 64 x 64 RGB, aligned: eyes level, at two fifths of the height. What the documentation teaches with: aligned
faces show at a glance whether a restoration is right.

**Intended use: research and teaching.** The images that it was trained on (crops of the CAT data set of
Zhang, Sun and Tang, 2008) state no licence.""",
    "eurosat64": """\
Sentinel-2 satellite tiles, 64 x 64 RGB, ten kinds of land use. Scan-line gaps are masks, clouds are
free-form masks, panchromatic-to-colour is colorization. The images (EuroSAT, Helber et al., 2019) are under
the MIT licence, and so are these weights.""",
}

RECIPE = """\
- **Network.** diffusers' `UNet2DModel`, channels 64, 128, 160, two residual blocks per resolution,
  self-attention at 8 x 8, 8.2 M parameters, behind an orthonormal Haar transform (64 x 64 x 3 <-> 32 x 32 x 12)
  that keeps white noise white. Stored in bfloat16. A plain UNet of the same channels and size takes 4.0 times as
  long per call (40 against 10 ms of processor time per image at batch 8) and, trained from scratch for the same
  processor time (143 s against 123 s: 3,200 images against 800), came out alike (held-out error 0.138 against
  0.144): the transform is kept for its cost at every call.
- **Prediction: velocity**, linear schedule, T = 1000. A network of this shape that predicts the noise (the
  start of this one) leaves colour casts: its error in the mean of a channel at high noise is multiplied by
  1 / sqrt(alpha_bar). Velocity has no such factor.
- **Training.** `invdiff train` does the same: AdamW (beta2 0.99, weight decay 0.01), batch 32, warm-up and
  cosine decay to 2 % of the peak rate of 2.5e-4, uniform weighting of the velocity loss, stratified times,
  gradient norm clipped at 1, bfloat16, averaged weights (memory 0.9995)."""


def table(measured: dict) -> str:
    """The restorations as Markdown."""
    rows = [[r["task"], r["method"], f"{r['psnr']:.2f}", f"{r['ssim']:.3f}"] for r in measured["restoration"]]
    return markdown_table(["task", "method", "PSNR (dB)", "SSIM"], rows)


def card(measured: dict, provenance: dict) -> str:
    """MODEL_CARD.md."""
    name, near = measured["name"], measured["neighbour_distance"]
    steps = ", ".join(f"{s} ({', '.join(f'{k} {v}' for k, v in o.items())})" for s, o in SAMPLERS.items())
    return f"""# {name}

{ABOUT[name]}

## Recipe

{RECIPE}
- **Images seen:** {provenance["images_seen"]}.
- **Data:** {provenance["data"]}; licence: {provenance["licence"]}.

## Held-out error

Mean squared error of the noise estimate on {measured["held_out_images"]} held-out images, each at its own level, the levels of
the linear schedule at t = 20..980, on a fixed draw: **{measured["held_out_error"]:.4f}**. Measure it again:
`invdiff train --evaluate {name} --data {name}.zip`.

## Samples

Sixteen, the first ones, none left out: 250 ancestral steps, and 50 deterministic ones (DDIM).

![250 ancestral steps](../../../../docs/assets/figures/{name}-ancestral-250.png)

![50 steps of DDIM](../../../../docs/assets/figures/{name}-ddim-50.png)

## Has it memorised its training images?

Distance to the nearest training image (rms at 16 x 16 pixels on a scale of [-1, 1], mirrored too): median of the samples
{near["samples"]:.3f}, least {near["least"]:.3f}; median of held-out photographs {near["held_out"]:.3f}. Copies would lie at
nearly 0. Each sample (left) beside its nearest training image, at that resolution and in grey:

![Samples and their nearest training images](../../../../docs/assets/figures/{name}-neighbours.png)

## Restorations

Mean over {measured["restored_images"]} held-out images; {steps}. Classical: biharmonic inpainting (at half resolution), bicubic
enlargement.

{table(measured)}

PSNR rewards blur: a draw from the posterior has up to 3 dB less than the posterior's mean, which the mean of
four draws comes near to.

## Known failures

Small features (whiskers, irises of different colours, single houses) come out soft; unusual views and dark images are rarer in
the data and worse. It knows nothing but its subject: given another picture it sees that subject in it. Not for identifying
anything or anybody, and not for evidence: what it fills in is made up.

Measured by `python benchmarks/model_card.py {name} --data {name}.zip`.
"""


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("name")
    ask.add_argument("--data", type=Path, required=True)
    ask.add_argument("--images", type=int, default=64, help="held-out images that are restored")
    given = ask.parse_args()
    folder = EMBEDDED / given.name
    backbone = load_backbone(given.name)
    training, held_out = load_splits(given.data, 64)
    figures = DOCS / "assets" / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    measured: dict = {
        "name": given.name,
        "held_out_error": evaluate(backbone, held_out[:128]),
        "held_out_images": min(128, len(held_out)),
    }
    print(measured, flush=True)
    started = time.perf_counter()
    samples = {
        "ancestral-250": draw_samples(backbone, 16, steps=250, eta=1.0, seed=0),
        "ddim-50": draw_samples(backbone, 16, steps=50, seed=0),
    }
    measured["sampling_seconds"] = time.perf_counter() - started
    for kind, x in samples.items():
        with atomic_write(figures / f"{given.name}-{kind}.png") as temporary:
            sample_sheet(x, columns=8).save(temporary, optimize=True)
    index, distance = nearest_neighbours(samples["ancestral-250"], training)
    _, usual = nearest_neighbours(held_out[:128].float() / 127.5 - 1, training)
    measured["neighbour_distance"] = {
        "samples": float(distance.median()),
        "held_out": float(usual.median()),
        "least": float(distance.min()),
    }
    with atomic_write(figures / f"{given.name}-neighbours.png") as temporary:
        neighbours_sheet(samples["ancestral-250"], training, index).save(temporary, optimize=True)
    measured["restoration"] = restorations(given.name, unit(held_out[: given.images]))
    measured["restored_images"] = min(given.images, len(held_out))
    (DOCS / "data").mkdir(exist_ok=True)
    with atomic_write(DOCS / "data" / f"model-{given.name}.json") as temporary:
        temporary.write_text(json.dumps(measured, indent=1))
    provenance = json.loads((folder / "invdiff.json").read_text())["provenance"]
    with atomic_write(folder / "MODEL_CARD.md") as temporary:
        temporary.write_text(card(measured, provenance))


if __name__ == "__main__":
    main()
