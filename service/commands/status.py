"""`hilum status` and `hilum retry`: the ledger from the command line, also when the API is down."""

import json
import sys

import typer
from rich.table import Table
from sqlalchemy import select

from service.api import schemas
from service.api import status as queries
from service.commands.console import console
from service.core.ledger import Ledger, check_migrated
from service.core.retry import retry_study
from service.core.settings import Settings
from service.core.tables import Study, Tombstone
from service.core.tombstones import tombstone_of
from worker.wording import RESEARCH_USE_ONLY


def status(settings: Settings, study_instance_uid: str | None, limit: int, as_json: bool) -> int:
    """Print the newest studies, or one; return 0, or 1 when there is no such study."""
    check_migrated(settings.sqlalchemy_url)
    ledger = Ledger(settings.sqlalchemy_url)
    with ledger.read() as session:
        if study_instance_uid is None:
            listed = queries.list_studies(session, queries.Wanted(), limit)
            page = schemas.StudyList.of(listed.studies, listed.older)
            typer.echo(page.model_dump_json(indent=2)) if as_json else console().print(_table(page))
            return 0
        found = queries.study(session, study_instance_uid)
        erased = tombstone_of(session, study_instance_uid)
    if erased is not None:
        _print_erased(erased, as_json)
        return 0
    if found is None:
        sys.stderr.write(f"hilum: no study {study_instance_uid} in the ledger\n")
        return 1
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        _print_study(found)
    return 0


def retry(settings: Settings, study_instance_uids: list[str], *, as_built: bool = False) -> int:
    """Give each study another try; return 0 only when all of them get it."""
    check_migrated(settings.sqlalchemy_url)
    ledger = Ledger(settings.sqlalchemy_url)
    missing = 0
    for uid in study_instance_uids:
        with ledger.write() as session:
            study = session.scalars(select(Study).where(Study.study_instance_uid == uid)).one_or_none()
            if study is None:
                sys.stderr.write(f"hilum: no study {uid} in the ledger\n")
                missing += 1
            elif why := retry_study(session, study, as_built=as_built):
                sys.stderr.write(f"hilum: no other try of {uid}: {why}\n")
                missing += 1
            else:
                sys.stdout.write(f"{uid}: another try\n")
    return 1 if missing else 0


def shown_probability(probability: float | None) -> str:
    """Return a probability as people read it; nothing when there is none."""
    return "" if probability is None else f"{100 * probability:.1f} %"


def _table(page: schemas.StudyList) -> Table:
    table = Table(title="Studies, newest first. Research use only, not for diagnosis.")
    for heading in ("Study Instance UID", "state", "finding", "probability", "received", "what to know"):
        table.add_column(heading, overflow="fold")
    for study in page.studies:
        result = study.result
        table.add_row(
            study.study_instance_uid,
            study.state,
            result.finding.replace("_", " ") if result else "",
            shown_probability(result.probability) if result else "",
            f"{study.received_at:%Y-%m-%d %H:%M:%S}",
            study.to_know,
        )
    return table


def _print_erased(erased: Tombstone, as_json: bool) -> None:
    said = {
        "study_instance_uid": erased.study_instance_uid,
        "state": "erased",
        "erased_at": erased.at.isoformat(),
        "by": erased.by,
        "reason": erased.reason,
        "ignored": erased.ignored,
        "last_ignored_at": erased.last_ignored_at.isoformat() if erased.last_ignored_at else None,
    }
    if as_json:
        typer.echo(json.dumps(said, indent=2))
        return
    screen = console()
    screen.print(f"[bold]{erased.study_instance_uid}[/bold]  erased on {erased.at:%Y-%m-%d %H:%M} UTC")
    screen.print(f"  by {erased.by}: {erased.reason}")
    screen.print(f"  {erased.ignored} object(s) came again since and were ignored")


def _print_study(study: schemas.StudyOut) -> None:
    screen = console()
    result = study.result
    screen.print(f"[bold]{study.study_instance_uid}[/bold]  {study.state}, revision {study.revision}")
    screen.print(f"  {RESEARCH_USE_ONLY}", style="dim")
    if result:
        parts = [result.finding, shown_probability(result.probability), result.reason or "", *result.flags]
        screen.print("  " + "; ".join(part for part in parts if part))
    for line in (study.attention, study.reason):
        if line:
            screen.print(f"  [yellow]{line}[/yellow]")
    for instance in study.instances:
        said = [
            instance.finding or instance.state,
            shown_probability(instance.probability),
            instance.reason or "",
        ]
        screen.print(f"  image {instance.sop_instance_uid}: {' '.join(part for part in said if part)}")
        if instance.rule:
            screen.print(f'    by the rule "{instance.rule}"')
    for delivery in study.deliveries:
        done = f"{delivery.state} after {delivery.attempts} attempt(s)"
        what = f"{delivery.kind}, revision {delivery.revision}, to {delivery.destination}"
        screen.print(f"  {what}: {done} {delivery.last_error or ''}")
        if delivery.waits_until:
            until = f"{delivery.waits_until:%Y-%m-%d %H:%M:%S} UTC"
            screen.print(f"    waits for {delivery.waits_for}, until {until}")
    for event in study.events:
        screen.print(f"  {event.at:%Y-%m-%d %H:%M:%S}  {event.kind}  {event.detail}", style="dim")
