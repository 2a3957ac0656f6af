import os
import warnings
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import highdicom as hd
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import Comprehensive3DSRStorage, ExplicitVRLittleEndian

from service.core.content_tree import content_tree
from service.core.results import Finding, Result
from tests.unit.worker.reports import (
    COLUMNS,
    LATERAL,
    LIMIT,
    MODEL,
    NEGATIVE,
    OPEN,
    POSITIVE,
    ROWS,
    STUDY,
    as_read,
    complaints,
    context,
    encoded,
    header,
    image,
    minimal_header,
    reread,
    second_revision,
    tool,
)
from worker import codes, wording
from worker.rendering import render_text
from worker.source import normalised
from worker.structured_report import ImageResult, build_structured_report

GOLDEN = Path(__file__).parents[2] / "golden" / "sr"
# The tests' conftest clears HILUM_ variables, hence --noconftest.
REWRITE = (
    "HILUM_REWRITE_GOLDEN=1 .venv/bin/python -m pytest --noconftest -k golden "
    "tests/unit/worker/test_structured_report.py"
)

FRONTAL_AND_LATERAL = (image(POSITIVE), image(LATERAL, header(2, ViewPosition="LL")))
FRONTALS = (image(NEGATIVE), image(POSITIVE, header(2)))


def build(*images: ImageResult) -> Dataset:
    return build_structured_report(images, context(*images))


REPORTS = {
    "positive": lambda: build(image(POSITIVE)),
    "negative": lambda: build(image(NEGATIVE)),
    "indeterminate": lambda: build(image(OPEN)),
    "two-images": lambda: build(*FRONTAL_AND_LATERAL),
    "two-frontals": lambda: build(*FRONTALS),
    "revision": lambda: build_structured_report([image(NEGATIVE)], second_revision(image(NEGATIVE))),
    "minimal-header": lambda: build(image(POSITIVE, minimal_header())),
}


def items(item: Dataset, value_type: str, concept: Code | None = None) -> list[Dataset]:
    found = []
    for child in item.get("ContentSequence") or []:
        name = child.ConceptNameCodeSequence[0]
        if child.ValueType == value_type and (concept is None or name.CodeValue == concept.value):
            found.append(child)
        found += items(child, value_type, concept)
    return found


def groups(report: Dataset) -> list[Dataset]:
    return items(report, "CONTAINER", Code("125007", "DCM", "Measurement Group"))


def comments(item: Dataset) -> list[str]:
    return [text.TextValue for text in items(item, "TEXT", codes.COMMENT)]


def points(scoord: Dataset) -> list[tuple[float, float]]:
    return list(zip(scoord.GraphicData[0::2], scoord.GraphicData[1::2], strict=True))


@pytest.mark.parametrize("name", REPORTS)
def test_every_number_of_a_report_is_inferred_from_a_closed_outline_of_more_than_five_points(
    name: str,
) -> None:
    report = REPORTS[name]()
    assert groups(report)
    for group in groups(report):
        (number,) = items(group, "NUM")
        (scoord,) = number.ContentSequence
        assert (scoord.ValueType, scoord.RelationshipType) == ("SCOORD", "INFERRED FROM")
        assert scoord.GraphicType == "POLYLINE"
        assert len(points(scoord)) > 5
        assert points(scoord)[0] == points(scoord)[-1]
        assert all(0 <= column <= COLUMNS and 0 <= row <= ROWS for column, row in points(scoord))
        assert scoord.ContentSequence[0].ValueType == "IMAGE"


@pytest.mark.parametrize(
    ("result", "meaning"), [(POSITIVE, "Present"), (NEGATIVE, "Absent"), (OPEN, "Undetermined")]
)
def test_report_has_a_group_of_the_whole_image_whatever_the_finding(result: Result, meaning: str) -> None:
    group = groups(build(image(result)))[0]
    outline = points(items(group, "SCOORD")[0])
    assert len(outline) == 10
    # A viewer's label begins here: low, where it covers no lung.
    assert all(x == 0 and 0.7 * ROWS < y < 0.8 * ROWS for x, y in outline[:2])
    assert {(0, 0), (COLUMNS, 0), (COLUMNS, ROWS), (0, ROWS)} < set(outline)
    presence = items(group, "CODE", codes.PRESENCE)[0].ConceptCodeSequence[0]
    assert presence.CodeMeaning == meaning


