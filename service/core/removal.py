"""How the files of a study go: what `service.core.retention` and `service.core.purge` have in common.

The ledger says first that they are going (`Study.removing`), then the files go, then the ledger names them
no more. After a kill in between the scheduler goes on from there, and nothing of the study is taken in
meanwhile, so that no new file goes with the old ones.
"""

import hmac
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, select, update
from sqlalchemy.orm import Session

from service.core.copies import drop_pending
from service.core.feedback import forget_readers
from service.core.settlement import deliveries_of, withdraw, withdraw_revision
from service.core.spool import Spool, sync_folder
from service.core.states import UNFINISHED_INSTANCES, DeliveryState, InstanceState
from service.core.tables import Analysis, Installation, Instance, Report, Study, Subject

_PSEUDONYM = "hmac-sha256:"


@dataclass(frozen=True)
class Removed:
    """How much was removed: files, and their bytes."""

    files: int = 0
    bytes: int = 0

    def __add__(self, other: "Removed") -> "Removed":
        return Removed(self.files + other.files, self.bytes + other.bytes)


def files_of(session: Session, study_id: int) -> set[str]:
    """Return the paths of everything that is kept of a study; no other study names any of them."""
    of_study = Instance.study_id == study_id
    rows: list[Row[Any]] = []
    for statement in (
        select(Instance.spool_path, Instance.film_path, Instance.picture_path).where(of_study),
        select(Analysis.activation_path, Analysis.overlay_path).join(Instance).where(of_study),
        select(Report.path).where(Report.study_id == study_id),
    ):
        rows += session.execute(statement).all()
    return {path for row in rows for path in row if path}


def whose(session: Session, study_id: int) -> tuple[list[tuple[str, str]], Counter[str]]:
    """Return a study's patients, by ID and issuer, and its numbers of instances by SOP Class UID."""
    subjects = select(Subject.patient_id, Subject.issuer_of_patient_id).where(Subject.study_id == study_id)
    instances = select(Instance.sop_class_uid, Instance.sop_instance_uid)
    rows = session.execute(instances.where(Instance.study_id == study_id).distinct())
    return [(row[0], row[1]) for row in session.execute(subjects)], Counter(row[0] for row in rows)


def size_of(spool: Spool, paths: Iterable[str]) -> Removed:
    """Return how much there is of `paths`."""
    total = Removed()
    for path in paths:
        with suppress(FileNotFoundError):
            total += Removed(1, spool.absolute(path).stat().st_size)
    return total


def remove_files(spool: Spool, paths: Iterable[str]) -> Removed:
    """Remove files, for good when this returns; what is gone already is fine.

    Raises
    ------
    OSError
        When one of them cannot be removed now.
    """
    paths = sorted(paths)
    removed = size_of(spool, paths)
    for path in paths:
        spool.remove(path)
    for folder in {spool.absolute(path).parent for path in paths}:
        with suppress(FileNotFoundError):
            sync_folder(folder)
    return removed


def forget_files(session: Session, study: Study) -> None:
    """Let the ledger name no file of a study any more, nor its patient, nor what readers wrote of it."""
    forget_readers(session, study.id)
    instances = select(Instance.id).where(Instance.study_id == study.id)
    for statement in (
        update(Instance)
        .where(Instance.study_id == study.id)
        .values(spool_path=None, film_path=None, picture_path=None),
        update(Analysis)
        .where(Analysis.instance_id.in_(instances))
        .values(activation_path=None, overlay_path=None),
        update(Report).where(Report.study_id == study.id).values(path=""),
    ):
        session.execute(statement.execution_options(synchronize_session=False))
    for subject in session.scalars(select(Subject).where(Subject.study_id == study.id)):
        if not subject.patient_id.startswith(_PSEUDONYM):
            subject.patient_id = pseudonym(session, subject.patient_id, subject.issuer_of_patient_id)
        subject.issuer_of_patient_id = subject.patient_name = subject.patient_birth_date = ""
        subject.patient_sex = subject.accession_number = ""
        subject.study_date = subject.study_time = subject.study_identifier = ""
        subject.study_description = subject.referring_physician_name = ""
        subject.timezone_offset_from_utc = ""
        subject.told = subject.told_by = None


def pseudonym(session: Session, patient_id: str, issuer_of_patient_id: str) -> str:
    """Return what stands for a patient whose study's files are gone: a late image must not be another's.

    A hash keyed with this installation's identity; who holds the ledger can try all patient IDs.
    """
    key = session.scalars(select(Installation.identity)).one()
    patient = f"{issuer_of_patient_id}\0{patient_id}".encode()
    return _PSEUDONYM + hmac.digest(key.encode(), patient, "sha256").hex()


def stop_work(session: Session, study: Study, why: str) -> list[str]:
    """Let nothing of a study be analysed, built or sent any more, and return what was not done, in words.

    Work that is under way finds its lease lost and removes what it wrote.
    """
    undone = []
    unfinished = session.scalars(
        select(Instance)
        .where(Instance.study_id == study.id, Instance.state.in_(UNFINISHED_INSTANCES))
        .with_for_update()
    ).all()
    for instance in unfinished:
        drop_pending(session, instance)
        instance.state, instance.reason = InstanceState.FAILED, why
        instance.lease_token += 1
        instance.lease_owner = instance.lease_until = None
    if unfinished:
        undone.append(f"{len(unfinished)} image(s) not analysed")
    withdraw_revision(session, study, why)
    for delivery in deliveries_of(session, study.id):
        if delivery.state in (DeliveryState.PENDING, DeliveryState.PARKED):
            undone.append(
                f"{delivery.report.kind} not delivered to {delivery.destination}"
                f" ({delivery.last_error or 'not tried'})"
            )
            withdraw(delivery, f"withdrawn: {why}")
    study.due_at = study.first_eligible_at = None
    return undone


def shown_bytes(count: int) -> str:
    """Return a size as people read it."""
    return f"{count / 1e6:,.1f} MB" if count < 10**9 else f"{count / 1e9:,.1f} GB"
