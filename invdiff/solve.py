"""One call from a measurement to a restoration."""

from __future__ import annotations

import dataclasses
import inspect
import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from invdiff.backbones.base import Backbone
from invdiff.backbones.network import NETWORK_PRECISIONS, NetworkBackbone, available_device
from invdiff.backbones.windows import Near, Patched, in_tiles
from invdiff.backbones.zoo import AUTO, DEFAULT_BACKBONE, PHOTOS, load_backbone
from invdiff.batches import Batches
from invdiff.checks import array, flag, function, known, one_of, shown, whole
from invdiff.errors import InvdiffError, InvdiffWarning
from invdiff.images import Affine
from invdiff.noise import NoiseSource
from invdiff.operators import Identity
from invdiff.operators.base import LinearOperator
from invdiff.operators.nonlinear import NonlinearOperator
from invdiff.photos import Photo
from invdiff.plan import REGIONS, Plan, Stage, plan_restoration, restore
from invdiff.problem import Problem, build_problem
from invdiff.progress import progress_bar
from invdiff.regions import Box
from invdiff.samplers.base import Progress, Record, Sampler, Walk, samplers_that
from invdiff.samplers.ddnm import noisy_kin
from invdiff.samplers.guidance import Guidance, as_guidance
from invdiff.samplers.paths import PATHS, make_path
from invdiff.samplers.presets import AUTO_SAMPLER, TUNED, automatic, settings_for
from invdiff.samplers.restorer import named
from invdiff.samplers.unconditional import Unconditional
from invdiff.solution import Frame, Solution, in_range

MOST_RESTORATIONS = 1_000_000
"""In one call: beyond this a count is a slip of the pen."""

_SET_BY_SAMPLE = {
    "operator",
    "y",
    "sampler",
    "backbone",
    "sigma_y",
    "n_samples",
    "steps",
    "seed",
    "preset",
    "sampler_options",
}


