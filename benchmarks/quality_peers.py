"""Other libraries' posterior samplers on any of our backbones, for `quality.py`; each library where it is installed.

A backbone becomes their model by one identity: E[x0 | x0 + s n] is our clean estimate at the level ``1 / (1 + s^2)`` of the state
``sqrt(level) (x0 + s n)``, at times between the table's where theirs lie there. Network calls and vector-Jacobian products are
counted in the model, whoever asks for them. Every method has a grid of its own settings: `quality.py` runs all and shows the best.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from invdiff import LinearOperator, Mask
from invdiff.backbones.base import Backbone

LIBRARIES = ("diffusers", "deepinv", "azula")
SMALL = 1e-3
"""Noise, model range, for methods that divide by it, where a measurement has none."""


class _Counted(torch.autograd.Function):
    """The identity, which counts when a gradient goes through it."""

    @staticmethod
    def forward(x: Tensor, count: Callable[[], None]) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.count = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.count()
        return gradient, None


class PeerModel:
    """E[x0 | x0 + sigma n] of a backbone, at any noise level, model range.

    Attributes:
        calls, vjps: what was asked for since the last `count`.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone, self.schedule = backbone, backbone.schedule.chain
        self.calls = self.vjps = 0
        self._at: dict[float, tuple[Backbone, int]] = {}

    def count(self) -> tuple[int, int]:
        """Calls and products since the last count."""
        found, self.calls, self.vjps = (self.calls, self.vjps), 0, 0
        return found

    def _product(self) -> None:
        self.vjps += 1

    def __call__(self, z: Tensor, sigma: float) -> Tensor:
        """The clean image of ``z = x0 + sigma n``, (B, C, H, W)."""
        self.calls += 1
        level = min(1 / (1 + sigma**2), 1 - 1e-7)
        view, t = self._view(level)
        differentiated = z.requires_grad or torch._C._functorch.maybe_current_level() is not None
        x = _Counted.apply(z, self._product) if differentiated else z
        return view.predict(level**0.5 * x, t).x0

    def _view(self, level: float) -> tuple[Backbone, int]:
        """The backbone and its time of a level: the table's own where the level is one of its."""
        if level not in self._at:
            t = self.schedule.nearest(level)
            if abs(self.schedule.alpha_bar_at(t) - level) < 1e-4 * level * (1 - level):
                self._at[level] = self.backbone, t
            else:
                between = self.schedule.at_levels(torch.tensor([level], dtype=torch.float64))
                self._at[level] = self.backbone.on(between), 0
        return self._at[level]


@dataclass(frozen=True)
class Job:
    """What a peer is asked.

    Attributes:
        model: their denoiser.
        operator: A; a `Mask`, or any linear operator on a few pixels.
        y: (B, *measurement_shape), model range, a row for every sample that is wanted.
        sigma_y: model range.
        shape: (C, H, W).
    """

    model: PeerModel
    operator: LinearOperator
    y: Tensor
    sigma_y: float
    shape: tuple[int, int, int]
    _kept: dict[str, Any] = field(default_factory=dict)

    @property
    def masked(self) -> bool:
        return isinstance(self.operator, Mask)

    @property
    def known(self) -> Tensor:
        """(1, C, H, W) bool, of a mask."""
        return self.operator.mask.expand(1, *self.shape)  # type: ignore[attr-defined]

    def rows(self, x: Tensor) -> Tensor:
        """A x as (B, m): the known pixels, or the entries of the measurement."""
        if self.masked:
            if "index" not in self._kept:
                self._kept["index"] = self.known.flatten().nonzero()[:, 0]
            return x.flatten(1)[:, self._kept["index"]]
        return x.flatten(1) @ self.matrix.mT

    @property
    def matrix(self) -> Tensor:
        """(m, d) of an operator that is no mask."""
        if "matrix" not in self._kept:
            self._kept["matrix"] = self.operator.dense(self.shape).float()
        return self._kept["matrix"]

    @property
    def seen(self) -> Tensor:
        """y as (B, m), as `rows` gives it."""
        return self.rows(self.y) if self.masked else self.y.flatten(1)


