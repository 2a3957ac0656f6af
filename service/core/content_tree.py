"""The content tree of a structured report (PS3.3 C.17.3) as lines to read."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import UID


@dataclass(frozen=True)
class ContentItem:
    """One item of a content tree, PS3.3 C.17.3, as a line to read.

    Attributes
    ----------
    depth
        0 for the root.
    relationship
        To its parent, e.g. "HAS CONCEPT MOD"; empty for the root.
    name
        Meaning of the concept name.
    name_code
        (code value, coding scheme designator) of the concept name.
    value
        The value as text; empty for a container.
    """

    depth: int
    relationship: str
    value_type: str
    name: str
    name_code: tuple[str, str]
    value: str

    def says(self, concept: Code) -> bool:
        """Return whether the item's concept name is `concept`."""
        return self.name_code == (concept.value, concept.scheme_designator)


def content_tree(report: Dataset) -> Iterator[ContentItem]:
    """Yield the items of a report's content tree, root first, depth first."""
    yield from _items(report, 0)


def _items(item: Dataset, depth: int) -> Iterator[ContentItem]:
    name = item.ConceptNameCodeSequence[0] if item.get("ConceptNameCodeSequence") else Dataset()
    yield ContentItem(
        depth,
        str(item.get("RelationshipType", "")),
        str(item.get("ValueType", "")),
        str(name.get("CodeMeaning", "")),
        (str(name.get("CodeValue", "")), str(name.get("CodingSchemeDesignator", ""))),
        _value(item),
    )
    for child in item.get("ContentSequence") or []:
        yield from _items(child, depth + 1)


def _value(item: Dataset) -> str:
    """Return the value of one content item as text, by its value type (PS3.3 table C.17.3-7)."""
    read = _VALUE_OF.get(item.get("ValueType"))
    return "" if read is None else str(read(item))


def _number(item: Dataset) -> str:
    if not item.get("MeasuredValueSequence"):
        return ""
    measured = item.MeasuredValueSequence[0]
    return f"{measured.NumericValue} {measured.MeasurementUnitsCodeSequence[0].CodeValue}"


def _reference(item: Dataset) -> str:
    reference = item.ReferencedSOPSequence[0]
    return f"{UID(reference.ReferencedSOPClassUID).name}, {reference.ReferencedSOPInstanceUID}"


def _coordinates(item: Dataset) -> str:
    columns, rows = item.GraphicData[0::2], item.GraphicData[1::2]
    extent = f"columns {min(columns):.0f} to {max(columns):.0f}, rows {min(rows):.0f} to {max(rows):.0f}"
    return f"{item.GraphicType} of {len(rows)} points, {extent}"


def _code(code: Dataset) -> str:
    return f"{code.CodeMeaning} ({code.get('CodeValue', '')}, {code.get('CodingSchemeDesignator', '')})"


_VALUE_OF: dict[str, Callable[[Dataset], object]] = {
    "TEXT": lambda item: item.TextValue,
    "CODE": lambda item: _code(item.ConceptCodeSequence[0]),
    "NUM": _number,
    "UIDREF": lambda item: item.UID,
    "IMAGE": _reference,
    "COMPOSITE": _reference,
    "SCOORD": _coordinates,
    "PNAME": lambda item: item.PersonName,
    "DATE": lambda item: item.Date,
    "TIME": lambda item: item.Time,
    "DATETIME": lambda item: item.DateTime,
}
