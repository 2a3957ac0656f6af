"""What is counted: each process adds up in memory, and adds its sums to those of the ledger.

Prometheus asks the API, and others do the counting; so the sums live in the ledger's table `tally`, where
every replica of the API finds the same, and no restart sets them back. `flush` writes them: with the signs of
life, after tasks, and at a process's end. A process that is killed takes the counts of these seconds with it;
whatever must be exact is asked of the ledger itself (`service.api.metrics`). No label names a patient or a
study, and each has few values.
"""

import json
import os
import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import structlog
from sqlalchemy import case, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from service.core.ledger import Ledger, now, when_committed
from service.core.settings import Settings
from service.core.tables import Tally

OTHER = "other"
_SUM = "sum"
_log = structlog.get_logger()


@dataclass(frozen=True)
class Count:
    """One metric that is counted; with `buckets` (seconds) a histogram, `latest`: the newest moment."""

    name: str
    text: str
    labels: tuple[str, ...]
    buckets: tuple[float, ...] = ()
    latest: bool = False


_SECONDS = (
    *(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
    *(120.0, 300.0, 600.0, 1800.0, 3600.0, 14400.0, 86400.0, 604800.0),
)
ASSOCIATIONS = Count(
    "hilum_associations",
    "Associations that were requested of the listener, by calling AE title and what became of them",
    ("peer", "result"),
)
LAST_ASSOCIATION = Count(
    "hilum_last_association_timestamp_seconds",
    "When an association was accepted last, by calling AE title",
    ("peer",),
    latest=True,
)
OBJECTS = Count(
    "hilum_objects_received",
    "Objects that were answered, by sender and status (PS3.4 B.2.3), over C-STORE and STOW-RS",
    ("peer", "status"),
)
RECEIVED_BYTES = Count(
    "hilum_received_bytes", "Bytes of the objects that were received, by sender", ("peer",)
)
STAGE_SECONDS = Count(
    "hilum_stage_seconds",
    "Time of one object's or study's work, by stage: receive from its last byte, decode, infer and report "
    "from when it could start, deliver from when the report was built, confirm from its delivery",
    ("stage",),
    _SECONDS,
)
STUDY_SECONDS = Count(
    "hilum_study_seconds",
    "Time from a study's first object until its first report was built, delivered, confirmed",
    ("until",),
    _SECONDS,
)
FILMS = Count(
    "hilum_films",
    "Films by what became of them; with the reason when there is no number",
    ("outcome", "reason"),
)
RESULTS = Count("hilum_results", "Reports that were built, by finding", ("finding",))
DELIVERIES = Count("hilum_deliveries_accepted", "Objects that a destination accepted", ("destination",))
DELIVERY_FAILURES = Count(
    "hilum_delivery_failures",
    "Tries of a delivery that failed, by destination and kind of reason",
    ("destination", "reason"),
)
NOTICES = Count("hilum_notices", "Notices by channel and what became of them", ("channel", "outcome"))
COUNTS = (
    *(ASSOCIATIONS, LAST_ASSOCIATION, OBJECTS, RECEIVED_BYTES, STAGE_SECONDS, STUDY_SECONDS),
    *(FILMS, RESULTS, DELIVERIES, DELIVERY_FAILURES, NOTICES),
)
STAGES = ("receive", "decode", "infer", "report", "deliver", "confirm")
UNTIL = ("reported", "delivered", "confirmed")

_Key = tuple[str, str, str]
_lock = threading.Lock()
_sums: dict[_Key, float] = defaultdict(float)
_latest: dict[_Key, float] = {}
_flushed_at = 0.0


def add(what: Count, *labels: str, by: float = 1.0, session: Session | None = None) -> None:
    """Count; with a session only when that commits."""
    if session is not None:
        when_committed(session, partial(add, what, *labels, by=by))
        return
    with _lock:
        _sums[_key(what, labels)] += by


def observe(what: Count, seconds: float, *labels: str, session: Session | None = None) -> None:
    """Count one time in its bucket; with a session only when that commits."""
    if session is not None:
        when_committed(session, partial(observe, what, seconds, *labels))
        return
    seconds = max(0.0, seconds)
    place = bisect_left(what.buckets, seconds)
    bound = str(what.buckets[place]) if place < len(what.buckets) else "+Inf"
    with _lock:
        _sums[_key(what, labels, bound)] += 1
        _sums[_key(what, labels, _SUM)] += seconds


def since(what: Count, moment: datetime, *labels: str, session: Session | None = None) -> None:
    """Count the time that has passed since a moment."""
    observe(what, (now() - moment).total_seconds(), *labels, session=session)


def note(what: Count, *labels: str) -> None:
    """Say that it happened just now."""
    with _lock:
        _latest[_key(what, labels)] = now().timestamp()


def flush(ledger: Ledger, *, every: float = 0.0) -> None:
    """Add what was counted to the ledger's sums; a ledger that is away gets it the next time.

    Not again before `every` seconds have passed: a commit costs as much as a small task.
    """
    global _flushed_at  # noqa: PLW0603
    with _lock:
        if time.monotonic() - _flushed_at < every:
            return
        _flushed_at = time.monotonic()
        sums, latest = dict(_sums), dict(_latest)
        _sums.clear()
        _latest.clear()
    if not sums and not latest:
        return
    try:
        with ledger.write() as session:
            _merge(session, sums, newest=False)
            _merge(session, latest, newest=True)
    except SQLAlchemyError as fault:
        _log.warning("tally.not_written", error=type(fault).__name__)
        with _lock:
            for key, value in sums.items():
                _sums[key] += value
            for key, value in latest.items():
                _latest[key] = max(value, _latest.get(key, 0.0))


def discard() -> None:
    """Drop what was not written: in a forked child it is its parent's to write."""
    with _lock:
        _sums.clear()
        _latest.clear()


def _begin_as_child() -> None:
    _lock.release()
    discard()


os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_begin_as_child)


