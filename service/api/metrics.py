"""Prometheus metrics, computed from the ledger at each scrape: every replica says the same.

What is there now is asked of indexes that hold the unfinished alone, what has happened is the sums of
`service.core.tally`; so a scrape costs the same however many studies the ledger holds. No label names a
patient or a study.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from importlib.metadata import version
from time import monotonic

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.core import certificates, models, tally
from service.core.backfill import in_flight
from service.core.circuits import away
from service.core.drift import DISTRIBUTIONS, REFERENCE_DAYS, WATCHED_DAYS, Change, drift
from service.core.heartbeat import ROLES, silent_roles
from service.core.leases import STAGES, count_ready, oldest_ready_seconds
from service.core.ledger import Ledger, now
from service.core.live import Live
from service.core.quality import Coverage, coverage
from service.core.results import Finding
from service.core.settings import Settings
from service.core.states import BackfillState, DeliveryState, FetchState, NoticeState, StudyState
from service.core.tables import (
    Backfill,
    BackfillStudy,
    Heartbeat,
    Installation,
    Notice,
    Outbox,
    Report,
    Study,
)
from service.core.working_hours import worked

# Each of these goes on to another one, or waits for a person.
_UNFINISHED = (StudyState.RECEIVING, StudyState.ANALYSING)
_STATES = (*_UNFINISHED, StudyState.FAILED, StudyState.HELD)
_DRIFT_SECONDS = 900
_WAITING = (DeliveryState.PENDING, DeliveryState.PARKED)


class LedgerCollector(Collector):
    """Asks the ledger when Prometheus asks."""

    def __init__(self, live: Live, ledger: Ledger) -> None:
        self._live = live
        self._ledger = ledger
        self._drift = Drift()

    def collect(self) -> Iterable[Metric]:
        settings = self._live.settings
        with self._ledger.read() as session:
            for part in _PARTS:
                yield from part(session, settings)
            yield from self._drift.metrics(session)
            sums = tally.read(session)
            for what in tally.COUNTS:
                yield _counted(what, sums[what.name], _from_the_start(what, settings))
        yield _gauge(
            "hilum_role_up",
            "1 when a process of the role is alive and well",
            ("role",),
            _up(ROLES, silent_roles(self._ledger)),
        )
        yield from _disk(settings)
        yield from _certificates(settings)
        info = InfoMetricFamily("hilum_build", "The version that answers")
        info.add_metric([], {"version": version("hilum")})
        yield info


class Drift:
    """What has drifted in the last week, counted anew when what is known of it is `_DRIFT_SECONDS` old."""

    def __init__(self) -> None:
        self._found: Sequence[Change] = ()
        self._coverage: Sequence[Coverage] = ()
        self._at: float | None = None

    def metrics(self, session: Session) -> Iterator[Metric]:
        """Yield drift and its alerts by what is watched."""
        if self._at is None or monotonic() - self._at > _DRIFT_SECONDS:
            end = now()
            since = end - timedelta(days=WATCHED_DAYS)
            self._found = drift(session, since, end, since - timedelta(days=REFERENCE_DAYS), since)
            self._coverage = coverage(session, since, end)
            self._at = monotonic()
        text = "1 when the last week differs from the four before it, by what is watched"
        alerts = (([change.name], float(change.is_alert)) for change in self._found)
        yield _gauge("hilum_drift_alert", text, ("watched",), alerts)
        distributions = [change for change in self._found if change.name in DISTRIBUTIONS]
        text = "Population stability index of the last week against the four before it, 0 when empty"
        shifts = (([item.name], item.psi or 0.0) for item in distributions)
        yield _gauge("hilum_drift_psi", text, ("watched",), shifts)
        text = "Kolmogorov-Smirnov distance of the last week from the four before it, 0 when empty"
        distances = (([item.name], item.ks or 0.0) for item in distributions)
        yield _gauge("hilum_drift_ks", text, ("watched",), distances)
        text = "Share of the last week's studies outside of the range that the model was validated for"
        shares = (
            ([item.attribute], item.outside / (item.studies or 1))
            for item in self._coverage
            if item.validated
        )
        yield _gauge("hilum_outside_validated_range", text, ("attribute",), shares)


def registry(live: Live, ledger: Ledger) -> CollectorRegistry:
    """Return a registry with the ledger's collector alone."""
    made = CollectorRegistry(auto_describe=False)
    made.register(LedgerCollector(live, ledger))
    return made


def _gauge(
    name: str, text: str, labels: Sequence[str], values: Iterable[tuple[Sequence[str], float]]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=labels)
    for label_values, value in values:
        family.add_metric(label_values, value)
    return family


def _age(moment: datetime | None) -> float:
    return max(0.0, (now() - moment).total_seconds()) if moment else 0.0