def test_a_region_starts_where_its_label_is_clear_of_the_verdict() -> None:
    whole, *regions = groups(build(image(POSITIVE)))
    assert regions
    for region in regions:
        outline = points(items(region, "SCOORD")[0])
        assert outline[0] == outline[-1]
        assert outline[0][1] <= 0.64 * ROWS < points(items(whole, "SCOORD")[0])[0][1]
        assert outline[0][0] >= min(x for x, _ in outline)


def test_the_most_suspicious_image_has_the_first_group() -> None:
    report = build(image(NEGATIVE), image(POSITIVE, header(2)))
    assert "PRESENT" in comments(groups(report)[0])[0]
    assert "ABSENT" in comments(groups(report)[-1])[0]


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (POSITIVE, "AI: pneumonia PRESENT (score 87.3 %, threshold 50 %)."),
        (NEGATIVE, "AI: pneumonia ABSENT (score 7.2 %, threshold 50 %)."),
        (OPEN, "AI: pneumonia INDETERMINATE (score 47.1 %, threshold 50 %)."),
    ],
)
def test_comment_of_a_group_says_the_verdict_in_words(result: Result, said: str) -> None:
    assert comments(groups(build(image(result)))[0])[:2] == [said, "Research use only, not for diagnosis."]


def test_pattern_of_a_positive_is_said_in_words_and_as_a_code() -> None:
    report = build(image(POSITIVE))
    assert "Pattern: bacterial, from the film alone (no microbiology)." in comments(groups(report)[0])
    (pattern,) = items(report.ContentSequence[-1], "CODE", codes.IMPRESSION)
    assert pattern.ConceptCodeSequence[0].CodeMeaning == "Bacterial pneumonia"
    assert items(build(image(NEGATIVE)), "CODE", codes.IMPRESSION) == []


def test_limits_are_stated_with_the_image_and_with_the_study() -> None:
    report = build(image(POSITIVE))
    said = f"Limit: {LIMIT}."
    assert said in comments(groups(report)[0])
    assert said in comments(report.ContentSequence[-1])


@pytest.mark.parametrize("score", [0.4999, 0.49996, 0.499999])
def test_score_is_never_rounded_across_its_threshold(score: float) -> None:
    result = Result(Finding.ABSENT, score, 0.5)
    assert float(wording.percent(result).removesuffix(" %")) < 50
    report = build(image(result))
    assert items(report, "NUM", codes.CERTAINTY_OF_FINDING)[0].MeasuredValueSequence[0].NumericValue < 50
    assert "score 50" not in comments(report)[0]


def test_positive_outlines_its_heat_map_and_measures_the_outline() -> None:
    region = groups(build(image(POSITIVE)))[1]
    (number,) = items(region, "NUM", codes.AREA)
    measured = number.MeasuredValueSequence[0]
    assert measured.MeasurementUnitsCodeSequence[0].CodeValue == "mm2"
    outline = points(items(region, "SCOORD")[0])
    width = (max(c for c, _ in outline) - min(c for c, _ in outline)) * 0.15
    height = (max(r for _, r in outline) - min(r for _, r in outline)) * 0.15
    assert float(measured.NumericValue) == pytest.approx(3.14159 / 4 * width * height, rel=0.03)
    assert comments(region) == [
        "AI heatmap region 1, not the outline of a lesion.",
        "Class activation at least half of its maximum.",
    ]


@pytest.mark.parametrize(
    "spacing",
    [
        {"ImagerPixelSpacing": None},
        {"ImagerPixelSpacing": [0, 0]},
        {"ImagerPixelSpacing": None, "PixelSpacing": [0.15]},
    ],
)
def test_outline_without_a_scale_carries_the_certainty_and_no_area(spacing: dict[str, object]) -> None:
    region = groups(build(image(POSITIVE, header(**spacing))))[1]
    (number,) = items(region, "NUM")
    assert number.ConceptNameCodeSequence[0].CodeValue == codes.CERTAINTY_OF_FINDING.value


