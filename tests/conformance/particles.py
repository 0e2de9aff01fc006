"""TDS, MCG-Diff and FPS-SMC: settings from a recording's JSON, replayed through `solve` with all particles kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from conformance.classic import from_block_basis
from conformance.recordings import Outcome, Recording, largest_difference
from torch import Tensor

from invdiff import Sampler, Solution, solve
from invdiff.samplers import FPSSMC, TDS, MCGDiff
from invdiff.samplers.integrators import posterior_coefficients


@dataclass(frozen=True)
class Drawn:
    """Order-free noise whose uniform numbers are one half; `basis` takes drawn coordinates to images."""

    draw: Callable[[tuple[int, ...]], Tensor]
    basis: Callable[[Tensor], Tensor]

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        return self.basis(self.draw(shape))

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        return torch.full(shape, 0.5)


def tds(recording: Recording) -> Iterator[Outcome]:
    """Whole runs, or single proposals from recorded states."""
    config = recording.config
    if "x_t" in recording.inputs:
        yield from _proposals(recording)
        return
    sampler = TDS(
        steps=int(config["timestep_respacing"]),
        particles=config["particles"],
        twisting="paper",
        var_type=config["var_type"],
        tausq=config["tausq"],
        clip=config["clip_proposal_x0"],
        resampling=config["resampling"],
        ess_threshold=1.0 if config["ess_threshold"] is None else config["ess_threshold"],
        result="particles",
    )
    for run in recording.runs:
        outcome = _run(recording, run, sampler, 0.0, recording.inputs["x_T"])
        yield outcome if outcome.passed else _from_its_states(recording, run, sampler, outcome)


def _from_its_states(recording: Recording, run: str, sampler: TDS, whole: Outcome) -> Outcome:
    """A run that magnifies round-off, replayed from each of its recorded states to the next and to the end.

    Only where nothing is resampled after a state, so that the state is all there is to go on from; the first weights, which
    belong to x_T, have to agree to 1e-7 of their size. What lies between x_T and the next recorded state is then not covered
    to the tolerance: the note says by how much the whole run differs.
    """
    recorded, config = recording.runs[run], recording.config
    states, own = recorded["xs_idx"].tolist(), torch.arange(config["particles"])
    settled = [k for k in states if k > 0 and bool((recorded["ancestors"][k:] == own).all())]
    if whole.failed or not settled:
        return whole
    steps, worst = int(config["timestep_respacing"]), 0.0
    for k in settled:
        seen: list[Tensor] = []
        solution = solve(
            recording.operator(),
            recording.measurement(),
            sampler,
            backbone=recording.backbone(run),
            value_range=(-1, 1),
            n_samples=config["particles"],
            x_init=recorded["xs"][states.index(k)].double(),
            noise=Drawn(recording.noise(run.split(".")[1]), lambda drawn: drawn),
            path=list(range(steps - 1 - k, -2, -1)),
            callback=lambda progress, seen=seen: seen.append(progress.x.clone()),
            progress=False,
        )
        worst = max(worst, largest_difference(solution.x, recorded["x0"]))
        for later in (j for j in states if j > k):
            worst = max(worst, largest_difference(seen[later - k - 1], recorded["xs"][states.index(later)]))
    backbone = recording.backbone(run)
    backbone = backbone.on(sampler.respaced(backbone.schedule))
    x_T, y = (recording.inputs[name].to(backbone.dtype) for name in ("x_T", "y"))
    weights = sampler.proposal(x_T, steps - 1, recording.operator(), y, 0.0, backbone)[3]
    agree = largest_difference(weights / recorded["log_w"][0], torch.ones_like(weights)) < 1e-7
    note = f"from the recorded states {', '.join(map(str, settled))}; from x_T {whole.difference:.1e}, for round-off grows there"
    return Outcome(run, worst, whole.tolerance, note if agree else "other first weights", failed=not agree)


def mcg_diff(recording: Recording) -> Iterator[Outcome]:
    """Noise and first states are given in the coordinates of the singular vectors."""
    config = recording.config
    sampler = MCGDiff(
        steps=config["n_steps"],
        eta=config["eta"],
        kappa=config["kappa"],
        particles=config["particles"],
        ess_threshold=1.0,
        as_code=True,
        result="particles",
    )

    def basis(drawn: Tensor) -> Tensor:
        small = recording.inputs.get("V_small")
        if small is None or drawn.ndim != 4:
            return drawn
        return from_block_basis(drawn, small.to(drawn), round(len(small) ** 0.5))

    for run in recording.runs:
        yield _run(recording, run, sampler, config["sigma_y"], basis(recording.inputs["x_T"]), basis)


def fps_smc(recording: Recording) -> Iterator[Outcome]:
    """Their noise is drawn for one particle at a time, so that order-free draws are the same for all."""
    config = recording.config
    sampler = FPSSMC(
        steps=int(config["timestep_respacing"]),
        c=config["c_rate"],
        clip=config["clip_denoised"],
        particles=config["particles"],
        ess_threshold=1.0,
        as_code=True,
        result="particles",
    )

    def alike(drawn: Tensor) -> Tensor:
        return drawn[:1].expand_as(drawn).clone()

    for run, recorded in recording.runs.items():
        yield _run(recording, run, sampler, config["sigma_y"], recorded["xs"][0], alike)


def _run(
    recording: Recording,
    run: str,
    sampler: Sampler,
    sigma_y: float,
    first: Tensor,
    basis: Callable[[Tensor], Tensor] = lambda drawn: drawn,
) -> Outcome:
    recorded = recording.runs[run]
    solution = solve(
        recording.operator(),
        recording.measurement(),
        sampler,
        backbone=recording.backbone(run),
        sigma_y=sigma_y,
        value_range=(-1, 1),
        n_samples=recording.config["particles"],
        x_init=first,
        noise=Drawn(recording.noise(run.split(".")[1]), basis),
        progress=False,
    )
    note = "" if list(solution.timesteps) == recorded["t"].tolist() else "asked at other times"
    if not note and not _same_ancestors(solution, recorded["ancestors"]):
        note = "other ancestors"
    difference = largest_difference(solution.x[: len(recorded["x0"])], recorded["x0"])
    return Outcome(run, difference, recording.tolerance(run), note, failed=bool(note))


def _same_ancestors(solution: Solution, recorded: Tensor) -> bool:
    """Up to resamplings of ours that leave every particle in its place, where the authors' code has none."""
    found = solution.diagnostics["ancestors"][0, 0]
    rest = found[len(recorded) :]
    return bool((found[: len(recorded)] == recorded).all() and (rest == torch.arange(found.shape[1])).all())


