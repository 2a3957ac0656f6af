"""The deliver queue against an SCP that answers whatever the test wants."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.uid import BasicTextSRStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, _config, evt
from pynetdicom.events import Event
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StudyRootQueryRetrieveInformationModelFind,
)
from sqlalchemy import select, update

from service.core.leases import DELIVER, count_ready
from service.core.ledger import now
from service.core.retry import retry_study
from service.core.settings import load
from service.core.states import DeliveryState, StudyState
from service.core.tables import Circuit, Outbox, Report, Study
from tests import factories
from tests.ledgers import migrated
from worker.context import Context
from worker.tasks import deliver


class Scp:
    """A storage SCP with a mind of its own; `received` holds the SOP Instance UIDs it answered."""

    def __init__(self, *answers: int) -> None:
        self.answers = list(answers)
        self.received: list[str] = []
        self.associations = 0
        self.proposed: list[tuple[str, tuple[str, ...]]] = []

    @contextmanager
    def serving(
        self, sop_class_uid: str = BasicTextSRStorage, syntax: str = ExplicitVRLittleEndian
    ) -> Iterator[int]:
        entity = AE("PACS")
        entity.add_supported_context(sop_class_uid, syntax)
        handlers = [(evt.EVT_C_STORE, self._store), (evt.EVT_REQUESTED, self._requested)]
        server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        assert server is not None
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()

    def _store(self, event: Event) -> int:
        self.received.append(str(event.request.AffectedSOPInstanceUID))
        return self.answers.pop(0) if self.answers else 0x0000

    def _requested(self, event: Event) -> None:
        self.associations += 1
        self.proposed = [
            (str(item.abstract_syntax), tuple(map(str, item.transfer_syntax)))
            for item in event.assoc.requestor.primitive.presentation_context_definition_list
        ]


def opened(tmp_path: Path, port: int) -> Context:
    """Return a worker's context with an empty ledger and one destination."""
    settings = load(data_dir=tmp_path, destinations=f"PACS=dicom://PACS@127.0.0.1:{port}")
    migrated(settings.sqlalchemy_url)
    return Context.open(settings)


def reported(context: Context, count: int = 1, required: bool = True) -> str:
    """Put a reported study with `count` reports into the ledger; return its UID."""
    film = factories.phantom_chest()
    with context.ledger.write() as session:
        study = Study(
            study_instance_uid=film.StudyInstanceUID, state=StudyState.REPORTED, received_at=now(), revision=1
        )
        session.add(study)
        session.flush()
        for part in range(1, count + 1):
            dataset: Dataset = factories.basic_text_sr(part)
            dataset.StudyInstanceUID = film.StudyInstanceUID
            content = factories.write(dataset, context.spool.incoming).read_bytes()
            path = context.spool.write("reports", ".dcm", lambda stream, made=content: stream.write(made))
            report = Report(
                study_id=study.id,
                kind="sr",
                revision=1,
                part=part,
                sop_instance_uid=dataset.SOPInstanceUID,
                sop_class_uid=dataset.SOPClassUID,
                series_instance_uid=dataset.SeriesInstanceUID,
                transfer_syntax_uid=ExplicitVRLittleEndian,
                path=path,
                digest="0" * 64,
                size=1,
                created_at=now(),
            )
            session.add(report)
            session.flush()
            session.add(
                Outbox(
                    destination="PACS",
                    report_id=report.id,
                    required=required,
                    state=DeliveryState.PENDING,
                    ready_at=now(),
                )
            )
    return str(film.StudyInstanceUID)


def rows(context: Context) -> list[Outbox]:
    with context.ledger.read() as session:
        return list(session.scalars(select(Outbox).order_by(Outbox.id)))


def study(context: Context) -> Study:
    with context.ledger.read() as session:
        return session.scalars(select(Study)).one()


def hurry(context: Context) -> None:
    """Let what waits for its next attempt be due now."""
    with context.ledger.write() as session:
        session.execute(update(Outbox).values(ready_at=now()))
        session.execute(update(Circuit).values(open_until=now()))


@pytest.mark.fault(19)
@pytest.mark.parametrize("status", [0x0000, 0xB000, 0xB006, 0xB007, 0x0111])
def test_what_the_pacs_has_is_delivered(tmp_path: Path, status: int) -> None:
    scp = Scp(status)
    with scp.serving() as port:
        context = opened(tmp_path, port)
        reported(context)
        deliver.run(context)
    (row,) = rows(context)
    assert row.state == DeliveryState.DELIVERED
    assert (row.last_error is None) == (status == 0x0000)
    assert study(context).state == StudyState.DELIVERED


