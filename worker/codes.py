"""The coded concepts of the result objects, each with the table that decides it.

pydicom's dictionary lacks some of them; all are written out, so that this page is the whole list.
"""

from pydicom.sr.coding import Code

from service.core.results import Finding

# Document: TID 1500 and what surrounds it.
IMAGING_MEASUREMENT_REPORT = Code("126000", "DCM", "Imaging Measurement Report")
# CID 100 is extensible and names no chest film; the procedure analysed, not the algorithm (IHE AIR 6.5.3).
CHEST_X_RAY = Code("399208008", "SCT", "Chest X-ray")
DEVICE = Code("121007", "DCM", "Device")
QUALITATIVE_EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")
CONCLUSION = Code("121077", "DCM", "Conclusion")
COMMENT = Code("121106", "DCM", "Comment")

# Measurement group: TID 1501.
FINDING = Code("121071", "DCM", "Finding")
IMPRESSION = Code("121073", "DCM", "Impression")
PNEUMONIA = Code("233604007", "SCT", "Pneumonia")
LUNG = Code("39607008", "SCT", "Lung")
# CID 6048: the likelihood that the finding detected is in fact the type of finding identified.
CERTAINTY_OF_FINDING = Code("111012", "DCM", "Certainty of Finding")
AREA = Code("42798000", "SCT", "Area")
PERCENT = Code("%", "UCUM", "Percent")
SQUARE_MILLIMETER = Code("mm2", "UCUM", "square millimeter")
PRESENCE = Code("705057003", "SCT", "Presence")

# CID 240 Present-Absent-Undetermined.
PRESENCE_OF = {
    Finding.PRESENT: Code("52101004", "SCT", "Present"),
    Finding.ABSENT: Code("272519000", "SCT", "Absent"),
    Finding.INDETERMINATE: Code("373068000", "SCT", "Undetermined"),
}
PATTERN_OF = {
    "bacterial": Code("53084003", "SCT", "Bacterial pneumonia"),
    "viral": Code("75570004", "SCT", "Viral pneumonia"),
}

# Algorithm: TID 4019 and the Contributing Equipment Sequence.
ALGORITHM_NAME = Code("111001", "DCM", "Algorithm Name")
ALGORITHM_VERSION = Code("111003", "DCM", "Algorithm Version")
ALGORITHM_PARAMETERS = Code("111002", "DCM", "Algorithm Parameters")
ARTIFICIAL_INTELLIGENCE = Code("123110", "DCM", "Artificial Intelligence")  # CID 7162
PROCESSING_EQUIPMENT = Code("109102", "DCM", "Processing Equipment")  # CID 7005
# IHE AIR 6.5.3.1 names the purpose and has left its code a placeholder.
PROCESSING_ALGORITHM = Code("Newcode1", "99IHE", "Processing Algorithm")

# Heat map: Source Image Sequence (CID 7202) and Derivation Code Sequence (CID 7203).
SOURCE_IMAGE_FOR_PROCESSING = Code("121322", "DCM", "Source image for image processing operation")
LOSSY_COMPRESSION = Code("113040", "DCM", "Lossy Compression")

# Text report: TID 2000, its headings (CID 7001) and elements (CID 7002). The headings are the original ones
# of DCM: today's CID 7001 has LOINC codes in their place, which readers in the field do not look for.
DIAGNOSTIC_IMAGING_REPORT = Code("18748-4", "LN", "Diagnostic Imaging Report")
RADIOLOGY_NOTE = Code("75490-3", "LN", "Radiology Note")
CONCLUSIONS = Code("121076", "DCM", "Conclusions")
FINDINGS = Code("121070", "DCM", "Findings")
PROCEDURE_DESCRIPTIONS = Code("121064", "DCM", "Current Procedure Descriptions")
PROCEDURE_DESCRIPTION = Code("121065", "DCM", "Procedure Description")
PROCEDURE_REPORTED = Code("121058", "DCM", "Procedure reported")
SOURCE_OF_MEASUREMENT = Code("121112", "DCM", "Source of Measurement")  # CID 7003

# Assessment of a result by a reader: TID 1003, and what IHE AIRA asks for and PS3.16 has no codes for.
OURS = "99HILUM"
PERSON = Code("121006", "DCM", "Person")
AI_RESULT_ASSESSMENT = Code("ai-assessment", OURS, "AI Result Assessment")
AI_RESULT_ASSESSED = Code("assessed-result", OURS, "AI Result Assessed")
ASSESSMENT = Code("assessment", OURS, "Assessment of AI Result")
ASSESSMENT_OF = {
    "accepted": Code("accepted", OURS, "Accepted"),
    "modified": Code("modified", OURS, "Modified"),
    "rejected": Code("rejected", OURS, "Rejected"),
    "undecided": Code("undecided", OURS, "Undecided"),
}
REASON_FOR_ASSESSMENT = Code("reason", OURS, "Reason for Assessment")
NOT_USABLE = Code("not-usable", OURS, "Not usable")

# Rejection note: TID 2010 and CID 7010.
REJECTED_FOR_QUALITY_REASONS = Code("113001", "DCM", "Rejected for Quality Reasons")
