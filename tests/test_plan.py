"""Only where it is needed, and coarse to fine: what is computed, what it costs, and that it equals the whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import FEW_STEPS
from pictures import any_size, hole, photo_of

import invdiff as iv
from invdiff import InvdiffError, Mask, NetworkBackbone, NoiseSchedule, Windows, plan_restoration, solve
from invdiff.backbones import load_backbone
from invdiff.backbones.windows import Near, Tiles
from invdiff.data import raccoon
from invdiff.operators.averages import MaskAndAverages
from invdiff.regions import Box, Tile, neighbourhoods, tiles_of
from invdiff.samplers import DDNM, DDNMPlus, DiffPIR, PiGDM, RePaint


def spots(height: int, width: int, count: int, side: int = 6, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    known = np.ones((height, width), bool)
    for y, x in zip(rng.integers(0, height - side, count), rng.integers(0, width - side, count), strict=True):
        known[y : y + side, x : x + side] = False
    return known


# ---- neighbourhoods ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("multiple", [1, 8])
def test_neighbourhoods_hold_every_hole_with_its_margin_and_never_overlap(seed, multiple):
    missing = ~spots(200, 333, 7, seed=seed)
    boxes = neighbourhoods(missing, 20, multiple)
    count = np.zeros(missing.shape, int)
    for box in boxes:
        count[box.top : box.top + box.height, box.left : box.left + box.width] += 1
        assert box.top % multiple == box.left % multiple == 0
        assert (box.top + box.height) % multiple == 0 or box.top + box.height == 200
        assert (box.left + box.width) % multiple == 0 or box.left + box.width == 333
    assert count.max() == 1
    near = torch.nn.functional.max_pool2d(torch.from_numpy(missing)[None].float(), 41, 1, 20)[0].numpy() > 0
    assert (count[near] == 1).all()


def test_many_spots_in_a_large_photo_cost_what_the_spots_cost():
    known = spots(3000, 4000, 10, side=20)
    plan = plan_restoration(Mask(known), (3, 3000, 4000), any_size(), 100)
    assert plan.pixels < 0.02 * 100 * known.size and 1 <= len(plan.stages[0].boxes) <= 10
    whole = plan_restoration(Mask(known), (3, 3000, 4000), any_size(), 100, region="all")
    assert whole.network_calls == [((3, 3000, 4000), 100)] and "whole" in str(whole)
    assert sum(calls for _, calls in plan.network_calls) == 100 * len(plan.stages[0].boxes)


def test_what_is_no_hole_in_a_clean_photo_is_computed_as_a_whole(gaussian):
    for operator, backbone, options in [
        (iv.SuperResolution(2, "box"), any_size(), {}),
        (Mask(np.ones((40, 40))), any_size(), {}),
        (Mask(hole(40, 40)), any_size(), {"sigma_y": 0.1}),
        (Mask(hole(16, 16)), gaussian, {}),
        (Mask(hole(40, 40)), NetworkBackbone(lambda x, t: x, image_shape=(3, None, None)), {}),
    ]:
        plan = plan_restoration(operator, (3, 40, 40), backbone, 10, **options)
        assert len(plan.stages) == 1 and plan.stages[0].whole
    for words in ({"region": "hole"}, {"coarse_to_fine": "yes"}, {"coarse_to_fine": 9}, {"coarse_to_fine": 1.5}):
        with pytest.raises(InvdiffError, match=next(iter(words))):
            plan_restoration(Mask(hole(40, 40)), (3, 40, 40), any_size(), 10, **words)
    with pytest.raises(InvdiffError, match="coarse_to_fine"):
        plan_restoration(iv.Identity(), (3, 40, 40), any_size(), 10, coarse_to_fine=2)


def strokes(kind: str, height: int = 300, width: int = 400) -> np.ndarray:
    """Long thin holes whose box is mostly known."""
    y, x = np.mgrid[:height, :width]
    slanting = abs(y - 10 - 0.7 * x) < 3
    if kind == "slanting":
        return ~(slanting & (y < height - 12) & (y > 8))
    if kind == "crossing":
        return ~((slanting | (abs(y - height + 14 + 0.7 * x) < 3)) & (abs(y - height // 2) < height // 2 - 8))
    frame = (abs(y - height / 2) < height / 2 - 9) & (abs(x - width / 2) < width / 2 - 9)
    inner = (abs(y - height / 2) < height / 2 - 13) & (abs(x - width / 2) < width / 2 - 13)
    return ~(frame & ~inner)


@pytest.mark.parametrize("kind", ["slanting", "crossing", "frame"])
@pytest.mark.parametrize("multiple", [1, 8])
def test_tiles_hold_a_long_hole_with_its_margin_and_cost_less_than_its_box(kind, multiple):
    missing = ~strokes(kind, 600, 800)
    tiles = tiles_of(missing, 12, multiple)
    assert len(tiles) > 1 and sum(tile.seen.area for tile in tiles) < 0.75 * missing.size
    kept = np.zeros(missing.shape, bool)
    for tile in tiles:
        seen, core = tile.seen, tile.kept
        kept[core.top : core.top + core.height, core.left : core.left + core.width] = True
        assert seen.top <= max(0, core.top - 12) and seen.left <= max(0, core.left - 12)
        assert seen.top + seen.height >= min(600, core.top + core.height + 12)
        assert seen.left + seen.width >= min(800, core.left + core.width + 12)
        assert seen.top % multiple == seen.left % multiple == 0
        assert (seen.height % multiple == 0 or seen.top + seen.height == 600) and seen.top >= 0 <= seen.left
    assert kept[missing].all()


def test_a_hole_that_fills_its_box_is_not_cut():
    for missing in (~wide_hole(90, 90, 50), np.zeros((50, 50), bool), np.ones((50, 50), bool)):
        assert tiles_of(missing, 20) == ()


@pytest.mark.parametrize(
    ("sampler", "tolerance", "kind"),
    [
        (RePaint(steps=4, jump_length=2, jump_n_sample=2), 2e-5, "frame"),
        (DDNM(steps=6, eta=1.0), 2e-5, "slanting"),
        (DDNM(steps=6), 5e-2, "frame"),
    ],
    ids=["repaint", "ddnm, all noise fresh", "ddnm"],
)
def test_tiles_near_a_long_hole_give_what_the_whole_gives(sampler, tolerance, kind):
    y, known = photo_of(300, 400), torch.from_numpy(strokes(kind))
    whole, near = (
        solve(Mask(known), y, sampler, backbone=any_size(), seed=3, region=region, n_samples=2)
        for region in ("all", "auto")
    )
    assert "tiles" in near.settings["plan"] and near.nfe == whole.nfe
    assert float((whole.x - near.x).abs().max()) < tolerance
    assert float((near.x[0] - near.x[1])[:, ~known].abs().max()) > 0.01


@pytest.mark.parametrize("sampler", ["ddnm+", "ddrm", "diffpir", "pigdm", "replacement", "dps"])
def test_samplers_fill_a_long_hole_by_tiles(sampler):
    y, known = photo_of(240, 320), torch.from_numpy(strokes("slanting", 240, 320))
    answer = solve(Mask(known), y, sampler, backbone=any_size(), steps=4)
    assert "tiles" in answer.settings["plan"]
    assert torch.allclose(
        answer.x[0][:, known], torch.from_numpy(y / 255.0).permute(2, 0, 1)[:, known].float(), atol=1e-6
    )
    assert bool(torch.isfinite(answer.x).all()) and not torch.equal(answer.x[0][:, ~known], 0 * answer.x[0][:, ~known])


def test_a_learned_variance_is_the_least_where_the_picture_is_known():
    network = NetworkBackbone(
        lambda x, t: torch.cat([x, 0 * x], 1), image_shape=(3, None, None), learned_variance=True, field_of_view=4
    )
    picture = torch.rand(1, 3, 40, 40) * 2 - 1
    near = Near(network, [Tile(Box(0, 0, 20, 20), Box(0, 0, 16, 16))], picture)
    found = near.predict(torch.randn(2, 3, 40, 40), torch.tensor([300, 500]))
    assert torch.equal(found.x0[:, :, 16:], picture[:, :, 16:].expand(2, -1, -1, -1))
    assert torch.allclose(
        found.log_variance[:, 0, -1, -1],
        torch.tensor([min(network.schedule.log_variance_bounds(t)) for t in (300, 500)]),
    )


# ---- the answer is that of the whole ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "tolerance"),
    [
        (RePaint(steps=12, jump_length=3, jump_n_sample=2), 2e-5),
        (DDNM(steps=12, eta=1.0), 2e-5),
        (DDNM(steps=12), 2e-2),
    ],
    ids=["repaint", "ddnm, all noise fresh", "ddnm"],
)
@pytest.mark.parametrize("size", [(120, 150), (280, 310)])
def test_the_neighbourhood_gives_what_the_whole_gives(sampler, tolerance, size):
    """To rounding where known pixels are set at every step; else what the network says of them comes from farther off."""
    y, known = photo_of(*size), torch.from_numpy(spots(*size, 3))
    whole, near = (
        solve(Mask(known), y, sampler, backbone=any_size(), seed=3, region=region, n_samples=2)
        for region in ("all", "auto")
    )
    assert "plan" in near.settings and "plan" not in whole.settings
    assert float((whole.x - near.x).abs().max()) < tolerance
    assert torch.allclose(
        near.x[:, :, known], torch.from_numpy(y / 255.0).permute(2, 0, 1)[:, known].float(), atol=1e-6
    )
    assert float((near.x[0] - near.x[1])[:, ~known].abs().max()) > 0.01


@pytest.mark.parametrize("sampler", sorted(FEW_STEPS))
def test_every_sampler_keeps_the_photo_where_it_is_known(sampler):
    y, known = photo_of(90, 120), torch.from_numpy(spots(90, 120, 2))
    answer = solve(Mask(known), y, sampler, backbone=any_size(), **FEW_STEPS[sampler])
    assert torch.allclose(
        answer.x[0][:, known], torch.from_numpy(y / 255.0).permute(2, 0, 1)[:, known].float(), atol=1e-6
    )
    assert bool(torch.isfinite(answer.x).all())


def test_windows_of_a_network_of_one_size_lie_around_the_hole_only():
    asked = []

    def network(x, t):
        asked.append(x.shape)
        return 0.5 * x

    fixed = NetworkBackbone(network, image_shape=(3, 32, 32), name="fixed")
    known = spots(200, 300, 1)
    answer = solve(Mask(known), photo_of(200, 300), backbone=Windows(fixed), steps=3)
    assert answer.x.shape == (1, 3, 200, 300) and sum(shape[0] for shape in asked) <= 3 * 16


def test_masks_of_a_batch_are_computed_around_all_their_holes():
    known = torch.from_numpy(np.stack([spots(80, 100, 1, seed=s) for s in range(3)]))[:, None]
    y = torch.from_numpy(photo_of(80, 100) / 255.0).permute(2, 0, 1).float().expand(3, -1, -1, -1)
    sampler = DDNM(steps=6, eta=1.0)
    whole, near = (solve(Mask(known), y, sampler, backbone=any_size(), region=r).x for r in ("all", "auto"))
    assert torch.allclose(whole, near, atol=2e-5)
    alone = solve(Mask(known[1]), y[1], sampler, backbone=any_size()).x
    assert torch.allclose(near[1], alone[0], atol=2e-5)


def test_what_needs_the_whole_picture_gets_it():
    y, known = photo_of(80, 100), spots(80, 100, 1)
    for options in (
        {"keep_trajectory": True},
        {"noise": lambda shape: torch.zeros(shape)},
        {"x_init": torch.zeros(1, 3, 80, 100)},
        {"guidance": lambda x0: x0.square().mean((1, 2, 3))},
        {"sampler": "unconditional"},
    ):
        assert "plan" not in solve(Mask(known), y, backbone=any_size(), steps=3, **options).settings


# ---- averages as a further measurement --------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [1.0, 0.1])
@pytest.mark.parametrize("shape", [(3, 8, 12), (3, 9, 11)])
def test_known_pixels_and_averages_are_an_operator_like_any_other(weight, shape):
    known = torch.rand(1, 1, *shape[1:], generator=torch.Generator().manual_seed(0)) > 0.5
    known[..., 2:7, 3:9] = False
    operator = MaskAndAverages(known, 2, weight)
    assert operator.check(shape).passed
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(1))
    y = operator.measurement(x, operator.averaging(x))
    assert torch.allclose(y, operator(x), atol=1e-6)
    singular = torch.linalg.svdvals(operator.dense(shape))
    exact = {round(float(v), 6) for v in singular if v > 1e-9}
    for share in (1, 2, 3, 4):
        exact.discard(round(weight * (share**0.5) / 4, 6))
    assert all(abs(v - 1) < 1e-6 or shape == (3, 9, 11) for v in exact)


@pytest.mark.parametrize("sampler", [DDNMPlus(steps=100), DiffPIR(steps=100), PiGDM(steps=100)], ids=lambda s: s.name)
def test_averages_are_followed_as_far_as_their_noise_says(sampler):
    """A Gaussian prior, known pixels nearly exact, averages with noise: the posterior mean is hit as for other operators."""
    from conftest import gaussian_backbone

    prior = gaussian_backbone((3, 8, 8))
    x = prior.prior_sample(1, seed=5).float()
    known = torch.zeros(8, 8, dtype=torch.bool)
    known[:, :2] = True
    sigma, noise = 0.01, 0.1
    operator = MaskAndAverages(known, 2, sigma / noise).bind((3, 8, 8))
    y = operator.measurement(x, operator.averaging(x))
    answer = solve(operator, y, sampler, backbone=prior, sigma_y=sigma, value_range=(-1, 1), n_samples=64, seed=1).x
    mean = prior.posterior(operator, y, sigma).mean
    assert float((answer.mean(0) - mean.reshape(3, 8, 8)).abs().mean()) < 0.06
    prior_error = float((prior.posterior(Mask(known), x, sigma).mean.reshape(3, 8, 8) - x[0]).abs().mean())
    assert float((answer.mean(0) - x[0]).abs().mean()) < 0.75 * prior_error


# ---- coarse to fine ---------------------------------------------------------------------------------------------


def wide_hole(height: int, width: int, side: int) -> np.ndarray:
    known = np.ones((height, width), bool)
    known[(height - side) // 2 :, (width - side) // 2 :][:side, :side] = False
    return known


def test_levels_and_cost_are_known_before_the_run():
    plan = plan_restoration(Mask(wide_hole(400, 500, 240)), (3, 400, 500), any_size(), 20)
    assert [stage.shrink for stage in plan.stages] == [8, 4, 2, 1]  # 120 pixels deep, 22 seen
    assert [stage.image_shape for stage in plan.stages] == [(3, 50, 63), (3, 100, 125), (3, 200, 250), (3, 400, 500)]
    assert [shape for shape, _ in plan.network_calls][-1] == (3, 288, 284)
    assert plan.pixels < 20 * 288 * 284 * 1.6
    assert len(plan_restoration(Mask(wide_hole(400, 500, 40)), (3, 400, 500), any_size(), 20).stages) == 1
    asked = plan_restoration(Mask(wide_hole(400, 500, 40)), (3, 400, 500), any_size(), 20, coarse_to_fine=1)
    assert [stage.shrink for stage in asked.stages] == [2, 1]
    none = plan_restoration(Mask(wide_hole(400, 500, 240)), (3, 400, 500), any_size(), 20, coarse_to_fine=False)
    assert len(none.stages) == 1


@pytest.mark.parametrize("region", ["auto", "all"])
@pytest.mark.parametrize("size", [(97, 130), (128, 128)])
@pytest.mark.parametrize("sampler", ["ddnm", "repaint", "diffpir", "pigdm"])
def test_a_wide_hole_is_filled_from_its_shrunken_picture(sampler, size, region):
    y, known = photo_of(*size), torch.from_numpy(wide_hole(*size, 80))
    answers = solve(
        Mask(known), y, sampler, backbone=smooth(), n_samples=2, seed=4, region=region, **FEW_STEPS[sampler]
    )
    assert "; " in answers.settings["plan"]
    assert torch.allclose(
        answers.x[:, :, known], torch.from_numpy(y / 255.0).permute(2, 0, 1)[:, known].float(), atol=1e-6
    )
    assert not torch.equal(answers.x[0], answers.x[1]) and bool(torch.isfinite(answers.x).all())
    alone = solve(Mask(known), y, sampler, backbone=smooth(), seed=4, region=region, **FEW_STEPS[sampler])
    assert torch.allclose(alone.x[0], answers.x[0], atol=1e-5)


class Smooth(torch.nn.Module):
    """A denoiser that knows only that neighbours are alike: the mean of 17 x 17 pixels, to the degree that there is noise."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        a = NoiseSchedule.linear().alpha_bar[t].float()[:, None, None, None]
        blurred = torch.nn.functional.avg_pool2d(x, 17, 1, 8, count_include_pad=False)
        noise = (1 - a) / a
        share = noise / (noise + 0.02)
        x0 = (share * blurred + (1 - share) * x) / a.sqrt() / (1 + noise / 17**2 / 0.3)
        return (x - a.sqrt() * x0) / (1 - a).sqrt()


