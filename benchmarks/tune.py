#!/usr/bin/env python3
"""Search the settings of samplers per task on training images, check them on held-out ones, and write them as presets.

    python benchmarks/tune.py --on gaussian16x16 --on cats64=cats64.zip --on photos=photos.zip --storage runs/tune.log
    python benchmarks/tune.py --storage runs/tune.log --write presets.toml --out docs/data      # the rows and the table

`--on` names a backbone and its pictures, a folder or zip with the parts ``train/`` and ``val/``; a prior with known posterior
draws its own. Every image is measured, restored twice, and scored by the energy score, in which smaller is better and exact draws
from the posterior are best on average:

    mean_i ||x_i - x|| - 1/2 mean_{i != j} ||x_i - x_j||          x_i restorations of one measurement, x the truth

The search (Optuna's TPE, from the settings there are) minimises its mean over the training images as a share of the paper's,
averaged over the backbones. What it finds becomes a row of the preset "tuned" only if on held-out images the score is better than
with the settings before by more than the standard error of the difference, and on no backbone worse than before or than the
paper's by more than that, on pictures in PSNR too, with few steps and with many. The storage is a file: a search that was stopped
goes on where it was, and what is done is not done again.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from invdiff import Backbone, InvdiffError, InvdiffWarning, load_backbone, solve
from invdiff.bench.run.images import drawn_from_prior, pictures_in
from invdiff.checks import known
from invdiff.errors import DivergenceError
from invdiff.files import atomic_write
from invdiff.images import from_pil
from invdiff.markdown import markdown_table
from invdiff.metrics import psnr
from invdiff.operators import get_operator, make_operator
from invdiff.priors.named import PRIORS
from invdiff.samplers import sampler_class
from invdiff.samplers.presets import FILE, PAPER, TUNED, Row, read, settings_for, write

if TYPE_CHECKING:
    import optuna

# ---- what is searched -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A kind of task: an operator and the noise on it (for values in [0, 1])."""

    operator: str
    options: dict[str, Any] = field(default_factory=dict)
    sigma_y: float = 0.0

    @property
    def task(self) -> str:
        return get_operator(self.operator).task


KINDS = {
    "mask": Kind("mask", {"mask": "box"}),
    "mask noisy": Kind("mask", {"mask": "random_pixels", "fraction_known": 0.5}, 0.05),
    "super_resolution": Kind("super_resolution", {"scale": 4, "kernel": "box"}),
    "super_resolution noisy": Kind("super_resolution", {"scale": 4, "kernel": "box"}, 0.05),
    "blur": Kind("blur", {"kernel": "gaussian", "sigma": 1.6, "size": 9}),
    "blur noisy": Kind("blur", {"kernel": "gaussian", "sigma": 1.6, "size": 9}, 0.05),
}

CHECKED = (20, 100)
"""Numbers of steps of the runs on held-out images."""

LOG = "log"
NOISE_FREE, NOISY = ("mask", "super_resolution", "blur"), ("mask noisy", "super_resolution noisy", "blur noisy")


@dataclass(frozen=True)
class Space:
    """The fields of one sampler that are searched: (low, high), (low, high, "log") or a list of values."""

    fields: dict[str, Any]
    kinds: tuple[str, ...] = (*NOISE_FREE, *NOISY)
    unless: tuple[str, ...] = ()

    def propose(self, trial: optuna.Trial) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, values in self.fields.items():
            if isinstance(values, list):
                found[name] = trial.suggest_categorical(name, values)
            else:
                found[name] = trial.suggest_float(name, values[0], values[1], log=LOG in values)
        return {k: float(f"{v:.3g}") if isinstance(v, float) else v for k, v in found.items()}


SPACES = {
    "diffpir": Space({"lambda_": (0.01, 30.0, LOG), "zeta": (0.0, 1.0)}),
    "dps": Space({"rule": ["likelihood"], "weight": [0.35, 0.5, 0.7, 1.0]}, unless=("scale",)),
    "mcg": Space({"rule": ["likelihood"], "weight": [0.25, 0.35, 0.5, 0.7]}, NOISE_FREE, unless=("scale",)),
    "reddiff": Space({"lr": (0.02, 0.5, LOG), "weight": (0.02, 5.0, LOG)}),
    "ddnm+": Space({"eta": (0.0, 1.0)}, NOISY),
    "ddnm": Space({"eta": (0.0, 1.0)}, NOISE_FREE),
    "pigdm": Space({"eta": (0.0, 1.0), "weight": (0.3, 3.0, LOG)}),
    "daps": Space({"sigma_max": (5.0, 100.0, LOG), "sigma_min": (0.01, 0.3, LOG)}),
}

