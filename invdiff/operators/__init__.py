"""Linear measurements of images: the operator A of `y = A x + noise`."""

from invdiff.operators.algebra import Stack
from invdiff.operators.base import LinearOperator
from invdiff.operators.blur import Blur, gaussian_kernel, motion_kernel, uniform_kernel
from invdiff.operators.checking import CheckReport
from invdiff.operators.colorization import Colorization
from invdiff.operators.identity import Identity
from invdiff.operators.mask import Mask
from invdiff.operators.registry import get_operator, operator_names, register_operator
from invdiff.operators.super_resolution import SuperResolution

for _name, _class in {
    "mask": Mask,
    "super_resolution": SuperResolution,
    "colorization": Colorization,
    "blur": Blur,
    "identity": Identity,
}.items():
    register_operator(_name)(_class)

__all__ = [
    "Blur",
    "CheckReport",
    "Colorization",
    "Identity",
    "LinearOperator",
    "Mask",
    "Stack",
    "SuperResolution",
    "gaussian_kernel",
    "get_operator",
    "motion_kernel",
    "operator_names",
    "register_operator",
    "uniform_kernel",
]
