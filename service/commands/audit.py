"""`hilum audit verify`: whether the audit trail is whole, and where it is not."""

import json
from pathlib import Path

import typer

from service.core.audit import trail_folder
from service.core.audit_trail import Trail
from service.core.errors import ConfigurationError
from service.core.settings import Settings


def verify(settings: Settings, folder: Path | None, as_json: bool) -> int:
    """Print every break of the chain; return 0 only when there is none."""
    folder = folder or trail_folder(settings)
    if not folder.is_dir():
        raise ConfigurationError(f"{folder}: no audit trail there")
    found = Trail(folder).verify()
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), **vars(found)}, indent=2))
        return 1 if found.breaks else 0
    for said in found.breaks:
        typer.echo(f"broken: {said}")
    state = f"{len(found.breaks)} break(s) in" if found.breaks else "whole:"
    typer.echo(f"{state} {found.records} record(s) in {folder}, the last with SHA-256 {found.sha256}")
    return 1 if found.breaks else 0
