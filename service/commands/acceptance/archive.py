"""What acceptance asks of a PACS over DIMSE beside what deliveries ask: C-ECHO, offers, C-MOVE, C-GET."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from pydicom import Dataset
from pydicom.uid import UID, JPEGBaseline8Bit
from pynetdicom import AE, build_role, evt
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
    Verification,
)

from service.core.destination import Destination
from service.core.errors import DeliveryError, TransientDelivery
from service.core.syntaxes import UNCOMPRESSED
from worker.association import associate, requestor

_PENDING = (0xFF00, 0xFF01)
_UNABLE_TO_FIND_US = 0xA801
_SERVICES = {
    StudyRootQueryRetrieveInformationModelFind: "query (C-FIND)",
    StudyRootQueryRetrieveInformationModelMove: "retrieval (C-MOVE)",
    StudyRootQueryRetrieveInformationModelGet: "retrieval (C-GET)",
    StorageCommitmentPushModel: "storage commitment",
}


class Archive:
    """A destination on DIMSE, as the AE `ae_title` of ours meets it; each question is an association."""

    def __init__(self, destination: Destination, ae_title: str) -> None:
        self._destination = destination
        self._ae_title = ae_title

    def echo(self) -> float:
        """Return the seconds that a C-ECHO takes, the association included.

        Raises
        ------
        DeliveryError
            When there is no answer, or another than 0000.
        """
        began = time.monotonic()
        entity = requestor(self._ae_title)
        entity.add_requested_context(Verification)
        with self._associated(entity) as association:
            status = association.send_c_echo()
            if "Status" not in status:
                raise TransientDelivery("it did not answer the C-ECHO in time")
            if int(status.Status) != 0x0000:
                raise TransientDelivery(f"it answered the C-ECHO with {int(status.Status):04X}")
        return time.monotonic() - began

    def offers(self, classes: list[str]) -> tuple[dict[str, list[str]], list[str]]:
        """Return the transfer syntaxes that it takes of each storage class, and what other services it has.

        Parameters
        ----------
        classes
            SOP Class UIDs; each is proposed uncompressed and, if it is an image, as JPEG Baseline.

        Raises
        ------
        DeliveryError
            When it takes no association, or none of all this.
        """
        entity = requestor(self._ae_title)
        contexts = [
            build_context(name, syntax)
            for name in classes
            for syntax in (*UNCOMPRESSED[:2], *([JPEGBaseline8Bit] if "Image" in UID(name).name else []))
        ]
        entity.requested_contexts = [*contexts, *(build_context(service) for service in _SERVICES)]
        taken: dict[str, list[str]] = {name: [] for name in classes}
        services = []
        with self._associated(entity) as association:
            for context in association.accepted_contexts:
                name = str(context.abstract_syntax)
                if name in taken:
                    taken[name].append(UID(str(context.transfer_syntax[0])).name)
                elif name in _SERVICES:
                    services.append(_SERVICES[UID(name)])
        return taken, services

    def move(self, study_instance_uid: str) -> str | None:
        """Have it send a study to us (PS3.4 C.4.2); return what kept it from that, or None.

        Raises
        ------
        DeliveryError
            When it takes no association for it.
        """
        entity = requestor(self._ae_title)
        entity.add_requested_context(StudyRootQueryRetrieveInformationModelMove)
        query = Dataset()
        query.QueryRetrieveLevel, query.StudyInstanceUID = "STUDY", study_instance_uid
        status, sent = Dataset(), 0
        with self._associated(entity) as association:
            for status, _ in association.send_c_move(
                query, self._ae_title, StudyRootQueryRetrieveInformationModelMove
            ):
                sent = int(status.get("NumberOfCompletedSuboperations") or 0)
        if "Status" not in status:
            return "it did not answer the C-MOVE in time"
        if int(status.Status) == _UNABLE_TO_FIND_US:
            return f"it knows no AE {self._ae_title} (A801)"
        if int(status.Status) != 0x0000 or not sent:
            return f"it answered {int(status.Status):04X} and sent {sent} object(s)"
        return None

    def get(self, sop_class_uid: str, uids: tuple[str, str, str], syntax: str) -> Dataset | None:
        """Return an instance by C-GET (PS3.4 C.4.3), or None when it sends none.

        Parameters
        ----------
        uids
            Study, Series and SOP Instance UID.

        Raises
        ------
        DeliveryError
            When it takes no association for it.
        """
        entity = requestor(self._ae_title)
        entity.add_requested_context(StudyRootQueryRetrieveInformationModelGet)
        # Offered a choice, an archive may decompress what it gives.
        native = UNCOMPRESSED[:2]
        entity.add_requested_context(sop_class_uid, list(native if syntax in native else (syntax,)))
        query = Dataset()
        query.QueryRetrieveLevel = "IMAGE"
        query.StudyInstanceUID, query.SeriesInstanceUID, query.SOPInstanceUID = uids
        got: list[Dataset] = []

        def keep(event: Event) -> int:
            instance = event.dataset
            instance.file_meta = event.file_meta
            got.append(instance)
            return 0x0000

        handlers = [(evt.EVT_C_STORE, keep)]
        role = build_role(sop_class_uid, scp_role=True)
        with self._associated(entity, handlers, [role]) as association:
            for _ in association.send_c_get(query, StudyRootQueryRetrieveInformationModelGet):
                pass
        return next((item for item in got if str(item.SOPInstanceUID) == uids[2]), None)

    @contextmanager
    def _associated(
        self, entity: AE, handlers: Iterable[object] = (), roles: Iterable[object] = ()
    ) -> Iterator[Association]:
        association = associate(self._destination, entity, handlers, roles)
        try:
            yield association
        except (RuntimeError, ValueError) as fault:
            # No accepted context, or the association ended: pynetdicom says either by these.
            raise DeliveryError(f"{self._destination.name} does not do this ({fault})") from None
        finally:
            if association.is_established:
                association.release()
