"""The listener at the level of DIMSE messages: what a sender gets back for what it sends."""

import socket
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGExtended12Bit,
)
from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from sqlalchemy import select

from service.core.ledger import Ledger
from service.core.settings import Settings, load
from service.core.spool import Spool
from service.core.syntaxes import OFFERED
from service.core.tables import Instance
from service.listener.scp import Listener
from tests import factories
from tests.ledgers import migrated
from tests.servers import eventually, free_port, storescu

_DX = DigitalXRayImageStorageForPresentation


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = load(data_dir=tmp_path / "site" / "data", dimse_port=free_port(), min_free_bytes=0)
    Spool(made.data_dir).make()
    migrated(made.sqlalchemy_url)
    return made


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    opened = Ledger(settings.sqlalchemy_url)
    yield opened
    opened.close()


@pytest.fixture
def listener(settings: Settings, ledger: Ledger) -> Iterator[Listener]:
    spool = Spool(settings.data_dir)
    running = Listener(settings, spool, ledger)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def association(listener: Listener, settings: Settings) -> Iterator[Association]:
    entity = AE("TEST")
    entity.add_requested_context(_DX, ExplicitVRLittleEndian)
    opened = entity.associate("127.0.0.1", settings.dimse_port, ae_title=settings.ae_title)
    assert opened.is_established
    yield opened
    if opened.is_established:
        opened.release()


def store(association: Association, sop_instance_uid: str, content: bytes) -> int:
    """Send a C-STORE with any bytes as its data set; return the status."""
    request = C_STORE()
    request.MessageID = 1
    request.AffectedSOPClassUID = _DX
    request._affected_sop_instance_uid = sop_instance_uid  # type: ignore[attr-defined]
    request.Priority = 2
    request.DataSet = BytesIO(content)
    context = association.accepted_contexts[0].context_id
    association._reactor_checkpoint.clear()
    association.dimse.send_msg(request, context)
    _, response = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    assert response is not None, "the listener ended the association"
    return int(response.Status)


def data_set(path: Path) -> bytes:
    """Return the bytes of a Part 10 file after its file meta information."""
    content = path.read_bytes()
    return content[144 + int.from_bytes(content[140:144], "little") :]


def rows(ledger: Ledger) -> list[Instance]:
    with ledger.read() as session:
        return list(session.scalars(select(Instance)))


def test_the_listener_knows_who_called_last_and_who_was_sent_away(
    listener: Listener, settings: Settings, association: Association
) -> None:
    # It is said once our answer is under way.
    eventually(lambda: set(listener.about()) == {"association"})
    assert store(association, "1.2.3", b"no data set") != 0
    entity = AE("ECHOES")
    entity.add_requested_context(Verification)
    caller = entity.associate("127.0.0.1", settings.dimse_port, ae_title=settings.ae_title)
    caller.send_c_echo()
    caller.release()
    stranger = entity.associate("127.0.0.1", settings.dimse_port, ae_title="ANOTHER")
    assert not stranger.is_established
    about = eventually(lambda: listener.about() if len(listener.about()) == 4 else None)
    assert about["echo"]["ae_title"] == about["association"]["ae_title"] == "ECHOES"
    assert about["rejection"]["reason"] == "it calls another AE title than ours"
    assert about["refusal"]["ae_title"] == "TEST"
    assert about["refusal"]["reason"].startswith("C000, ")
    assert about["refusal"]["address"] == "127.0.0.1"


@pytest.mark.parametrize(("host", "reached"), [("::", ["127.0.0.1", "::1"]), ("127.0.0.1", ["127.0.0.1"])])
def test_the_unspecified_address_of_ipv6_takes_callers_of_both_families(
    settings: Settings, ledger: Ledger, host: str, reached: list[str]
) -> None:
    settings = settings.model_copy(update={"dimse_host": host})
    running = Listener(settings, Spool(settings.data_dir), ledger)
    running.start()
    try:
        for address in reached:
            with socket.create_connection((address, settings.dimse_port or 0), 5) as caller:
                caller.sendall(b"no DICOM at all")
                assert caller.recv(10).startswith(b"\x07")
    finally:
        running.stop()


def test_a_film_is_kept_byte_for_byte(
    association: Association, ledger: Ledger, settings: Settings, tmp_path: Path
) -> None:
    film = factories.phantom_chest()
    sent = data_set(factories.write(film, tmp_path))
    assert store(association, film.SOPInstanceUID, sent) == 0x0000
    (row,) = rows(ledger)
    assert data_set(settings.data_dir / str(row.spool_path)) == sent


