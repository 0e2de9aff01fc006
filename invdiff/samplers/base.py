"""What all samplers share: hyper-parameters, the loop along a path, and the steps that several papers use."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from invdiff.backbones.base import Backbone, Prediction
from invdiff.backbones.schedule import NoiseSchedule
from invdiff.checks import shown
from invdiff.errors import DivergenceError, InvdiffError, near_match
from invdiff.noise import Draw, NoiseSource
from invdiff.options import check_options, option
from invdiff.problem import Problem
from invdiff.registry import Registry
from invdiff.samplers import paths
from invdiff.samplers.guidance import Guidance, GuidedBackbone
from invdiff.tensors import weighted_sum

# ---- one step's report ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Progress:
    """What `callback` is handed after every move along the path.

    Attributes:
        step: number of the move, from 0.
        steps: how many there are.
        t: time before.
        s: time after; s < t denoises, s > t adds noise.
        timestep: the network's own time of t; None on a move upwards.
        nfe: network calls so far.
        x: (B, C, H, W), the state at s, model range.
        x0: the clean estimate of the last network call, likewise.
    """

    step: int
    steps: int
    t: int
    s: int
    timestep: int | None
    nfe: int
    x: Tensor
    x0: Tensor


# ---- the loop ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sampler(ABC):
    """A method: the times it keeps, its path through them, and one step down.

    A sampler is a frozen dataclass whose fields are its hyper-parameters. To write one, give `step` and, where the
    method differs from the common way, `respaced`, `path`, `first_state`, `before_call`, `renoise`, `finish`.
    """

    steps: int = option(100, "times kept of the schedule", low=1)

    name: ClassVar[str] = ""
    handles_noise: ClassVar[bool] = False  # models sigma_y > 0
    consistent: ClassVar[bool] = False  # promises A x = y where sigma_y = 0
    uses_gradient: ClassVar[bool] = False  # one vector-Jacobian product per network call
    default_spacing: ClassVar[str] = "respaced"  # which times of the schedule are kept
    paper: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check_options(self, self.name)

    # ---- what a method may change ---------------------------------------------------------------------------

    def respaced(self, schedule: NoiseSchedule) -> NoiseSchedule:
        """The times that are kept."""
        return schedule.respaced(self.steps, self.default_spacing)

    def path(self, schedule: NoiseSchedule) -> list[int]:
        """The times visited, from the first to -1, for a schedule made by `respaced`."""
        return paths.plain(len(schedule))

    def first_state(self, problem: Problem, backbone: Backbone, t: int, noise: Draw) -> Tensor:
        """x_t at the first time, (B, C, H, W)."""
        return noise("init")

    def before_call(self, x_t: Tensor, t: int, problem: Problem, backbone: Backbone, noise: Draw) -> Tensor:
        """What happens to the state just before a network call, the very first one excepted."""
        return x_t

    @abstractmethod
    def step(
        self, x_t: Tensor, t: int, s: int, problem: Problem, backbone: Backbone, noise: Draw
    ) -> tuple[Tensor, Tensor]:
        """One step down from t to s < t.

        Returns:
            x_s and the network's clean estimate, both (B, C, H, W).
        """

    def renoise(self, x_t: Tensor, x0: Tensor, t: int, s: int, backbone: Backbone, noise: Draw) -> Tensor:
        """A step up from t to s > t: one forward step, ``sqrt(a_s/a_t) x_t + sqrt(1 - a_s/a_t) n``.

        `x0` is the clean estimate of the last network call.
        """
        ratio = backbone.schedule.alpha_bar_at(s) / backbone.schedule.alpha_bar_at(t)
        return weighted_sum((ratio**0.5, x_t), ((1 - ratio) ** 0.5, noise("step")))

    def finish(self, x: Tensor, problem: Problem) -> Tensor:
        """The result, from the state at the end of the path."""
        return x

    # ---- what is the same for all ---------------------------------------------------------------------------

    @classmethod
    def check_names(cls, names: Iterable[str]) -> None:
        """Refuse names that are no field of this sampler.

        Raises:
            InvdiffError: the first one, with the fields and the near match.
        """
        fields = [f.name for f in dataclasses.fields(cls)]
        for name in names:
            if name not in fields:
                raise InvdiffError(
                    f"unknown option {name!r} for sampler {cls.name}; it has {', '.join(fields)}.{near_match(name, fields)}"
                )

    def network_calls(self, schedule: NoiseSchedule) -> int:
        """Network calls per image on the full schedule `schedule`, known before a run."""
        return paths.network_calls(self.path(self.respaced(schedule)))

    def run(
        self,
        problem: Problem,
        backbone: Backbone,
        noise: NoiseSource,
        *,
        x_init: Tensor | None = None,
        times: Sequence[int] | None = None,
        guidance: Sequence[Guidance] = (),
        on_step: Callable[[Progress], Any] | None = None,
    ) -> Tensor:
        """Walk the path and return the restoration, (B, C, H, W), unclamped, model range.

        Args:
            problem: what is asked.
            backbone: on the full schedule.
            noise: where the draws come from.
            x_init: first state instead of the sampler's own.
            times: another path over the kept times.
            guidance: extra terms, see `Guidance`.
            on_step: called after every move.

        Raises:
            DivergenceError: the state went non-finite.
        """
        backbone = backbone.on(self.respaced(backbone.schedule))
        schedule = backbone.schedule
        times = self.path(schedule) if times is None else list(times)
        if guidance:
            backbone = GuidedBackbone(backbone, tuple(guidance))
        check_every = 1 if problem.y.device.type == "cpu" else 16
        with no_gradient(inference=not (self.uses_gradient or guidance)):
            x = self.first_state(problem, backbone, times[0], noise.at(-1)) if x_init is None else x_init
            x0, nfe = x, 0
            for k, (t, s) in enumerate(pairwise(times)):
                draw = noise.at(k)
                if s > t:
                    x = self.renoise(x, x0, t, s, backbone, draw)
                else:
                    if nfe > 0:
                        x = self.before_call(x, t, problem, backbone, draw)
                    x, x0 = self.step(x, t, s, problem, backbone, draw)
                    nfe += 1
                if (k % check_every == 0 or k == len(times) - 2) and not finite(x):
                    raise DivergenceError(
                        f"{self.name} diverged: the state is not finite after move {k + 1} of {len(times) - 1} "
                        f"(time {t} -> {s}, network time {schedule.timestep(t)}). Smaller guidance or step sizes help; "
                        f"settings: {self}"
                    )
                if on_step is not None:
                    on_step(Progress(k, len(times) - 1, t, s, schedule.timestep(t) if s < t else None, nfe, x, x0))
            x = self.finish(x, problem)
        return x.clone()


def finite(x: Tensor) -> bool:
    """Whether no value is NaN or infinite; looked at one by one only where the sum says that there may be such."""
    return math.isfinite(float(x.sum())) or bool(torch.isfinite(x).all())


def no_gradient(inference: bool) -> AbstractContextManager:
    """`torch.inference_mode` where nothing needs a gradient later, else `torch.no_grad`."""
    return torch.inference_mode() if inference else torch.no_grad()


# ---- steps that several papers share ----------------------------------------------------------------------------


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


def ddim_coefficients(a_t: float, a_s: float, eta: float) -> tuple[float, float]:
    """``(c1, c2)`` of ``x_s = sqrt(a_s) x0 + c1 n + c2 eps`` (Song et al., 2021, eq. 12 and 16)."""
    c1 = eta * ((1 - a_t / a_s) * (1 - a_s) / (1 - a_t)) ** 0.5
    return c1, max(0.0, 1 - a_s - c1**2) ** 0.5


def estimate_with_pullback(
    backbone: Backbone, x_t: Tensor, t: int, clip: bool = False
) -> tuple[Prediction, Tensor, Callable[[Tensor], Tensor]]:
    """The clean estimate and the vector-Jacobian product of x0(x_t): one forward, one backward, no second forward.

    Returns:
        The prediction (detached), its x0 (clipped to [-1, 1] if `clip`; no gradient flows where it clips), and
        ``pullback(v) = (d x0 / d x_t)^T v``, to be called once.
    """
    with torch.enable_grad():
        x = x_t.detach().requires_grad_()
        prediction = backbone.predict(x, t)
        x0 = prediction.x0.clamp(-1, 1) if clip else prediction.x0

    def pullback(v: Tensor) -> Tensor:
        return torch.autograd.grad(x0, x, v)[0]

    variance = None if prediction.log_variance is None else prediction.log_variance.detach()
    return Prediction(prediction.x0.detach(), prediction.eps.detach(), variance), x0.detach(), pullback


def inverse(squared: Tensor) -> Tensor:
    """The pseudo-inverse as a filter: 1/l, and 0 where l = 0."""
    return torch.where(squared > 0, 1 / squared, torch.zeros_like(squared))


# ---- names ------------------------------------------------------------------------------------------------------


def _sampler(name: str, cls: Any) -> type[Sampler]:
    if not (isinstance(cls, type) and issubclass(cls, Sampler)):
        raise InvdiffError(f"sampler {name!r} must be a subclass of Sampler, got {shown(cls)}")
    cls.name = cls.name if "name" in vars(cls) else name
    return cls


def _plain(name: str) -> str:
    return name.lower().translate({ord(c): None for c in "-_ "}).replace("plus", "+").replace("π", "pi")


SAMPLERS: Registry[type[Sampler]] = Registry("sampler", "invdiff.samplers", _sampler, _plain)
"""Every sampler by name; case, and ``-``, ``_``, blanks do not matter."""

SamplerT = TypeVar("SamplerT", bound=type[Sampler])


def register_sampler(name: str) -> Callable[[SamplerT], SamplerT]:
    """Class decorator: make a sampler known to `solve`, the command line and the benchmarks as `name`.

    Raises:
        InvdiffError: the name is taken by another sampler, or what is registered is none.
    """

    def register(cls: SamplerT) -> SamplerT:
        SAMPLERS.add(name, cls)
        return cls

    return register


def sampler_names() -> list[str]:
    """The names that `solve(sampler=...)` knows, those of installed packages included."""
    return SAMPLERS.names()


def sampler_class(name: str) -> type[Sampler]:
    """The class behind a name.

    Raises:
        InvdiffError: unknown name, with the near match.
    """
    return SAMPLERS.get(name)


def samplers_that(**wanted: bool) -> Iterable[str]:
    """Names of the samplers with these properties, such as ``handles_noise=True``."""
    return [n for n, c in SAMPLERS.items() if all(getattr(c, k) == v for k, v in wanted.items())]
