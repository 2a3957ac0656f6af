"""What a search asks for (PS3.18 8.3.4): attributes to match, attributes to return, and which page of it."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from fastapi import HTTPException
from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag, tag_for_keyword

MOST_RESULTS = 1000
"""In one answer, whatever the limit asked for."""
MOST_PARAMETERS, MOST_CHARACTERS = 100, 1024
"""Of one query, and of one value in it."""
_MOST_OFFSET = 2**31 - 1
_OTHERS = {"fuzzymatching", "includefield", "limit", "offset", "accept", "charset"}
_UNSUPPORTED = {"emptyvaluematching", "multiplevaluematching"}
_TAG = re.compile(r"[0-9A-Fa-f]{8}")
_NUMBER = re.compile(r"[0-9]{1,10}")
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_DATE = re.compile(r"[0-9]{8}")
_TIME = re.compile(r"[0-9]{2}([0-9]{2}([0-9]{2}(\.[0-9]{1,6})?)?)?")
_RANGED = {"DA": _DATE, "TM": _TIME}

Path = tuple[int, ...]


@dataclass(frozen=True)
class Key:
    """An attribute to match: its tags from the outermost sequence in, its VR and the value as given."""

    path: Path
    vr: str
    value: str

    @property
    def keyword(self) -> str:
        return keyword_for_tag(self.path[-1])

    @property
    def values(self) -> tuple[str, ...]:
        """Values of a list; PS3.4 C.2.2.2.2 writes it with backslashes, PS3.18 8.3.4.1 with commas."""
        return tuple(item for item in re.split(r"[,\\]", self.value) if item)

    @property
    def bounds(self) -> tuple[str, str]:
        """Ends of a range of dates or times (PS3.4 C.2.2.2.5), empty where it is open."""
        first, dash, last = self.value.partition("-")
        return (first, last) if dash else (first, first)


@dataclass(frozen=True)
class Query:
    """One search.

    Attributes
    ----------
    keys
        What to match, without those that match everything.
    included
        Tags to return besides; `everything`: all that there are at this level.
    asked
        Tags that were named as a key, matching or not: they are returned too.
    fuzzy
        Fuzzy matching of names is asked for.
    unknown
        Parameters that are no attribute, or not supported.
    """

    keys: tuple[Key, ...]
    asked: frozenset[int]
    included: frozenset[int]
    everything: bool
    limit: int
    offset: int
    fuzzy: bool
    unknown: tuple[str, ...]

    def named(self, keyword: str) -> Key | None:
        """Return the key of this attribute, None without one."""
        return next((key for key in self.keys if len(key.path) == 1 and key.keyword == keyword), None)


def parse(parameters: Iterable[tuple[str, str]]) -> Query:
    """Return what the parameters of a request ask for.

    Raises
    ------
    HTTPException
        400 when one of them cannot be meant.
    """
    given = list(parameters)
    if len(given) > MOST_PARAMETERS:
        raise HTTPException(400, f"more than {MOST_PARAMETERS} parameters")
    keys: dict[Path, Key] = {}
    included: set[int] = set()
    asked: set[int] = set()
    everything = fuzzy = False
    numbers = {"limit": MOST_RESULTS, "offset": 0}
    unknown = []
    for name, value in given:
        if len(value) > MOST_CHARACTERS or "\0" in value:
            raise HTTPException(400, f"a value is longer than {MOST_CHARACTERS} characters, or holds NUL")
        if name in numbers:
            numbers[name] = _number(name, value)
        elif name == "fuzzymatching":
            fuzzy = _flag(name, value)
        elif name == "includefield":
            fields = [field.strip() for field in value.split(",") if field.strip()]
            everything = everything or "all" in fields
            paths = [_path(field) for field in fields if field != "all"]
            unknown += [
                f"includefield {field[:64]}" for field in fields if not _path(field) and field != "all"
            ]
            included.update(path[0] for path in paths if path)
        elif name in _UNSUPPORTED:
            if _flag(name, value):
                unknown.append(name)
        elif name not in _OTHERS:
            path = _path(name)
            if not path:
                unknown.append(name[:64])
                continue
            asked.add(path[0])
            key = Key(path, dictionary_VR(path[-1]), value.strip())
            if path in keys:
                # What may have several values may be named several times (8.3.4.1).
                key = Key(path, key.vr, f"{keys[path].value}\\{key.value}")
            keys[path] = key
    for key in keys.values():
        _check(key)
    return Query(
        keys=tuple(key for key in keys.values() if key.value.strip("*")),
        asked=frozenset(asked),
        included=frozenset(included),
        everything=everything,
        limit=min(numbers["limit"], MOST_RESULTS),
        offset=numbers["offset"],
        fuzzy=fuzzy,
        unknown=tuple(unknown),
    )


def _path(name: str) -> Path:
    """Return the tags that an attribute is named by, by keyword or number; empty when it is no attribute."""
    found = []
    for step in name.split("."):
        tag = int(step, 16) if _TAG.fullmatch(step) else tag_for_keyword(step) if step.isalnum() else None
        if tag is None or not dictionary_has_tag(tag):
            return ()
        found.append(tag)
    return tuple(found)


def _check(key: Key) -> None:
    """Answer 400 to a value that an attribute of this VR cannot have."""
    if key.vr == "UI":
        if any(not _UID.fullmatch(value) or len(value) > 64 for value in key.values):
            raise HTTPException(400, f"{key.keyword}: no list of UIDs (PS3.5 9.1)")
    elif (form := _RANGED.get(key.vr)) is not None and key.value:
        first, last = key.bounds
        if key.value == "-" or any(end and not form.fullmatch(end) for end in (first, last)):
            raise HTTPException(400, f"{key.keyword}: neither {_MEANT[key.vr]} nor a range of them")


_MEANT = {"DA": "a date YYYYMMDD", "TM": "a time HHMMSS.FFFFFF"}


def _number(name: str, value: str) -> int:
    if not _NUMBER.fullmatch(value) or int(value) > _MOST_OFFSET:
        raise HTTPException(400, f"{name}: not an unsigned integer below 2^31")
    return int(value)


def _flag(name: str, value: str) -> bool:
    if value not in ("true", "false"):
        raise HTTPException(400, f"{name}: true or false")
    return value == "true"
