"""The same SOP Instance UID again: which arrival stands for the image.

Same pixels, another header (a merge, an accession fix, a coercion): the newest header stands, and what the
model said of the pixels stays said. Other pixels: the later arrival is quarantined. The rule looks at all
arrivals at once, so the order in which they were decoded does not matter.
"""

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from service.core.ledger import record_event
from service.core.states import REPORTABLE_INSTANCES, AnalysisState, InstanceState
from service.core.tables import Analysis, Instance, Study

UNDECODABLE = "the pixel data cannot be decoded"
_OTHER_PIXELS = (
    "an image came again under its SOP Instance UID with other pixels; the later one is quarantined"
)


def settle_copies(session: Session, study: Study, sop_instance_uid: str) -> None:
    """Let exactly one arrival of an image stand; the study's row is locked by the caller.

    Arrivals that still wait for decoding take no part yet: they call this again when they are decoded.
    """
    session.flush()
    copies = session.scalars(
        select(Instance)
        .where(
            Instance.study_id == study.id,
            Instance.sop_instance_uid == sop_instance_uid,
            Instance.state.in_((InstanceState.DECODED, *REPORTABLE_INSTANCES)),
        )
        .order_by(Instance.id)
        .with_for_update()
    ).all()
    first = _first_with_pixels(session, study, sop_instance_uid)
    standing = []
    for copy in copies:
        reason = _quarantine_reason(copy, first)
        if reason is None:
            standing.append(copy)
            continue
        copy.state, copy.reason = InstanceState.QUARANTINED, reason
        drop_pending(session, copy)
        record_event(session, study, "quarantined", reason)
    for earlier in standing[:-1]:
        _supersede(session, earlier, standing[-1])
        study.header_revision += 1
        record_event(
            session, study, "header_changed", "an image came again with the same pixels and another header"
        )
    session.flush()


def _quarantine_reason(copy: Instance, first: Instance | None) -> str | None:
    """Return why an arrival may not stand beside the pixels that came first, or None."""
    if first is None or copy.id <= first.id:
        return None
    if copy.pixel_digest is not None:
        return _OTHER_PIXELS if copy.pixel_digest != first.pixel_digest else None
    unread = copy.state == InstanceState.FAILED or (copy.reason or "").startswith(UNDECODABLE)
    return (
        f"an image came again and could not be compared ({copy.reason}); it is quarantined"
        if unread
        else None
    )


def _first_with_pixels(session: Session, study: Study, sop_instance_uid: str) -> Instance | None:
    """Return the arrival whose pixels came first under this UID; the superseded count too."""
    return session.scalars(
        select(Instance)
        .where(
            Instance.study_id == study.id,
            Instance.sop_instance_uid == sop_instance_uid,
            Instance.pixel_digest.is_not(None),
        )
        .order_by(Instance.id)
        .limit(1)
    ).first()


def _supersede(session: Session, earlier: Instance, standing: Instance) -> None:
    """Let `standing` take over what was said of the same pixels."""
    said = session.scalars(
        select(Analysis).where(Analysis.instance_id == earlier.id, Analysis.state == AnalysisState.DONE)
    ).all()
    # What retention took of the earlier one is made again: a report shows where the network looked.
    kept = earlier.spool_path is not None
    if kept and earlier.state == InstanceState.ANALYSED and standing.state == InstanceState.DECODED and said:
        drop_pending(session, standing)
        session.add_all(_copied(analysis, standing) for analysis in said)
        standing.state = InstanceState.ANALYSED
    drop_pending(session, earlier)
    earlier.state = InstanceState.SUPERSEDED


def drop_pending(session: Session, instance: Instance) -> None:
    """Take back an inference that nobody asks for any more; one under way finds its row gone."""
    session.flush()
    session.execute(
        delete(Analysis).where(Analysis.instance_id == instance.id, Analysis.state == AnalysisState.PENDING)
    )


def _copied(analysis: Analysis, instance: Instance) -> Analysis:
    return Analysis(
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
        overlay_path=analysis.overlay_path,
    )
