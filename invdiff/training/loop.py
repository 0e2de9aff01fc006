"""Train a small diffusion backbone on a folder or zip of images.

    from invdiff.training.loop import train

    backbone = train("photos.zip", "runs/mine", size=64, images=500_000)

Everything random in a training (order of the images, flips, times, noise, dropout) is a function of (seed, step), so that
a training that was killed goes on from its last checkpoint as if nothing had happened.
"""

from __future__ import annotations

import copy
import csv
import hashlib
import io
import math
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invdiff.backbones.base import Backbone
from invdiff.backbones.haar import DDPM, DESCRIPTION, Description, HaarUNet
from invdiff.backbones.network import PRECISIONS, PREDICTIONS, NetworkBackbone, available_device, native_bfloat16
from invdiff.backbones.schedule import NoiseSchedule
from invdiff.backbones.zoo import EMBEDDED, load_backbone
from invdiff.checks import shown
from invdiff.errors import DivergenceError, InvdiffError, InvdiffWarning, near_match
from invdiff.files import atomic_write, make_folder, replace_file
from invdiff.images import sample_sheet
from invdiff.options import check_options, option
from invdiff.training.data import has_split, load_images, load_splits

CHECKPOINT = "checkpoint.pt"
LOG = "log.csv"
LOSS_PLOT = "loss.png"
SAMPLES = "samples.png"
COLUMNS = ("step", "images", "loss", "lr", "gradient", "error", "seconds")

EVALUATED = 128
"""Images of the held-out error."""

_HASHED = 20_000
"""Images that `_Training.fingerprint` looks at: some 250 MB at 64x64, a fraction of a second."""

_EVERY_RUN = ("images", "minutes", "checkpoint_minutes", "compile", "device", "cache", "licence", "name", "samples")
"""Options that may change when a training is taken up again."""


# ---- options ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingConfig:
    """Options of a training. The defaults are those of the embedded backbones."""

    size: int = option(64, "height and width of the images, in pixels", low=8, high=2048)
    images: int = option(
        1_000_000, "images to see before the training ends; the learning rate decays towards it", low=1
    )
    minutes: float = option(0.0, "stop after this many minutes, to be taken up again; 0: no limit", low=0)
    batch: int = option(32, "images per step", low=1, high=65_536)
    seed: int = option(0, "of the weights, the order of the images, flips, times, noise and dropout", low=0)
    init: str = option(
        "", "start from the weights of this backbone: a folder of an earlier training or an embedded name"
    )
    exclude: str = option("", "files or folders to leave out: names or patterns, separated by commas")
    holdout: float = option(0.02, "fraction of the images held out where there is no val/ folder", low=0, high=0.9)
    cache: bool = option(False, "keep the decoded images in a file and map it, for data that does not fit into memory")
    flips: bool = option(True, "mirror half of the images left to right")
    symmetries: bool = option(
        False, "all 8 symmetries of the square, for images without an up, such as satellite tiles"
    )

    prediction: str = option("v_prediction", "what the network predicts", choices=PREDICTIONS)
    weighting: str = option(
        "uniform", "of the loss over times: uniform, or min-SNR of Hang et al. 2023", choices=("uniform", "min-snr")
    )
    gamma: float = option(5.0, "where min-SNR cuts the signal-to-noise ratio", low=0)
    haar: bool = option(True, "orthonormal Haar transform around the network: a quarter of the cost")
    channels: str = option(
        "64,128,160", "channels of each resolution, from the finest; each next one has half the size"
    )
    layers: int = option(2, "residual blocks per resolution", low=1, high=32)
    attention: int = option(8, "self-attention at this many pixels and below", low=0)
    dropout: float = option(0.0, "probability in every residual block, against memorising small data", low=0, high=0.9)

    lr: float = option(2e-4, "peak learning rate of AdamW", low=0)
    warmup: int = option(300, "steps over which the learning rate rises", low=0)
    final_lr: float = option(0.02, "fraction of the learning rate that the cosine decay ends at", low=0, high=1)
    weight_decay: float = option(0.01, "of AdamW", low=0)
    beta2: float = option(0.99, "of AdamW: memory of the squared gradients", low=0, high=0.99999)
    clip: float = option(1.0, "largest norm of the gradient", low=0)
    ema: float = option(
        0.9995, "memory of the averaged weights, reached over a ramp; these are the ones saved", low=0, high=0.99999
    )

    device: str = option("auto", "where to train: auto (a GPU if there is one), cpu, cuda, cuda:1, ...")
    precision: str = option("auto", "auto: bfloat16 where the hardware has it", choices=("auto", "float32", "bfloat16"))
    compile: str = option("auto", "torch.compile; auto: on a GPU", choices=("auto", "yes", "no"))
    checkpoint_minutes: float = option(
        4.0, "between checkpoints; each also writes weights, plot and sample sheet", low=0
    )
    log_steps: int = option(50, "steps between the rows of the log", low=1)
    samples: int = option(16, "images of the sample sheet; 0: none", low=0, high=4096)
    store: str = option("bfloat16", "precision of the saved weights", choices=tuple(PRECISIONS))
    name: str = option("", "what reports call the backbone; by default the name of its folder")
    licence: str = option("", "of the data, for the record")

    def __post_init__(self) -> None:
        check_options(self, "train")
        _ = self.widths

    @property
    def widths(self) -> tuple[int, ...]:
        """`channels` as numbers."""
        try:
            widths = tuple(int(w) for w in self.channels.split(","))
        except ValueError:
            widths = ()
        if not 1 <= len(widths) <= 8 or not all(1 <= width <= 4096 for width in widths):
            raise InvdiffError(
                "channels must be one to eight numbers up to 4096 separated by commas, such as 64,128,160, "
                f"got {shown(self.channels)}"
            )
        return widths

    @property
    def excluded(self) -> list[str]:
        """`exclude` as a list."""
        return _listed(self.exclude)


