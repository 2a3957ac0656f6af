"""The work of the queues without Celery, and a network that says what the test wants."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydicom import Dataset
from sqlalchemy import select, update

from model.prediction import Finding, Prediction
from service.core.completion import conclude_due_studies
from service.core.ledger import now
from service.core.receive import Arrival, Intake
from service.core.settings import load
from service.core.tables import Analysis, Circuit, Instance, Outbox, Report, Revision, Study
from tests import factories
from tests.ledgers import migrated
from worker.context import Context
from worker.tasks import decode, deliver, infer, report


class Network:
    """Stands in for `model.predict.Predictor`: every film has this probability, and a focus on its left."""

    def __init__(self, probability: float = 0.9) -> None:
        self.probability = probability

    def predict(self, films: Sequence[npt.NDArray[Any]]) -> list[Prediction]:
        focus = np.zeros((16, 12), np.float32)
        focus[6:10, 2:5] = 1
        finding = Finding.PRESENT if self.probability >= 0.5 else Finding.ABSENT
        return [Prediction(self.probability, finding, None, focus, None, (), 0.1) for _ in films]


def opened_at(folder: Path, **given: Any) -> Context:
    """Return a worker's context on a data folder below `folder`, its ledger migrated; the test closes it."""
    settings = load(data_dir=folder / "data", study_quiet_seconds=0, min_free_bytes=0, **given)
    migrated(settings.sqlalchemy_url)
    return Context.open(settings)


def says(monkeypatch: pytest.MonkeyPatch, probability: float) -> None:
    """Let the network say this of every film."""
    monkeypatch.setattr(infer, "_predictor", lambda *_: Network(probability))


def film(seed: int | str = 0, **options: Any) -> Dataset:
    """Return a chest film of a quarter of its size, which decodes in a tenth of the time."""
    return factories.chest_film(seed, rows=489, columns=460, **options)


def receive(context: Context, *films: Dataset) -> None:
    intake = Intake(context.ledger, context.spool, context.settings)
    for film in films:
        path = factories.write(film, context.spool.incoming)
        intake.receive(Arrival(path, "TEST", film.SOPClassUID, film.SOPInstanceUID))


def work(context: Context) -> None:
    """Do once what every queue but `deliver` and the scheduler would do."""
    for _ in range(4):
        decode.run(context)
    infer.run(context)
    every = context.settings.reports_every_radiograph
    conclude_due_studies(context.ledger, report_every_radiograph=every)
    report.run(context)


def send_all(context: Context, rounds: int = 3) -> None:
    """Deliver what waits; a round may put more into the outbox."""
    for _ in range(rounds):
        hurry(context, Outbox)
        for _ in range(1 + len(context.settings.destinations)):
            deliver.run(context)


def hurry(context: Context, *tables: Any) -> None:
    """Let what waits for its next attempt be due now."""
    with context.ledger.write() as session:
        for table in tables or (Instance, Analysis, Revision):
            session.execute(update(table).values(ready_at=now(), lease_until=None))
        session.execute(update(Circuit).values(open_until=now()))


def instances(context: Context) -> list[Instance]:
    with context.ledger.read() as session:
        return list(session.scalars(select(Instance).order_by(Instance.id)))


def study(context: Context) -> Study:
    """Return the newest study."""
    with context.ledger.read() as session:
        return session.scalars(select(Study).order_by(Study.id.desc()).limit(1)).one()


def reports(context: Context) -> list[Report]:
    with context.ledger.read() as session:
        return list(session.scalars(select(Report).order_by(Report.id)))
