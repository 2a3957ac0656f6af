"""The data folder: whole files under their final names, private, never named by a sender."""

from pathlib import Path
from stat import S_IMODE
from typing import BinaryIO

import pytest
from pydicom.uid import ExplicitVRLittleEndian

from service.core.spool import Spool, data_set_digest
from tests import factories


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    made = Spool(tmp_path / "data")
    made.make()
    return made


def test_a_kept_file_lies_privately_under_a_name_of_ours(spool: Spool) -> None:
    arrived = spool.incoming / "../incoming/x.dcm"
    arrived.write_bytes(b"bytes")
    kept = spool.absolute(spool.keep(arrived))
    assert kept.read_bytes() == b"bytes"
    assert not arrived.exists()
    assert S_IMODE(kept.stat().st_mode) == 0o600
    assert S_IMODE(kept.parent.stat().st_mode) == 0o700


def test_a_write_that_breaks_off_leaves_no_file_under_a_final_name(spool: Spool) -> None:
    def fill(stream: BinaryIO) -> None:
        stream.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        spool.write("films", ".npy", fill)
    assert not list((spool.root / "films").rglob("*.npy"))


def test_the_digest_of_a_data_set_does_not_depend_on_its_file_meta(tmp_path: Path) -> None:
    film = factories.phantom_chest()
    one = factories.write(film, tmp_path / "one")
    other = factories.write(film, tmp_path / "other", ExplicitVRLittleEndian)
    content = other.read_bytes()
    # A sender's own implementation version: same length, other text.
    changed = tmp_path / "changed.dcm"
    changed.write_bytes(content[:140] + content[140:].replace(b"PYDICOM", b"OTHER__", 1))
    assert data_set_digest(one) == data_set_digest(other) == data_set_digest(changed)


def test_one_other_byte_of_the_data_set_is_another_digest(tmp_path: Path) -> None:
    path = factories.write(factories.phantom_chest(), tmp_path)
    before = data_set_digest(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert data_set_digest(path) != before
