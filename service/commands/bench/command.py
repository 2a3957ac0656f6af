"""`hilum bench` from its options to its exit code."""

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from service.commands.bench import show
from service.commands.bench.run import Load, measure
from service.commands.console import console


def bench(load: Load, vs: str, database_url: str | None, plot: Path | None, as_json: bool) -> int:
    """Measure and print; return 0 only when every film was taken and reported."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
    ) as progress:
        single, sustained = measure(load, database_url, progress)
    if as_json:
        sys.stdout.write(json.dumps(show.as_json(load, single, sustained), indent=2) + "\n")
    else:
        show.tables(console(), load, single, sustained)
    if plot is not None:
        show.plot(plot, single, sustained)
    lost = single.lost + sustained.lost
    if lost:
        sys.stderr.write(f"hilum: {lost} of {load.singles + load.films} films have no report in the PACS\n")
    return 1 if lost else 0