def _up(names: Iterable[str], silent: Iterable[str]) -> Iterator[tuple[list[str], float]]:
    return (([name], 0.0 if name in silent else 1.0) for name in names)


def _studies(session: Session, _settings: Settings) -> Iterator[Metric]:
    counted = (
        select(Study.state, func.count())
        .where(Study.state.in_(_STATES), Study.backfill_id.is_(None))
        .group_by(Study.state)
    )
    found = dict(session.execute(counted).all())
    text = "Studies that are not reported yet, failed or are held, by state"
    yield _gauge("hilum_studies", text, ("state",), (([state], found.get(state, 0)) for state in _STATES))
    oldest = session.scalar(
        select(func.min(Study.received_at)).where(Study.state.in_(_UNFINISHED), Study.backfill_id.is_(None))
    )
    text = "Age of the oldest study that is not reported yet, 0 without any"
    yield _gauge("hilum_oldest_unfinished_seconds", text, (), [((), _age(oldest))])
    asks = Study.attention.is_not(None), Study.backfill_id.is_(None)
    asking = session.scalar(select(func.count()).where(*asks)) or 0
    yield _gauge("hilum_attention", "Studies that ask for a person's attention", (), [((), asking)])


def _queues(session: Session, _settings: Settings) -> Iterator[Metric]:
    kinds: tuple[tuple[str, str, Callable[..., float]], ...] = (
        ("hilum_ready", "Work that could start now, by queue", count_ready),
        ("hilum_oldest_ready_seconds", "Age of the oldest of it, by queue", oldest_ready_seconds),
    )
    for name, text, ask in kinds:
        yield _gauge(name, text, ("queue",), (([stage.name], ask(session, stage)) for stage in STAGES))


def _deliveries(session: Session, settings: Settings) -> Iterator[Metric]:
    rows = session.execute(
        select(Outbox.destination, Outbox.state, func.count(), func.min(Report.created_at))
        .join(Report)
        .where(Outbox.state.in_(_WAITING))
        .group_by(Outbox.destination, Outbox.state)
    ).all()
    names = sorted({*(item.name for item in settings.destinations), *(row[0] for row in rows)})
    counts = {(name, state): 0 for name in names for state in _WAITING}
    ages = dict.fromkeys(names, 0.0)
    for name, state, count, oldest in rows:
        counts[name, DeliveryState(state)] = count
        if state == DeliveryState.PENDING:
            ages[name] = _age(oldest)
    text = "Reports that wait for a destination, or for a person (parked)"
    yield _gauge("hilum_deliveries", text, ("destination", "state"), counts.items())
    text = "Age of the oldest report that waits for a destination, 0 without any"
    values = (([name], age) for name, age in ages.items())
    yield _gauge("hilum_oldest_undelivered_seconds", text, ("destination",), values)


def _destinations(session: Session, settings: Settings) -> Iterator[Metric]:
    since = {circuit.destination: circuit.since for circuit in away(session)}
    names = [item.name for item in settings.destinations]
    text = "0 when a destination could not be reached when it was tried last"
    yield _gauge("hilum_destination_up", text, ("destination",), _up(names, since))
    ages = (([name], _age(since.get(name))) for name in names)
    text = "How long a destination could not be reached, 0 when it could"
    yield _gauge("hilum_destination_away_seconds", text, ("destination",), ages)


def _silence(session: Session, settings: Settings) -> Iterator[Metric]:
    newest = session.scalar(select(func.max(Study.received_at)).where(Study.backfill_id.is_(None)))
    begun = newest or session.scalar(select(Installation.created_at))
    moment = now()
    silent = worked(settings.hours, begun, moment, settings.zone).total_seconds() if begun else 0.0
    text = "When the newest study came, 0 before the first"
    value = newest.timestamp() if newest else 0.0
    yield _gauge("hilum_last_study_timestamp_seconds", text, (), [((), value)])
    text = "Working time (HILUM_WORKING_HOURS) since then"
    yield _gauge("hilum_silence_working_seconds", text, (), [((), silent)])


def _roles(session: Session, _settings: Settings) -> Iterator[Metric]:
    newest = select(Heartbeat.role, func.max(Heartbeat.at)).group_by(Heartbeat.role)
    seen: dict[str, datetime] = dict(session.execute(newest).all())
    moments = (([role], seen[role].timestamp() if role in seen else 0.0) for role in ROLES)
    text = "When a process of the role gave its last sign of life, 0 when none did within an hour"
    yield _gauge("hilum_role_last_seen_timestamp_seconds", text, ("role",), moments)


def _notices(session: Session, settings: Settings) -> Iterator[Metric]:
    waiting = (
        select(Notice.channel, func.count())
        .where(Notice.state == NoticeState.WAITING)
        .group_by(Notice.channel)
    )
    found = dict(session.execute(waiting).all())
    values = (([item.name], found.get(item.name, 0)) for item in settings.notices)
    yield _gauge("hilum_notices_waiting", "Notices that are not sent yet, by channel", ("channel",), values)


