"""What a visitor asks for, checked, and the Python and the shell command that do the same."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from invdiff.app.limits import Limits, read_mask_file, read_photo, resized_mask
from invdiff.backbones import backbone_names, load_backbone
from invdiff.backbones.base import Backbone
from invdiff.backbones.zoo import EMBEDDED
from invdiff.checks import one_of, real, whole
from invdiff.data import chelsea64
from invdiff.errors import InvdiffError
from invdiff.images import from_pil, to_pil
from invdiff.operators import make_mask, make_operator
from invdiff.operators.base import LinearOperator
from invdiff.operators.blur import KERNELS
from invdiff.samplers import baseline_names, sampler_class, sampler_names
from invdiff.solve import AUTO, PHOTOS, is_auto

PHOTO, MASK = "photo.png", "mask.png"

DAMAGES = {
    "paint": "A hole that I paint",
    "ready": "A ready mask",
    "file": "A mask from a file",
    "colorization": "Colours are lost",
    "super_resolution": "It is small",
    "blur": "It is blurred",
    "identity": "Noise only",
}
"""What happened to the picture, and what the page calls it."""

OF_MASKS = ("paint", "ready", "file")


@dataclass(frozen=True)
class Damage:
    """What happened to a picture.

    Attributes:
        kind: one of `DAMAGES`.
        sigma: standard deviation of the noise, grey levels of 0..255.
        done: the photo is damaged already; otherwise it is damaged first.
        mask: name of a ready mask; mask_seed: its seed.
        mask_file: of a mask, white = known.
        painted: (H, W) bool, what was painted, of any size of the photo's shape.
        scale, small_kernel: of super-resolution.
        blur: name of the blur's kernel; blur_size: pixels of it to a side, odd; blur_width: standard deviation, or length.
        weights: of colorization.
    """

    kind: str = "ready"
    sigma: float = 0.0
    done: bool = False
    mask: str = "wide"
    mask_seed: int = 0
    mask_file: str | None = None
    painted: Tensor | None = None
    scale: int = 4
    small_kernel: str = "box"
    blur: str = "gaussian"
    blur_size: int = 9
    blur_width: float = 1.6
    weights: str = "mean"

    def operator(self) -> tuple[str, dict[str, Any]]:
        """Name and options for `make_operator`, without the mask."""
        one_of("damage", self.kind, DAMAGES)
        if self.kind in OF_MASKS:
            return "mask", {}
        if self.kind == "super_resolution":
            return self.kind, {"scale": whole("scale", self.scale, 2, 16), "kernel": self.small_kernel}
        if self.kind == "blur":
            size = whole("size of the kernel", self.blur_size, 3, 63)
            if size % 2 == 0:
                raise InvdiffError(f"size of the kernel must be odd, got {size}")
            one_of("kernel", self.blur, KERNELS)  # never a file of the server's
            own: dict[str, Any] = {"size": size}
            if self.blur == "gaussian":
                own["sigma"] = real("width of the kernel", self.blur_width, 0.1, 20)
            return self.kind, {"kernel": self.blur, **own}
        if self.kind == "colorization":
            return self.kind, {"weights": self.weights}
        return "identity", {}


@dataclass(frozen=True)
class Recipe:
    """One restoration, or several side by side, of which everything is decided.

    Attributes:
        image: the photo as it is worked on, which is `photo.png` in its folder.
        known: the mask (H, W), which is `mask.png`; None where nothing is missing.
        operator, options: for `make_operator`.
        image_shape: (C, H, W) of the restoration.
        simulate: the photo is clean and damaged first.
        sigma: of the noise, grey levels of 0..255.
        backbone: its name.
        samplers: their names, in order.
        sampler_options: by sampler.
        steps, n_samples, seed: as in `solve`.
        baselines: names of the classical methods beside.
        said: what was done to the photo, in sentences.
    """

    image: Image.Image
    known: Tensor | None
    operator: str
    options: Mapping[str, Any]
    image_shape: tuple[int, int, int]
    simulate: bool
    sigma: float
    backbone: str
    samplers: tuple[str, ...]
    sampler_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    steps: int | None = None
    n_samples: int = 1
    seed: int = 0
    baselines: bool = False
    said: tuple[str, ...] = ()

    def write(self, folder: Path) -> None:
        """Write `photo.png` and `mask.png`."""
        self.image.save(folder / PHOTO)
        if self.known is not None:
            to_pil(self.known.float()[None]).save(folder / MASK)

    def measured(self, folder: Path) -> tuple[LinearOperator, Any]:
        """A and y, from what `write` wrote: what the Python code does."""
        extra = {} if self.known is None else {"mask": str(folder / MASK)}
        A = make_operator(self.operator, self.image_shape, **self.options, **extra)
        if not self.simulate:
            return A, str(folder / PHOTO)
        x = from_pil(self.image)[None]
        return A, A.measure(x, self.sigma / 255, self.seed)

    def clean(self) -> Tensor | None:
        """The undamaged picture (1, C, H, W) in [0, 1], where it is known to be one."""
        return from_pil(self.image)[None] if self.simulate else None

    def arguments(self, sampler: str) -> dict[str, Any]:
        """What `solve` is given beside operator, y, sampler and backbone."""
        if sampler in baseline_names():
            return {"sigma_y": self.sigma / 255, "seed": self.seed}
        given: dict[str, Any] = {"sigma_y": self.sigma / 255, "n_samples": self.n_samples, "seed": self.seed}
        if self.steps is not None:
            given["steps"] = self.steps
        return {**given, **self.sampler_options.get(sampler, {})}

    def python(self, baselines: tuple[str, ...] = ()) -> str:
        """A program that makes the same pictures from `photo.png` and `mask.png`, in the folder where they lie."""
        options = "".join(f", {name}={_literal(value)}" for name, value in self.options.items())
        options += "" if self.known is None else f', mask="{MASK}"'
        noise = f", sigma_y={self.sigma:g} / 255" if self.sigma else ""
        loader = f'"{self.backbone}"' + (', engine="torch"' if _embedded(self.backbone) else "")
        lines = ["from invdiff import load_backbone, make_operator, solve"]
        if self.simulate:
            lines = [
                "from PIL import Image",
                "",
                *lines,
                "from invdiff.images import from_pil",
            ]
        lines += [
            "",
            f'A = make_operator("{self.operator}", {self.image_shape}{options})',
            *(
                [
                    f'x = from_pil(Image.open("{PHOTO}"))[None]',
                    f"y = A.measure(x{noise}, seed={self.seed})",
                ]
                if self.simulate
                else [f'y = "{PHOTO}"']
            ),
            f"backbone = load_backbone({loader})",
        ]
        for sampler in (*self.samplers, *baselines):
            given = self.arguments(sampler)
            given.pop("sigma_y")
            words = "".join(f", {name}={_literal(value)}" for name, value in given.items())
            lines.append(f'answer = solve(A, y, "{sampler}", backbone=backbone{noise}{words})')
            lines.append(f'answer.save("{sampler}.png")')
        return "\n".join(lines) + "\n"

    def shell(self, baselines: tuple[str, ...] = ()) -> str:
        """Commands that make the same pictures, one a line."""
        words = ["invdiff", "solve", PHOTO, "--operator", self.operator]
        words += ["--mask", MASK] if self.known is not None else []
        for name, value in self.options.items():
            words += ["-A", f"{name}={value}"]
        words += ["--simulate"] if self.simulate else []
        words += ["--sigma-y", f"{self.sigma:g}"] if self.sigma else []
        words += ["--backbone", self.backbone, *(["--engine", "torch"] if _embedded(self.backbone) else [])]
        lines = []
        for sampler in (*self.samplers, *baselines):
            own = ["--sampler", sampler]
            given = self.arguments(sampler)
            given.pop("sigma_y")
            named = {"n_samples": "--samples", "seed": "--seed", "steps": "--steps"}
            for name, value in given.items():
                own += [named[name], str(value)] if name in named else ["-O", f"{name}={value}"]
            lines.append(shlex.join([*words, *own, "-o", f"{sampler}.png"]))
        return "\n".join(lines) + "\n"


def examples() -> dict[str, Path | None]:
    """Photos that come with the installation: name -> file, None for the one of our own."""
    import importlib.util

    found: dict[str, Path | None] = {"Chelsea, 64x64": None}
    spec = importlib.util.find_spec("skimage")
    folder = Path(spec.origin).parent / "data" if spec is not None and spec.origin else Path()
    for label, file in (("Chelsea, 451x300", "chelsea.png"), ("Coffee, 600x400", "coffee.png")):
        if (folder / file).is_file():
            found[label] = folder / file
    return found


def open_photo(source: str | None, example: str | None, limits: Limits) -> tuple[Image.Image, list[str]]:
    """The visitor's photo, or an example by name.

    Raises:
        InvdiffError: neither, or no photo.
    """
    if source:
        return read_photo(source, limits)
    if not example:
        raise InvdiffError("photo must be a file, or one of the examples, got none")
    file = examples()[one_of("example", example, examples())]
    return (chelsea64(), []) if file is None else read_photo(file, limits)


def make_recipe(
    image: Image.Image,
    damage: Damage,
    samplers: list[str],
    *,
    backbone: str = AUTO,
    steps: int | None = None,
    n_samples: int = 1,
    seed: int = 0,
    baselines: bool = False,
    options: str = "",
    limits: Limits | None = None,
    said: tuple[str, ...] = (),
) -> Recipe:
    """A recipe from what a form holds.

    Args:
        image: the photo, mode L or RGB.
        damage: what happened to it.
        samplers: one or more.
        backbone: a name of `backbone_names`, or "auto".
        steps: times kept of the schedule; None for each sampler's own.
        n_samples, seed: as in `solve`.
        baselines: also the classical methods.
        options: of the samplers, such as ``eta=0.5 repaint.jump_length=5``.
        limits: of the server.
        said: what was done to the photo before.

    Raises:
        InvdiffError: anything that is not accepted.
    """
    limits = limits or Limits()
    if not samplers:
        raise InvdiffError("samplers must be one at least, got none")
    if len(samplers) > limits.samplers:
        raise InvdiffError(f"samplers must be at most {limits.samplers}, got {len(samplers)}")
    for name in samplers:
        one_of("sampler", name, sampler_names())
    if not is_auto(backbone):
        one_of("backbone", backbone, (*backbone_names(), *limits.backbones))
    n_samples = whole("samples", n_samples, 1, limits.samples)
    seed = whole("seed", seed, 0, 2**31 - 1)
    steps = None if steps is None else whole("steps", steps, 1, 1000)
    sigma = real("noise", damage.sigma, 0, 255)
    operator, operator_options = damage.operator()
    told = list(said)
    is_mask = operator == "mask"
    small = operator == "super_resolution"
    grey_measured = operator == "colorization" and damage.done
    known = _known(damage, image, limits, told) if is_mask else None
    factor = operator_options.get("scale", 1) if small and damage.done else 1
    name = PHOTOS if is_auto(backbone) else backbone
    model = backbone_by_name(name)
    if model.image_shape[0] != 3:
        raise InvdiffError(
            f"backbone {name} is for pictures of {model.image_shape[0]} channels; the page takes those for 3"
        )
    if not model.any_size:
        image, known = _fitted(image, known, model, factor, told)
    elif small and not damage.done:
        size = [n // operator_options["scale"] * operator_options["scale"] for n in image.size]
        if min(size) == 0:
            raise InvdiffError(
                f"photo must be at least {operator_options['scale']} pixels wide and high for this scale"
            )
        if tuple(size) != image.size:
            told.append(f"The photo was cropped to {size[0]}x{size[1]}, which the scale divides.")
            image = image.crop((0, 0, size[0], size[1]))
    image = image.convert("L" if grey_measured else "RGB")
    shape = (3, image.height * factor, image.width * factor)
    if shape[1] * shape[2] > limits.megapixels * 1e6 * 1.01:
        raise InvdiffError(
            f"the restoration would have {shape[2]}x{shape[1]} pixels; at most {limits.megapixels:g} megapixels are worked on"
        )
    own = {sampler: _own_options(sampler, options, samplers) for sampler in samplers}
    for sampler in samplers:
        own[sampler] = {**_short_jumps(sampler, steps, own[sampler], told), **own[sampler]}
    return Recipe(
        image=image,
        known=known,
        operator=operator,
        options=operator_options,
        image_shape=shape,
        simulate=not damage.done and (not is_mask or sigma > 0),
        sigma=sigma,
        backbone=name,
        samplers=tuple(samplers),
        sampler_options={name: given for name, given in own.items() if given},
        steps=steps,
        n_samples=n_samples,
        seed=seed,
        baselines=baselines,
        said=tuple(told),
    )


_backbones: dict[str, Backbone] = {}


def backbone_by_name(name: str) -> Backbone:
    """A backbone, loaded once for all visitors."""
    if name not in _backbones:
        options: dict[str, Any] = {"engine": "torch"} if _embedded(name) else {}
        _backbones[name] = load_backbone(name, **options)
    return _backbones[name]


def _embedded(name: str) -> bool:
    """Whether a backbone is a network that comes with the package: its loader takes an engine."""
    return name in backbone_names() and (EMBEDDED / name / "config.json").is_file()


def _known(damage: Damage, image: Image.Image, limits: Limits, told: list[str]) -> Tensor:
    size = (image.height, image.width)
    if damage.kind == "ready":
        known = make_mask(damage.mask, size, seed=whole("seed of the mask", damage.mask_seed, 0, 2**31 - 1))
    elif damage.kind == "file":
        if not damage.mask_file:
            raise InvdiffError("mask must be a picture (white = known, black = missing), got none")
        known, said = read_mask_file(damage.mask_file, size, limits)
        told += said
    else:
        if damage.painted is None:
            raise InvdiffError("nothing is painted yet: paint over what is to be filled, or choose a ready mask")
        known = resized_mask(~damage.painted, size)
    if bool(known.all()):
        raise InvdiffError("nothing is missing: the mask is white everywhere; paint over what is to be filled")
    return known


def _fitted(
    image: Image.Image, known: Tensor | None, model: Backbone, factor: int, told: list[str]
) -> tuple[Image.Image, Tensor | None]:
    """Photo and mask for a backbone of one size: scaled, then its middle."""
    from invdiff.fitting import fit_picture

    _, height, width = model.image_shape
    if height % factor or width % factor:
        raise InvdiffError(f"scale must divide {height} and {width}, the size of backbone {model.name}, got {factor}")
    size = (height // factor, width // factor)
    if (image.height, image.width) == size:
        return image, known
    told.append(
        f"{model.name} knows pictures of {width}x{height} only: the middle of the photo was scaled to {size[1]}x{size[0]}."
    )
    image, placed = fit_picture(image, size, "cover")
    return image, None if known is None else placed.mask(known)


def _own_options(sampler: str, text: str, chosen: list[str]) -> dict[str, Any]:
    """Of ``eta=0.5 repaint.jump_length=5`` what is for one sampler: what names it, and what it alone can be meant by."""
    found: dict[str, Any] = {}
    for pair in text.replace(",", " ").split():
        name, sign, value = pair.partition("=")
        owner, dot, field_name = name.rpartition(".")
        if not sign or not field_name:
            raise InvdiffError(f"option {pair!r} must be written name=value or sampler.name=value, such as eta=0.5")
        if dot and owner not in chosen:
            raise InvdiffError(f"option {pair!r} is for {owner}, which is not among the samplers: {', '.join(chosen)}")
        if not dot or owner == sampler:
            found[field_name] = _value(value)
    sampler_class(sampler).check_names(found)
    return found


def _literal(value: Any) -> str:
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _short_jumps(sampler: str, steps: int | None, given: Mapping[str, Any], told: list[str]) -> dict[str, Any]:
    """Jumps that fit a short path, where the sampler's own do not."""
    method = sampler_class(sampler)()
    length = getattr(method, "jump_length", None)
    if length is None or steps is None or "jump_length" in given or length < steps:
        return {}
    short = max(1, steps // 4)
    told.append(f"{sampler}'s jumps were shortened to {short} step{'s' * (short != 1)}, for the path has {steps}.")
    own: dict[str, Any] = {"jump_length": short}
    if "jump_n_sample" not in given and steps <= 1:
        own["jump_n_sample"] = 1
    return own


def painted_mask(content: bytes) -> Tensor:
    """(H, W) bool, True where something was painted, of the page's picture: a PNG whose opacity counts.

    Raises:
        InvdiffError: it is none, or an enormous one.
    """
    import io

    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
            if picture.width * picture.height > 25_000_000:
                raise InvdiffError("what was painted must have at most 25 megapixels")
            alpha = np.asarray(picture.convert("RGBA"))[..., 3]
    except InvdiffError:
        raise
    except Exception:
        raise InvdiffError("what was painted must be a PNG picture") from None
    return torch.from_numpy(alpha > 127)
