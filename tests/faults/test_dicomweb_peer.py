"""Deliveries by STOW-RS to servers that answer oddly, slowly or not at all."""

import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit

from service.core.destination import Destination
from service.core.errors import NotAccepted, PermanentDelivery, TransientDelivery
from service.core.settings import load
from tests import factories
from tests.faults.web import OddServer, http
from tests.servers import executable, free_port
from worker.dicomweb import DICOMwebPeer
from worker.peer import Sendable, Sent

_UID = "1.2.826.0.1.3680043.8.498.1"


@pytest.fixture(scope="module")
def item(tmp_path_factory: pytest.TempPathFactory) -> Sendable:
    made = factories.basic_text_sr()
    path = factories.write(made, tmp_path_factory.mktemp("sent"))
    return Sendable(path, made.SOPClassUID, ExplicitVRLittleEndian)


def destination(url: str, **options: Any) -> Destination:
    (made,) = load(destinations=[{"name": "PACS", "url": url, **options}]).destinations
    return made


def sent(item: Sendable, *answers: Any, longest_seconds: float = 60) -> Sent:
    with (
        OddServer(*answers) as server,
        DICOMwebPeer(destination(server.url), longest_seconds) as peer,
    ):
        return peer.store(item)


@pytest.fixture
def tls_server(tmp_path: Path) -> Iterator[str]:
    """URL of a server whose certificate it has signed itself."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *(executable("openssl", "openssl"), "req", "-x509", "-nodes", "-newkey", "rsa:2048"),
            *("-subj", "/CN=127.0.0.1", "-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"https://127.0.0.1:{server.server_port}/dicom-web"
    server.shutdown()
    thread.join()
    server.server_close()


def sequence(tag: str, **reasons: int) -> dict[str, Any]:
    numbers = {f"0008{name[1:]}": {"vr": "US", "Value": [value]} for name, value in reasons.items()}
    return {tag: {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": [_UID]}, **numbers}]}}


_STORED = sequence("00081199")
_XML = (
    '<?xml version="1.0"?><NativeDicomModel xmlns="http://dicom.nema.org/PS3.19/models/NativeDICOM">'
    '<DicomAttribute tag="{tag}" vr="SQ"><Item number="1"><DicomAttribute tag="{reason}" vr="US">'
    '<Value number="1">{value}</Value></DicomAttribute></Item></DicomAttribute></NativeDicomModel>'
)


def xml(status: int, tag: str, reason: str, value: int) -> bytes:
    content = _XML.format(tag=tag, reason=reason, value=value).encode()
    return http(status, content, "application/dicom+xml")


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (http(200, _STORED), 0x0000),
        (http(200, [_STORED]), 0x0000),
        (http(202, sequence("00081199", _1196=0xB000)), 0xB000),
        (http(200, sequence("00081198", _1197=0xA700)), 0xA700),
        (http(202, sequence("00081198", _1197=0x0122)), 0x0122),
        (http(202, {**_STORED, **sequence("0008119A", _1197=0xC000)}), 0xC000),
        (http(409, sequence("00081198", _1197=0xA778)), 0xA778),
        (http(409, sequence("00081198", _1197=0x0111)), 0x0111),
        (http(409, sequence("00081198")), 0x0110),
        (http(409, sequence("00081198", _1197=0)), 0x0110),
        (http(409, _STORED), 0x0110),
        (http(409, sequence("00081199", _1196=0xB000)), 0x0110),
        (http(409, b"no", "text/plain"), 0x0110),
        (http(200, {}), 0x0110),
        (http(200, {"00081199": {"vr": "SQ"}}), 0x0110),
        (http(200, {"00081199": {"vr": "SQ", "Value": [None, 7]}}), 0x0110),
        (xml(200, "00081199", "00081196", 0xB006), 0xB006),
        (xml(202, "00081198", "00081197", 0xA900), 0xA900),
    ],
)
def test_the_status_is_what_the_answer_says_of_the_object(item: Sendable, answer: bytes, status: int) -> None:
    assert sent(item, answer) == Sent(status)


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        *((code, TransientDelivery, f"HTTP {code}") for code in (408, 425, 429, 500, 502, 503, 504, 507)),
        (401, TransientDelivery, "credentials_file"),
        (403, TransientDelivery, "rights"),
        (404, TransientDelivery, "path of the URL"),
        (405, TransientDelivery, "path of the URL"),
        (400, PermanentDelivery, "refuses the object"),
        (413, PermanentDelivery, "refuses the object"),
        (415, NotAccepted, "does not accept"),
    ],
)
def test_a_code_without_a_status_says_whether_to_try_again(
    item: Sendable, code: int, kind: type, words: str
) -> None:
    answer = sent(item, http(code, b"Canary^Yellow", "text/plain"))
    assert answer.status is None
    assert type(answer.fault) is kind
    assert words in str(answer.fault)
    assert "Canary" not in str(answer.fault)


@pytest.mark.parametrize(
    "answer",
    [
        http(200, b"<html><title>Log in</title>", "text/html"),
        http(200, b"", "application/dicom+json"),
        http(200, b"{" * 100_000),
        http(200, b"<a>" * 300_000, "application/dicom+xml"),
        http(200, b'<!DOCTYPE a [<!ENTITY b "c">]><NativeDicomModel/>', "application/dicom+xml"),
        http(200, _STORED, "application/dicom+json", "Content-Encoding: gzip")[:-5],
        http(200, {**_STORED, "x": "y" * (3 << 20)}),
        b"HTTP/1.1 200 X\r\nContent-Type: application/dicom+json\r\n\r\n" + bytes(3 << 20),
        b"HTTP/1.1 999",
        b"nonsense\r\n\r\n",
        b"",
    ],
    ids=[
        *("log in", "empty", "deep JSON", "deep XML", "entities", "cut", "long", "endless"),
        *("half a head", "no HTTP", "nothing"),
    ],
)
def test_what_is_no_answer_of_a_stow_rs_server_is_no_success(item: Sendable, answer: bytes) -> None:
    # Closed after it by the shortest of bounds.
    found = sent(item, answer, longest_seconds=2)
    assert found.status is None
    assert type(found.fault) is TransientDelivery


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [b"H", b"T"] * 200,
        [*[b"HTTP/1.1 200 X\r\n"], *[b"X: y\r\n"] * 400],
        [http(200, _STORED)[:-1], *[b""] * 400],
    ],
    ids=["silence", "a dripping line", "dripping headers", "an end that does not come"],
)
def test_an_answer_that_does_not_come_to_its_end_is_given_up_in_time(item: Sendable, answer: Any) -> None:
    began = time.monotonic()
    found = sent(item, answer, longest_seconds=1)
    assert time.monotonic() - began < 6
    assert type(found.fault) is TransientDelivery
    assert "took too long" in str(found.fault)


def test_a_server_that_is_away_is_waited_for(item: Sendable) -> None:
    with DICOMwebPeer(destination(f"http://127.0.0.1:{free_port()}/dicom-web")) as peer:
        found = peer.store(item)
        assert type(found.fault) is TransientDelivery
        assert "cannot be reached" in str(found.fault)
        for ask in (lambda: peer.study(_UID), lambda: peer.holds(_UID, _UID, _UID)):
            with pytest.raises(TransientDelivery):
                ask()


def test_a_file_that_is_gone_is_parked(item: Sendable, tmp_path: Path) -> None:
    gone = Sendable(tmp_path / "gone.dcm", item.sop_class_uid, item.transfer_syntax_uid)
    assert type(sent(gone).fault) is PermanentDelivery


@pytest.mark.parametrize("code", [301, 302, 307, 308])
def test_a_redirect_takes_the_object_nowhere(item: Sendable, code: int) -> None:
    with OddServer(http(200, _STORED)) as other:
        found = sent(item, http(code, b"", "text/plain", f"Location: {other.url}/studies"))
        assert type(found.fault) is TransientDelivery
        assert "redirects are not followed" in str(found.fault)
        assert not other.connections


def test_one_connection_carries_several_objects_as_they_are(item: Sendable) -> None:
    answers = [http(200, _STORED)] * 3
    with OddServer(*answers) as server, DICOMwebPeer(destination(server.url)) as peer:
        assert [peer.store(item) for _ in range(3)] == [Sent(0x0000)] * 3
    assert server.connections == 1
    head, sent_body = server.requests[0]
    assert head.startswith("POST /dicom-web/studies HTTP/1.1\n")
    assert 'multipart/related; type="application/dicom"; boundary=' in head
    boundary = head.split("boundary=")[1].split("\n")[0].encode()
    assert sent_body.split(b"\r\n\r\n", 1)[1] == item.path.read_bytes() + b"\r\n--" + boundary + b"--\r\n"


def test_a_server_that_knows_no_transfer_syntax_parameter_is_sent_none(
    item: Sendable,
) -> None:
    encoded = Sendable(item.path, item.sop_class_uid, JPEGBaseline8Bit)
    answers = [http(200, {}), http(200, _STORED), http(200, _STORED)]
    with OddServer(*answers) as server, DICOMwebPeer(destination(server.url)) as peer:
        assert [peer.store(encoded) for _ in range(2)] == [Sent(0x0000)] * 2
    parameters = [
        f"transfer-syntax={JPEGBaseline8Bit}".encode() in sent_body for _, sent_body in server.requests
    ]
    assert parameters == [True, False, False]


@pytest.mark.parametrize(
    ("line", "header"),
    [("user:pass:word", "Basic dXNlcjpwYXNzOndvcmQ="), ("Bearer abc.DEF-_~+/=", "Bearer abc.DEF-_~+/=")],
)
def test_credentials_come_from_their_file(item: Sendable, tmp_path: Path, line: str, header: str) -> None:
    file = tmp_path / "credentials"
    file.write_text(f"{line}\n")
    with (
        OddServer(http(200, _STORED)) as server,
        DICOMwebPeer(destination(server.url, credentials_file=str(file))) as peer,
    ):
        assert peer.store(item) == Sent(0x0000)
    assert f"Authorization: {header}\n" in server.requests[0][0]


def test_credentials_that_are_gone_are_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    file.write_text("user:password\n")
    made = destination("https://pacs.local/dicom-web", credentials_file=str(file))
    file.unlink()
    with pytest.raises(TransientDelivery, match="credentials_file"):
        DICOMwebPeer(made)


def test_a_certificate_that_nobody_vouches_for_is_not_trusted(item: Sendable, tls_server: str) -> None:
    with DICOMwebPeer(destination(tls_server)) as peer:
        assert "signed by nobody but itself" in str(peer.store(item).fault)


# --- searches -----------------------------------------------------------------------------------------------


def match(**attributes: Any) -> dict[str, Any]:
    tags = {"study": "0020000D", "sop": "00080018", "patient": "00100020", "name": "00100010"}
    return {tags[name]: {"vr": "XX", "Value": [value]} for name, value in attributes.items()}


def study(*answers: bytes) -> dict[str, str] | None:
    with OddServer(*answers) as server, DICOMwebPeer(destination(server.url)) as peer:
        found = peer.study(_UID)
    assert f"StudyInstanceUID={_UID}" in server.requests[0][0]
    return found


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (http(200, [match(study=_UID, patient=" 7 ", name="")]), {"PatientID": "7"}),
        (
            http(200, [match(study="1.2"), match(study=_UID, name={"Alphabetic": "A^B", "Phonetic": "c"})]),
            {"PatientName": "A^B==c"},
        ),
        (http(200, [match(study=_UID)]), {}),
        (http(200, [match(study="1.2", patient="7")]), None),
        (http(200, []), None),
        (http(204), None),
        (http(404), None),
        (http(501), None),
        (http(200, b"<html>", "text/html"), None),
        (http(200, [7, None, {"0020000D": 7}]), None),
        (http(200, {"odd": 1}), None),
    ],
)
def test_a_study_is_what_the_destination_says_of_it(answer: bytes, found: dict[str, str] | None) -> None:
    assert study(answer) == found


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (http(200, [match(sop=_UID)]), True),
        (http(200, [match(sop="1.2")]), False),
        (http(200, []), False),
        (http(204), False),
        (http(404), None),
        (http(401), None),
        (http(200, b"<html>", "text/html"), None),
    ],
)
def test_an_instance_is_held_when_the_destination_says_so(answer: bytes, found: bool | None) -> None:
    with OddServer(answer) as server, DICOMwebPeer(destination(server.url)) as peer:
        assert peer.holds("1.2", "1.3", _UID) is found
    assert server.requests[0][0].startswith(
        f"GET /dicom-web/studies/1.2/series/1.3/instances?SOPInstanceUID={_UID} "
    )


@pytest.mark.parametrize("code", [429, 503])
def test_a_search_of_a_busy_server_is_waited_for(code: int) -> None:
    with pytest.raises(TransientDelivery, match=f"HTTP {code}"):
        study(http(code))
