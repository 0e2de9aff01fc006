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
from torch import Tensor, nn

from invdiff.backbones.haar import DDPM, DESCRIPTION, FLOW, LEARNED, RESTORATION, Description, HaarUNet
from invdiff.backbones.local_unet import LocalUNet
from invdiff.backbones.network import NetworkBackbone, available_device, native_bfloat16
from invdiff.backbones.restoring import RestoringUNet
from invdiff.backbones.weights_file import STORED, WEIGHTS
from invdiff.backbones.zoo import EMBEDDED
from invdiff.checks import known, one_of, shown
from invdiff.errors import DivergenceError, InvdiffError
from invdiff.files import atomic_write, make_folder, replace_file
from invdiff.images import sample_sheet
from invdiff.operators.masks import mask_names
from invdiff.options import check_options, option
from invdiff.training.crops import SIDES, Crops
from invdiff.training.data import load_photos, load_splits
from invdiff.training.distillation import TARGETS, Distillation, distance, few_times
from invdiff.training.evaluation import EVALUATED_SIZE, draw_samples, evaluate, listed
from invdiff.training.muon import Muon
from invdiff.training.restoration import HELD_OUT, Adversary, masked, masks, missing_error

CHECKPOINT = "checkpoint.pt"
LOG = "log.csv"
LOSS_PLOT = "loss.png"
SAMPLES = "samples.png"
COLUMNS = ("step", "images", "loss", "lr", "gradient", "error", "seconds")

_HASHED = 20_000
"""Images that `_Training.fingerprint` looks at: some 250 MB at 64x64, a fraction of a second."""

_EVERY_RUN = (
    "walks",
    "images",
    "minutes",
    "checkpoint_minutes",
    "compile",
    "device",
    "cache",
    "licence",
    "name",
    "samples",
)
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

    task: str = option(
        "denoise", "what is learned: a backbone, or a network that restores in one call", choices=("denoise", "inpaint")
    )
    masks: str = option("wide,box,half", "with task inpaint: names of the masks that it sees, separated by commas")
    adversarial: float = option(
        0.0, "with task inpaint or distill: weight of a discriminator of wavelet coefficients; 0: none", low=0
    )

    distill: str = option(
        "",
        "teach a network of a few calls what this backbone does in many: a folder of `invdiff train` or an embedded name",
    )
    distill_steps: int = option(4, "with distill: calls of the student", low=1, high=64)
    target: str = option(
        "segment",
        "with distill: learn where the teacher's path to the next level (segment) or to the image (end) leads",
        choices=TARGETS,
    )
    walks: int = option(1500, "with distill: paths of the teacher that the student learns from, made once", low=1)
    teacher_calls: int = option(3, "with distill: of the teacher between two levels of the student", low=1, high=250)

    crops: bool = option(
        False, "random crops of 64 to 128 pixels at scales 1, 1/2, 1/4: a LocalUNet, which takes pictures of any size"
    )
    turned: str = option(
        "", "with crops: names or patterns of pictures without an up, which are turned by quarters too"
    )

    prediction: str = option(
        "v_prediction",
        "what the network predicts; flow: the velocity of a straight line from image to noise",
        choices=LEARNED,
    )
    weighting: str = option(
        "uniform", "of the loss over times: uniform, or min-SNR of Hang et al. 2023", choices=("uniform", "min-snr")
    )
    gamma: float = option(5.0, "where min-SNR cuts the signal-to-noise ratio", low=0)
    haar: bool = option(True, "orthonormal Haar transform around the network: a quarter of the cost")
    channels: str = option(
        "64,128,160", "channels of each resolution, from the finest; each next one has half the size"
    )
    blocks: str = option("2,2,4", "with crops: residual blocks of each resolution")
    layers: int = option(2, "residual blocks per resolution", low=1, high=32)
    attention: int = option(8, "self-attention at this many pixels and below", low=0)
    dropout: float = option(0.0, "probability in every residual block, against memorising small data", low=0, high=0.9)

    lr: float = option(
        2e-4, "peak learning rate of AdamW; with crops, of Adam for what Muon leaves, in shares of a weight", low=0
    )
    muon: float = option(
        0.0,
        "peak share of a weight that a step of Muon changes, for filters within the network; 0: Adam throughout",
        low=0,
        high=1,
    )
    decay_from: float = option(
        0.0, "share of the training after which the learning rate begins to fall", low=0, high=0.99
    )
    low_times: float = option(
        1.0, "times are drawn as T u^this, u uniform: above 1 more of them with little noise", low=0.1, high=10
    )
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
    store: str = option("bfloat16", "precision of the saved weights", choices=tuple(STORED))
    name: str = option("", "what reports call the backbone; by default the name of its folder")
    licence: str = option("", "of the data, for the record")

    def __post_init__(self) -> None:
        check_options(self, "train")
        if self.crops and len(self.depths) != len(self.widths):
            raise InvdiffError(f"blocks must have as many numbers as channels ({self.channels}), got {self.blocks!r}")
        if self.task == "inpaint" and (self.crops or self.distill or not self.haar):
            raise InvdiffError(
                "task 'inpaint' trains a network of one size behind the Haar transform: leave out crops, distill, no-haar"
            )
        if self.task == "inpaint":
            for name in listed(self.masks) or [""]:
                one_of("masks", name, mask_names())
        if self.adversarial and not (self.distill or self.task == "inpaint"):
            raise InvdiffError(f"adversarial is for task inpaint and distill, got {self.adversarial:g} without them")
        if self.distill and (self.crops or self.init):
            raise InvdiffError(
                "distill begins with the teacher's weights at the teacher's size: leave out crops and init"
            )
        if self.crops and self.prediction == "flow":
            raise InvdiffError(
                "prediction 'flow' is for networks of one size; with crops the network predicts v_prediction"
            )
        _ = self.widths

    @property
    def depths(self) -> tuple[int, ...]:
        """`blocks` as numbers."""
        return _numbers("blocks", self.blocks)

    @property
    def widths(self) -> tuple[int, ...]:
        """`channels` as numbers."""
        return _numbers("channels", self.channels)

    @property
    def excluded(self) -> list[str]:
        """`exclude` as a list."""
        return listed(self.exclude)


