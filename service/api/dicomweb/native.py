"""The Native DICOM Model (PS3.19 A.1) of a data set in the DICOM JSON model: the same content as XML."""

import re
from collections.abc import Mapping
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

from pydicom.datadict import keyword_for_tag

# What XML 1.0 cannot hold (production 2).
_NO_CHARACTER = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")
_COMPONENTS = ("FamilyName", "GivenName", "MiddleName", "NamePrefix", "NameSuffix")


def native_xml(model: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Return one data set as an XML document."""
    root = Element("NativeDicomModel", {"xmlns": "http://dicom.nema.org/PS3.19/models/NativeDICOM"})
    _fill(root, model)
    return bytes(tostring(root, encoding="utf-8", xml_declaration=True))


def _fill(parent: Element, model: Mapping[str, Mapping[str, Any]]) -> None:
    for tag, attribute in sorted(model.items()):
        named = {"tag": tag, "vr": attribute["vr"]}
        if keyword := keyword_for_tag(int(tag, 16)):
            named["keyword"] = keyword
        made = SubElement(parent, "DicomAttribute", named)
        if "BulkDataURI" in attribute:
            SubElement(made, "BulkData", uri=attribute["BulkDataURI"])
        if "InlineBinary" in attribute:
            SubElement(made, "InlineBinary").text = attribute["InlineBinary"]
        for number, value in enumerate(attribute.get("Value", ()), start=1):
            _value(made, attribute["vr"], str(number), value)


def _value(parent: Element, vr: str, number: str, value: Any) -> None:
    if vr == "SQ":
        _fill(SubElement(parent, "Item", number=number), value)
    elif vr == "PN":
        person = SubElement(parent, "PersonName", number=number)
        for group in _GROUPS:
            if text := (value or {}).get(group):
                made = SubElement(person, group)
                for component, part in zip(_COMPONENTS, text.split("^"), strict=False):
                    if part:
                        SubElement(made, component).text = _clean(part)
    elif value is not None:
        SubElement(parent, "Value", number=number).text = _clean(str(value))


def _clean(text: str) -> str:
    return _NO_CHARACTER.sub("�", text)
