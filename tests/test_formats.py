"""Formats: asked in turn, each says why not; one more is one class in one file; nothing is believed before it is checked."""

import json
import pickle
import subprocess
import sys
import textwrap
import zipfile

import pytest
import torch
from layouts import CASES
from safetensors.torch import save_file

from invdiff import registry
from invdiff.backbones import NetworkBackbone, load_backbone
from invdiff.backbones.haar import DESCRIPTION, Description, HaarUNet
from invdiff.backbones.weights_file import CONFIG, WEIGHTS
from invdiff.checkpoints import FORMATS, Format, load_checkpoint, register_format
from invdiff.checkpoints.reading import read_state_dict
from invdiff.errors import InvdiffError


@pytest.fixture
def formats(monkeypatch):
    """The formats, as they are before a test registers one."""
    monkeypatch.setattr(FORMATS, "_items", dict(FORMATS._items))
    return FORMATS


@pytest.fixture
def trained(tmp_path):
    torch.manual_seed(0)
    network = HaarUNet.new(Description(name="tiny", image_shape=(3, 8, 8)), channels=(16,), layers=1)
    network.save(tmp_path / "trained")
    return tmp_path / "trained"


class Scale(Format):
    """A file that holds one number: a network that multiplies by it."""

    def matches(self, path):
        return None if path.suffix == ".scale" else "its name does not end in .scale"

    def load(self, path, *, precision="auto", compile=False, device=None):
        factor = float(path.read_text())
        return NetworkBackbone(lambda x, t: factor * x, image_shape=(1, 4, 4), name=path.stem)


# ---- asked in turn ------------------------------------------------------------------------------------------


def test_a_registered_format_is_asked_by_load_backbone(formats, tmp_path):
    (tmp_path / "half.scale").write_text("0.5")
    with pytest.raises(InvdiffError, match="is no backbone"):
        load_backbone(tmp_path / "half.scale")
    register_format("scale", Scale)
    register_format("scale", Scale())  # the cell is run again
    backbone = load_backbone(tmp_path / "half.scale")
    x = torch.ones(1, 1, 4, 4)
    assert torch.equal(backbone.network(x, torch.tensor([3])), 0.5 * x)
    with pytest.raises(InvdiffError, match="exists already"):
        register_format("ddpm", Scale)
    with pytest.raises(InvdiffError, match=r"must have a method matches"):
        register_format("nothing", object())


def test_an_announced_format_of_one_file_is_found(formats, monkeypatch, tmp_path):
    (tmp_path / "third_party.py").write_text(
        textwrap.dedent("""
        from invdiff import NetworkBackbone
        from invdiff.checkpoints import Format

        class Scale(Format):
            def matches(self, path):
                return None if path.suffix == ".scale" else "its name does not end in .scale"

            def load(self, path, **options):
                factor = float(path.read_text())
                return NetworkBackbone(lambda x, t: factor * x, image_shape=(1, 4, 4), name=path.stem)
        """)
    )
    (tmp_path / "half.scale").write_text("0.5")
    monkeypatch.syspath_prepend(tmp_path)

    class Point:
        value, module = "third_party:Scale", "third_party"
        name = "scale"

        def load(self):
            import third_party

            return third_party.Scale

    monkeypatch.setattr(registry, "entry_points", lambda group: [Point()] if group == "invdiff.formats" else [])
    assert load_backbone(tmp_path / "half.scale").name == "half"
    assert "scale" in FORMATS.names()


