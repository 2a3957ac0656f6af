"""`hilum model`: which model reports, which ones run in shadow, and at which operating point."""

import json
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, tzinfo
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table
from sqlalchemy.orm import Session

from service.commands.console import console, user, write
from service.core import models
from service.core.audit import Audit
from service.core.errors import CONFIGURATION_EXIT_CODE
from service.core.ledger import Ledger, check_migrated
from service.core.models import NotPossible
from service.core.settings import Settings
from service.core.spool import Spool
from service.core.states import ModelChangeKind
from service.core.tables import Model, ModelChange

if TYPE_CHECKING:
    from service.commands.compare import Comparison

_FILMS = 100  # with pictures in the HTML


def show(settings: Settings, as_json: bool) -> int:
    """Print the models and what was decided about them; return 0."""
    with _ledger(settings).read() as session:
        every, changes = models.every(session), models.changes(session)
        if as_json:
            said = {"models": [_described(model) for model in every], "changes": [*map(_told, changes)]}
            typer.echo(json.dumps(said, indent=2))
            return 0
        table = Table("model", "role", "threshold", "first used", "SHA-256", box=None)
        for model in every:
            table.add_row(
                f"{model.name} {model.version}",
                model.role or "",
                "of the weights" if model.threshold is None else f"{model.threshold:g} (the site's)",
                f"{model.first_used_at.astimezone(settings.zone):%Y-%m-%d}",
                model.sha256,
            )
        screen = console()
        screen.print(table if every else "no model is known before the first worker has started")
        for change in reversed(changes):
            what = change.kind.replace("_", " ")
            what += f" {_threshold(change.threshold)}" if change.kind == ModelChangeKind.THRESHOLD else ""
            screen.print(
                f"{change.at.astimezone(settings.zone):%Y-%m-%d %H:%M}  {change.model.name} "
                f"{change.model.version}: {what}, by {change.by}: {change.reason}",
                markup=False,
                style="dim",
            )
    return 0


def add(settings: Settings, weights: Path, reason: str) -> int:
    """Take a weights file into the data folder and let it run in shadow; return 0 when it does."""
    from model.predict import Predictor
    from model.weights import WeightsError
    from worker.context import population_of

    ledger, spool = _ledger(settings), Spool(settings.data_dir)
    try:
        info = Predictor.load(weights, "cpu").info
        content = weights.read_bytes()
    except (WeightsError, OSError) as fault:
        sys.stderr.write(f"hilum: {fault}\n")
        return 1
    spool.make()
    path = spool.write("models", ".safetensors", lambda stream: stream.write(content))

    def change(session: Any) -> Model:
        identity = info.name, info.version, info.sha256
        row = models.add(session, identity, info.class_activation, path, _decision(reason))
        row.population = population_of(info).kept()
        return row

    code = _change(settings, ledger, change, "runs in shadow: what it says is recorded, not sent", reason)
    if code:
        spool.remove(path)
    return code


def promote(settings: Settings, name: str, reason: str) -> int:
    """Let a model report; return 0 when it does."""

    def change(session: Any) -> Model:
        _refuse_when_configured(settings)
        model = models.find(session, name)
        models.promote(session, model, _decision(reason))
        return model

    return _change(settings, _ledger(settings), change, "reports from the next film on", reason)


def roll_back(settings: Settings, reason: str) -> int:
    """Let the model before the present one report again; return 0 when it does."""

    def change(session: Any) -> Model:
        _refuse_when_configured(settings)
        return models.roll_back(session, _decision(reason))

    return _change(settings, _ledger(settings), change, "reports again from the next film on", reason)


def retire(settings: Settings, name: str, reason: str) -> int:
    """Ask a model in shadow no more; return 0 when it is so."""

    def change(session: Any) -> Model:
        model = models.find(session, name)
        models.retire(session, model, _decision(reason))
        return model

    return _change(settings, _ledger(settings), change, "is not asked any more", reason)


def threshold(settings: Settings, value: float | None, name: str | None, reason: str) -> int:
    """Set the site's operating point of a model, without a name of that which reports; return 0 when done."""

    def change(session: Any) -> Model:
        model = models.reporting(session) if name is None else models.find(session, name)
        if model is None:
            raise NotPossible("no model reports yet: start a worker first")
        models.set_threshold(session, model, value, _decision(reason))
        return model

    said = f"goes by {_threshold(value)} from the next film on; what is indeterminate lies about that"
    return _change(settings, _ledger(settings), change, said, reason)


