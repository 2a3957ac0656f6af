"""A stored report for a destination that takes Comprehensive SR and refuses Comprehensive 3D SR.

TID 1500 with planar outlines fits both (PS3.3 A.35.3, A.35.13), so the content goes over as it is: nothing
is built anew, and what both copies say cannot differ.
"""

from collections.abc import Iterator, Sequence

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import Comprehensive3DSRStorage, ComprehensiveSRStorage

from worker.report_context import Predecessor
from worker.structured_report import predecessor_documents

# Table A.35.3-2 of PS3.3.
_VALUE_TYPES = {
    *("TEXT", "CODE", "NUM", "DATETIME", "DATE", "TIME", "UIDREF", "PNAME", "SCOORD", "TCOORD"),
    *("COMPOSITE", "IMAGE", "WAVEFORM", "CONTAINER"),
}


def comprehensive_of(
    report: Dataset,
    *,
    series_instance_uid: str,
    sop_instance_uid: str,
    predecessors: Sequence[Predecessor],
) -> Dataset:
    """Return the same report as Comprehensive SR; the same arguments give the same bytes.

    Tracking UIDs stay: it is the same observation, told twice.

    Parameters
    ----------
    report
        Comprehensive 3D SR with its file meta information, as read from its file; left as it is.
    series_instance_uid, sop_instance_uid
        Identity of the copy.
    predecessors
        What the copy replaces, empty for the first: usually Comprehensive SRs; what `report` replaces only
        if the destination took that.

    Returns
    -------
    Dataset
        Comprehensive SR that shares its content tree with `report`.

    Raises
    ------
    ValueError
        When `report` is no Comprehensive 3D SR, or holds what Comprehensive SR has no place for, such as
        coordinates in three dimensions.
    """
    if report.SOPClassUID != Comprehensive3DSRStorage:
        raise ValueError("only a Comprehensive 3D SR has a copy as Comprehensive SR")
    alien = sorted({item.ValueType for item in _items(report)} - _VALUE_TYPES)
    if alien:
        raise ValueError(f"Comprehensive SR has no place for {', '.join(alien)}")
    copy = Dataset()
    copy.update(report)
    copy.file_meta = FileMetaDataset()
    copy.file_meta.update(report.file_meta)
    # New elements: assigning would change those that both data sets hold.
    copy.add_new("SOPClassUID", "UI", ComprehensiveSRStorage)
    copy.add_new("SOPInstanceUID", "UI", sop_instance_uid)
    copy.add_new("SeriesInstanceUID", "UI", series_instance_uid)
    copy.file_meta.add_new("MediaStorageSOPClassUID", "UI", ComprehensiveSRStorage)
    copy.file_meta.add_new("MediaStorageSOPInstanceUID", "UI", sop_instance_uid)
    copy.pop("PredecessorDocumentsSequence", None)
    if predecessors:
        copy.PredecessorDocumentsSequence = predecessor_documents(predecessors, report.StudyInstanceUID)
    return copy


def _items(item: Dataset) -> Iterator[Dataset]:
    yield item
    for child in item.get("ContentSequence") or []:
        # An item by reference (PS3.3 C.17.3.2.5) has no value type.
        if "ReferencedContentItemIdentifier" not in child:
            yield from _items(child)
