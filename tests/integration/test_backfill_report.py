"""What a back-fill comes to, held against final diagnoses; the ledger filled by hand."""

import csv
import json
from pathlib import Path

import pytest

from service.commands.backfill import report as command
from service.commands.backfill.concordance import concordance
from service.commands.backfill.diagnoses import Diagnoses, read
from service.commands.backfill.wording import Rule
from service.core import backfill
from service.core.backfill import Query
from service.core.errors import ConfigurationError
from service.core.ledger import Ledger, now
from service.core.settings import Settings, load
from service.core.states import BackfillState, FetchState
from service.core.tables import Backfill, BackfillStudy, Study, Subject
from tests.ledgers import migrated

# Study, finding, probability, final diagnosis.
_CASES = [
    *((f"1.1.{n}", "present", 0.9, "1") for n in range(8)),
    *((f"1.2.{n}", "present", 0.6 + n / 10, "0") for n in range(2)),
    ("1.3.0", "absent", 0.02, "1"),
    *((f"1.4.{n}", "absent", 0.1, "0") for n in range(9)),
    ("1.5.0", "indeterminate", 0.4, "1"),
    ("1.6.0", "not_analysed", None, "1"),
    ("1.7.0", "absent", 0.1, "see report"),
    ("1.8.0", "absent", 0.1, None),
]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = load(data_dir=tmp_path / "data", timezone="UTC", min_free_bytes=0)
    migrated(made.sqlalchemy_url)
    ledger = Ledger(made.sqlalchemy_url)
    with ledger.write() as session:
        run = backfill.start(
            session,
            "2024",
            "PACS",
            Query("20240101", "20241231", ("DX",)),
            "test",
            delivers=False,
            way="auto",
            rate=None,
            hours=None,
        )
        run.state, run.cursor = BackfillState.DONE, None
        for number, (uid, finding, probability, _) in enumerate(_CASES):
            found(session, uid, FetchState.FETCHED)
            study = Study(
                study_instance_uid=uid,
                state="reported",
                received_at=now(),
                finding=finding,
                probability=probability,
                threshold=0.5,
                backfill_id=run.id,
            )
            session.add(study)
            session.flush()
            session.add(
                Subject(
                    study_id=study.id,
                    patient_id=f"P{number}",
                    issuer_of_patient_id="",
                    patient_name="Canary^Yellow",
                    patient_birth_date="20200101",
                    patient_sex="F",
                    accession_number=f"A{number}",
                )
            )
        found(session, "1.9.0", FetchState.MISSING)
        found(session, "1.9.1", FetchState.SKIPPED)
    ledger.close()
    return made


def found(session, uid: str, state: FetchState) -> None:  # type: ignore[no-untyped-def]
    session.add(
        BackfillStudy(
            backfill_id=1,
            study_instance_uid=uid,
            study_date="20240301",
            state=state,
            ready_at=now(),
            at=now(),
        )
    )


def table(folder: Path, *, by_accession: bool = False) -> Path:
    path = folder / "diagnoses.csv"
    rows = [
        ("" if by_accession else uid, f"A{number}", said)
        for number, (uid, _, _, said) in enumerate(_CASES)
        if said is not None
    ]
    lines = ["study_instance_uid;accession number;diagnosis", *(";".join(row) for row in rows)]
    path.write_text("\n".join([*lines, "9.9.9;;1"]))
    return path


def given(path: Path) -> Diagnoses:
    return read(path, Rule.read(None))


@pytest.mark.parametrize("by_accession", [False, True])
def test_results_are_counted_against_final_diagnoses_however_studies_are_named(
    settings: Settings, tmp_path: Path, by_accession: bool
) -> None:
    ledger = Ledger(settings.sqlalchemy_url)
    with ledger.read() as session:
        run = session.get_one(Backfill, 1)
        told = concordance(session, run, given(table(tmp_path, by_accession=by_accession)))
    ledger.close()
    assert (told.tp, told.fp, told.fn, told.tn) == (8, 2, 1, 9)
    assert (told.studies, told.compared) == (25, 20)
    assert told.apart == {
        "the network says indeterminate": 1,
        "not analysed, with a reason": 1,
        "final diagnosis unclear": 1,
        "no final diagnosis": 1,
        "not here (missing)": 1,
    }
    assert told.unmatched == ["line 25"]
    # Wilson's interval of 8 of 9, and Cohen's kappa, by hand.
    assert told.sensitivity is not None
    assert (round(told.sensitivity.low, 3), round(told.sensitivity.high, 3)) == (0.565, 0.980)
    assert told.kappa == pytest.approx(0.7)
    # The farthest from the threshold comes first.
    assert [case.study_instance_uid for case in told.discordant] == ["1.3.0", "1.2.1", "1.2.0"]


def test_report_names_no_patient_and_says_what_its_pictures_are_not_there_for(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, rows = tmp_path / "report.html", tmp_path / "report.csv"
    code = command.report(
        settings, "2024", table(tmp_path), None, html=page, table=rows, most_films=2, as_json=True
    )
    assert code == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["tp"], said["discordant"], said["rule"]["version"]) == (8, 3, "hilum-1")
    html = page.read_text()
    assert "Research use only, not for diagnosis" in html
    assert "HILUM_RETAIN_DAYS" in html
    assert "The 2 farthest from the threshold are shown" in html
    for name in ("Canary", "P3", "A11"):
        assert f"{name}<" not in html
        assert name not in rows.read_text()
    with rows.open() as stream:
        lines = list(csv.DictReader(stream))
    assert len(lines) == 25
    assert sum(line["discordant"] == "1" for line in lines) == 3


def test_nothing_to_compare_and_an_unknown_name_are_said(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "others.csv"
    path.write_text("study_instance_uid,diagnosis\n9.9.9,1\n")
    assert (
        command.report(settings, "2024", path, None, html=None, table=None, most_films=0, as_json=True) == 1
    )
    with pytest.raises(ConfigurationError, match="no back-fill 2025"):
        command.report(settings, "2025", path, None, html=None, table=None, most_films=0, as_json=True)


def test_name_of_another_backfill_is_not_taken_twice(settings: Settings) -> None:
    ledger = Ledger(settings.sqlalchemy_url)
    options = {"delivers": False, "way": "auto", "rate": None, "hours": None}
    with ledger.write() as session:
        query = Query("20240101", "20241231", ("DX",))
        again = backfill.start(session, "2024", "PACS", query, "test", **options)  # type: ignore[arg-type]
        assert again.state == BackfillState.RUNNING, "what was missing gets another try"
    with ledger.write() as session, pytest.raises(ConfigurationError, match="looks for something else"):
        backfill.start(session, "2024", "PACS", Query("20250101", "20251231", ("DX",)), "test", **options)  # type: ignore[arg-type]
    ledger.close()
