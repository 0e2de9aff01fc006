"""Where every Gaussian draw of the library comes from."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from invdiff.checks import array, whole
from invdiff.errors import InvdiffError

Draw = Callable[[str], Tensor]  # noise("step") -> (B, C, H, W)

_BLOCK = 4096  # numbers drawn at a time for one image: amortises the seeding of tiny images
_WHOLE = 256  # pictures up to this many pixels high and wide are drawn as one, larger ones in squares
SQUARE = 64  # pixels to a side; each square's draws are a function of its place in the picture


class NoiseSource:
    """Standard normal draws that depend on nothing but (seed of the image, step, role).

    So the result for an image is the same alone or in a batch, on any worker and after a resume, and two samplers
    that ask for the same roles run on the same noise. The global generators are neither read nor seeded.

    Pictures of more than 256 pixels in height or width are drawn in squares of 64 x 64, each from a seed of its own: the
    noise at a pixel depends on where it lies in the picture, so a part of it (`place`) is drawn alone and gets what the
    whole would have got.

    Args:
        keys: one (seed, sample number) per image of the batch.
        image_shape: (C, H, W).
        device: where the draws are wanted. They are made on the CPU whatever it is and copied, so that a seed means the same
            numbers on every device; on a GPU the copy does not wait for what the GPU is at.
        dtype: of the draws; drawn in float32 and converted.
        replace: ``callable(shape) -> Tensor`` to be used instead, for common random numbers and for checks. It may have a
            method ``uniform(shape)`` for the uniform numbers of resampling.
        place: (top, left, height, width), draw for this part of the images only.
        stream: a word that makes further, independent draws from the same keys.
    """

    def __init__(
        self,
        keys: Sequence[tuple[int, int]],
        image_shape: Sequence[int],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        replace: Callable[[tuple[int, ...]], Tensor] | None = None,
        place: tuple[int, int, int, int] | None = None,
        stream: str = "",
    ) -> None:
        self._names = [f"{seed}/{sample}{stream and '/'}{stream}" for seed, sample in keys]
        self._shape = tuple(image_shape)
        self._place = place
        self._in_squares = len(self._shape) == 3 and max(self._shape[1:]) > _WHOLE
        self._device, self._dtype = torch.device(device), dtype
        self._replace = replace
        self._generator = torch.Generator()
        self._per_block = max(1, _BLOCK // max(1, _numel(self._shape)))
        self._blocks: dict[str, tuple[int, Tensor]] = {}

    def of(self, image_shape: Sequence[int], stream: str) -> NoiseSource:
        """Further draws from the same keys for images of another shape, independent of these."""
        other = copy.copy(self)
        other._names = [f"{name}/{stream}" for name in self._names]
        other._shape, other._place, other._blocks = tuple(image_shape), None, {}
        other._in_squares = len(other._shape) == 3 and max(other._shape[1:]) > _WHOLE
        other._per_block = max(1, _BLOCK // max(1, _numel(other._shape)))
        return other

    def draw(self, step: int, role: str) -> Tensor:
        """(B, C, H, W) standard normal numbers for `role` (``"init"``, ``"step"``, ...) of step number `step`."""
        if self._replace is not None:
            shape = (len(self._names), *self._shape)
            drawn = array("noise", self._replace(shape), what=f"numbers of shape {shape}")
            if tuple(drawn.shape) != shape:
                raise InvdiffError(
                    f"noise must return a tensor of shape {shape}, got one of shape {tuple(drawn.shape)}"
                )
            return self._cut(drawn.to(self._device, self._dtype))
        if self._in_squares:
            return self._squares(step, role)
        number, within = divmod(step, self._per_block)
        if self._per_block == 1:
            return self._cut(self._block(number, role)[:, 0])
        if role not in self._blocks or self._blocks[role][0] != number:
            self._blocks[role] = (number, self._block(number, role))
        return self._cut(self._blocks[role][1][:, within])

    def uniform(self, step: int, role: str, rows: int, count: int) -> Tensor:
        """Uniform numbers on (0, 1) that several rows of the batch share, as the resampling of particles needs them.

        Args:
            step, role: as for `draw`.
            rows: so many successive rows share their numbers, which come from the key of the first.
            count: how many numbers they share.

        Returns:
            (B / rows, count), float64, on the CPU. Where draws are replaced, what ``replace.uniform(shape)`` gives, if there is
            such a method, else the normal distribution function of replaced draws.
        """
        names = self._names[::rows]
        if self._replace is not None:
            own = getattr(self._replace, "uniform", None)
            drawn = own((len(names), count)) if own else torch.special.ndtr(self._replace((len(names), count)).double())
            return torch.as_tensor(drawn).to("cpu", torch.float64)
        generator = torch.Generator()
        lines = [
            torch.rand(count, generator=generator.manual_seed(seed_of(name, role, step)), dtype=torch.float64)
            for name in names
        ]
        return torch.stack(lines)

    def at(self, step: int) -> Draw:
        """The draws of one step: ``noise = source.at(k); noise("step")``."""
        return lambda role: self.draw(step, role)

    def _cut(self, drawn: Tensor) -> Tensor:
        """The part of draws for the whole images that is asked for."""
        if self._place is None:
            return drawn
        top, left, height, width = self._place
        return drawn[..., top : top + height, left : left + width]

    def _squares(self, step: int, role: str) -> Tensor:
        """(B, C, h, w) of one step, drawn in the squares that the part asked for touches."""
        channels, *size = self._shape
        top, left, height, width = self._place or (0, 0, *size)
        first, beside = top // SQUARE, left // SQUARE
        below, right = -(-(top + height) // SQUARE), -(-(left + width) // SQUARE)
        drawn = self._room(len(self._names), channels, (below - first) * SQUARE, (right - beside) * SQUARE)
        square = torch.empty((channels, SQUARE, SQUARE), dtype=torch.float32, device="cpu")
        for row, name in zip(drawn, self._names, strict=True):
            for i in range(first, below):
                for j in range(beside, right):
                    self._generator.manual_seed(seed_of(name, role, step, i, j))
                    y, x = (i - first) * SQUARE, (j - beside) * SQUARE
                    row[:, y : y + SQUARE, x : x + SQUARE] = square.normal_(generator=self._generator)
        y, x = top - first * SQUARE, left - beside * SQUARE
        return self._placed(drawn)[..., y : y + height, x : x + width]

    def _block(self, number: int, role: str) -> Tensor:
        block = self._room(len(self._names), self._per_block, *self._shape)
        for row, name in zip(block, self._names, strict=True):
            self._generator.manual_seed(seed_of(name, role, number))
            row.normal_(generator=self._generator)
        return self._placed(block)

    def _room(self, *shape: int) -> Tensor:
        """Memory to draw into, from where a GPU can fetch it by itself."""
        return torch.empty(shape, dtype=torch.float32, device="cpu", pin_memory=self._device.type == "cuda")

    def _placed(self, drawn: Tensor) -> Tensor:
        return drawn.to(self._device, non_blocking=True).to(self._dtype)


def seed_of(*words: object) -> int:
    """A seed for a generator that is a function of `words` only: 64 bits of their hash."""
    digest = hashlib.blake2b("/".join(map(str, words)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def positive_seed_of(*words: object) -> int:
    """`seed_of` without its sign: 63 bits, for what takes no negative seed."""
    return (seed_of(*words) % 2**64) >> 1


def standard_normal(shape: tuple[int, ...], seed: int, generator: torch.Generator | None = None) -> Tensor:
    """Float64 draws on the CPU from `generator`, or from one of their own started at `seed`."""
    if generator is None:
        generator = torch.Generator().manual_seed(whole("seed", seed, low=0, high=2**63 - 1))
    return torch.randn(shape, generator=generator, dtype=torch.float64, device=generator.device)


def _numel(shape: Sequence[int]) -> int:
    n = 1
    for size in shape:
        n *= size
    return n