def _numbers(name: str, text: str) -> tuple[int, ...]:
    """``"64,128"`` as numbers."""
    try:
        found = tuple(int(word) for word in text.split(","))
    except ValueError:
        found = ()
    if not 1 <= len(found) <= 8 or not all(1 <= number <= 4096 for number in found):
        raise InvdiffError(
            f"{name} must be one to eight numbers up to 4096 separated by commas, such as 64,128,160, got {shown(text)}"
        )
    return found


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
    known("train", options, [f.name for f in fields(TrainingConfig)])
    config = replace(config or TrainingConfig(), **options)
    folder = make_folder(out, "out")
    if not isinstance(data, str | os.PathLike):
        raise InvdiffError(f"data must be a folder or zip of images, got {shown(data)}")
    if config.device != "auto":
        available_device(config.device)
    pictures: Tensor | Crops
    if config.crops:
        photos, names = load_photos(data, split="train", exclude=config.excluded)
        pictures = Crops(photos, names, listed(config.turned), config.flips)
        _, held_out = load_splits(
            data, EVALUATED_SIZE, exclude=config.excluded, holdout=config.holdout, seed=config.seed
        )
    else:
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

    def __init__(
        self, config: TrainingConfig, folder: Path, pictures: Tensor | Crops, held_out: Tensor, data: str
    ) -> None:
        self.config, self.folder, self.held_out, self.data = config, folder, held_out, data
        cuda = torch.cuda.is_available()
        self.device = torch.device(("cuda" if cuda else "cpu") if config.device == "auto" else config.device)
        self.half = config.precision == "bfloat16" or (config.precision == "auto" and native_bfloat16(self.device))
        self.pictures = pictures if config.cache or isinstance(pictures, Crops) else pictures.to(self.device)
        torch.manual_seed(config.seed)
        self.network: HaarUNet | LocalUNet = (
            _network(config, config.name or folder.resolve().name).to(self.device).train()
        )
        if self.half:
            self.network = self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.parameters: list[Tensor] = list(self.network.parameters())
        self.averages: list[Tensor] = list(self.average.parameters())
        self.optimizers = _optimizers(config, self.network)
        compiles = config.compile == "yes" or (config.compile == "auto" and self.device.type == "cuda")
        self.forward: Any = torch.compile(self.network) if compiles else self.network
        levels = self.network.description.noise_schedule().alpha_bar[:-1]
        self.T = len(levels)
        self.signal, self.noise = levels.sqrt().float().to(self.device), (1 - levels).sqrt().float().to(self.device)
        self.weights = _weights(config, levels).float().to(self.device)
        self.distillation = _distillation(config, self) if config.distill else None
        self.adversary = Adversary(3 if config.distill else 4).to(self.device) if config.adversarial else None
        self.step, self.seconds, self.error = 0, 0.0, math.nan
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self.loss_steps = 0

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the images; of large collections, of every k-th."""
        digest = hashlib.blake2b(digest_size=16)
        shown = self.pictures.photos if isinstance(self.pictures, Crops) else self.pictures
        for part in (shown, self.held_out):
            digest.update(repr([len(part), tuple(part[0].shape)]).encode())
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
        if self.distillation is not None:
            loss = self.distilling(self.distillation, draw)
        else:
            loss = self.restoring(draw) if config.task == "inpaint" else self.denoising(draw)
        self.network.zero_grad(set_to_none=True)
        loss.backward()
        gradient = nn.utils.clip_grad_norm_(self.parameters, config.clip)
        share = _learning_rate(config, step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * share
            optimizer.step()
        if isinstance(self.network, LocalUNet):
            self.network.balance()
        with torch.no_grad():
            keep = min(config.ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(self.averages, self.parameters, 1 - keep)
        self.step += 1
        return loss.detach(), gradient

    def denoising(self, draw: torch.Generator) -> Tensor:
        """The loss of one batch of noised pictures."""
        config = self.config
        x0 = self.batch(draw).float() / 127.5 - 1
        strata = torch.arange(len(x0), device=self.device)
        u = (strata + torch.rand(len(x0), generator=draw, device=self.device, dtype=torch.float32)) / len(x0)
        t = (u**config.low_times * self.T).long().clamp(max=self.T - 1)
        noise = torch.randn(x0.shape, generator=draw, device=self.device, dtype=torch.float32)
        a, s = (level[t].reshape(-1, 1, 1, 1) for level in (self.signal, self.noise))
        known = {"epsilon": noise, "sample": x0, "v_prediction": a * noise - s * x0, "flow": noise - x0}
        target, x_t, times = known[config.prediction], a * x0 + s * noise, t
        if config.prediction == "flow":  # asked on the line, and at its own times, see LEARNED
            x_t, times = x_t / (a + s), (self.T * s / (a + s)).flatten()
        if self.half:
            x_t = x_t.contiguous(memory_format=torch.channels_last)

        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            out = self.forward(x_t, times)
        return (self.weights[t] * (out.float() - target).square().mean((1, 2, 3))).mean()

    def restoring(self, draw: torch.Generator) -> Tensor:
        """The loss of one batch of pictures with holes."""
        x = self.batch(draw).float() / 127.5 - 1
        seeds = torch.randint(
            1 << 31, (len(x),), generator=torch.Generator().manual_seed(_mix(self.config.seed, self.step, "holes"))
        )
        known = masks(listed(self.config.masks), (x.shape[2], x.shape[3]), seeds.tolist()).to(self.device)
        shown = masked(x, known)
        if self.half:
            shown = shown.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            out = self.forward(shown, torch.zeros(len(x), dtype=torch.long, device=self.device))
        loss = missing_error(out, x, known).mean()
        if self.adversary is None:
            return loss
        whole = torch.where(known > 0, x, out)
        return loss + self.against(torch.cat([x, known], 1), torch.cat([whole, known], 1))

    def against(self, real: Tensor, made: Tensor) -> Tensor:
        """What `made` pays for not looking real, after a step of the discriminator."""
        adversary = self.adversary
        assert adversary is not None
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            adversary.learn(real, made)
            return -self.config.adversarial * adversary.score(made).mean()

    def distilling(self, distillation: Distillation, pictures: torch.Generator) -> Tensor:
        """The loss of one batch of the teacher's walks."""
        draw = torch.Generator().manual_seed(_mix(self.config.seed, self.step, "stretches"))
        part = distillation.batch(self.config.batch, draw)
        x_t, x0 = part.x_t.to(self.device), part.x0.to(self.device)
        if self.half:
            x_t = x_t.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            estimate = distillation.estimate(self.forward, x_t, part.level.to(self.device))
        loss = distance(estimate, x0).mean()
        if self.adversary is None:
            return loss
        return loss + self.against(self.batch(pictures).float() / 127.5 - 1, estimate)

    def batch(self, draw: torch.Generator) -> Tensor:
        """The pictures of this step, uint8 (B, 3, H, W)."""
        config, pictures = self.config, self.pictures
        if isinstance(pictures, Crops):
            place = torch.Generator().manual_seed(_mix(config.seed, self.step, "crops"))
            return pictures.batch(config.batch * min(SIDES) ** 2, place).to(self.device)
        which = _batch(len(pictures), config.batch, self.step, config.seed).to(pictures.device)
        return _augment(pictures[which].to(self.device), config, draw)

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
        rate = self.config.lr * _learning_rate(self.config, self.step - 1)
        row = (self.step, self.seen, f"{loss:.6g}", f"{rate:.4g}", f"{gradient:.4g}", "", f"{self.seconds:.1f}")
        self.loss_sum.zero_()
        self.loss_steps = 0
        self._append(row)

    def _append(self, row: Sequence[Any]) -> None:
        with self._room(LOG), (self.folder / LOG).open("a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(row)

    @contextmanager
    def _room(self, name: str) -> Iterator[None]:
        """What the disk refuses, told with what is whole and how to go on.

        Raises:
            InvdiffError: `name` in the folder cannot be written.
        """
        try:
            yield
        except (OSError, RuntimeError) as error:  # torch says RuntimeError when a disk is full
            kept = (self.folder / CHECKPOINT).exists()
            after = "The checkpoint before it is whole: with more room on the disk the same command goes on from there"
            raise InvdiffError(
                f"{self.folder / name} cannot be written: {error}. "
                + (after if kept else "With more room on the disk the same command starts anew")
            ) from error

    def checkpoint(self) -> None:
        """Held-out error, weights, plot, samples; the state to go on from last, when all else is in place."""
        average = self.saved()
        backbone = self.backbone()
        restores = self.config.task == "inpaint"
        self.error = self.missing_on(self.shown()) if restores else evaluate(backbone, self.held_out)
        if not math.isfinite(self.error):
            raise DivergenceError(f"training diverged before step {self.step}: the held-out error is {self.error}")
        self._append((self.step, self.seen, "", "", "", f"{self.error:.6g}", f"{self.seconds:.1f}"))
        average.description = replace(average.description, provenance=self.provenance())
        with self._room(WEIGHTS):
            average.save(self.folder, precision=self.config.store)
        plot = _loss_plot(read_log(self.folder))
        with self._room(LOSS_PLOT):
            replace_file(self.folder / LOSS_PLOT, plot)
        if self.config.samples:
            sheet = io.BytesIO()
            drawn = (
                self.restored(self.shown(self.config.samples))
                if restores
                else draw_samples(backbone, self.config.samples)
            )
            sample_sheet(drawn).save(sheet, "png")
            with self._room(SAMPLES):
                replace_file(self.folder / SAMPLES, sheet.getvalue())
        state = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
            "error": self.error,
            "loss_sum": self.loss_sum,
            "loss_steps": self.loss_steps,
            **({} if self.adversary is None else {"adversary": self.adversary.state_dict()}),
            "config": asdict(self.config),
            "pictures": self.fingerprint,
        }
        with self._room(CHECKPOINT), atomic_write(self.folder / CHECKPOINT) as temporary:
            torch.save(state, temporary)

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
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        if self.adversary is not None:
            self.adversary.load_state_dict(state["adversary"])
        self.step, self.seconds, self.error = state["step"], state["seconds"], state["error"]
        self.loss_sum, self.loss_steps = state["loss_sum"], state["loss_steps"]
        rows = (self.folder / LOG).read_text(encoding="utf-8").splitlines()
        whole = [r for r in rows[1:] if r.count(",") == len(COLUMNS) - 1]  # the last may be half written
        kept = rows[:1] + [r for r in whole if (n := r.split(",")[0]).isdigit() and int(n) <= self.step]
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

    def shown(self, count: int = HELD_OUT) -> tuple[Tensor, Tensor]:
        """Held-out pictures in model range and the masks that they are judged with."""
        x = self.held_out[:count].float() / 127.5 - 1
        return x, masks(listed(self.config.masks), (x.shape[2], x.shape[3]), range(len(x)))

    @torch.inference_mode()
    def restored(self, shown: tuple[Tensor, Tensor]) -> Tensor:
        """Those pictures, what is missing filled in by the averaged network."""
        x, known = shown
        time = torch.zeros(len(x), dtype=torch.long, device=self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            out = self.average(masked(x, known).to(self.device), time).cpu()
        return torch.where(known > 0, x, out).clamp(-1, 1)

    def missing_on(self, shown: tuple[Tensor, Tensor]) -> float:
        """Mean absolute error over the missing pixels, model range."""
        return float(missing_error(self.restored(shown), *shown).mean())

    def backbone(self) -> NetworkBackbone:
        if isinstance(self.average, RestoringUNet):
            return copy.deepcopy(self.average).runner("bfloat16" if self.half else "float32")
        return self.saved().backbone(precision="bfloat16" if self.half else "float32")

    def saved(self) -> HaarUNet | LocalUNet:
        """The averaged network as it is written: of a balanced one the average has shorter rows, so a balanced copy."""
        if isinstance(self.average, HaarUNet):
            return self.average
        average = copy.deepcopy(self.average)
        average.balance()
        return average


def _network(config: TrainingConfig, name: str) -> HaarUNet | LocalUNet:
    """The network of a configuration, new or with the weights of `init`."""
    description = Description(
        name=name,
        image_shape=(3, None, None) if config.crops else (3, config.size, config.size),
        haar=True if config.crops else config.haar,
        prediction=RESTORATION if config.task == "inpaint" else config.prediction,
        schedule=dict(FLOW if config.prediction == "flow" else DDPM),
    )
    if config.crops:
        return _local_network(config, description)
    if config.task == "inpaint":
        new = (
            RestoringUNet.load(_first_folder(config.init)) if config.init else _new(config, description, RestoringUNet)
        )
        new.description = description
        return new
    if config.distill:
        first = HaarUNet.load(_first_folder(config.distill))
        return HaarUNet(first.unet, replace(first.description, name=name, schedule=_few(config, first.description)))
    if not config.init:
        return _new(config, description, HaarUNet)
    folder = _first_folder(config.init)
    first = HaarUNet.load(folder)
    if first.description.haar != config.haar:
        raise InvdiffError(f"init: {folder} was trained with haar={first.description.haar}, not {config.haar}")
    for module in first.unet.modules():
        if isinstance(module, nn.Dropout):
            module.p = config.dropout
    return HaarUNet(first.unet, description)


def _new(config: TrainingConfig, description: Description, kind: type[HaarUNet]) -> HaarUNet:
    return kind.new(
        description,
        channels=config.widths,
        layers=config.layers,
        attention=config.attention,
        dropout=config.dropout,
        beside=1 if kind is RestoringUNet else 0,
    )


def _few(config: TrainingConfig, teacher: Description) -> dict[str, Any]:
    """The teacher's schedule, of which the student knows a few times."""
    if teacher.prediction != "v_prediction" or "times" in teacher.schedule:
        raise InvdiffError(
            f"distill: {config.distill} must predict the velocity v_prediction at all times of its schedule, it predicts "
            f"{teacher.prediction} at {shown(teacher.schedule)}"
        )
    return {**teacher.schedule, "times": few_times(config.distill_steps, teacher.noise_schedule().T)}


def _distillation(config: TrainingConfig, training: _Training) -> Distillation:
    """The teacher, and its walks, made where the folder does not hold them yet."""
    teacher = HaarUNet.load(_first_folder(config.distill))
    pictures: Any = training.pictures
    if tuple(teacher.description.image_shape) != tuple(pictures[0].shape):
        raise InvdiffError(
            f"size must be that of {config.distill}, {teacher.description.image_shape}, got {config.size}"
        )
    made = Distillation(
        teacher.backbone(precision="bfloat16" if training.half else "float32", device=training.device),
        training.network.description.schedule["times"],
        target=config.target,
        calls=config.teacher_calls,
        walks=config.walks,
        seed=config.seed,
    )
    made.prepare(lambda rows: pictures[rows].float() / 127.5 - 1, len(pictures), training.folder)
    return made


def _first_folder(init: str) -> Path:
    """The folder that `init` names: a path, or an embedded backbone."""
    folder = Path(init).expanduser()
    embedded = EMBEDDED / init
    return embedded if not (folder / DESCRIPTION).is_file() and (embedded / DESCRIPTION).is_file() else folder


def _local_network(config: TrainingConfig, description: Description) -> LocalUNet:
    if not config.init:
        return LocalUNet(config.widths, config.depths, description=description)
    first = LocalUNet.load(_first_folder(config.init))
    if (first.widths, first.blocks) != (config.widths, config.depths):
        raise InvdiffError(
            f"init: {config.init} has channels {list(first.widths)} and blocks {list(first.blocks)}, not those asked for"
        )
    first.description = description
    return first


def _optimizers(config: TrainingConfig, network: HaarUNet | LocalUNet) -> list[torch.optim.Optimizer]:
    """What changes the weights; every group has its ``peak`` learning rate.

    Of a balanced network the steps are shares of a weight: Muon for the convolutions between features, Adam for the rest.
    """
    if isinstance(network, HaarUNet):
        inner = _inner_filters(network) if config.muon else []
        apart = {id(weight) for weight in inner}
        adam = torch.optim.AdamW(
            [p for p in network.parameters() if id(p) not in apart],
            lr=config.lr,
            betas=(0.9, config.beta2),
            weight_decay=config.weight_decay,
            fused=True,
        )
        adam.param_groups[0]["peak"] = config.lr
        # A group norm follows each of these, so that the size of their rows does not matter and steps are shares of it.
        groups: list[dict[str, Any]] = [
            {"params": [w], "magnitude": float(w.detach().flatten(1).norm(dim=1).mean()), "peak": config.muon}
            for w in inner
        ]
        return [adam, Muon(groups, config.muon)] if groups else [adam]
    convolutions: list[dict[str, Any]] = []
    outer: list[dict[str, Any]] = [{"params": [network.scale], "peak": config.lr}]
    ends = (network.enter, network.leave)
    for layer, inputs in network.balanced():
        if config.muon and layer not in ends:
            transposed = isinstance(layer, nn.ConvTranspose2d)
            group = {"magnitude": layer.magnitude, "transposed": transposed, "peak": config.muon}
            convolutions.append({"params": [layer.weight], **group})
        else:
            outer.append({"params": [layer.weight], "peak": config.lr * layer.magnitude / inputs**0.5})
    for module in network.modules():
        if isinstance(module, nn.Linear):
            outer.append({"params": [module.weight], "peak": config.lr / module.in_features**0.5})
    rest = torch.optim.Adam(outer, lr=config.lr, betas=(0.9, config.beta2), eps=1e-10, fused=True)
    return [rest, Muon(convolutions, config.muon)] if convolutions else [rest]


def _inner_filters(network: HaarUNet) -> list[Tensor]:
    """The 3 x 3 filters of a UNet but for its first and its last."""
    ends = ("conv_in.", "conv_out.")
    return [p for n, p in network.unet.named_parameters() if p.ndim == 4 and not n.startswith(ends)]


def _weights(config: TrainingConfig, levels: Tensor) -> Tensor:
    """Weight of every time in the loss, (T,): 1, or min(snr, gamma) over what the prediction weighs by itself."""
    if config.weighting == "uniform":
        return torch.ones_like(levels)
    snr = levels / (1 - levels)
    by_itself = {
        "epsilon": snr,
        "v_prediction": snr + 1,
        "sample": torch.ones_like(snr),
        "flow": (snr.sqrt() + 1) ** 2,
    }
    return snr.clamp(max=config.gamma) / by_itself[config.prediction]


def _learning_rate(config: TrainingConfig, step: int) -> float:
    """Share of the peak: linear warm-up, from `decay_from` on half a cosine down to `final_lr`."""
    done = min(1.0, step * config.batch / config.images)
    done = max(0.0, done - config.decay_from) / (1 - config.decay_from)
    cosine = config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * done))
    return cosine * min(1.0, (step + 1) / max(1, config.warmup))


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
