"""A back-fill as the head of a department starts it: the command line, a gateway, and a real Orthanc."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import factories
from tests.servers import Gateway, Orthanc, eventually

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(600)]
_DAY = "2026-01-15"


@pytest.fixture
def films(tmp_path: Path) -> list[Path]:
    return [
        factories.write(factories.chest_film(n, study=f"past-{n}", rows=489, columns=460), tmp_path / "past")
        for n in range(8)
    ]


def test_past_films_are_compared_with_final_diagnoses_after_a_kill_and_nothing_reaches_the_archive(
    gateway: Callable[..., Gateway], films: list[Path], tmp_path: Path
) -> None:
    with Orthanc(DicomAlwaysAllowFind=True, DicomAlwaysAllowGet=True) as orthanc:
        for film in films:
            orthanc.store(film)
        stored = set(orthanc.stored())
        armed = tmp_path / "failpoint"
        hilum = gateway(
            destinations=f"PACS={orthanc.destination}", min_free_bytes=0, failpoint=armed, timezone="UTC"
        )

        armed.write_text("backfill.searched")
        started = hilum.run("backfill", "start", "children", "--from", _DAY, "--age", "1-5", "--rate", "240")
        assert started.returncode == 0, started.stderr
        assert "withheld" in started.stderr
        for name in ("receive.kept", "backfill.fetched"):
            eventually(lambda: not armed.exists(), 60, "the process that fetches died")
            armed.write_text(name)
        eventually(lambda: not armed.exists(), 60, "the process that fetches died")
        eventually(lambda: len(hilum.studies()) >= 2, 60, "the first studies come")
        hilum.kill()
        hilum.restart()

        status: dict[str, object] = {}

        def done() -> bool:
            status.update(json.loads(hilum.run("backfill", "status", "children", "--json").stdout))
            return status["state"] == "done" and not status["in_work"]

        eventually(done, 120, "the back-fill is done", interval=1)
        assert (status["found"], status["analysed"], status["not_fetched"]) == (8, 8, []), status
        assert set(orthanc.stored()) == stored
        found = hilum.studies()
        assert {study["state"] for study in found} == {"reported"}
        assert {len(hilum.study(study["study_instance_uid"])["deliveries"]) for study in found} == {0}  # type: ignore[index]

        table = tmp_path / "diagnoses.csv"
        uids = [film.stem for film in films]
        by_accession = [f"Apast-{n};{'J18.9' if n % 2 else 'normal'}" for n in range(7)]
        table.write_text("\ufeffAccession Number;Diagnose\n" + "\n".join([*by_accession, "unknown;0"]) + "\n")
        page, rows = tmp_path / "report.html", tmp_path / "report.csv"
        given = ("--diagnoses", str(table), "--html", str(page), "--csv", str(rows), "--json")
        reported = hilum.run("backfill", "report", "children", *given)
        assert reported.returncode == 0, reported.stderr
        said = json.loads(reported.stdout)
        assert said["compared"] == 7
        assert said["tp"] + said["fn"] == 3
        assert said["apart"] == {"no final diagnosis": 1}
        assert said["unmatched"] == ["line 9"]
        html = page.read_text()
        assert html.count('<section class="case"') == said["discordant"] > 0
        assert html.count("data:image/jpeg;base64,") == 2 * said["discordant"]
        assert "Research use only, not for diagnosis" in html
        assert "Test^" not in html
        assert "TEST-past" not in html
        assert len(rows.read_text().splitlines()) == 9
        assert len(uids) == 8
