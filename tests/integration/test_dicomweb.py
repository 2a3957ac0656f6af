"""Search and retrieve as a user agent that we did not write asks: dicomweb-client, over a running API."""

import hashlib
import io
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from dicomweb_client import DICOMwebClient
from lxml import etree
from pydicom import Dataset, dcmread
from pydicom.datadict import dictionary_VR
from pydicom.encaps import generate_frames
from pydicom.pixels import pixel_array
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    RLELossless,
)
from requests import HTTPError
from sqlalchemy import update

from service.api.dicomweb.attributes import MATCHED, REQUIRED, STUDY_OPTIONAL, Level
from service.api.dicomweb.routes import dicomweb_routes
from service.core import catalogue
from service.core.catalogue import complete, is_complete
from service.core.header import STUDY_ATTRIBUTES
from service.core.ledger import now
from service.core.receive import Arrival, Intake
from service.core.states import InstanceState, Kind, StudyState
from service.core.tables import Instance, Study, Subject
from tests import audit_trail, factories
from tests.faults.web import Web, web
from tests.pipeline import film, hurry, opened_at, reports, says, work
from tests.servers import ROOT, eventually
from tests.tokens import SECRETS, bearer, entries

ALL = ("sr", "heatmap", "text", "gsps", "pdf")
SYNTAXES = (
    *(ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless, JPEGLosslessSV1),
    *(JPEGLSLossless, RLELossless),
)
FRAME_TYPES = {JPEG2000Lossless: "image/jp2", JPEGLosslessSV1: "image/jpeg", JPEGLSLossless: "image/jls"}


@dataclass
class Hospital:
    """What was sent: files by name, whose data sets are `dataset`."""

    web: Web
    files: dict[str, Path]

    def dataset(self, name: str) -> Dataset:
        return dcmread(self.files[name])

    @property
    def client(self) -> DICOMwebClient:
        return DICOMwebClient(f"{self.web.url}/dicomweb", headers=bearer("clinician"))

    def get(
        self, path: str, accept: str = "*/*", role: str = "clinician", **parameters: Any
    ) -> httpx.Response:
        headers = {**bearer(role), "Accept": accept}
        return httpx.get(f"{self.web.url}/dicomweb{path}", headers=headers, params=parameters, timeout=60)


def path_of(dataset: Dataset, level: str = "instance") -> str:
    path = f"/studies/{dataset.StudyInstanceUID}"
    if level != "study":
        path += f"/series/{dataset.SeriesInstanceUID}"
    return path if level != "instance" else f"{path}/instances/{dataset.SOPInstanceUID}"


def names(dataset: Dataset) -> tuple[str, str, str]:
    return dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID


def requested(procedure: str) -> Dataset:
    item = Dataset()
    item.RequestedProcedureID, item.ScheduledProcedureStepID = procedure, "1"
    return item


def two_frames() -> Dataset:
    dataset = factories.secondary_capture(
        "frames",
        ImageType=["DERIVED", "PRIMARY"],
        SOPClassUID=MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
        StudyDate="20250301",
        BodyPartExamined="KNEE",
        Modality="DX",
    )
    dataset.NumberOfFrames = 2
    dataset.PixelData = dataset.PixelData + bytes(255 - value for value in dataset.PixelData)
    return dataset


def send(context: Any, folder: Path, dataset: Dataset, syntax: UID = ExplicitVRLittleEndian) -> Path:
    """Let an object come in, and return the file that was sent."""
    sent = factories.write(dataset, folder, syntax)
    arrived = context.spool.incoming / f"{sent.stem}.part"
    arrived.write_bytes(sent.read_bytes())
    Intake(context.ledger, context.spool, context.settings).receive(Arrival(arrived, "TEST"))
    return sent


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hospital]:
    folder = tmp_path_factory.mktemp("dicomweb")
    configuration = folder / "hilum.toml"
    configuration.write_text(
        f'[destinations.PACS]\nurl = "dicom://PACS@127.0.0.1:104"\nobjects = {list(ALL)}\n', encoding="utf-8"
    )
    with pytest.MonkeyPatch.context() as patched:
        says(patched, 0.9)
        context = opened_at(folder, config=configuration)
        files = {}
        for number, syntax in enumerate(SYNTAXES):
            dataset = film(
                syntax.keyword,
                study=f"s{number}",
                StudyDate=f"2026010{number + 1}",
                StudyTime=f"1{number}0000",
                StudyID=f"ID{number}",
                AccessionNumber=f"ACC[{number}]",
                PatientName=f"Müller{number}^Zoë=山田",
                ReferringPhysicianName="Doctor^Gregory",
                SpecificCharacterSet="ISO_IR 192",
                PerformedProcedureStepStartDate=f"2026010{number + 1}",
                PerformedProcedureStepStartTime=f"1{number}1500",
                RequestAttributesSequence=[requested(f"RP{number}")],
                StationName=f"STATION{number}",
                IssuerOfPatientID="HILUM-TEST",
            )
            files[syntax.keyword] = send(context, folder / "sent", dataset, syntax)
        files["frames"] = send(context, folder / "sent", two_frames())
        rle = two_frames()
        rle.SOPInstanceUID = f"{rle.SOPInstanceUID[:60]}.1"
        files["frames-rle"] = send(context, folder / "sent", rle, RLELossless)
        big = film("big", StudyDate="20240101")
        files["big"] = send(context, folder / "sent", big, ExplicitVRBigEndian)
        for _ in files:
            work(context)
        assert {item.kind for item in reports(context)} == set(ALL)
        context.ledger.close()
        with web(folder, data_dir=context.settings.data_dir, api_tokens=entries()) as running:
            yield Hospital(running, files)


