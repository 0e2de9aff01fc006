"""Code from outside the package: files and modules that register samplers, operators, metrics, formats, masks or backbones.

invdiff solve photo.png --import my_sampler.py --sampler fade
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from invdiff.errors import InvdiffError

_imported: list[str] = []


def import_extensions(names: Iterable[str], beside: Path | None = None) -> None:
    """Import files and modules, so that what they register is known; each once.

    Args:
        names: paths of ``.py`` files, or names of modules that Python finds.
        beside: the folder that relative paths start from; the current one by default.

    Raises:
        InvdiffError: there is no such file or module, or it raises an error of its own.
    """
    for name in names:
        path = (beside or Path()).joinpath(Path(name).expanduser()).resolve()
        is_file = name.endswith(".py") or path.is_file()
        if is_file and not path.is_file():
            raise InvdiffError(f"--import must be a .py file that exists or the name of a module, got {name!r}")
        key = str(path) if is_file else name
        if key in _imported:
            continue
        try:
            _from_file(path) if is_file else importlib.import_module(name)
        except InvdiffError:
            raise
        except ModuleNotFoundError as error:
            if error.name is not None and error.name.split(".")[0] == name.split(".")[0]:
                raise InvdiffError(
                    f"--import must be a .py file that exists or the name of a module, got {name!r}: {error}"
                ) from None
            raise InvdiffError(f"--import {name!r} failed: {_said(error)}") from error
        except Exception as error:
            raise InvdiffError(f"--import {name!r} failed: {_said(error)}") from error
        _imported.append(key)


def imported_extensions() -> tuple[str, ...]:
    """What this process imported so, for its workers to import it too: whole paths, and names of modules."""
    return tuple(_imported)


def _from_file(path: Path) -> ModuleType:
    """A file as the module of its name, with what stands beside it within reach, as for a script."""
    name = path.stem
    if name in sys.modules:
        if getattr(sys.modules[name], "__file__", None) == str(path):
            return sys.modules[name]
        raise InvdiffError(f"--import {str(path)!r}: a module named {name!r} is imported already; rename the file")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InvdiffError(f"--import {str(path)!r}: the file must end in .py")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _said(error: BaseException) -> str:
    """The error and where in the imported code it was raised."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if len(frames) > 1 else ""
    return f"{type(error).__name__}: {error}{where}"
