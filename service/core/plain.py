"""The values that decide of a film, where its bytes leave no doubt, without pydicom's objects.

pydicom needs two milliseconds for what is taken apart here in a tenth of one. Most films say it in plain
ASCII, one value each, in the VR of the dictionary. Whatever is anything else (another repertoire, more values
than one, another VR) is left to pydicom, and all of that film, so that one alone has to be right about it.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from pydicom.datadict import dictionary_VR, tag_for_keyword

from service.core.shape import UNDEFINED, Content, Place, Walked

# No character of another repertoire, no escape to one (PS3.5 6.1.2.3), no second value, no padding but at the
# end; of a name no second component group (PS3.5 6.2).
_ONE = re.compile(rb"([ -\[\]-~]*)[\0 ]*")
_NAME = re.compile(rb"([ -<>-\[\]-~]*)[\0 ]*")
_SEVERAL = re.compile(rb"([ -~]*)[\0 ]*")
_NUMBER = re.compile(rb"([0-9]{1,9})[\0 ]*|()")
_SEVERAL_VALUES = {"ImageType"}
_TEXT = {"AS", "CS", "DA", "DT", "LO", "SH", "TM", "UI"}


class _DoubtError(Exception):
    """Something that pydicom should look at."""


def plain_values(content: Content, walked: Walked, keywords: Sequence[str]) -> Mapping[str, Any] | None:
    """Return what pydicom would say of those attributes that are there, by keyword; None in doubt.

    Text is `str` (of several values, which Image Type may have, a list), numbers are `int`, and of the items
    of a sequence there is the Code Value alone.
    """
    values: dict[str, Any] = {}
    if not walked.well_nested:
        return None
    try:
        for tag, keyword, vr in _attributes(tuple(keywords)):
            if (place := walked.places.get(tag)) is None:
                continue
            if vr == "SQ":
                _check_vr(walked, place, vr)
                if place.length and not walked.codes[tag]:
                    raise _DoubtError
                codes = [
                    item and _value(content, walked, item, "CodeValue", "SH") for item in walked.codes[tag]
                ]
                values[keyword] = [{"CodeValue": code or ""} for code in codes]
            else:
                values[keyword] = _value(content, walked, place, keyword, vr)
    except _DoubtError:
        return None
    return values


@lru_cache
def _attributes(keywords: tuple[str, ...]) -> list[tuple[int, str, str]]:
    tags = [(int(tag_for_keyword(keyword) or 0), keyword) for keyword in keywords]
    return [(tag, keyword, dictionary_VR(tag)) for tag, keyword in tags]


def _check_vr(walked: Walked, place: Place, vr: str) -> None:
    if place.vr != (None if walked.implicit else vr.encode()):
        raise _DoubtError


def _value(content: Content, walked: Walked, place: Place, keyword: str, vr: str) -> Any:
    _check_vr(walked, place, vr)
    if place.length == UNDEFINED:
        raise _DoubtError
    value = content[place.begin : place.begin + place.length]
    if vr == "US":
        if len(value) not in (0, 2):
            raise _DoubtError
        return int.from_bytes(value, walked.byte_order) if value else None
    if vr == "IS":
        number = _matched(_NUMBER, value)
        return int(number) if number else None
    if vr == "PN":
        return _matched(_NAME, value)
    if vr not in _TEXT:
        raise _DoubtError
    if keyword in _SEVERAL_VALUES:
        several = _matched(_SEVERAL, value).split("\\")
        return several if len(several) > 1 else several[0]
    return _matched(_ONE, value).strip(" ")


def _matched(pattern: re.Pattern[bytes], value: bytes) -> str:
    if (found := pattern.fullmatch(value)) is None:
        raise _DoubtError
    return (found[1] or b"").decode("ascii").rstrip(" ")
