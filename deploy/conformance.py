"""Write deploy/conformance.md: what the template says, and what the code offers, answers and builds.

python deploy/conformance.py            writes it
python deploy/conformance.py --check    exit code 1 when it is not current
"""

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from pydicom import Dataset, dcmread
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.sr.coding import Code
from pydicom.uid import UID, DigitalXRayImageStorageForPresentation
from pynetdicom import PYNETDICOM_IMPLEMENTATION_UID, PYNETDICOM_IMPLEMENTATION_VERSION

from service.api.dicomweb import attributes
from service.api.dicomweb.matching import LISTED
from service.api.dicomweb.model import INLINE_BYTES
from service.api.dicomweb.negotiation import FRAME_TYPES, OCTETS
from service.api.dicomweb.query import MOST_RESULTS
from service.api.dicomweb.routes import RESOURCES, RETRIEVE_RESPONSES, SEARCH_RESPONSES
from service.api.dicomweb.search import MOST_HEADERS
from service.api.stow import _RESPONSES as STOW_RESPONSES
from service.api.stow import Bounds as StowBounds
from service.core import audit_message, errors, tls
from service.core.eligibility import RADIOGRAPH_CLASSES
from service.core.results import Finding, ModelIdentity, Result, conclude
from service.core.settings import Settings
from service.core.states import Assessment
from service.core.syntaxes import LOSSLESS, LOSSY, OFFERED, UNCOMPRESSED
from service.listener.limits import MAXIMUM_PDU_BYTES, Bounds
from service.listener.presentation import commitment_context, storage_contexts
from worker import codes
from worker.assessment import Reading, build_assessment
from worker.comprehensive import comprehensive_of
from worker.document import build_document
from worker.heatmap import build_heatmap, plain_of
from worker.peer import answer_to, reason_for
from worker.presentation_state import build_presentation_state
from worker.rejection_note import build_rejection_note
from worker.report_context import ImageResult, ReportContext
from worker.source import _AS_THEY_ARE, _INHERITED
from worker.structured_report import build_structured_report
from worker.text_report import build_text_report

HERE = Path(__file__).resolve().parent
PAGE = HERE / "conformance.md"
TEMPLATE = HERE / "conformance.md.j2"
# PS3.2 K.4.2: single value, list, range, wild card, sequence.
_MATCHING = {
    **{"UI": "L", "DA": "R", "TM": "R", "SQ": "SEQUENCE", "PN": "*, any component group, no case"},
    **dict.fromkeys(("AE", "CS", "LO", "SH", "LT", "ST", "UC", "UR", "UT"), "*"),
}
_STUDY = "1.2.826.0.1.3680043.8.498.1"
_ANSWERS_ASKED = (
    *(0x0000, 0x0111, 0xB000, 0xB006, 0xB007, 0xA700, 0x0110, 0xC000, 0xA900, 0x0117, 0x0122, 0x0124),
    *(0xC122, 0xA777, 0xA778, 0xA779),
)


def render() -> str:
    """Return the page."""
    # Markdown, of our own words alone.
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)  # noqa: S701
    objects = list(_objects())
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        version=version("hilum"),
        implementation_uid=PYNETDICOM_IMPLEMENTATION_UID,
        implementation_version=PYNETDICOM_IMPLEMENTATION_VERSION,
        setting={name: _shown(field.default) for name, field in Settings.model_fields.items()},
        syntaxes=[(uid.name, str(uid), _kind(uid)) for uid in OFFERED],
        classes=[(UID(name).name, name) for name in (str(c.abstract_syntax) for c in storage_contexts())],
        radiographs=[(uid.name, str(uid)) for uid in RADIOGRAPH_CLASSES],
        commitment=commitment_context(),
        statuses=list(_statuses()),
        answers=[(f"{code:04X}", reason_for(code), answer_to(code).value) for code in _ANSWERS_ASKED],
        bounds=Bounds(),
        maximum_pdu=MAXIMUM_PDU_BYTES,
        stow=sorted(STOW_RESPONSES.items(), key=lambda item: int(item[0])),
        stow_bounds=StowBounds(),
        searched=list(_searched()),
        returned=[(level.value, _named(names)) for level, names in _returned().items()],
        optional=[
            ("studies", _named(attributes.STUDY_OPTIONAL)),
            ("series", _named(attributes.SERIES_OPTIONAL)),
        ],
        resources=RESOURCES,
        search_statuses=_by_status(SEARCH_RESPONSES),
        retrieve_statuses=_by_status(RETRIEVE_RESPONSES),
        most_results=MOST_RESULTS,
        most_headers=MOST_HEADERS,
        inline_bytes=INLINE_BYTES,
        frame_types=list(_frame_types()),
        suites=tls.SUITES,
        audit=[(code.value, code.meaning) for code in _audit_events()],
        objects=objects,
        sent=sorted({(entry["sop_class"], entry["sop_class_uid"]) for entry in objects}),
        terms=sorted(
            {(c.value, c.scheme_designator, c.meaning) for c in _codes(vars(codes))}, key=_by_scheme
        ),
    )


