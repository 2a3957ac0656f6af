"""The audit trail: files of one day each, in which every record names the SHA-256 of the one before it.

A record is a line: its number, the hash of the record before it (of its line without the line break), and
an audit message. Whoever changes, removes or adds one breaks the chain there; `verify` says where. `head`
tells number and hash of the last record, so that a missing end is seen too. All that is no help against
somebody who may rewrite the whole folder: a syslog server, or a hash noted elsewhere, is.

Processes of one host, or of several that share the folder, write one after the other under a lock. A record
is on disk when `append` returns.
"""

import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from service.core.spool import sync_folder

_LINE = re.compile(rb"(\d+) ([0-9a-f]{64}) (<AuditMessage>.*</AuditMessage>)")
_NOTHING = "0" * 64
_HEAD_BYTES = 512
# A process that is stopped while it holds the lock must not stop the others.
_LOCK_SECONDS = 2.0


class TrailBusy(OSError):
    """Another process holds the trail for too long."""


@dataclass(frozen=True)
class Record:
    """One audit message of the trail, its own hash, and where the next one begins."""

    number: int
    sha256: str
    message: bytes
    file: str
    end: int


@dataclass(frozen=True)
class Place:
    """Where the trail was at some time: after record `number`, whose hash is `sha256`."""

    number: int = 0
    sha256: str = _NOTHING
    file: str = ""
    end: int = 0


@dataclass(frozen=True)
class Finding:
    """What `verify` found: how many records there are, the hash of the last, and every break in words."""

    records: int
    sha256: str
    breaks: tuple[str, ...]


class Trail:
    """The audit trail in `folder`, which is made when it is first written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def append(self, messages: Sequence[bytes]) -> None:
        """Add records; all of them are on disk when this returns, or none.

        Raises
        ------
        OSError
            When the folder can't be written.
        """
        if not self._folder.exists():
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            sync_folder(self._folder.parent)
        with self._locked():
            head = self._recovered()
            number, previous = head.number, head.sha256
            lines = []
            for content in messages:
                number += 1
                line = b"%d %s %s" % (number, previous.encode(), content)
                previous = hashlib.sha256(line).hexdigest()
                lines.append(line + b"\n")
            # Never an earlier day than that of the last record: the order of files is the order of records.
            file = max(f"{datetime.now(UTC):%Y-%m-%d}.log", head.file)
            end = self._write(file, b"".join(lines))
            self.note("head", Place(number, previous, file, end))

    def after(self, place: Place) -> Iterator[Record]:
        """Yield the records behind a place, the oldest first; what is not whole yet is left for later."""
        for file in self._files():
            if file < place.file:
                continue
            with suppress(FileNotFoundError), (self._folder / file).open("rb") as stream:
                end = stream.seek(place.end if file == place.file else 0)
                for line in stream:
                    end += len(line)
                    if not line.endswith(b"\n"):
                        break
                    if (match := _LINE.fullmatch(line[:-1])) and int(match[1]) > place.number:
                        yield Record(
                            int(match[1]), hashlib.sha256(line[:-1]).hexdigest(), match[3], file, end
                        )

    def place(self, name: str) -> Place | None:
        """Return a place that was noted, None when there is none that can be read."""
        try:
            return Place(**json.loads((self._folder / name).read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def note(self, name: str, place: Place) -> None:
        """Note a place: in one write that is never torn, and not synced, since the files tell it too."""
        descriptor = os.open(self._folder / name, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.pwrite(descriptor, json.dumps(asdict(place)).encode().ljust(_HEAD_BYTES), 0)
        finally:
            os.close(descriptor)

    def verify(self) -> Finding:
        """Look at every record, and at what was noted of the last one and of the last one sent."""
        breaks: list[str] = []
        number, previous = 0, _NOTHING
        noted = {"head": self.place("head"), "sent": self.place("sent")}
        files = self._files()
        for file in files:
            with (self._folder / file).open("rb") as stream:
                for position, line in enumerate(stream, start=1):
                    where = f"{file} line {position}"
                    if not line.endswith(b"\n") and file == files[-1]:
                        break  # it is being written, or its writer was killed; nobody counts on it
                    match = _LINE.fullmatch(line.removesuffix(b"\n"))
                    if match is None:
                        breaks.append(f"{where} is no record")
                        continue
                    found = int(match[1])
                    breaks += _between(number, found, match[2].decode() == previous, where)
                    number, previous = found, hashlib.sha256(line[:-1]).hexdigest()
                    breaks += [
                        f"record {found} ({where}) was changed: `{name}` knows it with another hash"
                        for name, place in noted.items()
                        if place is not None and place.number == found and place.sha256 != previous
                    ]
        breaks += [
            f"{_gone(number + 1, place.number)} missing at the end (`{name}` knows of it)"
            for name, place in noted.items()
            if place is not None and place.number > number
        ]
        if number and noted["head"] is None:
            breaks.append("`head` is missing: whether the end of the trail is all there can't be told")
        return Finding(number, previous, tuple(breaks))

    def _recovered(self) -> Place:
        """Return the last record's place, what a crash left of an unfinished one taken away."""
        head = self.place("head") or Place()
        for file in self._files():
            if file < head.file:
                continue
            with (self._folder / file).open("r+b") as stream:
                begin = head.end if file == head.file else 0
                if stream.seek(0, os.SEEK_END) <= begin:
                    continue  # all is known; or the end was cut off, and the next record will show it
                stream.seek(begin)
                head = _last(stream, file, head)
        return head

    def _write(self, file: str, content: bytes) -> int:
        path = self._folder / file
        new = not path.exists()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            before = os.fstat(descriptor).st_size
            try:
                rest = memoryview(content)
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, before)
                raise
        finally:
            os.close(descriptor)
        if new:
            sync_folder(self._folder)
        return before + len(content)

    def _files(self) -> list[str]:
        return sorted(path.name for path in self._folder.glob("????-??-??.log"))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with locked(self._folder / "lock", _LOCK_SECONDS) as held:
            if not held:
                raise TrailBusy(f"the audit trail has been locked for {_LOCK_SECONDS:g} s")
            yield


@contextmanager
def locked(path: Path, seconds: float = 0.0) -> Iterator[bool]:
    """Hold a lock file for the block; yields False when somebody else holds it for so long."""
    # NFS asks for a writable descriptor for an exclusive lock.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    end = time.monotonic() + seconds
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    yield False
                    return
                time.sleep(0.005)
        yield True
    finally:
        os.close(descriptor)


def _last(stream: BinaryIO, file: str, head: Place) -> Place:
    """Return the place after the last whole line of a file, cutting off what a crash left behind it."""
    end = stream.tell()
    for line in stream:
        if not line.endswith(b"\n"):
            os.ftruncate(stream.fileno(), end)
            break
        end += len(line)
        if match := _LINE.fullmatch(line[:-1]):
            head = Place(int(match[1]), hashlib.sha256(line[:-1]).hexdigest(), file, end)
    return head


def _between(number: int, found: int, fits: bool, where: str) -> list[str]:
    """Return what is wrong between record `number` and the next one that is there, `found`."""
    if found > number + 1:
        return [f"{_gone(number + 1, found - 1)} missing before {where}"]
    if found <= number:
        return [f"record {found} is there again, or in the wrong place, in {where}"]
    if not fits:
        before = f"record {number} was changed" if number else "something was before it"
        return [f"{before}, or record {found} ({where}) is not the one that followed"]
    return []


def _gone(first: int, last: int) -> str:
    return f"record {first} is" if first == last else f"records {first} to {last} are"
