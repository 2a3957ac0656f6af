"""One STOW-RS request's objects: from parts of its body to custody, and the answer (PS3.18 10.5, annex I)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import structlog
from pydicom.datadict import dictionary_VR, tag_for_keyword

from service.api.multipart import media_type
from service.core import tally
from service.core.audit import Transfer
from service.core.errors import HilumError, OutOfResources, TooLarge, Unreadable
from service.core.file_meta import FileMeta, check_offered, read_file_meta
from service.core.incoming import IncomingPart10, full
from service.core.receive import Arrival, Intake
from service.core.settings import Settings
from service.core.spool import Spool

_BINARY = {"", "binary", "8bit"}
_log = structlog.get_logger()


@dataclass(frozen=True)
class Stored:
    """An object that is in custody now."""

    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True)
class Failed:
    """An object that is not, and why; without its UIDs when it does not say them."""

    fault: HilumError
    sop_class_uid: str = ""
    sop_instance_uid: str = ""


class Upload:
    """Takes the parts of one request, each as a C-STORE's data set would be.

    Called from one thread at a time, and only to abandon from the event loop: it writes, syncs and waits for
    the ledger.
    """

    def __init__(
        self,
        settings: Settings,
        spool: Spool,
        intake: Intake,
        sender: str,
        study_instance_uid: str | None,
        most_parts: int,
        transfer: Transfer,
    ) -> None:
        self._settings = settings
        self._spool = spool
        self._intake = intake
        self._sender = sender
        self._study_instance_uid = study_instance_uid
        self._most_parts = most_parts
        self._transfer = transfer
        self._file: IncomingPart10 | None = None
        self.stored: list[Stored] = []
        self.failed: list[Failed] = []

    def begin(self, headers: Mapping[str, str]) -> None:
        """Begin with one object.

        Raises
        ------
        TooLarge
            When the request has more of them than one may have.
        """
        if len(self.stored) + len(self.failed) >= self._most_parts:
            raise TooLarge(f"a request has at most {self._most_parts} parts: send the rest in another one")
        fault: HilumError | None = full(self._spool, self._settings)
        if media_type(headers.get("content-type", "application/dicom"))[0] != "application/dicom":
            fault = Unreadable("the part is not application/dicom")
        elif headers.get("content-transfer-encoding", "").lower() not in _BINARY:
            fault = Unreadable("the part is not binary (Content-Transfer-Encoding)")
        elif headers.get("content-encoding", "identity").lower() != "identity":
            fault = Unreadable("the part is compressed (Content-Encoding)")
        self._file = IncomingPart10(self._spool.incoming, self._settings.max_object_bytes, fault)

    def write(self, content: bytes) -> None:
        """Append to the object."""
        assert self._file is not None
        self._file.write(content)

    def end(self) -> None:
        """Take custody of the object, or note why not."""
        file, self._file = self._file, None
        assert file is not None
        meta: FileMeta | None = None
        try:
            with self._transfer.unread():
                if file.fault:
                    raise file.fault
                meta = read_file_meta(file.path)
                check_offered(meta.transfer_syntax_uid)
            # Closed afterwards: until then it is locked, and no leftover.
            self._intake.receive(
                Arrival(
                    file.path,
                    self._sender,
                    meta.sop_class_uid,
                    meta.sop_instance_uid,
                    self._study_instance_uid,
                ),
                self._transfer,
            )
            self._count(0x0000)
            self.stored.append(Stored(meta.sop_class_uid, meta.sop_instance_uid))
        except HilumError as fault:
            self._fail(fault, meta)
        except OSError as error:
            self._fail(OutOfResources(f"the object cannot be read again ({error.strerror})"), meta)
        except Exception:
            _log.exception("receive.failed")
            self._fail(HilumError("processing failed"), meta)
        finally:
            file.discard()

    def abandon(self) -> None:
        """Remove what has arrived of an object whose end will not come."""
        if self._file is not None:
            self._file.discard()
            self._file = None

    def http_status(self, broken: HilumError | None) -> int:
        """Return the status of the answer (PS3.18 10.5.3.1); `broken` is what is wrong with the request."""
        if self.stored:
            return 202 if self.failed or broken else 200
        faults = [item.fault for item in self.failed] + ([broken] if broken else [])
        if not faults:
            return Unreadable.http_status
        if broken or all(isinstance(fault, TooLarge) for fault in faults):
            return faults[-1].http_status
        if all(isinstance(fault, OutOfResources) for fault in faults):
            return OutOfResources.http_status
        return 409

    def answer(self, broken: HilumError | None) -> bytes:
        """Return the store instances response (PS3.18 table I.1-1) in the DICOM JSON model."""
        named = [item for item in self.failed if item.sop_instance_uid]
        others = [item.fault for item in self.failed if not item.sop_instance_uid] + (
            [broken] if broken else []
        )
        response: dict[str, object] = {}
        for keyword, items in (
            ("ReferencedSOPSequence", [_reference(item) for item in self.stored]),
            ("FailedSOPSequence", [_reference(item) | _reason(item.fault) for item in named]),
            ("OtherFailuresSequence", [_reason(fault) for fault in others]),
        ):
            if items:
                response |= _element(keyword, *items)
        return json.dumps(response).encode()

    def _count(self, status: int) -> None:
        tally.add(tally.OBJECTS, tally.peer(self._settings, self._sender), f"{status:04X}")

    def _fail(self, fault: HilumError, meta: FileMeta | None) -> None:
        _log.warning(
            "receive.refused",
            sop_instance_uid=meta.sop_instance_uid if meta else None,
            code=fault.code,
            status=f"{fault.dimse_status:04X}",
            reason=str(fault),
        )
        self._count(fault.dimse_status)
        if meta is None:
            self.failed.append(Failed(fault))
        else:
            self.failed.append(Failed(fault, meta.sop_class_uid, meta.sop_instance_uid))


def _reference(item: Stored | Failed) -> dict[str, object]:
    return _element("ReferencedSOPClassUID", str(item.sop_class_uid)) | _element(
        "ReferencedSOPInstanceUID", str(item.sop_instance_uid)
    )


def _reason(fault: HilumError) -> dict[str, object]:
    return _element("FailureReason", fault.dimse_status)


def _element(keyword: str, *values: object) -> dict[str, object]:
    """Return one attribute of the DICOM JSON model (PS3.18 F.2)."""
    tag = tag_for_keyword(keyword) or 0
    return {f"{tag:08X}": {"vr": dictionary_VR(tag), "Value": list(values)}}
