"""Searches (PS3.18 10.6): studies by the ledger alone, series and instances by it and by their headers.

Names and descriptions of series are in no column: people write patients' names into them, and what names a
patient is kept in one table. So headers of one study are read when it is looked into, and at most
`MOST_HEADERS` when many are.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import HTTPException
from pydicom import Dataset
from pydicom.datadict import keyword_for_tag
from sqlalchemy import ColumnElement, Select, and_, exists, or_, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from service.api.dicomweb.attributes import (
    INSTANCE_KEYS,
    INSTANCE_RETURNED,
    MATCHED,
    REQUIRED,
    SERIES_KEYS,
    SERIES_OPTIONAL,
    SERIES_RETURNED,
    STUDY_COLUMNS,
    STUDY_OPTIONAL,
    Level,
    tags,
)
from service.api.dicomweb.contents import MODALITIES, SHOWN, Item, contents, is_open, is_shown
from service.api.dicomweb.matching import condition, matches
from service.api.dicomweb.model import Model, element, ordered, some
from service.api.dicomweb.query import Key, Query
from service.api.dicomweb.stored import open_stored
from service.core.errors import Refused
from service.core.header import read_attributes
from service.core.ledger import Ledger
from service.core.spool import Spool
from service.core.tables import Instance, Report, Study, Subject

MOST_HEADERS = 5000
"""Read for one search."""
_COUNTED = 500
_CHUNK = 200
_BY_LEDGER = {"SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"}


@dataclass(frozen=True)
class Found:
    """One page of what matches; `remaining` follow, or more where they were not `counted` to the end."""

    results: list[Model]
    remaining: int = 0
    counted: bool = True

    @property
    def remaining_in_words(self) -> str:
        return str(self.remaining) if self.counted else f"at least {self.remaining}"


class Search:
    """Answers searches; `base_url` is that of the service, for what a result is retrieved by."""

    def __init__(self, ledger: Ledger, spool: Spool, base_url: str) -> None:
        self._ledger = ledger
        self._spool = spool
        self._base_url = base_url
        self._headers = 0

    def studies(self, query: Query) -> Found:
        """Return the studies that match, those that came last first."""
        with self._ledger.read() as session:
            ids = session.scalars(
                _studies(session, query.keys).offset(query.offset).limit(query.limit + _COUNTED)
            ).all()
            page = ids[: query.limit]
            rows = session.execute(
                select(Study, Subject)
                .join(Subject, Subject.study_id == Study.id)
                .where(Study.id.in_(page), Subject.id == _current_subject())
            ).all()
            held = contents(session, page)
        subjects = {study.id: (study, subject) for study, subject in rows}
        results = [
            self._study(*subjects[study_id], held[study_id], query)
            for study_id in page
            if study_id in subjects
        ]
        return Found(results, len(ids) - len(page), counted=len(ids) < query.limit + _COUNTED)

    def below(self, query: Query, level: Level, study_id: int | None, series: str | None = None) -> Found:
        """Return the series or instances that match, in all studies or in one, and maybe in one series."""
        results: list[Model] = []
        passed = remaining = 0
        for item, items, study in self._candidates(query, level, study_id, series):
            if not self._fits(item, query, level):
                continue
            passed += 1
            if passed <= query.offset:
                continue
            if len(results) == query.limit:
                remaining += 1
                if study_id is None or remaining == _COUNTED:
                    return Found(results, remaining, counted=False)
                continue
            results.append(self._result(item, items, study, query, level, study_id is None, series is None))
        return Found(results, remaining)

    def _candidates(
        self, query: Query, level: Level, only: int | None, series: str | None
    ) -> Iterator[tuple[Item, list[Item], tuple[Study, Subject]]]:
        """Yield each instance, or one of each series, with all of its series and its study."""
        for chunk in self._chunks(query, only):
            with self._ledger.read() as session:
                rows = session.execute(
                    select(Study, Subject)
                    .join(Subject, Subject.study_id == Study.id)
                    .where(Study.id.in_(chunk), Subject.id == _current_subject())
                ).all()
                held = contents(session, chunk)
            known = {study.id: (study, subject) for study, subject in rows}
            for study_id in chunk:
                by_series: dict[str, list[Item]] = defaultdict(list)
                for item in held[study_id]:
                    if series in (None, item.series_instance_uid):
                        by_series[item.series_instance_uid].append(item)
                for items in by_series.values() if study_id in known else ():
                    for item in items[:1] if level is Level.SERIES else items:
                        yield item, items, known[study_id]

    def _chunks(self, query: Query, only: int | None) -> Iterator[Sequence[int]]:
        after: list[ColumnElement[bool]] = []
        while True:
            with self._ledger.read() as session:
                wanted = _studies(
                    session, query.keys, *([Study.id == only] if only is not None else []), *after
                )
                chunk = session.scalars(wanted.limit(_CHUNK)).all()
            if not chunk:
                return
            yield chunk
            after = [Study.id < chunk[-1]]

    def _fits(self, item: Item, query: Query, level: Level) -> bool:
        """Return whether an instance, or the series it stands for, matches what is not of its study."""
        named = {*SERIES_KEYS, *(INSTANCE_KEYS if level is Level.INSTANCES else ())}
        keys = [key for key in query.keys if keyword_for_tag(key.path[0]) in named]
        of_header = []
        for key in keys:
            known = _known(item, key)
            if known is None:
                of_header.append(key)
            elif known not in key.values:
                return False
        if not of_header:
            return True
        header = self._header(item, {keyword_for_tag(key.path[0]) for key in of_header})
        return all(matches(header, key) for key in of_header)

    def _header(self, item: Item, keywords: set[str]) -> Dataset:
        self._headers += 1
        if self._headers > MOST_HEADERS:
            raise HTTPException(
                413,
                f"more than {MOST_HEADERS} headers would have to be read: search within a study, or by UID",
            )
        try:
            return read_attributes(
                self._spool.absolute(item.path), sorted({*keywords, "SpecificCharacterSet"})
            )
        except (Refused, OSError):
            return Dataset()

    def _study(self, study: Study, subject: Subject, items: Sequence[Item], query: Query) -> Model:
        model = self._study_attributes(study, subject, items)
        optional = tags(STUDY_OPTIONAL)
        wanted = optional if query.everything else (query.included | query.asked) & optional
        if wanted and items:
            keywords = {keyword_for_tag(tag) for tag in wanted}
            model |= _only(some(self._header(items[0], keywords)), wanted)
        return ordered(model)

    def _study_attributes(self, study: Study, subject: Subject, items: Sequence[Item]) -> Model:
        model = (
            element("SpecificCharacterSet", "ISO_IR 192")
            | element("InstanceAvailability", "ONLINE")
            | element("ModalitiesInStudy", *sorted({item.modality for item in items if item.modality}))
            | element("RetrieveURL", f"{self._base_url}/studies/{study.study_instance_uid}")
            | element("StudyInstanceUID", study.study_instance_uid)
            | element("NumberOfStudyRelatedSeries", len({item.series_instance_uid for item in items}))
            | element("NumberOfStudyRelatedInstances", len(items))
        )
        for keyword, column in STUDY_COLUMNS.items():
            value = getattr(subject, column)
            if value or keyword in REQUIRED[Level.STUDIES]:
                model |= element(keyword, value)
        if subject.timezone_offset_from_utc:
            model |= element("TimezoneOffsetFromUTC", subject.timezone_offset_from_utc)
        return model

    def _result(
        self,
        item: Item,
        items: Sequence[Item],
        study: tuple[Study, Subject],
        query: Query,
        level: Level,
        of_all_studies: bool,
        of_all_series: bool,
    ) -> Model:
        wanted = set(tags(SERIES_RETURNED) if level is Level.SERIES or of_all_series else ())
        wanted |= tags(INSTANCE_RETURNED) if level is Level.INSTANCES else set()
        asked = query.included | query.asked
        allowed = tags((*SERIES_OPTIONAL, *SERIES_KEYS, *STUDY_OPTIONAL))
        wanted |= asked if level is Level.INSTANCES else asked & allowed
        if query.everything:
            wanted |= tags(SERIES_OPTIONAL)
        model: Model = {}
        if query.everything and level is Level.INSTANCES:
            model |= self._whole(item)
        else:
            keywords = {keyword_for_tag(tag) for tag in wanted}
            model |= _only(some(self._header(item, keywords)), wanted)
        if of_all_studies:
            model |= self._study_attributes(*study, items)
        resource = item.resource if level is Level.INSTANCES else item.resource.partition("/instances/")[0]
        model |= (
            element("SpecificCharacterSet", "ISO_IR 192")
            | element("StudyInstanceUID", item.study_instance_uid)
            | element("SeriesInstanceUID", item.series_instance_uid)
            | element("InstanceAvailability", "ONLINE")
            | element("RetrieveURL", f"{self._base_url}{resource}")
        )
        if level is Level.INSTANCES:
            model |= element("SOPClassUID", item.sop_class_uid)
            model |= element("SOPInstanceUID", item.sop_instance_uid)
        else:
            model |= element("NumberOfSeriesRelatedInstances", len(items))
        for keyword in REQUIRED[level]:
            if not model.keys() & element(keyword).keys():
                model |= element(keyword)
        return ordered(model)

    def _whole(self, item: Item) -> Model:
        self._headers += 1
        try:
            return some(open_stored(self._spool.absolute(item.path)).dataset)
        except (HTTPException, OSError):
            return {}


def passed_over(query: Query, level: Level) -> list[str]:
    """Return the names of what is asked for and not matched at this level."""
    names = (keyword_for_tag(key.path[0]) for key in query.keys)
    return [*query.unknown, *(name for name in names if name not in MATCHED[level])]


def _studies(session: Session, keys: Sequence[Key], *more: ColumnElement[bool]) -> Select[Any]:
    """Return the query for the studies that match, by their row and the last one first."""
    dialect = session.get_bind().dialect.name
    conditions = list(more)
    of_subject = []
    for key in keys:
        keyword = key.keyword
        if len(key.path) > 1:
            continue
        if keyword in STUDY_COLUMNS:
            of_subject.append(condition(getattr(Subject, STUDY_COLUMNS[keyword]), key, dialect))
        elif keyword == "StudyInstanceUID":
            conditions.append(Study.study_instance_uid.in_(key.values))
        elif keyword == "ModalitiesInStudy":
            conditions.append(_has_modality(key.values))
        elif keyword == "Modality":
            # What is no standard term is in headers alone: those are asked afterwards.
            conditions.append(_has_modality((*key.values, "")))
        elif keyword in _BY_LEDGER:
            name = {"SeriesInstanceUID": "series_instance_uid", "SOPInstanceUID": "sop_instance_uid"}.get(
                keyword, "sop_class_uid"
            )
            conditions.append(
                or_(*(Study.id.in_(_holds(table, name, key.values)) for table in (Instance, Report)))
            )
    if not of_subject:
        return select(Study.id).where(is_shown(), *conditions).order_by(Study.id.desc())
    if dialect == "sqlite":
        # Without statistics it would begin with all studies, and not with the index of what is asked for.
        conditions.append(Study.id.in_(select(Subject.study_id).where(*of_subject)))
    # Who may be meant is put in order first. Whether it is the patient who stands is asked of no more studies
    # than are wanted: OFFSET keeps both databases from asking it of all.
    meant = (
        select(Study.id.label("study_id"), Subject.id.label("subject_id"))
        .join(Subject, Subject.study_id == Study.id)
        .where(is_open(), *conditions, *of_subject)
        .order_by(Study.id.desc())
        .offset(0)
        .subquery()
    )
    stands = meant.c.subject_id == _subject_of(meant.c.study_id)
    return select(meant.c.study_id).where(stands).order_by(meant.c.study_id.desc())


def _holds(table: type[Instance] | type[Report], column: str, values: Sequence[str]) -> Select[Any]:
    return select(table.study_id).where(getattr(table, column).in_(values))


def _has_modality(values: Sequence[str]) -> ColumnElement[bool]:
    kinds = [kind for kind, modality in MODALITIES.items() if modality in values]
    image = and_(Instance.state.in_(SHOWN), Instance.spool_path.is_not(None), Instance.modality.in_(values))
    found = exists().where(Instance.study_id == Study.id, image)
    if not kinds:
        return found
    return or_(found, exists().where(Report.study_id == Study.id, Report.path != "", Report.kind.in_(kinds)))


def _current_subject() -> ColumnElement[Any]:
    """Return the row of the patient of the image that came last."""
    return _subject_of(Study.id)


def _subject_of(study_id: ColumnElement[int] | InstrumentedAttribute[int]) -> ColumnElement[Any]:
    return (
        select(Instance.subject_id)
        .where(Instance.study_id == study_id, Instance.state.in_(SHOWN), Instance.spool_path.is_not(None))
        .order_by(Instance.id.desc())
        .limit(1)
        .scalar_subquery()
    )


def _known(item: Item, key: Key) -> str | None:
    """Return what the ledger says of an attribute, None when it says nothing."""
    return {
        "SeriesInstanceUID": item.series_instance_uid,
        "SOPInstanceUID": item.sop_instance_uid,
        "SOPClassUID": item.sop_class_uid,
        "Modality": item.modality or None,
    }.get(key.keyword if len(key.path) == 1 else "")


def _only(model: Model, wanted: frozenset[int] | set[int]) -> Model:
    return {tag: value for tag, value in model.items() if int(tag, 16) in wanted}
