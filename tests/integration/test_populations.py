"""Age, sex, scanner and view of a film beside the validated range: ledger, report, API and page."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from fastapi.testclient import TestClient
from pydicom import dcmread
from sqlalchemy import inspect, null, select, text, update

from service.api.app import create_app
from service.core.ledger import _alembic_config, open_engine
from service.core.removal import forget_files
from service.core.settings import load
from service.core.states import Kind
from service.core.tables import Model, Study
from tests.ledgers import migrated
from tests.pipeline import film, instances, receive, reports, says, study, work
from tests.tokens import bearer, entries
from worker.context import Context

CHILD = {
    "PatientAge": "004Y",
    "PatientSex": "F",
    "ViewPosition": "PA",
    "Manufacturer": "Agfa",
    "ManufacturerModelName": "DX-D 100",
}
SAID = (
    "Film and validated range: age 4 Y, validated for 1 to 5 Y; view PA, outside of the validated AP; "
    "sex F, scanner Agfa DX-D 100: not recorded of the validated films."
)


@pytest.fixture(params=["sqlite", "postgresql"])
def context(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Context]:
    url = None if request.param == "sqlite" else request.getfixturevalue("postgresql")
    settings = load(
        data_dir=tmp_path, study_quiet_seconds=0, min_free_bytes=0, database_url=url, api_tokens=entries()
    )
    migrated(settings.sqlalchemy_url)
    opened = Context.open(settings)
    yield opened
    opened.ledger.close()


def analysed(context: Context, monkeypatch: pytest.MonkeyPatch, **attributes: Any) -> None:
    says(monkeypatch, 0.9)
    receive(context, film(**{**CHILD, **attributes}))
    work(context)


def client(context: Context) -> TestClient:
    made = create_app(context.settings, context.ledger)
    made.state.feed.close()
    return TestClient(made, base_url="http://127.0.0.1")


def sr_of(context: Context) -> str:
    (made,) = [item for item in reports(context) if item.kind == Kind.SR]
    return str(dcmread(context.spool.absolute(made.path)).to_json())


def test_the_ledger_keeps_who_and_what_was_looked_at_and_its_greys(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    analysed(context, monkeypatch)
    (row,) = instances(context)
    assert (row.patient_age_years, row.patient_sex, row.view_position, row.scanner) == (
        4.0,
        "F",
        "PA",
        "Agfa DX-D 100",
    )
    for value in (row.image_mean, row.image_deviation, row.image_entropy, row.image_clipped):
        assert value is not None
        assert 0.0 <= value < 1.0
    assert 0.05 < (row.image_deviation or 0) < 0.5
    with context.ledger.read() as session:
        assert session.scalars(select(Model)).one().population == {
            "age_years": [1.0, 5.0],
            "sexes": [],
            "views": ["AP"],
            "scanners": [],
        }


def test_the_report_names_film_and_validated_range(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    analysed(context, monkeypatch)
    assert SAID in sr_of(context)


def test_a_model_of_before_says_nothing_of_its_range_until_it_is_asked_again(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    analysed(context, monkeypatch)
    with context.ledger.write() as session:
        session.execute(update(Model).values(population=null()))
    api, address = client(context), f"/api/studies/{study(context).study_instance_uid}"
    (shown,) = api.get(address, headers=bearer("viewer")).json()["instances"]
    assert shown["population"] == []
    assert api.get("/api/statistics", headers=bearer("viewer")).json()["coverage"] == []
    assert "is known once a worker has started" in api.get("/quality", headers=bearer("viewer")).text
    context.model()
    (shown,) = api.get(address, headers=bearer("viewer")).json()["instances"]
    assert shown["population"][0]["validated"] == "1 to 5 Y"


def test_api_and_page_show_both_and_no_patient(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    analysed(context, monkeypatch, PatientName="Canary^Yellow", PatientBirthDate="20220317")
    api, uid = client(context), study(context).study_instance_uid
    (shown,) = api.get(f"/api/studies/{uid}", headers=bearer("viewer")).json()["instances"]
    assert shown["population"] == [
        {"attribute": "age", "value": "4 Y", "validated": "1 to 5 Y", "beside": "inside"},
        {"attribute": "sex", "value": "F", "validated": "", "beside": "not_recorded"},
        {"attribute": "view", "value": "PA", "validated": "AP", "beside": "outside"},
        {"attribute": "scanner", "value": "Agfa DX-D 100", "validated": "", "beside": "not_recorded"},
    ]
    page = api.get(f"/studies/{uid}", headers=bearer("viewer")).text
    assert 'PA <span class="faint">(outside of the validated AP)</span>' in page
    assert '4 Y <span class="faint">(validated for 1 to 5 Y)</span>' in page
    assert "Canary" not in page


def test_what_names_nobody_stays_when_the_files_go(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    analysed(context, monkeypatch)
    with context.ledger.write() as session:
        forget_files(session, session.scalars(select(Study)).one())
    answer = client(context).get("/api/statistics?by=sex", headers=bearer("viewer")).json()
    assert [group["name"] for group in answer["groups"]] == ["F"]


def test_a_ledger_of_before_keeps_the_sex_that_its_patients_had(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    analysed(context, monkeypatch)
    engine, config = open_engine(context.settings.sqlalchemy_url), _alembic_config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        # By its own name: whatever comes between, this is what is undone and done.
        command.downgrade(config, "0012")
        names = {column["name"] for column in inspect(connection).get_columns("instance")}
        assert not names & {"patient_sex", "scanner", "image_mean"}
        command.upgrade(config, "head")
        row = connection.execute(text("SELECT patient_sex, scanner, image_mean FROM instance")).one()
        assert tuple(row) == ("F", None, None)
    engine.dispose()
