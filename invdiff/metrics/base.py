"""What a metric is, and the register of all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Literal

from invdiff.checks import known, shown
from invdiff.errors import InvdiffError
from invdiff.registry import Registry

Direction = Literal["higher", "lower", "one", "none"]
NEEDS = ("samples", "set", "records", "run", "reference", "measurement", "posterior", "weights", "gaussian")
"""What a metric can need, see `Metric`."""


class Unavailable(RuntimeError):
    """A metric cannot be computed here. The message says why and what to do about it."""


@dataclass(frozen=True)
class Metric:
    """A number about restorations.

    Attributes:
        name: its key in suites and records.
        label: as a table's head shows it.
        direction: ``"higher"`` or ``"lower"`` is better, ``"one"``: the nearer to 1 the better, ``"none"``: neither.
        unit: of the number; ``""`` for a pure number.
        needs: a set of words of `NEEDS`. One at most says what the number is about, and so what `function` takes first:

            - none of these: every restoration by itself, x (B, C, H, W), and the result is (B,);
            - ``"samples"``: the S restorations of one image, (S, C, H, W), and the result is a float;
            - ``"set"``: all N restorations of a task by a sampler, (N, C, H, W), and the result is a float;
            - ``"records"``: the `Record`s of a task by a sampler, and the result is a float;
            - ``"run"``: a column of the record, no function.

            The others say what it takes next, in this order:

            - ``"reference"``: the true image or images, float32 in [0, 1] as x then is, clamped;
            - ``"measurement"``: two arguments, the operator and y; x is unclamped and in the unit of y;
            - ``"posterior"``: the exact posterior (`invdiff.bench.posterior.reference.Exact`), x in its unit. Only a
              backbone with a known posterior has one, with ``"weights"`` a mixture, with ``"gaussian"`` a Gaussian.
        description: one line.
        function: what computes it. It may raise `Unavailable`.
        reason: returns why the metric cannot be had here, or None. Quick, and it never waits for a network.
        decimals: digits after the point in tables.
        resolution: two values closer than this are the same for every test, rank and comparison: below it there is rounding.
    """

    name: str
    label: str
    direction: Direction
    unit: str
    needs: AbstractSet[str]
    description: str
    function: Callable[..., Any] | None = None
    reason: Callable[[], str | None] = lambda: None
    decimals: int = 3
    resolution: float = 0.0

    def __post_init__(self) -> None:
        words: Iterable[str] = [self.needs] if isinstance(self.needs, str) else self.needs
        known(f"metric {self.name}", words, NEEDS, "need")
        object.__setattr__(self, "needs", frozenset(words))

    @property
    def scope(self) -> str:
        """What the number is about: ``"image"``, ``"samples"``, ``"set"``, ``"records"`` or ``"run"``."""
        return next((word for word in ("samples", "set", "records", "run") if word in self.needs), "image")


def _metric(name: str, metric: Any) -> Metric:
    if not isinstance(metric, Metric):
        raise InvdiffError(f"metric {name!r} must be a Metric, got {shown(metric)}")
    return metric


METRICS: Registry[Metric] = Registry("metric", "invdiff.metrics", _metric, definition=lambda m: m.function or m)
"""Every metric by name."""


def register_metric(metric: Metric) -> Metric:
    """Make a metric known to suites and reports. An installed package does it through the entry points ``invdiff.metrics``.

    Raises:
        InvdiffError: the name is taken, or what is registered is no `Metric`.
    """
    return METRICS.add(getattr(metric, "name", ""), metric)


def metric_names(needs: str | None = None) -> list[str]:
    """Names of all metrics, or of those that need `needs` (a word of `NEEDS`)."""
    return [name for name, metric in METRICS.items() if needs is None or needs in metric.needs]


def get_metric(name: str) -> Metric:
    """The metric called `name`.

    Raises:
        InvdiffError: unknown name, with the near match.
    """
    return METRICS.get(name)


def import_reason(error: BaseException, package: str, extra: str | None = None) -> str:
    """Why an import failed, and what to install.

    Args:
        error: what the import raised.
        package: that was wanted.
        extra: of invdiff that brings it.
    """
    install = f"pip install 'invdiff[{extra}]'" if extra else f"pip install {package}"
    text = " ".join(str(error).split())
    if "torchvision" in text and not isinstance(error, ModuleNotFoundError):
        return (
            f"the installed torchvision does not match the installed torch, so {package} cannot be imported "
            f"({text[:120]}); install a pair that belongs together: pip install --upgrade torch torchvision"
        )
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name or package} is not installed; {install}"
    return f"{package} cannot be imported: {type(error).__name__}: {text[:200]}"
