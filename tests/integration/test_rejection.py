"""Rejection notes of an archive (IHE IOCM): images that are taken out of use, and what was said of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pydicom.sequence import Sequence
from pydicom.uid import generate_uid
from sqlalchemy import select, update

from service.core.errors import Unreadable
from service.core.settings import load
from service.core.states import InstanceState, StudyState
from service.core.tables import Event, Instance, Outbox, Rejection, Report
from tests import factories
from tests.factories import key_object_note
from tests.ledgers import migrated
from tests.pipeline import film, instances, receive, reports, says, send_all, study, work
from tests.servers import StoreScp
from worker.context import Context
from worker.tasks import decode, deliver

LOCAL_TITLE = Dataset()
LOCAL_TITLE.CodeValue, LOCAL_TITLE.CodingSchemeDesignator, LOCAL_TITLE.CodeMeaning = "113001", "99SITE", "x"
WITHDRAWING = ("113001", "113037", "113038")


@pytest.fixture(params=["sqlite", "postgresql"])
def context(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Context]:
    """A worker's context on each database, with a network that calls every film positive."""
    url = None if request.param == "sqlite" else request.getfixturevalue("postgresql")
    settings = load(
        data_dir=tmp_path,
        study_quiet_seconds=0,
        min_free_bytes=0,
        database_url=url,
        destinations="PACS=dicom://PACS@127.0.0.1:9",
    )
    migrated(settings.sqlalchemy_url)
    opened = Context.open(settings)
    says(monkeypatch, 0.9)
    yield opened
    opened.ledger.close()


only_sqlite = pytest.mark.parametrize("context", ["sqlite"], indirect=True)


@pytest.fixture(scope="module")
def pacs() -> Iterator[StoreScp]:
    """A PACS that takes SR documents and heat maps."""
    classes = ("1.2.840.10008.5.1.4.1.1.88.34", "1.2.840.10008.5.1.4.1.1.88.22")
    with StoreScp(*classes, "1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.88.59") as server:
        yield server


def goes_to(context: Context, url: str, **more: Any) -> None:
    kept = {name: getattr(context.settings, name) for name in ("data_dir", "database_url")}
    destinations = [{"name": "PACS", "url": url, **more}]
    context.settings = load(**kept, study_quiet_seconds=0, min_free_bytes=0, destinations=destinations)


def outbox(context: Context) -> dict[tuple[str, int], str]:
    with context.ledger.read() as session:
        rows = session.execute(select(Report.kind, Report.revision, Outbox.state).join(Outbox))
        return {(kind, revision): state for kind, revision, state in rows}


def states(context: Context) -> list[str]:
    """Return the states of the images, without the notes."""
    return [item.state for item in instances(context) if item.state != InstanceState.IGNORED]


def details(context: Context, kind: str) -> list[str]:
    with context.ledger.read() as session:
        return list(session.scalars(select(Event.detail).where(Event.kind == kind).order_by(Event.id)))


def read(context: Context, kind: str, revision: int) -> Dataset:
    (found,) = [item for item in reports(context) if (item.kind, item.revision) == (kind, revision)]
    return dcmread(context.spool.absolute(found.path))


def sources(document: Dataset) -> set[str]:
    """Return the SOP Instance UIDs that a document names as its evidence."""
    return {
        item.ReferencedSOPInstanceUID
        for study in document.CurrentRequestedProcedureEvidenceSequence
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }


@pytest.mark.parametrize("code", WITHDRAWING)
def test_a_rejected_image_leaves_the_result_and_the_rest_is_reported_anew(
    context: Context, pacs: StoreScp, code: str
) -> None:
    goes_to(context, pacs.destination)
    good, bad = film(1, study="s"), film(2, study="s")
    receive(context, good, bad)
    work(context)
    send_all(context, 1)
    receive(context, key_object_note(bad, code=code))
    assert states(context) == ["analysed", "rejected"]
    work(context)
    newest = read(context, "sr", 2)
    assert sources(newest) == {good.SOPInstanceUID}
    assert "Revision 2, replaces revision 1" in newest.to_json()
    send_all(context, 1)
    assert outbox(context)[("sr", 2)] == "delivered"
    assert (study(context).revision, study(context).state) == (2, StudyState.DELIVERED)
    assert code in details(context, "rejected")[0]


