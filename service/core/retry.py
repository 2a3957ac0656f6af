"""Another try of what failed or was parked: a person asks for it, or an object arrives again."""

from sqlalchemy.orm import Session

from service.core.circuits import try_now
from service.core.confirmation import PATIENCE
from service.core.ledger import now, record_event
from service.core.refusals import forget
from service.core.rules import Decision
from service.core.settlement import deliveries_of, newest_revision, settle, unconfirmed
from service.core.states import ConfirmationState, DeliveryState, InstanceState, RevisionState, StudyState
from service.core.tables import Instance, Study

NOTHING_TO_TRY = "nothing of it failed or is parked: there is nothing to try again"


def retry_study(
    session: Session, study: Study, *, as_built: bool = False, by: str = "a person"
) -> str | None:
    """Give everything of a study that failed or was parked another chance, at once.

    `as_built`: what is parked goes out under the patient and order that it names, whatever its destination
    says of the study. `by` is who asked.

    Returns
    -------
    str or None
        Why there is no other try: `NOTHING_TO_TRY`, or the files of the study are gone. Sent again, it is
        analysed anew from then on.
    """
    moment = now()
    session.refresh(study, with_for_update=True)
    if study.expired_at is not None:
        gone = f"its files were removed on {study.expired_at:%Y-%m-%d}"
        study.wanted = study.wanted or f"{gone} and {by} asked for another try: send the study again"
        record_event(session, study, "retried", f"{by} asked for another try, but {gone}")
        settle(session, study)
        return f"{gone}: send the study again, it is analysed anew then"
    tried = False
    for instance in study.instances:
        unread = instance.state == InstanceState.QUARANTINED and instance.pixel_digest is None
        if instance.state == InstanceState.FAILED or unread:
            retry_instance(study, instance)
            tried = True
        elif _left_out(instance):
            # By the rules of now; the report is built anew only when they take it.
            instance.state, instance.reason, instance.decision = InstanceState.RECEIVED, None, None
            instance.attempts, instance.ready_at = 0, moment
            study.due_at, tried = moment, True
    newest = newest_revision(session, study)
    deliveries = deliveries_of(session, study.id)
    destinations = {delivery.destination for delivery in deliveries}
    tried |= forget(session, destinations)
    tried |= try_now(session, destinations)
    for delivery in deliveries:
        if delivery.state in (DeliveryState.PENDING, DeliveryState.PARKED) and study.state != StudyState.HELD:
            delivery.as_built = delivery.as_built or (as_built and delivery.state == DeliveryState.PARKED)
            delivery.state, delivery.ready_at = DeliveryState.PENDING, moment
            delivery.failures = delivery.losses = 0
            tried = True
    for confirmation in unconfirmed(session, study.id):
        confirmation.state, confirmation.attempts = ConfirmationState.WAITING, 0
        confirmation.ready_at, confirmation.until = moment, moment + PATIENCE
        confirmation.transaction_uid = None
        tried = True
    unbuilt = newest is not None and newest.state == RevisionState.FAILED
    if unbuilt or study.state in (StudyState.HELD, StudyState.FAILED):
        study.due_at, tried = moment, True  # concluded again with what is there now
    if not tried:
        return NOTHING_TO_TRY
    if study.due_at is not None and study.state != StudyState.HELD:
        study.state, study.reason = StudyState.RECEIVING, None
    settle(session, study)
    how = ", and to send what is parked as it is" if as_built else ""
    record_event(session, study, "retried", f"{by} asked for another try{how}")
    return None


def _left_out(instance: Instance) -> bool:
    """Return whether nothing but a rule of the site keeps an image from being analysed."""
    decision = Decision.of(instance.decision)
    return instance.state == InstanceState.NOT_ANALYSED and instance.reason == decision.reason


def retry_instance(study: Study, instance: Instance) -> None:
    """Let an object be decoded again, and its study be concluded anew."""
    instance.state = InstanceState.RECEIVED
    instance.reason, instance.attempts, instance.ready_at = None, 0, now()
    study.due_at = now()
    study.build += 1  # a report that named this image as failed has to be built anew
