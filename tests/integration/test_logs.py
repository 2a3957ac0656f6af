"""Log lines name the work in hand: the association, the object, the study, the row of the ledger."""

import threading
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from service.core.errors import OutOfResources
from tests import factories, pipeline
from tests.faults.site import site
from tests.servers import free_port, storescu
from worker.tasks import decode, report

Lines = list[Any]


def captured() -> Any:
    return capture_logs(processors=[structlog.contextvars.merge_contextvars])


def the(lines: Lines, event: str) -> dict[str, Any]:
    (found,) = [line for line in lines if line["event"] == event]
    return dict(found)


def test_lines_of_one_association_have_its_id_and_that_of_the_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film = factories.phantom_chest(1)
    path = factories.write(film, tmp_path / "films")
    with captured() as lines, site(tmp_path) as listening:
        storescu(path, "HILUM", listening.port)
        monkeypatch.setattr("service.core.receive.full", lambda *_: OutOfResources("no room"))
        storescu(path, "HILUM", listening.port)
        listening.settle(set(threading.enumerate()))
    taken, refused = the(lines, "receive"), the(lines, "receive.refused")
    first, second = [line for line in lines if line["event"] == "association.accepted"]
    assert taken["association"] == first["association"]
    assert refused["association"] == second["association"] != first["association"]
    assert taken["study_instance_uid"] == film.StudyInstanceUID
    assert taken["sop_instance_uid"] == refused["sop_instance_uid"] == film.SOPInstanceUID


def test_lines_of_a_worker_name_study_and_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise MemoryError

    context = pipeline.opened_at(tmp_path, destinations=f"PACS=dicom://A@127.0.0.1:{free_port()}")
    pipeline.says(monkeypatch, 0.9)
    film = pipeline.film(1, PatientAge="004Y")
    pipeline.receive(context, film)
    with captured() as lines:
        with monkeypatch.context() as broken:
            broken.setattr(decode, "prepare", fails)
            decode.run(context)
        pipeline.hurry(context)
        with monkeypatch.context() as broken:
            broken.setattr(report, "objects", fails)
            pipeline.work(context)
        pipeline.hurry(context)
        pipeline.work(context)
        pipeline.send_all(context, rounds=1)
    uid = film.StudyInstanceUID
    for event, row in (("decode.failed", "instance"), ("report.failed", "revision")):
        line = the(lines, event)
        assert line["study_instance_uid"] == uid
        assert line[row] == 1
    again = [line for line in lines if line["event"] == "deliver.again"]
    assert again
    assert all(line["study_instance_uid"] == uid and line["outbox"] for line in again)
    assert structlog.contextvars.get_contextvars() == {}
    context.ledger.close()
