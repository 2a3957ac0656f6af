"""Quality over the real API and commands, on both databases: numbers done by hand from a small ledger."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image
from sqlalchemy import select
from typer.testing import CliRunner

from service.api.app import create_app
from service.api.metrics import Drift
from service.commands.main import app
from service.core.drift import drift
from service.core.ledger import Ledger, now
from service.core.population import Beside, Described, Population, compared, sex_of
from service.core.quality import By, quality
from service.core.settings import Settings, load
from service.core.tables import Analysis, Feedback, Instance, Model, Shadow, Study, Subject
from tests.ledgers import migrated
from tests.tokens import bearer, entries

MONDAY = datetime(2026, 3, 2, 9, tzinfo=UTC)
END = MONDAY + timedelta(days=14)
CANARY = "Canary^Yellow"


class Filled:
    """A ledger that studies are written straight into."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.ledger = Ledger(settings.sqlalchemy_url)
        self._number = 0
        with self.ledger.write() as session:
            for number, role in ((1, "reporting"), (2, "shadow")):
                session.add(
                    Model(
                        id=number,
                        name="pneumonia",
                        version=f"0.{number}",
                        sha256=str(number) * 64,
                        activation_method="",
                        first_used_at=MONDAY,
                        role=role,
                        population=Population((1.0, 5.0), views=("AP",)).kept(),
                    )
                )

    def study(
        self,
        finding: str,
        *said: tuple[str, str, str | None],
        at: datetime = MONDAY,
        probability: float | None = None,
        share: float | None = None,
        shadow: tuple[str, float] | None = None,
        **film: Any,
    ) -> None:
        """Write a study of one film, and what readers said: (reader, assessment, own finding) each."""
        self._number += 1
        number = self._number
        if probability is None and finding != "not_analysed":
            probability = {"present": 0.95, "indeterminate": 0.5}.get(finding, 0.05)
        result = {"finding": finding, "probability": probability, "threshold": 0.5}
        common = {"model_id": 1, **result}
        of_study = {"study_instance_uid": f"1.2.{number}", "state": "confirmed", "received_at": at}
        sex, distance = film.pop("sex", "F"), film.pop("gate_distance", 0.3)
        strings = "sop_class_uid series_instance_uid transfer_syntax_uid acquired_at"
        with self.ledger.write() as session:
            study = Study(revision=1, review_share=share, **common, **of_study)
            session.add(study)
            session.flush()
            subject = Subject(
                study_id=study.id,
                patient_id="P",
                issuer_of_patient_id="",
                patient_name=CANARY,
                patient_birth_date="",
                patient_sex=sex,
                accession_number="",
            )
            session.add(subject)
            session.flush()
            instance = Instance(
                study_id=study.id,
                subject_id=subject.id,
                sop_instance_uid=f"1.2.{number}.1",
                digest=str(number),
                state="analysed",
                received_at=at,
                ready_at=at,
                size=1,
                presentation_intent_type="",
                patient_sex=sex_of(sex),
                **{"calling_ae_title": "ROUTER", "modality": "DX", "view_position": "", **film},
                **dict.fromkeys(strings.split(), ""),
            )
            session.add(instance)
            session.flush()
            done = {"instance_id": instance.id, "state": "done", "ready_at": at, "gate_distance": distance}
            session.add(Analysis(**done, **common))
            if shadow:
                session.add(Shadow(**done, model_id=2, finding=shadow[0], probability=shadow[1]))
            for reader, assessment, own in said:
                session.add(
                    Feedback(
                        study_id=study.id,
                        at=at,
                        revision=1,
                        assessment=assessment,
                        own_finding=own,
                        reader=reader,
                        user="",
                        source="api",
                        review_share=share,
                        **common,
                    )
                )


@pytest.fixture(params=["sqlite", "postgresql"])
def filled(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Filled]:
    url = None if request.param == "sqlite" else request.getfixturevalue("postgresql")
    settings = load(data_dir=tmp_path / "data", database_url=url, api_tokens=entries(), min_free_bytes=0)
    migrated(settings.sqlalchemy_url)
    made = Filled(settings)
    yield made
    made.ledger.close()


