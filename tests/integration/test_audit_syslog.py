"""Audit messages on their way to a real syslog server: rsyslog, over TLS, with certificates on both ends."""

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from service.core import audit_syslog
from service.core.audit import Audit
from service.core.audit_syslog import Sender, framed
from service.core.audit_trail import Place, Record, Trail
from service.core.settings import Settings, load
from tests import audit_trail
from tests.certificates import Authority, Issued
from tests.servers import Server, eventually, executable

_CONFIGURATION = """
module(load="imtcp" maxSessions="10"
       streamDriver.name="gtls" streamDriver.mode="1" streamDriver.authMode="x509/name"
       permittedPeer=["hilum.example"])
global(workDirectory="{folder}" maxMessageSize="64k"
       defaultNetstreamDriver="gtls"
       defaultNetstreamDriverCAFile="{ca}"
       defaultNetstreamDriverCertFile="{certificate}"
       defaultNetstreamDriverKeyFile="{key}")
template(name="whole" type="string"
         string="%pri%|%timestamp:::date-rfc3339%|%hostname%|%app-name%|%msgid%|%structured-data%|%msg%\\n")
ruleset(name="audit") {{ action(type="omfile" file="{folder}/received" template="whole") }}
input(type="imtcp" port="{port}" address="127.0.0.1" ruleset="audit")
"""


class Rsyslog(Server):
    """rsyslog that takes messages over TLS from whoever shows the certificate of hilum.example."""

    name = "rsyslog"

    def __init__(self, shown: Issued) -> None:
        super().__init__()
        self.shown = shown

    def command(self) -> list[str]:
        configuration = self.folder / "rsyslog.conf"
        shown = self.shown
        configuration.write_text(
            _CONFIGURATION.format(
                folder=self.folder, port=self.port, ca=shown.ca, certificate=shown.certificate, key=shown.key
            )
        )
        program = executable("rsyslogd", "rsyslog")
        return [program, "-n", "-iNONE", "-f", str(configuration)]

    def ready(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def received(self) -> list[list[str]]:
        """Return the fields of each message: priority, time, host, application, message id, data, content."""
        path = self.folder / "received"
        return [line.split("|", 6) for line in path.read_text().splitlines()] if path.exists() else []

    def numbers(self) -> list[int]:
        return [int(re.findall(r'sequenceId="(\d+)"', fields[5])[0]) for fields in self.received()]


@pytest.fixture(scope="module")
def shown(authority: Authority) -> Issued:
    return authority.issue("localhost", ["127.0.0.1"])


@pytest.fixture(scope="module")
def ours(authority: Authority) -> Issued:
    return authority.issue("hilum.example")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_syslog, "_REFUSAL_SECONDS", 0.3)


@pytest.fixture
def server(shown: Issued) -> Iterator[Rsyslog]:
    with Rsyslog(shown) as running:
        yield running


def settings_for(port: int, folder: Path, ours: Issued) -> Settings:
    return load(data_dir=folder, audit_syslog=f"localhost:{port}", **ours.settings)


def test_every_message_arrives_once_as_it_is_in_the_trail(
    server: Rsyslog, ours: Issued, tmp_path: Path
) -> None:
    settings = settings_for(server.port, tmp_path, ours)
    audit, sender = Audit(settings, "api"), Sender(settings)
    audit.started()
    audit.login("Schwester Änne", "10.0.0.1")
    assert sender.waiting() == 2
    assert sender.send() == 2
    audit.login_failed("10.0.0.1", "no such token")
    assert sender.send() == 1
    assert sender.send() == sender.waiting() == 0
    eventually(lambda: len(server.received()) == 3)
    trail = Trail(tmp_path / "audit")
    for record, fields in zip(trail.after(Place()), server.received(), strict=True):
        assert fields[6].removeprefix("\ufeff").encode() == record.message
        message = audit_trail.valid(record.message)
        assert fields[2:5] == [socket.gethostname(), "hilum", "DICOM+RFC3881"]
        assert fields[1][:19] == message.find("EventIdentification").get("EventDateTime")[:19]
    assert server.numbers() == [1, 2, 3]
    assert [fields[0] for fields in server.received()] == ["85", "85", "84"]  # authpriv, notice and warning


