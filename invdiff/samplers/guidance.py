"""Extra terms that any sampler can follow: total variation, a classifier, any differentiable function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from invdiff.backbones.base import Backbone, Prediction, WrappedBackbone
from invdiff.checks import function, one_of, real, shown
from invdiff.errors import InvdiffError


@dataclass(frozen=True)
class Guidance:
    """A loss that the restoration should keep small, beside the measurement.

    With ``on="x0"`` the clean estimate is moved by ``-weight (1 - alpha_bar) d loss(x0) / d x0`` at every network call:
    the gradient step of a Gaussian whose variance is that of x0 given x_t in units of the signal, without
    differentiating the network. With ``on="x_t"``, for classifiers trained on noisy images, the noise estimate is moved
    by ``weight sqrt(1 - alpha_bar) d loss(x_t, t) / d x_t`` (Dhariwal & Nichol, 2021, algorithm 2).

    Args:
        loss: ``loss(x0)`` or, on x_t, ``loss(x_t, t)`` with t the network's own times (B,). Returns one number per image
            (B,) or one for all; for a classifier it is minus the log-probability of the class. Model range [-1, 1].
        weight: how strongly.
        on: "x0" or "x_t".
    """

    loss: Callable[..., Tensor]
    weight: float = 1.0
    on: str = "x0"

    def __post_init__(self) -> None:
        function("guidance: loss", self.loss)
        object.__setattr__(self, "weight", real("guidance: weight", self.weight, -1e9, 1e9))
        one_of("guidance: on", self.on, ("x0", "x_t"))

    def gradient(self, x: Tensor, *args: Any) -> Tensor:
        """d loss / d x, same shape as x."""
        with torch.enable_grad():
            x = x.detach().clone().requires_grad_()
            value = self.loss(x, *args)
            if not isinstance(value, Tensor) or not value.requires_grad:
                raise InvdiffError(
                    f"guidance: loss must return a tensor that depends differentiably on its argument, got {shown(value)}"
                )
            return torch.autograd.grad(value.sum(), x)[0]


def total_variation(weight: float = 0.05) -> Guidance:
    """Anisotropic total variation of x0 (Rudin et al., 1992), smoothed at 1e-3: favours flat regions, keeps edges."""

    def loss(x: Tensor) -> Tensor:
        dy, dx = x.diff(dim=-2), x.diff(dim=-1)
        return (dy**2 + 1e-6).sqrt().sum((1, 2, 3)) + (dx**2 + 1e-6).sqrt().sum((1, 2, 3))

    return Guidance(loss, weight)


def as_guidance(terms: Any) -> list[Guidance]:
    """Terms as users write them: a `Guidance`, a loss of x0, or a pair (loss, weight), alone or in a list.

    Raises:
        InvdiffError: anything else.
    """
    if terms is None:
        return []
    if isinstance(terms, Guidance) or callable(terms):
        terms = [terms]
    if not isinstance(terms, Sequence) or isinstance(terms, str):
        raise InvdiffError(f"guidance must be losses, pairs (loss, weight) or Guidance objects, got {shown(terms)}")
    if (
        len(terms) == 2
        and callable(terms[0])
        and not callable(terms[1])
        and not isinstance(terms[1], Sequence | Guidance)
    ):
        terms = [terms]
    out = []
    for term in terms:
        if isinstance(term, Guidance):
            out.append(term)
        elif callable(term):
            out.append(Guidance(term))
        elif isinstance(term, Sequence) and len(term) == 2 and callable(term[0]):
            out.append(Guidance(term[0], term[1]))
        else:
            raise InvdiffError(f"guidance must be losses, pairs (loss, weight) or Guidance objects, got {shown(term)}")
    return out


class GuidedBackbone(WrappedBackbone):
    """A backbone whose clean estimate follows extra terms; to a sampler it is one like any other."""

    def __init__(self, backbone: Backbone, terms: Sequence[Guidance]) -> None:
        self.wrap(backbone)
        self.image_shape, self.terms = backbone.image_shape, terms

    def predict(self, x_t: Tensor, t: int | Tensor) -> Prediction:
        prediction = self.backbone.predict(x_t, t)
        a = self.alpha_bar(t, x_t)
        shift = torch.zeros_like(x_t)
        for term in self.terms:
            if term.on == "x0":
                shift = shift - term.weight * (1 - a) * term.gradient(prediction.x0.clamp(-1, 1))
            else:
                times = self.schedule.timesteps[torch.as_tensor(t).reshape(-1).cpu()].to(x_t.device).expand(len(x_t))
                shift = shift - term.weight * (1 - a) / a**0.5 * term.gradient(x_t, times)
        guided = Prediction.from_x0(x_t, prediction.x0 + shift.detach(), a)
        return Prediction(guided.x0, guided.eps, prediction.log_variance)
