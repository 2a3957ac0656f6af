"""The attributes of a received object that Hilum decides by, read without touching its pixels."""

import mmap
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info, read_preamble
from pydicom.tag import Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

from service.core.errors import Refused, Unreadable
from service.core.identifiers import checked_uid
from service.core.plain import plain_values
from service.core.population import Described, scanner_of, sex_of
from service.core.shape import check_shape
from service.core.terms import VIEW_POSITIONS, term

# Up to Presentation LUT Shape everything that decides lies before the pixels; what a modality may have put
# into private groups after (7FE0,0010) is never read.
_KEYWORDS = [
    "SpecificCharacterSet",
    "ImageType",
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyDate",
    "StudyTime",
    "AcquisitionDate",
    "AcquisitionTime",
    "AcquisitionDateTime",
    "AccessionNumber",
    "Modality",
    "ReferringPhysicianName",
    "TimezoneOffsetFromUTC",
    "PresentationIntentType",
    "StudyDescription",
    "SeriesDescription",
    "Manufacturer",
    "StationName",
    "ManufacturerModelName",
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "PatientAge",
    "PatientSpeciesDescription",
    "BodyPartExamined",
    "ViewPosition",
    "ViewCodeSequence",
    "AnatomicRegionSequence",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "StudyID",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BurnedInAnnotation",
]
_WANTED = frozenset(int(Tag(keyword)) for keyword in _KEYWORDS)
_DAYS_PER_YEAR = 365.2425
# What may stand in a date and time, and no word.
_MOMENT = re.compile(r"[0-9.:+-]{1,64}")
# PS3.5 6.2, DA and TM; the older forms with dots and colons are taken too.
_DATE, _TIME = re.compile(r"[0-9]{8}"), re.compile(r"[0-9]{2}([0-9]{2}([0-9]{2}(\.[0-9]{1,6})?)?)?")
_OFFSET = re.compile(r"[+-][0-9]{4}")
# Pydicom's data set, or what `service.core.plain` says of one.
Values = Dataset | Mapping[str, Any]
_AGE_UNIT_YEARS = {"Y": 1.0, "M": 1 / 12, "W": 7 / _DAYS_PER_YEAR, "D": 1 / _DAYS_PER_YEAR}


@dataclass(frozen=True, repr=False)
class Head:
    """The beginning of a Part 10 file that is still in memory; its data set begins at byte `start`."""

    content: bytes
    start: int
    transfer_syntax_uid: UID


@dataclass(frozen=True, repr=False)
class Subject:
    """Who the film is of: all of it identifies a person, is kept in `subject` alone and is never printed.

    From `study_date` on it is what a study is searched by beside its patient (PS3.18 table 10.6.3-3). Dates
    are YYYYMMDD, times HHMMSS.FFFFFF as far as they go, and empty where they are neither.
    """

    patient_id: str = ""
    issuer_of_patient_id: str = ""
    patient_name: str = ""
    patient_birth_date: str = ""
    patient_sex: str = ""
    accession_number: str = ""
    study_date: str = ""
    study_time: str = ""
    study_identifier: str = ""
    study_description: str = ""
    referring_physician_name: str = ""
    timezone_offset_from_utc: str = ""


STUDY_ATTRIBUTES = (
    *("study_date", "study_time", "study_identifier", "study_description"),
    *("referring_physician_name", "timezone_offset_from_utc"),
)
"""What of a `Subject` is of the study rather than of the patient."""


@dataclass(frozen=True)
class Header:
    """One instance's header.

    Attributes
    ----------
    image_type
        Values of Image Type (0008,0008), upper case; empty when absent.
    body_part_examined, view_position
        Upper case; empty when absent. `view_codes` and `region_codes` hold the code values of the sequences.
    patient_age_years
        From Patient's Age, else from birth date and study date; None when neither is there.
    acquired_at
        Acquisition Date Time, else date and time, as written; the images of one exposure share it. Empty when
        absent or no time.
    rows, columns, number_of_frames
        0 when absent (1 frame).
    """

    sop_class_uid: UID
    sop_instance_uid: UID
    study_instance_uid: UID
    series_instance_uid: UID
    transfer_syntax_uid: UID
    modality: str
    image_type: tuple[str, ...]
    presentation_intent_type: str
    acquired_at: str
    body_part_examined: str
    region_codes: tuple[str, ...]
    view_position: str
    view_codes: tuple[str, ...]
    species: str
    patient_age_years: float | None
    photometric_interpretation: str
    samples_per_pixel: int
    rows: int
    columns: int
    number_of_frames: int
    burned_in_annotation: str
    manufacturer: str
    manufacturer_model_name: str
    station_name: str
    subject: Subject
    # People write names into these.
    study_description: str = field(default="", repr=False)
    series_description: str = field(default="", repr=False)


