"""Attribute matching (PS3.4 C.2.2.2): against columns of the ledger, and against what a header says.

Single value, list of UIDs, range of dates or times, wild card; names without regard to case, and by any of
their component groups. An empty value and `*` match everything and do not come here.
"""

import re
from collections.abc import Iterator
from fnmatch import translate
from typing import Any

from pydicom import Dataset
from sqlalchemy import ColumnElement, String, func, literal, or_
from sqlalchemy.orm import InstrumentedAttribute

from service.api.dicomweb.query import Key

_WILD = frozenset("*?")
_WILD_VRS = {"AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"}
LISTED = {"ModalitiesInStudy", "Modality"}
"""Beside UIDs these may be a list: viewers offer several modalities at once."""
_NUMBERS = {"IS", "DS", "US", "SS", "UL", "SL", "FL", "FD", "UV", "SV"}
_ESCAPE = "\\"


def condition(
    column: InstrumentedAttribute[Any] | ColumnElement[Any], key: Key, dialect: str
) -> ColumnElement[bool]:
    """Return the condition that a column of text matches a key.

    Parameters
    ----------
    dialect
        Of the ledger: SQLite's LIKE knows no case, and PostgreSQL has no GLOB.
    """
    if key.vr in ("DA", "TM"):
        first, last = key.bounds
        # A time of fewer digits stands for all that it begins (PS3.5 6.2, TM).
        highest = last + "\x7f" if key.vr == "TM" else last
        found = column != ""
        if first:
            found = found & (column >= first)
        return found & (column <= highest) if last else found
    if key.vr == "UI" or key.keyword in LISTED:
        return column.in_(key.values)
    if key.vr == "PN":
        return _name(func.lower(column), key.value.lower())
    if not _is_wild(key):
        return column == key.value
    if dialect == "sqlite":
        # Both wild cards are GLOB's own.
        return column.op("GLOB")(literal(key.value.replace("[", "[[]"), String))
    return column.like(_like(key.value), escape=_ESCAPE)


def matches(dataset: Dataset, key: Key) -> bool:
    """Return whether what a header says matches a key; a header without the attribute does not."""
    return any(_fits(key, value) for value in _values(dataset, key.path))


def _name(column: ColumnElement[Any], value: str) -> ColumnElement[bool]:
    pattern = _like(value)
    groups = (pattern, f"{pattern}=%", f"%={pattern}", f"%={pattern}=%")
    return or_(*(column.like(group, escape=_ESCAPE) for group in groups))


def _like(value: str) -> str:
    escaped = re.sub(r"([\\%_])", r"\\\1", value)
    return escaped.replace("*", "%").replace("?", "_")


def _is_wild(key: Key) -> bool:
    return key.vr in _WILD_VRS and bool(_WILD & set(key.value))


def _values(dataset: Dataset, path: tuple[int, ...]) -> Iterator[str]:
    item = dataset.get(path[0])
    if item is None or item.is_empty:
        return
    if len(path) > 1:
        if item.VR == "SQ":
            for inner in item.value:
                yield from _values(inner, path[1:])
        return
    several = item.value if item.VM > 1 else [item.value]
    yield from (str(value).strip() for value in several)


def _fits(key: Key, value: str) -> bool:
    if key.vr in ("DA", "TM"):
        first, last = key.bounds
        highest = last + "\x7f" if key.vr == "TM" else last
        return (not first or value >= first) and (not last or value <= highest)
    if key.vr == "UI" or key.keyword in LISTED:
        return value in key.values
    if key.vr in _NUMBERS:
        try:
            return float(value) == float(key.value)
        except ValueError:
            return False
    if key.vr == "PN":
        pattern = _pattern(key.value.lower())
        return any(pattern.fullmatch(text) for text in (value.lower(), *value.lower().split("=")))
    if _is_wild(key):
        return bool(_pattern(key.value).fullmatch(value))
    return value == key.value


def _pattern(value: str) -> re.Pattern[str]:
    # fnmatch's expressions do not go back behind a wild card, so that a row of them takes no longer.
    return re.compile(translate(value.replace("[", "[[]")))
