"""The engine that runs a network on the CPU says what PyTorch says, and is left where it cannot serve."""

import pickle

import pytest
import torch

from invdiff import InvdiffError, Mask, NetworkBackbone, NoiseSchedule, load_backbone, make_mask, solve
from invdiff.backbones import openvino_engine
from invdiff.backbones.openvino_engine import ENVIRONMENT, OpenVINOEngine, Trial

HALF = Mask(make_mask("half", 16))
PHOTO = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))


class Small(torch.nn.Module):
    """Two convolutions with the time between them; counts PyTorch's calls."""

    calls = 0

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.time = torch.nn.Linear(1, 8)
        self.second = torch.nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x, t):
        if not torch.jit.is_tracing():
            type(self).calls += 1
        h = self.first(x) + self.time(t[:, None].to(x.dtype) / 1000)[:, :, None, None]
        return self.second(torch.nn.functional.silu(h))


@pytest.fixture
def network(monkeypatch, tmp_path):
    monkeypatch.setenv("INVDIFF_CACHE", str(tmp_path))
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    torch.manual_seed(0)
    Small.calls = 0
    return Small()


def backbone(network, engine, **options):
    options.setdefault("precision", "float32")
    return NetworkBackbone(network, NoiseSchedule.linear(1000), (3, 16, 16), engine=engine, **options)


@pytest.fixture
def openvino():
    pytest.importorskip("openvino", reason="the extra openvino is not installed")


def test_it_says_what_torch_says_for_every_batch_and_batch_mate(network, openvino):
    ours, torchs = backbone(network, "openvino"), backbone(network, "torch")
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([3, 500, 999])
    with torch.inference_mode():
        together = ours.predict(x, t).x0
        torch.testing.assert_close(together, torchs.predict(x, t).x0, atol=2e-4, rtol=1e-4)
        alone = torch.cat([ours.predict(x[i : i + 1], t[i : i + 1]).x0 for i in range(3)])
    torch.testing.assert_close(alone, together, atol=2e-4, rtol=1e-4)


def test_a_gradient_is_torchs(network, openvino):
    b = backbone(network, "openvino")
    x = torch.randn(1, 3, 16, 16, requires_grad=True)
    b.predict(x, 500).x0.square().sum().backward()
    assert float(x.grad.abs().max()) > 0
    with torch.inference_mode():
        b.predict(x.detach(), 500)  # converts
        before = Small.calls
        b.predict(x.detach(), 400)
    assert Small.calls == before


def test_samplers_of_both_kinds_run_in_turn(network, openvino):
    fast, plain = backbone(network, "openvino"), backbone(network, "torch")
    for sampler in ("ddnm", "dps", "ddnm"):
        a, b = (solve(HALF, PHOTO, sampler, backbone=which, steps=4, seed=3).x for which in (fast, plain))
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_what_was_converted_is_kept_and_used_again(network, openvino, tmp_path, monkeypatch):
    x = torch.randn(1, 3, 16, 16)
    with torch.inference_mode():
        first = backbone(network, "openvino").predict(x, 10).x0
    assert list(tmp_path.rglob("network.xml"))
    import openvino as package

    def refuse(*_, **__):
        raise AssertionError("converted again")

    monkeypatch.setattr(package, "convert_model", refuse)
    with torch.inference_mode():
        again = backbone(network, "openvino").predict(x, 10).x0
    torch.testing.assert_close(again, first, atol=1e-5, rtol=1e-5)
    network.second.weight.data.mul_(2)
    with pytest.raises(InvdiffError, match="converted again"), torch.inference_mode():
        backbone(network, "openvino").predict(x, 10)  # other weights are another network


def test_auto_takes_it_only_where_a_trial_agrees_and_is_faster(network, openvino, monkeypatch):
    x = torch.randn(1, 3, 16, 16)

    def calls(trial):
        monkeypatch.setattr(OpenVINOEngine, "trial", lambda *_: trial)
        b = backbone(network, "auto", precision="auto")
        with torch.inference_mode():
            b.predict(x, 10)  # converts
            before = Small.calls
            b.predict(x, 20)
        return Small.calls - before

    assert calls(Trial(1e-6, seconds=1.0, torch_seconds=2.0, agrees=True)) == 0
    assert calls(Trial(1e-6, seconds=2.0, torch_seconds=1.0, agrees=True)) == 1
    assert calls(Trial(0.3, seconds=1.0, torch_seconds=2.0, agrees=False)) == 1


