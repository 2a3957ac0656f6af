"""One model reports, others run in shadow, and every change says who and why."""

import json
import re
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select
from typer.testing import CliRunner

from model.weights import default_weights, read_info
from service.api.app import create_app
from service.commands.acceptance.machine import weights as asked_of_acceptance
from service.commands.doctor import _models
from service.commands.main import app
from service.core import models
from service.core.ledger import Ledger
from service.core.models import Decision, NotPossible
from service.core.purge import purge
from service.core.settings import load
from service.core.states import AnalysisState, ModelRole, StudyState
from service.core.tables import Analysis, Instance, Shadow
from service.scheduler.scheduler import give_up_exhausted
from tests.ledgers import migrated
from tests.pipeline import film, hurry, instances, receive, reports, study, work
from tests.unit.model import conftest as synthetic
from worker.context import Context, Serving
from worker.tasks import decode, infer

weights = synthetic.weights
_WHY = "ticket 7"
_BY = Decision("somebody", _WHY)


@pytest.fixture(params=["sqlite", "postgresql"])
def context(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Context]:
    """A worker's context on each database."""
    url = None if request.param == "sqlite" else request.getfixturevalue("postgresql")
    settings = load(
        data_dir=tmp_path / "data",
        study_quiet_seconds=0,
        min_free_bytes=0,
        database_url=url,
        population="flag",
    )
    migrated(settings.sqlalchemy_url)
    opened = Context.open(settings)
    yield opened
    opened.ledger.close()


