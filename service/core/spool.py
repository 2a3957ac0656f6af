"""Files of the data folder: written so that a file under its final name is whole and on disk.

Names are ours, never built from received UIDs. Everything is 0600 in folders of 0700.
"""

import hashlib
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from blake3 import blake3

from service.core.failpoints import failpoint

FOLDERS = ("spool", "films", "reports", "models")
PARTS = tuple(f"{number:02x}" for number in range(256))
"""The folders in each of them: a listing stays short with a million films."""

_CHUNK = 1 << 20
# As long as the ledger's column with its prefix: 240 bits.
DIGEST_PREFIX, _DIGEST_BYTES = "b3-", 30


class Spool:
    """The data folder.

    ``incoming/`` holds what is still arriving, ``spool/`` the received bytes as they came, ``films/`` decoded
    films and activation maps, ``reports/`` the objects we made, ``models/`` weights that
    the site added. Paths in the ledger are relative to its root.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.incoming = self.root / "incoming"

    def make(self) -> None:
        """Make the folders that are not there, on disk when this returns.

        What was there is synced too: who made it may not have come to that.
        """
        for folder in (self.root, self.incoming, *(self.root / name for name in FOLDERS)):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in FOLDERS:
            there = set(os.listdir(self.root / name))  # noqa: PTH208
            for part in PARTS:
                if part not in there:
                    (self.root / name / part).mkdir(mode=0o700, exist_ok=True)
            sync_folder(self.root / name)
        sync_folder(self.root)
        with suppress(PermissionError):
            sync_folder(self.root.parent)

    def absolute(self, relative: str) -> Path:
        """Return where a path of the ledger lies on this host."""
        return self.root / relative

    def keep(self, arrived: Path) -> str:
        """Move a file from ``incoming/`` to its final place, on disk when this returns; return its path.

        `arrived` must be on the same file system. A crash before the rename leaves only a file in
        ``incoming/``, after it a file that the ledger may not know yet.
        """
        relative = _new_path("spool", ".dcm")
        target = self.absolute(relative)
        with arrived.open("rb") as stream:
            os.fsync(stream.fileno())
        arrived.chmod(0o600)
        failpoint("keep.synced")
        arrived.rename(target)
        failpoint("keep.renamed")
        sync_folder(target.parent)
        return relative

    def write(self, folder: str, suffix: str, fill: Callable[[BinaryIO], object]) -> str:
        """Write a new file in `folder` through `fill`, on disk under its name when this returns."""
        relative = _new_path(folder, suffix)
        target = self.absolute(relative)
        part = target.with_suffix(".part")
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        failpoint("write.opened")
        try:
            with open(descriptor, "wb") as stream:  # noqa: PTH123
                fill(stream)
                stream.flush()
                failpoint("write.filled")
                os.fsync(stream.fileno())
        except BaseException:
            part.unlink()  # a full disk needs its room
            raise
        failpoint("write.synced")
        part.rename(target)
        failpoint("write.renamed")
        sync_folder(target.parent)
        return relative

    def remove(self, relative: str | None) -> None:
        """Remove a file of the data folder; one that is gone already is fine."""
        if relative:
            self.absolute(relative).unlink(missing_ok=True)

    def free_bytes(self) -> int:
        """Return the free space under the data folder."""
        found = os.statvfs(self.root)
        return found.f_bavail * found.f_frsize

    def is_read_only(self) -> bool:
        """Return whether the file system under the data folder is mounted read-only, as one that fails is."""
        return bool(os.statvfs(self.root).f_flag & os.ST_RDONLY)

    def total_bytes(self) -> int:
        """Return the size of the file system under the data folder."""
        found = os.statvfs(self.root)
        return found.f_blocks * found.f_frsize


def _new_path(folder: str, suffix: str) -> str:
    name = uuid.uuid4()
    return f"{folder}/{PARTS[name.int % len(PARTS)]}/{name.hex}{suffix}"


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class DataSetDigest:
    """`data_set_digest`, for who takes it while the bytes come."""

    def __init__(self) -> None:
        self._hash = blake3()

    def update(self, content: bytes | memoryview) -> None:
        """Take more of the data set."""
        self._hash.update(content)

    @property
    def text(self) -> str:
        """The digest of what was taken."""
        return DIGEST_PREFIX + self._hash.hexdigest(length=_DIGEST_BYTES)


def data_set_digest(path: Path) -> str:
    """Return a digest of a Part 10 file's data set, without preamble and file meta information: BLAKE3.

    The file meta is written by whoever stores, so the same data set from two senders differs in it.
    """
    digest = DataSetDigest()
    for chunk in _data_set(path):
        digest.update(chunk)
    return digest.text


def older_data_set_digest(path: Path) -> str:
    """Return what `data_set_digest` was in earlier versions: SHA-256."""
    digest = hashlib.sha256()
    for chunk in _data_set(path):
        digest.update(chunk)
    return digest.hexdigest()


def _data_set(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        head = stream.read(144)
        # PS3.10 7.1: (0002,0000) UL comes first and tells the length of the rest of the group.
        if head[128:136] == b"DICM\x02\x00\x00\x00":
            stream.seek(144 + int.from_bytes(head[140:144], "little"))
        else:
            stream.seek(0)
        while chunk := stream.read(_CHUNK):
            yield chunk
