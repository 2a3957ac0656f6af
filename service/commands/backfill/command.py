"""`hilum backfill start`, `list`, `status`, `pause`, `resume` and `cancel`."""

import json
import sys
import time
from dataclasses import asdict
from datetime import datetime
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.commands.console import console, user
from service.core import backfill
from service.core.audit import Audit
from service.core.backfill import Query
from service.core.errors import ConfigurationError
from service.core.hours import Hours
from service.core.ledger import Ledger, check_migrated
from service.core.settings import Settings
from service.core.states import BackfillState, FetchState
from service.core.tables import Backfill, BackfillStudy

_LOOK_SECONDS = 1.0
# Of those that did not come.
_MOST_SHOWN = 20
_SAID = {
    FetchState.FOUND: "to come",
    FetchState.MOVING: "being moved",
    FetchState.FETCHING: "being fetched",
    FetchState.FETCHED: "fetched",
    FetchState.KNOWN: "here already",
    FetchState.SKIPPED: "without what was asked for",
    FetchState.MISSING: "found and not given",
    FetchState.FAILED: "not fetched",
}


def start(
    settings: Settings,
    name: str,
    source: str | None,
    query: Query,
    *,
    delivers: bool,
    way: str,
    rate: int | None,
    hours: str | None,
    wait: bool,
) -> int:
    """Begin a back-fill, or let it go on; with `wait` return when all of it is analysed."""
    if hours is not None:
        try:
            Hours.parse(hours)
        except ValueError as fault:
            raise ConfigurationError(f"--hours: {fault}") from None
    ledger = _opened(settings)
    with ledger.write() as session:
        found = backfill.start(
            session,
            name,
            _source(settings, source),
            query,
            user(),
            delivers=delivers,
            way=way,
            rate=rate,
            hours=hours,
        )
        said = f"back-fill {name}: {query}, from {found.source}"
    Audit(settings, "backfill").configured(user(), said)
    sent = "results are sent to destinations" if delivers else "results are withheld from all destinations"
    sys.stderr.write(f"{said}; {sent}\n")
    return watch(ledger, name) if wait else 0


