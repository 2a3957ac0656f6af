"""Ledgers on both databases, and an API in this process over one with three studies."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from service.api.app import create_app
from service.core.ledger import Ledger, now
from service.core.receive import Arrival, Intake
from service.core.settings import load
from service.core.spool import Spool
from service.core.tables import Instance
from tests import factories
from tests.ledgers import migrated


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a migrated, empty ledger."""
    if request.param == "sqlite":
        found = f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    else:
        found = request.getfixturevalue("postgresql")
    migrated(found)
    return found


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    opened = Ledger(url)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def three_studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder to be copied."""
    settings = load(data_dir=tmp_path_factory.mktemp("three-studies"), min_free_bytes=0)
    migrated(settings.sqlalchemy_url)
    ledger, spool = Ledger(settings.sqlalchemy_url), Spool(settings.data_dir)
    spool.make()
    intake = Intake(ledger, spool, settings)
    for seed in range(3):
        film = factories.phantom_chest(seed, PatientName="Canary^Yellow", PatientID=f"CANARY{seed}")
        path = factories.write(film, spool.incoming)
        intake.receive(Arrival(path, "TEST", film.SOPClassUID, film.SOPInstanceUID))
    ledger.close()
    return settings.data_dir


@pytest.fixture
def client(tmp_path: Path, three_studies: Path) -> Iterator[Callable[..., Any]]:
    """Make clients of an API with three studies: its ledger is `client.ledger`, its folder `client.data_dir`.

    Keywords are settings.
    """
    folder = tmp_path / "data"
    shutil.copytree(three_studies, folder)
    ledger = Ledger(load(data_dir=folder).sqlalchemy_url)
    with ledger.write() as session:
        # They came just now: work that waits for a minute is a fault.
        session.execute(update(Instance).values(ready_at=now()))

    def make(base_url: str = "http://127.0.0.1", rates: Any = None, **settings: object) -> Any:
        app = create_app(load(data_dir=folder, min_free_bytes=0, **settings), ledger, rates=rates)
        # A stream of events ends with what was missed: this client waits for the end of every answer.
        app.state.feed.close()
        made = TestClient(app, base_url=base_url)
        made.ledger, made.data_dir = ledger, folder
        return made

    yield make
    ledger.close()
