"""The STOW-RS door under faults that user agents, disks and kernels really cause."""

import hashlib
import io
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from dicomweb_client import DICOMwebClient
from pydicom import Dataset, dcmread
from pydicom.uid import CTImageStorage, JPEG2000Lossless, JPEGExtended12Bit, RLELossless
from sqlalchemy import select

from service.api.stow import Bounds
from service.core.tables import Event
from tests import factories
from tests.faults import peers
from tests.faults.door import disk, failing_fsync
from tests.faults.site import site
from tests.faults.web import (
    BETWEEN_REQUESTS,
    BOUNDARY,
    SHORT,
    ApiProcess,
    Web,
    WebPeer,
    body,
    part,
    post,
    reasons,
    stored,
    web,
)
from tests.servers import eventually

# What a busy machine may take beyond a bound.
_PATIENCE = 5.0


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Web]:
    with web(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def film() -> Dataset:
    return factories.phantom_chest(rows=256, columns=200)


@pytest.fixture(scope="module")
def content(film: Dataset, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A radiograph as a Part 10 file."""
    return factories.write(film, tmp_path_factory.mktemp("sent")).read_bytes()


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A radiograph of 200 MB, most of it in a private element."""
    path = factories.write(factories.phantom_chest(seed="big", rows=64, columns=64), tmp_path / "big")
    whole = path.read_bytes()
    pixels = whole.index(b"\xe0\x7f\x10\x00")
    with path.open("wb") as stream:
        stream.write(whole[:pixels] + peers.element(0x00711010, b"OB", b"", 200_000_000))
        stream.seek(200_000_000, os.SEEK_CUR)
        stream.write(whole[pixels:])
    return path


def streamed(path: Path) -> Iterator[bytes]:
    """Yield the body that holds a file, which is too big for the memory of the test as well."""
    yield part(b"").removesuffix(b"\r\n")
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            yield chunk
    yield f"\r\n--{BOUNDARY}--\r\n".encode()


def with_meta(content: bytes, meta: bytes, length: int | None = None) -> bytes:
    """Return a file with other elements of group 0002 behind a group length, which may be a lie."""
    size = (len(meta) if length is None else length).to_bytes(4, "little")
    data_set = content[144 + int.from_bytes(content[140:144], "little") :]
    return content[:132] + b"\x02\x00\x00\x00UL\x04\x00" + size + meta + data_set


def meta_of(content: bytes) -> bytes:
    return content[144 : 144 + int.from_bytes(content[140:144], "little")]


def ui(element: int, uid: str) -> bytes:
    value = uid.encode() + b"\0" * (len(uid) % 2)
    return b"\x02\x00" + element.to_bytes(2, "little") + b"UI" + len(value).to_bytes(2, "little") + value


def private(size: int, vr: bytes = b"OB") -> bytes:
    """Return Private Information (0002,0102)."""
    return b"\x02\x00\x02\x01" + vr + b"\0\0" + size.to_bytes(4, "little") + bytes(size)


def another(content: bytes, **attributes: Any) -> bytes:
    """Return the same object with other attributes, its file meta as it was."""
    dataset = dcmread(io.BytesIO(content))
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    stream = io.BytesIO()
    dataset.save_as(stream)
    return stream.getvalue()


# --- what is taken ------------------------------------------------------------------------------------------


def test_objects_are_kept_as_they_came_before_they_are_answered_for(
    running: Web, film: Dataset, content: bytes, tmp_path: Path
) -> None:
    others = [factories.ct_slice(), factories.phantom_chest(seed=2, rows=64, columns=64)]
    files = [factories.write(item, tmp_path / "sent").read_bytes() for item in others]
    answer = running.post(body(content, *files))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/dicom+json"
    assert stored(answer) == [item.SOPInstanceUID for item in (film, *others)]
    kept = {row.sop_instance_uid: row for row in running.rows()}
    assert len(kept) == 3
    spooled = running.settings.data_dir / str(kept[str(film.SOPInstanceUID)].spool_path)
    assert spooled.read_bytes() == content
    assert spooled.stat().st_mode & 0o777 == 0o600
    assert not running.incoming


def test_a_program_in_the_preamble_does_not_outlive_the_door(running: Web, content: bytes) -> None:
    hostile = b"MZ" + b"\x90" * 126 + content[128:]
    assert running.post(body(hostile)).status_code == 200
    (spooled,) = running.spooled
    assert spooled.read_bytes() == bytes(128) + content[128:]
    assert running.post(body(content)).status_code == 200
    assert len(running.rows()) == 1


def test_every_transfer_syntax_that_is_offered_comes_through(running: Web, tmp_path: Path) -> None:
    for seed, syntax in enumerate((JPEG2000Lossless, RLELossless)):
        made = factories.phantom_chest(seed=seed, rows=64, columns=64)
        whole = factories.write(made, tmp_path / "sent", syntax).read_bytes()
        said = part(whole, f"content-type: application/dicom;transfer-syntax={syntax}")
        assert running.post(said + f"--{BOUNDARY}--".encode()).status_code == 200
    assert {row.transfer_syntax_uid for row in running.rows()} == {JPEG2000Lossless, RLELossless}


def test_the_same_object_by_both_doors_is_one_row(
    running: Web, film: Dataset, content: bytes, tmp_path: Path
) -> None:
    data_set = content[144 + int.from_bytes(content[140:144], "little") :]
    with site(tmp_path) as dimse, dimse.peer() as peer:
        assert peer.store(str(film.SOPInstanceUID), data_set) == 0x0000
        assert running.post(body(content)).status_code == 200
        assert peer.store(str(film.SOPInstanceUID), data_set) == 0x0000
    assert len(running.rows()) == 1
    assert len(running.spooled) == 1


def test_eight_uploads_of_one_object_at_once_make_one_row(running: Web, content: bytes) -> None:
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.append(running.post(body(content)).status_code))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [200] * 8
    assert len(running.rows()) == 1
    assert len(running.spooled) == 1


def test_a_user_of_dicomweb_client_stores_real_objects(running: Web, film: Dataset, tmp_path: Path) -> None:
    client = DICOMwebClient(running.url, stow_url_prefix="dicomweb")
    paths = [
        factories.write(item, tmp_path / "sent")
        for item in (film, factories.chest_film(study=film.PatientID), factories.basic_text_sr())
    ]
    response = client.store_instances([dcmread(path) for path in paths])
    assert len(response.ReferencedSOPSequence) == 3
    assert "FailedSOPSequence" not in response
    one_study = client.store_instances([dcmread(paths[0])], study_instance_uid=film.StudyInstanceUID)
    assert one_study.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == film.SOPInstanceUID
    assert len(running.rows()) == 3


# --- what is refused, object by object ----------------------------------------------------------------------


def test_one_object_that_fails_does_not_keep_the_others_out(
    running: Web, film: Dataset, content: bytes
) -> None:
    answer = running.post(body(b"no DICOM", content, another(content, SOPInstanceUID="1.2.3")))
    assert answer.status_code == 202
    assert stored(answer) == [film.SOPInstanceUID]
    assert reasons(answer) == [0xA900, 0xC000]
    assert len(running.rows()) == 1
    assert not running.incoming


def deflated_bomb(content: bytes) -> bytes:
    """Return a deflated file that inflates to 400 MB."""
    compressor = zlib.compressobj(9, wbits=-15)
    zeros = b"".join(compressor.compress(bytes(1 << 20)) for _ in range(400)) + compressor.flush()
    meta = meta_of(content).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")
    at = meta.index(b"1.2.840.10008.1.2.1.99")
    meta = meta[: at - 2] + (22).to_bytes(2, "little") + meta[at:]
    head = with_meta(content, meta)
    return head[: 144 + len(meta)] + zeros


def deep(content: bytes) -> bytes:
    pixels = content.index(b"\xe0\x7f\x10\x00")
    return content[:pixels] + peers.nested(1000, undefined=False) + content[pixels:]


def in_disguise(content: bytes) -> bytes:
    """Return the deep file again, and let its meta information say Implicit VR."""
    return deep(content).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2\0\0\0", 1)


_HOSTILE: dict[str, tuple[Callable[[bytes], bytes], int]] = {
    "empty": (lambda whole: b"", 0xC000),
    "no magic": (lambda whole: whole[:131], 0xC000),
    "no group length": (lambda whole: whole[:140], 0xC000),
    "cut in the meta": (lambda whole: whole[:200], 0xC000),
    "cut in the header": (lambda whole: whole[:400], 0xC000),
    "no preamble": (lambda whole: whole[132:], 0xC000),
    "no meta": (lambda whole: with_meta(whole, b""), 0xC000),
    "meta longer than the file": (lambda whole: with_meta(whole, meta_of(whole), 10_000_000), 0xC000),
    "meta swallows the data set": (lambda whole: with_meta(whole, meta_of(whole), len(whole) - 300), 0xC000),
    "meta ends in an element": (lambda whole: with_meta(whole, meta_of(whole), 40), 0xC000),
    "meta ends early": (
        lambda whole: with_meta(whole, meta_of(whole), meta_of(whole).index(b"\x02\0\x12\0")),
        0xC000,
    ),
    "meta element too long": (
        lambda whole: with_meta(whole, meta_of(whole) + private(0)[:-4] + b"\xff\xff\xff\xff"),
        0xC000,
    ),
    "meta too long": (lambda whole: with_meta(whole, meta_of(whole) + private(70_000)), 0xC000),
    "meta with two lengths": (
        lambda whole: with_meta(deep(whole), meta_of(whole) + b"\x02\0\0\0UL\x04\0" + b"\0\0\x01\0"),
        0xC000,
    ),
    "meta with a sequence": (lambda whole: with_meta(whole, meta_of(whole) + private(8, b"SQ")), 0xC000),
    "meta without VRs": (lambda whole: with_meta(whole, meta_of(whole) + private(8, b"\0\0")), 0xC000),
    "no transfer syntax": (lambda whole: with_meta(whole, ui(2, peers.DX) + ui(3, "1.2.3")), 0xC000),
    "meta UID": (lambda whole: with_meta(whole, ui(2, peers.DX) + ui(3, "../../x")), 0x0117),
    "every UID": (lambda whole: whole.replace(b"1.2.826", b"../../x"), 0x0117),
    "SOP instance UID": (lambda whole: another(whole, SOPInstanceUID="../../../x"), 0x0117),
    "study UID": (lambda whole: another(whole, StudyInstanceUID="/abs"), 0x0117),
    "SOP class": (lambda whole: another(whole, SOPClassUID=CTImageStorage), 0xA900),
    "unknown syntax": (
        lambda whole: whole.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.9.9\0", 1),
        0xC122,
    ),
    "deflate bomb": (deflated_bomb, 0xC122),
    "deep": (deep, 0xC000),
    "deep in disguise": (in_disguise, 0xC000),
}


@pytest.mark.parametrize("kind", _HOSTILE)
def test_a_hostile_object_is_refused_with_its_reason_and_the_next_is_stored(
    running: Web, content: bytes, tmp_path: Path, kind: str
) -> None:
    make, reason = _HOSTILE[kind]
    made = make(content)
    before = psutil.Process().memory_full_info().uss
    began = time.monotonic()
    answer = running.post(body(made))
    assert time.monotonic() - began < 5
    assert psutil.Process().memory_full_info().uss - before < 50_000_000
    assert (answer.status_code, reasons(answer)) == (409, [reason])
    assert not running.rows()
    assert not running.incoming
    assert not running.spooled
    assert running.post(body(content)).status_code == 200
    assert {path.name for path in tmp_path.iterdir()} <= {"site", "sent"}
    assert {path.name for path in (tmp_path / "site").iterdir()} == {"data"}


def test_a_transfer_syntax_that_is_not_offered_is_named_so(running: Web, tmp_path: Path) -> None:
    made = factories.phantom_chest(rows=64, columns=64)
    whole = factories.write(made, tmp_path / "sent", JPEGExtended12Bit).read_bytes()
    answer = running.post(body(whole))
    assert (answer.status_code, reasons(answer)) == (409, [0xC122])


def test_an_object_of_another_study_than_the_url_s_is_a_mismatch(
    running: Web, film: Dataset, content: bytes
) -> None:
    answer = running.post(body(content), "1.2.3")
    assert (answer.status_code, reasons(answer)) == (409, [0xA900])
    assert not running.rows()
    assert running.post(body(content), film.StudyInstanceUID).status_code == 200
    assert running.post(body(content), "1.2.x").status_code == 400


@pytest.mark.parametrize(
    "headers",
    [
        ("Content-Type: application/dicom+json",),
        ("Content-Type: application/dicom", "Content-Transfer-Encoding: base64"),
        ("Content-Type: application/dicom", "Content-Encoding: gzip"),
    ],
)
def test_a_part_that_is_no_binary_dicom_is_not_understood(
    running: Web, content: bytes, headers: tuple[str, ...]
) -> None:
    answer = running.post(part(content, *headers) + body(content))
    assert (answer.status_code, reasons(answer)) == (202, [0xC000])


def test_an_object_over_the_limit_is_too_large_and_the_others_are_stored(
    tmp_path: Path, content: bytes
) -> None:
    with web(tmp_path, max_object_bytes=len(content)) as running:
        answer = running.post(body(content + b"\0"))
        assert (answer.status_code, reasons(answer)) == (413, [0xA700])
        assert not running.incoming
        answer = running.post(body(content + bytes(3_000_000), content))
        assert (answer.status_code, reasons(answer)) == (202, [0xA700])
        assert len(running.rows()) == 1


# --- what is refused as a whole -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content_Type": "application/dicom"}, 415),
        ({"Content_Type": ""}, 415),
        ({"Content_Type": "multipart/form-data; boundary=x"}, 415),
        ({"Content_Type": f'multipart/related; type="application/dicom+json"; boundary={BOUNDARY}'}, 415),
        ({"Content_Type": f'multipart/related; type="application/dicom+xml"; boundary={BOUNDARY}'}, 415),
        ({"Content_Type": f'multipart/related; type="application/dicom"; x="{";" * 5000}"'}, 415),
        ({"Content_Encoding": "gzip"}, 415),
        ({"Content_Encoding": "br, gzip"}, 415),
        ({"Content_Type": 'multipart/related; type="application/dicom"'}, 400),
        ({"Content_Type": 'multipart/related; type="application/dicom"; boundary=""'}, 400),
        ({"Content_Type": f'multipart/related; type="application/dicom"; boundary={"x" * 71}'}, 400),
        ({"Content_Type": 'multipart/related; type="application/dicom"; boundary="a\tb"'}, 400),
        ({"Content_Type": 'multipart/related; type="application/dicom"; boundary=other'}, 400),
        ({"Accept": "application/dicom+xml"}, 406),
    ],
)
def test_a_request_that_is_no_store_request_is_refused(
    running: Web, content: bytes, headers: dict[str, str], status: int
) -> None:
    answer = running.post(body(content), **headers)
    assert (answer.status_code, "detail" in answer.json()) == (status, True)
    assert not running.rows()