def client(filled: Filled) -> TestClient:
    made = create_app(filled.settings, filled.ledger)
    made.state.feed.close()
    return TestClient(made, base_url="http://127.0.0.1")


def asked(filled: Filled, **query: str) -> Any:
    given = {"from": MONDAY.isoformat(), "to": END.isoformat(), **query}
    answer = client(filled).get("/api/statistics", params=given, headers=bearer("viewer"))
    assert answer.status_code == 200, answer.text
    return answer.json()


def agree(reader: str = "A") -> tuple[str, str, None]:
    return reader, "agree", None


def disagree(reader: str = "A") -> tuple[str, str, None]:
    return reader, "disagree", None


def small(filled: Filled) -> None:
    """Ten positives, eight read, six of them right; forty negatives, four drawn and read, one missed."""
    for number in range(10):
        said = [] if number > 7 else [agree() if number < 6 else disagree()]
        filled.study("present", *said, patient_age_years=3.0, at=MONDAY + timedelta(days=number))
    for number in range(40):
        drawn = 0.1 if number < 4 else None
        said = [] if number > 3 else [agree() if number else disagree()]
        film = {"scanner": "Maker DR-1", "view_position": "PA", "modality": "CR"}
        filled.study("absent", *said, share=drawn, calling_ae_title="WARD", sex="M", **film)
    filled.study("not_analysed", sex=CANARY)


def test_numbers_are_those_done_by_hand(filled: Filled) -> None:
    small(filled)
    found = asked(filled)
    overall = found["overall"]
    assert found["studies"] == 51
    assert found["by_finding"] == {"present": 10, "absent": 40, "not_analysed": 1}
    assert found["reviewed"] == 12
    assert [overall[name] for name in ("tp", "fp", "tn", "fn")] == [6, 2, 3, 1]
    assert overall["ppv"]["value"] == 0.75
    assert overall["npv"]["value"] == 0.75
    # 7.5 of the positives are right, 10 of the negatives are missed.
    assert overall["sensitivity"]["value"] == pytest.approx(7.5 / 17.5)
    assert overall["specificity"]["value"] == pytest.approx(30 / 32.5)


@pytest.mark.parametrize(
    ("by", "groups"),
    [
        (By.WEEK, {"2026-03-02": 48, "2026-03-09": 3}),
        (By.CALLING_AE_TITLE, {"ROUTER": 11, "WARD": 40}),
        (By.MODALITY, {"DX": 11, "CR": 40}),
        (By.SCANNER, {"Maker DR-1": 40, "unknown": 11}),
        (By.VIEW, {"PA": 40, "unknown": 11}),
        (By.SEX, {"F": 10, "M": 40, "unknown": 1}),
        (By.AGE, {"1 to 5": 10, "unknown": 41}),
    ],
)
def test_studies_are_told_apart_by_what_was_asked_for(filled: Filled, by: By, groups: dict[str, int]) -> None:
    small(filled)
    found = asked(filled, by=by)
    assert {group["name"]: group["studies"] for group in found["groups"]} == groups
    for name in ("tp", "fp", "tn", "fn"):
        assert sum(group["figures"][name] for group in found["groups"]) == found["overall"][name]


def test_the_newest_word_of_each_reader_counts_and_most_readers_decide(filled: Filled) -> None:
    filled.study("present", disagree(), agree())
    filled.study("present", agree("A"), agree("B"), disagree("C"))
    filled.study("present", agree("A"), disagree("B"))
    filled.study("present", ("A", "unsure", None))
    filled.study("present", ("A", "not_usable", None), ("B", "unsure", None))
    filled.study("indeterminate", ("A", "disagree", "present"))
    filled.study("absent", ("A", "disagree", "indeterminate"))
    found = asked(filled)
    assert [found["overall"][name] for name in ("tp", "fp", "tn", "fn")] == [2, 0, 0, 0]
    assert found["apart"] == {"readers disagree": 1, "unsure": 2, "not usable": 1, "no finding": 1}
    assert found["reviewed"] == 7


def test_what_lies_outside_of_the_time_does_not_count(filled: Filled) -> None:
    filled.study("present", agree(), at=MONDAY - timedelta(seconds=1))
    filled.study("present", agree(), at=MONDAY)
    filled.study("present", agree(), at=END)
    assert asked(filled)["overall"]["tp"] == 1


