"""Labelled films to be scored, from folders or from a table, and what is known of each."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model.preprocess import ImageError, read_image
from model.training.films import CLASSES, SUFFIXES, DataError, LabelledFilm
from model.training.splits import patient_of

LABELS = {"0": 0, "normal": 0, "negative": 0, "1": 1, "pneumonia": 1, "positive": 1}
KINDS = {"bacterial": 1, "bacteria": 1, "viral": 0, "virus": 0}
KIND_NAMES = {1: "bacterial", 0: "viral"}
DICOM_SUFFIXES = {".dcm", ".dicom"}
MOST_GROUPS = 12
"""Values that an attribute may have to divide the films into subgroups."""

_OWN_COLUMNS = ("file", "label", "kind", "patient")
_AGES = ((1, "under 1 year"), (6, "1 to 5"), (18, "6 to 17"), (40, "18 to 39"), (65, "40 to 64"))
_OLDEST = "65 and over"
_SERIES = re.compile(r"^(NORMAL2-IM|IM)-", re.IGNORECASE)


@dataclass(frozen=True)
class Case:
    """One film with its label.

    Attributes
    ----------
    file
        Its name as the results give it.
    label
        1 for pneumonia, 0 for normal.
    bacterial
        1 for a bacterial, 0 for a viral pneumonia, -1 where nobody says.
    patient
        Groups the films of one person and appears in no result; None where nobody says.
    age_years
        None where nobody says.
    attributes
        What divides the films into subgroups, by name.
    """

    file: str
    path: Path
    label: int
    bacterial: int = -1
    patient: str | None = None
    age_years: float | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Seen:
    """A film that was read: `pixels` (rows, columns), dark is low, and what the file itself says of it."""

    pixels: npt.NDArray[Any]
    patient: str | None = None
    age_years: float | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Left:
    """A film that is not analysed, and why; `unreadable` where that is no decision but a fault."""

    reason: str
    unreadable: bool = False


Read = Callable[[Path], Seen | Left]


def read_picture(path: Path) -> Seen | Left:
    """Read a JPEG or PNG."""
    if path.suffix.lower() not in SUFFIXES:
        return Left("no JPEG or PNG; DICOM is read by `hilum evaluate`", unreadable=True)
    try:
        return Seen(read_image(path))
    except ImageError as fault:
        return Left(str(fault).removeprefix(f"{path}: "), unreadable=True)


def cases_in_folders(data: Path, split: str) -> list[Case]:
    """List the films of `data/<split>/{NORMAL,PNEUMONIA}`, or of `data/{NORMAL,PNEUMONIA}`, by path.

    JPEG, PNG and DICOM files (.dcm, .dicom) count; what the file names of the public set say is kept.

    Raises
    ------
    DataError
        When the folder is missing, has another layout or lacks a class.
    """
    if not data.is_dir():
        raise DataError(f"{data}: no such folder")
    root = data if any((data / name).is_dir() for name in CLASSES) else data / split
    if not root.is_dir():
        raise DataError(
            f"{data}: expected the folders {' and '.join(CLASSES)}, or {split} with these two inside"
        )
    cases = []
    for label, name in enumerate(CLASSES):
        files = [
            path
            for path in sorted((root / name).glob("*"))
            if path.suffix.lower() in SUFFIXES | DICOM_SUFFIXES and not path.name.startswith(".")
        ]
        if not files:
            raise DataError(f"{root / name}: no JPEG, PNG or DICOM images there")
        cases += [_named(Case(path.relative_to(data).as_posix(), path, label)) for path in files]
    return cases


def cases_in_table(data: Path, table: Path) -> list[Case]:
    """List the films of a table with the columns `file` and `label`.

    Parameters
    ----------
    data
        The folder that `file` is relative to, unless it is absolute.
    table
        CSV in UTF-8 with a header; comma, semicolon or tab between the values. `label` is 0, normal or
        negative, or 1, pneumonia or positive. Optional: `kind` (bacterial or viral), `patient`, `age` in
        years. Any other column with few values divides the films into subgroups (`subgroups`).

    Raises
    ------
    DataError
        When the folder or the table cannot be used; the message names row and value.
    """
    if not data.is_dir():
        raise DataError(f"{data}: no such folder")
    cases: dict[Path, Case] = {}
    for row, values in _rows(table):
        where = f"{table}, row {row}"
        case = _case(data, values, where)
        if case.path in cases:
            raise DataError(f"{where}: the file {case.file!r} stands in the table twice")
        cases[case.path] = case
    for label, name in enumerate(CLASSES):
        if not any(case.label == label for case in cases.values()):
            raise DataError(f"{table}: no film is labelled {name}; an evaluation needs both classes")
    return list(cases.values())


def described(case: Case, seen: Seen) -> Case:
    """Add what a file says of itself; what the table says goes before."""
    return replace(
        case,
        patient=case.patient or seen.patient,
        age_years=seen.age_years if case.age_years is None else case.age_years,
        attributes={**seen.attributes, **case.attributes},
    )


def age_group(years: float) -> str:
    """Name the group of an age in years."""
    return next((name for limit, name in _AGES if years < limit), _OLDEST)


def subgroups(cases: Sequence[Case]) -> Iterator[tuple[str, str, npt.NDArray[np.bool_]]]:
    """Yield attribute, value and a mask of the films, for every attribute that divides them into few groups.

    Few are 2 to `MOST_GROUPS` values, and at most half as many as films that have one: what differs from film
    to film is a name or a number, and is not to be repeated in a result.
    """
    ages = [name for _, name in _AGES]
    for attribute in dict.fromkeys(name for case in cases for name in case.attributes):
        values = np.array([case.attributes.get(attribute, "") for case in cases])
        found = sorted(set(values.tolist()) - {""}, key=lambda value: ([*ages, value].index(value), value))
        if 2 <= len(found) <= min(MOST_GROUPS, int((values != "").sum()) // 2):
            yield from ((attribute, value, values == value) for value in found)


def patients(cases: Sequence[Case]) -> npt.NDArray[np.int64] | None:
    """Number the patients, (n,); None where nothing tells films of one from those of another.

    Where no patient is stated, file names as of the public sets tell (`model.training.splits.patient_of`). A
    film of nobody counts as a patient of its own.
    """
    guessed = _by_file_name(cases)
    stated = [case.patient or guess for case, guess in zip(cases, guessed, strict=True)]
    if not any(stated):
        return None
    names = [(name, "") if name else ("", str(case.path)) for name, case in zip(stated, cases, strict=True)]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], dtype=np.int64)


def _by_file_name(cases: Sequence[Case]) -> list[str | None]:
    stems = [case.path.stem for case in cases]
    names = [patient_of(stem) for stem in stems]
    # `image_1`, `image_2` are no films of one patient called "image".
    known = [
        name if name != stem and any(letter.isdigit() for letter in name) else None
        for name, stem in zip(names, stems, strict=True)
    ]
    most = max(Counter(name for name in known if name).values(), default=0)
    return known if most <= max(10, len(cases) // 10) else [None] * len(cases)


def _named(case: Case) -> Case:
    """Add what the file names of the public set say: bacterial or viral, and the series of the normals."""
    bacterial = case.bacterial if case.bacterial >= 0 else LabelledFilm(case.path, case.label).bacterial
    attributes = dict(case.attributes)
    if bacterial >= 0:
        attributes["kind"] = KIND_NAMES[bacterial]
    series = _SERIES.match(case.path.stem)
    if series and case.label == 0:
        attributes.setdefault("series", series[1].upper())
    return replace(case, bacterial=bacterial, attributes=attributes)


def _rows(table: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the number of each row that holds anything (the header is row 1), and its values by column."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            header = stream.readline()
            delimiter = max(",;\t", key=header.count)
            columns = [name.strip().lower() for name in next(csv.reader([header], delimiter=delimiter), [])]
            for wanted in ("file", "label"):
                if wanted not in columns:
                    raise DataError(f"{table}: its first row names no column {wanted!r}")
            for row, fields in enumerate(csv.reader(stream, delimiter=delimiter), start=2):
                values = [value.strip() for value in fields]
                if len(values) > len(columns):
                    raise DataError(f"{table}, row {row}: {len(values)} values for {len(columns)} columns")
                if any(values):
                    yield row, dict(zip(columns, values, strict=False))
    except OSError as fault:
        raise DataError(f"{table}: cannot be read ({fault.strerror})") from fault
    except (UnicodeDecodeError, csv.Error) as fault:
        raise DataError(f"{table}: no CSV in UTF-8 ({fault})") from fault


def _case(data: Path, values: dict[str, str], where: str) -> Case:
    file, label, kind = (values.get(name, "") for name in ("file", "label", "kind"))
    if not file:
        raise DataError(f"{where}: no file")
    if label.lower() not in LABELS:
        raise DataError(f"{where}: label {label!r} is neither 0, normal, negative nor 1, pneumonia, positive")
    if kind and kind.lower() not in KINDS:
        raise DataError(f"{where}: kind {kind!r} is neither bacterial nor viral")
    if kind and LABELS[label.lower()] == 0:
        raise DataError(f"{where}: kind {kind!r} for a film labelled {label!r}")
    age, others = None, {name: value for name, value in values.items() if name not in _OWN_COLUMNS and value}
    if re.fullmatch(r"\d{1,3}(\.\d+)?", others.get("age", "")):
        age = float(others["age"])
        others["age"] = age_group(age)
    case = Case(
        file, data / file, LABELS[label.lower()], KINDS.get(kind.lower(), -1), values.get("patient") or None,
        age, others,
    )  # fmt: skip
    return _named(case)
