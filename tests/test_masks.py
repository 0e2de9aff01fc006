"""Masks: what is read as one, what is refused, and the generators."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from invdiff.errors import InvdiffError
from invdiff.operators import Mask, make_mask, mask_names
from invdiff.operators.mask import read_mask

KNOWN = np.array([[1, 0, 1], [0, 0, 1]], dtype=bool)


def layer(colour: tuple[int, ...], mode: str = "RGBA") -> Image.Image:
    """A transparent layer on which what is missing was painted in one colour."""
    pixels = np.zeros((*KNOWN.shape, 4), np.uint8)
    pixels[~KNOWN] = (*colour, 255)
    return Image.fromarray(pixels, "RGBA").convert(mode)


@pytest.mark.parametrize(
    "picture",
    [
        layer((0, 0, 0)),
        layer((255, 0, 0)),
        layer((40, 200, 90)),
        layer((0, 0, 0), "LA"),
        layer((255, 0, 255), "P"),
        Image.fromarray(np.where(KNOWN[..., None], 255, np.array([255, 0, 0])).astype(np.uint8)),
        Image.fromarray(np.where(KNOWN, 255, 0).astype(np.uint8)).convert("P"),
        Image.fromarray(KNOWN),
    ],
    ids=["black layer", "red layer", "green layer", "grey layer", "palette layer", "red on white", "palette", "bits"],
)
def test_a_file_is_known_where_it_is_white_or_transparent(picture, tmp_path):
    picture.save(tmp_path / "mask.png")
    assert np.array_equal(read_mask(tmp_path / "mask.png").numpy(), KNOWN)


def test_a_file_of_greys_is_refused(tmp_path):
    Image.new("L", (20, 20), 128).save(tmp_path / "grey.png")
    with pytest.raises(InvdiffError, match="soft"):
        read_mask(tmp_path / "grey.png")


@pytest.mark.parametrize(
    "mask",
    [
        KNOWN,
        KNOWN.astype(float),
        KNOWN.astype(np.int64),
        KNOWN.astype(np.uint8),
        KNOWN.astype(np.uint8) * 255,
        torch.from_numpy(KNOWN),
        torch.from_numpy(KNOWN).float(),
        torch.from_numpy(KNOWN)[None],
        torch.from_numpy(KNOWN)[None, None],
        KNOWN[::-1][::-1],
        Image.fromarray(KNOWN),
        Image.fromarray(KNOWN.astype(np.uint8) * 255),
        Image.fromarray(np.stack([KNOWN] * 3, axis=-1).astype(np.uint8) * 255),
    ],
)
def test_white_is_known_however_it_is_given(mask):
    assert torch.equal(Mask(mask).mask, torch.from_numpy(KNOWN)[None, None])
    x = torch.ones(2, 3, 2, 3)
    assert torch.equal(Mask(mask)(x), x * torch.from_numpy(KNOWN))


def test_a_path_is_read(tmp_path):
    path = tmp_path / "mask.png"
    Image.fromarray(KNOWN.astype(np.uint8) * 255).save(path)
    for given in (path, str(path)):
        assert torch.equal(Mask(given).mask[0, 0], torch.from_numpy(KNOWN))


def test_a_colour_mask_is_per_channel():
    channels = np.stack([KNOWN, ~KNOWN, KNOWN], axis=-1)
    assert torch.equal(Mask(Image.fromarray(channels.astype(np.uint8) * 255)).mask[0, 1], torch.from_numpy(~KNOWN))


def test_the_mask_is_a_copy():
    mask = torch.ones(4, 4)
    A = Mask(mask)
    mask[:] = 0
    assert A.known_fraction == 1


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (torch.full((4, 4), 0.5), "Threshold"),
        (torch.tensor([[1.0, torch.nan]]), "NaN"),
        (torch.tensor([[1.0, -1.0]]), "-1"),
        (np.array([[0, 128, 255]], dtype=np.uint8), r"mask > 127\.5"),
        (Image.fromarray(np.array([[0, 128]], dtype=np.uint8)), "Threshold"),
        (Image.new("RGBA", (4, 4)), "alpha channel"),
        (torch.ones(4), r"\(4,\)"),
        (torch.ones(0, 4), r"\(0, 4\)"),
        (torch.ones(8, 8, 3, dtype=torch.bool), "channels first"),
        (np.array([["a"]]), "numbers"),
        ("no such file.png", "no such file.png"),
        (None, "None"),
        ([[1, 0]], "tensor, a numpy array"),
        (torch.ones(4, 4).to_sparse(), "sparse_coo tensor"),
        (torch.ones(4, 4, device="meta"), "meta"),
        (np.ma.masked_array(np.ones((4, 4)), np.eye(4)), "4 masked entries"),
        (np.ones((4, 4), complex), "complex128"),
    ],
)
def test_anything_else_is_refused(mask, words):
    with pytest.raises(InvdiffError, match=words):
        Mask(mask)


def test_the_repr_says_how_much_is_known():
    assert repr(Mask(KNOWN)) == "Mask(2x3, 50 % known)"
    assert repr(Mask(torch.ones(4, 3, 8, 8))) == "Mask(4 x 3x8x8, 100 % known)"


# Generators


@pytest.mark.parametrize("name", mask_names())
@pytest.mark.parametrize("size", [1, 2, 7, 64, (48, 33), (17, 128)])
def test_every_mask_has_any_size_and_is_a_function_of_its_seed(name, size):
    mask = make_mask(name, size, seed=3)
    assert mask.dtype == torch.bool and tuple(mask.shape) == ((size, size) if isinstance(size, int) else size)
    assert torch.equal(mask, make_mask(name, size, seed=3))
    Mask(mask)


@pytest.mark.parametrize("name", mask_names())
def test_every_mask_hides_some_and_shows_some(name):
    for seed in range(4):
        assert 0.1 < float(make_mask(name, 64, seed).float().mean()) < 0.95


@pytest.mark.parametrize("name", ["wide", "narrow", "random_pixels", "scan_lines", "slc_off", "text"])
def test_seeds_differ_and_the_global_generators_are_left_alone(name):
    state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    assert not torch.equal(make_mask(name, 64, seed=0), make_mask(name, 64, seed=1))
    assert torch.equal(state, torch.random.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])  # noqa: NPY002


def test_what_each_mask_keeps():
    assert float(make_mask("half", (4, 6)).float().mean()) == 0.5 and bool(make_mask("half", 8)[:, :4].all())
    assert float(make_mask("expand", 16).float().mean()) == 0.25 and bool(make_mask("expand", 16)[8, 8])
    assert torch.equal(make_mask("box", 16), ~make_mask("expand", 16))
    assert bool(make_mask("alternating_lines", 8)[::2].all()) and not bool(
        make_mask("alternating_lines", 8)[1::2].any()
    )
    assert float(make_mask("super_resolve", 8).float().mean()) == 0.25 and bool(make_mask("super_resolve", 8)[0, 0])
    assert int(make_mask("super_resolve", (9, 7), scale=4).sum()) == 3 * 2
    assert int(make_mask("random_pixels", 10, fraction_known=0.37).sum()) == 37


def test_brush_strokes_are_the_same_at_every_size():
    for name in ("wide", "narrow"):
        small, big = make_mask(name, 64, seed=5), make_mask(name, 256, seed=5)
        shrunk = big.float().reshape(64, 4, 64, 4).mean((1, 3)) >= 0.5
        assert float((shrunk == small).float().mean()) == 1


def test_scan_lines_are_whole_in_the_middle_and_widen_to_the_edges():
    known = make_mask("scan_lines", 128).float().mean(0)
    assert float(known[56:72].min()) == 1
    assert float(known[:16].mean()) < float(known[24:40].mean()) < 1
    assert float(known[-16:].mean()) < float(known[-40:-24].mean()) < 1


def test_slc_off_has_the_gaps_of_landsat_7():
    """14 of 32.5 lines at the edges, those of the left half a period from those of the right, none at the track, 22 % in all."""
    lines = 1300  # forty periods
    lost = ~make_mask("slc_off", (lines, 611), tilt=0)
    share = lost.double().mean(0)
    assert share[[0, -1]].tolist() == pytest.approx([14 / 32.5] * 2, abs=2e-3)
    assert not bool(lost[:, 305].any()) and float(lost.double().mean()) == pytest.approx(0.22, abs=0.01)
    assert bool((share[306:].diff() > -0.02).all())
    starts = [torch.nonzero(lost[:-1, edge].logical_not() & lost[1:, edge]).flatten().double() for edge in (0, -1)]
    for edge in starts:
        assert float(edge.diff().mean()) == pytest.approx(32.5, abs=0.05)
    apart = (starts[1][:, None] - starts[0][None]).abs().min(1).values
    assert float(apart.mean()) == pytest.approx(16.25, abs=0.6)


def test_slc_off_of_a_part_is_the_part_of_the_whole():
    whole = make_mask("slc_off", (90, 400), seed=2, swath=6100, off_nadir=2000)
    part = make_mask("slc_off", (90, 100), seed=2, swath=6100, off_nadir=2000 + 150)
    assert torch.equal(whole[:, 300:], part)
    assert bool(
        make_mask("slc_off", (64, 64), swath=6100).double().mean() > 0.98
    )  # at the track next to nothing is lost


def test_text_can_be_chosen():
    assert not torch.equal(make_mask("text", 64, string="lost"), make_mask("text", 64, string="found"))


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (("wyde", 64), {}, "'wide'"),
        (("wide", 0), {}, r"size must be .* got \(0, 0\)"),
        (("wide", (3, 4, 5)), {}, "size"),
        (("wide", "64"), {}, "size"),
        (("wide", 64), {"seed": -1}, "seed"),
        (("expand", 64), {"width": 3}, "no option 'width'; it has none"),
        (("random_pixels", 64), {"fraction": 0.3}, "'fraction_known'"),
        (("random_pixels", 64), {"fraction_known": 1.3}, "a number from 0 to 1, got 1.3"),
        (("text", 64), {"string": " "}, "string"),
        (("super_resolve", 64), {"scale": 0}, "scale"),
        (("wide", 10**6), {}, "at most 268,435,456 pixels"),
        (("text", 64), {"lines": 10**9}, "lines must be a whole number from 1 to 64"),
        (("text", 64), {"string": "two\nlines"}, "string"),
        (("scan_lines", 64), {"period": float("nan")}, "period"),
    ],
)
def test_errors_say_what_was_wrong(arguments, options, words):
    with pytest.raises(InvdiffError, match=words):
        make_mask(*arguments, **options)
