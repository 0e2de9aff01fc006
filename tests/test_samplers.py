"""Every sampler with every operator; what each promises; the paths."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from functools import cache

import pytest
import torch
from conftest import FEW_STEPS, SHAPE, gaussian_backbone, operators

import invdiff as iv
from invdiff import InvdiffError, solve
from invdiff.samplers import jumps, network_calls, plain, sampler_class, samplers_that, travel
from invdiff.samplers.integrators import ddim_coefficients


def quiet_solve(*args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", iv.InvdiffWarning)
        return solve(*args, value_range=(-1, 1), **kwargs)


# ---- the matrix -------------------------------------------------------------------------------------------------


MATRIX = {**FEW_STEPS, "dps": {"steps": 12, "scale": 2.0}}  # at the papers' scale a dozen steps don't reach y

FAR = {("ddnm+", "nearest"), ("ddrm", "nearest"), ("pigdm", "nearest")}
"""With noise in every 16th pixel and a dozen steps, what these see of the posterior mean is mostly the prior's."""


@cache
def measured(name: str, sigma_y: float) -> tuple[iv.LinearOperator, torch.Tensor, torch.Tensor, torch.Tensor]:
    """An operator, a measurement of four draws from the prior, and the exact posterior's mean and standard deviation."""
    prior = gaussian_backbone()
    A = operators(4)[name]
    y = A.measure(prior.prior_sample(4, seed=1).float(), sigma_y, seed=0)
    exact = [prior.posterior(A[i], y[i : i + 1], sigma_y) for i in range(4)]
    mean, variance = (torch.stack([getattr(p, k).reshape(SHAPE) for p in exact]) for k in ("mean", "variance"))
    return A, y, mean.float(), variance.float().sqrt()


def rms(x: torch.Tensor) -> float:
    return float(x.square().mean().sqrt())


def judge(sampler: str, name: str, sigma_y: float, x: torch.Tensor) -> None:
    """A x = y where that is promised. Elsewhere a bound on the distance from the exact posterior: of what y sees, in units of
    its mean (1 for an image of zeros), and of the image, in units of its spread (1 for exact draws).
    """
    A, y, mean, std = measured(name, sigma_y)
    cls = sampler_class(sampler)
    if sigma_y == 0 and (cls.consistent or sampler == "ddrm"):
        assert rms(A(x) - y) < 1e-3
    else:
        assert rms(A(x - mean)) < (0.85 if (sampler, name) in FAR else 0.65) * rms(A(mean))
    if sigma_y == 0 or cls.handles_noise:  # the others leave the noise of y in the image, and say so
        assert rms(x - mean) < max(2.8 * rms(std), 0.4 * rms(mean))


@pytest.mark.parametrize("sampler", MATRIX)
@pytest.mark.parametrize("name", list(operators(1)))
@pytest.mark.parametrize("sigma_y", [0.0, 0.05])
def test_every_sampler_solves_with_every_operator(sampler, name, sigma_y, gaussian):
    A, y, mean, _ = measured(name, sigma_y)
    x = quiet_solve(A, y, sampler, backbone=gaussian, sigma_y=sigma_y, **MATRIX[sampler]).x
    assert x.shape == mean.shape
    judge(sampler, name, sigma_y, x)


def test_an_image_of_zeros_passes_no_case_of_the_matrix():
    for sampler, name, sigma_y in itertools.product(MATRIX, operators(1), (0.0, 0.05)):
        with pytest.raises(AssertionError):
            judge(sampler, name, sigma_y, torch.zeros(4, *SHAPE))


@pytest.mark.parametrize("sampler", MATRIX)
def test_one_image_is_solved_as_in_a_batch_with_every_operator(sampler, gaussian):
    for name in operators(1):
        A, y, _, _ = measured(name, 0.05)
        options = {"backbone": gaussian, "sigma_y": 0.05, **MATRIX[sampler]}
        batch = quiet_solve(A, y, sampler, seed=[5, 6, 7, 8], **options).x
        alone = quiet_solve(A[2], y[2:3], sampler, seed=7, **options).x
        assert torch.allclose(alone[0], batch[2], atol=1e-4), name


