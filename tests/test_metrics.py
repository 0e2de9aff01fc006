"""Metrics against known values, scikit-image and closed forms; and what they say where they cannot be had."""

from __future__ import annotations

import builtins
import math
import threading

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from invdiff import InvdiffError, Mask, SuperResolution
from invdiff.metrics import (
    METRICS,
    Metric,
    Unavailable,
    calibration,
    diversity,
    fid,
    forward_equivalents,
    frechet_distance,
    get_metric,
    kernel_distance,
    manifold_share,
    metric_names,
    misfit,
    perceptual,
    psnr,
    register_metric,
    rmse,
    ssim,
)
from invdiff.metrics.base import import_reason

generator = np.random.default_rng(0)


def pair(batch=3, channels=3, size=16):
    truth = torch.from_numpy(generator.uniform(size=(batch, channels, size, size))).float()
    return (truth + 0.1 * torch.from_numpy(generator.normal(size=truth.shape)).float()).clamp(0, 1), truth


@pytest.mark.parametrize("channels", [1, 3])
def test_psnr_and_ssim_are_scikit_images(channels):
    x, truth = pair(channels=channels)
    for k in range(len(x)):
        a, b = x[k].double().numpy(), truth[k].double().numpy()
        assert float(psnr(x, truth)[k]) == pytest.approx(peak_signal_noise_ratio(b, a, data_range=1.0), abs=1e-9)
        assert float(ssim(x, truth)[k]) == pytest.approx(
            structural_similarity(b, a, data_range=1.0, channel_axis=0), abs=1e-9
        )


def test_known_values():
    truth = torch.full((1, 3, 8, 8), 0.5)
    assert float(rmse(truth + 0.1, truth)) == pytest.approx(0.1, abs=1e-6)
    assert float(psnr(truth + 0.1, truth)) == pytest.approx(20, abs=1e-4)
    assert float(psnr(truth, truth)) == 100
    assert float(ssim(truth, truth)) == 1


def test_metrics_of_an_image_do_not_depend_on_its_batch():
    x, truth = pair()
    for f in (psnr, ssim, rmse):
        assert torch.equal(f(x, truth)[1:2], f(x[1:2], truth[1:2]))


def test_shapes_are_checked():
    x, truth = pair()
    with pytest.raises(InvdiffError, match="one shape"):
        psnr(x, truth[:2])
    with pytest.raises(InvdiffError, match="7 x 7"):
        ssim(x[..., :4, :4], truth[..., :4, :4])


def test_consistency_is_zero_where_the_measurement_is_met_and_counts_known_pixels_only():
    x, _ = pair()
    for operator in (SuperResolution(4, "box"), Mask(torch.rand(16, 16) > 0.7)):
        y = operator(x)
        assert misfit(x, operator, y).max() == 0
        assert torch.allclose(misfit(x + 0.25, operator, y), torch.full((3,), 0.25).double(), atol=1e-6)
    masks = torch.rand(3, 1, 16, 16) > 0.5
    assert torch.allclose(misfit(x + 0.25, Mask(masks), Mask(masks)(x)), torch.full((3,), 0.25).double(), atol=1e-6)


def test_consistency_of_the_truth_is_the_noise():
    x = torch.rand(4, 3, 32, 32)
    operator = SuperResolution(2, "nearest")
    assert misfit(x, operator, operator.measure(x, 0.05, seed=1)).mean() == pytest.approx(0.05, rel=0.05)


def test_diversity_is_the_rms_over_pairs():
    samples = torch.rand(4, 3, 5, 5)
    pairs = [((samples[i] - samples[j]) ** 2).mean() for i in range(4) for j in range(4) if i != j]
    assert diversity(samples, samples[0]) == pytest.approx(math.sqrt(float(torch.stack(pairs).mean())), rel=1e-5)
    assert diversity(samples[:1].expand(3, -1, -1, -1), samples[0]) == 0


@pytest.mark.parametrize("count", [2, 5])
def test_calibration_is_one_for_draws_of_the_posterior_and_lower_for_overconfidence(count):
    draw = torch.Generator().manual_seed(1)
    samples, truth = (torch.randn(*s, 100, 100, generator=draw) * 0.1 for s in ((count, 3), (3,)))
    assert calibration(samples, truth) == pytest.approx(1, abs=0.02)
    assert calibration(samples / 2, truth) < 0.8


def test_one_sample_says_nothing_about_spread():
    for f in (diversity, calibration):
        with pytest.raises(Unavailable, match="two seeds"):
            f(torch.rand(1, 3, 4, 4), torch.rand(3, 4, 4))