# ---- images -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Domain:
    """A backbone and images of its kind, values in [0, 1], (N, C, H, W) each."""

    name: str
    backbone: Backbone
    train: Tensor
    held_out: Tensor


def domain(words: str, train: int, held_out: int, size: int) -> Domain:
    """``backbone`` or ``backbone=pictures``, with so many training and held-out images.

    Raises:
        InvdiffError: pictures are missing or too few.
    """
    name, _, source = words.partition("=")
    backbone = load_backbone(name)
    if not source:
        drawn = drawn_from_prior(backbone, train + held_out, 0) / 2 + 0.5
        return Domain(name, backbone, drawn[:train], drawn[train:])
    if backbone.any_size:
        backbone = backbone.sized((backbone.image_shape[0], size, size))
    readers = pictures_in(source)
    parts = [[n for n in sorted(readers) if re.search(rf"(^|-){part}-", n)] for part in ("train", "val")]
    chosen = []
    for names, count in zip(parts, (train, held_out), strict=True):
        if len(names) < count:
            raise InvdiffError(f"{source} must hold {count} pictures in train/ and val/ each, got {len(names)}")
        stride = len(names) // count
        chosen.append(torch.stack([_cut(readers[n](), backbone.image_shape) for n in names[::stride][:count]]))
    return Domain(name, backbone, *chosen)


def _cut(image: Any, shape: tuple[int, ...]) -> Tensor:
    """The middle of a picture, in the size of the backbone."""
    x = from_pil(image.convert("RGB" if shape[0] == 3 else "L"))
    top, left = (x.shape[-2] - shape[-2]) // 2, (x.shape[-1] - shape[-1]) // 2
    if min(top, left) < 0:
        raise InvdiffError(f"pictures must be at least {shape[-2]}x{shape[-1]} pixels, got {x.shape[-2]}x{x.shape[-1]}")
    return x[..., top : top + shape[-2], left : left + shape[-1]]


# ---- scores -----------------------------------------------------------------------------------------------------


def energy_score(samples: Tensor, truth: Tensor) -> Tensor:
    """Per image, in rms per pixel, (N,); smaller is better. Samples (N, K, ...) with K >= 2, truth (N, ...)."""
    x, y = samples.flatten(2).double(), truth.flatten(1).double()
    k = x.shape[1]
    to_truth = (x - y[:, None]).norm(dim=2).mean(1)
    apart = torch.cdist(x, x).sum((1, 2)) / (k * (k - 1))
    return (to_truth - apart / 2) / y.shape[1] ** 0.5


def scores(
    place: Domain,
    images: Tensor,
    kind: Kind,
    sampler: str,
    settings: Mapping[str, Any],
    steps: int,
    first: int,
    samples: int,
) -> dict[str, list[float]]:
    """Energy score and PSNR of every image; infinite and 0 where the run diverges. `first` numbers the images, for their seeds."""
    seeds = list(range(first, first + len(images)))
    operator = make_operator(kind.operator, tuple(images.shape[1:]), **kind.options)
    y = torch.cat([operator.measure(x[None], kind.sigma_y, seed) for x, seed in zip(images, seeds, strict=True)])
    made = sampler_class(sampler)(**{**settings, "steps": steps})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InvdiffWarning)
            answer = solve(
                operator,
                y,
                made,
                backbone=place.backbone,
                sigma_y=kind.sigma_y,
                n_samples=samples,
                seed=seeds,
                progress=False,
            )
    except DivergenceError:
        return {"energy": [math.inf] * len(images), "psnr": [0.0] * len(images)}
    x = answer.x.unflatten(0, (len(images), samples))
    return {
        "energy": energy_score(x, images).tolist(),
        "psnr": torch.stack([psnr(x[:, j], images) for j in range(samples)]).mean(0).tolist(),
    }


# ---- search and check -------------------------------------------------------------------------------------------


def by_hand(sampler: str, kind: Kind) -> dict[str, Any]:
    """The settings before: those of the preset "tuned" that no search gave."""
    found: dict[str, Any] = {}
    for row in read(FILE):
        if TUNED in row.presets and not row.tuned_on and row.holds(sampler, kind.task, kind.sigma_y > 0):
            found.update(row.settings)
    return found


