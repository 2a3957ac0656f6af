"""`hilum backup` and `hilum restore`: the ledger in one file."""

import sys
from pathlib import Path

import typer

from service.commands.console import user
from service.commands.lock import data_folder_locked
from service.core import backup as ledger_backup
from service.core import checks
from service.core.errors import CONFIGURATION_EXIT_CODE
from service.core.ledger import check_migrated
from service.core.removal import shown_bytes
from service.core.settings import Settings


def backup(settings: Settings, file: Path) -> int:
    """Write the ledger to a file; everything may run meanwhile."""
    check_migrated(settings.sqlalchemy_url)
    size = ledger_backup.back_up(settings, file)
    typer.echo(f"{file}: {shown_bytes(size)}. It names patients: keep it safe, and not for ever")
    return 0


def restore(settings: Settings, file: Path | None, *, yes: bool) -> int:
    """Put a saved ledger in the place of the present one, or finish what another program put back."""
    if file is not None and not yes and not _agreed(file):
        return CONFIGURATION_EXIT_CODE if not sys.stdin.isatty() else 1
    checks.require(settings)
    with data_folder_locked(settings.data_dir):
        if file is None:
            revision = ledger_backup.after_restore(settings, user())
        else:
            revision = ledger_backup.restore(settings, file, user())
    typer.echo(
        f"ledger at revision {revision}. Start Hilum: images that came after the backup are adopted; "
        "let the router send again what is missing"
    )
    return 0


def _agreed(file: Path) -> bool:
    if not sys.stdin.isatty():
        sys.stderr.write("hilum: nobody is here to agree: add --yes\n")
        return False
    return typer.confirm(
        f"Put {file} in the place of the present ledger? What only that one knows is lost.", err=True
    )
