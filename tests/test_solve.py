"""solve(): ranges, shapes, seeds, batches, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FEW_STEPS, gaussian_backbone
from PIL import Image

import invdiff as iv
from invdiff import DivergenceError, InvdiffError, InvdiffWarning, NetworkBackbone, solve


class Untouchable(iv.Backbone):
    """A backbone that must not be asked: bad input is refused before any network call."""

    schedule = iv.NoiseSchedule.linear()
    image_shape = (3, 16, 16)

    def predict(self, x_t, t):
        raise AssertionError("the network was called")


HALF = iv.Mask(iv.make_mask("half", 16))
FINE = torch.full((1, 3, 16, 16), 0.5)


# ---- seeds and batches ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def conv_backbone() -> NetworkBackbone:
    """A small random network, as batch-dependent as real ones are."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 32, 3, padding=1),
        torch.nn.SiLU(),
        torch.nn.GroupNorm(8, 32),
        torch.nn.Conv2d(32, 3, 3, padding=1),
    )

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x, t):
            return x * 0.9 + 0.1 * torch.tanh(self.net(x))

    return NetworkBackbone(Net(), image_shape=(3, 16, 16), precision="float32")


@pytest.mark.parametrize("sampler", FEW_STEPS)
def test_the_result_for_an_image_does_not_depend_on_its_batch(sampler, conv_backbone, clean):
    many = torch.cat([clean] * 4)
    A = iv.Mask(torch.stack([iv.make_mask("random_pixels", 16, seed=i) for i in range(16)])[:, None])
    common = dict(sampler=sampler, backbone=conv_backbone, value_range=(-1, 1), **FEW_STEPS[sampler])
    full = solve(A, many, batch_size=16, seed=7, **common).x
    alone = solve(A[5], many[5:6], seed=7, **common).x
    eight = solve(A[:8], many[:8], seed=7, **common).x
    ones = solve(A, many, batch_size=1, seed=7, **common).x
    seeds = solve(A, many, batch_size=5, seed=list(range(16)), **common).x
    assert torch.allclose(alone[0], full[5], atol=1e-5)
    assert torch.allclose(eight, full[:8], atol=1e-5)
    assert torch.allclose(ones, full, atol=1e-5)
    assert torch.allclose(seeds[7], full[7], atol=1e-5)
    assert not torch.allclose(seeds[5], full[5], atol=1e-2)


def test_same_seed_same_image_and_global_generators_untouched(gaussian):
    before = torch.random.get_rng_state().clone(), np.random.get_state()[1].copy()  # noqa: NPY002
    a, b = (solve(HALF, FINE, "repaint", backbone=gaussian, seed=0, **FEW_STEPS["repaint"]).x for _ in range(2))
    c = solve(HALF, FINE, "repaint", backbone=gaussian, seed=1, **FEW_STEPS["repaint"]).x
    assert torch.equal(a, b) and not torch.allclose(a, c, atol=1e-2)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def test_samples_differ_and_the_first_is_the_single_one(gaussian):
    one = solve(HALF, FINE, "ddnm", backbone=gaussian, steps=10, seed=3)
    four = solve(HALF, torch.cat([FINE, FINE]), "ddnm", backbone=gaussian, steps=10, seed=3, n_samples=4, batch_size=3)
    assert four.x.shape == (8, 3, 16, 16) and four.samples.shape == (2, 4, 3, 16, 16)
    assert torch.allclose(four.samples[0, 0], one.x[0], atol=1e-6)
    assert torch.allclose(four.samples[0], four.samples[1], atol=1e-6)
    assert four.std[..., 8:].mean() > 0.02 and four.std[..., :8].max() < 1e-6
    with pytest.raises(InvdiffError, match="n_samples must be at least 2 for a standard deviation"):
        _ = one.std


def test_two_samplers_can_run_on_the_same_noise(gaussian):
    asked = []

    def zero(shape):
        asked.append(tuple(shape))
        return torch.zeros(shape)

    runs = [solve(HALF, FINE, s, backbone=gaussian, steps=5, noise=zero, eta=1.0).x for s in ("ddnm", "ddnm+")]
    assert torch.equal(*runs) and set(asked) == {(1, 3, 16, 16)}


def test_x_init_replaces_the_first_state(gaussian):
    a, b = (
        solve(HALF, FINE, "ddnm", backbone=gaussian, steps=5, eta=0.0, x_init=torch.full((1, 3, 16, 16), v)).x
        for v in (0.0, 2.0)
    )
    assert not torch.allclose(a, b, atol=1e-3)
    with pytest.raises(InvdiffError, match="x_init must have shape"):
        solve(HALF, FINE, backbone=Untouchable(), x_init=torch.zeros(2, 3, 16, 16))


