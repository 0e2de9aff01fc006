"""`invdiff impute`: a CSV file with holes, filled."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated

import typer

from invdiff.cli.terminal import app, console, stop

EMPTY = ("", "na", "n/a", "nan", "null", "none", "?")


@app.command("impute")
def impute_command(
    table: Annotated[Path, typer.Argument(help="CSV with a line of names; empty, NA, NaN, null and ? are missing.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV to write.")],
    samples: Annotated[int, typer.Option(help="Draws that the filled value is the mean (or most frequent) of.")] = 20,
    draws: Annotated[
        int, typer.Option(help="Also write this many completed tables, each a draw: OUTPUT-1.csv, OUTPUT-2.csv, ...")
    ] = 0,
    sampler: Annotated[str, typer.Option("--sampler", "-s", help="See invdiff list samplers.")] = "mmps",
    prior: Annotated[str, typer.Option(help="mixture or mlp.")] = "mixture",
    seed: Annotated[int, typer.Option(help="Same seed, same table.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
) -> None:
    """Fill the holes of a table: every known cell is written as it was read."""
    import numpy as np

    from invdiff.files import atomic_write

    try:
        from invdiff.tabular import DiffusionImputer
    except ModuleNotFoundError as error:
        stop(str(error))
    outputs = [output, *(output.with_name(f"{output.stem}-{i + 1}{output.suffix}") for i in range(max(0, draws)))]
    for path in outputs:
        if path.exists() and not overwrite:
            stop(f"{path} exists; --overwrite replaces it")
    names, rows = _read(table)
    columns = []
    for j in range(len(names)):
        cells = [None if _is_hole(row[j]) else row[j].strip() for row in rows]
        columns.append(_as_numbers(cells))
    data = np.empty((len(rows), len(names)), dtype=object)
    for j, column in enumerate(columns):
        data[:, j] = column
    imputer = DiffusionImputer(prior=prior, sampler=sampler, n_samples=samples, random_state=seed).fit(data)
    tables = [imputer.transform(data), *(imputer.sample(draws, data) if draws > 0 else ())]
    for path, filled in zip(outputs, tables, strict=True):
        with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(names)
            for row, values in zip(rows, filled, strict=True):
                writer.writerow(_cell(v) if _is_hole(cell) else cell for cell, v in zip(row, values, strict=True))
    holes = sum(_is_hole(cell) for row in rows for cell in row)
    console.print(f"{holes} of {len(rows) * len(names)} cells filled -> {output}", highlight=False)


def _read(path: Path) -> tuple[list[str], list[list[str]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except OSError as error:
        stop(f"table {str(path)!r} cannot be read: {error.strerror or error}")
    except (UnicodeDecodeError, csv.Error) as error:
        stop(f"table {str(path)!r} is no CSV file in UTF-8: {error}")
    if len(rows) < 2:
        stop(f"table {str(path)!r} must have a line of names and at least one row, got {len(rows)} lines")
    names, body = rows[0], rows[1:]
    for number, row in enumerate(body, 2):
        if len(row) != len(names):
            stop(f"table {str(path)!r} must have {len(names)} cells in every row, got {len(row)} in row {number}")
    return names, body


def _is_hole(cell: str) -> bool:
    return cell.strip().lower() in EMPTY


def _as_numbers(cells: list[str | None]) -> list[float | str | None]:
    """As floats where every cell is one."""
    try:
        return [float("nan") if cell is None else float(cell) for cell in cells]
    except ValueError:
        return list(cells)


def _cell(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
