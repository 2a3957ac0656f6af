"""Tables of final diagnoses as hospital systems export them."""

from pathlib import Path

import pytest

from service.commands.backfill.diagnoses import Diagnoses, read, said_by
from service.commands.backfill.wording import Rule, Said
from service.core.errors import ConfigurationError
from tests import factories

_RULE = Rule.read(None)


def table(folder: Path, content: str, encoding: str = "utf-8") -> Diagnoses:
    path = folder / "diagnoses.csv"
    path.write_bytes(content.encode(encoding))
    return read(path, _RULE)


def said(found: Diagnoses) -> dict[str, Said]:
    return {uid: said_by(rows) for uid, rows in found.by_study().items()}


def test_columns_are_found_whatever_their_order_case_and_delimiter(tmp_path: Path) -> None:
    for content in (
        "study_instance_uid,diagnosis\n1.2,J18.9\n1.3,normal\n",
        "Diagnosis;Patient;StudyInstanceUID\nJ18.9;x;1.2\nnormal;y;1.3\n",
        "STUDY INSTANCE UID\tFinal Diagnosis\r\n1.2\tpneumonia\r\n1.3\tno\r\n",
    ):
        assert said(table(tmp_path, content)) == {"1.2": Said.PRESENT, "1.3": Said.ABSENT}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "cp1252", "utf-16"])
def test_encodings_of_spreadsheets_are_read(tmp_path: Path, encoding: str) -> None:
    content = 'Study_Instance_UID;Befund\r\n1.2;"Unauffälliger Thorax.\r\nKeine Stauung."\r\n'
    assert said(table(tmp_path, content, encoding)) == {"1.2": Said.ABSENT}


def test_accession_number_names_a_study_without_a_uid(tmp_path: Path) -> None:
    found = table(tmp_path, "accession_number,study_instance_uid,label\nA1,,1\nA2,1.3,0\n,,1\n")
    assert list(found.by_accession()) == ["A1"]
    assert said(found) == {"1.3": Said.ABSENT}


def test_rows_that_contradict_each_other_are_unclear_and_unclear_ones_give_way(tmp_path: Path) -> None:
    found = table(tmp_path, "study_instance_uid,diagnosis\n1.2,1\n1.2,0\n1.3,see report\n1.3,1\n")
    assert said(found) == {"1.2": Said.UNCLEAR, "1.3": Said.PRESENT}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("patient,diagnosis\nx,1\n", "names no study"),
        ("study_instance_uid,date\n1.2,2024\n", "says no diagnosis"),
        ("study_instance_uid,diagnosis\n", "holds no row"),
    ],
)
def test_table_that_says_nothing_is_refused_with_its_fault(tmp_path: Path, content: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        table(tmp_path, content)


def test_structured_reports_of_a_folder_are_read_by_their_texts(tmp_path: Path) -> None:
    report = factories.basic_text_sr("sr")
    report.ContentSequence[0].TextValue = "Pneumonia of the right lower lobe."
    factories.write(report, tmp_path / "reports")
    (tmp_path / "reports" / "notes.txt").write_text("no DICOM")
    assert said(read(tmp_path / "reports", _RULE)) == {report.StudyInstanceUID: Said.PRESENT}
