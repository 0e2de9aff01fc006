"""How many images run at once: as many as there is memory for."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from invdiff.errors import InvdiffError, InvdiffWarning
from invdiff.memory import free_memory, out_of_memory

MODEST = 2**19
"""Elements in the first batch at most: 42 images of 64x64, 2 of 256x256. A CPU gains nothing from more."""

LARGEST = 2**24
"""Elements in any batch on a GPU."""

_BYTES = 6_500, 40_000
"""Memory per element of an image, without and with a gradient, for a large network: guided-diffusion's for 256x256 in float32.
Measured at 32 and 64 channels, the peak of a run on one image grew by 733 and 1,511 bytes without and by 4,239 and 8,726 with a
gradient; a straight line through these gives 6,200 and 36,000 at its 256 channels. cats64: 540 and 2,400 for a further image."""

_SHARE = 0.5, 0.8
"""Of the free memory: taken on such a reckoning, and once a batch has been measured."""


class Batches:
    """Cuts a stack of images into batches that fit into memory.

    A size that is not given begins modestly. On a GPU the first batch is measured, and what is free decides about the next
    ones. Where memory runs out nevertheless, the batch is halved and done again, with a warning. The size never changes a
    result by more than rounding, for every draw belongs to its image.

    Args:
        count: images.
        numbers: of one image, C H W.
        device: where they run.
        gradient: whether the network is differentiated.
        size: of a batch, the caller's own; None chooses.
        together: so many neighbours depend on each other and are never parted.
        grows: whether later batches may be larger than the first; not worth it where every size is compiled anew.
    """

    def __init__(
        self,
        count: int,
        numbers: int,
        device: torch.device,
        gradient: bool,
        size: int | None = None,
        together: int = 1,
        grows: bool = True,
    ) -> None:
        self.count, self.numbers, self.device, self.together = count, numbers, device, together
        self.grows = grows and size is None and device.type == "cuda"
        if size is None:
            size = max(1, MODEST // numbers)
            if (free := free_memory(device)) is not None:
                size = min(size, max(1, int(_SHARE[0] * free / (numbers * _BYTES[gradient]))))
        self.size = min(self._whole_groups(size), count)

    def _whole_groups(self, size: int) -> int:
        return max(1, size // self.together) * self.together

    def run(self, work: Callable[[Tensor], Tensor]) -> Tensor:
        """``work(rows)`` for the rows 0 .. count - 1, a batch at a time; the results in one stack on the CPU.

        Raises:
            InvdiffError: one image alone takes more memory than there is.
        """
        pieces: list[Tensor] = []
        done = 0
        while done < self.count:
            rows = torch.arange(done, min(done + self.size, self.count))
            before = self._begin_measuring()
            piece = self._attempt(work, rows)
            if piece is None:
                self._halve(len(rows))
                continue
            pieces.append(piece)
            done += len(rows)
            if self.grows:
                self._grow(len(rows), before)
        return torch.cat(pieces)

    def _attempt(self, work: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor | None:
        """The result, or None where memory ran out."""
        try:
            return work(rows).cpu()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if len(rows) <= self.together:
                reason = (str(error) or type(error).__name__).splitlines()[0]
                what = "one image" if self.together == 1 else f"the {self.together} particles of one image"
                raise InvdiffError(
                    f"{self.device} has not enough memory for {what} at a time ({reason}). A sampler without a gradient, "
                    "precision='bfloat16', or NetworkBackbone(checkpointing=True) takes less"
                ) from error
            return None

    def _halve(self, tried: int) -> None:
        gc.collect()  # what the error's traceback held
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.size, self.grows = self._whole_groups((tried + 1) // 2), False
        warnings.warn(
            f"out of memory with {tried} images at once on {self.device}: going on with {self.size}. "
            f"Say batch_size={self.size} to begin with that",
            InvdiffWarning,
            stacklevel=5,
        )

    def _begin_measuring(self) -> int:
        if not self.grows:
            return 0
        torch.cuda.reset_peak_memory_stats(self.device)
        return int(torch.cuda.memory_allocated(self.device))

    def _grow(self, images: int, before: int) -> None:
        """Let the next batch take what is free, by what this one took."""
        per_image = (torch.cuda.max_memory_allocated(self.device) - before) / images
        free = free_memory(self.device)
        if free is not None and per_image > 0:
            fits = min(int(_SHARE[1] * free / per_image), LARGEST // self.numbers)
            self.size = self._whole_groups(fits)
