"""DIMSE as requestor: Storage SCU, Query SCU and Storage Commitment SCU over one association.

Proposed are just the contexts that are needed; what the destination rejects is not used.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from pydicom import Dataset, dcmread
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import _config, evt
from pynetdicom.events import Event
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
    StudyRootQueryRetrieveInformationModelFind,
)

from service.core.destination import SYNTAXES, Destination
from service.core.errors import NotAccepted, PermanentDelivery, TransientDelivery, Unanswered
from service.core.file_meta import has_file_meta
from worker.association import NOT_ACCEPTED, associate, requestor
from worker.peer import IDENTITY, Sendable, Sent, trusted

# What is sent by its path is not parsed.
_config.STORE_SEND_CHUNKED_DATASET = True
_UNCOMPRESSED = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
_PENDING = (0xFF00, 0xFF01)
_REQUEST_STORAGE_COMMITMENT = 1  # PS3.4 J.3.2.1
_QUERY_SECONDS = 20
# A destination that takes queries and answers none, so often in a row, is asked no more for so long: some
# accept the context from everybody and abort when somebody unknown asks.
_MOST_UNANSWERED, _MUTE_SECONDS = 2, 600.0
_unanswered: dict[str, tuple[int, float]] = {}
OnCommitment = Callable[[Event], int]


class DimsePeer:
    """One association with a destination.

    Parameters
    ----------
    objects
        What will be stored; their classes and syntaxes are proposed.
    asks
        Whether queries and storage commitment are proposed.
    on_commitment
        Takes the N-EVENT-REPORT that comes over this association, and returns the status to answer.

    Raises
    ------
    TransientDelivery
        When no association comes about, or a file of its TLS can't be used.
    NotAccepted
        When the destination accepts none of the objects' SOP classes.
    """

    def __init__(
        self,
        destination: Destination,
        calling_ae_title: str,
        objects: Iterable[Sendable] = (),
        on_commitment: OnCommitment | None = None,
        *,
        asks: bool = True,
    ) -> None:
        self._name = destination.name
        objects = list(objects)
        entity = requestor(calling_ae_title)
        entity.requested_contexts = [
            build_context(sop_class, syntaxes)
            for sop_class, syntax in dict.fromkeys(
                (item.sop_class_uid, item.transfer_syntax_uid) for item in objects
            )
            if (syntaxes := _offered(destination, syntax))
        ]
        asked = [StorageCommitmentPushModel] if asks else []
        self._mute = self._is_mute()
        if asks and not self._mute:
            asked.append(StudyRootQueryRetrieveInformationModelFind)
        handlers: list[Any] = []
        if on_commitment is not None:
            handlers.append((evt.EVT_N_EVENT_REPORT, lambda event: (on_commitment(event), None)))
        for sop_class in asked:
            entity.add_requested_context(sop_class, list(_UNCOMPRESSED))
        self._association = associate(destination, entity, handlers)
        accepted = self._association.accepted_contexts
        self._accepted = {str(context.abstract_syntax) for context in accepted}
        self._as_it_is = {(str(item.abstract_syntax), str(item.transfer_syntax[0])) for item in accepted}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._association.is_established:
            self._association.release()

    @property
    def proves(self) -> bool:
        return self.answers_queries or self.commits or self._mute

    @property
    def answers_queries(self) -> bool:
        return StudyRootQueryRetrieveInformationModelFind in self._accepted

    @property
    def commits(self) -> bool:
        return StorageCommitmentPushModel in self._accepted

    def store(self, item: Sendable) -> Sent:
        """Send one object (PS3.4 B.2); see `worker.peer.Peer`."""
        if not any((item.sop_class_uid, way) in self._as_it_is for way in _ways(item.transfer_syntax_uid)):
            return Sent(None, NotAccepted(NOT_ACCEPTED))
        if not self._association.is_established:
            ended = TransientDelivery("the association ended before the object was sent")
            return Sent(None, ended, tried=False)
        try:
            status = self._association.send_c_store(self._read(item))
        except RuntimeError:
            return Sent(None, TransientDelivery("the association ended while the object was sent"))
        except Exception as fault:  # a file that cannot be read
            return Sent(None, PermanentDelivery(f"the object cannot be sent ({type(fault).__name__})"))
        if "Status" not in status:
            return Sent(None, TransientDelivery("the destination did not answer in time"))
        return Sent(int(status.Status))

    def study(self, study_instance_uid: str) -> Mapping[str, str] | None:
        """Ask by C-FIND at study level (PS3.4 C.6.2); see `worker.peer.Peer`."""
        query = Dataset()
        # Many answer in the character set of the question, and lose what does not fit there.
        query.SpecificCharacterSet = "ISO_IR 192"
        query.QueryRetrieveLevel = "STUDY"
        query.StudyInstanceUID = study_instance_uid
        for keyword in IDENTITY:
            setattr(query, keyword, "")
        # Some match loosely, or take no notice of a key.
        found = [
            {keyword: item.get(keyword) for keyword in IDENTITY}
            for item in self._find(query) or []
            if str(item.get("StudyInstanceUID")) == study_instance_uid
        ]
        return trusted(found)

    def holds(self, study_instance_uid: str, series_instance_uid: str, sop_instance_uid: str) -> bool | None:
        """Ask by C-FIND at instance level (PS3.4 C.6.2); see `worker.peer.Peer`."""
        query = Dataset()
        query.QueryRetrieveLevel = "IMAGE"
        query.StudyInstanceUID = study_instance_uid
        query.SeriesInstanceUID = series_instance_uid
        query.SOPInstanceUID = sop_instance_uid
        found = self._find(query)
        if found is None:
            return None
        return any(str(item.get("SOPInstanceUID")) == sop_instance_uid for item in found)

    def request_commitment(self, transaction_uid: str, objects: Iterable[tuple[str, str]]) -> int | None:
        """Ask the destination to take responsibility (N-ACTION, PS3.4 J.3.2); return its status, or None.

        Parameters
        ----------
        objects
            SOP Class UID and SOP Instance UID of each.
        """
        request = Dataset()
        request.TransactionUID = transaction_uid
        request.ReferencedSOPSequence = []
        for sop_class_uid, sop_instance_uid in objects:
            item = Dataset()
            item.ReferencedSOPClassUID = sop_class_uid
            item.ReferencedSOPInstanceUID = sop_instance_uid
            request.ReferencedSOPSequence.append(item)
        try:
            status, _ = self._association.send_n_action(
                request,
                _REQUEST_STORAGE_COMMITMENT,
                StorageCommitmentPushModel,
                StorageCommitmentPushModelInstance,
            )
        except (RuntimeError, ValueError):
            return None
        return int(status.Status) if "Status" in status else None

    def linger(self, done: Callable[[], bool], seconds: float) -> None:
        """Stay associated until `done`, for `seconds` at most: some answer over the same association."""
        end = time.monotonic() + seconds
        while self._association.is_established and not done() and time.monotonic() < end:
            time.sleep(0.02)

    def _read(self, item: Sendable) -> Dataset | Path:
        """Return the object: by its path where its bytes can go as they are, else parsed, to be encoded anew.

        A file from before Part 10 does not say itself how it is encoded.
        """
        if (item.sop_class_uid, item.transfer_syntax_uid) in self._as_it_is and has_file_meta(item.path):
            return item.path
        dataset = dcmread(item.path, force=True)
        dataset.file_meta.TransferSyntaxUID = UID(item.transfer_syntax_uid)
        return dataset

    def _find(self, query: Dataset) -> list[Dataset] | None:
        """Return what is found; None when the destination does not do such queries."""
        if not self.answers_queries:
            return None
        if not self._association.is_established:
            raise TransientDelivery("the association ended before the destination was asked")
        found = []
        patience, self._association.dimse_timeout = self._association.dimse_timeout, _QUERY_SECONDS
        try:
            for status, item in self._association.send_c_find(
                query, StudyRootQueryRetrieveInformationModelFind
            ):
                if "Status" not in status:
                    raise self._no_answer()
                if int(status.Status) in _PENDING:
                    if item is not None:
                        found.append(item)
                elif int(status.Status) != 0x0000:
                    return None
        except RuntimeError:
            raise self._no_answer() from None
        finally:
            self._association.dimse_timeout = patience
        _unanswered.pop(self._name, None)
        return found

    def _no_answer(self) -> Unanswered:
        count, _ = _unanswered.get(self._name, (0, 0.0))
        _unanswered[self._name] = count + 1, time.monotonic() + _MUTE_SECONDS
        return Unanswered("the destination did not answer a query")

    def _is_mute(self) -> bool:
        count, until = _unanswered.get(self._name, (0, 0.0))
        return count >= _MOST_UNANSWERED and time.monotonic() < until


def _ways(transfer_syntax_uid: str) -> tuple[str, ...]:
    """Return the transfer syntaxes in which such an object can go without being transcoded."""
    return _UNCOMPRESSED if transfer_syntax_uid in _UNCOMPRESSED else (transfer_syntax_uid,)


def _offered(destination: Destination, transfer_syntax_uid: str) -> list[str]:
    """Return those of the destination's transfer syntaxes in which such an object can go.

    Its settings speak of what is made here; a film that is sent on keeps a syntax of its own.
    """
    can = _ways(transfer_syntax_uid)
    if transfer_syntax_uid not in SYNTAXES.values():
        return list(can)
    return [syntax for syntax in can if syntax in destination.offers]
