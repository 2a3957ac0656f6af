"""Which attributes a search matches and returns, level by level (PS3.18 tables 10.6.1-5 and 10.6.3-3 to -5).

The conformance statement is written from these tables.
"""

from collections.abc import Iterable
from enum import StrEnum

from pydicom.datadict import tag_for_keyword


class Level(StrEnum):
    """What is searched for."""

    STUDIES = "studies"
    SERIES = "series"
    INSTANCES = "instances"


STUDY_COLUMNS = {
    "StudyDate": "study_date",
    "StudyTime": "study_time",
    "AccessionNumber": "accession_number",
    "ReferringPhysicianName": "referring_physician_name",
    "PatientName": "patient_name",
    "PatientID": "patient_id",
    "IssuerOfPatientID": "issuer_of_patient_id",
    "PatientBirthDate": "patient_birth_date",
    "PatientSex": "patient_sex",
    "StudyID": "study_identifier",
    "StudyDescription": "study_description",
}
"""What the ledger knows of a study, and by what name: all of it can be searched for."""

STUDY_KEYS = (*STUDY_COLUMNS, "StudyInstanceUID", "ModalitiesInStudy")
SERIES_KEYS = (
    *("Modality", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription"),
    *("PerformedProcedureStepStartDate", "PerformedProcedureStepStartTime"),
    *("RequestAttributesSequence", "BodyPartExamined", "StationName"),
)
INSTANCE_KEYS = ("SOPClassUID", "SOPInstanceUID", "InstanceNumber")
MATCHED = {
    Level.STUDIES: STUDY_KEYS,
    Level.SERIES: (*STUDY_KEYS, *SERIES_KEYS),
    Level.INSTANCES: (*STUDY_KEYS, *SERIES_KEYS, *INSTANCE_KEYS),
}
"""What is matched at each level; every other attribute is passed over, and a warning says so."""

SERIES_RETURNED = (
    *("Modality", "SeriesDescription", "SeriesNumber"),
    *("PerformedProcedureStepStartDate", "PerformedProcedureStepStartTime", "RequestAttributesSequence"),
    "TimezoneOffsetFromUTC",
)
INSTANCE_RETURNED = (
    *("InstanceNumber", "Rows", "Columns", "BitsAllocated", "NumberOfFrames", "TimezoneOffsetFromUTC"),
)
"""What is read from a header for each result; the rest of its required attributes is in the ledger."""

REQUIRED = {
    Level.STUDIES: (
        *("StudyDate", "StudyTime", "AccessionNumber", "InstanceAvailability", "ModalitiesInStudy"),
        *("ReferringPhysicianName", "RetrieveURL", "PatientName", "PatientID", "PatientBirthDate"),
        *("PatientSex", "StudyInstanceUID", "StudyID", "NumberOfStudyRelatedSeries"),
        "NumberOfStudyRelatedInstances",
    ),
    Level.SERIES: (
        *("Modality", "RetrieveURL", "SeriesInstanceUID", "SeriesNumber"),
        "NumberOfSeriesRelatedInstances",
    ),
    Level.INSTANCES: (
        *("SOPClassUID", "SOPInstanceUID", "InstanceAvailability", "RetrieveURL", "InstanceNumber"),
    ),
}
"""Always returned, empty where an object says nothing."""

STUDY_OPTIONAL = (
    *("AdmittingDiagnosesDescription", "EthnicGroup", "NameOfPhysiciansReadingStudy", "Occupation"),
    *("OtherPatientIDsSequence", "OtherPatientNames", "PatientAge", "PatientBirthTime", "PatientComments"),
    *(
        "PatientSize",
        "PatientWeight",
        "PhysiciansOfRecord",
        "ProcedureCodeSequence",
        "AdditionalPatientHistory",
    ),
    *("IssuerOfAccessionNumberSequence", "ReferencedStudySequence"),
)
SERIES_OPTIONAL = (
    *("BodyPartExamined", "InstitutionalDepartmentName", "InstitutionName", "Laterality", "Manufacturer"),
    *("ManufacturerModelName", "OperatorsName", "PerformedProcedureStepDescription"),
    *("PerformedProcedureStepID", "PerformingPhysicianName", "ProtocolName", "SeriesDate", "SeriesTime"),
    *("StationName", "ReferencedPerformedProcedureStepSequence"),
)
"""Returned when they are asked for by `includefield`, and by its value `all`; read from a header."""


def tags(keywords: Iterable[str]) -> frozenset[int]:
    """Return the tags of keywords."""
    return frozenset(tag for keyword in keywords if (tag := tag_for_keyword(keyword)) is not None)
