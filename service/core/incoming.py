"""A data set on its way into ``incoming/``."""

import ctypes
import fcntl
import os
import sys
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydicom.uid import UID

from service.core.errors import HilumError, OutOfResources, TooLarge
from service.core.failpoints import failpoint
from service.core.header import Head
from service.core.settings import Settings
from service.core.spool import DataSetDigest, Spool

# A film's header has a few thousand.
_HEAD_BYTES = 64 * 1024
# The kernel begins to write so much while the rest still comes, so that less is left for fsync to wait for.
_EARLY_BYTES = 1 << 20
_SYNC_FILE_RANGE_WRITE = 2
# Longer objects get their blocks so many bytes at a time: one by one they cost a third of the processor time
# of writing and syncing, and fsync waits for them.
_SHORT_BYTES, _ALLOCATED_BYTES = 1 << 20, 4 << 20
_FALLOC_FL_KEEP_SIZE = 1
_libc = ctypes.CDLL(None)
_sync_file_range: Any = getattr(_libc, "sync_file_range", None)  # Linux has both
_fallocate: Any = getattr(_libc, "fallocate", None)


class IncomingFile:
    """The file of one object; it never raises, because the sender is owed a status after the last byte.

    What goes wrong is kept in `fault`: the bytes written so far are removed at once and the rest is dropped
    as it comes. The methods are those that pynetdicom calls on its own temporary file.

    It is locked as long as it is open, also under its final name: who received it keeps it open until the
    ledger has it, so that nobody else takes it for what a killed process left (`abandoned`).
    """

    def __init__(self, folder: Path, max_bytes: int, fault: HilumError | None = None) -> None:
        self.path = _new_path(folder)
        self.fault = fault
        self._left = max_bytes
        self._descriptor = -1
        self._written = self._on_its_way = self._allocated = 0
        self._head = bytearray()
        self._start, self._transfer_syntax_uid = 0, UID("")
        self._digest: DataSetDigest | None = None
        while self.fault is None and not self._opened():
            self.path = _new_path(folder)

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def file(self) -> "IncomingFile":
        return self

    @property
    def closed(self) -> bool:
        return self._descriptor < 0

    def begin(self, file_meta: bytes, transfer_syntax_uid: UID) -> None:
        """Write preamble and file meta information (PS3.10 7.1), given as encoded; they count for nothing.

        What is written afterwards is the data set: `digest` and `head` are of it.
        """
        content = bytes(128) + b"DICM" + file_meta
        self._left += len(content)
        self.write(content)
        self._start, self._transfer_syntax_uid = len(content), transfer_syntax_uid
        self._digest = DataSetDigest()

    @property
    def digest(self) -> str | None:
        """The digest of what came behind the file meta information; None where that was not told apart."""
        return None if self._digest is None else self._digest.text

    @property
    def head(self) -> Head | None:
        """The beginning of the file; None where it was not told apart."""
        if self._digest is None:
            return None
        return Head(bytes(self._head), self._start, self._transfer_syntax_uid)

    def write(self, content: bytes | memoryview) -> int:
        """Append `content`, or drop it when the object is refused already."""
        if self.fault is None:
            if self._digest is not None:
                self._digest.update(content)
            if len(self._head) < _HEAD_BYTES:
                self._head += content[: _HEAD_BYTES - len(self._head)]
            self._left -= len(content)
            if self._left < 0:
                self.refuse(TooLarge("the object is larger than HILUM_MAX_OBJECT_BYTES"))
            else:
                try:
                    if self._written + len(content) > max(self._allocated, _SHORT_BYTES):
                        self._allocate(len(content))
                    rest = memoryview(content)
                    while rest:
                        rest = rest[os.write(self._descriptor, rest) :]
                    self._written += len(content)
                    self._write_out(_EARLY_BYTES)
                    failpoint("incoming.written")
                except OSError as error:
                    self._fail(error)
        return len(content)

    def flush(self) -> None:
        """Give back the room that was taken for more than came; no byte is held back.

        What is left goes on its way to the disk while the header is looked at. Not before: the system would
        wait for the end of the file to be written before it takes back what lies behind it.
        """
        self._give_back()
        if not self.closed:
            self._write_out(1)

    def close(self) -> None:
        """Close; a second time is fine."""
        self._give_back()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def refuse(self, fault: HilumError) -> None:
        """Remove what is there and drop what comes."""
        self.fault = self.fault or fault
        self.discard()

    def discard(self) -> None:
        """Close and remove a file that nobody took over; where nothing can be removed it is swept later."""
        self.close()
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _give_back(self) -> None:
        if self._allocated > self._written and not self.closed:
            with suppress(OSError):  # fsync says so too
                os.ftruncate(self._descriptor, self._written)
            self._allocated = self._written

    def _write_out(self, least: int) -> None:
        """Let the kernel begin to write what it has not yet, if that is so much; promises nothing."""
        size = self._written - self._on_its_way
        if _sync_file_range is not None and size >= least:
            begin, flags = ctypes.c_int64(self._on_its_way), ctypes.c_uint(_SYNC_FILE_RANGE_WRITE)
            _sync_file_range(self._descriptor, begin, ctypes.c_int64(size), flags)
            self._on_its_way = self._written

    def _allocate(self, size: int) -> None:
        """Take room for `size` bytes more and for some to come; where that cannot be, writing does it."""
        begin = max(self._allocated, self._written)
        size = self._written + size + _ALLOCATED_BYTES - begin
        taken = _fallocate is not None and not _fallocate(
            self._descriptor, _FALLOC_FL_KEEP_SIZE, ctypes.c_int64(begin), ctypes.c_int64(size)
        )
        self._allocated = begin + size
        if not taken:
            self._allocated = sys.maxsize

    def _opened(self) -> bool:
        """Make and lock the file; False when somebody who starts just now took it for a leftover."""
        try:
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            failpoint("incoming.opened")
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(self._descriptor).st_nlink:
                return True
        except BlockingIOError:
            pass
        except OSError as error:
            self._fail(error)
        self.discard()
        return False

    def _fail(self, error: OSError) -> None:
        self.refuse(OutOfResources(f"the object cannot be written ({error.strerror})"))


