"""Final diagnoses from outside: a CSV as hospital systems export it, or DICOM SRs of a folder.

A row names its study by Study Instance UID or by accession number, and says the diagnosis as a label, as
ICD-10 codes or in words, or holds the text of the report. Nothing of it is kept in the ledger.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

from service.commands.backfill.wording import Rule, Said
from service.core.errors import ConfigurationError

_COLUMNS = {
    "study_instance_uid": ("studyinstanceuid", "studyuid", "studieninstanzuid"),
    "accession_number": (
        "accessionnumber",
        "accession",
        "accessionno",
        "auftragsnummer",
        "untersuchungsnummer",
    ),
    "diagnosis": ("diagnosis", "finaldiagnosis", "label", "icd", "icd10", "diagnose", "enddiagnose"),
    "report_text": ("reporttext", "report", "text", "befund", "befundtext"),
}
_DELIMITERS = ";,\t|"
_DEEPEST = 16


@dataclass(frozen=True)
class Diagnosis:
    """One row: which study it names, what it says by the rule, and where it stands, for messages."""

    study_instance_uid: str
    accession_number: str
    said: Said
    where: str


@dataclass(frozen=True)
class Diagnoses:
    """All rows of a file."""

    rows: Sequence[Diagnosis]

    def by_study(self) -> dict[str, list[Diagnosis]]:
        """Return the rows with a Study Instance UID."""
        return _grouped((row.study_instance_uid, row) for row in self.rows)

    def by_accession(self) -> dict[str, list[Diagnosis]]:
        """Return the rows that have an accession number alone."""
        alone = ((row.accession_number, row) for row in self.rows if not row.study_instance_uid)
        return _grouped(alone)


def said_by(rows: Sequence[Diagnosis]) -> Said:
    """Return what rows of one study say together: contradictory ones are unclear, unclear ones give way."""
    clear = {row.said for row in rows} - {Said.UNCLEAR}
    return clear.pop() if len(clear) == 1 else Said.UNCLEAR


def read(path: Path, rule: Rule) -> Diagnoses:
    """Read a CSV file, or the SRs of a folder.

    Raises
    ------
    ConfigurationError
        When it can't be read, or names no study or no diagnosis.
    """
    try:
        rows = list(_of_folder(path, rule)) if path.is_dir() else list(_of_csv(path, rule))
    except csv.Error as fault:
        raise ConfigurationError(f"--diagnoses: {path} is no table ({fault})") from None
    if not rows:
        raise ConfigurationError(f"--diagnoses: {path} holds no row that names a study and says a diagnosis")
    return Diagnoses(rows)


def _of_csv(path: Path, rule: Rule) -> Iterator[Diagnosis]:
    content = _text(path)
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=_delimiter(content))
    header = next(reader, [])
    places = _places(header)
    if not {"study_instance_uid", "accession_number"} & places.keys():
        raise ConfigurationError(
            f"--diagnoses: {path} names no study: it needs a column study_instance_uid or accession_number"
        )
    if not {"diagnosis", "report_text"} & places.keys():
        raise ConfigurationError(
            f"--diagnoses: {path} says no diagnosis: it needs a column diagnosis or report_text"
        )
    for row in reader:
        given = {name: row[place].strip() for name, place in places.items() if place < len(row)}
        uid, accession = given.get("study_instance_uid", ""), given.get("accession_number", "")
        if not (uid or accession):
            continue
        diagnosis, text = given.get("diagnosis", ""), given.get("report_text", "")
        said = rule.of_value(diagnosis) if diagnosis else rule.of_text(text) if text else Said.UNCLEAR
        yield Diagnosis(uid, accession, said, f"line {reader.line_num}")


def _of_folder(path: Path, rule: Rule) -> Iterator[Diagnosis]:
    for file in sorted(item for item in path.rglob("*") if item.is_file()):
        try:
            dataset = dcmread(file, stop_before_pixels=True)
        except (InvalidDicomError, OSError):
            continue
        if dataset.get("ContentSequence") and dataset.get("StudyInstanceUID"):
            text = "\n".join(_texts(dataset))
            accession = str(dataset.get("AccessionNumber") or "")
            yield Diagnosis(str(dataset.StudyInstanceUID), accession, rule.of_text(text), file.name)


def _texts(item: Dataset, depth: int = 0) -> Iterator[str]:
    """Yield the texts of a content tree (PS3.3 C.17.3), in their order."""
    if item.get("TextValue"):
        yield str(item.TextValue)
    if depth < _DEEPEST:
        for child in item.get("ContentSequence") or ():
            yield from _texts(child, depth + 1)


def _text(path: Path) -> str:
    """Return a file's text: UTF-8 with or without a mark, else what Excel writes in western Europe."""
    try:
        content = path.read_bytes()
    except OSError as fault:
        raise ConfigurationError(f"--diagnoses: {path} can't be read ({fault.strerror})") from None
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16", "replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", "replace")


def _delimiter(text: str) -> str:
    first = text.partition("\n")[0]
    return max(_DELIMITERS, key=first.count)


def _places(header: Iterable[str]) -> dict[str, int]:
    """Return where the columns are that are known, by their names."""
    plain = ["".join(sign for sign in name.casefold() if sign.isalnum()) for name in header]
    found = {}
    for name, known in _COLUMNS.items():
        place = next((plain.index(item) for item in known if item in plain), None)
        if place is not None:
            found[name] = place
    return found


def _grouped(pairs: Iterable[tuple[str, Diagnosis]]) -> dict[str, list[Diagnosis]]:
    groups: dict[str, list[Diagnosis]] = defaultdict(list)
    for key, row in pairs:
        if key:
            groups[key].append(row)
    return dict(groups)
