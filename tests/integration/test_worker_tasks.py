"""The work of the queues without Celery: from a received film to its objects, and what can go wrong."""

import errno
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from redis import Redis as Client
from sqlalchemy import select, update

from service.core.claims import claim
from service.core.completion import conclude_due_studies
from service.core.destination import Destination
from service.core.enqueue import Enqueuer
from service.core.heartbeat import ROLES, beat, silent_roles
from service.core.leases import DECODE
from service.core.ledger import now, register_model
from service.core.retry import retry_study
from service.core.settings import load
from service.core.states import InstanceState, RevisionState, StudyState
from service.core.tables import Analysis, Instance, Outbox, Report, Revision, Study
from service.scheduler.scheduler import give_up_exhausted
from tests import factories
from tests.ledgers import migrated
from tests.pipeline import film, hurry, instances, receive, reports, study, work
from tests.servers import Redis
from worker.context import Context
from worker.tasks import decode, infer, report

_LATER = timedelta(hours=1)


@pytest.fixture(params=["sqlite", "postgresql"])
def context(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Context]:
    """A worker's context on each database."""
    url = None if request.param == "sqlite" else request.getfixturevalue("postgresql")
    settings = load(data_dir=tmp_path, study_quiet_seconds=0, min_free_bytes=0, database_url=url)
    migrated(settings.sqlalchemy_url)
    opened = Context.open(settings)
    yield opened
    opened.ledger.close()


def test_a_film_goes_all_the_way_to_a_report_on_disk(context: Context) -> None:
    pushed = film()
    receive(context, pushed)
    work(context)
    assert study(context).state == StudyState.REPORTED
    built = [item for item in reports(context) if item.kind == "sr"]
    (written,) = [dcmread(context.spool.absolute(item.path)) for item in built]
    assert written.StudyInstanceUID == pushed.StudyInstanceUID
    assert str(written.SOPInstanceUID) == built[0].sop_instance_uid