@dataclass(frozen=True)
class PeerMethod:
    """A method of another library and what is tried of it.

    Attributes:
        library, name: what tables call it.
        settings: its own settings, one run each and budget.
        budgets: numbers of steps.
        make: ``make(job, steps, **setting)`` gives a function that draws a sample for every row of `Job.y`, model range.
        masks_only: whether it knows no other operator.
        named: whether it is one of the methods that papers compare with: RePaint, DDRM, DiffPIR, DPS, PiGDM.
        always: settings and steps that are run in any case: the paper's.
    """

    library: str
    name: str
    settings: tuple[dict[str, Any], ...]
    budgets: tuple[int, ...]
    make: Callable[..., Callable[[], Tensor]]
    masks_only: bool = False
    named: bool = False
    always: tuple[tuple[dict[str, Any], int], ...] = ()


def grid(**values: tuple[Any, ...]) -> tuple[dict[str, Any], ...]:
    """Every combination, as dicts."""
    return tuple(dict(zip(values, row, strict=True)) for row in product(*values.values()))


def peer_methods() -> Iterator[PeerMethod]:
    """All methods of the libraries that are installed."""
    for library, methods in zip(LIBRARIES, (_diffusers, _deepinv, _azula), strict=True):
        if find_spec(library) is not None:
            yield from methods()


# ---- diffusers --------------------------------------------------------------------------------------------------


@dataclass
class _Sample:
    sample: Tensor


def _diffusers() -> Iterator[PeerMethod]:
    def repaint(job: Job, steps: int, eta: float, length: int, repeats: int) -> Callable[[], Tensor]:
        from diffusers import RePaintPipeline, RePaintScheduler

        class Noise(nn.Module):
            dtype, device = torch.float32, job.y.device

            def forward(self, x: Tensor, t: Tensor) -> Any:
                level = job.model.schedule.alpha_bar_at(int(t))
                x0 = job.model(x / level**0.5, ((1 - level) / level) ** 0.5)
                return _Sample((x - level**0.5 * x0) / (1 - level) ** 0.5)

        pipeline = RePaintPipeline(Noise(), RePaintScheduler())
        pipeline.set_progress_bar_config(disable=True)
        options = {"num_inference_steps": steps, "eta": eta, "jump_length": length, "jump_n_sample": repeats}
        known = job.known[:, :1].float()

        def draw() -> Tensor:
            image = pipeline(image=job.y, mask_image=known, output_type="np", **options).images
            return 2 * torch.as_tensor(image).permute(0, 3, 1, 2) - 1

        return draw

    yield PeerMethod(
        "diffusers",
        "RePaint",
        (
            *grid(eta=(0.0, 1.0), length=(10,), repeats=(10,)),
            *grid(eta=(0.0, 1.0), length=(5, 10), repeats=(3,)),
            *grid(eta=(1.0,), length=(1,), repeats=(2,)),
        ),
        (20, 50, 100, 250, 500),
        repaint,
        masks_only=True,
        named=True,
        always=tuple((setting, 250) for setting in grid(eta=(0.0, 1.0), length=(10,), repeats=(10,))),
    )


# ---- deepinv ----------------------------------------------------------------------------------------------------


def _physics(job: Job, sigma: float) -> tuple[Any, Tensor]:
    """Their operator and measurement; their images lie in [0, 1]."""
    import deepinv

    noise = deepinv.physics.GaussianNoise(sigma / 2)
    if job.masked:
        known = job.known[0].float().contiguous()
        physics = deepinv.physics.Inpainting(img_size=job.shape, mask=known, noise_model=noise)
        return physics, known * (job.y + 1) / 2
    U, values, V = torch.linalg.svd(job.matrix.double(), full_matrices=True)
    U, V = U.float(), V.float()
    m, d = job.matrix.shape
    singular = torch.cat([values.float(), torch.zeros(d - m)]).reshape(1, *job.shape)

    def padded(y: Tensor) -> Tensor:
        return torch.cat([y.flatten(1) @ U, torch.zeros(len(y), d - m)], 1).reshape(-1, *job.shape)

    physics = deepinv.physics.DecomposablePhysics(
        U=lambda z: (z.flatten(1)[:, :m] @ U.mT).reshape(-1, 1, 1, m),
        U_adjoint=padded,
        V=lambda z: (z.flatten(1) @ V).reshape(-1, *job.shape),
        V_adjoint=lambda x: (x.flatten(1) @ V.mT).reshape(-1, *job.shape),
        mask=singular,
        img_size=job.shape,
        noise_model=noise,
    )
    whole = job.matrix.sum(1)  # A applied to an image of ones
    return physics, ((job.y.flatten(1) + whole) / 2).reshape(-1, 1, 1, m)