@pytest.mark.parametrize("sampler", ["repaint", "ddnm", "mcg", "replacement"])
def test_known_pixels_come_back_exactly(sampler, gaussian, clean):
    mask = iv.make_mask("random_pixels", 16, seed=3)
    s = quiet_solve(iv.Mask(mask), clean, sampler, backbone=gaussian, **FEW_STEPS[sampler])
    assert torch.equal(s.x[:, :, mask], clean[:, :, mask])
    assert not torch.allclose(s.x[:, :, ~mask], clean[:, :, ~mask], atol=0.05)


def test_a_mask_is_the_same_measurement_as_nearest_super_resolution(gaussian, clean):
    """RePaint's super-resolution task is a mask: both operators must lead to the same image."""
    A, M = iv.SuperResolution(2, "nearest"), iv.Mask(iv.make_mask("super_resolve", 16))
    for sampler in ("repaint", "ddnm", "replacement"):
        one = quiet_solve(A, A(clean), sampler, backbone=gaussian, **FEW_STEPS[sampler])
        other = quiet_solve(M, M(clean), sampler, backbone=gaussian, **FEW_STEPS[sampler])
        assert torch.allclose(one.x, other.x, atol=1e-5)


def test_repaint_without_resampling_is_replacement(gaussian, clean):
    A = iv.Mask(iv.make_mask("half", 16))
    one = quiet_solve(A, clean, "repaint", backbone=gaussian, steps=20, jump_n_sample=1)
    other = quiet_solve(A, clean, "replacement", backbone=gaussian, steps=20)
    assert torch.equal(one.x, other.x)


def test_ddnm_plus_is_ddnm_without_noise(gaussian, clean):
    A = iv.SuperResolution(2, "box")
    one, other = (quiet_solve(A, A(clean), s, backbone=gaussian, steps=10) for s in ("ddnm", "ddnm+"))
    assert torch.equal(one.x, other.x)


def test_ddnm_plus_leaves_less_noise_than_ddnm(gaussian):
    x = gaussian.prior_sample(16, seed=5).float()
    A = iv.SuperResolution(2, "box")
    y = A.measure(x, 0.2, seed=1)
    error = {
        s: (quiet_solve(A, y, s, backbone=gaussian, sigma_y=0.2, steps=50).x - x).square().mean()
        for s in ("ddnm", "ddnm+")
    }
    assert error["ddnm+"] < 0.7 * error["ddnm"]


def test_dps_norm_reads_known_pixels_only_by_default(gaussian, clean):
    """By name, what stands in the unknown pixels of y must not matter; as the authors run it, it does."""
    mask = iv.make_mask("half", 16)
    other = torch.where(mask, clean, torch.full_like(clean, 0.7))
    A = iv.Mask(mask)
    runs = [quiet_solve(A, y, "dps", backbone=gaussian, steps=8).x for y in (clean, other)]
    assert torch.equal(*runs)
    runs = [quiet_solve(A, y, iv.DPS(steps=8), backbone=gaussian).x for y in (clean, other)]
    assert not torch.allclose(*runs, atol=1e-4)


def test_nothing_is_read_from_unknown_pixels(gaussian, clean):
    mask = iv.make_mask("half", 16)
    holes = torch.where(mask, clean, torch.full_like(clean, float("nan")))
    for sampler in FEW_STEPS:
        a, b = (
            quiet_solve(iv.Mask(mask), y, sampler, backbone=gaussian, **FEW_STEPS[sampler]).x for y in (clean, holes)
        )
        assert torch.equal(a, b), sampler


# ---- the paths --------------------------------------------------------------------------------------------------


def test_repaints_jumps_have_the_papers_length():
    times = jumps(250, 10, 10)
    assert len(times) == 4571
    assert network_calls(times) == 2410
    assert times[0] == 249 and times[-1] == -1 and -1 not in times[:-1]
    assert all(abs(a - b) == 1 for a, b in itertools.pairwise(times))