# --- search -------------------------------------------------------------------------------------------------


def test_every_study_is_found_with_all_that_the_standard_requires(hospital: Hospital) -> None:
    found = hospital.client.search_for_studies()
    assert len(found) == len(SYNTAXES) + 2
    for item in found:
        dataset = Dataset.from_json(item)
        assert {keyword for keyword in REQUIRED[Level.STUDIES] if keyword not in dataset} == set()
        answer = httpx.get(dataset.RetrieveURL, headers=bearer("clinician"))
        assert answer.status_code == 200
    (found_one,) = hospital.client.search_for_studies(search_filters={"StudyID": "ID2"})
    sent, dataset = hospital.dataset(JPEG2000Lossless.keyword), Dataset.from_json(found_one)
    for keyword in ("StudyDate", "StudyTime", "AccessionNumber", "PatientName", "PatientID", "PatientSex"):
        assert dataset[keyword].value == sent[keyword].value, keyword
    assert set(dataset.ModalitiesInStudy) == {"DX", "SR", "OT", "PR", "DOC"}
    assert (dataset.NumberOfStudyRelatedSeries, dataset.NumberOfStudyRelatedInstances) == (6, 6)


@pytest.mark.parametrize(
    ("filters", "number"),
    [
        ({"StudyDate": "20260102"}, 1),
        ({"StudyDate": "20260102-20260104"}, 3),
        ({"StudyDate": "20260105-"}, 2),
        ({"StudyDate": "-20250401"}, 2),
        ({"00080020": "20260102"}, 1),
        ({"StudyTime": "110000-12"}, 2),
        ({"PatientName": "müller*"}, len(SYNTAXES)),
        ({"PatientName": "MÜLLER2^ZOË"}, 1),
        ({"PatientName": "山田"}, len(SYNTAXES)),
        ({"PatientName": "Müller?^Zo*"}, len(SYNTAXES)),
        ({"PatientName": "*"}, len(SYNTAXES) + 2),
        ({"PatientName": ""}, len(SYNTAXES) + 2),
        ({"PatientName": "Müller"}, 0),
        ({"PatientID": "TEST-s1"}, 1),
        ({"PatientID": "test-s1"}, 0),
        ({"PatientID": "TEST-s?"}, len(SYNTAXES)),
        ({"PatientID": "test-s?"}, 0),
        ({"AccessionNumber": "ACC[[]1]"}, 0),
        ({"AccessionNumber": "ACC[1]"}, 1),
        ({"AccessionNumber": "ACC[*"}, len(SYNTAXES)),
        ({"AccessionNumber": "ACC%"}, 0),
        ({"ReferringPhysicianName": "doctor^*"}, len(SYNTAXES)),
        ({"ModalitiesInStudy": "SR"}, len(SYNTAXES) + 1),
        ({"ModalitiesInStudy": "CT"}, 0),
        ({"StudyDate": "20260101-", "PatientID": "TEST-s1"}, 1),
        ({"StudyDate": "20260103", "PatientID": "TEST-s1"}, 0),
    ],
)
def test_studies_are_found_by_what_matches(hospital: Hospital, filters: dict[str, str], number: int) -> None:
    assert len(hospital.client.search_for_studies(search_filters=filters)) == number


def test_studies_are_found_by_a_list_of_their_uids(hospital: Hospital) -> None:
    first, second = (hospital.dataset(name).StudyInstanceUID for name in ("frames", "big"))
    for value in (f"{first},{second}", f"{first}\\{second}", f"{first},1.2.3"):
        found = hospital.client.search_for_studies(search_filters={"StudyInstanceUID": value})
        expected = {first, second} if second in value else {first}
        assert {item["0020000D"]["Value"][0] for item in found} == expected


def test_pages_of_an_answer_join_to_the_whole_and_each_tells_how_much_is_left(hospital: Hospital) -> None:
    whole = hospital.client.search_for_studies()
    pages = [hospital.client.search_for_studies(limit=3, offset=offset) for offset in range(0, len(whole), 3)]
    assert [item for page in pages for item in page] == whole
    answer = hospital.get("/studies", limit=3)
    assert answer.headers["Warning"].endswith(
        f": There are {len(whole) - 3} additional results that can be requested"
    )
    assert "Warning" not in hospital.get("/studies", limit=len(whole)).headers
    beyond = hospital.get("/studies", offset=len(whole))
    assert (beyond.status_code, beyond.content) == (204, b"")


def test_a_user_agent_is_warned_of_what_is_not_done(hospital: Hospital) -> None:
    fuzzy = hospital.get("/studies", fuzzymatching="true", PatientName="Müller*")
    assert fuzzy.status_code == 200
    assert "Only literal matching has been performed." in fuzzy.headers["Warning"]
    assert fuzzy.headers["Warning"].startswith(f"299 {hospital.web.url}/dicomweb: ")
    unmatched = hospital.get("/studies", PatientAge="005Y", nonsense="1")
    assert unmatched.status_code == 200
    assert unmatched.headers["Warning"].endswith("nonsense, PatientAge")


@pytest.mark.parametrize(
    "parameters",
    [
        *({"limit": value} for value in ("x", "-1", "1.5", "9" * 30)),
        *({"StudyDate": value} for value in ("yesterday", "2026", "20260101-x", "-")),
        {"StudyInstanceUID": "../x"},
        {"fuzzymatching": "maybe"},
        {"PatientName": "x" * 2000},
    ],
)
def test_a_query_that_cannot_be_meant_is_refused(hospital: Hospital, parameters: dict[str, str]) -> None:
    answer = hospital.get("/studies", **parameters)
    assert answer.status_code == 400
    assert answer.json()["detail"]