def _deepinv_denoiser(job: Job) -> Any:
    import deepinv

    class Denoiser(deepinv.models.Denoiser):  # type: ignore[misc]
        def forward(self, x: Tensor, sigma: Any, **_: Any) -> Tensor:
            return (job.model(2 * x - 1, 2 * float(torch.as_tensor(sigma).flatten()[0])) + 1) / 2

    return Denoiser()


def _posterior_diffusion(
    job: Job, fidelity: Any, steps: int, solver: str, schedule: str, sigma: float
) -> Callable[[], Tensor]:
    """Their general sampler: a data fidelity, a differential equation, a solver."""
    import deepinv.sampling as theirs

    end = 0.0 if solver in ("ddpm", "ddim") else 1e-3
    times = torch.linspace(1, end, steps + 1)
    solvers = {
        "ddpm": theirs.DDPMSolver,
        "ddim": theirs.DDIMSolver,
        "euler": theirs.EulerSolver,
        "heun": theirs.HeunSolver,
    }
    process = {"vp": theirs.VariancePreservingDiffusion, "ve": theirs.VarianceExplodingDiffusion}[schedule]
    sampler = theirs.PosteriorDiffusion(
        data_fidelity=fidelity,
        denoiser=_deepinv_denoiser(job),
        sde=process(alpha=0.0, dtype=torch.float32),
        solver=solvers[solver](timesteps=times),
        dtype=torch.float32,
    )
    physics, y = _physics(job, sigma)

    def draw() -> Tensor:
        return 2 * sampler(y, physics, x_init=(len(job.y), *job.shape)) - 1

    return draw


def _deepinv() -> Iterator[PeerMethod]:
    def simple(job: Job, sampler: Any, sigma: float) -> Callable[[], Tensor]:
        physics, y = _physics(job, sigma)
        return lambda: 2 * sampler(y, physics) - 1

    def ddrm(job: Job, steps: int, eta: float, etab: float) -> Callable[[], Tensor]:
        import deepinv

        sigmas = [1 - k / (steps - 1) for k in range(steps)]
        model = deepinv.sampling.DDRM(_deepinv_denoiser(job), sigmas=sigmas, eta=eta, etab=etab)
        return simple(job, model, job.sigma_y)

    def diffpir(job: Job, steps: int, zeta: float, lambda_: float) -> Callable[[], Tensor]:
        import deepinv

        sigma = max(job.sigma_y, SMALL)
        model = deepinv.sampling.DiffPIR(
            _deepinv_denoiser(job),
            deepinv.optim.data_fidelity.L2(),
            sigma=sigma / 2,
            max_iter=steps,
            zeta=zeta,
            lambda_=lambda_,
        )
        return simple(job, model, sigma)

    def dps(job: Job, steps: int, weight: float, guidance: str, solver: str) -> Callable[[], Tensor]:
        import deepinv

        model = deepinv.sampling.DPS(
            _deepinv_denoiser(job),
            num_steps=steps + 1,
            weight=weight,
            guidance=guidance,
            solver=solver,
            dtype=torch.float32,
        )
        physics, y = _physics(job, max(job.sigma_y, SMALL))
        return lambda: 2 * model(y, physics, x_init=(len(job.y), *job.shape)) - 1

    def pigdm(job: Job, steps: int, solver: str, schedule: str) -> Callable[[], Tensor]:
        import deepinv

        fidelity = deepinv.sampling.PiGDMDataFidelity()
        return _posterior_diffusion(job, fidelity, steps, solver, schedule, max(job.sigma_y, SMALL))

    def moments(job: Job, steps: int, solver: str, schedule: str, iterations: int) -> Callable[[], Tensor]:
        import deepinv

        fidelity = deepinv.sampling.MomentMatchingDataFidelity(cg_max_iter=iterations)
        return _posterior_diffusion(job, fidelity, steps, solver, schedule, job.sigma_y)

    steps = (10, 20, 30, 50, 100, 250, 1000)
    yield PeerMethod("deepinv", "DDRM", grid(eta=(0.85, 1.0), etab=(1.0,)), steps, ddrm, named=True)
    yield PeerMethod("deepinv", "DiffPIR", grid(zeta=(0.1, 0.5, 1.0), lambda_=(2.0, 7.0)), steps, diffpir, named=True)
    yield PeerMethod(
        "deepinv",
        "DPS",
        (
            *grid(weight=(0.3, 1.0, 3.0), guidance=("norm",), solver=("ddpm",)),
            *grid(weight=(1.0,), guidance=("annealed",), solver=("ddpm", "ddim")),
        ),
        (50, 100, 250, 1000),
        dps,
        named=True,
    )
    yield PeerMethod(
        "deepinv", "PiGDM", grid(solver=("ddpm", "ddim", "heun"), schedule=("vp", "ve")), steps, pigdm, named=True
    )
    yield PeerMethod(
        "deepinv",
        "moment matching",
        grid(solver=("ddpm", "ddim", "heun"), schedule=("vp", "ve"), iterations=(1, 3)),
        steps,
        moments,
    )


