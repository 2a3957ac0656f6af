"""Whose film it is when the archive thinks again: merged, corrected, swapped, rejected on a real Orthanc."""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from pydicom import Dataset, dcmread
from sqlalchemy import func, select

from service.core.settings import load
from service.core.states import AnalysisState, StudyState
from service.core.tables import Analysis
from tests import factories, pipeline
from tests.ledgers import migrated
from tests.servers import Orthanc
from worker.context import Context


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Context, Orthanc]]:
    """A worker's context that delivers to an Orthanc, with a network that calls every film positive."""
    with Orthanc(DicomAlwaysAllowFind=True) as orthanc:
        yield _opened(orthanc, tmp_path, monkeypatch), orthanc


def _opened(orthanc: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    settings = load(
        data_dir=tmp_path / "data",
        study_quiet_seconds=0,
        min_free_bytes=0,
        destinations=f"PACS={orthanc.destination}",
    )
    migrated(settings.sqlalchemy_url)
    context = Context.open(settings)
    pipeline.says(monkeypatch, 0.9)
    return context


def push(context: Context, orthanc: Orthanc, folder: Path, *films: Dataset) -> None:
    """Let the archive have the films and route them here, and everything be done that follows."""
    for film in films:
        orthanc.store(factories.write(film, folder))
    pipeline.receive(context, *films)
    finish(context)


def finish(context: Context) -> None:
    pipeline.work(context)
    pipeline.send_all(context, 2)


def modify(orthanc: Orthanc, film: Dataset, **replace: str) -> None:
    """Let the archive rewrite a study in its place, as after a merge of patients or a corrected order."""
    keep = ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"]
    for item in orthanc.instances(str(film.StudyInstanceUID)):
        changed = httpx.post(
            f"{orthanc.http_url}/instances/{item.identifier}/modify",
            json={"Replace": replace, "Keep": keep, "Force": True},
            timeout=30,
        ).raise_for_status()
        orthanc.lose(item.identifier)
        httpx.post(f"{orthanc.http_url}/instances", content=changed.content).raise_for_status()


def held(orthanc: Orthanc, film: Dataset) -> list[Dataset]:
    return [
        dcmread(BytesIO(orthanc.download(item))) for item in orthanc.instances(str(film.StudyInstanceUID))
    ]


def analyses(context: Context) -> int:
    with context.ledger.read() as session:
        done = select(func.count()).where(
            Analysis.state == AnalysisState.DONE, Analysis.activation_path != ""
        )
        return session.scalar(done) or 0


@pytest.mark.fault(23)
@pytest.mark.parametrize(
    "change",
    [{"PatientID": "NEW-2", "PatientName": "Merged^Person"}, {"AccessionNumber": "A-NEW"}],
    ids=["merge", "accession fix"],
)
def test_what_the_archive_corrects_after_delivery_and_sends_again_is_reported_as_corrected(
    site: tuple[Context, Orthanc], tmp_path: Path, change: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    context, orthanc = site
    film = pipeline.film(PatientID="OLD-1", AccessionNumber="A-OLD", IssuerOfPatientID="")
    push(context, orthanc, tmp_path, film)
    first = {item.sop_instance_uid for item in pipeline.reports(context)}
    modify(orthanc, film, **change)
    (corrected,) = [item for item in held(orthanc, film) if item.SOPInstanceUID == film.SOPInstanceUID]
    pipeline.says(monkeypatch, 0.1)  # a second look at the same pixels would show
    pipeline.receive(context, corrected)
    finish(context)
    assert pipeline.study(context).revision == 2
    assert pipeline.study(context).probability == pytest.approx(0.9)
    assert [item.state for item in pipeline.instances(context)] == ["superseded", "analysed"]
    there = held(orthanc, film)
    named = {(item.PatientID, item.AccessionNumber) for item in there}
    assert named == {(change.get("PatientID", "OLD-1"), change.get("AccessionNumber", "A-OLD"))}
    second = {item.sop_instance_uid for item in pipeline.reports(context) if item.revision == 2}
    assert second
    assert not first & second
    assert second <= {item.SOPInstanceUID for item in there}


def test_images_of_two_patients_are_not_reported_before_the_stranger_s_are_corrected(
    site: tuple[Context, Orthanc], tmp_path: Path
) -> None:
    context, orthanc = site
    mine, stranger = (pipeline.film(seed, study="s", PatientID=who) for seed, who in ((1, "A"), (2, "B")))
    push(context, orthanc, tmp_path, mine, stranger)
    assert pipeline.study(context).state == StudyState.HELD
    assert "two patients" in str(pipeline.study(context).attention)
    assert {item.Modality for item in held(orthanc, mine)} == {"DX"}
    push(context, orthanc, tmp_path, pipeline.film(2, study="s", PatientID="A"))
    made = [item for item in held(orthanc, mine) if item.Modality != "DX"]
    assert {(item.Modality, item.PatientID) for item in made} == {("SR", "A"), ("OT", "A")}


@pytest.mark.parametrize("whole", [True, False], ids=["the study", "one image"])
def test_what_an_archive_rejects_after_delivery_is_answered_in_the_archive(
    site: tuple[Context, Orthanc], tmp_path: Path, whole: bool
) -> None:
    context, orthanc = site
    good, bad = pipeline.film(1, study="s"), pipeline.film(2, study="s")
    push(context, orthanc, tmp_path, good, bad)
    note = factories.key_object_note(*([good, bad] if whole else [bad]), code="113038")
    push(context, orthanc, tmp_path, note)
    newest = [
        item
        for item in held(orthanc, good)
        if item.Modality == "SR" and "Revision 2, replaces revision 1" in item.to_json()
    ]
    assert len(newest) == 1
    assert ("Incorrect Modality Worklist Entry" in newest[0].to_json()) == whole
    assert (bad.SOPInstanceUID in newest[0].to_json()) == whole
    assert pipeline.study(context).attention is None