def test_a_shift_of_scores_and_refusals_is_an_alert_and_none_is_none(filled: Filled) -> None:
    for number in range(60):
        filled.study("absent", at=MONDAY - timedelta(days=3), probability=0.1 + number / 1000)
        filled.study("absent", at=MONDAY, probability=0.3 + number / 1000, gate_distance=0.8)
        if number % 3 == 0:
            filled.study("not_analysed", at=MONDAY, gate_distance=0.8)
    found = {change["name"]: change for change in asked(filled)["drift"]}
    assert {name for name, change in found.items() if change["is_alert"]} == {
        "score",
        "refusals",
        "gate_distance",
    }
    assert found["score"]["ks"] == 1
    assert found["refusals"]["current"] == 0.25
    assert found["gate_distance"]["current"] == pytest.approx(0.8, abs=0.011)
    with filled.ledger.read() as session:
        early = MONDAY - timedelta(days=6), MONDAY - timedelta(days=2)
        assert not any(change.is_alert for change in drift(session, *early, *early))


def test_too_few_studies_are_no_proof_that_nothing_has_drifted(
    filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    window = f"from={MONDAY:%Y-%m-%d}&to={END:%Y-%m-%d}"
    for number in range(120):
        at, image = (MONDAY, 0.5) if number % 2 else (MONDAY - timedelta(days=3), None)
        if number == 90:
            page = client(filled).get(f"/quality?{window}", headers=bearer("viewer")).text
            assert "Too few studies to tell of any drift" in page
            assert ">no</td>" not in page
        filled.study("absent", at=at, image_mean=image)
    # The films of the window before have no image statistics, as those of an earlier version.
    page = client(filled).get(f"/quality?{window}", headers=bearer("viewer")).text
    assert "No alert against" in page
    assert re.search(r"Grey value of the films[^/]*</th>.*>too few</td></tr>", page)
    assert re.search(r"Probability, mean</th>.*>no</td></tr>", page)
    code, output = _run(
        filled, monkeypatch, "quality", "--from", f"{MONDAY:%Y-%m-%d}", "--to", f"{END:%Y-%m-%d}"
    )
    assert code == 0
    assert "0.500 now (too few to tell)" in output


def test_studies_outside_of_the_validated_range_are_counted_as_one_film_is_compared(filled: Filled) -> None:
    films = [
        {"patient_age_years": 3.0, "view_position": "AP"},
        {"patient_age_years": 5.9, "view_position": "PA"},
        {"patient_age_years": 6.0, "view_position": "AP"},
        {"patient_age_years": 0.9},
        {"scanner": "Maker DR-1"},
    ]
    for film in films:
        filled.study("present", **film)
    validated = Population((1.0, 5.0), views=("AP",))
    alone = [
        {
            each.attribute: each.beside
            for each in compared(
                Described(film.get("patient_age_years"), "F", film.get("view_position", ""), ""), validated
            )
        }
        for film in films
    ]
    found = asked(filled, by="view")
    rows = {row["attribute"]: row for row in found["coverage"]}
    assert {name: (row["outside"], row["unknown"]) for name, row in rows.items()} == {
        "age": (2, 1),
        "sex": (0, 0),
        "view": (1, 2),
        "scanner": (0, 4),
    }
    for name in ("age", "view"):
        assert rows[name]["outside"] == sum(each[name] is Beside.OUTSIDE for each in alone)
        assert rows[name]["unknown"] == sum(each[name] is Beside.UNKNOWN for each in alone)
    assert {row["name"]: row["outside"] for row in found["groups"]} == {"AP": 1, "PA": 1, "unknown": 1}


def test_what_the_validated_films_have_on_record_decides_what_is_outside(filled: Filled) -> None:
    population = Population((0.0, 120.0), sexes=("F",), scanners=("Maker DR-1",))
    with filled.ledger.write() as session:
        session.get_one(Model, 1).population = population.kept()
    for name in ("Maker DR-1", "Maker DR-12", ""):
        filled.study("present", scanner=name, view_position="PA")
        filled.study("present", scanner=name, sex="M")
    rows = {row["attribute"]: (row["outside"], row["unknown"]) for row in asked(filled)["coverage"]}
    assert rows == {"age": (0, 6), "sex": (3, 0), "view": (0, 3), "scanner": (2, 2)}
    assert sum(group["outside"] for group in asked(filled)["groups"]) == 4


def test_drift_of_the_images_is_told_before_that_of_the_results(filled: Filled) -> None:
    for number in range(60):
        film = {"image_deviation": 0.2, "image_entropy": 0.8 + number / 1000, "image_clipped": 0.01}
        filled.study("absent", at=MONDAY - timedelta(days=3), image_mean=0.3 + number / 1000, **film)
        film["image_clipped"] = 0.2
        filled.study("absent", at=MONDAY, image_mean=0.3 + (59 - number) / 1000, **film)
    found = {change["name"]: change for change in asked(filled)["drift"]}
    assert {name for name, change in found.items() if change["is_alert"]} == {"image_clipped"}
    assert found["image_clipped"]["current"] == pytest.approx(0.2, abs=0.001)
    page = client(filled).get(f"/quality?from={MONDAY:%Y-%m-%d}&to={END:%Y-%m-%d}", headers=bearer("viewer"))
    assert "Black or white to the limit, share of a film&#39;s pixels, mean has shifted" in page.text


def test_of_many_studies_some_are_looked_at_and_rates_are_of_all(
    filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.core.drift._LOOKED_AT", 40)
    for number in range(100):
        filled.study("present" if number % 2 else "absent", image_mean=0.5)
    found = {change["name"]: change for change in asked(filled)["drift"]}
    assert found["positives"]["current_studies"] == 100
    assert found["positives"]["current"] == 0.5
    # Every third of 100, by a hash: and of two that take turns, both.
    assert 20 <= found["score"]["current_studies"] == found["image_mean"]["current_studies"] <= 46
    assert 0.3 < found["score"]["current"] < 0.7


def test_drift_is_scraped(filled: Filled) -> None:
    for number in range(60):
        before, now_ = (now() - timedelta(days=days) for days in (9, 2))
        film = {"patient_age_years": 60.0, "view_position": "AP", "image_deviation": 0.2}
        filled.study("absent", at=before, probability=0.1 + number / 1000, image_mean=0.4, **film)
        filled.study("absent", at=now_, probability=0.3 + number / 1000, image_mean=0.6, **film)
    with filled.ledger.read() as session:
        metrics = {metric.name: metric for metric in Drift().metrics(session)}
    told = {sample.labels["watched"]: sample.value for sample in metrics["hilum_drift_alert"].samples}
    quiet = ("refusals", "positives", "gate_distance", "image_deviation", "image_entropy", "image_clipped")
    assert told == {"score": 1.0, "image_mean": 1.0, **dict.fromkeys(quiet, 0.0)}
    distances = {sample.labels["watched"]: sample.value for sample in metrics["hilum_drift_ks"].samples}
    assert distances["image_mean"] == 1
    outside = metrics["hilum_outside_validated_range"].samples
    assert {sample.labels["attribute"]: sample.value for sample in outside} == {"age": 1.0, "view": 0.0}
    shifts = {sample.labels["watched"]: sample.value for sample in metrics["hilum_drift_psi"].samples}
    assert shifts["score"] > 1 > shifts["gate_distance"]


def test_a_header_that_names_many_callers_leaves_a_page_that_can_be_read(filled: Filled) -> None:
    for number in range(70):
        filled.study("present", agree(), calling_ae_title=f"A{number}")
    with filled.ledger.read() as session:
        found = quality(session, MONDAY, END, By.CALLING_AE_TITLE)
    assert len(found.groups) == 61
    assert (found.groups[-1].name, found.groups[-1].studies) == ("all others", 10)
    assert sum(group.figures.tp for group in found.groups) == 70


def test_the_page_names_no_patient_and_says_what_cannot_be_told(filled: Filled) -> None:
    api = client(filled)
    empty = api.get("/quality", headers=bearer("viewer"))
    assert empty.status_code == 200
    assert "No study has a result in this time." in empty.text
    small(filled)
    for by in By:
        address = f"/quality?from={MONDAY:%Y-%m-%d}&to={END:%Y-%m-%d}&by={by}"
        answer = api.get(address, headers=bearer("viewer"))
        assert answer.status_code == 200
        assert "75.0 %" in answer.text
        assert CANARY not in answer.text
    assert api.get("/quality", follow_redirects=False).headers["location"].startswith("/login")
    assert api.get("/api/statistics").status_code == 401


@pytest.mark.parametrize(
    "query",
    [
        {"from": "2026-03-02", "to": "2026-03-02"},
        {"from": "0001-01-01", "to": "2026-03-02"},
        {"from": "9999-12-31T23:00:00-05:00"},
        {"from": "1990-01-01", "to": "2026-01-01"},
        {"by": "patient"},
        {"reference_days": "0"},
    ],
)
def test_a_time_that_is_none_is_refused(filled: Filled, query: dict[str, str]) -> None:
    answer = client(filled).get("/api/statistics", params=query, headers=bearer("viewer"))
    assert answer.status_code == 422


def _run(filled: Filled, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str]:
    monkeypatch.setenv("HILUM_DATA_DIR", str(filled.settings.data_dir))
    if filled.settings.database_url:
        monkeypatch.setenv("HILUM_DATABASE_URL", filled.settings.database_url)
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.stdout


def test_the_command_writes_one_file_that_needs_nothing_beside_it(
    filled: Filled, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small(filled)
    window = ["--from", "2026-03-02", "--to", "2026-03-16"]
    path = tmp_path / "quality.html"
    code, output = _run(filled, monkeypatch, "quality", *window, "--html", str(path), "--json")
    assert code == 0
    assert json.loads(output)["overall"]["ppv"]["value"] == 0.75
    written = path.read_text(encoding="utf-8")
    assert "Research use only" in written
    assert "<svg" in written
    assert CANARY not in written
    assert re.findall(r"(?:src|href)=|url\(|<script|@import", written) == []
    code, output = _run(filled, monkeypatch, "quality", *window, "--by", "sex")
    assert code == 0
    assert "75.0%" in output
    assert "Research use only, not for diagnosis." in output
    assert _run(filled, monkeypatch, "quality", "--from", "2026-03-02", "--to", "2026-03-01")[0] != 0


def test_two_models_are_compared_on_the_films_that_both_looked_at(
    filled: Filled, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    filled.study("present")  # the shadow did not look
    for number in range(6):  # the shadow is right alone
        filled.study("present", disagree(), probability=0.6 + number / 100, shadow=("absent", 0.1))
    films = filled.settings.data_dir / "films"
    films.mkdir(parents=True, exist_ok=True)
    Image.new("L", (40, 50), 90).save(films / "f.png")
    filled.study("absent", disagree(), shadow=("present", 0.9), picture_path="films/f.png")
    filled.study("absent", agree(), shadow=("present", 0.8))
    for number in range(4):
        filled.study("present", agree(), probability=0.9, shadow=("present", 0.7 + number / 100))
    filled.study("absent", shadow=("absent", 0.2))
    filled.study("absent", shadow=("not_analysed", 0.0))
    path = tmp_path / "models.html"
    code, output = _run(filled, monkeypatch, "model", "compare", "0.2", "--json", "--html", str(path))
    assert code == 0
    found = json.loads(output)
    assert (found["films"], found["decided"], found["read"]) == (14, 13, 12)
    assert found["table"] == {
        "present/present": 4,
        "present/absent": 6,
        "absent/present": 2,
        "absent/absent": 1,
    }
    assert (found["only_first_right"], found["only_second_right"]) == (1, 7)
    assert found["mcnemar_p"] == pytest.approx(2 * (1 + 8) / 256)
    assert len(found["disagreements"]) == 9
    assert found["disagreements"][-1]["second"] == "not_analysed"
    assert found["areas"]["difference"] > 0
    written = path.read_text(encoding="utf-8")
    assert "1.2.2.1" in written
    assert CANARY not in written
    assert written.count('src="data:image/jpeg;base64,') == 1
    assert re.findall(r'(?:src|href)="(?!data:)', written) == []
    with filled.ledger.read() as session:
        assert all(model.sha256 in written for model in session.scalars(select(Model)))
    code, output = _run(filled, monkeypatch, "model", "compare", "0.2")
    assert "DeLong" in output
    assert _run(filled, monkeypatch, "model", "compare", "0.1")[0] == 1
