"""`hilum backfill report`: results against final diagnoses, as HTML, JSON, CSV and on the screen."""

import csv
import io
import json
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import typer
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.commands.backfill.concordance import Case, Concordance, concordance
from service.commands.backfill.diagnoses import read
from service.commands.backfill.wording import Rule
from service.commands.console import console, write
from service.commands.film_pictures import as_data_uris
from service.core import backfill
from service.core.agreement import Share
from service.core.backfill import Query, day
from service.core.ledger import Ledger, check_migrated, now
from service.core.results import Finding
from service.core.settings import Settings
from service.core.spool import Spool
from service.core.states import AnalysisState, InstanceState
from service.core.tables import Analysis, Backfill, Instance

_CSV = ("study_instance_uid", "study_date", "state", "finding", "probability", "threshold", "reason")


@dataclass(frozen=True)
class Shown:
    """A discordant study as the HTML shows it; `film` and `overlay` are data URIs, None without files."""

    case: Case
    date: date | None
    film: str | None
    overlay: str | None


def report(
    settings: Settings,
    name: str,
    diagnoses: Path,
    rule: Path | None,
    *,
    html: Path | None,
    table: Path | None,
    most_films: int,
    as_json: bool,
) -> int:
    """Print or write the concordance of a back-fill; return 0, or 1 when nothing could be compared."""
    check_migrated(settings.sqlalchemy_url)
    read_rule = Rule.read(rule)
    given = read(diagnoses, read_rule)
    ledger, spool = Ledger(settings.sqlalchemy_url), Spool(settings.data_dir)
    try:
        with ledger.read() as session:
            run = backfill.named(session, name)
            found = concordance(session, run, given)
            shown = [_shown(session, spool, case) for case in found.discordant[:most_films]] if html else []
    finally:
        ledger.close()
    if html is not None:
        write(html, _document(run, found, shown, read_rule, settings))
    if table is not None:
        write(table, _csv(found))
    about = {"name": run.name, "source": run.source, "query": run.query, "state": run.state}
    stated = {"version": read_rule.version, "sha256": read_rule.sha256}
    if as_json:
        typer.echo(json.dumps({"backfill": about, "rule": stated, **found.as_dict()}, indent=2))
    elif html is None:
        _print(run, found)
    return 0 if found.compared else 1


def print_rule(rule: Path | None) -> int:
    """Print a rule, to be read or changed."""
    typer.echo(Rule.read(rule).text, nl=False)
    return 0


def _document(run: Backfill, found: Concordance, shown: list[Shown], rule: Rule, settings: Settings) -> str:
    from service.api.page.document import document

    return document(
        "concordance.html",
        version=version("hilum"),
        run=run,
        query=Query.of(run.query),
        found=found,
        shown=shown,
        rates=_rates(found),
        rule=rule,
        made_at=now(),
        zone=settings.zone,
        first=day(run.query["first"]),
        last=day(run.query["last"]),
    )


def _rates(found: Concordance) -> list[tuple[str, Share | None, str]]:
    return [
        ("Sensitivity", found.sensitivity, "of the studies whose final diagnosis is pneumonia"),
        ("Specificity", found.specificity, "of those whose final diagnosis is not"),
        ("Positive predictive value", found.ppv, "of the studies that the AI calls present"),
        ("Negative predictive value", found.npv, "of those that it calls absent"),
        ("Accuracy", found.accuracy, "of all that were compared"),
    ]


def _shown(session: Session, spool: Spool, case: Case) -> Shown:
    """Return a study with its most suspicious film, when its files are still here."""
    row = session.execute(
        select(Instance.picture_path, Analysis.overlay_path)
        .join(Analysis, Analysis.instance_id == Instance.id)
        .where(
            Instance.study_id == case.study_id,
            Instance.state == InstanceState.ANALYSED,
            Analysis.state == AnalysisState.DONE,
        )
        .order_by((Analysis.finding == Finding.PRESENT).desc(), Analysis.probability.desc())
        .limit(1)
    ).first()
    film, overlay = as_data_uris(spool, row.picture_path, row.overlay_path) if row else (None, None)
    return Shown(case, day(case.study_date), film, overlay)


def _csv(found: Concordance) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow((*_CSV, "final_diagnosis", "compared", "discordant", "model"))
    for case in found.cases:
        values = [getattr(case, name) for name in _CSV]
        said = case.diagnosis.value if case.diagnosis else ""
        row: list[Any] = [*values, said, int(case.counts), int(case.is_discordant), case.model]
        writer.writerow(["" if value is None else value for value in row])
    return stream.getvalue()


def _print(run: Backfill, found: Concordance) -> None:
    screen = console()
    screen.print(f"back-fill {run.name}: {found.studies} studies, {found.compared} compared", markup=False)
    for why, count in found.apart.items():
        screen.print(f"  not compared: {why}: {count}", style="dim", markup=False)
    screen.print(f"TP {found.tp}, FP {found.fp}, FN {found.fn}, TN {found.tn}")
    for name, share, _ in _rates(found):
        said = "–" if share is None else f"{share.value:.1%} ({share.low:.1%} to {share.high:.1%})"
        screen.print(f"{name}: {said}")
    screen.print(f"Agreement (Cohen's kappa): {'–' if found.kappa is None else f'{found.kappa:.3f}'}")
    for case in found.discordant:
        said = f"AI {case.finding} ({case.probability:.1%}), final diagnosis {case.diagnosis}"
        screen.print(f"{case.study_instance_uid} of {case.study_date}: {said}", markup=False, soft_wrap=True)
    if found.unmatched:
        screen.print(
            f"{len(found.unmatched)} rows name no study of it: {_some(found.unmatched)}", markup=False
        )
    screen.print("Research use only, not for diagnosis.", style="dim")


def _some(where: Any, most: int = 10) -> str:
    more = f" and {len(where) - most} more" if len(where) > most else ""
    return ", ".join(where[:most]) + more
