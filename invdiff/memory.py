"""The C library's habit of handing memory back, which costs a fresh page for every activation."""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory(limit: int = 2**30) -> bool:
    """Let this process keep memory that it freed, up to `limit` bytes, instead of handing it back to the system.

    On Linux a network that runs on the processor frees its activations at the end of every call, glibc gives them back,
    and the next call has the kernel clear them all anew: a tenth of the time of a gradient sampler on a batch of eight.
    The setting holds for the whole process, so a library should not choose it for you: the command line does, a program
    of yours may call this before its first `solve`.

    Args:
        limit: bytes, below 2**31.

    Returns:
        Whether there was something to set: False outside Linux with glibc.
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Both, since the first alone would fix the second at 128 KiB: larger blocks would never be reused.
    return all([mallopt(_MMAP_THRESHOLD, limit) == 1, mallopt(_TRIM_THRESHOLD, limit) == 1])
