"""Associations as requestor, with an SCP of pynetdicom."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from pynetdicom import AE, evt
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from service.core.destination import Destination
from service.core.errors import TransientDelivery
from worker.association import Checkpoint, associate, requestor


@pytest.fixture
def destination() -> Iterator[Destination]:
    entity = AE("PACS")
    entity.require_called_aet = True
    entity.add_supported_context(Verification)
    server = entity.start_server(("127.0.0.1", 0), block=False)
    assert server is not None
    yield Destination(name="PACS", url=f"dicom://PACS@127.0.0.1:{server.server_address[1]}")
    server.shutdown()


def test_an_answer_reaches_who_waits_for_it_though_the_reactor_is_slow_to_stop(
    destination: Destination, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait, get_msg = Checkpoint.wait, DIMSEServiceProvider.get_msg

    # As when other threads have the processor just then.
    def leave_late(checkpoint: Checkpoint) -> None:
        wait(checkpoint)
        time.sleep(0.02)

    def ask_late(provider: DIMSEServiceProvider, block: bool = False) -> Any:
        time.sleep(0.05 if block else 0)
        return get_msg(provider, block)

    monkeypatch.setattr(Checkpoint, "wait", leave_late)
    monkeypatch.setattr(DIMSEServiceProvider, "get_msg", ask_late)
    entity = requestor("HILUM")
    entity.dimse_timeout = 2
    entity.add_requested_context(Verification)
    association = associate(destination, entity)
    for _ in range(10):
        time.sleep(0.01)  # the reactor runs
        assert association.send_c_echo().get("Status") == 0x0000
    association.release()
    assert association.is_released


@pytest.mark.parametrize("pause", [0, 0.5])
def test_who_rejects_is_not_said_to_be_away_however_fast_it_is(
    destination: Destination, pause: float
) -> None:
    entity = requestor("HILUM")
    entity.add_requested_context(Verification)
    stranger = destination.model_copy(update={"url": destination.url.replace("PACS@", "ANOTHER@")})
    # As when other threads have the processor between our request and our look at the connection.
    late = (evt.EVT_REQUESTED, lambda _: time.sleep(pause))
    with pytest.raises(TransientDelivery, match=r"ANOTHER rejected the association \(Called AE title not"):
        associate(stranger, entity, [late])


def test_an_association_that_the_other_side_ends_stops_nobody(destination: Destination) -> None:
    entity = requestor("HILUM")
    entity.add_requested_context(Verification)
    association = associate(destination, entity)
    association.abort()
    association.join(5)
    cleared = threading.Thread(target=Checkpoint(association).clear, daemon=True)
    cleared.start()
    cleared.join(5)
    assert not cleared.is_alive()