# ---- azula ------------------------------------------------------------------------------------------------------


def _azula_denoiser(job: Job, schedule: str) -> Any:
    from azula import noise
    from azula.denoise import Denoiser, DiracPosterior

    schedules = {
        "vp": noise.VPSchedule,
        "cosine": noise.CosineSchedule,
        "decay": noise.DecaySchedule,
        "ve": lambda: noise.VESchedule(1e-3, 1e2),
        "ve, narrow": lambda: noise.VESchedule(1e-2, 1e2),
    }

    class Clean(Denoiser):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.schedule = schedules[schedule]()

        def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> Any:
            alpha, sigma = self.schedule(t)
            return DiracPosterior(job.model(x_t / alpha, float(sigma / alpha)))

    return Clean()


def _azula_sampler(denoiser: Any, name: str, steps: int) -> Any:
    from azula import sample

    made = {
        "ddim": (sample.DDIMSampler, {"eta": 0.0}),
        "ddpm": (sample.DDIMSampler, {"eta": 1.0}),
        "heun": (sample.HeunSampler, {}),
        "xEAB2": (sample.xEABSampler, {"order": 2}),
        "xEAB3": (sample.xEABSampler, {"order": 3}),
        "zEAB2": (sample.zEABSampler, {"order": 2}),
        "REAB2": (sample.REABSampler, {"order": 2}),
    }
    kind, options = made[name]
    return kind(denoiser, steps=steps, silent=True, **options)


def _drawn(sampler: Any, job: Job) -> Callable[[], Tensor]:
    return lambda: sampler(sampler.init((len(job.y), *job.shape)))