def test_one_sample_per_stretch_is_the_plain_descent():
    assert jumps(30, 10, 1) == plain(30) == travel(30, 5, 1)


@pytest.mark.parametrize("n", [2, 3, 7, 100])
def test_every_stretch_is_walked_as_often_as_asked(n):
    times = jumps(n, 1, 3)
    down = [t for t, s in itertools.pairwise(times) if s < t]
    assert all(down.count(t) == 3 for t in range(1, n))


@pytest.mark.parametrize("sampler", FEW_STEPS)
@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("jumps", {"jump_length": 4, "jump_n_sample": 3}),
        ("travel", {"travel_length": 2, "travel_repeat": 2}),
        ("plain", {}),
    ],
)
def test_any_sampler_takes_any_path(sampler, path, options, gaussian, clean):
    A = iv.Mask(iv.make_mask("half", 16))
    s = quiet_solve(A, clean[:1], sampler, backbone=gaussian, steps=10, path=path, **options)
    assert torch.isfinite(s.x).all()
    assert s.nfe == len(s.timesteps) > 9
    assert s.nfe > 15 or path == "plain"


def test_network_calls_are_known_before_the_run(gaussian, clean):
    A = iv.Mask(iv.make_mask("half", 16))
    for name, options in FEW_STEPS.items():
        s = quiet_solve(A, clean[:1], name, backbone=gaussian, **options)
        assert s.nfe == len(s.timesteps)
        cls = sampler_class(name)
        if name != "diffpir":
            assert cls(**options).network_calls(gaussian.schedule) == s.nfe


def test_diffpirs_inner_iterations_are_a_path(gaussian, clean):
    A = iv.Mask(iv.make_mask("half", 16))
    once = quiet_solve(A, clean[:1], iv.DiffPIR(steps=10), backbone=gaussian)
    twice = quiet_solve(A, clean[:1], iv.DiffPIR(steps=10, inner_iterations=2), backbone=gaussian)
    assert once.nfe == 10
    assert twice.nfe == 2 * 9 + 1
    assert twice.timesteps[:4] == [once.timesteps[0]] * 2 + [once.timesteps[1]] * 2


def test_paths_of_ones_own(gaussian, clean):
    A = iv.Mask(iv.make_mask("half", 16))
    s = quiet_solve(A, clean[:1], "ddnm", backbone=gaussian, steps=10, path=[9, 5, 6, 2, -1])
    assert s.nfe == 3
    s = quiet_solve(A, clean[:1], "ddnm", backbone=gaussian, steps=10, path=lambda n: [*range(n - 1, -1, -3), -1])
    assert s.timesteps == [900, 600, 300, 0]
    for bad in ([9, 5], [9, 9, -1], [12, -1], [3, -1, 2, -1], []):
        with pytest.raises(InvdiffError, match="path"):
            quiet_solve(A, clean[:1], "ddnm", backbone=gaussian, steps=10, path=bad)


@pytest.mark.parametrize("steps", [1, 2, 7, 333, 600, 999, 1000])
def test_any_number_of_steps_works(steps, clean):
    A = iv.Mask(torch.ones(1, 8) > torch.arange(8) % 2)
    tiny = iv.GaussianBackbone(torch.zeros(1, 1, 8), 0.1 * torch.ones(1, 1, 8))
    for name in ("replacement", "ddnm", "ddrm", "pigdm", "mcg", "dps", "diffpir"):
        s = quiet_solve(A, torch.zeros(1, 1, 1, 8), name, backbone=tiny, steps=steps)
        assert torch.isfinite(s.x).all()
        if name == "diffpir" and steps > 500:  # its times are dense at the clean end, and whole numbers
            assert steps / 2 < s.nfe <= steps
        else:
            assert s.nfe in (steps, steps + 1)


# ---- options ----------------------------------------------------------------------------------------------------