# ---- ranges and kinds of y --------------------------------------------------------------------------------------


def test_ranges_and_kinds_of_input_lead_to_the_same_image(gaussian, tmp_path):
    rng = np.random.default_rng(0)
    array = rng.integers(60, 200, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "y.png")
    unit = torch.from_numpy(array).float().movedim(-1, 0) / 255
    common = {"sampler": "ddnm", "backbone": gaussian, "steps": 8}
    reference = solve(HALF, unit, **common)
    for y in (
        array,
        Image.fromarray(array),
        tmp_path / "y.png",
        str(tmp_path / "y.png"),
        unit.numpy(),
        unit[None].double(),
    ):
        assert torch.allclose(solve(HALF, y, **common).x, reference.x, atol=1e-5)
    wide = solve(HALF, 2 * unit - 1, value_range=(-1, 1), **common)
    assert torch.allclose((wide.x + 1) / 2, reference.x, atol=1e-5)
    bytes_ = solve(HALF, unit * 255, value_range=(0, 255), **common)
    assert torch.allclose(bytes_.x / 255, reference.x, atol=1e-5)
    assert torch.allclose(reference.x[0][:, :, :8], unit[:, :, :8], atol=1e-6)
    listed = solve(HALF, [Image.fromarray(array)] * 2, **common)
    assert torch.allclose(listed.x, reference.x.expand(2, -1, -1, -1), atol=1e-5)


@pytest.mark.parametrize("A", [iv.Colorization("luma"), iv.WalshHadamard(0.5), 2 * iv.SuperResolution(2, "box")])
def test_the_range_of_y_is_mapped_through_any_operator(A, gaussian, clean):
    """y of an image in [0, 1] must mean the same as y of that image in [-1, 1]."""
    common = {"sampler": "ddnm", "backbone": gaussian, "steps": 8}
    model = solve(A, A(clean), value_range=(-1, 1), **common).x
    unit = solve(A, A((clean + 1) / 2), value_range=(0, 1), **common).x
    assert torch.allclose(2 * unit - 1, model, atol=1e-4)


def test_sigma_y_is_in_the_unit_of_y(gaussian, clean):
    y = HALF.measure(clean[:1], 0.1, seed=0)
    a = solve(HALF, y, "ddnm+", backbone=gaussian, sigma_y=0.1, steps=8, value_range=(-1, 1)).x
    b = solve(HALF, (y + 1) / 2, "ddnm+", backbone=gaussian, sigma_y=0.05, steps=8).x
    assert torch.allclose(a, 2 * b - 1, atol=1e-5)
    eight_bit = ((y[0] + 1) / 2 * 255).round().byte().movedim(0, -1).numpy()
    with pytest.warns(InvdiffWarning, match="8-bit"):
        solve(HALF, eight_bit, "ddnm+", backbone=gaussian, sigma_y=0.05, steps=3)


def test_a_measurement_is_never_degraded_again(gaussian):
    """y of the operator's own shape is used as it is: its values come back as A x."""
    A = iv.SuperResolution(4, "nearest")
    y = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    s = solve(A, y, "ddnm", backbone=gaussian, steps=8)
    assert torch.allclose(A(s.x), y, atol=1e-5)


def test_own_network_in_three_lines():
    backbone = NetworkBackbone(lambda x, t: 0.1 * x, schedule=iv.NoiseSchedule.linear(1000), image_shape=(3, 16, 16))
    s = solve(HALF, FINE, backbone=backbone, steps=4)
    assert s.timesteps == [750, 500, 250, 0] and s.nfe == 4


