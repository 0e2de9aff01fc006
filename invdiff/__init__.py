"""invdiff: inverse problems with a pretrained diffusion model, and the methods compared head to head.

from invdiff import solve, Mask
solution = solve(operator=Mask(m), sampler="repaint", y=img)
solution.image.save("restored.png")
"""

from invdiff.backbones import (
    Backbone,
    NetworkBackbone,
    NoiseSchedule,
    Prediction,
    backbone_names,
    load_backbone,
    register_backbone,
)
from invdiff.errors import DivergenceError, InvdiffError, InvdiffWarning
from invdiff.operators import (
    Blur,
    Colorization,
    Fourier,
    FunctionOperator,
    Identity,
    LinearOperator,
    Mask,
    MatrixOperator,
    NonlinearOperator,
    Stack,
    SuperResolution,
    WalshHadamard,
    fourier_mask,
    gaussian_kernel,
    make_mask,
    motion_kernel,
    operator_names,
    register_operator,
    uniform_kernel,
)
from invdiff.priors import GaussianBackbone, GaussianMixtureBackbone
from invdiff.samplers import (
    DDNM,
    DDRM,
    DPS,
    MCG,
    DDNMPlus,
    DiffPIR,
    Guidance,
    PiGDM,
    Progress,
    RePaint,
    Replacement,
    Sampler,
    Unconditional,
    register_sampler,
    sampler_names,
    total_variation,
)
from invdiff.solution import Solution
from invdiff.solve import sample, solve

__version__ = "0.1.0"

__all__ = [
    "DDNM",
    "DDRM",
    "DPS",
    "MCG",
    "Backbone",
    "Blur",
    "Colorization",
    "DDNMPlus",
    "DiffPIR",
    "DivergenceError",
    "Fourier",
    "FunctionOperator",
    "GaussianBackbone",
    "GaussianMixtureBackbone",
    "Guidance",
    "Identity",
    "InvdiffError",
    "InvdiffWarning",
    "LinearOperator",
    "Mask",
    "MatrixOperator",
    "NetworkBackbone",
    "NoiseSchedule",
    "NonlinearOperator",
    "PiGDM",
    "Prediction",
    "Progress",
    "RePaint",
    "Replacement",
    "Sampler",
    "Solution",
    "Stack",
    "SuperResolution",
    "Unconditional",
    "WalshHadamard",
    "backbone_names",
    "fourier_mask",
    "gaussian_kernel",
    "load_backbone",
    "make_mask",
    "motion_kernel",
    "operator_names",
    "register_backbone",
    "register_operator",
    "register_sampler",
    "sample",
    "sampler_names",
    "solve",
    "total_variation",
    "uniform_kernel",
]
