"""Which objects are made of a study, for whom, in which form, and how a revision replaces the one before."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import (
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EnhancedSRStorage,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)
from sqlalchemy import delete, func, select, update

from model.hanging import HANGINGS
from model.prediction import Prediction
from service.api.status import study as api_study
from service.core.checks import examine
from service.core.completion import conclude_due_studies
from service.core.ledger import now
from service.core.retry import retry_study
from service.core.settings import load
from service.core.states import DeliveryState, InstanceState, RevisionState, StudyState
from service.core.tables import Event, Instance, Outbox, Refusal, Report, Revision, Study
from tests import factories
from tests.ledgers import migrated
from tests.pipeline import film, hurry, receive, reports, says, send_all, study, work
from tests.reading import assert_says_what_the_api_says
from tests.servers import StoreScp
from worker.context import Context
from worker.tasks import decode, infer, report

_AWAY = "dicom://PACS@127.0.0.1:9"
_ADULT = {"PatientAge": "064Y"}
_SMALL = {"rows": 64, "columns": 64}


@pytest.fixture(params=["sqlite", "postgresql"])
def context(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Context]:
    """A worker's context on each database, with a network that calls every film positive."""
    url = None if request.param == "sqlite" else request.getfixturevalue("postgresql")
    settings = load(data_dir=tmp_path, study_quiet_seconds=0, min_free_bytes=0, database_url=url)
    migrated(settings.sqlalchemy_url)
    opened = Context.open(settings)
    says(monkeypatch, 0.9)
    yield opened
    opened.ledger.close()


@pytest.fixture(scope="module")
def pacs() -> Iterator[StoreScp]:
    """A PACS that knows every class we send."""
    with StoreScp(*_EVERYTHING, ae_title="NEW") as server:
        yield server


@pytest.fixture(scope="module")
def old_pacs() -> Iterator[StoreScp]:
    """A PACS that rejects Comprehensive 3D SR and takes Comprehensive SR."""
    with StoreScp(*(item for item in _EVERYTHING if item != Comprehensive3DSRStorage)) as server:
        yield server


_EVERYTHING = (
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EnhancedSRStorage,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    "1.2.840.10008.5.1.4.1.1.11.1",  # greyscale presentation state
    "1.2.840.10008.5.1.4.1.1.104.1",  # encapsulated PDF
    "1.2.840.10008.5.1.4.1.1.88.59",  # key object selection
)


def goes_to(context: Context, *entries: dict[str, Any]) -> None:
    """Configure destinations; one without a URL is a PACS that is away, one without a name is PACS."""
    named = [{"name": "PACS", "url": _AWAY, **entry} for entry in entries]
    kept = {name: getattr(context.settings, name) for name in ("data_dir", "database_url", "population")}
    context.settings = load(**kept, study_quiet_seconds=0, min_free_bytes=0, destinations=named)


def made(context: Context) -> list[tuple[str, int]]:
    return [(item.kind, item.revision) for item in reports(context)]


def documents(context: Context) -> list[tuple[str, int]]:
    """Return kind and revision of what was made beside the heat map that each positive film has."""
    return [item for item in made(context) if item[0] != "heatmap"]


def outbox(context: Context, destination: str = "PACS") -> dict[tuple[str, int], str]:
    """Return the state of each object of the outbox by kind and revision."""
    with context.ledger.read() as session:
        rows = session.execute(
            select(Report.kind, Report.revision, Outbox.state)
            .join(Outbox)
            .where(Outbox.destination == destination)
        )
        return {(kind, revision): state for kind, revision, state in rows}


def errors(context: Context) -> list[str]:
    with context.ledger.read() as session:
        return [str(text) for text in session.scalars(select(Outbox.last_error).order_by(Outbox.id))]


def read(context: Context, kind: str, revision: int = 1) -> Dataset:
    """Return the one object of that kind and revision from disk."""
    (found,) = [item for item in reports(context) if (item.kind, item.revision) == (kind, revision)]
    return dcmread(context.spool.absolute(found.path))