@pytest.mark.parametrize(
    "made",
    [
        b"",
        f"--{BOUNDARY}--\r\n".encode(),
        b"text before\r\n" + body(b""),
        part(b"", f"X: {'y' * 10_000}") + f"--{BOUNDARY}--".encode(),
        part(b"", *(f"X-{number}: y" for number in range(100))) + f"--{BOUNDARY}--".encode(),
        f"--{BOUNDARY}\r\nno header at all\r\n\r\n".encode(),
        f"--{BOUNDARY}".encode() * 10_000,
        b"\r\n" * 100_000,
    ],
    ids=["empty", "no part", "preamble", "header too long", "headers", "no header", "delimiters", "newlines"],
)
def test_a_body_that_is_no_multipart_body_is_a_bad_request(running: Web, made: bytes) -> None:
    began = time.monotonic()
    assert running.post(made).status_code == 400
    assert time.monotonic() - began < 5
    assert not running.incoming


def test_a_body_without_its_end_keeps_the_whole_parts_and_says_so(running: Web, content: bytes) -> None:
    cut = body(content, another(content, SOPInstanceUID="1.2.3"))[:-40]
    answer = running.post(cut)
    assert (answer.status_code, reasons(answer), len(stored(answer))) == (202, [0xC000], 1)
    assert not running.incoming
    assert running.post(body(content)[:-40]).status_code == 400
    assert not running.incoming
    assert len(running.rows()) == 1