def _shown(default: object) -> str:
    return "none" if default is None or default == () else str(default)


def _kind(uid: UID) -> str:
    if uid in UNCOMPRESSED:
        return "uncompressed"
    return "lossless" if uid in LOSSLESS else "lossy" if uid in LOSSY else ""


def _statuses() -> Iterator[tuple[str, str, str, int]]:
    """Yield status, class, meaning and HTTP status of every error that a sender may be answered with."""
    for error in (
        errors.OutOfResources,
        errors.TooLarge,
        errors.Mismatch,
        errors.Unreadable,
        errors.InvalidUID,
        errors.HilumError,
    ):
        meaning = "Anything else that goes wrong here" if error is errors.HilumError else _sentence(error)
        yield f"{error.dimse_status:04X}", meaning, "yes" if error.retry_helps else "no", error.http_status


def _sentence(documented: type) -> str:
    return (documented.__doc__ or "").strip().splitlines()[0].rstrip(".")


def _audit_events() -> Iterator[Any]:
    for name in (
        *("APPLICATION_ACTIVITY", "INSTANCES_ACCESSED", "INSTANCES_TRANSFERRED", "QUERY", "STUDY_DELETED"),
        "SECURITY_ALERT",
    ):
        yield getattr(audit_message, name)
    yield audit_message.USER_AUTHENTICATION


def _searched() -> Iterator[tuple[str, str, str, str]]:
    """Yield tag, keyword, types of matching and levels of each attribute that is searched for."""
    for keyword in attributes.MATCHED[attributes.Level.INSTANCES]:
        levels = [level.value for level, names in attributes.MATCHED.items() if keyword in names]
        tag = tag_for_keyword(keyword) or 0
        kind = "L" if keyword in LISTED else _MATCHING.get(dictionary_VR(tag), "S")
        yield _tag(tag), keyword, kind, ", ".join(levels)


def _returned() -> dict[attributes.Level, tuple[str, ...]]:
    read = {
        attributes.Level.STUDIES: ("IssuerOfPatientID", "StudyDescription", "TimezoneOffsetFromUTC"),
        attributes.Level.SERIES: attributes.SERIES_RETURNED,
        attributes.Level.INSTANCES: attributes.INSTANCE_RETURNED,
    }
    return {
        level: (*required, *(name for name in read[level] if name not in required))
        for level, required in attributes.REQUIRED.items()
    }


def _named(keywords: Iterable[str]) -> str:
    return ", ".join(f"{keyword} {_tag(tag_for_keyword(keyword) or 0)}" for keyword in keywords)