class Tuner:
    """Searches and checks, kept in one storage."""

    def __init__(self, domains: Sequence[Domain], study: optuna.Study, arguments: argparse.Namespace) -> None:
        self.domains, self.study, self.arguments = domains, study, arguments
        self.sampler, self.kind_name = study.user_attrs["sampler"], study.user_attrs["kind"]
        self.kind, self.space = KINDS[self.kind_name], SPACES[self.sampler]

    def full(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """With what the search leaves alone."""
        return {**by_hand(self.sampler, self.kind), **found}

    def search(self, until: float) -> bool:
        """Trials up to the number wanted; whether all are done."""
        import optuna

        a, study = self.arguments, self.study
        if "paper" not in study.user_attrs:
            paper = settings_for(self.sampler, self.kind.task, self.kind.sigma_y > 0, PAPER)
            study.set_user_attr("paper", [_mean(self.train(d, paper)["energy"]) for d in self.domains])
        if not study.trials and (known_start := self._start()):
            study.enqueue_trial(known_start)
        done = [t for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE]
        fields = self.space.fields.values()
        every = math.prod(len(v) for v in fields) if all(isinstance(v, list) for v in fields) else a.trials
        for _ in range(min(a.trials, every) - len(done)):
            if time.process_time() > until:
                return False
            study.optimize(self._objective, n_trials=1)
        return True

    def train(self, place: Domain, settings: Mapping[str, Any]) -> dict[str, list[float]]:
        a = self.arguments
        return scores(place, place.train, self.kind, self.sampler, settings, a.steps, 0, a.samples)

    def _objective(self, trial: optuna.Trial) -> float:
        settings = self.full(self.space.propose(trial))
        papers = self.study.user_attrs["paper"]
        return _mean(
            [min(9.0, _mean(self.train(d, settings)["energy"]) / p) for d, p in zip(self.domains, papers, strict=True)]
        )

    def _start(self) -> dict[str, Any]:
        """The settings before, where they lie in the space."""
        now = dataclasses.asdict(sampler_class(self.sampler)(**by_hand(self.sampler, self.kind)))
        found = {}
        for name, values in self.space.fields.items():
            low, high = (None, None) if isinstance(values, list) else values[:2]
            if (now[name] not in values) if low is None else not low <= now[name] <= high:
                return {}
            found[name] = now[name]
        return found

    @property
    def best(self) -> dict[str, Any]:
        import optuna

        return self.space.propose(optuna.trial.FixedTrial(self.study.best_trial.params))

    def check(self, until: float) -> bool:
        """The paper's settings, those before and the best ones on held-out images; whether all is done."""
        best = self.best
        three = {
            "paper": settings_for(self.sampler, self.kind.task, self.kind.sigma_y > 0, PAPER),
            "before": self.full({}),
            "tuned": self.full(best),
        }
        for steps in self.arguments.check_steps:
            for place in self.domains:
                key = f"held out/{steps}/{place.name}/{_digest(best)}"
                if key in self.study.user_attrs:
                    continue
                if time.process_time() > until:
                    return False
                found: dict[str, Any] = {}
                for name, settings in three.items():
                    same = next((n for n in found if three[n] == settings), None)
                    found[name] = found[same] if same else self._held_out(place, settings, steps)
                self.study.set_user_attr(key, {"best": best, "steps": steps, "backbone": place.name, "scores": found})
        return True

    def _held_out(self, place: Domain, settings: Mapping[str, Any], steps: int) -> dict[str, list[float]]:
        a = self.arguments
        return scores(place, place.held_out, self.kind, self.sampler, settings, steps, 10**6, a.samples)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _digest(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


# ---- what is written --------------------------------------------------------------------------------------------


def difference(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error of a - b over the same images."""
    d = torch.tensor(a, dtype=torch.float64) - torch.tensor(b, dtype=torch.float64)
    if not bool(torch.isfinite(d).all()):
        return (math.inf if math.isinf(max(a)) else -math.inf), 0.0
    return float(d.mean()), float(d.std() / len(d) ** 0.5)


def rows_found(study: optuna.Study) -> list[dict[str, Any]]:
    """The table of one study: one entry per backbone and number of steps that was checked with the best settings."""
    checks = [v for k, v in study.user_attrs.items() if k.startswith("held out/")]
    if not checks:
        return []
    latest = checks[-1]["best"]
    table = []
    for check in (c for c in checks if c["best"] == latest):
        found = check["scores"]
        entry: dict[str, Any] = {
            "sampler": study.user_attrs["sampler"],
            "kind": study.user_attrs["kind"],
            "backbone": check["backbone"],
            "steps": check["steps"],
            "images": len(found["tuned"]["psnr"]),
            "settings": latest,
            "searched on": study.user_attrs["backbones"],
        }
        for metric in ("energy", "psnr"):
            for name in ("paper", "before", "tuned"):
                entry[f"{metric} {name}"] = _mean(found[name][metric])
            for name in ("paper", "before"):
                gain, error = difference(found["tuned"][metric], found[name][metric])
                entry[f"{metric} over {name}"], entry[f"{metric} over {name} se"] = gain, error
        table.append(entry)
    return table


def is_better(table: Sequence[Mapping[str, Any]], steps: Sequence[int] = CHECKED) -> bool:
    """Whether settings are taken: better than before, and nowhere worse than before or than the paper's, on every backbone that
    they were searched on, with each of these numbers of steps.

    PSNR counts on pictures; where the posterior is known, its draws are what is wanted, which smooth answers beat in PSNR.
    """
    done = {(e["backbone"], e["steps"]) for e in table}
    if not table or not done >= {(name, n) for name in table[0]["searched on"] for n in steps}:
        return False
    better = any(-e["energy over before"] > e["energy over before se"] for e in table)
    worse = any(
        e["energy over " + n] > e[f"energy over {n} se"]
        or (e["backbone"] not in PRIORS and -e["psnr over " + n] > e[f"psnr over {n} se"])
        for e in table
        for n in ("paper", "before")
    )
    mean, error = _pooled(table)
    return better and not worse and -mean > error


def _pooled(table: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Mean over the checks of the change of the energy score as a share of the one before, and its standard error."""
    parts = [
        (e["energy over before"] / e["energy before"], e["energy over before se"] / e["energy before"]) for e in table
    ]
    return _mean([m for m, _ in parts]), sum(s**2 for _, s in parts) ** 0.5 / len(parts)


def row_of(table: Sequence[Mapping[str, Any]], trained: int) -> Row:
    first = table[0]
    kind = KINDS[first["kind"]]
    backbones = ", ".join(dict.fromkeys(e["backbone"] for e in table))
    steps = ", ".join(str(s) for s in dict.fromkeys(e["steps"] for e in table))
    # Holds up to the most steps that it was checked with: DPS' was 6 dB ahead with 100, and behind with 1,000.
    return Row(
        first["sampler"],
        first["settings"],
        (TUNED,),
        (kind.task,),
        kind.sigma_y > 0,
        SPACES[first["sampler"]].unless,
        "benchmarks/tune.py",
        f"{trained} training images each of {backbones}; checked on {first['images']} held-out ones at {steps} steps",
        "energy score",
        max(e["steps"] for e in table),
    )


def written(
    file: Path, tables: Sequence[Sequence[Mapping[str, Any]]], trained: int, steps: Sequence[int] = CHECKED
) -> None:
    """Put the rows that are better into a presets file in the place of those for the same sampler, task and noise."""
    new = [row_of(table, trained) for table in tables if is_better(table, steps)]
    searched = {(t[0]["sampler"], KINDS[t[0]["kind"]].task, KINDS[t[0]["kind"]].sigma_y > 0) for t in tables if t}
    old = read(file) if file.exists() else ()
    kept = [r for r in old if not (r.tuned_on and (r.sampler, *r.tasks, r.noisy) in searched)]
    write(file, [*kept, *new])


def markdown(tables: Sequence[Sequence[Mapping[str, Any]]], steps: Sequence[int] = CHECKED) -> str:
    """The table before and after."""

    def gain(e: Mapping[str, Any], metric: str, digits: int) -> str:
        return f"{e[f'{metric} over before']:+.{digits}f} ± {e[f'{metric} over before se']:.{digits}f}"

    lines = []
    for table in tables:
        taken = "yes" if is_better(table, steps) else "no"
        for e in table:
            said = ", ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in e["settings"].items())
            three = [f"{e[f'psnr {n}']:.2f}" for n in ("paper", "before", "tuned")]
            energy = [f"{e[f'energy {n}']:.4f}" for n in ("paper", "before", "tuned")]
            lines.append(
                [e["sampler"], e["kind"], said, e["backbone"], str(e["steps"]), *energy, gain(e, "energy", 4), *three,
                 gain(e, "psnr", 2), taken]
            )  # fmt: skip
    heads = ["sampler", "task", "settings found", "backbone", "steps", "energy score: paper", "before", "found", "change",
             "PSNR (dB): paper", "before", "found", "change", "taken"]  # fmt: skip
    return markdown_table(heads, lines)


# ---- the program ------------------------------------------------------------------------------------------------


def arguments_of(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", action="append", default=[], metavar="BACKBONE[=PICTURES]", help="repeatable")
    parser.add_argument("--storage", type=Path, required=True, help="file that the search is kept in")
    parser.add_argument("--samplers", default=",".join(SPACES), help="which, and in which order")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of tasks")
    parser.add_argument("--trials", type=int, default=16, help="settings tried per sampler and kind of task")
    parser.add_argument("--train", type=int, default=8, help="training images per backbone")
    parser.add_argument("--held-out", type=int, default=16, help="held-out images per backbone")
    parser.add_argument("--samples", type=int, default=2, help="restorations of each, two at least")
    parser.add_argument("--steps", type=int, default=20, help="of a run while searching")
    parser.add_argument(
        "--check-steps", type=int, nargs="+", default=list(CHECKED), help="of the runs on held-out images"
    )
    parser.add_argument("--size", type=int, default=64, help="of the crops for a backbone of any size")
    parser.add_argument("--minutes", type=float, default=math.inf, help="of processor time, after which this call ends")
    parser.add_argument("--write", type=Path, help="presets file to put the rows into")
    parser.add_argument("--out", type=Path, help="folder for presets.json and presets.md")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None, say: Callable[[str], Any] = print) -> bool:
    """Search, check, write; whether everything asked for is done."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    a = arguments_of(words)
    samplers, kinds = a.samplers.split(","), a.kinds.split(",")
    known("--samplers", samplers, SPACES, "sampler")
    known("--kinds", kinds, KINDS, "kind of task")
    a.storage.parent.mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(a.storage)))
    until = time.process_time() + 60 * a.minutes
    domains = [domain(words, a.train, a.held_out, a.size) for words in a.on]
    all_done = True
    for sampler in samplers if domains else ():
        for kind in (k for k in kinds if k in SPACES[sampler].kinds):
            place = "+".join(d.name for d in domains)
            study = optuna.create_study(
                storage=storage,
                study_name=f"{sampler}/{kind}/{place}/{a.train}x{a.samples}/{a.steps}",
                sampler=optuna.samplers.TPESampler(seed=0, n_startup_trials=max(4, a.trials // 2)),
                load_if_exists=True,
            )
            if "kind" not in study.user_attrs:
                study.set_user_attr("sampler", sampler)
                study.set_user_attr("kind", kind)
                study.set_user_attr("train", a.train)
                study.set_user_attr("backbones", [d.name for d in domains])
            study.sampler = optuna.samplers.TPESampler(
                seed=len(study.trials), n_startup_trials=max(4, a.trials // 2)
            )  # goes on elsewhere than it began
            tuner = Tuner(domains, study, a)
            done = tuner.search(until) and tuner.check(until)
            all_done = all_done and done
            for e in rows_found(study) if done else ():
                say(
                    f"{sampler} {kind} on {e['backbone']}, {e['steps']} steps: {e['settings']} "
                    f"energy {e['energy over before']:+.4f} +- {e['energy over before se']:.4f}, "
                    f"{e['psnr over before']:+.2f} +- {e['psnr over before se']:.2f} dB"
                )
    studies = optuna.get_all_study_summaries(storage=storage)
    found = [optuna.load_study(study_name=s.study_name, storage=storage) for s in studies]
    tables = [table for study in found if (table := rows_found(study))]
    order = list(SPACES)
    tables.sort(key=lambda t: (order.index(t[0]["sampler"]), list(KINDS).index(t[0]["kind"])))
    if a.write:
        written(a.write, tables, max((s.user_attrs["train"] for s in found), default=a.train), a.check_steps)
    if a.out:
        a.out.mkdir(parents=True, exist_ok=True)
        entries = [{**e, "taken": is_better(table, a.check_steps)} for table in tables for e in table]
        for name, text in (
            ("presets.json", json.dumps(entries, indent=1) + "\n"),
            ("presets.md", markdown(tables, a.check_steps) + "\n"),
        ):
            with atomic_write(a.out / name) as temporary:
                temporary.write_text(text)
    if tables:
        say(markdown(tables, a.check_steps))
    return all_done


if __name__ == "__main__":
    if not main():
        print("stopped at --minutes: the same command goes on")
