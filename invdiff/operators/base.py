"""What every linear measurement is: the operator A, its adjoint, and functions of its singular values."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from invdiff.checks import real, shape_of, shown, whole
from invdiff.errors import InvdiffError
from invdiff.operators.options import called
from invdiff.operators.spectrum import (
    Filter,
    LanczosRule,
    SingularSystem,
    above_zero,
    lanczos_filter,
    number,
    on_range,
    reciprocal,
    slope_from_zero,
)

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator as ScipyOperator

    from invdiff.operators.checking import CheckReport

Shape = tuple[int, ...]
Index = int | slice | Sequence[int] | Tensor
T = TypeVar("T")

DENSE_SIDE = 1024
DENSE_ENTRIES = 2**24
REMEMBERED = 16


@dataclass(frozen=True)
class Eigenvalues:
    """The diagonal of `A A^T` or `A^T A` where that matrix is diagonal: a 0-dim double when all are equal."""

    values: Tensor
    all_positive: bool

    @classmethod
    def of(cls, values: Tensor, dtype: torch.dtype) -> Eigenvalues:
        largest = float(values.max())
        values = torch.where(values > 1e-12 * largest, values, 0.0)
        if float(values.max() - values.min()) <= 1e-12 * largest:
            return cls.equal(largest)
        return cls(values.to(dtype), bool((values > 0).all()))

    @classmethod
    def equal(cls, value: float) -> Eigenvalues:
        """All eigenvalues are `value`."""
        return cls(number(value), value > 0)

    def through(self, f: Filter, like: Tensor) -> Tensor:
        """`f` at every eigenvalue, in the dtype of `like`."""
        return torch.as_tensor(f(self.values)).to(like.dtype)

    def through_range(self, f: Filter, like: Tensor) -> Tensor:
        """`f` at the non-zero eigenvalues and 0 at the others, in the dtype of `like`."""
        return self.through(f, like) if self.all_positive else on_range(f, self.values).to(like.dtype)


class LinearOperator(ABC):
    """A linear measurement A, from images `(B, C, H, W)` to the measurement's own shape `(B, ...)`.

    A subclass writes two methods, `apply` (A x) and `apply_adjoint` (A^T y); everything else follows from them. A
    family whose singular values are known overrides `filtered_adjoint`, `gram_filter` and `cogram_filter`, or says
    that its rows or columns are disjoint.

    Operators are immutable values. What a call computes and keeps (a transfer function, a small SVD) cannot be
    observed. All methods keep the dtype, work on any device, under autograd and under `torch.inference_mode`.

    In every filter, `f` is a vectorised function of the squared singular values `lambda = s^2`; zeros are exact.

    Attributes:
        task: The task whose tuned settings samplers use (`samplers.presets`): ``"mask"``, ``"super_resolution"``, ``"blur"``,
            ...; ``""`` for none. An operator of your own may name any of them.
        keeps_range: Every element of the measurement is an average of pixels, so it stays in their range; a measurement far
            outside it is refused.
        framed: Names of the options (of `from_options`) that are masks in the image's own frame: they are placed as the
            photo is where a photo is scaled or cut.
        batch_size: Number of images the parameters are for; None when all images share them.
        image_shape: `(C, H, W)` set by `bind`; needed only by operators whose measurement does not tell the image's
            size.
        rows_disjoint: Every pixel enters at most one element of the measurement, so A A^T is diagonal.
        columns_disjoint: Every element of the measurement reads at most one pixel, so A^T A is diagonal.
        channelwise: Acts on every channel alone and alike, and the measurement `(B, C, ...)` keeps them apart.
        unverified: Its map is a user's code: `solve` probes whether it is linear before it asks a network.
        lanczos: When the generic fallback stops.
    """

    task: str = ""
    keeps_range: bool = False
    framed: ClassVar[tuple[str, ...]] = ()
    batch_size: int | None = None
    image_shape: Shape | None = None
    rows_disjoint: bool = False
    columns_disjoint: bool = False
    channelwise: bool = False
    unverified: bool = False
    lanczos: LanczosRule = LanczosRule()
    __array_ufunc__ = None  # numpy leaves `number * A` to A
    __iter__ = None  # A[i] is the operator of image i, but without end where all images share it
    __contains__ = None
    _placed: torch.device | None = None

    # What a subclass writes

    @abstractmethod
    def apply(self, x: Tensor) -> Tensor:
        """A x for `x` of shape `(B, C, H, W)`."""

    @abstractmethod
    def apply_adjoint(self, y: Tensor, image_shape: Shape) -> Tensor:
        """A^T y, of shape `(B, *image_shape)`."""

    def infer_image_shape(self, measurement_shape: Shape) -> Shape:
        """`(C, H, W)` of the images whose measurement has this shape (both without the batch).

        Raises:
            InvdiffError: When the measurement does not tell.
        """
        raise InvdiffError(
            f"image_shape must be given for {self!r}, got None: a measurement of shape {tuple(measurement_shape)} does not tell "
            "the size of its image. Pass image_shape=(C, H, W), or use operator.bind((C, H, W))"
        )

    @classmethod
    def from_options(cls, image_shape: Shape, **options: Any) -> LinearOperator:
        """The operator for images `(C, H, W)` from options by name: see `make_operator`.

        As it stands, the options are the arguments of the constructor. A family that needs the images' size, or that has
        names for ready-made parameters (masks, kernels), overrides it with the options that it takes.

        Raises:
            InvdiffError: An unknown or missing option, or a value that is not accepted.
        """
        return called(cls, f"operator {cls.__name__}", options)

    def reads(self, image_shape: Shape) -> Tensor | None:
        """Which elements of the measurement are read: bool, `(1 or B, *measurement_shape)`; None where all are.

        The others may hold anything, also NaN, and no misfit counts them.
        """
        return None

    def first_look(self, y: Tensor, image_shape: Shape) -> Tensor:
        """A picture of the image's shape that `y` suggests: itself where it has that shape, else A^+ y."""
        return y if tuple(y.shape[1:]) == tuple(image_shape) else self.pinv(y, image_shape)

    def measurement_shape(self, image_shape: Shape) -> Shape:
        """Shape of the measurement of an image of shape `(C, H, W)`; both without the batch."""
        image_shape = tuple(image_shape)

        def build() -> Shape:
            one = self if self.batch_size is None else self[0]
            return tuple(one(torch.zeros(1, *image_shape, device=self.device, dtype=torch.float32))[0].shape)

        return self._remembered(("measurement_shape", image_shape), build)

    # The operator, its adjoint, its pseudo-inverse

    def __call__(self, x: Tensor) -> Tensor:
        """A x.

        Args:
            x: Images, `(B, C, H, W)`, floating point.

        Raises:
            InvdiffError: When `x` is not such a tensor or does not fit the operator's parameters.
        """
        self.check_images(x)
        return self.apply(x)

    def check_images(self, x: Tensor) -> None:
        """Raise an `InvdiffError` when `x` is not a batch of images that the operator accepts."""
        if not isinstance(x, Tensor) or x.ndim != 4 or not x.is_floating_point():
            raise InvdiffError(f"x must be a floating point tensor (B, C, H, W) for {self!r}, got {_described(x)}")
        self.check_batch("x", x)

    def check_batch(self, name: str, value: Tensor) -> None:
        """Raise an `InvdiffError` when a batch has not as many images as the operator has parameters for."""
        if self.batch_size is not None and value.shape[0] != self.batch_size:
            raise InvdiffError(
                f"{name} must be of {self.batch_size} images, as many as {self!r} has parameters for, got {value.shape[0]}; "
                "operator[indices] selects those of a part of the batch"
            )

    def adjoint(self, y: Tensor, image_shape: Shape | None = None) -> Tensor:
        """A^T y.

        Args:
            y: Measurement, `(B, *measurement_shape)`.
            image_shape: `(C, H, W)`; only needed when the measurement's shape does not tell it.
        """
        return self.apply_adjoint(y, self.resolved_image_shape(y, image_shape))

    def pinv(self, y: Tensor, image_shape: Shape | None = None) -> Tensor:
        """A^+ y, the Moore-Penrose pseudo-inverse; arguments as in `adjoint`."""
        return self.filtered_adjoint(reciprocal, y, image_shape)

    def project(self, x: Tensor) -> Tensor:
        """A^+ A x, the part of `x` in the range of A^T: what a measurement tells."""
        return self.gram_filter(above_zero, x)

    def complement(self, x: Tensor) -> Tensor:
        """x - A^+ A x, the part of `x` in the null space of A: what no measurement tells."""
        return x - self.project(x)

    def merge(self, known: Tensor, x: Tensor) -> Tensor:
        """A^+ A known + (x - A^+ A x): the range part of `known`, the null-space part of `x`."""
        return x + self.project(known - x)

    # Functions of the singular values

    def filtered_residual(self, f: Filter, y: Tensor, x: Tensor) -> Tensor:
        """A^T f(A A^T) (y - A x), the one primitive of all samplers; `f` is evaluated at non-zero eigenvalues only.

        Args:
            f: Vectorised function of the squared singular values, such as `lambda l: 1 / (l + 0.1)`.
            y: Measurement, `(B, *measurement_shape)`.
            x: Images, `(B, C, H, W)`.

        Returns:
            `(B, C, H, W)`; with `f = 1/lambda` it is A^+ (y - A x).
        """
        return self.filtered_adjoint(f, y - self(x), tuple(x.shape[1:]))

    def filtered_adjoint(self, f: Filter, y: Tensor, image_shape: Shape | None = None) -> Tensor:
        """A^T f(A A^T) y; `f` is evaluated at non-zero eigenvalues only."""
        image_shape = self.resolved_image_shape(y, image_shape)
        if (rows := self._cogram_diagonal(image_shape, y)) is not None:
            return self.apply_adjoint(rows.through_range(f, y) * y, image_shape)
        if (columns := self._gram_diagonal(image_shape, y)) is not None:
            back = self.apply_adjoint(y, image_shape)
            return columns.through_range(f, back) * back
        if (system := self._singular_system(image_shape, y)) is not None:
            return system.filtered_adjoint(f, self._vectors(y)).reshape(-1, *image_shape)
        return self._by_lanczos(f, self.apply_adjoint(y, image_shape))

    def cogram_filter(self, f: Filter, y: Tensor, image_shape: Shape | None = None) -> Tensor:
        """f(A A^T) y, with `f(0)` on what no image can produce; `f(0)` is finite."""
        image_shape = self.resolved_image_shape(y, image_shape)
        if (rows := self._cogram_diagonal(image_shape, y)) is not None:
            return rows.through(f, y) * y
        if (system := self._singular_system(image_shape, y)) is not None:
            return system.cogram_filter(f, self._vectors(y)).reshape(y.shape)
        correction = self.filtered_adjoint(slope_from_zero(f), y, image_shape)
        return self._at_zero(f, y) * y + self.apply(correction)

    def gram_filter(self, f: Filter, x: Tensor) -> Tensor:
        """f(A^T A) x, with `f(0)` on the null space of A; `f(0)` is finite."""
        self.check_images(x)
        image_shape = tuple(x.shape[1:])
        if (columns := self._gram_diagonal(image_shape, x)) is not None:
            return columns.through(f, x) * x
        y = self.apply(x)
        if (rows := self._cogram_diagonal(image_shape, y)) is not None:
            at_zero = self._at_zero(f, x)
            slope = rows.through_range(lambda values: (f(values) - at_zero) / values, y)
            return at_zero * x + self.apply_adjoint(slope * y, image_shape)
        if (system := self._singular_system(image_shape, x)) is not None:
            return system.gram_filter(f, self._vectors(x)).reshape(x.shape)
        return self._at_zero(f, x) * x + self.filtered_adjoint(slope_from_zero(f), y, image_shape)

    @staticmethod
    def _at_zero(f: Filter, like: Tensor) -> Tensor:
        return torch.as_tensor(f(number(0.0))).to(like.dtype)

    def _cogram_diagonal(self, image_shape: Shape, like: Tensor) -> Eigenvalues | None:
        if not self.rows_disjoint:
            return None

        def build() -> Eigenvalues:
            count = self.batch_size or 1
            ones = torch.ones(count, *self.measurement_shape(image_shape), dtype=torch.float64, device=like.device)
            return Eigenvalues.of(self.apply(self.apply_adjoint(ones, image_shape)), like.dtype)

        return self._remembered(("cogram", image_shape, like.dtype, like.device), build)

    def _gram_diagonal(self, image_shape: Shape, like: Tensor) -> Eigenvalues | None:
        if not self.columns_disjoint:
            return None

        def build() -> Eigenvalues:
            ones = torch.ones(self.batch_size or 1, *image_shape, dtype=torch.float64, device=like.device)
            return Eigenvalues.of(self.apply_adjoint(self.apply(ones), image_shape), like.dtype)

        return self._remembered(("gram", image_shape, like.dtype, like.device), build)

    def _singular_system(self, image_shape: Shape, like: Tensor) -> SingularSystem | None:
        if self.channelwise and self.batch_size is None:
            image_shape = (1, *image_shape[1:])
        m, n = prod(self.measurement_shape(image_shape)), prod(image_shape)
        if min(m, n) > DENSE_SIDE or m * n * (self.batch_size or 1) > DENSE_ENTRIES:
            return None

        def build() -> SingularSystem:
            return SingularSystem.of(self.dense(image_shape), like.dtype, like.device)

        return self._remembered(("svd", image_shape, like.dtype, like.device), build)

    def _vectors(self, images: Tensor) -> Tensor:
        """The vectors that `_singular_system` takes: one for each image, or one for each channel."""
        return images.flatten(0, 1).flatten(1) if self.channelwise and self.batch_size is None else images.flatten(1)

    def _by_lanczos(self, f: Filter, w: Tensor) -> Tensor:
        """f(A^T A) w for `w` in the range of A^T."""
        image_shape = tuple(w.shape[1:])

        def product(v: Tensor) -> Tensor:
            return self.apply_adjoint(self.apply(v.unflatten(1, image_shape)), image_shape).flatten(1)

        return lanczos_filter(f, product, w.flatten(1), self.lanczos).unflatten(1, image_shape)

    # Shapes, placement, parts of the batch

    def resolved_image_shape(self, y: Tensor, image_shape: Shape | None = None) -> Shape:
        """The `(C, H, W)` meant by a call: the argument, else the bound one, else what the measurement tells."""
        if image_shape is not None:
            return tuple(image_shape)
        if not isinstance(y, Tensor) or not y.is_floating_point():
            raise InvdiffError(f"y must be a floating point tensor (B, ...) for {self!r}, got {_described(y)}")
        return self.image_shape or self.infer_image_shape(tuple(y.shape[1:]))

    def bind(self, image_shape: Shape) -> LinearOperator:
        """The same operator, told the `(C, H, W)` of its images, for those whose measurement does not tell it."""
        return self.replace(image_shape=shape_of("image_shape", image_shape))

    @property
    def device(self) -> torch.device:
        """Where the parameters are, or were asked to be by `to`; else the CPU."""
        return self._found_device() or torch.device("cpu")

    def _found_device(self) -> torch.device | None:
        if self._placed is not None:
            return self._placed
        tensors = (value.device for value in vars(self).values() if isinstance(value, Tensor) and value.ndim)
        parts = (part._found_device() for part in self._parts())
        return next((device for device in (*tensors, *parts) if device is not None), None)

    def to(self, device: torch.device | str) -> LinearOperator:
        """The same operator with its parameters on `device`."""

        def place(part: Any) -> Any:
            inference = isinstance(part, Tensor) and part.is_inference()  # of no use where a gradient is wanted
            return (part.clone() if inference else part).to(device)

        return self._mapped(place, (Tensor, LinearOperator)).replace(_placed=torch.device(device))

    def __getitem__(self, index: Index) -> LinearOperator:
        """The operator of some images of the batch.

        Args:
            index: An int (the operator of that image, then shared by any batch), or a slice, a list or a LongTensor.

        Returns:
            The operator itself when its parameters are shared by all images.
        """
        if self.batch_size is None:
            return self
        picked = self._mapped(lambda part: part[index], LinearOperator)
        picked.batch_size = common_batch_size(picked._parts())
        return picked

    def _parts(self) -> list[LinearOperator]:
        """The operators that this one is made of."""
        values = [value if isinstance(value, tuple) else (value,) for value in vars(self).values()]
        return [item for value in values for item in value if isinstance(item, LinearOperator)]

    def replace(self, **changes: Any) -> Any:
        """A copy with some attributes changed."""
        new = copy.copy(self)
        new.__dict__.pop("_memory", None)
        new.__dict__.update(changes)
        return new

    def _mapped(self, change: Callable[[Any], Any], types: Any) -> LinearOperator:
        changes: dict[str, Any] = {}
        with torch.inference_mode(False):
            for name, value in vars(self).items():
                if isinstance(value, types):
                    changes[name] = change(value)
                elif isinstance(value, tuple) and any(isinstance(item, types) for item in value):
                    changes[name] = tuple(change(item) if isinstance(item, types) else item for item in value)
        return self.replace(**changes)

    def _remembered(self, key: Any, build: Callable[[], T]) -> T:
        """A value that depends on the operator and `key` only, built once. Never holds inference tensors."""
        memory = self.__dict__.setdefault("_memory", {})
        try:
            return memory[key]
        except KeyError:
            pass
        with torch.inference_mode(False), torch.no_grad():
            value = build()
        while len(memory) >= REMEMBERED:
            memory.pop(next(iter(memory)), None)
        memory[key] = value
        return value

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_memory"}

    # The algebra

    @property
    def H(self) -> LinearOperator:
        """The adjoint as an operator: `A.H(y)` is A^T y."""
        from invdiff.operators.algebra import Adjoint

        return Adjoint(self)

    def __matmul__(self, other: LinearOperator) -> LinearOperator:
        from invdiff.operators.algebra import Composition

        return Composition(self, other) if isinstance(other, LinearOperator) else NotImplemented

    def __add__(self, other: LinearOperator) -> LinearOperator:
        from invdiff.operators.algebra import Sum

        return Sum(self, other) if isinstance(other, LinearOperator) else NotImplemented

    def __sub__(self, other: LinearOperator) -> LinearOperator:
        return self + (-other) if isinstance(other, LinearOperator) else NotImplemented

    def __mul__(self, factor: float) -> LinearOperator:
        from invdiff.operators.algebra import Scaled

        return Scaled(factor, self) if isinstance(factor, int | float | np.floating | np.integer) else NotImplemented

    __rmul__ = __mul__

    def __truediv__(self, factor: float) -> LinearOperator:
        return self * (1.0 / real("factor", factor)) if factor else self * real("1 / factor", float("inf"))

    def __neg__(self) -> LinearOperator:
        return self * -1.0

    # Measurements, matrices, checks

    def measure(self, x: Tensor, sigma_y: float = 0.0, seed: int | Sequence[int] = 0) -> Tensor:
        """Simulate a measurement, A x + sigma_y n with standard normal n.

        Args:
            x: Images, `(B, C, H, W)`.
            sigma_y: Standard deviation of the noise, in the unit of `x`.
            seed: The noise of image i is a function of `(seed, i)`; of `(seed[i], 0)` when there is a seed per image.
                The global generators are neither read nor seeded.

        Returns:
            `(B, *measurement_shape)`.
        """
        sigma_y = real("sigma_y", sigma_y, low=0)
        y = self(x)
        if sigma_y == 0:
            return y
        if isinstance(seed, list | tuple | range | np.ndarray | Tensor) and getattr(seed, "ndim", 1) == 1:
            keys = [(whole("seed", one, low=0), 0) for one in seed]
        else:
            keys = [(whole("seed", seed, low=0), i) for i in range(len(y))]
        if len(keys) != len(y):
            raise InvdiffError(f"seed must be one number or one for each of the {len(y)} images, got {shown(seed)}")
        draws = []
        for key in keys:
            state = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
            draws.append(torch.randn(y.shape[1:], generator=torch.Generator().manual_seed(state), dtype=torch.float32))
        return y + sigma_y * torch.stack(draws).to(y)

    def dense(self, image_shape: Shape, dtype: torch.dtype = torch.float64) -> Tensor:
        """The matrix of A on flattened images, for small sizes.

        Returns:
            `(m, n)` with `n = C*H*W`; `(B, m, n)` when every image has its own parameters.
        """
        image_shape = tuple(image_shape)
        if self.batch_size is not None:
            return torch.stack([self[i].dense(image_shape, dtype) for i in range(self.batch_size)])
        n = prod(image_shape)
        m = prod(self.measurement_shape(image_shape))
        by_columns = n <= 2 * m
        basis = torch.eye(n if by_columns else m, dtype=dtype, device=self.device)
        if by_columns:
            parts = [self(part.unflatten(1, image_shape)).flatten(1) for part in basis.split(256)]
            return torch.cat(parts).mT.contiguous()
        shape = self.measurement_shape(image_shape)
        return torch.cat([self.adjoint(part.unflatten(1, shape), image_shape).flatten(1) for part in basis.split(256)])

    def as_scipy(self, image_shape: Shape) -> ScipyOperator:
        """A `scipy.sparse.linalg.LinearOperator` of shape `(m, n)` on flattened double precision images."""
        from scipy.sparse.linalg import LinearOperator as ScipyOperator

        if self.batch_size not in (None, 1):
            raise InvdiffError(
                f"operator must be of one image, got {self!r} with parameters for {self.batch_size}; operator[0] selects one"
            )
        image_shape = tuple(image_shape)
        shape = self.measurement_shape(image_shape)

        def as_batch(v: np.ndarray, shape: Shape) -> Tensor:
            return (
                torch.from_numpy(np.ascontiguousarray(v, dtype=np.float64).reshape(-1)).to(self.device).view(1, *shape)
            )

        def matvec(v: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return self(as_batch(v, image_shape)).reshape(-1).cpu().numpy()

        def rmatvec(v: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return self.adjoint(as_batch(v, shape), image_shape).reshape(-1).cpu().numpy()

        return ScipyOperator((prod(shape), prod(image_shape)), matvec=matvec, rmatvec=rmatvec, dtype=np.float64)

    def check(
        self, image_shape: Shape, *, batch: int = 2, tolerance: float = 1e-5, seed: int = 0, raise_: bool = True
    ) -> CheckReport:
        """Test that this is a linear operator with the adjoint, pseudo-inverse and filters it says it has.

        In double precision on random images: linearity, the dot test `<A x, y> = <x, A^T y>`, the four Moore-Penrose
        identities, and that the filters agree with each other and with A^T A.

        Args:
            image_shape: `(C, H, W)` to test on.
            batch: Number of images; the operator's own where its parameters are per image.
            tolerance: Largest relative error that passes.
            seed: Of the random images.
            raise_: Raise an `InvdiffError` that shows the report when a test fails.

        Returns:
            A report that prints as a table; `report.passed`, `report.errors`.
        """
        from invdiff.operators.checking import check_operator

        return check_operator(self, image_shape, batch=batch, tolerance=tolerance, seed=seed, raise_=raise_)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def common_batch_size(parts: Sequence[LinearOperator]) -> int | None:
    """The number of images that all of the operators with parameters per image have them for."""
    sizes = {part.batch_size for part in parts} - {None}
    if len(sizes) > 1:
        raise InvdiffError(f"operators have parameters for batches of {sorted(sizes)} images, but they must agree.")  # type: ignore[type-var]
    return sizes.pop() if sizes else None


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"