def test_options_are_fields_with_a_meaning_and_a_checked_range():
    for name in iv.sampler_names():
        cls = sampler_class(name)
        for field in dataclasses.fields(cls):
            assert len(field.metadata["help"]) > 10, (name, field.name)
    with pytest.raises(InvdiffError, match=r"ddnm: eta must be a number from 0 to 1, got 1\.5"):
        iv.DDNM(eta=1.5)
    with pytest.raises(InvdiffError, match="steps must be a whole number"):
        iv.DDNM(steps=2.5)
    with pytest.raises(InvdiffError, match="Did you mean 'target'"):
        iv.MCG(known_level="targt")
    with pytest.raises(InvdiffError, match="must be True or False"):
        iv.RePaint(clip=1)


def test_names_are_found_whatever_their_spelling():
    assert sampler_class("DDNM+") is sampler_class("ddnm_plus") is sampler_class("ddnmplus") is iv.DDNMPlus
    assert sampler_class("PiGDM") is iv.PiGDM
    with pytest.raises(InvdiffError, match="Did you mean 'repaint'"):
        sampler_class("repant")


def test_settings_per_task_are_data_and_what_is_passed_wins(gaussian, clean):
    mask, blur = iv.Mask(iv.make_mask("half", 16)), iv.Blur(iv.gaussian_kernel(5, 1.0))
    s = quiet_solve(mask, clean[:1], "diffpir", backbone=gaussian)
    assert (s.settings["lambda_"], s.settings["zeta"], s.settings["steps"]) == (0.25, 1.0, 20)
    s = quiet_solve(blur, clean[:1], "diffpir", backbone=gaussian, sigma_y=0.1, steps=5, zeta=0.7)
    assert (s.settings["lambda_"], s.settings["zeta"], s.settings["steps"]) == (1.75, 0.7, 5)
    s = quiet_solve(mask, clean[:1], iv.DiffPIR(steps=5), backbone=gaussian)
    assert s.settings["lambda_"] == iv.DiffPIR().lambda_


def test_those_that_ignore_noise_say_so_and_name_those_that_do_not(gaussian, clean):
    A = iv.Mask(iv.make_mask("half", 16))
    with pytest.warns(iv.InvdiffWarning, match=r"repaint does not model measurement noise.*ddnm\+"):
        solve(A, clean[:1], "repaint", backbone=gaussian, sigma_y=0.1, value_range=(-1, 1), steps=4, jump_n_sample=1)
    assert {"ddnm+", "ddrm", "pigdm", "diffpir", "dps"} <= set(samplers_that(handles_noise=True))


def test_a_third_package_can_add_a_sampler(gaussian, clean):
    @iv.register_sampler("null-test")
    @dataclasses.dataclass(frozen=True)
    class Null(iv.Sampler):
        """Returns the network's first estimate."""

        def step(self, x_t, t, s, problem, backbone, noise):
            x0 = backbone.predict(x_t, t).x0
            return x0, x0

    s = quiet_solve(iv.Identity(), clean[:1], "null-test", backbone=gaussian, steps=3)
    assert s.nfe == 3 and "null-test" in iv.sampler_names()
    iv.samplers.base.SAMPLERS.remove("null-test")


# ---- steps ------------------------------------------------------------------------------------------------------


def test_ddim_coefficients_conserve_variance():
    for eta in (0.0, 0.5, 1.0):
        c1, c2 = ddim_coefficients(0.3, 0.6, eta)
        assert abs(c1**2 + c2**2 - 0.4) < 1e-12
    assert ddim_coefficients(0.3, 1.0, 1.0) == (0.0, 0.0)


def test_unconditional_sampling_draws_from_the_prior():
    backbone = iv.GaussianBackbone(torch.full((1, 1, 8), 0.2), 0.04 * torch.ones(1, 1, 8))
    for eta, steps in ((1.0, 1000), (0.0, 250)):
        x = iv.sample(backbone, 4000, steps=steps, eta=eta, clip=False).x * 2 - 1
        assert abs(float(x.mean()) - 0.2) < 0.01
        assert abs(float(x.std()) / 0.2 - 1) < 0.05


