"""How long a connection may take, how much it may send, and how many there may be."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from service.core.settings import Settings

MAXIMUM_PDU_BYTES = 256 * 1024
"""The maximum length we negotiate (PS3.8 D.1): dcmtk sends at most 128 KiB, and larger ones gain nothing."""


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
        How many connections may be without an A-ASSOCIATE-RQ; one more closes the oldest of them.
    """

    handshake: float = 10
    negotiation: float = 10
    pdu: float = 30
    idle: float = 60
    association: float = 4 * 3600
    closing: float = 5
    half_open: int = 200


class Slots:
    """The associations that may run at a time: in all, from one address, of one calling AE title."""

    def __init__(self, total: int, per_address: int, per_ae_title: int) -> None:
        self._limits = {"all": total, "address": per_address, "calling_ae_title": per_ae_title}
        self._taken: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    @classmethod
    def of(cls, settings: Settings) -> "Slots":
        """Return the slots that the settings allow."""
        return cls(
            settings.max_associations,
            settings.max_associations_per_address,
            settings.max_associations_per_ae_title,
        )

    @contextmanager
    def taken(self, address: str, calling_ae_title: str) -> Iterator[str | None]:
        """Hold a slot; yields None, or which limit ("all", "address", "calling_ae_title") leaves none."""
        keys = [("all", ""), ("address", address), ("calling_ae_title", calling_ae_title)]
        with self._lock:
            full = next(
                (kind for kind, name in keys if 0 < self._limits[kind] <= self._taken[kind, name]), None
            )
            if full is None:
                self._taken.update(keys)
        try:
            yield full
        finally:
            if full is None:
                with self._lock:
                    self._taken.subtract(keys)
                    self._taken += Counter()  # drops those at zero
