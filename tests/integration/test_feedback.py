"""Feedback of readers over the real API and ledger: stored beside the result, listed, exported, forgotten."""

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from fastapi.testclient import TestClient
from pydicom import dcmread
from sqlalchemy import func, inspect, select

from service.api.app import create_app
from service.api.rates import Rates
from service.commands.feedback import export
from service.core import feedback
from service.core.audit import Audit
from service.core.feedback_link import links_of
from service.core.ledger import _alembic_config, now, open_engine
from service.core.purge import purge
from service.core.removal import forget_files
from service.core.settings import load
from service.core.states import Kind
from service.core.tables import AssessmentReport, Event, Feedback, Installation, Report, Study
from service.scheduler.scheduler import give_up_exhausted
from tests.audit_trail import objects, of
from tests.ledgers import migrated
from tests.pipeline import film, hurry, receive, reports, says, send_all, study, work
from tests.servers import Orthanc
from tests.tokens import bearer, entries, sign_in
from worker.context import Context
from worker.tasks import assess
from worker.tasks import report as report_task

SECRET = "CANARY: Mrs. Yellow of ward 4"
PUBLIC = "https://hilum.hospital.local"


@pytest.fixture(params=["sqlite", "postgresql"])
def context(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Context]:
    """A worker's context on each database, with a network that calls every film positive."""
    url = None if request.param == "sqlite" else request.getfixturevalue("postgresql")
    settings = load(
        data_dir=tmp_path / "data",
        study_quiet_seconds=0,
        min_free_bytes=0,
        database_url=url,
        api_tokens=entries(),
        public_url=PUBLIC,
    )
    migrated(settings.sqlalchemy_url)
    opened = Context.open(settings)
    says(monkeypatch, 0.9)
    yield opened
    opened.ledger.close()


only_sqlite = pytest.mark.parametrize("context", ["sqlite"], indirect=True)


def client(context: Context, **rates: int) -> TestClient:
    app = create_app(context.settings, context.ledger, rates=Rates(**rates))
    app.state.feed.close()
    return TestClient(app, base_url="http://127.0.0.1")


def analysed(context: Context, seed: int | str = 0, **header: Any) -> str:
    made = film(seed, **header)
    receive(context, made)
    work(context)
    return str(made.StudyInstanceUID)


def give(api: TestClient, uid: str, assessment: str, role: str = "clinician", **more: Any) -> Any:
    said = {"assessment": assessment, **more}
    return api.post(f"/api/studies/{uid}/feedback", json=said, headers=bearer(role))


def rows(context: Context) -> list[Feedback]:
    with context.ledger.read() as session:
        return list(session.scalars(select(Feedback).order_by(Feedback.id)))


def token_of(context: Context, uid: str, revision: int = 1) -> str:
    with context.ledger.read() as session:
        return links_of(session).token(uid, revision)


def test_feedback_is_kept_beside_the_result_with_the_result_as_it_was(context: Context) -> None:
    uid, api = analysed(context), client(context)
    before = api.get(f"/api/studies/{uid}", headers=bearer("viewer")).json()["result"]
    answer = give(api, uid, "disagree", finding="absent", note="Skin fold.", reader="Dr. Weber")
    assert answer.status_code == 201, answer.text
    (row,) = rows(context)
    assert (row.revision, row.finding, row.probability, row.threshold) == (
        *(1, "present", 0.9, context.model().info.threshold),
    )
    assert (row.assessment, row.own_finding, row.note, row.reader, row.user, row.source) == (
        *("disagree", "absent", "Skin fold.", "Dr. Weber", "clinician-token", "api"),
    )
    after = api.get(f"/api/studies/{uid}", headers=bearer("viewer")).json()
    assert after["result"] == before
    assert after["feedback"] == "disagree"
    assert after["events"][-1]["detail"] == "disagree, of revision 1, by api"