def test_a_study_that_is_rejected_whole_takes_its_result_back(context: Context, pacs: StoreScp) -> None:
    goes_to(context, pacs.destination, not_analysed="never")
    image = film()
    receive(context, image)
    work(context)
    send_all(context, 1)
    receive(context, key_object_note(image, code="113038"))
    work(context)
    assert (study(context).finding, study(context).probability) == ("not_analysed", None)
    told = read(context, "not-analysed", 2)
    assert "Incorrect Modality Worklist Entry" in told.to_json()
    assert [
        item.ReferencedSOPInstanceUID
        for replaced in told.PredecessorDocumentsSequence
        for series in replaced.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    ] == [read(context, "sr", 1).SOPInstanceUID]
    send_all(context, 1)
    assert outbox(context)[("not-analysed", 2)] == "delivered"
    assert study(context).attention is None


def test_what_waits_to_be_sent_is_withdrawn_as_the_note_comes(context: Context) -> None:
    image = film()
    receive(context, image)
    work(context)
    assert set(outbox(context).values()) == {"pending"}
    receive(context, key_object_note(image))
    assert set(outbox(context).values()) == {"withdrawn"}
    work(context)
    deliver.run(context)
    # Nobody holds a result, so nothing is put beside the rejected images, and no deliveries come back.
    assert set(outbox(context).values()) == {"withdrawn"}
    assert study(context).finding == "not_analysed"


@only_sqlite
def test_an_archive_that_rejected_our_report_too_is_sent_nothing_more(
    context: Context, pacs: StoreScp
) -> None:
    goes_to(context, pacs.destination)
    image = film()
    receive(context, image)
    work(context)
    send_all(context, 1)
    ours = [dcmread(context.spool.absolute(item.path)) for item in reports(context)]
    receive(context, key_object_note(image, *ours, code="113037"))
    work(context)
    assert {key for key in outbox(context) if key[1] > 1} == set()
    assert (study(context).finding, study(context).attention) == ("not_analysed", None)
    assert f"{len(ours)} of our report(s)" in details(context, "rejected")[0]


@pytest.mark.parametrize("code", WITHDRAWING)
def test_a_note_that_comes_before_its_image_rejects_it_too(context: Context, code: str) -> None:
    image = film()
    receive(context, key_object_note(image, code=code), image)
    work(context)
    assert states(context) == ["rejected"]
    assert not reports(context)
    assert study(context).finding == "not_analysed"
    assert not list((context.spool.root / "spool").rglob("*.dcm"))


def test_a_rejected_image_that_comes_again_stays_rejected_whatever_its_header_says(context: Context) -> None:
    image = film()
    receive(context, image, key_object_note(image))
    work(context)
    receive(context, image, film(AccessionNumber="FIXED"))
    work(context)
    assert states(context) == ["rejected", "rejected"]
    assert not reports(context)


@only_sqlite
def test_the_corrected_image_under_a_uid_of_its_own_is_analysed(context: Context) -> None:
    image = film(1, study="s")
    receive(context, image)
    work(context)
    receive(context, key_object_note(image), film(2, study="s"))
    work(context)
    assert states(context) == ["rejected", "analysed"]
    assert study(context).finding == "present"
    assert len(sources(read(context, "sr", 2))) == 1


def test_a_note_sent_twice_changes_nothing_the_second_time(context: Context) -> None:
    good, bad = film(1, study="s"), film(2, study="s")
    receive(context, good, bad)
    work(context)
    note = key_object_note(bad)
    for again in (note, note, key_object_note(bad, code="113037", seed=2)):
        receive(context, again)
        work(context)
    assert study(context).revision == 2
    with context.ledger.read() as session:
        assert [row.code for row in session.scalars(select(Rejection))] == ["113001"]


def test_an_image_whose_retention_expired_keeps_its_result_and_may_come_again(context: Context) -> None:
    image = film()
    receive(context, image)
    work(context)
    receive(context, key_object_note(image, code="113039"), film(AccessionNumber="FIXED"))
    work(context)
    assert states(context) == ["superseded", "analysed"]
    assert (study(context).finding, study(context).revision) == ("present", 2)
    assert "what was said of them holds" in details(context, "expired")[0]


