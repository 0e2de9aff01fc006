"""Pictures larger than a network or than the memory: tiles equal the whole, windows leave no seam."""

from __future__ import annotations

import pytest
import torch
from conftest import FEW_STEPS
from pictures import Convolutions, any_size, hole, photo_of

import invdiff as iv
from invdiff import InvdiffError, NetworkBackbone, NoiseSchedule, Tiles, Windows, solve
from invdiff.backbones.windows import in_tiles
from invdiff.samplers import jumps, network_calls


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_small_network_sees_as_far_as_it_says():
    x = noise(1, 3, 96, 96).requires_grad_()
    Convolutions()(x, torch.tensor([500]))[0, :, 50, 47].sum().backward()
    rows, columns = x.grad[0].abs().sum(0).nonzero().unbind(1)
    reach = max(50 - rows.min(), rows.max() - 50, 47 - columns.min(), columns.max() - 47)
    assert 18 < int(reach) <= Convolutions.field_of_view


# ---- tiles ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(100, 130), (64, 33), (20, 20)])
@pytest.mark.parametrize("tile", [8, 30, 64])
def test_tiles_equal_the_whole(size, tile):
    backbone = any_size().sized((3, *size))
    x = noise(2, 3, *size)
    whole, tiles = backbone.predict(x, 400), Tiles(backbone, tile).predict(x, 400)
    assert torch.allclose(tiles.x0, whole.x0, atol=2e-6) and torch.allclose(tiles.eps, whole.eps, atol=2e-6)


@pytest.mark.parametrize("size", [(70, 90), (31, 46)])
def test_gradients_through_tiles_equal_those_of_the_whole(size):
    backbone = any_size().sized((3, *size))
    v = noise(1, 3, *size, seed=1)
    gradients = []
    for one in (backbone, Tiles(backbone, 24)):
        x = noise(1, 3, *size).requires_grad_()
        gradients.append(torch.autograd.grad(one.predict(x, 400).x0, x, v)[0])
    assert torch.allclose(*gradients, atol=1e-5) and float(gradients[0].abs().max()) > 0.1


@pytest.mark.parametrize("sampler", ["ddnm", "pigdm", "dps", "repaint"])
def test_a_restoration_is_the_same_for_any_tile_size(sampler):
    y, known = photo_of(50, 90), hole(50, 90)
    answers = [
        solve(iv.Mask(known), y, sampler, backbone=backbone, **FEW_STEPS[sampler]).x
        for backbone in (any_size(), Tiles(any_size(), 16), Tiles(any_size(), 37))
    ]
    assert torch.allclose(answers[0], answers[1], atol=2e-5) and torch.allclose(answers[0], answers[2], atol=2e-5)


def test_large_pictures_are_tiled_without_being_asked_to():
    backbone = any_size()
    assert isinstance(in_tiles(backbone.sized((3, 3000, 4000))), Tiles)
    assert isinstance(in_tiles(backbone.sized((3, 800, 1200)), gradient=True), Tiles)
    for small in (backbone.sized((3, 800, 1200)), Windows(fixed(), (3, 3000, 4000))):
        assert in_tiles(small) is small


def test_what_cannot_be_tiled_is_refused(gaussian):
    for backbone in (gaussian, NetworkBackbone(lambda x, t: x, image_shape=(3, None, None))):
        with pytest.raises(InvdiffError, match="field_of_view"):
            Tiles(backbone)