def read_header(path: Path, head: Head | None = None) -> Header:
    """Read the header of the Part 10 file at `path`; the pixel data is not read.

    With a `head` that goes as far as the pixels the file is not opened.

    Raises
    ------
    Unreadable
        When it is no DICOM data set, or lacks the UIDs that say where it belongs.
    InvalidUID
        When one of those UIDs is malformed.
    """
    try:
        return _of_head(head) or _of_file(path)
    except (Refused, OSError):
        raise
    except Exception as fault:  # pydicom raises nearly anything on broken bytes (pydicom issue 2336)
        raise Unreadable(f"not a readable DICOM data set ({type(fault).__name__})") from None


def described(header: Header) -> Described:
    """Return what of a film is compared with the films that weights were validated on."""
    return Described(
        header.patient_age_years,
        sex_of(header.subject.patient_sex),
        term(header.view_position, VIEW_POSITIONS),
        scanner_of(header.manufacturer, header.manufacturer_model_name),
    )


def described_by(dataset: Dataset) -> Described:
    """Return the same of a data set in memory, whatever else it lacks."""
    return Described(
        _age_years(dataset),
        sex_of(_text(dataset, "PatientSex").upper()),
        term(_text(dataset, "ViewPosition").upper(), VIEW_POSITIONS),
        scanner_of(_text(dataset, "Manufacturer"), _text(dataset, "ManufacturerModelName")),
    )


def read_attributes(path: Path, keywords: Sequence[str]) -> Dataset:
    """Return these attributes of a file whose header was read already, under the same bounds.

    Sequences are taken apart before this returns, so that nothing is left to fail later.

    Raises
    ------
    Unreadable
        When they are too long, nest too deep or are broken.
    """
    try:
        dataset = _read(path, keywords)
        dataset.walk(lambda _dataset, element: element.value)
        return dataset
    except (Refused, OSError):
        raise
    except Exception as fault:
        raise Unreadable(f"{' and '.join(keywords)} cannot be read ({type(fault).__name__})") from None


def header_of(dataset: Values, transfer_syntax_uid: Any) -> Header:
    """Return the header of a data set already in memory; see `read_header`."""
    for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        if not dataset.get(keyword):
            raise Unreadable(f"the data set has no {keyword}")
    study_description = _text(dataset, "StudyDescription")
    return Header(
        sop_class_uid=checked_uid(dataset.get("SOPClassUID"), "SOPClassUID"),
        sop_instance_uid=checked_uid(dataset.get("SOPInstanceUID"), "SOPInstanceUID"),
        study_instance_uid=checked_uid(dataset.get("StudyInstanceUID"), "StudyInstanceUID"),
        series_instance_uid=checked_uid(dataset.get("SeriesInstanceUID"), "SeriesInstanceUID"),
        transfer_syntax_uid=UID(str(transfer_syntax_uid or "")),
        modality=_text(dataset, "Modality").upper(),
        image_type=_values(dataset, "ImageType"),
        presentation_intent_type=_text(dataset, "PresentationIntentType").upper(),
        acquired_at=_acquired_at(dataset),
        body_part_examined=_text(dataset, "BodyPartExamined").upper(),
        region_codes=_codes(dataset, "AnatomicRegionSequence"),
        view_position=_text(dataset, "ViewPosition").upper(),
        view_codes=_codes(dataset, "ViewCodeSequence"),
        species=_text(dataset, "PatientSpeciesDescription").upper(),
        patient_age_years=_age_years(dataset),
        photometric_interpretation=_text(dataset, "PhotometricInterpretation").upper(),
        samples_per_pixel=_number(dataset, "SamplesPerPixel", 0),
        rows=_number(dataset, "Rows", 0),
        columns=_number(dataset, "Columns", 0),
        number_of_frames=_number(dataset, "NumberOfFrames", 1),
        burned_in_annotation=_text(dataset, "BurnedInAnnotation").upper(),
        manufacturer=_text(dataset, "Manufacturer"),
        manufacturer_model_name=_text(dataset, "ManufacturerModelName"),
        station_name=_text(dataset, "StationName"),
        subject=Subject(
            patient_id=_text(dataset, "PatientID"),
            issuer_of_patient_id=_text(dataset, "IssuerOfPatientID"),
            patient_name=_text(dataset, "PatientName"),
            patient_birth_date=_text(dataset, "PatientBirthDate"),
            patient_sex=_text(dataset, "PatientSex").upper(),
            accession_number=_text(dataset, "AccessionNumber"),
            study_date=_matched(_DATE, _text(dataset, "StudyDate").replace(".", "")),
            study_time=_matched(_TIME, _text(dataset, "StudyTime").replace(":", "")),
            study_identifier=_text(dataset, "StudyID"),
            study_description=study_description,
            referring_physician_name=_text(dataset, "ReferringPhysicianName"),
            timezone_offset_from_utc=_matched(_OFFSET, _text(dataset, "TimezoneOffsetFromUTC")),
        ),
        study_description=study_description,
        series_description=_text(dataset, "SeriesDescription"),
    )


