"""`hilum backfill`: its commands and their options; each imports its work when it is called."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from service.commands.options import Html, Json
from service.core.settings import load

backfill = typer.Typer(
    help="Past studies from an archive, analysed and held against their final diagnoses.",
    no_args_is_help=True,
)
BackfillName = Annotated[str, typer.Argument(help="What the back-fill is called.")]


@backfill.command("start")
def backfill_start(
    name: BackfillName,
    since: Annotated[
        datetime, typer.Option("--from", formats=["%Y-%m-%d", "%Y%m%d"], help="The first study date.")
    ],
    until: Annotated[
        datetime | None,
        typer.Option("--to", formats=["%Y-%m-%d", "%Y%m%d"], help="The last one; without it that of --from."),
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="The destination that is asked; needed where there are several.")
    ] = None,
    modality: Annotated[str, typer.Option(help="Of the series that are fetched.")] = "CR,DX",
    body_part: Annotated[
        str, typer.Option(help="Body Part Examined; series that name none come too. Empty: any.")
    ] = "CHEST",
    age: Annotated[
        str | None, typer.Option(help="Completed years at the study date, such as 1-5; without it any.")
    ] = None,
    rate: Annotated[int | None, typer.Option(min=1, help="Studies a minute at most.")] = None,
    hours: Annotated[
        str | None, typer.Option(help="When, such as 19:00-07:00; without it the source's hours.")
    ] = None,
    by: Annotated[
        str, typer.Option(help="get (C-GET), move (C-MOVE), or auto: C-GET where it is offered.")
    ] = "auto",
    deliver: Annotated[
        bool, typer.Option("--deliver", help="Send results to destinations; else they stay here.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until all of it is analysed.")] = False,
) -> None:
    """Look for past studies and analyse them, behind everything that is sent; the same again goes on."""
    from service.commands.backfill.command import query_of, start

    if by not in ("auto", "get", "move"):
        raise typer.BadParameter("--by is auto, get or move")
    query = query_of(since, until, modality, body_part, age)
    code = start(load(), name, source, query, delivers=deliver, way=by, rate=rate, hours=hours, wait=wait)
    raise typer.Exit(code)


@backfill.command("list")
def backfill_list(as_json: Json = False) -> None:
    """Show all back-fills."""
    from service.commands.backfill.command import show

    raise typer.Exit(show(load(), as_json))


@backfill.command("status")
def backfill_status(name: BackfillName, as_json: Json = False) -> None:
    """Show how far one is, and what did not come."""
    from service.commands.backfill.command import status as run

    raise typer.Exit(run(load(), name, as_json))


@backfill.command("pause")
def backfill_pause(name: BackfillName) -> None:
    """Fetch nothing more for now."""
    from service.commands.backfill.command import change

    raise typer.Exit(change(load(), name, "pause"))


@backfill.command("resume")
def backfill_resume(name: BackfillName) -> None:
    """Go on; what failed gets another try."""
    from service.commands.backfill.command import change

    raise typer.Exit(change(load(), name, "resume"))


@backfill.command("cancel")
def backfill_cancel(name: BackfillName) -> None:
    """Fetch nothing more; what came stays."""
    from service.commands.backfill.command import change

    raise typer.Exit(change(load(), name, "cancel"))


@backfill.command("report")
def backfill_report(
    name: BackfillName,
    diagnoses: Annotated[
        Path,
        typer.Option(
            help="A CSV with study_instance_uid or accession_number, and diagnosis or report_text; or a "
            "folder of DICOM SRs."
        ),
    ],
    rule: Annotated[
        Path | None, typer.Option(help="What counts as pneumonia; without it the rule that ships.")
    ] = None,
    html: Html = None,
    csv: Annotated[Path | None, typer.Option(help="A table of all studies.")] = None,
    films: Annotated[int, typer.Option(min=0, help="Discordant films that the HTML shows.")] = 100,
    as_json: Json = False,
) -> None:
    """Hold results against final diagnoses, and show the films on which they disagree."""
    from service.commands.backfill.report import report

    code = report(load(), name, diagnoses, rule, html=html, table=csv, most_films=films, as_json=as_json)
    raise typer.Exit(code)


@backfill.command("rule")
def backfill_rule(
    rule: Annotated[
        Path | None, typer.Argument(help="A rule to be checked; without it the one that ships.")
    ] = None,
) -> None:
    """Print the rule by which diagnoses are read, to be copied and changed."""
    from service.commands.backfill.report import print_rule

    raise typer.Exit(print_rule(rule))
