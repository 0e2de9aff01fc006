"""The command line's frame: the application, its two consoles, and what becomes of errors."""

from __future__ import annotations

import sys
import warnings
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from invdiff.errors import InvdiffError
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
) -> None:
    if version:
        from invdiff import __version__

        console.print(f"invdiff {__version__}", highlight=False)
        raise typer.Exit


console = Console()
errors = Console(stderr=True)


def main() -> None:
    """Entry point. An error of the library becomes one message and exit status 2, never a traceback."""

    def show(message: Warning | str, *_: Any) -> None:
        errors.print(f"[yellow]note:[/] {message}", highlight=False)

    keep_freed_memory()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show  # type: ignore[assignment]
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            app()
    except KeyboardInterrupt:
        errors.print("interrupted; no half-written file is left", style="yellow")
        sys.exit(130)
    except InvdiffError as error:
        errors.print("[red]error:[/]", end=" ")
        errors.print(str(error), highlight=False, markup=False)
        sys.exit(2)


def stop(message: str) -> NoReturn:
    """Refuse, as the library does."""
    raise InvdiffError(message)
