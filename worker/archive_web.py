"""An archive over DICOMweb: QIDO-RS (PS3.18 10.6) page by page, and WADO-RS (10.4) instance by instance."""

from collections.abc import Iterator, Mapping
from typing import Any, Self

from pydicom.datadict import tag_for_keyword

from service.core.destination import Destination
from service.core.errors import DeliveryError, HilumError
from worker.archive import ArchiveError, Door, Given, PastSeries, PastStudy
from worker.dicomweb import DICOMwebPeer
from worker.dicomweb_answers import text_of, texts_of

_PAGE = 100
_MOST_PAGES = 1000
# Of a film in memory.
_LONGEST_FILM_BYTES = 512 << 20


class WebArchive:
    """A QIDO-RS and WADO-RS server.

    Raises
    ------
    ArchiveError
        When its credentials or a file of its TLS can't be read.
    """

    by_move = False

    def __init__(self, source: Destination, max_object_bytes: int) -> None:
        self._name = source.name
        try:
            self._peer = DICOMwebPeer(
                source, longest_answer_bytes=min(max_object_bytes, _LONGEST_FILM_BYTES) + (1 << 16)
            )
        except DeliveryError as fault:
            raise ArchiveError(str(fault)) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._peer.close()

    def studies(self, date: str, modality: str) -> tuple[list[PastStudy], bool]:
        """Return the studies of a day; see `worker.archive.Archive`."""
        wanted = {
            "StudyDate": date,
            "ModalitiesInStudy": modality,
            "includefield": "PatientBirthDate",
        }
        found = {}
        for match in self._all("/studies", wanted):
            uid, modalities = text_of(match, "StudyInstanceUID"), texts_of(match, "ModalitiesInStudy")
            if uid and (not modalities or modality in modalities):
                found[uid] = PastStudy(uid, text_of(match, "StudyDate"), text_of(match, "PatientBirthDate"))
        return list(found.values()), False

    def series(self, study_instance_uid: str) -> list[PastSeries]:
        """Return the series of a study; see `worker.archive.Archive`."""
        path = f"/studies/{study_instance_uid}/series"
        body_part = f"{tag_for_keyword('BodyPartExamined'):08X}"
        return [
            PastSeries(uid, text_of(match, "Modality"), text_of(match, "BodyPartExamined"))
            for match in self._all(path, {"includefield": body_part})
            if (uid := text_of(match, "SeriesInstanceUID"))
        ]

    def retrieve(self, study_instance_uid: str, series_instance_uid: str, door: Door) -> Given:
        """Let the objects of a series come; see `worker.archive.Archive`."""
        path = f"/studies/{study_instance_uid}/series/{series_instance_uid}/instances"
        came, missed, reason = 0, 0, ""
        for match in list(self._all(path, {})):
            sop_instance_uid = text_of(match, "SOPInstanceUID")
            try:
                content = self._peer.retrieve(study_instance_uid, series_instance_uid, sop_instance_uid)
            except DeliveryError as fault:
                raise ArchiveError(str(fault)) from None
            why = "the archive gave no object" if content is None else _taken(door, content, sop_instance_uid)
            came, missed, reason = came + (not why), missed + bool(why), why or reason
        return Given(came, missed, reason)

    def _all(self, path: str, query: Mapping[str, str]) -> Iterator[Any]:
        """Yield every match; a server that knows no pages answers with all of them, or again and again."""
        seen: set[str] = set()
        for page in range(_MOST_PAGES):
            try:
                found = self._peer.search(path, {**query, "limit": str(_PAGE), "offset": str(page * _PAGE)})
            except DeliveryError as fault:
                raise ArchiveError(str(fault)) from None
            if found is None:
                raise ArchiveError(
                    f"{self._name} does not answer QIDO-RS there: look at its URL and credentials"
                )
            new = [match for match in found if repr(match) not in seen]
            seen.update(map(repr, new))
            yield from new
            if len(found) < _PAGE or not new:
                return


def _taken(door: Door, content: bytes, sop_instance_uid: str) -> str:
    """Take one object in; return why it is not kept, empty when it is."""
    file = door.new_file(part10=True)
    try:
        file.write(content)
        file.flush()
        if file.fault is not None:
            raise file.fault
        door.take(file, None, sop_instance_uid)
    except HilumError as fault:
        return str(fault)
    finally:
        file.close()
    return ""
