"""What `hilum bench` makes of its measurements, and what it refuses."""

from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from rich.progress import Progress
from sqlalchemy import select

from service.commands.bench import films, rivals
from service.commands.bench.command import bench
from service.commands.bench.figures import Figures, figures
from service.commands.bench.films import Film
from service.commands.bench.peers import Pushed
from service.commands.bench.run import Load
from service.core.errors import ConfigurationError
from service.core.header import read_header
from service.core.ledger import now
from service.core.tables import Event, Report, Study
from tests import pipeline
from worker.context import Context
from worker.peer import Sendable


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    pipeline.says(monkeypatch, 0.9)
    return pipeline.opened_at(tmp_path, destinations="PACS=dicom://PACS@127.0.0.1:9")


def test_stages_are_timed_from_one_end_to_the_next_and_the_quiet_time_is_no_stage(context: Context) -> None:
    pipeline.receive(context, pipeline.film())
    pipeline.work(context)
    began = now()
    seconds = {"received": 0.2, "decoded": 0.5, "analysed": 0.7, "concluded": 10.2, "reported": 10.6}
    with context.ledger.write() as session:
        study = session.scalars(select(Study)).one()
        for event in session.scalars(select(Event)):
            event.at = began + timedelta(seconds=seconds[event.kind])
        report = session.scalars(select(Report).order_by(Report.id)).first()
        assert report is not None
        item = Sendable(Path("film.dcm"), report.sop_class_uid, report.transfer_syntax_uid)
        film = Film(item, study.study_instance_uid, "1.2.3")
        lost = Film(item, "1.2.4", "1.2.5")
        at = began.timestamp()
        pushed = [Pushed(film, at, at + 0.2), Pushed(lost, at, at + 0.3)]
        came = {report.sop_instance_uid: at + 10.9}
    found = figures(context.ledger, pushed, came, quiet_seconds=10.0)
    expected = {"receive": 0.2, "decode": 0.3, "infer": 0.2, "report": 0.4, "deliver": 0.3, "all": 0.7}
    assert {stage: pytest.approx(times, abs=0.001) for stage, times in found.seconds.items()} == {
        stage: [time] for stage, time in expected.items()
    }
    assert (found.films, found.lost) == (2, 1)
    assert found.films_a_second == pytest.approx(1 / 0.9, rel=0.01)


def test_percentiles_are_times_that_were_measured() -> None:
    found = Figures(20, {"all": [float(number) for number in range(1, 21)]}, 1.0)
    assert found.percentiles("all") == [11.0, 20.0, 20.0, 20.0]


def test_films_are_new_studies_of_about_the_size_that_was_asked_for(tmp_path: Path) -> None:
    made = list(films.make(tmp_path, 3, 0.5))
    headers = [read_header(film.item.path) for film in made]
    assert len({header.study_instance_uid for header in headers}) == 3
    assert [header.sop_instance_uid for header in headers] == [film.sop_instance_uid for film in made]
    assert all(film.item.path.stat().st_size == pytest.approx(0.5e6, rel=0.02) for film in made)


def test_a_ledger_with_studies_is_not_worked_on(context: Context) -> None:
    pipeline.receive(context, pipeline.film())
    url = context.settings.sqlalchemy_url
    with pytest.raises(ConfigurationError, match="give it an empty one"):
        bench(Load(1, 1, 0.5, 1), [], url, None, as_json=True)


def test_a_receiver_that_leaves_films_out_is_told_though_storescu_ends_with_0(tmp_path: Path) -> None:
    storescu = tmp_path / "storescu"
    storescu.write_text("#!/bin/sh\necho 'E: Store Failed, file: film.dcm' >&2\n", encoding="ascii")
    storescu.chmod(0o700)
    made = list(films.make(tmp_path, 1, 0.5))
    with pytest.raises(ConfigurationError, match=r"PEER did not take every film: E: Store Failed"):
        rivals._send(str(storescu), "PEER", 11112, psutil.Process(), made, 1)


def test_a_receiver_that_answers_for_films_and_keeps_none_is_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """dcmtk's storescp takes every film and writes none of them with ``--ignore``."""

    def command(folder: Path, port: int) -> list[str]:
        return [*rivals._storescp(folder, port), "--ignore"]

    forgetful = rivals._Receiver("STORESCP", command, rivals._nothing)
    monkeypatch.setitem(rivals._RIVALS, "forgetful", forgetful)
    with pytest.raises(ConfigurationError, match="forgetful answered for 2 films and kept 0 of them"):
        rivals.compare(["forgetful"], 2, 0.5, Progress(disable=True))