class IncomingPart10(IncomingFile):
    """The file of one object that comes as a whole Part 10 file.

    Its preamble is zeroed: PS3.10 7.1 lets it hold anything, so that the same file could be a program too
    (CVE-2019-11687). It is no part of the data set.
    """

    _preamble = 128

    def write(self, content: bytes | memoryview) -> int:
        """Append `content`, as zeros while the preamble lasts."""
        zeroed = min(self._preamble, len(content))
        if zeroed:
            self._preamble -= zeroed
            content = bytes(zeroed) + bytes(content[zeroed:])
        return super().write(content)


def full(spool: Spool, settings: Settings) -> OutOfResources | None:
    """Return the fault of every object that comes now, None while there is room for it."""
    try:
        if spool.free_bytes() < settings.min_free_bytes:
            return OutOfResources("the data folder is nearly full (HILUM_MIN_FREE_BYTES)")
    except OSError as error:
        return OutOfResources(f"the data folder cannot be reached ({error.strerror})")
    return None


def _new_path(folder: Path) -> Path:
    return folder / f"{uuid.uuid4().hex}.part"


def remove_leftovers(folder: Path) -> int:
    """Remove what killed listeners were receiving, and nothing that another one is; return how many files."""
    removed = 0
    for path in folder.glob("*.part"):
        # It may be taken over or removed meanwhile.
        with suppress(OSError), path.open("rb") as stream:
            # NFS asks for a writable descriptor for an exclusive lock.
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            path.unlink()
            removed += 1
    return removed


def abandoned(path: Path) -> bool:
    """Return whether the process that received this file is gone or done with it.

    Raises
    ------
    OSError
        When the file cannot be opened.
    """
    with path.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
