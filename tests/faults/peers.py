"""Peers that a DICOM library would not let one be: PDUs by hand over a plain socket, sent as one likes."""

import struct
from contextlib import suppress
from io import BytesIO
from pathlib import Path

from pydicom.uid import UID, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from tests.faults.door import PlainPeer

ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RP, ABORT = 0x02, 0x03, 0x04, 0x06, 0x07
RELEASE_RQ = bytes.fromhex("050000000004 00000000")
DX = DigitalXRayImageStorageForPresentation
CONTEXT_ID, ECHO_CONTEXT_ID = 1, 3


class Peer(PlainPeer):
    """A requestor of associations with the listener."""

    def pdu(self, timeout: float = 10) -> bytes | None:
        """Return the next PDU; None when the listener has closed.

        Raises
        ------
        TimeoutError
            When nothing comes in time.
        """
        self.socket.settimeout(timeout)
        try:
            head = self._exactly(6)
            return head + self._exactly(struct.unpack(">L", head[2:])[0]) if head else None
        except ConnectionError:
            return None

    def answer(self, timeout: float = 10) -> int:
        """Return the type of the next PDU, 0 when the listener has closed."""
        content = self.pdu(timeout)
        return content[0] if content else 0

    def associate(self, **options: str) -> bytes:
        """Send an A-ASSOCIATE-RQ and return the answer."""
        with suppress(ConnectionError):
            self.send(associate_rq(**options))
        return self.pdu() or b"\0"

    def echo(self) -> int:
        """Return the status of a C-ECHO, -1 when there is none."""
        self.send(p_data(echo_rq(), ECHO_CONTEXT_ID, command=True))
        return self.status()

    def store(self, sop_instance_uid: str, content: bytes, sop_class_uid: str = DX) -> int:
        """Return the status of a C-STORE, -1 when there is none."""
        with suppress(ConnectionError):
            self.send(p_data(store_rq(sop_class_uid, sop_instance_uid), command=True) + data_pdus(content))
        return self.status()

    def status(self, timeout: float = 20) -> int:
        """Return the status in the next response; -1 for an abort or a closed connection."""
        content = self.pdu(timeout)
        if not content or content[0] != P_DATA:
            return -1
        place = content.index(b"\x00\x00\x00\x09\x02\x00\x00\x00")
        return int.from_bytes(content[place + 8 : place + 10], "little")

    def release(self) -> None:
        self.send(RELEASE_RQ)
        assert self.answer() == RELEASE_RP

    def _exactly(self, size: int) -> bytes:
        content = BytesIO()
        while content.tell() < size:
            if not (part := self.socket.recv(size - content.tell())):
                return b""
            content.write(part)
        return content.getvalue()


def associate_rq(
    called: str = "HILUM",
    calling: str = "TEST",
    sop_class_uid: str = DX,
    transfer_syntax_uid: str = ExplicitVRLittleEndian,
) -> bytes:
    """Return an A-ASSOCIATE-RQ (PS3.8 9.3.2) for one storage class, and for verification."""
    user = _item(0x51, struct.pack(">L", 131072)) + _item(0x52, b"1.2.826.0.1.3680043.8.498.1")
    items = [
        _item(0x10, b"1.2.840.10008.3.1.1.1"),
        _context(CONTEXT_ID, sop_class_uid, transfer_syntax_uid),
        _context(ECHO_CONTEXT_ID, Verification, ExplicitVRLittleEndian),
        _item(0x50, user),
    ]
    titles = called.ljust(16).encode() + calling.ljust(16).encode()
    return pdu(0x01, b"\x00\x01\x00\x00" + titles + bytes(32) + b"".join(items))


def pdu(pdu_type: int, content: bytes) -> bytes:
    return struct.pack(">BxL", pdu_type, len(content)) + content


def p_data(
    fragment: bytes, context_id: int = CONTEXT_ID, *, command: bool = False, last: bool = True
) -> bytes:
    """Return a P-DATA-TF with one presentation data value (PS3.8 E.2)."""
    value = bytes([context_id, command + 2 * last]) + fragment
    return pdu(P_DATA, struct.pack(">L", len(value)) + value)


def data_pdus(content: bytes, size: int = 65536) -> bytes:
    """Return the P-DATA-TFs of a whole data set."""
    ends = range(0, max(len(content), 1), size)
    return b"".join(p_data(content[at : at + size], last=at == ends[-1]) for at in ends)


def store_rq(sop_class_uid: str, sop_instance_uid: str | bytes, *, data_set: bool = True) -> bytes:
    """Return the command set of a C-STORE-RQ (PS3.7 9.3.1.1)."""
    return _command(
        (0x0002, _ui(sop_class_uid)),
        (0x0100, b"\x01\x00"),
        (0x0110, b"\x07\x00"),
        (0x0700, b"\x00\x00"),
        (0x0800, b"\x00\x00" if data_set else b"\x01\x01"),
        (0x1000, _ui(sop_instance_uid)),
    )


def echo_rq() -> bytes:
    """Return the command set of a C-ECHO-RQ (PS3.7 9.3.5.1)."""
    return _command(
        (0x0002, _ui(Verification)), (0x0100, b"\x30\x00"), (0x0110, b"\x07\x00"), (0x0800, b"\x01\x01")
    )


def data_set(path: Path) -> bytes:
    """Return the bytes of a Part 10 file after its file meta information."""
    content = path.read_bytes()
    return content[144 + int.from_bytes(content[140:144], "little") :]


def element(tag: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    """Return an element in Explicit VR Little Endian."""
    size = len(value) if length is None else length
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr
    long = vr in {b"OB", b"OW", b"SQ", b"UN", b"UT"}
    return head + (struct.pack("<2xL", size) if long else struct.pack("<H", size)) + value


def nested(depth: int, *, undefined: bool) -> bytes:
    """Return sequences in sequences in a private element, of undefined or of explicit lengths."""
    content = b""
    for _ in range(depth):
        if undefined:
            item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + content + b"\xfe\xff\x0d\xe0\x00\x00\x00\x00"
            content = element(0x00711010, b"SQ", item + b"\xfe\xff\xdd\xe0\x00\x00\x00\x00", 0xFFFFFFFF)
        else:
            content = element(
                0x00711010, b"SQ", b"\xfe\xff\x00\xe0" + struct.pack("<L", len(content)) + content
            )
    return content


def _command(*elements: tuple[int, bytes]) -> bytes:
    body = b"".join(struct.pack("<HHL", 0, number, len(value)) + value for number, value in elements)
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


def _context(context_id: int, sop_class_uid: str, transfer_syntax_uid: str) -> bytes:
    names = _item(0x30, sop_class_uid.encode()) + _item(0x40, transfer_syntax_uid.encode())
    return _item(0x20, bytes([context_id, 0, 0, 0]) + names)


def _item(item_type: int, content: bytes) -> bytes:
    return struct.pack(">BxH", item_type, len(content)) + content


def _ui(value: str | bytes | UID) -> bytes:
    content = value if isinstance(value, bytes) else str(value).encode()
    return content + b"\0" * (len(content) % 2)