def test_parts_beyond_the_most_are_not_taken(tmp_path: Path, content: bytes) -> None:
    with web(tmp_path, replace(SHORT, parts=2)) as running:
        answer = running.post(body(content, b"x", content))
        assert (answer.status_code, reasons(answer)) == (202, [0xC000, 0xA700])
        assert running.post(body(b"x", b"x", content)).status_code == 413
        assert len(running.rows()) == 1


def test_who_may_not_act_may_not_store(tmp_path: Path, content: bytes) -> None:
    tokens = ",".join(
        f"{role}-token:{role}:{hashlib.sha256(role.encode()).hexdigest()}" for role in ("viewer", "clinician")
    )
    with web(tmp_path, api_tokens=tokens) as running:
        assert running.post(body(content)).status_code == 401
        assert running.post(body(content), Authorization="Bearer viewer").status_code == 403
        assert not running.rows()
        assert running.post(body(content), Authorization="Bearer clinician").status_code == 200
        assert running.rows()[0].calling_ae_title == "clinician-token"
        with running.ledger.read() as session:
            assert session.scalars(select(Event.detail)).one().endswith("from clinician-token")


# --- no room, no time ---------------------------------------------------------------------------------------


def test_a_nearly_full_disk_is_out_of_resources(tmp_path: Path, content: bytes) -> None:
    with web(tmp_path, min_free_bytes=2**62) as running:
        answer = running.post(body(content, content))
        assert (answer.status_code, reasons(answer)) == (503, [0xA700, 0xA700])
        assert answer.headers["retry-after"] == "30"
        assert not running.incoming


