"""The demonstration, as a newcomer runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file

pytestmark = pytest.mark.e2e
_ROOT = Path(__file__).parents[2]


def hilum(folder: Path, *arguments: str, population: str = "flag") -> subprocess.CompletedProcess[str]:
    """Run `hilum` in an empty folder; adults are scored with the limit stated, as in the demo."""
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "HILUM_POPULATION": population}
    command = [sys.executable, "-m", "service.commands.main", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=170
    )


def test_the_demo_ends_with_every_report_and_the_numbers_of_analyse(tmp_path: Path) -> None:
    done = hilum(tmp_path, "demo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Research use only" in done.stdout
    out = tmp_path / "demo-out"
    studies = json.loads((out / "results.json").read_text())
    chest, leg = sorted(studies, key=lambda study: study["result"]["finding"] == "not_analysed")

    assert chest["reports_received"] == len(chest["reports"]) == 3
    assert "64 years" in chest["result"]["flags"][0]
    assert (leg["result"]["finding"], leg["result"]["probability"], leg["reports"]) == (
        "not_analysed",
        None,
        [],
    )
    assert "not a frontal chest radiograph" in leg["result"]["reason"]
    (report,) = out.glob("*-structured-report.dcm")
    assert dcmread(report).StudyInstanceUID == chest["study_instance_uid"]
    assert "pneumonia" in next(out.glob("*-structured-report.html")).read_text()
    assert len(list(out.glob("*-heat-map.png"))) == 2
    assert {item.name for item in tmp_path.iterdir()} == {"demo-out"}

    names = ("RG1_UNCR.dcm", "RG1_J2KR.dcm")
    files = [str(get_testdata_file(name, download=False)) for name in names]
    alone = json.loads(hilum(tmp_path, "analyse", "--json", *files).stdout)
    served = {chest["files"][image["sop_instance_uid"]]: image["probability"] for image in chest["instances"]}
    for name, said in zip(names, alone, strict=True):
        assert served[name] == pytest.approx(said["probability"], abs=1e-6)


@pytest.mark.long
def test_the_demo_waits_for_the_report_of_a_film_that_is_not_analysed(tmp_path: Path) -> None:
    film = str(get_testdata_file("RG1_UNCR.dcm", download=False))
    done = hilum(tmp_path, "demo", film, population="refuse")
    assert done.returncode == 0, done.stdout + done.stderr
    (study,) = json.loads((tmp_path / "demo-out" / "results.json").read_text())
    assert (study["state"], study["result"]["finding"]) == ("delivered", "not_analysed")
    assert study["reports_received"] == 1
    assert "NOT ANALYSED" in next((tmp_path / "demo-out").glob("*-structured-report.html")).read_text()
