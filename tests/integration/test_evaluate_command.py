"""`hilum evaluate` on DICOM: read as the gateway reads it, and every film accounted for."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from service.commands.main import app
from tests import factories
from tests.unit.model import conftest as synthetic

weights = synthetic.weights


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight frontal films of six patients, two of them adults; a knee, a lateral, a CT, a broken one."""
    folder = tmp_path_factory.mktemp("archive")
    small = {"rows": 64, "columns": 56}
    films = [
        *[
            factories.phantom_chest(seed, **small, study=seed // 2, PatientSex="FM"[seed % 2])
            for seed in range(4)
        ],
        *[
            factories.phantom_chest(
                seed,
                **small,
                ViewPosition="PA",
                Manufacturer="",
                photometric_interpretation="MONOCHROME1",
            )
            for seed in range(4, 6)
        ],
        *[factories.phantom_chest(seed, **small, PatientAge="064Y") for seed in range(6, 8)],
        factories.knee_film(20, **small),
        factories.lateral_film(21, **small),
        factories.ct_slice(22),
        factories.phantom_chest(23, **small, PixelData=b"\0" * 10),
    ]
    rows = ["file,label,site"]
    for number, film in enumerate(films):
        path = factories.write(film, folder)
        path.rename(folder / f"{number}.dcm")
        rows.append(f"{number}.dcm,{number % 2},{'north' if number < 4 else 'south'}")
    (folder / "labels.csv").write_text("\n".join(rows))
    return folder


def hilum(folder: Path, *arguments: str) -> tuple[int, str, dict[str, Any]]:
    """Run `hilum evaluate` in this process; return exit code, what it said, and its JSON."""
    out = folder / "out.json"
    ran = CliRunner().invoke(
        app, ["evaluate", "--data", str(folder), "--device", "cpu", "--json", str(out), *arguments]
    )
    return ran.exit_code, ran.stderr, json.loads(out.read_text()) if out.exists() else {}


@pytest.fixture(autouse=True)
def _weights(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HILUM_WEIGHTS", str(weights))


def test_a_dicom_folder_with_a_table_is_evaluated(archive: Path, weights: Path) -> None:
    page = archive / "page.html"
    code, said, report = hilum(archive, "--labels", str(archive / "labels.csv"), "--report", str(page))
    assert report["n"] == 8
    assert report["model"]["name"] == "synthetic"
    # The adults are measured, and said to be outside.
    assert report["population"] == {"age_years": [1.0, 5.0], "inside": 6, "outside": 2, "unknown": 0}
    assert (report["resampled"], report["patients"]) == ("patients", 6)
    groups = {(group["attribute"], group["value"]): group["n"] for group in report["subgroups"]}
    assert (groups["view", "AP"], groups["view", "PA"]) == (6, 2)
    assert groups["sex", "M"] == 2
    assert groups["age", "40 to 64"] == 2
    assert (groups["validated ages", "inside"], groups["validated ages", "outside"]) == (6, 2)
    assert (groups["scanner", "Hilum tests factory"], groups["scanner", "factory"]) == (6, 2)
    assert groups["photometric interpretation", "MONOCHROME1"] == 2
    assert groups["site", "north"] == 4
    left = {film["file"]: film for film in report["not_analysed"]["films"]}
    assert list(left) == ["8.dcm", "9.dcm", "10.dcm", "11.dcm"]
    assert "not a frontal chest radiograph" in left["8.dcm"]["reason"]
    assert "view position LL" in left["9.dcm"]["reason"]
    assert "CT Image Storage" in left["10.dcm"]["reason"]
    assert [film["unreadable"] for film in left.values()] == [False, False, False, True]
    assert code == 1
    assert said.startswith("hilum evaluate: 1 of 12 films could not be read")
    written = page.read_text(encoding="utf-8")
    assert "view position LL" in written
    for secret in ("TEST-", "Test^"):
        assert secret not in written + json.dumps(report)


def test_films_refused_by_their_header_are_no_failure(archive: Path, tmp_path: Path) -> None:
    rows = (archive / "labels.csv").read_text().splitlines()
    (tmp_path / "labels.csv").write_text("\n".join(rows[:-1]))
    code, said, report = hilum(archive, "--labels", str(tmp_path / "labels.csv"))
    assert (code, said) == (0, "")
    assert (report["not_analysed"]["n"], report["not_analysed"]["unreadable"]) == (3, 0)


def test_a_folder_of_two_classes_may_hold_dicom(archive: Path, tmp_path: Path) -> None:
    for number in range(8):
        target = tmp_path / ("NORMAL", "PNEUMONIA")[number % 2] / f"{number}.dcm"
        target.parent.mkdir(exist_ok=True)
        target.write_bytes((archive / f"{number}.dcm").read_bytes())
    code, said, report = hilum(tmp_path)
    assert (code, said) == (0, "")
    assert (report["n"], report["confusion"]["tp"] + report["confusion"]["fn"]) == (8, 4)


def test_weights_on_the_command_line_go_before_the_settings(archive: Path) -> None:
    code, said, _ = hilum(archive, "--labels", str(archive / "labels.csv"), "--weights", "none.safetensors")
    assert code == 1
    assert said.startswith("hilum evaluate: none.safetensors")
