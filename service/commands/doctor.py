"""`hilum doctor`: everything the gateway leans on, each with its mend."""

import json
from collections.abc import Iterable, Iterator
from contextlib import closing

import typer
from rich.console import Console
from rich.markup import escape
from sqlalchemy.exc import SQLAlchemyError

from service.commands.console import console
from service.core import models
from service.core.checks import Check, configuration, examine
from service.core.errors import ConfigurationError
from service.core.ledger import Ledger
from service.core.notice_checks import examine_notices
from service.core.settings import Settings, load
from service.core.states import ModelRole
from service.core.wire_checks import examine_wire

_ASKED = (ModelRole.REPORTING, ModelRole.SHADOW)
_LOST_WEIGHTS = (
    "Restore the data folder; else retire the model or roll back (`hilum model`), and add its weights again"
)


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
    found = list(checks(settings, fault))
    if as_json:
        typer.echo(json.dumps([vars(check) for check in found], indent=2))
    else:
        show(console(), found)
    return 0 if all(check.right for check in found) else 1


def checks(settings: Settings, fault: str = "") -> Iterator[Check]:
    """Look at everything that the gateway leans on."""
    yield configuration(settings, fault)
    yield from examine(settings)
    yield from examine_wire(settings)
    yield from examine_notices(settings)
    yield from _worker_checks(settings)


def show(screen: Console, found: Iterable[Check]) -> None:
    """Print checks, each with its mend where one is needed."""
    for check in found:
        if not check.right:
            mark = "[red]wrong[/red]"
        else:
            mark = "[yellow]look at[/yellow]" if check.warns else "[green]right[/green]"
        screen.print(f"{mark}  {escape(f'{check.name}: {check.seen}')}")
        if check.mend and (check.warns or not check.right):
            screen.print(f"       {escape(check.mend)}", style="yellow")


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
    yield from _models(settings)


def _models(settings: Settings) -> Iterator[Check]:
    """Look at the weights of every model that is asked; before the first worker has started there is none."""
    from model.weights import WeightsError, read_info

    try:
        with closing(Ledger(settings.sqlalchemy_url)) as ledger, ledger.read() as session:
            asked = [model for model in models.every(session) if model.role in _ASKED]
    except (ConfigurationError, SQLAlchemyError):
        return  # which another check says
    for model in asked:
        name = f"model {model.name} {model.version}, {model.role}"
        try:
            found = read_info(settings.data_dir / (model.path or "")).sha256
            said = "" if found == model.sha256 else f"the weights are others: SHA-256 {found}"
        except WeightsError as fault:
            said = str(fault)
        yield Check(name, not said, said or f"SHA-256 {model.sha256}", _LOST_WEIGHTS)
