"""Objects that come again changed, and names in any script, all the way to a real PACS."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import Comprehensive3DSRStorage

from tests import factories
from tests.faults.victim import PATIENCE, Victim, small_film
from tests.servers import Gateway, Orthanc, eventually, executable

# Twice what they take where other tests run beside them.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def modified(path: Path, *options: str) -> Path:
    """Change a file with dcmtk's dcmodify, in its place."""
    done = subprocess.run(
        [executable("dcmodify", "dcmtk"), "-nb", "-imt", *options, str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return path


@pytest.mark.fault(23)
def test_a_header_changed_on_the_way_is_kept_beside_the_first_and_reported_under_new_uids(
    victim: Victim,
) -> None:
    film = small_film("merged")
    path = factories.write(film, victim.folder)
    assert victim.gateway.send(path).returncode == 0
    before = victim.wait_for_one_result(film)
    modified(path, "-m", "PatientName=Merged^Person", "-m", "AccessionNumber=FIXED")
    assert victim.gateway.send(path).returncode == 0

    def revised() -> bool:
        study = victim.gateway.study(film.StudyInstanceUID)
        return study is not None and (study["revision"], study["state"]) == (2, "reported")

    eventually(revised, PATIENCE, "the second revision")
    after = victim.gateway.study(film.StudyInstanceUID)
    assert after is not None
    assert sorted(item["state"] for item in after["instances"]) == ["analysed", "superseded"]
    assert [event["kind"] for event in after["events"]].count("analysed") == 1
    assert after["result"]["probability"] == before["result"]["probability"]
    first, second = (
        {item["sop_instance_uid"] for item in after["reports"] if item["revision"] == number}
        for number in (1, 2)
    )
    assert first
    assert second
    assert not first & second
    # Both arrivals are on disk, and the report speaks in the newest header.
    kept = [dcmread(item, stop_before_pixels=True) for item in victim.gateway.data_dir.glob("spool/**/*.dcm")]
    assert len([item for item in kept if item.SOPInstanceUID == film.SOPInstanceUID]) == 2
    made = [dcmread(item) for item in victim.gateway.data_dir.glob("reports/**/*.dcm")]
    (newest,) = [
        item
        for item in made
        if item.SOPInstanceUID in second and item.SOPClassUID == Comprehensive3DSRStorage
    ]
    assert (str(newest.PatientName), newest.AccessionNumber) == ("Merged^Person", "FIXED")


@pytest.mark.fault(23)
def test_pixels_changed_under_the_same_uid_are_quarantined_and_told(victim: Victim) -> None:
    film = small_film("changed")
    path = factories.write(film, victim.folder)
    assert victim.gateway.send(path).returncode == 0
    victim.wait_for_one_result(film)
    raw = victim.folder / "pixels.raw"
    pixels = np.frombuffer(film.PixelData, "<u2").copy()
    pixels[: len(pixels) // 4] = 0
    raw.write_bytes(pixels.tobytes())
    assert victim.gateway.send(modified(path, "-mf", f"PixelData={raw}")).returncode == 0

    def quarantined() -> bool:
        study = victim.gateway.study(film.StudyInstanceUID)
        return study is not None and "quarantined" in {item["state"] for item in study["instances"]}

    eventually(quarantined, PATIENCE, "the changed pixels in quarantine")
    study = victim.wait_for_one_result(film)
    assert "came again under its SOP Instance UID with other pixels" in study["attention"]


@pytest.fixture(scope="module")
def pacs() -> Iterator[tuple[Orthanc, Gateway]]:
    with (
        Orthanc() as orthanc,
        Gateway(destinations=f"PACS={orthanc.destination}", min_free_bytes=0) as gateway,
    ):
        yield orthanc, gateway


@pytest.mark.fault(38)
@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        ("ISO_IR 192", "Wang^XiaoDong=王^小东"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("", "Plain^Ascii"),
        ("ISO_IR 100", "Müller^Änne"),
    ],
)
def test_a_name_comes_back_from_the_pacs_as_it_was_sent(
    pacs: tuple[Orthanc, Gateway], tmp_path: Path, character_set: str | list[str], name: str
) -> None:
    orthanc, gateway = pacs
    film = small_film(f"name {name}", SpecificCharacterSet=character_set, PatientName=name)
    assert gateway.send(factories.write(film, tmp_path)).returncode == 0
    gateway.wait_for_state(film.StudyInstanceUID, "delivered", PATIENCE)
    (report,) = [
        item
        for item in orthanc.instances(film.StudyInstanceUID)
        if item.sop_class_uid == Comprehensive3DSRStorage
    ]
    path = tmp_path / "report.dcm"
    path.write_bytes(orthanc.download(report))
    came = dcmread(path)
    came.decode()
    assert str(came.PatientName) == name
