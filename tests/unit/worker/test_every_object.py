"""What holds for every kind of result object: valid, the patient's name whole, no letter lost."""

import warnings
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ComputedRadiographyImageStorage

from service.core.results import ModelIdentity, Result
from tests.unit.worker.reports import (
    LATERAL,
    MODEL,
    NAMES,
    NEGATIVE,
    POSITIVE,
    STUDY,
    as_read,
    complaints,
    context,
    encoded,
    header,
    image,
    minimal_header,
    of_series,
    reading,
    reread,
)
from worker.assessment import build_assessment
from worker.comprehensive import comprehensive_of
from worker.document import build_document
from worker.encoding import save
from worker.heatmap import build_heatmap, plain_of
from worker.presentation_state import build_presentation_state
from worker.rejection_note import build_rejection_note
from worker.structured_report import build_structured_report
from worker.text_report import build_text_report


def every_object(
    source: Dataset, result: Result = POSITIVE, unread: Result = LATERAL, **changed: Any
) -> dict[str, Dataset]:
    """Return one object of each kind about a film, and those about a film that was not analysed."""
    film, refused = image(result, source), image(unread, source)
    report = build_structured_report([film], context(film, **changed))
    heatmap = build_heatmap(film, of_series(9002, film, **changed))
    sent = [reread(item, stop_before_pixels=True) for item in (report, heatmap)]
    return {
        "structured report": report,
        "comprehensive copy": comprehensive_of(
            reread(report),
            series_instance_uid=f"{STUDY}.9008",
            sop_instance_uid=f"{STUDY}.9008.1",
            predecessors=(),
        ),
        "heat map": heatmap,
        "uncompressed heat map": plain_of(
            heatmap, series_instance_uid=f"{STUDY}.9009", sop_instance_uid=f"{STUDY}.9009.1"
        ),
        "text": build_text_report([film], of_series(9003, film, **changed)),
        "presentation state": build_presentation_state([film], of_series(9005, film, **changed)),
        "page": build_document([film], of_series(9006, film, **changed)),
        "rejection note": build_rejection_note(sent, of_series(9007, film, **{**changed, "revision": 2})),
        "assessment": build_assessment(sent[:1], reading(result), of_series(9008, film, **changed)),
        "not analysed": build_text_report([refused], of_series(9004, refused, **changed)),
        "page of not analysed": build_document([refused], of_series(9006, refused, **changed)),
    }


_TRIAL = {
    "ClinicalTrialSponsorName": "Sponsor",
    "ClinicalTrialProtocolID": "P-1",
    "ClinicalTrialProtocolName": "",
    "ClinicalTrialSiteID": "",
    "ClinicalTrialSiteName": "",
    "ClinicalTrialSubjectID": "S-1",
    "ClinicalTrialTimePointID": "T0",
}


@pytest.mark.parametrize(("character_set", "name"), NAMES)
def test_every_object_is_valid_and_has_all_groups_of_the_name(
    character_set: str | list[str], name: str, tmp_path: Path
) -> None:
    source = as_read(
        header(SpecificCharacterSet=character_set, PatientName=name, ReferringPhysicianName=name)
    )
    for kind, built in every_object(source).items():
        assert complaints(built, tmp_path) == [], kind
        stored = reread(built)
        assert stored.PatientName == name, kind
        assert stored.PatientName.components == source.PatientName.components, kind
        assert stored.SpecificCharacterSet == source.SpecificCharacterSet, kind


def texts(item: Dataset) -> list[str]:
    """Return every text in a data set, names and code meanings included."""
    found = []
    for element in item:
        if element.VR == "SQ":
            found += [text for child in element.value for text in texts(child)]
        elif element.VR in ("LO", "LT", "PN", "SH", "ST", "UC", "UT"):
            found.append(str(element.value))
    return found


