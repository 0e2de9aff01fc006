"""Ways from x_t to x_s for a method that says no more than E[x0 | x_t, y]; and the two steps that papers write out.

A sampler answers *what is the clean image, given x_t and y?* (`Sampler.estimate`), an integrator *how does one get on with
that?* The probability-flow equation of a noise schedule is, in the image scaled to unit signal ``z = x / sqrt(a)`` and with
``sigma = sqrt((1 - a) / a)``,

    dz / dsigma = (z - D(z, sigma)) / sigma,        D the clean estimate,

and linear but for D; `ddim` holds D constant over a step, `dpm++2m` and `eab3` let it change with the log signal-to-noise
ratio as the estimates before say, along a line and along a parabola, `heun` averages the slope at both ends. `ancestral`
adds fresh noise at every step, which forgives a biased estimate some of its bias and needs more steps. The last step, to the
clean image, is the estimate itself with all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from invdiff.backbones.schedule import NoiseSchedule
from invdiff.errors import InvdiffError, near_match
from invdiff.noise import Draw
from invdiff.tensors import weighted_sum

LONGEST_STEP = 2.0
"""A multistep integrator looks back over steps of at least 1 / LONGEST_STEP of the one ahead: beyond, it extrapolates too far."""


History = tuple[tuple[int, Tensor], ...]
REMEMBERED = 2
"""As many estimates of calls before as the integrators here look back on."""


@dataclass(frozen=True)
class Move:
    """What an integrator is handed for a step down.

    Attributes:
        x_t: (B, C, H, W), the state at t.
        x0: the estimate E[x0 | x_t, y], likewise.
        t: time before.
        s: time after, s < t; -1 is clean.
        schedule: gives the levels of both.
        noise: the draws of this step.
        history: times and estimates of the calls before on the same way down, the last one first.
        ask: another estimate, ``ask(x_s, s)``; costs a network call.
    """

    x_t: Tensor
    x0: Tensor
    t: int
    s: int
    schedule: NoiseSchedule
    noise: Draw
    history: History
    ask: Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class Integrator:
    """A step from t to s.

    Attributes:
        step: gives x_s.
        second: whether it asks for the estimate at s too, unless s is clean: two network calls per step.
        paper: where it is from.
    """

    step: Callable[[Move], Tensor]
    second: bool = False
    paper: str = ""

    def asks(self, t: int, s: int) -> tuple[int, ...]:
        """Times of the network calls of one step."""
        return (t, s) if self.second and s >= 0 else (t,)


# ---- the steps --------------------------------------------------------------------------------------------------


def ancestral(
    x_t: Tensor, x0: Tensor, t: int, s: int, schedule: NoiseSchedule, log_variance: Tensor | None, noise: Draw
) -> Tensor:
    """One ancestral step of DDPM (Ho et al., 2020, eq. 6-7): a draw from ``q(x_s | x_t, x0)``.

    The variance is the network's where it learned one (for neighbouring times), else the posterior variance. No noise
    is added at the last step.
    """
    a_t, a_s = schedule.alpha_bar_at(t), schedule.alpha_bar_at(s)
    beta = 1 - a_t / a_s
    x = weighted_sum((a_s**0.5 * beta / (1 - a_t), x0), ((a_t / a_s) ** 0.5 * (1 - a_s) / (1 - a_t), x_t))
    if s < 0:
        return x
    if log_variance is not None and s == t - 1:
        return x.addcmul_(torch.exp(0.5 * log_variance), noise("step"))
    return x.add_(noise("step"), alpha=(beta * (1 - a_s) / (1 - a_t)) ** 0.5)


def posterior_coefficients(a_t: float, a_s: float) -> tuple[float, float, float]:
    """``c1, c2`` and the variance of ``q(x_s | x_t, x0) = N(c1 x0 + c2 x_t, variance)`` (Ho et al., 2020, eq. 7)."""
    beta, share = 1 - a_t / a_s, (1 - a_s) / (1 - a_t)
    return a_s**0.5 * beta / (1 - a_t), (a_t / a_s) ** 0.5 * share, beta * share


def ddim_coefficients(a_t: float, a_s: float, eta: float) -> tuple[float, float]:
    """``(c1, c2)`` of ``x_s = sqrt(a_s) x0 + c1 n + c2 eps`` (Song et al., 2021, eq. 12 and 16)."""
    c1 = eta * ((1 - a_t / a_s) * (1 - a_s) / (1 - a_t)) ** 0.5
    return c1, max(0.0, 1 - a_s - c1**2) ** 0.5


def ddim(x_t: Tensor, x0: Tensor, t: int, s: int, schedule: NoiseSchedule) -> Tensor:
    """``x_s = sqrt(a_s) x0 + sqrt((1 - a_s) / (1 - a_t)) (x_t - sqrt(a_t) x0)`` (Song et al., 2021, eq. 12 with eta = 0)."""
    a_t, a_s = schedule.alpha_bar_at(t), schedule.alpha_bar_at(s)
    kept = ((1 - a_s) / (1 - a_t)) ** 0.5
    return weighted_sum((a_s**0.5 - kept * a_t**0.5, x0), (kept, x_t))


def dpm_solver_2m(x_t: Tensor, x0: Tensor, t: int, s: int, schedule: NoiseSchedule, history: History) -> Tensor:
    """DPM-Solver++(2M) (Lu et al., 2022, algorithm 2), in the log signal-to-noise ratio ``l = log(sqrt(a) / sqrt(1 - a))``:

        D   = x0 + h / (2 h_before) (x0 - x0_before),        h = l_s - l_t
        x_s = sqrt((1 - a_s) / (1 - a_t)) x_t + sqrt(a_s) (1 - exp(-h)) D

    which is DDIM's step with D for x0. First order (D = x0) on the first step, on the last, where h is infinite, and where
    a step is more than `LONGEST_STEP` times the one before.
    """
    nodes = _nodes(schedule, t, s, history[:1])
    if len(nodes) == 1:
        return ddim(x_t, x0, t, s, schedule)
    weight = (half_log_snr(schedule, s) - half_log_snr(schedule, t)) / (-2 * nodes[1])
    return ddim(x_t, weighted_sum((1 + weight, x0), (-weight, history[0][1])), t, s, schedule)


def adams_bashforth(x_t: Tensor, x0: Tensor, t: int, s: int, schedule: NoiseSchedule, history: History) -> Tensor:
    """Exponential Adams-Bashforth (Zhang & Chen, 2023, in x0): with D the polynomial in l through this estimate and those before,

        x_s = sqrt((1 - a_s) / (1 - a_t)) x_t + sqrt(a_s) int_0^h exp(u - h) D(l_t + u) du,        h = l_s - l_t,

    the integral in closed form. Of as many orders as there are estimates, three at most; the first order is DDIM. Lower where
    steps are more than `LONGEST_STEP` times those before, and 1 on the step to the clean image.
    """
    nodes = _nodes(schedule, t, s, history)
    if len(nodes) == 1:
        return ddim(x_t, x0, t, s, schedule)
    h = half_log_snr(schedule, s) - half_log_snr(schedule, t)
    moments = [-math.expm1(-h)]  # int_0^h exp(u - h) u^j du, by parts
    for j in range(1, len(nodes)):
        moments.append(h**j - j * moments[-1])
    powers = torch.tensor([[node**j for node in nodes] for j in range(len(nodes))], dtype=torch.float64)
    weights = torch.linalg.solve(powers, torch.tensor(moments, dtype=torch.float64)).tolist()
    a_t, a_s = schedule.alpha_bar_at(t), schedule.alpha_bar_at(s)
    estimates = [x0, *(estimate for _, estimate in history)]
    terms = [(a_s**0.5 * w, estimate) for w, estimate in zip(weights, estimates, strict=False)]
    return weighted_sum((((1 - a_s) / (1 - a_t)) ** 0.5, x_t), *terms)


def _nodes(schedule: NoiseSchedule, t: int, s: int, history: History) -> list[float]:
    """Where the estimates stand that a step may use, in log signal-to-noise ratio from that of t: 0, then below."""
    nodes = [0.0]
    if s >= 0:
        l_t = half_log_snr(schedule, t)
        h = half_log_snr(schedule, s) - l_t
        for before, _ in history:
            node = half_log_snr(schedule, before) - l_t
            if h > LONGEST_STEP * (nodes[-1] - node):
                break
            nodes.append(node)
    return nodes


def heun(
    x_t: Tensor, x0: Tensor, t: int, s: int, schedule: NoiseSchedule, ask: Callable[[Tensor, int], Tensor]
) -> Tensor:
    """Heun's second-order step (Karras et al., 2022, algorithm 1): Euler to s, then again with the mean of both slopes,

        z_s = z + (sigma_s - sigma_t) ((z - x0) / sigma_t + (z' - x0') / sigma_s) / 2,        z = x / sqrt(a),

    z' the Euler point and x0' its estimate. Two network calls, one on the step to the clean image.
    """
    euler = ddim(x_t, x0, t, s, schedule)
    if s < 0:
        return euler
    a_t, a_s = schedule.alpha_bar_at(t), schedule.alpha_bar_at(s)
    sigma_t, sigma_s = ((1 - a_t) / a_t) ** 0.5, ((1 - a_s) / a_s) ** 0.5
    half = (sigma_s - sigma_t) / 2
    scale = a_s**0.5
    return weighted_sum(
        (scale / a_t**0.5 * (1 + half / sigma_t), x_t),
        (-scale * half / sigma_t, x0),
        (half / sigma_s, euler),
        (-scale * half / sigma_s, ask(euler, s)),
    )


def half_log_snr(schedule: NoiseSchedule, t: int) -> float:
    """``log(sqrt(a_t) / sqrt(1 - a_t))``, Lu et al.'s lambda; infinite for the clean image."""
    a = schedule.alpha_bar_at(t)
    return math.inf if a >= 1 else 0.5 * math.log(a / (1 - a))


