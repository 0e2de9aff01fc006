"""MMPS, TMPD and PiGDM as azula runs them, CoPaint, RED-diff and DAPS: settings from a recording's JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from conformance.recordings import TOLERANCE, Outcome, Recording, largest_difference
from torch import Tensor

from invdiff import DAPS, MMPS, TMPD, CoPaint, PiGDM, REDDiff, Sampler, solve
from invdiff.backbones.base import Backbone
from invdiff.problem import Problem, build_problem
from invdiff.samplers.base import Estimator
from invdiff.samplers.integrators import Integrator, Move, ddim_coefficients
from invdiff.tensors import weighted_sum

# ---- estimates at fixed x_t -------------------------------------------------------------------------------------


def mean(recording: Recording) -> Iterator[Outcome]:
    """E[x0 | x_t, y] at the recorded states, the one that is nearest to not passing: runs ``<denoiser>.<solver><iterations>``
    or ``<denoiser>.tmpd``."""
    config, given = recording.config, recording.inputs
    for run, recorded in recording.runs.items():
        sampler = _estimator(run.split(".")[1])
        backbone = recording.backbone(run, double=True)
        problem = build_problem(
            recording.operator(), recording.measurement(), float(config["sigma_y"]), backbone, (-1, 1)
        )
        stated = recorded["about"].get("official_float32_minus_this_golden_max_abs_per_t", [])
        worst, ratio, allowed = 0.0, -1.0, TOLERANCE
        for k, t in enumerate(given["t"].tolist()):
            with torch.no_grad():
                got = sampler.estimate(given["x_t"][k][None].double(), t, problem, backbone)
            difference = largest_difference(got[0], recorded["mean"][k])
            tolerance = max(TOLERANCE, stated[k] if k < len(stated) else 0.0)
            if not difference / tolerance <= ratio:
                worst, ratio, allowed = difference, difference / tolerance, tolerance
        yield Outcome(run, worst, allowed)


def _estimator(word: str) -> Estimator:
    if word == "tmpd":
        return TMPD(floor=0)
    solver = word.rstrip("0123456789")
    return MMPS(solver=solver, iterations=int(word[len(solver) :]), scaled=False, warm=False, recalled=0, guarded=False)


# ---- the same as samplers, with azula's DDIM --------------------------------------------------------------------


def azula(recording: Recording) -> Iterator[Outcome]:
    """An estimate on the leading clock with DDIM; azula's eta is the square of DDIM's."""
    config = recording.config
    eta = float(config.get("eta_ddim", config.get("eta_azula", 0.0) ** 0.5))
    steps = {"steps": int(config["num_steps"]), "spacing": "leading"}
    sampler: Sampler
    if config["algo"] == "azula_mmps":
        options: dict[str, Any] = {"solver": config["solver"], "iterations": int(config["iterations"])}
        sampler = _MMPS(**steps, **options, scaled=False, warm=False, recalled=0, guarded=False, eta=eta)
    elif config["algo"] == "azula_tmpd":
        sampler = _TMPD(**steps, floor=0, eta=eta)
    else:
        sampler = PiGDM(**steps, eta=eta, init="noise")
    yield from _replayed(recording, sampler, float(config["sigma_y"]))


def _stepper(eta: float) -> Integrator:
    def step(m: Move) -> torch.Tensor:
        a_t, a_s = m.schedule.alpha_bar_at(m.t), m.schedule.alpha_bar_at(m.s)
        c1, c2 = ddim_coefficients(a_t, a_s, eta)
        c2 /= (1 - a_t) ** 0.5
        x = weighted_sum((a_s**0.5 - c2 * a_t**0.5, m.x0), (c2, m.x_t))
        return x + c1 * m.noise("step") if c1 > 0 else x

    return Integrator(step)


@dataclass(frozen=True)
class _MMPS(MMPS):
    eta: float = 0.0

    def __post_init__(self) -> None:  # the field above is none of the library's options
        pass

    def stepper(self) -> Integrator:
        return _stepper(self.eta)


@dataclass(frozen=True)
class _TMPD(TMPD):
    eta: float = 0.0

    def __post_init__(self) -> None:
        pass

    def stepper(self) -> Integrator:
        return _stepper(self.eta)


# ---- CoPaint and RED-diff --------------------------------------------------------------------------------------


def copaint(recording: Recording) -> Iterator[Outcome]:
    """The result, and the states that entered the recorded optimisations. How often a step is tried again depends on
    round-off, so the network's times are those of the optimisations."""
    config = recording.config
    ddim, o = config["ddim"]["schedule_params"], config["optimize_xt"]
    if o.get("mid_interval_num", 1) != 1 or o.get("filter_xT"):
        for run in recording.runs:
            yield Outcome(run, math.nan, note="not followed: a chain of steps inside the loss", followed=False)
        return
    kept = int(config["timestep_respacing"])
    travels = bool(ddim.get("use_timetravel"))
    sampler = _CoPaint(
        steps=kept,
        visits=0 if travels else int(ddim["num_inference_steps"]),
        iterations=o["num_iteration_optimize_xt"],
        lr=o["lr_xt"],
        lr_growth=o["lr_xt_decay"],
        reg=o["coef_xt_reg"],
        reg_growth=o["coef_xt_reg_decay"],
        smart_lr=o["use_smart_lr_xt_decay"],
        backtrack=o["use_adaptive_lr_xt"],
        trials=1000,
        sigma=config["ddim"]["ddim_sigma"],
        clip=config["clip_denoised"],
        travel_length=ddim["jump_length"],
        travel_repeat=ddim["jump_n_sample"] if travels else 1,
        travel_optimise=o["optimize_before_time_travel"],
        ending="state",
    )
    for run, outcome in zip(recording.runs, _replayed(recording, sampler, 0.0, times=False), strict=True):
        yield _with_states(recording, run, outcome, _CoPaint.entered)
        _CoPaint.entered.clear()


