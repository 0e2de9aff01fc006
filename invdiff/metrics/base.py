"""What a metric is, and the register of all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from invdiff.checks import shown
from invdiff.errors import InvdiffError
from invdiff.registry import Registry

Direction = Literal["higher", "lower", "one", "none"]
Needs = Literal["truth", "measurement", "samples", "set", "run"]


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
        needs: what `function` is called with. Images are float32 tensors in [0, 1]:

            - ``"truth"``: ``f(x, truth) -> (B,)``, both (B, C, H, W);
            - ``"measurement"``: ``f(x, operator, y) -> (B,)``, x unclamped;
            - ``"samples"``: ``f(samples, truth) -> float`` for the S restorations of one image, (S, C, H, W) and
              (C, H, W);
            - ``"set"``: ``f(restored, truths) -> float`` for all restorations of a task by a sampler, (N, C, H, W) and
              (M, C, H, W);
            - ``"run"``: not computed from images: a column of the record.
        description: one line.
        function: what computes it; None for ``"run"``. It may raise `Unavailable`.
        reason: returns why the metric cannot be had here, or None. Quick, and it never waits for a network.
        decimals: digits after the point in tables.
    """

    name: str
    label: str
    direction: Direction
    unit: str
    needs: Needs
    description: str
    function: Callable[..., Any] | None = None
    reason: Callable[[], str | None] = lambda: None
    decimals: int = 3


def _metric(name: str, metric: Any) -> Metric:
    if not isinstance(metric, Metric):
        raise InvdiffError(f"metric {name!r} must be a Metric, got {shown(metric)}")
    return metric


METRICS: Registry[Metric] = Registry("metric", "invdiff.metrics", _metric)
"""Every metric by name."""


def register_metric(metric: Metric) -> Metric:
    """Make a metric known to suites and reports. An installed package does it through the entry points ``invdiff.metrics``.

    Raises:
        InvdiffError: the name is taken, or what is registered is no `Metric`.
    """
    return METRICS.add(getattr(metric, "name", ""), metric)


def metric_names(needs: str | None = None) -> list[str]:
    """Names of all metrics, or of those that need `needs` (see `Metric`)."""
    return [name for name, metric in METRICS.items() if needs in (None, metric.needs)]


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
