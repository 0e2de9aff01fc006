"""`invdiff app`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from invdiff.cli.terminal import app


@app.command("app")
def app_command(
    host: Annotated[
        str,
        typer.Option(help="Where to listen: 127.0.0.1 is for this machine alone, 0.0.0.0 for all who can reach it."),
    ] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="A free one from 7860 on by default.")] = None,
    vote: Annotated[
        Path | None,
        typer.Option(help="Blind votes on the restorations of this run folder, in place of the other tabs."),
    ] = None,
    workers: Annotated[int, typer.Option(help="Restorations at once; the others wait in the queue.")] = 1,
    megabytes: Annotated[float, typer.Option(help="Largest upload.")] = 30.0,
    megapixels: Annotated[
        float, typer.Option(help="Largest picture that is worked on; larger photos are shrunken.")
    ] = 2.0,
    calls: Annotated[
        int, typer.Option(help="Most network calls of one restoration, all its samplers and samples.")
    ] = 50_000,
    backbone: Annotated[
        list[str] | None, typer.Option(help="A further backbone to choose: a folder or checkpoint; repeatable.")
    ] = None,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser at once.")] = False,
) -> None:
    """Open the browser app: paint a hole and watch it being filled; or vote blindly on the pictures of a run.

    \b
    invdiff app                       # then open the address that it prints
    invdiff app --vote runs/mine
    """
    from invdiff.app.limits import Limits
    from invdiff.app.server import serve
    from invdiff.checks import real, whole

    limits = Limits(
        megabytes=real("--megabytes", megabytes, 0.1, 1000),
        megapixels=real("--megapixels", megapixels, 0.01, 100),
        calls=whole("--calls", calls, 1),
        backbones=tuple(backbone or ()),
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the server's folder goes with it
    serve(host=host, port=port, vote=vote, workers=workers, limits=limits, open_browser=open_browser)
