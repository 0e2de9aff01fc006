"""DiffPIR: a proximal data step between denoising steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from invdiff.backbones.base import Backbone, Prediction
from invdiff.backbones.schedule import SPACINGS, NoiseSchedule
from invdiff.noise import Draw
from invdiff.options import option
from invdiff.problem import Problem
from invdiff.samplers.base import Sampler, register_sampler
from invdiff.samplers.integrators import OWN, OWN_OR_INTEGRATOR
from invdiff.tensors import weighted_sum

_LEAST_SIGMA = 0.002  # the authors' floor of 0.001 on a scale of [0, 1]


@register_sampler("diffpir")
@dataclass(frozen=True)
class DiffPIR(Sampler):
    """Denoising diffusion plug-and-play restoration (Zhu et al., CVPRW 2023, algorithm 1).

    With ``rho_t = lambda_ sigma^2 a_t / (1 - a_t)`` and x0 clipped:

        x0  <- x0 + guidance_scale A^T (A A^T + rho_t)^{-1} (y - A x0)            the proximal point
        e   = (x_t - sqrt(a_t) x0) / sqrt(1 - a_t)
        es  = eta sqrt((1 - a_s) / (1 - a_t)) sqrt(beta_t)                          beta_t of the full chain
        x_s = sqrt(a_s) x0 + sqrt(1 - zeta) (sqrt(1 - a_s - es^2) e + es n1) + sqrt(zeta) sqrt(1 - a_s) n2

    This form of the proximal point never divides by rho_t, so sigma_y = 0 is exact. The authors' sigma is in units of
    [0, 1] for images in [-1, 1]: their lambda is four times ours. Their code returns the state at t = 0
    (``ending="state"``); by default the run ends with the corrected clean estimate.
    """

    steps: int = option(100, "times kept of the schedule (the paper: 20 for noise-free inpainting)", low=1)
    lambda_: float = option(1.5, "weight of the prior in the proximal step", low=0)
    zeta: float = option(0.3, "share of fresh noise: 0 deterministic, 1 all fresh", low=0, high=1)
    eta: float = option(0.0, "DDIM noise within the kept share", low=0, high=1)
    spacing: str = option("quad", "times kept: denser towards the clean end, or even (uniform), ...", choices=SPACINGS)
    guidance_scale: float = option(1.0, "step towards the proximal point; 1 is the point itself", low=0)
    inner_iterations: int = option(1, "how often each step is repeated, noised back in between", low=1, high=1000)
    ending: str = option("x0", "end with the corrected x0, or with the state at t = 0", choices=("x0", "state"))
    init: str = option(
        "measurement",
        "first state from y (enlarged, or its pseudo-inverse, where it has another shape) at its own noise level, or pure noise",
        choices=("measurement", "noise"),
    )
    integrator: str = option(
        OWN, "the paper's step, or an integrator that follows the estimate", choices=OWN_OR_INTEGRATOR
    )

    handles_noise: ClassVar[bool] = True
    paper: ClassVar[str] = "Zhu et al., Denoising Diffusion Models for Plug-and-Play Image Restoration, CVPRW 2023"

    def path(self, schedule: NoiseSchedule) -> list[int]:
        last = -1 if self.ending == "x0" or len(schedule) == 1 else 0
        times: list[int] = []
        for t in range(len(schedule) - 1, last, -1):
            times += [t] if t == 0 else [t, t - 1] * (self.inner_iterations - 1) + [t]
        return [*times, last]

    def first_state(self, problem: Problem, backbone: Backbone, t: int, noise: Draw) -> Tensor:
        if self.init == "noise":
            return noise("init")
        start = problem.operator.first_look(problem.y, problem.image_shape)
        a_t = backbone.schedule.alpha_bar_at(t)
        missing = max(0.0, 1 - a_t - a_t * problem.sigma_y**2)  # y brings noise of its own
        return a_t**0.5 * start + missing**0.5 * noise("init")

    def step(
        self, x_t: Tensor, t: int, s: int, problem: Problem, backbone: Backbone, noise: Draw
    ) -> tuple[Tensor, Tensor]:
        schedule = backbone.schedule
        a_t, a_s = schedule.alpha_bar_at(t), schedule.alpha_bar_at(s)
        estimate, x0 = self._proximal(x_t, t, problem, backbone)
        if s < 0:
            return x0, estimate
        e = Prediction.from_x0(x_t, x0, a_t).eps
        es = self.eta * ((1 - a_s) / (1 - a_t)) ** 0.5 * schedule.chain_beta(t) ** 0.5
        x = weighted_sum((a_s**0.5, x0), (((1 - self.zeta) * max(0.0, 1 - a_s - es**2)) ** 0.5, e))
        if es > 0 and self.zeta < 1:
            x.add_(noise("second"), alpha=(1 - self.zeta) ** 0.5 * es)
        if self.zeta > 0:
            x.add_(noise("step"), alpha=(self.zeta * (1 - a_s)) ** 0.5)
        return x, estimate

    def estimate(self, x_t: Tensor, t: int, problem: Problem, backbone: Backbone) -> Tensor:
        return self._proximal(x_t, t, problem, backbone)[1]

    def _proximal(self, x_t: Tensor, t: int, problem: Problem, backbone: Backbone) -> tuple[Tensor, Tensor]:
        """The network's x0, clipped, and the proximal point."""
        a_t = backbone.schedule.alpha_bar_at(t)
        rho = self.lambda_ * max(problem.sigma_y, _LEAST_SIGMA) ** 2 * a_t / (1 - a_t)
        x0 = backbone.predict(x_t, t).x0.clamp(-1, 1)
        return x0, x0 + self.guidance_scale * problem.filtered_residual(lambda squared: 1 / (squared + rho), x0)
