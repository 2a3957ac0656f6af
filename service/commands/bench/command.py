"""`hilum bench` from its options to its exit code."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from service.commands.bench import rivals, show
from service.commands.bench.run import Load, measure
from service.commands.console import console

# The receivers alone are faster than the gateway: they need no more films than this to be told apart.
_MOST_BESIDE = 24


def bench(
    load: Load, names: Sequence[str], database_url: str | None, plot: Path | None, as_json: bool
) -> int:
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
        beside: rivals.Found = {}
        if names:
            beside = rivals.compare(names, min(load.films, _MOST_BESIDE), load.megabytes, progress)
    if as_json:
        sys.stdout.write(json.dumps(show.as_json(load, single, sustained, beside), indent=2) + "\n")
    else:
        show.tables(console(), load, single, sustained)
        if beside:
            show.beside(console(), load, beside)
    if plot is not None:
        show.plot(plot, single, sustained)
    lost = single.lost + sustained.lost
    if lost:
        sys.stderr.write(f"hilum: {lost} of {load.singles + load.films} films have no report in the PACS\n")
    return 1 if lost else 0
