"""What a film costs does not grow with the ledger: by SQLite's plans, over a ledger with years in it."""

import re
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from service.core.ledger import open_engine
from service.core.states import StudyState
from service.core.tables import Confirmation, Outbox
from service.scheduler.scheduler import give_up_exhausted
from tests.benchmarks.dashboard import fill
from tests.faults.pacs import Pacs
from tests.pipeline import film, hurry, opened_at, receive, says, study, work
from worker.context import Context
from worker.tasks import confirm, deliver

_LARGE = ("study", "subject", "instance", "analysis", "revision", "report", "outbox", "confirmation", "event")


def test_no_step_of_a_film_reads_what_grows_with_the_years(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(monkeypatch, 0.9)
    asked: dict[str, Any] = {}
    with Pacs().serving() as pacs:
        beside = opened_at(tmp_path, destinations=f"PACS={pacs.url}")
        fill(beside.settings.sqlalchemy_url, 1_000, unfinished=0)
        context = Context.open(beside.settings)
        event.listen(
            context.ledger._engine,
            "before_cursor_execute",
            lambda _connection, _cursor, statement, parameters, *_: asked.setdefault(statement, parameters),
        )
        for seed in range(3):
            receive(context, film(seed))
            work(context)
            for _ in range(2):
                hurry(beside, Outbox)
                deliver.run(context)
            hurry(beside, Confirmation)
            confirm.run(context)
            give_up_exhausted(context.ledger)
    assert study(beside).state == StudyState.CONFIRMED
    context.ledger.close()
    beside.ledger.close()
    engine = open_engine(beside.settings.sqlalchemy_url)
    with engine.connect() as connection:
        plans = [
            (plan[3], " ".join(statement.split()))
            for statement, parameters in asked.items()
            if re.match(r"\s*(SELECT|UPDATE|DELETE|WITH)\b", statement)
            for plan in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        ]
    engine.dispose()
    assert len(plans) > 100
    assert [found for found in plans if re.match(rf"SCAN ({'|'.join(_LARGE)})\b", found[0])] == []
