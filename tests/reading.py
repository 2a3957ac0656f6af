"""A study's result as a program of somebody else finds it in our objects: with srread and pydicom alone.

Nothing of `worker` is used here: codes and sentences are written out, as a reader knows them.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from typing import Any

import pytest
from highdicom.sr import srread
from pydicom import Dataset, dcmread
from pydicom.uid import (
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EnhancedSRStorage,
    SecondaryCaptureImageStorage,
)

_FINDING = {"52101004": "present", "272519000": "absent", "373068000": "indeterminate"}
_PATTERN = {"53084003": "bacterial", "75570004": "viral"}
_PERCENT = 5e-5  # the SR has two decimals of a percentage


def assert_says_what_the_api_says(study: Mapping[str, Any], objects: Sequence[bytes]) -> None:
    """Hold the objects of a study's newest revision against the API's JSON of it.

    Parameters
    ----------
    study
        The JSON of `/api/studies/{StudyInstanceUID}`.
    objects
        Part 10 files: all that a PACS holds of us.
    """
    read = [dcmread(BytesIO(content)) for content in objects]
    listed = {(item["sop_instance_uid"], item["sop_class_uid"]) for item in study["reports"]}
    assert {(item.SOPInstanceUID, item.SOPClassUID) for item in read} <= listed
    newest = {item["sop_instance_uid"] for item in study["reports"] if item["revision"] == study["revision"]}
    found = {item.SOPClassUID for item in read if item.SOPInstanceUID in newest}
    assert found
    for content, dataset in zip(objects, read, strict=True):
        assert dataset.StudyInstanceUID == study["study_instance_uid"]
        if dataset.SOPInstanceUID not in newest:
            continue
        assert int(dataset.InstanceNumber) % 100 == study["revision"]
        assert _network(dataset) == study["model"]
        if dataset.SOPClassUID in (Comprehensive3DSRStorage, ComprehensiveSRStorage):
            _measured(study, content)
        elif dataset.SOPClassUID == EnhancedSRStorage:
            _written(study, dataset)
        elif dataset.SOPClassUID == SecondaryCaptureImageStorage:
            (source,) = dataset.SourceImageSequence
            (shown,) = [
                item
                for item in _current(study)
                if item["sop_instance_uid"] == source.ReferencedSOPInstanceUID
            ]
            assert shown["finding"] == "present"
            assert dataset.pixel_array.ndim == 3


def _measured(study: Mapping[str, Any], content: bytes) -> None:
    """Hold a TID 1500 against the JSON: the study's answer, and that of each of its images."""
    report = srread(BytesIO(content))
    result, current = study["result"], _current(study)
    groups = [
        group
        for group in report.content.get_image_measurement_groups()
        if _measurement(group, "111012") is not None
    ]
    images = {}
    for group in groups:
        assert group.finding_type.value == "233604007"  # pneumonia
        certainty = _measurement(group, "111012")
        (region,) = certainty.referenced_coordinates
        uid = region.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        (presence,) = [item for item in group.get_qualitative_evaluations() if item.name.value == "705057003"]
        images[str(uid)] = (
            _FINDING[presence.value.value],
            pytest.approx(certainty.value / 100, abs=_PERCENT),
        )
    assert images == {
        item["sop_instance_uid"]: (item["finding"], item["probability"])
        for item in current
        if item["finding"] != "not_analysed"
    }

    (evaluations,) = [item for item in report.ContentSequence if _named(item) == "C0034375"]
    told = {name: _values(evaluations, name) for name in ("705057003", "121077", "121073", "121106")}
    (presence,) = told["705057003"]
    assert _FINDING[presence] == result["finding"]
    assert _measurement(groups[0], "111012").value / 100 == pytest.approx(result["probability"], abs=_PERCENT)
    assert f"pneumonia {result['finding'].upper()}" in told["121077"][0]
    assert [_PATTERN[code] for code in told["121073"]] == ([result["pattern"]] if result["pattern"] else [])
    limits = [text for text in told["121106"] if text.startswith("Limit: ")]
    assert limits == [f"Limit: {flag}." for flag in result["flags"]]

    parameters = dict(text.split("=", 1) for text in _values(report, "111002"))
    assert float(parameters["Operating threshold"].removesuffix(" %")) / 100 == result["threshold"]
    assert parameters["Weights SHA-256"] == study["model"]["sha256"]
    assert set(_values(report, "111001")) == {study["model"]["name"]}
    assert set(_values(report, "111003")) == {study["model"]["version"]}

    (library,) = [item for item in report.ContentSequence if _named(item) == "111028"]
    numbered = [
        item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        for item in _walk(library)
        if item.ValueType == "IMAGE"
    ]
    refused = {}
    for text in told["121106"]:
        if said := re.fullmatch(r"Image (\d+) of \d+ \(.*\) not analysed: (.*)\.", text):
            refused[str(numbered[int(said[1]) - 1])] = said[2]
    assert refused == {
        item["sop_instance_uid"]: item["reason"] for item in current if item["finding"] == "not_analysed"
    }


def _written(study: Mapping[str, Any], report: Dataset) -> None:
    """Hold a text against the JSON: its first sentence says the finding with its number or reason."""
    result = study["result"]
    said = _values(report, "121077")[0]
    if result["finding"] == "not_analysed":
        assert f"AI: NOT ANALYSED ({result['reason']})." in said
        assert not _values(report, "121071")
        reasons = " ".join(_values(report, "121065"))
        assert all(f"not analysed: {item['reason']}." in reasons for item in _current(study))
        return
    score = re.search(r"AI: pneumonia (\w+) \(score ([\d.]+) %, threshold ([\d.]+) %\)", said)
    assert score, said
    assert score[1] == result["finding"].upper()
    assert float(score[2]) / 100 == pytest.approx(result["probability"], abs=5e-4)
    assert float(score[3]) / 100 == result["threshold"]


def _network(dataset: Dataset) -> dict[str, str]:
    (item,) = [
        equipment
        for equipment in dataset.ContributingEquipmentSequence
        if equipment.PurposeOfReferenceCodeSequence[0].CodeMeaning == "Processing Algorithm"
    ]
    return {
        "name": item.ManufacturerModelName,
        "version": item.SoftwareVersions,
        "sha256": item.DeviceSerialNumber,
    }


def _current(study: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [item for item in study["instances"] if item["state"] in ("analysed", "not_analysed")]


def _measurement(group: Any, code: str) -> Any:
    return next((item for item in group.get_measurements() if item.name.value == code), None)


def _named(item: Dataset) -> str:
    names = item.get("ConceptNameCodeSequence")
    return str(names[0].CodeValue) if names else ""


def _walk(item: Dataset) -> Iterator[Dataset]:
    for child in item.get("ContentSequence") or []:
        yield child
        yield from _walk(child)


def _values(item: Dataset, concept: str) -> list[str]:
    """Return the texts, or the code values, of all items of that name below `item`."""
    return [
        str(found.TextValue) if found.ValueType == "TEXT" else str(found.ConceptCodeSequence[0].CodeValue)
        for found in _walk(item)
        if _named(found) == concept
    ]
