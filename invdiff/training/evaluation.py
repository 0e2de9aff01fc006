"""What a backbone is worth on pictures held out from its training."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from invdiff.backbones.base import Backbone
from invdiff.backbones.schedule import NoiseSchedule
from invdiff.backbones.zoo import load_backbone
from invdiff.checks import real
from invdiff.errors import InvdiffError, InvdiffWarning
from invdiff.training.data import has_split, load_images, load_photos, load_splits

EVALUATED = 128
"""Images of the held-out error."""

EVALUATED_SIZE = 128
"""Height and width at which a backbone of any size is evaluated, in pixels."""

DENOISING = (15, 25, 50)
"""Standard deviations, of 255, at which denoisers are compared in the literature."""


def evaluate(backbone: Backbone, images: Tensor, *, batch: int = 32) -> float:
    """Mean squared error of the predicted noise on a fixed draw: how good a backbone is, whatever it predicts.

    The first 128 images (all, if fewer), image i at the level of DDPM's linear schedule at ``t_i``, with ``t`` evenly
    from 20 to 980, and standard normal noise from a generator with seed 0. A backbone with another schedule is asked at
    the nearest level that it has. 1 is what predicting zero gives.

    Args:
        backbone: any.
        images: (N, C, H, W), uint8 or in model range; held out from its training.
        batch: images per call.

    Raises:
        InvdiffError: no images, or of a shape that the backbone wasn't made for.
    """
    images = _floats(images)
    if backbone.any_size and images.ndim == 4:
        backbone = backbone.sized(images.shape[1:])
    if len(images) == 0 or tuple(images.shape[1:]) != tuple(backbone.image_shape):
        raise InvdiffError(
            f"images must be (N, {', '.join(map(str, backbone.image_shape))}), got {tuple(images.shape)}"
        )
    x0 = images[:EVALUATED].to(backbone.device, backbone.dtype)
    drawn = torch.randn(EVALUATED, *x0.shape[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    noise = drawn[: len(x0)].to(x0)
    linear = NoiseSchedule.linear(1000)
    t = torch.linspace(20, 980, len(x0), dtype=torch.float32).round().long()
    schedule = backbone.schedule
    if len(schedule) != len(linear) or not torch.equal(schedule.alpha_bar, linear.alpha_bar):
        t = torch.tensor([schedule.nearest(linear.alpha_bar_at(int(i))) for i in t])
    errors = []
    with torch.inference_mode():
        for i in range(0, len(x0), batch):
            part = slice(i, i + batch)
            a = schedule.alpha_bar[t[part]].to(x0).reshape(-1, *[1] * (x0.ndim - 1))
            eps = backbone.predict(a.sqrt() * x0[part] + (1 - a).sqrt() * noise[part], t[part]).eps
            errors.append((eps.double() - noise[part].double()).square().flatten(1).mean(1))
    return float(torch.cat(errors).mean())


def evaluate_on(
    backbone: str | Path | Backbone,
    data: str | Path,
    *,
    size: int | None = None,
    exclude: str | Sequence[str] = (),
    holdout: float | None = None,
    seed: int = 0,
    precision: str = "auto",
) -> float:
    """Held-out error of a backbone on the images of a folder or zip, see `evaluate`.

    These are the ones under ``val``. Without such a folder they are those that the training held out, if the backbone
    was trained on a folder or zip of this name; else the first 128, with a warning.

    Args:
        backbone: name, folder or `Backbone`.
        data: folder or zip.
        size: height and width to read the images at; the backbone's own by default.
        exclude: names or patterns to leave out; in a string, separated by commas.
        holdout: fraction that the training held out, and
        seed: its seed, where the data has no ``val`` folder and the backbone doesn't know them.
        precision: of the network.

    Raises:
        InvdiffError: no images, or of a size that the backbone wasn't made for.
    """
    loaded = backbone if isinstance(backbone, Backbone) else load_backbone(backbone, precision=precision)
    height, width = (EVALUATED_SIZE,) * 2 if loaded.any_size else loaded.image_shape[-2:]
    if height != width:
        raise InvdiffError(
            f"backbone must take squares, as images are read, got {loaded.name} of {height}x{width}; pass a tensor to evaluate()"
        )
    left_out = listed(exclude) if isinstance(exclude, str) else list(exclude)
    description = getattr(getattr(loaded, "module", None), "description", None)
    if description is not None and holdout is None and description.provenance.get("data") == Path(data).resolve().name:
        recipe = description.provenance.get("recipe", {})
        holdout, seed = recipe.get("holdout"), recipe.get("seed", seed)
        left_out = left_out or listed(recipe.get("exclude", ""))
    pixels = size or height
    if has_split(data, "val", exclude=left_out):
        images, _ = load_images(data, pixels, split="val", exclude=left_out, limit=EVALUATED)
    elif holdout is not None:
        _, images = load_splits(data, pixels, exclude=left_out, holdout=holdout, seed=seed)
    else:
        images, _ = load_images(data, pixels, exclude=left_out, limit=EVALUATED)
        text = f"{data} has no val folder: its first {len(images)} images are taken as held out"
        warnings.warn(text, InvdiffWarning, stacklevel=2)
    return evaluate(loaded, images)


def denoising_psnr(backbone: Backbone, photos: Sequence[Tensor], sigma: float) -> float:
    """Mean peak signal-to-noise ratio of one call as a denoiser, in dB: the way published denoisers are compared.

    Noise of standard deviation `sigma` (of 255), from a generator seeded with the photo's number, is added to the whole photo,
    the backbone is asked once at the nearest level that its schedule has, and its clean estimate, rounded to 8 bits, is
    compared with the photo.

    Args:
        backbone: of any size.
        photos: uint8 (3, H, W) each.
        sigma: of 255, above 0.

    Raises:
        InvdiffError: no photo, or a sigma that is no noise.
    """
    if not len(photos):
        raise InvdiffError("photos must hold at least one picture, got none")
    noise = real("sigma", sigma, above=0) / 127.5
    t = backbone.schedule.nearest(1 / (1 + noise**2))
    signal = backbone.schedule.alpha_bar_at(t) ** 0.5
    found = []
    with torch.inference_mode():
        for number, photo in enumerate(photos):
            draw = torch.Generator().manual_seed(number)
            x = _floats(photo)[None].to(backbone.device, backbone.dtype)
            noisy = x + noise * torch.randn(x.shape, generator=draw, dtype=torch.float32).to(x)
            estimate = backbone.sized(x.shape[1:]).predict(signal * noisy, t).x0
            error = ((estimate + 1) * 127.5).round().clamp(0, 255) - photo[None].to(x)
            found.append(10 * math.log10(255**2 / float(error.double().square().mean())))
    return sum(found) / len(found)


def denoising_on(
    backbone: str | Path | Backbone, data: str | Path, *, limit: int | None = None, precision: str = "auto"
) -> dict[int, float]:
    """`denoising_psnr` at `DENOISING` over the photographs of a folder or zip, whole, in dB by sigma.

    Args:
        backbone: name, folder or `Backbone`, of any size.
        data: folder or zip; ``val`` in it is respected.
        limit: only so many, evenly spread over the names.
        precision: of the network.

    Raises:
        InvdiffError: no photograph, or a backbone of one size.
    """
    loaded = backbone if isinstance(backbone, Backbone) else load_backbone(backbone, precision=precision)
    if not loaded.any_size:
        raise InvdiffError(
            f"backbone must take pictures of any size to denoise photographs, got {loaded.name}, which {loaded.sizes_taken()}"
        )
    photos, _ = load_photos(data, split="val" if has_split(data, "val") else None)
    chosen = photos if limit is None else photos[:: max(1, len(photos) // limit)][:limit]
    return {sigma: denoising_psnr(loaded, chosen, sigma) for sigma in DENOISING}


def draw_samples(backbone: Backbone, n: int = 16, *, steps: int = 50, eta: float = 0.0, seed: int = 0) -> Tensor:
    """Images from the prior, uncurated: (n, C, H, W), clamped to model range.

    DDIM (Song et al., 2021, eq. 12); ``eta=1`` is ancestral sampling. The clean estimate is clipped at every step.

    Args:
        backbone: any.
        n: how many.
        steps: network calls; at most as many as the schedule has times.
        eta: share of the ancestral noise, 0..1.
        seed: of the starting noise and of every step's.
    """
    sized = (
        backbone.sized((backbone.image_shape[0], EVALUATED_SIZE, EVALUATED_SIZE))
        if None in backbone.image_shape
        else backbone
    )
    steps = min(steps, backbone.schedule.T)
    short = sized.on(backbone.schedule.respaced(steps))
    draw = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        x = torch.randn(n, *sized.image_shape, generator=draw, dtype=torch.float32).to(backbone.device, backbone.dtype)
        for t in reversed(range(steps)):
            a, a_s = short.schedule.alpha_bar_at(t), short.schedule.alpha_bar_at(t - 1)
            x0 = short.predict(x, t).x0.clamp(-1, 1)
            eps = (x - a**0.5 * x0) / (1 - a) ** 0.5
            sigma = eta * ((1 - a_s) / (1 - a) * (1 - a / a_s)) ** 0.5
            x = a_s**0.5 * x0 + max(0.0, 1 - a_s - sigma**2) ** 0.5 * eps
            if sigma > 0:
                x = x + sigma * torch.randn(x.shape, generator=draw, dtype=torch.float32).to(x)
    return x.clamp(-1, 1).cpu()


def nearest_neighbours(samples: Tensor, images: Tensor, *, count: int = 1, size: int = 16) -> tuple[Tensor, Tensor]:
    """The nearest images of each sample by pixel distance, mirrored too: has a model memorised its training set?

    Args:
        samples: (N, C, H, W), uint8 or in model range.
        images: (M, C, H, W), likewise.
        count: how many neighbours.
        size: both are averaged down to this height and width first (or to their own, where that is smaller).

    Returns:
        Numbers of the images, long (N, count), nearest first, and the root-mean-square distance in model range, (N, count).

    Raises:
        InvdiffError: shapes that differ, or fewer images than neighbours.
    """
    if samples.shape[1:] != images.shape[1:]:
        raise InvdiffError(f"samples {tuple(samples.shape)} and images {tuple(images.shape)} must be of one shape")
    if not 1 <= count <= len(images):
        raise InvdiffError(f"count must be 1 to {len(images)}, the number of images; got {count}")
    size = min(size, *images.shape[-2:])
    small = torch.cat([F.adaptive_avg_pool2d(_floats(part), size) for part in images.split(1024)])
    queries = F.adaptive_avg_pool2d(_floats(samples), size).flatten(1)
    straight, mirrored = (torch.cdist(queries, s.flatten(1)) for s in (small, small.flip(-1)))
    distance, index = torch.minimum(straight, mirrored).topk(count, largest=False)
    return index, distance / queries.shape[1] ** 0.5


def _floats(images: Tensor) -> Tensor:
    """Model range."""
    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images


def listed(text: str) -> list[str]:
    """Words separated by commas."""
    return [word.strip() for word in text.split(",") if word.strip()]