def _read(path: Path, keywords: Sequence[str]) -> Dataset:
    check_before_reading(path, _tags(keywords))
    # force: files from before Part 10 lack the preamble; what is no DICOM at all fails on its UIDs.
    return dcmread(path, force=True, stop_before_pixels=True, specific_tags=list(keywords))


def _of_head(head: Head | None) -> Header | None:
    """Return what `_of_file` would, None when the beginning does not tell."""
    if head is None or head.transfer_syntax_uid == DeflatedExplicitVRLittleEndian:
        return None
    walked = check_shape(head.content, head.transfer_syntax_uid, head.start, _WANTED)
    if not walked.whole:
        return None
    values: Values | None = plain_values(head.content, walked, _KEYWORDS)
    if values is None:
        values = dcmread(BytesIO(head.content), force=True, stop_before_pixels=True, specific_tags=_KEYWORDS)
    return header_of(values, head.transfer_syntax_uid)


def _of_file(path: Path) -> Header:
    dataset = _read(path, _KEYWORDS)
    if dataset.preamble is None and not dataset:
        raise Unreadable("no DICOM file: it has neither DICM at byte 128 nor any attribute of a DICOM header")
    return header_of(dataset, dataset.file_meta.get("TransferSyntaxUID", ImplicitVRLittleEndian))


def check_before_reading(path: Path, wanted: frozenset[int]) -> None:
    """Refuse what would take too much to read: what inflates, nests or grows without bound."""
    syntax, start = None, 0
    with path.open("rb") as stream:
        if read_preamble(stream, force=True) is not None:
            meta = read_file_meta_info(path)
            syntax = meta.get("TransferSyntaxUID")
            # PS3.10 7.1: the group length comes first; a file without it is left to pydicom.
            start = 144 + meta.get("FileMetaInformationGroupLength", -144)
        if syntax == DeflatedExplicitVRLittleEndian:
            raise Unreadable("deflated data sets are not read")
        if path.stat().st_size:
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
                check_shape(content, syntax, start, wanted)


def _tags(keywords: Sequence[str]) -> frozenset[int]:
    return frozenset(int(Tag(keyword)) for keyword in keywords)


def _text(dataset: Values, keyword: str) -> str:
    value = dataset.get(keyword)
    return "" if value is None else str(value).replace("\0", "").strip()


def _matched(pattern: re.Pattern[str], text: str) -> str:
    return text if pattern.fullmatch(text) else ""


def _values(dataset: Values, keyword: str) -> tuple[str, ...]:
    value = dataset.get(keyword)
    if value is None or isinstance(value, str):
        return tuple(value.upper().split("\\")) if value else ()
    return tuple(str(item).strip().upper() for item in value)


def _codes(dataset: Values, keyword: str) -> tuple[str, ...]:
    items: Iterable[Dataset] = dataset.get(keyword, ())
    return tuple(str(item.get("CodeValue", "")) for item in items)


def _number(dataset: Values, keyword: str, absent: int) -> int:
    value = dataset.get(keyword)
    return absent if value in (None, "") else int(value)


def _age_years(dataset: Values) -> float | None:
    age = _text(dataset, "PatientAge").upper()
    if len(age) >= 2 and age[:-1].isdigit() and age[-1] in _AGE_UNIT_YEARS:
        return int(age[:-1]) * _AGE_UNIT_YEARS[age[-1]]
    born, taken = _date(dataset, "PatientBirthDate"), _date(dataset, "StudyDate")
    if born and taken and taken >= born:
        return (taken - born).days / _DAYS_PER_YEAR
    return None


def _acquired_at(dataset: Values) -> str:
    whole = _text(dataset, "AcquisitionDateTime")
    date_alone, time_alone = _text(dataset, "AcquisitionDate"), _text(dataset, "AcquisitionTime")
    found = whole or (date_alone + time_alone if date_alone and time_alone else "")
    return found if _MOMENT.fullmatch(found) else ""


def _date(dataset: Values, keyword: str) -> date | None:
    try:
        return datetime.strptime(_text(dataset, keyword).replace(".", ""), "%Y%m%d").date()
    except ValueError:
        return None
