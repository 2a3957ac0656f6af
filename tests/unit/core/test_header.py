"""Reading headers of files that may be anything."""

from pathlib import Path

import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless

from service.core.errors import Unreadable
from service.core.header import read_header
from tests import factories


def test_a_header_is_read_without_its_pixels(tmp_path: Path) -> None:
    film = factories.phantom_chest(PatientName="Canary^Yellow", PatientID="C1")
    header = read_header(factories.write(film, tmp_path, JPEG2000Lossless))
    assert header.sop_instance_uid == film.SOPInstanceUID
    assert header.transfer_syntax_uid == JPEG2000Lossless
    assert (header.rows, header.columns) == (film.Rows, film.Columns)
    assert header.subject.patient_name == "Canary^Yellow"


def test_a_header_shown_in_a_message_names_no_patient(tmp_path: Path) -> None:
    film = factories.phantom_chest(PatientName="Canary^Yellow", PatientID="CANARY", AccessionNumber="CANARY2")
    assert "anary" not in repr(read_header(factories.write(film, tmp_path))).lower()


def test_a_file_from_before_part_10_is_read(tmp_path: Path) -> None:
    film = factories.phantom_chest()
    path = tmp_path / "bare.dcm"
    film.save_as(path, implicit_vr=True, little_endian=True)
    assert read_header(path).sop_instance_uid == film.SOPInstanceUID


def test_a_deflated_data_set_is_refused_before_it_is_inflated(tmp_path: Path) -> None:
    path = factories.write(factories.phantom_chest(), tmp_path, DeflatedExplicitVRLittleEndian)
    with pytest.raises(Unreadable, match="deflated"):
        read_header(path)


@pytest.mark.parametrize(
    "content", [b"", b"text\n" * 200, b"\x00" * 4096, b"\xff" * 4096, b"\x00" * 128 + b"DICM"]
)
def test_what_is_no_data_set_is_unreadable(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd.dcm"
    path.write_bytes(content)
    with pytest.raises(Unreadable):
        read_header(path)


@pytest.mark.parametrize("content", [b"", b"text\n" * 200, b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + bytes(4096)])
def test_what_is_no_dicom_file_is_called_that(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd.dcm"
    path.write_bytes(content)
    with pytest.raises(Unreadable, match="no DICOM file"):
        read_header(path)


def test_a_dicom_file_without_its_uids_is_not_called_that(tmp_path: Path) -> None:
    film = factories.phantom_chest()
    del film.SOPClassUID
    path = tmp_path / "raw.dcm"
    film.save_as(path, implicit_vr=True, little_endian=True)
    with pytest.raises(Unreadable, match="has no SOPClassUID"):
        read_header(path)


def test_a_header_cut_short_is_unreadable(tmp_path: Path) -> None:
    path = factories.write(factories.phantom_chest(), tmp_path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(Unreadable):
        read_header(path)
