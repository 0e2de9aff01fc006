"""Files into networks: one module per published format, and where the known files are found.

Knows `backbones` and, behind a function call, diffusers. `load_backbone`, `cli` and `bench` may import it.
"""

from invdiff.checkpoints.ddpm import load_ddpm
from invdiff.checkpoints.diffusers import load_diffusers
from invdiff.checkpoints.files import KnownCheckpoint, download, known_checkpoints
from invdiff.checkpoints.guided_diffusion import load_guided_diffusion

__all__ = [
    "KnownCheckpoint",
    "download",
    "known_checkpoints",
    "load_ddpm",
    "load_diffusers",
    "load_guided_diffusion",
]
