"""Which model reports, which ones run beside it, and who decided so.

One model reports. Others run in shadow: they look at the same films when nothing else waits, what they say is
recorded, compared (`hilum model compare`) and never sent. Every change is a row that says who, when and why.
A model that ships with Hilum, or that HILUM_WEIGHTS names, reports until another one is promoted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session, joinedload

from service.core.ledger import now, register_model
from service.core.states import AnalysisState, ModelChangeKind, ModelRole
from service.core.tables import Instance, Model, ModelChange, Shadow

_MOST_SHADOWS = 3
# After these a model reports.
_REPORTS = (ModelChangeKind.CONFIGURED, ModelChangeKind.PROMOTED, ModelChangeKind.ROLLED_BACK)


class NotPossible(Exception):
    """A change that cannot be made; the message says why and what to do."""


@dataclass(frozen=True)
class Decision:
    """Who decides, and why; the reason is kept and shown: no names of patients."""

    by: str
    reason: str


def reporting(session: Session) -> Model | None:
    """Return the model that reports; None before the first worker has started."""
    return session.scalars(_with_role(ModelRole.REPORTING)).first()


def shadows(session: Session) -> Sequence[Model]:
    """Return the models that run in shadow, in the order in which they were added."""
    return session.scalars(_with_role(ModelRole.SHADOW)).all()


def every(session: Session) -> Sequence[Model]:
    """Return all models: the one that reports, those in shadow, the others, the newest first of each."""
    order: dict[str | None, int] = {ModelRole.REPORTING: 0, ModelRole.SHADOW: 1}
    models = session.scalars(select(Model).order_by(Model.id.desc())).all()
    return sorted(models, key=lambda model: order.get(model.role, 2))


def changes(session: Session) -> Sequence[ModelChange]:
    """Return what was decided, the newest first."""
    newest_first = select(ModelChange).order_by(ModelChange.id.desc())
    return session.scalars(newest_first.options(joinedload(ModelChange.model))).all()


def find(session: Session, name: str) -> Model:
    """Return the model that a person means.

    Parameters
    ----------
    name
        "NAME VERSION", "NAME-VERSION", its version, or the beginning of its SHA-256 (6 digits or more).

    Raises
    ------
    NotPossible
        When there is none, or more than one.
    """
    wanted = name.strip()
    found = [
        model
        for model in every(session)
        if wanted in (f"{model.name} {model.version}", f"{model.name}-{model.version}", model.version)
        or (len(wanted) >= 6 and model.sha256.startswith(wanted.lower()))
    ]
    if len(found) != 1:
        several = "more than one model is" if found else "no model is"
        raise NotPossible(f"{several} called {name}: `hilum model list` shows them; its SHA-256 names one")
    return found[0]


def add(
    session: Session,
    identity: tuple[str, str, str],
    activation_method: str,
    path: str,
    decision: Decision,
) -> Model:
    """Let a model run in shadow.

    Parameters
    ----------
    identity
        Name, version and SHA-256 of its weights.
    path
        Where they lie in the data folder.

    Raises
    ------
    NotPossible
        When it is there already, or too many run in shadow.
    """
    if len(shadows(session)) >= _MOST_SHADOWS:
        raise NotPossible(f"{_MOST_SHADOWS} models run in shadow already: retire one (`hilum model retire`)")
    model = session.get_one(Model, register_model(session, *identity, activation_method))
    if model.role in (ModelRole.REPORTING, ModelRole.SHADOW):
        raise NotPossible(f"{model.name} {model.version} is {model.role} already")
    model.role, model.path = ModelRole.SHADOW, path
    _record(session, model, ModelChangeKind.ADDED, decision)
    return model


def take_up(session: Session, model: Model, why: str, *, always: bool) -> None:
    """Let the model report that the configuration or this version of Hilum brings.

    Not in the place of one that a person promoted, unless `always`.
    """
    if model.role == ModelRole.REPORTING:
        return
    last = next((change for change in changes(session) if change.kind in _REPORTS), None)
    if always or reporting(session) is None or last is None or last.kind == ModelChangeKind.CONFIGURED:
        _set_reporting(session, model, ModelChangeKind.CONFIGURED, Decision("configuration", why))


def promote(session: Session, model: Model, decision: Decision) -> None:
    """Let a model report from the next film on; the one before it is asked no more.

    Raises
    ------
    NotPossible
        When its weights are not at hand, or it reports already.
    """
    if model.role == ModelRole.REPORTING:
        raise NotPossible(f"{model.name} {model.version} reports already")
    if model.path is None:
        raise NotPossible(
            f"the weights of {model.name} {model.version} are not in the data folder: `hilum model add` them"
        )
    _set_reporting(session, model, ModelChangeKind.PROMOTED, decision)


def roll_back(session: Session, decision: Decision) -> Model:
    """Let the model report again that did before the present one; return it.

    Raises
    ------
    NotPossible
        When there is none.
    """
    present = reporting(session)
    reported = [change.model for change in changes(session) if change.kind in _REPORTS]
    for model in reported:
        if present is not None and model.id != present.id and model.path is not None:
            _set_reporting(session, model, ModelChangeKind.ROLLED_BACK, decision)
            return model
    raise NotPossible("no other model has reported before")


def retire(session: Session, model: Model, decision: Decision) -> None:
    """Ask a model in shadow no more; what it said stays.

    Raises
    ------
    NotPossible
        When it is not in shadow.
    """
    if model.role == ModelRole.RETIRED:
        raise NotPossible(f"{model.name} {model.version} is retired already")
    if model.role != ModelRole.SHADOW:
        raise NotPossible(f"{model.name} {model.version} does not run in shadow: promote another one instead")
    model.role = ModelRole.RETIRED
    _record(session, model, ModelChangeKind.RETIRED, decision)


def set_threshold(session: Session, model: Model, threshold: float | None, decision: Decision) -> None:
    """Set the site's own operating point, or None for that of the weights; films to come are meant."""
    model.threshold = threshold
    _record(session, model, ModelChangeKind.THRESHOLD, decision, threshold)


def request_shadows(session: Session, instance: Instance) -> None:
    """Let the film of `instance` wait for the models in shadow, each once."""
    known = set(session.scalars(select(Shadow.model_id).where(Shadow.instance_id == instance.id)))
    for model in shadows(session):
        if model.id not in known:
            session.add(
                Shadow(
                    instance_id=instance.id, model_id=model.id, state=AnalysisState.PENDING, ready_at=now()
                )
            )


def _with_role(role: ModelRole) -> Select[Any]:
    return select(Model).where(Model.role == role).order_by(Model.id)


def _set_reporting(session: Session, model: Model, kind: ModelChangeKind, decision: Decision) -> None:
    for other in session.scalars(_with_role(ModelRole.REPORTING)):
        other.role = ModelRole.RETIRED
    model.role = ModelRole.REPORTING
    _record(session, model, kind, decision)


def _record(
    session: Session,
    model: Model,
    kind: ModelChangeKind,
    decision: Decision,
    threshold: float | None = None,
) -> None:
    session.add(
        ModelChange(
            model_id=model.id,
            at=now(),
            kind=kind,
            by=decision.by[:64],
            reason=decision.reason,
            threshold=threshold,
        )
    )