def test_what_a_solution_tells(gaussian, tmp_path):
    states = []
    s = solve(
        HALF, FINE, "repaint", backbone=gaussian, callback=states.append, keep_trajectory=True, **FEW_STEPS["repaint"]
    )
    assert s.nfe == states[-1].nfe == len(s.timesteps)
    assert states[0].t == 11 and states[-1].s == -1 and len(s.trajectory) == len(states)
    assert s.settings["sampler"] == "repaint" and s.settings["jump_length"] == 3 and s.settings["seed"] == 0
    assert s.image.size == (16, 16) and len(s.images) == 1 and s._repr_png_()[:4] == b"\x89PNG"
    assert s.save(tmp_path / "a.png") == [tmp_path / "a.png"]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), np.asarray(s.image))
    assert s.animate(tmp_path / "a.gif").stat().st_size > 1000
    s.plot().savefig(tmp_path / "plot.png")
    s.save(tmp_path / "a.npy")
    assert np.allclose(np.load(tmp_path / "a.npy"), s.x.numpy())
    several = solve(HALF, FINE, "ddnm", backbone=gaussian, steps=3, n_samples=2)
    assert [p.name for p in several.save(tmp_path / "b.png")] == ["b-0.png", "b-1.png"]
    assert not list(tmp_path.glob(".*"))  # no temporary file is left
    with pytest.raises(InvdiffError, match="keep_trajectory"):
        several.animate(tmp_path / "b.gif")


def test_results_can_enter_autograd(gaussian):
    x = solve(HALF, FINE, "ddnm", backbone=gaussian, steps=3).x.requires_grad_()
    x.square().sum().backward()
    assert x.grad is not None


def test_memory_of_gradient_samplers_stays_flat(gaussian):
    """No graph is kept from step to step."""
    states = []
    solve(HALF, FINE, "dps", backbone=gaussian, steps=6, callback=lambda p: states.append((p.x, p.x0)))
    assert all(x.grad_fn is None and x0.grad_fn is None for x, x0 in states)


# ---- what it refuses --------------------------------------------------------------------------------------------


def nan_at_known():
    y = FINE.clone()
    y[0, 0, 0, 0] = float("nan")
    return y


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"operator": iv.Mask(iv.make_mask("half", 32))}, r"32"),
        ({"y": torch.zeros(1, 3, 8, 8)}, r"y must have shape \(3, 16, 16\).* got shape \(1, 3, 8, 8\)"),
        ({"operator": iv.SuperResolution(4)}, r"y must have shape \(3, 4, 4\)"),
        ({"y": nan_at_known()}, r"1 values that are NaN or infinite"),
        ({"y": torch.full_like(FINE, float("inf"))}, "NaN or infinite"),
        ({"y": FINE * 255}, r"y ranges from .* far outside value_range = \(0, 1\)"),
        ({"value_range": (1, 0)}, "value_range must be"),
        ({"value_range": 7}, "value_range must be"),
        ({"sigma_y": -0.1}, "sigma_y must be a number from 0 to .* got -0.1"),
        ({"sigma_y": "much"}, "sigma_y must be a number"),
        ({"sampler": "repant"}, "sampler must be one of .*got 'repant'.*Did you mean 'repaint'"),
        ({"sampler": 3}, "sampler must be a name, .*got 3"),
        ({"sampler": iv.Sampler}, "sampler must be a name"),
        ({"etta": 0.5}, "unknown option 'etta' for sampler ddnm.*Did you mean 'eta'"),
        ({"eta": 2}, "eta must be a number from 0 to 1"),
        ({"steps": 0}, "steps must be a whole number of at least 1"),
        ({"steps": 1001}, "1 to 1,000"),
        ({"sampler": "repaint", "steps": 5, "jump_length": 10}, "jump_length = 10 is longer than the path"),
        ({"path": "jumpz"}, "path must be .*got 'jumpz'.*Did you mean 'jumps'"),
        ({"n_samples": 0}, "n_samples must be"),
        ({"batch_size": -1}, "batch_size must be"),
        ({"seed": [1, 2]}, "seed must be"),
        ({"seed": 1.5}, "seed must be"),
        ({"y": []}, "empty list"),
        ({"y": {"a": 1}}, "y must be a PIL image"),
        ({"y": np.zeros((16, 16, 3), np.int32)}, "array of int32"),
        ({"y": np.array(["a"])}, "y must be an array of 8- or 16-bit integers"),
        ({"operator": "mask"}, "operator must be an invdiff operator"),
        ({"operator": lambda x: x}, "FunctionOperator"),
        ({"y": "nowhere.png"}, "'nowhere.png' does not exist"),
    ],
)
def test_bad_input_is_refused_by_name_before_any_network_call(arguments, message):
    call = {"operator": HALF, "y": FINE, "sampler": "ddnm", "backbone": Untouchable(), **arguments}
    with pytest.raises(InvdiffError, match=message):
        solve(**call)


def test_unknown_backbones_are_refused_with_what_is_known():
    with pytest.raises(InvdiffError, match="cats"):
        solve(HALF, FINE, backbone="cat64")
    with pytest.raises(InvdiffError, match="NetworkBackbone"):
        solve(HALF, FINE, backbone=torch.nn.Identity())


