"""Reading files: what is in them comes back, nothing in them is run, and whatever is wrong is named."""

import hashlib
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from invdiff.checkpoints import download, known_checkpoints
from invdiff.checkpoints import known as checkpoints
from invdiff.checkpoints.guided_diffusion import PRESETS, UNetConfig
from invdiff.checkpoints.known import KNOWN
from invdiff.checkpoints.reading import read_state_dict
from invdiff.errors import InvdiffError
from invdiff.files import sha256_of


def weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {"a.weight": torch.randn(3, 2, generator=generator), "a.bias": torch.randn(3, generator=generator).half()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


class Payload:
    """Unpickling it creates a file: what a hostile checkpoint would do."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


# ---- what is in them ----------------------------------------------------------------------------------------


def test_every_format_gives_the_tensors_back_whatever_the_file_is_called(tmp_path):
    state = weights()
    torch.save(state, tmp_path / "zip.pt")
    torch.save(state, tmp_path / "legacy.ckpt", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "safe.bin")
    for file in tmp_path.iterdir():
        assert same(read_state_dict(file), state), file
    assert same(read_state_dict(str(tmp_path / "zip.pt")), state)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda raw, ema: {f"module.{k}": v for k, v in ema.items()},
        lambda raw, ema: {f"module._orig_mod.{k}": v for k, v in ema.items()},
        lambda raw, ema: {"state_dict": ema, "epoch": 3},
        lambda raw, ema: {"model": {"state_dict": ema}, "args": {"lr": 0.1}},
        lambda raw, ema: {"model": raw, "ema": ema, "optimizer": {"state": {}}},
        lambda raw, ema: [{f"module.{k}": v for k, v in raw.items()}, {"state": {}}, 3, ema],
        lambda raw, ema: [ema, {"state": {}, "param_groups": [1]}],
        lambda raw, ema: (ema,),
        lambda raw, ema: {**ema, "steps": 1000},
    ],
)
def test_wrappers_are_taken_off_and_averaged_weights_preferred(wrap, tmp_path):
    raw, ema = weights(0), weights(1)
    torch.save(wrap(raw, ema), tmp_path / "run.pt")
    assert same(read_state_dict(tmp_path / "run.pt"), ema)


def test_the_checksum_is_that_of_the_bytes(tmp_path):
    file = tmp_path / "a.pt"
    torch.save(weights(), file)
    expected = hashlib.sha256(file.read_bytes()).hexdigest()
    assert sha256_of(file) == expected
    assert same(read_state_dict(file, sha256=expected.upper()), weights())
    with pytest.raises(InvdiffError, match=f"its sha256 is {expected}, expected 00"):
        read_state_dict(file, sha256="00")


# ---- nothing in them is run ---------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_refused_and_never_run(zipped, tmp_path):
    target, file = tmp_path / "created", tmp_path / "hostile.pt"
    torch.save({**weights(), "x": Payload(target)}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InvdiffError, match=r"pickle that holds code or objects.*open.*refused"):
        read_state_dict(file)
    assert not target.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_plain_pickle_with_code_is_refused_and_never_run(tmp_path):
    target, file = tmp_path / "created", tmp_path / "hostile.pkl"
    file.write_bytes(pickle.dumps(Payload(target)))
    with pytest.raises(InvdiffError, match=str(file)):
        read_state_dict(file)
    assert not target.exists()
    pickle.loads(file.read_bytes()).close()  # it would have
    assert target.exists()


def test_a_whole_module_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(InvdiffError, match=r"torch\.nn\.modules\.linear\.Linear.*save model\.state_dict"):
        read_state_dict(tmp_path / "module.pt")


# ---- whatever is wrong is named -----------------------------------------------------------------------------


def test_truncated_files_are_called_so(tmp_path):
    torch.save(weights(), tmp_path / "zip.pt")
    torch.save(weights(), tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    save_file(weights(), tmp_path / "safe.safetensors")
    for name in ("zip.pt", "legacy.pt", "safe.safetensors"):
        whole = (tmp_path / name).read_bytes()
        for part in (0.2, 0.6, 0.95):
            (tmp_path / "cut").write_bytes(whole[: int(len(whole) * part)])
            with pytest.raises(InvdiffError, match=r"path .*cut.* (truncated|damaged|no checkpoint)"):
                read_state_dict(tmp_path / "cut")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty file"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "git-lfs"),
        ("näme,größe\n1,2\n".encode(), "text file that starts with 'näme,größe'"),
        (bytes(range(256)) * 8, "damaged, truncated or no checkpoint|no checkpoint, or a damaged one"),
        (b"\x89PNG\r\n\x1a\n" + bytes(600), "no checkpoint"),
    ],
)
def test_files_that_are_no_checkpoints_are_named_for_what_they_are(content, message, tmp_path):
    (tmp_path / "file.pt").write_bytes(content)
    with pytest.raises(InvdiffError, match=message):
        read_state_dict(tmp_path / "file.pt")


def test_a_zip_of_something_else_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.pt", "w") as archive:
        archive.writestr("a.txt", "hello")
    with pytest.raises(InvdiffError, match="damaged, truncated or no checkpoint"):
        read_state_dict(tmp_path / "photos.pt")


def test_places_that_are_no_files_are_refused(tmp_path):
    torch.save(weights(), tmp_path / "celeba256_250000.pt")
    with pytest.raises(InvdiffError, match=r"does not exist.*Did you mean 'celeba256_250000\.pt'"):
        read_state_dict(tmp_path / "celeba256_25000.pt")
    with pytest.raises(InvdiffError, match="there is no folder"):
        read_state_dict(tmp_path / "nowhere" / "a.pt")
    with pytest.raises(InvdiffError, match=r"is a folder.*load_diffusers"):
        read_state_dict(tmp_path)
    with pytest.raises(InvdiffError, match="path must be the path of a checkpoint file, got int"):
        read_state_dict(3)


def test_files_without_weights_say_what_they_hold(tmp_path):
    for content, message in (
        ({"epoch": 3, "loss": 0.1}, "'epoch', 'loss'"),
        ([1, 2], "holds a list"),
        (torch.ones(3), "Tensor"),
    ):
        torch.save(content, tmp_path / "no.pt")
        with pytest.raises(InvdiffError, match=message):
            read_state_dict(tmp_path / "no.pt")


# ---- known checkpoints --------------------------------------------------------------------------------------


def test_every_known_checkpoint_says_where_it_is_and_under_which_licence():
    assert [c.name for c in known_checkpoints()] == list(KNOWN)
    for checkpoint in known_checkpoints():
        assert checkpoint.source.startswith("https://") and checkpoint.licence and checkpoint.loader in checkpoint.call
        assert (checkpoint.repo is None) == (checkpoint.instructions is not None)
        if checkpoint.preset is not None:
            network = UNetConfig.read(PRESETS[checkpoint.preset]).network()
            assert sum(p.numel() for p in network.parameters()) == checkpoint.parameters
    assert {c.preset for c in known_checkpoints()} - {None} == set(PRESETS)


def test_a_checkpoint_published_elsewhere_comes_with_instructions():
    with pytest.raises(InvdiffError, match=r"256x256_diffusion_uncond\.pt from https.*load_guided_diffusion.*Licence"):
        download("imagenet256-uncond")


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(InvdiffError, match="Did you mean 'ddpm-cat-256'"):
        download("ddpm-cats-256")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub without network: everything that would be fetched is recorded."""
    import huggingface_hub

    fetched = []

    class Api:
        def model_info(self, repo, timeout=None):
            assert timeout is not None and timeout <= 10
            if hub.down:
                raise ConnectionError("no route")

        def list_repo_files(self, repo):
            return [
                "config.json",
                "scheduler_config.json",
                "diffusion_pytorch_model.bin",
                "diffusion_pytorch_model.safetensors",
                "a.png",
            ]

    def snapshot(repo, local_dir=None, allow_patterns=None, local_files_only=False):
        if local_files_only:
            if hub.cached is None:
                raise FileNotFoundError("not cached")
            return str(hub.cached)
        fetched.append((repo, local_dir, allow_patterns))
        return str(local_dir or tmp_path)

    class hub:
        down, cached, calls = False, None, fetched

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    return hub


def test_without_network_the_message_says_where_to_put_the_files(hub, tmp_path):
    hub.down = True
    with pytest.raises(InvdiffError, match=r"hub is out of reach.*https://huggingface\.co/google/ddpm-cat-256.*mine"):
        download("ddpm-cat-256", folder=tmp_path / "mine", quiet=True)
    assert hub.calls == []


def test_the_cache_needs_no_network(hub, tmp_path):
    hub.down, hub.cached = True, tmp_path
    with pytest.raises(InvdiffError, match="out of reach"):  # an interrupted download: no weights yet
        download("google/ddpm-cat-256", quiet=True)
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"x")
    assert download("google/ddpm-cat-256", quiet=True) == tmp_path


def test_one_copy_of_the_weights_is_fetched_and_the_licence_shown_first(hub, capsys, tmp_path):
    assert download("ddpm-cat-256", folder=tmp_path / "mine") == tmp_path / "mine"
    [(repo, _, wanted)] = hub.calls
    assert repo == "google/ddpm-cat-256"
    assert wanted == ["config.json", "scheduler_config.json", "diffusion_pytorch_model.safetensors"]
    assert "Apache-2.0" in capsys.readouterr().err
    assert checkpoints.HUB_TIMEOUT <= 10
