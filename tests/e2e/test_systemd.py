"""The gateway with no more than its systemd unit leaves it."""

import sys
from pathlib import Path

import pytest

from tests import factories
from tests.servers import ROOT, Gateway, Orthanc

UNIT = ROOT / "deploy/systemd/hilum@.service"


class Confined(Gateway):
    """`hilum up` with the system calls of the unit, under no capability's name but its own."""

    def command(self) -> list[str]:
        return [sys.executable, "-m", "tests.systemcalls", str(UNIT), *super().command()]


# A whole gateway: 25 s of processor time.
@pytest.mark.e2e
@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_gateway_works_with_the_system_calls_that_its_unit_leaves_it(
    orthanc: Orthanc, tmp_path: Path
) -> None:
    film = factories.chest_film("systemd")
    with Confined(destinations=f"PACS={orthanc.destination}", population="flag") as gateway:
        assert gateway.send(factories.write(film, tmp_path)).returncode == 0
        found = gateway.wait_for_state(film.StudyInstanceUID, {"delivered", "confirmed"}, 120)
        assert found["result"]["probability"] is not None
        assert "Operation not permitted" not in gateway.log()
        gateway.stop()
    assert "supervisor.killed" not in gateway.log()
