"""The trainer, what it measures, and the images it reads."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from invdiff import Mask, make_mask, solve
from invdiff.backbones import FlowBackbone, NetworkBackbone, NoiseSchedule, load_backbone
from invdiff.backbones.haar import FLOW, Description, HaarUNet
from invdiff.errors import DivergenceError, InvdiffError, InvdiffWarning
from invdiff.images import sample_sheet
from invdiff.priors import GaussianBackbone
from invdiff.training.data import load_images, load_splits
from invdiff.training.evaluation import draw_samples, evaluate, evaluate_on, nearest_neighbours
from invdiff.training.loop import TrainingConfig, _batch, _weights, read_log, train

TINY = {
    "size": 16,
    "channels": "16,32",
    "layers": 1,
    "attention": 0,
    "batch": 8,
    "samples": 0,
    "compile": "no",
    "precision": "float32",
    "warmup": 5,
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Plain colours that fade from left to right: something a tiny network learns in seconds."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    fade = np.linspace(0.3, 1, 16).reshape(1, 16, 1)
    for split, count in (("train", 40), ("val", 12), ("train_grey", 2)):
        (folder / split).mkdir()
        for i in range(count):
            colour = rng.integers(60, 255, 3) * fade * np.ones((16, 1, 1))
            Image.fromarray(colour.astype(np.uint8)).save(folder / split / f"{i:03}.png")
    return folder


def zipped(folder: Path, file: Path) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(folder.rglob("*.*")):
            archive.write(path, Path("top") / path.relative_to(folder))
    return file


# ---- reading images ---------------------------------------------------------------------------------------------


def test_a_zip_reads_like_the_folder(pictures, tmp_path):
    archive = zipped(pictures, tmp_path / "pictures.zip")
    for ours, theirs in zip(load_splits(pictures, 16), load_splits(archive, 16), strict=True):
        assert ours.dtype == torch.uint8
        assert torch.equal(ours, theirs)
    assert [len(s) for s in load_splits(archive, 16)] == [40, 12]
    assert len(load_images(archive, 16)[0]) == 54
    assert len(load_images(archive, 16, exclude=["train_grey", "00?.png"])[0]) == 54 - 2 - 20


def test_without_folders_for_it_some_are_held_out_by_the_seed(pictures):
    first, again, other = (load_splits(pictures / "train", 16, holdout=0.1, seed=s) for s in (0, 0, 1))
    assert [len(s) for s in first] == [36, 4]
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])
    everything = torch.cat(first).flatten(1).unique(dim=0)
    assert torch.equal(everything, load_images(pictures / "train", 16)[0].flatten(1).unique(dim=0))


def test_broken_images_are_named_and_skipped(pictures, tmp_path):
    good = (pictures / "train" / "000.png").read_bytes()
    (tmp_path / "good.png").write_bytes(good)
    (tmp_path / "torn.png").write_bytes(good[:60])
    (tmp_path / "words.jpg").write_text("no image")
    (tmp_path / "notes.txt").write_text("not looked at")
    with pytest.warns(InvdiffWarning, match=r"(?s)2 of 3 images.*torn\.png.*words\.jpg"):
        images, names = load_images(tmp_path, 16)
    assert names == ["good.png"]
    assert images.shape == (1, 3, 16, 16)
    (tmp_path / "good.png").unlink()
    with pytest.raises(InvdiffError, match=r"torn\.png"):
        load_images(tmp_path, 16)


def test_nothing_to_read_is_an_error(tmp_path):
    with pytest.raises(InvdiffError, match="no image in"):
        train(tmp_path, tmp_path / "out", **TINY)
    with pytest.raises(InvdiffError, match="does not exist"):
        load_images(tmp_path / "nowhere", 16)
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(InvdiffError, match="must be a folder"):
        load_images(tmp_path / "text.zip", 16)


def test_other_sizes_are_cropped_at_the_centre_and_grey_becomes_rgb(tmp_path):
    wide = np.zeros((20, 60), np.uint8)
    wide[:, 20:40] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    with pytest.warns(InvdiffWarning, match="1 of 1 images .* resized to 10x10"):
        images, _ = load_images(tmp_path, 10)
    assert images.shape == (1, 3, 10, 10)
    assert (images == 200).all()


def test_a_cache_holds_the_same_images_until_they_change(pictures, tmp_path):
    plain, names = load_images(pictures, 16)
    file = tmp_path / "images.npy"
    for _ in range(2):
        mapped, again = load_images(pictures, 16, cache=file)
        assert torch.equal(mapped, plain)
        assert again == names
    written = file.stat().st_mtime_ns
    assert len(load_images(pictures, 16, cache=file, limit=3)[0]) == 3
    assert file.stat().st_mtime_ns != written


# ---- measuring --------------------------------------------------------------------------------------------------


def test_the_error_of_an_exact_denoiser_is_the_known_one():
    """For x0 ~ N(0, I) the best guess leaves an error of alpha_bar."""
    images = torch.randn(128, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    schedule = NoiseSchedule.linear(1000)
    exact = GaussianBackbone(torch.zeros(3, 16, 16), torch.ones(3, 16, 16), schedule)
    levels = schedule.alpha_bar[torch.linspace(20, 980, 128).round().long()]
    assert evaluate(exact, images) == pytest.approx(float(levels.mean()), rel=0.02)


def test_the_draw_is_fixed_and_predicting_nothing_costs_its_variance():
    silent = NetworkBackbone(lambda x, t: torch.zeros_like(x), image_shape=(3, 16, 16))
    images = torch.zeros(128, 3, 16, 16)
    noise = torch.randn(128, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert evaluate(silent, images, batch=7) == pytest.approx(float(noise.square().mean()), rel=1e-5)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_network_that_knows_the_images_has_no_error_whatever_it_predicts(prediction):
    x0 = torch.full((1, 3, 16, 16), 0.25)
    schedule = NoiseSchedule.linear(1000)

    def network(x, t):
        a = schedule.alpha_bar[t].float().reshape(-1, 1, 1, 1)
        eps = (x - a.sqrt() * x0) / (1 - a).sqrt()
        known = {"epsilon": eps, "sample": x0.expand_as(x), "v_prediction": a.sqrt() * eps - (1 - a).sqrt() * x0}
        return known[prediction]

    backbone = NetworkBackbone(network, schedule, (3, 16, 16), prediction=prediction)
    assert evaluate(backbone, x0.expand(20, -1, -1, -1)) < 1e-6


def test_another_schedule_is_asked_at_the_same_levels():
    images = torch.randn(128, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    prior = torch.zeros(3, 16, 16), torch.ones(3, 16, 16)
    linear, cosine = (GaussianBackbone(*prior, s) for s in (NoiseSchedule.linear(1000), NoiseSchedule.cosine(4000)))
    assert evaluate(cosine, images) == pytest.approx(evaluate(linear, images), rel=0.01)


def test_samples_of_a_gaussian_have_its_moments():
    backbone = GaussianBackbone(torch.full((1, 4, 4), 0.3), torch.full((1, 4, 4), 0.04), NoiseSchedule.linear(1000))
    for eta in (0.0, 1.0):
        drawn = draw_samples(backbone, 500, steps=1000, eta=eta)
        assert float(drawn.mean()) == pytest.approx(0.3, abs=0.02)
        assert float(drawn.std()) == pytest.approx(0.2, rel=0.04)
    assert torch.equal(draw_samples(backbone, 2, steps=7), draw_samples(backbone, 2, steps=7))


def test_a_copied_image_is_its_own_neighbour_also_mirrored():
    images = torch.randint(0, 256, (30, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    samples = torch.stack([images[7], images[11].flip(-1)]).float() / 127.5 - 1
    index, distance = nearest_neighbours(samples, images, count=2)
    assert index[:, 0].tolist() == [7, 11]
    assert distance[:, 0].max() < 1e-3 < distance[:, 1].min()


def test_a_sheet_shows_every_image_in_its_place():
    images = torch.stack([torch.full((3, 4, 4), v) for v in (-1.0, 0.0, 1.0)])
    sheet = np.asarray(sample_sheet(images, columns=2, scale=3, gap=1))
    assert sheet.shape == (25, 25, 3)
    assert [sheet[0, 0, 0], sheet[0, 13, 0], sheet[13, 0, 0], sheet[13, 13, 0]] == [0, 128, 255, 255]


# ---- training ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", ["uniform", "min-snr"])
def test_min_snr_is_one_weight_of_the_clean_images_error_for_every_prediction(weighting):
    """A squared error d in x0 is snr d in eps, (snr + 1) d in v and (sqrt(snr) + 1)^2 d in the velocity of a line."""
    levels = NoiseSchedule.linear(1000).alpha_bar[:-1]
    snr = levels / (1 - levels)
    scales = {
        "epsilon": snr,
        "v_prediction": snr + 1,
        "sample": torch.ones_like(snr),
        "flow": (snr.sqrt() + 1) ** 2,
    }
    for prediction, scale in scales.items():
        weights = _weights(TrainingConfig(prediction=prediction, weighting=weighting), levels)
        expected = snr.clamp(max=5) if weighting == "min-snr" else scale
        torch.testing.assert_close(weights * scale, expected)


def test_a_velocity_is_learned_loads_back_and_restores(pictures, tmp_path):
    quick = {**TINY, "channels": "32", "ema": 0.95, "flips": False, "prediction": "flow"}
    trained = train(pictures, tmp_path / "flow", **quick, lr=1e-2, images=8 * 80, progress=False)
    _, val = load_splits(pictures, 16)
    description = Description(image_shape=(3, 16, 16), prediction="flow", schedule=FLOW)
    untrained = HaarUNet.new(description, channels=(32,), layers=1, attention=0).backbone(precision="float32")
    assert evaluate(trained, val) < 0.5 * evaluate(untrained, val)
    loaded = load_backbone(tmp_path / "flow", precision="float32")
    assert isinstance(loaded, FlowBackbone) and loaded.schedule.T == 1000
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loaded.predict(x, 500).x0, trained.predict(x, 500).x0, atol=0.05, rtol=0.05)  # bfloat16
    mask = make_mask("half", 16).float()
    truth = val[:1].float() / 255
    found = solve(Mask(mask), truth * mask, "ddnm", backbone=loaded, steps=20, progress=False).x
    grey = (truth * mask).sum() / (3 * mask.sum())
    assert (found - truth).square().mean() < 0.5 * ((grey - truth) * (1 - mask)).square().mean()
    with pytest.raises(InvdiffError, match="got 'openvino', which runs networks whose times are whole numbers"):
        load_backbone(tmp_path / "flow", engine="openvino")


def test_crops_and_a_velocity_exclude_each_other():
    with pytest.raises(InvdiffError, match="prediction 'flow' is for networks of one size"):
        TrainingConfig(crops=True, prediction="flow")


def test_every_epoch_shows_every_image_once_in_a_new_order():
    shown = torch.cat([_batch(10, 4, step, seed=3) for step in range(10)])
    epochs = shown.reshape(4, 10)
    assert (epochs.sort(1).values == torch.arange(10)).all()
    assert not torch.equal(epochs[0], epochs[1])


def test_training_lowers_the_held_out_error_and_leaves_what_it_promises(pictures, tmp_path):
    out = tmp_path / "fades"
    torch.manual_seed(9)
    state = torch.get_rng_state()
    quick = {**TINY, "channels": "32", "ema": 0.95, "flips": False}
    trained = train(pictures, out, **{**quick, "samples": 4}, lr=1e-2, images=8 * 120, log_steps=10, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    untrained = HaarUNet.new(Description(image_shape=(3, 16, 16)), channels=(32,), layers=1, attention=0)
    _, val = load_splits(pictures, 16)
    error = evaluate(trained, val)
    assert error < 0.5 * evaluate(untrained.backbone(precision="float32"), val)
    log = read_log(out)
    assert [images for images, _ in log["loss"]] == list(range(80, 961, 80))
    assert log["error"][-1] == (960, pytest.approx(error, rel=1e-4))
    for picture in ("loss.png", "samples.png"):
        Image.open(out / picture).verify()
    loaded = load_backbone(out, precision="float32")
    assert loaded.name == "fades"
    assert evaluate_on(out, pictures, precision="float32") == pytest.approx(error, rel=0.02)
    provenance = Description.read(out).provenance
    assert provenance["images_seen"] == 960
    assert provenance["held_out_error"] == pytest.approx(error, abs=1e-4)

    tuned = train(pictures, tmp_path / "tuned", **quick, init=str(out), images=8, progress=False)
    assert evaluate(tuned, val) < 1.1 * error


def test_what_a_training_held_out_is_what_it_is_measured_on(pictures, tmp_path):
    options = {**TINY, "exclude": "00?.png,01?.png", "holdout": 0.2, "seed": 3, "store": "float32"}
    trained = train(pictures / "train", tmp_path, **options, images=8, progress=False)
    _, held_out = load_splits(pictures / "train", 16, exclude=["00?.png", "01?.png"], holdout=0.2, seed=3)
    assert evaluate_on(tmp_path, pictures / "train", precision="float32") == evaluate(trained, held_out)
    with pytest.warns(InvdiffWarning, match="first 2 images are taken as held out"):
        evaluate_on(tmp_path, pictures / "train_grey", precision="float32")
    resized = pytest.warns(InvdiffWarning, match="resized to 8x8")
    with resized, pytest.raises(InvdiffError, match=r"images must be \(N, 3, 16, 16\)"):
        evaluate_on(trained, pictures, size=8)


def test_other_images_than_those_of_the_checkpoint_are_refused(pictures, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(pictures / "train", data)
    train(data, tmp_path / "out", **TINY | {"images": 8}, progress=False)
    first = sorted(data.rglob("*.png"))[0]
    Image.open(first).convert("RGB").point(lambda value: 255 - value).save(first)
    with pytest.raises(InvdiffError, match="other images than"):
        train(data, tmp_path / "out", **TINY | {"images": 16}, progress=False)
    train(data, tmp_path / "out", **TINY | {"images": 16}, resume=False, progress=False)


def test_places_that_cannot_be_used_are_refused_by_name(pictures, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    for out in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("x" * 300), "nul\0"):
        with pytest.raises(InvdiffError, match="out must be a folder"):
            train(pictures, out, **TINY)
    for options in (
        {"channels": "1000000000"},
        {"batch": 10**9},
        {"size": 10**6},
        {"device": "xpu"},
        {"layers": 10**6},
    ):
        with pytest.raises(InvdiffError, match=next(iter(options))):
            train(pictures, tmp_path / "out", **TINY | options)


def test_broken_links_and_pipes_are_passed_over(pictures, tmp_path):
    shutil.copy(sorted((pictures / "train").rglob("*.png"))[0], tmp_path / "good.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "circle").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.warns(InvdiffWarning, match="2 names in .* broken links or no ordinary files"):
        _, names = load_images(tmp_path, 16)
    assert names == ["good.png"]


def test_a_picture_of_gigabytes_in_a_small_zip_is_not_unpacked(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("invdiff.pictures.MOST_BYTES", 10_000)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(10**6))
    with pytest.raises(InvdiffError, match="1,000,000 bytes; a picture has at most"):
        load_images(tmp_path / "bomb.zip", 16)


def test_killed_and_resumed_is_as_if_never_killed(pictures, tmp_path):
    options = {**TINY, "images": 8 * 30, "log_steps": 4, "dropout": 0.1, "symmetries": True}
    train(pictures, tmp_path / "whole", **options, progress=False)
    script = f"""