def test_a_server_that_is_away_is_waited_for_and_gets_everything(
    server: Rsyslog, ours: Issued, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(server.port, tmp_path, ours)
    audit, sender = Audit(settings, "listener"), Sender(settings)
    server.kill()
    thread = threading.Thread(target=sender.run)
    thread.start()
    for number in range(700):  # more than a batch
        audit.login(f"user {number}", "10.0.0.1")
    assert sender.waiting() == 700
    server.restart()
    eventually(lambda: sender.waiting() == 0, 30)
    sender.stop()
    thread.join()
    eventually(lambda: sorted(set(server.numbers())) == list(range(1, 701)), 10)
    assert Trail(tmp_path / "audit").verify().breaks == ()


@contextmanager
def listening(context: Any = None) -> Iterator[tuple[int, list[bytes]]]:
    """Give the port of a server that reads a little of each connection and resets it."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with (
                    connection,
                    suppress(OSError),
                    context.wrap_socket(connection, server_side=True) as secured,
                ):
                    heard.append(secured.recv(10))

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1], heard


def test_what_a_server_did_not_read_is_sent_again(
    server: Rsyslog, ours: Issued, shown: Issued, tmp_path: Path
) -> None:
    with listening(shown.server()) as (port, heard):
        settings = settings_for(port, tmp_path, ours)
        audit = Audit(settings, "api")
        for number in range(50):
            audit.login(f"user {number}", "10.0.0.1")
        with pytest.raises(OSError):
            Sender(settings).send()
        eventually(lambda: heard)
    assert Sender(settings).waiting() == 50
    assert Sender(settings_for(server.port, tmp_path, ours)).send() == 50
    eventually(lambda: server.numbers() == list(range(1, 51)))


def test_nothing_is_sent_to_a_server_that_is_another(
    shown: Issued, ours: Issued, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    stranger = Authority(tmp_path_factory.mktemp("stranger"), "Stranger")
    for foreign in (stranger.issue("localhost"), ours, *[stranger.issue("localhost", left=timedelta(-1))]):
        with listening(foreign.server()) as (port, heard):
            settings = settings_for(port, tmp_path, ours)
            Audit(settings, "api").started()
            with pytest.raises(OSError, match=r"(?i)certificate"):
                Sender(settings).send()
            assert not heard


def test_a_server_that_does_not_know_us_gets_nothing_and_says_so(
    server: Rsyslog, authority: Authority, tmp_path: Path
) -> None:
    settings = settings_for(server.port, tmp_path, authority.issue("somebody.else"))
    Audit(settings, "api").started()
    with pytest.raises(OSError):
        Sender(settings).send()
    assert Sender(settings).waiting() == 1
    assert server.received() == []


def test_two_senders_send_each_message_once(server: Rsyslog, ours: Issued, tmp_path: Path) -> None:
    settings = settings_for(server.port, tmp_path, ours)
    audit = Audit(settings, "api")
    for number in range(100):
        audit.login(f"user {number}", "10.0.0.1")
    threads = [threading.Thread(target=Sender(settings).send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eventually(lambda: server.numbers() == list(range(1, 101)))


def test_a_message_is_framed_by_its_length_in_bytes() -> None:
    message = '<AuditMessage EventDateTime="2026-01-02T03:04:05.678Z">ä</AuditMessage>'.encode()
    length, _, rest = framed(Record(2**31, "", message, "", 0)).partition(b" ")
    assert int(length) == len(rest)
    assert rest.startswith(b"<84>1 2026-01-02T03:04:05.678Z ")
    assert b'[meta sequenceId="1"] \xef\xbb\xbf<AuditMessage' in rest


@pytest.mark.parametrize(
    "server", ["audit.example", "host:0", "host:70000", "host:x", "tls://host:6514", ":6514"]
)
def test_a_syslog_server_is_host_and_port(server: str) -> None:
    with pytest.raises(Exception, match="HILUM_AUDIT_SYSLOG"):
        load(audit_syslog=server)


def test_an_address_may_be_of_ipv6() -> None:
    found = load(audit_syslog="[::1]:6514").audit_syslog
    assert found is not None
    assert (found.host, found.port, str(found)) == ("::1", 6514, "[::1]:6514")