def test_what_the_readme_says_to_try_lists_studies(hospital: Hospital) -> None:
    (line,) = [
        line.removeprefix("$ ")
        for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("$ dicomweb_client")
    ]
    line = line.replace("http://127.0.0.1:8080", hospital.web.url)
    done = subprocess.run(
        ["/bin/sh", "-c", line],
        env={"PATH": str(Path(sys.executable).parent), "TOKEN": SECRETS["clinician"]},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert len(json.loads(done.stdout)) == 5


def test_series_and_instances_are_found_within_a_study_and_without(hospital: Hospital) -> None:
    sent = hospital.dataset(ExplicitVRLittleEndian.keyword)
    series = hospital.client.search_for_series(sent.StudyInstanceUID)
    assert len(series) == 6
    for item in series:
        dataset = Dataset.from_json(item)
        assert {keyword for keyword in REQUIRED[Level.SERIES] if keyword not in dataset} == set()
        assert dataset.NumberOfSeriesRelatedInstances == 1
        assert dataset.SeriesDescription
        instances = hospital.client.search_for_instances(sent.StudyInstanceUID, dataset.SeriesInstanceUID)
        assert len(instances) == 1
    (image,) = hospital.client.search_for_instances(
        sent.StudyInstanceUID, search_filters={"SOPClassUID": sent.SOPClassUID}
    )
    dataset = Dataset.from_json(image)
    assert {keyword for keyword in REQUIRED[Level.INSTANCES] if keyword not in dataset} == set()
    for keyword in ("SOPInstanceUID", "InstanceNumber", "Rows", "Columns", "BitsAllocated", "Modality"):
        assert dataset[keyword].value == sent[keyword].value, keyword
    everywhere = hospital.client.search_for_instances()
    assert len(everywhere) == 6 * (len(SYNTAXES) + 1) + 2
    assert all("00100010" in item for item in everywhere)
    assert {item["00201206"]["Value"][0] for item in everywhere} == {1, 6}  # series of the study, not of one
    assert len(hospital.client.search_for_series(search_filters={"Modality": "SR"})) == 2 * (
        len(SYNTAXES) + 1
    )
    (only,) = hospital.client.search_for_instances(search_filters={"SOPInstanceUID": sent.SOPInstanceUID})
    assert only["0020000D"]["Value"] == [sent.StudyInstanceUID]
    by_description = {"SeriesDescription": "AI Pneumonia heatmap*", "PatientID": "TEST-s1"}
    assert len(hospital.client.search_for_series(search_filters=by_description)) == 1


@pytest.mark.parametrize("level", list(Level))
def test_every_attribute_that_the_statement_names_is_matched(hospital: Hospital, level: Level) -> None:
    """deploy/conformance.md is written from the same table."""
    sent = hospital.dataset(JPEG2000Lossless.keyword)
    others = {"DA": "19000101", "TM": "235959", "UI": "1.2.3", "IS": "99999"}
    total = len(hospital.get(f"/{level}").json())
    for keyword in MATCHED[level]:
        name, vr = keyword, dictionary_VR(keyword)
        value = "DX" if keyword == "ModalitiesInStudy" else sent[keyword].value
        if vr == "SQ":
            name, value = f"{keyword}.RequestedProcedureID", value[0].RequestedProcedureID
        answer = hospital.get(f"/{level}", **{name: str(value)})
        assert answer.status_code == 200, keyword
        assert "Not matched" not in answer.headers.get("Warning", ""), keyword
        uids = {item["0020000D"]["Value"][0] for item in answer.json()}
        assert sent.StudyInstanceUID in uids, keyword
        assert hospital.get(f"/{level}", **{name: others.get(vr, "nobody")}).status_code == 204, keyword
        common = (
            "PatientSex",
            "PatientBirthDate",
            "ModalitiesInStudy",
            "StudyDescription",
            "IssuerOfPatientID",
            "InstanceNumber",
        )
        if keyword not in (*common, "ReferringPhysicianName"):
            assert len(answer.json()) < total, keyword
    if level is not Level.STUDIES:
        answer = hospital.get(f"/{level}", **{"00400275.00401001": "RP2"})
        assert [item["0020000D"]["Value"] for item in answer.json()] == [[sent.StudyInstanceUID]]


def test_attributes_that_are_asked_for_come_too(hospital: Hospital) -> None:
    sent = hospital.dataset(ExplicitVRLittleEndian.keyword)
    filters = {"StudyInstanceUID": sent.StudyInstanceUID}
    (plain,) = hospital.client.search_for_studies(search_filters=filters)
    (asked,) = hospital.client.search_for_studies(search_filters=filters, fields=["PatientAge", "00101030"])
    (everything,) = hospital.client.search_for_studies(search_filters=filters, fields=["all"])
    assert "00101010" not in plain
    assert asked["00101010"]["Value"] == [sent.PatientAge]
    assert "00101010" in everything
    assert "PatientAge" in STUDY_OPTIONAL
    (image,) = hospital.client.search_for_instances(
        sent.StudyInstanceUID, sent.SeriesInstanceUID, fields=["ImageType"]
    )
    assert image["00080008"]["Value"] == list(sent.ImageType)
    (whole,) = hospital.client.search_for_instances(
        sent.StudyInstanceUID, sent.SeriesInstanceUID, fields=["all"]
    )
    assert len(whole) > 60
    assert "7FE00010" not in whole


def test_what_is_found_says_the_same_in_xml(hospital: Hospital) -> None:
    answer = hospital.get("/studies", 'multipart/related; type="application/dicom+xml"', StudyID="ID2")
    assert answer.headers["Content-Type"].startswith('multipart/related; type="application/dicom+xml"')
    ((headers, content),) = parts(answer)
    assert headers["content-type"] == "application/dicom+xml"
    root = etree.fromstring(content)
    space = {"n": "http://dicom.nema.org/PS3.19/models/NativeDICOM"}
    assert root.xpath("string(//n:DicomAttribute[@keyword='StudyID']/n:Value)", namespaces=space) == "ID2"
    family = "string(//n:PersonName/n:Alphabetic/n:FamilyName)"
    assert root.xpath(family, namespaces=space) == "Doctor"
    assert hospital.get("/studies", "text/html").status_code == 406


# --- retrieve -----------------------------------------------------------------------------------------------


def parts(answer: httpx.Response) -> list[tuple[dict[str, str], bytes]]:
    """Return the parts of an answer, by nothing but RFC 2046."""
    kind = answer.headers["Content-Type"]
    boundary = kind.partition("boundary=")[2].strip('"').encode()
    pieces = (b"\r\n" + answer.content).split(b"\r\n--" + boundary)
    assert pieces[0] == b""
    assert pieces[-1] == b"--\r\n"
    found = []
    for piece in pieces[1:-1]:
        head, _, content = piece[2:].partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        found.append(({name.lower(): value for name, value in headers.items()}, content))
    return found


@pytest.mark.parametrize("name", [*(syntax.keyword for syntax in SYNTAXES), "big", "frames-rle"])
def test_an_object_comes_back_byte_for_byte_as_it_was_sent(hospital: Hospital, name: str) -> None:
    sent, content = hospital.dataset(name), hospital.files[name].read_bytes()
    syntax = sent.file_meta.TransferSyntaxUID
    for accept in (
        "*/*",
        'multipart/related; type="application/dicom"',
        'multipart/related; type="application/dicom"; transfer-syntax=*',
        f"multipart/related; type=application/dicom; transfer-syntax={syntax}",
    ):
        answer = hospital.get(path_of(sent), accept)
        assert answer.status_code == 200, answer.text
        ((headers, body),) = parts(answer)
        assert body == content
        assert headers["content-type"] == f"application/dicom; transfer-syntax={syntax}"
        assert headers["content-location"].endswith(path_of(sent))
    alone = hospital.get(path_of(sent), "application/dicom; transfer-syntax=*")
    assert alone.headers["Content-Type"] == f"application/dicom; transfer-syntax={syntax}"
    assert alone.content == content
    assert hospital.client.retrieve_instance(*names(sent)).SOPInstanceUID == sent.SOPInstanceUID


def test_a_syntax_that_is_not_stored_is_refused_and_a_study_is_sent_in_part(hospital: Hospital) -> None:
    other = f'multipart/related; type="application/dicom"; transfer-syntax={JPEGLSLossless}'
    sent = hospital.dataset(JPEG2000Lossless.keyword)
    refused = hospital.get(path_of(sent), other)
    assert refused.status_code == 406
    assert JPEG2000Lossless in refused.json()["detail"]
    whole = hospital.get(path_of(sent, "study"))
    assert (whole.status_code, len(parts(whole))) == (200, 6)
    some = hospital.get(
        path_of(sent, "study"),
        f"multipart/related; type=application/dicom; transfer-syntax={JPEG2000Lossless}",
    )
    assert (some.status_code, len(parts(some))) == (206, 1)


def test_a_study_holds_its_images_and_all_that_was_made_of_them(hospital: Hospital) -> None:
    sent = hospital.dataset(ExplicitVRLittleEndian.keyword)
    datasets = hospital.client.retrieve_study(sent.StudyInstanceUID)
    assert {dataset.Modality for dataset in datasets} == {"DX", "SR", "OT", "PR", "DOC"}
    listed = hospital.client.search_for_instances(sent.StudyInstanceUID)
    assert {dataset.SOPInstanceUID for dataset in datasets} == {
        item["00080018"]["Value"][0] for item in listed
    }
    # The ledger alone is asked what modality an object of ours has.
    by_series = hospital.client.search_for_series(sent.StudyInstanceUID)
    told = {item["0020000E"]["Value"][0]: item["00080060"]["Value"][0] for item in by_series}
    for dataset in datasets:
        assert told[dataset.SeriesInstanceUID] == dataset.Modality
        filters = {"Modality": dataset.Modality, "SeriesInstanceUID": dataset.SeriesInstanceUID}
        assert hospital.client.search_for_series(search_filters=filters)
    (series,) = hospital.client.retrieve_series(sent.StudyInstanceUID, sent.SeriesInstanceUID)
    assert series.PixelData == sent.PixelData


@pytest.mark.parametrize("name", [*(syntax.keyword for syntax in SYNTAXES), "big", "frames"])
def test_metadata_is_the_header_and_refers_to_the_pixels(hospital: Hospital, name: str) -> None:
    sent = hospital.dataset(name)
    (item,) = hospital.client.retrieve_series_metadata(sent.StudyInstanceUID, sent.SeriesInstanceUID)[:1]
    assert item == hospital.client.retrieve_instance_metadata(*names(sent)) or name == "frames"
    item = hospital.client.retrieve_instance_metadata(*names(sent))
    pixels = item.pop("7FE00010")
    assert pixels["BulkDataURI"].startswith(hospital.web.url)
    read = Dataset.from_json(item)
    for element in sent:
        if element.keyword not in ("PixelData", "SpecificCharacterSet"):
            assert read[element.tag].value == element.value, element.keyword
    assert read.SpecificCharacterSet == "ISO_IR 192"
    if name != "big":
        (content,) = hospital.client.retrieve_bulkdata(pixels["BulkDataURI"])
        expected = sent.PixelData
        if sent.file_meta.TransferSyntaxUID.is_encapsulated:
            expected = next(generate_frames(sent.PixelData, number_of_frames=1))
        assert content == expected
    assert len(hospital.client.retrieve_study_metadata(sent.StudyInstanceUID)) >= 2


def test_metadata_of_everything_that_was_made_can_be_read(hospital: Hospital) -> None:
    sent = hospital.dataset(ExplicitVRLittleEndian.keyword)
    everything = hospital.client.retrieve_study_metadata(sent.StudyInstanceUID)
    datasets = {
        dataset.SOPInstanceUID: dataset for dataset in hospital.client.retrieve_study(sent.StudyInstanceUID)
    }
    assert len(everything) == len(datasets) == 6
    for item in everything:
        original = datasets[item["00080018"]["Value"][0]]
        bulk = {tag: value.pop("BulkDataURI") for tag, value in item.items() if "BulkDataURI" in value}
        read = Dataset.from_json({tag: value for tag, value in item.items() if tag not in bulk})
        for element in original:
            tag = f"{element.tag:08X}"
            if tag in bulk:
                (content,) = hospital.client.retrieve_bulkdata(bulk[tag])
                whole = element.value
                if original.file_meta.TransferSyntaxUID.is_encapsulated and tag == "7FE00010":
                    whole = next(generate_frames(whole, number_of_frames=1))
                assert content == whole
            elif element.keyword != "SpecificCharacterSet":
                assert read[element.tag] == element, element.keyword
        xml = hospital.get(path_of(original) + "/metadata", 'multipart/related; type="application/dicom+xml"')
        assert len(etree.fromstring(parts(xml)[0][1])) == len(item)


@pytest.mark.parametrize("name", [*(syntax.keyword for syntax in SYNTAXES), "frames", "frames-rle"])
def test_frames_come_as_they_are_stored_and_in_the_media_type_of_their_syntax(
    hospital: Hospital, name: str
) -> None:
    sent = hospital.dataset(name)
    syntax, frames = sent.file_meta.TransferSyntaxUID, int(sent.get("NumberOfFrames", 1))
    if syntax.is_encapsulated:
        expected = list(generate_frames(sent.PixelData, number_of_frames=frames))
    else:
        size = len(sent.PixelData) // frames
        expected = [sent.PixelData[number * size : (number + 1) * size] for number in range(frames)]
    numbers = list(range(1, frames + 1))
    assert hospital.client.retrieve_instance_frames(*names(sent), numbers) == expected
    assert hospital.client.retrieve_instance_frames(*names(sent), numbers[::-1]) == expected[::-1]
    asked = ",".join(map(str, numbers))
    viewer = hospital.get(
        f"{path_of(sent)}/frames/{asked}",
        "multipart/related; type=application/octet-stream; transfer-syntax=*",
    )
    named = syntax if syntax.is_encapsulated else ExplicitVRLittleEndian
    assert [body for _, body in parts(viewer)] == expected
    assert parts(viewer)[0][0]["content-type"] == f"application/octet-stream; transfer-syntax={named}"
    pixels = hospital.get(f"{path_of(sent)}/frames/1", 'multipart/related; type="application/octet-stream"')
    assert pixels.status_code == (406 if syntax.is_encapsulated else 200)
    if (media_type := FRAME_TYPES.get(syntax)) is not None:
        (one,) = hospital.client.retrieve_instance_frames(*names(sent), [1], media_types=(media_type,))
        assert one == expected[0]
        alone = hospital.get(f"{path_of(sent)}/frames/1", media_type)
        assert alone.headers["Content-Type"] == f"{media_type}; transfer-syntax={syntax}"
        assert alone.content == expected[0]


@pytest.mark.parametrize(("frames", "status"), [("0", 400), ("1,x", 400), ("", 404), ("-1", 400), ("3", 404)])
def test_a_frame_that_is_not_there_is_not_answered(hospital: Hospital, frames: str, status: int) -> None:
    assert hospital.get(f"{path_of(hospital.dataset('frames'))}/frames/{frames}").status_code == status


def test_frames_in_big_endian_words_are_refused(hospital: Hospital) -> None:
    answer = hospital.get(f"{path_of(hospital.dataset('big'))}/frames/1")
    assert answer.status_code == 406
    assert ExplicitVRBigEndian in answer.json()["detail"]


def test_rendered_is_the_picture_that_is_kept(hospital: Hospital) -> None:
    from PIL import Image

    sent = hospital.dataset(JPEG2000Lossless.keyword)
    png = hospital.client.retrieve_instance_rendered(*names(sent), media_types=("image/png",))
    shown = np.asarray(Image.open(io.BytesIO(png)), np.float64)
    ratio = np.corrcoef(shown.ravel(), pixel_array(sent).astype(np.float64).ravel())[0, 1]
    assert abs(ratio) > 0.9
    for path in ("/rendered", "/frames/1/rendered", "/thumbnail"):
        answer = hospital.get(path_of(sent) + path)
        assert (answer.headers["Content-Type"], answer.content) == ("image/png", png)
    for level in ("study", "series"):
        assert hospital.get(f"{path_of(sent, level)}/thumbnail", viewport="128,128").content == png
    assert hospital.get(path_of(sent) + "/rendered", "image/jpeg").status_code == 406
    assert hospital.get(path_of(sent) + "/rendered", viewport="10,10").status_code == 400
    pictures = parts(hospital.get(path_of(sent, "study") + "/rendered"))
    assert [headers["content-type"] for headers, _ in pictures] == ["image/png", "image/jpeg"]
    frames = hospital.dataset("frames")
    missing = hospital.get(path_of(frames) + "/rendered")
    assert missing.status_code == 404
    assert "no picture" in missing.json()["detail"]


def test_what_was_made_is_rendered_where_it_is_a_picture_or_a_page(hospital: Hospital) -> None:
    sent = hospital.dataset(ExplicitVRLittleEndian.keyword)
    kinds = {}
    for dataset in hospital.client.retrieve_study(sent.StudyInstanceUID):
        answer = hospital.get(path_of(dataset) + "/rendered")
        kinds[dataset.Modality] = answer.headers["Content-Type"] if answer.is_success else answer.status_code
    assert kinds == {"DX": "image/png", "SR": 406, "PR": 406, "OT": "image/jpeg", "DOC": "application/pdf"}


# --- who may, what is told, and what is no longer there -----------------------------------------------------


def every_path(dataset: Dataset) -> list[str]:
    """Return a path of every route."""
    from fastapi.routing import iter_route_contexts

    given = {
        "study_instance_uid": dataset.StudyInstanceUID,
        "series_instance_uid": dataset.SeriesInstanceUID,
        "sop_instance_uid": dataset.SOPInstanceUID,
        "frames": "1",
        "path:path": "7FE00010",
    }
    router: Any = dicomweb_routes(None, None, None)  # type: ignore[arg-type]
    found = [route.path.removeprefix("/dicomweb") for route in iter_route_contexts(router.routes)]
    assert len(found) > 20
    return [
        path.format_map(given)
        if "path:path" not in path
        else path.split("{path")[0].format_map(given) + "7FE00010"
        for path in found
    ]


def test_every_route_is_for_those_who_may_see_patients(hospital: Hospital) -> None:
    for path in every_path(hospital.dataset(ExplicitVRLittleEndian.keyword)):
        assert hospital.get(path, role="viewer").status_code == 403, path
        assert hospital.get(path).status_code == 200, path
        assert httpx.get(f"{hospital.web.url}/dicomweb{path}").status_code == 401, path


def test_without_tokens_nobody_is_told_whose_films_there_are(tmp_path: Path) -> None:
    with web(tmp_path) as running:
        assert httpx.get(f"{running.url}/dicomweb/studies").status_code == 403


def test_a_malformed_or_unknown_name_is_answered_in_the_words_of_the_application(hospital: Hospital) -> None:
    sent = hospital.dataset("frames")
    for path, status in (
        ("/studies/1.2.3", 404),
        ("/studies/..x", 400),
        (f"{path_of(sent, 'study')}/series/1.2.3", 404),
        (f"{path_of(sent, 'series')}/instances/1.2.3", 404),
        (f"{path_of(sent, 'study')}/series/1.2.3/instances/{sent.SOPInstanceUID}", 404),
        (f"{path_of(sent)}/bulkdata/nonsense", 400),
        (f"{path_of(sent)}/bulkdata/00100010", 404),
        (f"{path_of(sent)}/bulkdata/00880200/0/7FE00010", 404),
    ):
        answer = hospital.get(path)
        assert answer.status_code == status, path
        assert answer.json()["detail"]


def test_what_leaves_is_in_the_audit_trail_before_it_does(hospital: Hospital) -> None:
    data_dir, sent = hospital.web.settings.data_dir, hospital.dataset(JPEGLSLossless.keyword)
    before = len(audit_trail.messages(data_dir))
    hospital.get("/studies", PatientName="Müller4*", StudyDate="20260105")
    hospital.get(path_of(sent, "study"), role="administrator")
    hospital.get(path_of(sent) + "/frames/1", role="administrator")
    told = [
        item
        for item in audit_trail.messages(data_dir)[before:]
        if audit_trail.event(item)[0] in ("110112", "110104", "110103")
    ]
    query, transfer, access = told
    assert [audit_trail.event(item)[0] for item in told] == ["110112", "110104", "110103"]
    ((asked,),) = [query.xpath("//ParticipantObjectQuery/text()")]
    decoded = audit_trail.base64.b64decode(asked).decode()
    assert decoded == "/dicomweb/studies?00100010=&00080020=20260105"
    assert audit_trail.objects(transfer, "110180") == [sent.StudyInstanceUID]
    assert audit_trail.objects(transfer, "2") == [f"{sent.PatientID}^^^{sent.IssuerOfPatientID}"]
    assert sum(audit_trail.instances(transfer).values()) == 6
    assert audit_trail.role(transfer, "110152").get("UserID") == "administrator-token"
    assert audit_trail.objects(access, "110180") == [sent.StudyInstanceUID]


@pytest.fixture
def clinic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Hospital]]:
    """A hospital of the test's own, with the worker's context beside it."""
    says(monkeypatch, 0.9)
    context = opened_at(tmp_path, destinations="PACS=dicom://PACS@127.0.0.1:104")
    with web(tmp_path, data_dir=context.settings.data_dir, api_tokens=entries()) as running:
        yield context, Hospital(running, {})
    context.ledger.close()