def smooth() -> NetworkBackbone:
    return NetworkBackbone(Smooth(), image_shape=(3, None, None), field_of_view=8, precision="float32", name="smooth")


def test_coarse_to_fine_carries_the_surroundings_into_a_wide_hole():
    """A network that sees 8 pixels knows nothing of them in the middle of a hole of 100: the shrunken photo does."""
    size = (256, 256)
    photo = np.full((*size, 3), 200, np.uint8)
    known = torch.from_numpy(wide_hole(*size, 100))
    errors = {}
    for coarse in (False, "auto"):
        x = solve(Mask(known), photo, DDNM(steps=25), backbone=smooth(), coarse_to_fine=coarse, n_samples=4, seed=0).x
        errors[coarse] = float((x[:, :, 112:144, 112:144].mean((0, 2, 3)) - 200 / 255).abs().mean())
    assert errors["auto"] < 0.05 and errors[False] > 0.2


def test_no_seam_at_the_borders_of_parts_and_blocks():
    """The largest step across the borders of a neighbourhood, and of the blocks of a coarse answer, is that of the rest."""
    y, known = photo_of(120, 150), torch.from_numpy(wide_hole(120, 150, 60))
    x = solve(Mask(known), y, DDNM(steps=25), backbone=smooth(), seed=2).x[0]
    boxes = plan_restoration(Mask(known), (3, 120, 150), smooth(), 25).stages[-1].boxes
    down = x.diff(dim=1).abs().amax((0, 2))
    borders = [edge - 1 for b in boxes for edge in (b.top, b.top + b.height) if 0 < edge < 120]
    assert borders and float(down[borders].max()) <= float(down.max())
    inside = Box(38, 53, 44, 44).of(x).diff(dim=1).abs().mean((0, 2))
    assert float(inside[1::2].mean()) < 1.25 * float(inside[::2].mean()) < 1.25**2 * float(inside[1::2].mean())


