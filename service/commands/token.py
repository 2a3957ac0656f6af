"""`hilum token`: a new API token."""

import hashlib
import re
import secrets

import typer


def token(name: str, role: str) -> None:
    """Print a new secret and the entry that admits it; the secret itself is stored nowhere."""
    if not re.fullmatch(r"[\w.-]+", name):
        raise typer.BadParameter("a name is letters, digits, dots, dashes and underscores")
    if role not in ("viewer", "clinician", "administrator"):
        raise typer.BadParameter("the role is viewer, clinician or administrator")
    secret = secrets.token_urlsafe(32)
    typer.echo(f"secret for {name} (shown once): {secret}")
    typer.echo(f"entry for HILUM_API_TOKENS:     {name}:{role}:{hashlib.sha256(secret.encode()).hexdigest()}")
