"""`hilum purge`: erase a study for good, or remove now what retention would remove."""

import json
import sys
from pathlib import Path

import typer

from service.commands.console import console, user
from service.core.audit import Audit
from service.core.errors import CONFIGURATION_EXIT_CODE
from service.core.ledger import Ledger, check_migrated
from service.core.purge import Held, lift, look, purge
from service.core.removal import Removed, shown_bytes
from service.core.retention import Due, Retention
from service.core.settings import Settings
from service.core.spool import Spool
from service.core.tombstones import tombstone_of

# Beyond this `--dry-run` stops counting.
_MOST = 1_000_000
_REMAINS = (
    "the images in the archive that sent them, and what else it made of them",
    "the study's UIDs in logs and in the tombstone",
    "backups made before, until they expire; a ledger restored from one erases the study again",
)


def purge_study(
    settings: Settings, study_instance_uid: str, reason: str, *, yes: bool, dry_run: bool, as_json: bool
) -> int:
    """Erase a study, after asking; return 0 when it is erased, or was before."""
    ledger, spool = _open(settings)
    found = look(ledger, spool, study_instance_uid)
    if found is None:
        return _not_there(ledger, study_instance_uid, as_json)
    if dry_run:
        _say(study_instance_uid, found, found.there, "would be erased", as_json)
        return 0
    if not reason.strip():
        sys.stderr.write("hilum: say why by --reason, with a ticket's number and without names\n")
        return CONFIGURATION_EXIT_CODE
    if not yes and not _agreed(study_instance_uid, found):
        return CONFIGURATION_EXIT_CODE if not sys.stdin.isatty() else 1
    removed = purge(ledger, spool, Audit(settings, "purge"), study_instance_uid, user(), reason.strip())
    _say(study_instance_uid, found, removed, "erased", as_json)
    return 0


def let_in_again(settings: Settings, study_instance_uid: str, reason: str, *, as_json: bool) -> int:
    """Let an erased study be taken in again; return 0, or 1 when it was not erased."""
    ledger, spool = _open(settings)
    if not lift(ledger, spool, study_instance_uid, user(), reason.strip()):
        sys.stderr.write(f"hilum: {study_instance_uid} is not erased\n")
        return 1
    if as_json:
        typer.echo(json.dumps({"study_instance_uid": study_instance_uid, "lifted": True}, indent=2))
    else:
        typer.echo(f"{study_instance_uid}: may be sent again")
    return 0


def purge_expired(settings: Settings, *, dry_run: bool, as_json: bool) -> int:
    """Remove the files whose time has come, or show them; return 0 when all of that was done."""
    ledger, spool = _open(settings)
    retention = Retention(ledger, spool, settings)
    total = Removed()
    done: list[tuple[Due, Removed]] = []
    if dry_run:
        done = [(due, retention.size(due)) for due in retention.due(_MOST)]
        total = sum((removed for _, removed in done), Removed())
    else:
        total = retention.all_due()
    if as_json:
        studies = [
            {
                "study_instance_uid": due.study_instance_uid,
                "cause": due.cause,
                "received_at": due.received_at.isoformat(),
                **vars(removed),
            }
            for due, removed in done
        ]
        said = {"dry_run": dry_run, **vars(total), **({"studies": studies} if dry_run else {})}
        typer.echo(json.dumps(said, indent=2))
        return 0
    for due, removed in done:
        typer.echo(
            f"{due.study_instance_uid}  received {due.received_at:%Y-%m-%d}  {due.cause}  "
            f"{removed.files} file(s), {shown_bytes(removed.bytes)}"
        )
    words = "would go" if dry_run else "removed"
    typer.echo(f"{words}: {total.files} file(s), {shown_bytes(total.bytes)}")
    return 0


def _open(settings: Settings) -> tuple[Ledger, Spool]:
    check_migrated(settings.sqlalchemy_url)
    return Ledger(settings.sqlalchemy_url), Spool(Path(settings.data_dir))


def _agreed(study_instance_uid: str, found: Held) -> bool:
    if not sys.stdin.isatty():
        sys.stderr.write("hilum: nobody is here to agree: add --yes\n")
        return False
    return typer.confirm(
        f"Erase study {study_instance_uid} with {len(found.sop_instance_uids)} instance(s), "
        f"{found.there.files} file(s), {shown_bytes(found.there.bytes)}, its results and its history? "
        "This can't be undone.",
        err=True,
    )


def _not_there(ledger: Ledger, study_instance_uid: str, as_json: bool) -> int:
    with ledger.read() as session:
        tombstone = tombstone_of(session, study_instance_uid)
    if tombstone is None:
        sys.stderr.write(f"hilum: no study {study_instance_uid} in the ledger\n")
        return 1
    if as_json:
        said = {"study_instance_uid": study_instance_uid, "erased": True, "at": tombstone.at.isoformat()}
        typer.echo(json.dumps(said, indent=2))
    else:
        typer.echo(f"{study_instance_uid}: was erased on {tombstone.at:%Y-%m-%d} by {tombstone.by}")
    return 0


def _say(study_instance_uid: str, found: Held, removed: Removed, done: str, as_json: bool) -> None:
    remains = [
        *(f"{count} report(s) at {name}: delete them there" for name, count in found.delivered.items()),
        *_REMAINS,
    ]
    if as_json:
        said = {
            "study_instance_uid": study_instance_uid,
            "erased": done == "erased",
            **vars(removed),
            "sop_instance_uids": list(found.sop_instance_uids),
            "remains": remains,
        }
        typer.echo(json.dumps(said, indent=2))
        return
    screen = console()
    screen.print(
        f"{study_instance_uid}: {done}, {len(found.sop_instance_uids)} instance(s), {removed.files} file(s), "
        f"{shown_bytes(removed.bytes)}"
    )
    screen.print("What remains elsewhere:")
    for line in remains:
        screen.print(f"  - {line}")