def test_a_trial_measures_the_difference_and_is_remembered(network, openvino, tmp_path):
    engine = OpenVINOEngine(lambda: network, torch.float32, "small")
    with torch.inference_mode():
        state = torch.random.get_rng_state()
        trial = engine.trial((2, 3, 16, 16), network, 999)
        assert torch.equal(torch.random.get_rng_state(), state), "a trial draws nothing of the user's"
        assert trial.agrees and trial.difference < 1e-5 and trial.seconds > 0
        before = Small.calls
        assert engine.trial((2, 3, 16, 16), network, 999) == trial and Small.calls == before
    wrong = OpenVINOEngine(lambda: network, torch.float32, "small")
    wrong._fingerprint = "other"
    zeros = type("R", (), {"infer": lambda *_, **__: [torch.zeros(2, 3, 16, 16).numpy()]})()
    wrong._requests[2, 3, 16, 16] = zeros, None
    with torch.inference_mode():
        assert not wrong.trial((2, 3, 16, 16), network, 999).agrees


def test_a_time_is_not_rounded_with_the_rest(openvino):
    # 669, 670 and 671 are 668, 672 and 672 in bfloat16: a network whose sines are taken in it answers for another time.
    cats = load_backbone("cats64", precision="float32", engine="torch")
    engine = OpenVINOEngine(lambda: cats.module, torch.bfloat16, "cats64")
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    with torch.inference_mode():
        try:
            wrong = [
                float((engine(x, t) - cats.network(x, t)).square().mean().sqrt()) for t in torch.tensor([[668], [670]])
            ]
        except InvdiffError as error:
            pytest.skip(f"no bfloat16 on this processor: {error}")
    assert wrong[1] < 1.5 * wrong[0], "670 is as near as 668, which bfloat16 holds exactly"


def test_the_environment_says_what_auto_is(network, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, "torch")
    b = backbone(network, "auto")
    with torch.inference_mode():
        b.predict(torch.zeros(1, 3, 16, 16), 10)
    assert Small.calls == 1
    monkeypatch.setenv(ENVIRONMENT, "openvin")
    with pytest.raises(InvdiffError, match=f"{ENVIRONMENT} must be one of auto, torch, openvino.*'openvino'"):
        backbone(network, "auto")


def test_what_it_cannot_do_is_said_before_a_call(network, monkeypatch):
    with pytest.raises(InvdiffError, match="engine must be one of auto, torch, openvino"):
        backbone(network, "onnx")
    monkeypatch.setattr("invdiff.backbones.network.available", lambda: False)
    with pytest.raises(InvdiffError, match=r"pip install 'invdiff\[openvino\]'"):
        backbone(network, "openvino")
    monkeypatch.setattr("invdiff.backbones.network.available", lambda: True)
    with pytest.raises(InvdiffError, match="class_labels"):
        backbone(network, "openvino", class_labels=3)


def test_a_network_that_cannot_be_converted_is_named(network, openvino):
    class Branching(Small):
        def forward(self, x, t):
            if torch.jit.is_tracing():
                raise TypeError("no tracing of mine")
            return super().forward(x, t)

    with pytest.raises(InvdiffError, match=r"cannot convert Branching.*engine='torch'"), torch.inference_mode():
        backbone(Branching(), "openvino").predict(torch.zeros(1, 3, 16, 16), 5)


def test_a_network_that_cannot_be_compiled_for_this_cpu_is_named(network, openvino, monkeypatch):
    import openvino as package

    class Core(package.Core):
        def compile_model(self, *_, **__):
            raise RuntimeError("deep inside\nno primitive for Softmax")

    monkeypatch.setattr(package, "Core", Core)
    message = r"cannot compile Small in float32 for this CPU: no primitive for Softmax\. engine='torch'"
    with pytest.raises(InvdiffError, match=message), torch.inference_mode():
        backbone(network, "openvino").predict(torch.zeros(1, 3, 16, 16), 5)
    with torch.inference_mode():  # "auto" goes on with PyTorch
        out = backbone(network, "auto", precision="auto").predict(torch.zeros(1, 3, 16, 16), 5).x0
    assert bool(torch.isfinite(out).all())