def test_a_report_built_again_after_a_crash_has_the_same_uids(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive(context, film())
    monkeypatch.setattr(report, "record_event", None)  # breaks off inside the last transaction
    work(context)
    assert not reports(context)
    assert not list((context.spool.root / "reports").rglob("*.dcm"))
    monkeypatch.undo()
    hurry(context)
    report.run(context)
    first = [item.sop_instance_uid for item in reports(context)]
    with context.ledger.write() as session:
        session.execute(update(Revision).values(state=RevisionState.PENDING, ready_at=now()))
        for item in session.scalars(select(Report)):
            session.delete(item)
    report.run(context)
    assert [item.sop_instance_uid for item in reports(context)] == first


def test_a_film_and_its_activation_map_are_kept_as_pictures_that_fit(context: Context) -> None:
    receive(context, film())
    work(context)
    (instance,) = instances(context)
    with context.ledger.read() as session:
        analysis = session.scalars(select(Analysis)).one()
    decoded = np.load(context.spool.absolute(str(instance.film_path)))
    with Image.open(context.spool.absolute(str(instance.picture_path))) as picture:
        assert (picture.format, picture.mode) == ("PNG", "L")
        np.testing.assert_array_equal(np.asarray(picture), decoded >> 8)
    with Image.open(context.spool.absolute(str(analysis.overlay_path))) as layer:
        assert (layer.format, max(layer.size)) == ("PNG", 256)
        assert layer.width / layer.height == pytest.approx(decoded.shape[1] / decoded.shape[0], rel=0.01)


def test_one_film_that_breaks_the_network_does_not_take_the_others_with_it(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive(context, *[film(seed) for seed in range(3)])
    for _ in range(3):
        decode.run(context)
    poisoned = instances(context)[1]
    np.save(context.spool.absolute(str(poisoned.film_path)), np.zeros((0, 0), np.uint16))
    for _ in range(8):
        infer.run(context)
        hurry(context)
    give_up_exhausted(context.ledger)
    states = [item.state for item in instances(context)]
    assert states == [InstanceState.ANALYSED, InstanceState.FAILED, InstanceState.ANALYSED]
    assert "inference failed 3 times" in str(instances(context)[1].reason)


def test_a_failed_study_comes_back_when_a_person_asks(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive(context, film())

    def broken(*_: object) -> None:
        raise RuntimeError("no luck")

    monkeypatch.setattr(decode, "prepare", broken)
    for _ in range(3):
        decode.run(context)
        hurry(context)
    give_up_exhausted(context.ledger)
    conclude_due_studies(context.ledger)
    assert study(context).state == StudyState.FAILED
    assert "RuntimeError" in str(study(context).reason)
    monkeypatch.undo()
    with context.ledger.write() as session:
        retry_study(session, session.scalars(select(Study)).one())
    work(context)
    assert study(context).state == StudyState.REPORTED


def test_a_result_that_comes_after_its_lease_was_lost_leaves_no_file(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive(context, film())
    real = decode.prepare

    def slow(*given: object) -> object:
        with context.ledger.write() as session:
            session.execute(update(Instance).values(lease_token=99))
        return real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(decode, "prepare", slow)
    decode.run(context)
    assert instances(context)[0].state == InstanceState.RECEIVED
    assert not list((context.spool.root / "films").rglob("*.npy"))


def test_a_header_corrected_while_the_report_is_due_is_the_one_that_is_reported(context: Context) -> None:
    receive(context, film())
    decode.run(context)
    infer.run(context)
    conclude_due_studies(context.ledger)  # revision 1 is open, not built
    receive(context, film(AccessionNumber="FIXED"))
    work(context)
    report.run(context)
    (built,) = [item for item in reports(context) if item.kind == "sr"]
    assert built.revision == 1
    assert dcmread(context.spool.absolute(built.path)).AccessionNumber == "FIXED"
    assert study(context).state == StudyState.REPORTED


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_copies_of_an_image_settle_alike_in_whatever_order_they_are_decoded(
    context: Context, order: tuple[int, int]
) -> None:
    receive(context, film(AccessionNumber="OLD"), film(AccessionNumber="NEW"))
    ids = [item.id for item in instances(context)]
    for index in order:
        with context.ledger.write() as session:
            session.execute(update(Instance).where(Instance.id != ids[index]).values(ready_at=now() + _LATER))
            session.execute(update(Instance).where(Instance.id == ids[index]).values(ready_at=now()))
        decode.run(context)
    infer.run(context)
    assert [item.state for item in instances(context)] == [InstanceState.SUPERSEDED, InstanceState.ANALYSED]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_other_pixels_are_quarantined_in_whatever_order_they_are_decoded(
    context: Context, order: tuple[int, int]
) -> None:
    first, second = film(1, study="s"), film(2, study="s")
    second.SOPInstanceUID = first.SOPInstanceUID
    receive(context, first, second)
    ids = [item.id for item in instances(context)]
    for index in order:
        with context.ledger.write() as session:
            session.execute(update(Instance).where(Instance.id != ids[index]).values(ready_at=now() + _LATER))
            session.execute(update(Instance).where(Instance.id == ids[index]).values(ready_at=now()))
        decode.run(context)
    infer.run(context)
    assert [item.state for item in instances(context)] == [InstanceState.ANALYSED, InstanceState.QUARANTINED]
    assert "other pixels" in str(study(context).attention)


def test_a_result_is_taken_back_when_a_corrected_header_makes_the_film_ineligible(context: Context) -> None:
    receive(context, film(PatientAge="003Y"))
    work(context)
    assert study(context).probability is not None
    receive(context, film(PatientAge="064Y"))
    work(context)
    assert study(context).probability is None
    assert study(context).finding == "not_analysed"
    newest = reports(context)[-1]
    assert (newest.kind, newest.revision) == ("not-analysed", 2)
    assert study(context).attention is None


def test_until_the_report_that_takes_a_result_back_is_built_a_person_is_asked_to_look(
    context: Context,
) -> None:
    receive(context, film(PatientAge="003Y"))
    work(context)
    receive(context, film(PatientAge="064Y"))
    decode.run(context)
    conclude_due_studies(context.ledger)
    assert "no longer holds" in str(study(context).attention)
    assert (study(context).state, study(context).probability) == (StudyState.ANALYSING, None)


def test_a_view_corrected_to_lateral_takes_the_result_back_too(context: Context) -> None:
    receive(context, film())
    work(context)
    receive(context, film(ViewPosition="LL"))
    work(context)
    assert study(context).finding == "not_analysed"
    assert [item.state for item in instances(context)] == [
        InstanceState.SUPERSEDED,
        InstanceState.NOT_ANALYSED,
    ]


def test_films_that_wait_for_other_weights_are_analysed_by_those_that_are_served(context: Context) -> None:
    receive(context, film())
    decode.run(context)
    with context.ledger.write() as session:
        old = register_model(session, "old", "0", "0" * 64, "none")
        session.execute(update(Analysis).values(model_id=old, ready_at=now() - timedelta(minutes=1)))
    work(context)
    assert study(context).state == StudyState.REPORTED


def test_a_late_image_under_new_weights_has_the_earlier_ones_analysed_again(context: Context) -> None:
    receive(context, film(1, study="s"))
    work(context)
    with context.ledger.write() as session:
        old = register_model(session, "old", "0", "0" * 64, "none")
        session.execute(update(Analysis).values(model_id=old))
        session.execute(update(Revision).values(model_id=old))
    receive(context, film(2, study="s"))
    work(context)
    work(context)
    assert [item.state for item in instances(context)] == [InstanceState.ANALYSED] * 2
    with context.ledger.read() as session:
        newest = session.scalars(select(Revision).order_by(Revision.number.desc())).first()
        assert newest is not None
        assert (newest.number, len(newest.instance_ids), newest.state) == (2, 2, RevisionState.REPORTED)
        assert newest.model_id == context.model().id


def test_an_open_revision_is_not_built_when_its_only_film_becomes_ineligible(context: Context) -> None:
    receive(context, film(PatientAge="003Y"))
    decode.run(context)
    infer.run(context)
    conclude_due_studies(context.ledger)
    receive(context, film(PatientAge="064Y"))
    decode.run(context)
    conclude_due_studies(context.ledger)
    report.run(context)
    assert [(item.kind, item.revision) for item in reports(context)] == [("not-analysed", 1)]
    assert (study(context).finding, study(context).probability) == ("not_analysed", None)


def test_what_waits_for_a_pacs_is_withdrawn_with_a_held_study_and_goes_out_when_it_is_right_again(
    context: Context,
) -> None:
    context.settings = context.settings.model_copy(
        update={"destinations": (Destination(name="PACS", url="dicom://PACS@127.0.0.1:9"),)}
    )
    receive(context, film(1, study="s", PatientID="A"))
    work(context)
    lateral = {"study": "s", "rows": 64, "columns": 64}
    receive(context, factories.lateral_film(2, PatientID="B", **lateral))
    conclude_due_studies(context.ledger)
    assert study(context).state == StudyState.HELD
    assert outbox_states(context) == {"withdrawn"}
    receive(context, factories.lateral_film(2, PatientID="A", **lateral))
    work(context)
    assert "pending" in outbox_states(context)
    assert study(context).state == StudyState.REPORTED


def outbox_states(context: Context) -> set[str]:
    with context.ledger.read() as session:
        return set(session.scalars(select(Outbox.state)))


def test_a_copy_that_cannot_be_decoded_takes_no_result_back(context: Context) -> None:
    whole = film()
    receive(context, whole)
    work(context)
    before = study(context).probability
    receive(context, film(PixelData=whole.PixelData[: len(whole.PixelData) // 3]))
    work(context)
    assert [item.state for item in instances(context)] == [InstanceState.ANALYSED, InstanceState.QUARANTINED]
    assert study(context).probability == before
    assert "could not be compared" in str(study(context).attention)


def test_a_revision_waits_while_its_film_is_analysed_again(context: Context) -> None:
    receive(context, film(1, study="s"))
    decode.run(context)
    infer.run(context)
    with context.ledger.write() as session:
        old = register_model(session, "old", "0", "0" * 64, "none")
        session.execute(update(Analysis).values(model_id=old))
    conclude_due_studies(context.ledger)  # opens revision 1 in the words of the old model
    receive(context, film(2, study="s"))
    decode.run(context)
    infer.run(context)
    conclude_due_studies(context.ledger)  # asks the new model about the first film
    report.run(context)
    assert not reports(context)
    work(context)
    assert study(context).state == StudyState.REPORTED
    with context.ledger.read() as session:
        (revision,) = session.scalars(select(Revision))
        assert (revision.number, len(revision.instance_ids)) == (1, 2)


def test_a_full_disk_costs_no_attempt_and_a_lost_file_does(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive(context, film())

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(decode, "prepare", full)
    for _ in range(5):
        decode.run(context)
        hurry(context)
    assert (instances(context)[0].state, instances(context)[0].attempts) == (InstanceState.RECEIVED, 0)
    monkeypatch.undo()
    context.spool.remove(instances(context)[0].spool_path)
    for _ in range(3):
        decode.run(context)
        hurry(context)
    give_up_exhausted(context.ledger)
    assert instances(context)[0].state == InstanceState.FAILED


def test_a_film_array_that_is_gone_does_not_hold_up_its_batch(context: Context) -> None:
    receive(context, film(1), film(2))
    decode.run(context)
    context.spool.remove(instances(context)[0].film_path)
    infer.run(context)
    assert [item.state for item in instances(context)] == [InstanceState.DECODED, InstanceState.ANALYSED]


def test_a_busy_queue_is_ready_and_one_that_nobody_works_on_is_not(context: Context) -> None:
    for role in ROLES:
        beat(context.ledger, role)
    receive(context, film(1), film(2))
    with context.ledger.write() as session:
        session.execute(update(Instance).values(ready_at=now() - timedelta(seconds=100)))
    assert "waiting" in silent_roles(context.ledger)["decode"]
    claim(context.ledger, DECODE, 1)
    assert not silent_roles(context.ledger)


def test_two_positive_or_mapped_films_have_heat_maps_of_their_own(context: Context) -> None:
    url = "dicom://PACS@127.0.0.1:9"
    destination = {"name": "PACS", "url": url, "heatmap": "always"}
    context.settings = load(
        data_dir=context.settings.data_dir,
        study_quiet_seconds=0,
        min_free_bytes=0,
        destinations=[destination],
    )
    receive(context, film(1, study="s"), film(2, study="s"))
    work(context)
    made = [dcmread(context.spool.absolute(item.path)) for item in reports(context) if item.kind == "heatmap"]
    assert len(made) == 2
    assert len({item.SeriesInstanceUID for item in made}) == 1
    assert len({item.SOPInstanceUID for item in made}) == 2
    assert len({item.InstanceNumber for item in made}) == 2


def test_hints_are_written_for_what_is_ready_and_again_when_redis_forgot_them(
    context: Context, redis: Redis
) -> None:
    receive(context, *[factories.phantom_chest(seed) for seed in range(3)])
    enqueuer = Enqueuer(context.ledger, redis.url)
    client = Client.from_url(redis.url)
    assert enqueuer.enqueue_ready() == ""
    assert enqueuer.enqueue_ready() == ""
    assert client.llen("decode") == 3
    client.flushall()
    assert enqueuer.enqueue_ready() == ""
    assert client.llen("decode") == 3
    (message, *_) = client.lrange("decode", 0, 0)
    assert b"application/json" in message
    redis.kill()
    assert enqueuer.enqueue_ready() == "Redis cannot be reached"


def test_what_infer_computes_with_is_told_without_loading_anything(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(infer, "_used", {})
    assert infer.about(context) == {}
    infer.warm_up(context)
    assert infer.about(context) == {"device": "CPU, ONNX Runtime", "model": context.model().info.sha256}