def _models(session: Session, _settings: Settings) -> Iterator[Metric]:
    info = InfoMetricFamily("hilum_model", "Models that have looked at films, and whether they report")
    for model in models.every(session):
        labels = {"name": model.name, "version": model.version, "sha256": model.sha256}
        info.add_metric([], {**labels, "role": model.role or ""})
    yield info


def _backfills(session: Session, _settings: Settings) -> Iterator[Metric]:
    """Yield how far back-fills are that still run: nobody fetches for the others."""
    rows = session.execute(
        select(BackfillStudy.state, func.count())
        .join(Backfill, Backfill.id == BackfillStudy.backfill_id)
        .where(Backfill.state.in_((BackfillState.RUNNING, BackfillState.PAUSED)))
        .group_by(BackfillStudy.state)
    ).all()
    found = dict(iter(rows))
    text = "Studies of back-fills that are not done, by what became of them on their way here"
    values = (([state], found.get(state, 0)) for state in FetchState)
    yield _gauge("hilum_backfill_studies", text, ("state",), values)
    text = "Studies that back-fills fetched and that have no result yet"
    yield _gauge("hilum_backfill_in_flight", text, (), [((), in_flight(session))])


_PARTS = (
    *(_studies, _queues, _deliveries, _destinations, _silence, _roles, _notices, _models),
    _backfills,
)


def _disk(settings: Settings) -> Iterator[Metric]:
    usage = shutil.disk_usage(settings.data_dir)
    for name, text, value in (
        ("hilum_disk_free_bytes", "Free space of the data folder", usage.free),
        ("hilum_disk_total_bytes", "Size of the data folder's volume", usage.total),
        (
            "hilum_disk_refuse_bytes",
            "HILUM_MIN_FREE_BYTES: with less, objects are refused",
            settings.min_free_bytes,
        ),
    ):
        yield _gauge(name, text, (), [((), value)])


def _certificates(settings: Settings) -> Iterator[Metric]:
    files = {"ours": settings.tls_files.certificate_file, "peers_ca": settings.tls_files.ca_file}
    for item in settings.destinations:
        if item.tls is not None:
            files[f"{item.name} ca"] = item.tls.ca_file
            files[f"{item.name} shown"] = item.tls.certificate_file
    ends = []
    for use, path in files.items():
        try:
            found = [item.ends.timestamp() for item in certificates.in_file(path)] if path else []
        except (OSError, ValueError):
            found = [0.0]  # what can't be read has ended
        ends += [([use], min(found))] if found else []
    text = "When the first certificate of a file ends, by its use; 0 when it can't be read"
    yield _gauge("hilum_certificate_end_timestamp_seconds", text, ("use",), ends)


def _from_the_start(what: tally.Count, settings: Settings) -> Sequence[tuple[str, ...]]:
    """Return labels that are shown from 0 on, so that the first of its kind is an increase."""
    destinations = [item.name for item in settings.destinations]
    if what is tally.STAGE_SECONDS:
        return [(stage,) for stage in tally.STAGES]
    if what is tally.STUDY_SECONDS:
        return [(until,) for until in tally.UNTIL]
    if what is tally.RESULTS:
        return [(finding,) for finding in Finding]
    if what is tally.DELIVERIES:
        return [(name,) for name in destinations]
    if what is tally.DELIVERY_FAILURES:
        return [(name, "away") for name in destinations]
    if what is tally.ASSOCIATIONS:
        return [(peer.ae_title, "accepted") for peer in settings.peers] + [(tally.OTHER, "rejected")]
    if what is tally.OBJECTS:
        return [(peer.ae_title, "0000") for peer in settings.peers]
    if what is tally.NOTICES:
        return [
            (item.name, outcome) for item in settings.notices for outcome in ("sent", "failed", "given_up")
        ]
    return []


def _counted(
    what: tally.Count,
    sums: tally.Sums,
    from_the_start: Iterable[tuple[str, ...]],
) -> Metric:
    for labels in from_the_start:
        sums.setdefault(labels, {})
    if what.buckets:
        histogram = HistogramMetricFamily(what.name, what.text, labels=what.labels)
        for labels, values in sorted(sums.items()):
            total, buckets = 0.0, []
            for bound in (*map(str, what.buckets), "+Inf"):
                total += values.get(bound, 0.0)
                buckets.append((bound, total))
            histogram.add_metric(labels, buckets, values.get("sum", 0.0))
        return histogram
    kind = GaugeMetricFamily if what.latest else CounterMetricFamily
    family = kind(what.name, what.text, labels=what.labels)
    for labels, values in sorted(sums.items()):
        family.add_metric(labels, values.get("", 0.0))
    return family
