"""What the system page shows beside `service.api.situation`: destinations, models, certificates."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session

from service.core import models
from service.core.certificates import in_file
from service.core.confirmation import unconfirmed
from service.core.ledger import expected_revision
from service.core.pauses import pauses
from service.core.refusals import refusals
from service.core.settings import Settings
from service.core.states import DELIVERED_STATES, DeliveryState, Kind
from service.core.tables import Model, ModelChange, Outbox

_FORMS = {
    Kind.SR: "it rejected Comprehensive 3D SR, and gets Comprehensive SR",
    Kind.HEATMAP: "it rejected JPEG, and gets heat maps uncompressed",
}


@dataclass(frozen=True)
class DestinationState:
    """One destination, or one that is not configured any more (`url` empty)."""

    name: str
    url: str
    required: bool
    pending: int = 0
    parked: int = 0
    last_delivered: datetime | None = None
    last_error: str | None = None
    remarks: Sequence[str] = ()


@dataclass(frozen=True)
class CertificateState:
    """A certificate of ours, or one of a CA that we believe."""

    name: str
    said: str
    ends_soon: bool


@dataclass(frozen=True)
class System:
    destinations: Sequence[DestinationState]
    models: Sequence[Model]
    changes: Sequence[ModelChange]
    certificates: Sequence[CertificateState]
    ledger: str
    settings: Mapping[str, str] = field(default_factory=dict)


def system(session: Session, settings: Settings) -> System:
    """Return what is known of the installation."""
    backend = (
        "PostgreSQL" if make_url(settings.sqlalchemy_url).get_backend_name() == "postgresql" else "SQLite"
    )
    return System(
        destinations=list(_destinations(session, settings)),
        models=models.every(session),
        changes=models.changes(session)[:10],
        certificates=list(_certificates(settings)),
        ledger=f"{backend}, revision {expected_revision()}",
        settings={
            "Our AE title": settings.ae_title,
            "Ports": ", ".join(str(port) for port in settings.dimse_ports.values()),
            "Quiet time": f"{settings.study_quiet_seconds:g} s, in all {settings.study_max_wait_seconds:g} s",
            "Patients outside the validated population": "refused"
            if settings.population == "refuse"
            else "scored, with the limit stated",
        },
    )


def _destinations(session: Session, settings: Settings) -> Iterator[DestinationState]:
    remarks: dict[str, list[str]] = {}
    for row in refusals(session, settings.destinations):
        remarks.setdefault(row.destination, []).append(_FORMS[Kind(row.kind)])
    for name, count in unconfirmed(session).items():
        remarks.setdefault(name, []).append(f"it confirmed none of {count} deliveries of the last day")
    for pause in pauses(session):
        until = f"{pause.until.astimezone(settings.zone):%Y-%m-%d %H:%M:%S}"
        remarks.setdefault(pause.destination, []).append(f"waits for {pause.why}, until {until}")
    known = {item.name: item for item in settings.destinations}
    unsettled = (DeliveryState.PENDING, DeliveryState.PARKED)
    named = [select(Outbox.destination).where(Outbox.state == state).distinct() for state in unsettled]
    others = [name for statement in named for name in session.scalars(statement)]
    for name in dict.fromkeys([*known, *others]):
        item = known.get(name)
        delivered = [_last_delivered(session, name, state) for state in DELIVERED_STATES]
        pending, parked = (_count(session, name, state) for state in unsettled)
        yield DestinationState(
            name=name,
            url=item.url if item else "",
            required=item.required if item else False,
            pending=pending,
            parked=parked,
            last_delivered=max(filter(None, delivered), default=None),
            last_error=_last_error(session, name),
            remarks=remarks.get(name, []),
        )


def _count(session: Session, name: str, state: str) -> int:
    found = select(func.count()).where(Outbox.destination == name, Outbox.state == state)
    return session.scalar(found) or 0


def _last_delivered(session: Session, name: str, state: str) -> datetime | None:
    return session.scalar(
        select(func.max(Outbox.delivered_at)).where(Outbox.destination == name, Outbox.state == state)
    )


def _last_error(session: Session, name: str) -> str | None:
    for state in (DeliveryState.PENDING, DeliveryState.PARKED):
        error = session.scalar(
            select(Outbox.last_error)
            .where(Outbox.destination == name, Outbox.state == state, Outbox.last_error.is_not(None))
            .order_by(Outbox.ready_at.desc())
            .limit(1)
        )
        if error is not None:
            return error
    return None


def _certificates(settings: Settings) -> Iterator[CertificateState]:
    files: dict[Path, str] = {}
    for item in (settings.tls_files, *(found.tls for found in settings.destinations if found.tls)):
        if item.certificate_file is not None:
            files.setdefault(item.certificate_file, "ours")
        if item.ca_file is not None:
            files.setdefault(item.ca_file, "a CA that we believe")
    for path, whose in files.items():
        try:
            for found in in_file(path):
                yield CertificateState(f"{path.name}, {whose}", str(found), found.ends_soon)
        except (OSError, ValueError) as fault:
            yield CertificateState(f"{path.name}, {whose}", f"cannot be read ({type(fault).__name__})", True)
