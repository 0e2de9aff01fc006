"""The shelf of samplers: one file per method, each a page of its paper.

They know operators and backbones through their base classes only. Imported by `solve`, suites and the command line.
`register_sampler` adds one from outside.
"""

from invdiff.options import option
from invdiff.samplers.base import (
    Cost,
    Estimator,
    Progress,
    Sampler,
    register_sampler,
    sampler_class,
    sampler_names,
    samplers_that,
)
from invdiff.samplers.baselines import (
    Baseline,
    Bicubic,
    Biharmonic,
    PseudoInverse,
    TotalVariation,
    Wiener,
    baseline_names,
    baselines_for,
)
from invdiff.samplers.copaint import CoPaint
from invdiff.samplers.daps import DAPS
from invdiff.samplers.ddnm import DDNM, DDNMPlus
from invdiff.samplers.ddrm import DDRM
from invdiff.samplers.diffpir import DiffPIR
from invdiff.samplers.dps import DPS
from invdiff.samplers.fps_smc import FPSSMC
from invdiff.samplers.guidance import Guidance, total_variation
from invdiff.samplers.integrators import INTEGRATORS
from invdiff.samplers.mask_shift import MaskShift
from invdiff.samplers.mcg import MCG
from invdiff.samplers.mcg_diff import MCGDiff
from invdiff.samplers.mmps import MMPS
from invdiff.samplers.paths import PATHS, jumps, network_calls, plain, travel
from invdiff.samplers.pigdm import PiGDM
from invdiff.samplers.reddiff import REDDiff
from invdiff.samplers.repaint import RePaint, Replacement
from invdiff.samplers.restorer import Restorer
from invdiff.samplers.tds import TDS
from invdiff.samplers.tmpd import TMPD
from invdiff.samplers.unconditional import Unconditional

__all__ = [
    "DAPS",
    "DDNM",
    "DDRM",
    "DPS",
    "FPSSMC",
    "INTEGRATORS",
    "MCG",
    "MMPS",
    "PATHS",
    "TDS",
    "TMPD",
    "Baseline",
    "Bicubic",
    "Biharmonic",
    "CoPaint",
    "Cost",
    "DDNMPlus",
    "DiffPIR",
    "Estimator",
    "Guidance",
    "MCGDiff",
    "MaskShift",
    "PiGDM",
    "Progress",
    "PseudoInverse",
    "REDDiff",
    "RePaint",
    "Replacement",
    "Restorer",
    "Sampler",
    "TotalVariation",
    "Unconditional",
    "Wiener",
    "baseline_names",
    "baselines_for",
    "jumps",
    "network_calls",
    "option",
    "plain",
    "register_sampler",
    "sampler_class",
    "sampler_names",
    "samplers_that",
    "total_variation",
    "travel",
]
