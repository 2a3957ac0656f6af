"""What our TLS offers, which files it takes, and how it says what went wrong."""

import os
import ssl
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from service.core.certificates import in_file, of_der
from service.core.tls import SUITES, RenewedContext, TLSFiles, client_context, reason, server_context
from tests.certificates import Authority


@pytest.mark.parametrize("made", [server_context, client_context])
def test_what_is_offered_is_the_profile_and_no_more(
    authority: Authority, made: Callable[[TLSFiles], ssl.SSLContext]
) -> None:
    context = made(authority.issue("hilum.example").files)
    offered = {cipher["name"]: cipher["protocol"] for cipher in context.get_ciphers()}
    assert {name for name, protocol in offered.items() if protocol == "TLSv1.2"} == set(SUITES)
    assert set(offered.values()) == {"TLSv1.2", "TLSv1.3"}
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == ssl.CERT_REQUIRED


def test_hosts_are_checked_of_whom_we_call() -> None:
    assert client_context(TLSFiles()).check_hostname


@pytest.mark.parametrize(
    ("mode", "owner", "taken"),
    [(0o600, 1000, True), (0o400, 1000, True), (0o640, 0, True), (0o640, 1000, False), (0o644, 0, False)],
)
def test_a_key_is_for_its_owner_alone(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, mode: int, owner: int, taken: bool
) -> None:
    issued = authority.issue("hilum.example")
    issued.key.chmod(mode)
    real = Path.stat

    def owned(path: Path) -> os.stat_result:
        found = list(real(path))
        found[4] = owner
        return os.stat_result(found)

    monkeypatch.setattr(Path, "stat", owned)
    if taken:
        server_context(issued.files)
    else:
        with pytest.raises(ValueError, match="chmod 600"):
            server_context(issued.files)


def test_a_file_that_cannot_be_used_is_named_with_the_reason(authority: Authority, tmp_path: Path) -> None:
    good, other = authority.issue("hilum.example").files, authority.issue("other.example").files
    text = tmp_path / "text.pem"
    text.write_text("no certificate")
    text.chmod(0o600)
    gone = tmp_path / "gone.pem"
    for change, fault in (
        ({"key_file": other.key_file}, "the key is not that of the certificate"),
        ({"key_file": None}, "go together"),
        ({"key_file": gone}, "gone.pem: can't be read"),
        ({"key_file": text}, "no PEM file"),
        ({"certificate_file": text}, "no PEM file"),
        ({"ca_file": text}, "no PEM file"),
        ({"ca_file": gone}, "gone.pem: can't be read"),
    ):
        with pytest.raises(ValueError, match=fault):
            server_context(good.model_copy(update=change))


def test_a_weak_key_is_refused(authority: Authority) -> None:
    with pytest.raises(ValueError, match="too weak"):
        server_context(authority.issue("hilum.example", rsa_bits=1024).files)


def test_replaced_files_are_taken_and_broken_ones_are_not(authority: Authority, tmp_path: Path) -> None:
    first, second = authority.issue("hilum.example"), authority.issue("hilum.example")
    files = TLSFiles(ca_file=first.ca, certificate_file=tmp_path / "our.pem", key_file=tmp_path / "our.key")
    for target, source in ((files.certificate_file, first.certificate), (files.key_file, first.key)):
        assert target
        target.write_bytes(source.read_bytes())
        target.chmod(0o600)
    renewed = RenewedContext(files)
    before = renewed()
    assert renewed() is before
    assert files.certificate_file
    assert files.key_file
    # Between the two steps certificate and key do not fit.
    files.certificate_file.write_bytes(second.certificate.read_bytes())
    os.utime(files.certificate_file, (1, 1))
    assert renewed() is before
    files.key_file.write_bytes(second.key.read_bytes())
    os.utime(files.key_file, (1, 1))
    assert renewed() is not before


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (TimeoutError(), "does not answer"),
        (ConnectionResetError(), "does it speak TLS there"),
        (ssl.SSLEOFError(), "does it speak TLS there"),
        (ssl.SSLError(1, "x"), "the TLS handshake failed"),
    ],
)
def test_what_is_no_verdict_on_a_certificate_has_its_words(fault: OSError, words: str) -> None:
    assert words in reason(fault)


def test_a_certificate_says_when_it_ends(authority: Authority) -> None:
    for left, ended, soon in ((-1, True, True), (10, False, True), (365, False, False)):
        issued = authority.issue("hilum.example", left=timedelta(days=left, minutes=1))
        (found,) = in_file(issued.certificate)
        assert (found.has_ended, found.ends_soon, found.days_left) == (ended, soon, left)
        assert str(found).startswith("CN=hilum.example ended" if ended else "CN=hilum.example ends")
        der = ssl.PEM_cert_to_DER_cert(issued.certificate.read_text())
        assert of_der(der) == found
        assert found.sha256 == issued.sha256