@pytest.fixture
def hilum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Hilum":
    """The command line on a data folder of its own."""
    settings = load(data_dir=tmp_path / "data", study_quiet_seconds=0, min_free_bytes=0, population="flag")
    migrated(settings.sqlalchemy_url)
    monkeypatch.setenv("HILUM_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    context = Context.open(settings)
    context.model()
    return Hilum(context)


class Hilum:
    def __init__(self, context: Context) -> None:
        self.context = context

    def __call__(self, *arguments: str, fails: bool = False) -> str:
        result = CliRunner().invoke(app, ["model", *arguments])
        assert bool(result.exit_code) == fails, result.output
        return result.output


def _in_shadow(context: Context, weights: Path) -> int:
    context.model()
    info = read_info(weights)
    path = context.spool.write("models", ".safetensors", lambda stream: stream.write(weights.read_bytes()))
    with context.ledger.write() as session:
        identity = info.name, info.version, info.sha256
        return models.add(session, identity, info.class_activation, path, _BY).id


def _shadows(context: Context) -> list[Shadow]:
    with context.ledger.read() as session:
        return list(session.scalars(select(Shadow).order_by(Shadow.id)))


def test_a_model_in_shadow_is_recorded_and_changes_nothing_of_the_report(
    context: Context, weights: Path
) -> None:
    receive(context, film(1))
    work(context)
    alone, reported = study(context), [item.kind for item in reports(context)]
    shadow = _in_shadow(context, weights)
    receive(context, film(2))
    work(context)
    infer.run(context)
    after = study(context)
    (row,) = _shadows(context)
    assert (row.model_id, row.state) == (shadow, AnalysisState.DONE)
    assert row.finding is not None
    assert after.state == alone.state == StudyState.REPORTED
    assert after.model_id == alone.model_id != shadow
    assert [item.kind for item in reports(context)] == reported * 2
    with context.ledger.read() as session:
        assert session.scalar(select(func.count()).select_from(Analysis)) == 2


def test_shadows_wait_until_no_report_does(context: Context, weights: Path) -> None:
    _in_shadow(context, weights)
    receive(context, film(1), film(2))
    for _ in range(2):
        decode.run(context)
    infer.run(context)
    assert {instance.state for instance in instances(context)} == {"analysed"}
    assert {row.state for row in _shadows(context)} == {AnalysisState.PENDING}
    infer.run(context)
    assert {row.state for row in _shadows(context)} == {AnalysisState.DONE}


def test_a_shadow_that_cannot_be_computed_keeps_nobody_waiting(
    context: Context, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shadow = _in_shadow(context, weights)
    right = infer._predictor

    def fails(context: Context, model: Serving) -> object:
        if model.id == shadow:
            raise MemoryError
        return right(context, model)

    monkeypatch.setattr(infer, "_predictor", fails)
    receive(context, film(1))
    work(context)
    for _ in range(3):
        hurry(context, Shadow)
        infer.run(context)
    hurry(context, Shadow)
    give_up_exhausted(context.ledger)
    assert [row.state for row in _shadows(context)] == [AnalysisState.FAILED]
    assert study(context).state == StudyState.REPORTED
    assert [instance.state for instance in instances(context)] == ["analysed"]


def test_a_promoted_model_reports_the_next_film_and_the_earlier_one_again_after_a_rollback(
    context: Context, weights: Path
) -> None:
    first = context.model()
    second = _in_shadow(context, weights)
    with context.ledger.write() as session:
        models.promote(session, models.find(session, read_info(weights).sha256[:8]), _BY)
    assert context.model().id == second
    assert context.model().info.sha256 == read_info(weights).sha256
    receive(context, film(1))
    work(context)
    assert study(context).model_id == second
    # A worker that starts again does not take back what a person decided.
    assert Context.open(context.settings).model().id == second
    with context.ledger.write() as session:
        assert models.roll_back(session, _BY).id == first.id
    receive(context, film(2))
    work(context)
    assert study(context).model_id == first.id
    with context.ledger.read() as session:
        kinds = [change.kind for change in models.changes(session)]
    assert kinds == ["rolled_back", "promoted", "added", "configured"]


def test_weights_that_the_configuration_names_report_whatever_was_promoted(
    context: Context, weights: Path
) -> None:
    _in_shadow(context, weights)
    with context.ledger.write() as session:
        models.promote(session, models.find(session, read_info(weights).sha256), _BY)
    named = Context.open(context.settings.model_copy(update={"weights": default_weights()}))
    assert named.model().info.sha256 == read_info(default_weights()).sha256


def test_the_site_s_threshold_decides_and_is_reported(context: Context) -> None:
    receive(context, film(1))
    work(context)
    probability = study(context).probability
    assert probability is not None
    other = 0.0 if study(context).finding == "absent" else 1.0
    with context.ledger.write() as session:
        model = models.reporting(session)
        assert model is not None
        models.set_threshold(session, model, other, _BY)
    receive(context, film(2))
    work(context)
    assert study(context).threshold == other
    assert study(context).finding == ("present" if other == 0.0 else "absent")
    with context.ledger.write() as session:
        model = models.reporting(session)
        assert model is not None
        models.set_threshold(session, model, None, _BY)
    assert context.model().info.threshold == read_info(default_weights()).threshold != other


@pytest.mark.parametrize(
    ("threshold", "zone"),
    [
        (None, (0.45, 0.55)),
        (0.5, (0.45, 0.55)),
        # As far in log-odds as before: 0.55 / 0.45 times the odds, or one by that.
        (0.2, (0.25 * 0.45 / 0.55 / (1 + 0.25 * 0.45 / 0.55), 0.25 * 0.55 / 0.45 / (1 + 0.25 * 0.55 / 0.45))),
        (0.0, None),
        (1.0, None),
    ],
)
def test_the_zone_without_a_finding_lies_about_the_site_s_threshold(
    context: Context, weights: Path, threshold: float | None, zone: tuple[float, float] | None
) -> None:
    _in_shadow(context, weights)
    with context.ledger.write() as session:
        model = models.find(session, read_info(weights).sha256)
        models.promote(session, model, _BY)
        models.set_threshold(session, model, threshold, _BY)
    assert read_info(weights).threshold == 0.5
    assert context.model().info.indeterminate == (zone and pytest.approx(zone))


def test_weights_that_were_changed_on_disk_are_not_used(context: Context, weights: Path) -> None:
    shadow = _in_shadow(context, weights)
    with context.ledger.read() as session:
        row = next(model for model in models.every(session) if model.id == shadow)
    assert row.path is not None
    path = context.spool.absolute(row.path)
    path.write_bytes(default_weights().read_bytes())
    receive(context, film(1))
    work(context)
    for _ in range(3):
        hurry(context, Shadow)
        infer.run(context)
    give_up_exhausted(context.ledger)
    assert [row.state for row in _shadows(context)] == [AnalysisState.FAILED]
    assert study(context).state == StudyState.REPORTED


def test_the_weights_that_ship_are_there_again_after_the_data_folder_was_lost(context: Context) -> None:
    context.model().path.unlink()
    again = Context.open(context.settings).model()
    assert again.path.exists()
    assert again.info.sha256 == read_info(default_weights()).sha256


def test_an_erased_study_takes_its_shadows_along(context: Context, weights: Path) -> None:
    _in_shadow(context, weights)
    receive(context, film(1))
    work(context)
    infer.run(context)
    uid = study(context).study_instance_uid
    purge(context.ledger, context.spool, context.audit, uid, "somebody", _WHY)
    assert _shadows(context) == []
    with context.ledger.read() as session:
        assert session.scalars(select(Instance)).all() == []


def test_no_more_models_run_in_shadow_than_the_site_can_bear(context: Context) -> None:
    context.model()
    with context.ledger.write() as session:
        for number in range(3):
            models.add(session, ("m", str(number), f"{number:064}"), "", f"models/00/{number}", _BY)
        with pytest.raises(NotPossible, match="retire one"):
            models.add(session, ("m", "4", f"{4:064}"), "", "models/00/4", _BY)


def test_the_life_of_a_model_from_the_command_line(hilum: "Hilum", weights: Path) -> None:
    info = read_info(weights)
    shipped = read_info(default_weights())
    assert "say why" in hilum("add", str(weights), fails=True)
    assert "runs in shadow" in hilum("add", str(weights), "--reason", _WHY)
    assert "is shadow already" in hilum("add", str(weights), "--reason", _WHY, fails=True)
    said = json.loads(hilum("list", "--json"))
    assert [(item["sha256"], item["role"]) for item in said["models"]] == [
        (shipped.sha256, ModelRole.REPORTING),
        (info.sha256, ModelRole.SHADOW),
    ]
    assert "no model is called" in hilum("promote", "nothing", "--reason", _WHY, fails=True)
    assert read_info(asked_of_acceptance(hilum.context.settings)) != info
    assert "reports from the next film on" in hilum("promote", info.sha256[:12], "--reason", _WHY)
    assert read_info(asked_of_acceptance(hilum.context.settings)) == info
    assert hilum.context.model().info.sha256 == info.sha256
    assert "goes by 37.5 % from the next film on" in hilum(
        "threshold", "0.375", "--reason", "local prevalence"
    )
    assert hilum.context.model().info.threshold == 0.375
    assert "reports again" in hilum("rollback", "--reason", _WHY)
    assert hilum.context.model().info.sha256 == shipped.sha256
    assert "promote another" in hilum("retire", shipped.sha256, "--reason", _WHY, fails=True)
    assert "is retired already" in hilum("retire", info.sha256, "--reason", _WHY, fails=True)
    shown = hilum("list")
    assert "37.5 %" in shown
    assert "local prevalence" in shown
    files = list((hilum.context.spool.root / "models").rglob("*.safetensors"))
    assert len(files) == 2, "what could not be added left no file"


def test_a_file_that_is_no_weights_is_refused(hilum: "Hilum", tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(np.zeros(100).tobytes())
    assert "weights.safetensors" in hilum("add", str(path), "--reason", _WHY, fails=True)


def test_what_the_configuration_names_is_not_promoted_away(
    hilum: "Hilum", weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hilum("add", str(weights), "--reason", _WHY)
    monkeypatch.setenv("HILUM_WEIGHTS", str(default_weights()))
    assert "HILUM_WEIGHTS" in hilum("promote", read_info(weights).sha256, "--reason", _WHY, fails=True)


def test_changes_are_in_the_audit_trail(hilum: "Hilum", weights: Path) -> None:
    hilum("add", str(weights), "--reason", _WHY)
    trail = "".join(path.read_text() for path in (hilum.context.spool.root / "audit").rglob("*.log"))
    alerts = re.findall(r'type="Alert Description" value="([^"]+)"', trail)
    said = [b64decode(value).decode() for value in alerts]
    assert "110131" in trail
    assert any(read_info(weights).sha256 in text and _WHY in text for text in said)


def test_the_ledger_knows_the_reporting_model_before_the_first_film(hilum: "Hilum") -> None:
    ledger = Ledger(hilum.context.settings.sqlalchemy_url)
    with ledger.read() as session:
        reporting = models.reporting(session)
    assert reporting is not None
    assert reporting.sha256 == read_info(default_weights()).sha256
    ledger.close()


def test_the_doctor_says_whose_weights_are_lost(hilum: "Hilum", weights: Path) -> None:
    hilum("add", str(weights), "--reason", _WHY)
    settings, spool = hilum.context.settings, hilum.context.spool
    assert {check.name: check.right for check in _models(settings)} == {
        f"model {hilum.context.model().info.name} {hilum.context.model().info.version}, reporting": True,
        "model synthetic 1, shadow": True,
    }
    (shadow,) = hilum.context.shadows()
    assert shadow.path is not None
    spool.absolute(shadow.path).write_bytes(default_weights().read_bytes())
    assert [check.seen[:22] for check in _models(settings) if not check.right] == ["the weights are others"]
    spool.remove(shadow.path)
    assert [check.name for check in _models(settings) if not check.right] == ["model synthetic 1, shadow"]


def test_what_was_decided_is_on_the_system_page_and_in_the_api(hilum: "Hilum", weights: Path) -> None:
    hilum("add", str(weights), "--reason", _WHY)
    hilum("threshold", "0.375", "--reason", "local prevalence")
    context = hilum.context
    served = create_app(context.settings, context.ledger)
    with TestClient(served, base_url="http://127.0.0.1") as api:
        page = api.get("/system", headers={"Accept": "text/html"})
        said = api.get("/api/models").json()
    assert page.status_code == 200
    assert "Model in shadow, not reported" in page.text
    assert "threshold of this site 37.5 %" in page.text
    assert "local prevalence" in page.text
    assert [item["role"] for item in said["models"]] == ["reporting", "shadow"]
    assert [(item["kind"], item["threshold"]) for item in said["changes"]] == [
        ("threshold", 0.375),
        ("added", None),
        ("configured", None),
    ]
    assert said["changes"][0]["reason"] == "local prevalence"
