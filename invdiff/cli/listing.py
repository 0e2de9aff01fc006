"""`invdiff list ...`."""

from __future__ import annotations

from rich.table import Table

from invdiff.cli.terminal import console, lists
from invdiff.operators.options import options_of


def say(text: str) -> None:
    """One line, not broken at the terminal's width, so that it can be searched."""
    console.print(text, highlight=False, soft_wrap=True)


@lists.command("samplers")
def list_samplers() -> None:
    """Every sampler: its options with their defaults, what presets set for a task, what it handles, network calls per image."""
    import dataclasses

    from invdiff.backbones.schedule import NoiseSchedule
    from invdiff.samplers import baseline_names, sampler_class, sampler_names
    from invdiff.samplers.presets import PRESETS, rows

    schedule = NoiseSchedule.linear()
    for name in sampler_names():
        cls = sampler_class(name)
        cost = cls().cost(schedule)
        traits = [
            "models noise in y" if cls.handles_noise else "for noise-free y",
            *(["A x = y where noise-free"] if cls.consistent else []),
            f"{cost.calls:,} network calls per image"
            + (f" and {cost.vjps:,} vector-Jacobian products" if cost.vjps else ""),
        ]
        say(f"[bold]{name}[/]  {'; '.join(traits)}")
        say(f"  [dim]{cls.paper}[/]")
        for field in dataclasses.fields(cls):
            say(f"    {field.name} = {field.default!r}  [dim]{field.metadata['help']}[/]")
        for preset in PRESETS:
            for row in (row for row in rows(preset) if row.sampler == name):
                where = ", ".join(row.tasks) or "every operator"
                noise = {None: "", True: ", noisy", False: ", noise-free"}[row.noisy]
                values = ", ".join(f"{k}={v!r}" for k, v in row.settings.items())
                noise += f", up to {row.most_steps} steps" if row.most_steps else ""
                unless = f"  [dim]unless {', '.join(row.unless)} is given[/]" if row.unless else ""
                say(f"    preset {preset}, for {where}{noise}: {values}{unless}")
        console.print()
    say("Baselines: classical methods, to be named like the samplers; they ask no network.")
    console.print()
    for name in baseline_names():
        cls = sampler_class(name)
        noise = "; models noise in y" if cls.handles_noise else ""
        say(f"[bold]{name}[/]  baseline for {getattr(cls, 'takes', 'every operator')}{noise}")
        say(f"  [dim]{cls.paper}[/]")
        for field in dataclasses.fields(cls):
            say(f"    {field.name} = {field.default!r}  [dim]{field.metadata['help']}[/]")


@lists.command("operators")
def list_operators() -> None:
    """Every operator and its options, as ``-A name=value`` takes them."""
    import inspect

    from invdiff.operators import OPERATORS

    for name, cls in OPERATORS.items():
        say(f"[bold]{name}[/]  {cls.__name__}({', '.join(options_of(cls))})")
        say(f"    [dim]{(inspect.getdoc(cls) or '').splitlines()[0]}[/]")
    console.print("A mask is 1 (white) where the pixel is known and 0 (black) where it is missing.")


@lists.command("backbones")
def list_backbones() -> None:
    """Every backbone that `--backbone` knows by name."""
    from invdiff.backbones import backbone_names, load_backbone

    for name in backbone_names():
        try:
            say(f"[bold]{name}[/]  {load_backbone(name)!r}")
        except ValueError as error:
            say(f"[bold]{name}[/]  [red]{error}[/]")
    console.print("Also: a folder written by `invdiff train` or in diffusers' format, a checkpoint file, a hub name.")


@lists.command("masks")
def list_masks() -> None:
    """Every mask generator."""
    from invdiff.operators.masks import make_mask, mask_names

    for name in mask_names():
        share = float(make_mask(name, 64).float().mean())
        say(f"{name:20s} {100 * share:3.0f} % known at 64x64")


@lists.command("metrics")
def list_metrics() -> None:
    """Every metric: its direction, its unit, what it says."""
    from invdiff.metrics import get_metric, metric_names

    table = Table(box=None, header_style="bold")
    for head in ("metric", "better", "unit", "what it says"):
        table.add_column(head)
    for name in metric_names():
        metric = get_metric(name)
        table.add_row(name, metric.direction, metric.unit, metric.description)
    console.print(table)


@lists.command("suites")
def list_suites() -> None:
    """Every benchmark suite."""
    from invdiff.bench.suite.suite import load_suite, suite_names

    for name in suite_names():
        suite = load_suite(name)
        say(f"[bold]{name:18s}[/] {' '.join(suite.description.split())}")