def test_a_gradient_keeps_the_activations_of_one_tile_only():
    """What the graph of a prediction holds does not grow with the network's layers."""
    kept = []
    x = noise(1, 3, 96, 96).requires_grad_()
    for backbone in (any_size(), Tiles(any_size(), 24)):
        sizes = []

        def pack(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            backbone.predict(x, 400)
        kept.append(max(sizes, default=0))
    assert kept[1] <= kept[0] / 2


# ---- windows ----------------------------------------------------------------------------------------------------


def fixed(side: int = 32, **options) -> NetworkBackbone:
    """The same convolutions as a network of one size."""
    return NetworkBackbone(
        Convolutions(), NoiseSchedule.linear(), (3, side, side), precision="float32", name="fixed", **options
    )


def test_one_window_is_the_network_itself():
    x = noise(2, 3, 32, 32)
    assert torch.allclose(Windows(fixed(), (3, 32, 32)).predict(x, 300).x0, fixed().predict(x, 300).x0, atol=1e-5)


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.8])
@pytest.mark.parametrize("size", [(32, 33), (50, 97), (64, 64), (20, 70), (7, 7)])
def test_windows_cover_every_pixel_and_agree_with_a_network_that_is_local(size, overlap, shift):
    """Where all windows say the same (a network that looks at one pixel), so does their mean."""
    local = NetworkBackbone(lambda x, t: 0.5 * torch.tanh(x), image_shape=(3, 32, 32), name="local")
    backbone = Windows(local, (3, *size), overlap=overlap, shift=shift)
    x = noise(2, 3, *size)
    for t in (900, 30):
        prediction = backbone.predict(x, t)
        assert torch.allclose(prediction.eps, 0.5 * torch.tanh(x), atol=1e-5)


def test_windows_move_from_step_to_step_by_the_time_alone():
    moving, still = Windows(fixed(), (3, 96, 96)), Windows(fixed(), (3, 96, 96), shift=False)
    places = {t: moving.places((96, 96), t) for t in (10, 11, 500)}
    assert len({tuple(p) for p in places.values()}) == 3 and places[10] == moving.places((96, 96), 10)
    assert still.places((96, 96), 10) == still.places((96, 96), 500)
    x = noise(1, 3, 96, 96)
    assert torch.equal(moving.predict(x, 10).x0, moving.predict(x, 10).x0)


@pytest.mark.parametrize("many", [1, 3, 100])
def test_the_batch_of_windows_changes_nothing(many):
    x = noise(2, 3, 50, 70)
    one, other = (Windows(fixed(), (3, 50, 70), batch_size=b).predict(x, 200) for b in (many, 7))
    assert torch.allclose(one.x0, other.x0, atol=2e-6)


def test_images_of_a_batch_keep_their_times_and_their_labels():
    def network(x, t, class_labels):
        return x * (class_labels.float() + 1)[:, None, None, None] / 4 + t.float()[:, None, None, None] / 1000

    labelled = NetworkBackbone(network, image_shape=(3, 16, 16), class_labels=torch.tensor([0, 2, 1]))
    backbone, x = Windows(labelled, (3, 24, 40)), noise(3, 3, 24, 40)
    expected = x * torch.tensor([1, 3, 2])[:, None, None, None] / 4
    assert torch.allclose(backbone.predict(x, 500).eps, expected + 0.5, atol=1e-5)
    times = torch.tensor([100, 500, 100])
    mixed = backbone.predict(x, times).eps
    assert torch.allclose(mixed, expected + times[:, None, None, None] / 1000, atol=1e-5)
    assert torch.allclose(backbone.select(torch.tensor([1])).predict(x[1:2], 500).eps, expected[1:2] + 0.5, atol=1e-5)


def test_a_learned_variance_is_averaged_too():
    network = NetworkBackbone(lambda x, t: torch.cat([x, 0 * x], 1), image_shape=(3, 16, 16), learned_variance=True)
    log_variance = Windows(network, (3, 24, 24)).predict(noise(1, 3, 24, 24), 300).log_variance
    high, low = network.schedule.log_variance_bounds(300)
    assert log_variance is not None and torch.allclose(log_variance, torch.tensor((high + low) / 2).float(), atol=1e-5)


@pytest.mark.parametrize("sampler", ["ddnm", "dps", "pigdm", "mcg", "diffpir"])
def test_every_sampler_takes_windows(sampler):
    y, known = photo_of(40, 56), hole(40, 56)
    backbone = Windows(fixed())
    solution = solve(iv.Mask(known), y, sampler, backbone=backbone, **FEW_STEPS[sampler])
    assert solution.x.shape == (1, 3, 40, 56) and bool(torch.isfinite(solution.x).all())
    again = solve(iv.Mask(known), y, sampler, backbone=backbone, **FEW_STEPS[sampler])
    assert torch.equal(solution.x, again.x)


