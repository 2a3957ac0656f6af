"""File meta information (PS3.10 7.1): of a file that somebody else wrote, and for one that we write.

The former is read strictly and without a parser that follows it anywhere: where the data set begins, and how
it is encoded, decides what its digest covers and what is looked at before it is parsed. A file whose meta
information is wrong is refused, because a wrong length would let two different data sets count as the same.
"""

from dataclasses import dataclass
from pathlib import Path
from struct import Struct, error

from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

from service.core.errors import SyntaxNotOffered, Unreadable
from service.core.identifiers import checked_uid
from service.core.syntaxes import OFFERED

MAX_BYTES = 64 * 1024
"""Of the group; without private information it has a few hundred."""
_PREAMBLE = 128
_GROUP_LENGTH, _SOP_CLASS_UID, _SOP_INSTANCE_UID, _TRANSFER_SYNTAX_UID = 0x0000, 0x0002, 0x0003, 0x0010
_IMPLEMENTATION_CLASS_UID, _IMPLEMENTATION_VERSION_NAME, _SENDING_AE_TITLE = 0x0012, 0x0013, 0x0017
_NOT_AS_LONG = "the file meta information is not as long as it says"
_SHORT, _LONG, _TAG = Struct("<H"), Struct("<L"), Struct("<HH")


@dataclass(frozen=True)
class FileMeta:
    """What a file says of its data set."""

    sop_class_uid: UID
    sop_instance_uid: UID
    transfer_syntax_uid: UID


def read_file_meta(path: Path) -> FileMeta:
    """Read the file meta information of the file at `path`.

    Raises
    ------
    Unreadable
        When the file is none of Part 10, or its meta information is not what PS3.10 7.1 asks for.
    InvalidUID
        When one of its UIDs is malformed.
    """
    with path.open("rb") as stream:
        head = stream.read(_PREAMBLE + 4 + 12)
        if head[_PREAMBLE : _PREAMBLE + 4] != b"DICM":
            raise Unreadable("no DICOM file: DICM is not at byte 128 (PS3.10 7.1)")
        if head[_PREAMBLE + 4 : -4] != b"\x02\x00\x00\x00UL\x04\x00":
            raise Unreadable("the file meta information does not begin with its group length (PS3.10 7.1)")
        (length,) = _LONG.unpack(head[-4:])
        if length > MAX_BYTES:
            raise Unreadable(f"the file meta information is longer than {MAX_BYTES} bytes")
        group, following = stream.read(length), stream.read(2)
    if len(group) < length or following == b"\x02\x00":
        raise Unreadable(_NOT_AS_LONG)
    return _named(dict(_elements(group)))


def written_file_meta(
    meta: FileMeta, implementation_class_uid: str, implementation_version_name: str, sending_ae_title: str
) -> bytes:
    """Return group 0002 of a file that we write, as pydicom would encode it."""
    elements = b"".join(
        (
            b"\x02\x00\x01\x00OB\x00\x00\x02\x00\x00\x00\x00\x01",
            _element(_SOP_CLASS_UID, b"UI", meta.sop_class_uid),
            _element(_SOP_INSTANCE_UID, b"UI", meta.sop_instance_uid),
            _element(_TRANSFER_SYNTAX_UID, b"UI", meta.transfer_syntax_uid),
            _element(_IMPLEMENTATION_CLASS_UID, b"UI", implementation_class_uid),
            _element(_IMPLEMENTATION_VERSION_NAME, b"SH", implementation_version_name),
            _element(_SENDING_AE_TITLE, b"AE", sending_ae_title),
        )
    )
    return _element_head(_GROUP_LENGTH, b"UL", 4) + _LONG.pack(len(elements)) + elements


def sending_ae_title(path: Path) -> str:
    """Return the AE title of who sent a file that we keep (0002,0017), empty when it does not say.

    Our listener writes it, so that what a killed one left can be told by its sender.
    """
    try:
        return str(read_file_meta_info(path).get("SendingApplicationEntityTitle") or "").strip()
    except Exception:  # a data set from before Part 10 has none, and broken ones raise nearly anything
        return ""


def has_file_meta(path: Path) -> bool:
    """Return whether a file that we keep says itself how it is encoded (PS3.10 7.1)."""
    with path.open("rb") as stream:
        return stream.read(_PREAMBLE + 4)[_PREAMBLE:] == b"DICM"


def check_offered(transfer_syntax_uid: UID) -> None:
    """Raise `SyntaxNotOffered` for a transfer syntax that the listener would not accept."""
    if transfer_syntax_uid not in OFFERED:
        name = transfer_syntax_uid.name if transfer_syntax_uid.is_transfer_syntax else "an unknown syntax"
        raise SyntaxNotOffered(f"the transfer syntax is not taken ({name}): send it in another one")


def _elements(group: bytes) -> list[tuple[int, bytes]]:
    """Return element numbers and values of group 0002, each of them where pydicom will find it again."""
    found: list[tuple[int, bytes]] = []
    position, latest = 0, _GROUP_LENGTH
    try:
        while position < len(group):
            number, element = _TAG.unpack_from(group, position)
            vr = group[position + 4 : position + 6]
            if not b"AA" <= vr <= b"ZZ" or vr == b"SQ" or number != 0x0002 or element <= latest:
                raise Unreadable("the file meta information has an element that does not belong there")
            long = vr.decode("latin-1") in EXPLICIT_VR_LENGTH_32
            length = (
                _LONG.unpack_from(group, position + 8) if long else _SHORT.unpack_from(group, position + 6)
            )
            begin = position + (12 if long else 8)
            position, latest = begin + length[0], element
            found.append((element, group[begin:position]))
    except error:
        position = -1
    if position != len(group):
        raise Unreadable(_NOT_AS_LONG)
    return found


def _named(values: dict[int, bytes]) -> FileMeta:
    def uid(element: int, keyword: str) -> UID:
        if not values.get(element):
            raise Unreadable(f"the file meta information has no {keyword} (PS3.10 7.1)")
        return checked_uid(values[element].decode("latin-1").rstrip("\0 "), keyword)

    return FileMeta(
        uid(_SOP_CLASS_UID, "MediaStorageSOPClassUID"),
        uid(_SOP_INSTANCE_UID, "MediaStorageSOPInstanceUID"),
        uid(_TRANSFER_SYNTAX_UID, "TransferSyntaxUID"),
    )


def _element(element: int, vr: bytes, text: str) -> bytes:
    value = text.encode("ascii", "replace")
    if len(value) % 2:
        value += b"\0" if vr == b"UI" else b" "
    return _element_head(element, vr, len(value)) + value


def _element_head(element: int, vr: bytes, length: int) -> bytes:
    return _TAG.pack(0x0002, element) + vr + _SHORT.pack(length)
