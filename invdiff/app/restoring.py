"""What a job of the first page does: several samplers in turns, seen while they work, and everything that comes out."""

from __future__ import annotations

import base64
import copy
import io
import math
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from invdiff.app.jobs import Job, Stopped, Turns
from invdiff.app.limits import Limits
from invdiff.app.recipe import MASK, PHOTO, Recipe, backbone_by_name
from invdiff.backbones.base import Backbone, Prediction
from invdiff.errors import InvdiffError
from invdiff.images import to_pil
from invdiff.metrics import psnr
from invdiff.operators.base import LinearOperator
from invdiff.plan import known_of
from invdiff.problem import Problem
from invdiff.samplers import Progress, baselines_for, sampler_class
from invdiff.solution import Frame, Solution
from invdiff.solve import Prepared, posed, prepared, solve

PREVIEW = 320  # pixels to a side of what is shown while it works
_WAY = 192  # of the frames of the animation
_FRAMES = 36
_EVERY = 0.25  # seconds between two pictures


@dataclass(eq=False)
class Track:
    """One sampler of a job, as it is seen from outside.

    Attributes:
        sampler: its name.
        state: waiting, running, done, stopped or failed; error: its sentence.
        calls, all_calls: of the network, so far and in the end.
        share: of the way, 0 to 1.
        seconds: that it worked, without those in which others had their turn.
        x_t, x0: the state and the clean estimate as data URIs.
        answer: the solution, once it is there and until its files are written.
        quality: PSNR of the first sample against the photo, dB, where that is known to be clean.
        pictures, spread: the files of the restorations, and of the map of their spread.
        stopping: set to stop it alone.
        frames: of the animation.
        baseline: it is a classical method.
        note: what is to be said of the answer.
    """

    sampler: str
    state: str = "waiting"
    error: str = ""
    calls: int = 0
    all_calls: int = 0
    share: float = 0.0
    seconds: float = 0.0
    x_t: str = ""
    x0: str = ""
    answer: Solution | None = None
    quality: float | None = None
    pictures: list[Path] = field(default_factory=list)
    spread: Path | None = None
    stopping: threading.Event = field(default_factory=threading.Event)
    frames: list[Frame] = field(default_factory=list)
    baseline: bool = False
    note: str = ""

    @property
    def left(self) -> float | None:
        """Seconds of work that are left, from the pace so far; None before there is one."""
        return self.seconds * (1 - self.share) / self.share if self.share > 0 else None

    @property
    def over(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in ("done", "stopped", "failed")


@dataclass(eq=False)
class Restoration:
    """A recipe being carried out, and what came out of it.

    Attributes:
        recipe: what is asked.
        folder: of its files.
        tracks: by sampler, in order; baselines join at the end.
        measured: the measurement as a picture; files: what can be downloaded, once all is done.
        said: further sentences.
    """

    recipe: Recipe
    folder: Path
    limits: Limits = field(default_factory=Limits)
    tracks: dict[str, Track] = field(default_factory=dict)
    measured: Path | None = None
    files: list[Path] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tracks = {name: Track(name, baseline=sampler_class(name).baseline) for name in self.recipe.samplers}

    def stop(self, sampler: str) -> None:
        """Stop one of the samplers; the others go on."""
        if sampler in self.tracks:
            self.tracks[sampler].stopping.set()

    def __call__(self, job: Job) -> None:
        """Carry it out.

        Raises:
            Stopped: it was stopped before any sampler was done.
            InvdiffError: none of the samplers came to an end, and why.
        """
        recipe = self.recipe
        job.check()
        recipe.write(self.folder)
        A, y = recipe.measured(self.folder)
        model = backbone_by_name(recipe.backbone)
        _, problem = posed(A, y, recipe.sigma / 255, model, None, None, (0.0, 1.0))
        runs = {name: self._prepared(name, model, problem) for name in recipe.samplers}
        self._check_cost(runs, model, problem)
        self.measured = self.folder / "measured.png"
        _measured_picture(problem, recipe).save(self.measured)
        turns = Turns(list(recipe.samplers))
        threads = [
            threading.Thread(
                target=self._walk, args=(job, name, A, y, model, problem, runs[name], turns), daemon=True, name=name
            )
            for name in recipe.samplers
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        done = [track for track in self.tracks.values() if track.state == "done"]
        if done and recipe.baselines and not job.stopping.is_set():
            self._classical(job, A, y, model, problem)
        if not done:
            failed = [track for track in self.tracks.values() if track.error]
            if failed:
                raise InvdiffError("; ".join(f"{t.sampler}: {t.error}" for t in failed))
            raise Stopped
        self._write()

    # ---- before -------------------------------------------------------------------------------------------------

    def _prepared(self, name: str, model: Backbone, problem: Problem) -> Prepared:
        given = dict(self.recipe.arguments(name))
        given.pop("sigma_y")
        seed, n_samples = given.pop("seed"), given.pop("n_samples", 1)
        return prepared(
            model,
            problem,
            name,
            preset=None,
            path=None,
            options=given,
            seed=seed,
            n_samples=n_samples,
            x_init=None,
            region="auto",
            coarse_to_fine="auto",
            whole_only=False,
        )

    def _check_cost(self, runs: dict[str, Prepared], model: Backbone, problem: Problem) -> None:
        total = 0
        for name, run in runs.items():
            calls = run.method.cost(model.schedule, run.times, self.recipe.n_samples, problem).calls
            track = self.tracks[name]
            track.all_calls = calls * len(run.plan.network_calls)
            total += track.all_calls * len(run.keys)
        if total > self.limits.calls:
            raise InvdiffError(
                f"this would take {total:,} network calls; this server makes {self.limits.calls:,} at most for one visitor: take "
                "fewer steps, samples or samplers"
            )

    # ---- meanwhile ----------------------------------------------------------------------------------------------

    def _walk(
        self,
        job: Job,
        name: str,
        A: LinearOperator,
        y: Any,
        model: Backbone,
        problem: Problem,
        run: Prepared,
        turns: Turns,
    ) -> None:
        """One sampler, in a thread of its own."""
        track = self.tracks[name]
        turns.await_own(name)
        started = time.perf_counter()
        first = True

        def next_turn() -> None:
            nonlocal started, first
            if not first:  # the first call follows upon the first turn
                track.seconds += time.perf_counter() - started
                turns.pass_on(name)
                started = time.perf_counter()
            first = False
            check()

        def check() -> None:
            if job.stopping.is_set() or track.stopping.is_set():
                raise Stopped

        try:
            check()
            track.state = "running"
            view = _View(track, problem, run)
            track.answer = solve(
                A,
                y,
                name,
                backbone=watched(model, next_turn),
                callback=view,
                progress=False,
                **self.recipe.arguments(name),
            )
            track.note = _note(track.answer)
            track.share, track.state = 1.0, "done"
            track.x0 = data_uri(track.answer.image, PREVIEW)
        except Stopped:
            track.state = "stopped"
        except InvdiffError as error:
            track.state, track.error = "failed", str(error)
        except Exception as error:  # one that fails must not hold the others' turns
            track.state, track.error = "failed", f"{type(error).__name__}: {error}"
        finally:
            track.seconds += time.perf_counter() - started
            turns.leave(name)

    def _classical(self, job: Job, A: LinearOperator, y: Any, model: Backbone, problem: Problem) -> None:
        for name in baselines_for(problem):
            if name in self.tracks:
                continue
            if job.stopping.is_set():
                return
            track = self.tracks[name] = Track(name, state="running", baseline=True)
            try:
                track.answer = solve(A, y, name, backbone=model, progress=False, **self.recipe.arguments(name))
            except InvdiffError as error:
                track.state, track.error = "failed", str(error)
                continue
            track.state, track.share, track.seconds = "done", 1.0, track.answer.seconds
            track.note = _note(track.answer)
            track.x0 = data_uri(track.answer.image, PREVIEW)

    # ---- afterwards ---------------------------------------------------------------------------------------------

    @property
    def classical(self) -> tuple[str, ...]:
        """The baselines that were set beside the samplers."""
        return tuple(name for name, track in self.tracks.items() if name not in self.recipe.samplers)

    @property
    def done(self) -> Recipe:
        """The recipe of the samplers that came to an end."""
        return replace(
            self.recipe, samplers=tuple(name for name in self.recipe.samplers if self.tracks[name].state == "done")
        )

    def _quality(self, answer: Solution) -> float | None:
        clean = self.recipe.clean()
        if clean is None or clean.shape[-2:] != answer.x.shape[-2:]:
            return None
        return float(psnr(answer.x[:1].clamp(0, 1), clean.expand(1, *answer.x.shape[1:]))[0])

    def _write(self) -> None:
        files = [self.folder / PHOTO, *([self.folder / MASK] if self.recipe.known is not None else [])]
        for name, track in self.tracks.items():
            answer = track.answer
            if answer is None:
                continue
            track.quality = self._quality(answer)
            track.pictures = answer.save(self.folder / f"{name}.png")
            files += track.pictures
            if answer.n_samples > 1 and not track.baseline:
                track.spread = self.folder / f"{name}-spread.png"
                spread_map(answer).save(track.spread)
                files.append(track.spread)
            if len(track.frames) > 1:
                way = replace(answer, trajectory=track.frames)
                files.append(way.animate(self.folder / f"{name}-way.gif", seconds=4, rate=10))
            track.frames, track.answer = [], None  # the files hold everything
        done = self.done
        for file, text in (("repeat.py", done.python(self.classical)), ("repeat.sh", done.shell(self.classical))):
            (self.folder / file).write_text(text, encoding="utf-8")
            files.append(self.folder / file)
        together = self.folder / "restoration.zip"
        with zipfile.ZipFile(together, "w", zipfile.ZIP_STORED) as archive:
            for path in files:
                archive.write(path, path.name)
        self.files = [together, *files]


def _note(answer: Solution) -> str:
    """What the page says of an answer, in place of the warnings of `solve`."""
    sampler = answer.settings["sampler"]
    if answer.settings["sigma_y"] > 0 and not sampler_class(sampler).handles_noise:
        return "models no noise: it stays in the picture"
    if float(answer.x.abs().max()) > 10:
        return "far outside the range of a picture: it diverged, or amplifies noise"
    return ""


def watched(backbone: Backbone, before_call: Callable[[], None]) -> Backbone:
    """A view of a backbone that calls a function before it is asked, as are its own views for other sizes and schedules."""
    kind = type(backbone)

    class Watched(kind):  # type: ignore[misc, valid-type]
        def predict(self, x_t: Tensor, t: int | Tensor) -> Prediction:
            before_call()
            prediction = kind.predict(self, x_t, t)
            assert isinstance(prediction, Prediction)
            return prediction

    view = copy.copy(backbone)
    view.__class__ = Watched
    return view


class _View:
    """The callback of one sampler: its numbers, its pictures now and then, and the frames of the animation.

    A plan of several parts is walked part by part, and each part batch by batch; the picture shown is the whole one at the
    size of the part's stage, with what is known and what is done already around the part.
    """

    def __init__(self, track: Track, problem: Problem, run: Prepared) -> None:
        self.track, self.problem, self.plan, self.count = track, problem, run.plan, len(run.keys)
        self.parts = [(stage, box) for stage in run.plan.stages for box in stage.boxes]
        self.part = self.rows_done = self.moved = 0
        self.calls_before = self.last_nfe = 0
        self.shown_at = -math.inf
        self.all_moves = len(self.parts) * self.count * (len(run.times) - 1)
        self.keep_every = max(1, -(-len(self.parts) * (len(run.times) - 1) // _FRAMES))
        self.moves_seen = 0
        self.canvas: dict[int, Tensor] = {}
        self.per_part = track.all_calls // max(1, len(self.parts))

    def __call__(self, state: Progress) -> None:
        rows = len(state.x)
        if state.step == 0:
            self.calls_before, self.last_nfe = self.calls_before + self.last_nfe, 0
        self.last_nfe = state.nfe
        batches = -(-self.count // rows)
        self.moved += rows
        track = self.track
        track.all_calls = self.per_part * len(self.parts) * batches
        track.calls = self.calls_before + self.last_nfe
        track.share = min(1.0, self.moved / self.all_moves)
        last = state.step == state.steps - 1
        if self.rows_done == 0:  # the first sample is the one that is shown
            now = time.perf_counter()
            kept = self.moves_seen % self.keep_every == 0 or last
            shown = now - self.shown_at > _EVERY or last
            self.moves_seen += 1
            if kept or shown:
                x, x0 = self._whole(state.x[:1], False), self._whole(state.x0[:1], True)
                if kept:
                    track.frames.append(Frame(state.t, state.s, _small(x), _small(x0)))
                if shown:
                    self.shown_at = now
                    track.x_t, track.x0 = _shown(x / max(1.0, 1.5 * float(x.std()))), _shown(x0)
            if last and not self.plan.alone:
                self.canvas[self.part] = self._whole(state.x0[:1], True)
        if last:
            self.rows_done += rows
            if self.rows_done >= self.count:
                self.rows_done, self.part = 0, self.part + 1

    def _whole(self, x: Tensor, estimate: bool) -> Tensor:
        """(1, C, H, W), model range: the whole picture with a part in its place."""
        x = x.float().cpu()
        if self.plan.alone:
            return x
        stage, box = self.parts[min(self.part, len(self.parts) - 1)]
        base, known = known_of(self.problem, stage)
        before = self.canvas.get(self.part - 1)
        whole = (before if before is not None and before.shape[-2:] == base.shape[-2:] else base[:1]).clone().float()
        here = box.of(whole)
        if here.shape[-2:] != x.shape[-2:]:
            return x
        here.copy_(torch.where(box.of(known[:1]), box.of(base[:1]).float(), x) if estimate else x)
        return whole


def _small(x: Tensor) -> Tensor:
    """A frame of the animation: (1, C, h, w), no larger than it is shown."""
    factor = _WAY / max(x.shape[-2:])
    if factor >= 1:
        return x.clone()
    size = [max(1, round(n * factor)) for n in x.shape[-2:]]
    return functional.interpolate(x, size, mode="area")


def _shown(x: Tensor) -> str:
    factor = PREVIEW / max(x.shape[-2:])
    if factor < 1:
        x = functional.interpolate(x, [max(1, round(n * factor)) for n in x.shape[-2:]], mode="area")
    return data_uri(to_pil((x[0] + 1) / 2), PREVIEW)


def data_uri(image: Image.Image, side: int, lossless: bool = False) -> str:
    """A picture as a data URI, shrunken where it is larger than `side`: PNG for small and `lossless` ones, WebP for others."""
    if max(image.size) > side:
        image = image.copy()
        image.thumbnail((side, side), Image.Resampling.BILINEAR)
    data = io.BytesIO()
    small = lossless or max(image.size) <= 96
    image.save(data, format="PNG") if small else image.save(data, format="WEBP", quality=85, method=2)
    return f"data:image/{'png' if small else 'webp'};base64,{base64.b64encode(data.getvalue()).decode()}"


def spread_map(answer: Solution) -> Image.Image:
    """Standard deviation over the samples, mean of the channels: black is 0, bright is its 99th percentile."""
    import matplotlib

    std = answer.std[0].mean(0).numpy()
    top = max(float(np.percentile(std, 99)), 1e-9)
    colours = matplotlib.colormaps["magma"](np.clip(std / top, 0, 1))[..., :3]
    return Image.fromarray((255 * colours).round().astype(np.uint8))


def _measured_picture(problem: Problem, recipe: Recipe) -> Image.Image:
    """What is known, at the size of the restoration: holes as a light checkerboard, a small picture with its pixels large."""
    from invdiff.plotting import show_missing

    if recipe.known is not None:
        y = torch.where(torch.isfinite(problem.y[0]), problem.y[0], 0.0).float()
        return to_pil(show_missing((y + 1) / 2, recipe.known.float()[None]))
    y = problem.y[0].float()
    if y.ndim != 3 or y.shape[0] not in (1, 3):
        y = problem.pinv_y[0].float()
    picture = to_pil((y + 1) / 2)
    _, height, width = recipe.image_shape
    return picture.resize((width, height), Image.Resampling.NEAREST) if picture.size != (width, height) else picture
