"""The ledger on both of its databases: custody, leases, completion."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from pydicom import Dataset
from sqlalchemy import func, select, update

from service.core import migrations
from service.core.claims import claim
from service.core.completion import conclude_due_studies
from service.core.errors import (
    ConfigurationError,
    InvalidUID,
    LeaseLost,
    Mismatch,
    OutOfResources,
    Unreadable,
)
from service.core.leases import (
    DECODE,
    MAX_ATTEMPTS,
    REPORT,
    held,
    release,
)
from service.core.ledger import Ledger, check_migrated, migrate, now, open_engine, register_model
from service.core.receive import Arrival, Intake, Outcome, sweep_incoming
from service.core.retry import retry_study
from service.core.settings import Settings, load
from service.core.spool import Spool, older_data_set_digest
from service.core.states import AnalysisState, InstanceState, RevisionState, StudyState
from service.core.tables import Analysis, Base, Instance, Model, Revision, Study, Subject
from service.scheduler.scheduler import give_up_exhausted
from tests import factories
from tests.servers import eventually


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load(data_dir=tmp_path / "data", study_quiet_seconds=0, min_free_bytes=0)


@pytest.fixture
def spool(settings: Settings) -> Spool:
    made = Spool(settings.data_dir)
    made.make()
    return made


@pytest.fixture
def intake(ledger: Ledger, spool: Spool, settings: Settings) -> Intake:
    return Intake(ledger, spool, settings)


def arrive(intake: Intake, spool: Spool, dataset: Dataset, **said: str) -> Outcome:
    """Let a data set arrive as from a sender; `said` is what its command says otherwise."""
    path = factories.write(dataset, spool.incoming)
    return intake.receive(
        Arrival(
            path,
            "TEST",
            said.get("sop_class_uid", dataset.SOPClassUID),
            said.get("sop_instance_uid", dataset.SOPInstanceUID),
        )
    )


def study_of(ledger: Ledger, dataset: Dataset) -> Study:
    with ledger.read() as session:
        return session.scalars(
            select(Study).where(Study.study_instance_uid == dataset.StudyInstanceUID)
        ).one()


def instances_of(ledger: Ledger) -> list[Instance]:
    with ledger.read() as session:
        return list(session.scalars(select(Instance).order_by(Instance.id)))


def analysed(ledger: Ledger, probability: float = 0.9) -> None:
    """Let every image that waits be analysed, as the workers would."""
    with ledger.write() as session:
        model_id = register_model(session, "test", "1", "f" * 64, "none")
        for instance in session.scalars(select(Instance).where(Instance.state == InstanceState.RECEIVED)):
            instance.state = InstanceState.ANALYSED
            session.add(
                Analysis(
                    instance_id=instance.id,
                    model_id=model_id,
                    state=AnalysisState.DONE,
                    ready_at=now(),
                    finding="present",
                    probability=probability,
                    threshold=0.5,
                )
            )


def revisions_of(ledger: Ledger) -> list[Revision]:
    with ledger.read() as session:
        return list(session.scalars(select(Revision).order_by(Revision.number)))


def test_migrating_twice_changes_nothing_and_keeps_the_installation(url: str, ledger: Ledger) -> None:
    before = ledger.installation()
    migrate(url)
    assert ledger.installation() == before
    assert check_migrated(url)


def test_the_migrations_make_the_tables_that_the_code_describes(url: str) -> None:
    engine = open_engine(url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    engine.dispose()


def test_a_ledger_of_the_first_release_keeps_its_studies(url: str, ledger: Ledger) -> None:
    with ledger.write() as session:
        model_id = register_model(session, "test", "1", "f" * 64, "none")
        study = Study(study_instance_uid="1.2.3", state=StudyState.REPORTED, received_at=now(), revision=1)
        session.add(study)
        session.flush()
        instance = Instance(
            **dict.fromkeys(("sop_instance_uid", "sop_class_uid", "series_instance_uid"), "1.2.3.4"),
            **dict.fromkeys(("transfer_syntax_uid", "digest"), "1.2"),
            **dict.fromkeys(("calling_ae_title", "modality", "view_position", "acquired_at"), ""),
            presentation_intent_type="",
            study_id=study.id,
            state=InstanceState.ANALYSED,
            received_at=now(),
            ready_at=now(),
            size=1,
        )
        session.add(instance)
        session.flush()
        session.add(
            Analysis(instance_id=instance.id, model_id=model_id, state=AnalysisState.DONE, ready_at=now())
        )
        session.add(
            Revision(
                study_id=study.id,
                model_id=model_id,
                number=1,
                header_revision=0,
                build=0,
                instance_ids=[instance.id],
                state=RevisionState.REPORTED,
                created_at=now(),
                ready_at=now(),
            )
        )
    engine = open_engine(url)
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0001")
    engine.dispose()
    with pytest.raises(ConfigurationError, match="hilum migrate"):
        check_migrated(url)
    migrate(url)
    assert [item.says_chest for item in instances_of(ledger)] == [False]
    assert [item.model_id for item in revisions_of(ledger)] == [model_id]
    with ledger.read() as session:
        assert session.scalar(select(func.count()).select_from(Analysis)) == 1


def test_a_ledger_that_was_never_migrated_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="hilum migrate"):
        check_migrated(f"sqlite:///{tmp_path / 'empty.sqlite3'}")


def test_an_object_in_custody_is_on_disk_and_in_the_ledger(
    intake: Intake, spool: Spool, ledger: Ledger
) -> None:
    film = factories.phantom_chest()
    assert arrive(intake, spool, film) is Outcome.STORED
    (instance,) = instances_of(ledger)
    assert instance.spool_path is not None
    assert spool.absolute(instance.spool_path).exists()
    assert not list(spool.incoming.iterdir())
    assert study_of(ledger, film).state == StudyState.RECEIVING


def test_the_same_bytes_again_are_no_second_instance(intake: Intake, spool: Spool, ledger: Ledger) -> None:
    film = factories.phantom_chest()
    arrive(intake, spool, film)
    assert arrive(intake, spool, film) is Outcome.DUPLICATE
    assert len(instances_of(ledger)) == 1
    assert len(list((spool.root / "spool").rglob("*.dcm"))) == 1


def test_an_object_of_an_earlier_version_is_compared_by_the_digest_of_then(
    intake: Intake, spool: Spool, ledger: Ledger
) -> None:
    film = factories.phantom_chest()
    arrive(intake, spool, film)
    with ledger.write() as session:
        (instance,) = session.scalars(select(Instance)).all()
        instance.digest = older_data_set_digest(spool.absolute(str(instance.spool_path)))
    assert arrive(intake, spool, film) is Outcome.DUPLICATE
    film.PatientName = "Other^Spelling"
    assert arrive(intake, spool, film) is Outcome.STORED
    assert arrive(intake, spool, film) is Outcome.DUPLICATE
    assert len(instances_of(ledger)) == 2


def test_eight_senders_of_the_same_instance_make_one_row(
    intake: Intake, spool: Spool, ledger: Ledger
) -> None:
    film = factories.phantom_chest()
    folders = [spool.incoming / str(number) for number in range(8)]
    paths = [factories.write(film, folder) for folder in folders]

    def push(path: Path) -> Outcome:
        return intake.receive(Arrival(path, "TEST", film.SOPClassUID, film.SOPInstanceUID))

    with ThreadPoolExecutor(8) as senders:
        outcomes = list(senders.map(push, paths))
    assert sorted(outcomes) == ["duplicate"] * 7 + ["stored"]
    assert len(instances_of(ledger)) == 1


def test_what_waits_is_written_together_and_one_that_may_not_come_keeps_no_other_one_out(
    intake: Intake, spool: Spool, ledger: Ledger
) -> None:
    films = [factories.phantom_chest(number) for number in range(6)]
    arrive(intake, spool, films[0])
    with ledger.write() as session:
        session.scalars(select(Study)).one().removing = True
    again = factories.phantom_chest(0, SOPInstanceUID="1.2.3")
    with ThreadPoolExecutor(6) as senders:
        with ledger.write() as session:  # so that all of them wait
            session.scalars(select(Study).with_for_update()).all()
            came = [senders.submit(arrive, intake, spool, film) for film in (again, *films[1:])]
            eventually(lambda: len(list((spool.root / "spool").rglob("*.dcm"))) == 7)
        faults = [future.exception(30) for future in came]
    assert isinstance(faults[0], OutOfResources)
    assert faults[1:] == [None] * 5
    assert len(instances_of(ledger)) == 6
    assert not list(spool.incoming.iterdir())


def test_a_ct_slice_is_answered_and_recorded_but_not_kept(
    intake: Intake, spool: Spool, ledger: Ledger
) -> None:
    assert arrive(intake, spool, factories.ct_slice()) is Outcome.IGNORED
    (instance,) = instances_of(ledger)
    assert (instance.state, instance.spool_path) == (InstanceState.IGNORED, None)
    assert "CT Image Storage" in str(instance.reason)
    assert not list((spool.root / "spool").rglob("*.dcm"))


def test_what_the_command_names_otherwise_is_a_mismatch(intake: Intake, spool: Spool, ledger: Ledger) -> None:
    with pytest.raises(Mismatch):
        arrive(intake, spool, factories.phantom_chest(), sop_instance_uid="1.2.3")
    with pytest.raises(Mismatch):
        arrive(intake, spool, factories.phantom_chest(), sop_class_uid="1.2.840.10008.5.1.4.1.1.2")
    assert not instances_of(ledger)
    assert not list(spool.incoming.iterdir())


def test_a_uid_that_is_a_path_is_refused_and_writes_nothing(
    intake: Intake, spool: Spool, tmp_path: Path
) -> None:
    film = factories.phantom_chest()
    path = factories.write(film, spool.incoming)
    hostile = path.read_bytes().replace(
        str(film.StudyInstanceUID).encode(), b"../../" + b"x" * (len(film.StudyInstanceUID) - 6)
    )
    path.write_bytes(hostile)
    with pytest.raises(InvalidUID):
        intake.receive(Arrival(path, "TEST", film.SOPClassUID, film.SOPInstanceUID))
    assert not [item for item in tmp_path.iterdir() if item.name != "data" and "ledger" not in item.name]


def test_a_text_file_is_unreadable(intake: Intake, spool: Spool) -> None:
    path = spool.incoming / "text.dcm"
    path.write_text("Dear PACS, please find attached nothing.\n" * 50)
    with pytest.raises(Unreadable):
        intake.receive(Arrival(path, "TEST", "1.2", "1.2"))
    assert not path.exists()


def test_a_full_disk_is_out_of_resources_and_keeps_nothing(
    ledger: Ledger, spool: Spool, settings: Settings
) -> None:
    intake = Intake(ledger, spool, settings.model_copy(update={"min_free_bytes": 1 << 60}))
    with pytest.raises(OutOfResources):
        arrive(intake, spool, factories.phantom_chest())
    assert not instances_of(ledger)
    assert not list(spool.incoming.iterdir())


def test_patients_are_named_in_one_table_only(intake: Intake, spool: Spool, ledger: Ledger) -> None:
    arrive(intake, spool, factories.phantom_chest(PatientName="Canary^Yellow", AccessionNumber="CANARY1"))
    with ledger.read() as session:
        subject = session.scalars(select(Subject)).one()
        assert subject.patient_name == "Canary^Yellow"
        for table in (Study, Instance):
            for row in session.scalars(select(table)):
                assert "anary" not in str(vars(row)).replace(str(subject), "")


def test_old_leftovers_of_broken_transfers_are_swept(spool: Spool) -> None:
    (spool.incoming / "left").write_bytes(b"half a film")
    assert sweep_incoming(spool, older_than_seconds=60) == 0
    assert sweep_incoming(spool, older_than_seconds=-1) == 1
    assert not list(spool.incoming.iterdir())


def test_work_is_leased_to_one_worker_only(intake: Intake, spool: Spool, ledger: Ledger, url: str) -> None:
    for seed in range(6):
        arrive(intake, spool, factories.phantom_chest(seed))
    with ThreadPoolExecutor(4) as workers:
        leases = [
            lease for found in workers.map(lambda _: claim(ledger, DECODE, 2), range(4)) for lease in found
        ]
    assert sorted(lease.row_id for lease in leases) == sorted(item.id for item in instances_of(ledger))


def test_a_result_under_a_lost_lease_is_dropped(intake: Intake, spool: Spool, ledger: Ledger) -> None:
    arrive(intake, spool, factories.phantom_chest())
    (slow,) = claim(ledger, DECODE, 1, seconds=-1)
    (quick,) = claim(ledger, DECODE, 1)
    assert quick.token == slow.token + 1
    with pytest.raises(LeaseLost), ledger.write() as session:
        held(session, slow)
    with ledger.write() as session:
        assert held(session, quick)[0].id == slow.row_id


def test_released_work_waits_its_time_and_keeps_its_error(
    intake: Intake, spool: Spool, ledger: Ledger
) -> None:
    arrive(intake, spool, factories.phantom_chest())
    (lease,) = claim(ledger, DECODE, 1)
    release(ledger, lease, "it went wrong", 60)
    assert not claim(ledger, DECODE, 1)
    assert instances_of(ledger)[0].last_error == "it went wrong"


def test_work_that_kills_its_process_each_time_is_given_up(
    intake: Intake, spool: Spool, ledger: Ledger
) -> None:
    film = factories.phantom_chest()
    arrive(intake, spool, film)
    for _ in range(MAX_ATTEMPTS):
        assert claim(ledger, DECODE, 1, seconds=-1)
    assert not claim(ledger, DECODE, 1)
    give_up_exhausted(ledger)
    conclude_due_studies(ledger)
    study = study_of(ledger, film)
    assert study.state == StudyState.FAILED
    assert "the process died" in str(study.reason)


def test_a_quiet_study_with_all_images_analysed_gets_one_revision(
    intake: Intake, spool: Spool, ledger: Ledger
) -> None:
    film = factories.phantom_chest()
    arrive(intake, spool, film)
    conclude_due_studies(ledger)
    assert study_of(ledger, film).state == StudyState.ANALYSING
    assert not revisions_of(ledger)
    analysed(ledger)
    conclude_due_studies(ledger)
    conclude_due_studies(ledger)
    (revision,) = revisions_of(ledger)
    assert (revision.number, revision.state) == (1, RevisionState.PENDING)


def test_a_study_is_not_concluded_before_its_quiet_time(
    ledger: Ledger, spool: Spool, settings: Settings
) -> None:
    intake = Intake(ledger, spool, settings.model_copy(update={"study_quiet_seconds": 60}))
    arrive(intake, spool, factories.phantom_chest())
    analysed(ledger)
    assert conclude_due_studies(ledger) == 0


def test_a_new_image_restarts_the_quiet_time_up_to_the_longest_wait(
    ledger: Ledger, spool: Spool, settings: Settings
) -> None:
    patient = Intake(
        ledger, spool, settings.model_copy(update={"study_quiet_seconds": 60, "study_max_wait_seconds": 90})
    )
    first = factories.phantom_chest(1, study="s")
    arrive(patient, spool, first)
    begun = study_of(ledger, first)
    assert begun.first_eligible_at is not None
    assert begun.due_at is not None
    with ledger.write() as session:
        earlier = begun.first_eligible_at - timedelta(seconds=80)
        session.execute(update(Study).values(first_eligible_at=earlier, due_at=earlier))
    arrive(patient, spool, factories.phantom_chest(2, study="s"))
    assert study_of(ledger, first).due_at == earlier + timedelta(seconds=90)


def test_a_late_image_opens_the_next_revision(intake: Intake, spool: Spool, ledger: Ledger) -> None:
    for seed in (1, 2):
        arrive(intake, spool, factories.phantom_chest(seed, study="s"))
        analysed(ledger)
        conclude_due_studies(ledger)
        with ledger.write() as session:
            session.execute(update(Revision).values(state=RevisionState.REPORTED))
    assert [(item.number, len(item.instance_ids)) for item in revisions_of(ledger)] == [(1, 1), (2, 2)]


def test_a_late_image_that_is_not_analysed_makes_no_revision(
    intake: Intake, spool: Spool, ledger: Ledger
) -> None:
    film = factories.phantom_chest(1, study="s")
    arrive(intake, spool, film)
    analysed(ledger)
    conclude_due_studies(ledger)
    arrive(intake, spool, factories.lateral_film(2, study="s", rows=64, columns=64))
    arrive(intake, spool, factories.basic_text_sr(3, study="s"))
    conclude_due_studies(ledger)
    assert len(revisions_of(ledger)) == 1


def test_a_revision_that_was_never_built_speaks_of_the_later_image_too(
    intake: Intake, spool: Spool, ledger: Ledger
) -> None:
    for seed in (1, 2):
        arrive(intake, spool, factories.phantom_chest(seed, study="s"))
        analysed(ledger)
        conclude_due_studies(ledger)
    assert [(item.number, len(item.instance_ids)) for item in revisions_of(ledger)] == [(1, 2)]


def test_a_report_under_way_is_withdrawn_when_the_study_is_held(
    intake: Intake, spool: Spool, ledger: Ledger
) -> None:
    film = factories.phantom_chest(1, study="s", PatientID="A")
    arrive(intake, spool, film)
    analysed(ledger)
    conclude_due_studies(ledger)
    (lease,) = claim(ledger, REPORT, 1)
    arrive(intake, spool, factories.lateral_film(2, study="s", PatientID="B", rows=64, columns=64))
    conclude_due_studies(ledger)
    assert study_of(ledger, film).state == StudyState.HELD
    with pytest.raises(LeaseLost), ledger.write() as session:
        held(session, lease)
    with ledger.write() as session:
        retry_study(session, session.scalars(select(Study)).one())
    conclude_due_studies(ledger)
    assert study_of(ledger, film).state == StudyState.HELD


def test_a_wrong_patient_corrected_by_a_resend_frees_the_study(
    intake: Intake, spool: Spool, ledger: Ledger
) -> None:
    film = factories.phantom_chest(1, study="s", PatientID="A")
    arrive(intake, spool, film)
    lateral = {"study": "s", "rows": 64, "columns": 64}
    arrive(intake, spool, factories.lateral_film(2, PatientID="B", **lateral))
    analysed(ledger)
    conclude_due_studies(ledger)
    assert study_of(ledger, film).state == StudyState.HELD
    arrive(intake, spool, factories.lateral_film(2, PatientID="A", **lateral))
    conclude_due_studies(ledger)
    assert study_of(ledger, film).state == StudyState.ANALYSING
    assert study_of(ledger, film).attention is None
    assert len(revisions_of(ledger)) == 1


def test_a_study_that_waits_keeps_no_finished_one_from_its_answer(
    intake: Intake, spool: Spool, ledger: Ledger
) -> None:
    for seed in range(3):
        arrive(intake, spool, factories.phantom_chest(seed))
    knee = factories.knee_film(9, rows=64, columns=64)
    arrive(intake, spool, knee)
    conclude_due_studies(ledger, limit=2)
    assert study_of(ledger, knee).state == StudyState.REPORTED


def test_bytes_that_got_lost_are_taken_again(intake: Intake, spool: Spool, ledger: Ledger) -> None:
    film = factories.phantom_chest()
    arrive(intake, spool, film)
    (row,) = instances_of(ledger)
    spool.remove(row.spool_path)
    assert arrive(intake, spool, film) is Outcome.STORED
    (row,) = instances_of(ledger)
    assert spool.absolute(str(row.spool_path)).exists()


def test_a_study_of_a_knee_ends_with_a_reason_and_no_number(
    intake: Intake, spool: Spool, ledger: Ledger
) -> None:
    film = factories.knee_film(rows=64, columns=64)
    arrive(intake, spool, film)
    conclude_due_studies(ledger)
    study = study_of(ledger, film)
    assert (study.state, study.finding, study.probability) == (StudyState.REPORTED, "not_analysed", None)
    assert "not a frontal chest radiograph" in str(study.result_reason)


def test_two_patients_under_one_study_are_held(intake: Intake, spool: Spool, ledger: Ledger) -> None:
    film = factories.phantom_chest(1, study="s", PatientID="A")
    arrive(intake, spool, film)
    arrive(intake, spool, factories.phantom_chest(2, study="s", PatientID="B"))
    analysed(ledger)
    conclude_due_studies(ledger)
    study = study_of(ledger, film)
    assert study.state == StudyState.HELD
    assert study.attention
    assert not revisions_of(ledger)


def test_a_film_for_processing_gives_way_to_the_same_view_for_presentation(
    intake: Intake, spool: Spool, ledger: Ledger
) -> None:
    arrive(intake, spool, factories.phantom_chest(1, study="s"))
    arrive(intake, spool, factories.for_processing_film(2, study="s", rows=64, columns=64))
    analysed(ledger)
    conclude_due_studies(ledger)
    states = {item.presentation_intent_type: item.state for item in instances_of(ledger)}
    assert states == {
        "FOR PRESENTATION": InstanceState.ANALYSED,
        "FOR PROCESSING": InstanceState.NOT_ANALYSED,
    }


def test_an_unfinished_write_leaves_nothing(ledger: Ledger) -> None:
    def broken() -> None:
        with ledger.write() as session:
            register_model(session, "test", "1", "f" * 64, "none")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    with ledger.read() as session:
        assert session.scalar(select(func.count()).select_from(Model)) == 0


def test_a_chest_that_is_not_analysed_opens_a_revision_and_a_knee_does_not(
    intake: Intake, spool: Spool, ledger: Ledger
) -> None:
    lateral = factories.lateral_film(1, rows=64, columns=64)
    knee = factories.knee_film(2, rows=64, columns=64)
    for film in (lateral, knee, factories.ct_slice(3)):
        arrive(intake, spool, film)
    conclude_due_studies(ledger)
    (revision,) = revisions_of(ledger)
    assert (revision.study_id, revision.model_id) == (study_of(ledger, lateral).id, None)
    assert study_of(ledger, lateral).state == StudyState.ANALYSING
    assert study_of(ledger, lateral).finding == "not_analysed"
    assert study_of(ledger, knee).state == StudyState.REPORTED


def test_a_knee_opens_a_revision_where_every_radiograph_is_reported_and_a_ct_does_not(
    intake: Intake, spool: Spool, ledger: Ledger
) -> None:
    knee = factories.knee_film(2, rows=64, columns=64)
    for film in (knee, factories.ct_slice(3)):
        arrive(intake, spool, film)
    conclude_due_studies(ledger, report_every_radiograph=True)
    assert [item.study_id for item in revisions_of(ledger)] == [study_of(ledger, knee).id]


def test_a_later_film_that_is_not_analysed_either_makes_no_second_report(
    intake: Intake, spool: Spool, ledger: Ledger
) -> None:
    for seed in (1, 2):
        arrive(intake, spool, factories.lateral_film(seed, study="s", rows=64, columns=64))
        conclude_due_studies(ledger)
        with ledger.write() as session:
            session.execute(update(Revision).values(state=RevisionState.REPORTED))
            session.execute(update(Study).values(revision=1))
    assert len(revisions_of(ledger)) == 1


def test_the_first_chest_among_unanalysed_films_is_news(intake: Intake, spool: Spool, ledger: Ledger) -> None:
    knee = factories.knee_film(1, study="s", rows=64, columns=64)
    for film in (knee, factories.lateral_film(2, study="s", rows=64, columns=64)):
        arrive(intake, spool, film)
        conclude_due_studies(ledger, report_every_radiograph=True)
        with ledger.write() as session:
            session.execute(update(Revision).values(state=RevisionState.REPORTED))
    assert [item.number for item in revisions_of(ledger)] == [1, 2]


def test_a_study_is_told_analysed_after_it_was_told_not_analysed(
    intake: Intake, spool: Spool, ledger: Ledger
) -> None:
    arrive(intake, spool, factories.lateral_film(1, study="s", rows=64, columns=64))
    conclude_due_studies(ledger)
    with ledger.write() as session:
        session.execute(update(Revision).values(state=RevisionState.REPORTED))
        session.execute(update(Study).values(revision=1))
    arrive(intake, spool, factories.phantom_chest(2, study="s"))
    analysed(ledger)
    conclude_due_studies(ledger)
    assert [item.model_id is None for item in revisions_of(ledger)] == [True, False]