def test_a_full_disk_is_out_of_resources_until_there_is_room(tmp_path: Path, content: bytes) -> None:
    """Needs root and the right to mount, as in CI."""
    with disk(tmp_path, "-o", "size=1m") as data:
        (data / "fill").write_bytes(bytes(1_000_000))
        with web(tmp_path, database_url=f"sqlite:///{tmp_path / 'ledger.sqlite3'}") as running:
            for _ in range(2):
                answer = running.post(body(content))
                assert (answer.status_code, reasons(answer)) == (503, [0xA700])
                assert not running.incoming
            (data / "fill").unlink()
            assert running.post(body(content)).status_code == 200
            assert len(running.rows()) == 1


@pytest.mark.fault(15)
def test_a_disk_whose_fsync_fails_stores_nothing_of_an_upload(content: bytes) -> None:
    """Needs the right to trace, as root has in CI."""
    with ApiProcess() as api:
        with failing_fsync(api.itself):
            answer = api.post(body(content))
            assert (answer.status_code, reasons(answer)) == (503, [0xA700])
        assert not api.incoming
        assert not api.spooled
        assert api.post(body(content)).status_code == 200


def test_an_upload_too_many_is_put_off_and_taken_later(tmp_path: Path, content: bytes) -> None:
    with web(tmp_path, Bounds(stall=30), max_uploads=1) as running:
        whole = body(content)
        with running.peer() as first:
            first.send(first.head(len(whole)) + whole[:70_000])
            eventually(lambda: running.incoming)
            late = running.post(whole)
            assert late.status_code == 503
            assert late.headers["retry-after"] == "30"
            assert httpx.get(f"{running.url}/healthz").status_code == 200
            first.send(whole[70_000:])
            assert first.status() == 200
        assert running.post(whole).status_code == 200