def _listed(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


# ---- training ---------------------------------------------------------------------------------------------------


def train(
    data: str | Path,
    out: str | Path,
    config: TrainingConfig | None = None,
    *,
    resume: bool = True,
    progress: bool = True,
    **options: Any,
) -> NetworkBackbone:
    """Train a backbone; `load_backbone(out)` loads it from then on.

    `out` receives ``config.json``, ``diffusion_pytorch_model.safetensors`` (averaged weights) and ``invdiff.json``, the
    log ``log.csv``, ``loss.png``, ``samples.png``, and ``checkpoint.pt`` to go on from, every few minutes and at the end.

    Args:
        data: folder or zip of images, see `load_images`; ``train`` and ``val`` folders in it are respected.
        out: folder, made if it isn't there.
        config: the options; `options` change single ones, ``train(data, out, size=32, images=100_000)``.
        resume: go on from the checkpoint in `out`, if there is one. False starts anew.
        progress: show a bar with images per second and time left.

    Returns:
        The backbone with averaged weights.

    Raises:
        InvdiffError: no images, an option out of its range, or a checkpoint made with other options.
        DivergenceError: the loss went non-finite; the last checkpoint stays.
    """
    unknown = sorted(set(options) - {f.name for f in fields(TrainingConfig)})
    if unknown:
        hint = near_match(unknown[0], [f.name for f in fields(TrainingConfig)])
        raise InvdiffError(f"train has no option {unknown[0]!r}.{hint}")
    config = replace(config or TrainingConfig(), **options)
    folder = make_folder(out, "out")
    if not isinstance(data, str | os.PathLike):
        raise InvdiffError(f"data must be a folder or zip of images, got {shown(data)}")
    if config.device != "auto":
        available_device(config.device)
    cache = folder if config.cache else None
    pictures, held_out = load_splits(
        data, config.size, exclude=config.excluded, holdout=config.holdout, seed=config.seed, cache=cache
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*lru_cache.*")  # dynamo about diffusers' own code
        training = _Training(config, folder, pictures, held_out, Path(data).resolve().name)
        if resume and (folder / CHECKPOINT).exists():
            training.resume()
        else:
            training.start()
        training.run(progress)
    return training.backbone()


class _Training:
    """A training under way: two networks, an optimizer and a step count."""

    def __init__(self, config: TrainingConfig, folder: Path, pictures: Tensor, held_out: Tensor, data: str) -> None:
        self.config, self.folder, self.held_out, self.data = config, folder, held_out, data
        cuda = torch.cuda.is_available()
        self.device = torch.device(("cuda" if cuda else "cpu") if config.device == "auto" else config.device)
        self.half = config.precision == "bfloat16" or (config.precision == "auto" and native_bfloat16(self.device))
        self.pictures = pictures if config.cache else pictures.to(self.device)
        torch.manual_seed(config.seed)
        self.network = _network(config, config.name or folder.resolve().name).to(self.device).train()
        if self.half:
            self.network = self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.parameters: list[Tensor] = list(self.network.parameters())
        self.averages: list[Tensor] = list(self.average.parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.lr, betas=(0.9, config.beta2), weight_decay=config.weight_decay, fused=True
        )
        compiles = config.compile == "yes" or (config.compile == "auto" and self.device.type == "cuda")
        self.forward: Any = torch.compile(self.network) if compiles else self.network
        levels = self.network.description.noise_schedule().alpha_bar[:-1]
        self.T = len(levels)
        self.signal, self.noise = levels.sqrt().float().to(self.device), (1 - levels).sqrt().float().to(self.device)
        self.weights = _weights(config, levels).float().to(self.device)
        self.step, self.seconds, self.error = 0, 0.0, math.nan
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.loss_steps = 0

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the images; of large collections, of every k-th."""
        digest = hashlib.blake2b(digest_size=16)
        for part in (self.pictures, self.held_out):
            digest.update(repr(tuple(part.shape)).encode())
            for picture in part[:: max(1, len(part) // _HASHED)]:
                digest.update(picture.cpu().numpy().tobytes())
        return digest.hexdigest()

    @property
    def seen(self) -> int:
        return self.step * self.config.batch

    def run(self, progress: bool) -> None:
        config, began, earlier = self.config, time.monotonic(), self.seconds
        saved, saved_step = began, self.step
        with _progress(progress, config.images, self.seen) as report:
            while self.seen < config.images:
                loss, gradient = self.take_step()
                self.loss_sum += loss
                self.loss_steps += 1
                now = time.monotonic()
                self.seconds = earlier + now - began
                if self.step % config.log_steps == 0:
                    self.log(float(gradient))
                over = bool(config.minutes) and now - began > 60 * config.minutes
                if over or now - saved > 60 * config.checkpoint_minutes:
                    self.checkpoint()
                    saved, saved_step = time.monotonic(), self.step
                report(self.seen, f"error {self.error:.4f}" if self.error == self.error else "")
                if over:
                    return
            if saved_step != self.step or not (self.folder / CHECKPOINT).exists():
                self.checkpoint()

    def take_step(self) -> tuple[Tensor, Tensor]:
        """One batch; its loss and the norm of its gradient."""
        config, step = self.config, self.step
        # Everything random in here comes from these two, both made anew for this step.
        torch.manual_seed(_mix(config.seed, step, "dropout"))
        draw = torch.Generator(self.device).manual_seed(_mix(config.seed, step, "batch"))
        which = _batch(len(self.pictures), config.batch, step, config.seed).to(self.pictures.device)
        x0 = _augment(self.pictures[which].to(self.device), config, draw).float() / 127.5 - 1
        strata = torch.arange(len(x0), device=self.device)
        u = (strata + torch.rand(len(x0), generator=draw, device=self.device, dtype=torch.float32)) / len(x0)
        t = (u * self.T).long().clamp(max=self.T - 1)
        noise = torch.randn(x0.shape, generator=draw, device=self.device, dtype=torch.float32)
        a, s = (level[t].reshape(-1, 1, 1, 1) for level in (self.signal, self.noise))
        target = {"epsilon": noise, "sample": x0, "v_prediction": a * noise - s * x0}[config.prediction]
        x_t = a * x0 + s * noise
        if self.half:
            x_t = x_t.contiguous(memory_format=torch.channels_last)

        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            out = self.forward(x_t, t)
        loss = (self.weights[t] * (out.float() - target).square().mean((1, 2, 3))).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        gradient = nn.utils.clip_grad_norm_(self.parameters, config.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = _learning_rate(config, step)
        self.optimizer.step()
        with torch.no_grad():
            keep = min(config.ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(self.averages, self.parameters, 1 - keep)
        self.step += 1
        return loss.detach(), gradient

    # ---- what is written -----------------------------------------------------------------------------------

    def start(self) -> None:
        (self.folder / CHECKPOINT).unlink(missing_ok=True)
        replace_file(self.folder / LOG, (",".join(COLUMNS) + "\n").encode())

    def log(self, gradient: float) -> None:
        loss = float(self.loss_sum) / self.loss_steps
        if not math.isfinite(loss):
            raise DivergenceError(
                f"training diverged before step {self.step}: the loss is {loss}. Take a smaller lr (now {self.config.lr:g}) or "
                f"a longer warmup; the checkpoint in {self.folder} is from before"
            )
        rate = _learning_rate(self.config, self.step - 1)
        row = (self.step, self.seen, f"{loss:.6g}", f"{rate:.4g}", f"{gradient:.4g}", "", f"{self.seconds:.1f}")
        self.loss_sum.zero_()
        self.loss_steps = 0
        self._append(row)

    def _append(self, row: Sequence[Any]) -> None:
        with (self.folder / LOG).open("a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(row)

    def checkpoint(self) -> None:
        """Held-out error, weights, plot, samples; the state to go on from last, when all else is in place."""
        backbone = self.backbone()
        self.error = evaluate(backbone, self.held_out)
        if not math.isfinite(self.error):
            raise DivergenceError(f"training diverged before step {self.step}: the held-out error is {self.error}")
        self._append((self.step, self.seen, "", "", "", f"{self.error:.6g}", f"{self.seconds:.1f}"))
        self.average.description = replace(self.average.description, provenance=self.provenance())
        self.average.save(self.folder, precision=self.config.store)
        replace_file(self.folder / LOSS_PLOT, _loss_plot(read_log(self.folder)))
        if self.config.samples:
            sheet = io.BytesIO()
            sample_sheet(draw_samples(backbone, self.config.samples)).save(sheet, "png")
            replace_file(self.folder / SAMPLES, sheet.getvalue())
        state = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "error": self.error,
            "loss_sum": self.loss_sum,
            "loss_steps": self.loss_steps,
            "config": asdict(self.config),
            "pictures": self.fingerprint,
        }
        try:
            with atomic_write(self.folder / CHECKPOINT) as temporary:
                torch.save(state, temporary)
        except (OSError, RuntimeError) as error:  # torch says RuntimeError when a disk is full
            raise InvdiffError(
                f"{self.folder / CHECKPOINT} cannot be written: {error}. The checkpoint before it is whole: with more room on "
                "the disk the same command goes on from there"
            ) from error

    def resume(self) -> None:
        """Take up the state of the checkpoint; rows that the log holds from after it are dropped."""
        path = self.folder / CHECKPOINT
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            before, now = state["config"], asdict(self.config)
        except Exception as error:
            raise InvdiffError(f"{path} cannot be read ({error}); resume=False starts anew") from error
        if state.get("pictures", self.fingerprint) != self.fingerprint:
            raise InvdiffError(
                f"{self.folder} holds a training on other images than {self.data} has now: some were added, taken away or changed. "
                "Put them back, or say resume=False (--restart) to start anew"
            )
        changed = [k for k in now if k not in _EVERY_RUN and before.get(k, now[k]) != now[k]]
        if changed:
            was = ", ".join(f"{k}={before[k]!r} (now {now[k]!r})" for k in changed)
            raise InvdiffError(
                f"{self.folder} holds a training with {was}; give the same options, or resume=False to start anew"
            )
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.error = state["step"], state["seconds"], state["error"]
        self.loss_sum, self.loss_steps = state["loss_sum"], state["loss_steps"]
        rows = (self.folder / LOG).read_text(encoding="utf-8").splitlines()
        kept = rows[:1] + [r for r in rows[1:] if (n := r.split(",")[0]).isdigit() and int(n) <= self.step]
        replace_file(self.folder / LOG, ("\n".join(kept) + "\n").encode())

    def provenance(self) -> dict[str, Any]:
        given = asdict(self.config)
        return {
            "data": self.data,
            "licence": self.config.licence,
            "training_images": len(self.pictures),
            "images_seen": self.seen,
            "held_out_error": round(self.error, 6),
            "recipe": {k: v for k, v in given.items() if k not in (*_EVERY_RUN, "store")},
        }

    def backbone(self) -> NetworkBackbone:
        return self.average.backbone(precision="bfloat16" if self.half else "float32")


def _network(config: TrainingConfig, name: str) -> HaarUNet:
    description = Description(
        name=name,
        image_shape=(3, config.size, config.size),
        haar=config.haar,
        prediction=config.prediction,
        schedule=dict(DDPM),
    )
    if not config.init:
        return HaarUNet.new(
            description,
            channels=config.widths,
            layers=config.layers,
            attention=config.attention,
            dropout=config.dropout,
        )
    folder = Path(config.init).expanduser()
    if not (folder / DESCRIPTION).is_file() and (EMBEDDED / config.init / DESCRIPTION).is_file():
        folder = EMBEDDED / config.init
    first = HaarUNet.load(folder)
    if first.description.haar != config.haar:
        raise InvdiffError(f"init: {folder} was trained with haar={first.description.haar}, not {config.haar}")
    for module in first.unet.modules():
        if isinstance(module, nn.Dropout):
            module.p = config.dropout
    return HaarUNet(first.unet, description)


def _weights(config: TrainingConfig, levels: Tensor) -> Tensor:
    """Weight of every time in the loss, (T,): 1, or min(snr, gamma) over what the prediction weighs by itself."""
    if config.weighting == "uniform":
        return torch.ones_like(levels)
    snr = levels / (1 - levels)
    by_itself = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}[config.prediction]
    return snr.clamp(max=config.gamma) / by_itself


def _learning_rate(config: TrainingConfig, step: int) -> float:
    """Linear warm-up, then half a cosine down to `final_lr` of it."""
    done = min(1.0, step * config.batch / config.images)
    cosine = config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * done))
    return config.lr * cosine * min(1.0, (step + 1) / max(1, config.warmup))


def _mix(seed: int, step: int, role: str) -> int:
    """A seed of 63 bits from (seed, step, role)."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{role}".encode()).digest()[:8], "big") >> 1


