"""The command line's frame: the application, its two consoles, and what becomes of errors."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from invdiff.errors import InvdiffError
from invdiff.extensions import import_extensions
from invdiff.memory import keep_freed_memory

app = typer.Typer(
    help="Inverse problems with a pretrained diffusion model: restore damaged images, compare the methods.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
lists = typer.Typer(help="What there is: samplers, operators, backbones, masks, metrics, suites.", no_args_is_help=True)
app.add_typer(lists, name="list")


@app.callback()
def frame(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False,
    imports: Annotated[
        list[str] | None,
        typer.Option(
            "--import",
            metavar="FILE",
            help="A .py file or module that registers your own samplers, operators, metrics, formats, masks or backbones; "
            "before or after the command, repeatable.",
        ),
    ] = None,
) -> None:
    import_extensions(imports or [])
    if version:
        from invdiff import __version__

        console.print(f"invdiff {__version__}", highlight=False)
        raise typer.Exit


console = Console()
errors = Console(stderr=True)


def main() -> None:
    """Entry point. A mistake becomes one line on stderr and exit status 2, never a traceback: an error of the library, a word
    that the command line doesn't know, a file that the system refuses.
    """

    def show(message: Warning | str, *_: Any) -> None:
        errors.print(f"[yellow]note:[/] {message}", highlight=False)

    keep_freed_memory()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show  # type: ignore[assignment]
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            code = app(imports_first(sys.argv[1:]), standalone_mode=False)
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has had enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (nothing more to flush at the end of the process)
        sys.exit(1)
    except (InvdiffError, OSError) as error:
        _refuse(_sentence(error))
    except Exception as error:
        if not hasattr(error, "format_message"):  # what typer raises for a word that it doesn't know
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()  # type: ignore[attr-defined]
            sys.exit(2)
        _refuse(error.format_message())
    if code == 130:
        errors.print("interrupted; no half-written file is left", style="yellow")
    sys.exit(code if isinstance(code, int) else 0)


def _refuse(message: str) -> NoReturn:
    errors.print("[red]error:[/]", end=" ")
    errors.print(message, highlight=False, markup=False, soft_wrap=True)
    sys.exit(2)


def _sentence(error: InvdiffError | OSError) -> str:
    if isinstance(error, InvdiffError) or error.strerror is None:
        return str(error)
    return error.strerror.lower() + ("" if error.filename is None else f": {str(error.filename)!r}")


def imports_first(words: list[str]) -> list[str]:
    """The words of a command line with every ``--import FILE`` in front, where the frame reads it, before any command's own."""
    front, rest = [], list(words)
    while "--import" in (before := rest[: rest.index("--")] if "--" in rest else rest):
        at = before.index("--import")
        front += rest[at : at + 2]
        del rest[at : at + 2]
    joined = [word for word in rest if word.startswith("--import=")]
    return front + joined + [word for word in rest if word not in joined]


def stop(message: str) -> NoReturn:
    """Refuse, as the library does."""
    raise InvdiffError(message)
