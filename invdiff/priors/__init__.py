"""Backbones whose posterior is known: Gaussians and mixtures, their fit to data, the exact posteriors.

Knows `backbones` and `operators`. `bench` and everything above may import it; `load_backbone` does where it is asked for one.
"""

from invdiff.backbones.zoo import PRIORS, register_prior
from invdiff.priors import named as named
from invdiff.priors.gaussian import GaussianBackbone
from invdiff.priors.mixture import GaussianMixtureBackbone
from invdiff.priors.posterior import GaussianPosterior, MixturePosterior

__all__ = [
    "PRIORS",
    "GaussianBackbone",
    "GaussianMixtureBackbone",
    "GaussianPosterior",
    "MixturePosterior",
    "register_prior",
]
