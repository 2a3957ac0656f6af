"""What is left of an erased study: its UIDs, when, by whom and why; nothing of the patient.

It stands in the ledger, where every arrival is held against it, and in ``erased.jsonl`` of the data folder,
which is only ever appended to: a ledger that is restored from an older backup erases those studies again.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import delete, or_, select
from sqlalchemy.orm import Session

from service.core.ledger import now
from service.core.spool import Spool, sync_folder
from service.core.tables import Tombstone, TombstoneInstance


@dataclass(frozen=True)
class Erasure:
    """One line of the file: a study was erased, or (`erased` False) may come again.

    `at` is in ISO 8601; `reason` is what a person gave, such as a ticket's number.
    """

    study_instance_uid: str
    sop_instance_uids: Sequence[str]
    at: str
    by: str
    reason: str
    erased: bool = True


class ErasureFile:
    """``erased.jsonl``."""

    def __init__(self, spool: Spool) -> None:
        self._path: Path = spool.root / "erased.jsonl"

    def append(self, erasure: Erasure) -> None:
        """Write a line, on disk when this returns."""
        with self._locked() as descriptor:
            size = os.fstat(descriptor).st_size
            torn = size and os.pread(descriptor, 1, size - 1) != b"\n"
            line = json.dumps(asdict(erasure), separators=(",", ":"))
            os.write(descriptor, f"{chr(10) if torn else ''}{line}\n".encode())
            os.fsync(descriptor)
        sync_folder(self._path.parent)

    def newest(self) -> dict[str, Erasure]:
        """Return the last word on each study; a line that a power cut tore is left out."""
        found: dict[str, Erasure] = {}
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return found
        for line in lines:
            try:
                erasure = Erasure(**json.loads(line))
            except (ValueError, TypeError):
                continue
            found[erasure.study_instance_uid] = erasure
        return found

    @contextmanager
    def _locked(self) -> Iterator[int]:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)


def tombstone_of(session: Session, study_instance_uid: str) -> Tombstone | None:
    """Return the tombstone of a study, None when it was not erased."""
    return session.scalars(
        select(Tombstone).where(Tombstone.study_instance_uid == study_instance_uid)
    ).one_or_none()


def ignored_as_erased(session: Session, study_instance_uid: str, sop_instance_uid: str) -> bool:
    """Return whether an arrival is not taken in, because its study, or it in another one, was erased.

    It is counted: `Tombstone.ignored`.
    """
    of_instance = select(TombstoneInstance.tombstone_id).where(
        TombstoneInstance.sop_instance_uid == sop_instance_uid
    )
    tombstone = session.scalars(
        select(Tombstone)
        .where(or_(Tombstone.study_instance_uid == study_instance_uid, Tombstone.id.in_(of_instance)))
        .limit(1)
        .with_for_update()
    ).first()
    if tombstone is None:
        return False
    tombstone.ignored += 1
    tombstone.last_ignored_at = now()
    return True


def add_tombstone(session: Session, erasure: Erasure) -> None:
    """Let the study not be taken in again."""
    tombstone = Tombstone(
        study_instance_uid=erasure.study_instance_uid,
        at=datetime.fromisoformat(erasure.at),
        by=erasure.by,
        reason=erasure.reason,
    )
    session.add(tombstone)
    session.flush()
    session.add_all(
        TombstoneInstance(tombstone_id=tombstone.id, sop_instance_uid=uid)
        for uid in sorted(set(erasure.sop_instance_uids))
    )


def remove_tombstone(session: Session, study_instance_uid: str) -> bool:
    """Let the study be taken in again; return whether it was not."""
    tombstone = tombstone_of(session, study_instance_uid)
    if tombstone is None:
        return False
    session.execute(delete(TombstoneInstance).where(TombstoneInstance.tombstone_id == tombstone.id))
    session.delete(tombstone)
    return True
