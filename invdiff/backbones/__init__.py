"""What a sampler asks: pretrained denoisers and the schedules that they count in.

Knows torch and, behind a function call, diffusers. `checkpoints`, `priors`, `training`, `samplers` and everything above may
import it; it names `checkpoints` only where a backbone is loaded by name.
"""

from invdiff.backbones.base import Backbone, Prediction
from invdiff.backbones.edm import EDMBackbone
from invdiff.backbones.flow import FlowBackbone
from invdiff.backbones.generator import GeneratorBackbone
from invdiff.backbones.network import NetworkBackbone
from invdiff.backbones.schedule import NoiseSchedule
from invdiff.backbones.windows import Tiles, Windows
from invdiff.backbones.zoo import DEFAULT_BACKBONE, backbone_names, load_backbone, register_backbone

__all__ = [
    "DEFAULT_BACKBONE",
    "Backbone",
    "EDMBackbone",
    "FlowBackbone",
    "GeneratorBackbone",
    "NetworkBackbone",
    "NoiseSchedule",
    "Prediction",
    "Tiles",
    "Windows",
    "backbone_names",
    "load_backbone",
    "register_backbone",
]