def predecessors(dataset: Dataset) -> list[str]:
    """Return the SOP Instance UIDs that a document names as those it replaces."""
    return [
        reference.ReferencedSOPInstanceUID
        for item in dataset.get("PredecessorDocumentsSequence", [])
        for series in item.ReferencedSeriesSequence
        for reference in series.ReferencedSOPSequence
    ]


def retry(context: Context) -> None:
    with context.ledger.write() as session:
        retry_study(session, session.scalars(select(Study).order_by(Study.id.desc()).limit(1)).one())


# --- not analysed is a report


@pytest.mark.parametrize(
    "refused",
    [
        film(1, **_ADULT),
        factories.lateral_film(2, **_SMALL),
        film(3, PixelData=b"\0\0"),
    ],
    ids=["adult", "lateral", "undecodable"],
)
def test_a_chest_that_is_not_analysed_is_told_to_the_pacs(
    context: Context, pacs: StoreScp, refused: Dataset
) -> None:
    goes_to(context, {"url": pacs.destination})
    receive(context, refused)
    work(context)
    assert made(context) == [("not-analysed", 1)]
    told = read(context, "not-analysed")
    assert told.SOPClassUID == EnhancedSRStorage
    assert (told.PatientID, told.AccessionNumber) == (refused.PatientID, refused.AccessionNumber)
    assert str(study(context).result_reason) in told.to_json()
    assert (study(context).state, study(context).finding) == (StudyState.REPORTED, "not_analysed")
    send_all(context)
    assert study(context).state == StudyState.DELIVERED
    assert study(context).attention is None


