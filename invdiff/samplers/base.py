"""What all samplers share: hyper-parameters, the loop along a path, and the products that several papers use."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from invdiff.backbones.base import Backbone, Prediction, WrappedBackbone
from invdiff.backbones.schedule import SPACINGS, NoiseSchedule
from invdiff.checks import shown
from invdiff.errors import DivergenceError, InvdiffError, near_match
from invdiff.noise import Draw, NoiseSource
from invdiff.operators.base import LinearOperator
from invdiff.options import check_options, option
from invdiff.problem import Problem
from invdiff.registry import Registry
from invdiff.samplers import paths
from invdiff.samplers.guidance import Guidance, GuidedBackbone
from invdiff.samplers.integrators import INTEGRATORS, OWN, REMEMBERED, History, Integrator, Move, integrator_named
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


@dataclass(frozen=True)
class Cost:
    """What a run takes per image.

    Attributes:
        calls: network calls.
        vjps: vector-Jacobian products of the network.
        trials: further calls at most, where a method repeats what didn't help.
    """

    calls: int
    vjps: int = 0
    trials: int = 0


@dataclass
class Record:
    """What a run leaves behind beside its result.

    Attributes:
        calls: the network's own time of every call, in order.
        per_image: successive rows of the batch that belong to one image; None where that does not matter.
        details: what a sampler has to tell, by name, tensors of one entry per image: `Solution.diagnostics`.
        memory: what a sampler keeps from one step to the next; see `memory_of`.
        ahead: the time after that of the step under way, if there is one; see `moves_ahead`.
    """

    calls: list[int] = field(default_factory=list)
    per_image: int | None = None
    details: dict[str, Tensor] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    ahead: Sequence[int] = ()


class RecordedBackbone(WrappedBackbone):
    """A backbone that keeps a list of its calls; to a sampler it is one like any other."""

    def __init__(self, backbone: Backbone, record: Record) -> None:
        self.wrap(backbone)
        self.image_shape, self.record = backbone.image_shape, record

    def predict(self, x_t: Tensor, t: int | Tensor) -> Prediction:
        first = int(t.flatten()[0]) if isinstance(t, Tensor) else t
        self.record.calls.append(self.schedule.timestep(first))
        return self.backbone.predict(x_t, t)


def memory_of(backbone: Backbone) -> dict[str, Any]:
    """What a sampler kept in this run, by name, to be read and written; outside of a run an empty one that nobody keeps."""
    return backbone.record.memory if isinstance(backbone, RecordedBackbone) else {}


def moves_ahead(backbone: Backbone) -> Sequence[int]:
    """The time of the path after the one that the step under way goes to: one or, at the end and outside of a run, none."""
    return backbone.record.ahead if isinstance(backbone, RecordedBackbone) else ()


# ---- the loop ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Walk:
    """One run of a sampler down its path: what is asked, of whom, and who is told.

    Attributes:
        problem: what is asked.
        backbone: on the full schedule.
        noise: where the draws come from.
        x_init: first state instead of the sampler's own.
        times: another path over the kept times.
        guidance: extra terms, see `Guidance`.
        on_step: called after every move.
        record: is told of every network call.
    """

    problem: Problem
    backbone: Backbone
    noise: NoiseSource
    x_init: Tensor | None = None
    times: Sequence[int] | None = None
    guidance: tuple[Guidance, ...] = ()
    on_step: Callable[[Progress], Any] | None = None
    record: Record = field(default_factory=Record)

    def begun(self, sampler: Sampler) -> tuple[Backbone, list[int]]:
        """The backbone in the times that the sampler keeps, with its guidance, and the path."""
        backbone = self.backbone.on(sampler.respaced(self.backbone.schedule)).drawing(self.noise)
        times = sampler.path(backbone.schedule) if self.times is None else list(self.times)
        return (GuidedBackbone(backbone, self.guidance) if self.guidance else backbone), times


@dataclass(frozen=True)
class Sampler(ABC):
    """A method: the times it keeps, its path through them, and one step down.

    A sampler is a frozen dataclass whose fields are its hyper-parameters. To write one, give `step` and, where the
    method differs from the common way, `respaced`, `path`, `first_state`, `before_call`, `renoise`, `finish`. One that
    only says what x0 is, given x_t and y, is an `Estimator`; one with a `step` that can also be told to leave it to an
    integrator has an `estimate` and a field ``integrator`` besides, ``"own"`` by default. A field ``spacing`` says which times
    of the schedule are kept.
    """

    steps: int = option(100, "times kept of the schedule", low=1)

    name: ClassVar[str] = ""
    handles_noise: ClassVar[bool] = False  # models sigma_y > 0
    consistent: ClassVar[bool] = False  # promises A x = y where sigma_y = 0
    uses_gradient: ClassVar[bool] = False  # one vector-Jacobian product per network call
    together: ClassVar[bool] = False  # samples of an image depend on each other: they travel in one batch
    baseline: ClassVar[bool] = False  # classical: has no path and asks no network; see `baselines.Baseline`
    default_spacing: ClassVar[str] = "respaced"  # which times of the schedule are kept
    paper: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check_options(self, self.name)

    # ---- what a method may change ---------------------------------------------------------------------------

    def respaced(self, schedule: NoiseSchedule) -> NoiseSchedule:
        """The times that are kept."""
        return schedule.respaced(self.steps, getattr(self, "spacing", self.default_spacing))

    def fitted(self, T: int, given: Collection[str] = ()) -> Sampler:
        """The same for a backbone of `T` times, where it would keep more of them by default: all, and jumps in proportion.

        Fields in `given` are the caller's own and stay as they are.
        """
        if self.steps <= T or "steps" in given or self.baseline:
            return self
        lengths = {f.name for f in dataclasses.fields(self)} & {"jump_length", "travel_length"} - set(given)
        shorter = {name: max(1, round(getattr(self, name) * T / self.steps)) for name in lengths}
        return dataclasses.replace(self, steps=T, **shorter)

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

    def estimate(self, x_t: Tensor, t: int, problem: Problem, backbone: Backbone) -> Tensor:
        """``E[x0 | x_t, y]`` as the method sees it, (B, C, H, W), for an integrator to go on with. One network call."""
        raise NotImplementedError(f"{type(self).__name__} has no estimate of x0 given y: it steps in its own way")

    def reason(self, problem: Problem) -> str:
        """Why the method cannot restore what A measured; empty where it can. Values of y are not read."""
        return ""

    def products(self) -> int:
        """Vector-Jacobian products of the network per call."""
        return 1 if self.uses_gradient else 0

    def products_for(self, problem: Problem | None) -> int:
        """The same for one problem, where the method lets it depend on that."""
        return self.products()

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
                has = ", ".join(fields) or "none"
                others = [n for n, c in SAMPLERS.items() if name in c.__dataclass_fields__]
                hint = f" Samplers with {name}: {', '.join(others)}" if others else near_match(name, fields)
                raise InvdiffError(f"unknown option {name!r} for sampler {cls.name}; it has {has}.{hint}")

    def check_samples(self, n_samples: int) -> None:  # noqa: B027
        """Refuse a number of samples that the method cannot give.

        Raises:
            InvdiffError: it cannot; the message says which it can.
        """

    def states(self, n_samples: int) -> int:
        """How many states travel for `n_samples` restorations of one image: each of them asks the network."""
        return n_samples

    def stepper(self) -> Integrator | None:
        """The integrator that takes the steps; None where the sampler has its own."""
        name = getattr(self, "integrator", OWN)
        return None if name == OWN else integrator_named(name)

    def asked(self, times: Sequence[int]) -> list[int]:
        """The times of all network calls along a path, in order: known before a run."""
        stepper = self.stepper()
        down = [(t, s) for t, s in pairwise(times) if s < t]
        return [t for t, _ in down] if stepper is None else [u for t, s in down for u in stepper.asks(t, s)]

    def cost(
        self,
        schedule: NoiseSchedule,
        times: Sequence[int] | None = None,
        n_samples: int = 1,
        problem: Problem | None = None,
    ) -> Cost:
        """What one of `n_samples` restorations takes on the full schedule `schedule`, along the sampler's own path or `times`.

        Without the problem, products that depend on its size are counted at their most.
        """
        clock = self.respaced(schedule)
        price = self.price(self.path(clock) if times is None else times, clock, problem)
        return Cost(*(-(-each * self.states(n_samples) // n_samples) for each in dataclasses.astuple(price)))

    def price(self, times: Sequence[int], schedule: NoiseSchedule, problem: Problem | None) -> Cost:
        """What one state takes along the path `times` over the kept times, those of `schedule`."""
        calls = len(self.asked(times))
        return Cost(calls, calls * self.products_for(problem))

    def network_calls(self, schedule: NoiseSchedule) -> int:
        """Network calls per image on the full schedule `schedule`, known before a run."""
        return self.cost(schedule).calls

    def run(self, walk: Walk) -> Tensor:
        """Walk the path and return the restoration, (B, C, H, W), unclamped, model range.

        Raises:
            DivergenceError: the state went non-finite.
        """
        problem, noise, record, on_step = walk.problem, walk.noise, walk.record, walk.on_step
        guided, times = walk.begun(self)
        backbone, schedule = RecordedBackbone(guided, record), guided.schedule
        stepper = self.stepper()

        def ask(x_t: Tensor, t: int) -> Tensor:
            return self.estimate(x_t, t, problem, backbone)

        check_every = 1 if problem.y.device.type == "cpu" else 16
        with no_gradient(inference=not (self.uses_gradient or walk.guidance)):
            x = self.first_state(problem, backbone, times[0], noise.at(-1)) if walk.x_init is None else walk.x_init
            x0 = x
            history: History = ()
            for k, (t, s) in enumerate(pairwise(times)):
                draw, record.ahead = noise.at(k), times[k + 2 : k + 3]
                if s > t:
                    x, history = self.renoise(x, x0, t, s, backbone, draw), ()
                else:
                    if record.calls:
                        x = self.before_call(x, t, problem, backbone, draw)
                    if stepper is None:
                        x, x0 = self.step(x, t, s, problem, backbone, draw)
                    else:
                        x0 = ask(x, t)
                        x = stepper.step(Move(x, x0, t, s, schedule, draw, history, ask))
                        history = ((t, x0), *history[: REMEMBERED - 1])
                if (k % check_every == 0 or k == len(times) - 2) and not finite(x):
                    raise DivergenceError(
                        f"{self.name} diverged: the state is not finite after move {k + 1} of {len(times) - 1} "
                        f"(time {t} -> {s}, network time {schedule.timestep(t)}). Smaller guidance or step sizes help; "
                        f"settings: {self}"
                    )
                if on_step is not None:
                    timestep = schedule.timestep(t) if s < t else None
                    on_step(Progress(k, len(times) - 1, t, s, timestep, len(record.calls), x, x0))
            x = self.finish(x, problem)
        return x.clone()


@dataclass(frozen=True)
class Estimator(Sampler):
    """A sampler that says what the clean image is and leaves the steps to an integrator: to write one, give `estimate`."""

    steps: int = option(30, "times kept of the schedule", low=1)
    integrator: str = option(
        "dpm++2m", "how the state goes on from the estimate; heun asks twice a step", choices=tuple(INTEGRATORS)
    )
    spacing: str = option("karras", "which times of the schedule are kept", choices=SPACINGS)

    @abstractmethod
    def estimate(self, x_t: Tensor, t: int, problem: Problem, backbone: Backbone) -> Tensor:
        """``E[x0 | x_t, y]``, (B, C, H, W). One network call."""

    def step(
        self, x_t: Tensor, t: int, s: int, problem: Problem, backbone: Backbone, noise: Draw
    ) -> tuple[Tensor, Tensor]:
        """One step by itself, without the memory of a multistep integrator, which the loop has."""
        x0 = self.estimate(x_t, t, problem, backbone)
        move = Move(x_t, x0, t, s, backbone.schedule, noise, (), lambda x, u: self.estimate(x, u, problem, backbone))
        return integrator_named(self.integrator).step(move), x0


def finite(x: Tensor) -> bool:
    """Whether no value is NaN or infinite; looked at one by one only where the sum says that there may be such."""
    return math.isfinite(float(x.sum())) or bool(torch.isfinite(x).all())


@contextmanager
def no_gradient(inference: bool) -> Iterator[None]:
    """`torch.inference_mode` where nothing needs a gradient later, else `torch.no_grad`; whatever the caller's mode."""
    with torch.inference_mode(inference), torch.no_grad():
        yield