def test_unusual_files_are_refused_each_with_its_own_message(tmp_path):
    rgb = Image.new("RGB", (16, 16), "red")
    rgb.convert("CMYK").save(tmp_path / "cmyk.jpg")
    (tmp_path / "text.png").write_text("not a picture")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:300])
    (tmp_path / "empty.png").write_bytes(b"")
    for name, message in {
        "cmyk.jpg": "CMYK",
        "text.png": "not an image file",
        "cut.png": "damaged or truncated",
        "empty.png": "not an image file",
        ".": "directory",
        "gone.png": "does not exist",
    }.items():
        with pytest.raises(InvdiffError, match=message):
            solve(HALF, tmp_path / name, backbone=Untouchable())


def test_colour_where_grey_is_measured_is_explained(tmp_path):
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    with pytest.raises(InvdiffError, match="colour picture, but the measurement is grey"):
        solve(iv.Colorization(), tmp_path / "red.png", backbone=Untouchable())


def test_empty_and_full_masks_warn(gaussian):
    with pytest.warns(InvdiffWarning, match="mask is empty"):
        solve(iv.Mask(torch.zeros(16, 16)), FINE, "ddnm", backbone=gaussian, steps=3)
    with pytest.warns(InvdiffWarning, match="mask is full"):
        s = solve(iv.Mask(torch.ones(16, 16)), FINE, "ddnm", backbone=gaussian, steps=3)
    assert torch.allclose(s.x, FINE, atol=1e-6)


def test_a_run_that_goes_non_finite_raises(gaussian):
    def broken(x, t):
        return x * float("nan") if int(t[0]) < 500 else x

    with pytest.raises(DivergenceError, match=r"ddnm diverged.*time \d+ -> \d+"):
        solve(HALF, FINE, "ddnm", backbone=NetworkBackbone(broken, image_shape=(3, 16, 16)), steps=10)


def test_outputs_that_cannot_be_written_are_refused(gaussian, tmp_path):
    s = solve(HALF, FINE, "ddnm", backbone=gaussian, steps=2)
    for path, message in (
        (tmp_path / "no" / "a.png", "does not exist"),
        (tmp_path, "directory"),
        (tmp_path / "a.xyz", "ending"),
    ):
        with pytest.raises(InvdiffError, match=message):
            s.save(path)


def test_import_is_light():
    """Nothing heavy rides along: none of what only figures, metrics, pipelines, clusters or the command line need."""
    heavy = (
        "matplotlib",
        "lpips",
        "torchvision",
        "torchmetrics",
        "diffusers",
        "transformers",
        "skimage",
        "sklearn",
        "ray",
    )
    heavy += (
        "openvino",
        "gradio",
        "typer",
        "pandas",
        "jinja2",
        "tifffile",
        "scipy.sparse.linalg",
        "invdiff.cli",
        "invdiff.bench",
    )
    code = f"import sys, invdiff; print([m for m in {heavy!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_gaussian_fixture_is_a_prior_of_smooth_pictures():
    backbone = gaussian_backbone()
    x = backbone.prior_sample(64, seed=0)
    neighbours = (x[..., 1:] * x[..., :-1]).mean() / x.square().mean()
    assert 0.7 < float(neighbours) < 1


def test_measurements_of_an_unbounded_prior_are_not_out_of_range():
    wide = iv.GaussianBackbone(torch.full((1, 1, 8), 12.0), torch.ones(1, 1, 8))
    A = iv.Mask(torch.arange(8).reshape(1, 8) < 4)
    s = solve(A, torch.full((1, 1, 1, 8), 12.5), "ddnm", backbone=wide, value_range=(-1, 1), steps=20)
    assert torch.allclose(s.x[..., :4], torch.full((1, 1, 1, 4), 12.5), atol=1e-4)


@pytest.mark.parametrize("sampler", ["diffpir", "pigdm"])
def test_first_states_do_not_enlarge_the_noise_of_a_blur(sampler, gaussian, clean):
    A = iv.Blur(iv.gaussian_kernel(9, 2.0))
    y = A.measure(clean, 0.1, seed=0)
    s = solve(A, y, sampler, backbone=gaussian, sigma_y=0.1, value_range=(-1, 1), steps=30)
    assert float((s.x - clean).square().mean()) < 1.2 * float((y - clean).square().mean())


# ---- what files, arrays and callers may hide --------------------------------------------------------------------


