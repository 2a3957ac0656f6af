"""`hilum token`: a new API token."""

import hashlib
import re
import secrets

import typer

from service.core.tokens import ROLES


def token(name: str, role: str) -> None:
    """Print a new secret and the entry that admits it; the secret itself is stored nowhere."""
    if not re.fullmatch(r"[\w.-]+", name, re.ASCII):
        raise typer.BadParameter("a name is letters, digits, dots, dashes and underscores")
    if role not in ROLES:
        raise typer.BadParameter(f"the role is one of {', '.join(ROLES)}")
    secret = secrets.token_urlsafe(32)
    typer.echo(f"secret for {name} (shown once): {secret}")
    typer.echo(f"entry for HILUM_API_TOKENS:     {name}:{role}:{hashlib.sha256(secret.encode()).hexdigest()}")
