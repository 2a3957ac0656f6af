"""`hilum notices test`: whether those who are told of trouble can be told."""

import typer

from service.core.errors import ConfigurationError
from service.core.settings import Settings


def test(settings: Settings, name: str) -> int:
    """Send a test notice to one channel; return 0 when it was taken."""
    from service.scheduler.notices import explain, send_test

    channel = settings.channel(name)
    if channel is None:
        known = ", ".join(item.name for item in settings.notices) or "none"
        raise ConfigurationError(f"[notices.{name}] is not configured (known: {known})")
    try:
        send_test(channel, settings)
    except Exception as fault:
        why = explain(fault)
        if why is None:
            raise
        typer.echo(f"hilum: {name} did not take it: {why}", err=True)
        return 1
    typer.echo(f"{name} ({channel.url}) took a test notice")
    return 0
