from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model.measuring.cases import (
    Case,
    Left,
    Seen,
    cases_in_folders,
    cases_in_table,
    described,
    patients,
    read_picture,
    subgroups,
)
from model.training.films import DataError


def table(folder: Path, *rows: str, encoding: str = "utf-8") -> Path:
    path = folder / "labels.csv"
    path.write_text("\n".join(rows) + "\n", encoding=encoding)
    return path


def grouped(cases: list[Case]) -> dict[tuple[str, str], int]:
    return {(attribute, value): int(films.sum()) for attribute, value, films in subgroups(cases)}


def test_labels_are_understood_in_every_spelling(tmp_path: Path) -> None:
    spellings = ["0", "normal", "NORMAL", "negative", "1", "pneumonia", "PNEUMONIA", "Positive"]
    rows = [f"{number}.png,{label}" for number, label in enumerate(spellings)]
    cases = cases_in_table(tmp_path, table(tmp_path, "file,label", *rows))
    assert [case.label for case in cases] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert cases[0].path == tmp_path / "0.png"


def test_a_table_from_a_spreadsheet_is_read(tmp_path: Path) -> None:
    """With a byte order mark, semicolons, capitals, blanks around the values, and an empty row."""
    rows = ["File ; LABEL;Kind;Patient;Site", "a.png;0;;7; North", ";;;;", " b.dcm ;1; Viral;8;South"]
    normal, ill = cases_in_table(tmp_path, table(tmp_path, *rows, encoding="utf-8-sig"))
    assert (normal.file, normal.bacterial, normal.patient) == ("a.png", -1, "7")
    assert (ill.file, ill.bacterial, ill.patient) == ("b.dcm", 0, "8")
    assert (normal.attributes["site"], ill.attributes) == ("North", {"site": "South", "kind": "viral"})


