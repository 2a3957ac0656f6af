"""The socket of an association: every PDU in time or not at all, and data sets without making PDUs of them.

A PDU of a data set is a header of six bytes, and in it fragments with a header of six bytes each (PS3.8
9.3.5). `fragments` reads whatever the socket has into one buffer, closes the gaps that headers leave there,
and hands on in one piece what came together: for each piece that is digested and written the thread leaves
Python, and queues up to come back. What it does not expect there (a command, another context, a PDU of
another type, a length that does not fit) it leaves as it came, for pynetdicom to read and to judge.
"""

import os
import select
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto
from struct import Struct

import structlog
from pynetdicom.association import Association
from pynetdicom.transport import AssociationSocket

from service.listener.limits import MAXIMUM_PDU_BYTES, Bounds

HEADER = Struct(">BxL")
# Some count the maximum length without the headers inside the PDU.
LONGEST_PDU = MAXIMUM_PDU_BYTES + 1024
# A-ABORT by the service provider (PS3.8 9.3.8).
ABORT = bytes.fromhex("0700 00000004 0000 02")
NOT_SPECIFIED, UNEXPECTED_PDU, INVALID_PARAMETER = b"\x00", b"\x02", b"\x06"
_FRAGMENT = Struct(">LBB")
_P_DATA = 0x04
_IS_COMMAND, _IS_LAST = 1, 2
_BUFFER_BYTES = 4 * MAXIMUM_PDU_BYTES
_log = structlog.get_logger()


class Came(Enum):
    """Why `Connection.fragments` returned."""

    LAST = auto()
    OTHER = auto()
    NOTHING = auto()


class PduTooLong(OSError):
    """A PDU promises more bytes than we negotiated."""


