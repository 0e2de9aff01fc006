"""Files into networks: one module per published format, and where the known files are found.

Knows `backbones` and, behind a function call, diffusers. `load_backbone`, `cli` and `bench` may import it.
"""

from invdiff.checkpoints.classifier import NoisyClassifier, load_classifier
from invdiff.checkpoints.ddgan import load_ddgan
from invdiff.checkpoints.ddpm import load_ddpm
from invdiff.checkpoints.denoising_diffusion import load_denoising_diffusion
from invdiff.checkpoints.diffusers import load_diffusers
from invdiff.checkpoints.edm import EDMPickle
from invdiff.checkpoints.formats import FORMATS, Format, load_checkpoint, register_format
from invdiff.checkpoints.guided_diffusion import load_guided_diffusion
from invdiff.checkpoints.known import KnownCheckpoint, download, known_checkpoints
from invdiff.checkpoints.mixture import load_mixture
from invdiff.checkpoints.trained import Trained

__all__ = [
    "FORMATS",
    "EDMPickle",
    "Format",
    "KnownCheckpoint",
    "NoisyClassifier",
    "Trained",
    "download",
    "known_checkpoints",
    "load_checkpoint",
    "load_classifier",
    "load_ddgan",
    "load_ddpm",
    "load_denoising_diffusion",
    "load_diffusers",
    "load_guided_diffusion",
    "load_mixture",
    "register_format",
]