# ---- names ------------------------------------------------------------------------------------------------------

INTEGRATORS: dict[str, Integrator] = {
    "ancestral": Integrator(
        lambda m: ancestral(m.x_t, m.x0, m.t, m.s, m.schedule, None, m.noise),
        paper="Ho et al., Denoising Diffusion Probabilistic Models, NeurIPS 2020",
    ),
    "ddim": Integrator(
        lambda m: ddim(m.x_t, m.x0, m.t, m.s, m.schedule),
        paper="Song et al., Denoising Diffusion Implicit Models, ICLR 2021",
    ),
    "dpm++2m": Integrator(
        lambda m: dpm_solver_2m(m.x_t, m.x0, m.t, m.s, m.schedule, m.history),
        paper="Lu et al., DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models, 2022",
    ),
    "eab3": Integrator(
        lambda m: adams_bashforth(m.x_t, m.x0, m.t, m.s, m.schedule, m.history),
        paper="Zhang and Chen, Fast Sampling of Diffusion Models with Exponential Integrator, ICLR 2023",
    ),
    "heun": Integrator(
        lambda m: heun(m.x_t, m.x0, m.t, m.s, m.schedule, m.ask),
        second=True,
        paper="Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, NeurIPS 2022",
    ),
}
"""Every integrator by name."""

OWN = "own"
"""The name that stands for the step of the sampler's own paper."""

OWN_OR_INTEGRATOR = (OWN, *INTEGRATORS)


def integrator_named(name: str) -> Integrator:
    """The integrator behind a name.

    Raises:
        InvdiffError: unknown name, with the near match.
    """
    if name not in INTEGRATORS:
        raise InvdiffError(
            f"integrator must be one of {', '.join(INTEGRATORS)}, got {name!r}.{near_match(str(name), INTEGRATORS)}"
        )
    return INTEGRATORS[name]
