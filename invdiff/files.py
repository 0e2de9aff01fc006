"""Files are written to a temporary name and renamed: whole or not at all."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path` that becomes `path` when the block ends, and vanishes when it fails.

    with atomic_write("restored.png") as temporary:
        image.save(temporary)
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def slug(name: str) -> str:
    """`name` as part of a file name: letters, digits, ``. _ + = -``; anything else becomes ``-``."""
    return re.sub(r"[^\w.+=-]+", "-", name).strip("-.") or "-"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
