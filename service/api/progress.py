"""What of a study is still to be done, as the ledger has it: what an explanation needs beside its JSON."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.core.ledger import now
from service.core.states import AnalysisState, InstanceState, RevisionState
from service.core.tables import Analysis, Instance, Revision, Study


@dataclass(frozen=True)
class Waiting:
    """One piece of work that is not done: of which stage, how often it was begun, and what went wrong."""

    stage: str
    attempts: int = 0
    last_error: str | None = None
    at_work: bool = False


@dataclass(frozen=True)
class Progress:
    """What is still to be done; `due_at` is when the study is concluded, None when it is."""

    due_at: datetime | None = None
    expired_at: datetime | None = None
    waiting: Sequence[Waiting] = ()


def progress_of(session: Session, study_instance_uid: str) -> Progress:
    """Return what is still to be done for a study that is in the ledger."""
    study = session.scalars(select(Study).where(Study.study_instance_uid == study_instance_uid)).one()
    rows: list[tuple[str, Instance | Analysis | Revision]] = [
        ("decode", row)
        for row in session.scalars(
            select(Instance).where(Instance.study_id == study.id, Instance.state == InstanceState.RECEIVED)
        )
    ]
    rows += [
        ("infer", row)
        for row in session.scalars(
            select(Analysis)
            .join(Instance)
            .where(Instance.study_id == study.id, Analysis.state == AnalysisState.PENDING)
        )
    ]
    rows += [
        ("report", row)
        for row in session.scalars(
            select(Revision).where(Revision.study_id == study.id, Revision.state == RevisionState.PENDING)
        )
    ]
    moment = now()
    waiting = [
        Waiting(stage, row.attempts, row.last_error, row.lease_until is not None and row.lease_until > moment)
        for stage, row in rows
    ]
    return Progress(study.due_at, study.expired_at, waiting)
