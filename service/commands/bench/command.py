"""`hilum bench` from its options to its exit code."""

import json
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from sqlalchemy import exists, inspect, select

from service.commands.bench import rivals, show
from service.commands.bench.run import Load, measure
from service.commands.console import console
from service.core.errors import ConfigurationError
from service.core.ledger import open_engine
from service.core.settings import load as load_settings
from service.core.tables import Study

# The receivers alone are faster than the gateway: they need no more films than this to be told apart.
_MOST_BESIDE = 24


def bench(
    load: Load, names: Sequence[str], database_url: str | None, plot: Path | None, as_json: bool
) -> int:
    """Measure and print; return 0 only when every film was taken and reported.

    Raises
    ------
    ConfigurationError
        When the database has studies: another gateway's films are not for this one to work on.
    """
    if database_url is not None:
        _check_empty(database_url)
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


def _check_empty(database_url: str) -> None:
    engine = open_engine(load_settings(database_url=database_url).sqlalchemy_url)
    with closing(engine.connect()) as connection:
        used = inspect(connection).has_table(Study.__tablename__) and connection.scalar(
            select(exists(select(Study.id)))
        )
    engine.dispose()
    if used:
        raise ConfigurationError("--database-url: there are studies in this database; give it an empty one")
