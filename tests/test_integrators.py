"""Integrators: their orders, their last steps, their costs; the Karras spacing; estimates that take any of them."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import quiet_solve

import invdiff as iv
from invdiff import Blur, InvdiffError, Mask, NoiseSchedule, PiGDM
from invdiff.backbones.base import Prediction
from invdiff.bench.posterior.distances import gaussian_w2
from invdiff.operators.blur import gaussian_kernel
from invdiff.priors.named import PRIORS, correlated_gaussian
from invdiff.problem import Problem
from invdiff.samplers import INTEGRATORS
from invdiff.samplers.integrators import adams_bashforth, ddim, dpm_solver_2m, half_log_snr
from invdiff.samplers.krylov import conjugate_gradients, recalled

LINEAR, COSINE = NoiseSchedule.linear(), NoiseSchedule.cosine()
ESTIMATORS = ("mmps", "tmpd", "ddnm", "ddnm+", "pigdm", "diffpir")


@pytest.fixture(scope="module")
def prior() -> iv.GaussianBackbone:
    return correlated_gaussian().double()


def descent(prior, steps: int, integrator: str, start: torch.Tensor) -> torch.Tensor:
    """The prior's own probability flow from `start`: MMPS with nothing measured."""
    method = iv.MMPS(steps=steps, integrator=integrator, iterations=1)
    nothing = iv.Mask(torch.zeros(1, 8))
    return quiet_solve(nothing, torch.zeros(1, 1, 8), method, backbone=prior, x_init=start, n_samples=len(start)).x


