"""What a result object inherits from its source image, made safe for highdicom.

highdicom takes the attributes of the source for granted (types 1 and 2 present and legal) and fails or
warns with their values, which name a patient. Real films lack birth dates and study IDs, carry a sex of
"FEMALE" or a pixel spacing of 0. So highdicom sees a normalised copy, and the attributes that name the
patient, the study and the order are then copied from the source by `inherit`, unaltered.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from datetime import datetime, timedelta, timezone

from pydicom import config
from pydicom.charset import python_encoding
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.valuerep import DA, TM, VR, PersonName, validate_value

UTF_8 = "ISO_IR 192"

# Type 2 in every result object: empty when the source has no (legal) value.
_TYPE_2 = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "StudyID",
)
# By these an archive files the object and finds its source: copied whatever they look like (real modalities
# write UIDs with leading zeros), as the source was filed by them too. An unknown character set is decided
# upon later, not taken for none.
_AS_THEY_ARE = (
    "SpecificCharacterSet",
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "AccessionNumber",
    "StudyID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPClassUID",
    "SOPInstanceUID",
)
# Clinical Trial Subject module, PS3.3 C.7.1.3; one of the two IDs names the subject.
_TRIAL_TYPE_1 = ("ClinicalTrialSponsorName", "ClinicalTrialProtocolID")
_TRIAL_SUBJECT = ("ClinicalTrialSubjectID", "ClinicalTrialSubjectReadingID")
_TRIAL_TYPE_2 = ("ClinicalTrialProtocolName", "ClinicalTrialSiteID", "ClinicalTrialSiteName")
# PS3.3 C.7.1.1, C.7.1.3, C.7.2.1, C.7.2.2, C.7.2.3: patient and study level, as far as it is worth repeating.
_INHERITED = (
    *_TYPE_2,
    "IssuerOfPatientID",
    "TypeOfPatientID",
    "IssuerOfPatientIDQualifiersSequence",
    "OtherPatientIDsSequence",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    *_TRIAL_TYPE_1,
    *_TRIAL_SUBJECT,
    *_TRIAL_TYPE_2,
    "ClinicalTrialTimePointID",
    "StudyInstanceUID",
    "StudyDescription",
    "IssuerOfAccessionNumberSequence",
    "ProcedureCodeSequence",
    "PatientAge",
)
# Read for references, image library and acquisition equipment; never written as they are.
_DESCRIBING = (
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "InstanceNumber",
    "SpecificCharacterSet",
    "TimezoneOffsetFromUTC",
    "Modality",
    "Manufacturer",
    "ManufacturerModelName",
    "SoftwareVersions",
    "DeviceSerialNumber",
    "StationName",
    "InstitutionName",
    "InstitutionalDepartmentName",
    "AcquisitionDateTime",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "PatientOrientation",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "PixelSpacingCalibrationType",
    "BurnedInAnnotation",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
    "RequestAttributesSequence",
    "ReferencedRequestSequence",
)
_ENUMERATED = {
    "PatientSex": {"M", "F", "O"},
    "PatientIdentityRemoved": {"YES", "NO"},
    "BurnedInAnnotation": {"YES", "NO"},
    "LossyImageCompression": {"00", "01"},
}
# SR Document General module, PS3.3 C.17.2: what an item of Referenced Request Sequence must have (type 2).
_REQUEST_TYPE_2 = (
    "AccessionNumber",
    "PlacerOrderNumberImagingServiceRequest",
    "FillerOrderNumberImagingServiceRequest",
    "RequestedProcedureID",
    "RequestedProcedureDescription",
)
_REQUEST_SEQUENCES = ("RequestedProcedureCodeSequence", "IssuerOfAccessionNumberSequence")


def normalised(source: Dataset) -> Dataset:
    """Return the part of the header that result objects use: decoded, legal, and complete for highdicom.

    Parameters
    ----------
    source
        Header of a received instance, as read; its values are left as they are.

    Returns
    -------
    Dataset
        Elements that cannot be read or are illegal for their VR are left out, except those by which an
        archive files the object; type 2 attributes of patient and study are there, if need be empty. The
        clinical trial is there as a whole or not at all.
        Modality is OT where TID 1603 (Image Library Entry Descriptors for Projection Radiography) could
        not be filled: highdicom decides by Modality whether it writes that template and fails on a gap.
    """
    header = Dataset()
    # pydicom warns of illegal values and quotes them, to whoever listens: they may name the patient.
    with warnings.catch_warnings(), config.disable_value_validation():
        warnings.simplefilter("ignore")
        for keyword in (*_INHERITED, *_DESCRIBING):
            element = _readable(source, keyword)
            if element is not None and (keyword in _AS_THEY_ARE or _is_legal(element)):
                header.add(copy(element))
    for keyword in _TYPE_2:
        if header.get(keyword) is None:
            setattr(header, keyword, "")
    _complete_trial(header)
    referring = str(header.ReferringPhysicianName)
    if referring and not set(referring) & {"^", "="}:
        # A ward or a practice. The same name in the form that is not retired (PS3.5 6.2.1.1).
        header.ReferringPhysicianName = f"{referring}^"
    if spacing_mm(header) is None:
        header.pop("PixelSpacing", None)
        header.pop("ImagerPixelSpacing", None)
    elif not _is_spacing(header.get("ImagerPixelSpacing")):
        header.ImagerPixelSpacing = header.PixelSpacing
    if "ImagerPixelSpacing" not in header or len(_values(header.get("PatientOrientation"))) != 2:
        header.Modality = "OT"
    return header


def identify(source: Dataset, identity: Mapping[str, str]) -> None:
    """Let a header name patient and order as `identity` does, by keyword.

    Its character set becomes UTF-8 when one of the values asks for it: what is written in another set is
    decoded before.
    """
    if not all(value.isascii() for value in identity.values()):
        with warnings.catch_warnings(), config.disable_value_validation():
            warnings.simplefilter("ignore")
            for keyword in (*_INHERITED, *_DESCRIBING):
                _readable(source, keyword)
        source.SpecificCharacterSet = UTF_8
    if "PatientID" in identity and identity["PatientID"] != str(source.get("PatientID") or "").strip():
        source.pop("IssuerOfPatientID", None)  # that of another identifier
    for keyword, value in identity.items():
        setattr(source, keyword, value)


def anonymous(header: Dataset) -> Dataset:
    """Return a copy of a normalised header for highdicom's constructors, without what names the patient.

    highdicom and pydicom warn about values they find odd, quoting them (a name of one component, say).
    `inherit` puts the values where they belong.
    """
    blank = Dataset()
    blank.update(header)
    for keyword in ("SpecificCharacterSet", "RequestAttributesSequence", "ReferencedRequestSequence"):
        blank.pop(keyword, None)
    for keyword in ("PatientName", "PatientID", "AccessionNumber", "StudyID", "ReferringPhysicianName"):
        blank.pop(keyword, None)  # assigning would change the element that both data sets hold
        setattr(blank, keyword, "")
    return blank


def inherit(target: Dataset, sources: Sequence[Dataset], text: Iterable[str]) -> None:
    """Copy patient, study and clinical trial attributes onto a result object, with the encoding they need.

    Parameters
    ----------
    target
        Result object that highdicom built.
    sources
        Normalised headers of the images behind it; the first one names patient and study.
    text
        Every free text of ours in the object; decides the character set.
    """
    for keyword in _INHERITED:
        if keyword in sources[0]:
            target.add(sources[0][keyword])
    if "TimezoneOffsetFromUTC" in sources[0]:
        target.add(sources[0]["TimezoneOffsetFromUTC"])
    character_set = _character_set(sources, text)
    target.pop("SpecificCharacterSet", None)
    if character_set:
        target.SpecificCharacterSet = character_set


def local_time(source: Dataset, at: datetime) -> datetime:
    """Return `at` on the clock that governs the object, to the second, without its offset.

    Timezone Offset From UTC (0008,0201) governs every date and time of an instance, the copied study time
    too (PS3.3 C.12.1.1.8). Where the source names an offset our times are written in it, and else as `at`
    has them: it comes in the site's own zone.
    """
    offset = str(source.get("TimezoneOffsetFromUTC") or "")
    if offset:
        minutes = int(offset[1:3]) * 60 + int(offset[3:5])
        at = at.astimezone(timezone(timedelta(minutes=-minutes if offset[0] == "-" else minutes)))
    return at.replace(tzinfo=None, microsecond=0)


def spacing_mm(source: Dataset) -> tuple[float, float] | None:
    """Return (row, column) spacing in mm, or None when the header has no usable one.

    Pixel Spacing goes first, as it may be calibrated (PS3.3 10.7.1.3); Imager Pixel Spacing is that of the
    detector plane.
    """
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        if _is_spacing(source.get(keyword)):
            row, column = source[keyword].value
            return float(row), float(column)
    return None


def requests(source: Dataset) -> list[Dataset]:
    """Return the items of Referenced Request Sequence that fulfil the order behind a normalised header."""
    asked = source.get("ReferencedRequestSequence") or source.get("RequestAttributesSequence") or []
    items = []
    for request in asked:
        if not request.get("RequestedProcedureID") and not request.get("AccessionNumber"):
            continue  # such an item refers to nothing
        item = Dataset()
        item.StudyInstanceUID = request.get("StudyInstanceUID") or source.StudyInstanceUID
        item.ReferencedStudySequence = []
        item.RequestedProcedureCodeSequence = []
        for keyword in _REQUEST_TYPE_2:
            setattr(item, keyword, "")
        item.AccessionNumber = source.AccessionNumber
        for keyword in (
            *_REQUEST_TYPE_2,
            "RequestedProcedureCodeSequence",
            "IssuerOfAccessionNumberSequence",
        ):
            element = _readable(request, keyword)
            if element is not None and _is_legal(element):
                item.add(element)
        items.append(item)
    return items


def _complete_trial(header: Dataset) -> None:
    """Give a header the Clinical Trial Subject module with its empty attributes, or nothing of it."""
    named = all(header.get(keyword) for keyword in _TRIAL_TYPE_1)
    if named and any(header.get(keyword) for keyword in _TRIAL_SUBJECT):
        for keyword in _TRIAL_TYPE_2:
            if keyword not in header:
                setattr(header, keyword, "")
        return
    for keyword in (*_TRIAL_TYPE_1, *_TRIAL_SUBJECT, *_TRIAL_TYPE_2):
        header.pop(keyword, None)


def _readable(source: Dataset, keyword: str) -> DataElement | None:
    """Return the element with its value decoded, None when it is absent, empty or broken."""
    try:
        if keyword not in source:
            return None
        element = source[keyword]
        if element.VR == VR.SQ:
            for item in element.value:
                item.walk(lambda _, __: None)  # decodes what lies within, in the character set of the source
        elif element.VR == VR.PN:
            str(element.value)
    except Exception:  # a header in the wild raises nearly anything; what can't be read can't be inherited
        return None
    return element if _values(element.value) else None


def _is_legal(element: DataElement) -> bool:
    values = _values(element.value)
    allowed = _ENUMERATED.get(element.keyword)
    try:
        if element.VR == VR.SQ:
            # An item of a code sequence without its code (PS3.3 8.8) says nothing and fails validation.
            return "Code" not in element.keyword or all(
                any(item.get(keyword) for keyword in ("CodeValue", "LongCodeValue", "URNCodeValue"))
                for item in element.value
            )
        if allowed is not None:
            return all(value in allowed for value in values)
        for value in values:
            if isinstance(value, str | PersonName):  # a number that was read is one
                validate_value(element.VR, value, config.RAISE)
            if element.VR == VR.DA:
                DA(value)
            elif element.VR == VR.TM:
                TM(value)
        if element.keyword == "TimezoneOffsetFromUTC":
            return len(str(values[0])) == 5 and -1200 <= int(str(values[0])) <= 1400
    except Exception:
        return False
    return True


def _values(value: object) -> list[object]:
    if value is None or value == "":
        return []
    if isinstance(value, str) or not isinstance(value, Iterable):
        return [value]
    return list(value)


def _is_spacing(value: object) -> bool:
    values = _values(value)
    return len(values) == 2 and all(float(str(item)) > 0 for item in values)


def _character_set(sources: Sequence[Dataset], text: Iterable[str]) -> list[str]:
    """Return the values of Specific Character Set (0008,0005); empty for the default repertoire.

    As in the source. UTF-8 when our own text does not fit the default repertoire that every set includes
    (pydicom would write "?" for what does not fit), when the sources differ, or when theirs is none of
    the standard's.
    """
    declared = {
        tuple(str(value) for value in _values(source.get("SpecificCharacterSet"))) for source in sources
    }
    if len(declared) > 1 or not all(line.isascii() for line in text):
        return [UTF_8]
    values = declared.pop()
    return list(values) if all(value in python_encoding for value in values) else [UTF_8]