@pytest.mark.parametrize("result", [NEGATIVE, OPEN])
def test_only_a_positive_outlines_its_heat_map(result: Result) -> None:
    assert len(groups(build(image(result)))) == 1


def test_image_not_analysed_gets_its_reason_and_no_measurement_group() -> None:
    report = build(*FRONTAL_AND_LATERAL)
    lateral = f"{STUDY}.1.2"
    measured = {
        reference.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        for group in groups(report)
        for reference in items(group, "IMAGE")
    }
    assert measured == {f"{STUDY}.1.1"}
    evaluations = report.ContentSequence[-1]
    said = "Image 2 of 2 (series 1, image 2) not analysed: view position LATERAL."
    assert said in comments(evaluations)
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    listed = {sop.ReferencedSOPInstanceUID for series in evidence for sop in series.ReferencedSOPSequence}
    assert listed == {f"{STUDY}.1.1", lateral}


def test_study_of_two_films_is_what_its_most_suspicious_film_is_and_says_so() -> None:
    evaluations = build(*FRONTALS).ContentSequence[-1]
    assert items(evaluations, "CODE", codes.PRESENCE)[0].ConceptCodeSequence[0].CodeMeaning == "Present"
    (conclusion,) = items(evaluations, "TEXT", codes.CONCLUSION)
    assert conclusion.TextValue.startswith("AI: pneumonia PRESENT (score 87.3 %, threshold 50 %).")
    assert "2 of 2 images analysed. The study is what its most suspicious image is" in conclusion.TextValue


def test_each_of_several_films_says_which_it_is_and_how_many_were_analysed() -> None:
    # All that a viewer shows of a report may be the group of one film.
    def use(group: Dataset) -> str:
        return comments(group)[1].removeprefix("Research use only, not for diagnosis.")

    whole, _ = groups(build(*FRONTAL_AND_LATERAL))
    assert use(whole) == " Image 1 of 2; 1 of 2 images analysed."
    positive, _, negative = groups(build(*FRONTALS))
    assert use(positive) == " Image 2 of 2; 2 of 2 images analysed."
    assert use(negative) == " Image 1 of 2; 2 of 2 images analysed."
    assert use(groups(build(image(NEGATIVE)))[0]) == ""


def test_a_viewer_that_writes_five_lines_shows_every_limit() -> None:
    flags = tuple(f"limit number {number}" for number in range(1, 6))
    lines = comments(groups(build(image(replace(POSITIVE, flags=flags))))[0])
    assert lines[2:] == [
        "Pattern: bacterial, from the film alone (no microbiology).",
        "Limit: limit number 1.",
        "Limit: limit number 2. Limit: limit number 3. Limit: limit number 4. Limit: limit number 5.",
    ]


def test_algorithm_is_identified_by_weights_threshold_and_method() -> None:
    group = groups(build(image(NEGATIVE)))[0]
    parameters = [item.TextValue for item in items(group, "TEXT", codes.ALGORITHM_PARAMETERS)]
    assert parameters == [
        f"Weights SHA-256={MODEL.sha256}",
        "Operating threshold=50 %",
        "Class activation method=Class activation map",
    ]
    assert items(group, "TEXT", codes.ALGORITHM_NAME)[0].TextValue == MODEL.name
    assert items(group, "TEXT", codes.ALGORITHM_VERSION)[0].TextValue == MODEL.version


def test_network_and_detector_are_contributing_equipment() -> None:
    equipment = build(image(NEGATIVE)).ContributingEquipmentSequence
    by_purpose = {item.PurposeOfReferenceCodeSequence[0].CodeMeaning: item for item in equipment}
    network = by_purpose["Processing Algorithm"]
    assert (network.ManufacturerModelName, network.SoftwareVersions) == (MODEL.name, MODEL.version)
    assert network.DeviceSerialNumber == MODEL.sha256
    assert by_purpose["Acquisition Equipment"].DeviceSerialNumber == "S-77"


