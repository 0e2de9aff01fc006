"""Names and paths -> backbones."""

from __future__ import annotations

import json

import pytest
import torch

from invdiff import registry
from invdiff.backbones import NetworkBackbone, NoiseSchedule, zoo
from invdiff.backbones.haar import DESCRIPTION, Description, HaarUNet
from invdiff.backbones.weights_file import WEIGHTS
from invdiff.backbones.zoo import backbone_names, load_backbone, register_backbone
from invdiff.errors import InvdiffError


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A shelf of embedded weights with one tiny network, ``squares``."""
    torch.manual_seed(0)
    network = HaarUNet.new(Description(name="squares", image_shape=(3, 8, 8)), channels=(16,), layers=1)
    network.save(tmp_path / "weights" / "squares", precision="bfloat16")
    monkeypatch.setattr(zoo, "EMBEDDED", tmp_path / "weights")
    monkeypatch.setattr(zoo.BACKBONES, "_items", {})
    return tmp_path / "weights"


def test_name_and_path_give_the_same_backbone(shelf):
    assert "squares" in backbone_names()
    x = torch.randn(2, 3, 8, 8)
    by_name, by_path = (
        load_backbone("squares", precision="float32"),
        load_backbone(shelf / "squares", precision="float32"),
    )
    assert by_name.name == "squares"
    assert by_name.image_shape == (3, 8, 8)
    torch.testing.assert_close(by_name.predict(x, 500).eps, by_path.predict(x, 500).eps)


def test_options_reach_the_network(shelf):
    assert load_backbone("squares", name="mine", precision="bfloat16").name == "mine"
    with pytest.raises(InvdiffError, match="precision must be one of"):
        load_backbone("squares", precision="float33")


def test_damage_says_so(shelf):
    path = shelf / "squares" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InvdiffError, match="is damaged"):
        load_backbone("squares")


def test_unknown_names_are_answered_with_the_near_one(shelf):
    with pytest.raises(InvdiffError, match=r"unknown backbone 'square'.*Did you mean 'squares'\?.*path of a folder"):
        load_backbone("square")
    with pytest.raises(InvdiffError, match="name or a path, got 64"):
        load_backbone(64)


def test_a_folder_without_a_backbone_says_what_was_looked_for(shelf, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvdiffError, match=r"no backbone of a known format.*diffusers: it holds no config\.json"):
        load_backbone(tmp_path / "empty")
    (tmp_path / "notes.txt").write_text("no weights")
    with pytest.raises(InvdiffError, match="is no backbone"):
        load_backbone(tmp_path / "notes.txt")


def test_a_registered_loader_is_called_with_the_options(shelf):
    @register_backbone("zero")
    def load(*, precision, compile, device, image_shape=(3, 8, 8)):
        return NetworkBackbone(
            lambda x, t: torch.zeros_like(x), NoiseSchedule.linear(), image_shape, precision=precision
        )

    assert {"zero", "squares"} <= set(backbone_names())
    assert load_backbone("zero", image_shape=(1, 4, 4)).image_shape == (1, 4, 4)
    with pytest.raises(InvdiffError, match=r"backbone zero has no option 'image_shap'.*Did you mean 'image_shape'"):
        load_backbone("zero", image_shap=(1, 4, 4))
    register_backbone("zero", load)  # a module imported twice
    for taken in ("zero", "squares"):
        with pytest.raises(InvdiffError, match="exists already"):
            register_backbone(taken, lambda **options: None)


def test_an_announced_loader_is_found(shelf, monkeypatch):
    class Point:
        value, module = "theirs:load", "theirs"
        name = "theirs"

        def load(self):
            return lambda **options: NetworkBackbone(lambda x, t: x, image_shape=(3, 8, 8), name="theirs")

    monkeypatch.setattr(registry, "entry_points", lambda group: [Point()] if group == "invdiff.backbones" else [])
    assert "theirs" in backbone_names()
    assert load_backbone("theirs").name == "theirs"


def test_a_mixture_is_loaded_from_its_file_its_folder_and_its_name(shelf):
    from invdiff.priors import GaussianMixtureBackbone

    means = torch.tensor([-0.5, 0.5]).reshape(2, 1, 1, 1).expand(2, 3, 4, 4)
    mixture = GaussianMixtureBackbone.low_rank([0.5, 0.5], means, torch.zeros(2, 48, 1), 0.1)
    folder = shelf / "squares-gmm"
    folder.mkdir()
    mixture.save(folder / "mixture.safetensors")
    x = torch.randn(1, 3, 4, 4)
    for source in ("squares-gmm", folder, folder / "mixture.safetensors"):
        loaded = load_backbone(source).predict(x, 300).x0
        torch.testing.assert_close(loaded.double(), mixture.predict(x, 300).x0.double(), atol=1e-4, rtol=1e-4)
    (folder / DESCRIPTION).write_text(json.dumps({"name": "squares-gmm", "sha256": "0" * 64}))
    with pytest.raises(InvdiffError, match="is damaged"):
        load_backbone("squares-gmm")


def test_what_ships_loads_offline_and_matches_its_checksum():
    shipped = [n for n in backbone_names() if (zoo.EMBEDDED / n).is_dir()]
    for name in shipped:
        backbone = load_backbone(name)
        x = torch.randn(1, *(n or 40 for n in backbone.image_shape))
        prediction = backbone.predict(x.to(backbone.dtype), backbone.schedule.T // 2)
        assert prediction.x0.shape == x.shape
        assert prediction.x0.isfinite().all()