def peer(settings: Settings, name: str) -> str:
    """Return the label of a sender: its AE title or the name of its token when it is configured."""
    known = {item.ae_title for item in settings.peers} | {item.name for item in settings.api_tokens}
    known |= {item.ae_title for item in settings.destinations if not item.is_dicomweb}
    return name if name in known else OTHER


def reason_class(reason: str | None) -> str:
    """Return the kind of a reason why a film has no number: of a few, without what it says of the film."""
    if not reason:
        return ""
    for begin, kind in _REASONS.items():
        if reason.startswith(begin):
            return kind
    return OTHER


_REASONS = {
    "not a frontal chest radiograph (": "header",
    "not a frontal chest radiograph": "pixels",
    "outside the validated population": "population",
    "the pixel data cannot be decoded": "undecodable",
    "left out: the same exposure": "for_processing",
    "left out by the rule": "rule",
    "not a radiograph": "no_radiograph",
    "a secondary image": "secondary",
    "a localizer": "localizer",
    "the archive rejected the image": "rejected",
}


Sums = dict[tuple[str, ...], dict[str, float]]
"""Of one metric, by labels: each by bucket, "" where there are none."""


def read(session: Session) -> dict[str, Sums]:
    """Return all sums by metric."""
    found: dict[str, Sums] = defaultdict(lambda: defaultdict(dict))
    for row in session.scalars(select(Tally)):
        found[row.name][tuple(json.loads(row.labels))][row.bucket] = row.value
    return found


def _key(what: Count, labels: Iterable[str], bucket: str = "") -> _Key:
    values = list(labels)
    assert len(values) == len(what.labels), what.name
    return what.name, json.dumps(values), bucket


def _merge(session: Session, values: dict[_Key, float], *, newest: bool) -> None:
    if not values:
        return
    dialect: Any = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    # In one order, so that no two processes wait for each other's rows.
    rows = [
        {"name": name, "labels": labels, "bucket": bucket, "value": value}
        for (name, labels, bucket), value in sorted(values.items())
    ]
    statement = dialect.insert(Tally).values(rows)
    given = statement.excluded.value
    value = case((given > Tally.value, given), else_=Tally.value) if newest else Tally.value + given
    session.execute(
        statement.on_conflict_do_update(index_elements=["name", "labels", "bucket"], set_={"value": value})
    )