# ---- what several papers share ----------------------------------------------------------------------------------


def estimate_with_pullback(
    backbone: Backbone, x_t: Tensor, t: int, clip: bool = False, products: int = 1
) -> tuple[Prediction, Tensor, Callable[[Tensor], Tensor]]:
    """The clean estimate and the vector-Jacobian product of x0(x_t): one forward, one backward a product, no second forward.

    Returns:
        The prediction (detached), its x0 (clipped to [-1, 1] if `clip`; no gradient flows where it clips), and
        ``pullback(v) = (d x0 / d x_t)^T v``, to be called `products` times; the graph is freed by the last.
    """
    with torch.inference_mode(False), torch.enable_grad():
        x = (x_t.clone() if x_t.is_inference() else x_t).detach().requires_grad_()
        prediction = backbone.predict(x, t)
        x0 = prediction.x0.clamp(-1, 1) if clip else prediction.x0

    left = products

    def pullback(v: Tensor) -> Tensor:
        nonlocal left
        left -= 1
        with backbone.arithmetic():
            try:
                return torch.autograd.grad(x0, x, v, retain_graph=left > 0)[0]
            except (AttributeError, RuntimeError):
                if left == products - 1:
                    raise
            # A network whose own checkpointing (guided-diffusion's, LDM's) lets go of its inputs: once more from the start.
            with torch.inference_mode(False), torch.enable_grad():
                again = backbone.predict(x, t).x0
                return torch.autograd.grad(again.clamp(-1, 1) if clip else again, x, v)[0]

    variance = None if prediction.log_variance is None else prediction.log_variance.detach()
    return Prediction(prediction.x0.detach(), prediction.eps.detach(), variance), x0.detach(), pullback


