"""Noise schedules: how much signal is left at every time, and which of the times are visited.

A schedule is the list of signal levels `alpha_bar` (the product of ``1 - beta``), and

    x_t = sqrt(alpha_bar[t]) x0 + sqrt(1 - alpha_bar[t]) noise.

Time is an index ``0 ... T-1``; ``-1`` is the clean image and ``alpha_bar[-1] == 1``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from invdiff.checks import array, one_of, real, shown, whole
from invdiff.errors import InvdiffError

MOST_TIMES = 1_000_000
"""Of a schedule: networks are trained with a thousand to a few thousand."""


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Signal levels and the network's own time of each of them.

    Build one with `linear`, `scaled_linear`, `cosine`, `flow` or `from_betas`; thin it out with `respaced`.

    Attributes:
        alpha_bar: float64 tensor of length T + 1. ``alpha_bar[t]`` for t in 0..T-1, and one more entry, 1, that the
            index ``-1`` reaches: the clean image.
        timesteps: long tensor of length T: what a network trained on the full chain calls these times; float64 for
            times in between, see `at_levels`.
        chain: the full schedule that this one was taken from; itself for a full one.
    """

    alpha_bar: Tensor
    timesteps: Tensor
    _chain: NoiseSchedule | None = field(default=None, repr=False)

    # ---- makers ---------------------------------------------------------------------------------------------

    @classmethod
    def from_betas(cls, betas: Tensor | Sequence[float]) -> NoiseSchedule:
        """Schedule of the given betas, (T,), each in (0, 1). Computed in float64."""
        betas = array("betas", betas, ndim=1).cpu().double()
        if not 0 < len(betas) <= MOST_TIMES:
            raise InvdiffError(f"betas must be a non-empty list of at most {MOST_TIMES:,} numbers, got {len(betas):,}")
        if not bool(((betas > 0) & (betas < 1)).all()):
            raise InvdiffError(f"betas must lie strictly between 0 and 1, got {betas.min():.3g} to {betas.max():.3g}")
        levels = torch.cat([torch.cumprod(1 - betas, 0), torch.ones(1, dtype=torch.float64)])
        return cls(levels, torch.arange(len(betas)))

    @classmethod
    def linear(cls, T: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> NoiseSchedule:
        """DDPM's schedule (Ho et al., 2020): betas evenly from `beta_start` to `beta_end`."""
        first, last = real("beta_start", beta_start, above=0, high=1), real("beta_end", beta_end, above=0, high=1)
        return cls.from_betas(torch.linspace(first, last, _length(T), dtype=torch.float64))

    @classmethod
    def scaled_linear(cls, T: int = 1000, beta_start: float = 8.5e-4, beta_end: float = 0.012) -> NoiseSchedule:
        """Square roots of the betas evenly spaced (latent diffusion models)."""
        first, last = real("beta_start", beta_start, above=0, high=1), real("beta_end", beta_end, above=0, high=1)
        roots = torch.linspace(math.sqrt(first), math.sqrt(last), _length(T), dtype=torch.float64)
        return cls.from_betas(roots**2)

    @classmethod
    def cosine(cls, T: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> NoiseSchedule:
        """Squared-cosine levels (Nichol & Dhariwal, 2021, eq. 17), betas cut at `max_beta`."""
        T, offset, max_beta = (
            _length(T),
            real("offset", offset, 0, 1),
            real("max_beta", max_beta, above=0, high=0.999999),
        )
        u = torch.arange(T + 1, dtype=torch.float64) / T
        level = torch.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2
        return cls.from_betas((1 - level[1:] / level[:-1]).clamp(max=max_beta))

    @classmethod
    def flow(cls, T: int = 1000, shift: float = 1.0) -> NoiseSchedule:
        """The levels of flow matching: shares of noise evenly from 1/T to 1, shifted to ``shift u / (1 + (shift - 1) u)``.

        With the share u of noise in ``(1 - u) data + u noise``, ``alpha_bar = (1 - u)^2 / ((1 - u)^2 + u^2)``. At u = 1 no image
        is left; the last level is at most 2^-24 instead of 0, and less than the one before it, so that it can be divided by.
        A `shift` above 1 has more times with much noise, as large pictures need them (Esser et al., 2024, eq. 23).
        """
        T, shift = _length(T), real("shift", shift, 0.01, 100)
        u = torch.arange(1, T + 1, dtype=torch.float64) / T
        u = shift * u / (1 + (shift - 1) * u)
        levels = (1 - u) ** 2 / ((1 - u) ** 2 + u**2)
        levels[-1] = min(2.0**-24, float(levels[-2]) / 2) if T > 1 else 2.0**-24
        return cls(torch.cat([levels, torch.ones(1, dtype=torch.float64)]), torch.arange(T))

    # ---- what a sampler reads -------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def T(self) -> int:
        """Number of times."""
        return len(self.timesteps)

    @property
    def chain(self) -> NoiseSchedule:
        """The full schedule that this one was taken from."""
        return self if self._chain is None else self._chain

    @cached_property
    def betas(self) -> Tensor:
        """``1 - alpha_bar[t] / alpha_bar[t-1]`` over the times of this schedule, (T,)."""
        previous = torch.cat([self.alpha_bar[-1:], self.alpha_bar[: self.T - 1]])
        return 1 - self.alpha_bar[: self.T] / previous

    @cached_property
    def posterior_variance(self) -> Tensor:
        """Variance of x_{t-1} given x_t and x0, (T,); index 0 takes the value of index 1, as guided-diffusion does."""
        previous = torch.cat([self.alpha_bar[-1:], self.alpha_bar[: self.T - 1]])
        variance = self.betas * (1 - previous) / (1 - self.alpha_bar[: self.T])
        if self.T > 1:
            variance[0] = variance[1]
        else:
            variance[0] = self.betas[0]
        return variance

    @cached_property
    def _levels(self) -> list[float]:
        return self.alpha_bar.tolist()

    @cached_property
    def _betas(self) -> list[float]:
        return self.betas.tolist()

    @cached_property
    def _timesteps(self) -> list[int]:
        return self.timesteps.tolist()

    @cached_property
    def _log_variances(self) -> list[tuple[float, float]]:
        return [(math.log(b), math.log(v)) for b, v in zip(self._betas, self.posterior_variance.tolist(), strict=True)]

    def alpha_bar_at(self, t: int) -> float:
        """``alpha_bar[t]`` as a Python float; ``alpha_bar_at(-1) == 1.0``."""
        return self._levels[t]

    def beta(self, t: int) -> float:
        """``betas[t]`` as a Python float."""
        return self._betas[t]

    def chain_beta(self, t: int) -> float:
        """The beta of the full chain at the network's own time of `t`."""
        return self.chain.beta(self._timesteps[t]) if self._chain is not None else self._betas[t]

    def timestep(self, t: int) -> int:
        """The network's own time of index `t`."""
        return self._timesteps[t]

    def log_variance_bounds(self, t: int) -> tuple[float, float]:
        """``(log beta_t, log posterior_variance_t)``: between these a network with a learned variance interpolates."""
        return self._log_variances[t]

    # ---- thinning -------------------------------------------------------------------------------------------

    def respaced(self, n: int, spacing: str = "respaced") -> NoiseSchedule:
        """Keep `n` of the T times, levels unchanged; betas and posterior variances follow from the kept levels.

        Args:
            n: how many, 1..T. It need not divide T.
            spacing: ``"respaced"`` (guided-diffusion: first and last time kept, evenly between), ``"leading"``
                (DDIM: 0, k, 2k, ... with k = T / n), ``"trailing"`` (the last time kept, then down in steps of T / n),
                ``"quad"`` (DiffPIR: denser towards the clean end, where beyond n = T / 2 whole numbers
                coincide and fewer are kept), ``"uniform"`` (DiffPIR: down from the last time
                in steps of T // n, and 0), ``"karras"`` (Karras et al., 2022, eq. 5: evenly in the seventh root of
                sigma = sqrt((1 - alpha_bar) / alpha_bar), each at its nearest time that is not taken yet), ``"logsnr"`` (Lu et
                al., 2022, DPM-Solver: evenly in the logarithm of the signal-to-noise ratio, likewise).

        Raises:
            InvdiffError: `n` out of range or an unknown spacing.
        """
        n = whole("steps", n, 1, self.T, hint="The schedule has no more times.")
        kept = torch.tensor(sorted(set(_SPACINGS[one_of("spacing", spacing, _SPACINGS)](n, self))))
        levels = torch.cat([self.alpha_bar[kept], self.alpha_bar[-1:]])
        return NoiseSchedule(levels, self.timesteps[kept], self.chain)

    def at_times(self, times: Sequence[int]) -> NoiseSchedule:
        """Keep these of the times, rising.

        Raises:
            InvdiffError: none, or one that the schedule does not have.
        """
        kept = sorted({whole("times", t, 0, self.T - 1) for t in times})
        if not kept:
            raise InvdiffError("times must be a non-empty list of indices into the schedule")
        levels = torch.cat([self.alpha_bar[kept], self.alpha_bar[-1:]])
        return NoiseSchedule(levels, self.timesteps[kept], self.chain)

    def at_levels(self, alpha_bar: Tensor) -> NoiseSchedule:
        """A schedule of other levels than the table's, whose times lie between the network's: float64, not whole.

        With linear betas the time of a level is that of the continuous process that they discretise (Song et al., 2021,
        eq. 33): ``-log(alpha_bar) = T beta_0 u + T (beta_last - beta_0) u^2 / 2`` with ``u = time / (T - 1)``; with others it is
        interpolated in the log signal-to-noise ratio.

        Args:
            alpha_bar: the levels, between 0 and 1; equal ones are kept once.
        """
        chain = self.chain
        levels = alpha_bar.double().unique().flip(0)
        if not bool(((levels > 0) & (levels < 1)).all()):
            raise InvdiffError(f"levels must lie between 0 and 1, got {levels.min():.3g} to {levels.max():.3g}")
        T, first, last = chain.T, chain.beta(0), chain.beta(chain.T - 1)
        even = torch.linspace(first, last, T, dtype=torch.float64)
        if T > 1 and last > first and torch.allclose(chain.betas, even, rtol=1e-6, atol=1e-9):
            low, slope = T * first, T * (last - first)
            times = (T - 1) * ((low**2 - 2 * slope * levels.log()).sqrt() - low) / slope
        else:
            table = torch.logit(chain.alpha_bar[:T])
            wanted = torch.logit(levels)
            above = torch.searchsorted(-table, -wanted).clamp(1, T - 1)
            share = (table[above - 1] - wanted) / (table[above - 1] - table[above])
            times = above - 1 + share
        kept = torch.cat([levels, torch.ones(1, dtype=torch.float64)])
        return NoiseSchedule(kept, times.clamp(0, T - 1), chain)

    def nearest(self, alpha_bar: float) -> int:
        """The time whose level is nearest to `alpha_bar` in log signal-to-noise ratio."""
        levels = self.alpha_bar[: self.T]
        wanted = min(max(real("alpha_bar", alpha_bar, 0, 1), 1e-12), 1 - 1e-12)
        distance = (torch.logit(levels) - math.log(wanted / (1 - wanted))).abs()
        return int(distance.argmin())

    def __repr__(self) -> str:
        kept = "" if self._chain is None else f" of {self.chain.T}"
        return f"NoiseSchedule({self.T}{kept} times, alpha_bar {self.alpha_bar_at(0):.4g} .. {self.alpha_bar_at(self.T - 1):.3g})"


def checked_schedule(schedule: NoiseSchedule) -> NoiseSchedule:
    """`schedule`, which is one.

    Raises:
        InvdiffError: it is none.
    """
    if not isinstance(schedule, NoiseSchedule):
        raise InvdiffError(
            f"schedule must be a NoiseSchedule, such as NoiseSchedule.linear(1000), got {shown(schedule)}"
        )
    return schedule


def _length(T: int) -> int:
    return whole("T", T, 1, MOST_TIMES)


def _respaced(n: int, schedule: NoiseSchedule) -> list[int]:
    T = schedule.T
    if n == 1:
        return [T - 1]
    stride, kept, current = (T - 1) / (n - 1), [], 0.0
    for _ in range(n):
        kept.append(round(current))  # half to even, as the original
        current += stride
    return kept


def _leading(n: int, schedule: NoiseSchedule) -> list[int]:
    return [i * schedule.T // n for i in range(n)]


def _trailing(n: int, schedule: NoiseSchedule) -> list[int]:
    T = schedule.T
    return [round(T - i * T / n) - 1 for i in range(n)]


def _quad(n: int, schedule: NoiseSchedule) -> list[int]:
    T = schedule.T
    if n == 1:
        return [T - 1]
    stride = T**2 / (n - 1)
    taken = [int(math.sqrt(i * stride)) for i in range(n)]
    taken[-1] = T - 1
    return [T - 1 - i for i in taken]


def _uniform(n: int, schedule: NoiseSchedule) -> list[int]:
    T = schedule.T
    return [T - 1 - i * (T // n) for i in range(n)] + [0]


_MOST_SIGMA = 160.0  # beyond it nothing is left of an image; the linear schedule ends at 157, a cosine one at 20,000


def _karras(n: int, schedule: NoiseSchedule) -> list[int]:
    rho = 7

    def wanted(low: float, high: float) -> Tensor:
        return torch.linspace(low ** (1 / rho), high ** (1 / rho), n, dtype=torch.float64) ** rho

    return _at_sigmas(n, schedule, wanted)


def _logsnr(n: int, schedule: NoiseSchedule) -> list[int]:
    def wanted(low: float, high: float) -> Tensor:
        return torch.linspace(math.log(low), math.log(high), n, dtype=torch.float64).exp()

    return _at_sigmas(n, schedule, wanted)


def _at_sigmas(n: int, schedule: NoiseSchedule, wanted: Callable[[float, float], Tensor]) -> list[int]:
    """The times nearest to n noise levels ``wanted(lowest, highest)`` in their logarithm, all distinct."""
    T = schedule.T
    levels = schedule.alpha_bar[:T]
    sigma = ((1 - levels) / levels).sqrt()
    last = max(n - 1, int((sigma <= _MOST_SIGMA).sum()) - 1)
    if n == 1:
        return [last]
    asked = wanted(float(sigma[0]), float(sigma[last]))
    nearest = (sigma[: last + 1].log()[None] - asked.log()[:, None]).abs().argmin(1).tolist()
    kept: list[int] = []
    for i, t in enumerate(nearest):  # distinct: each above the one before, and below those that have to follow
        kept.append(min(max(t, kept[-1] + 1 if kept else 0), last - (n - 1 - i)))
    return kept


_SPACINGS: dict[str, Callable[[int, NoiseSchedule], list[int]]] = {
    "respaced": _respaced,
    "leading": _leading,
    "trailing": _trailing,
    "quad": _quad,
    "uniform": _uniform,
    "karras": _karras,
    "logsnr": _logsnr,
}

SPACINGS = tuple(_SPACINGS)
"""The names that `NoiseSchedule.respaced` knows."""
