"""A suite: what is compared on what. Written as a TOML file, in which every mistake is named by its key (`tasks[2].operator`).

backbone = "cats64"
images = "prior"            # drawn from the backbone itself; or a folder or zip of pictures
n_images = 8
seeds = [0, 1]
metrics = ["psnr", "lpips", "misfit"]

[[tasks]]
name = "half"
operator = "mask"           # the rest are options of the operator; masks and kernels by the name of their generator
mask = "half"
sigma_y = 0.0               # images in [0, 1]

[[samplers]]
name = "repaint"            # the rest are options of the sampler, as for `solve`
label = "RePaint"
steps = 50                  # or several entries at once: grid = { steps = [25, 100, 1000] }

Where the backbone's posterior is known (`invdiff.priors`), a suite can compare samples with it: `measurements` draws of the prior
are measured, each is restored `n_samples` times, and metrics that need the posterior are computed. Such a task mostly names its
own `backbone`; the sampler "exact" then draws from the posterior itself: the Monte-Carlo floor.
"""

from __future__ import annotations

import dataclasses
import glob
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from invdiff.checks import one_of, whole
from invdiff.errors import InvdiffError, near_match
from invdiff.metrics import metric_names
from invdiff.operators.base import LinearOperator
from invdiff.operators.registry import get_operator, make_operator
from invdiff.problem import Problem
from invdiff.samplers import baseline_names, baselines_for
from invdiff.samplers.base import Cost, Sampler, sampler_names
from invdiff.samplers.paths import make_path
from invdiff.solve import resolve_sampler

PRIOR = "prior"
EXACT = "exact"
"""The entry that draws from the exact posterior instead of running a sampler."""
SUITES = Path(__file__).parent / "suites"


# ---- the parts of a suite ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """A measurement to be inverted.

    Attributes:
        name: unique in the suite.
        operator: a name of `operator_names`.
        options: of the operator, as `make_operator` takes them: ``mask``, ``kernel``, ``scale``, ...
        sigma_y: standard deviation of the noise, images in [0, 1].
        per_image: draw another mask for every image: its seed is the option ``seed`` + the number of the image.
        part: of the suite, for reports and for the patterns of `SamplerEntry.tasks`.
        backbone, backbone_options, n_samples, measurements, metrics: instead of the suite's.
        settings: options of single samplers on this task, by label or name: ``{ repaint = { steps = 100 } }``.
        picture: two coordinates of x to draw the samples in, or none.
    """

    name: str
    operator: str
    options: dict[str, Any] = field(default_factory=dict)
    sigma_y: float = 0.0
    per_image: bool = False
    part: str = ""
    backbone: str | None = None
    backbone_options: dict[str, Any] = field(default_factory=dict)
    n_samples: int | None = None
    measurements: int | None = None
    metrics: tuple[str, ...] | None = None
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    picture: tuple[int, ...] = ()

    def build(self, image_shape: Sequence[int], images: Sequence[int] = (0,)) -> LinearOperator:
        """The operator for images of (C, H, W).

        Args:
            image_shape: of the images.
            images: their numbers in the suite, one per image of the batch; read where `per_image` is set only.

        Raises:
            InvdiffError: unknown operator or option (with the near match), or a value that it doesn't take.
        """
        options = dict(self.options)
        if self.per_image:
            seed = whole("seed", options.get("seed", 0), 0)
            options["seed"] = [seed + i for i in images]
        return make_operator(self.operator, tuple(int(n) for n in image_shape), **options)

    def reads_files(self) -> bool:
        """Whether an option is a picture's path, so that the operator is for images of that picture's size only."""
        return any(is_picture(self.options.get(name)) for name in get_operator(self.operator).framed)

    def to_dict(self) -> dict[str, Any]:
        """As in the suite's file."""
        extra = {key: getattr(self, key) for key in TASK_KEYS[3:] if getattr(self, key) != _DEFAULTS[key]}
        return {"name": self.name, "operator": self.operator, **self.options, "sigma_y": self.sigma_y, **extra}