def steepest_in(x: torch.Tensor, hole: torch.Tensor, lines: set[int]) -> tuple[float, float]:
    """The largest step down the picture within the hole across these lines, and across all others."""
    inside = hole[1:] & hole[:-1]
    steps = torch.where(inside, x.diff(dim=1).abs().amax(0), 0.0).amax(1)
    at = torch.zeros(len(steps), dtype=torch.bool)
    at[[line - 1 for line in lines]] = True
    return float(steps[at].max()), float(steps[~at].max())


@pytest.mark.parametrize("sampler", [DDNM(steps=15), DDNMPlus(steps=15, eta=1.0)], ids=["ddnm", "ddnm+"])
def test_no_seam_where_two_tiles_meet_in_a_hole(sampler):
    y, known = photo_of(300, 400), torch.from_numpy(strokes("slanting"))
    tiles = plan_restoration(Mask(known), (3, 300, 400), smooth(), 15).stages[0].tiles[0]
    borders = {tile.kept.top for tile in tiles[1:]} | {tile.kept.top + tile.kept.height for tile in tiles[:-1]}
    x = solve(Mask(known), y, sampler, backbone=smooth(), seed=2).x[0]
    at, elsewhere = steepest_in(x, ~known, borders)
    assert len(borders) > 3 and 0 < at <= elsewhere


@pytest.mark.slow
def test_photos_fills_a_scratch_the_same_by_parts_by_tiles_and_as_a_whole():
    """The network that ships, a real photograph: to rounding where the part is as wide as its field of view, else nearly."""
    photo = np.asarray(raccoon().crop((40, 60, 440, 360)))
    known = np.ones((300, 400), bool)
    known[140:146, 180:220] = False
    backbone = load_backbone("photos", precision="float32")
    run = {"steps": 4, "seed": 1, "eta": 1.0}
    whole = solve(Mask(known), photo, backbone=backbone, region="all", **run).x
    tiled = solve(Mask(known), photo, backbone=Tiles(backbone, 128), region="all", **run).x
    assert torch.allclose(whole, tiled, atol=2e-4)
    part = solve(Mask(known), photo, backbone=backbone, **run)
    assert "part" in part.settings["plan"]
    assert float((part.x - whole).abs().max()) < 0.05