def test_a_rotation_noted_by_the_camera_is_applied(gaussian, tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8))
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    note = Image.Exif()
    note[0x0112] = 6  # to be shown turned by a quarter, clockwise
    turned.save(tmp_path / "turned.png", exif=note)
    upright = solve(HALF, picture, "ddnm", backbone=gaussian, steps=3).x
    for y in (tmp_path / "turned.png", Image.open(tmp_path / "turned.png")):
        assert torch.equal(solve(HALF, y, "ddnm", backbone=gaussian, steps=3).x, upright)


def test_of_several_frames_the_first_is_taken_and_said(gaussian, tmp_path):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "two.tif", save_all=True, append_images=frames[1:])
    with pytest.warns(InvdiffWarning, match="holds 2 frames; the first is taken"):
        x = solve(HALF, tmp_path / "two.tif", "ddnm", backbone=gaussian, steps=3).x
    assert torch.equal(x[..., :8], solve(HALF, frames[0], "ddnm", backbone=gaussian, steps=3).x[..., :8])


def test_eight_bit_truth_values_are_noticed(gaussian):
    binary = np.random.default_rng(0).integers(0, 2, (16, 16, 3), dtype=np.uint8)
    with pytest.warns(InvdiffWarning, match="0 and 1 alone"):
        solve(HALF, binary, "ddnm", backbone=gaussian, steps=3)


def test_hidden_entries_of_a_masked_array_are_not_read(gaussian):
    y = np.ma.masked_array(np.full((3, 16, 16), 0.5), np.zeros((3, 16, 16), bool))
    assert torch.equal(
        solve(HALF, y, "ddnm", backbone=gaussian, steps=3).x, solve(HALF, FINE, "ddnm", backbone=gaussian, steps=3).x
    )
    y[0, 0, 0] = np.ma.masked
    with pytest.raises(InvdiffError, match=r"y has 1 masked entries.*Mask"):
        solve(HALF, y, "ddnm", backbone=gaussian, steps=3)


@pytest.mark.parametrize("sampler", ["ddnm", "dps"])
def test_a_callback_cannot_change_the_run(sampler, gaussian):
    def scribble(progress):
        progress.x.fill_(9.0)
        progress.x0.fill_(9.0)

    plain, watched = (solve(HALF, FINE, sampler, backbone=gaussian, steps=4, callback=c).x for c in (None, scribble))
    assert torch.equal(plain, watched)


def test_a_batch_size_beyond_the_images_is_all_of_them(gaussian):
    a, b = (solve(HALF, FINE, "ddnm", backbone=gaussian, steps=3, batch_size=size).x for size in (1, 10**30))
    assert torch.equal(a, b)


def test_noise_of_another_shape_is_refused(gaussian):
    with pytest.raises(InvdiffError, match=r"noise must return a tensor of shape \(1, 3, 16, 16\)"):
        solve(HALF, FINE, "ddnm", backbone=gaussian, steps=3, noise=lambda shape: torch.zeros(shape[1:]))


def test_a_folder_that_cannot_be_written_to_is_noticed_before_a_file_is_lost(gaussian, tmp_path):
    s = solve(HALF, FINE, "ddnm", backbone=gaussian, steps=2)
    (tmp_path / "kept.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    for name, message in (
        ("kept.png", "is a directory"),
        ("pipe.png", "pipe, a socket or a device"),
        ("a" * 300 + ".png", "cannot be written"),
        ("nul\0.png", "cannot be written"),
    ):
        with pytest.raises(InvdiffError, match=message):
            s.save(tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept.png", "pipe.png"]


@pytest.mark.parametrize("kind", ["pipe", "device", "long", "nul", "circle", "header"])
def test_files_that_cannot_be_read_do_not_hang(kind, tmp_path):
    path = tmp_path / "y.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "long":
        path = tmp_path / ("y" * 300 + ".png")
    elif kind == "nul":
        path = tmp_path / "y\0.png"
    elif kind == "circle":
        path.symlink_to(path)
    else:  # 60,000 x 60,000 in a file of some bytes
        Image.new("L", (8, 8)).save(path)
        content = bytearray(path.read_bytes())
        content[16:24] = (60_000).to_bytes(4, "big") * 2
        content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
        path.write_bytes(content)
    for make in (lambda: solve(HALF, path, backbone=Untouchable()), lambda: iv.Mask(path)):
        with pytest.raises(InvdiffError, match=r"cannot be read|pipe, a socket or a device|too large"):
            make()