def linear_operator(problem: Problem, sampler: str) -> LinearOperator:
    """The problem's operator, for a method that needs its adjoint.

    Raises:
        InvdiffError: it is not linear.
    """
    if not isinstance(problem.operator, LinearOperator):
        raise InvdiffError(
            f"{sampler} needs a linear operator, got {problem.operator!r}; PiGDM and DDNM take those with a pseudo-inverse"
        )
    return problem.operator


def inverse(squared: Tensor) -> Tensor:
    """The pseudo-inverse as a filter: 1/l, and 0 where l = 0."""
    return torch.where(squared > 0, 1 / squared, torch.zeros_like(squared))


# ---- names ------------------------------------------------------------------------------------------------------


_BASELINES: set[str] = set()  # names, so that telling them apart imports no package


def _sampler(name: str, cls: Any) -> type[Sampler]:
    if not (isinstance(cls, type) and issubclass(cls, Sampler)):
        raise InvdiffError(f"sampler {name!r} must be a subclass of Sampler, got {shown(cls)}")
    cls.name = cls.name if "name" in vars(cls) else name
    if cls.baseline:
        _BASELINES.add(name)
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
    """The diffusion samplers that `solve(sampler=...)` knows, those of installed packages included; see also `baseline_names`."""
    return [name for name in SAMPLERS.names() if name not in _BASELINES]


def sampler_class(name: str) -> type[Sampler]:
    """The class behind a name.

    Raises:
        InvdiffError: unknown name, with the near match.
    """
    return SAMPLERS.get(name)


def samplers_that(**wanted: bool) -> Iterable[str]:
    """Names of the samplers with these properties, such as ``handles_noise=True``."""
    return [n for n, c in SAMPLERS.items() if all(getattr(c, k) == v for k, v in wanted.items())]