def compare(
    settings: Settings,
    name: str,
    since: datetime | None,
    until: datetime | None,
    html: Path | None,
    *,
    as_json: bool,
) -> int:
    """Print how a model and the one that reports do on the same films, or write it; return 0."""
    from service.commands import compare as comparison

    try:
        with _ledger(settings).read() as session:
            first, second = models.reporting(session), models.find(session, name)
            if first is None or first.id == second.id:
                raise NotPossible("name a model that does not report: it is compared with the one that does")
            names = [f"{model.name} {model.version}" for model in (first, second)]
            window = (_here(moment, settings.zone) for moment in (since, until))
            found = comparison.compare(comparison.films_of(session, first.id, second.id, *window))
            shown = _shown(session, settings, first, found) if html is not None else []
    except NotPossible as fault:
        sys.stderr.write(f"hilum: {fault}\n")
        return 1
    lines = _compared(found, names)
    if html is not None:
        from service.api.page.document import document

        values = {"first": names[0], "second": names[1], "found": found, "lines": lines, "shown": shown}
        hashes = {"first_sha256": first.sha256, "second_sha256": second.sha256}
        write(html, document("comparison.html", version=version("hilum"), **values, **hashes))
    if as_json:
        typer.echo(json.dumps({"reporting": names[0], "shadow": names[1], **found.as_dict()}, indent=2))
    elif html is None:
        screen = console()
        screen.print(
            f"{names[0]} (reports) and {names[1]}: {found.films} films, {found.read} read by somebody"
        )
        for cell, count in found.table.items():
            screen.print(f"  {cell.replace('/', ' and ')}: {count}")
        for what, said in lines:
            screen.print(f"{what}: {said}", markup=False)
        for film in found.disagreements:
            truth = "" if film.truth is None else f", readers: {'present' if film.truth else 'absent'}"
            screen.print(
                f"{film.study_instance_uid} {film.sop_instance_uid}: {film.first} and {film.second}{truth}",
                markup=False,
                soft_wrap=True,
            )
    return 0


def _shown(session: Session, settings: Settings, first: Model, found: "Comparison") -> list[tuple[Any, ...]]:
    """Return the films of the list that the HTML shows, each with its picture and that under the map."""
    from service.commands.compare import pictures_of
    from service.commands.film_pictures import as_data_uris

    spool = Spool(settings.data_dir)
    some = found.disagreements[:_FILMS]
    return [(film, *as_data_uris(spool, *pictures_of(session, first.id, film))) for film in some]


def _compared(found: "Comparison", names: Sequence[str]) -> list[tuple[str, str]]:
    lines = [("Agreement of both (Cohen's kappa)", "–" if found.kappa is None else f"{found.kappa:.3f}")]
    alone = f"{names[0]} {found.only_first_right}, {names[1]} {found.only_second_right}"
    p = "" if found.mcnemar_p is None else f"; p {found.mcnemar_p:.3g}"
    lines.append(("Right alone (McNemar, exact)", alone + p))
    if (areas := found.areas) is None:
        lines.append(("Areas under the ROC curves", "needs two films of each kind that readers spoke of"))
    else:
        lines.append((f"AUC of {names[0]}", f"{areas.first:.3f}"))
        lines.append((f"AUC of {names[1]}", f"{areas.second:.3f}"))
        interval = f"{areas.low:+.3f} to {areas.high:+.3f}"
        lines.append(("Difference (DeLong)", f"{areas.difference:+.3f} ({interval}); p {areas.p:.3g}"))
    return lines


def _here(moment: datetime | None, zone: tzinfo | None) -> datetime | None:
    return moment.replace(tzinfo=zone).astimezone(zone) if moment and not moment.tzinfo else moment


def _change(
    settings: Settings, ledger: Ledger, change: Callable[[Any], Model], said: str, reason: str
) -> int:
    if not reason.strip():
        sys.stderr.write("hilum: say why by --reason; it is kept and shown\n")
        return CONFIGURATION_EXIT_CODE
    try:
        with ledger.write() as session:
            model = change(session)
            name = f"{model.name} {model.version}"
            sha256 = model.sha256
    except NotPossible as fault:
        sys.stderr.write(f"hilum: {fault}\n")
        return 1
    Audit(settings, "model").configured(user(), f"model {name} ({sha256}) {said}: {reason.strip()}")
    typer.echo(f"{name} {said}")
    return 0


def _refuse_when_configured(settings: Settings) -> None:
    """Refuse what the next worker would undo.

    Raises
    ------
    NotPossible
        When HILUM_WEIGHTS says which model reports.
    """
    if settings.weights is not None:
        raise NotPossible(
            f"HILUM_WEIGHTS names the model that reports ({settings.weights}): leave it empty to choose here"
        )


def _ledger(settings: Settings) -> Ledger:
    check_migrated(settings.sqlalchemy_url)
    return Ledger(settings.sqlalchemy_url)


def _decision(reason: str) -> models.Decision:
    return models.Decision(user(), reason.strip())


def _threshold(value: float | None) -> str:
    return "the threshold of the weights" if value is None else f"{100 * value:g} %"


def _described(model: Model) -> dict[str, Any]:
    return {
        "name": model.name,
        "version": model.version,
        "sha256": model.sha256,
        "role": model.role,
        "threshold": model.threshold,
        "first_used_at": model.first_used_at.isoformat(),
    }


def _told(change: ModelChange) -> dict[str, Any]:
    return {
        "at": change.at.isoformat(),
        "model": change.model.sha256,
        "kind": change.kind,
        "threshold": change.threshold,
        "by": change.by,
        "reason": change.reason,
    }