def test_frechet_distance_of_gaussians():
    rng = np.random.default_rng(1)
    a = rng.normal(size=(40_000, 3))
    b = a * [1, 2, 3] + [1, 0, -2]
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, b) == pytest.approx(5 + 0 + 1 + 4, rel=0.03)


def test_kernel_distance_is_unbiased_and_grows_with_the_difference():
    rng = np.random.default_rng(2)
    same = [kernel_distance(rng.normal(size=(60, 4)), rng.normal(size=(60, 4))) for _ in range(60)]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(len(same))
    assert kernel_distance(rng.normal(size=(60, 4)), rng.normal(size=(60, 4)) + 2) > max(same)


def test_precision_and_recall_tell_missing_modes_from_false_ones():
    rng = np.random.default_rng(3)
    truth = np.concatenate([rng.normal(size=(50, 2)), rng.normal(size=(50, 2)) + 50])
    collapsed = rng.normal(size=(100, 2))
    assert manifold_share(collapsed, truth) > 0.9
    assert manifold_share(truth, collapsed) < 0.6
    assert manifold_share(truth, truth) == 1


def test_a_set_too_small_for_fid_gives_no_number():
    with pytest.raises(Unavailable, match="at least 100"):
        fid(torch.rand(3, 3, 8, 8), torch.rand(3, 3, 8, 8))


def test_a_gradient_call_costs_two_and_a_half():
    assert (forward_equivalents(100, 100), forward_equivalents(100, 0), forward_equivalents(30, 90)) == (250, 100, 165)


def test_the_register():
    assert {m.scope for _, m in METRICS.items()} == {"image", "samples", "set", "records", "run"}
    assert get_metric("psnr").needs == {"reference"} and get_metric("mode_error").needs == {
        "samples",
        "posterior",
        "weights",
    }
    assert all(m.description and m.direction in ("higher", "lower", "one", "none") for _, m in METRICS.items())
    assert {"diversity", "calibration", "sw2"} <= set(metric_names("samples")) and "sw2" in metric_names("posterior")
    with pytest.raises(InvdiffError, match="'lpips'"):
        get_metric("lpisp")
    with pytest.raises(InvdiffError, match="exists already"):
        register_metric(Metric("psnr", "", "higher", "", {"reference"}, ""))
    with pytest.raises(InvdiffError, match="Did you mean 'reference'"):
        Metric("mine", "", "higher", "", {"refrence"}, "")


def test_a_metric_of_an_installed_package_is_known_to_suites_and_lists(monkeypatch):
    from invdiff import registry
    from invdiff.bench.suite.suite import Suite

    brightness = Metric(
        "brightness", "brightness", "none", "", set(), "mean of the pixels", lambda x: x.flatten(1).mean(1)
    )

    class Point:
        name, value = "brightness", "theirs:brightness"

        @staticmethod
        def load() -> Metric:
            return brightness

    monkeypatch.setattr(registry, "entry_points", lambda group: [Point()] if group == "invdiff.metrics" else [])
    text = 'metrics = ["brightness"]\n[[tasks]]\nname = "g"\noperator = "colorization"\n[[samplers]]\nname = "ddnm"\n'
    try:
        assert "brightness" in metric_names() and Suite.from_toml(text).metrics == ("brightness",)
        assert get_metric("brightness") is brightness and brightness.scope == "image"
    finally:
        METRICS.remove("brightness")


def test_lpips_without_weights_says_how_to_get_them_and_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def no_network(*_):
        raise OSError("no network")

    monkeypatch.setattr(perceptual.socket, "create_connection", no_network)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("a download was tried"))
    perceptual._model.cache_clear()
    reason = get_metric("lpips").reason()
    assert reason and "alexnet" in reason and str(tmp_path) in reason
    with pytest.raises(Unavailable, match="AlexNet"):
        perceptual.lpips(*pair(size=32))


def test_a_name_server_that_is_silent_does_not_hold_the_run(monkeypatch):
    answer = threading.Event()
    monkeypatch.setattr(perceptual.socket, "create_connection", lambda *_: answer.wait())
    monkeypatch.setattr(perceptual, "_PATIENCE", 0.05)
    assert not perceptual.reachable("example.invalid")  # comes back although nobody has answered
    answer.set()


def test_a_torchvision_that_does_not_match_is_named(monkeypatch):
    real = builtins.__import__

    def broken(name, *args, **options):
        if name == "lpips":
            raise RuntimeError("operator torchvision::nms does not exist")
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", broken)
    reason = get_metric("lpips").reason()
    assert reason and "does not match" in reason and "pip install" in reason


def test_a_missing_package_names_the_extra():
    assert "invdiff[fid]" in import_reason(ModuleNotFoundError("x", name="torch_fidelity"), "torch-fidelity", "fid")