def _tag(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def _by_status(responses: Mapping[int | str, Mapping[str, Any]]) -> list[tuple[int, str]]:
    return sorted((int(status), entry["description"]) for status, entry in responses.items())


def _frame_types() -> Iterator[tuple[str, str, str]]:
    """Yield name and UID of each stored transfer syntax, and the media types of its frames."""
    for uid in OFFERED:
        named = FRAME_TYPES.get(uid)
        also = f", {OCTETS}" if named not in (None, OCTETS) else ""
        yield uid.name, str(uid), f"{named}{also}" if named else "none: 406"


def _codes(found: Mapping[str, Any]) -> Iterator[Code]:
    for value in found.values():
        if isinstance(value, Code):
            yield value
        elif isinstance(value, dict):
            yield from _codes(value)


def _by_scheme(term: tuple[str, str, str]) -> tuple[str, str]:
    return term[1], term[2]


def _objects() -> Iterator[dict[str, Any]]:
    """Yield each kind of object with the attributes that a built one has."""
    image = ImageResult(_film(), Result(Finding.PRESENT, 0.87, 0.5), _activation(), _picture())
    unread = replace(image, result=Result(Finding.NOT_ANALYSED, reason="view position LATERAL"))
    report = _read(build_structured_report([image], _context(image)))
    heatmap = _read(build_heatmap(image, _context(image)))
    named = {"series_instance_uid": f"{_STUDY}.8", "sop_instance_uid": f"{_STUDY}.8.1"}
    built = [
        ("sr", "report, TID 1500", "measured films", report),
        ("sr", "the same content, where 3D is rejected or chosen against", "measured films",
         comprehensive_of(report, predecessors=(), **named)),
        ("text", "report in words, TID 2000", "measured films", build_text_report([image], _context(image))),
        ("sr, text", "note: not analysed", "films without a number",
         build_text_report([unread], _context(unread))),
        ("heatmap", "film and activation, JPEG Baseline", "positive films, or all measured", heatmap),
        ("heatmap", "the same uncompressed, where JPEG is rejected", "positive films, or all measured",
         plain_of(heatmap, **named)),
        ("gsps", "verdict and outlines over the films", "measured films",
         build_presentation_state([image], _context(image))),
        ("pdf", "one page", "every study", build_document([image], _context(image))),
        ("rejection", "note that rejects what a revision replaces (IOCM)", "revisions after the first",
         build_rejection_note([report], _context(image))),
        ("assessment", "what a reader says of the report (IHE AIRA)", "feedback on a report",
         build_assessment([report], _reading(image), _context(image))),
    ]  # fmt: skip
    for kind, what, when, dataset in built:
        written = _read(dataset)
        yield {
            "kind": kind,
            "what": what,
            "when": when,
            "sop_class": written.SOPClassUID.name,
            "sop_class_uid": str(written.SOPClassUID),
            "syntax": written.file_meta.TransferSyntaxUID.name,
            "series_number": written.SeriesNumber,
            "series_description": written.get("SeriesDescription", ""),
            "attributes": [
                (
                    f"({item.tag.group:04X},{item.tag.element:04X})",
                    keyword_for_tag(item.tag),
                    item.VR,
                    _origin(item),
                )
                for item in written
            ],
        }


def _origin(element: Any) -> str:
    keyword = keyword_for_tag(element.tag)
    if keyword == "SpecificCharacterSet":
        return "source, or UTF-8"
    if keyword in {*_INHERITED, *_AS_THEY_ARE} - {"SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID"}:
        return "source" if not element.is_empty else "source, else empty"
    return "Hilum" if not element.is_empty else "empty"


def _read(dataset: Dataset) -> Dataset:
    """Return an object after its way through a file."""
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    buffer.seek(0)
    return dcmread(buffer)


def _film() -> Dataset:
    """Return the header of a radiograph that has all that is inherited as a rule."""
    film = Dataset()
    film.SpecificCharacterSet = "ISO_IR 100"
    film.SOPClassUID = DigitalXRayImageStorageForPresentation
    film.SOPInstanceUID, film.SeriesInstanceUID = f"{_STUDY}.1.1", f"{_STUDY}.1"
    film.StudyInstanceUID, film.StudyID, film.AccessionNumber = _STUDY, "1", "A1"
    film.StudyDate, film.StudyTime, film.StudyDescription = "20261123", "081500", "Chest"
    film.PatientName, film.PatientID, film.IssuerOfPatientID = "Test^Patient", "P1", "SITE"
    film.PatientBirthDate, film.PatientSex, film.PatientAge = "20230101", "F", "003Y"
    film.ReferringPhysicianName, film.Modality = "Test^Doctor", "DX"
    film.SeriesNumber = film.InstanceNumber = 1
    film.Rows, film.Columns, film.ImagerPixelSpacing = 1024, 1024, [0.3, 0.3]
    film.PatientOrientation, film.BurnedInAnnotation = ["L", "F"], "NO"
    return film


def _activation() -> np.ndarray[Any, np.dtype[np.float32]]:
    y, x = np.mgrid[0:16, 0:16]
    return np.exp(-((x - 5) ** 2 + (y - 9) ** 2) / 6).astype(np.float32)


def _picture() -> np.ndarray[Any, np.dtype[np.uint16]]:
    return np.tile(np.linspace(0, 65535, 1024, dtype=np.uint16), (1024, 1))


def _reading(image: ImageResult) -> Reading:
    return Reading(image.result, Assessment.DISAGREE, Finding.ABSENT, "A note.", "A reader")


def _context(image: ImageResult) -> ReportContext:
    return ReportContext(
        conclusion=conclude([image.result]),
        model=ModelIdentity("hilum-chest-resnet", "1", "0" * 64),
        activation_method="Class activation map",
        series_instance_uid=f"{_STUDY}.9",
        sop_instance_uid=f"{_STUDY}.9.1",
        instance_number=1,
        revision=1,
        predecessors=(),
        device_uid=f"{_STUDY}.99",
        device_serial_number="1",
        software_version=version("hilum"),
        at=datetime(2026, 11, 23, 9, 30, tzinfo=UTC),
    )


if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        if PAGE.read_text(encoding="utf-8") != render():
            sys.exit(f"{PAGE.name} is not what the code says: make conformance")
    else:
        PAGE.write_text(render(), encoding="utf-8")
