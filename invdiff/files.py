"""Files: written to a temporary name and renamed, so whole or not at all; their checksums, and small ones of JSON."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from invdiff.errors import InvdiffError

_LARGEST_JSON = 16 << 20


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


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file in hexadecimal, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def check_sha256(path: str | os.PathLike[str], expected: str) -> None:
    """Compare the checksum of a file.

    Raises:
        InvdiffError: it is another one; the message has both.
    """
    found = sha256_of(path)
    if found != expected.strip().lower():
        raise InvdiffError(
            f"path {path} is damaged or another file: its sha256 is {found}, expected {expected} "
            f"({os.path.getsize(path):,} bytes read); get it again"
        )


def read_json(file: Path) -> dict[str, Any]:
    """The dictionary in a JSON file.

    Raises:
        InvdiffError: not to be read, larger than any description (16 MiB), or something else than a dictionary.
    """
    try:
        if file.stat().st_size > _LARGEST_JSON:
            raise ValueError(f"it has {file.stat().st_size:,} bytes, more than any description")
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InvdiffError(f"path {file} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise InvdiffError(f"path {file} must hold a dictionary, got a {type(content).__name__}")
    return content


def slug(name: str) -> str:
    """`name` as part of a file name: letters, digits, ``. _ + = -``; anything else becomes ``-``."""
    return re.sub(r"[^\w.+=-]+", "-", name).strip("-.") or "-"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