def test_gradients_through_windows_equal_those_without_recomputation():
    backbone, v = Windows(fixed(), (3, 48, 40), batch_size=2), noise(1, 3, 48, 40, seed=1)
    x = noise(1, 3, 48, 40).requires_grad_()
    found = torch.autograd.grad(backbone.predict(x, 300).x0, x, v)[0]
    step = 1e-2 * noise(1, 3, 48, 40, seed=2)
    with torch.no_grad():
        difference = backbone.predict(x + step, 300).x0 - backbone.predict(x - step, 300).x0
    assert float((found * step).sum()) == pytest.approx(float((difference * v).sum() / 2), rel=0.02)


def test_windows_of_what_needs_none_are_refused(gaussian):
    with pytest.raises(InvdiffError, match="must be of one size to need windows"):
        Windows(any_size())
    with pytest.raises(InvdiffError, match="3 channels"):
        Windows(gaussian, (1, 32, 32))
    for overlap in (-0.1, 1.0, "half"):
        with pytest.raises(InvdiffError, match="overlap must be"):
            Windows(gaussian, overlap=overlap)


# ---- no seam ----------------------------------------------------------------------------------------------------


def steepest(x: torch.Tensor, lines: list[int], axis: int) -> tuple[float, float]:
    """The mean step across these lines, and across all others."""
    steps = x.diff(dim=axis).abs().mean([d for d in range(x.ndim) if d != axis % x.ndim])
    at = torch.zeros(len(steps), dtype=torch.bool)
    at[[line - 1 for line in lines]] = True
    return float(steps[at].max()), float(steps[~at].max())


def test_no_step_at_the_borders_of_tiles_and_windows_is_larger_than_elsewhere():
    picture = torch.from_numpy(photo_of(96, 128)).permute(2, 0, 1)[None] / 127.5 - 1
    x = 0.9**0.5 * picture + 0.1**0.5 * noise(1, 3, 96, 128)
    t = int((any_size().schedule.alpha_bar[:-1] - 0.9).abs().argmin())
    for backbone in (Tiles(any_size(), 32), Windows(fixed(), (3, 96, 128), shift=False)):
        x0 = backbone.predict(x, t).x0
        for axis, lines in ((-2, [32, 64]), (-1, [32, 64, 96])):
            at, elsewhere = steepest(x0, lines, axis)
            assert at <= elsewhere


# ---- mask-shift -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operator", ["mask", "box", "colorization", "identity"])
def test_mask_shift_agrees_with_the_measurement_in_every_window(operator):
    x = torch.from_numpy(photo_of(48, 56)).permute(2, 0, 1)[None] / 255
    A = {
        "mask": iv.Mask(hole(48, 56)),
        "box": iv.SuperResolution(2, "box"),
        "colorization": iv.Colorization(),
        "identity": iv.Identity(),
    }[operator]
    answer = solve(
        A, A(x), "mask_shift", backbone=Windows(fixed(16)), steps=6, jump_length=2, jump_n_sample=2, region="all"
    )
    assert float((A(answer.x) - A(x)).abs().max()) < 1e-5
    windows = len(Windows(fixed(16), shift=False).places((48, 56)))
    assert answer.nfe == windows * network_calls(jumps(6, 2, 2))


def test_mask_shift_refuses_what_it_cannot_cut():
    backbone = Windows(fixed(16))
    with pytest.raises(InvdiffError, match="operator must be a mask"):
        solve(
            iv.Blur(iv.gaussian_kernel(3, 1.0)),
            torch.rand(3, 40, 40),
            "mask_shift",
            backbone=backbone,
            steps=4,
            jump_length=1,
        )
    with pytest.raises(InvdiffError, match="multiples of 3"):
        solve(
            iv.SuperResolution(3, "box"), torch.rand(3, 10, 10), "mask_shift", backbone=backbone, steps=4, jump_length=1
        )