@torch.inference_mode(False)  # what is made here may have to be differentiated, whatever mode the caller is in
def solve(
    operator: LinearOperator | NonlinearOperator,
    y: Any,
    sampler: str | Sampler | type[Sampler] = AUTO,
    *,
    backbone: str | Backbone | None = None,
    sigma_y: float = 0.0,
    steps: int | None = None,
    n_samples: int = 1,
    seed: int | Sequence[int] = 0,
    noise: Callable[[tuple[int, ...]], Tensor] | None = None,
    x_init: Tensor | None = None,
    value_range: tuple[float, float] = (0.0, 1.0),
    device: torch.device | str | None = None,
    precision: str | None = None,
    batch_size: int | None = None,
    path: str | Sequence[int] | Callable[[int], Sequence[int]] | None = None,
    preset: str | os.PathLike[str] | None = None,
    guidance: Any = None,
    region: str = "auto",
    coarse_to_fine: str | bool | int = "auto",
    progress: bool | None = None,
    callback: Callable[[Progress], Any] | None = None,
    keep_trajectory: bool | int = False,
    **sampler_options: Any,
) -> Solution:
    """Restore x from ``y = A x + sigma_y n`` with a pretrained diffusion model.

        solution = solve(operator=Mask(m), sampler="repaint", y=image)
        solution.image.save("restored.png")

    Args:
        operator: A. A `Mask` keeps the pixels where it is 1 (white) and fills those where it is 0 (black).
        y: the measurement, already degraded; it is never degraded again. A PIL image, a path, a numpy array or a tensor,
            of the operator's measurement shape with or without a batch in front, or a list of pictures. Files, PIL images
            and uint8 arrays are 0..255, floats are in `value_range`. For a mask, a picture of full size of which only the
            known pixels are read.
        sampler: ``"auto"``, the default, is DDNM+ with 50 steps for masks, 30 for others, with and without noise. Else a
            name (see ``invdiff list samplers``; settings for the task are used, see `preset`), the folder of a `Restorer`, a
            sampler object or class.
        backbone: a name or path for `load_backbone`, or a `Backbone`; ``"auto"``, the default, is ``"photos"``, for photographs
            of any size. Cats and satellite tiles of 64 x 64 pixels have theirs by name: ``"cats64"``, ``"eurosat64"``.
        sigma_y: standard deviation of the noise in y, in the unit of y as passed.
        steps: times kept of the schedule, 1..T; by default the sampler's own number, or all where the schedule has fewer.
        n_samples: how many restorations of each measurement.
        seed: one for all images, or one per image. A result depends on its seed and sample number, never on its batch or,
            but for rounding, on the device.
        noise: ``callable(shape) -> Tensor`` to be used for every draw instead of the seeded source; see `NoiseSource`.
        x_init: first state x_T instead of the sampler's own, (N or 1, C, H, W), model range.
        value_range: black and white in float arrays, and in the result.
        device: where to run; the backbone's own place by default.
        precision: of the network, ``"auto"``, ``"float32"``, ``"tf32"``, ``"bfloat16"``, ``"float16"``; see `NetworkBackbone`; the
            backbone's own by default.
        batch_size: images run at once; by default as many as there is memory for. Where it runs out, half as many are tried,
            with a warning, and a callback sees that batch again. It does not change the result. Particles of one image are
            never parted.
        path: another route through time: ``"plain"``, ``"jumps"`` (with jump_length=10, jump_n_sample=10), ``"travel"``
            (with travel_length, travel_repeat), a list of times that ends in -1, or a function of the number of times.
        preset: settings of the sampler for the operator's task: ``"tuned"``, which a sampler's name stands for, ``"paper"``, as
            its authors run it, or a file of your own (.toml), see `samplers.presets`. A class takes one if asked, an object none.
            `steps` and `sampler_options` win over it.
        guidance: extra terms: losses of x0, pairs (loss, weight) or `Guidance` objects.
        region: with a `Mask`, no noise and a backbone of any size, ``"auto"`` computes the neighbourhood of what is missing
            only, and every known pixel of the answer is the photo's; ``"all"`` computes the whole picture. With guidance, a
            trajectory to keep, a `noise` or an `x_init` of the caller's the whole is always computed.
        coarse_to_fine: fill holes that are deeper than the backbone sees on a shrunken photo first, whose answer is a further
            measurement at the next size: ``"auto"`` where it is needed, a number of sizes, or False. See `plan_restoration`.
        progress: show a bar; by default on a terminal.
        callback: called with a `Progress` after every move, whose tensors are copies.
        keep_trajectory: keep every move (True) or every k-th (an int) of the first batch in `Solution.trajectory`.
        **sampler_options: fields of the sampler, such as ``eta=0.5``, and options of a named `path`.

    Returns:
        A `Solution`.

    Raises:
        InvdiffError: bad input, before any network call; it names the argument, what it was and what is accepted.
        DivergenceError: the run went non-finite.
    """
    if noise is not None:
        function("noise", noise, "a function of a shape")
    if callback is not None:
        function("callback", callback, "a function of a Progress")
    if progress is not None:
        flag("progress", progress)
    every = (
        int(keep_trajectory) if isinstance(keep_trajectory, bool) else whole("keep_trajectory", keep_trajectory, low=0)
    )
    terms = as_guidance(guidance)
    n_samples = whole("n_samples", n_samples, low=1)
    batch_size = None if batch_size is None else whole("batch_size", batch_size, low=1)
    model, problem = posed(operator, y, sigma_y, backbone, device, precision, value_range)
    run = prepared(
        model,
        problem,
        sampler,
        path=path,
        preset=preset,
        options={**sampler_options, **({} if steps is None else {"steps": steps})},
        seed=seed,
        n_samples=n_samples,
        x_init=x_init,
        region=region,
        coarse_to_fine=coarse_to_fine,
        whole_only=bool(terms or every or noise is not None),
    )
    method, times, states, keys, first, plan = run.method, run.times, run.states, run.keys, run.first, run.plan
    if method.baseline and terms:
        raise InvdiffError(f"guidance must be None with {method.name}, which asks no network")
    _warn_noise(method, problem)

    details: list[dict[str, Tensor]] = []
    frames: list[Frame] = []
    calls: list[int] = []
    started, moved = time.perf_counter(), 0
    total = sum(len(stage.boxes) for stage in plan.stages) * len(keys) * (len(times) - 1)
    with progress_bar(method.name, total, progress) as advance:

        def walk(task: Problem, stage: Stage, box: Box) -> Tensor:
            """Every restoration of one part of the picture at one size, (N, C, h, w), on the CPU."""
            part = in_tiles(model.sized(task.image_shape), gradient=method.uses_gradient or bool(terms))
            tiles = stage.tiles_in(box)
            walker = method if task.sigma_y == problem.sigma_y else noisy_kin(method)

            def some(rows: Tensor) -> Tensor:
                """The restorations of some of the keys; done again with fewer at once where memory ran out."""
                nonlocal calls, moved
                first_batch = int(rows[0]) == 0
                if first_batch:
                    frames.clear()
                advance(-moved)
                moved = 0

                def on_step(state: Progress) -> None:
                    nonlocal moved
                    advance(len(rows))
                    moved += len(rows)
                    if first_batch and every > 0 and (state.step % every == 0 or state.step == state.steps - 1):
                        frames.append(Frame(state.t, state.s, state.x.cpu().clone(), state.x0.cpu().clone()))
                    if callback is not None:
                        callback(
                            dataclasses.replace(state, x=state.x.clone(), x0=state.x0.clone())
                        )  # theirs to write to

                images = rows // states
                source = NoiseSource(
                    [keys[i] for i in rows],
                    stage.image_shape,
                    model.device,
                    model.dtype,
                    noise,
                    place=None if stage.whole else dataclasses.astuple(box),
                    stream="" if stage.shrink == 1 else f"shrunken {stage.shrink}",
                )
                start = (
                    None
                    if first is None
                    else (first if len(first) == 1 else first[rows]).expand(len(rows), *problem.image_shape)
                )
                record = Record(per_image=states)
                one = task.select(rows if len(task.y) == len(keys) else images) if len(keys) > 1 else task
                asked = part.select(images)
                restored = walker.run(
                    Walk(
                        one,
                        Near(asked, tiles, one.pinv_y) if tiles else asked,
                        source,
                        start,
                        times,
                        tuple(terms),
                        on_step,
                        record,
                    )
                ).cpu()
                calls, moved = max(calls, record.calls, key=len), 0
                details.append(record.details)
                return restored

            return Batches(
                len(keys),
                math.prod(task.image_shape),
                model.device,
                method.uses_gradient,
                batch_size,
                together=states if method.together else 1,
                grows=not getattr(model, "compile", False),
            ).run(some)

        noisy = method.handles_noise or noisy_kin(method) is not method
        restored = restore(plan, problem, states, noisy, walk)
    seconds = time.perf_counter() - started
    if states != n_samples:
        restored = restored.unflatten(0, (-1, states))[:, :n_samples].flatten(0, 1)
    if model.bounded and not method.baseline and float(restored.abs().max()) > 10:
        warnings.warn(
            f"the restoration reaches {float(restored.abs().max()):.3g} times the range of an image: the backbone does not predict "
            f"what it is said to ({getattr(model, 'prediction', 'its prediction type')}), or the sampler diverged",
            InvdiffWarning,
            stacklevel=3,
        )
    low, high = float(value_range[0]), float(value_range[1])
    shown = Affine.from_range((low, high))
    return Solution(
        x=in_range(restored, shown),
        nfe=-(-len(calls) * states // n_samples),
        seconds=seconds,
        timesteps=calls,
        vjps=method.cost(model.schedule, times, n_samples, problem).vjps,
        settings={
            "sampler": method.name,
            **{f.name: getattr(method, f.name) for f in dataclasses.fields(method)},
            **({} if preset is None else {"preset": os.fspath(preset)}),
            **({} if path is None else {"path": path if isinstance(path, str) else "own", **run.path_options}),
            "operator": repr(operator),
            "sigma_y": float(sigma_y),
            "backbone": model.name,
            "precision": getattr(model, "precision", str(model.dtype).removeprefix("torch.")),
            "device": str(model.device),
            "seed": keys[0][0] if len({s for s, _ in keys}) == 1 else [s for s, _ in keys[::states]],
            "n_samples": n_samples,
            **({} if plan.alone else {"plan": str(plan)}),
        },
        y=in_range(problem.y if problem.y.shape == problem.pinv_y.shape else problem.pinv_y, shown),
        n_samples=n_samples,
        value_range=(low, high),
        trajectory=frames,
        photos=_dressing(problem),
        diagnostics={name: torch.cat([one[name] for one in details]) for name in details[0]} if plan.alone else {},
        known=None if problem.known_pixels is None else problem.known_pixels.cpu(),
    )


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What a run will do, all checked, before the network is asked.

    Attributes:
        method: the sampler.
        path_options: of a named path.
        times: the path.
        states: of one image that travel together: its samples, or the particles that they are drawn from.
        keys: (seed, sample number) of every state.
        first: the caller's first state.
        plan: which parts at which sizes.
    """

    method: Sampler
    path_options: dict[str, Any]
    times: list[int]
    states: int
    keys: list[tuple[int, int]]
    first: Tensor | None
    plan: Plan


def prepared(
    model: Backbone,
    problem: Problem,
    sampler: str | Sampler | type[Sampler],
    *,
    path: Any,
    preset: str | os.PathLike[str] | None,
    options: dict[str, Any],
    seed: int | Sequence[int],
    n_samples: int,
    x_init: Tensor | None,
    region: str,
    coarse_to_fine: str | bool | int,
    whole_only: bool,
) -> Prepared:
    """The run that `solve` makes of its arguments; `whole_only` where they forbid parts of the picture.

    Raises:
        InvdiffError: as `solve`.
    """
    method, path_options = resolve_sampler(sampler, problem, path, options, preset)
    if not isinstance(sampler, Sampler):
        method = method.fitted(len(model.schedule), options)
    if reason := method.reason(problem):
        raise InvdiffError(f"sampler {method.name!r} cannot restore a measurement of {problem.operator!r}: {reason}")
    if method.baseline and x_init is not None:
        raise InvdiffError(f"x_init must be None with {method.name}, which asks no network")
    schedule = method.respaced(model.schedule)
    times = method.path(schedule) if path is None else make_path(path, len(schedule), **path_options)
    method.check_samples(n_samples)
    states = method.states(n_samples)
    keys = _keys(seed, len(problem.y), states)
    first = _first_state(x_init, len(keys), model.sized(problem.image_shape))
    whole_only = whole_only or first is not None or method.together or method.baseline
    by_parts = not (whole_only or isinstance(method, Unconditional))
    plan = plan_restoration(
        problem.operator,
        problem.image_shape,
        model,
        method.cost(model.schedule, times).calls,
        sigma_y=problem.sigma_y,
        region=region if by_parts else one_of("region", region, REGIONS) and "all",
        coarse_to_fine=coarse_to_fine if by_parts or coarse_to_fine != "auto" else False,
    )
    return Prepared(method, path_options, list(times), states, keys, first, plan)


def sample(
    backbone: str | Backbone | None = None,
    n: int = 1,
    *,
    steps: int = 250,
    eta: float = 1.0,
    seed: int = 0,
    size: int | Sequence[int] | None = None,
    **options: Any,
) -> Solution:
    """Draw images from a backbone's prior: ancestral with eta = 1, deterministic DDIM with eta = 0.

    Args:
        backbone: name, path or `Backbone`; ``"cats64"`` by default.
        n: how many.
        steps: network calls per image.
        eta: 1 ancestral, 0 deterministic; see `Unconditional`.
        seed: of the draws; image i is sample i of that seed.
        size: pixels, one number or (height, width), for a backbone of any size (128 by default).
        **options: passed on to `solve` (device, precision, batch_size, progress, clip, ...).

    Returns:
        A `Solution` whose ``x`` is (n, C, H, W).
    """
    known("sample", options, inspect.signature(solve).parameters.keys() - _SET_BY_SAMPLE | {"clip"})
    n = whole("n", n, 1, MOST_RESTORATIONS)
    model = resolve_backbone(
        DEFAULT_BACKBONE if is_auto(backbone) else backbone, options.pop("device", None), options.pop("precision", None)
    )
    clip = options.pop("clip", True)
    if model.any_size or size is not None:
        own = [side or 128 for side in model.image_shape[1:]]
        height, width = own if size is None else (size, size) if isinstance(size, int) else size
        model = model.sized((model.image_shape[0], height, width))
    nothing = torch.full((1, *model.image_shape), 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InvdiffWarning)
        return solve(
            Identity(),
            nothing,
            Unconditional(steps=steps, eta=eta, clip=clip),
            backbone=model,
            n_samples=n,
            seed=seed,
            **options,
        )


def posed(
    operator: LinearOperator | NonlinearOperator,
    y: Any,
    sigma_y: float,
    backbone: str | Backbone | None,
    device: torch.device | str | None,
    precision: str | None,
    value_range: tuple[float, float],
) -> tuple[Backbone, Problem]:
    """The backbone that is meant, and the problem in its range, shape and place; the arguments are those of `solve`."""
    model = resolve_backbone(backbone, device, precision)
    return model, build_problem(operator, y, sigma_y, model, value_range)


def is_auto(backbone: Any) -> bool:
    """Whether the backbone is left to the library."""
    return backbone is None or backbone == AUTO


def resolve_backbone(
    backbone: str | Backbone | None,
    device: torch.device | str | None = None,
    precision: str | None = None,
    **options: Any,
) -> Backbone:
    """A backbone by name, or as it is, on the wanted device and in the wanted precision; `options` go to its loader."""
    device = None if device is None else available_device(device)
    if precision is not None:
        one_of("precision", precision, NETWORK_PRECISIONS)
    if not isinstance(backbone, Backbone):
        if backbone is not None and not isinstance(backbone, str) and not hasattr(backbone, "__fspath__"):
            raise InvdiffError(
                f"backbone must be a name, a path or a Backbone, got {shown(backbone)}; wrap a network as "
                "NetworkBackbone(network, schedule=NoiseSchedule.linear(1000), image_shape=(3, 256, 256))"
            )
        return load_backbone(
            PHOTOS if is_auto(backbone) else cast(str, backbone),
            precision=precision or "auto",
            device=device,
            **options,
        )
    if precision is not None and isinstance(backbone, NetworkBackbone | Patched):
        backbone = backbone.with_precision(precision)
    return backbone if device is None else backbone.to(device)


def resolve_sampler(
    sampler: str | Sampler | type[Sampler],
    problem: Problem,
    path: Any = None,
    options: dict[str, Any] | None = None,
    preset: str | os.PathLike[str] | None = None,
) -> tuple[Sampler, dict[str, Any]]:
    """The sampler object for a task, and those of the options that belong to a named path.

    Raises:
        InvdiffError: unknown sampler, option or preset (with the near match), a value out of its range, or a preset for a sampler
            object.
    """
    options = dict(options or {})
    if isinstance(sampler, str) and sampler == AUTO:
        sampler = AUTO_SAMPLER
        if preset is None:
            options = {**automatic(problem.operator.task, problem.sigma_y > 0, options), **options}
    path_options: dict[str, Any] = {}
    if isinstance(path, str) and path in PATHS:
        names = list(inspect.signature(PATHS[path]).parameters)[1:]
        path_options = {k: options.pop(k) for k in names if k in options}
    if isinstance(sampler, str):
        cls, by_name = named(sampler)
        options = {**by_name, **options}
    elif isinstance(sampler, type) and issubclass(sampler, Sampler) and not inspect.isabstract(sampler):
        cls = sampler
    elif isinstance(sampler, Sampler):
        cls = type(sampler)
    else:
        raise InvdiffError(f"sampler must be a name, or a sampler or its class such as DDNM, got {shown(sampler)}")
    if cls.baseline and path is not None:
        raise InvdiffError(f"path must be None with {cls.name}, which has none, got {shown(path)}")
    cls.check_names(options)
    if isinstance(sampler, Sampler):
        if preset is not None:
            raise InvdiffError(
                f"preset must be None with a sampler object, whose settings are its own, got {shown(preset)}"
            )
        return dataclasses.replace(sampler, **options), path_options
    if preset is None and isinstance(sampler, str):
        preset = TUNED
    task = problem.operator.task, problem.sigma_y > 0
    settings = {} if preset is None else settings_for(cls.name, *task, preset, options)
    return cls(**{**settings, **options}), path_options


def _warn_noise(sampler: Sampler, problem: Problem) -> None:
    if problem.sigma_y > 0 and not sampler.handles_noise and sampler.name != "unconditional":
        able = ", ".join(samplers_that(handles_noise=True, baseline=False))
        warnings.warn(
            f"{sampler.name} does not model measurement noise: sigma_y = {problem.sigma_y:g} (model range) is ignored and the "
            f"noise of y stays in the result. These samplers model it: {able}",
            InvdiffWarning,
            stacklevel=4,
        )


def _dressing(problem: Problem) -> tuple[Photo | None, ...]:
    """The photos that the restorations are dressed as; a grey one that was to be coloured lends no grey."""
    if problem.y.ndim == 4 and problem.y.shape[1] == problem.image_shape[0]:
        return problem.photos
    return tuple(photo and photo.coloured() for photo in problem.photos)


def _keys(seed: int | Sequence[int], images: int, n_samples: int) -> list[tuple[int, int]]:
    """(seed, sample number) of every restoration."""
    if images * n_samples > MOST_RESTORATIONS:
        most, all_ = MOST_RESTORATIONS // images, images * n_samples
        raise InvdiffError(
            f"n_samples must be at most {most:,} for {images} images in one call, got {shown(n_samples)}: that would be "
            f"{shown(all_)} restorations, each of many network calls"
        )
    seeds: list[Any] = [seed] * images
    if (
        isinstance(seed, Sequence | np.ndarray | Tensor)
        and not isinstance(seed, str | bytes)
        and getattr(seed, "ndim", 1) == 1
    ):
        seeds = list(seed)
    if len(seeds) != images:
        raise InvdiffError(f"seed must be a whole number, or one per image ({images}), got {shown(seed)}")
    numbers = [whole("seed", s, -(2**63), 2**63 - 1) for s in seeds]
    return [(s, j) for s in numbers for j in range(n_samples)]


def _first_state(x_init: Tensor | None, count: int, backbone: Backbone) -> Tensor | None:
    if x_init is None:
        return None
    shape = backbone.image_shape
    state = array("x_init", x_init, what="numbers in model range").to(backbone.device, backbone.dtype)
    if tuple(state.shape) == shape:
        state = state[None]
    if tuple(state.shape[1:]) != shape or len(state) not in (1, count):
        raise InvdiffError(f"x_init must have shape {(count, *shape)} or {(1, *shape)}, got {tuple(state.shape)}")
    if not bool(torch.isfinite(state).all()):
        raise InvdiffError("x_init must be finite, got values that are NaN or infinite")
    return state


__all__ = ["Guidance", "Prepared", "prepared", "resolve_backbone", "resolve_sampler", "sample", "solve"]
