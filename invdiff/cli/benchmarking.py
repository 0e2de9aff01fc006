"""`invdiff bench`, `report`, `score`, `compare`, `merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from invdiff.cli.terminal import app, console, errors, stop

Out = Annotated[Path | None, typer.Option(help="Run folder; runs/SUITE by default.")]


@app.command("bench")
def bench_command(
    suite: Annotated[str, typer.Argument(help="A name of `invdiff list suites`, or a .toml file.")] = "quick",
    out: Out = None,
    images: Annotated[Path | None, typer.Option(help="Folder or zip of images; those of the suite by default.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Another backbone than the suite's.")] = None,
    samplers: Annotated[str | None, typer.Option(help="Only these, separated by commas.")] = None,
    metrics: Annotated[str | None, typer.Option(help="Only these, separated by commas.")] = None,
    seeds: Annotated[int | None, typer.Option(help="How many seeds.")] = None,
    n_images: Annotated[int | None, typer.Option(help="How many images.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what the run folder already holds.")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="With --resume: run failed cells again.")
    ] = False,
    shard: Annotated[
        str | None, typer.Option(help="Only part i of n, as i/n (job arrays); see `invdiff merge`.")
    ] = None,
    executor: Annotated[str, typer.Option(help="local, or ray for several workers and machines.")] = "local",
    workers: Annotated[int | None, typer.Option(help="Of the executor.")] = None,
    address: Annotated[str | None, typer.Option(help="Of a running Ray cluster.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ..., or auto.")] = "auto",
    precision: Annotated[str | None, typer.Option(help="Of the network: auto, float32, bfloat16, float16.")] = None,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Also every classical method, on the tasks that it is for.")
    ] = False,
    report: Annotated[bool, typer.Option(help="Write the report at the end.")] = True,
    quick: Annotated[
        bool, typer.Option("--quick", help="The short selection of a suite, such as `truth-quick` of `truth`.")
    ] = False,
) -> None:
    """Run a benchmark suite and write its report.

    \b
    invdiff bench quick --out runs/quick
    invdiff bench inpainting --images my_photos/ --samplers repaint,ddnm,pigdm --seeds 3
    invdiff bench truth --quick                   # distance to exact posteriors
    """
    from invdiff.bench.report.report import make_report
    from invdiff.bench.run.runner import bench, failures
    from invdiff.bench.suite.suite import quick_selection

    if quick:
        suite = quick_selection(suite)
    run = bench(
        suite,
        out,
        samplers=samplers,
        images=images,
        backbone=backbone,
        seeds=seeds,
        n_images=n_images,
        metrics=metrics,
        baselines=baselines,
        resume=resume,
        shard=shard,
        executor=executor,
        workers=workers,
        address=address,
        device=device,
        precision=precision,
        retry_failed=retry_failed,
    )
    if report and shard is None:
        files = make_report(run.folder)
        console.print(f"report: {next((f for f in files if f.suffix == '.html'), files[0])}", highlight=False)
    else:
        console.print(f"run folder: {run.folder}", highlight=False)
    if said := failures(run):
        errors.print(said, style="red", highlight=False, markup=False, soft_wrap=True)
        raise typer.Exit(1)


@app.command("report")
def report_command(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the files, RUN/report by default; or one file: .html, .md, .tex or .csv."),
    ] = None,
    formats: Annotated[str, typer.Option(help="Any of html, png, svg, csv, md, tex.")] = "html,png,svg,csv,md,tex",
) -> None:
    """Write the report of a run: one HTML page, figures, tables for papers."""
    from invdiff.bench.report.report import make_report

    for file in make_report(run, out, [f.strip() for f in formats.split(",")]):
        console.print(str(file), highlight=False)


@app.command("score")
def score_command(
    truth: Annotated[Path, typer.Option(help="Folder or zip of true images.")],
    restored: Annotated[
        Path, typer.Option(help="Folder of restorations of the same names, or one sub-folder per method.")
    ],
    measured: Annotated[
        Path | None, typer.Option(help="Folder of the measurements, for the pictures of the report.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/score"),
) -> None:
    """Judge someone else's restorations with the same metrics, in the same report."""
    from invdiff.bench.report.report import make_report
    from invdiff.bench.run.score import score_folders

    score_folders(truth, restored, measured, out)
    files = make_report(out)
    console.print(f"report: {next((f for f in files if f.suffix == '.html'), files[0])}", highlight=False)


@app.command("compare")
def compare_command(
    before: Annotated[Path, typer.Argument(help="The run to compare against.")],
    after: Annotated[Path, typer.Argument(help="The run with the change.")],
    out: Annotated[Path | None, typer.Option(help="Also write the comparison as Markdown.")] = None,
) -> None:
    """Did a change make it better? Paired differences with intervals and corrected tests."""
    from invdiff.bench.report.compare import compare
    from invdiff.files import atomic_write

    comparison = compare(before, after)
    table = Table(box=None, header_style="bold")
    for name in comparison.HEADINGS:
        table.add_column(name)
    for row in comparison.rows():
        table.add_row(*row)
    console.print(table)
    console.print(comparison.sentence(), highlight=False, markup=False)
    if out is not None:
        if not out.parent.is_dir():
            stop(f"--out {str(out)!r}: the folder {str(out.parent)!r} does not exist")
        with atomic_write(out) as temporary:
            temporary.write_text(comparison.markdown())


@app.command("merge")
def merge_command(
    shards: Annotated[list[Path], typer.Argument(help="Run folders of the shards.")],
    out: Annotated[Path, typer.Option(help="The new run folder.")],
) -> None:
    """Put the shards of a run into one folder."""
    from invdiff.bench.run.runner import merge_runs

    merged = merge_runs(shards, out)
    missing = merged.info.get("missing", 0)
    console.print(
        f"{len(merged.records())} cells -> {out}" + (f"; {missing} are missing" if missing else ""), highlight=False
    )
