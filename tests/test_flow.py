"""Velocities as backbones: exact ones against the analytic priors, and the call signatures of the projects that train them."""

from __future__ import annotations

import warnings

import pytest
import torch
from conftest import FEW_STEPS
from torch import nn

import invdiff as iv
from invdiff import FlowBackbone, GaussianBackbone, GaussianMixtureBackbone, InvdiffError, NoiseSchedule
from invdiff.samplers import sampler_class

SHAPE = (1, 4, 4)
ENDS = NoiseSchedule(torch.tensor([1 - 1e-9, 0.9999, 0.5, 1e-5, 1e-12, 0.0, 1.0], dtype=torch.float64), torch.arange(6))
SCHEDULES = {
    "linear": NoiseSchedule.linear(1000),
    "cosine": NoiseSchedule.cosine(1000),
    "flow": NoiseSchedule.flow(1000, shift=3.0),
    "ends": ENDS,
}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


MEAN, VARIANCE = 0.3 * draw(*SHAPE), 0.01 + 0.1 * draw(*SHAPE, seed=1) ** 2
WEIGHTS, MEANS, VARIANCES = (
    torch.tensor([0.5, 0.3, 0.2]),
    0.4 * draw(3, *SHAPE, seed=2),
    torch.tensor([0.01, 0.05, 0.1]),
)


def gaussian_velocity(x, t):
    """E[data - noise | x] for data ~ N(MEAN, diag(VARIANCE)): the variance of x is t^2 S + (1 - t)^2."""
    t = t.reshape(-1, 1, 1, 1)
    return MEAN + (t * VARIANCE - (1 - t)) / (t**2 * VARIANCE + (1 - t) ** 2) * (x - t * MEAN)


def mixture_velocity(x, t):
    """The same of every component, weighted by how likely it is; in float64, as exponents are sensitive."""
    u, z = t.double().reshape(-1, 1, 1, 1, 1), x.double()[:, None]
    means, variances = MEANS.double(), VARIANCES.double().reshape(-1, 1, 1, 1)
    spread = u**2 * variances + (1 - u) ** 2
    away = z - u * means
    log_density = -0.5 * (away**2 / spread + spread.log()).flatten(2).sum(2)
    share = (WEIGHTS.double().log() + log_density).softmax(1)[..., None, None, None]
    return (share * (means + (u * variances - (1 - u)) / spread * away)).sum(1).to(x.dtype)


PRIORS = {
    "gaussian": (gaussian_velocity, lambda schedule: GaussianBackbone(MEAN, VARIANCE, schedule)),
    "mixture": (mixture_velocity, lambda schedule: GaussianMixtureBackbone(WEIGHTS, MEANS, VARIANCES, schedule)),
}


def reversed_velocity(velocity):
    """The same line from data at t = 0 to noise at t = 1."""
    return lambda x, t: -velocity(x, 1 - t)


