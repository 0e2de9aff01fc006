"""What a restoration computes, known before it runs: which parts of the picture, at which sizes, with how many calls."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from invdiff.backbones.base import Backbone
from invdiff.backbones.windows import Windows
from invdiff.checks import one_of, shown, whole
from invdiff.errors import InvdiffError
from invdiff.operators.averages import MaskAndAverages
from invdiff.operators.mask import Mask
from invdiff.problem import Problem
from invdiff.regions import Box, Tile, neighbourhoods, tiles_of

REGIONS = ("auto", "all")
ROUNDING = 2 / 255 / 12**0.5
"""Standard deviation of what 8 bits round away, model range: the noise of known pixels beside an uncertain coarse answer."""
COARSE_SIGMA = 0.02
"""Noise that the averages of a coarse answer are taken to have, model range: 2.5 grey levels. From 0.02 to 0.2 the answer is as
far from the truth, and its gradients are nearest to true ones with the least (``benchmarks/photos.py --parts choices``)."""
_LEAST_SIDE = 32  # pixels of the shorter side that a picture is not shrunken below


@dataclass(frozen=True)
class Stage:
    """One size at which a picture is restored.

    Attributes:
        shrink: pixels of the photo to a side of one of this stage.
        image_shape: (C, H, W) of the whole picture at this size.
        boxes: the parts of it that are computed; what lies outside is known.
        tiles: what the network is asked about in each of these parts, in order; none where it is the whole part.
    """

    shrink: int
    image_shape: tuple[int, ...]
    boxes: tuple[Box, ...]
    tiles: tuple[tuple[Tile, ...], ...] = ()

    def tiles_in(self, box: Box) -> tuple[Tile, ...]:
        """The tiles of one of the parts; none where the network is asked about it as one."""
        return self.tiles[self.boxes.index(box)] if self.tiles else ()

    @property
    def whole(self) -> bool:
        """Whether it is computed as one."""
        return self.boxes == (Box(0, 0, *self.image_shape[1:]),)


@dataclass(frozen=True)
class Plan:
    """Everything that a restoration will compute, from the coarsest size to the photo's own.

    Attributes:
        stages: coarsest first; one unless holes are filled coarse to fine.
        calls: network calls for each part of each stage and each sample.
    """

    stages: tuple[Stage, ...]
    calls: int

    @property
    def alone(self) -> bool:
        """Whether the picture is computed as one, at its own size only."""
        return len(self.stages) == 1 and self.stages[0].whole and not any(self.stages[0].tiles)

    @property
    def network_calls(self) -> list[tuple[tuple[int, int, int], int]]:
        """((C, height, width), number) of the network calls for one sample, part after part."""
        return [
            ((stage.image_shape[0], asked.height, asked.width), self.calls)
            for stage in self.stages
            for box in stage.boxes
            for asked in [tile.seen for tile in stage.tiles_in(box)] or [box]
        ]

    @property
    def pixels(self) -> int:
        """Pixels that the network is asked about for one sample, over all calls: what the time is proportional to."""
        return sum(number * height * width for (_, height, width), number in self.network_calls)

    def __str__(self) -> str:
        lines = []
        for stage in self.stages:
            _, height, width = stage.image_shape
            sizes = ", ".join(f"{box.width}x{box.height}" for box in stage.boxes[:4])
            more = f" and {len(stage.boxes) - 4} more" if len(stage.boxes) > 4 else ""
            what = "whole" if stage.whole else f"{len(stage.boxes)} part{'s' * (len(stage.boxes) != 1)}: {sizes}{more}"
            tiles = sum(map(len, stage.tiles))
            cut = f", by {tiles} tiles near the hole" if tiles else ""
            lines.append(f"{width}x{height} ({what}{cut}), {self.calls} network calls each")
        return "; ".join(lines)


def plan_restoration(
    operator: Any,
    image_shape: Sequence[int],
    backbone: Backbone,
    calls: int,
    *,
    sigma_y: float = 0.0,
    region: str = "auto",
    coarse_to_fine: str | bool | int = "auto",
) -> Plan:
    """What `solve` will compute.

    Args:
        operator: A.
        image_shape: (C, H, W) of the picture.
        backbone: for its `context` and `multiple_of`.
        calls: network calls of the sampler's path.
        sigma_y: noise of y; with noise in it, known pixels are to be denoised, and everything is computed.
        region: ``"auto"``: with a `Mask`, only the neighbourhood of what is missing, `backbone.context` wide; ``"all"``.
        coarse_to_fine: how many sizes to begin with below the photo's own: ``"auto"`` as many as bring the known pixels into
            the backbone's context everywhere; a number; False for none.

    Raises:
        InvdiffError: another `region` or `coarse_to_fine`.
    """
    one_of("region", region, REGIONS)
    shape = tuple(int(n) for n in image_shape)
    levels = _asked_levels(coarse_to_fine)
    context = backbone.context
    alone = Plan((Stage(1, shape, (Box(0, 0, *shape[1:]),)),), calls)
    if type(operator) is not Mask or sigma_y > 0 or context is None or not backbone.any_size:
        if levels:
            raise InvdiffError(
                f"coarse_to_fine must be 'auto' or False here, got {shown(coarse_to_fine)}: it is for a Mask without noise and a "
                "backbone of any size"
            )
        return alone
    missing = (~operator.mask).flatten(0, 1).any(0).cpu().numpy()
    if missing.all() or not missing.any():
        return alone
    if levels is None:
        levels = _levels(missing, context)
    stages = []
    for level in range(levels, -1, -1):
        holes = _coarse(torch.from_numpy(missing), 2**level).numpy()
        size = (shape[0], *holes.shape)
        boxes: list[Box] = [Box(0, 0, *holes.shape)]
        tiles: list[tuple[Tile, ...]] = []
        if region == "auto":
            multiple = math.lcm(backbone.multiple_of, 2)
            boxes = neighbourhoods(holes, context, multiple)
            if not isinstance(backbone, Windows):  # whose windows are its tiles
                tiles = [tiles_of(box.of(holes), context, multiple) for box in boxes]
        stages.append(Stage(2**level, size, tuple(boxes), tuple(tiles)))
    return Plan(tuple(stages), calls)


def _asked_levels(coarse_to_fine: str | bool | int) -> int | None:
    if coarse_to_fine is True or (isinstance(coarse_to_fine, str) and coarse_to_fine == "auto"):
        return None
    if coarse_to_fine is False:
        return 0
    return whole("coarse_to_fine", coarse_to_fine, 0, 8, "Or 'auto', True, False.")


def _levels(missing: np.ndarray, context: int) -> int:
    """How often to halve the picture until every missing pixel has known ones within the context."""
    from scipy import ndimage

    depth = 1.0
    for box in neighbourhoods(missing, 1):  # by parts: of millions of pixels few are missing
        part = missing[box.top : box.top + box.height, box.left : box.left + box.width]
        if min(box.height, box.width) > 2 * context:
            depth = max(depth, float(ndimage.distance_transform_edt(part).max()))
    wanted = max(0, math.ceil(math.log2(depth / context)))
    most = max(0, int(math.log2(min(missing.shape) / _LEAST_SIDE)))
    while wanted and bool(_coarse(torch.from_numpy(missing), 2 ** min(wanted, most)).all()):
        wanted = min(wanted, most) - 1  # nothing known would be left
    return min(wanted, most)


def _coarse(missing: Tensor, shrink: int) -> Tensor:
    """(..., H, W) bool of a shrunken picture: a pixel is missing where any of those that it averages is."""
    if shrink == 1:
        return missing
    images = missing.reshape(1, -1, *missing.shape[-2:]).float()
    pooled = functional.max_pool2d(images, shrink, ceil_mode=True) > 0
    return pooled.reshape(*missing.shape[:-2], *pooled.shape[-2:])


def part_of(problem: Problem, stage: Stage, box: Box, coarse: Tensor | None, noisy: bool) -> Problem:
    """The problem of one part of one stage.

    Args:
        problem: of the whole photo; where the plan has more than the photo as one, its operator is a `Mask`.
        stage, box: of the plan.
        coarse: (N, C, h, w), the answer of the stage before; then `problem` has one measurement for each of the N.
        noisy: whether the sampler handles noise, which the averages of the coarse answer then get.
    """
    if stage.whole and stage.shrink == 1 and coarse is None:
        return problem
    mask = _mask_of(problem)
    shape = (stage.image_shape[0], box.height, box.width)
    if stage.shrink == 1:
        known, y = box.of(mask), box.of(problem.y)
    else:
        known = box.of(~_coarse(~mask, stage.shrink))
        y = torch.where(known, box.of(functional.avg_pool2d(problem.y, stage.shrink, ceil_mode=True)), 0.0)
    if coarse is None:
        given = box.of(problem.y_given) if stage.shrink == 1 else y
        return Problem(Mask(known), y, given, 0.0, shape)
    weight = ROUNDING / COARSE_SIGMA if noisy else 1.0
    operator = MaskAndAverages(known, 2, weight)
    joined = operator.measurement(y, box.shrunken(2).of(coarse))
    return Problem(operator.bind(shape), joined, joined, ROUNDING if noisy else 0.0, shape)


def _mask_of(problem: Problem) -> Tensor:
    assert isinstance(problem.operator, Mask)
    return problem.operator.mask


def known_of(problem: Problem, stage: Stage) -> tuple[Tensor, Tensor]:
    """The picture (B, C, H, W) of a stage with its known pixels, and where these are; for a problem with a `Mask`."""
    mask = torch.broadcast_to(_mask_of(problem), problem.y.shape)
    if stage.shrink == 1:
        return problem.y, mask
    known = ~_coarse(~mask, stage.shrink)
    return torch.where(known, functional.avg_pool2d(problem.y, stage.shrink, ceil_mode=True), 0.0), known


Walk = Callable[[Problem, Stage, Box], Tensor]


def restore(plan: Plan, problem: Problem, n_samples: int, noisy: bool, walk: Walk) -> Tensor:
    """Carry out a plan: stage after stage, part after part.

    Args:
        plan: what to compute.
        problem: of the whole photo.
        n_samples: restorations of each measurement.
        noisy: whether the sampler handles noise.
        walk: ``walk(problem, stage, box)``, the restorations (N, C, h, w) of a part.

    Returns:
        (N, C, H, W) on the CPU. Where the plan has parts, known pixels are those of the problem.
    """
    if plan.alone:
        return walk(problem, plan.stages[0], plan.stages[0].boxes[0]).cpu()
    answer: Tensor | None = None
    for stage in plan.stages:
        task = problem
        if answer is not None and n_samples > 1:  # every sample has an answer of its own to go on from
            task = problem.select(torch.arange(len(problem.y)).repeat_interleave(n_samples))
        given, known = known_of(task, stage)
        canvas = given.repeat_interleave(n_samples, 0) if task is problem and n_samples > 1 else given.clone()
        known = known.repeat_interleave(n_samples, 0) if len(known) != len(canvas) else known
        for box in stage.boxes:
            found = walk(part_of(task, stage, box, answer, noisy), stage, box).to(canvas.device)
            box.of(canvas).copy_(torch.where(box.of(known), box.of(canvas), found))
        answer = canvas
    assert answer is not None
    return answer.cpu()
