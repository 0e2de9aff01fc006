"""invdiff: inverse problems with a pretrained diffusion model, and the methods compared head to head."""

from invdiff.backbones import Backbone, NetworkBackbone, NoiseSchedule, Prediction
from invdiff.errors import DivergenceError, InvdiffError, InvdiffWarning
from invdiff.operators import *  # noqa: F403
from invdiff.operators import __all__ as _operators
from invdiff.samplers import *  # noqa: F403
from invdiff.samplers import __all__ as _samplers
from invdiff.solution import Solution
from invdiff.solve import sample, solve

__version__ = "0.1.0"
