"""DICOM over TLS with real peers: openssl, dcmtk, Orthanc; in and out."""

import importlib.util
import re
import select
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import BasicTextSRStorage, ExplicitVRLittleEndian

from service.core.errors import TransientDelivery
from service.core.settings import load
from service.core.states import StudyState
from service.core.wire_checks import examine_wire
from service.listener.connection import shut
from service.listener.scp import Listener
from tests import factories
from tests.certificates import Authority, Issued
from tests.faults.peers import ASSOCIATE_AC, Peer
from tests.faults.site import SHORT, Site, site
from tests.faults.web import OddServer, http
from tests.integration.test_delivery import reported, rows, study
from tests.ledgers import migrated
from tests.servers import ROOT, Orthanc, StoreScp, eventually, executable, free_port, storescu
from worker.context import Context
from worker.dicomweb import DICOMwebPeer
from worker.peer import Sendable
from worker.scu import DimsePeer
from worker.tasks import confirm, deliver

_NOT_RECOGNISED = bytes.fromhex("03000000000400010103")
# RFC 9325 4.2, as OpenSSL names them.
_ECDSA_SUITES = ("ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384")
_RSA_SUITES = ("ECDHE-RSA-AES128-GCM-SHA256", "ECDHE-RSA-AES256-GCM-SHA384")
_STORED = {"00081199": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["1.2.3"]}}]}}
OpenSite = Callable[..., AbstractContextManager[Site]]


@pytest.fixture(scope="module")
def hilum(authority: Authority) -> Issued:
    return authority.issue("hilum.example")


@pytest.fixture(scope="module")
def router(authority: Authority) -> Issued:
    return authority.issue("router.example")