def test_a_search_finds_the_same_on_postgresql(
    tmp_path: Path, postgresql: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(monkeypatch, 0.9)
    context = opened_at(tmp_path, database_url=postgresql, destinations="PACS=dicom://PACS@127.0.0.1:104")
    settings = {"data_dir": context.settings.data_dir, "database_url": postgresql}
    with web(tmp_path, api_tokens=entries(), **settings) as running:
        for number in range(3):
            named = {"PatientName": f"Name{number}^Given", "AccessionNumber": f"A[{number}]"}
            send(
                context, tmp_path, film(number, study=f"p{number}", StudyDate=f"2026010{number + 1}", **named)
            )
            work(context)
        client = Hospital(running, {}).client
        for filters, number in (
            ({}, 3),
            ({"PatientName": "name?^*"}, 3),
            ({"PatientName": "NAME1^GIVEN"}, 1),
            ({"PatientID": "TEST-p*"}, 3),
            ({"PatientID": "test-p*"}, 0),
            ({"AccessionNumber": "A[1*"}, 1),
            ({"AccessionNumber": "A%"}, 0),
            ({"StudyDate": "20260102-"}, 2),
            ({"StudyDate": "20260101", "ModalitiesInStudy": "SR"}, 1),
            ({"StudyTime": "10-11"}, 3),
        ):
            assert len(client.search_for_studies(search_filters=filters)) == number, filters
        assert len(client.search_for_series(search_filters={"Modality": "SR", "PatientName": "name1*"})) == 1
        assert len(client.search_for_studies(limit=2, offset=2)) == 1
    context.ledger.close()


def uids(hospital: Hospital, study: str) -> set[str]:
    return {item["00080018"]["Value"][0] for item in hospital.client.search_for_instances(study)}


def change(context: Any, table: Any, **values: Any) -> None:
    with context.ledger.write() as session:
        session.execute(update(table).values(**values))


def test_of_an_image_that_came_again_with_another_header_the_newest_is_served(
    clinic: tuple[Any, Hospital], tmp_path: Path
) -> None:
    context, hospital = clinic
    first = film("copy")
    send(context, tmp_path / "first", first)
    work(context)
    again = film("copy", PatientName="Corrected^Name", AccessionNumber="NEW")
    second = send(context, tmp_path / "second", again)
    # Whether its pixels are the same is not known before it was decoded.
    assert hospital.client.retrieve_instance(*names(first)).PatientName == first.PatientName
    work(context)
    assert hospital.get(path_of(first), "application/dicom").content == second.read_bytes()
    (listed,) = hospital.client.search_for_studies(search_filters={"AccessionNumber": "NEW"})
    assert listed["00100010"]["Value"][0]["Alphabetic"] == "Corrected^Name"
    other = film("copy")
    other.PixelData = bytes(len(other.PixelData))
    send(context, tmp_path / "third", other)
    work(context)
    assert hospital.get(path_of(first), "application/dicom").content == second.read_bytes()


def test_a_result_that_was_replaced_is_gone_and_the_newest_is_there(
    clinic: tuple[Any, Hospital], tmp_path: Path
) -> None:
    context, hospital = clinic
    first = film("one", study="revised")
    send(context, tmp_path, first)
    work(context)
    (old,) = [item for item in reports(context) if item.kind == Kind.SR]
    assert old.sop_instance_uid in uids(hospital, first.StudyInstanceUID)
    send(context, tmp_path, film("two", study="revised", InstanceNumber=2))
    hurry(context)
    work(context)
    found = uids(hospital, first.StudyInstanceUID)
    new = [item for item in reports(context) if item.revision == 2]
    assert {item.sop_instance_uid for item in new} <= found
    assert old.sop_instance_uid not in found
    answer = hospital.get(
        f"{path_of(first, 'study')}/series/{old.series_instance_uid}/instances/{old.sop_instance_uid}"
    )
    assert answer.status_code == 410
    assert "revision 1" in answer.json()["detail"]


def test_what_its_archive_rejected_is_not_served_nor_what_speaks_of_it(
    clinic: tuple[Any, Hospital], tmp_path: Path
) -> None:
    context, hospital = clinic
    bad, good = film("bad", study="r"), film("good", study="r", InstanceNumber=2)
    for dataset in (bad, good):
        send(context, tmp_path, dataset)
    work(context)
    assert len(uids(hospital, bad.StudyInstanceUID)) == 5  # two films, a report and two heat maps
    send(context, tmp_path, factories.key_object_note(bad))
    assert uids(hospital, bad.StudyInstanceUID) == {good.SOPInstanceUID}
    answer = hospital.get(path_of(bad))
    assert (answer.status_code, "rejection note" in answer.json()["detail"]) == (410, True)


def test_a_held_study_is_not_shown_as_that_of_one_patient(
    clinic: tuple[Any, Hospital], tmp_path: Path
) -> None:
    context, hospital = clinic
    first, second = film("a", study="h"), film("b", study="h", PatientID="SOMEBODY-ELSE")
    for dataset in (first, second):
        send(context, tmp_path, dataset)
    work(context)
    with context.ledger.read() as session:
        assert session.query(Study).one().state == StudyState.HELD
    assert hospital.client.search_for_studies() == []
    answer = hospital.get(path_of(first, "study"))
    assert (answer.status_code, "held" in answer.json()["detail"]) == (409, True)


def test_what_is_no_radiograph_is_not_kept_and_said_so(clinic: tuple[Any, Hospital], tmp_path: Path) -> None:
    context, hospital = clinic
    ct = factories.ct_slice()
    send(context, tmp_path, ct)
    assert hospital.client.search_for_studies() == []
    assert hospital.get(path_of(ct)).status_code == 404


def test_an_expired_or_erased_study_is_gone(clinic: tuple[Any, Hospital], tmp_path: Path) -> None:
    from service.core.audit import Audit
    from service.core.purge import purge
    from service.core.removal import forget_files

    context, hospital = clinic
    first, second = film("expired"), film("erased")
    for dataset in (first, second):
        send(context, tmp_path, dataset)
    work(context)
    assert len(hospital.client.search_for_studies()) == 2
    with context.ledger.write() as session:
        study = session.query(Study).filter_by(study_instance_uid=str(first.StudyInstanceUID)).one()
        study.expired_at = now()
        forget_files(session, study)
    purge(
        context.ledger,
        context.spool,
        Audit(context.settings, "test"),
        second.StudyInstanceUID,
        "test",
        "test",
    )
    assert hospital.client.search_for_studies() == []
    for dataset in (first, second):
        for path in (path_of(dataset, "study"), path_of(dataset), f"{path_of(dataset, 'study')}/series"):
            assert hospital.get(path).status_code == 410, path
    with pytest.raises(HTTPError, match="410"):
        hospital.client.retrieve_instance(*names(first))
    with context.ledger.read() as session:
        subject = session.query(Subject).one()
        assert {getattr(subject, name) for name in STUDY_ATTRIBUTES} == {""}


def test_what_an_older_version_received_is_searchable_once_it_was_looked_at(
    clinic: tuple[Any, Hospital], tmp_path: Path
) -> None:
    context, hospital = clinic
    dataset = film("old", StudyDate="20250102", StudyID="OLD")
    send(context, tmp_path, dataset)
    change(context, Instance, state=InstanceState.NOT_ANALYSED)
    change(context, Subject, **dict.fromkeys(STUDY_ATTRIBUTES))
    answer = hospital.get("/studies", StudyDate="20250102")
    assert (answer.status_code, "before an upgrade" in answer.headers["Warning"]) == (204, True)
    assert hospital.get("/studies").status_code == 200
    assert not is_complete(context.ledger)
    assert complete(context.ledger, context.spool, threading.Event()) == 1
    (found,) = hospital.client.search_for_studies(search_filters={"StudyDate": "20250102"})
    assert found["00200010"]["Value"] == ["OLD"]
    assert complete(context.ledger, context.spool, threading.Event()) == 0


def test_films_that_are_waited_for_hold_back_what_makes_older_ones_searchable(
    clinic: tuple[Any, Hospital], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, _ = clinic
    monkeypatch.setattr(catalogue, "_BATCH", 1)
    for name in ("one", "two"):
        send(context, tmp_path, film(name, study=name))
    change(context, Subject, **dict.fromkeys(STUDY_ATTRIBUTES))
    stopped = threading.Event()
    thread = threading.Thread(target=complete, args=(context.ledger, context.spool, stopped))

    def missing() -> int:
        with context.ledger.read() as session:
            return session.query(Subject).where(Subject.study_date.is_(None)).count()

    thread.start()
    try:
        eventually(lambda: missing() == 1)
        thread.join(1)
        assert missing() == 1
        change(context, Instance, state=InstanceState.NOT_ANALYSED)
        eventually(lambda: not missing(), 5)
    finally:
        stopped.set()
        thread.join(10)


def test_a_file_that_is_lost_is_said_to_be(clinic: tuple[Any, Hospital], tmp_path: Path) -> None:
    context, hospital = clinic
    first, second = film("lost", study="l"), film("kept", study="l")
    send(context, tmp_path, first)
    with context.ledger.read() as session:
        context.spool.absolute(session.query(Instance).one().spool_path).unlink()
    send(context, tmp_path, second)
    for path in ("", "/metadata", "/frames/1"):
        answer = hospital.get(path_of(first) + path)
        assert (answer.status_code, "data folder" in answer.json()["detail"]) == (404, True)
    assert hospital.get(path_of(first, "study")).status_code == 206
    assert hospital.get(path_of(first, "study") + "/metadata").status_code == 206


def test_a_large_object_is_never_in_memory(clinic: tuple[Any, Hospital], tmp_path: Path) -> None:
    import tracemalloc

    context, hospital = clinic
    dataset = two_frames()
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = 4, 4096, 4096
    dataset.PixelData, dataset.EncapsulatedDocument = bytes(64 << 20), bytes(32 << 20)
    sent = send(context, tmp_path, dataset)
    expected = hashlib.sha256(sent.read_bytes()).hexdigest()
    del dataset.PixelData, dataset.EncapsulatedDocument
    tracemalloc.start()
    try:
        for path in ("", "/frames/1,2,3,4", "/bulkdata/7FE00010", "/bulkdata/00420011", "/metadata"):
            digest = hashlib.sha256()
            url = f"{hospital.web.url}/dicomweb{path_of(dataset)}{path}"
            headers = {**bearer("clinician"), "Accept": "application/dicom" if not path else "*/*"}
            with httpx.stream("GET", url, headers=headers, timeout=60) as answer:
                assert answer.status_code == 200
                for chunk in answer.iter_raw():
                    digest.update(chunk)
            if not path:
                assert digest.hexdigest() == expected
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_hostile_lengths_and_depths_cost_an_answer_and_nothing_else(
    clinic: tuple[Any, Hospital], tmp_path: Path
) -> None:
    context, hospital = clinic
    dataset = film("hostile")
    send(context, tmp_path, dataset)
    with context.ledger.read() as session:
        path = context.spool.absolute(session.query(Instance).one().spool_path)
    whole = path.read_bytes()
    path.chmod(0o600)
    for damage in (
        whole[:200],
        whole[: len(whole) // 2],
        b"",
        whole.replace(b"\xe0\x7f\x10\x00", b"\xe0\x7f\x11\x00"),
    ):
        path.write_bytes(damage)
        assert hospital.get(path_of(dataset, "study") + "/metadata").status_code in (200, 406)
        for resource in ("/metadata", "/frames/1", "/bulkdata/7FE00010"):
            answer = hospital.get(path_of(dataset) + resource)
            assert answer.status_code in (200, 404, 406), (resource, answer.status_code)


def test_it_speaks_with_a_viewer_that_signed_in(hospital: Hospital) -> None:
    with httpx.Client(base_url=hospital.web.url) as browser:
        browser.post("/login", data={"token": SECRETS["clinician"]})
        assert browser.get("/dicomweb/studies").status_code == 200
        answer = browser.get("/dicomweb/studies", headers={"Sec-Fetch-Site": "same-origin"})
        assert answer.headers["Cache-Control"] == "no-store"
