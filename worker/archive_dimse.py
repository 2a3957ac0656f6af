"""An archive over DIMSE: Query/Retrieve SCU (PS3.4 C), study root, by C-GET or C-MOVE.

For C-GET the storage classes of radiographs are proposed with the role of an SCP (PS3.7 D.3.3.4), each in
every transfer syntax that we decode, so that an archive gives its films as it keeps them.
"""

from collections.abc import Iterator
from typing import Any, Self

from pydicom import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import PYNETDICOM_IMPLEMENTATION_UID, PYNETDICOM_IMPLEMENTATION_VERSION, evt
from pynetdicom.events import Event
from pynetdicom.presentation import build_context, build_role
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from service.core.destination import Destination
from service.core.eligibility import RADIOGRAPH_CLASSES
from service.core.errors import DeliveryError, HilumError
from service.core.file_meta import FileMeta, written_file_meta
from service.core.syntaxes import OFFERED
from worker.archive import ArchiveError, Door, Given, PastSeries, PastStudy
from worker.association import associate, requestor

_FIND = StudyRootQueryRetrieveInformationModelFind
_GET = StudyRootQueryRetrieveInformationModelGet
_MOVE = StudyRootQueryRetrieveInformationModelMove
_PENDING = (0xFF00, 0xFF01)
_WARNING = 0xB000
# Cancelled (Orthanc's word for it), out of resources, and a warning.
_CUT = (0xFE00, 0xA700, 0xB000)
_UNKNOWN_DESTINATION = 0xA801
_DAY = 24 * 60
# A film may come from a tape: between two signs of life of a retrieval.
_RETRIEVE_SECONDS = 300
_FIND_SECONDS = 60