@pytest.mark.parametrize("sent", [0, 1000, 70_000])
def test_a_body_that_stalls_is_ended_in_time_and_frees_its_slot(
    tmp_path: Path, content: bytes, sent: int
) -> None:
    with web(tmp_path, max_uploads=1) as running:
        whole = body(content)
        with running.peer() as peer:
            peer.send(peer.head(len(whole)) + whole[:sent])
            began = time.monotonic()
            assert peer.status() == 408
            assert peer.seconds_open(20) < _PATIENCE
            assert time.monotonic() - began < SHORT.stall + _PATIENCE
        eventually(lambda: not running.incoming)
        assert running.post(whole).status_code == 200


@pytest.mark.parametrize(("size", "pause", "bound"), [(1, 0.05, SHORT.stall), (40_000, 0.4, SHORT.request)])
def test_a_body_that_drips_is_ended_in_time(running: Web, size: int, pause: float, bound: float) -> None:
    with running.peer() as peer:
        began = time.monotonic()
        with suppress(ConnectionError):
            peer.send(peer.head(100_000_000) + part(b"")[:-2])
            while time.monotonic() - began < 20:
                peer.send(bytes(size))
                time.sleep(pause)
        assert time.monotonic() - began < bound + _PATIENCE
    eventually(lambda: not running.incoming)


