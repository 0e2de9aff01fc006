"""What every backbone gives: the clean image and the noise that it sees in x_t."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from invdiff.backbones.schedule import NoiseSchedule
from invdiff.errors import InvdiffError
from invdiff.noise import NoiseSource
from invdiff.tensors import weighted_sum

BackboneT = TypeVar("BackboneT", bound="Backbone")

MOST_CONTEXT = 48
"""Pixels: networks that could look further have seldom learned to. For `photos`, restorations with 48 and 64 are alike in quality
(``benchmarks/photos.py --parts choices``)."""


@dataclass(frozen=True)
class Prediction:
    """What a backbone says about x_t. ``x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps`` holds exactly.

    Attributes:
        x0: estimate of the clean image, E[x0 | x_t], (B, C, H, W), unclipped.
        eps: estimate of the noise, same shape.
        log_variance: logarithm of the variance of the ancestral step to the next time of the schedule in use, same
            shape; None where the network has not learned one.
    """

    x0: Tensor
    eps: Tensor
    log_variance: Tensor | None = None

    @classmethod
    def from_x0(cls, x_t: Tensor, x0: Tensor, alpha_bar: float | Tensor) -> Prediction:
        """The prediction of a denoiser: the noise follows from the clean estimate."""
        scale = 1 / (1 - alpha_bar) ** 0.5
        return cls(x0, weighted_sum((scale, x_t), (-scale * alpha_bar**0.5, x0)))

    @classmethod
    def from_eps(
        cls, x_t: Tensor, eps: Tensor, alpha_bar: float | Tensor, log_variance: Tensor | None = None
    ) -> Prediction:
        """The prediction of a noise-predicting network."""
        scale = 1 / alpha_bar**0.5
        return cls(weighted_sum((scale, x_t), (-scale * (1 - alpha_bar) ** 0.5, eps)), eps, log_variance)


class Backbone(ABC):
    """A denoiser with its noise schedule.

    Attributes:
        schedule: the times that `predict` counts in.
        image_shape: (C, H, W) of the images it was made for; (C, None, None) where it takes any size, see `sized`.
        multiple_of: what heights and widths are padded to inside `predict`, out of sight; tiles begin at multiples of it.
        field_of_view: how many pixels away an input pixel can still change a prediction, where that is bounded (fully
            convolutional networks); None where every pixel sees the whole picture.
        name: what reports call it.
        bounded: its images lie in [-1, 1], so that a measurement far outside is a mistake and a guarded estimate is clipped;
            analytic priors have no bounds.
    """

    schedule: NoiseSchedule
    image_shape: tuple[Any, ...]
    multiple_of: int = 1
    field_of_view: int | None = None
    name: str = "backbone"
    bounded: bool = True
    _any_size: bool = False

    @abstractmethod
    def predict(self, x_t: Tensor, t: int | Tensor) -> Prediction:
        """Clean image and noise in `x_t`.

        Args:
            x_t: (B, C, H, W), model range.
            t: index into `schedule`; one for all, or a long tensor (B,), one per image.
        """

    @property
    def any_size(self) -> bool:
        """Whether it takes pictures of any height and width."""
        return self._any_size or None in self.image_shape

    @property
    def context(self) -> int | None:
        """Pixels around a hole that are worth knowing: the field of view, at most `MOST_CONTEXT`; None for the whole picture."""
        return None if self.field_of_view is None else min(self.field_of_view, MOST_CONTEXT)

    def sized(self: BackboneT, image_shape: Sequence[int]) -> BackboneT:
        """The same backbone for images of one size (C, H, W): a view, nothing is copied.

        Raises:
            InvdiffError: it was made for another size, or another number of channels.
        """
        shape = tuple(int(n) for n in image_shape)
        if shape == tuple(self.image_shape):
            return self
        if len(shape) != 3 or min(shape) < 1 or shape[0] != self.image_shape[0] or not self.any_size:
            raise InvdiffError(f"image_shape must suit the backbone, got {shape}: {self.name} {self.sizes_taken()}")
        view = copy.copy(self)
        view._any_size, view.image_shape = True, shape
        return view

    def sizes_taken(self) -> str:
        """For messages: which pictures it takes, and how others can be restored."""
        channels, *size = self.image_shape
        if self.any_size:
            return f"takes pictures of {channels} channels and of any size"
        return (
            f"takes images of shape ({channels}, {', '.join(map(str, size))}), that is (C, H, W). For larger ones, "
            "Windows(backbone, (C, H, W)) lays overlapping windows of that size over them; or take a backbone of any "
            "size, such as backbone='photos'"
        )

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the state x_t that it is given: float32, unless its own parameters are finer."""
        return torch.float32

    def arithmetic(self) -> AbstractContextManager:
        """Settings of the device under which its products are formed: for whoever differentiates `predict`."""
        return nullcontext()

    def to(self: BackboneT, device: torch.device | str) -> BackboneT:
        """The same backbone on another device."""
        if torch.device(device) != self.device:
            raise InvdiffError(
                f"device must be {str(self.device)!r}, where this {type(self).__name__} was made, got {device!r}; make it there"
            )
        return self

    def select(self: BackboneT, images: Tensor) -> BackboneT:
        """The backbone for some of the images of a stack, a long tensor of their numbers. Itself unless conditioned per image."""
        return self

    def drawing(self: BackboneT, noise: NoiseSource) -> BackboneT:
        """The backbone for one run, whose own draws, where it has any, come from `noise`. Itself unless it draws."""
        return self

    def on(self: BackboneT, schedule: NoiseSchedule) -> BackboneT:
        """The same backbone counting in the times of `schedule` (a `respaced` one of its own). Nothing is copied."""
        other = copy.copy(self)
        other.schedule = schedule
        return other

    def alpha_bar(self, t: int | Tensor, like: Tensor) -> float | Tensor:
        """The level of `t`: a float for one time, a (B, 1, 1, 1) tensor like `like` for one per image."""
        if isinstance(t, Tensor) and t.ndim > 0:
            levels = self.schedule.alpha_bar[t.detach().long().cpu()]
            return levels.to(like.device, like.dtype).reshape(-1, *[1] * (like.ndim - 1))
        return self.schedule.alpha_bar_at(int(t))


class WrappedBackbone(Backbone):
    """A backbone that asks another one and computes where that one does; to write one, give `predict`.

    Attributes:
        backbone: the one that is asked.
    """

    backbone: Backbone

    def wrap(self, backbone: Backbone) -> None:
        """Take a backbone in, with what it says of itself; whether pictures are of its size is for the subclass to say."""
        self.backbone = backbone
        self.schedule, self.name, self.bounded = backbone.schedule, backbone.name, backbone.bounded

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def dtype(self) -> torch.dtype:
        return self.backbone.dtype

    def arithmetic(self) -> AbstractContextManager:
        return self.backbone.arithmetic()
