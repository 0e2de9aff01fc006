"""`invdiff solve`, `sample`, `mask` and `demo`."""

from __future__ import annotations

import inspect
import os
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from invdiff.cli.terminal import app, console, errors, stop
from invdiff.cli.words import key_values

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from invdiff.fitting import Placement
    from invdiff.operators.base import LinearOperator
    from invdiff.photos import Photo

# ---- solve ------------------------------------------------------------------------------------------------------

Seed = Annotated[int, typer.Option(help="Seed of the draws; the same seed gives the same image.")]
BackboneName = Annotated[
    str, typer.Option(help="Embedded name, folder, checkpoint or hub name; see `invdiff list backbones`.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps, ...")]
Precision = Annotated[str, typer.Option(help="Of the network: auto, float32, bfloat16, float16.")]


@app.command("solve")
def solve_command(
    photo: Annotated[Path, typer.Argument(help="The measurement y, already degraded; with --simulate a clean image.")],
    operator: Annotated[
        str, typer.Option("--operator", "-a", help="What happened to the image; see `invdiff list operators`.")
    ] = "mask",
    operator_options: Annotated[
        list[str] | None,
        typer.Option(
            "--operator-option", "-A", help="An option of the operator, such as scale=4 or kernel=box; repeatable."
        ),
    ] = None,
    sampler: Annotated[
        str, typer.Option("--sampler", "-s", help="The method, see `invdiff list samplers`; or a restorer's folder.")
    ] = "auto",
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The restoration (.png, .jpg, .webp, .tif, .npy).")
    ] = Path("restored.png"),
    mask: Annotated[
        str | None,
        typer.Option(
            help="Short for -A mask=...: a file, 1 (white) = known, 0 (black) = missing; or a generated one, such as `half`."
        ),
    ] = None,
    invert_mask: Annotated[
        bool, typer.Option("--invert-mask", help="Short for -A invert=true: white marks what is missing.")
    ] = False,
    sigma_y: Annotated[float, typer.Option(help="Standard deviation of the noise in y, grey levels of 0..255.")] = 0.0,
    simulate: Annotated[
        bool,
        typer.Option("--simulate", help="The photo is clean: degrade it first, and report PSNR and SSIM against it."),
    ] = False,
    samples: Annotated[
        int, typer.Option("--samples", "-n", help="Restorations; several become name-0, name-1, ...")
    ] = 1,
    seed: Seed = 0,
    steps: Annotated[
        int | None, typer.Option(help="Times kept of the schedule; the sampler's own number by default.")
    ] = None,
    options: Annotated[
        list[str] | None, typer.Option("--option", "-O", help="A field of the sampler, such as eta=0.5; repeatable.")
    ] = None,
    path: Annotated[str | None, typer.Option(help="Another route through time: plain, jumps, travel.")] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="The sampler's settings for the operator: tuned (what its name stands for), paper, or a file (.toml); -O wins."
        ),
    ] = None,
    backbone: BackboneName = "auto",
    fit: Annotated[
        str | None,
        typer.Option(
            help="For backbones of one size and photos of another: cover (scale, then its middle), crop, pad or resize it."
        ),
    ] = None,
    device: Device = None,
    precision: Precision = "auto",
    engine: Annotated[
        str | None,
        typer.Option(help="What runs the network on the CPU: auto, torch, openvino (the extra of that name)."),
    ] = None,
    blend: Annotated[
        bool, typer.Option("--blend", help="Set what was filled into the photo without a seam (Poisson blending).")
    ] = False,
    baselines: Annotated[
        bool,
        typer.Option("--baselines", help="Also write what classical methods make of it, as name-biharmonic.png, ..."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write nothing: say network calls, time and memory, from a short trial.")
    ] = False,
    figure: Annotated[
        Path | None, typer.Option(help="Also write measurement, samples and their spread as one figure.")
    ] = None,
    animate: Annotated[Path | None, typer.Option(help="Also write the run as an animated .gif.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Restore an image.

    \b
    invdiff solve photo.png --operator mask --mask mask.png --sampler repaint -o restored.png
    invdiff solve grey.png --operator colorization --sampler ddnm -o colour.png --seed 3 --samples 4
    invdiff solve small.png --operator super_resolution -A scale=4 -A kernel=box -o large.png
    invdiff solve clean.png --simulate --operator blur -A kernel=gaussian -A sigma=1.6 --sigma-y 5 -o restored.png
    """
    import torch

    from invdiff.costs import estimate
    from invdiff.errors import InvdiffError, InvdiffWarning
    from invdiff.fitting import save
    from invdiff.images import from_pil
    from invdiff.operators import get_operator
    from invdiff.photos import Photo
    from invdiff.plotting import FIGURES, save_figure
    from invdiff.problem import Problem
    from invdiff.samplers import baseline_names, baselines_for
    from invdiff.solution import check_output
    from invdiff.solve import resolve_backbone, solve

    options_given = key_values(options)
    if "steps" in options_given:
        steps = (
            options_given.pop("steps") if steps is None else stop("steps is given twice, as --steps and as -O steps=")
        )
    check_output(output, count=samples)
    if baselines:
        for name in baseline_names():
            check_output(output.with_stem(f"{output.stem}-{name}"))
    empty = torch.empty(0)
    if figure is not None:
        check_output(figure, FIGURES)
    if animate is not None:
        check_output(animate, (".gif",))
    _check_apart({"photo": photo, "--mask": mask, "--output": output, "--figure": figure, "--animate": animate})
    picture = Photo.read(photo)
    measured = key_values(operator_options)
    if mask is not None:
        if "mask" in measured:
            stop("mask is given twice, as --mask and as -A mask=")
        measured["mask"] = mask
    if invert_mask:
        measured["invert"] = True
    _check_early(sampler, options_given, preset, sigma_y)
    if blend and get_operator(operator).task != "mask":
        stop(f"--blend is for masks, of which some pixels are missing, got operator {operator!r}")
    run_by = {} if engine is None else {"engine": engine}
    model = resolve_backbone(backbone, device, precision, **run_by)
    shape = model.image_shape
    if None in shape:
        if fit is not None:
            stop(f"--fit is for backbones of one size, and {model.name} takes any: leave it out")
        shape = _restored_shape(operator, measured, model.image_shape[0], picture, simulate)
    channels, height, width = shape
    A, image, placed = _operator_for(operator, measured, shape, replace(picture, alpha=None).image(), fit, simulate)
    if hasattr(A, "known_fraction") and not quiet:
        console.print(f"{100 * float(A.known_fraction):.0f} % of the pixels are known", highlight=False)
    y: Any = image if placed.how else picture
    truth = None
    if simulate:
        truth = from_pil(image)[None]
        if truth.shape[1] != channels:
            truth = truth.expand(1, channels, height, width) if channels == 3 else truth.mean(1, keepdim=True)
        y = A.measure(truth, sigma_y / 255, seed)
        sigma_y = sigma_y / 255
    arguments: dict[str, Any] = {
        "backbone": model,
        "sigma_y": sigma_y,
        "steps": steps,
        "n_samples": samples,
        "seed": seed,
        "path": path,
        "preset": preset,
        "progress": False if quiet else None,
        "keep_trajectory": animate is not None,
        **options_given,
    }
    if dry_run:
        from invdiff.samplers.presets import AUTO_SAMPLER

        price = estimate(A, y, sampler, **arguments)
        console.print(f"{AUTO_SAMPLER if sampler == 'auto' else sampler}: {price}", highlight=False, soft_wrap=True)
        return
    answer = solve(A, y, sampler, **arguments)
    if blend:
        answer = answer.blended()
    try:
        files = save(answer, output, placed)
    except (InvdiffError, OSError) as error:
        kept = save(answer, Path(tempfile.mkdtemp(prefix="invdiff-")) / output.name, placed)
        stop(f"{error}. What was computed is kept in {', '.join(map(str, kept))}")
    if not quiet:
        console.print(
            f"{answer.settings['sampler']}: {answer.nfe} network calls, {answer.seconds:.1f} s -> {', '.join(map(str, files))}",
            highlight=False,
        )
    if figure is not None:
        save_figure(answer.plot(), figure)
    if animate is not None:
        answer.animate(animate)
    if truth is not None and not quiet:
        _say_quality(answer.x, truth)
    for name in baselines_for(Problem(A, empty, empty, float(sigma_y), shape)) if baselines else ():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InvdiffWarning)  # of noise that it does not model
            classical = solve(A, y, name, backbone=model, sigma_y=sigma_y, seed=seed)
        files = save(classical, output.with_stem(f"{output.stem}-{name}"), placed)
        if not quiet:
            console.print(f"{name}: {classical.seconds:.1f} s -> {', '.join(map(str, files))}", highlight=False)
        if truth is not None and not quiet:
            _say_quality(classical.x, truth)


def _say_quality(x: Tensor, truth: Tensor) -> None:
    from invdiff.metrics import psnr, ssim

    for i, one in enumerate(x.clamp(0, 1)):
        db, similarity = float(psnr(one[None], truth)[0]), float(ssim(one[None], truth)[0])
        which = "" if len(x) == 1 else f"sample {i}: "
        console.print(f"  {which}PSNR {db:.2f} dB, SSIM {similarity:.3f}", highlight=False)


def _check_apart(files: dict[str, Any]) -> None:
    """Refuse to write over what is read, or twice to one place."""
    seen: dict[Path, str] = {}
    for name, file in files.items():
        if file is None:
            continue
        place = Path(os.path.realpath(file))
        if place in seen and name.startswith("--") and name != "--mask":
            stop(f"{name} must be another file than {seen[place]}, got {str(file)!r} for both")
        seen.setdefault(place, name)


def _check_early(sampler: str, options: dict[str, Any], preset: str | None, sigma_y: float) -> None:
    """Refuse what can be refused before a backbone is loaded."""
    from invdiff.samplers.paths import PATHS
    from invdiff.samplers.presets import AUTO_SAMPLER, rows
    from invdiff.samplers.restorer import named

    of_paths = {name for path in PATHS.values() for name in list(inspect.signature(path).parameters)[1:]}
    named(AUTO_SAMPLER if sampler == "auto" else sampler)[0].check_names(
        name for name in options if name not in of_paths
    )
    if preset is not None:
        rows(preset)
    if not sigma_y >= 0:
        stop(f"--sigma-y must be at least 0 (grey levels of 0..255), got {sigma_y:g}")


def _restored_shape(
    name: str, options: dict[str, Any], channels: int, photo: Photo, simulate: bool
) -> tuple[int, int, int]:
    """(C, H, W) of the picture that a photo of any size is a measurement of."""
    from invdiff.errors import InvdiffError
    from invdiff.operators import get_operator, make_operator

    shape = (channels, *photo.size)
    if simulate or get_operator(name).framed:
        return shape
    A = make_operator(name, shape, **options)
    for measured in (photo.pixels.shape[2], channels, 1):
        try:
            found = A.infer_image_shape((measured, *photo.size))
        except InvdiffError:
            continue
        if found[0] == channels and A.measurement_shape(found) == (measured, *photo.size):
            return found[0], found[1], found[2]
    stop(
        f"operator {name!r} makes measurements that are no pictures: only --simulate works here; use the Python interface"
    )


def _operator_for(
    name: str, options: dict[str, Any], shape: tuple[int, ...], image: Image, fit: str | None, simulate: bool
) -> tuple[LinearOperator, Image, Placement]:
    """The operator for images of `shape`, the photo in the size that is measured (or simulated from), and its place."""
    from invdiff.fitting import fit_picture, placed_options
    from invdiff.operators import get_operator, make_operator

    family, size = get_operator(name), (shape[1], shape[2])
    if not simulate and not family.framed:
        measured = make_operator(name, shape, **options).measurement_shape(shape)
        if len(measured) != 3 or measured[0] not in (1, 3):
            stop(
                f"operator {name!r} makes measurements that are no pictures: only --simulate works here; "
                "use the Python interface"
            )
        if measured[1:] != size == (image.height, image.width) and fit is None:
            stop(
                f"the photo has the size of the restoration, {size[1]}x{size[0]}, but the measurement of {name} is "
                f"{measured[2]}x{measured[1]}. Say --simulate if the photo is a clean one that is to be degraded first"
            )
        size = (measured[1], measured[2])
    image, placed = fit_picture(image, size, fit)
    A = make_operator(name, shape, **placed_options(family, options, placed))
    return A.bind(shape), image, placed  # for measurements that do not tell the size of their image


@app.command("sample")
def sample_command(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The picture; several become name-0, name-1, ...")
    ] = Path("sample.png"),
    samples: Annotated[int, typer.Option("--samples", "-n", help="How many.")] = 1,
    backbone: BackboneName = "cats64",
    steps: Annotated[int, typer.Option(help="Network calls per image.")] = 100,
    eta: Annotated[float, typer.Option(help="1 ancestral, 0 deterministic (DDIM).")] = 1.0,
    seed: Seed = 0,
    device: Device = None,
    precision: Precision = "auto",
) -> None:
    """Draw images from a backbone's prior: what it believes in when there is no measurement."""
    from invdiff.solution import check_output
    from invdiff.solve import sample

    check_output(output, count=samples)
    answer = sample(backbone, samples, steps=steps, eta=eta, seed=seed, device=device, precision=precision)
    files = answer.save(output)
    console.print(
        f"{answer.nfe} network calls, {answer.seconds:.1f} s -> {', '.join(map(str, files))}", highlight=False
    )


@app.command("mask")
def mask_command(
    name: Annotated[str, typer.Argument(help="Which; see `invdiff list masks`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The mask, white = known.")] = Path("mask.png"),
    size: Annotated[str, typer.Option(help="Pixels: 64, or height x width as 300x451.")] = "64",
    seed: Seed = 0,
) -> None:
    """Write a mask: white = known, black = missing."""
    from invdiff.files import atomic_write
    from invdiff.images import to_pil
    from invdiff.operators.masks import make_mask
    from invdiff.solution import check_output, npy_bytes

    check_output(output)
    sides = size.lower().split("x")
    if len(sides) > 2 or not all(side.strip().isdecimal() and len(side) < 10 for side in sides):
        stop(f"--size must be a number or height x width such as 300x451, got {size!r}")
    made = make_mask(name, (int(sides[0]), int(sides[-1])), seed=seed)
    with atomic_write(output) as temporary:
        if output.suffix.lower() == ".npy":
            temporary.write_bytes(npy_bytes(made))
        else:
            to_pil(made.float()[None]).save(temporary)
    console.print(f"{100 * float(made.float().mean()):.0f} % known -> {output}", highlight=False)


# ---- demo -------------------------------------------------------------------------------------------------------


@app.command("demo")
def demo_command(
    output: Annotated[Path, typer.Option("--output", "-o", help="The figure.")] = Path("demo/comparison.png"),
    full: Annotated[
        bool, typer.Option("--full", help="The papers' settings instead of fast ones (about an hour).")
    ] = False,
    backbone: BackboneName = "cats64",
    seed: Seed = 0,
) -> None:
    """Repair a damaged photograph, and restore a cat's face with every sampler: before and after, one figure, one table."""
    from invdiff.demo import Row, repair_photo, run_demo
    from invdiff.files import make_folder
    from invdiff.solution import check_output

    def tell(row: Row) -> None:
        errors.print(
            f"  {row.task}: {row.sampler} {row.psnr:.1f} dB, {row.seconds:.1f} s", highlight=False, style="dim"
        )

    make_folder(output.parent, "out")
    check_output(output, (".png",))
    photo = repair_photo(output.parent, seed=seed)
    console.print(
        f"a photograph, {100 * photo.missing:.1f} % of it under a scratch, a caption and a date: {photo.nfe} network calls, "
        f"{photo.seconds:.1f} s, {photo.psnr:.1f} dB where it was filled -> {photo.files[-1]}",
        highlight=False,
        soft_wrap=True,
    )
    rows = run_demo(output, full=full, backbone=backbone, seed=seed, on_row=tell)
    table = Table(
        title="Chelsea, 64x64", caption="misfit: rms of A x - y on a scale of [0, 1]", box=None, header_style="bold"
    )
    table.add_column("task")
    table.add_column("sampler")
    for head in ("PSNR (dB)", "SSIM", "misfit", "network calls", "seconds"):
        table.add_column(head, justify="right")
    last = ""
    for row in rows:
        if last and row.task != last:
            table.add_section()
        table.add_row(
            row.task if row.task != last else "",
            row.sampler,
            f"{row.psnr:.2f}",
            f"{row.ssim:.3f}",
            f"{row.misfit:.1e}" if row.misfit >= 5e-7 else "0",
            str(row.nfe),
            f"{row.seconds:.1f}",
        )
        last = row.task
    console.print(table)
    console.print(f"figure: {output}", highlight=False)
