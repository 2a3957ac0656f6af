"""The file of a data set that is arriving."""

import os
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian

from service.core import incoming
from service.core.errors import OutOfResources
from service.core.header import Head, read_header
from service.core.incoming import IncomingFile, IncomingPart10, remove_leftovers
from service.core.spool import data_set_digest
from tests import factories


def test_what_is_written_is_there_and_only_we_may_read_it(tmp_path: Path) -> None:
    file = IncomingFile(tmp_path, 10)
    assert file.write(b"12345") == 5
    file.close()
    file.close()
    assert file.path.read_bytes() == b"12345"
    assert file.path.stat().st_mode & 0o777 == 0o600


def test_a_byte_too_many_removes_the_file_and_the_rest_is_dropped(tmp_path: Path) -> None:
    file = IncomingFile(tmp_path, 10)
    file.write(bytes(10))
    assert file.fault is None
    file.write(b"1")
    assert isinstance(file.fault, OutOfResources)
    assert not list(tmp_path.iterdir())
    assert file.write(bytes(10)) == 10
    file.close()


def blocks(path: Path) -> int:
    """Return how many blocks a file has that its bytes do not need."""
    found = path.stat()
    return found.st_blocks * 512 // found.st_blksize - -(-found.st_size // found.st_blksize)


@pytest.mark.parametrize("size", [500_000, 1_000_000, 3_000_000, 9_000_001])
@pytest.mark.parametrize("ends", ["flush", "close"])
def test_room_is_taken_for_more_than_came_and_given_back(tmp_path: Path, size: int, ends: str) -> None:
    file = IncomingFile(tmp_path, 10**9)
    content = os.urandom(size)
    for at in range(0, size, 100_000):
        file.write(content[at : at + 100_000])
    assert (blocks(file.path) > 50) == (size > 1 << 20)
    getattr(file, ends)()
    assert blocks(file.path) <= 2  # of the file system's own
    if ends == "flush":
        file.write(b"more")
    file.close()
    assert file.path.read_bytes() == content + (b"more" if ends == "flush" else b"")
    assert file.fault is None


def test_where_no_room_can_be_taken_beforehand_it_is_when_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incoming, "_fallocate", lambda *_: -1)
    file = IncomingFile(tmp_path, 10**9)
    for _ in range(30):
        file.write(bytes(100_000))
    file.close()
    assert file.path.read_bytes() == bytes(3_000_000)


@pytest.mark.parametrize("size", [1, 5_000_000])
def test_digest_and_head_are_those_of_the_file(tmp_path: Path, size: int) -> None:
    film = factories.phantom_chest()
    film.add_new(0x00091010, "OB", bytes(size + size % 2))
    path = factories.write(film, tmp_path / "sent")
    content, meta = path.read_bytes(), dcmread(path).file_meta
    start = 144 + meta.FileMetaInformationGroupLength
    file = IncomingFile(tmp_path, len(content))
    assert (file.digest, file.head) == (None, None)
    file.begin(content[132:start], meta.TransferSyntaxUID)
    for at in range(start, len(content), 99_999):
        file.write(memoryview(content)[at : at + 99_999])
    file.close()
    assert file.digest == data_set_digest(file.path) == data_set_digest(path)
    assert file.head is not None
    assert read_header(file.path, file.head) == read_header(file.path)
    assert file.path.read_bytes().startswith(file.head.content)
    assert len(file.head.content) <= 64 * 1024


def test_a_header_in_memory_that_is_cut_off_is_read_from_the_file(tmp_path: Path) -> None:
    film = factories.phantom_chest()
    path = factories.write(film, tmp_path)
    start = 144 + dcmread(path).file_meta.FileMetaInformationGroupLength
    for size in (start, start + 300, path.read_bytes().index(b"\xe0\x7f\x10\x00") + 11):
        head = Head(path.read_bytes()[:size], start, ExplicitVRLittleEndian)
        assert read_header(path, head) == read_header(path)
        with pytest.raises(FileNotFoundError):
            read_header(tmp_path / "gone", head)
    whole = Head(path.read_bytes()[: size + 1], start, ExplicitVRLittleEndian)
    assert read_header(tmp_path / "gone", whole) == read_header(path)


@pytest.mark.parametrize("size", [1, 100, 128, 129, 1000])
def test_a_preamble_is_zeroed_however_it_comes(tmp_path: Path, size: int) -> None:
    content = b"MZ" * 64 + b"DICM" + b"rest" * 50
    file = IncomingPart10(tmp_path, 1000)
    for at in range(0, len(content), size):
        assert file.write(content[at : at + size]) == len(content[at : at + size])
    file.close()
    assert file.path.read_bytes() == bytes(128) + content[128:]


PROGRAMS = {
    "DOS and Windows": b"MZ"
    + bytes(58)
    + b"\x80\x00\x00\x00",  # at 0x3c where the PE header lies, behind DICM
    "ELF": b"\x7fELF\x02\x01\x01",
    "Mach-O, 64 bits": b"\xcf\xfa\xed\xfe",
    "Mach-O, 32 bits, big endian": b"\xfe\xed\xfa\xce",
    "Mach-O, universal, and Java": b"\xca\xfe\xba\xbe",
    "shell": b"#!/bin/sh\ntouch /tmp/x\nexit\n",
    "batch": b"@echo off & echo x > x & exit\r\n",
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_a_file_that_is_a_program_too_is_none_any_more(tmp_path: Path, program: bytes) -> None:
    """As in CVE-2019-11687: what runs begins in the preamble, its rest lies in the data set."""
    film = factories.phantom_chest(rows=16, columns=16)
    film.private_block(0x0009, "SOMEBODY", create=True).add_new(0x10, "OB", b"PE\0\0" + bytes(200))
    sent = factories.write(film, tmp_path / "sent")
    content = program.ljust(128, b"\x90") + sent.read_bytes()[128:]
    file = IncomingPart10(tmp_path, len(content))
    file.write(content)
    file.close()
    assert file.path.read_bytes() == bytes(128) + content[128:]
    assert data_set_digest(file.path) == data_set_digest(sent)
    assert b"PE\0\0" in dcmread(file.path)[0x0009, 0x1010].value


@pytest.mark.parametrize("call", ["open", "write"])
def test_a_failing_disk_is_kept_as_the_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, call, fail)
        file = IncomingFile(tmp_path, 10)
        file.write(b"1")
    assert isinstance(file.fault, OutOfResources)
    assert "No space left" in str(file.fault)
    assert not list(tmp_path.iterdir())


def test_only_files_of_listeners_that_are_gone_are_left_over(tmp_path: Path) -> None:
    living = IncomingFile(tmp_path, 10)
    gone = IncomingFile(tmp_path, 10)
    gone.close()
    (tmp_path / "other").write_bytes(b"")
    assert remove_leftovers(tmp_path) == 1
    assert {path.name for path in tmp_path.iterdir()} == {living.path.name, "other"}
    living.discard()