def test_a_chest_that_only_the_network_s_gate_refuses_is_told_too(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    goes_to(context, {})
    receive(context, factories.knee_film(rows=489, columns=460, BodyPartExamined="CHEST",
                                         AnatomicRegionSequence=None))  # fmt: skip
    work(context)
    assert "not a frontal chest" in str(study(context).result_reason)
    assert outbox(context) == {("not-analysed", 1): "pending"}


def test_a_knee_and_a_ct_stay_in_the_ledger(context: Context) -> None:
    goes_to(context, {})
    for thing in (factories.knee_film(1, **_SMALL), factories.ct_slice(2)):
        receive(context, thing)
        work(context)
        assert (study(context).state, study(context).finding) == (StudyState.REPORTED, "not_analysed")
    assert not reports(context)


def test_a_knee_is_told_to_the_one_that_wants_to_hear_of_every_radiograph(context: Context) -> None:
    goes_to(context, {"not_analysed": "always"}, {"name": "OTHER"})
    receive(context, factories.knee_film(1, **_SMALL))
    work(context)
    assert outbox(context) == {("not-analysed", 1): "pending"}
    assert not outbox(context, "OTHER")


@pytest.mark.parametrize(
    "destinations",
    [[], [{"not_analysed": "never"}], [{"objects": ["heatmap"]}]],
    ids=["none", "never", "maps"],
)
def test_without_anybody_who_wants_to_hear_it_a_study_ends_at_reported(
    context: Context, destinations: list[dict[str, Any]]
) -> None:
    goes_to(context, *destinations)
    receive(context, film(**_ADULT))
    work(context)
    assert study(context).state == StudyState.REPORTED
    assert made(context) == [("not-analysed", 1)]
    assert not outbox(context)


def test_a_film_that_failed_is_a_failed_study_and_no_report(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no luck")

    from service.scheduler.scheduler import give_up_exhausted

    monkeypatch.setattr(decode, "prepare", broken)
    receive(context, film())
    for _ in range(3):
        decode.run(context)
        hurry(context)
    give_up_exhausted(context.ledger)
    work(context)
    assert study(context).state == StudyState.FAILED
    assert not reports(context)


def test_a_result_taken_back_is_told_to_everybody_who_was_told_it(context: Context, pacs: StoreScp) -> None:
    wants = {"url": pacs.destination, "not_analysed": "never"}
    goes_to(context, wants, {"name": "LATE", "not_analysed": "never"})
    receive(context, film())
    work(context)
    send_all(context, 1)
    with context.ledger.write() as session:
        session.execute(update(Outbox).where(Outbox.destination == "LATE").values(attempts=0))
    receive(context, film(**_ADULT))
    work(context)
    told = read(context, "not-analysed", 2)
    assert predecessors(told) == [read(context, "sr").SOPInstanceUID]
    assert "Revision 2, replaces revision 1" in told.to_json()
    assert told.InstanceNumber == 2
    assert outbox(context) == {
        ("sr", 1): "delivered",
        ("heatmap", 1): "delivered",
        ("not-analysed", 2): "pending",
    }
    assert outbox(context, "LATE") == {("sr", 1): "withdrawn", ("heatmap", 1): "withdrawn"}
    send_all(context, 1)
    assert study(context).state == StudyState.DELIVERED
    assert (study(context).revision, study(context).attention) == (2, None)


def test_a_result_taken_back_because_it_is_a_knee_is_told_too(context: Context, pacs: StoreScp) -> None:
    goes_to(context, {"url": pacs.destination})
    receive(context, film())
    work(context)
    receive(context, film(BodyPartExamined="KNEE", AnatomicRegionSequence=None))
    send_all(context, 1)
    work(context)
    assert outbox(context)[("not-analysed", 2)] == "pending"


def test_a_study_that_is_analysed_after_all_gets_a_report_that_replaces_the_silence(context: Context) -> None:
    goes_to(context, {"objects": ["sr", "text"]})
    receive(context, film(1, study="s", **_ADULT))
    work(context)
    receive(context, film(2, study="s"))
    work(context)
    assert documents(context) == [("not-analysed", 1), ("sr", 2), ("text", 2)]
    before = read(context, "not-analysed").SOPInstanceUID
    for kind in ("sr", "text"):
        assert predecessors(read(context, kind, 2)) == [before]
    assert "Revision 2, replaces revision 1" in read(context, "sr", 2).to_json()


def test_a_taken_back_result_that_holds_again_is_a_third_revision(context: Context) -> None:
    goes_to(context, {"objects": ["sr", "text"]})
    for options in ({}, _ADULT, {"AccessionNumber": "FIXED"}):
        receive(context, film(**options))
        work(context)
    assert documents(context) == [("sr", 1), ("text", 1), ("not-analysed", 2), ("sr", 3), ("text", 3)]
    assert set(predecessors(read(context, "not-analysed", 2))) == {
        read(context, "sr", 1).SOPInstanceUID,
        read(context, "text", 1).SOPInstanceUID,
    }
    assert predecessors(read(context, "sr", 3)) == [read(context, "not-analysed", 2).SOPInstanceUID]
    assert study(context).probability == pytest.approx(0.9)
    series = {(item.kind, item.series_instance_uid) for item in reports(context)}
    assert len({uid for _, uid in series}) == len(series) == 4  # the heat map's too


def test_a_corrected_header_of_an_unanalysed_film_is_told_in_a_revision(context: Context) -> None:
    goes_to(context, {})
    receive(context, film(**_ADULT))
    work(context)
    receive(context, film(AccessionNumber="FIXED", **_ADULT))
    work(context)
    first, second = read(context, "not-analysed", 1), read(context, "not-analysed", 2)
    assert second.AccessionNumber == "FIXED"
    assert second.SeriesInstanceUID == first.SeriesInstanceUID
    assert (first.InstanceNumber, second.InstanceNumber) == (1, 2)
    assert predecessors(second) == [first.SOPInstanceUID]


def test_a_late_film_that_is_not_analysed_withdraws_no_report_that_says_so(context: Context) -> None:
    goes_to(context, {})
    receive(context, film(1, study="s", **_ADULT))
    work(context)
    receive(context, factories.lateral_film(2, study="s", **_SMALL))
    work(context)
    assert outbox(context) == {("not-analysed", 1): "pending"}
    assert study(context).state == StudyState.REPORTED


def test_a_late_film_that_is_not_analysed_sends_nothing_that_was_parked(context: Context) -> None:
    goes_to(context, {"expires_after": "1h", "objects": ["sr", "pdf"]})
    receive(context, film(1, study="s", **_ADULT))
    aged(context, timedelta(hours=2))
    work(context)
    receive(context, factories.lateral_film(2, study="s", **_SMALL))
    work(context)
    assert outbox(context) == {("not-analysed", 1): "parked", ("pdf", 1): "parked"}


# --- the form of the report


def test_a_pacs_that_rejects_3d_gets_the_same_report_as_comprehensive_sr(
    context: Context, old_pacs: StoreScp
) -> None:
    goes_to(context, {"url": old_pacs.destination, "objects": ["sr"]})
    receive(context, film())
    work(context)
    send_all(context)
    assert outbox(context) == {("sr", 1): "withdrawn", ("comprehensive-sr", 1): "delivered"}
    assert "Comprehensive SR instead" in errors(context)[0]
    assert (study(context).state, study(context).attention) == (StudyState.DELIVERED, None)
    first, other = read(context, "sr"), read(context, "comprehensive-sr")
    assert (first.SOPClassUID, other.SOPClassUID) == (Comprehensive3DSRStorage, ComprehensiveSRStorage)
    assert other.SOPInstanceUID != first.SOPInstanceUID
    assert other.SeriesInstanceUID != first.SeriesInstanceUID
    assert other.ContentSequence == first.ContentSequence
    (arrived,) = [path for path in old_pacs.received.iterdir() if other.SOPInstanceUID in path.name]
    assert dcmread(arrived, force=True).ContentSequence == first.ContentSequence
    with context.ledger.read() as session:
        told = session.scalars(select(Event.detail).where(Event.kind == "other_form")).one()
    assert "PACS" in told


def test_the_choice_is_kept_so_that_the_next_study_goes_out_in_that_form_at_once(
    context: Context, old_pacs: StoreScp
) -> None:
    goes_to(context, {"url": old_pacs.destination, "objects": ["sr"]})
    for seed in (1, 2):
        receive(context, film(seed))
        work(context)
        send_all(context)
    assert study(context).state == StudyState.DELIVERED
    assert documents(context) == [("sr", 1), ("comprehensive-sr", 1)] * 2
    with context.ledger.read() as session:
        withdrawn = select(func.count()).where(Outbox.state == DeliveryState.WITHDRAWN)
        assert session.scalar(withdrawn) == 1
    seen = {check.name: check.seen for check in examine(context.settings)}["destination PACS"]
    assert "Comprehensive SR, since it rejected" in seen


def test_the_choice_is_forgotten_with_the_address_and_when_a_person_retries(
    context: Context, old_pacs: StoreScp, pacs: StoreScp
) -> None:
    goes_to(context, {"url": old_pacs.destination, "objects": ["sr"]})
    receive(context, film(1))
    work(context)
    send_all(context)
    goes_to(context, {"url": pacs.destination, "objects": ["sr"]})
    receive(context, film(2))
    work(context)
    assert documents(context)[2:] == [("sr", 1)]
    goes_to(context, {"url": old_pacs.destination, "objects": ["sr"]})
    retry(context)
    with context.ledger.read() as session:
        assert session.scalars(select(Refusal)).all() == []
    receive(context, film(3))
    work(context)
    assert documents(context)[3:] == [("sr", 1)]


def test_two_destinations_that_reject_3d_get_one_and_the_same_object(
    context: Context, old_pacs: StoreScp
) -> None:
    url = old_pacs.destination
    goes_to(context, {"url": url, "objects": ["sr"]}, {"name": "B", "url": url, "objects": ["sr"]})
    receive(context, film())
    work(context)
    send_all(context)
    assert documents(context) == [("sr", 1), ("comprehensive-sr", 1)]
    assert outbox(context) == outbox(context, "B")
    assert study(context).state == StudyState.DELIVERED
    files = {path.name for path in (context.spool.root / "reports").rglob("*.dcm")}
    assert files == {Path(item.path).name for item in reports(context)}


def test_it_is_the_same_object_whether_it_was_made_at_once_or_after_a_rejection(
    context: Context, old_pacs: StoreScp, monkeypatch: pytest.MonkeyPatch
) -> None:
    from worker.tasks import objects

    moment = now()
    monkeypatch.setattr(objects, "now", lambda: moment)
    goes_to(context, {"url": old_pacs.destination, "objects": ["sr"]})
    receive(context, film())
    work(context)
    send_all(context)
    (after,) = [item for item in reports(context) if item.kind == "comprehensive-sr"]
    with context.ledger.write() as session:
        for table in (Outbox, Report):
            session.execute(delete(table))
        session.execute(update(Revision).values(state=RevisionState.PENDING, ready_at=now()))
    goes_to(context, {"sr": "comprehensive"})
    report.run(context)
    (at_once,) = [item for item in reports(context) if item.kind == "comprehensive-sr"]
    assert (at_once.sop_instance_uid, at_once.digest) == (after.sop_instance_uid, after.digest)


def test_a_pacs_that_takes_no_jpeg_gets_the_same_heat_map_uncompressed(context: Context) -> None:
    with StoreScp(Comprehensive3DSRStorage, SecondaryCaptureImageStorage, jpeg=False) as server:
        goes_to(context, {"url": server.destination})
        receive(context, film(1))
        work(context)
        send_all(context)
        assert outbox(context) == {
            ("sr", 1): "delivered",
            ("heatmap", 1): "withdrawn",
            ("heatmap-plain", 1): "delivered",
        }
        assert (study(context).state, study(context).attention) == (StudyState.DELIVERED, None)
        first, other = read(context, "heatmap"), read(context, "heatmap-plain")
        (arrived,) = [path for path in server.received.iterdir() if other.SOPInstanceUID in path.name]
        stored = dcmread(arrived, force=True)
        seen = {check.name: check.seen for check in examine(context.settings)}["destination PACS"]
        assert "heat maps go uncompressed" in seen
        receive(context, film(2))
        work(context)
        send_all(context)
    assert made(context) == [("sr", 1), ("heatmap", 1), ("heatmap-plain", 1)] * 2
    assert stored.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert {first.SOPInstanceUID, first.SeriesInstanceUID}.isdisjoint(
        {other.SOPInstanceUID, other.SeriesInstanceUID}
    )
    assert np.abs(first.pixel_array.astype(int) - stored.pixel_array).max() <= 3
    assert other.LossyImageCompression == "01"
    assert other.LossyImageCompressionRatio == first.LossyImageCompressionRatio


def test_a_pacs_that_takes_neither_form_parks_the_report_and_says_so(context: Context) -> None:
    with StoreScp(SecondaryCaptureImageStorage) as server:
        goes_to(context, {"url": server.destination, "objects": ["sr"]})
        receive(context, film())
        work(context)
        send_all(context)
    assert outbox(context) == {("sr", 1): "withdrawn", ("comprehensive-sr", 1): "parked"}
    assert "accepts neither" in str(study(context).attention)
    assert study(context).state == StudyState.REPORTED


def test_a_destination_that_says_comprehensive_is_never_offered_3d(
    context: Context, old_pacs: StoreScp
) -> None:
    goes_to(context, {"url": old_pacs.destination, "sr": "comprehensive", "objects": ["sr"]})
    receive(context, film())
    work(context)
    assert outbox(context) == {("comprehensive-sr", 1): "pending"}
    send_all(context, 1)
    assert study(context).state == StudyState.DELIVERED


def test_what_was_sent_in_the_other_form_is_not_sent_in_the_first_when_a_held_study_is_right_again(
    context: Context, old_pacs: StoreScp
) -> None:
    goes_to(context, {"url": old_pacs.destination, "objects": ["sr"]})
    receive(context, film(1, study="s", PatientID="A"))
    work(context)
    send_all(context)
    receive(context, factories.lateral_film(2, study="s", PatientID="B", **_SMALL))
    conclude_due_studies(context.ledger)
    assert study(context).state == StudyState.HELD
    with context.ledger.write() as session:  # as if the header had never changed
        session.execute(update(Study).values(header_revision=0, due_at=now()))
        from service.core.tables import Instance

        session.execute(update(Instance).where(Instance.id == 2).values(state="superseded"))
    conclude_due_studies(context.ledger)
    assert outbox(context) == {("sr", 1): "withdrawn", ("comprehensive-sr", 1): "delivered"}
    assert study(context).state == StudyState.DELIVERED


def test_a_report_whose_file_is_gone_is_parked_and_not_tried_for_ever(
    context: Context, old_pacs: StoreScp
) -> None:
    goes_to(context, {"url": old_pacs.destination, "objects": ["sr"]})
    receive(context, film())
    work(context)
    context.spool.remove(reports(context)[0].path)
    send_all(context)
    assert outbox(context) == {("sr", 1): "parked"}


def test_a_revision_in_the_other_form_replaces_what_was_sent_in_that_form(
    context: Context, old_pacs: StoreScp
) -> None:
    goes_to(context, {"url": old_pacs.destination, "objects": ["sr"]})
    for seed in (1, 2):
        receive(context, film(seed, study="s"))
        work(context)
        send_all(context)
    first, second = read(context, "comprehensive-sr", 1), read(context, "comprehensive-sr", 2)
    assert predecessors(second) == [first.SOPInstanceUID]
    assert predecessors(read(context, "sr", 2)) == [read(context, "sr", 1).SOPInstanceUID]
    assert (first.SeriesInstanceUID, first.InstanceNumber) == (second.SeriesInstanceUID, 1)
    assert second.InstanceNumber == 2


# --- what else is made


_FOCUS = np.pad(np.ones((4, 4), np.float32), 4)
_ALL = ["sr", "heatmap", "text", "gsps", "pdf"]


def test_by_default_only_a_report_and_a_heat_map_are_made(context: Context) -> None:
    goes_to(context, {})
    receive(context, film())
    work(context)
    assert made(context) == [("sr", 1), ("heatmap", 1)]


def test_each_kind_has_a_series_of_its_own_and_goes_to_the_one_that_wants_it(
    context: Context, pacs: StoreScp
) -> None:
    url = pacs.destination
    goes_to(context, {"url": url, "objects": _ALL}, {"name": "OTHER", "url": url})
    for seed in (1, 2):
        receive(context, film(seed, study="s"))
        work(context)
        send_all(context, 1)
    found = [(item, dcmread(context.spool.absolute(item.path))) for item in reports(context)]
    by_kind: dict[str, set[str]] = {}
    for item, dataset in found:
        by_kind.setdefault(item.kind, set()).add(dataset.SeriesInstanceUID)
        assert dataset.SOPClassUID == item.sop_class_uid
        assert int(dataset.InstanceNumber) % 100 == item.revision
        assert item.size < 1_000_000
    assert sorted(by_kind) == sorted(_ALL)
    assert {len(series) for series in by_kind.values()} == {1}
    assert len(set.union(*by_kind.values())) == len(_ALL)
    assert len({dataset.SeriesNumber for _, dataset in found}) == len(_ALL)
    assert {kind for kind, _ in outbox(context)} == set(_ALL)
    assert {kind for kind, _ in outbox(context, "OTHER")} == {"sr", "heatmap"}
    assert study(context).state == StudyState.DELIVERED


def test_every_kind_built_again_after_a_crash_is_the_same_object(context: Context) -> None:
    goes_to(context, {"objects": _ALL}, {"name": "B", "sr": "comprehensive", "objects": ["sr"]})
    receive(context, film())
    work(context)
    first = {(item.kind, item.sop_instance_uid, item.series_instance_uid) for item in reports(context)}
    with context.ledger.write() as session:
        for table in (Outbox, Report):
            session.execute(delete(table))
        session.execute(update(Revision).values(state=RevisionState.PENDING, ready_at=now()))
    report.run(context)
    again = {(item.kind, item.sop_instance_uid, item.series_instance_uid) for item in reports(context)}
    assert again == first
    assert len(first) == 6


def test_a_pdf_reader_is_told_by_pdf_that_a_result_is_taken_back(context: Context) -> None:
    goes_to(context, {"objects": ["pdf"]})
    for options in ({}, _ADULT):
        receive(context, film(**options))
        work(context)
        hurry(context, Outbox)
        send_all(context, 1)
    assert documents(context) == [("sr", 1), ("pdf", 1), ("not-analysed", 2), ("pdf", 2)]
    assert outbox(context) == {("pdf", 1): "withdrawn", ("pdf", 2): "pending"}
    first, second = read(context, "pdf", 1), read(context, "pdf", 2)
    assert second.SeriesInstanceUID == first.SeriesInstanceUID


def test_a_reader_of_the_objects_finds_what_the_api_says(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_to(context, {"objects": _ALL, "heatmap": "positive"}, {"name": "B", "sr": "comprehensive"})
    answers = [("present", 0.91234, "viral"), ("indeterminate", 0.4712, None), ("absent", 0.49996, None)]
    for seed, (finding, probability, pattern) in enumerate(answers):
        turned = (HANGINGS[seed].flag,)
        said = Prediction(probability, finding, None, _FOCUS, pattern, turned, 0.1)
        predictor = SimpleNamespace(predict=lambda films, said=said: [said] * len(films))
        monkeypatch.setattr(infer, "_predictor", lambda *_, predictor=predictor: predictor)
        receive(context, film(seed, BurnedInAnnotation="YES"))
        work(context)
        uid = study(context).study_instance_uid
        with context.ledger.read() as session:
            told = api_study(session, uid)
        assert told is not None
        answer = told.model_dump(mode="json")
        assert (answer["result"]["finding"], answer["result"]["pattern"]) == (finding, pattern)
        assert len(answer["result"]["flags"]) == 2
        made_of_it = [item for item in reports(context) if item.study_id == study(context).id]
        assert {item.kind for item in made_of_it} >= {"sr", "comprehensive-sr", "text"}
        assert_says_what_the_api_says(
            answer, [context.spool.absolute(item.path).read_bytes() for item in made_of_it]
        )


# --- rejection notes


def rejected(dataset: Dataset) -> set[str]:
    """Return the SOP Instance UIDs that a rejection note rejects."""
    assert dataset.ConceptNameCodeSequence[0].CodeValue == "113001"
    evidence = dataset.CurrentRequestedProcedureEvidenceSequence
    return {
        reference.ReferencedSOPInstanceUID
        for item in evidence
        for series in item.ReferencedSeriesSequence
        for reference in series.ReferencedSOPSequence
    }


def test_a_revision_rejects_what_the_one_before_sent_there(context: Context, pacs: StoreScp) -> None:
    url = pacs.destination
    goes_to(
        context,
        {"url": url, "objects": ["sr", "heatmap", "rejection"]},
        {"name": "B", "url": url, "objects": ["sr", "rejection"]},
        {"name": "C", "url": url},
    )
    for seed in (1, 2, 3):
        receive(context, film(seed, study="s"))
        work(context)
        send_all(context, 1)
    sent = {
        revision: {
            item.sop_instance_uid
            for item in reports(context)
            if item.revision == revision and item.kind != "rejection"
        }
        for revision in (1, 2)
    }
    for revision in (2, 3):
        both, sr_alone = sent[revision - 1], {read(context, "sr", revision - 1).SOPInstanceUID}
        notes = [
            dcmread(context.spool.absolute(item.path))
            for item in reports(context)
            if (item.kind, item.revision) == ("rejection", revision)
        ]
        assert sorted(map(sorted, map(rejected, notes))) == sorted(map(sorted, (both, sr_alone)))
        assert len({note.SOPInstanceUID for note in notes}) == 2
        assert len({note.InstanceNumber for note in notes}) == 2
    assert ("rejection", 1) not in made(context)
    assert "rejection" not in {kind for kind, _ in outbox(context, "C")}
    assert study(context).state == StudyState.DELIVERED


def test_what_was_never_delivered_is_neither_rejected_nor_sent_any_more(context: Context) -> None:
    goes_to(context, {"objects": ["sr", "rejection"]}, {"name": "PLAIN", "objects": ["sr"]})
    for seed in (1, 2):
        receive(context, film(seed, study="s"))
        work(context)
    assert outbox(context) == {("sr", 1): "withdrawn", ("sr", 2): "pending"}
    assert outbox(context, "PLAIN") == {("sr", 1): "pending", ("sr", 2): "pending"}


def test_a_note_that_was_withdrawn_has_rejected_nothing(context: Context, pacs: StoreScp) -> None:
    goes_to(context, {"url": pacs.destination, "objects": ["sr", "rejection"]})
    receive(context, film(1, study="s"))
    work(context)
    send_all(context, 1)
    receive(context, film(2, study="s"))
    work(context)
    assert outbox(context)[("rejection", 2)] == "pending"
    # Two patients: what waits is not sent any more.
    receive(context, factories.lateral_film(3, study="s", PatientID="B", **_SMALL))
    conclude_due_studies(context.ledger)
    assert outbox(context)[("rejection", 2)] == "withdrawn"
    with context.ledger.write() as session:
        stranger = select(Instance).order_by(Instance.id.desc()).limit(1)
        session.scalars(stranger).one().state = InstanceState.REJECTED
    receive(context, film(4, study="s"))
    work(context)
    assert rejected(read(context, "rejection", 3)) == {read(context, "sr").SOPInstanceUID}


def test_a_rejection_note_waits_for_a_delivery_under_way(context: Context) -> None:
    goes_to(context, {"objects": ["sr", "rejection"]})
    receive(context, film(1, study="s"))
    work(context)
    with context.ledger.write() as session:
        session.execute(update(Outbox).values(lease_until=now() + timedelta(seconds=30)))
    receive(context, film(2, study="s"))
    work(context)
    assert ("sr", 2) not in made(context)
    with context.ledger.write() as session:
        session.execute(update(Outbox).values(lease_until=None, state="delivered"))
    hurry(context, Revision)
    report.run(context)
    assert rejected(read(context, "rejection", 2)) == {read(context, "sr").SOPInstanceUID}


def test_a_result_taken_back_is_rejected_where_that_is_asked_for(context: Context, pacs: StoreScp) -> None:
    goes_to(context, {"url": pacs.destination, "objects": ["sr", "rejection"]})
    receive(context, film())
    work(context)
    send_all(context, 1)
    receive(context, film(**_ADULT))
    work(context)
    assert rejected(read(context, "rejection", 2)) == {read(context, "sr").SOPInstanceUID}
    send_all(context, 1)
    assert set(outbox(context).values()) == {"delivered"}


# --- what comes too late


def aged(context: Context, age: timedelta) -> None:
    with context.ledger.write() as session:
        session.execute(update(Study).values(received_at=now() - age))


def test_a_result_that_is_made_too_late_waits_for_a_person(context: Context, pacs: StoreScp) -> None:
    url = pacs.destination
    goes_to(context, {"url": url, "expires_after": "24h", "objects": ["sr"]}, {"name": "B", "url": url})
    receive(context, film())
    aged(context, timedelta(hours=30))
    work(context)
    send_all(context, 1)
    assert outbox(context) == {("sr", 1): "parked"}
    assert set(outbox(context, "B").values()) == {"delivered"}
    assert "made 30 h after the study's first image came" in str(study(context).attention)
    assert study(context).state == StudyState.REPORTED
    retry(context)
    send_all(context, 1)
    assert outbox(context) == {("sr", 1): "delivered"}
    assert (study(context).state, study(context).attention) == (StudyState.DELIVERED, None)


def test_a_result_that_is_made_in_time_is_sent(context: Context) -> None:
    goes_to(context, {"expires_after": "24h"})
    receive(context, film())
    aged(context, timedelta(hours=23))
    work(context)
    assert set(outbox(context).values()) == {"pending"}


def test_the_correction_of_what_a_destination_holds_never_expires(context: Context, pacs: StoreScp) -> None:
    goes_to(context, {"url": pacs.destination, "expires_after": "24h", "objects": ["sr"]})
    receive(context, film())
    work(context)
    send_all(context, 1)
    aged(context, timedelta(days=9))
    receive(context, film(**_ADULT))
    work(context)
    assert outbox(context)[("not-analysed", 2)] == "pending"


def test_a_parked_late_result_is_not_sent_because_the_study_was_held_meanwhile(context: Context) -> None:
    goes_to(context, {"expires_after": "1h", "objects": ["sr"]})
    receive(context, film(1, study="s", PatientID="A"))
    aged(context, timedelta(hours=2))
    work(context)
    receive(context, factories.lateral_film(2, study="s", PatientID="B", **_SMALL))
    conclude_due_studies(context.ledger)
    assert outbox(context) == {("sr", 1): "parked"}
    retry(context)
    assert outbox(context) == {("sr", 1): "parked"}
