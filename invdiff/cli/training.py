"""`invdiff train` and `invdiff download`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from invdiff.cli.terminal import app, console, stop
from invdiff.errors import near_match


@app.command(
    "train",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def train_command(
    context: typer.Context,
    data: Annotated[
        Path | None, typer.Option(help="Folder or zip of images; train/ and val/ in it are respected.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the backbone; a training found there is taken up again.")
    ] = None,
    evaluate: Annotated[
        str | None, typer.Option(help="Only measure the held-out error of this backbone on --data.")
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Start anew although a checkpoint is there.")] = False,
    help: Annotated[bool, typer.Option("--help", "-h", help="Every option.")] = False,
) -> None:
    """Train a small backbone on your own images, or measure one: `invdiff train --data FOLDER --out DIR`."""
    from invdiff.training.loop import TrainingConfig, train

    fields = {f.name: f for f in dataclasses.fields(TrainingConfig)}
    if help:
        console.print(
            "invdiff train --data FOLDER_OR_ZIP --out DIR [--size 64] [--images 1000000] ...", highlight=False
        )
        console.print("invdiff train --evaluate BACKBONE --data FOLDER_OR_ZIP\n", highlight=False)
        table = Table(box=None, show_header=False)
        for parameter in ("data", "out", "evaluate", "restart"):
            option = next(p for p in context.command.params if p.name == parameter)
            table.add_row(f"--{parameter}", "", getattr(option, "help", ""))
        for name, f in fields.items():
            shown = "" if f.default == "" else str(f.default)
            table.add_row(f"--{name.replace('_', '-')}", shown, f.metadata["help"])
        console.print(table)
        return
    if data is None:
        stop("--data is missing: a folder or zip of images")
    options = _options(context.args, fields)
    if evaluate is not None:
        from invdiff.backbones import load_backbone
        from invdiff.training.evaluation import denoising_on, evaluate_on

        backbone = load_backbone(evaluate)
        error = evaluate_on(
            backbone, data, **{k: v for k, v in options.items() if k in ("size", "exclude", "holdout", "seed")}
        )
        console.print(f"held-out epsilon error (mean squared, t = 20..980): {error:.5f}", highlight=False)
        if backbone.any_size:
            for sigma, psnr in denoising_on(backbone, data).items():
                console.print(f"denoising, sigma {sigma} of 255: {psnr:.2f} dB", highlight=False)
        return
    if out is None:
        stop("--out is missing: the folder that the backbone is written to")
    backbone = train(data, out, resume=not restart, **options)
    console.print(f'{backbone!r} -> {out}; load_backbone("{out}") loads it', highlight=False)


def _options(words: list[str], fields: dict[str, dataclasses.Field]) -> dict[str, Any]:
    """``["--lr", "1e-4", "--symmetries"]`` in the types of the configuration's fields."""
    out: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, sign, text = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        negated = name.removeprefix("no_") if name.startswith("no_") else ""
        if negated in fields and isinstance(fields[negated].default, bool):
            out[negated] = False
            continue
        if not word.startswith("--") or name not in fields:
            stop(f"unknown option {word!r} of invdiff train.{near_match(name, fields)} See invdiff train --help")
        default: Any = fields[name].default
        if isinstance(default, bool) and not sign:
            out[name] = True
            continue
        if not sign:
            if not rest:
                stop(f"option {word} needs a value")
            text = rest.pop(0)
        try:
            out[name] = text.lower() in ("1", "true", "yes", "on") if isinstance(default, bool) else type(default)(text)
        except ValueError:
            stop(f"option --{name.replace('_', '-')} must be of type {type(default).__name__}, got {text!r}")
    return out


@app.command("download")
def download_command(
    name: Annotated[str | None, typer.Argument(help="Which; without it, the list.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Where to put it; a cache by default.")] = None,
) -> None:
    """Fetch a public checkpoint; its licence is shown first."""
    from invdiff.checkpoints import download, known_checkpoints

    if name is None:
        table = Table(box=None, header_style="bold")
        for head in ("name", "what", "size", "licence"):
            table.add_column(head)
        for known in known_checkpoints():
            table.add_row(known.name, known.title, f"{known.image_size}", known.licence)
        console.print(table)
        return
    console.print(str(download(name, folder=folder)), highlight=False)