@lru_cache(maxsize=2)
def _order(images: int, epoch: int, seed: int) -> Tensor:
    return torch.randperm(images, generator=torch.Generator().manual_seed(_mix(seed, epoch, "order")))


def _batch(images: int, batch: int, step: int, seed: int) -> Tensor:
    """Which images a step takes: every epoch a new permutation, batches run on across epochs."""
    first, last = step * batch, (step + 1) * batch
    parts = []
    for epoch in range(first // images, (last - 1) // images + 1):
        start = epoch * images
        parts.append(_order(images, epoch, seed)[max(first - start, 0) : last - start])
    return torch.cat(parts)


def _augment(x: Tensor, config: TrainingConfig, draw: torch.Generator) -> Tensor:
    """Mirrored, or any of the 8 symmetries of the square, each image for itself."""
    if not (config.flips or config.symmetries):
        return x
    coin = torch.rand((3, len(x), 1, 1, 1), generator=draw, device=x.device, dtype=torch.float32) < 0.5
    x = torch.where(coin[0], x.flip(-1), x)
    if config.symmetries:
        x = torch.where(coin[1], x.flip(-2), x)
        x = torch.where(coin[2], x.transpose(-1, -2), x)
    return x


# ---- measuring --------------------------------------------------------------------------------------------------


def evaluate(backbone: Backbone, images: Tensor, *, batch: int = 32) -> float:
    """Mean squared error of the predicted noise on a fixed draw: how good a backbone is, whatever it predicts.

    The first 128 images (all, if fewer), image i at the level of DDPM's linear schedule at ``t_i``, with ``t`` evenly
    from 20 to 980, and standard normal noise from a generator with seed 0. A backbone with another schedule is asked at
    the nearest level that it has. 1 is what predicting zero gives.

    Args:
        backbone: any.
        images: (N, C, H, W), uint8 or in model range; held out from its training.
        batch: images per call.

    Raises:
        InvdiffError: no images, or of a shape that the backbone wasn't made for.
    """
    images = _floats(images)
    if len(images) == 0 or tuple(images.shape[1:]) != tuple(backbone.image_shape):
        raise InvdiffError(
            f"images must be (N, {', '.join(map(str, backbone.image_shape))}), got {tuple(images.shape)}"
        )
    x0 = images[:EVALUATED].to(backbone.device, backbone.dtype)
    drawn = torch.randn(EVALUATED, *x0.shape[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    noise = drawn[: len(x0)].to(x0)
    linear = NoiseSchedule.linear(1000)
    t = torch.linspace(20, 980, len(x0), dtype=torch.float32).round().long()
    schedule = backbone.schedule
    if len(schedule) != len(linear) or not torch.equal(schedule.alpha_bar, linear.alpha_bar):
        t = torch.tensor([schedule.nearest(linear.alpha_bar_at(int(i))) for i in t])
    errors = []
    with torch.inference_mode():
        for i in range(0, len(x0), batch):
            part = slice(i, i + batch)
            a = schedule.alpha_bar[t[part]].to(x0).reshape(-1, *[1] * (x0.ndim - 1))
            eps = backbone.predict(a.sqrt() * x0[part] + (1 - a).sqrt() * noise[part], t[part]).eps
            errors.append((eps.double() - noise[part].double()).square().flatten(1).mean(1))
    return float(torch.cat(errors).mean())


def evaluate_on(
    backbone: str | Path | Backbone,
    data: str | Path,
    *,
    size: int | None = None,
    exclude: str | Sequence[str] = (),
    holdout: float | None = None,
    seed: int = 0,
    precision: str = "auto",
) -> float:
    """Held-out error of a backbone on the images of a folder or zip, see `evaluate`.

    These are the ones under ``val``. Without such a folder they are those that the training held out, if the backbone
    was trained on a folder or zip of this name; else the first 128, with a warning.

    Args:
        backbone: name, folder or `Backbone`.
        data: folder or zip.
        size: height and width to read the images at; the backbone's own by default.
        exclude: names or patterns to leave out; in a string, separated by commas.
        holdout: fraction that the training held out, and
        seed: its seed, where the data has no ``val`` folder and the backbone doesn't know them.
        precision: of the network.

    Raises:
        InvdiffError: no images, or of a size that the backbone wasn't made for.
    """
    loaded = backbone if isinstance(backbone, Backbone) else load_backbone(backbone, precision=precision)
    height, width = loaded.image_shape[-2:]
    if height != width:
        raise InvdiffError(
            f"images are read as squares, {loaded.name} takes {height}x{width}; pass a tensor to evaluate()"
        )
    left_out = _listed(exclude) if isinstance(exclude, str) else list(exclude)
    description = getattr(getattr(loaded, "module", None), "description", None)
    if description is not None and holdout is None and description.provenance.get("data") == Path(data).resolve().name:
        recipe = description.provenance.get("recipe", {})
        holdout, seed = recipe.get("holdout"), recipe.get("seed", seed)
        left_out = left_out or _listed(recipe.get("exclude", ""))
    pixels = size or height
    if has_split(data, "val", exclude=left_out):
        images, _ = load_images(data, pixels, split="val", exclude=left_out, limit=EVALUATED)
    elif holdout is not None:
        _, images = load_splits(data, pixels, exclude=left_out, holdout=holdout, seed=seed)
    else:
        images, _ = load_images(data, pixels, exclude=left_out, limit=EVALUATED)
        text = f"{data} has no val folder: its first {len(images)} images are taken as held out"
        warnings.warn(text, InvdiffWarning, stacklevel=2)
    return evaluate(loaded, images)


def draw_samples(backbone: Backbone, n: int = 16, *, steps: int = 50, eta: float = 0.0, seed: int = 0) -> Tensor:
    """Images from the prior, uncurated: (n, C, H, W), clamped to model range.

    DDIM (Song et al., 2021, eq. 12); ``eta=1`` is ancestral sampling. The clean estimate is clipped at every step.

    Args:
        backbone: any.
        n: how many.
        steps: network calls, 1..T.
        eta: share of the ancestral noise, 0..1.
        seed: of the starting noise and of every step's.
    """
    short = backbone.on(backbone.schedule.respaced(steps))
    draw = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        x = torch.randn(n, *backbone.image_shape, generator=draw, dtype=torch.float32).to(
            backbone.device, backbone.dtype
        )
        for t in reversed(range(steps)):
            a, a_s = short.schedule.alpha_bar_at(t), short.schedule.alpha_bar_at(t - 1)
            x0 = short.predict(x, t).x0.clamp(-1, 1)
            eps = (x - a**0.5 * x0) / (1 - a) ** 0.5
            sigma = eta * ((1 - a_s) / (1 - a) * (1 - a / a_s)) ** 0.5
            x = a_s**0.5 * x0 + max(0.0, 1 - a_s - sigma**2) ** 0.5 * eps
            if sigma > 0:
                x = x + sigma * torch.randn(x.shape, generator=draw, dtype=torch.float32).to(x)
    return x.clamp(-1, 1).cpu()


def nearest_neighbours(samples: Tensor, images: Tensor, *, count: int = 1, size: int = 16) -> tuple[Tensor, Tensor]:
    """The nearest images of each sample by pixel distance, mirrored too: has a model memorised its training set?

    Args:
        samples: (N, C, H, W), uint8 or in model range.
        images: (M, C, H, W), likewise.
        count: how many neighbours.
        size: both are averaged down to this height and width first (or to their own, where that is smaller).

    Returns:
        Numbers of the images, long (N, count), nearest first, and the root-mean-square distance in model range, (N, count).

    Raises:
        InvdiffError: shapes that differ, or fewer images than neighbours.
    """
    if samples.shape[1:] != images.shape[1:]:
        raise InvdiffError(f"samples {tuple(samples.shape)} and images {tuple(images.shape)} must be of one shape")
    if not 1 <= count <= len(images):
        raise InvdiffError(f"count must be 1 to {len(images)}, the number of images; got {count}")
    size = min(size, *images.shape[-2:])
    small = torch.cat([F.adaptive_avg_pool2d(_floats(part), size) for part in images.split(1024)])
    queries = F.adaptive_avg_pool2d(_floats(samples), size).flatten(1)
    straight, mirrored = (torch.cdist(queries, s.flatten(1)) for s in (small, small.flip(-1)))
    distance, index = torch.minimum(straight, mirrored).topk(count, largest=False)
    return index, distance / queries.shape[1] ** 0.5


def read_log(folder: str | Path) -> dict[str, list[tuple[int, float]]]:
    """The log of a training: ``"loss"`` and ``"error"`` (held out), each a list of (images seen, value)."""
    with (Path(folder) / LOG).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {key: [(int(r["images"]), float(r[key])) for r in rows if r[key]] for key in ("loss", "error")}


def _loss_plot(log: dict[str, list[tuple[int, float]]]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, key, title in zip(
        figure.subplots(1, 2), ("loss", "error"), ("training loss", "held-out error of the noise"), strict=True
    ):
        axes.plot(*zip(*log[key], strict=True) if log[key] else ([], []), marker="." if len(log[key]) < 60 else None)
        axes.set(title=title, xlabel="images seen", yscale="log" if log[key] else "linear")
        axes.grid(alpha=0.3, which="both")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()


def _floats(images: Tensor) -> Tensor:
    """Model range."""
    return images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images


@contextmanager
def _progress(show: bool, total: int, done: int) -> Iterator[Any]:
    """A function of (images seen, text) that moves the bar."""
    if not show:
        yield lambda seen, text: None
        return
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Any:
            from rich.text import Text

            return Text(f"{task.speed:.0f} images/s" if task.speed else "")

    columns = (TextColumn("{task.completed:,.0f} images"), BarColumn(), Speed(), TextColumn("{task.description}"))
    with Progress(
        *columns, TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), speed_estimate_period=120
    ) as bar:
        task = bar.add_task("", total=total, completed=done)
        yield lambda seen, text: bar.update(task, completed=seen, description=text)