def test_a_text_is_not_understood(association: Association, ledger: Ledger) -> None:
    assert store(association, "1.2.3", b"Dear PACS, this is a text.\n" * 100) == 0xC000
    assert not rows(ledger)


def test_a_header_cut_short_is_not_understood(
    association: Association, ledger: Ledger, tmp_path: Path
) -> None:
    film = factories.phantom_chest()
    content = data_set(factories.write(film, tmp_path))
    assert store(association, film.SOPInstanceUID, content[:400]) == 0xC000
    assert not rows(ledger)


def test_pixels_cut_short_are_kept_for_the_decoder_to_judge(
    association: Association, ledger: Ledger, tmp_path: Path
) -> None:
    film = factories.phantom_chest()
    content = data_set(factories.write(film, tmp_path))
    assert store(association, film.SOPInstanceUID, content[: len(content) // 2]) == 0x0000
    assert len(rows(ledger)) == 1


def test_the_service_goes_on_after_an_object_it_refused(
    association: Association, ledger: Ledger, tmp_path: Path
) -> None:
    film = factories.phantom_chest()
    assert store(association, "1.2.3", b"\x00" * 999) == 0xC000
    assert store(association, film.SOPInstanceUID, data_set(factories.write(film, tmp_path))) == 0x0000
    assert len(rows(ledger)) == 1


def test_another_instance_than_the_command_names_is_a_mismatch(
    association: Association, ledger: Ledger, tmp_path: Path
) -> None:
    assert (
        store(association, "1.2.3", data_set(factories.write(factories.phantom_chest(), tmp_path))) == 0xA900
    )
    assert not rows(ledger)


@pytest.mark.parametrize("hostile", ["../../x", "/abs", "1.2.3/../../x"])
def test_a_uid_that_is_a_path_is_an_invalid_instance_and_writes_nothing(
    association: Association, ledger: Ledger, settings: Settings, tmp_path: Path, hostile: str
) -> None:
    film = factories.phantom_chest()
    real = str(film.SOPInstanceUID)
    content = data_set(factories.write(film, tmp_path / "sent"))
    named = hostile + "x" * (len(real) - len(hostile))
    assert store(association, named, content.replace(real.encode(), named.encode())) == 0x0117
    assert not rows(ledger)
    assert {item.name for item in tmp_path.iterdir()} == {"site", "sent"}
    assert {item.name for item in (tmp_path / "site").iterdir()} == {"data"}
    assert not list((settings.data_dir / "incoming").iterdir())


def test_a_data_folder_that_is_full_answers_out_of_resources_and_then_goes_on(
    listener: Listener, association: Association, ledger: Ledger, tmp_path: Path
) -> None:
    film = factories.phantom_chest()
    content = data_set(factories.write(film, tmp_path))
    intake = listener._intake
    intake._settings = intake._settings.model_copy(update={"min_free_bytes": 1 << 60})
    assert store(association, film.SOPInstanceUID, content) == 0xA700
    intake._settings = intake._settings.model_copy(update={"min_free_bytes": 0})
    assert store(association, film.SOPInstanceUID, content) == 0x0000


def test_just_the_syntaxes_that_can_be_decoded_are_accepted(listener: Listener, settings: Settings) -> None:
    refused = [DeflatedExplicitVRLittleEndian, JPEGExtended12Bit]
    for syntax in [*OFFERED, *refused]:
        entity = AE("TEST")
        entity.requested_contexts = [build_context(_DX, syntax)]
        opened = entity.associate("127.0.0.1", settings.dimse_port, ae_title=settings.ae_title)
        assert bool(opened.accepted_contexts) == (syntax in OFFERED), syntax.name
        opened.release() if opened.is_established else opened.abort()


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, JPEG2000Lossless])
def test_dcmtk_pushes_eight_copies_at_once_and_one_is_kept(
    listener: Listener, ledger: Ledger, settings: Settings, tmp_path: Path, syntax: str
) -> None:
    film = factories.phantom_chest()
    path = factories.write(film, tmp_path, syntax)  # type: ignore[arg-type]
    codes: list[int] = []

    def push() -> None:
        codes.append(storescu([path], settings.ae_title, settings.dimse_port).returncode)

    senders = [threading.Thread(target=push) for _ in range(8)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert codes == [0] * 8
    assert len(rows(ledger)) == 1