# ---- guidance ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", FEW_STEPS)
def test_guidance_works_with_every_sampler(sampler, gaussian, clean):
    """A loss that wants dark pictures must make them darker where y says nothing."""
    mask = iv.make_mask("half", 16)
    options = {
        **FEW_STEPS[sampler],
        **({"lr": 0.2} if sampler == "copaint" else {}),
    }  # longer steps outweigh a loss of 0.3
    plain_run = quiet_solve(iv.Mask(mask), clean, sampler, backbone=gaussian, **options).x
    dark = quiet_solve(
        iv.Mask(mask),
        clean,
        sampler,
        backbone=gaussian,
        guidance=[(lambda x0: (x0 + 1).square().sum((1, 2, 3)), 0.3)],
        **options,
    ).x
    assert dark[:, :, ~mask].mean() < plain_run[:, :, ~mask].mean() - 0.05


def test_total_variation_flattens_and_a_classifier_on_x_t_pulls(gaussian, clean):
    A = iv.Mask(iv.make_mask("box", 16))

    def variation(x):
        return x.diff(dim=-1).abs().mean() + x.diff(dim=-2).abs().mean()

    base = quiet_solve(A, clean, "ddnm", backbone=gaussian, steps=20).x
    flat = quiet_solve(A, clean, "ddnm", backbone=gaussian, steps=20, guidance=iv.total_variation(0.3)).x
    assert variation(flat) < variation(base)

    seen = []

    def classifier(x_t, t):
        seen.append(t)
        return -x_t.sum((1, 2, 3)) * 0.01

    bright = quiet_solve(
        A, clean, "ddnm", backbone=gaussian, steps=20, guidance=iv.Guidance(classifier, weight=30.0, on="x_t")
    ).x
    assert bright.mean() > base.mean()
    assert seen[0].tolist() == [950] * 4


def test_bad_guidance_is_refused(gaussian, clean):
    for bad in (3.0, ["tv"], [(3, 4)]):
        with pytest.raises(InvdiffError, match="guidance"):
            quiet_solve(iv.Identity(), clean, "ddnm", backbone=gaussian, steps=3, guidance=bad)
    with pytest.raises(InvdiffError, match="differentiably"):
        quiet_solve(iv.Identity(), clean, "ddnm", backbone=gaussian, steps=3, guidance=lambda x: torch.zeros(4))


def test_a_drawn_image_is_not_retraced_by_a_restoration_with_its_seed(gaussian):
    x = iv.sample(gaussian, 1, steps=50, seed=4, clip=False).x
    nothing = iv.Mask(torch.zeros(16, 16))
    again = quiet_solve(nothing, 2 * x - 1, "replacement", backbone=gaussian, steps=50, seed=4, clip=False).x
    assert float(((again + 1) / 2 - x).square().mean()) > 0.5 * float((x - 0.5).square().mean())


# ---- measurements that are not linear ---------------------------------------------------------------------------


def test_pigdm_undoes_quantisation(gaussian, clean):
    """Equation 9 of the paper: a pseudo-inverse is all it needs. The mean restoration is nearer to x than h^+(y)."""
    box = iv.SuperResolution(4, "box")
    h = iv.NonlinearOperator(lambda x: (9 * box(x)).round(), lambda y: box.pinv(y / 9), name="box average in 19 levels")
    y = h(clean)
    assert torch.equal(h(h.pinv(y)), y)
    s = quiet_solve(h, y, "pigdm", backbone=gaussian, steps=50, n_samples=8)
    assert float((s.mean - clean).square().mean()) < 0.85 * float((h.pinv(y) - clean).square().mean())
    for sampler in ("ddnm", "diffpir", "repaint", "ddrm"):
        x = quiet_solve(h, y, sampler, backbone=gaussian, **FEW_STEPS[sampler]).x
        assert torch.isfinite(x).all()
    with pytest.raises(InvdiffError, match="linear to have an adjoint"):
        quiet_solve(h, y, "dps", backbone=gaussian, steps=3)