@pytest.fixture(scope="module")
def pacs(authority: Authority) -> Issued:
    """The certificate of a PACS on this machine."""
    return authority.issue("localhost", ["127.0.0.1"])


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A CA that nobody here believes."""
    return Authority(tmp_path_factory.mktemp("stranger"), "Stranger")


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return factories.write(factories.phantom_chest(rows=64, columns=64), tmp_path / "film")


@pytest.fixture
def open_site(tmp_path: Path, hilum: Issued) -> OpenSite:
    """Open a listener with both ports and the given peers, in TOML."""

    def opened(peers: str, **settings: Any) -> AbstractContextManager[Site]:
        config = tmp_path / "hilum.toml"
        config.write_text(peers)
        given = {"dimse_tls_port": free_port(), **hilum.settings, **settings}
        return site(tmp_path, config=config, **given)

    return opened


@pytest.fixture
def secured(open_site: OpenSite) -> Iterator[Site]:
    peers = (
        '[peers.ROUTER]\ncertificates = ["router.example"]\n[peers.OTHER]\ncertificates = ["other.example"]\n'
    )
    with open_site(peers) as running:
        yield running


def s_client(port: int, *options: str, patient: bool = False) -> subprocess.CompletedProcess[str]:
    """Connect with openssl, which weighs nothing against what is asked of it; patient until it is closed."""
    return subprocess.run(
        [
            *(executable("openssl", "openssl"), "s_client", "-connect", f"127.0.0.1:{port}"),
            *(*options, *["-ign_eof"] * patient),
        ],
        input="",
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def shown(issued: Issued) -> list[str]:
    return ["-cert", str(issued.certificate), "-key", str(issued.key), "-CAfile", str(issued.ca)]


# --- in: versions and suites --------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["-tls1", "-tls1_1"])
def test_openssl_gets_no_version_before_1_2(secured: Site, router: Issued, version: str) -> None:
    done = s_client(secured.tls_port, version, "-cipher", "ALL:@SECLEVEL=0", *shown(router))
    assert done.returncode != 0
    assert "alert protocol version" in done.stderr


@pytest.mark.parametrize("suite", _ECDSA_SUITES)
def test_openssl_gets_1_2_with_the_suites_of_the_profile(secured: Site, router: Issued, suite: str) -> None:
    done = s_client(secured.tls_port, "-tls1_2", "-cipher", suite, *shown(router))
    assert f"Cipher is {suite}" in done.stdout
    assert "Verify return code: 0 (ok)" in done.stdout


def test_openssl_gets_1_3(secured: Site, router: Issued) -> None:
    done = s_client(secured.tls_port, *shown(router))
    assert "New, TLSv1.3" in done.stdout


@pytest.mark.parametrize(
    "suites",
    [
        "ECDHE-ECDSA-AES128-SHA256",
        "ECDHE-ECDSA-AES256-SHA",
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        "eNULL",
        "aNULL",
    ],
)
def test_openssl_gets_no_weaker_suite(secured: Site, router: Issued, suites: str) -> None:
    done = s_client(secured.tls_port, "-tls1_2", "-cipher", f"{suites}:@SECLEVEL=0", *shown(router))
    assert done.returncode != 0
    assert "alert handshake failure" in done.stderr


def test_a_listener_with_an_rsa_key_keeps_to_the_profile_too(
    open_site: OpenSite, authority: Authority, router: Issued
) -> None:
    ours = authority.issue("hilum.example", rsa_bits=2048).settings
    with open_site('[peers.ROUTER]\ncertificates = ["router.example"]\n', **ours) as running:
        for suite in _RSA_SUITES:
            done = s_client(running.tls_port, "-tls1_2", "-cipher", suite, *shown(router))
            assert f"Cipher is {suite}" in done.stdout
        for suite in ("AES128-GCM-SHA256", "ECDHE-RSA-AES128-SHA256", "DHE-RSA-AES128-GCM-SHA256"):
            done = s_client(running.tls_port, "-tls1_2", "-cipher", f"{suite}:@SECLEVEL=0", *shown(router))
            assert "alert handshake failure" in done.stderr


# --- in: certificates and titles ----------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_without_a_certificate_nobody_comes_in(
    secured: Site, version: str, capfd: pytest.CaptureFixture[str]
) -> None:
    done = s_client(secured.tls_port, version, patient=True)
    assert done.returncode != 0
    assert "alert" in done.stderr
    eventually(lambda: "it shows no certificate" in "".join(capfd.readouterr()))
    turned_away = eventually(lambda: secured.listener.about().get("rejection"))
    assert turned_away["reason"] == "it shows no certificate"
    assert (turned_away["ae_title"], turned_away["address"]) == ("", "127.0.0.1")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("of another CA", "signed by a CA that is not in ca_file"), ("ended", "its certificate has ended")],
)
def test_with_a_certificate_that_nobody_vouches_for_nobody_comes_in(
    secured: Site,
    authority: Authority,
    stranger: Authority,
    kind: str,
    reason: str,
    film: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    issued = (
        authority.issue("router.example", left=timedelta(days=-1))
        if kind == "ended"
        else stranger.issue("router.example")
    )
    trusting = Issued(issued.certificate, issued.key, authority.file)
    sent = storescu(film, "HILUM", secured.tls_port, *trusting.dcmtk, calling_aet="ROUTER")
    assert sent.returncode != 0
    eventually(lambda: reason in "".join(capfd.readouterr()))
    assert not secured.rows()


def test_storescu_stores_by_tls(secured: Site, router: Issued, film: Path) -> None:
    sent = storescu(film, "HILUM", secured.tls_port, *router.dcmtk, calling_aet="ROUTER")
    assert sent.returncode == 0, sent.stdout
    assert [row.calling_ae_title for row in secured.rows()] == ["ROUTER"]


def test_a_valid_certificate_opens_no_other_title(
    secured: Site, router: Issued, film: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for title in ("OTHER", "STRANGER"):
        with Peer(secured.tls_port, router.client()) as peer:
            assert peer.associate(calling=title) == _NOT_RECOGNISED
    with Peer(secured.tls_port, router.client()) as peer:
        assert peer.associate(calling="ROUTER")[0] == ASSOCIATE_AC
    log = "".join(capfd.readouterr())
    for word in ("association.rejected", "OTHER", "not bound to", "router.example", router.sha256):
        assert word in log
    assert storescu(film, "HILUM", secured.tls_port, *router.dcmtk, calling_aet="OTHER").returncode != 0
    assert not secured.rows()


def test_a_title_with_a_certificate_is_not_believed_without_tls(secured: Site) -> None:
    with Peer(secured.port) as peer:
        assert peer.associate(calling="ROUTER") == _NOT_RECOGNISED


def test_a_fingerprint_binds_one_certificate(
    open_site: OpenSite, authority: Authority, router: Issued
) -> None:
    namesake = authority.issue("router.example")
    with open_site(f'[peers.ROUTER]\ncertificates = ["sha256:{router.sha256}"]\n') as running:
        with Peer(running.tls_port, router.client()) as peer:
            assert peer.associate(calling="ROUTER")[0] == ASSOCIATE_AC
        with Peer(running.tls_port, namesake.client()) as peer:
            assert peer.associate(calling="ROUTER") == _NOT_RECOGNISED


@pytest.mark.parametrize("name", ["router.example", "ROUTER.example", "fd00::1", "fd00:0:0::0:1"])
def test_names_and_addresses_are_compared_in_one_form(
    open_site: OpenSite, authority: Authority, name: str
) -> None:
    shows = authority.issue("Router.Example", ["fd00::1"])
    with (
        open_site(f'[peers.ROUTER]\ncertificates = ["{name}"]\n') as running,
        Peer(running.tls_port, shows.client()) as peer,
    ):
        assert peer.associate(calling="ROUTER")[0] == ASSOCIATE_AC


def test_a_title_is_believed_from_its_addresses_alone(
    open_site: OpenSite, router: Issued, capfd: pytest.CaptureFixture[str]
) -> None:
    bound = 'certificates = ["router.example"]\n'
    peers = (
        '[peers.HERE]\naddresses = ["127.0.0.0/8"]\n[peers.ELSEWHERE]\naddresses = ["10.0.0.0/8"]\n'
        f'[peers.ROUTER]\naddresses = ["10.0.0.0/8"]\n{bound}'
    )
    with open_site(peers) as running:
        for title, expected in (("HERE", ASSOCIATE_AC), ("ELSEWHERE", 0x03)):
            with Peer(running.port) as peer:
                assert peer.associate(calling=title)[0] == expected
        with Peer(running.tls_port, router.client()) as peer:
            assert peer.associate(calling="ROUTER") == _NOT_RECOGNISED
    assert "it calls from another address" in "".join(capfd.readouterr())


def test_who_may_not_store_can_echo(open_site: OpenSite, router: Issued, film: Path) -> None:
    with open_site('[peers.ROUTER]\ncertificates = ["router.example"]\nmay = []\n') as running:
        with Peer(running.tls_port, router.client()) as peer:
            peer.associate(calling="ROUTER")
            assert peer.echo() == 0x0000
        sent = storescu(film, "HILUM", running.tls_port, *router.dcmtk, calling_aet="ROUTER")
        assert sent.returncode != 0


def test_the_plain_port_can_be_off(open_site: OpenSite, router: Issued) -> None:
    peers = '[peers.ROUTER]\ncertificates = ["router.example"]\n'
    with open_site(peers, dimse_port="off", dimse_host="0.0.0.0") as running:
        assert running.settings.dimse_ports == {"HILUM_DIMSE_TLS_PORT": running.tls_port}
        with Peer(running.tls_port, router.client()) as peer:
            assert peer.associate(calling="ROUTER")[0] == ASSOCIATE_AC


def test_the_health_check_asks_as_somebody_who_is_let_in_or_sees_that_it_listens(
    open_site: OpenSite, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("healthcheck", ROOT / "deploy/healthcheck.py")
    assert spec
    assert spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    bound = '[peers.ROUTER]\ncertificates = ["router.example"]\n[peers.AWAY]\naddresses = ["10.0.0.0/8"]\n'
    for peers in (bound, f"{bound}[peers.HERE]\n"):
        with open_site(peers) as running:
            assert script.fault_of("listener", running.settings) is None
        assert script.fault_of("listener", running.settings)
    assert "association.rejected" not in "".join(capfd.readouterr())


def test_a_renewed_certificate_is_shown_without_a_restart(
    tmp_path: Path, open_site: OpenSite, hilum: Issued, authority: Authority, router: Issued
) -> None:
    ours = tmp_path / "our.pem"
    shutil.copy(hilum.certificate, ours)
    key = tmp_path / "our.key"
    shutil.copy(hilum.key, key)
    files = {"dimse_tls_certificate_file": ours, "dimse_tls_key_file": key}
    with open_site('[peers.ROUTER]\ncertificates = ["router.example"]\n', **files) as running:
        first = s_client(running.tls_port, *shown(router)).stdout
        renewed = authority.issue("renewed.example")
        shutil.copy(renewed.key, key)
        shutil.copy(renewed.certificate, ours)
        second = s_client(running.tls_port, *shown(router)).stdout
    assert "subject=CN = hilum.example" in first
    assert "subject=CN = renewed.example" in second


def test_a_connection_that_another_thread_ends_reads_no_ciphertext(pacs: Issued) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor(1) as pool:
        here = socket.create_connection(listening.getsockname())
        there, _ = listening.accept()
        accepting = pool.submit(pacs.server().wrap_socket, there, server_side=True)
        with pacs.client().wrap_socket(here) as client, accepting.result(10) as server:
            client.sendall(b"a data set")
            assert select.select([server], [], [], 10)[0]
            shut(server)
            read = b""
            with suppress(OSError):
                while part := server.recv(100):
                    read += part
            assert read in (b"", b"a data set")


# --- out ----------------------------------------------------------------------------------------------------


@pytest.fixture
def sending(tmp_path: Path, hilum: Issued) -> Callable[..., Context]:
    """Open a worker's context with one destination, as the TOML file would name it."""

    def opened(url: str, **options: Any) -> Context:
        settings = {**hilum.settings, **options.pop("settings", {})}
        destination = {"name": "PACS", "url": url, **options}
        made = load(data_dir=tmp_path / "data", min_free_bytes=0, destinations=[destination], **settings)
        migrated(made.sqlalchemy_url)
        return Context.open(made)

    return opened


