"""What is taught by another network or for one task: students of a few calls, and networks that restore in one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from invdiff import Mask, Restorer, SuperResolution, load_backbone, make_mask, solve
from invdiff.backbones import NoiseSchedule
from invdiff.backbones.haar import Description, HaarUNet
from invdiff.backbones.restoring import RestoringUNet
from invdiff.errors import InvdiffError
from invdiff.priors import GaussianBackbone
from invdiff.samplers import baselines_for
from invdiff.samplers.integrators import ddim_coefficients
from invdiff.samplers.restorer import named
from invdiff.training.distillation import Distillation, distance, few_times
from invdiff.training.loop import read_log, train
from invdiff.training.restoration import Adversary, masked, masks, missing_error

TINY = {"size": 16, "batch": 4, "samples": 2, "compile": "no", "precision": "float32", "warmup": 2, "log_steps": 1}
SMALL = {"channels": "16,32", "layers": 1, "attention": 0, "init": "", **TINY}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Plain colours that fade from left to right."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    fade = np.linspace(0.3, 1, 16).reshape(1, 16, 1)
    for split, count in (("train", 16), ("val", 6)):
        (folder / split).mkdir()
        for i in range(count):
            colour = rng.integers(60, 255, 3) * fade * np.ones((16, 1, 1))
            Image.fromarray(colour.astype(np.uint8)).save(folder / split / f"{i:03}.png")
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        description = Description(name="teacher", image_shape=(3, 16, 16))
        HaarUNet.new(description, channels=(16, 32), layers=1, attention=0).save(folder)
    return folder


@pytest.fixture(scope="module")
def restorer(pictures, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("restorer")
    train(
        pictures, folder, images=240, task="inpaint", masks="box", muon=0.02, lr=5e-3, ema=0.9, progress=False, **SMALL
    )
    return folder


# ---- distillation -----------------------------------------------------------------------------------------------


def test_levels_are_every_so_many_times_down_from_the_last():
    assert few_times(4, 1000) == [249, 499, 749, 999]
    assert few_times(3, 10) == [2, 6, 9]
    assert NoiseSchedule.linear().at_times([249, 999]).timesteps.tolist() == [249, 999]
    for bad in ([], [1000], [-1], [0.5]):
        with pytest.raises(InvdiffError, match="times must be"):
            NoiseSchedule.linear().at_times(bad)


@pytest.mark.parametrize("target", ["segment", "end"])
def test_a_walk_follows_the_flow_and_a_stretch_leads_where_it_goes(target, tmp_path):
    """Of a Gaussian prior the probability-flow ODE scales every pixel by the ratio of its standard deviations."""
    spread = torch.tensor([0.1, 0.5, 2.0]).reshape(3, 1, 1).expand(3, 8, 8)
    teacher = GaussianBackbone(torch.zeros(3, 8, 8), spread, NoiseSchedule.linear(1000))
    d = Distillation(teacher, few_times(4, 1000), target=target, calls=40, walks=64, seed=0)
    x0 = spread.sqrt() * torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    d.prepare(lambda rows: x0[rows], 20, tmp_path)
    walks = d.walks
    assert walks.level.bincount().tolist() == [64, 56, 48, 40]
    a = d.schedule.alpha_bar
    deviation = (a.reshape(-1, 1, 1, 1) * spread + 1 - a.reshape(-1, 1, 1, 1)).sqrt().float()
    for level in range(4):
        here = walks.level == level
        x_t, said = walks.x_t[here].float(), walks.x0[here].float()
        if target == "end" or level == 0:
            torch.testing.assert_close(said, x_t * deviation[-1] / deviation[level], atol=0.03, rtol=0.01)
        else:  # one deterministic step with it arrives at the next level
            c_t, c_s = float(a[level]) ** 0.5, float(a[level - 1]) ** 0.5
            eps = (x_t - c_t * said) / (1 - c_t**2) ** 0.5
            x_s = c_s * said + ddim_coefficients(c_t**2, c_s**2, 0.0)[1] * eps
            torch.testing.assert_close(x_s, x_t * deviation[level - 1] / deviation[level], atol=0.03, rtol=0.01)


def test_walks_are_made_once_and_are_a_function_of_the_seed(tmp_path):
    teacher = GaussianBackbone(torch.zeros(1, 4, 4), torch.ones(1, 4, 4), NoiseSchedule.linear(1000))
    x0 = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))

    def made(folder, walks, seed=0):
        folder.mkdir(exist_ok=True)
        d = Distillation(teacher, few_times(2, 1000), target="segment", calls=2, walks=walks, seed=seed)
        d.prepare(lambda rows: x0[rows], 5, folder)
        return d.walks

    first = made(tmp_path / "a", 64)
    before = (tmp_path / "a" / "walks-000.pt").stat().st_mtime_ns
    more = made(tmp_path / "a", 128)
    assert (tmp_path / "a" / "walks-000.pt").stat().st_mtime_ns == before
    assert len(more.level) == 2 * len(first.level)
    assert torch.equal(made(tmp_path / "b", 64).x_t, first.x_t)
    assert not torch.equal(made(tmp_path / "c", 64, seed=1).x_t, first.x_t)


def test_the_loss_is_the_error_where_it_is_large_and_its_square_where_it_is_small():
    x, far, near = torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.9), torch.full((1, 3, 4, 4), 1e-3)
    assert float(distance(far, x)) == pytest.approx(0.9 - 0.03, abs=1e-3)
    assert float(distance(near, x)) == pytest.approx(1e-6 / 0.06, rel=0.01)


@pytest.mark.slow
def test_a_student_is_trained_resumed_loaded_and_restores_in_its_few_calls(pictures, teacher, tmp_path):
    options = {
        **TINY,
        "distill": str(teacher),
        "walks": 64,
        "teacher_calls": 2,
        "lr": 2e-3,
        "ema": 0.9,
        "progress": False,
    }
    train(pictures, tmp_path / "once", images=24, **options)
    train(pictures, tmp_path / "twice", images=12, final_lr=1.0, **options)
    with pytest.raises(InvdiffError, match="holds a training with target"):
        train(pictures, tmp_path / "twice", images=24, target="end", final_lr=1.0, **options)
    description = json.loads((tmp_path / "once" / "invdiff.json").read_text())
    assert description["schedule"]["times"] == few_times(4, 1000)
    student = load_backbone(tmp_path / "once", precision="float32")
    assert student.schedule.timesteps.tolist() == few_times(4, 1000)
    answer = solve(SuperResolution(2, "box"), torch.rand(3, 8, 8), "ddnm", backbone=student)
    assert answer.nfe == 4 and answer.timesteps == few_times(4, 1000)[::-1]
    # a network's own walk is what the student starts from: it comes nearer to it
    losses = [loss for _, loss in read_log(tmp_path / "once")["loss"]]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distill": "cats64", "crops": True}, "leave out crops and init"),
        ({"distill": "cats64", "target": "x"}, "target must be"),
        ({"distill": "cats64"}, "size must be that of cats64"),
        ({"adversarial": 0.1}, "adversarial is for task inpaint and distill"),
        ({"task": "inpaint", "masks": "holes"}, "masks must be"),
        ({"task": "inpaint", "haar": False}, "behind the Haar transform"),
        ({"task": "paint"}, "task must be"),
    ],
)
def test_options_that_do_not_fit_are_named(pictures, tmp_path, options, message):
    with pytest.raises(InvdiffError, match=message):
        train(pictures, tmp_path, images=4, progress=False, **{**TINY, **options})


# ---- restorers --------------------------------------------------------------------------------------------------


def test_the_network_is_shown_what_is_known_and_judged_on_what_is_missing():
    x = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    known = masks(["box", "half"], (16, 16), [0, 1, 2])
    shown = masked(x, known)
    assert shown.shape == (3, 4, 16, 16) and torch.equal(shown[:, :3] * known, x * known)
    assert float((shown[:, :3] * (1 - known)).abs().max()) == 0
    wrong = torch.where(known > 0, x + 5, x + 0.25)  # what is known does not count
    torch.testing.assert_close(missing_error(wrong, x, known), torch.full((3,), 0.25))
    assert float(missing_error(x, x + 1, torch.ones_like(known)).max()) == 0


def test_a_discriminator_learns_to_tell_textures_apart():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adversary = Adversary(3, lr=5e-3)
        draw = torch.Generator().manual_seed(0)
        rough = torch.randn(8, 3, 16, 16, generator=draw)
        plain = torch.randn(8, 3, 1, 1, generator=draw).expand(8, 3, 16, 16)
        for _ in range(60):
            adversary.learn(rough, plain)
        with torch.no_grad():
            assert float(adversary.score(rough).mean()) > float(adversary.score(plain).mean()) + 1


def test_training_lowers_the_error_in_holes(restorer):
    errors = [error for _, error in read_log(restorer)["error"]]
    losses = [loss for _, loss in read_log(restorer)["loss"]]
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    assert errors[-1] < 0.3


def test_a_restorer_keeps_what_is_known_and_depends_on_nothing_else(restorer):
    y = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    known = torch.stack([make_mask("box", 16), make_mask("half", 16), make_mask("text", 16), make_mask("wide", 16)])
    operator = Mask(known[:, None])
    answer = solve(operator, y, Restorer(str(restorer)), backbone=tiny_backbone(), seed=3)
    assert answer.nfe == 0 and bool(torch.isfinite(answer.x).all())
    torch.testing.assert_close(answer.x * known[:, None], y * known[:, None], atol=1e-6, rtol=0)
    changed = torch.where(known[:, None], y, 1 - y)  # what is missing is not looked at
    torch.testing.assert_close(solve(operator, changed, str(restorer), backbone=tiny_backbone()).x, answer.x)
    for i in range(4):
        alone = solve(operator[i : i + 1], y[i], str(restorer), backbone=tiny_backbone(), seed=9)
        torch.testing.assert_close(alone.x[0], answer.x[i], atol=1e-2, rtol=0)  # 16 bits, where the processor has them


def tiny_backbone():
    return GaussianBackbone(torch.zeros(3, 16, 16), torch.ones(3, 16, 16), NoiseSchedule.linear(1000))


def test_restorers_backbones_and_names_are_told_apart(restorer, teacher, tmp_path):
    y, operator = torch.rand(3, 16, 16), Mask(make_mask("box", 16))
    assert named(str(restorer)) == (Restorer, {"weights": str(restorer)})
    assert named("ddnm")[1] == {}
    with pytest.raises(InvdiffError, match="no backbone but a sampler"):
        load_backbone(restorer)
    with pytest.raises(InvdiffError, match="holds a restorer"):
        HaarUNet.load(restorer)
    with pytest.raises(InvdiffError, match="holds a denoiser that predicts v_prediction"):
        RestoringUNet.load(teacher)
    with pytest.raises(InvdiffError, match="sampler must be"):
        solve(operator, y, str(teacher), backbone=tiny_backbone())
    with pytest.raises(InvdiffError, match="weights must be an embedded restorer"):
        solve(operator, y, "restorer", weights=str(tmp_path / "nothing"), backbone=tiny_backbone())
    with pytest.raises(InvdiffError, match="it is for masks"):
        solve(SuperResolution(2), torch.rand(3, 8, 8), str(restorer), backbone=tiny_backbone())
    large = GaussianBackbone(torch.zeros(3, 32, 32), torch.ones(3, 32, 32), NoiseSchedule.linear(1000))
    with pytest.raises(InvdiffError, match="it is for pictures of 3 x 16 x 16"):
        solve(Mask(make_mask("box", 32)), torch.rand(3, 32, 32), str(restorer), backbone=large)


def test_it_is_no_classical_method_that_stands_by_itself(restorer):
    from invdiff.problem import build_problem

    problem = build_problem(Mask(make_mask("box", 16)), torch.rand(3, 16, 16), 0.0, tiny_backbone())
    assert "restorer" not in baselines_for(problem)


@pytest.mark.slow
def test_the_command_line_takes_its_folder(restorer, tmp_path):
    from invdiff.cli import app

    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / "photo.png")
    Image.fromarray((make_mask("box", 64).numpy() * 255).astype(np.uint8)).save(tmp_path / "mask.png")
    command = [
        "solve",
        str(tmp_path / "photo.png"),
        "--mask",
        str(tmp_path / "mask.png"),
        "-o",
        str(tmp_path / "out.png"),
    ]
    done = CliRunner().invoke(app, [*command, "--sampler", str(restorer)])
    assert done.exit_code != 0 and "it is for pictures of 3 x 16 x 16" in str(done.output) + str(done.exception)
