"""STOW-RS and QIDO-RS with a real Orthanc."""

from pathlib import Path

import pytest
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from service.core.errors import TransientDelivery
from service.core.settings import load
from tests import factories
from tests.servers import Orthanc
from worker.dicomweb import DICOMwebPeer
from worker.peer import Sendable, Sent


def peer_of(orthanc: Orthanc, tmp_path: Path, credentials: str = "") -> DICOMwebPeer:
    entry = {"name": "PACS", "url": orthanc.dicomweb_url}
    if credentials:
        (tmp_path / "credentials").write_text(credentials)
        entry["credentials_file"] = str(tmp_path / "credentials")
    (destination,) = load(destinations=[entry]).destinations
    return DICOMwebPeer(destination)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless])
def test_orthanc_holds_byte_for_byte_what_it_was_sent(orthanc: Orthanc, tmp_path: Path, syntax: UID) -> None:
    film = factories.phantom_chest(rows=64, columns=64)
    path = factories.write(film, tmp_path, syntax)
    uids = str(film.StudyInstanceUID), str(film.SeriesInstanceUID), str(film.SOPInstanceUID)
    with peer_of(orthanc, tmp_path) as peer:
        assert peer.study(uids[0]) is None
        assert peer.holds(*uids) is False
        for _ in range(2):
            assert peer.store(Sendable(path, film.SOPClassUID, syntax)) == Sent(0x0000)
        assert peer.holds(*uids) is True
        assert peer.holds(uids[0], uids[1], "1.2.3") is False
        assert peer.study(uids[0]) == {
            "PatientID": "TEST-0",
            "IssuerOfPatientID": "HILUM-TEST",
            "AccessionNumber": "A0",
            "PatientName": "Test^0",
            "PatientBirthDate": "20221201",
            "PatientSex": "F",
        }
    (stored,) = orthanc.instances(uids[0])
    assert orthanc.download(stored) == path.read_bytes()


def test_orthanc_takes_what_it_is_sent_again_after_its_restart(orthanc: Orthanc, tmp_path: Path) -> None:
    film = factories.phantom_chest(rows=64, columns=64)
    item = Sendable(factories.write(film, tmp_path), film.SOPClassUID, ExplicitVRLittleEndian)
    with peer_of(orthanc, tmp_path) as peer:
        assert peer.store(item) == Sent(0x0000)
        orthanc.kill()
        assert isinstance(peer.store(item).fault, TransientDelivery)
        orthanc.restart()
        assert peer.store(item) == Sent(0x0000)
    assert len(orthanc.instances(film.StudyInstanceUID)) == 1


def test_orthanc_wants_the_right_password(tmp_path: Path) -> None:
    film = factories.phantom_chest(rows=64, columns=64)
    item = Sendable(factories.write(film, tmp_path), film.SOPClassUID, ExplicitVRLittleEndian)

    class Guarded(Orthanc):
        def ready(self) -> bool:
            import httpx

            try:
                return httpx.get(f"{self.http_url}/system", timeout=2).status_code == 401
            except httpx.HTTPError:
                return False

    with Guarded(AuthenticationEnabled=True, RegisteredUsers={"hilum": "secret"}) as orthanc:
        for credentials in ("", "hilum:wrong"):
            with peer_of(orthanc, tmp_path, credentials) as peer:
                assert "credentials_file" in str(peer.store(item).fault)
                assert peer.study(str(film.StudyInstanceUID)) is None
        with peer_of(orthanc, tmp_path, "hilum:secret") as peer:
            assert peer.store(item) == Sent(0x0000)
            assert peer.study(str(film.StudyInstanceUID))