@only_sqlite
@pytest.mark.parametrize("step", ["received", "decoded", "built"])
def test_a_note_that_comes_while_the_image_is_in_work_ends_that(
    context: Context, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = film()
    receive(context, image)
    if step == "decoded":
        decode.run(context)
    if step == "received":
        # The note comes while a worker has the film in its hands.
        prepare = decode.prepare

        def slow(*arguments: Any) -> Any:
            receive(context, key_object_note(image))
            return prepare(*arguments)

        monkeypatch.setattr(decode, "prepare", slow)
        decode.run(context)
    elif step == "built":
        work(context)
        with context.ledger.write() as session:
            session.execute(update(Outbox).values(lease_owner="somebody", lease_token=7))
        receive(context, key_object_note(image))
    else:
        receive(context, key_object_note(image))
    monkeypatch.undo()
    says(monkeypatch, 0.9)
    work(context)
    assert states(context) == ["rejected"]
    assert set(outbox(context).values()) <= {"withdrawn"}
    assert study(context).finding == "not_analysed"


@only_sqlite
def test_a_study_held_for_two_patients_goes_on_when_the_stranger_s_image_is_rejected(
    context: Context,
) -> None:
    mine, stranger = film(1, study="s", PatientID="A"), film(2, study="s", PatientID="B")
    receive(context, mine, stranger)
    work(context)
    assert study(context).state == StudyState.HELD
    receive(context, key_object_note(stranger, code="113038", PatientID="A"))
    work(context)
    assert (study(context).state, study(context).attention) == (StudyState.REPORTED, None)
    assert sources(read(context, "sr", 1)) == {mine.SOPInstanceUID}


@only_sqlite
def test_a_film_for_processing_stands_in_when_its_presentation_is_rejected(context: Context) -> None:
    shown = film(1, study="s")
    raw = factories.for_processing_film(2, study="s", rows=489, columns=460)
    receive(context, shown, raw)
    work(context)
    assert states(context) == ["analysed", "not_analysed"]
    receive(context, key_object_note(shown))
    work(context)
    assert states(context) == ["rejected", "analysed"]
    assert sources(read(context, "sr", 2)) == {raw.SOPInstanceUID}


# --- what is no rejection of ours to follow


@only_sqlite
def test_our_own_notes_that_an_archive_routes_back_reject_nothing(context: Context, pacs: StoreScp) -> None:
    goes_to(context, pacs.destination, objects=["sr", "rejection"])
    receive(context, film(1, study="s"))
    work(context)
    send_all(context, 1)
    receive(context, film(2, study="s"))
    work(context)
    receive(context, read(context, "rejection", 2))
    work(context)
    assert study(context).revision == 2
    assert not details(context, "rejected")
    with context.ledger.read() as session:
        assert not session.scalars(select(Rejection)).all()


@only_sqlite
@pytest.mark.parametrize(
    "change",
    [
        {"code": "113000"},
        {"ConceptNameCodeSequence": Sequence([LOCAL_TITLE])},
        {"ConceptNameCodeSequence": Sequence()},
        {"ConceptNameCodeSequence": None},
        {"CurrentRequestedProcedureEvidenceSequence": None},
    ],
    ids=["bookmark", "title of another scheme", "no title", "no title at all", "names nothing"],
)
def test_another_selection_of_key_objects_rejects_nothing(context: Context, change: dict[str, Any]) -> None:
    image = film()
    receive(context, image)
    work(context)
    receive(context, key_object_note(image, **change))
    work(context)
    assert states(context) == ["analysed"]
    assert study(context).revision == 1


@only_sqlite
def test_a_note_reaches_no_further_than_its_own_study(context: Context) -> None:
    image, other = film(1), film(2)
    receive(context, image, other)
    work(context)
    receive(context, key_object_note(image, other))
    work(context)
    assert states(context) == ["rejected", "analysed"]
    assert "1 object(s) of other studies passed over" in details(context, "rejected")[0]


@only_sqlite
def test_a_note_of_thousands_of_slices_is_not_remembered_slice_by_slice(context: Context) -> None:
    image, slices = film(1, study="s"), factories.ct_slice(2, study="s")
    receive(context, image)
    note = key_object_note(image, slices)
    (_, series) = note.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    for _ in range(2000):
        again = Dataset()
        again.ReferencedSOPClassUID = slices.SOPClassUID
        again.ReferencedSOPInstanceUID = generate_uid()
        series.ReferencedSOPSequence.append(again)
    again.ReferencedSOPInstanceUID = "1." + "2" * 70  # too long for a UID, and for PostgreSQL
    receive(context, note)
    with context.ledger.read() as session:
        assert session.scalars(select(Rejection.sop_instance_uid)).all() == [image.SOPInstanceUID]


@only_sqlite
def test_a_note_that_is_too_large_to_be_followed_is_refused_and_not_passed_over(context: Context) -> None:
    image = film()
    receive(context, image)
    note = key_object_note(image)
    item = note.CurrentRequestedProcedureEvidenceSequence[0]
    item.ReferencedSeriesSequence.extend(Dataset() for _ in range(60_000))
    with pytest.raises(Unreadable):
        receive(context, note)
    with context.ledger.read() as session:
        assert len(session.scalars(select(Instance)).all()) == 1