@pytest.mark.parametrize("sent", [b"", b"P", b"POST /dicomweb/studies HTTP/1.1\r\nHost: x\r\n"])
def test_a_connection_that_asks_for_nothing_is_closed_in_time(running: Web, sent: bytes) -> None:
    with running.peer() as peer:
        peer.send(sent)
        assert peer.seconds_open(20) < BETWEEN_REQUESTS + _PATIENCE


def test_a_head_that_drips_is_closed_in_time(running: Web) -> None:
    with running.peer() as peer:
        began = time.monotonic()
        with pytest.raises(ConnectionError):  # noqa: PT012
            peer.send(b"POST /dicomweb/studies HTTP/1.1\r\nX: ")
            while time.monotonic() - began < 20:
                peer.send(b"x")
                time.sleep(0.05)
        assert time.monotonic() - began < BETWEEN_REQUESTS + _PATIENCE


def test_a_body_that_was_refused_before_it_came_is_not_read_for_ever(running: Web) -> None:
    with running.peer() as peer:
        head = peer.head(10**12).replace(b"multipart/related", b"application/x")
        peer.send(head)
        assert peer.status() == 415
        began = time.monotonic()
        with pytest.raises(ConnectionError):  # noqa: PT012
            while time.monotonic() - began < 20:
                peer.send(bytes(1000))
                time.sleep(0.05)
        assert time.monotonic() - began < BETWEEN_REQUESTS + _PATIENCE


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_user_agent_that_leaves_keeps_what_was_whole_and_nothing_else(
    running: Web, content: bytes, how: str
) -> None:
    whole = body(content, another(content, SOPInstanceUID="1.2.3"))
    peer = running.peer()
    peer.send(peer.head(len(whole)) + whole[: len(content) + 75_000])
    eventually(lambda: running.rows() and running.incoming)
    peer.reset() if how == "reset" else peer.socket.close()
    eventually(lambda: not running.incoming)
    assert len(running.rows()) == 1
    assert len(running.spooled) == 1


