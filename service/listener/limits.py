"""How long a connection may take, how much it may send, and how many there may be."""

import fcntl
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from mmap import mmap
from struct import Struct

from service.core.settings import Settings

MAXIMUM_PDU_BYTES = 256 * 1024
"""The maximum length we negotiate (PS3.8 D.1): dcmtk sends at most 128 KiB, and larger ones gain nothing."""
_LONGEST_NAME = 63
_SLOT = Struct(f"B{_LONGEST_NAME + 1}s{_LONGEST_NAME + 1}s")


@dataclass(frozen=True)
class Bounds:
    """Seconds that each phase of a connection may take.

    Attributes
    ----------
    handshake
        The TLS handshake.
    negotiation
        From the connection to the last byte of the A-ASSOCIATE-RQ.
    pdu
        From the first byte of a PDU to its last, and for the peer to take one of ours.
    idle
        Between two PDUs.
    association
        The whole association, however busy.
    closing
        For the peer to close after a rejection, a release or an abort (the ARTIM timer of PS3.8 9.1.5).
    half_open
        How many connections of a process may be without an A-ASSOCIATE-RQ; one more closes the oldest of
        them.
    """

    handshake: float = 10
    negotiation: float = 10
    pdu: float = 30
    idle: float = 60
    association: float = 4 * 3600
    closing: float = 5
    half_open: int = 200


class Slots:
    """The associations that may run at a time: in all, from one address, of one calling AE title.

    Processes that are forked after it was made share it, each by a number of its own from 1 on (`use_as`).
    """

    def __init__(self, total: int, per_address: int, per_ae_title: int, processes: int = 1) -> None:
        self._limits = {"all": total, "address": per_address, "calling_ae_title": per_ae_title}
        self._processes = processes
        self._number = 1
        # Who holds each slot: the number of its process, address, calling AE title; number 0: nobody.
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._file.truncate(total * _SLOT.size)
        self._table = mmap(self._file.fileno(), total * _SLOT.size)
        self._lock = threading.Lock()

    @classmethod
    def of(cls, settings: Settings) -> "Slots":
        """Return the slots that the settings allow."""
        return cls(
            settings.max_associations,
            settings.max_associations_per_address,
            settings.max_associations_per_ae_title,
            settings.listener_processes,
        )

    def use_as(self, number: int) -> None:
        """Be the process of this number, and give back what the one before it held when it died."""
        self._number = number
        with self._locked():
            for place, (holder, _, _) in enumerate(self._slots()):
                if holder == number:
                    self._set(place, 0)

    def is_ahead(self) -> bool:
        """Return whether another process holds fewer slots than this one."""
        if self._processes == 1:
            return False
        held = Counter(holder for holder, _, _ in self._slots())
        return any(held[number] < held[self._number] for number in range(1, self._processes + 1))

    @contextmanager
    def taken(self, address: str, calling_ae_title: str) -> Iterator[str | None]:
        """Hold a slot; yields None, or which limit ("all", "address", "calling_ae_title") leaves none."""
        who = address.encode()[:_LONGEST_NAME], calling_ae_title.encode()[:_LONGEST_NAME]
        place = -1
        with self._locked():
            full = self._full(*who)
            if full is None:
                place = next(place for place, (holder, _, _) in enumerate(self._slots()) if not holder)
                self._set(place, self._number, *who)
        try:
            yield full
        finally:
            if full is None:
                with self._locked():
                    self._set(place, 0)

    def _full(self, address: bytes, calling_ae_title: bytes) -> str | None:
        held = [(by.rstrip(b"\0"), title.rstrip(b"\0")) for holder, by, title in self._slots() if holder]
        taken = {
            "all": len(held),
            "address": sum(by == address for by, _ in held),
            "calling_ae_title": sum(title == calling_ae_title for _, title in held),
        }
        return next((kind for kind, limit in self._limits.items() if 0 < limit <= taken[kind]), None)

    def _slots(self) -> list[tuple[int, bytes, bytes]]:
        return list(_SLOT.iter_unpack(self._table[:]))

    def _set(self, place: int, holder: int, address: bytes = b"", calling_ae_title: bytes = b"") -> None:
        _SLOT.pack_into(self._table, place * _SLOT.size, holder, address, calling_ae_title)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Be alone among the threads of this process, then among the processes; one that dies lets go."""
        with self._lock:
            fcntl.lockf(self._file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN)
