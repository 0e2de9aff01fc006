"""The command line as a user types it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import invdiff as iv
from invdiff.cli import main
from invdiff.data import chelsea64
from invdiff.data.make_chelsea64 import make
from invdiff.errors import InvdiffError
from invdiff.fitting import FITS, fit_picture
from invdiff.images import from_pil
from invdiff.operators import make_operator


@pytest.fixture
def invdiff(monkeypatch, capsys):
    """Run the command in this process: (words, folder) -> what it printed."""

    def run(*words: object, cwd=None, ok: bool = True) -> str:
        if cwd is not None:
            monkeypatch.chdir(cwd)
        monkeypatch.setenv("COLUMNS", "400")
        monkeypatch.setattr(sys, "argv", ["invdiff", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
            sys.exit(0)
        printed = capsys.readouterr()
        said = " ".join((printed.out + printed.err).split())
        assert (end.value.code in (0, None)) == ok, said
        assert "Traceback" not in said
        return said

    return run


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    chelsea64().save(folder / "photo.png")
    mask = iv.make_mask("box", 64)
    Image.fromarray((mask.numpy() * 255).astype(np.uint8)).save(folder / "mask.png")
    chelsea64().convert("L").save(folder / "grey.png")
    return folder


def test_the_demonstration_photo_is_cut_by_its_script():
    assert np.abs(np.asarray(make(), int) - np.asarray(chelsea64(), int)).max() <= 1


def test_blend_sets_what_was_filled_into_the_photo(photo, invdiff):
    words = ("solve", "photo.png", "-s", "dps", "--steps", 2)
    invdiff(*words, "--mask", "mask.png", "--blend", "-o", "blended.png", cwd=photo)
    known = np.asarray(Image.open(photo / "mask.png")) > 0
    given, restored = (np.asarray(Image.open(photo / name)) for name in ("photo.png", "blended.png"))
    assert (given[known] == restored[known]).all() and (given[~known] != restored[~known]).any()
    assert "--blend is for masks" in invdiff(*words, "-a", "colorization", "--blend", cwd=photo, ok=False)


def test_solve_a_masked_photo(photo, invdiff):
    out = invdiff("solve", "photo.png", "--mask", "mask.png", "-s", "ddnm", "--steps", 4, "-o", "r.png", cwd=photo)
    assert "75 % of the pixels are known" in out and "4 network calls" in out
    restored = np.asarray(Image.open(photo / "r.png"))
    mask = iv.make_mask("box", 64).numpy()
    assert np.array_equal(restored[mask], np.asarray(chelsea64())[mask])


def test_samples_options_and_the_other_way_round(photo, invdiff):
    out = invdiff(
        *("solve", "photo.png", "--mask", "mask.png", "--invert-mask", "-s", "repaint", "--steps", 4, "-n", 2),
        *("-O", "jump_length=2", "-O", "jump_n_sample=2", "-o", "two.png", "--figure", "f.png", "--animate", "a.gif"),
        cwd=photo,
    )
    assert "25 % of the pixels are known" in out and "two-0.png, two-1.png" in out
    assert Image.open(photo / "f.png").width > 500 and Image.open(photo / "a.gif").n_frames > 3
    given, known = np.asarray(chelsea64()), ~iv.make_mask("box", 64).numpy()
    one, two = (np.asarray(Image.open(photo / f"two-{i}.png")) for i in range(2))
    assert np.array_equal(one[known], given[known]) and np.array_equal(two[known], given[known])
    assert not np.array_equal(one, two)


def test_colorization_of_a_grey_picture(photo, invdiff):
    invdiff("solve", "grey.png", "-a", "colorization", "--steps", 3, "-o", "c.png", cwd=photo)
    restored = torch.from_numpy(np.asarray(Image.open(photo / "c.png")).astype(np.float32))
    grey = torch.from_numpy(np.asarray(Image.open(photo / "grey.png")).astype(np.float32))
    assert (restored.mean(-1) - grey).abs().mean() < 2  # 8-bit rounding and clipping apart


def test_simulate_reports_the_error(photo, invdiff):
    out = invdiff(
        *(
            "solve",
            "photo.png",
            "--simulate",
            "-a",
            "super_resolution",
            "-A",
            "kernel=box",
            "-A",
            "scale=2",
            "--sigma-y",
            5,
        ),
        *("-s", "ddnm+", "--steps", 5, "-o", "s.png"),
        cwd=photo,
    )
    assert "PSNR" in out and "SSIM" in out


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("blur", {"kernel": "motion", "seed": 3}),
        ("blur", {"sigma": 1.6}),
        ("identity", {}),
        ("compressed-sensing", {"ratio": 0.4}),
        ("fourier", {"acceleration": 2}),
        ("super-resolution", {"scale": 4}),
        ("colorization", {"weights": (0.3, 0.6, 0.1)}),
        ("matrix", {"matrix": "random", "rows": 16}),
        ("mask", {"mask": "wide", "seed": 3}),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_every_operator_by_name(photo, invdiff, name, options):
    """What is written has the measurement that the operator made of the photo; where that lost something, it is another picture."""
    words = []
    for key, value in options.items():
        words += ["-A", f"{key}={','.join(map(str, value)) if isinstance(value, tuple) else value}"]
    out = photo / "by-name.npy"
    invdiff("solve", "photo.png", "--simulate", "-a", name, *words, "--steps", 2, "-o", out, "-q", cwd=photo)
    restored = torch.from_numpy(np.load(out))
    truth = from_pil(chelsea64())[None]
    operator = make_operator(name, tuple(truth.shape[1:]), **options)
    wanted, found = operator(truth), operator(restored.float())
    assert float((found - wanted).norm() / wanted.norm()) < 1e-3
    if float((operator.project(truth) - truth).abs().max()) > 0.1:
        assert float((restored - truth).abs().max()) > 0.01


@pytest.mark.parametrize(
    ("fit", "size"), [("cover", (64, 64)), ("crop", (64, 64)), ("resize", (64, 64)), ("pad", (50, 40))]
)
def test_photos_of_other_sizes(photo, invdiff, fit, size):
    given = (90, 80) if fit != "pad" else size[::-1]
    chelsea64().resize(given).save(photo / "other.png")
    words = ("solve", "other.png", "--mask", "half", "--steps", 2, "-o", "fit.png")
    refused = invdiff(*words, "--backbone", "cats64", cwd=photo, ok=False)
    assert "--fit crop" in refused and f"{given[0]}x{given[1]}" in refused
    assert "photos takes any" in invdiff(*words, "--fit", fit, cwd=photo, ok=False)
    invdiff(*words, "--fit", fit, "--backbone", "cats64", cwd=photo)
    assert Image.open(photo / "fit.png").size == size[::-1]


@pytest.mark.parametrize("given", [(90, 140), (140, 90), (48, 40)])
@pytest.mark.parametrize("fit", FITS)
def test_a_mask_is_placed_like_its_photo(fit, given):
    known = torch.zeros(given, dtype=torch.bool)
    known[: given[0] // 3, given[1] // 4 :] = True
    picture = Image.fromarray(255 * known.numpy().astype("uint8"))
    too_small, too_large = fit == "crop" and min(given) < 64, fit == "pad" and max(given) > 64
    if too_small or too_large:
        with pytest.raises(InvdiffError, match=f"--fit {fit} needs"):
            fit_picture(picture, (64, 64), fit)
        return
    placed, placement = fit_picture(picture, (64, 64), fit)
    mask = placement.mask(known)
    assert placed.size == (64, 64) and mask.shape == (64, 64) and mask.any() and not mask.all()
    white = torch.from_numpy(np.array(placed))
    assert (white[mask] == 255).all()  # no missing pixel has a share in a known one
    assert ((white > 127) & ~mask).float().mean() < 0.15  # which costs a seam along the edges of what is missing


@pytest.mark.parametrize("size", [(300, 451), (90, 140), (40, 33)])
@pytest.mark.parametrize("fit", ["cover", "resize"])
def test_what_lies_below_a_scratch_never_shows_in_known_pixels(fit, size):
    rng = np.random.default_rng(0)
    photo, known = rng.integers(0, 256, (*size, 3), dtype=np.uint8), np.ones(size, bool)
    known[size[0] // 2, 2:-2] = known[3:-5, size[1] // 3] = False
    placed = []
    for value in (0, 255):
        scratched = photo.copy()
        scratched[~known] = value
        picture, placement = fit_picture(Image.fromarray(scratched), (64, 64), fit)
        placed.append(np.array(picture))
    mask = placement.mask(torch.from_numpy(known)).numpy()
    assert np.array_equal(placed[0][mask], placed[1][mask]) and mask.mean() > 0.5


@pytest.mark.parametrize("fit", ["cover", "crop"])
def test_a_hole_outside_the_frame_is_refused(fit):
    known = torch.ones(80, 200, dtype=torch.bool)
    known[:, :9] = False
    placement = fit_picture(Image.new("RGB", (200, 80)), (64, 64), fit)[1]
    with pytest.raises(InvdiffError, match=f"--fit {fit}: everything that is missing lies outside"):
        placement.mask(known)


def test_cover_shows_the_whole_of_the_shorter_side():
    photo = Image.fromarray(np.tile(np.arange(100, dtype="uint8"), (300, 1)))  # 100 wide, a ramp from left to right
    covered = np.array(fit_picture(photo, (64, 64), "cover")[0]).astype(float)
    assert covered[:, 0].max() < 3 and covered[:, -1].min() > 96


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("solve", "gone.png"), "does not exist"),
        (("solve", "photo.png", "--mask", "halve"), "Did you mean 'half'"),
        (("solve", "photo.png"), "--mask on the command line"),
        (("solve", "photo.png", "-a", "super_resolution"), "must be given the option 'scale'"),
        (("solve", "photo.png", "-a", "super_resolution", "-A", "scal=2"), "Did you mean 'scale'"),
        (("solve", "photo.png", "-a", "super_resolution", "-A", "scale=two"), "scale must be a whole number"),
        (("solve", "photo.png", "-a", "blur", "-A", "kernel=gausian"), "Did you mean 'gaussian'"),
        (("solve", "photo.png", "-a", "blur", "-A", "sigma"), "name=value"),
        (("solve", "photo.png", "-a", "maks"), "Did you mean 'mask'"),
        (("solve", "photo.png", "--mask", "half", "-s", "repant"), "Did you mean 'repaint'"),
        (("solve", "photo.png", "--mask", "half", "-O", "etaa=1"), "Did you mean 'eta'"),
        (("solve", "photo.png", "--mask", "half", "-O", "eta"), "name=value"),
        (("solve", "photo.png", "--mask", "half", "-o", "no/such.png"), "does not exist"),
        (("solve", "photo.png", "--mask", "half", "-o", "x.foo"), "ending"),
        (("solve", "photo.png", "-a", "colorization"), "colour picture"),
        (("solve", "photo.png", "-a", "fourier"), "--simulate"),
        (("solve", "photo.png", "--mask", "half", "--backbone", "cats46"), "Did you mean 'cats64'"),
        (("mask", "wied"), "Did you mean 'wide'"),
        (("mask", "wide", "--size", "big"), "--size"),
        (("sample", "--steps", "0"), "steps"),
        (("train",), "--data is missing"),
        (("train", "--data", "nowhere", "--out", "x"), "nowhere"),
        (("train", "--data", "nowhere", "--out", "x", "--sizee", "3"), "Did you mean 'size'"),
        (("bench", "quik"), "Did you mean 'quick'"),
        (("report", "nowhere"), "nowhere"),
        (("download", "ddpm-dog-256"), "Did you mean"),
        (
            ("solve", "photo.png", "--mask", "half", "--device", "xpu"),
            "device must be one that is here and computes, got 'xpu'",
        ),
        (
            ("solve", "photo.png", "--mask", "half", "--device", "meta"),
            "device must be one that is here and computes, got 'meta'",
        ),
        (("solve", "photo.png", "--mask", "half", "--steps", "3", "-O", "steps=3"), "steps is given twice"),
        (
            ("solve", "photo.png", "--mask", "half", "-s", "repaint", "-O", "jump_length=a"),
            "jump_length must be a whole",
        ),
        (("solve", "photo.png", "--mask", "half", "-o", "photo.png"), "--output must be another file than photo"),
        (("solve", "photo.png", "--mask", "half", "--figure", "f.npy"), "must end in one of .png"),
        (("solve", "photo.png", "--mask", "half", "--animate", "a.png"), "must end in one of .gif"),
        (("solve", "photo.png", "--mask", "half", "-o", "x.h5"), "must end in one of"),
        (("solve", "photo.png", "--mask", "half", "-n", "0"), "must be a whole number"),
        (("solve", "photo.png", "--mask", "half", "-n", "10000000000"), "n_samples must be at most"),
        (("solve", "photo.png", "--simulate", "-a", "super_resolution", "-A", "scale=0"), "scale must be"),
        (("solve", "photo.png", "--mask", "half", "-o", "/dev/null"), "pipe, a socket or a device"),
        (("solve",), "Missing argument"),
        (("solve", "photo.png", "--stepps", "3"), "No such option"),
        (("mask", "wide", "--size", "3x4x5"), "--size"),
        (("mask", "wide", "--size", "1000000"), "at most 268,435,456 pixels"),
        (("demo", "-o", "photo.png/x.png"), "out must be a folder"),
        (("demo", "-o", "x.jpg"), "must end in one of .png"),
        (("train", "--data", ".", "--out", "photo.png"), "out must be a folder"),
        (("report", "photo.png"), "photo.png"),
    ],
)
def test_mistakes_are_one_sentence(photo, invdiff, words, message):
    out = invdiff(*words, cwd=photo, ok=False)
    assert message in out and "error:" in out


def test_lists_and_help(photo, invdiff):
    assert "jump_n_sample = 10" in invdiff("list", "samplers")
    assert "SuperResolution" in invdiff("list", "operators")
    assert "cats64" in invdiff("list", "backbones")
    assert "alternating_lines" in invdiff("list", "masks")
    assert "psnr" in invdiff("list", "metrics")
    assert "repaint-ablation" in invdiff("list", "suites")
    assert "white" in invdiff("solve", "--help")
    assert "--symmetries" in invdiff("train", "--help")
    invdiff("mask", "wide", "-o", "m.png", "--size", "30x50", cwd=photo)
    assert Image.open(photo / "m.png").size == (50, 30)


def test_sample_draws_from_the_prior(photo, invdiff):
    invdiff("sample", "-n", 2, "--steps", 3, "-o", "s.png", "--precision", "float32", cwd=photo)
    wanted = iv.sample("cats64", 2, steps=3, precision="float32").images
    for i, image in enumerate(wanted):
        written = np.asarray(Image.open(photo / f"s-{i}.png"), int)
        assert np.abs(written - np.asarray(image, int)).max() <= 1
    assert np.abs(np.asarray(wanted[0], int) - np.asarray(wanted[1], int)).max() > 50


def test_the_command_itself_answers_and_fails_with_a_status(photo):
    done = subprocess.run(
        [sys.executable, "-m", "invdiff", "solve", "gone.png"], capture_output=True, text=True, cwd=photo
    )
    assert done.returncode == 2 and "does not exist" in done.stderr and "Traceback" not in done.stderr


def test_a_full_disk_does_not_take_what_was_computed(photo, invdiff, monkeypatch):
    """The disk fills up during the run: the restoration is put where there is room, and the message says where."""
    from invdiff import fitting

    write, tried = fitting.save, []

    def full_once(answer, output, placed):
        tried.append(output)
        if len(tried) == 1:
            raise OSError(28, "No space left on device", str(output))
        return write(answer, output, placed)

    monkeypatch.setattr(fitting, "save", full_once)
    out = invdiff("solve", "photo.png", "--mask", "half", "--steps", 2, "-o", "lost.png", cwd=photo, ok=False)
    assert "No space left" in out and "is kept in" in out and tried[1].name in out
    assert not (photo / "lost.png").exists() and Image.open(tried[1]).size == (64, 64)


def test_a_reader_that_has_had_enough_is_no_error(photo):
    done = subprocess.run(
        f"{sys.executable} -m invdiff list samplers | head -n 1", shell=True, capture_output=True, text=True, cwd=photo
    )
    assert done.stdout.count("\n") == 1 and "Traceback" not in done.stderr


def test_a_photo_of_any_size_from_file_to_file(tmp_path, invdiff, monkeypatch):
    """The measurement's size decides, transparency and 16 bits stay, known pixels come back bit for bit."""
    from pictures import any_size, hole, photo_of

    from invdiff.photos import Photo

    monkeypatch.setattr(sys.modules["invdiff.solve"], "resolve_backbone", lambda *words, **more: any_size())
    pixels, known = photo_of(41, 70, deep=True), hole(41, 70)
    Photo(pixels, photo_of(41, 70, 3, deep=True)[..., 0]).save(tmp_path / "photo.png")
    Image.fromarray(known).save(tmp_path / "mask.png")
    invdiff("solve", "photo.png", "--mask", "mask.png", "--steps", 3, "-o", "out.png", cwd=tmp_path)
    out = Photo.read(tmp_path / "out.png")
    assert out.pixels.dtype == np.uint16 and np.array_equal(out.pixels[known], pixels[known]) and out.alpha is not None
    invdiff(
        *("solve", "photo.png", "-a", "super_resolution", "-A", "scale=2", "-A", "kernel=box"),
        *("--steps", 2, "-o", "large.png"),
        cwd=tmp_path,
    )
    assert Image.open(tmp_path / "large.png").size == (140, 82)
    grey = Image.fromarray((pixels[..., 0] >> 8).astype(np.uint8))
    grey.save(tmp_path / "grey.png")
    invdiff("solve", "grey.png", "-a", "colorization", "--steps", 2, "-o", "colour.png", cwd=tmp_path)
    assert Image.open(tmp_path / "colour.png").mode == "RGB"
    invdiff("solve", "grey.png", "--mask", "mask.png", "--steps", 2, "-o", "grey-out.png", cwd=tmp_path)
    assert Image.open(tmp_path / "grey-out.png").mode == "L"
    invdiff("solve", "grey.png", "-a", "blur", "--simulate", "--steps", 2, "-o", "sharp.png", cwd=tmp_path)
    Image.fromarray(known[:-1]).save(tmp_path / "small.png")
    words = ("solve", "photo.png", "--steps", 2, "-o", "o.png", "--mask")
    assert "both must have one size" in invdiff(*words, "small.png", cwd=tmp_path, ok=False)
    assert "leave it out" in invdiff(*words, "mask.png", "--fit", "cover", cwd=tmp_path, ok=False)
