"""Delivery to a PACS that is away, slow, forgetful or of another mind: faults 17 to 21."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.uid import SecondaryCaptureImageStorage, generate_uid
from sqlalchemy import select, update

from service.core import circuits
from service.core.checks import examine
from service.core.confirmation import take_commitment
from service.core.destination import Destination
from service.core.errors import NotAccepted
from service.core.leases import DELIVER, count_ready, oldest_ready_seconds
from service.core.ledger import now
from service.core.retry import retry_study
from service.core.settings import load
from service.core.states import ConfirmationState, DeliveryState, StudyState
from service.core.tables import Circuit, Confirmation, Event, Outbox, Report, Study, Subject
from service.listener.scp import Listener
from tests import factories, pipeline
from tests.faults.pacs import Pacs
from tests.faults.site import SHORT
from tests.integration.test_delivery import reported, rows, study
from tests.ledgers import migrated
from tests.servers import Orthanc, StoreScp, eventually, free_port, storescu
from worker import association, scu
from worker.context import Context
from worker.tasks import confirm, deliver


@pytest.fixture(autouse=True)
def _time_to_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confirm, "LINGER_SECONDS", 5.0)


@pytest.fixture(params=["sqlite"])
def sites(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Context]]:
    """Open a worker's context that delivers to the given URLs, with a listener on the same ledger."""
    ledger = {} if request.param == "sqlite" else {"database_url": request.getfixturevalue("postgresql")}
    with ExitStack() as running:

        def site(*urls: str, listener_port: int = 0, **settings: Any) -> Context:
            given = {"data_dir": tmp_path / "data", "min_free_bytes": 0, **ledger, **settings}
            if urls:
                given["destinations"] = ",".join(
                    f"{name}={url}" for name, url in zip(_NAMES, urls, strict=False)
                )
            made = load(dimse_port=listener_port or free_port(), **given)
            migrated(made.sqlalchemy_url)
            context = Context.open(made)
            listener = Listener(made, context.spool, context.ledger, SHORT)
            listener.start()
            running.callback(listener.stop)
            return context

        yield site


_NAMES = ("PACS", "SECOND")
on_both_ledgers = pytest.mark.parametrize("sites", ["sqlite", "postgresql"], indirect=True)


def later(context: Context, **passed: float) -> None:
    """Let this much time pass for everything that waits."""
    back = timedelta(**passed)
    with context.ledger.write() as session:
        for row in session.scalars(select(Outbox)):
            row.ready_at -= back
        for confirmation in session.scalars(select(Confirmation)):
            confirmation.ready_at -= back
            confirmation.until -= back
        for circuit in session.scalars(select(Circuit)):
            circuit.open_until -= back


def confirmations(context: Context) -> list[Confirmation]:
    with context.ledger.read() as session:
        return list(session.scalars(select(Confirmation).order_by(Confirmation.id)))


def events(context: Context) -> list[str]:
    with context.ledger.read() as session:
        return [event.kind for event in session.scalars(select(Event).order_by(Event.id))]


def _delivered(context: Context) -> Study:
    deliver.run(context)
    return study(context)


# --- 17, 18: away, hanging ----------------------------------------------------------------------------------


@pytest.mark.fault(17)
def test_orthanc_that_was_away_gets_each_report_once(sites: Callable[..., Context], orthanc: Orthanc) -> None:
    context = sites(orthanc.destination)
    reported(context, count=3)
    orthanc.kill()
    for _ in range(3):
        deliver.run(context)
        later(context, minutes=6)
    assert [row.state for row in rows(context)] == ["pending"] * 3
    orthanc.restart()
    deliver.run(context)
    assert [row.state for row in rows(context)] == ["delivered"] * 3
    assert len(orthanc.stored()) == 3


@pytest.mark.fault(17)
def test_days_of_downtime_need_no_human(sites: Callable[..., Context]) -> None:
    pacs = Pacs()
    with pacs.serving():
        pass
    context = sites(pacs.url)
    reported(context, count=30)
    for _ in range(3 * 24):
        deliver.run(context)
        with context.ledger.read() as session:
            pause = session.get_one(Circuit, "PACS").open_until - now()
        assert pause < timedelta(seconds=1.25 * circuits.LONGEST_PAUSE_SECONDS)
        later(context, hours=1)
    assert study(context).attention is None
    with pacs.serving():
        for _ in range(3):
            deliver.run(context)
    assert {row.state for row in rows(context)} == {"confirmed"}
    assert len(pacs.received) == len(pacs.held) == 30