@dataclass(frozen=True)
class SamplerEntry:
    """A sampler with its settings.

    Attributes:
        label: what the report calls it; unique in the suite.
        name: a name of `sampler_names` or `baseline_names`.
        options: as `solve` takes them: fields of the sampler, ``preset``, ``path`` and its options.
        tasks: patterns of the names or parts of the tasks that it runs on, such as ``"steps*"``; all where there is none.
    """

    label: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()

    def runs_on(self, task: Task) -> bool:
        """Whether the suite has cells of it on `task`."""
        return not self.tasks or any(fnmatchcase(name, p) for p in self.tasks for name in (task.name, task.part))

    def on(self, task: Task) -> dict[str, Any]:
        """Its options on `task`."""
        return {**self.options, **task.settings.get(self.name, {}), **task.settings.get(self.label, {})}

    def resolve(self, task: Task, image_shape: Sequence[int]) -> tuple[Sampler, Any, dict[str, Any]]:
        """The sampler object for a task, its preset's settings included, its path and the path's options.

        Raises:
            InvdiffError: unknown sampler or option, or a value out of its range.
        """
        options = self.on(task)
        path, preset = options.pop("path", None), options.pop("preset", None)
        problem = _problem(task, image_shape)
        sampler, path_options = resolve_sampler(self.name, problem, path, options, preset)
        return sampler, path, path_options

    def cost(self, task: Task, image_shape: Sequence[int], schedule: Any) -> Cost:
        """Network calls and vector-Jacobian products per image, known before a run.

        Raises:
            InvdiffError: as `resolve`; also a path that doesn't fit the number of steps, and a method that is not for the task.
        """
        sampler, path, path_options = self.resolve(task, image_shape)
        if reason := sampler.reason(_problem(task, image_shape)):
            raise InvdiffError(f"{reason}; name the tasks that it runs on: tasks = [...]")
        clock = sampler.respaced(schedule)
        return sampler.cost(schedule, None if path is None else make_path(path, len(clock), **path_options))

    def network_calls(self, task: Task, image_shape: Sequence[int], schedule: Any) -> int:
        """Network calls per image, known before a run; raises as `cost`."""
        return self.cost(task, image_shape, schedule).calls

    def to_dict(self) -> dict[str, Any]:
        """As in the suite's file."""
        tasks = {"tasks": list(self.tasks)} if self.tasks else {}
        return {"label": self.label, "name": self.name, **self.options, **tasks}


def _problem(task: Task, image_shape: Sequence[int]) -> Problem:
    """A task for images of (C, H, W), without a measurement."""
    empty = torch.empty(0)
    return Problem(task.build(image_shape), empty, empty, task.sigma_y, tuple(image_shape))


@dataclass(frozen=True)
class PublishedRow:
    """A row of a paper's table.

    Attributes:
        setting: data and conditions, such as ``"CelebA-HQ 256"``.
        method: as the paper calls it; where it equals a sampler's label, the report sets the two side by side.
        metric: in the words of `invdiff.metrics` where it is one of those, such as ``"lpips"``.
        values: by name of the task.
    """

    setting: str
    method: str
    metric: str
    values: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """As in the suite's file."""
        return {"setting": self.setting, "method": self.method, "metric": self.metric, "values": self.values}


