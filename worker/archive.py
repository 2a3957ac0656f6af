"""What a back-fill asks of an archive, whichever way it is reached."""

from dataclasses import dataclass
from typing import Protocol, Self

from service.core.errors import HilumError
from service.core.incoming import IncomingFile


class ArchiveError(HilumError):
    """An archive did not answer a question, or did not give what was asked for; a later try may help.

    `of_study`: the fault is this study's, and the next one may be given all the same.
    """

    code = "archive"
    retry_helps = True

    def __init__(self, message: str, *, of_study: bool = False) -> None:
        super().__init__(message)
        self.of_study = of_study


@dataclass(frozen=True)
class PastStudy:
    """A study as an archive tells of it; what it does not tell is empty."""

    study_instance_uid: str
    study_date: str
    birth_date: str


@dataclass(frozen=True)
class PastSeries:
    """A series as an archive tells of it."""

    series_instance_uid: str
    modality: str
    body_part: str


@dataclass(frozen=True)
class Given:
    """What became of a retrieval: objects that came here, those that did not, and why not."""

    instances: int
    missed: int = 0
    reason: str = ""


class Door(Protocol):
    """Where objects come in that an archive gives over our own association or connection."""

    def new_file(self, *, part10: bool) -> IncomingFile:
        """Return a file in ``incoming/``; `part10`: it gets a whole Part 10 file, else a data set."""

    def take(self, file: IncomingFile, sop_class_uid: str | None, sop_instance_uid: str | None) -> None:
        """Take an object into custody.

        Raises
        ------
        HilumError
            When it is not kept.
        """


class Archive(Protocol):
    """An archive that is connected to; `by_move`: what it gives comes to our listener, not to a `Door`."""

    @property
    def by_move(self) -> bool: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def studies(self, date: str, modality: str) -> tuple[list[PastStudy], bool]:
        """Return the studies of a day with such series, and whether there may be more than it tells.

        Raises
        ------
        ArchiveError
            When it does not answer.
        """

    def series(self, study_instance_uid: str) -> list[PastSeries]:
        """Return the series of a study.

        Raises
        ------
        ArchiveError
            When it does not answer.
        """

    def retrieve(self, study_instance_uid: str, series_instance_uid: str, door: Door) -> Given:
        """Let the objects of a series come.

        Raises
        ------
        ArchiveError
            When it does not answer.
        """