def test_report_is_complete_unverified_and_preliminary_in_its_own_series() -> None:
    report = build(image(NEGATIVE))
    assert report.SOPClassUID == Comprehensive3DSRStorage
    assert report.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert (report.CompletionFlag, report.VerificationFlag) == ("COMPLETE", "UNVERIFIED")
    assert report.PreliminaryFlag == "PRELIMINARY"
    assert "VerifyingObserverSequence" not in report
    assert report.SeriesNumber == 9001
    assert report.SeriesDescription.startswith("AI Pneumonia result (SR)")
    assert report.SeriesInstanceUID == f"{STUDY}.9001"


def test_revision_names_what_it_replaces_and_keeps_its_tracking_uids() -> None:
    film = image(NEGATIVE)
    first = build(film)
    second = build_structured_report([film], second_revision(film))
    assert second.InstanceNumber == 2
    assert comments(groups(second)[0])[0].startswith("Revision 2, replaces revision 1. AI: pneumonia ABSENT")
    conclusion = items(second, "TEXT", codes.CONCLUSION)[0].TextValue
    assert conclusion.startswith("Revision 2, replaces revision 1.")
    series = second.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0]
    assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == first.SOPInstanceUID
    assert series.SeriesInstanceUID == first.SeriesInstanceUID
    assert "PredecessorDocumentsSequence" not in first
    assert [item.UID for item in items(first, "UIDREF")] == [item.UID for item in items(second, "UIDREF")]


def test_tracking_uids_differ_between_images_and_regions() -> None:
    report = build(image(POSITIVE), image(POSITIVE, header(2)))
    uids = [items(group, "UIDREF")[0].UID for group in groups(report)]
    assert len(uids) == len(set(uids)) == 4


@pytest.mark.parametrize("name", REPORTS)
def test_building_the_same_report_again_gives_the_same_bytes(name: str) -> None:
    assert encoded(REPORTS[name]()) == encoded(REPORTS[name]())


@pytest.mark.parametrize("name", REPORTS)
def test_dciodvfy_finds_nothing_to_say_about_a_report(name: str, tmp_path: Path) -> None:
    assert complaints(REPORTS[name](), tmp_path) == []


@pytest.mark.parametrize(("name", "word"), [("positive", "PRESENT"), ("negative", "ABSENT")])
def test_dsr2html_shows_finding_and_verdict(name: str, word: str, tmp_path: Path) -> None:
    path = tmp_path / "report.dcm"
    path.write_bytes(encoded(REPORTS[name]()))
    page = tool("dsr2html", "dcmtk", str(path)).stdout
    assert "Pneumonia" in page
    assert f"AI: pneumonia {word}" in page


