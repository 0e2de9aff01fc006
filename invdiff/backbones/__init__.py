"""Pretrained denoisers and the schedules that they count in."""

from invdiff.backbones.analytic import GaussianBackbone
from invdiff.backbones.base import Backbone, Prediction
from invdiff.backbones.guided_diffusion import load_guided_diffusion
from invdiff.backbones.network import NetworkBackbone
from invdiff.backbones.schedule import NoiseSchedule

__all__ = ["Backbone", "GaussianBackbone", "NetworkBackbone", "NoiseSchedule", "Prediction", "load_guided_diffusion"]