class Connection(AssociationSocket):
    """The socket of an association; it reads `first` before all else."""

    def __init__(
        self, association: Association, connection: socket.socket, first: bytes, bounds: Bounds
    ) -> None:
        super().__init__(association, client_socket=connection)
        self._ahead = bytearray(first)
        self._bounds = bounds
        self._end = 0.0
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        # Of it, what was read and not yet used lies from `_begin` to `_filled`; made for the first data set.
        self._buffer = memoryview(b"")
        self._begin = self._filled = 0
        # What of the data set `_take` was not given yet lies from `_whole` to `_end_of_whole`.
        self._whole = self._end_of_whole = 0
        self._take: Callable[[memoryview], object] = _drop
        # Bytes to come of the PDU and of the fragment that are being read.
        self._pdu = self._fragment = 0
        self._is_last = False
        connection.settimeout(bounds.pdu)

    @property
    def ready(self) -> bool:
        """Whether there is something to read."""
        return self.wait(0)

    def wait(self, seconds: float) -> bool:
        """Return whether there is something to read, waiting so long for it."""
        return bool(self._ahead) or self._begin < self._filled or self._more_comes(seconds)

    def _more_comes(self, seconds: float) -> bool:
        connection = self.socket
        if connection is None or not self._is_connected:
            return False
        if isinstance(connection, ssl.SSLSocket) and connection.pending():
            return True
        return bool(self._poll.poll(1000 * seconds))

    def recv(self, nr_bytes: int) -> bytearray:
        """Return so many bytes, fewer when the peer has closed.

        Raises
        ------
        PduTooLong
            When they are more than a PDU may have.
        TimeoutError
            When the PDU takes too long.
        """
        # pynetdicom asks for the header of a PDU, then for the rest of it.
        if nr_bytes == HEADER.size:
            self._end = time.monotonic() + self._bounds.pdu
        content = self._ahead[:nr_bytes]
        del self._ahead[:nr_bytes]
        held = self._buffer[self._begin : min(self._filled, self._begin + nr_bytes - len(content))]
        self._begin += len(held)
        content += held
        if len(content) == nr_bytes:
            return content
        connection = self.socket
        if connection is None:
            raise ConnectionAbortedError
        try:
            if nr_bytes > LONGEST_PDU:
                raise PduTooLong
            return content + receive(connection, nr_bytes - len(content), self._end)
        except (PduTooLong, TimeoutError) as fault:
            self._give_up(fault)
            raise
        finally:
            with suppress(OSError):
                connection.settimeout(self._bounds.pdu)

    def discard(self) -> None:
        """Give the memory back: the garbage collector may take its time to find an association."""
        self._buffer = memoryview(b"")
        self._begin = self._filled = 0

    def fragments(self, context_id: int, take: Callable[[memoryview], object], seconds: float) -> Came:
        """Give the data set of this presentation context to `take` as its fragments come.

        Returns after the last one, when something else comes, and when nothing comes for so many seconds.

        Raises
        ------
        ConnectionAbortedError
            When the peer closes in the middle of a PDU.
        TimeoutError
            When the PDU takes too long.
        """
        self._take = take
        try:
            while self._fragment or (other := self._next_fragment(context_id, seconds)) is None:
                if self._begin == self._filled:
                    self._more()
                self._gather(min(self._filled - self._begin, self._fragment))
                if not self._fragment and self._is_last:
                    self._put_back()
                    other = Came.LAST
                    break
            self._hand_on()
            return other
        except TimeoutError as fault:
            self._give_up(fault)
            raise

    def _gather(self, size: int) -> None:
        """Put so many bytes of a fragment behind what was gathered before."""
        begin, end = self._begin, self._begin + size
        if self._whole == self._end_of_whole:
            self._whole = self._end_of_whole = begin
        if begin != self._end_of_whole:
            self._buffer[self._end_of_whole : self._end_of_whole + size] = self._buffer[begin:end]
        self._end_of_whole += size
        self._begin = end
        self._fragment -= size

    def _hand_on(self) -> None:
        """Give away what was gathered, before anything else may come to its place."""
        if self._whole < self._end_of_whole:
            self._take(self._buffer[self._whole : self._end_of_whole])
        self._whole = self._end_of_whole = 0

    def _next_fragment(self, context_id: int, seconds: float) -> Came | None:
        """Read the header of the next fragment, and before it that of its PDU where one begins.

        Returns what comes instead.
        """
        if not self._pdu:
            if not self._ahead and self._begin == self._filled:
                self._end = time.monotonic() + self._bounds.pdu
                if not self._fill() and not self.wait(seconds):
                    return Came.NOTHING
            if self._ahead:
                return Came.OTHER
            self._end = time.monotonic() + self._bounds.pdu
            self._hold(HEADER.size)
            pdu_type, length = HEADER.unpack_from(self._buffer, self._begin)
            if pdu_type != _P_DATA or not _FRAGMENT.size <= length <= LONGEST_PDU:
                return Came.OTHER
            self._pdu = length
            self._begin += HEADER.size
        if self._pdu >= _FRAGMENT.size:
            self._hold(_FRAGMENT.size)
            length, context, control = _FRAGMENT.unpack_from(self._buffer, self._begin)
            # The length counts the two bytes behind it.
            if 2 < length <= self._pdu - 4 and context == context_id and not control & _IS_COMMAND:
                self._begin += _FRAGMENT.size
                self._fragment = length - 2
                self._pdu -= length + 4
                self._is_last = bool(control & _IS_LAST)
                return None
        self._put_back()
        return Came.OTHER

    def _put_back(self) -> None:
        """Let the rest of the PDU be read as a PDU of its own."""
        if self._pdu:
            self._ahead += HEADER.pack(_P_DATA, self._pdu)
            self._pdu = 0

    def _hold(self, size: int) -> None:
        """Have so many bytes in the buffer that follow each other."""
        while self._filled - self._begin < size:
            self._more()

    def _more(self) -> None:
        """Read more, and wait for it until the PDU takes too long."""
        while not self._fill():
            self._more_comes(max(0.0, self._end - time.monotonic()))

    def _fill(self) -> bool:
        """Read what there is behind what is held; False when there is nothing yet."""
        self._hand_on()
        connection = self.socket
        if connection is None:
            raise ConnectionAbortedError
        if not self._buffer:
            self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        if self._begin == self._filled:
            self._begin = self._filled = 0
        elif self._filled == len(self._buffer):
            left = bytes(self._buffer[self._begin : self._filled])
            self._buffer[: len(left)] = left
            self._begin, self._filled = 0, len(left)
        if time.monotonic() > self._end:
            raise TimeoutError
        count = self._read(connection, self._buffer[self._filled :])
        if count == 0:
            raise ConnectionAbortedError
        self._filled += count or 0
        return count is not None

    def _read(self, connection: socket.socket, into: memoryview) -> int | None:
        """Return how many bytes came, 0 when the peer has closed, None when there are none yet.

        A socket with a timeout asks the system before each read whether it may: with many associations every
        such call waits in line for Python.
        """
        if isinstance(connection, ssl.SSLSocket):
            if not self._more_comes(0):
                return None
            # The rest of a record is waited for.
            connection.settimeout(max(0.001, self._end - time.monotonic()))
            try:
                return connection.recv_into(into)
            finally:
                connection.settimeout(self._bounds.pdu)
        try:
            return os.readv(connection.fileno(), [into])
        except BlockingIOError:
            return None

    def _give_up(self, fault: OSError) -> None:
        _log.warning("association.aborted", peer=self.assoc.requestor.address, reason=type(fault).__name__)
        if (connection := self.socket) is not None:
            with suppress(OSError):
                connection.settimeout(self._bounds.closing)
                connection.sendall(
                    ABORT + (INVALID_PARAMETER if isinstance(fault, PduTooLong) else NOT_SPECIFIED)
                )


def _drop(_: memoryview) -> None:
    """Take nothing: no data set comes."""


def receive(connection: socket.socket, size: int, end: float) -> bytearray:
    """Return `size` bytes, fewer when the peer has closed.

    Raises
    ------
    TimeoutError
        When they are not there at the moment `end` of the monotonic clock.
    """
    content = bytearray(size)
    view = memoryview(content)
    got = 0
    while got < size:
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        count = connection.recv_into(view[got:])
        if not count:
            return content[:got]
        got += count
    return content


def shut(connection: socket.socket) -> None:
    """Make every read and write of the connection end, in whatever thread it is."""
    with suppress(OSError):
        # SSLSocket's own would drop TLS first: who reads in another thread would take ciphertext for data.
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def close(connection: socket.socket) -> None:
    """Close it, whatever state it is in."""
    shut(connection)
    with suppress(OSError):
        connection.close()