def _proposals(recording: Recording) -> Iterator[Outcome]:
    given, config = recording.inputs, recording.config
    operator = recording.operator()
    for run, recorded in recording.runs.items():
        sampler = TDS(
            steps=int(config["timestep_respacing"]),
            twisting="paper",
            var_type=int(run.split(".var")[1]),
            tausq=config["tausq"],
            clip=config["clip_proposal_x0"],
        )
        backbone = recording.backbone(run)
        backbone = backbone.on(sampler.respaced(backbone.schedule))
        worst = 0.0
        for k, i in enumerate(given["index"].tolist()):
            x_t = given["x_t"][k].to(backbone.dtype)
            x0, shift, _, log_twist = sampler.proposal(x_t, i, operator, given["y"].to(x_t), 0.0, backbone)
            a_t, a_s = (backbone.schedule.alpha_bar_at(j) for j in (i, i - 1))
            c1, c2, _ = posterior_coefficients(a_t, a_s)
            mean = c1 * (x0 + shift) + c2 * x_t
            worst = max(worst, largest_difference(mean, recorded["twisted_mean"][k]))
            worst = max(worst, largest_difference(log_twist, recorded["log_potential"][k]))
        yield Outcome(run, worst, recording.tolerance(run))


ALGORITHMS = {"tds": tds, "mcg_diff": mcg_diff, "fps_smc": fps_smc}