@pytest.mark.fault(19)
@pytest.mark.parametrize("status", [0xA900, 0x0117, 0x0122, 0x0124, 0xA778])
def test_a_refusal_of_the_object_is_parked_and_asks_for_a_person(tmp_path: Path, status: int) -> None:
    scp = Scp(status)
    with scp.serving() as port:
        context = opened(tmp_path, port)
        reported(context)
        deliver.run(context)
        hurry(context)
        deliver.run(context)
    (row,) = rows(context)
    assert (row.state, row.attempts) == (DeliveryState.PARKED, 1)
    assert f"{status:04X}" in str(study(context).attention)
    assert study(context).state == StudyState.REPORTED
    assert len(scp.received) == 1


@pytest.mark.fault(19)
@pytest.mark.parametrize("status", [0xA777, 0xA778, 0xA779])
def test_a_patient_that_the_archive_refuses_is_parked_as_identity_until_a_person_retries(
    tmp_path: Path, status: int
) -> None:
    scp = Scp(status)  # as dcm4chee refuses a missing or a conflicting patient ID
    with scp.serving() as port:
        context = opened(tmp_path, port)
        reported(context)
        deliver.run(context)
        hurry(context)
        deliver.run(context)
        assert "parked for PACS" in str(study(context).attention)
        assert f"{status:04X} (identity: " in str(study(context).attention)
        assert len(scp.received) == 1
        with context.ledger.write() as session:
            retry_study(session, session.scalars(select(Study)).one())
        deliver.run(context)
    assert (study(context).state, study(context).attention) == (StudyState.DELIVERED, None)


@pytest.mark.fault(19)
def test_out_of_resources_is_tried_again_without_end(tmp_path: Path) -> None:
    scp = Scp(*[0xA700] * 7)
    with scp.serving() as port:
        context = opened(tmp_path, port)
        reported(context)
        for _ in range(8):
            hurry(context)
            deliver.run(context)
    assert rows(context)[0].state == DeliveryState.DELIVERED
    assert len(set(scp.received)) == 1


@pytest.mark.fault(19)
def test_a_processing_failure_is_tried_five_times_and_then_parked(tmp_path: Path) -> None:
    scp = Scp(*[0x0110] * 9)
    with scp.serving() as port:
        context = opened(tmp_path, port)
        reported(context)
        for _ in range(8):
            hurry(context)
            deliver.run(context)
    assert rows(context)[0].state == DeliveryState.PARKED
    assert len(scp.received) == 5


def test_tries_while_the_pacs_was_away_do_not_count_against_its_answers(tmp_path: Path) -> None:
    with Scp().serving() as port:
        context = opened(tmp_path, port)
    reported(context)
    for _ in range(6):
        hurry(context)
        deliver.run(context)
    scp = Scp(0x0110, 0x0000)
    with scp.serving() as port:
        context.settings = load(data_dir=tmp_path, destinations=f"PACS=dicom://PACS@127.0.0.1:{port}")
        for _ in range(2):
            hurry(context)
            deliver.run(context)
    assert rows(context)[0].state == DeliveryState.DELIVERED


def test_a_pacs_that_is_away_is_waited_for(tmp_path: Path) -> None:
    with Scp().serving() as port:
        context = opened(tmp_path, port)
    reported(context)
    deliver.run(context)
    (row,) = rows(context)
    assert row.state == DeliveryState.PENDING
    assert "cannot be reached" in str(row.last_error)
    with context.ledger.read() as session:
        assert count_ready(session, DELIVER) == 0


@pytest.mark.fault(21)
def test_only_what_is_missing_is_sent_again(tmp_path: Path) -> None:
    scp = Scp(0x0000, 0xA700, 0x0000)
    with scp.serving() as port:
        context = opened(tmp_path, port)
        reported(context, count=3)
        deliver.run(context)
        assert study(context).state == StudyState.REPORTED
        hurry(context)
        deliver.run(context)
    assert len(scp.received) == 4
    assert scp.received[3] == scp.received[1]
    assert study(context).state == StudyState.DELIVERED


