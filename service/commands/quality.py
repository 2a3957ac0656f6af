"""`hilum quality`: results against what readers say of them, on the screen, as JSON, and as one HTML file."""

import json
import sys
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import typer
from rich.table import Table

from service.api.page.document import document
from service.api.page.figures import GROUPINGS, WATCHED, between, shown
from service.commands.console import console, write
from service.core.agreement import Share
from service.core.drift import Change
from service.core.errors import ConfigurationError
from service.core.ledger import Ledger, check_migrated
from service.core.quality import By, Quality
from service.core.settings import Settings
from worker.wording import RESEARCH_USE_ONLY


def show(
    settings: Settings,
    since: datetime | None,
    until: datetime | None,
    by: By,
    html: Path | None,
    *,
    as_json: bool,
) -> int:
    """Print or write the quality of a time; return 0, or 1 when something has drifted."""
    check_migrated(settings.sqlalchemy_url)
    try:
        window = between(since, until, settings.zone)
    except ValueError as fault:
        raise ConfigurationError(f"--from and --to: {fault}") from None
    ledger = Ledger(settings.sqlalchemy_url)
    try:
        with ledger.read() as session:
            values = shown(session, window, by, settings.zone)
    finally:
        ledger.close()
    found: Quality = values["quality"]
    if html is not None:
        write(html, document("quality_report.html", version=version("hilum"), **values))
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2, default=str))
    elif html is None:
        _print(found)
    else:
        for change in found.alerts:
            sys.stderr.write(f"hilum: {_said(change)}\n")
    return 1 if found.alerts else 0


def _print(found: Quality) -> None:
    screen, overall = console(), found.overall
    screen.print(RESEARCH_USE_ONLY, style="dim")
    screen.print(f"{found.studies} studies with a result, readers spoke of {found.reviewed}")
    for name, count in found.apart.items():
        screen.print(f"  not counted: {name} {count}", style="dim")
    screen.print(f"answers: TP {overall.tp}, FP {overall.fp}, FN {overall.fn}, TN {overall.tn}")
    for item in found.coverage:
        if item.validated:
            said = f"{item.attribute}: {item.outside} of {item.studies} outside of {item.validated}"
            screen.print(f"{said}, unknown of {item.unknown}", markup=False, style="dim")
    table = Table(
        GROUPINGS[found.by],
        "studies",
        "outside",
        "PPV",
        "NPV",
        "sensitivity",
        "specificity",
        "kappa",
        box=None,
    )
    outside = sum(group.outside or 0 for group in found.groups) if found.coverage else None
    for name, studies, out, of in [
        *((group.name, group.studies, group.outside, group.figures) for group in found.groups),
        ("all", found.studies, outside, overall),
    ]:
        shares = (_share(share) for share in (of.ppv, of.npv, of.sensitivity, of.specificity))
        counts = (str(studies), "–" if out is None else str(out))
        table.add_row(name, *counts, *shares, "–" if of.kappa is None else f"{of.kappa:.2f}")
    screen.print(table)
    for change in found.drift:
        screen.print(_said(change), markup=False, style="bold red" if change.is_alert else "dim")


def _said(change: Change) -> str:
    before, now = ("–" if value is None else f"{value:.3f}" for value in (change.reference, change.current))
    told = [
        f"{name} {value:.3g}" for name, value in (("PSI", change.psi), ("p", change.p)) if value is not None
    ]
    if not change.can_alert:
        told.append("too few to tell")
    shifted = "has shifted: " if change.is_alert else ""
    return f"{WATCHED[change.name]}: {shifted}{before} before, {now} now ({', '.join(told)})"


def _share(share: Share | None) -> str:
    return "–" if share is None else f"{share.value:.1%} ({share.low:.1%} to {share.high:.1%})"
