"""`hilum doctor`: everything the gateway leans on, each with its mend."""

import json
from collections.abc import Iterator

import typer

from service.commands.console import console
from service.core.checks import Check, configuration, examine
from service.core.errors import ConfigurationError
from service.core.settings import Settings, load
from service.core.wire_checks import examine_wire


def load_all_the_same() -> tuple[Settings, str]:
    """Return the settings, without the file of HILUM_CONFIG when that has a fault, and what is wrong with it.

    Raises
    ------
    ConfigurationError
        When that is not all that is wrong.
    """
    try:
        return load(), ""
    except ConfigurationError as fault:
        try:
            return load(config=""), str(fault)
        except ConfigurationError:
            raise fault from None


def doctor(settings: Settings, fault: str, as_json: bool) -> int:
    """Print every check; return 0 only when all is right. `fault` is of the configuration file."""
    checks = [
        configuration(settings, fault),
        *examine(settings),
        *examine_wire(settings),
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