@pytest.mark.parametrize(("integrator", "order"), [("ddim", 1), ("dpm++2m", 2), ("heun", 2), ("eab3", 3)])
def test_the_error_falls_as_the_order_says(integrator, order, prior):
    start = torch.randn(4, 1, 1, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = descent(prior, 400, "eab3", start)
    coarse, fine = (float((descent(prior, n, integrator, start) - exact).norm()) for n in (20, 40))
    assert coarse / fine > 0.7 * 2**order


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_the_last_step_is_the_estimate(integrator, prior):
    x = torch.randn(1, 1, 1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    end = quiet_solve(
        iv.Mask(torch.zeros(1, 8)), torch.zeros(1, 1, 8), iv.MMPS(steps=5, integrator=integrator), backbone=prior,
        x_init=x, path=[0, -1],
    ).x  # fmt: skip
    first = LINEAR.respaced(5, "karras")
    assert torch.allclose(end.double(), prior.on(first).predict(x, 0).x0, atol=1e-6)


def test_multistep_integrators_start_as_ddim_and_do_not_leap():
    """First order without a past, on the last step, and where a step is much longer than the one before."""
    x, x0, before = torch.randn(3, 1, 1, 1, 4, generator=torch.Generator().manual_seed(2)).double().unbind(0)
    for t, s, history in ((500, 400, ()), (3, -1, ((10, before),)), (500, 100, ((501, before),))):
        for step in (dpm_solver_2m, adams_bashforth):
            assert torch.equal(step(x, x0, t, s, LINEAR, history), ddim(x, x0, t, s, LINEAR))
    assert not torch.allclose(dpm_solver_2m(x, x0, 500, 400, LINEAR, ((600, before),)), ddim(x, x0, 500, 400, LINEAR))


def test_adams_bashforth_is_exact_for_a_parabola():
    """With D quadratic in the log signal-to-noise ratio the step solves the equation: compared with 20,000 Euler steps."""

    def D(l: float) -> float:
        return 0.3 - 0.5 * l + 0.2 * l * l

    l_t, l_s = half_log_snr(LINEAR, 500), half_log_snr(LINEAR, 420)
    history = tuple((t, torch.tensor([D(half_log_snr(LINEAR, t))]).double()) for t in (560, 640))
    got = adams_bashforth(torch.tensor([0.7]).double(), torch.tensor([D(l_t)]).double(), 500, 420, LINEAR, history)
    n, integral = 20_000, 0.0
    for i in range(n):
        l = l_t + (i + 0.5) * (l_s - l_t) / n
        integral += math.exp(l - l_s) * D(l) * (l_s - l_t) / n
    a_t, a_s = LINEAR.alpha_bar_at(500), LINEAR.alpha_bar_at(420)
    assert abs(float(got) - (((1 - a_s) / (1 - a_t)) ** 0.5 * 0.7 + a_s**0.5 * integral)) < 1e-8


@pytest.mark.parametrize(
    ("spacing", "even"), [("karras", lambda sigma: sigma ** (1 / 7)), ("logsnr", lambda sigma: sigma.log())]
)
@pytest.mark.parametrize(
    "schedule", [LINEAR, COSINE, NoiseSchedule.scaled_linear(), NoiseSchedule.linear(50, 1e-3, 0.3)]
)
def test_spacings_by_noise_level_are_distinct_and_even(schedule, spacing, even):
    for n in (1, 2, 3, 10, 30, schedule.T // 2, schedule.T):
        kept = schedule.respaced(n, spacing)
        times = kept.timesteps.tolist()
        assert len(set(times)) == n and times == sorted(times)
        a = kept.alpha_bar[:n]
        sigma = ((1 - a) / a).sqrt()
        if n > 1:
            assert times[0] == 0
        if n < schedule.T // 2:
            assert float(sigma.max()) <= 161 or n == 1
        if n == 10 and schedule.T == 1000:
            gaps = even(sigma).diff()
            assert float(gaps.max() / gaps.min()) < 1.25
    assert LINEAR.respaced(30, spacing).timesteps[-1] == 999


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("sampler", ESTIMATORS)
def test_costs_are_counted_before_a_run_as_they_are_in_it(sampler, integrator, gaussian, clean):
    A = iv.Mask(iv.make_mask("half", 16))
    for path in (None, "jumps"):
        options = {} if path is None else {"path": path, "jump_length": 2, "jump_n_sample": 2}
        s = quiet_solve(
            A, clean[:1], sampler, backbone=gaussian, sigma_y=0.1 if sampler != "ddnm" else 0.0, steps=7,
            integrator=integrator, spacing="karras", **options,
        )  # fmt: skip
        steps = 7 if path is None else s.nfe
        if path is None:
            assert s.nfe == (2 * steps - 1 if integrator == "heun" else steps)
        assert len(s.timesteps) == s.nfe
        method = iv.samplers.sampler_class(sampler)(steps=7, integrator=integrator, spacing="karras")
        cost = method.cost(gaussian.schedule, None if path is None else iv.samplers.jumps(7, 2, 2))
        assert (cost.calls, cost.vjps) == (s.nfe, s.vjps)
        assert torch.isfinite(s.x).all()


@pytest.mark.parametrize("sampler", ESTIMATORS)
def test_an_estimate_does_not_depend_on_its_batch(sampler, gaussian, clean):
    A = iv.SuperResolution(2, "box")
    options = {"backbone": gaussian, "sigma_y": 0.1 if sampler != "ddnm" else 0.0, "steps": 8, "integrator": "eab3"}
    together = quiet_solve(A, A(clean), sampler, batch_size=4, **options).x
    alone = quiet_solve(A, A(clean), sampler, batch_size=1, **options).x
    assert torch.allclose(together, alone, atol=1e-5)


def test_the_own_step_stays_the_default(gaussian, clean):
    A = iv.Mask(iv.make_mask("half", 16))
    for sampler in ("ddnm", "pigdm", "diffpir"):
        one, other = (
            quiet_solve(A, clean[:1], sampler, backbone=gaussian, steps=6, **o).x for o in ({}, {"integrator": "own"})
        )
        assert torch.equal(one, other)
        assert not torch.allclose(
            one, quiet_solve(A, clean[:1], sampler, backbone=gaussian, steps=6, integrator="ddim").x
        )


def test_names_that_do_not_exist_are_refused_with_the_near_one(gaussian, clean):
    A = iv.Mask(iv.make_mask("half", 16))
    with pytest.raises(InvdiffError, match=r"dpm\+\+2m"):
        quiet_solve(A, clean[:1], "mmps", backbone=gaussian, integrator="dpm++2")
    with pytest.raises(InvdiffError, match="karras"):
        quiet_solve(A, clean[:1], "mmps", backbone=gaussian, spacing="karas")
    with pytest.raises(
        InvdiffError, match=r"unknown option 'integrator' for sampler dps.*Samplers with integrator: ddnm, ddnm"
    ):
        quiet_solve(A, clean[:1], "dps", backbone=gaussian, integrator="ddim")


def w2(prior, operator, sigma_y: float, **options) -> float:
    """To the exact posterior of one measurement, over its size, with 1,500 samples."""
    y = operator.measure(prior.prior_sample(1, seed=4), sigma_y, seed=4)
    exact = prior.posterior(operator, y, sigma_y)
    s = quiet_solve(operator, y, backbone=prior, sigma_y=sigma_y, n_samples=1500, batch_size=1500, **options)
    x, C = s.x.flatten(1).double(), exact.covariance.double()
    return gaussian_w2(x.mean(0), torch.cov(x.mT), exact.mean.flatten().double(), C) / float(C.trace()) ** 0.5


@pytest.mark.parametrize("sigma_y", [0.0, 0.1, 0.5])
def test_mmps_is_a_gaussians_exact_posterior(sigma_y, prior):
    """With as many iterations as measurements and small steps nothing is left but the Monte-Carlo floor of about 0.035."""
    A = iv.Mask(torch.tensor([[1.0] * 4 + [0.0] * 4]))
    assert w2(prior, A, sigma_y, sampler="mmps") < 0.06
    assert w2(prior, A, sigma_y, sampler="mmps", integrator="ddim", steps=30) > 0.08


class Contrary(iv.samplers.base.Backbone):
    """A network whose Jacobian is negative: no covariance of anything."""

    image_shape = (1, 1, 8)
    schedule = LINEAR

    def predict(self, x_t, t):
        return Prediction.from_x0(x_t, -0.3 * x_t, self.schedule.alpha_bar_at(int(t)))


def test_a_jacobian_that_is_no_covariance_moves_nothing():
    A = iv.Mask(torch.tensor([[1.0] * 4 + [0.0] * 4]))
    options = {"backbone": Contrary(), "sigma_y": 0.1, "steps": 6, "x_init": torch.ones(1, 1, 1, 8)}
    a, b = (quiet_solve(A, torch.full((1, 1, 1, 8), v), "mmps", **options).x for v in (0.9, -0.9))
    assert torch.equal(a, b) and a.abs().max() <= 1


# ---- what is known of the systems before ------------------------------------------------------------------------


def _spread_out(n: int = 24, seed: int = 0) -> torch.Tensor:
    """A covariance with variances from 0.01 to 1,000, two images of it."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(2, n, n, generator=generator, dtype=torch.float64)).Q
    return basis @ torch.diag(torch.logspace(-2, 3, n, dtype=torch.float64)) @ basis.mT


def _product(M):
    return lambda p: ((M @ p[..., None])[..., 0], p)


def test_pairs_of_all_directions_are_the_inverse():
    M, n = _spread_out(8), 8
    b, r = torch.randn(2, 2, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    _, _, pairs = conjugate_gradients(_product(M), b, n)
    exact = torch.linalg.solve(M, r)
    assert torch.allclose(recalled(pairs, r), exact, atol=1e-3 * exact.abs().max().item())


def test_pairs_of_another_matrix_precondition_without_a_product():
    M = _spread_out()
    near = M * torch.linspace(1, 1.3, 24, dtype=torch.float64)[:, None].sqrt()
    near = 0.5 * (near + near.mT) + 0.05 * torch.eye(24, dtype=torch.float64)
    b = torch.randn(2, 24, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    exact = torch.linalg.solve(M, b)

    def off(known):
        u = conjugate_gradients(_product(M), b, 6, known=known)[0] - exact
        return ((u[..., None, :] @ M @ u[..., None]).sum() / (exact * b).sum()).item() ** 0.5

    pairs = conjugate_gradients(_product(near), torch.ones_like(b), 20)[2]
    assert off(pairs) < 0.5 * off(())


def test_directions_of_no_positive_curvature_are_not_recalled():
    M = torch.diag(torch.tensor([2.0, -1.0, 0.0, 3.0], dtype=torch.float64)).expand(2, 4, 4)
    b = torch.tensor([[1.0, 1, 1, 1], [0, 0, 0, 0]], dtype=torch.float64)
    pairs = conjugate_gradients(_product(M), b, 4)[2]
    z = recalled(pairs, b)
    assert bool(torch.isfinite(z).all()) and torch.equal(z[1], b[1]) and (z[0] @ b[0]) > 0


# ---- estimates that a deterministic integrator can follow ---------------------------------------------------------


@pytest.mark.parametrize("sampler", ["ddnm+", "pigdm", "diffpir", "mmps"])
def test_a_blur_s_weak_singular_values_do_not_gather_noise(sampler):
    """With dpm++2m, a noisy blur's answer stays as near to the truth as that of the sampler's own step, or nearly."""
    prior = PRIORS["gaussian16x16"]()
    truth = prior.prior_sample(2, seed=0).float()
    A = Blur(gaussian_kernel(sigma=1.6))
    y = A.measure(truth, 0.04, seed=0)

    def off(**options):
        x = quiet_solve(A, y, sampler, sigma_y=0.04, backbone=prior, **options).x
        return (x - truth).square().mean().sqrt().item()

    assert off(steps=15, integrator="dpm++2m", spacing="karras") < 1.25 * off(steps=50)


def test_pigdm_goes_no_further_than_y_asks():
    """A prior that varies twenty times more than r_t^2 says: the whole guidance would go far beyond y."""
    A, y = Mask(torch.tensor([1.0, 0, 0, 0]).reshape(1, 1, 4)), torch.full((1, 1, 1, 4), 0.5)
    wide = iv.GaussianBackbone(torch.zeros(1, 1, 4), torch.full((1, 1, 4), 400.0))
    problem = Problem(A, A(y), y, 0.0, (1, 1, 4))
    x0 = PiGDM(project=False).estimate(torch.full((1, 1, 1, 4), 2.0), 600, problem, wide)
    assert abs(x0[0, 0, 0, 0].item() - 0.5) < 1e-3


# ---- no more products than there are numbers in y -----------------------------------------------------------------


def test_mmps_asks_for_no_more_products_than_there_are_numbers(prior):
    few, many = (iv.Mask((torch.arange(8) < k).float()[None]) for k in (1, 5))
    for A, products in ((few, 1), (many, 4), (iv.MatrixOperator(torch.eye(8)[:2]), 2)):
        y = A.measure(prior.prior_sample(1, seed=0), 0.1, seed=0)
        solution = quiet_solve(A, y, "mmps", backbone=prior, sigma_y=0.1, steps=5, n_samples=3)
        assert solution.vjps == 5 * products
        assert iv.estimate(A, y, "mmps", backbone=prior, sigma_y=0.1, steps=5).vjps == 5 * products
        more = quiet_solve(A, y, "mmps", backbone=prior, sigma_y=0.1, steps=5, n_samples=3, iterations=8)
        if products < 4:
            torch.testing.assert_close(solution.x, more.x, atol=1e-9, rtol=0)


def test_how_many_numbers_others_have_changes_nothing(prior):
    """Masks of one, two and six pixels in one batch, with a network whose Jacobian is not exactly a covariance."""

    class Skew(iv.GaussianBackbone):
        def predict(self, x, t):
            told = super().predict(x, t)
            return Prediction(told.x0 + 0.02 * told.x0.roll(1, -1) ** 2, told.eps)

    skew = Skew(torch.zeros(1, 1, 8), torch.full((1, 1, 8), 0.06)).double()
    masks = torch.stack([(torch.arange(8) < k).double()[None, None] for k in (1, 2, 6)])
    x = prior.prior_sample(3, seed=0).double()

    def restored(rows):
        A = iv.Mask(masks[rows])
        seeds = [5 + r for r in rows]
        return quiet_solve(A, A(x[rows]), "mmps", backbone=skew, sigma_y=0.1, steps=6, seed=seeds).x

    together = restored([0, 1, 2])
    for row in range(3):
        torch.testing.assert_close(together[row : row + 1], restored([row]), atol=1e-12, rtol=0)
