"""Memory: how much is free, whether it ran out, and the C library's habit of handing it back.

That habit costs a fresh page for every activation, see `keep_freed_memory`.
"""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory(limit: int = 2**30) -> bool:
    """Let this process keep memory that it freed, up to `limit` bytes, instead of handing it back to the system.

    On Linux a network that runs on the CPU frees its activations at the end of every call, glibc gives them back,
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


def free_memory(device: torch.device) -> int | None:
    """Bytes that a computation on `device` may still take: what is free there, and what PyTorch holds and does not use.

    On the CPU what the system calls available, or less where the process is in a control group with a limit (a container,
    a job of a cluster). None where it cannot be known.
    """
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + held
    if device.type != "cpu" or not _MEMINFO.is_file():
        return None
    lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines() if ":" in line)
    if "MemAvailable" not in lines:
        return None
    available = 1024 * int(lines["MemAvailable"].split()[0])
    limit, used = (_whole_number(_GROUP / name) for name in ("memory.max", "memory.current"))
    return available if limit is None or used is None else min(available, max(0, limit - used))


_MEMINFO = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")


def _whole_number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # not there, or "max"
        return None


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: PyTorch's own, Python's, or one of the libraries' by their words."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS)


_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "STATUS_ALLOC_FAILED")
