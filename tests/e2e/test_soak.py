"""Many studies while processes are killed at random: each answered with success has exactly one report."""

import random
import threading
import time
from pathlib import Path

import psutil
import pytest
from pydicom import Dataset

from tests import factories
from tests.servers import Gateway, Orthanc

pytestmark = [pytest.mark.e2e, pytest.mark.long]
_STUDIES = 80
_SENDERS = 4
# Everything but the supervisors themselves; the listener's victims are refused and sent again by the sender.
_VICTIMS = (
    "worker-decode",
    "worker-infer",
    "worker-report",
    "worker-deliver",
    "redis",
    "listener",
    "scheduler",
)


@pytest.mark.timeout(900)
def test_every_study_answered_with_success_has_exactly_one_report(tmp_path: Path) -> None:
    chance = random.Random(20261123)
    films = [factories.chest_film(f"soak{number}", rows=512, columns=480) for number in range(_STUDIES)]
    with Orthanc() as pacs:
        destination = f"PACS=dicom://{pacs.aet}@127.0.0.1:{pacs.dicom_port}"
        with Gateway(destinations=destination) as gateway:
            stored = _push_while_killing(gateway, films, tmp_path, chance)
            assert len(stored) == _STUDIES
            for film in stored:
                gateway.wait_for_state(film.StudyInstanceUID, "delivered", 240)
            counts = {str(film.StudyInstanceUID): _reports(pacs, film) for film in stored}
    assert {uid: count for uid, count in counts.items() if count != 1} == {}


def _push_while_killing(
    gateway: Gateway, films: list[Dataset], folder: Path, chance: random.Random
) -> list[Dataset]:
    """Push the films from several senders, killing a process every second; return those that were stored."""
    stored: list[Dataset] = []

    def send(mine: list[Dataset]) -> None:
        for film in mine:
            path = factories.write(film, folder)
            for _ in range(60):  # a router tries again until it is told success
                if gateway.send(path).returncode == 0:
                    stored.append(film)
                    break
                time.sleep(0.5)
            time.sleep(0.5)

    senders = [threading.Thread(target=send, args=(films[start::_SENDERS],)) for start in range(_SENDERS)]
    for sender in senders:
        sender.start()
    while any(sender.is_alive() for sender in senders):
        victims = gateway.pids().get(chance.choice(_VICTIMS), [])
        if victims:
            _kill(chance.choice(victims))
        time.sleep(1.5)
    return stored


def _kill(pid: int) -> None:
    try:
        psutil.Process(pid).kill()
    except psutil.NoSuchProcess:
        return


def _reports(pacs: Orthanc, film: Dataset) -> int:
    found = pacs.dicomweb_metadata(film.StudyInstanceUID)
    return sum(item["00080060"]["Value"] == ["SR"] for item in found)
