"""The note that takes superseded result objects out of use: IHE Imaging Object Change Management (RAD-66).

A Key Object Selection (TID 2010, PS3.16) whose title says why. Of the four titles IOCM knows, (113001, DCM,
"Rejected for Quality Reasons") fits a result that a newer revision replaces: archives hide the objects, or
show them as rejected, and keep them. (113037, DCM, "Rejected for Patient Safety Reasons") claims a danger,
(113038, DCM, "Incorrect Modality Worklist Entry") a wrong order, (113039, DCM, "Data Retention Policy
Expired") asks for deletion. CID 7011 would detail a fault of an image; a superseded result has none of
those, so the note has no title modifier and says in words what replaced what.
"""

from collections.abc import Sequence

from highdicom.ko import KeyObjectSelection, KeyObjectSelectionDocument
from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset

from worker import codes, wording
from worker.report_context import ReportContext, identity, names_of, processing_algorithm, set_creation
from worker.source import anonymous, inherit, local_time, normalised, requests
from worker.structured_report import observer_context

SERIES_NUMBER = 9007
SERIES_DESCRIPTION = "AI superseded results (rejection note)"


def build_rejection_note(superseded: Sequence[Dataset], context: ReportContext) -> Dataset:
    """Build the note that rejects result objects of an earlier revision; same input, same bytes.

    Parameters
    ----------
    superseded
        Headers of our own stored objects, of any SOP class and series of one study. The first one gives
        patient, study and order.
    context
        Identity of the note (its own series) and of what made it; its revision is the one that replaces
        them.

    Returns
    -------
    Dataset
        Key Object Selection Document in Explicit VR Little Endian.

    Raises
    ------
    ValueError
        When there is nothing to reject, or the objects are not of one study.
    """
    headers = [normalised(item) for item in superseded]
    if len({header.StudyInstanceUID for header in headers}) != 1:
        raise ValueError("a rejection note is about objects of one study")
    leading = headers[0]
    at = local_time(leading, context.at)
    evidence = [anonymous(header) for header in headers]
    content = KeyObjectSelection(
        document_title=CodedConcept.from_code(codes.REJECTED_FOR_QUALITY_REASONS),
        referenced_objects=evidence,
        observer_device_context=observer_context(context),
        description=wording.superseded(context.revision),
    )
    note = KeyObjectSelectionDocument(
        evidence=evidence,
        content=content,
        requested_procedures=requests(leading) or None,
        contributing_equipment=[processing_algorithm(context)],
        **identity(context, at, SERIES_NUMBER, SERIES_DESCRIPTION),
    )
    for item in note.ContentSequence:
        if "ReferencedSOPSequence" in item:
            del item.ConceptNameCodeSequence  # TID 2010 has none, highdicom writes one
    inherit(note, headers, [wording.superseded(context.revision), *names_of(context.model)])
    set_creation(note, at)
    return note
