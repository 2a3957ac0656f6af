"""Data sets in the DICOM JSON model (PS3.18 F): what is read from files, and what is put together here.

Values that pydicom makes nothing of are left out, each alone: one that a modality wrote wrongly does not keep
a film from being shown.
"""

import math
from collections.abc import Mapping
from typing import Any

from pydicom import Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.tag import BaseTag
from pydicom.valuerep import AMBIGUOUS_VR, BYTES_VR

from service.api.dicomweb.stored import Stored

Model = dict[str, dict[str, Any]]
INLINE_BYTES = 1024
"""Binary values beyond it are bulk data."""
_BINARY = {*(str(vr) for vr in BYTES_VR), *(str(vr) for vr in AMBIGUOUS_VR)} - {"US or SS"}
_CHARACTER_SET = 0x00080005
_WORDS = _BINARY - {"OB", "UN"}
_LONG_SEQUENCE = 16 << 20


def element(keyword: str, *values: Any) -> Model:
    """Return one attribute; without a value, or with empty ones, an empty one."""
    tag = tag_for_keyword(keyword)
    assert tag is not None
    vr = dictionary_VR(tag)
    given = [value for value in values if value not in ("", None)]
    if vr == "PN":
        given = [person(value) for value in given]
    found: dict[str, Any] = {"vr": vr}
    if given:
        found["Value"] = given
    return {f"{tag:08X}": found}


def person(name: str) -> dict[str, str]:
    """Return a name by its component groups (PS3.5 6.2.1)."""
    groups = zip(("Alphabetic", "Ideographic", "Phonetic"), name.split("="), strict=False)
    return {group: text for group, text in groups if text}


def ordered(model: Mapping[str, dict[str, Any]]) -> Model:
    """Return a data set in the order of its tags."""
    return dict(sorted(model.items()))


def whole(stored: Stored, bulk_data_url: str) -> Model:
    """Return all of an object up to its pixels, and where those are: its metadata (10.4.1.1.2).

    Parameters
    ----------
    bulk_data_url
        Binary values of more than `INLINE_BYTES` are references below it: `{url}/{path}`, where `path` names
        tags and, within sequences, the number of the item, such as ``00880200/0/7FE00010``.
    """
    model = _walk(stored.dataset, bulk_data_url, big_endian=stored.is_big_endian)
    model[f"{_CHARACTER_SET:08X}"] = {"vr": "CS", "Value": ["ISO_IR 192"]}
    if stored.pixels is not None:
        model[f"{stored.pixels.tag:08X}"] = {
            "vr": stored.pixels.vr,
            "BulkDataURI": f"{bulk_data_url}/{stored.pixels.tag:08X}",
        }
    return ordered(model)


def some(dataset: Dataset) -> Model:
    """Return a data set that holds nothing large."""
    return _walk(dataset, None, big_endian=False)


def is_bulk(item: Any) -> bool:
    """Return whether the value of an element, raw or read, is bulk data: binary, and long."""
    vr = str(item.VR or _dictionary_vr(item.tag))
    if vr not in _BINARY:
        return False
    if isinstance(item, RawDataElement):
        return item.length > INLINE_BYTES
    return isinstance(item.value, bytes) and len(item.value) > INLINE_BYTES


def _walk(dataset: Dataset, url: str | None, *, big_endian: bool) -> Model:
    model: Model = {}
    for tag in sorted(dataset.keys()):
        if tag.element == 0:
            continue  # a group length says nothing of the object
        try:
            found = _one(dataset, tag, url, big_endian=big_endian)
        except Exception:  # pydicom raises nearly anything on broken values
            found = None
        if found is not None:
            model[f"{tag:08X}"] = found
    return model


def _one(dataset: Dataset, tag: BaseTag, url: str | None, *, big_endian: bool) -> dict[str, Any] | None:
    raw: Any = dataset.get_item(tag, keep_deferred=True)
    if raw is None:
        return None
    if is_bulk(raw):
        vr = str(raw.VR or _dictionary_vr(tag))
        vr = "OW" if " or " in vr else vr  # PS3.5 A.1: what has several is words in implicit VR
        return {"vr": vr, "BulkDataURI": f"{url}/{tag:08X}"} if url else None
    if isinstance(raw, RawDataElement) and raw.value is None and raw.length > _LONG_SEQUENCE:
        return None
    item = dataset[tag]
    if item.VR == "SQ":
        items = [
            _walk(inner, f"{url}/{tag:08X}/{number}" if url else None, big_endian=big_endian)
            for number, inner in enumerate(item.value or ())
        ]
        return {"vr": "SQ", "Value": items} if items else {"vr": "SQ"}
    if big_endian and item.VR in _WORDS:
        return None
    found = item.to_json_dict(None, 0)
    if found.get("vr") == "PN" and "Value" in found:
        found["Value"] = [{key: text for key, text in name.items() if text} for name in found["Value"]]
    if "Value" in found:
        found["Value"] = [_finite(value) for value in found["Value"]]
    return found


def _dictionary_vr(tag: BaseTag) -> str:
    try:
        return dictionary_VR(tag)
    except KeyError:
        return "UN"


def _finite(value: Any) -> Any:
    """Return a value that JSON has (RFC 8259 6: no NaN, no infinity)."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