@dataclass(frozen=True)
class Published:
    """Numbers that others published, to be set beside ours. Never to be put in one column: weights, images, masks and
    the version of a metric differ.

    Attributes:
        source: paper and table.
        note: what differs, what is missing.
        rows: the table.
    """

    source: str
    note: str = ""
    rows: tuple[PublishedRow, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As in the suite's file."""
        return {"source": self.source, "note": self.note, "rows": [row.to_dict() for row in self.rows]}


@dataclass(frozen=True)
class Suite:
    """A grid: every task by every sampler by every image by every seed.

    Attributes:
        name: of the suite.
        tasks, samplers: see `Task`, `SamplerEntry`.
        description: what it shows, for the report's head.
        backbone: a name or path for `load_backbone`; backbone_options: further arguments of it, such as ``preset``.
        images: ``"prior"``, images drawn from the backbone itself, so that truth comes from the very prior; or a
            folder, a zip or a picture.
        n_images: how many; 0 for all of a folder.
        image_seed, image_steps: of the draws, where `images` is ``"prior"``.
        seeds: of the restorations; seed s of a cell is ``solve(seed=s)``.
        metrics: names of `metric_names`; what a run costs is recorded in any case.
        n_samples: restorations of every cell. Metrics of single restorations are averaged over them.
        measurements: draws of the prior that are measured, where its posterior is known: instead of `n_images` pictures
            these are x as they are drawn, not rounded to 8 bits.
        value_range: black and white of the images that samplers see; `sigma_y` is in this unit.
        batch_size: restorations run at once; 0 for as many as fit into modest memory. Part of the suite, for a network
            in reduced precision rounds differently in another batch.
        published: numbers from a paper.
        imports: ``.py`` files (from the suite's folder) and modules that register what the suite names: running the suite runs
            them.
    """

    name: str
    tasks: tuple[Task, ...]
    samplers: tuple[SamplerEntry, ...]
    description: str = ""
    backbone: str = "cats64"
    backbone_options: dict[str, Any] = field(default_factory=dict)
    images: str = PRIOR
    n_images: int = 8
    image_seed: int = 0
    image_steps: int = 100
    seeds: tuple[int, ...] = (0,)
    metrics: tuple[str, ...] = ("psnr", "ssim", "lpips", "misfit")
    n_samples: int = 1
    measurements: int = 0
    value_range: tuple[float, float] = (0.0, 1.0)
    batch_size: int = 0
    published: Published | None = None
    imports: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        parts = Path(self.name).parts
        if not parts or ".." in parts or Path(self.name).is_absolute():
            raise InvdiffError(f"name must be that of a folder below runs/, such as 'mine', got {self.name!r}")

    # ---- read and written ----------------------------------------------------------------------------------------

    @classmethod
    def from_toml(cls, text: str, source: str = "suite", *, check: bool = True, folder: Path | None = None) -> Suite:
        """The suite that a TOML text describes.

        Args:
            text: TOML.
            source: its file, for messages.
            check: import what `imports` names, look names and options up, and try every operator; False to read an old run.
            folder: that `imports` start from; the current one by default.

        Raises:
            InvdiffError: with the key of the mistake, such as ``samplers[1].steps``.
        """
        from invdiff.bench.suite.reading import read

        return read(text, source, check, folder)

    def to_toml(self) -> str:
        """The suite as TOML; `from_toml` gives it back."""
        import tomli_w

        try:
            return tomli_w.dumps(self.to_dict())
        except TypeError as error:
            raise InvdiffError(f"the suite cannot be written as TOML: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """As in the suite's file, everything spelled out."""
        data: dict[str, Any] = {
            "name": self.name,
            "description": self.description,
            **({"imports": list(self.imports)} if self.imports else {}),
            "backbone": self.backbone,
            "backbone_options": self.backbone_options,
            "images": self.images,
            "n_images": self.n_images,
            "image_seed": self.image_seed,
            "image_steps": self.image_steps,
            "seeds": list(self.seeds),
            "metrics": list(self.metrics),
            "n_samples": self.n_samples,
            "measurements": self.measurements,
            "value_range": list(self.value_range),
            "batch_size": self.batch_size,
            "tasks": [task.to_dict() for task in self.tasks],
            "samplers": [entry.to_dict() for entry in self.samplers],
        }
        return data if self.published is None else {**data, "published": self.published.to_dict()}

    def differences(self, other: Suite) -> list[str]:
        """Names of what differs between two suites and matters for the numbers."""
        a, b = self.to_dict(), other.to_dict()
        return [key for key in a if key not in ("name", "description", "published", "imports") and a[key] != b[key]]

    # ---- what belongs to a task ----------------------------------------------------------------------------------

    def backbone_of(self, task: Task) -> tuple[str, dict[str, Any]]:
        """Name or path of the task's backbone, and the options of its loader."""
        return (
            (self.backbone, self.backbone_options) if task.backbone is None else (task.backbone, task.backbone_options)
        )

    def n_samples_of(self, task: Task) -> int:
        """Restorations of every cell of the task."""
        return self.n_samples if task.n_samples is None else task.n_samples

    def measurements_of(self, task: Task) -> int:
        """Draws of the prior that the task measures; 0 where it uses the suite's images."""
        return self.measurements if task.measurements is None else task.measurements

    def metrics_of(self, task: Task) -> tuple[str, ...]:
        """Names of the task's metrics."""
        return self.metrics if task.metrics is None else task.metrics

    def images_of(self, task: Task, names: Sequence[str]) -> list[str]:
        """Names of what the task restores: the suite's images, `names`, or ``x-000``, ... for draws of a known prior."""
        return [f"x-{i:03d}" for i in range(n)] if (n := self.measurements_of(task)) else list(names)

    def pairs(self) -> list[tuple[Task, SamplerEntry]]:
        """Every task with every sampler that runs on it, in the order of the file."""
        return [(task, entry) for task in self.tasks for entry in self.samplers if entry.runs_on(task)]

    @property
    def uses_images(self) -> bool:
        """Whether any task restores the suite's images."""
        return any(not self.measurements_of(task) for task in self.tasks)

    # ---- changed and looked up -----------------------------------------------------------------------------------

    def override(
        self,
        *,
        samplers: str | Sequence[str] | None = None,
        images: str | Path | None = None,
        backbone: str | Path | None = None,
        seeds: int | Sequence[int] | None = None,
        n_images: int | None = None,
        metrics: str | Sequence[str] | None = None,
    ) -> Suite:
        """The suite with parts replaced, as the command line does it.

        Args:
            samplers: labels or names, a list or separated by commas. Those that the suite has are taken with its
                settings (a name takes all entries of that sampler), others with their defaults.
            images: ``"prior"``, a folder, a zip or a picture; n_images is then all, unless given.
            backbone: name or path. The suite's options for its own are kept for a file of the same kind (.pt). Tasks that
                name a backbone keep it.
            seeds: how many (0, 1, ...), or which.
            n_images: how many; 0 for all.
            metrics: names, a list or separated by commas.

        Raises:
            InvdiffError: an unknown name, with the near match, or a number that makes no sense.
        """
        changes: dict[str, Any] = {}
        if samplers is not None:
            changes["samplers"] = self._picked(_names(samplers))
        if images is not None:
            changes["images"] = str(images) if str(images) == PRIOR else str(_existing(Path(images)))
            if changes["images"] != PRIOR and n_images is None:
                changes["n_images"] = 0
        if backbone is not None:
            path = Path(backbone).expanduser()
            changes["backbone"] = str(path.resolve()) if path.exists() else str(backbone)
            if Path(self.backbone).suffix != path.suffix:
                changes["backbone_options"] = {}
        if seeds is not None:
            changes["seeds"] = seed_list(seeds)
        if n_images is not None:
            changes["n_images"] = whole("n_images", n_images, 0)
        if metrics is not None:
            changes["metrics"] = tuple(one_of("metric", name, metric_names()) for name in _names(metrics))
            changes["tasks"] = tuple(replace(task, metrics=None) for task in self.tasks)
        new = replace(self, **changes)
        if new.images == PRIOR and new.n_images == 0:
            raise InvdiffError(
                "n_images must be at least 1 where images are drawn from the backbone (images = 'prior')"
            )
        return new

    def _picked(self, names: Sequence[str]) -> tuple[SamplerEntry, ...]:
        found: list[SamplerEntry] = []
        for name in names:
            key = name.lower()
            mine = [e for e in self.samplers if key in (e.label.lower(), e.name.lower())]
            if not mine:
                methods = [*sampler_names(), *baseline_names()]
                known = [*(e.label for e in self.samplers), *methods]
                if name not in methods:
                    one_of("sampler", name, known)
                mine = [SamplerEntry(name, name)]
            found += [entry for entry in mine if entry not in found]
        return tuple(found)

    def with_baselines(self, image_shape_of: Callable[[Task], Sequence[int]]) -> Suite:
        """The suite with every classical method beside its samplers, on the tasks with images that it is for.

        Args:
            image_shape_of: (C, H, W) of a task's images.
        """
        fitting: dict[str, list[str]] = {name: [] for name in baseline_names()}
        for task in self.tasks:
            if not self.measurements_of(task):
                for name in baselines_for(_problem(task, image_shape_of(task))):
                    fitting[name].append(glob.escape(task.name))
        present = {word for entry in self.samplers for word in (entry.name, entry.label)}
        added = [
            SamplerEntry(name, name, tasks=tuple(names))
            for name, names in fitting.items()
            if names and name not in present
        ]
        return replace(self, samplers=(*self.samplers, *added))

    def task(self, name: str) -> Task:
        """The task of that name."""
        return next(task for task in self.tasks if task.name == name)

    def sampler(self, label: str) -> SamplerEntry:
        """The sampler with that label."""
        return next(entry for entry in self.samplers if entry.label == label)


# ---- where suites come from --------------------------------------------------------------------------------------


def suite_names() -> list[str]:
    """Names of the suites that ship with the package, such as ``quick`` and ``papers/repaint``."""
    return sorted(path.relative_to(SUITES).with_suffix("").as_posix() for path in SUITES.rglob("*.toml"))


def quick_selection(name: str) -> str:
    """The name of a suite's short selection: ``truth-quick`` of ``truth``.

    Raises:
        InvdiffError: it has none.
    """
    having = [n.removesuffix("-quick") for n in suite_names() if n.endswith("-quick")]
    return f"{one_of('a suite with a quick selection', name, having)}-quick"


def load_suite(name_or_path: str | Path, **overrides: Any) -> Suite:
    """A suite that ships with the package, or one of your own.

    Args:
        name_or_path: a name of `suite_names`, or the path of a TOML file.
        **overrides: see `Suite.override`.

    Raises:
        InvdiffError: there is none, or it has a mistake: the message names its key.
    """
    name = str(name_or_path)
    ours = name in suite_names()
    path = SUITES / f"{name}.toml" if ours else Path(name).expanduser()
    if not path.is_file():
        names = suite_names()
        raise InvdiffError(
            f"unknown suite {name!r}: neither one of {', '.join(names)} nor a file that exists.{near_match(name, names)}"
        )
    suite = Suite.from_toml(path.read_text(encoding="utf-8"), str(name_or_path), folder=path.parent)
    if suite.images != PRIOR:
        beside = (Path() if ours else path.parent).joinpath(Path(suite.images).expanduser()).resolve()
        suite = replace(suite, images=str(beside))
    return suite.override(**overrides)


TASK_KEYS = (
    "name", "operator", "sigma_y", "per_image", "part", "backbone", "backbone_options", "n_samples", "measurements", "metrics",
    "settings", "picture",
)  # fmt: skip
"""The keys of a task that are no options of its operator."""
_DEFAULTS = {f.name: None if f.default is dataclasses.MISSING else f.default for f in dataclasses.fields(Task)} | {
    "backbone_options": {},
    "settings": {},
}


# ---- small checks ------------------------------------------------------------------------------------------------


def seed_list(seeds: int | Sequence[int]) -> tuple[int, ...]:
    """How many, or which."""
    if isinstance(seeds, int):
        return tuple(range(whole("seeds", seeds, 1)))
    found = tuple(whole("a seed", s, 0) for s in seeds)
    if not found or len(set(found)) != len(found):
        raise InvdiffError(f"seeds must be a number of seeds, or a list of different ones; got {list(found)}")
    return found


def _names(names: str | Sequence[str]) -> list[str]:
    parts = names.split(",") if isinstance(names, str) else list(names)
    found = [part.strip() for part in parts if part.strip()]
    if not found:
        raise InvdiffError(f"names must be a list or separated by commas, got {names!r}")
    return found


def _existing(path: Path) -> Path:
    full = path.expanduser().resolve()
    if not full.exists():
        raise InvdiffError(
            f"images must be a folder, a .zip or a picture, or 'prior', got {str(path)!r}, which does not exist"
        )
    return full


def is_picture(mask: Any) -> bool:
    return isinstance(mask, str) and bool(Path(mask).suffix)