@pytest.mark.fault(17)
def test_a_pacs_that_is_away_is_tried_by_one_worker_at_a_time_and_holds_up_nobody(
    sites: Callable[..., Context],
) -> None:
    away, there = Pacs(), Pacs("OTHER")
    with away.serving():
        pass
    with there.serving():
        context = sites(away.url, there.url)
        reported(context, count=3)
        with context.ledger.write() as session:
            for row in list(session.scalars(select(Outbox))):
                session.add(
                    Outbox(
                        destination="SECOND",
                        report_id=row.report_id,
                        required=False,
                        state=DeliveryState.PENDING,
                        ready_at=now(),
                    )
                )
        for _ in range(3):
            deliver.run(context)
    assert len(there.held) == 3
    with context.ledger.write() as session:
        waiting = session.scalars(select(Outbox).where(Outbox.destination == "PACS")).all()
        circuit = session.get_one(Circuit, "PACS")
        assert circuit.failures == 1
        assert len(waiting) == 3
        assert not any(row.lease_until for row in waiting)
        assert count_ready(session, DELIVER) == oldest_ready_seconds(session, DELIVER) == 0
        assert "cannot be reached" in circuit.last_error
        circuit.open_until = now()
    name, leases = circuits.claim_for_one_destination(context.ledger, DELIVER, 1)
    assert (name, len(leases)) == ("PACS", 1)
    assert circuits.claim_for_one_destination(context.ledger, DELIVER, 1) == ("", [])


def test_a_destination_is_not_held_as_being_tried_when_nothing_waits_for_it(
    sites: Callable[..., Context],
) -> None:
    context = sites("dicom://PACS@127.0.0.1:9")
    circuits.failed(context.ledger, "PACS", "away")
    later(context, minutes=6)
    assert circuits.claim_for_one_destination(context.ledger, DELIVER, 1) == ("", [])
    reported(context)
    assert len(circuits.claim_for_one_destination(context.ledger, DELIVER, 1)[1]) == 1


@on_both_ledgers
@pytest.mark.fault(17)
def test_when_it_is_back_everything_goes_at_once(sites: Callable[..., Context]) -> None:
    pacs = Pacs()
    with pacs.serving():
        pass
    context = sites(pacs.url)
    reported(context, count=60)
    deliver.run(context)
    with pacs.serving():
        with context.ledger.write() as session:
            session.get_one(Circuit, "PACS").open_until = now()
            session.execute(update(Outbox).values(ready_at=now()))
        for _ in range(3):
            deliver.run(context)
    assert len(pacs.held) == 60
    with context.ledger.read() as session:
        assert session.get(Circuit, "PACS") is None


@on_both_ledgers
@pytest.mark.fault(17)
def test_a_person_who_retries_is_not_kept_waiting(sites: Callable[..., Context]) -> None:
    pacs = Pacs()
    with pacs.serving():
        pass
    context = sites(pacs.url)
    reported(context)
    for _ in range(9):
        deliver.run(context)
        later(context, minutes=6)
    with pacs.serving():
        seen = {check.name: check.seen for check in examine(context.settings)}["destination PACS"]
        assert "nothing could be sent since" in seen
        with context.ledger.write() as session:
            circuit = session.get(Circuit, "PACS")
            assert circuit is not None
            circuit.open_until = now() + timedelta(minutes=5)
            retry_study(session, session.scalars(select(Study)).one())
        deliver.run(context)
    assert len(pacs.held) == 1


@pytest.mark.fault(18)
def test_orthanc_that_hangs_before_it_accepts_is_tried_again(
    sites: Callable[..., Context], orthanc: Orthanc
) -> None:
    context = sites(orthanc.destination)
    reported(context)
    assert orthanc.process is not None
    orthanc.process.send_signal(signal.SIGSTOP)
    try:
        deliver.run(context)
    finally:
        orthanc.process.send_signal(signal.SIGCONT)
    assert rows(context)[0].state == "pending"
    later(context, minutes=6)
    deliver.run(context)
    assert rows(context)[0].state == "delivered"
    assert len(orthanc.stored()) == 1


