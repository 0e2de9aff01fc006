"""Linear measurements of images: the operator A of `y = A x + noise`.

They know torch only: no other room of the package. Imported by problems, samplers, metrics, suites and the command line.
One file per family; `make_operator` builds any by name, `register_operator` adds one from outside.
"""

from invdiff.operators.algebra import Stack
from invdiff.operators.base import LinearOperator
from invdiff.operators.blur import Blur, gaussian_kernel, motion_kernel, uniform_kernel
from invdiff.operators.checking import CheckReport
from invdiff.operators.colorization import Colorization
from invdiff.operators.fourier import Fourier, fourier_mask
from invdiff.operators.function import FunctionOperator
from invdiff.operators.identity import Identity
from invdiff.operators.mask import Mask
from invdiff.operators.masks import make_mask, mask_names, register_mask
from invdiff.operators.matrix import MatrixOperator
from invdiff.operators.nonlinear import NonlinearOperator
from invdiff.operators.registry import OPERATORS, get_operator, make_operator, operator_names, register_operator
from invdiff.operators.super_resolution import SuperResolution
from invdiff.operators.walsh_hadamard import WalshHadamard

_FAMILIES: dict[str, type[LinearOperator]] = {
    "mask": Mask,
    "super_resolution": SuperResolution,
    "colorization": Colorization,
    "blur": Blur,
    "identity": Identity,
    "compressed_sensing": WalshHadamard,
    "fourier": Fourier,
    "matrix": MatrixOperator,
    "function": FunctionOperator,
}
for _name, _class in _FAMILIES.items():
    register_operator(_name)(_class)

__all__ = [
    "OPERATORS",
    "Blur",
    "CheckReport",
    "Colorization",
    "Fourier",
    "FunctionOperator",
    "Identity",
    "LinearOperator",
    "Mask",
    "MatrixOperator",
    "NonlinearOperator",
    "Stack",
    "SuperResolution",
    "WalshHadamard",
    "fourier_mask",
    "gaussian_kernel",
    "get_operator",
    "make_mask",
    "make_operator",
    "mask_names",
    "motion_kernel",
    "operator_names",
    "register_mask",
    "register_operator",
    "uniform_kernel",
]
