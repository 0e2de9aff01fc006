"""Training on crops of photographs, for a backbone of any size."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from invdiff import InvdiffError, load_backbone
from invdiff.training.crops import SIDES, Crops
from invdiff.training.data import load_photos
from invdiff.training.evaluation import denoising_on, denoising_psnr
from invdiff.training.loop import train
from invdiff.training.muon import Muon, orthogonalised

TINY = {
    "crops": True,
    "channels": "8,16",
    "blocks": "1,1",
    "batch": 1,
    "muon": 0.02,
    "lr": 6e-3,
    "samples": 0,
    "compile": "no",
    "precision": "float32",
    "warmup": 5,
    "log_steps": 5,
    "store": "int8",
}


@pytest.fixture
def photos(tmp_path):
    """Six smooth pictures of several sizes in a folder."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for k in range(6):
        small = Image.fromarray(rng.integers(0, 255, (5, 6, 3), dtype=np.uint8))
        small.resize((150 + 10 * k, 140), Image.Resampling.BICUBIC).save(folder / f"{k}.png")
    return folder


def test_photos_keep_their_sizes(photos):
    pictures, names = load_photos(photos)
    assert [tuple(p.shape) for p in pictures] == [(3, 140, 150 + 10 * k) for k in range(6)]
    assert names == [f"{k}.png" for k in range(6)]
    (photos / "broken.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="skipped 1 images.*broken.png"):
        assert len(load_photos(photos)[0]) == 6


def test_crops_are_pieces_of_the_photos_and_a_function_of_the_generator(photos):
    pictures, names = load_photos(photos)
    crops = Crops(pictures, names, flips=False)
    sides = set()
    for seed in range(30):
        batch = crops.batch(2 * 64 * 64, torch.Generator().manual_seed(seed))
        again = crops.batch(2 * 64 * 64, torch.Generator().manual_seed(seed))
        assert torch.equal(batch, again) and batch.dtype == torch.uint8
        sides.add(batch.shape[-1])
        assert len(batch) == max(1, 2 * 64 * 64 // batch.shape[-1] ** 2)
    assert sides == set(SIDES)
    whole = [p for p, _ in crops._levels[1]]
    piece = next(
        b
        for s in range(50)
        for b in crops.batch(128 * 128, torch.Generator().manual_seed(s))
        if b.shape[-1] == 128  # so large that it was not cut from a smaller copy
    )
    found = any(
        torch.equal(piece, p[:, i : i + 128, j : j + 128])
        for p in whole
        for i in range(p.shape[1] - 127)
        for j in range(p.shape[2] - 127)
        if torch.equal(piece[:, 0, :3], p[:, i, j : j + 3])
    )
    assert found


def test_only_textures_are_turned():
    photo = torch.arange(3 * 64 * 64).reshape(3, 64, 64).remainder(251).to(torch.uint8)
    kept = Crops([photo], ["a/1.png"], turned=["b/*"], flips=False)
    assert all(torch.equal(kept.batch(64 * 64, torch.Generator().manual_seed(s))[0], photo) for s in range(8))
    turned = Crops([photo], ["b/1.png"], turned=["b/*"], flips=False)
    seen = {
        k
        for s in range(40)
        for k in range(4)
        if torch.equal(turned.batch(64 * 64, torch.Generator().manual_seed(s))[0], torch.rot90(photo, k, (1, 2)))
    }
    assert seen == {0, 1, 2, 3}


def test_photos_too_small_for_a_crop_are_refused():
    with pytest.raises(InvdiffError, match="at least 64 x 64"):
        Crops([torch.zeros(3, 40, 400, dtype=torch.uint8)], ["thin.png"])


def test_orthogonalised_brings_singular_values_near_one():
    matrix = torch.randn(12, 40, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.logspace(-1, 1, 40))
    for m in (matrix, matrix.mT):
        values = torch.linalg.svdvals(orthogonalised(m))
        assert float(values.min()) > 0.5 and float(values.max()) < 1.4
    assert bool((orthogonalised(torch.zeros(3, 5)) == 0).all())


def test_muon_changes_a_share_of_a_weight():
    weight = torch.nn.Parameter(torch.randn(8, 4, 3, 3))
    optimizer = Muon([{"params": [weight], "magnitude": 2.0}], lr=0.1)
    before = weight.detach().clone()
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    step = (weight.detach() - before).flatten(1).norm(dim=1)
    assert float(step.mean()) == pytest.approx(0.2, rel=1e-3)


def test_training_on_crops_learns_resumes_and_loads_at_any_size(photos, tmp_path):
    whole = train(photos, tmp_path / "whole", images=60, progress=False, **TINY)
    train(photos, tmp_path / "parts", images=60, minutes=1e-9, progress=False, **TINY)  # one step
    again = train(photos, tmp_path / "parts", images=60, progress=False, **TINY)
    x = torch.randn(1, 3, 37, 50)
    assert torch.equal(whole.predict(x, 400).x0, again.predict(x, 400).x0)
    loaded = load_backbone(tmp_path / "whole", precision="float32")
    assert loaded.image_shape == (3, None, None) and loaded.field_of_view
    assert float((loaded.predict(x, 400).x0 - whole.predict(x, 400).x0).abs().max()) < 0.05
    untrained = train(photos, tmp_path / "none", images=1, progress=False, **TINY)
    assert denoising_on(whole, photos, limit=2)[50] > denoising_on(untrained, photos, limit=2)[50]


def test_denoising_is_compared_as_in_the_literature():
    class Blind:
        """Says that the clean picture is what it was given, so that the error is the noise."""

        def __init__(self):
            from invdiff import NoiseSchedule

            self.schedule, self.device, self.dtype, self.any_size = NoiseSchedule.linear(), "cpu", torch.float32, True

        def sized(self, shape):
            return self

        def predict(self, x, t):
            from invdiff import Prediction

            return Prediction.from_x0(x, x / self.schedule.alpha_bar_at(t) ** 0.5, self.schedule.alpha_bar_at(t))

    grey = [torch.full((3, 128, 128), 128, dtype=torch.uint8)]
    assert denoising_psnr(Blind(), grey, 25) == pytest.approx(20 * math.log10(255 / 25), abs=0.1)
    with pytest.raises(InvdiffError, match="sigma must be a number above 0"):
        denoising_psnr(Blind(), grey, 0)
    with pytest.raises(InvdiffError, match="pictures of any size"):
        denoising_on("cats64", "nowhere")