def test_absolute_files_are_taken_as_they_are(tmp_path: Path) -> None:
    rows = ["file\tlabel", "/films/a.png\t0", "b.png\t1"]
    first, second = cases_in_table(tmp_path, table(tmp_path, *rows))
    assert (first.path, second.path) == (Path("/films/a.png"), tmp_path / "b.png")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["file,label", "a.png,0", "b.png,ill"], "row 3: label 'ill' is neither 0"),
        (["file,label", "a.png,0", "", "b.png,"], "row 4: label '' is neither 0"),
        (["file,label", "a.png,0", ",1"], "row 3: no file"),
        (["file,label,kind", "a.png,1,fungal"], "row 2: kind 'fungal' is neither bacterial nor viral"),
        (["file,label,kind", "a.png,0,viral"], "row 2: kind 'viral' for a film labelled '0'"),
        (["file,label", "a.png,0", "a.png,1"], "row 3: the file 'a.png' stands in the table twice"),
        (["file,label", "a,b.png,0"], "row 2: 3 values for 2 columns"),
        (["name,label", "a.png,0"], "names no column 'file'"),
        (["file;class", "a.png;0"], "names no column 'label'"),
        (["file,label"], "no film is labelled NORMAL"),
        (["file,label", "a.png,0"], "no film is labelled PNEUMONIA"),
        ([], "names no column 'file'"),
    ],
)
def test_a_fault_in_the_table_is_said_in_one_line(rows: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        cases_in_table(tmp_path, table(tmp_path, *rows))
    assert said in str(raised.value)
    assert str(raised.value).startswith(str(tmp_path / "labels.csv"))
    assert "\n" not in str(raised.value)


def test_a_table_that_is_missing_or_no_text_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        cases_in_table(tmp_path, tmp_path / "none.csv")
    (tmp_path / "labels.csv").write_bytes(b"file,label\n\xff\xfe\x00.png,0\n")
    with pytest.raises(DataError, match="no CSV in UTF-8"):
        cases_in_table(tmp_path, tmp_path / "labels.csv")
    with pytest.raises(DataError, match="no such folder"):
        cases_in_table(tmp_path / "none", tmp_path / "labels.csv")


def test_names_of_the_public_set_tell_kind_series_and_patient(tmp_path: Path) -> None:
    names = {
        "NORMAL": ["IM-0001-0001", "IM-0002-0001", "NORMAL2-IM-0003-0001", "NORMAL2-IM-0003-0002"],
        "PNEUMONIA": ["person1_bacteria_1", "person1_bacteria_2", "person2_virus_3", "person3_virus_4"],
    }
    for name, stems in names.items():
        (tmp_path / "test" / name).mkdir(parents=True)
        for stem in stems:
            (tmp_path / "test" / name / f"{stem}.jpeg").touch()
    cases = cases_in_folders(tmp_path, "test")
    assert cases[0].file == "test/NORMAL/IM-0001-0001.jpeg"
    assert grouped(cases) == {
        ("series", "IM"): 2,
        ("series", "NORMAL2-IM"): 2,
        ("kind", "bacterial"): 2,
        ("kind", "viral"): 2,
    }
    numbers = patients(cases)
    assert numbers is not None
    assert numbers.tolist() == [0, 1, 2, 2, 3, 3, 4, 5]


def test_a_folder_may_hold_dicom(tmp_path: Path) -> None:
    for name in ("NORMAL/a.dcm", "NORMAL/notes.txt", "PNEUMONIA/b.DCM", "PNEUMONIA/.hidden.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [case.file for case in cases_in_folders(tmp_path, "test")] == ["NORMAL/a.dcm", "PNEUMONIA/b.DCM"]


def test_only_what_many_films_share_makes_a_subgroup() -> None:
    cases = [
        Case(
            f"{number}.png",
            Path(f"{number}.png"),
            number % 2,
            attributes={
                "sex": "FM"[number % 2],
                "city": "Z",
                "accession": str(number),
                "day": str(number // 2),
            },
        )
        for number in range(40)
    ]
    assert grouped(cases) == {("sex", "F"): 20, ("sex", "M"): 20}
    # Twelve values, or names of the patients of a small set: the same number of films for each, and no group.
    assert ("day", "3") in grouped(cases[:24])
    assert not any(attribute == "accession" for attribute, _ in grouped(cases[:12]))


def test_ages_in_years_are_grouped_in_their_order(tmp_path: Path) -> None:
    rows = [
        f"{n}.png,{n % 2},{age}" for n, age in enumerate(["70", "0", "0.9", "5", "5.9", "17", "65", "12"])
    ]
    cases = cases_in_table(tmp_path, table(tmp_path, "file,label,age", *rows))
    assert cases[2].age_years == 0.9
    assert list(grouped(cases).items()) == [
        (("age", "under 1 year"), 2),
        (("age", "1 to 5"), 2),
        (("age", "6 to 17"), 2),
        (("age", "65 and over"), 2),
    ]


def test_what_the_table_says_goes_before_what_the_file_says() -> None:
    case = Case("a.dcm", Path("a.dcm"), 1, patient="P1", age_years=3.0, attributes={"sex": "F"})
    seen = Seen(np.zeros((4, 4)), "P9", 60.0, {"sex": "M", "view": "AP"})
    said = described(case, seen)
    assert (said.patient, said.age_years) == ("P1", 3.0)
    assert said.attributes == {"sex": "F", "view": "AP"}
    bare = described(Case("a.dcm", Path("a.dcm"), 1), seen)
    assert (bare.patient, bare.age_years, bare.attributes["sex"]) == ("P9", 60.0, "M")


@pytest.mark.parametrize("stems", [["image_1", "image_2"], ["1", "2"], ["scan", "film"]])
def test_file_names_that_number_films_name_no_patient(stems: list[str]) -> None:
    assert patients([Case(f"{stem}.png", Path(f"{stem}.png"), 0) for stem in stems]) is None


def test_a_name_that_a_tenth_of_all_films_share_is_no_patient() -> None:
    cases = [Case(f"set2024_{n}.png", Path(f"set2024_{n}.png"), n % 2) for n in range(60)]
    assert patients(cases) is None


def test_a_film_of_nobody_is_a_patient_of_its_own() -> None:
    stated = ["A", "A", None, None, "B"]
    cases = [Case(f"{n}", Path(f"{n}.png"), 0, patient=each) for n, each in enumerate(stated)]
    numbers = patients(cases)
    assert numbers is not None
    assert numbers.tolist() == [0, 0, 1, 2, 3]


def test_the_picture_reader_says_what_reads_dicom(tmp_path: Path) -> None:
    refused = read_picture(tmp_path / "a.dcm")
    assert isinstance(refused, Left)
    assert refused.unreadable
    assert "`hilum evaluate`" in refused.reason


def test_a_broken_picture_is_left_with_a_reason_without_its_path(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no")
    assert read_picture(tmp_path / "a.png") == Left("not a JPEG or PNG image", unreadable=True)
    Image.new("L", (8, 6)).save(tmp_path / "b.png")
    seen = read_picture(tmp_path / "b.png")
    assert isinstance(seen, Seen)
    assert seen.pixels.shape == (6, 8)