class DimseArchive:
    """One association with an archive.

    Parameters
    ----------
    source
        The destination that is asked.
    ae_title
        Ours, as calling AE title and as the destination of C-MOVE.
    way
        "get", "move", or "auto": C-GET where it is accepted.

    Raises
    ------
    ArchiveError
        When no association comes about, or the archive does not take part in queries and this way.
    """

    def __init__(self, source: Destination, ae_title: str, way: str) -> None:
        self._name, self._ae_title = source.name, ae_title
        self._door: Door | None = None
        self._taken, self._fault = 0, ""
        entity = requestor(ae_title)
        models = [_FIND, *([_GET] if way != "move" else []), *([_MOVE] if way != "get" else [])]
        contexts = [
            build_context(model, [ExplicitVRLittleEndian, ImplicitVRLittleEndian]) for model in models
        ]
        roles = []
        if way != "move":
            # Of a context with several syntaxes it would choose one, and could not give films in another.
            contexts += [
                build_context(sop_class, [syntax]) for sop_class in RADIOGRAPH_CLASSES for syntax in OFFERED
            ]
            roles = [build_role(sop_class, scp_role=True) for sop_class in RADIOGRAPH_CLASSES]
        entity.requested_contexts = contexts
        try:
            self._association = associate(source, entity, [(evt.EVT_C_STORE, self._on_store)], roles)
        except DeliveryError as fault:
            raise ArchiveError(str(fault)) from None
        accepted = self._association.accepted_contexts
        models = [context.abstract_syntax for context in accepted if context.as_scu]
        can_get = _GET in models and any(context.as_scp for context in accepted)
        self.by_move = way == "move" or (way == "auto" and not can_get)
        lacking = [
            said
            for said, there in (
                ("queries (C-FIND, study root)", _FIND in models),
                ("C-MOVE" if self.by_move else "C-GET", _MOVE in models if self.by_move else can_get),
            )
            if not there
        ]
        if lacking:
            self._association.release()
            raise ArchiveError(f"{self._name} does not accept {' and '.join(lacking)} from {ae_title}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._association.is_established:
            self._association.release()

    def studies(self, date: str, modality: str) -> tuple[list[PastStudy], bool]:
        """Return the studies of a day; see `worker.archive.Archive`.

        Many archives give so many answers and no more, most of them without a word. So a day with a great or
        a round number of them is asked for again in halves, down to minutes.
        """
        told = self._ask(date, modality, 0, _DAY)
        found, is_cut = self._studies(date, modality, 0, _DAY, told)
        return list(found.values()), is_cut

    def series(self, study_instance_uid: str) -> list[PastSeries]:
        """Return the series of a study; see `worker.archive.Archive`."""
        query = _identifier("SERIES", StudyInstanceUID=study_instance_uid)
        query.SeriesInstanceUID = query.Modality = query.BodyPartExamined = ""
        found, _ = self._find(query)
        return [
            PastSeries(
                str(item.SeriesInstanceUID),
                str(item.get("Modality") or ""),
                str(item.get("BodyPartExamined") or ""),
            )
            for item in found
            if item.get("SeriesInstanceUID")
        ]

    def retrieve(self, study_instance_uid: str, series_instance_uid: str, door: Door) -> Given:
        """Let the objects of a series come; see `worker.archive.Archive`."""
        query = _identifier(
            "SERIES", StudyInstanceUID=study_instance_uid, SeriesInstanceUID=series_instance_uid
        )
        self._door, self._taken, self._fault = door, 0, ""
        try:
            last = self._last(query)
        finally:
            self._door = None
        status = int(last.Status)
        missed = int(last.get("NumberOfFailedSuboperations") or 0)
        came = int(last.get("NumberOfCompletedSuboperations") or 0) if self.by_move else self._taken
        came += int(last.get("NumberOfWarningSuboperations") or 0) if self.by_move else 0
        if status not in (0x0000, _WARNING):
            raise ArchiveError(self._refusal(status), of_study=True)
        return Given(came, missed, self._fault or ("the archive could not send all of it" if missed else ""))

    def _last(self, query: Dataset) -> Dataset:
        """Retrieve, and return the last status."""
        self._check()
        patience, self._association.dimse_timeout = self._association.dimse_timeout, _RETRIEVE_SECONDS
        last = Dataset()
        try:
            responses = (
                self._association.send_c_move(query, self._ae_title, _MOVE)
                if self.by_move
                else self._association.send_c_get(query, _GET)
            )
            for status, _ in responses:
                last = status
        except (RuntimeError, ValueError) as fault:
            raise ArchiveError(f"{self._name} broke off a retrieval ({type(fault).__name__})") from None
        finally:
            self._association.dimse_timeout = patience
        if "Status" not in last:
            raise ArchiveError(f"{self._name} did not answer a retrieval in time", of_study=True)
        return last

    def _refusal(self, status: int) -> str:
        if status == _UNKNOWN_DESTINATION:
            return f"{self._name} does not know where {self._ae_title} is: enter it there, with host and port"
        verb = "C-MOVE" if self.by_move else "C-GET"
        return f"{self._name} answered {status:04X} to {verb}{f' ({self._fault})' if self._fault else ''}"

    def _on_store(self, event: Event) -> int:
        """Take what comes by C-GET; whatever goes wrong is this object's status."""
        request: Any = event.request
        if self._door is None:
            return HilumError.dimse_status
        file = self._door.new_file(part10=False)
        try:
            syntax = UID(event.context.transfer_syntax)
            meta = FileMeta(request.AffectedSOPClassUID, request.AffectedSOPInstanceUID, syntax)
            ours = PYNETDICOM_IMPLEMENTATION_UID, PYNETDICOM_IMPLEMENTATION_VERSION
            file.begin(written_file_meta(meta, *ours, event.assoc.acceptor.ae_title.strip()), syntax)
            file.write(request.DataSet.getbuffer())
            file.flush()
            if file.fault is not None:
                raise file.fault
            self._door.take(file, str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID))
        except HilumError as fault:
            self._fault = str(fault)
            return fault.dimse_status
        finally:
            file.close()
        self._taken += 1
        return 0x0000

    def _studies(
        self, date: str, modality: str, begin: int, end: int, told: tuple[dict[str, PastStudy], bool]
    ) -> tuple[dict[str, PastStudy], bool]:
        """Return all studies of a part of a day, from what the archive `told` of it; see `studies`."""
        found, is_cut = told
        if not is_cut or end - begin <= 1:
            return told
        middle = (begin + end) // 2
        halves = [(part, self._ask(date, modality, *part)) for part in ((begin, middle), (middle, end))]
        if all(set(half) == set(found) for _, (half, _) in halves):
            return told  # it takes no notice of the time
        is_cut = False
        for part, half in halves:
            more, is_half_cut = self._studies(date, modality, *part, half)
            found, is_cut = found | more, is_cut or is_half_cut
        return found, is_cut

    def _ask(self, date: str, modality: str, begin: int, end: int) -> tuple[dict[str, PastStudy], bool]:
        """Return what the archive tells of a part of a day, and whether there may be more."""
        query = _identifier("STUDY", StudyDate=date, ModalitiesInStudy=modality)
        query.StudyTime = "" if (begin, end) == (0, _DAY) else _times(begin, end)
        query.StudyInstanceUID = query.PatientBirthDate = ""
        answers, is_cut = self._find(query)
        found = {study.study_instance_uid: study for study in _past(answers, modality)}
        return found, is_cut or _is_suspicious(len(answers))

    def _find(self, query: Dataset) -> tuple[list[Dataset], bool]:
        """Return what is found, and whether the archive says that there is more."""
        self._check()
        patience, self._association.dimse_timeout = self._association.dimse_timeout, _FIND_SECONDS
        found: list[Dataset] = []
        try:
            for status, item in self._association.send_c_find(query, _FIND):
                if "Status" not in status:
                    raise ArchiveError(f"{self._name} did not answer a query in time")
                code = int(status.Status)
                if code in _PENDING:
                    found += [] if item is None else [item]
                elif found and code in _CUT:
                    return found, True
                elif code != 0x0000:
                    raise ArchiveError(f"{self._name} answered {code:04X} to a query")
        except RuntimeError:
            raise ArchiveError(f"{self._name} broke off a query") from None
        finally:
            self._association.dimse_timeout = patience
        return found, False

    def _check(self) -> None:
        if not self._association.is_established:
            raise ArchiveError(f"{self._name} ended the association")


def _identifier(level: str, **keys: str) -> Dataset:
    identifier = Dataset()
    identifier.SpecificCharacterSet = "ISO_IR 192"
    identifier.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(identifier, keyword, value)
    return identifier


def _past(answers: list[Dataset], modality: str) -> Iterator[PastStudy]:
    """Yield what answers say; an archive that takes no notice of the modality tells more than was asked."""
    for item in answers:
        said = item.get("ModalitiesInStudy") or ()
        modalities = [said] if isinstance(said, str) else list(said)
        if item.get("StudyInstanceUID") and (not modalities or modality in modalities):
            yield PastStudy(
                str(item.StudyInstanceUID),
                str(item.get("StudyDate") or ""),
                str(item.get("PatientBirthDate") or ""),
            )


def _times(begin: int, end: int) -> str:
    """Return a range of Study Time (PS3.4 C.2.2.2.5) from minutes since midnight, the end not within."""
    last = end - 1
    return f"{begin // 60:02}{begin % 60:02}00-{last // 60:02}{last % 60:02}59.999999"


def _is_suspicious(answers: int) -> bool:
    """Return whether so many answers may be as many as an archive gives: limits are round or great."""
    return answers >= 100 or (answers >= 10 and answers % 5 == 0)
