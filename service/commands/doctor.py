"""`hilum doctor`: everything the gateway leans on, each with its mend."""

import json
from collections.abc import Iterator

import typer

from service.commands.console import console
from service.core.checks import Check, examine
from service.core.notice_checks import examine_notices
from service.core.settings import Settings
from service.core.wire_checks import examine_wire


def doctor(settings: Settings, as_json: bool) -> int:
    """Print every check; return 0 only when all is right."""
    checks = [
        *examine(settings),
        *examine_wire(settings),
        *examine_notices(settings),
        *_worker_checks(settings),
    ]
    if as_json:
        typer.echo(json.dumps([vars(check) for check in checks], indent=2))
    else:
        screen = console()
        for check in checks:
            mark = "[green]right[/green]" if check.right else "[red]wrong[/red]"
            screen.print(f"{mark}  {check.name}: {check.seen}")
            if check.mend and (check.warns or not check.right):
                screen.print(f"       {check.mend}", style="yellow")
    return 0 if all(check.right for check in checks) else 1


def _worker_checks(settings: Settings) -> Iterator[Check]:
    """Look at what only the worker needs: the decoders and the weights."""
    from model.weights import WeightsError, default_weights, read_info
    from worker.decode import missing_decoders

    missing = missing_decoders()
    yield Check(
        "decoders",
        not missing,
        f"missing for {', '.join(missing)}" if missing else "one for every transfer syntax that is offered",
        "Install Hilum again with its dependencies",
    )
    try:
        info = read_info(settings.weights or default_weights())
        yield Check("weights", True, f"{info.name} {info.version}, SHA-256 {info.sha256}")
    except WeightsError as fault:
        yield Check("weights", False, str(fault), "Check HILUM_WEIGHTS")
