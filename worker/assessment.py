"""What a reader says of an AI result, as a document in the study: Enhanced SR, as IHE AIRA asks for.

::

    AI Result Assessment                            no template of PS3.16
    ├── language, observer (person), procedure
    ├── AI Result Assessed                          a reference to each form of the AI report
    ├── Assessment of AI Result                     Accepted, Modified, Rejected or Undecided
    ├── Reason for Assessment                       when it was not usable
    ├── Finding, Presence                           what holds by the reader, as far as they said
    ├── Conclusion                                  all that in words
    └── Comment                                     the reader's note

AIRA (IHE Radiology, a supplement for trial implementation) has a person accept, modify or reject an AI result
and keeps that as an SR that refers to it. Its text was not at hand, and neither PS3.16 of the pydicom in use
nor a public reader names codes for the three, so the title and what is new are codes of 99HILUM
(`worker.codes`); a standard code takes their place once it is known. To disagree and say what one finds
instead is to modify, to disagree alone is to reject. It is signed by nobody: the name is the one that was
given, and the document unverified.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from highdicom.sr import (
    CodeContentItem,
    CodedConcept,
    CompositeContentItem,
    ContainerContentItem,
    ContentItem,
    ContentSequence,
    EnhancedSR,
    LanguageOfContentItemAndDescendants,
    ObserverContext,
    PersonObserverIdentifyingAttributes,
    TextContentItem,
)
from highdicom.sr import RelationshipTypeValues as Relationship
from pydicom.dataset import Dataset

from service.core.results import Finding, Result
from service.core.states import Assessment
from worker import codes, wording
from worker.report_context import MANUFACTURER, ReportContext, identity, set_creation
from worker.source import anonymous, inherit, local_time, normalised, requests
from worker.structured_report import childless, predecessor_documents
from worker.text_report import ENGLISH

SERIES_NUMBER = 9008
SERIES_DESCRIPTION = "AI result: assessment by a reader"


@dataclass(frozen=True)
class Reading:
    """What one reader said.

    Attributes
    ----------
    result
        The AI result as it was then.
    own_finding
        The reader's own, if they gave one.
    """

    result: Result
    assessment: Assessment
    own_finding: Finding | None
    note: str
    reader: str

    @property
    def status(self) -> str:
        """What became of the AI result: a key of `worker.codes.ASSESSMENT_OF`."""
        match self.assessment:
            case Assessment.AGREE:
                return "accepted"
            case Assessment.UNSURE:
                return "undecided"
            case Assessment.DISAGREE if self.own_finding is not None:
                return "modified"
            case _:
                return "rejected"

    @property
    def holds(self) -> Finding | None:
        """What is there by this reader, as far as they said."""
        return self.result.finding if self.assessment is Assessment.AGREE else self.own_finding


def build_assessment(assessed: Sequence[Dataset], reading: Reading, context: ReportContext) -> Dataset:
    """Build the document of one assessment; the same input gives the same bytes.

    Parameters
    ----------
    assessed
        Headers of our stored documents that say the result, in each form. The first one gives patient, study
        and order.
    context
        Identity of the document (its own series) and of what made it; its revision is the one that was
        assessed, and its predecessors what the same reader said before.

    Returns
    -------
    Dataset
        Enhanced SR in Explicit VR Little Endian: complete, unverified.

    Raises
    ------
    ValueError
        When there is nothing to refer to, or it is not of one study.
    """
    headers = [normalised(item) for item in assessed]
    if len({header.StudyInstanceUID for header in headers}) != 1:
        raise ValueError("an assessment is about documents of one study")
    leading = headers[0]
    at = local_time(leading, context.at)
    root = ContainerContentItem(codes.AI_RESULT_ASSESSMENT, is_content_continuous=False)
    said = wording.assessment(
        context.model,
        reading.result,
        context.revision,
        reading.reader,
        reading.assessment,
        reading.own_finding,
        reading.note,
    )
    root.ContentSequence = ContentSequence(
        [
            *LanguageOfContentItemAndDescendants(CodedConcept.from_code(ENGLISH)),
            *_observer(reading.reader),
            CodeContentItem(codes.PROCEDURE_REPORTED, codes.CHEST_X_RAY, Relationship.HAS_CONCEPT_MOD),
            *_content(headers, reading, said),
        ]
    )
    document = EnhancedSR(
        evidence=[anonymous(header) for header in headers],
        content=childless(root),
        is_complete=True,
        is_final=True,
        is_verified=False,
        requested_procedures=requests(leading) or None,
        **identity(context, at, SERIES_NUMBER, SERIES_DESCRIPTION),
    )
    document.ContentSequence = root.ContentSequence
    if context.predecessors:
        document.PredecessorDocumentsSequence = predecessor_documents(
            context.predecessors, leading.StudyInstanceUID
        )
    document.CodingSchemeIdentificationSequence = [_coding_scheme()]
    inherit(document, headers, [reading.reader, *said])
    set_creation(document, at)
    return document


def _coding_scheme() -> Dataset:
    """Return who answers for our own codes (PS3.3 C.12.1.1.1.1)."""
    item = Dataset()
    item.CodingSchemeDesignator = codes.OURS
    item.CodingSchemeName = "Hilum's own codes"
    item.CodingSchemeResponsibleOrganization = MANUFACTURER
    return item


def _observer(reader: str) -> ObserverContext:
    """Return who observed: a person (TID 1003), by the name that they gave, which has no components."""
    name = " ".join(reader.translate(dict.fromkeys(map(ord, "^=\\"), " ")).split())
    return ObserverContext(
        observer_type=CodedConcept.from_code(codes.PERSON),
        observer_identifying_attributes=PersonObserverIdentifyingAttributes(name=f"{name[:63]}^"),
    )


def _content(headers: Sequence[Dataset], reading: Reading, texts: Sequence[str]) -> list[ContentItem]:
    conclusion, *notes = texts
    items: list[ContentItem] = [
        CompositeContentItem(
            codes.AI_RESULT_ASSESSED, header.SOPClassUID, header.SOPInstanceUID, Relationship.CONTAINS
        )
        for header in headers
    ]
    items.append(
        CodeContentItem(codes.ASSESSMENT, codes.ASSESSMENT_OF[reading.status], Relationship.CONTAINS)
    )
    if reading.assessment is Assessment.NOT_USABLE:
        items.append(CodeContentItem(codes.REASON_FOR_ASSESSMENT, codes.NOT_USABLE, Relationship.CONTAINS))
    presence = codes.PRESENCE_OF.get(reading.holds) if reading.holds is not None else None
    if presence is not None:
        items.append(CodeContentItem(codes.FINDING, codes.PNEUMONIA, Relationship.CONTAINS))
        items.append(CodeContentItem(codes.PRESENCE, presence, Relationship.CONTAINS))
    items.append(TextContentItem(codes.CONCLUSION, conclusion, Relationship.CONTAINS))
    items += [TextContentItem(codes.COMMENT, note, Relationship.CONTAINS) for note in notes]
    return items
