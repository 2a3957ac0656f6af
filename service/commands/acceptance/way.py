"""The synthetic film's way: to each destination, from there to us, through the gateway, and read back."""

import io
import time
from collections.abc import Iterator
from contextlib import closing

from pydicom import Dataset, dcmread
from pydicom.uid import UID
from sqlalchemy import select
from sqlalchemy.orm import joinedload

from model.prediction import Prediction
from service.api import schemas
from service.api import status as queries
from service.commands.acceptance.archive import Archive
from service.commands.send import gateway_of
from service.core.checks import Check
from service.core.destination import Destination
from service.core.errors import DeliveryError
from service.core.ledger import Ledger
from service.core.settings import Settings
from service.core.spool import Spool
from service.core.states import DELIVERED_STATES, DeliveryState, StudyState
from service.core.tables import Outbox, Report, Study
from worker.dicomweb import DICOMwebPeer
from worker.peer import Answer, Sendable, answer_to, reason_for
from worker.scu import DimsePeer

_REPORT_SECONDS = 120.0
_CONFIRM_SECONDS = 60.0
_TICK_SECONDS = 0.2
_SAME_PROBABILITY = 0.01


def store(settings: Settings, destination: Destination, film: Sendable) -> Check:
    """Send the film itself to a destination, so that the report has something to stand beside."""
    name = f"{destination.name}: C-STORE" if not destination.is_dicomweb else f"{destination.name}: STOW-RS"
    began = time.monotonic()
    try:
        if destination.is_dicomweb:
            with DICOMwebPeer(destination) as web:
                sent = web.store(film)
        else:
            with DimsePeer(destination, settings.ae_title, [film], asks=False) as peer:
                sent = peer.store(film)
    except DeliveryError as fault:
        return Check(name, False, str(fault), "See the runbook on destinations")
    if sent.status is None or answer_to(sent.status) is not Answer.ACCEPTED:
        why = str(sent.fault or reason_for(sent.status or 0))
        return Check(name, False, why, "Let the PACS take DX images from this AE title")
    return Check(name, True, f"the film is stored, in {time.monotonic() - began:.1f} s")


def bring_back(settings: Settings, destination: Destination, study_instance_uid: str) -> Check:
    """Have a destination send the film to our listener, as it will send patients' films."""
    name = f"{destination.name}: C-STORE to us"
    port = settings.dimse_port or settings.dimse_tls_port
    mend = (
        f"Let the PACS know AE {settings.ae_title} at this machine's address, port {port}, and allow its AE "
        "title here; then send it by hand once"
    )
    try:
        why = Archive(destination, settings.ae_title).move(study_instance_uid)
    except DeliveryError as fault:
        why = str(fault)
    # Whoever cannot be asked to send may still be able to: a router is no archive.
    if why is not None:
        return Check(name, True, f"not shown by C-MOVE: {why}", mend, warns=True)
    return Check(name, True, "the film came back from there by C-MOVE")


def push(settings: Settings, film: Sendable, to: str | None) -> Check:
    """Send the film to our own listener."""
    name, listener = "listener", gateway_of(settings, to)
    mend = (
        f"Is the gateway up at {listener.host}:{listener.port} (--to names another place)? "
        f"May AE {settings.ae_title} call from here? Allow it while this is tried"
    )
    try:
        with DimsePeer(listener, settings.ae_title, [film], asks=False) as peer:
            sent = peer.store(film)
    except DeliveryError as fault:
        return Check(name, False, str(fault), mend)
    if sent.status != 0x0000:
        return Check(name, False, str(sent.fault or reason_for(sent.status or 0)), mend)
    return Check(name, True, f"the film is stored by {listener.ae_title} at {listener.host}:{listener.port}")


def report(settings: Settings, study_instance_uid: str, expected: Prediction | None) -> Iterator[Check]:
    """Wait until the study is reported and sent; say what was found, and what became of its reports."""
    began = time.monotonic()
    with closing(Ledger(settings.sqlalchemy_url)) as ledger:
        study = _waited(ledger, settings, study_instance_uid)
        seconds = time.monotonic() - began
        if study is None:
            yield Check(
                "analysis", False, "the study did not reach the ledger", "See the check of the listener"
            )
            return
        yield _analysis(study, expected, seconds)
        for destination in settings.destinations:
            sent = [item for item in study.deliveries if item.destination == destination.name]
            yield _delivered(destination, sent)
            yield from _read_back(ledger, settings, destination, study_instance_uid)


def _waited(ledger: Ledger, settings: Settings, study_instance_uid: str) -> schemas.StudyOut | None:
    """Return the study when nothing more is going to happen to it, or as it is when that takes too long."""
    waits = settings.study_quiet_seconds + _REPORT_SECONDS
    deadline, delivered_at = time.monotonic() + waits, None
    while True:
        with ledger.read() as session:
            study = queries.study(session, study_instance_uid)
        state = study.state if study else None
        if state in (StudyState.CONFIRMED, StudyState.FAILED, StudyState.HELD):
            return study
        open_ = [item for item in study.deliveries if item.state == DeliveryState.PENDING] if study else []
        if study and state == StudyState.REPORTED and not open_:
            return study
        if state == StudyState.DELIVERED:
            delivered_at = delivered_at or time.monotonic()
            deadline = delivered_at + _CONFIRM_SECONDS
        if time.monotonic() > deadline:
            return study
        time.sleep(_TICK_SECONDS)


