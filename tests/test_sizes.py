"""Pictures of any size: the contract of backbones, photos as their files hold them, noise by place."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from pictures import any_size, hole, photo_of
from PIL import Image

import invdiff as iv
from invdiff import InvdiffError, NetworkBackbone, solve
from invdiff.noise import NoiseSource
from invdiff.photos import Photo

# ---- the contract -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 20), (17, 30), (33, 5), (3, 3)])
def test_sizes_that_the_strides_do_not_divide_are_padded_out_of_sight(size):
    backbone = any_size().sized((3, *size))
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    prediction = backbone.predict(x, 500)
    assert prediction.x0.shape == prediction.eps.shape == x.shape
    a = backbone.schedule.alpha_bar_at(500)
    assert torch.allclose(a**0.5 * prediction.x0 + (1 - a) ** 0.5 * prediction.eps, x, atol=1e-5)


def test_padding_changes_nothing_beyond_the_field_of_view():
    x = torch.randn(1, 3, 70, 70, generator=torch.Generator().manual_seed(0))
    whole, cut = any_size().predict(x, 300).eps, any_size().predict(x[..., :-1, :-2], 300).eps
    assert torch.allclose(whole[..., :46, :45], cut[..., :46, :45], atol=1e-6)


def test_a_view_of_one_size_is_no_copy_and_can_be_resized():
    backbone = any_size()
    view = backbone.sized((3, 40, 50))
    assert view.image_shape == (3, 40, 50) and backbone.image_shape == (3, None, None)
    assert view.module is backbone.module and view.any_size
    assert view.sized((3, 8, 8)).image_shape == (3, 8, 8)
    for shape in [(1, 40, 50), (3, 0, 4), (3, 40)]:
        with pytest.raises(InvdiffError, match="3 channels and of any size"):
            backbone.sized(shape)


@pytest.mark.parametrize("shape", [(3, None, 4), (None, 4, 4), (3, 4), (3, 0, 0), "abc", 5])
def test_shapes_that_are_none_are_refused(shape):
    with pytest.raises(InvdiffError, match="image_shape must be"):
        NetworkBackbone(lambda x, t: x, image_shape=shape)


@pytest.mark.filterwarnings("ignore:the restoration reaches")
def test_the_size_comes_from_the_measurement_and_the_operator():
    backbone = any_size()
    photo = photo_of(20, 33)
    for operator, y, shape in [
        (iv.Mask(hole(20, 33)), photo, (3, 20, 33)),
        (iv.SuperResolution(2, "box"), photo, (3, 40, 66)),
        (iv.Blur(iv.gaussian_kernel(3, 1.0)), torch.rand(3, 20, 33), (3, 20, 33)),
        (iv.Colorization(), photo[..., :1], (3, 20, 33)),
        (iv.Identity(), torch.rand(2, 3, 9, 12), (3, 9, 12)),
        (iv.SuperResolution(3, "box").bind((3, 25, 25)), torch.rand(3, 9, 9), (3, 25, 25)),
    ]:
        solution = solve(operator, y, "ddnm", backbone=backbone, steps=2)
        assert tuple(solution.x.shape[1:]) == shape, operator


@pytest.mark.filterwarnings("ignore:the mask is full")
def test_what_does_not_tell_its_size_says_what_to_do():
    operator = iv.FunctionOperator(lambda x: x.flatten(1)[:, ::2])
    with pytest.raises(InvdiffError, match=r"operator\.bind\(\(C, H, W\)\)"):
        solve(operator, torch.zeros(24), backbone=any_size())
    known = iv.Mask(torch.ones(8, 9))
    with pytest.raises(InvdiffError, match=r"mask must be of .* got 8x9"):
        solve(known, torch.zeros(3, 9, 9), backbone=any_size())


def test_another_size_than_that_of_the_network_names_the_ways_out(gaussian):
    with pytest.raises(InvdiffError, match=r"takes images of shape \(3, 16, 16\).*Windows\(backbone.*photos"):
        solve(iv.Mask(hole(40, 40)), photo_of(40, 40), backbone=gaussian)


# ---- photos -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".png", ".tif"])
@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("alpha", [False, True])
def test_known_pixels_come_back_bit_for_bit(tmp_path, ending, deep, channels, alpha):
    pixels, known = photo_of(24, 37, deep=deep)[..., :channels], hole(24, 37)
    opacity = photo_of(24, 37, 5, deep)[..., 0] if alpha else None
    if deep and alpha and channels == 1:
        pytest.skip("16-bit grey with transparency is read in 8 bits, as the warning says")
    Photo(pixels, opacity).save(tmp_path / f"photo{ending}")
    read = Photo.read(tmp_path / f"photo{ending}")
    assert read.pixels.dtype == pixels.dtype and np.array_equal(read.pixels, pixels)
    again = Photo.read(Image.open(io.BytesIO((tmp_path / f"photo{ending}").read_bytes())))
    assert np.array_equal(again.pixels, pixels)
    answer = solve(iv.Mask(known), tmp_path / f"photo{ending}", backbone=any_size(), steps=4)
    answer.save(tmp_path / f"out{ending}")
    out = Photo.read(tmp_path / f"out{ending}")
    assert out.pixels.dtype == pixels.dtype and out.pixels.shape == pixels.shape
    assert np.array_equal(out.pixels[known], pixels[known]) and not np.array_equal(out.pixels, pixels)
    assert (out.alpha is None) == (not alpha) and (not alpha or np.array_equal(out.alpha, opacity))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotated_photo_is_restored_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "a camera"
    stored = Image.fromarray(photo_of(12, 20))
    stored.save(tmp_path / "photo.png", exif=exif, icc_profile=b"a profile")
    from PIL import ImageOps

    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "photo.png")))
    known = hole(*upright.shape[:2])
    answer = solve(iv.Mask(known), tmp_path / "photo.png", backbone=any_size(), steps=2)
    answer.save(tmp_path / "out.png")
    out = Image.open(tmp_path / "out.png")
    assert np.array_equal(np.asarray(out)[known], upright[known])
    assert out.getexif().get(0x0112, 1) == 1 and out.getexif()[0x010F] == "a camera"
    assert out.info["icc_profile"] == b"a profile"


def test_jpeg_keeps_metadata_and_says_what_it_drops(tmp_path):
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    rgba = np.concatenate([photo_of(16, 16), np.full((16, 16, 1), 7, np.uint8)], -1)
    Image.fromarray(rgba).save(tmp_path / "photo.png", exif=exif)
    answer = solve(iv.Mask(hole(16, 16)), tmp_path / "photo.png", backbone=any_size(), steps=2)
    with pytest.warns(iv.InvdiffWarning, match="no transparency"):
        answer.save(tmp_path / "out.jpg")
    assert Image.open(tmp_path / "out.jpg").getexif()[0x010F] == "a camera"
    assert answer.image.mode == "RGBA" and set(np.asarray(answer.image)[..., 3].ravel()) == {7}


def test_transparency_grows_with_the_picture_and_palettes_are_read(tmp_path):
    rgba = np.concatenate([photo_of(8, 10), np.full((8, 10, 1), 9, np.uint8)], -1)
    Image.fromarray(rgba).save(tmp_path / "small.png")
    answer = solve(iv.SuperResolution(2, "box"), tmp_path / "small.png", backbone=any_size(), steps=2)
    assert answer.image.mode == "RGBA" and answer.image.size == (20, 16)
    Image.fromarray(photo_of(8, 10)).quantize(16).save(tmp_path / "palette.png")
    assert Photo.read(tmp_path / "palette.png").pixels.shape == (8, 10, 3)


def test_a_grey_photo_stays_grey_unless_colour_is_asked_for(tmp_path):
    Image.fromarray(photo_of(16, 16)[..., 0]).save(tmp_path / "grey.png")
    assert solve(iv.Mask(hole(16, 16)), tmp_path / "grey.png", backbone=any_size(), steps=2).image.mode == "L"
    assert solve(iv.Colorization(), tmp_path / "grey.png", backbone=any_size(), steps=2).image.mode == "RGB"


def test_16_bit_arrays_have_their_own_range():
    deep = photo_of(12, 12, deep=True)
    solution = solve(iv.Mask(hole(12, 12)), deep, backbone=any_size(), steps=2)
    known = torch.from_numpy(hole(12, 12))
    assert torch.allclose(solution.x[0][:, known].T, torch.from_numpy(deep / 65535.0).float()[known], atol=1e-6)


# ---- noise ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 64, 80), (3, 300, 130)])
@pytest.mark.parametrize("place", [(0, 0, 64, 64), (10, 33, 50, 17), (63, 64, 1, 16)])
def test_a_part_draws_what_the_whole_would_have_drawn(shape, place):
    keys = [(4, 0), (4, 1)]
    whole, part = NoiseSource(keys, shape), NoiseSource(keys, shape, place=place)
    top, left, height, width = place
    for step in (0, 5):
        expected = whole.draw(step, "step")[..., top : top + height, left : left + width]
        assert torch.equal(part.draw(step, "step"), expected)


def test_noise_of_large_pictures_is_normal_and_does_not_repeat():
    n = NoiseSource([(0, 0)], (3, 320, 320)).draw(0, "step")
    squares = n.unfold(2, 64, 64).unfold(3, 64, 64).permute(2, 3, 0, 1, 4, 5).reshape(25, -1)
    correlation = torch.corrcoef(squares) - torch.eye(25)
    assert abs(float(n.mean())) < 0.01 and abs(float(n.std()) - 1) < 0.01 and float(correlation.abs().max()) < 0.05
    other = NoiseSource([(0, 0)], (3, 320, 320), stream="coarse").draw(0, "step")
    assert abs(float((n * other).mean())) < 0.01


def test_photos_by_ddnm_plus_is_what_nothing_named_means():
    """Whatever the size: 64 x 64 is no cat."""
    for size in ((64, 64), (40, 52)):
        y, known = photo_of(*size), hole(*size)
        answer = solve(iv.Mask(known), y, steps=2)
        assert (answer.settings["backbone"], answer.settings["sampler"]) == ("photos", "ddnm+")
        named = solve(iv.Mask(known), y, "ddnm+", backbone="photos", steps=2)
        assert torch.equal(answer.x, named.x)
    assert iv.estimate(iv.Mask(known), y).nfe == 50
    assert iv.estimate(iv.SuperResolution(2, "box"), y).nfe == 30
    assert solve(iv.SuperResolution(2, "box"), photo_of(20, 26), steps=2).settings["spacing"] == "karras"
    papers = solve(iv.SuperResolution(2, "box"), photo_of(20, 26), preset="paper", steps=2).settings
    assert papers["spacing"] == "leading", "a preset is not mixed with what nothing named means"


def test_noise_is_modelled_where_nothing_is_named(recwarn):
    y = photo_of(40, 52)
    answer = solve(iv.Identity(), y, sigma_y=20.0, steps=5)
    assert not [w for w in recwarn if "noise" in str(w.message)]
    assert float((answer.x[0] - torch.from_numpy(y).movedim(-1, 0) / 255).abs().mean()) > 0.01


def test_sample_draws_the_size_that_windows_were_given():
    prior = iv.GaussianBackbone(torch.zeros(1, 8, 8), torch.full((1, 8, 8), 0.1))
    assert iv.sample(iv.Windows(prior, (1, 8, 16)), 1, steps=2).x.shape == (1, 1, 8, 16)
    assert iv.sample(iv.Windows(prior, (1, 8, 16)), 1, steps=2, size=(16, 8)).x.shape == (1, 1, 16, 8)