def test_what_waits_goes_over_one_association_that_proposes_what_is_sent_and_asked(tmp_path: Path) -> None:
    scp = Scp()
    with scp.serving() as port:
        context = opened(tmp_path, port)
        reported(context, count=5)
        deliver.run(context)
    assert len(scp.received) == 5
    assert scp.associations == 1
    either = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
    assert scp.proposed == [
        (BasicTextSRStorage, either),
        (StorageCommitmentPushModel, either),
        (StudyRootQueryRetrieveInformationModelFind, either),
    ]


def test_a_pacs_of_implicit_vr_gets_the_report_in_implicit_vr(tmp_path: Path) -> None:
    scp = Scp()
    with scp.serving(syntax=ImplicitVRLittleEndian) as port:
        context = opened(tmp_path, port)
        reported(context)
        deliver.run(context)
    assert rows(context)[0].state == DeliveryState.DELIVERED


@pytest.mark.fault(20)
def test_a_pacs_that_rejects_the_sop_class_parks_the_report_with_that_reason(tmp_path: Path) -> None:
    scp = Scp()
    with scp.serving(sop_class_uid="1.2.840.10008.5.1.4.1.1.7") as port:
        context = opened(tmp_path, port)
        reported(context)
        deliver.run(context)
    (row,) = rows(context)
    assert row.state == DeliveryState.PARKED
    assert "does not accept this SOP class" in str(row.last_error)


def test_a_report_whose_file_is_gone_is_parked_and_holds_up_no_other(tmp_path: Path) -> None:
    scp = Scp()
    with scp.serving() as port:
        context = opened(tmp_path, port)
        reported(context, count=3)
        with context.ledger.read() as session:
            first = session.scalars(select(Report).order_by(Report.id)).first()
        assert first is not None
        context.spool.remove(first.path)
        deliver.run(context)
    assert [row.state for row in rows(context)] == ["parked", "delivered", "delivered"]


def test_a_destination_that_is_no_longer_configured_parks_its_reports(tmp_path: Path) -> None:
    context = opened(tmp_path, 9)
    reported(context)
    context.settings = context.settings.model_copy(update={"destinations": ()})
    deliver.run(context)
    assert (rows(context)[0].state, rows(context)[0].attempts) == (DeliveryState.PENDING, 0)
    with context.ledger.write() as session:
        session.execute(update(Report).values(created_at=now() - timedelta(minutes=2)))
    hurry(context)
    deliver.run(context)
    (row,) = rows(context)
    assert (row.state, row.last_error) == ("parked", "no destination PACS is configured any more")


def test_an_optional_destination_does_not_hold_the_study_up(tmp_path: Path) -> None:
    context = opened(tmp_path, 9)
    reported(context, required=False)
    deliver.run(context)
    assert rows(context)[0].state == DeliveryState.PENDING
    assert study(context).attention is None


def test_a_report_goes_out_byte_for_byte_as_it_was_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_config, "STORE_RECV_CHUNKED_DATASET", False)
    took: list[bytes] = []
    entity = AE("PACS")
    entity.add_supported_context(BasicTextSRStorage, ExplicitVRLittleEndian)

    def store(event: Event) -> int:
        took.append(event.request.DataSet.getvalue())
        return 0x0000

    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    assert server is not None
    context = opened(tmp_path, server.server_address[1])
    reported(context)
    deliver.run(context)
    server.shutdown()
    with context.ledger.read() as session:
        report = session.scalars(select(Report)).one()
    assert report.path is not None
    built = context.spool.absolute(report.path).read_bytes()
    (length,) = struct.unpack_from("<L", built, 128 + 4 + 8)  # of the file meta information, PS3.10 7.1
    assert took == [built[128 + 4 + 12 + length :]]


def test_what_was_accepted_is_written_down_though_the_association_breaks_later(tmp_path: Path) -> None:
    scp = Scp(0x0000, 0x0000)
    store = scp._store

    def break_at_the_third(event: Event) -> int:
        if len(scp.received) == 2:
            event.assoc.abort()
        return store(event)

    scp._store = break_at_the_third  # type: ignore[method-assign]
    with scp.serving() as port:
        context = opened(tmp_path, port)
        reported(context, 3)
        deliver.run(context)
    with context.ledger.read() as session:
        states = session.scalars(select(Outbox.state).order_by(Outbox.id)).all()
    assert states == [DeliveryState.DELIVERED, DeliveryState.DELIVERED, DeliveryState.PENDING]
