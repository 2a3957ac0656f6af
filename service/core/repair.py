"""What a crash leaves in the data folder: files that no row of the ledger names, and rows without their file.

Every step writes its file first and its row second, so a crash between the two leaves a file too many. What
was received is adopted; what was made of it is made again by its lease, and the first one removed.

Several schedulers and hosts may do this at once, beside listeners and workers: adopting is safe at any moment
(`Intake.adopt`), and a file that was made is removed only long after its writer's lease has ended.
"""

import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import structlog
from sqlalchemy import case, or_, select

from service.core.errors import OutOfResources, Refused
from service.core.incoming import abandoned
from service.core.leases import FILE_GONE
from service.core.ledger import Ledger, record_event
from service.core.receive import Intake
from service.core.settlement import settle
from service.core.spool import FOLDERS, Spool
from service.core.states import REPORTABLE_INSTANCES, UNFINISHED_INSTANCES
from service.core.tables import Base, Instance, Study

# No work lasts so long: leases end after seconds, tasks and statements after minutes.
STALE_SECONDS = 3600.0
_HEX = "0123456789abcdef"
# Nothing else in the data folder is ours to touch.
_OUR_NAME = re.compile(r"[0-9a-f]{32}\.[a-z.]+")
_PAUSE_SECONDS = 0.1
# A data folder that is not mounted must not stir up every study.
_MOST_MISSING = 100
_IN_USE = (*UNFINISHED_INSTANCES, *REPORTABLE_INSTANCES)
_log = structlog.get_logger()


@dataclass
class Repaired:
    """What a round found."""

    adopted: int = 0
    removed: int = 0
    missing: int = 0


def differences(ledger: Ledger, spool: Spool) -> Iterator[tuple[set[str], set[str]]]:
    """Yield the files that no row names and the paths of rows whose file is gone, a sixteenth at a time.

    Files are listed before the ledger is asked, so one that is named meanwhile is not among them; one that
    still waits for its row is (`waits_for_repair`).
    """
    naming = [
        [column for column in table.columns if column.name == "path" or column.name.endswith("_path")]
        for table in Base.metadata.sorted_tables
    ]
    for digit in _HEX:
        there = {
            path for folder in FOLDERS for second in _HEX for path in _files(spool, folder, digit + second)
        }
        named: set[str] = set()
        for columns in filter(None, naming):  # each table is gone through once, whatever it names
            here = {column: column.like(f"%/{digit}_/%") for column in columns}
            names = select(*(case((is_here, column)) for column, is_here in here.items()))
            with ledger.read() as session:
                rows = session.execute(names.where(or_(*here.values())))
                named.update(name for row in rows for name in row if name)
        yield there - named, {path for path in named - there if not spool.absolute(path).exists()}


def waits_for_repair(spool: Spool, path: str) -> bool:
    """Return whether a file that no row names has been left behind, rather than not named yet.

    Raises
    ------
    OSError
        When it cannot be looked at, or is gone.
    """
    if path.startswith("spool/"):
        return abandoned(spool.absolute(path))
    return spool.absolute(path).stat().st_mtime < time.time() - STALE_SECONDS


class Repair:
    """Brings data folder and ledger together again, in small steps."""

    def __init__(self, ledger: Ledger, spool: Spool, intake: Intake) -> None:
        self._ledger = ledger
        self._spool = spool
        self._intake = intake

    def round(self, stopped: threading.Event) -> Repaired:
        """Go once through all files, or until `stopped` is set.

        Raises
        ------
        SQLAlchemyError, OSError
            When the ledger or the data folder cannot be read now.
        """
        found = Repaired()
        self._unsay_missing()
        for orphans, missing in differences(self._ledger, self._spool):
            for path in sorted(orphans):
                self._repair(path, found)
            self._say_missing(sorted(missing), _MOST_MISSING - found.missing)
            found.missing += len(missing)
            if stopped.wait(_PAUSE_SECONDS):
                break
        if found != Repaired():
            _log.warning("repair", **vars(found))
        return found

    def _repair(self, path: str, found: Repaired) -> None:
        try:
            if not waits_for_repair(self._spool, path):
                return
            if PurePosixPath(path).match("spool/*/*.dcm"):
                self._intake.adopt(path)
                found.adopted += 1
                return
        except (FileNotFoundError, OutOfResources):
            return  # its process was quicker, or it has to wait for the next round
        except Refused as fault:
            _log.warning("repair.unreadable", file=path, reason=str(fault))
        except OSError as fault:
            _log.warning("repair.not_read", file=path, error=type(fault).__name__)
            return
        self._spool.remove(path)
        found.removed += 1

    def _say_missing(self, paths: Sequence[str], most: int) -> None:
        """Let the studies of received files that are gone ask for a person's attention."""
        new = or_(Instance.last_error.is_(None), Instance.last_error != FILE_GONE)
        for path in paths[: max(0, most)]:
            with self._ledger.read() as session:
                row = session.execute(
                    select(Instance.id, Instance.study_id).where(
                        Instance.spool_path == path, Instance.state.in_(_IN_USE), new
                    )
                ).first()
            if row is not None:
                self._set_missing(*row, path, FILE_GONE)

    def _unsay_missing(self) -> None:
        with self._ledger.read() as session:
            said = session.execute(
                select(Instance.id, Instance.study_id, Instance.spool_path).where(
                    Instance.last_error == FILE_GONE, Instance.state.in_(_IN_USE)
                )
            ).all()
        for instance_id, study_id, path in said:
            if path is not None and self._spool.absolute(path).exists():
                self._set_missing(instance_id, study_id, path, None)

    def _set_missing(self, instance_id: int, study_id: int, path: str, error: str | None) -> None:
        with self._ledger.write() as session:
            study = session.get(Study, study_id, with_for_update=True)
            instance = session.get(Instance, instance_id)
            if study is None or instance is None or study.removing or instance.spool_path != path:
                return  # its bytes came again, or go because they should
            instance.last_error = error
            record_event(session, study, "missing" if error else "found", error or "its file is there again")
            settle(session, study)


def _files(spool: Spool, folder: str, part: str) -> Iterator[str]:
    try:
        names = os.listdir(spool.root / folder / part)  # noqa: PTH208
    except FileNotFoundError:
        return
    for name in names:
        if _OUR_NAME.fullmatch(name):
            yield f"{folder}/{part}/{name}"
