"""`hilum doctor --acceptance` on a running gateway with a PACS on DIMSE and one on DICOMweb."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import DigitalXRayImageStorageForPresentation

from model.predict import Predictor
from service.commands.acceptance.phantom import phantom
from service.commands.acceptance.run import _is_here
from service.commands.acceptance.way import _compared
from tests import pipeline
from tests.servers import Gateway, Orthanc, free_port

_FILM = DigitalXRayImageStorageForPresentation


@pytest.fixture(scope="module")
def site() -> Iterator[tuple[Gateway, Orthanc]]:
    """A gateway and an Orthanc that know each other."""
    port = free_port()
    with Orthanc(DicomModalities={"hilum": ["HILUM", "127.0.0.1", port]}) as pacs:
        destinations = f"PACS={pacs.destination},WEB={pacs.dicomweb_url}"
        with Gateway(dimse_port=port, destinations=destinations, calling_ae_titles="ORTHANC") as gateway:
            yield gateway, pacs


@pytest.mark.long
def test_a_synthetic_film_goes_all_the_way_and_every_step_is_on_the_page(
    site: tuple[Gateway, Orthanc], tmp_path: Path
) -> None:
    gateway, pacs = site
    page = tmp_path / "acceptance.html"
    ran = gateway.run("doctor", "--acceptance", "--page", str(page), timeout=200)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for said in (
        "PACS: C-ECHO: answered in",
        "PACS: Comprehensive 3D SR Storage: Explicit VR Little Endian",
        "PACS: C-STORE: the film is stored",
        "PACS: C-STORE to us: the film came back from there by C-MOVE",
        "WEB: STOW-RS: the film is stored",
        "analysis: present (",
        "PACS: Comprehensive 3D SR Storage read back: value by value what was sent",
        "PACS: Secondary Capture Image Storage read back: value by value what was sent",
        "WEB: Comprehensive 3D SR Storage read back: value by value what was sent",
        "clock of Redis",
        "a small file is safe after",
    ):
        assert said in ran.stdout, f"{said}\n{ran.stdout}"
    written = page.read_text(encoding="utf-8")
    assert "Everything that was tried is right." in written
    assert "PACS administrator, date" in written
    assert "Research use only, not for diagnosis" in written
    (study,) = pacs.studies()
    assert len(pacs.instances(study)) == 3  # the film, its report, its heat map
    assert gateway.studies() == []
    (sent,) = [item for item in pacs.instances(study) if item.sop_class_uid == _FILM]
    film = tmp_path / "film.dcm"
    film.write_bytes(pacs.download(sent))
    assert gateway.send(film, calling_ae_title="ORTHANC").returncode == 0
    assert gateway.studies() == []  # whenever the PACS sends it again


@pytest.mark.long
def test_what_is_wrong_is_on_the_page_with_what_to_do(site: tuple[Gateway, Orthanc], tmp_path: Path) -> None:
    gateway, _ = site
    page = tmp_path / "acceptance.html"
    here = Gateway(**{**gateway.settings, "destinations": f"GONE=dicom://GONE@127.0.0.1:{free_port()}"})
    here.port, here.dimse_port, here.data_dir = gateway.port, gateway.dimse_port, gateway.data_dir
    ran = here.run("doctor", "--acceptance", "--page", str(page), timeout=200)
    assert ran.returncode == 1
    assert "GONE: C-ECHO: GONE at 127.0.0.1" in ran.stdout
    # Nobody who is allowed sent it, and the command itself is not allowed.
    assert "listener: HILUM rejected the association" in ran.stdout
    assert "May AE HILUM call from here?" in page.read_text(encoding="utf-8")
    assert "Something is wrong" in page.read_text(encoding="utf-8")
    assert "and here with" not in ran.stdout, "it never came here"


def test_the_phantom_is_taken_for_a_chest_with_room_to_spare() -> None:
    (prediction,) = Predictor.load().predict([phantom()])
    assert prediction.finding == "present"
    assert prediction.gate_distance < 0.8
    np.testing.assert_array_equal(phantom(), phantom())


def test_an_attribute_that_a_pacs_changed_is_named() -> None:
    sent, there = Dataset(), Dataset()
    sent.PatientID, there.PatientID = "A", "B"
    sent.StudyID, there.AccessionNumber = "1", "2"
    check = _compared("x", sent, there)
    assert (check.right, check.warns) == (True, True)
    assert check.seen == "the same but for AccessionNumber, PatientID, StudyID"


def test_the_purge_is_named_only_of_a_study_that_is_here(tmp_path: Path) -> None:
    context = pipeline.opened_at(tmp_path)
    pipeline.receive(context, pipeline.film())
    here = str(pipeline.study(context).study_instance_uid)
    assert _is_here(context.settings, here)
    assert not _is_here(context.settings, f"{here}.1")
    away = context.settings.model_copy(update={"database_url": "sqlite:////nowhere/ledger.sqlite3"})
    assert _is_here(away, here), "a ledger that is away does not say"