@pytest.mark.parametrize(("character_set", "name"), NAMES)
def test_every_object_is_written_with_the_bytes_of_pydicom(character_set: str | list[str], name: str) -> None:
    source = header(SpecificCharacterSet=character_set, PatientName=name, StudyDescription="Rö" * 5)
    for what, item in every_object(source).items():
        stream = BytesIO()
        save(item, stream)
        assert stream.getvalue() == encoded(item), what


def test_no_letter_of_any_object_becomes_a_question_mark(tmp_path: Path) -> None:
    # Neither the Latin nor the Cyrillic set has all of these.
    source = as_read(
        header(SpecificCharacterSet="ISO_IR 144", PatientName="Петрова^Ольга", ReferringPhysicianName="")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # pydicom warns when it writes a question mark
        built = every_object(
            source,
            replace(POSITIVE, flags=("exposure ≥ 400 µGy",)),
            replace(LATERAL, reason="age ≥ 6 years"),
            model=ModelIdentity("Thorax-Prüfer", "1.0 ≥ 0.9", MODEL.sha256),
            activation_method="Activation ≥ half",
        )
        stored = {kind: reread(item) for kind, item in built.items()}
    for kind, item in stored.items():
        assert item.SpecificCharacterSet == "ISO_IR 192", kind
        assert item.PatientName == "Петрова^Ольга", kind
        assert "1.0 ≥ 0.9" in " ".join(texts(item)), kind
        assert "?" not in " ".join(texts(item)), kind
        assert complaints(item, tmp_path) == [], kind


def test_every_object_of_a_clinical_trial_names_it_whole(tmp_path: Path) -> None:
    for kind, built in every_object(as_read(header(**_TRIAL))).items():
        assert complaints(built, tmp_path) == [], kind
        assert {keyword: built.get(keyword) for keyword in _TRIAL} == _TRIAL, kind


@pytest.mark.parametrize("missing", ["ClinicalTrialSponsorName", "ClinicalTrialSubjectID"])
def test_half_a_clinical_trial_is_left_out(missing: str, tmp_path: Path) -> None:
    source = as_read(header(**{**_TRIAL, missing: None}))
    report = every_object(source)["structured report"]
    assert complaints(report, tmp_path) == []
    assert [keyword for keyword in _TRIAL if keyword in report] == ["ClinicalTrialTimePointID"]


@pytest.mark.parametrize(
    "source",
    [
        minimal_header(),
        header(TimezoneOffsetFromUTC="+0530", PatientBirthDate=None, PatientSex=None, StudyID=None),
        header(SOPClassUID=ComputedRadiographyImageStorage, Modality="CR", InstitutionName="Klinikum Süd"),
    ],
    ids=["minimal", "gaps", "computed radiography"],
)
def test_dciodvfy_finds_nothing_to_say_about_any_object(source: Dataset, tmp_path: Path) -> None:
    for kind, built in every_object(as_read(source) if "PatientName" in source else source, NEGATIVE).items():
        assert complaints(built, tmp_path) == [], kind


def test_dciodvfy_takes_a_record_of_two_lossy_steps_for_one_step_too_many(tmp_path: Path) -> None:
    """PS3.3 C.7.6.1.1.5 asks for every step; the validator knows that of the transfer syntax alone."""
    source = header(
        LossyImageCompression="01", LossyImageCompressionRatio=10, LossyImageCompressionMethod="ISO_15444_1"
    )
    said = {kind: complaints(built, tmp_path) for kind, built in every_object(as_read(source)).items()}
    (warning,) = said.pop("heat map")
    assert warning.endswith("method inconsistent with Transfer Syntax = <ISO_15444_1>")
    assert not any(said.values())


def test_dciodvfy_recognizes_no_code_of_the_site_s_own(tmp_path: Path) -> None:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "THX", "99LOCAL", "Thorax p.a."
    film = image(POSITIVE, as_read(header(ProcedureCodeSequence=[code])))
    (warning,) = complaints(build_structured_report([film], context(film)), tmp_path)
    assert warning.endswith("Unrecognized defined term = <99LOCAL>")
