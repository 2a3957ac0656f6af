"""The benchmark's figures for people, for programs and as a picture."""

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from service.commands.bench.figures import PERCENTILES, STAGES, Figures
from service.commands.bench.rivals import ASSOCIATIONS, Found, median, ratio
from service.commands.bench.run import QUIET_SECONDS, Load

_SAID = {
    "receive": "until the C-STORE response",
    "decode": "from there until the pixels are ready",
    "infer": "from there until the film has its result",
    "report": "from the end of the quiet time until the report is built",
    "deliver": "from there until it is in the PACS",
    "all": f"from the C-STORE response until it is in the PACS, beyond the quiet time of {QUIET_SECONDS:g} s",
}


def tables(screen: Console, load: Load, single: Figures, sustained: Figures) -> None:
    """Print both runs."""
    associations = f"{load.associations} association" + "s" * (load.associations != 1)
    screen.print(
        f"{psutil.cpu_count()} processors, load average {os.getloadavg()[0]:.1f}; films of "
        f"{load.megabytes:g} MB, each a study with a positive finding: a structured report and a heat map"
    )
    table = Table(title="Seconds")
    table.add_column("stage")
    table.add_column("")
    for run in (f"{single.films} films one after the other", f"{sustained.films} at once, {associations}"):
        for share in PERCENTILES:
            name = "longest" if share == PERCENTILES[-1] else f"p{share}"
            table.add_column(f"{run}\n{name}" if share == PERCENTILES[0] else f"\n{name}", justify="right")
    for stage in STAGES:
        cells = [
            f"{value:.3f}"
            for found in (single, sustained)
            for value in found.percentiles(stage) or [0.0] * len(PERCENTILES)
        ]
        table.add_row(stage, _SAID[stage], *cells)
    screen.print(table)
    screen.print(f"all at once: {sustained.films_a_second:.1f} films a second into the PACS")
    table = Table(title="By role, all at once")
    for heading in ("role", "CPU ms a film", "memory MB (PSS, largest)"):
        table.add_column(heading, justify="left" if heading == "role" else "right")
    for role, used in sorted(sustained.cpu_milliseconds.items(), key=lambda item: -item[1]):
        size = sustained.megabytes.get(role)
        table.add_row(role, f"{used:.1f}", "" if size is None else f"{size:.0f}")
    total = sum(sustained.cpu_milliseconds.values())
    table.add_row("all", f"{total:.1f}", f"{sum(sustained.megabytes.values()):.0f}", style="bold")
    screen.print(table)


def beside(screen: Console, load: Load, found: Found) -> None:
    """Print what other storage SCPs did with the same films."""
    table = Table(title=f"Only receiving, films of {load.megabytes:g} MB: medians of the rounds")
    table.add_column("receiver")
    for associations in ASSOCIATIONS:
        table.add_column(f"{associations} associations\nfilms a second", justify="right")
        table.add_column("\nCPU ms a film", justify="right")
        table.add_column("\nhilum is × as fast", justify="right")
    for name, rounds in found.items():
        cells: list[str] = []
        for associations in ASSOCIATIONS:
            taken = median(rounds[associations])
            times = ratio(found["hilum"][associations], rounds[associations])
            cells += [f"{taken.films_a_second:.1f}", f"{taken.cpu_milliseconds:.1f}"]
            cells.append("" if name == "hilum" else f"{times:.2f}")
        table.add_row(name, *cells)
    screen.print(table)
    screen.print("Each film is on disk before hilum answers; storescp syncs nothing.")


def as_json(load: Load, single: Figures, sustained: Figures, found: Found) -> dict[str, Any]:
    """Return what a program may read."""
    return {
        "load": {"singles": load.singles, "films": load.films, "associations": load.associations}
        | {"megabytes": load.megabytes, "quiet_seconds": QUIET_SECONDS},
        "machine": {"processors": psutil.cpu_count(), "load_average": os.getloadavg()[0]},
        "one_after_the_other": _json(single),
        "all_at_once": _json(sustained),
        "receiving": {
            name: {str(associations): asdict(median(taken)) for associations, taken in rounds.items()}
            for name, rounds in found.items()
        },
    }


def _json(found: Figures) -> dict[str, Any]:
    percentiles = {
        stage: dict(zip((f"p{share}" for share in PERCENTILES), found.percentiles(stage), strict=False))
        for stage in STAGES
    }
    return {
        "films": found.films,
        "lost": found.lost,
        "films_a_second": found.films_a_second,
        "seconds": percentiles,
        "cpu_milliseconds_a_film": found.cpu_milliseconds,
        "memory_megabytes": found.megabytes,
    }


def plot(path: Path, single: Figures, sustained: Figures) -> None:
    """Draw the seconds of single films by stage, and who uses the processors when all come at once."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    seconds, used = figure.subplots(1, 2)
    shown: Sequence[str] = STAGES
    seconds.boxplot([single.seconds[stage] for stage in shown], tick_labels=list(shown), whis=(5, 95))
    seconds.set_title(f"{single.films} films one after the other")
    seconds.set_ylabel("seconds")
    seconds.set_ylim(bottom=0)
    roles = sorted(sustained.cpu_milliseconds.items(), key=lambda item: item[1])
    used.barh([role for role, _ in roles], [value for _, value in roles])
    used.set_title(f"{sustained.films} at once: {sustained.films_a_second:.1f} films a second")
    used.set_xlabel("CPU milliseconds a film")
    figure.savefig(path)