def _analysis(study: schemas.StudyOut, expected: Prediction | None, seconds: float) -> Check:
    mend = "Look at `hilum status` and at the logs of the workers"
    result = study.result
    if result is None:
        why = study.reason or study.attention or "is every worker up?"
        return Check(
            "analysis", False, f"no result after {seconds:.0f} s; the study is {study.state}: {why}", mend
        )
    number = "" if result.probability is None else f" ({100 * result.probability:.1f} %)"
    seen = (
        f"{result.finding.replace('_', ' ')}{number}, {seconds:.0f} s after the film, the quiet time included"
    )
    if expected is None or expected.probability is None or result.probability is None:
        said = f"{seen}{f'; {result.reason}' if result.reason else ''}"
        return Check("analysis", expected is None or expected.finding == result.finding, said, mend)
    apart = abs(expected.probability - result.probability)
    seen += f"; computed here with the same film: {100 * expected.probability:.1f} %"
    return Check(
        "analysis", apart <= _SAME_PROBABILITY, seen, "Do the workers serve the same weights as this command?"
    )


def _delivered(destination: Destination, sent: list[schemas.DeliveryOut]) -> Check:
    name = f"{destination.name}: reports"
    if not sent:
        return Check(name, True, "none is meant for it", "Is that what its settings should say?", warns=True)
    seen = ", ".join(f"{item.kind} {item.state}" for item in sent if item.state != DeliveryState.WITHDRAWN)
    open_ = [item for item in sent if item.state not in DELIVERED_STATES]
    faults = [
        item.last_error or f"waits for {item.waits_for}"
        for item in open_
        if item.last_error or item.waits_for
    ]
    right = all(item.state in (*DELIVERED_STATES, DeliveryState.WITHDRAWN) for item in sent)
    proven = destination.confirm == "none" or not any(item.state == DeliveryState.DELIVERED for item in sent)
    if not right:
        return Check(name, False, f"{seen}: {'; '.join(faults)}", "See the runbook on deliveries")
    return Check(
        name, True, seen, "It has not confirmed them yet: see `confirm` in the README", warns=not proven
    )


def _read_back(
    ledger: Ledger, settings: Settings, destination: Destination, study_instance_uid: str
) -> Iterator[Check]:
    """Get from a destination what it accepted, and hold it against what was sent."""
    with ledger.read() as session:
        rows = session.scalars(
            select(Outbox)
            .join(Outbox.report)
            .join(Report.study)
            .where(
                Study.study_instance_uid == study_instance_uid,
                Outbox.destination == destination.name,
                Outbox.state.in_(DELIVERED_STATES),
            )
            .options(joinedload(Outbox.report))
            .order_by(Report.id)
        ).all()
    for row in rows:
        made = row.report
        name = f"{destination.name}: {UID(made.sop_class_uid).name} read back"
        uids = (study_instance_uid, made.series_instance_uid, made.sop_instance_uid)
        try:
            there = _instance(settings, destination, made, uids)
        except DeliveryError as fault:
            yield _found(settings, destination, name, uids, str(fault))
            continue
        if there is None:
            yield _found(settings, destination, name, uids, "it gives no instance back")
            continue
        yield _compared(name, dcmread(Spool(settings.data_dir).absolute(made.path)), there)


def _instance(
    settings: Settings, destination: Destination, made: Report, uids: tuple[str, str, str]
) -> Dataset | None:
    if not destination.is_dicomweb:
        return Archive(destination, settings.ae_title).get(made.sop_class_uid, uids, made.transfer_syntax_uid)
    with DICOMwebPeer(destination) as web:
        content = web.retrieve(*uids)
    return dcmread(io.BytesIO(content), force=True) if content else None


def _found(
    settings: Settings, destination: Destination, name: str, uids: tuple[str, str, str], why: str
) -> Check:
    """Ask for the instance where it cannot be had."""
    try:
        if destination.is_dicomweb:
            with DICOMwebPeer(destination) as web:
                holds = web.holds(*uids)
        else:
            with DimsePeer(destination, settings.ae_title) as peer:
                holds = peer.holds(*uids)
    except DeliveryError:
        holds = None
    if holds:
        return Check(name, True, f"found by query, not compared ({why})")
    mend = "Look whether the study shows it in the viewer"
    if holds is None:
        return Check(name, True, f"cannot be asked for ({why})", mend, warns=True)
    return Check(name, False, "it was accepted and is not there", mend)


def _compared(name: str, sent: Dataset, there: Dataset) -> Check:
    """Compare what was sent with what is there, without the file's meta information."""
    keywords = {item.keyword or str(item.tag) for data in (sent, there) for item in data}
    other = sorted(word for word in keywords if sent.get(word) != there.get(word))
    if other:
        mend = "A PACS may file a report under the patient it knows; nothing else should be other"
        return Check(name, True, f"the same but for {', '.join(other)}", mend, warns=True)
    return Check(name, True, "value by value what was sent")