def test_a_trial_on_another_processor_is_not_believed(network, openvino, monkeypatch):
    def faster():
        engine = OpenVINOEngine(lambda: network, torch.float32, "small")
        with torch.inference_mode():
            before = Small.calls
            engine.trial((1, 3, 16, 16), network, 999)
        return Small.calls - before

    assert faster() > 0 and faster() == 0
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
    assert faster() > 0


def test_shapes_kept_ready_are_bounded(network, openvino):
    engine = OpenVINOEngine(lambda: network, torch.float32, "small")
    with torch.inference_mode():
        for size in range(8, 8 + openvino_engine._SHAPES + 2):
            engine(torch.zeros(1, 3, size, size), torch.tensor([1]))
    assert len(engine._requests) == openvino_engine._SHAPES and (1, 3, 8, 8) not in engine._requests


def test_any_size_is_compiled_per_size_and_says_what_torch_says(network, openvino):
    options = {"image_shape": (3, None, None), "precision": "float32"}
    ours, torchs = (NetworkBackbone(network, engine=engine, **options) for engine in ("openvino", "torch"))
    before = None
    for shape in ((1, 3, 16, 24), (1, 3, 9, 13), (1, 3, 16, 24)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            wanted = torchs.predict(x, 300).x0
            before = Small.calls
            found = ours.predict(x, 300).x0
        torch.testing.assert_close(found, wanted, atol=2e-4, rtol=1e-4)
    assert Small.calls == before
    assert NetworkBackbone(network, engine="auto", image_shape=(3, None, None))._openvino is None


def test_sizes_that_the_code_asks_for_are_converted_each(network, openvino):
    class AsksForItsShape(Small):
        def forward(self, x, t):
            level = t[:, None, None, None].float().expand(len(x), 1, *x.shape[-2:]) / 1000
            return super().forward(torch.cat([x[:, :2], level], 1), t)

    net = AsksForItsShape()
    ours, torchs = (
        NetworkBackbone(net, engine=engine, image_shape=(3, None, None), precision="float32")
        for engine in ("openvino", "torch")
    )
    for shape in ((1, 3, 16, 24), (3, 3, 9, 13)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            torch.testing.assert_close(ours.predict(x, 300).x0, torchs.predict(x, 300).x0, atol=2e-4, rtol=1e-4)


def test_another_answer_than_torchs_is_refused_when_asked_for_by_name(network, openvino):
    class Traced(Small):
        def forward(self, x, t):
            return super().forward(x, t) * (2 if torch.jit.is_tracing() else 1)

    with (
        pytest.raises(InvdiffError, match=r"does not compute what PyTorch does for Traced.*engine='torch'"),
        torch.inference_mode(),
    ):
        backbone(Traced(), "openvino").predict(torch.zeros(1, 3, 16, 16), 5)


def test_a_velocity_with_the_engine_is_refused_before_a_call(network):
    from invdiff import FlowBackbone

    with pytest.raises(InvdiffError, match=r"'torch' for a velocity, got 'openvino'.*times are whole"):
        FlowBackbone(network, image_shape=(3, 16, 16), engine="openvino")
    assert Small.calls == 0


def test_it_can_be_sent_to_another_process(network, openvino):
    engine = OpenVINOEngine(lambda: network, torch.float32, "small")
    engine._make = None  # a closure is not sent; the backbone makes a new one
    assert pickle.loads(pickle.dumps(engine))._requests == {}


def test_an_unwritable_cache_costs_nothing_but_time(network, openvino, monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setattr(openvino_engine, "cache_folder", lambda: blocked)
    with torch.inference_mode():
        out = backbone(network, "openvino").predict(torch.zeros(1, 3, 16, 16), 5).x0
    assert bool(torch.isfinite(out).all())