# ---- the change of variables -----------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("data_at", [0, 1])
@pytest.mark.parametrize("prior", PRIORS)
def test_an_exact_velocity_gives_the_exact_prediction_at_every_time_and_both_ends(prior, data_at, schedule):
    velocity, make = PRIORS[prior]
    truth = make(SCHEDULES[schedule])
    flow = FlowBackbone(
        velocity if data_at else reversed_velocity(velocity), SCHEDULES[schedule], SHAPE, data_at=data_at
    )
    data, noise = truth.double().prior_sample(3, seed=0).float().reshape(3, *SHAPE), draw(3, *SHAPE, seed=5)
    for t in (-1, *range(0, truth.schedule.T, max(1, truth.schedule.T // 50)), truth.schedule.T - 1):
        a = truth.schedule.alpha_bar_at(t)
        x = a**0.5 * data + (1 - a) ** 0.5 * noise
        ours, exact = flow.predict(x, t), truth.double().predict(x, t)
        torch.testing.assert_close(ours.x0, exact.x0.float(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.eps, exact.eps.float(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(a**0.5 * ours.x0 + (1 - a) ** 0.5 * ours.eps, x, atol=3e-6, rtol=1e-6)


def test_a_network_is_asked_on_the_line_at_a_float_time():
    data, noise = draw(2, *SHAPE), draw(2, *SHAPE, seed=1)
    for data_at in (0, 1):
        asked = []
        flow = FlowBackbone(
            lambda x, t, asked=asked: asked.append((x, t)) or torch.zeros_like(x),
            image_shape=SHAPE,
            data_at=data_at,
            time_scale=10,
        )
        a = flow.schedule.alpha_bar_at(400)
        flow.predict(a**0.5 * data + (1 - a) ** 0.5 * noise, 400)
        ((x, t),) = asked
        assert t.shape == (2,) and t.dtype == torch.float32
        share = (t / 10).reshape(-1, 1, 1, 1)
        line = (1 - share) * noise + share * data if data_at else (1 - share) * data + share * noise
        torch.testing.assert_close(x, line)


def test_every_image_has_its_own_time_also_on_a_respaced_schedule():
    schedule = NoiseSchedule.linear(1000).respaced(7)
    flow, x = FlowBackbone(mixture_velocity, schedule, SHAPE), draw(3, *SHAPE)
    times = (0, 2, 6)
    both = flow.predict(x, torch.tensor(times))
    for i, t in enumerate(times):
        one = flow.predict(x[i : i + 1], t)
        torch.testing.assert_close(both.x0[i], one.x0[0])
        torch.testing.assert_close(both.eps[i], one.eps[0])


def test_the_gradient_is_the_exact_one():
    x = draw(1, *SHAPE).requires_grad_()
    FlowBackbone(gaussian_velocity, image_shape=SHAPE).predict(x, 300).x0.sum().backward()
    a = NoiseSchedule.linear(1000).alpha_bar_at(300)
    torch.testing.assert_close(x.grad[0], VARIANCE * a**0.5 / (a * VARIANCE + 1 - a))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_schedule_of_flow_matching_has_the_shares_of_noise_of_its_definition(shift):
    schedule = NoiseSchedule.flow(50, shift)
    levels = schedule.alpha_bar[:-1]
    share = (1 - levels).sqrt() / (levels.sqrt() + (1 - levels).sqrt())
    u = torch.arange(1, 51, dtype=torch.float64) / 50
    torch.testing.assert_close(share[:-1], (shift * u / (1 + (shift - 1) * u))[:-1])
    assert 0 < levels[-1] < 1e-7 and bool((schedule.betas > 0).all()) and bool((schedule.betas < 1).all())
    assert NoiseSchedule.flow(1).T == 1


# ---- restoring -------------------------------------------------------------------------------------------------


def few_steps(name):
    """As the tests of the samplers run it, or a few steps and short jumps for those that are not in their table."""
    short = {"jump_length": 2, "jump_n_sample": 2} if "jump_length" in sampler_class(name).__dataclass_fields__ else {}
    return FEW_STEPS.get(name, {"steps": 6, **short})


SAMPLERS = {name: few_steps(name) for name in iv.sampler_names()}


def unbounded(flow):
    """These priors have no black and no white, as their analytic backbones say of themselves."""
    flow.bounded = False
    return flow


def restored(backbone, sampler, options, prior):
    mask = torch.ones(4, 4)
    mask[1:3, 1:3] = 0
    y = iv.Mask(mask).measure(PRIORS[prior][1](None).prior_sample(2, seed=3).float(), 0.1, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", iv.InvdiffWarning)
        return iv.solve(
            iv.Mask(mask), y, sampler, sigma_y=0.1, backbone=backbone, value_range=(-1, 1), progress=False, **options
        ).x


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_gives_what_it_gives_with_the_analytic_prior(sampler, prior):
    velocity, make = PRIORS[prior]
    options = SAMPLERS[sampler]
    flow = restored(unbounded(FlowBackbone(velocity, image_shape=SHAPE)), sampler, options, prior)
    exact = restored(make(None), sampler, options, prior)
    torch.testing.assert_close(flow, exact, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_walks_the_levels_of_flow_matching(sampler):
    velocity, make = PRIORS["gaussian"]
    schedule = NoiseSchedule.flow(1000)
    flow = restored(unbounded(FlowBackbone(velocity, schedule, SHAPE)), sampler, SAMPLERS[sampler], "gaussian")
    exact = restored(make(schedule), sampler, SAMPLERS[sampler], "gaussian")
    assert bool(torch.isfinite(flow).all())
    torch.testing.assert_close(flow, exact, atol=2e-3, rtol=2e-3)


# ---- networks of other projects ----------------------------------------------------------------------------------


class Velocity(nn.Module):
    """Small, with dropout that only evaluation mode turns off."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.time, self.drop = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(1, 1), nn.Dropout(0.5)

    def velocity(self, x, t):
        return self.drop(self.conv(x)) + self.time(t[:, None])[:, :, None, None]


class TorchCFM(Velocity):  # torchcfm's UNetModel: time first, labels called y
    def forward(self, t, x, y=None):
        return self.velocity(x, t)


class FlowMatching(Velocity):  # flow_matching's ModelWrapper
    def forward(self, x, t, **extras):
        return self.velocity(x, t)


class RectifiedFlow(Velocity):  # the authors' networks count to 999
    def forward(self, x, time_cond):
        return self.velocity(x, time_cond / 999)


def test_networks_of_other_projects_take_one_line_each():
    x = draw(2, *SHAPE)
    plain = Velocity().eval()
    with torch.no_grad():
        expected = FlowBackbone(lambda x, t: plain.velocity(x, t), image_shape=SHAPE).predict(x, 600)
    for network, options in (
        (TorchCFM(), {"time_first": True}),
        (FlowMatching(), {}),
        (RectifiedFlow(), {"time_scale": 999}),
    ):
        found = FlowBackbone(network, image_shape=SHAPE, precision="float32", **options).predict(x, 600)
        torch.testing.assert_close(found.x0, expected.x0, atol=1e-6, rtol=1e-5)
        assert network.training and all(p.requires_grad for p in network.parameters())  # the caller's own is left alone


def test_labels_reach_the_network_and_checkpointing_the_order_of_the_inputs():
    class Labelled(TorchCFM):
        def forward(self, t, x, class_labels=None):
            return self.velocity(x, t) + class_labels.reshape(-1, 1, 1, 1)

    options = {"image_shape": SHAPE, "time_first": True, "precision": "float32", "checkpointing": True}
    x = draw(2, *SHAPE).requires_grad_()
    none = FlowBackbone(Labelled(), class_labels=0, **options)
    some = FlowBackbone(Labelled(), class_labels=torch.tensor([0, 3]), **options)
    out = some.predict(x, 500)
    a = some.schedule.alpha_bar_at(500)
    torch.testing.assert_close(
        out.x0 - none.predict(x, 500).x0,
        torch.tensor([0.0, 3.0]).reshape(2, 1, 1, 1).expand(2, *SHAPE) * (1 - a) ** 0.5 / (a**0.5 + (1 - a) ** 0.5),
        atol=1e-5,
        rtol=1e-5,
    )
    (gradient,) = torch.autograd.grad(out.x0.square().sum(), x)
    unsaved = FlowBackbone(Labelled(), class_labels=torch.tensor([0, 3]), **{**options, "checkpointing": False})
    (expected,) = torch.autograd.grad(unsaved.predict(x, 500).x0.square().sum(), x)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": 3}, "network must be"),
        ({"data_at": 2}, "data_at must be"),
        ({"data_at": 0.5}, "data_at must be"),
        ({"time_scale": 0}, "time_scale must be"),
        ({"time_first": "yes"}, "time_first must be"),
        ({"schedule": "linear"}, "schedule must be"),
        ({"image_shape": 8}, "image_shape must be"),
    ],
)
def test_other_arguments_are_refused_by_name(options, message):
    with pytest.raises(InvdiffError, match=message):
        FlowBackbone(**{"network": gaussian_velocity, "image_shape": SHAPE, **options})


def test_a_velocity_of_another_shape_is_refused_without_advice_on_variances():
    flow = FlowBackbone(lambda x, t: torch.cat([x, x], 1), image_shape=SHAPE)
    with pytest.raises(InvdiffError, match=r"must return shape \(1, 1, 4, 4\), got \(1, 2, 4, 4\)\.$"):
        flow.predict(torch.zeros(1, *SHAPE), 5)