@pytest.fixture
def report(tmp_path: Path) -> Sendable:
    made = factories.basic_text_sr()
    return Sendable(factories.write(made, tmp_path / "sent"), made.SOPClassUID, ExplicitVRLittleEndian)


def test_a_report_goes_to_storescp_by_tls(sending: Callable[..., Context], pacs: Issued) -> None:
    with StoreScp(BasicTextSRStorage, tls=pacs.dcmtk) as storescp:
        context = sending(storescp.destination, confirm="none")
        reported(context)
        deliver.run(context)
        assert len(list(storescp.received.iterdir())) == 1
    assert rows(context)[0].state == "delivered"


def test_orthanc_commits_by_tls_in_both_directions(
    tmp_path: Path, authority: Authority, pacs: Issued, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confirm, "LINGER_SECONDS", 0.0)
    port = free_port()
    modality = {"AET": "HILUM", "Host": "127.0.0.1", "Port": port, "UseDicomTls": True}
    with Orthanc(
        DicomTlsEnabled=True,
        DicomTlsCertificate=str(pacs.certificate),
        DicomTlsPrivateKey=str(pacs.key),
        DicomTlsTrustedCertificates=str(pacs.ca),
        DicomModalities={"hilum": modality},
    ) as orthanc:
        settings = load(
            data_dir=tmp_path / "data",
            min_free_bytes=0,
            dimse_port="off",
            dimse_tls_port=port,
            destinations=f"PACS={orthanc.destination.replace('dicom://', 'dicoms://')}",
            **authority.issue("hilum.example").settings,
        )
        migrated(settings.sqlalchemy_url)
        context = Context.open(settings)
        listener = Listener(settings, context.spool, context.ledger, SHORT)
        listener.start()
        try:
            uid = reported(context)
            with DimsePeer(settings.destinations[0], "HILUM") as peer:
                assert peer.study(uid) is None
            deliver.run(context)
            eventually(lambda: study(context).state == StudyState.CONFIRMED)
        finally:
            listener.stop()
        with DimsePeer(settings.destinations[0], "HILUM") as peer:
            assert peer.study(uid)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("unknown CA", "signed by a CA that is not in ca_file"),
        ("ended", "its certificate has ended"),
        ("host", "another host name"),
        ("our certificate", "it does not know the CA of our certificate"),
        ("none of ours", "it wants a certificate of ours"),
    ],
)
def test_a_failed_handshake_is_tried_again_and_says_why(
    sending: Callable[..., Context], authority: Authority, stranger: Authority, fault: str, words: str
) -> None:
    shows = {
        "unknown CA": stranger.issue("localhost"),
        "ended": authority.issue("localhost", left=timedelta(days=-1)),
        "host": authority.issue("elsewhere.example"),
    }.get(fault, authority.issue("localhost"))
    tls = [*shows.dcmtk[:3], "+cf", str(authority.file)]
    ours: dict[str, Any] = {}
    if fault == "our certificate":
        theirs = stranger.issue("hilum.example")
        files = {"certificate_file": str(theirs.certificate), "key_file": str(theirs.key)}
        ours = {"tls": {"ca_file": str(authority.file), **files}}
    if fault == "none of ours":
        ours = {"settings": {"dimse_tls_certificate_file": None, "dimse_tls_key_file": None}}
    with StoreScp(BasicTextSRStorage, tls=tls) as storescp:
        context = sending(storescp.destination, **ours)
        reported(context)
        deliver.run(context)
        (row,) = rows(context)
        assert row.state == "pending"
        assert words in str(row.last_error)
        checks = {check.name: check for check in examine_wire(context.settings)}
    assert words in checks["certificate of PACS"].seen
    assert not checks["certificate of PACS"].right


