"""What every backbone gives: the clean image and the noise that it sees in x_t."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from invdiff.backbones.schedule import NoiseSchedule
from invdiff.errors import InvdiffError
from invdiff.tensors import weighted_sum

BackboneT = TypeVar("BackboneT", bound="Backbone")


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
        image_shape: (C, H, W) of the images it was made for.
        name: what reports call it.
        bounded: its images lie in [-1, 1], so that a measurement far outside is a mistake; analytic priors have no bounds.
    """

    schedule: NoiseSchedule
    image_shape: tuple[int, ...]
    name: str = "backbone"
    bounded: bool = True

    @abstractmethod
    def predict(self, x_t: Tensor, t: int | Tensor) -> Prediction:
        """Clean image and noise in `x_t`.

        Args:
            x_t: (B, C, H, W), model range.
            t: index into `schedule`; one for all, or a long tensor (B,), one per image.
        """

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the state x_t that it is given: float32, unless its own parameters are finer."""
        return torch.float32

    def to(self: BackboneT, device: torch.device | str) -> BackboneT:
        """The same backbone on another device."""
        if torch.device(device) != self.device:
            raise InvdiffError(f"{type(self).__name__} cannot be moved to {device!r}; make it there")
        return self

    def select(self: BackboneT, images: Tensor) -> BackboneT:
        """The backbone for some of the images of a stack, a long tensor of their numbers. Itself unless conditioned per image."""
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
