"""Pretrained denoisers and the schedules that they count in."""

from invdiff.backbones.analytic import GaussianBackbone
from invdiff.backbones.base import Backbone, Prediction
from invdiff.backbones.checkpoints import KnownCheckpoint, download, known_checkpoints
from invdiff.backbones.ddpm import load_ddpm
from invdiff.backbones.edm import EDMBackbone
from invdiff.backbones.guided_diffusion import load_guided_diffusion
from invdiff.backbones.huggingface import load_diffusers
from invdiff.backbones.mixture import GaussianMixtureBackbone
from invdiff.backbones.network import NetworkBackbone
from invdiff.backbones.posterior import GaussianPosterior, MixturePosterior
from invdiff.backbones.schedule import NoiseSchedule
from invdiff.backbones.zoo import DEFAULT_BACKBONE, backbone_names, load_backbone, register_backbone

__all__ = [
    "DEFAULT_BACKBONE",
    "Backbone",
    "EDMBackbone",
    "GaussianBackbone",
    "GaussianMixtureBackbone",
    "GaussianPosterior",
    "KnownCheckpoint",
    "MixturePosterior",
    "NetworkBackbone",
    "NoiseSchedule",
    "Prediction",
    "backbone_names",
    "download",
    "known_checkpoints",
    "load_backbone",
    "load_ddpm",
    "load_diffusers",
    "load_guided_diffusion",
    "register_backbone",
]
