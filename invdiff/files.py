"""Files: written to a temporary name and renamed, so whole or not at all; their checksums, and small ones of JSON."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from invdiff.checks import shown
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


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


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


def check_readable(path: str | os.PathLike[str], what: str = "file", accepted: str = "a file") -> Path:
    """The path, if there is an ordinary file that can be opened. Nothing is read, so a pipe or a device cannot block.

    Args:
        path: of the file.
        what: it is, for the message, such as ``"photo 'a.png'"``.
        accepted: what is expected, for the message.

    Raises:
        InvdiffError: nothing of that name, a folder, a pipe, a device, or no permission.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise InvdiffError(f"{what} does not exist") from None
    except (OSError, ValueError) as error:  # a name too long, one with a NUL, a circle of links
        raise InvdiffError(f"{what} cannot be read: {_reason(error)}") from None
    if stat.S_ISDIR(mode):
        raise InvdiffError(f"{what} is a directory; {accepted} is expected")
    if not stat.S_ISREG(mode):
        raise InvdiffError(f"{what} is a pipe, a socket or a device; {accepted} is expected")
    if not os.access(path, os.R_OK):
        raise InvdiffError(f"{what} cannot be read: no permission")
    return Path(path)


def check_writable(path: str | os.PathLike[str], what: str = "output") -> Path:
    """The path, if a file can be written there: tried with an empty one beside it, which is gone again.

    Raises:
        InvdiffError: no such folder, a folder or a device of that name, an impossible name, no permission, a full disk.
    """
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise InvdiffError(f"{what} must be a file name, got {shown(path)}")
    named = f"{what} {str(path)!r}"
    try:
        path = Path(path)
        there = path.stat().st_mode if path.exists() else None
        if there is not None and stat.S_ISDIR(there):
            raise InvdiffError(f"{named} is a directory; a file name is expected")
        if there is not None and not stat.S_ISREG(there):
            raise InvdiffError(f"{named} is a pipe, a socket or a device; an ordinary file is expected")
        if not path.parent.is_dir():
            raise InvdiffError(f"{named}: the folder {str(path.parent)!r} does not exist; make it first")
        handle, temporary = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        os.unlink(temporary)
    except (OSError, ValueError) as error:
        if isinstance(error, InvdiffError):
            raise
        raise InvdiffError(f"{named} cannot be written: {_reason(error)}") from None
    return path


def make_folder(path: str | os.PathLike[str], what: str = "out") -> Path:
    """The folder, made if it isn't there, in which a file can be written.

    Raises:
        InvdiffError: a file of that name, an impossible name, no permission, a full disk.
    """
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise InvdiffError(f"{what} must be a folder, got {shown(path)}")
    try:
        folder = Path(path).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".invdiff-", dir=folder)
        os.close(handle)
        os.unlink(temporary)
    except (OSError, ValueError, RuntimeError) as error:
        raise InvdiffError(
            f"{what} must be a folder that can be written to, got {str(path)!r}: {_reason(error)}"
        ) from None
    return folder


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).lower()


def slug(name: str) -> str:
    """`name` as part of a file name: letters, digits, ``. _ + = -``; anything else becomes ``-``."""
    return re.sub(r"[^\w.+=-]+", "-", name).strip("-.") or "-"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