def test_a_destination_that_speaks_no_tls_says_so(sending: Callable[..., Context], report: Sendable) -> None:
    with StoreScp(BasicTextSRStorage) as storescp:
        context = sending(f"dicoms://STORESCP@localhost:{storescp.port}")
        with pytest.raises(TransientDelivery, match="does it speak TLS there"):
            DimsePeer(context.settings.destinations[0], "HILUM", [report])


def test_a_destination_that_says_nothing_is_given_up_in_time(
    sending: Callable[..., Context], report: Sendable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.association._CONNECTION_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        context = sending(f"dicoms://PACS@localhost:{silent.getsockname()[1]}")
        with pytest.raises(TransientDelivery, match="does not answer the TLS handshake"):
            DimsePeer(context.settings.destinations[0], "HILUM", [report])


def test_stow_rs_goes_to_a_server_of_a_private_ca(
    sending: Callable[..., Context], pacs: Issued, report: Sendable
) -> None:
    with OddServer(http(200, _STORED), tls=pacs.server()) as server:
        context = sending(server.url, tls={"ca_file": str(pacs.ca)})
        with DICOMwebPeer(context.settings.destinations[0]) as peer:
            assert peer.store(report).status == 0x0000


def test_stow_rs_shows_a_certificate_where_one_is_named(
    sending: Callable[..., Context], hilum: Issued, pacs: Issued, report: Sendable
) -> None:
    mutual = pacs.server()
    mutual.load_verify_locations(pacs.ca)
    mutual.verify_mode = mutual.verify_mode.CERT_REQUIRED
    named = {name: str(path) for name, path in hilum.files}
    for tls, status in ((named, 0x0000), ({"ca_file": str(pacs.ca)}, None)):
        with OddServer(http(200, _STORED), tls=mutual) as server:
            context = sending(server.url, tls=tls)
            with DICOMwebPeer(context.settings.destinations[0]) as peer:
                sent = peer.store(report)
        assert sent.status == status
        assert (sent.fault is None) is (status is not None)
    assert "it wants a certificate of ours" in str(sent.fault)


def test_stow_rs_to_a_server_of_another_ca_says_so(
    sending: Callable[..., Context], authority: Authority, stranger: Authority, report: Sendable
) -> None:
    with OddServer(http(200, _STORED), tls=stranger.issue("localhost").server()) as server:
        context = sending(server.url, tls={"ca_file": str(authority.file)})
        with DICOMwebPeer(context.settings.destinations[0]) as peer:
            assert "signed by a CA that is not in ca_file" in str(peer.store(report).fault)


# --- as the README says -------------------------------------------------------------------------------------


def test_what_the_readme_says_for_a_hospital_s_network_opens_one_door_for_one_peer(
    tmp_path: Path, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    section = (ROOT / "README.md").read_text().partition("## Run it in a hospital's network")[2]
    blocks = dict(reversed(re.findall(r"```(\w+)\n(.*?)```", section.partition("\n## ")[0], re.S)))
    script = re.sub(r"^[$>] ", "", blocks["console"], flags=re.M)
    subprocess.run(["/bin/sh", "-euc", script], check=True, capture_output=True)
    Path("hilum.toml").write_text(blocks["toml"].replace("10.1.2.3", "127.0.0.1"))
    given = dict(line.removeprefix("HILUM_").lower().split("=") for line in blocks["ini"].split())
    here = {"dimse_host": "127.0.0.1", "dimse_tls_port": free_port(), "api_tokens": f"x:viewer:{'0' * 64}"}
    keys = Issued(Path("tls/router.pem"), Path("tls/router.key"), Path("tls/ca.pem"))
    with site(tmp_path, **{**given, **here}) as running:
        assert running.settings.dimse_port is None
        sent = storescu(film, "HILUM", running.tls_port, *keys.dcmtk, calling_aet="ROUTER")
        assert sent.returncode == 0, sent.stdout
        other = storescu(film, "HILUM", running.tls_port, *keys.dcmtk, calling_aet="OTHER")
        assert other.returncode != 0
        assert all(check.right for check in examine_wire(running.settings) if "PACS" not in check.name)


# --- doctor -------------------------------------------------------------------------------------------------


def test_the_doctor_says_who_may_do_what_and_when_certificates_end(
    tmp_path: Path, authority: Authority, pacs: Issued
) -> None:
    config = tmp_path / "hilum.toml"
    soon = authority.issue("hilum.example", left=timedelta(days=10))
    with StoreScp(BasicTextSRStorage, tls=pacs.dcmtk) as storescp:
        config.write_text(
            '[peers.ROUTER]\naddresses = ["10.0.0.0/8"]\ncertificates = ["router.example"]\n'
            f'[destinations.PACS]\nurl = "{storescp.destination}"\n'
        )
        settings = load(config=config, dimse_tls_port=2762, calling_ae_titles="CT", **soon.settings)
        checks = {check.name: check for check in examine_wire(settings)}
    assert checks["peer ROUTER"].seen == "may echo, store; from 10.0.0.0/8; by TLS as router.example"
    assert checks["peer CT"].seen == "may echo, store; from any address; without TLS"
    assert checks["peer STORESCP"].seen == (
        "may echo, answer storage commitment; from any address; by TLS as localhost"
    )
    ours = checks[f"certificates {soon.certificate}"]
    assert (ours.right, ours.warns) == (True, True)
    assert ours.seen.startswith("CN=hilum.example ends ")
    for name in (f"certificates {soon.ca}", "certificate of PACS"):
        assert (checks[name].right, checks[name].warns) == (True, False)
    assert all(check.right for check in checks.values())


def test_the_doctor_says_that_our_certificate_has_ended(authority: Authority) -> None:
    ended = authority.issue("hilum.example", left=timedelta(days=-1))
    settings = load(**ended.settings)
    (check,) = [item for item in examine_wire(settings) if str(ended.certificate) in item.name]
    assert not check.right
    assert "CN=hilum.example ended" in check.seen
    assert check.mend