import os, signal, torch
torch.set_num_threads({torch.get_num_threads()})
from invdiff.training import loop as trainer
step = trainer._Training.take_step
def take_step(self):
    if self.step == 10:
        self.checkpoint()
    if self.step == 23:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self)
trainer._Training.take_step = take_step
trainer.train({str(pictures)!r}, {str(tmp_path / "killed")!r}, **{options!r}, progress=False)
"""
    ended = subprocess.run([sys.executable, "-c", script], env=os.environ, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert len(read_log(tmp_path / "killed")["loss"]) == 5
    train(pictures, tmp_path / "killed", **options, progress=False)
    whole, killed = (read_log(tmp_path / run) for run in ("whole", "killed"))
    assert [images for images, _ in whole["loss"]] == [images for images, _ in killed["loss"]]
    assert [v for _, v in killed["loss"]] == pytest.approx([v for _, v in whole["loss"]], rel=1e-5)
    assert killed["error"][-1][1] == pytest.approx(whole["error"][-1][1], rel=1e-5)


def test_a_checkpoint_of_other_options_is_not_taken_up(pictures, tmp_path):
    train(pictures, tmp_path, **TINY, images=8, progress=False)
    with pytest.raises(InvdiffError, match=r"dropout=0.0 \(now 0.2\).*resume=False"):
        train(pictures, tmp_path, **TINY, images=8, dropout=0.2, progress=False)
    train(pictures, tmp_path, **TINY, images=16, progress=False)  # longer is fine
    assert Description.read(tmp_path).provenance["images_seen"] == 16
    train(pictures, tmp_path, **TINY, images=8, dropout=0.2, resume=False, progress=False)
    assert Description.read(tmp_path).provenance["images_seen"] == 8


def test_divergence_stops_the_training(pictures, tmp_path):
    with pytest.raises(DivergenceError, match="diverged"):
        train(pictures, tmp_path, **{**TINY, "warmup": 0}, lr=1e18, images=8 * 20, log_steps=2, progress=False)
    assert not (tmp_path / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sise": 32}, "no option 'sise'.*Did you mean 'size'"),
        ({"prediction": "epsilonn"}, "Did you mean 'epsilon'"),
        ({"dropout": 1.5}, "dropout must be a number from 0 to 0.9, got 1.5"),
        ({"batch": 2.5}, "batch must be a whole number"),
        ({"channels": "64;128"}, "separated by commas"),
    ],
)
def test_wrong_options_are_named(tmp_path, options, message):
    with pytest.raises(InvdiffError, match=message):
        train(tmp_path, tmp_path, **options)