def test_a_file_of_no_format_is_refused_with_every_format_s_reason(tmp_path):
    save_file({"a.weight": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InvdiffError) as caught:
        load_backbone(tmp_path / "other.safetensors")
    for name in FORMATS.names():
        assert name in str(caught.value)
    for part in ("a.weight", "none of its 1 tensors", "does not say of itself", "is a file, not a folder"):
        assert part in str(caught.value)


def test_a_format_can_be_named(trained):
    assert load_backbone(trained, format="invdiff").name == "tiny"
    with pytest.raises(InvdiffError, match=r"format must be one of .*; got 'invdif'. Did you mean 'invdiff'"):
        load_backbone(trained, format="invdif")
    with pytest.raises(InvdiffError, match="is a folder"):
        load_backbone(trained, format="ddpm")


def test_exactly_one_format_says_yes(trained):
    assert [name for name, f in FORMATS.items() if f.matches(trained) is None] == ["invdiff"]


def test_unknown_options_are_refused_with_the_near_match(trained):
    with pytest.raises(InvdiffError, match=r"format invdiff has no option 'foo'"):
        load_backbone("cats64", foo=1)
    with pytest.raises(InvdiffError, match=r"no option 'checkpointng'.*Did you mean 'checkpointing'"):
        load_checkpoint(trained, checkpointng=True)
    with pytest.raises(InvdiffError, match=r"format diffusers has no option 'image_sise'.*Did you mean 'image_size'"):
        load_backbone("google/ddpm-cat-256", image_sise=3)


def test_importing_the_formats_is_light():
    code = (
        "import sys, torch, invdiff, invdiff.checkpoints as c; names = c.FORMATS.names(); "
        "print(sorted({'diffusers', 'huggingface_hub', 'transformers', 'lpips', 'matplotlib'} & set(sys.modules)), len(names) > 4)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] True"


def test_edm_s_pickles_are_named_and_never_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return open, (str(tmp_path / "created"), "w")

    (tmp_path / "edm-ffhq.pkl").write_bytes(pickle.dumps({"ema": Payload()}))
    with pytest.raises(InvdiffError, match=r"pickle.*not run.*EDMBackbone\(net, image_shape="):
        load_backbone(tmp_path / "edm-ffhq.pkl")
    assert not (tmp_path / "created").exists()


# ---- what they hold -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_loaded_network_computes_what_the_layout_says(case, tmp_path):
    output, gradient = case.compare(tmp_path)
    assert output < 1e-5 and gradient < 1e-4


def test_a_latent_model_of_lightning_is_refused(tmp_path):
    state = {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(1), "first_stage_model.a": torch.ones(1)}
    torch.save({"state_dict": state}, tmp_path / "ldm.ckpt")
    with pytest.raises(InvdiffError, match=r"latent.*first_stage_model\.a"):
        load_backbone(tmp_path / "ldm.ckpt")


# ---- nothing is believed before it is checked ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "must hold a dictionary, got a list"),
        ("{}", "sha256 of the weights, 64 hexadecimal digits, got None"),
        ("", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ({"sha256": ""}, "64 hexadecimal digits"),
        ({"image_shape": [3, 10**9, 8]}, "image_shape must be a whole number from 1 to 65,536"),
        ({"image_shape": "big"}, "image_shape must be"),
        ({"image_shape": None}, "image_shape must be"),
        ({"prediction": 3}, "prediction must be one of"),
        ({"haar": "yes"}, "haar"),
        ({"schedule": {"kind": "linear", "T": 10**9}}, "schedule T must be a whole number"),
        ({"schedule": {"kind": "linear", "beta": 1}}, "does not take"),
        ({"schedule": {"kind": "quadratic"}}, "schedule kind must be one of"),
        ({"schedule": []}, "schedule"),
    ],
)
def test_damaged_descriptions_are_refused(content, message, trained):
    file = trained / DESCRIPTION
    if isinstance(content, dict):
        content = json.dumps({**json.loads(file.read_text()), **content})
    file.write_text(content)
    with pytest.raises(InvdiffError, match=message):
        load_backbone(trained)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_out_channels": [10**6]}, "block_out_channels must be whole numbers from 1 to 16,384"),
        ({"block_out_channels": "many"}, "block_out_channels must be"),
        ({"block_out_channels": [16] * 1000}, "at most 32 levels"),
        ({"block_out_channels": [16_384]}, "does not hold the weights"),
        ({"layers_per_block": 10**9}, "layers_per_block must be whole numbers from 1 to 64"),
        ({"in_channels": -1}, "in_channels must be"),
        ({"down_block_types": ["Nothing2D"]}, "does not describe"),
    ],
)
def test_absurd_widths_take_no_memory(change, message, trained):
    file = trained / CONFIG
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(InvdiffError, match=message):
        load_backbone(trained)
    (trained / DESCRIPTION).unlink()
    with pytest.raises(InvdiffError):
        load_backbone(trained)


def test_loading_leaves_the_random_state_alone(trained):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    load_backbone(trained)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path):
    torch.save({"conv_in.weight": torch.zeros(4 << 20)}, tmp_path / "honest.pt")
    with (
        zipfile.ZipFile(tmp_path / "honest.pt") as archive,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in archive.namelist():
            bomb.writestr(name, archive.read(name))
    assert (tmp_path / "bomb.pt").stat().st_size < 1 << 16
    with pytest.raises(InvdiffError, match=r"unpacks to 16,.*refused"):
        read_state_dict(tmp_path / "bomb.pt")


def test_a_view_that_claims_more_than_the_file_is_refused(tmp_path):
    torch.save({"conv_in.weight": torch.zeros(1).expand(1 << 15, 1 << 15)}, tmp_path / "view.pt")
    with pytest.raises(InvdiffError, match=r"claims tensors of 4,294,967,296 bytes: refused"):
        read_state_dict(tmp_path / "view.pt")


def test_a_damaged_file_is_said_once_not_by_every_format(tmp_path, trained):
    (tmp_path / "cut.safetensors").write_bytes((trained / WEIGHTS).read_bytes()[:200])
    with pytest.raises(InvdiffError, match="truncated safetensors") as caught:
        load_backbone(tmp_path / "cut.safetensors")
    assert str(caught.value).count("truncated") == 1