# --- the process --------------------------------------------------------------------------------------------


def test_an_object_of_200_mb_takes_no_more_memory_than_a_small_one(big: Path, content: bytes) -> None:
    with ApiProcess() as gateway:
        assert gateway.post(body(content)).status_code == 200
        before = _peak(gateway)
        began = time.monotonic()
        assert gateway.post(streamed(big)).status_code == 200
        took = time.monotonic() - began
        after = _peak(gateway)
        (spooled,) = [path for path in gateway.spooled if path.stat().st_size > 200_000_000]
        assert spooled.stat().st_size == big.stat().st_size
        print(f"200 MB in {took:.1f} s; peak {before // 1024} -> {after // 1024} MB")
        assert after - before < 24 * 1024


def _peak(gateway: ApiProcess) -> int:
    """Return the most memory a process has held so far, in KiB."""
    text = Path(f"/proc/{gateway.itself.pid}/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0])


def test_an_api_killed_in_the_middle_of_an_object_leaves_nothing_that_counts(
    big: Path, content: bytes
) -> None:
    with ApiProcess() as gateway:
        ends: list[str] = []

        def send() -> None:
            try:
                ends.append(str(gateway.post(_slowly(streamed(big))).status_code))
            except httpx.HTTPError as fault:
                ends.append(type(fault).__name__)

        sender = threading.Thread(target=send)
        sender.start()
        eventually(lambda: any(left.stat().st_size > 1_000_000 for left in gateway.incoming), 20)
        gateway.kill()
        sender.join(30)
        assert ends
        assert not ends[0].isdigit()
        (left,) = gateway.incoming
        assert left.suffix == ".part"
        gateway.restart()
        assert not gateway.incoming
        assert not gateway.spooled
        assert not gateway.studies()
        assert gateway.post(body(content)).status_code == 200


def _slowly(chunks: Iterator[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        yield chunk
        time.sleep(0.02)


@pytest.mark.parametrize("place", ["receive.arrived", "receive.kept", "receive.recorded"])
def test_an_api_that_dies_between_two_steps_is_sent_the_object_again(
    content: bytes, film: Dataset, place: str
) -> None:
    with ApiProcess(failpoint=place) as gateway:
        with pytest.raises(httpx.TransportError):
            gateway.post(body(content))
        assert gateway.itself.wait(10) is not None
        del gateway.settings["failpoint"]
        gateway.restart()
        answer = gateway.post(body(content))
        assert (answer.status_code, stored(answer)) == (200, [film.SOPInstanceUID])
        study = gateway.study(str(film.StudyInstanceUID))
        assert study is not None
        assert len(study["instances"]) == 1
        assert not gateway.incoming


def test_no_log_line_names_a_patient(content: bytes) -> None:
    with ApiProcess() as gateway:
        for name in ("Canary^Yellow", "X" * 100 + "Canary"):
            named = another(content, PatientName=name, PatientID="CANARY")
            assert gateway.post(body(named)).status_code == 200
            assert gateway.post(body(deep(named))).status_code == 409
        assert "receive.refused" in gateway.log()
        assert "canary" not in gateway.log().lower()


def test_a_stalled_upload_does_not_hold_up_the_stop_of_the_api(content: bytes) -> None:
    with ApiProcess() as gateway:
        whole = body(content)
        with WebPeer(gateway.port) as peer:
            peer.send(peer.head(len(whole)) + whole[:70_000])
            eventually(lambda: gateway.incoming)
            began = time.monotonic()
            process = gateway.itself
            process.terminate()
            assert process.wait(30) is not None
            assert time.monotonic() - began < 25
        assert not gateway.incoming


def test_another_site_s_page_stores_nothing(running: Web, content: bytes) -> None:
    assert post(running.url, body(content), Sec_Fetch_Site="cross-site").status_code == 403
    assert not running.rows()
