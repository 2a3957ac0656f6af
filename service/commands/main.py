"""`hilum`: the command line. Each command imports its role only when it is called."""

import gc
import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from service.commands.backfill.cli import backfill
from service.commands.ending import ended
from service.commands.options import Html, Json
from service.core import logs
from service.core.settings import load

app = typer.Typer(
    name="hilum",
    help="Gateway between a PACS and a chest X-ray pneumonia model. Research use only, not for diagnosis.",
    no_args_is_help=True,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# The model room has its own command line, which also runs where only torch is installed.
_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
# What these import stays: to look through it for garbage again and again takes a fifth of their start. They
# look once they have started (service.commands.roles.started).
_ROLES = ("up", "listen", "api", "scheduler", "worker")


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """Take the options that stand before a command."""
    if version:
        from importlib.metadata import version as version_of

        typer.echo(f"hilum {version_of('hilum')}")
        raise typer.Exit
    if context.invoked_subcommand in _ROLES:
        gc.disable()


@app.command()
def up() -> None:
    """Run the whole gateway on this machine: Redis, listener, scheduler, workers, API."""
    from service.commands.up import up as run

    run(load())


@app.command()
def listen() -> None:
    """Run the DIMSE listener."""
    from service.commands.listen import listen as run

    run(load())


@app.command()
def api() -> None:
    """Run the HTTP API."""
    from service.commands.roles import serve_api

    serve_api(load())


@app.command()
def scheduler() -> None:
    """Run the scheduler."""
    from service.commands.roles import schedule

    schedule(load())


@app.command()
def worker(
    queue: Annotated[
        str | None, typer.Option(help="decode, infer, report or deliver; without it all four.")
    ] = None,
    pool: Annotated[bool, typer.Option("--pool", hidden=True, help="The pool itself, unsupervised.")] = False,
) -> None:
    """Run the workers, and start again what dies or does not work."""
    from service.commands.roles import QUEUES, supervise_workers, work

    if queue not in (None, *QUEUES):
        raise typer.BadParameter(f"{queue} is none of {', '.join(QUEUES)}")
    if queue is not None and pool:
        work(load(), queue)
    else:
        supervise_workers(load(), QUEUES if queue is None else (queue,))


@app.command()
def migrate() -> None:
    """Bring the ledger to this version's revision; nothing else ever alters a table."""
    from service.commands.roles import migrate_ledger

    typer.echo(f"ledger at revision {migrate_ledger(load())}")


@app.command()
def demo(
    files: Annotated[list[Path] | None, typer.Argument(help="DICOM, JPEG or PNG files, or folders.")] = None,
    out: Annotated[Path, typer.Option(help="Where reports and pictures are put.")] = Path("demo-out"),
) -> None:
    """Push real radiographs through the whole gateway and show what a PACS gets back."""
    from service.commands.demo import demo as run

    raise typer.Exit(run(files or [], out))


@app.command()
def bench(
    films: Annotated[int, typer.Option(min=1, help="Films that are pushed all at once.")] = 100,
    singles: Annotated[int, typer.Option(min=1, help="Films before them, one after the other.")] = 20,
    megabytes: Annotated[float, typer.Option(min=0.1, help="Size of a film, in 10^6 bytes.")] = 10.0,
    associations: Annotated[int, typer.Option(min=1, help="Over which they are pushed at once.")] = 4,
    vs: Annotated[
        str, typer.Option(help="Let others take such films too: orthanc, storescp, or both with a comma.")
    ] = "",
    database_url: Annotated[
        str | None, typer.Option(help="An empty PostgreSQL database for the ledger, instead of SQLite.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Where a picture of it is put (PNG, SVG, PDF).")] = None,
    as_json: Json = False,
) -> None:
    """Measure this machine with a gateway of its own: seconds, films a second, CPU and memory."""
    from service.commands.bench.command import bench as run
    from service.commands.bench.rivals import NAMES
    from service.commands.bench.run import Load

    names = [name.strip() for name in vs.split(",") if name.strip()]
    if unknown := sorted(set(names) - set(NAMES)):
        raise typer.BadParameter(f"--vs {unknown[0]}: it knows {' and '.join(NAMES)}")
    load_ = Load(singles, films, megabytes, associations)
    raise typer.Exit(run(load_, names, database_url, plot, as_json))


@app.command()
def send(
    paths: Annotated[list[Path], typer.Argument(help="DICOM files or folders.")],
    to: Annotated[
        str | None,
        typer.Option(help="dicom://AET@host:port, or dicoms://… for TLS; without it this gateway."),
    ] = None,
    calling: Annotated[str | None, typer.Option(help="The calling AE title; without it ours.")] = None,
) -> None:
    """Send DICOM files by C-STORE, as a router would."""
    from service.commands.send import send as run

    raise typer.Exit(run(load(), paths, to, calling))


@app.command()
def analyse(
    files: Annotated[list[Path], typer.Argument(help="DICOM, JPEG or PNG files.")],
    as_json: Json = False,
) -> None:
    """Analyse films without a server: file in, result out."""
    from service.commands.analyse import analyse as run

    raise typer.Exit(run(load(), files, as_json))


@app.command(context_settings=_PASSED_ON, add_help_option=False)
def train(context: typer.Context) -> None:
    """Train the network from scratch: --data DIR --out FILE."""
    from model.train import main as run

    raise typer.Exit(run(context.args))


@app.command(context_settings=_PASSED_ON, add_help_option=False)
def evaluate(context: typer.Context) -> None:
    """Evaluate weights on labelled films: --data DIR [--labels FILE] [--report FILE] [--json FILE]."""
    from service.commands.evaluate import evaluate as run

    raise typer.Exit(run(load(), context.args))


@app.command()
def doctor(
    as_json: Json = False,
    acceptance: Annotated[
        bool,
        typer.Option(
            "--acceptance",
            help="Send a synthetic film all the way and back as well, and write a page to sign.",
        ),
    ] = False,
    page: Annotated[Path, typer.Option(help="The page of --acceptance.")] = Path("acceptance.html"),
    to: Annotated[
        str | None,
        typer.Option(help="Where --acceptance finds our listener: dicom://AET@host:port, when not here."),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the film of --acceptance here even when all is right.")
    ] = False,
) -> None:
    """Check everything the gateway leans on, with a hint for each fault."""
    if not acceptance:
        from service.commands.doctor import doctor as run
        from service.commands.doctor import load_all_the_same

        raise typer.Exit(run(*load_all_the_same(), as_json))
    if as_json:
        raise typer.BadParameter("--acceptance writes a page, not JSON")
    from service.commands.acceptance.run import accept

    raise typer.Exit(accept(load(), page, to, keep))


@app.command()
def status(
    study_instance_uid: Annotated[
        str | None, typer.Argument(help="One study; without it the newest.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    as_json: Json = False,
) -> None:
    """Show where studies stand."""
    from service.commands.status import status as run

    raise typer.Exit(run(load(), study_instance_uid, limit, as_json))


@app.command()
def retry(
    study_instance_uids: Annotated[
        list[str], typer.Argument(help="Studies that failed or have parked reports.")
    ],
    as_built: Annotated[
        bool,
        typer.Option(
            "--as-built",
            help="Send what is parked under the patient it names, whatever its destination says.",
        ),
    ] = False,
) -> None:
    """Give what failed or was parked of a study another try."""
    from service.commands.status import retry as run

    raise typer.Exit(run(load(), study_instance_uids, as_built=as_built))


audit = typer.Typer(help="The audit trail.", no_args_is_help=True)
app.add_typer(audit, name="audit")


@audit.command("verify")
def audit_verify(
    folder: Annotated[
        Path | None, typer.Argument(help="A copy of a trail; without it that of the data folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say whether the audit trail is whole, and where it is not."""
    from service.commands.audit import verify

    raise typer.Exit(verify(load(), folder, as_json))


rules = typer.Typer(help="Which images are analysed, and where results go.", no_args_is_help=True)
app.add_typer(rules, name="rules")


@rules.command("check")
def rules_check(
    file: Annotated[
        Path | None, typer.Argument(help="A configuration file; without it that of HILUM_CONFIG.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what the rules of a configuration file are, or list its faults."""
    from service.commands.rules import check

    raise typer.Exit(check(load(config=file) if file else load(), as_json))


@rules.command("test")
def rules_test(
    files: Annotated[list[Path], typer.Argument(help="DICOM files or folders.")],
    calling: Annotated[
        str | None,
        typer.Option(help="Calling AE title; without it that of who sent a file that we kept."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say which rule speaks of each file, and why those before it do not."""
    from service.commands.rules import test

    raise typer.Exit(test(load(), files, calling, as_json))


model = typer.Typer(help="Which model reports, and which ones run in shadow.", no_args_is_help=True)
app.add_typer(model, name="model")
Reason = Annotated[str, typer.Option(help="Why; it is kept and shown: no names of patients.")]
ModelName = Annotated[
    str, typer.Argument(help="Its version, name and version, or the beginning of its SHA-256.")
]


Since = Annotated[datetime | None, typer.Option("--from", help="The first day or moment.")]
Until = Annotated[datetime | None, typer.Option("--to", help="The moment after the last.")]


@model.command("list")
def model_list(as_json: Json = False) -> None:
    """Show the models, and who decided what about them."""
    from service.commands.model import show

    raise typer.Exit(show(load(), as_json))


@model.command("add")
def model_add(
    weights: Annotated[Path, typer.Argument(help="A .safetensors file written by `hilum train`.")],
    reason: Reason = "",
) -> None:
    """Let a model run in shadow: it looks at every film, and its answers are recorded and never sent."""
    from service.commands.model import add

    raise typer.Exit(add(load(), weights, reason))


@model.command("promote")
def model_promote(name: ModelName, reason: Reason = "") -> None:
    """Let a model report from the next film on."""
    from service.commands.model import promote

    raise typer.Exit(promote(load(), name, reason))


@model.command("rollback")
def model_rollback(reason: Reason = "") -> None:
    """Let the model report again that did before the present one."""
    from service.commands.model import roll_back

    raise typer.Exit(roll_back(load(), reason))


@model.command("retire")
def model_retire(name: ModelName, reason: Reason = "") -> None:
    """Ask a model in shadow no more; what it said stays."""
    from service.commands.model import retire

    raise typer.Exit(retire(load(), name, reason))


@model.command("compare")
def model_compare(
    name: ModelName,
    since: Since = None,
    until: Until = None,
    html: Html = None,
    as_json: Json = False,
) -> None:
    """Compare a model in shadow with the one that reports, on the films that both looked at."""
    from service.commands.model import compare

    raise typer.Exit(compare(load(), name, since, until, html, as_json=as_json))


@model.command("threshold")
def model_threshold(
    value: Annotated[
        float | None,
        typer.Argument(min=0, max=1, help="Probability; left out: back to that of the weights."),
    ] = None,
    name: Annotated[str | None, typer.Option("--model", help="Without it the one that reports.")] = None,
    reason: Reason = "",
) -> None:
    """Set the site's own operating point."""
    from service.commands.model import threshold

    raise typer.Exit(threshold(load(), value, name, reason))


notices = typer.Typer(help=r"Who is told of trouble, `\[notices.NAME]`.", no_args_is_help=True)
app.add_typer(notices, name="notices")


@notices.command("test")
def notices_test(name: Annotated[str, typer.Argument(help=r"NAME of \[notices.NAME].")]) -> None:
    """Send a test notice at once."""
    from service.commands.notices import test

    raise typer.Exit(test(load(), name))


feedback = typer.Typer(help="What readers say of results.", no_args_is_help=True)
app.add_typer(feedback, name="feedback")


@feedback.command("export")
def feedback_export(
    csv: Annotated[Path | None, typer.Option(help="A file that is not there yet; - is the screen.")] = None,
    sr: Annotated[Path | None, typer.Option(help="A folder for one DICOM SR an entry.")] = None,
    since: Annotated[datetime | None, typer.Option("--from", help="The first day or moment.")] = None,
    until: Annotated[datetime | None, typer.Option("--to", help="The moment after the last.")] = None,
    notes: Annotated[
        bool, typer.Option("--notes", help="With what readers wrote in words; it may name a patient.")
    ] = False,
) -> None:
    """Write feedback to a table (--csv), to SRs (--sr), or to both."""
    from service.commands.feedback import export

    if csv is None and sr is None:
        raise typer.BadParameter("give --csv FILE, --sr DIR, or both")
    raise typer.Exit(export(load(), csv, sr, since, until, notes=notes))


@app.command()
def quality(
    since: Since = None,
    until: Until = None,
    by: Annotated[
        str,
        typer.Option(help="week, calling_ae_title, modality, scanner, view, sex or age.", show_default=True),
    ] = "week",
    html: Html = None,
    as_json: Json = False,
) -> None:
    """Show results against what readers say of them, and what has drifted; 1 when something has."""
    from service.commands.quality import show
    from service.core.quality import By

    if by not in set(By):
        raise typer.BadParameter(f"--by is one of {', '.join(By)}")
    raise typer.Exit(show(load(), since, until, By(by), html, as_json=as_json))


app.add_typer(backfill, name="backfill")


@app.command()
def purge(
    study: Annotated[str | None, typer.Option(help="Study Instance UID of a study to be erased.")] = None,
    expired: Annotated[
        bool, typer.Option("--expired", help="Remove now the files whose time has come.")
    ] = False,
    reason: Annotated[str, typer.Option(help="Why; it is kept: a ticket's number, no names.")] = "",
    lift: Annotated[bool, typer.Option("--lift", help="Let the erased study be taken in again.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go.")] = False,
    as_json: Json = False,
) -> None:
    """Erase a study for good (--study), or remove old files now (--expired)."""
    from service.commands import purge as command

    if expired == (study is not None) or (lift and (expired or dry_run)):
        raise typer.BadParameter("give --study UID (with --lift, or --dry-run) or --expired")
    if study is None:
        code = command.purge_expired(load(), dry_run=dry_run, as_json=as_json)
    elif lift:
        code = command.let_in_again(load(), study, reason, as_json=as_json)
    else:
        code = command.purge_study(load(), study, reason, yes=yes, dry_run=dry_run, as_json=as_json)
    raise typer.Exit(code)


@app.command()
def backup(file: Annotated[Path, typer.Argument(help="A file that is not there yet.")]) -> None:
    """Save the ledger to a file, while everything runs."""
    from service.commands.backup import backup as run

    raise typer.Exit(run(load(), file))


@app.command()
def restore(
    file: Annotated[
        Path | None,
        typer.Argument(help="What `hilum backup` wrote; without it the ledger was put back already."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Put a saved ledger back, while nothing runs."""
    from service.commands.backup import restore as run

    raise typer.Exit(run(load(), file, yes=yes))


@app.command()
def token(
    name: Annotated[str, typer.Argument(help="Who will use it.")],
    role: Annotated[str, typer.Option(help="viewer, clinician or administrator")] = "viewer",
) -> None:
    """Make an API token: the secret for its user, and the entry for HILUM_API_TOKENS."""
    from service.commands.token import token as run

    run(name, role)


def main() -> None:
    """Run the command line; what Hilum raises on purpose ends as one line on stderr."""
    logs.protect_patients()
    # Whatever is written, by Redis and libraries too, is for this user alone.
    os.umask(0o077)
    sys.exit(ended(app))


if __name__ == "__main__":
    main()