def test_a_changed_mind_is_a_new_entry_and_the_same_mind_is_none(context: Context) -> None:
    uid, api = analysed(context), client(context)
    for assessment in ("agree", "agree", "disagree", "agree"):
        assert give(api, uid, assessment).status_code == 201
    give(api, uid, "unsure", "administrator")
    assert [row.assessment for row in rows(context)] == ["agree", "disagree", "agree", "unsure"]
    told = api.get(f"/api/studies/{uid}/feedback", headers=bearer("clinician")).json()
    assert [(item["assessment"], item["current"]) for item in told] == [
        *(("unsure", True), ("agree", True), ("disagree", False), ("agree", False)),
    ]
    listed = api.get(f"/api/studies/{uid}", headers=bearer("viewer")).json()
    assert listed["feedback"] == "mixed"


def test_a_later_revision_moves_no_older_entry_and_asks_anew_when_its_answer_is_another(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(monkeypatch, 0.1)
    first = film(0)
    receive(context, first)
    work(context)
    uid, api = str(first.StudyInstanceUID), client(context)
    give(api, uid, "agree")
    says(monkeypatch, 0.9)
    receive(context, film(1, StudyInstanceUID=uid, PatientID=first.PatientID))
    work(context)
    now_said = api.get(f"/api/studies/{uid}", headers=bearer("viewer")).json()
    assert (now_said["revision"], now_said["result"]["finding"], now_said["feedback"]) == (2, "present", None)
    # Who still sees the older report speaks of that one.
    assert give(api, uid, "disagree", revision=1).json()["ai_finding"] == "absent"
    assert give(api, uid, "agree", revision=2).json()["ai_finding"] == "present"
    assert [(row.revision, row.finding, row.probability) for row in rows(context)] == [
        *((1, "absent", 0.1), (1, "absent", 0.1), (2, "present", 0.9)),
    ]
    assert give(api, uid, "agree", revision=3).status_code == 409


@only_sqlite
@pytest.mark.parametrize(
    ("said", "status"),
    [
        ({"assessment": "agree", "finding": "absent"}, 422),
        ({"assessment": "agree", "finding": "present"}, 201),
        ({"assessment": "disagree", "finding": "present"}, 422),
        ({"assessment": "disagree", "finding": "not_analysed"}, 422),
        ({"assessment": "unsure", "finding": "indeterminate"}, 201),
        ({"assessment": "not_usable"}, 201),
        ({"assessment": "great"}, 422),
        ({}, 422),
        ({"assessment": "agree", "note": "n" * 2001}, 422),
        ({"assessment": "agree", "reader": "r" * 65}, 422),
        ({"assessment": "agree", "patient": "x"}, 422),
        ({"assessment": "agree", "revision": 0}, 422),
    ],
)
def test_what_contradicts_itself_or_is_no_feedback_is_refused_without_repeating_it(
    context: Context, said: dict[str, Any], status: int
) -> None:
    uid = analysed(context)
    answer = client(context).post(f"/api/studies/{uid}/feedback", json=said, headers=bearer("clinician"))
    assert answer.status_code == status, answer.text
    assert len(rows(context)) == (status == 201)
    assert "nnnn" not in answer.text


@only_sqlite
def test_feedback_is_not_taken_without_a_result_without_a_study_and_without_end(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    api, waiting = client(context), film(5)
    receive(context, waiting)
    assert give(api, str(waiting.StudyInstanceUID), "agree").status_code == 409
    assert give(api, "1.2.3", "agree").status_code == 404
    monkeypatch.setattr(feedback, "_MOST_ENTRIES", 2)
    uid = analysed(context)
    work(context)
    answers = [give(api, uid, "agree", reader=name).status_code for name in "abc"]
    assert answers == [201, 201, 409]


@only_sqlite
def test_each_role_does_and_sees_what_it_may(context: Context) -> None:
    uid, api = analysed(context), client(context)
    assert give(api, uid, "agree", "viewer").status_code == 403
    for role in ("clinician", "administrator"):
        assert give(api, uid, "agree", role, note=SECRET).status_code == 201
    (told, _) = api.get(f"/api/studies/{uid}/feedback", headers=bearer("viewer")).json()
    assert (told["assessment"], told["reader"], told["user"], told["note"]) == ("agree", None, None, None)
    (told, _) = api.get(f"/api/studies/{uid}/feedback", headers=bearer("clinician")).json()
    assert (told["reader"], told["note"]) == ("administrator-token", SECRET)
    assert api.get("/api/feedback.csv", headers=bearer("viewer")).status_code == 403
    page = api.get(f"/studies/{uid}", headers=bearer("viewer")).text
    assert SECRET not in page
    assert "Your role gives no feedback." in page
    assert SECRET in api.get(f"/studies/{uid}", headers=bearer("clinician")).text
    assert api.post(f"/api/studies/{uid}/feedback", json={"assessment": "agree"}).status_code == 401


@only_sqlite
def test_a_note_goes_nowhere_but_into_its_table(
    context: Context, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    uid, api = analysed(context), client(context)
    give(api, uid, "disagree", note=SECRET, reader="Canary Reader")
    api.post(
        f"/feedback/{token_of(context, uid)}", data={"assessment": "agree", "reader": "x", "note": SECRET}
    )
    for path in (f"/api/studies/{uid}", "/api/studies", "/metrics", "/api/feedback.csv", "/", "/system"):
        assert "CANARY" not in api.get(path, headers=bearer("clinician")).text, path
    with context.ledger.read() as session:
        assert not [item for item in session.scalars(select(Event.detail)) if "CANARY" in item.upper()]
    written = caplog.text + "".join(capsys.readouterr())
    assert "CANARY" not in written.upper()
    trail = "".join(path.read_text() for path in (context.settings.data_dir / "audit").glob("*.log"))
    assert "Canary Reader" not in trail  # the token says who it was
    assert "CANARY:" not in trail


@only_sqlite
def test_the_page_stores_by_its_form_and_answers_the_history_to_its_script(context: Context) -> None:
    uid, api = analysed(context), client(context)
    csrf = sign_in(api, "clinician")
    form = {"csrf": csrf, "revision": "1", "assessment": "disagree", "own_finding": "", "note": "a\r\nb"}
    assert api.post(f"/studies/{uid}/feedback", data={**form, "csrf": "x"}).status_code == 403
    answer = api.post(f"/studies/{uid}/feedback", data=form, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, f"/studies/{uid}#feedback")
    form |= {"assessment": "agree", "note": "<script>alert(1)</script>"}
    answer = api.post(f"/studies/{uid}/feedback", data=form, headers={"X-Part": "history"})
    assert answer.text.lstrip().startswith("<div")
    assert "&lt;script&gt;" in answer.text
    assert [(row.source, row.user, row.note) for row in rows(context)] == [
        ("dashboard", "clinician-token", "a\nb"),
        ("dashboard", "clinician-token", "<script>alert(1)</script>"),
    ]
    elsewhere = {"Sec-Fetch-Site": "cross-site"}
    assert api.post(f"/studies/{uid}/feedback", data=form, headers=elsewhere).status_code == 403


@only_sqlite
def test_a_link_opens_a_page_and_only_what_that_posts_is_stored(context: Context) -> None:
    uid = analysed(context, AccessionNumber="ACC-4711", PatientName="Canary^Yellow", PatientID="CANARY7")
    api, token = client(context), token_of(context, uid)
    for _ in range(3):  # a viewer or a scanner of mail looks ahead
        page = api.get(f"/feedback/{token}")
        assert page.status_code == 200
    assert api.head(f"/feedback/{token}").status_code == 405
    assert rows(context) == []
    assert "ends in 4711" in page.text
    for private in ("ACC-4711", "CANARY", "Canary", uid):
        assert private not in page.text.replace(token, "")
    assert "Research use only, not for diagnosis" in page.text
    assert page.headers["cache-control"] == "no-store"
    answer = api.post(
        f"/feedback/{token}", data={"assessment": "disagree", "own_finding": "absent", "reader": "Dr. Weber"}
    )
    assert "Stored: disagree." in answer.text
    (row,) = rows(context)
    assert (row.reader, row.user, row.source, row.revision) == ("Dr. Weber", "", "link", 1)
    told = of(context.settings.data_dir, "110103")[-1]
    assert told.xpath("ActiveParticipant/@UserID")[0] == "Dr. Weber"


@only_sqlite
def test_a_link_asks_for_a_name_and_one_of_the_four(context: Context) -> None:
    uid = analysed(context)
    api, token = client(context), token_of(context, uid)
    for form in ({}, {"assessment": "agree"}, {"assessment": "agree", "reader": "  "}, {"reader": "Weber"}):
        answer = api.post(f"/feedback/{token}", data=form)
        assert answer.status_code == 422
        assert "Write your name, then choose one of the four." in answer.text
    contradictory = {"assessment": "agree", "own_finding": "absent", "reader": "Weber", "note": "kept"}
    answer = api.post(f"/feedback/{token}", data=contradictory)
    assert answer.status_code == 422
    assert "who agrees finds the same" in answer.text
    assert "kept" in answer.text  # what was typed is not lost
    assert rows(context) == []


@only_sqlite
def test_whoever_writes_a_name_behind_a_link_does_not_speak_for_whoever_signed_in(context: Context) -> None:
    uid, api = analysed(context), client(context)
    give(api, uid, "agree")
    form = {"assessment": "disagree", "reader": "clinician-token"}
    api.post(f"/feedback/{token_of(context, uid)}", data=form)
    told = api.get(f"/api/studies/{uid}/feedback", headers=bearer("clinician")).json()
    assert [item["current"] for item in told] == [True, True]


@only_sqlite
def test_a_changed_an_old_and_a_foreign_link_store_nothing(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid, api = analysed(context), client(context)
    token, form = token_of(context, uid), {"assessment": "agree", "reader": "x"}
    other = film(9)
    for bad in (token[:-6] + "AAAAAA", token_of(context, uid).replace(".", "..", 1), "x"):
        assert api.get(f"/feedback/{bad}").status_code == 404
        assert api.post(f"/feedback/{bad}", data=form).status_code == 404
    assert api.get(f"/feedback/{token_of(context, str(other.StudyInstanceUID))}").status_code == 404
    assert api.get(f"/feedback/{token_of(context, uid, 7)}").status_code == 409
    elsewhere = {"Sec-Fetch-Site": "cross-site"}
    assert api.post(f"/feedback/{token}", data=form, headers=elsewhere).status_code == 403
    from itsdangerous.timed import TimestampSigner

    later = TimestampSigner(b"k").get_timestamp() + 31 * 86400
    monkeypatch.setattr(TimestampSigner, "get_timestamp", lambda _: later)
    assert api.get(f"/feedback/{token}").status_code == 410
    assert api.post(f"/feedback/{token}", data=form).status_code == 410
    assert rows(context) == []


@only_sqlite
def test_who_tries_many_links_or_says_much_is_told_to_wait(context: Context) -> None:
    uid = analysed(context)
    api, token = client(context, failures=3, links=2), token_of(context, uid)
    form = {"assessment": "agree", "reader": "x"}
    assert [api.post(f"/feedback/{token}", data=form).status_code for _ in range(3)] == [200, 200, 429]
    assert [api.get("/feedback/wrong").status_code for _ in range(4)] == [404, 404, 404, 429]
    assert api.get(f"/feedback/{token}").status_code == 429
    # Signing in is counted by itself.
    assert api.get("/api/studies", headers=bearer("viewer")).status_code == 200


@only_sqlite
def test_a_ledger_of_before_gets_a_secret_that_no_report_names(context: Context) -> None:
    analysed(context)
    engine = open_engine(context.settings.sqlalchemy_url)
    with engine.begin() as connection:
        config = _alembic_config()
        config.attributes["connection"] = connection
        command.downgrade(config, "0010")
        columns = {column["name"] for column in inspect(connection).get_columns("installation")}
        assert "secret" not in columns
        command.upgrade(config, "head")
    engine.dispose()
    with context.ledger.read() as session:
        secret = session.scalars(select(Installation.secret)).one()
    assert re.fullmatch("[0-9a-f]{64}", secret)
    assert secret not in dcmread(context.spool.absolute(reports(context)[0].path)).to_json()


def test_the_report_carries_a_link_that_opens_it(context: Context) -> None:
    uid = analysed(context)
    (made,) = [item for item in reports(context) if item.kind == Kind.SR]
    said = dcmread(context.spool.absolute(made.path)).to_json()
    found = re.search(rf"Feedback on this result: {PUBLIC}(/feedback/[\w.-]+)", said)
    assert found
    assert client(context).get(found[1]).status_code == 200
    context.settings = load(
        data_dir=context.settings.data_dir, database_url=context.settings.database_url, study_quiet_seconds=0
    )
    analysed(context, 1)
    without = [item for item in reports(context) if item.kind == Kind.SR][-1]
    assert "Feedback" not in dcmread(context.spool.absolute(without.path)).to_json()
    assert uid


def test_a_share_of_the_negatives_is_offered_for_review_and_the_share_is_noted(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(monkeypatch, 0.1)
    with context.ledger.write() as session:
        session.scalars(select(Installation)).one().secret = "5e" * 32  # by which is drawn
    kept = {"data_dir": context.settings.data_dir, "database_url": context.settings.database_url}
    drawn: dict[float, set[str]] = {}
    for share in (0.0, 0.5):
        context.settings = load(**kept, study_quiet_seconds=0, review_share=share, api_tokens=entries())
        uids = {analysed(context, f"{share}-{number}") for number in range(12)}
        api = client(context)
        listed = api.get("/api/studies?feedback=to_review", headers=bearer("viewer")).json()["studies"]
        drawn[share] = {item["study_instance_uid"] for item in listed} & uids
        assert all(item["to_review"] for item in listed)
    assert drawn[0.0] == set()
    assert 0 < len(drawn[0.5]) < 12
    uid = min(drawn[0.5])
    assert give(api, uid, "disagree", finding="present").json()["review_share"] == 0.5
    listed = api.get("/api/studies?feedback=to_review", headers=bearer("viewer")).json()["studies"]
    assert {item["study_instance_uid"] for item in listed} == drawn[0.5] - {uid}
    says(monkeypatch, 0.9)
    positive = analysed(context, "positive")
    assert give(api, positive, "agree").json()["review_share"] is None


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        *(("none", {"c"}), ("given", {"a", "b"}), ("agree", {"a"}), ("disagree", {"b"}), ("unsure", set())),
        ("not_usable", set()),
        ("to_review", set()),
    ],
)
def test_studies_are_listed_by_what_readers_say(context: Context, wanted: str, found: set[str]) -> None:
    api = client(context)
    uids = {name: analysed(context, name) for name in "abc"}
    give(api, uids["a"], "unsure")
    give(api, uids["a"], "agree")
    give(api, uids["b"], "disagree")
    receive(context, film("d"))
    listed = api.get(f"/api/studies?feedback={wanted}", headers=bearer("viewer")).json()["studies"]
    assert {item["study_instance_uid"] for item in listed} == {uids[name] for name in found}
    page = api.get(f"/?feedback={wanted}", headers=bearer("viewer")).text
    assert {name for name, uid in uids.items() if f"/studies/{uid}" in page} == found


def test_feedback_is_exported_as_a_table_without_a_patient_in_it(context: Context) -> None:
    uid = analysed(context, PatientName="Canary^Yellow", PatientID="CANARY7", AccessionNumber="CANARYACC")
    api = client(context)
    give(api, uid, "disagree", finding="absent", note="=HYPERLINK()", reader="@Weber")
    give(api, uid, "agree", "administrator")

    def table(query: str = "") -> list[dict[str, str]]:
        answer = api.get(f"/api/feedback.csv{query}", headers=bearer("clinician"))
        assert answer.headers["content-type"] == "text/csv; charset=utf-8"
        assert "CANARY" not in answer.text.upper()
        return list(csv.DictReader(io.StringIO(answer.text)))

    first, second = table()
    assert (first["study_instance_uid"], first["assessment"], first["own_finding"]) == (
        *(uid, "disagree", "absent"),
    )
    assert (first["ai_finding"], first["ai_probability"], first["reader"]) == ("present", "0.9", "'@Weber")
    assert (second["assessment"], second["user"]) == ("agree", "administrator-token")
    assert "note" not in first
    assert [row["note"] for row in table("?notes=true")] == ["'=HYPERLINK()", ""]
    assert len(table("?from=2000-01-01&to=2999-01-01T00:00:00Z")) == 2
    assert table("?from=2999-01-01") == []
    assert table("?to=2000-01-01") == []
    assert api.get("/api/feedback.csv?from=soon", headers=bearer("clinician")).status_code == 422


def test_an_exported_table_says_how_much_it_holds(
    context: Context, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uid, api = analysed(context), client(context)
    for number, said in ((1, "1 entry in "), (2, "2 entries in ")):
        give(api, uid, "agree", reader=f"reader {number}")
        table = tmp_path / f"{number}.csv"
        assert export(context.settings, table, None, None, None, notes=False) == 0
        assert capsys.readouterr().err == f"{said}{table}\n"


def test_an_export_of_many_entries_is_whole(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedback, "_AT_A_TIME", 3)
    uid, api = analysed(context), client(context)
    for number in range(8):
        give(api, uid, "agree", reader=f"reader {number}")
    answer = api.get("/api/feedback.csv", headers=bearer("clinician")).text
    assert [row["reader"] for row in csv.DictReader(io.StringIO(answer))] == [
        f"reader {number}" for number in range(8)
    ]


def _with_assessments(context: Context, url: str, **more: Any) -> None:
    destinations = [{"name": "PACS", "url": url, "objects": ["sr", "assessment"], **more}]
    kept = {"data_dir": context.settings.data_dir, "database_url": context.settings.database_url}
    context.settings = load(
        **kept, study_quiet_seconds=0, min_free_bytes=0, api_tokens=entries(), destinations=destinations
    )


def test_an_assessment_goes_into_the_study_as_an_sr_and_a_changed_mind_as_another(
    context: Context, orthanc: Orthanc
) -> None:
    _with_assessments(context, orthanc.destination)
    uid, api = analysed(context, f"orthanc-{context.ledger.installation()}"), client(context)
    send_all(context)
    confirmed = study(context).state
    for assessment, own in (("agree", None), ("disagree", "absent")):
        answer = give(api, uid, assessment, finding=own, reader="Dr. Weber", note="Left base")
        assert answer.status_code == 201
        report_task.run(context)
        assert study(context).state == confirmed  # the study's own report is no less there
        send_all(context)
    assert study(context).state == confirmed
    (sr,) = [item for item in reports(context) if item.kind == Kind.SR]
    made = [item for item in reports(context) if item.kind == Kind.ASSESSMENT]
    there = {item.sop_instance_uid: item for item in orthanc.instances(uid)}
    stored = [dcmread(io.BytesIO(orthanc.download(there[item.sop_instance_uid]))) for item in made]
    assert len(stored) == 2
    exported = context.settings.data_dir.parent / "srs"
    assert export(context.settings, None, exported, None, None, notes=False) == 0
    sent = {f"{item.sop_instance_uid}.dcm": context.spool.absolute(item.path).read_bytes() for item in made}
    assert {path.name: path.read_bytes() for path in exported.iterdir()} == sent
    assert len({item.SeriesInstanceUID for item in stored}) == 1
    assert [item.InstanceNumber for item in stored] == [1, 2]
    for item in stored:
        (evidence,) = item.CurrentRequestedProcedureEvidenceSequence
        named = evidence.ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
        assert named.ReferencedSOPInstanceUID == sr.sop_instance_uid
    said = [json.dumps(item.to_json_dict()) for item in stored]
    assert ["Accepted" in said[0], "Modified" in said[1]] == [True, True]
    assert all("Dr. Weber" in item and "Left base" in item for item in said)
    replaced = stored[1].PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert replaced.ReferencedSOPInstanceUID == stored[0].SOPInstanceUID
    # They name the reader, and whoever may read studies over DICOMweb does not see them there.
    found = api.get(f"/dicomweb/studies/{uid}/instances", headers=bearer("clinician")).json()
    shown = {item["00080018"]["Value"][0] for item in found}
    assert sr.sop_instance_uid in shown
    assert not shown & {item.sop_instance_uid for item in made}


@only_sqlite
def test_a_changed_mind_names_the_sr_before_it_that_no_worker_has_made_yet(
    context: Context, tmp_path: Path
) -> None:
    uid, api = analysed(context), client(context)
    give(api, uid, "agree", reader="Dr. Weber")
    give(api, uid, "unsure", reader="Dr. Roth")
    give(api, uid, "disagree", reader="Dr. Weber")
    assert export(context.settings, None, tmp_path / "srs", None, None, notes=False) == 0
    made = sorted((dcmread(path) for path in (tmp_path / "srs").iterdir()), key=lambda sr: sr.InstanceNumber)
    assert ["PredecessorDocumentsSequence" in sr for sr in made] == [False, False, True]
    (series,) = made[2].PredecessorDocumentsSequence[0].ReferencedSeriesSequence
    assert series.SeriesInstanceUID == made[0].SeriesInstanceUID
    (before,) = series.ReferencedSOPSequence
    assert (before.ReferencedSOPClassUID, before.ReferencedSOPInstanceUID) == (
        *(made[0].SOPClassUID, made[0].SOPInstanceUID),
    )


@only_sqlite
def test_no_sr_is_made_where_no_destination_asks_for_it(context: Context) -> None:
    uid, api = analysed(context), client(context)
    give(api, uid, "agree")
    report_task.run(context)
    assert [item.kind for item in reports(context)] == ["sr", "heatmap"]
    with context.ledger.read() as session:
        assert session.scalar(select(func.count(AssessmentReport.id))) == 0


@only_sqlite
def test_a_process_that_dies_after_it_wrote_an_assessment_makes_one_the_next_time(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Death(BaseException):
        """What nothing catches."""

    def dies(name: str) -> None:
        raise Death(name)

    _with_assessments(context, "dicom://PACS@127.0.0.1:9")
    uid, api = analysed(context), client(context)
    give(api, uid, "agree")
    monkeypatch.setattr(assess, "failpoint", dies)
    with pytest.raises(Death, match=r"assess\.written"):
        report_task.run(context)
    monkeypatch.undo()
    assert Kind.ASSESSMENT not in {item.kind for item in reports(context)}
    for _ in range(2):
        hurry(context, AssessmentReport)
        report_task.run(context)
    assert [item.kind for item in reports(context)].count(Kind.ASSESSMENT) == 1


@only_sqlite
def test_an_assessment_of_a_report_that_is_lost_is_given_up_and_said(context: Context) -> None:
    _with_assessments(context, "dicom://PACS@127.0.0.1:9")
    uid, api = analysed(context), client(context)
    (sr,) = [item for item in reports(context) if item.kind == Kind.SR]
    context.spool.remove(sr.path)
    give(api, uid, "agree")
    for _ in range(3):
        hurry(context, AssessmentReport)
        report_task.run(context)
    give_up_exhausted(context.ledger)
    told = api.get(f"/api/studies/{uid}", headers=bearer("viewer")).json()
    assert told["events"][-1]["kind"] == "not_assessed"
    assert "its file is gone" in told["events"][-1]["detail"]
    assert (told["state"], told["feedback"]) == ("reported", "agree")


@only_sqlite
def test_a_newer_revision_with_rejection_notes_leaves_an_assessment_where_it_is(
    context: Context, orthanc: Orthanc
) -> None:
    _with_assessments(context, orthanc.destination, objects=["sr", "assessment", "rejection"])
    first = film("rejected-later")
    receive(context, first)
    work(context)
    send_all(context)
    uid, api = str(first.StudyInstanceUID), client(context)
    give(api, uid, "agree")
    report_task.run(context)
    send_all(context)
    receive(context, film("another", StudyInstanceUID=uid, PatientID=first.PatientID))
    work(context)
    send_all(context)
    (made,) = [item for item in reports(context) if item.kind == Kind.ASSESSMENT]
    (note,) = [item for item in reports(context) if item.kind == Kind.REJECTION]
    rejected = dcmread(context.spool.absolute(note.path)).to_json()
    (sr, _) = [item for item in reports(context) if item.kind == Kind.SR]
    assert sr.sop_instance_uid in rejected
    assert made.sop_instance_uid not in rejected


def test_an_erased_study_takes_its_feedback_with_it(context: Context) -> None:
    _with_assessments(context, "dicom://PACS@127.0.0.1:9")
    uid, api = analysed(context), client(context)
    other = analysed(context, 1)
    for study_uid in (uid, other):
        give(api, study_uid, "agree", note=SECRET)
    report_task.run(context)
    token = token_of(context, uid)
    purge(context.ledger, context.spool, Audit(context.settings, "test"), uid, "test", "a ticket")
    assert len(rows(context)) == 1
    with context.ledger.read() as session:
        assert session.scalar(select(func.count(AssessmentReport.id))) == 1
    assert api.get(f"/feedback/{token}").status_code == 404
    answer = api.post(f"/feedback/{token}", data={"assessment": "agree", "reader": "x"})
    assert answer.status_code == 404


def test_notes_and_names_go_with_the_files_and_the_assessments_stay(context: Context) -> None:
    uid, api = analysed(context), client(context)
    give(api, uid, "disagree", finding="absent", note=SECRET, reader="Dr. Weber")
    give(api, uid, "agree", "administrator")
    with context.ledger.write() as session:
        found = session.scalars(select(Study).where(Study.study_instance_uid == uid)).one()
        found.expired_at = now()
        forget_files(session, found)
    first, second = rows(context)
    assert (first.note, first.assessment, first.own_finding) == (None, "disagree", "absent")
    assert re.fullmatch(r"reader-[0-9a-f]{16}", first.reader)
    assert first.reader != second.reader
    assert "eber" not in first.reader + first.user
    # Who speaks later is taken by the same hash, and writes no note.
    assert give(api, uid, "agree", note="later").status_code == 409
    assert give(api, uid, "unsure", reader="Dr. Weber").status_code == 201
    assert rows(context)[-1].reader == first.reader
    assert "Note, without" not in api.get(f"/studies/{uid}", headers=bearer("clinician")).text


@only_sqlite
def test_the_audit_trail_tells_who_gave_feedback_and_on_whose_study(context: Context) -> None:
    uid, api = analysed(context, PatientID="P-77"), client(context)
    give(api, uid, "agree", note=SECRET)
    told = of(context.settings.data_dir, "110103")[-1]
    assert told.xpath("EventIdentification/@EventActionCode") == ["C"]
    assert told.xpath("ActiveParticipant/@UserID")[0] == "clinician-token"
    assert (objects(told, "110180"), objects(told, "2")) == ([uid], ["P-77^^^HILUM-TEST"])


@only_sqlite
def test_the_export_command_writes_a_table_and_srs(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uid, api = analysed(context), client(context)
    give(api, uid, "agree", note=SECRET)
    give(api, uid, "not_usable", "administrator")
    table, folder = tmp_path / "f.csv", tmp_path / "srs"
    assert export(context.settings, table, folder, None, None, notes=False) == 0
    assert len(table.read_text().splitlines()) == 3
    assert "CANARY" not in table.read_text()
    made = [dcmread(path) for path in sorted(folder.iterdir())]
    assert {item.StudyInstanceUID for item in made} == {uid}
    assert len(made) == 2
    again = tmp_path / "again"
    export(context.settings, None, again, None, None, notes=False)
    assert {path.name: path.read_bytes() for path in again.iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }
    with context.ledger.write() as session:
        session.execute(Report.__table__.update().values(path=""))
    assert export(context.settings, None, tmp_path / "none", None, None, notes=False) == 1
    assert f"no SR of feedback on study {uid}" in capsys.readouterr().err