class _CoPaint(CoPaint):
    """Keeps the network's time and the state of every optimisation."""

    entered: ClassVar[list[tuple[float, Tensor]]] = []

    def _optimised(self, x_t: Tensor, t: int, problem: Problem, backbone: Backbone) -> Tensor:
        self.entered.append((float(backbone.schedule.timestep(t)), x_t.clone()))
        return super()._optimised(x_t, t, problem, backbone)


def _with_states(recording: Recording, run: str, outcome: Outcome, entered: Sequence[tuple[float, Tensor]]) -> Outcome:
    """The outcome, failed where an optimisation was entered at another time or with another state than recorded."""
    recorded = recording.runs[run]
    if [t for t, _ in entered] != recorded["step_t"].double().tolist():
        return replace(outcome, note="optimised at other times", failed=True)
    states = zip(recorded["step_idx"].tolist(), recorded["step_x"], strict=True)
    worst = max(largest_difference(entered[k][1], x.reshape(entered[k][1].shape)) for k, x in states)
    if worst > recording.tolerance(run, "step_x"):
        return replace(outcome, note=f"a state off by {worst:.1e}", failed=True)
    return replace(outcome, difference=max(outcome.difference, worst))


def reddiff(recording: Recording) -> Iterator[Outcome]:
    """The image before the last step of Adam; an index mask ("inp") counts its known pixels only."""
    config, given = recording.config, recording.inputs
    c = config["cfg_algo"]
    counted = recording.measurement()[0].numel() / given["y"][0].numel()
    sampler = REDDiff(
        steps=int(config["num_steps"]),
        lr=c["lr"],
        weight=c["grad_term_weight"],
        obs_weight=c["obs_weight"] * counted,
        weighting=c["denoise_term_weight"],
        sigma_x0=c["sigma_x0"],
        ending="before",
    )
    yield from _replayed(recording, sampler, 0.0, first=False)


def daps(recording: Recording) -> Iterator[Outcome]:
    """The result after the last level."""
    config = recording.config
    levels, ode, m = config["annealing"], config["ode"], config["mcmc"]
    if levels["rho"] != 7 or ode["rho"] != 7 or ode["solver"] != "euler":
        for run in recording.runs:
            yield Outcome(run, math.nan, note="not followed: rho other than 7, or no Euler steps", followed=False)
        return
    sampler = DAPS(
        steps=levels["num_steps"],
        sigma_max=levels["sigma_max"],
        sigma_min=levels["sigma_min"],
        ode_steps=ode["num_steps"],
        ode_sigma_min=ode["sigma_min"],
        mcmc=m["mc_algo"],
        mcmc_steps=m["num_steps"],
        lr=m["lr"],
        lr_min_ratio=m["lr_min_ratio"],
        momentum=m.get("momentum", 0.9),
        tau=m["tau"],
        prior="gaussian" if m["prior_solver"] == "gaussian" else "score",
        times="continuous",
    )
    yield from _replayed(recording, sampler, float(config["sigma_y"]))


# ---- what they share --------------------------------------------------------------------------------------------


def _replayed(
    recording: Recording, sampler: Sampler, sigma_y: float, *, first: bool = True, times: bool = True
) -> Iterator[Outcome]:
    """The runs of a recording; `first`: from the recorded first state, `times`: the network's times have to agree."""
    for run, recorded in recording.runs.items():
        solution = solve(
            recording.operator(),
            recording.measurement(),
            sampler,
            backbone=recording.backbone(run),
            sigma_y=sigma_y,
            value_range=(-1, 1),
            x_init=recording.first_state(run) if first else None,
            noise=recording.noise(run.split(".")[1]),
            progress=False,
        )
        asked = recorded["t"].double()
        same = not times or (
            len(solution.timesteps) == len(asked)
            and bool(((torch.tensor(solution.timesteps).double() - asked).abs() < 1e-3).all())
        )
        yield Outcome(
            run,
            largest_difference(solution.x, recorded["x0"]),
            recording.tolerance(run),
            "" if same else "asked at other times",
            failed=not same,
        )


ALGORITHMS = {
    "mmps": mean,
    "tmpd": mean,
    "azula_mmps": azula,
    "azula_tmpd": azula,
    "azula_pgdm": azula,
    "azula_pigdm": azula,
    "copaint": copaint,
    "reddiff": reddiff,
    "daps": daps,
}