def watch(ledger: Ledger, name: str) -> int:
    """Show how a back-fill gets on, until all of it is analysed; return 0 when nothing of it failed."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("looking for studies", total=None)
        while True:
            with ledger.read() as session:
                found = backfill.named(session, name)
                progress = backfill.progress(session, found)
            done = progress.found - progress.waiting - progress.in_work
            total = progress.found if found.cursor is None else None
            bar.update(task, completed=done, total=total, description=found.last_error or f"back-fill {name}")
            ended = found.state != BackfillState.RUNNING
            if ended and (not progress.in_work or found.state != BackfillState.DONE):
                break
            time.sleep(_LOOK_SECONDS)
    typer.echo(one_line(found, progress))
    failed = progress.studies.get(FetchState.FAILED, 0) + progress.studies.get(FetchState.MISSING, 0)
    return 0 if found.state == BackfillState.DONE and not failed and not progress.failed else 1


def show(settings: Settings, as_json: bool) -> int:
    """Print all back-fills."""
    ledger = _opened(settings)
    with ledger.read() as session:
        rows = [(found, backfill.progress(session, found)) for found in backfill.every(session)]
    if as_json:
        typer.echo(json.dumps([_as_dict(*row) for row in rows], indent=2))
        return 0
    table = Table(title="Back-fills, the newest first. Research use only, not for diagnosis.")
    for heading in ("name", "state", "looks for", "found", "fetched", "analysed", "failed", "remarks"):
        table.add_column(heading, overflow="fold")
    for found, progress in rows:
        table.add_row(
            found.name,
            found.state,
            f"{Query.of(found.query)}, from {found.source}",
            str(progress.found),
            str(progress.fetched),
            str(progress.analysed + progress.not_analysed),
            str(progress.failed + progress.studies.get(FetchState.FAILED, 0)),
            "; ".join(filter(None, (found.last_error, found.note))),
        )
    console().print(table)
    return 0


def status(settings: Settings, name: str, as_json: bool) -> int:
    """Print how far a back-fill is, and what did not come."""
    ledger = _opened(settings)
    with ledger.read() as session:
        found = backfill.named(session, name)
        progress = backfill.progress(session, found)
        troubles = _troubles(session, found)
    if as_json:
        typer.echo(json.dumps({**_as_dict(found, progress), "not_fetched": troubles}, indent=2))
        return 0
    screen = console()
    screen.print(f"{one_line(found, progress)}", markup=False)
    screen.print(f"  looks for {Query.of(found.query)}, in {found.source}", markup=False)
    if found.cursor is not None:
        screen.print(f"  searched up to {found.cursor}", markup=False)
    for line in filter(None, (found.last_error, found.note)):
        screen.print(f"  {line}", style="yellow", markup=False)
    for trouble in troubles[:_MOST_SHOWN]:
        screen.print(
            f"  {trouble['study_instance_uid']}: {trouble['state']}, {trouble['reason']}", markup=False
        )
    if len(troubles) > _MOST_SHOWN:
        screen.print(f"  and {len(troubles) - _MOST_SHOWN} more: --json shows all", style="dim")
    return 0


def change(settings: Settings, name: str, what: str) -> int:
    """Pause, resume or cancel a back-fill."""
    ledger = _opened(settings)
    with ledger.write() as session:
        found = backfill.named(session, name)
        session.refresh(found, with_for_update=True)
        if what == "pause":
            backfill.pause(found)
        elif what == "resume":
            backfill.resume(session, found)
        else:
            backfill.cancel(found)
        state = found.state
    typer.echo(f"back-fill {name} is {state}")
    return 0


def query_of(
    since: datetime, until: datetime | None, modalities: str, body_part: str, age: str | None
) -> Query:
    """Return what the options of `start` ask for.

    Raises
    ------
    ConfigurationError
        When they contradict each other.
    """
    last = until or since
    if last < since:
        raise ConfigurationError("--to is before --from")
    names = tuple(dict.fromkeys(item.strip().upper() for item in modalities.split(",") if item.strip()))
    if not names:
        raise ConfigurationError("--modality is a comma list such as CR,DX")
    ages = None
    if age is not None:
        low, _, high = age.partition("-")
        if not (low.isdigit() and (high or low).isdigit() and int(low) <= int(high or low)):
            raise ConfigurationError("--age is in completed years, such as 1-5")
        ages = int(low), int(high or low)
    return Query(f"{since:%Y%m%d}", f"{last:%Y%m%d}", names, body_part.strip().upper(), ages)


def _opened(settings: Settings) -> Ledger:
    check_migrated(settings.sqlalchemy_url)
    return Ledger(settings.sqlalchemy_url)


def _source(settings: Settings, name: str | None) -> str:
    names = [item.name for item in settings.destinations]
    if name is None and len(names) == 1:
        return names[0]
    if name is None or settings.destination(name) is None:
        raise ConfigurationError(
            f"--source is the destination that is asked, one of {', '.join(names) or '(none is configured)'}"
        )
    return name


def one_line(found: Backfill, progress: backfill.Progress) -> str:
    """Return how far a back-fill is, in one line."""
    of_studies = [
        f"{progress.studies[state]} {said}" for state, said in _SAID.items() if state in progress.studies
    ]
    of_fetched = [
        f"{progress.in_work} in work",
        f"{progress.analysed} analysed",
        f"{progress.not_analysed} refused with a reason",
        f"{progress.failed} failed here",
        *([f"{progress.live} sent here since"] if progress.live else []),
    ]
    parts = [f"{progress.found} found", ", ".join(of_studies), f"of those fetched {', '.join(of_fetched)}"]
    return f"back-fill {found.name}, {found.state}: {'; '.join(filter(None, parts))}"


def _as_dict(found: Backfill, progress: backfill.Progress) -> dict[str, Any]:
    return {
        "name": found.name,
        "state": found.state,
        "source": found.source,
        "query": found.query,
        "delivers": found.delivers,
        "rate": found.rate,
        "hours": found.hours,
        "searched_to": found.cursor,
        "created_at": found.created_at.isoformat(),
        "created_by": found.created_by,
        "finished_at": found.finished_at.isoformat() if found.finished_at else None,
        "waits_for": found.last_error,
        "note": found.note,
        "found": progress.found,
        **asdict(progress),
    }


def _troubles(session: Session, found: Backfill) -> list[dict[str, Any]]:
    rows = session.scalars(
        select(BackfillStudy)
        .where(
            BackfillStudy.backfill_id == found.id,
            BackfillStudy.state.not_in((FetchState.FETCHED, FetchState.KNOWN, FetchState.SKIPPED)),
            BackfillStudy.reason.is_not(None),
        )
        .order_by(BackfillStudy.id)
    )
    return [
        {"study_instance_uid": row.study_instance_uid, "state": row.state, "reason": row.reason}
        for row in rows
    ]