@pytest.mark.parametrize("result", [POSITIVE, NEGATIVE, OPEN])
def test_srread_of_highdicom_gives_the_finding_and_the_number_back(result: Result, tmp_path: Path) -> None:
    path = tmp_path / "report.dcm"
    path.write_bytes(encoded(build(image(result))))
    content = hd.sr.srread(path).content
    group = content.get_image_measurement_groups()[0]
    assert group.finding_type == codes.PNEUMONIA
    (certainty,) = group.get_measurements(codes.CERTAINTY_OF_FINDING)
    assert certainty.value / 100 == pytest.approx(result.probability, abs=0.00005)
    (presence,) = group.get_qualitative_evaluations(codes.PRESENCE)
    assert presence.value == codes.PRESENCE_OF[result.finding]


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("ISO_IR 100", "Müller-Lüdenscheidt^Jürgen^^Dr.^MdB"),
        ("ISO_IR 144", "Люкceмбypг^Ольга"),
        ("ISO_IR 192", "Wang^XiaoDong=王^小东=José"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
        (None, "Roe^Jane^A^^III"),
        (None, "MONONYM"),
    ],
)
def test_names_are_equal_after_decoding(character_set: str | list[str] | None, name: str) -> None:
    source = as_read(
        header(SpecificCharacterSet=character_set, PatientName=name, ReferringPhysicianName=name)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning of highdicom would quote the name
        report = reread(build(image(NEGATIVE, source)))
    assert report.PatientName == name
    assert str(report.ReferringPhysicianName).removesuffix("^") == name
    assert report.PatientName.components == source.PatientName.components
    assert report.get("SpecificCharacterSet") == source.get("SpecificCharacterSet")


def test_text_that_does_not_fit_the_source_is_written_in_utf_8() -> None:
    flagged = replace(NEGATIVE, flags=("exposure ≥ 400 µGy",))
    report = reread(build(image(flagged, as_read(header(PatientName="Müller^Jürgen")))))
    assert report.SpecificCharacterSet == "ISO_IR 192"
    assert report.PatientName == "Müller^Jürgen"
    assert "Limit: exposure ≥ 400 µGy." in comments(report)


@pytest.mark.parametrize("other", ["ISO_IR 144", None])
def test_sources_that_differ_in_character_set_give_a_report_in_utf_8(other: str | None) -> None:
    second = header(2, SpecificCharacterSet=other, PatientName="Muller^Jurgen", ReferringPhysicianName=None)
    report = reread(build(image(NEGATIVE, as_read(header())), image(NEGATIVE, as_read(second))))
    assert report.SpecificCharacterSet == "ISO_IR 192"
    assert report.PatientName == "Müller^Jürgen"


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
def test_unknown_character_set_is_not_repeated() -> None:
    source = header(SpecificCharacterSet=None, PatientName="Roe^Jane", ReferringPhysicianName="")
    source.add_new("SpecificCharacterSet", "CS", "LATIN-KLINGON")
    assert build(image(NEGATIVE, source)).SpecificCharacterSet == "ISO_IR 192"


def test_patient_study_and_order_are_those_of_the_source() -> None:
    order = Dataset()
    order.RequestedProcedureID = "RP-5"
    order.ScheduledProcedureStepID = "SPS-5"
    order.RequestedProcedureDescription = "Röntgen Thorax"
    source = header(RequestAttributesSequence=[order])
    report = reread(build(image(NEGATIVE, as_read(source))))
    for keyword in (
        *("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientAge"),
        *("StudyInstanceUID", "StudyDate", "StudyTime", "StudyID", "StudyDescription"),
        *("AccessionNumber", "ReferringPhysicianName"),
    ):
        assert report[keyword].value == source[keyword].value, keyword
    (request,) = report.ReferencedRequestSequence
    assert request.RequestedProcedureID == "RP-5"
    assert request.RequestedProcedureDescription == "Röntgen Thorax"
    assert request.AccessionNumber == "ACC-4711"
    assert request.StudyInstanceUID == STUDY


def test_report_with_an_order_satisfies_dciodvfy(tmp_path: Path) -> None:
    order = Dataset()
    order.RequestedProcedureID = "RP-5"
    source = header(RequestAttributesSequence=[order], TimezoneOffsetFromUTC="-0330")
    assert complaints(build(image(NEGATIVE, source)), tmp_path) == []


def test_times_are_written_on_the_clock_of_the_source() -> None:
    report = build(image(NEGATIVE, header(TimezoneOffsetFromUTC="-0330")))
    assert report.TimezoneOffsetFromUTC == "-0330"
    assert (str(report.ContentDate), str(report.ContentTime)) == ("20261123", "050015")
    assert (str(report.SeriesDate), str(report.SeriesTime)) == ("20261123", "050015")


@pytest.mark.parametrize("offset", [None, "EST", "0100"])
def test_times_are_the_sites_own_when_the_source_names_no_offset(offset: str | None) -> None:
    report = build(image(NEGATIVE, header(TimezoneOffsetFromUTC=offset)))
    assert "TimezoneOffsetFromUTC" not in report
    written = report.InstanceCreationTime, report.ContentTime, report.SeriesTime
    assert [str(time) for time in written] == ["093015"] * 3


def test_time_zone_of_the_source_may_turn_the_date() -> None:
    film = image(NEGATIVE, header(TimezoneOffsetFromUTC="+1300"))
    late = datetime(2026, 11, 23, 22, 0, tzinfo=timezone(timedelta(hours=1)))
    report = build_structured_report([film], context(film, at=late))
    assert (str(report.ContentDate), str(report.ContentTime)) == ("20261124", "100000")


@pytest.mark.parametrize("name", ["RG1_UNCR.dcm", "RG1_J2KR.dcm"])
def test_real_film_gets_a_valid_report(name: str, tmp_path: Path) -> None:
    path = get_testdata_file(name, download=False)
    assert path, "pydicom-data is missing: pip install pydicom-data"
    source = dcmread(path, stop_before_pixels=True)
    report = build(image(POSITIVE, source))
    assert complaints(report, tmp_path) == []
    assert report.PatientID == source.PatientID
    # Its pixel spacing is 0.
    assert items(report, "NUM", codes.AREA) == []


@pytest.mark.filterwarnings("ignore")
def test_header_with_odd_values_still_gets_a_report_and_no_log_of_the_patient(
    caplog: pytest.LogCaptureFixture,
) -> None:
    odd = header(
        PatientName="SECRETNAME",
        PatientID="SECRET " * 12,
        PatientBirthDate="SECRET29",
        PatientSex="secret",
        StudyTime="SECRET",
        PatientAge="SECR",
        TimezoneOffsetFromUTC="SECRET",
        PatientOrientation=["L"],
    )
    source = as_read(odd)
    caplog.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = build(image(POSITIVE, source))
    assert report.PatientName == "SECRETNAME"
    assert report.PatientID == ("SECRET " * 12).strip()
    assert (report.PatientBirthDate, report.PatientSex, report.StudyTime) == ("", "", "")
    told = [caplog.text, *(str(warning.message) for warning in caught)]
    assert "secret" not in "".join(told).lower()


def test_report_without_an_analysed_image_is_refused() -> None:
    lateral = image(LATERAL)
    with pytest.raises(ValueError, match="at least one analysed image"):
        build_structured_report([lateral], context(lateral))


def test_films_of_two_studies_are_refused_without_naming_them() -> None:
    films = image(NEGATIVE), image(NEGATIVE, header(2, StudyInstanceUID=f"{STUDY}.77"))
    with pytest.raises(ValueError, match="belong to one study") as refused:
        build(*films)
    assert STUDY not in str(refused.value)


def test_source_is_left_as_it_is() -> None:
    # Each of these is put otherwise for highdicom.
    source = as_read(
        header(ReferringPhysicianName="Ward 4", ImagerPixelSpacing=[0, 0], PatientOrientation=None)
    )
    before = source.to_json()
    build(image(POSITIVE, source))
    assert source.to_json() == before


@pytest.mark.parametrize("name", ["positive", "negative", "two-images", "revision"])
def test_report_reads_as_its_golden_tree(name: str) -> None:
    tree = render_text(reread(REPORTS[name]()))
    golden = GOLDEN / f"{name}.txt"
    if os.environ.get("HILUM_REWRITE_GOLDEN") == "1":
        golden.write_text(tree, encoding="utf-8")
    assert tree == golden.read_text(encoding="utf-8"), f"if it is meant so: {REWRITE}"


def test_library_holds_the_images_in_the_order_in_which_the_text_numbers_them() -> None:
    report = build(image(LATERAL), image(NEGATIVE, header(2)))
    assert "Image 1 of 2 (series 1, image 1) not analysed: view position LATERAL." in comments(report)
    library = [item for item in content_tree(report) if item.value_type == "IMAGE" and item.depth == 3]
    assert [item.value.rpartition(", ")[2] for item in library] == [f"{STUDY}.1.1", f"{STUDY}.1.2"]


def test_header_with_odd_values_is_read_without_a_warning_that_quotes_them() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = as_read(header(StudyInstanceUID="1.2.840.0113.7", PatientID="P" * 80))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert normalised(source).StudyInstanceUID == "1.2.840.0113.7"


@pytest.mark.filterwarnings("ignore")
def test_uids_with_leading_zeros_are_referred_to_as_they_are() -> None:
    odd = {"StudyInstanceUID": "1.2.840.0113.7", "SOPInstanceUID": "1.2.840.0113.7.09"}
    report = reread(build(image(POSITIVE, as_read(header(**odd)))))
    assert report.StudyInstanceUID == odd["StudyInstanceUID"]
    references = items(report, "IMAGE")
    assert {item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for item in references} == {
        odd["SOPInstanceUID"]
    }