@pytest.mark.fault(18)
def test_a_pacs_that_hangs_before_its_answer_gets_the_same_object_again(
    sites: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(association, "_DIMSE_SECONDS", 1)
    with Pacs(hangs=3.0).serving() as pacs:
        context = sites(pacs.url)
        reported(context)
        deliver.run(context)
        assert rows(context)[0].state == "pending"
        assert "did not answer in time" in str(rows(context)[0].last_error)
        pacs.hangs = 0.0
        later(context, minutes=6)
        deliver.run(context)
    assert rows(context)[0].state == "confirmed"
    assert len(pacs.received) == 2
    assert len(set(pacs.received)) == 1


@pytest.mark.fault(18)
def test_objects_that_break_the_association_keep_no_other_back(sites: Callable[..., Context]) -> None:
    with Pacs().serving() as pacs:
        context = sites(pacs.url)
        reported(context, count=8)
        with context.ledger.read() as session:
            uids = session.scalars(select(Report.sop_instance_uid).order_by(Report.id)).all()
        pacs.breaks = set(uids[:6])
        for _ in range(12):
            deliver.run(context)
            later(context, minutes=7)
    assert set(pacs.held) == set(uids[6:])
    assert [row.state for row in rows(context)] == ["pending"] * 6 + ["confirmed"] * 2


@pytest.mark.fault(19)
def test_tries_without_an_answer_do_not_count_against_the_five(sites: Callable[..., Context]) -> None:
    with Pacs(statuses=[0x0110] * 3).serving() as pacs:
        context = sites(pacs.url)
        reported(context)

        def run(times: int) -> None:
            for _ in range(times):
                deliver.run(context)
                later(context, minutes=7)

        run(3)
        pacs.breaks = set(pacs.received)
        run(6)
        pacs.breaks, pacs.statuses = set(), [0x0110]
        run(1)
        assert (rows(context)[0].state, rows(context)[0].failures) == ("pending", 4)
        run(1)
    assert len(pacs.held) == 1


@pytest.mark.fault(20)
def test_dcmtk_that_takes_no_sr_parks_it_with_the_reason(sites: Callable[..., Context]) -> None:
    with StoreScp(SecondaryCaptureImageStorage) as storescp:
        context = sites(storescp.destination)
        reported(context)
        deliver.run(context)
    assert rows(context)[0].state == "parked"
    assert "does not accept this SOP class" in str(study(context).attention)


# --- confirmed: storage commitment --------------------------------------------------------------------------


def test_orthanc_commits_and_the_study_is_confirmed(sites: Callable[..., Context]) -> None:
    port = free_port()
    with Orthanc(DicomModalities={"hilum": ["HILUM", "127.0.0.1", port]}) as orthanc:
        # Nobody but ROUTER may send; the answer of a destination is let in all the same.
        context = sites(orthanc.destination, listener_port=port, calling_ae_titles="ROUTER")
        reported(context, count=2)
        deliver.run(context)
        eventually(lambda: study(context).state == StudyState.CONFIRMED)
    assert [row.state for row in rows(context)] == ["confirmed"] * 2
    assert all(row.confirmed_at for row in rows(context))
    assert "storage commitment" in _details(context, "confirmed")
    assert study(context).confirmed_at is not None


@on_both_ledgers
def test_what_orthanc_lost_is_sent_again(
    sites: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    with Orthanc(DicomModalities={"hilum": ["HILUM", "127.0.0.1", port]}) as orthanc:
        context = sites(orthanc.destination, listener_port=port)
        reported(context, count=2)
        with monkeypatch.context() as patch:
            patch.setattr(confirm, "run", lambda _: None)
            deliver.run(context)
        first = orthanc.stored()[0]
        orthanc.lose(first)
        confirm.run(context)
        eventually(lambda: "missing" in events(context))
        eventually(lambda: _delivered(context).state == StudyState.CONFIRMED)
        assert len(orthanc.stored()) == 2
    assert [row.losses for row in rows(context)] in ([0, 1], [1, 0])


def test_a_commitment_is_answered_over_the_same_association(sites: Callable[..., Context]) -> None:
    with Pacs(commits="at once").serving() as pacs:
        context = sites(pacs.url)
        reported(context)
        deliver.run(context)
    assert study(context).state == StudyState.CONFIRMED
    assert pacs.associations == 2


@pytest.mark.parametrize("role", [True, False], ids=["with role selection", "without"])
def test_a_commitment_is_answered_days_later_at_another_listener(
    sites: Callable[..., Context], monkeypatch: pytest.MonkeyPatch, role: bool
) -> None:
    monkeypatch.setattr(confirm, "LINGER_SECONDS", 0.0)
    with Pacs(commits="later", queries=False).serving() as pacs:
        context = sites(pacs.url, calling_ae_titles="ROUTER")
        reported(context)
        deliver.run(context)
        assert study(context).state == StudyState.DELIVERED
        for _ in range(4):
            later(context, hours=12)
            deliver.run(context)
        assert len(pacs.requests) == 1
        assert study(context).attention is None
        another = sites(calling_ae_titles="ROUTER", destinations=f"PACS={pacs.url}")
        assert pacs.answer(pacs.requests[0], another.settings.dimse_port, role=role) == 0x0000
    assert study(context).state == StudyState.CONFIRMED


def test_nobody_else_answers_a_commitment_and_who_answers_may_not_send(
    sites: Callable[..., Context], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(confirm, "LINGER_SECONDS", 0.0)
    with Pacs(commits="later", queries=False).serving() as pacs:
        context = sites(pacs.url, "dicom://OTHER@127.0.0.1:9", calling_ae_titles="ROUTER")
        port = context.settings.dimse_port
        reported(context)
        deliver.run(context)
        request = pacs.requests[0]
        assert pacs.answer(request, port, "ROUTER") == -1
        assert pacs.answer(request, port, "STRANGER") == -1
        assert pacs.answer(request, port, "OTHER") == 0x0115
        assert study(context).state == StudyState.DELIVERED
        request.TransactionUID = generate_uid()
        assert pacs.answer(request, port) == 0x0115
    # A destination's title opens no door for images.
    film = factories.write(factories.phantom_chest(rows=64, columns=64), tmp_path / "film")
    assert storescu(film, "HILUM", port, calling_aet="PACS").returncode != 0
    assert storescu(film, "HILUM", port, calling_aet="ROUTER").returncode == 0


def test_we_offer_no_storage_commitment_ourselves(sites: Callable[..., Context]) -> None:
    context = sites("dicom://PACS@127.0.0.1:9")
    ourselves = Destination(name="us", url=f"dicom://HILUM@127.0.0.1:{context.settings.dimse_port}")
    with pytest.raises(NotAccepted):
        scu.DimsePeer(ourselves, "MODALITY")
    # Whose answers are expected gets no further.
    with scu.DimsePeer(ourselves, "PACS") as peer:
        assert peer.request_commitment("1.2.3", [(SecondaryCaptureImageStorage, "1.2.4")]) == 0x0211


def test_a_commitment_that_fails_for_a_reason_of_the_pacs_is_asked_again(
    sites: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confirm, "LINGER_SECONDS", 0.0)
    with Pacs(commits="later", queries=False).serving() as pacs:
        context = sites(pacs.url)
        reported(context)
        deliver.run(context)
        request = pacs.requests[0]
        item = request.ReferencedSOPSequence[0]
        uid, item.ReferencedSOPInstanceUID = item.ReferencedSOPInstanceUID, "1.2.3"
        request.FailedSOPSequence, request.ReferencedSOPSequence = [item], []
        item.ReferencedSOPInstanceUID, item.FailureReason = uid, 0x0213
        assert take_commitment(context.ledger, context.settings, "PACS", request) == 0x0000
        assert study(context).state == StudyState.DELIVERED
        later(context, minutes=10)
        deliver.run(context)
        assert len(pacs.requests) == 2
        assert pacs.requests[1].TransactionUID != request.TransactionUID


def test_a_commitment_that_the_site_asks_for_and_that_does_not_come_is_told(
    sites: Callable[..., Context], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(confirm, "LINGER_SECONDS", 0.0)
    with Pacs(commits="never").serving() as pacs:
        toml = tmp_path / "hilum.toml"
        toml.write_text(f'[destinations.PACS]\nurl = "{pacs.url}"\nconfirm = "commitment"\n')
        context = sites(config=toml)
        reported(context)
        for _ in range(6):
            deliver.run(context)
            later(context, minutes=20)
        assert "storage commitment is not answered" in str(study(context).attention)
        assert confirmations(context)[0].state == ConfirmationState.GIVEN_UP
        assert len(pacs.requests) == 1
        assert pacs.answer(pacs.requests[0], context.settings.dimse_port) == 0x0000
    assert study(context).state == StudyState.CONFIRMED
    assert study(context).attention is None


# --- confirmed: read back -----------------------------------------------------------------------------------


def test_orthanc_that_refuses_commitment_is_asked_by_query(sites: Callable[..., Context]) -> None:
    with Orthanc(DicomAlwaysAllowFind=True) as orthanc:
        context = sites(orthanc.destination)
        reported(context, count=2)
        deliver.run(context)
        later(context, minutes=1)
        deliver.run(context)
    assert study(context).state == StudyState.CONFIRMED
    assert "found by query" in _details(context, "confirmed")


def test_orthanc_that_aborts_when_a_commitment_is_asked_for_is_not_taken_for_away(
    sites: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    away: list[str] = []
    monkeypatch.setattr(circuits, "failed", lambda *given: away.append(str(given)))
    with Orthanc(DicomAlwaysAllowFind=True) as orthanc:
        context = sites(orthanc.destination)
        reported(context, count=2)
        deliver.run(context)
        # One was asked for and is looked for now, the other is delivered just before.
        with context.ledger.write() as session:
            newest = select(Confirmation.id).order_by(Confirmation.id.desc()).limit(1).scalar_subquery()
            session.execute(
                update(Confirmation).where(Confirmation.id == newest).values(transaction_uid=None)
            )
        later(context, minutes=1)
        deliver.run(context)
    assert [row.state for row in confirmations(context)] == ["done", "waiting"]
    assert away == []


def test_orthanc_that_knows_us_not_gets_the_report_all_the_same(
    sites: Callable[..., Context], orthanc: Orthanc
) -> None:
    context = sites(orthanc.destination)
    reported(context)
    deliver.run(context)
    assert study(context).state == StudyState.DELIVERED
    for _ in range(6):
        later(context, minutes=20)
        deliver.run(context)
    assert study(context).state == StudyState.DELIVERED
    assert study(context).attention is None
    seen = {check.name: check.seen for check in examine(context.settings)}["destination PACS"]
    assert "it confirmed none of 1 deliveries" in seen


def test_what_is_sent_while_a_pacs_is_not_asked_is_proven_later(
    sites: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Pacs().serving() as pacs:
        context = sites(pacs.url)
        reported(context)
        monkeypatch.setattr(scu, "_unanswered", {"PACS": (2, time.monotonic() + 600)})
        deliver.run(context)
        assert study(context).state == StudyState.DELIVERED
        monkeypatch.setattr(scu, "_unanswered", {})
        later(context, minutes=30)
        deliver.run(context)
    assert study(context).state == StudyState.CONFIRMED


def test_a_pacs_that_says_yes_and_stores_nothing_is_noticed(sites: Callable[..., Context]) -> None:
    with Pacs(loses=99).serving() as pacs:
        context = sites(pacs.url)
        reported(context)
        deliver.run(context)
        later(context, minutes=10)
        deliver.run(context)
        assert len(pacs.received) == 1  # it may be on its way for an hour
        for _ in range(8):
            later(context, minutes=61)
            deliver.run(context)
    assert len(pacs.received) == 3
    assert len(set(pacs.received)) == 1
    assert rows(context)[0].state == "parked"
    assert "does not hold the object" in str(study(context).attention)
    assert study(context).state == StudyState.REPORTED


@on_both_ledgers
def test_where_queries_never_find_anything_nothing_more_is_sent_again(sites: Callable[..., Context]) -> None:
    with Pacs(loses=99).serving() as pacs:
        context = sites(pacs.url)
        reported(context, count=2)
        with context.ledger.write() as session:
            session.get_one(Outbox, 2).state = DeliveryState.WITHDRAWN
        for _ in range(8):
            deliver.run(context)
            later(context, minutes=61)
        assert rows(context)[0].state == "parked"
        with context.ledger.write() as session:
            session.get_one(Outbox, 2).state = DeliveryState.PENDING
        pacs.received.clear()
        for _ in range(8):
            deliver.run(context)
            later(context, minutes=61)
        assert len(pacs.received) == 1
    assert rows(context)[1].state == "delivered"
    assert "nor was any object there before" in str(study(context).attention)


@on_both_ledgers
def test_a_pacs_that_lost_it_once_gets_it_again(sites: Callable[..., Context]) -> None:
    with Pacs(loses=1).serving() as pacs:
        context = sites(pacs.url)
        reported(context)
        for _ in range(3):
            deliver.run(context)
            later(context, minutes=61)
    assert len(pacs.received) == 2
    assert study(context).state == StudyState.CONFIRMED


@pytest.mark.parametrize("change", [{"state": StudyState.HELD}, {"revision": 2}], ids=["held", "superseded"])
def test_what_was_lost_is_not_sent_again_when_it_holds_no_longer(
    sites: Callable[..., Context], change: dict[str, Any]
) -> None:
    with Pacs(loses=1).serving() as pacs:
        context = sites(pacs.url)
        reported(context)
        deliver.run(context)
        with context.ledger.write() as session:
            session.execute(update(Study).values(**change))
        for _ in range(3):
            later(context, minutes=61)
            deliver.run(context)
    assert len(pacs.received) == 1
    assert rows(context)[0].state == "withdrawn"


def test_a_study_is_confirmed_only_with_every_required_object(sites: Callable[..., Context]) -> None:
    with Pacs(loses=1).serving() as pacs:
        context = sites(pacs.url)
        reported(context, count=2)
        deliver.run(context)
        assert sorted(row.state for row in rows(context)) == ["confirmed", "delivered"]
        assert study(context).state == StudyState.DELIVERED


def test_a_destination_that_is_not_to_be_asked_is_not(sites: Callable[..., Context], tmp_path: Path) -> None:
    with Pacs(commits="at once").serving() as pacs:
        toml = tmp_path / "hilum.toml"
        toml.write_text(f'[destinations.PACS]\nurl = "{pacs.url}"\nconfirm = "none"\n')
        context = sites(config=toml)
        reported(context)
        deliver.run(context)
    assert not pacs.requests
    assert not confirmations(context)
    assert study(context).state == StudyState.DELIVERED


def test_orthanc_over_dicomweb_confirms_by_query(sites: Callable[..., Context], orthanc: Orthanc) -> None:
    context = sites(orthanc.dicomweb_url)
    reported(context, count=2)
    deliver.run(context)
    assert study(context).state == StudyState.CONFIRMED
    assert "found by query" in _details(context, "confirmed")
    assert len(orthanc.stored()) == 2


def test_what_orthanc_lost_over_dicomweb_is_sent_again(
    sites: Callable[..., Context], monkeypatch: pytest.MonkeyPatch, orthanc: Orthanc
) -> None:
    context = sites(orthanc.dicomweb_url)
    reported(context)
    with monkeypatch.context() as patch:
        patch.setattr(confirm, "run", lambda _: None)
        deliver.run(context)
    orthanc.lose(orthanc.stored()[0])
    for _ in range(3):
        deliver.run(context)
        later(context, minutes=61)
    assert study(context).state == StudyState.CONFIRMED
    assert rows(context)[0].losses == 1


def test_orthanc_over_dicomweb_that_was_away_is_waited_for(
    sites: Callable[..., Context], orthanc: Orthanc
) -> None:
    context = sites(orthanc.dicomweb_url)
    reported(context, count=3)
    orthanc.kill()
    for _ in range(2):
        deliver.run(context)
        later(context, minutes=6)
    assert {row.state for row in rows(context)} == {"pending"}
    orthanc.restart()
    deliver.run(context)
    assert study(context).state == StudyState.CONFIRMED
    assert len(orthanc.stored()) == 3


# --- whose study it is --------------------------------------------------------------------------------------


def _analysed(context: Context, monkeypatch: pytest.MonkeyPatch) -> Any:
    pipeline.says(monkeypatch, 0.9)
    film = pipeline.film(PatientID="OLD-1", AccessionNumber="A-OLD")
    pipeline.receive(context, film)
    pipeline.work(context)
    return film


@pytest.mark.fault(19)
@pytest.mark.parametrize(
    ("encoding", "name", "way"),
    [
        ("Utf8", "Yamada^Tarou=山田^太郎=やまだ^たろう", "destination"),
        # What its answers lose is no news of the patient.
        ("Latin1", "Test^0", "destination"),
        ("Utf8", "Yamada^Tarou=山田^太郎=やまだ^たろう", "dicomweb_url"),
    ],
)
def test_a_report_of_a_merged_patient_is_built_anew_before_it_is_sent(
    sites: Callable[..., Context],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    encoding: str,
    name: str,
    way: str,
) -> None:
    with Orthanc(DicomAlwaysAllowFind=True, DefaultEncoding=encoding) as orthanc:
        context = sites(getattr(orthanc, way), population="flag", study_quiet_seconds=0)
        film = _analysed(context, monkeypatch)
        merged = pipeline.film(
            PatientID="NEW-2",
            AccessionNumber="A-NEW",
            PatientName="Yamada^Tarou=山田^太郎=やまだ^たろう",
            SpecificCharacterSet="ISO_IR 192",
        )
        assert merged.StudyInstanceUID == film.StudyInstanceUID
        orthanc.store(factories.write(merged, tmp_path / "merged"))
        deliver.run(context)
        assert {row.state for row in rows(context)} == {"withdrawn"}
        pipeline.work(context)
        pipeline.send_all(context)
        stored = [
            dcmread(BytesIO(orthanc.download(instance)))
            for instance in orthanc.instances(str(film.StudyInstanceUID))
            if instance.sop_instance_uid != merged.SOPInstanceUID
        ]
        assert {(item.Modality, item.PatientID, item.AccessionNumber) for item in stored} == {
            ("SR", "NEW-2", "A-NEW"),
            ("OT", "NEW-2", "A-NEW"),
        }
        assert {str(item.PatientName) for item in stored} == {name}
        assert len(stored) == 2
    assert study(context).state in (StudyState.DELIVERED, StudyState.CONFIRMED)
    with context.ledger.read() as session:
        assert session.scalars(select(Subject.patient_id)).all() == ["OLD-1"]
        withdrawn = {
            report.sop_instance_uid for report in session.scalars(select(Report)) if report.revision == 1
        }
    assert not withdrawn & {str(item.SOPInstanceUID) for item in stored}
    assert "NEW-2" not in _details(context, "identity")


@on_both_ledgers
def test_who_may_have_got_a_result_is_told_when_it_is_taken_back(
    sites: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(association, "_DIMSE_SECONDS", 1)
    with Pacs(hangs=3.0).serving() as pacs:
        context = sites(pacs.url, population="flag", study_quiet_seconds=0)
        _analysed(context, monkeypatch)
        deliver.run(context)  # sent, and never answered
        pacs.hangs = 0.0
        knee = {"BodyPartExamined": "KNEE", "AnatomicRegionSequence": None}
        pipeline.receive(context, pipeline.film(PatientID="OLD-1", AccessionNumber="A-OLD", **knee))
        pipeline.work(context)
    with context.ledger.read() as session:
        told = select(Report.kind).join(Outbox).where(Report.revision == 2)
        assert session.scalars(told).all() == ["not-analysed"]


def test_an_archive_that_answers_for_another_study_is_not_believed(
    sites: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Pacs(mixes_up=True).serving() as pacs:
        context = sites(pacs.url, population="flag", study_quiet_seconds=0)
        film = _analysed(context, monkeypatch)
        pacs.identity[str(film.StudyInstanceUID)] = {"PatientID": "SOMEBODY"}
        pipeline.send_all(context)
    assert {item.PatientID for item in pacs.held.values()} == {"OLD-1"}
    assert len(pacs.held) == 2


def test_an_archive_that_changes_its_mind_each_time_ends_with_a_person(
    sites: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Pacs().serving() as pacs:
        context = sites(pacs.url, population="flag", study_quiet_seconds=0)
        film = _analysed(context, monkeypatch)
        for number in range(8):
            pacs.identity[str(film.StudyInstanceUID)] = {"PatientID": f"P{number}"}
            pipeline.send_all(context, 1)
            pipeline.work(context)
    assert study(context).revision <= 4
    assert "each time it is asked" in str(study(context).attention)
    assert not pacs.held


def test_an_issuer_does_not_go_with_another_identifier(
    sites: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Pacs().serving() as pacs:
        context = sites(pacs.url, population="flag", study_quiet_seconds=0)
        film = _analysed(context, monkeypatch)
        assert film.IssuerOfPatientID
        pacs.identity[str(film.StudyInstanceUID)] = {"PatientID": "900"}
        pipeline.send_all(context)
        pipeline.work(context)
        pipeline.send_all(context)
    assert {item.PatientID for item in pacs.held.values()} == {"900"}
    assert not any(item.get("IssuerOfPatientID") for item in pacs.held.values())


@on_both_ledgers
def test_two_archives_of_different_minds_end_with_a_person(
    sites: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Pacs().serving() as first, Pacs("OTHER").serving() as second:
        context = sites(first.url, second.url, population="flag", study_quiet_seconds=0)
        film = _analysed(context, monkeypatch)
        uid = str(film.StudyInstanceUID)
        first.identity[uid], second.identity[uid] = {"PatientID": "ONE"}, {"PatientID": "TWO"}
        for _ in range(4):
            pipeline.send_all(context)
            pipeline.work(context)
    told = [item.PatientID for item in (*first.held.values(), *second.held.values())]
    assert set(told) in ({"ONE"}, {"TWO"})
    assert "identity" in str(study(context).attention)


def test_where_nothing_is_said_of_the_study_a_patient_named_as_elsewhere_waits_for_a_person(
    sites: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Pacs().serving() as first, Pacs("OTHER", queries=False).serving() as second:
        context = sites(first.url, second.url, population="flag", study_quiet_seconds=0)
        film = _analysed(context, monkeypatch)
        first.identity[str(film.StudyInstanceUID)] = {"PatientID": "ONE"}
        for _ in range(3):
            pipeline.send_all(context)
            pipeline.work(context)
        assert {item.PatientID for item in first.held.values()} == {"ONE"}
        assert "ONE" not in {item.PatientID for item in second.held.values()}
        assert "the patient is named as at PACS" in str(study(context).attention)
        for as_built in (False, True):
            with context.ledger.write() as session:
                retry_study(session, session.scalars(select(Study)).one(), as_built=as_built)
            pipeline.send_all(context)
            sent = {item.PatientID for item in second.held.values()}
            assert ("ONE" in sent) is as_built
    assert study(context).attention is None


def test_an_order_that_another_archive_knows_goes_to_all(
    sites: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Pacs().serving() as first, Pacs("OTHER", queries=False).serving() as second:
        context = sites(first.url, second.url, population="flag", study_quiet_seconds=0)
        film = _analysed(context, monkeypatch)
        first.identity[str(film.StudyInstanceUID)] = {"PatientID": "OLD-1", "AccessionNumber": "A-NEW"}
        for _ in range(3):
            pipeline.send_all(context)
            pipeline.work(context)
    assert "A-NEW" in {item.AccessionNumber for item in second.held.values()}
    assert study(context).attention is None


def test_an_archive_that_says_the_same_or_nothing_gets_what_was_built(
    sites: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Pacs().serving() as pacs:
        context = sites(pacs.url, population="flag", study_quiet_seconds=0)
        film = _analysed(context, monkeypatch)
        pacs.identity[str(film.StudyInstanceUID)] = {"PatientID": "OLD-1 ", "AccessionNumber": ""}
        pipeline.send_all(context)
    assert len(pacs.held) == 2
    assert "identity" not in events(context)


def _details(context: Context, kind: str) -> str:
    with context.ledger.read() as session:
        found = session.scalars(select(Event.detail).where(Event.kind == kind).order_by(Event.id))
        return "; ".join(found)
