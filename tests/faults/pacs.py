"""A PACS with faults of one's choice: it may lie about what it stores, mumble about studies, never commit."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydicom import Dataset
from pynetdicom import AE, build_role, evt
from pynetdicom.events import Event
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    BasicTextSRStorage,
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EnhancedSRStorage,
    SecondaryCaptureImageStorage,
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    StudyRootQueryRetrieveInformationModelFind,
)

_OBJECTS = (
    BasicTextSRStorage,
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EnhancedSRStorage,
    SecondaryCaptureImageStorage,
)


class Pacs:
    """What it holds are data sets by SOP Instance UID.

    Attributes
    ----------
    loses
        How many of the next objects it answers with success and does not keep.
    identity
        What it says of each study by Study Instance UID, as attributes by keyword.
    commits
        "at once" (over the same association), "later" (`answer` sends it), "never"; None offers none.
    queries
        Whether it answers queries.
    hangs
        Seconds to wait before each answer to a C-STORE.
    breaks
        SOP Instance UIDs at which it aborts the association.
    statuses
        What it answers to the next C-STOREs without keeping their objects.
    mixes_up
        Whether it answers for another study than it was asked about.
    """

    def __init__(self, ae_title: str = "PACS", **behaviour: Any) -> None:
        self.ae_title = ae_title
        self.held: dict[str, Dataset] = {}
        self.received: list[str] = []
        self.requests: list[Dataset] = []
        self.associations = 0
        self.loses = 0
        self.identity: dict[str, dict[str, str]] = {}
        self.commits: str | None = None
        self.queries = True
        self.hangs = 0.0
        self.breaks: set[str] = set()
        self.statuses: list[int] = []
        self.mixes_up = False
        self.port = 0
        vars(self).update(behaviour)

    @property
    def url(self) -> str:
        return f"dicom://{self.ae_title}@127.0.0.1:{self.port}"

    @contextmanager
    def serving(self) -> Iterator["Pacs"]:
        """Serve until the block ends; a second time on the same port."""
        entity = AE(self.ae_title)
        for sop_class in _OBJECTS:
            entity.add_supported_context(sop_class, ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.50"])
        if self.queries:
            entity.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
        if self.commits:
            entity.add_supported_context(StorageCommitmentPushModel)
        handlers: list[Any] = [
            (evt.EVT_ACCEPTED, self._count),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_C_FIND, self._find),
            (evt.EVT_N_ACTION, self._commit),
        ]
        server = entity.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)
        assert server is not None
        self.port = server.server_address[1]
        try:
            yield self
        finally:
            server.shutdown()

    def answer(
        self, request: Dataset, listener_port: int, calling_ae_title: str = "", role: bool = True
    ) -> int:
        """Send the N-EVENT-REPORT for a commitment over an association of its own; return the status."""
        entity = AE(calling_ae_title or self.ae_title)
        entity.add_requested_context(StorageCommitmentPushModel)
        roles = [build_role(StorageCommitmentPushModel, scp_role=True)] if role else []
        association = entity.associate("127.0.0.1", listener_port, ae_title="HILUM", ext_neg=roles)  # type: ignore[arg-type]
        if not association.is_established:
            return -1
        try:
            return self._report(association, request)
        finally:
            association.release()

    def _count(self, _: Event) -> None:
        self.associations += 1

    def _store(self, event: Event) -> int:
        self.received.append(str(event.request.AffectedSOPInstanceUID))
        time.sleep(self.hangs)
        if self.received[-1] in self.breaks:
            event.assoc.abort()
            return 0x0110
        if self.statuses:
            return self.statuses.pop(0)
        if self.loses > 0:
            self.loses -= 1
        else:
            self.held[self.received[-1]] = event.dataset
        return 0x0000

    def _find(self, event: Event) -> Iterator[tuple[int, Dataset | None]]:
        query = event.identifier
        if query.QueryRetrieveLevel == "STUDY":
            if told := self.identity.get(query.StudyInstanceUID):
                found = Dataset()
                found.SpecificCharacterSet = "ISO_IR 192"
                found.StudyInstanceUID = "1.2.3.4" if self.mixes_up else query.StudyInstanceUID
                for keyword, value in told.items():
                    setattr(found, keyword, value)
                yield 0xFF00, found
        elif query.SOPInstanceUID in self.held:
            found = Dataset()
            found.SOPInstanceUID = query.SOPInstanceUID
            yield 0xFF00, found

    def _commit(self, event: Event) -> tuple[int, None]:
        request = event.action_information
        self.requests.append(request)
        if self.commits == "refused":
            return 0x0110, None
        if self.commits == "at once":
            association = event.assoc

            def report() -> None:
                time.sleep(0.2)  # after the response
                self._report(association, request)

            threading.Thread(target=report, daemon=True).start()
        return 0x0000, None

    def _report(self, association: Any, request: Dataset) -> int:
        information = Dataset()
        information.TransactionUID = request.TransactionUID
        information.ReferencedSOPSequence, information.FailedSOPSequence = [], []
        for item in request.ReferencedSOPSequence:
            if item.ReferencedSOPInstanceUID in self.held:
                information.ReferencedSOPSequence.append(item)
            else:
                item.FailureReason = 0x0112
                information.FailedSOPSequence.append(item)
        if not information.FailedSOPSequence:
            del information.FailedSOPSequence
        event_type = 2 if "FailedSOPSequence" in information else 1
        status, _ = association.send_n_event_report(
            information, event_type, StorageCommitmentPushModel, StorageCommitmentPushModelInstance
        )
        return int(status.Status) if "Status" in status else -1
