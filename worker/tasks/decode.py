"""Queue `decode`: a received object becomes a film, or a reason why it is not analysed."""

import numpy as np
import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.core.errors import LeaseLost
from service.core.leases import DECODE, Lease, backoff_seconds, claim, held, release, renewed
from service.core.ledger import now, record_event
from service.core.states import REPORTABLE_INSTANCES, AnalysisState, InstanceState
from service.core.tables import Analysis, Instance, Study
from worker.context import Context
from worker.prepare import Prepared, prepare

_BATCH = 4
_log = structlog.get_logger()


def run(context: Context) -> None:
    """Lease the oldest objects that wait, and decode them."""
    model_id = context.model_id
    leases = claim(context.ledger, DECODE, _BATCH)
    with renewed(context.ledger, leases):
        for lease in leases:
            try:
                _decode_one(context, lease, model_id)
            except LeaseLost as fault:
                _log.warning("decode.lease_lost", reason=str(fault))
            except Exception as fault:
                _log.exception("decode.failed", instance=lease.row_id)
                release(context.ledger, lease, f"{type(fault).__name__}: {fault}", backoff_seconds(1, 10))


def _decode_one(context: Context, lease: Lease, model_id: int) -> None:
    with context.ledger.read() as session:
        spool_path = session.get_one(Instance, lease.row_id).spool_path
    assert spool_path is not None, "only objects that were kept wait for decoding"
    prepared = prepare(
        context.spool.absolute(spool_path), context.settings.population, context.weights.population_age_years
    )
    film = prepared.film
    film_path = (
        context.spool.write("films", ".npy", lambda stream: np.save(stream, film.pixels)) if film else None
    )
    try:
        with context.ledger.write() as session:
            _record(session, model_id, held(session, lease), prepared, film_path)
    except BaseException:
        context.spool.remove(film_path)
        raise


def _record(
    session: Session, model_id: int, instance: Instance, prepared: Prepared, film_path: str | None
) -> None:
    study = session.get_one(Study, instance.study_id)
    instance.film_path, instance.flags = film_path, list(prepared.flags)
    instance.state = InstanceState.DECODED if prepared.film else InstanceState.NOT_ANALYSED
    instance.reason = prepared.reason
    instance.pixel_digest = prepared.film.pixel_digest if prepared.film else None
    for earlier in _same_object(session, instance):
        if earlier.pixel_digest and instance.pixel_digest and earlier.pixel_digest != instance.pixel_digest:
            instance.state = InstanceState.QUARANTINED
            instance.reason = study.attention = (
                "an image came again under its SOP Instance UID with other pixels; "
                "the later one is quarantined"
            )
            record_event(session, study, "quarantined", instance.reason)
            return
    for earlier in _same_object(session, instance):
        _supersede(session, study, earlier, instance)
    record_event(session, study, "decoded", instance.reason or "")
    if instance.state == InstanceState.DECODED:
        session.add(
            Analysis(
                instance_id=instance.id,
                model_id=model_id,
                state=AnalysisState.PENDING,
                ready_at=now(),
            )
        )


def _same_object(session: Session, instance: Instance) -> list[Instance]:
    """Return the earlier arrivals of the same SOP instance in this study that still count."""
    found = session.scalars(
        select(Instance).where(
            Instance.study_id == instance.study_id,
            Instance.sop_instance_uid == instance.sop_instance_uid,
            Instance.id < instance.id,
            Instance.state.in_((InstanceState.DECODED, *REPORTABLE_INSTANCES)),
        )
    )
    return list(found)


def _supersede(session: Session, study: Study, earlier: Instance, instance: Instance) -> None:
    """Let the newest header stand for the same pixels; what the model said of them stays said."""
    if earlier.state == InstanceState.ANALYSED and instance.state == InstanceState.DECODED:
        for analysis in session.scalars(select(Analysis).where(Analysis.instance_id == earlier.id)):
            session.add(
                Analysis(
                    instance_id=instance.id,
                    model_id=analysis.model_id,
                    state=analysis.state,
                    ready_at=analysis.ready_at,
                    finding=analysis.finding,
                    probability=analysis.probability,
                    threshold=analysis.threshold,
                    reason=analysis.reason,
                    pattern=analysis.pattern,
                    flags=analysis.flags,
                    gate_distance=analysis.gate_distance,
                    activation_path=analysis.activation_path,
                )
            )
        instance.state = InstanceState.ANALYSED
    earlier.state = InstanceState.SUPERSEDED
    study.header_revision += 1
    record_event(
        session, study, "header_changed", "an image came again with the same pixels and another header"
    )