def _azula() -> Iterator[PeerMethod]:
    def repaint(job: Job, steps: int, iterations: int, eta: float, schedule: str) -> Callable[[], Tensor]:
        from azula.guidance.repaint import RePaintSampler

        known = job.known.expand(job.y.shape)
        options = {"iterations": iterations, "eta": eta, "steps": steps, "silent": True}
        return _drawn(RePaintSampler(_azula_denoiser(job, schedule), job.y, known, **options), job)

    def pgdm(job: Job, steps: int, eta: float, schedule: str) -> Callable[[], Tensor]:
        from azula.guidance.pgdm import PGDMSampler

        def back(u: Tensor) -> Tensor:
            if job.masked:
                job.rows(job.y[:1])
                x = torch.zeros(len(u), job.known.numel())
                return x.index_copy(1, job._kept["index"], u).reshape(-1, *job.shape)
            return (u @ torch.linalg.pinv(job.matrix).mT).reshape(-1, *job.shape)

        options = {"eta": eta, "steps": steps, "silent": True}
        return _drawn(PGDMSampler(_azula_denoiser(job, schedule), job.seen, job.rows, back, **options), job)

    def dps(job: Job, steps: int, zeta: float, schedule: str) -> Callable[[], Tensor]:
        from azula.guidance.dps import DPSSampler

        scale = zeta * len(job.y) ** 0.5  # its norm is over the whole batch
        return _drawn(
            DPSSampler(_azula_denoiser(job, schedule), job.seen, job.rows, scale, steps=steps, silent=True), job
        )

    def diffpir(job: Job, steps: int, sampler: str, lmbda: float, iterations: int) -> Callable[[], Tensor]:
        from azula.guidance.diffpir import DiffPIRDenoiser

        variance = max(job.sigma_y, SMALL) ** 2
        clean = DiffPIRDenoiser(
            _azula_denoiser(job, "vp"), job.seen, job.rows, variance, lmbda=lmbda, iterations=iterations
        )
        return _drawn(_azula_sampler(clean, sampler, steps), job)

    def tmpd(job: Job, steps: int, sampler: str, schedule: str) -> Callable[[], Tensor]:
        from azula.guidance.tmpd import TMPDenoiser

        variance = max(job.sigma_y, SMALL) ** 2
        clean = TMPDenoiser(_azula_denoiser(job, schedule), job.seen, job.rows, variance)
        return _drawn(_azula_sampler(clean, sampler, steps), job)

    def mmps(
        job: Job, steps: int, sampler: str, schedule: str, iterations: int, solver: str = "gmres"
    ) -> Callable[[], Tensor]:
        from azula.guidance.mmps import MMPSDenoiser
        from azula.linalg.covariance import IsotropicCovariance

        noise = IsotropicCovariance(job.sigma_y**2)
        clean = MMPSDenoiser(
            _azula_denoiser(job, schedule), job.seen, job.rows, noise, solver=solver, iterations=iterations
        )
        return _drawn(_azula_sampler(clean, sampler, steps), job)

    def jfps(job: Job, steps: int, sampler: str, schedule: str, iterations: int) -> Callable[[], Tensor]:
        from azula.guidance.jfps import JFPSDenoiser
        from azula.linalg.covariance import IsotropicCovariance

        noise, prior = (IsotropicCovariance(s**2) for s in (max(job.sigma_y, SMALL), 0.25))
        clean = JFPSDenoiser(
            _azula_denoiser(job, schedule), job.seen, job.rows, noise, prior, solver="gmres", iterations=iterations
        )
        return _drawn(_azula_sampler(clean, sampler, steps), job)

    few, many = (8, 10, 15, 20, 30, 50, 100, 250), (20, 50, 100, 250, 1000)
    yield PeerMethod(
        "azula",
        "RePaint",
        grid(iterations=(3, 10), eta=(0.0, 1.0), schedule=("vp", "cosine")),
        (20, 50, 100, 250, 500),
        repaint,
        masks_only=True,
        named=True,
    )
    yield PeerMethod("azula", "PiGDM", grid(eta=(0.0, 1.0), schedule=("vp", "cosine")), many, pgdm, named=True)
    yield PeerMethod(
        "azula", "DPS", grid(zeta=(0.1, 0.3, 1.0), schedule=("vp",)), (50, 100, 250, 1000), dps, named=True
    )
    yield PeerMethod(
        "azula",
        "DiffPIR",
        grid(sampler=("ddpm", "ddim", "xEAB2"), lmbda=(1.0, 10.0), iterations=(1, 2)),
        many,
        diffpir,
        named=True,
    )
    yield PeerMethod("azula", "TMPD", grid(sampler=("ddpm", "ddim", "xEAB2"), schedule=("vp", "decay")), few, tmpd)
    yield PeerMethod(
        "azula",
        "JFPS",
        grid(sampler=("ddpm", "xEAB2"), schedule=("vp", "decay"), iterations=(1, 3)),
        few,
        jfps,
    )
    yield PeerMethod(
        "azula",
        "MMPS",
        (
            *grid(
                sampler=("zEAB2", "REAB2", "xEAB2"), schedule=("cosine", "vp", "ve", "ve, narrow"), iterations=(1, 2, 4)
            ),
            *grid(sampler=("ddim", "heun", "xEAB3"), schedule=("cosine", "ve, narrow"), iterations=(1, 4)),
            *grid(sampler=("zEAB2", "REAB2"), schedule=("cosine",), iterations=(3, 4), solver=("cg",)),
        ),
        few,
        mmps,
    )
