"""TLS for DIMSE and DICOMweb: the BCP 195 RFC 8996, 9325 profile (PS3.15 B.12), in and out.

TLS 1.2 with the four suites of RFC 9325 4.2, TLS 1.3 with its own; nothing older, nothing weaker. Who calls
us must show a certificate, whom we call must show one for the host that we called.
"""

import hashlib
import ssl
import stat
import threading
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import structlog
from pydantic import BaseModel, ConfigDict

SUITES = (
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
)
"""OpenSSL's names of the TLS 1.2 suites."""
# Level 2: no RSA or DH below 2048 bits, no curve below 224, no SHA-1 signature.
_CIPHERS = ":".join((*SUITES, "@SECLEVEL=2"))
_VERIFICATION = {
    9: "its certificate is not valid yet: compare the clocks",
    10: "its certificate has ended: it needs a new one",
    18: "its certificate is signed by nobody but itself: put it into ca_file, or have a CA sign it",
    19: "its certificate is signed by a CA that is not in ca_file",
    20: "its certificate is signed by a CA that is not in ca_file",
    21: "its certificate is signed by a CA that is not in ca_file",
    26: "its certificate is not meant for this end of a connection (extended key usage)",
    62: "its certificate is for another host name than that of the URL",
    64: "its certificate is not for the IP address of the URL: call it by the name in the certificate",
}
_REASONS = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it shows no certificate",
    "UNSUPPORTED_PROTOCOL": "it offers no TLS 1.2 or 1.3",
    "NO_SHARED_CIPHER": "it offers no cipher suite of the profile (PS3.15 B.12)",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "it wants a certificate of ours, or other cipher suites",
    "TLSV1_ALERT_PROTOCOL_VERSION": "it does TLS of another version than 1.2 and 1.3",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it wants a certificate of ours",
    "WRONG_VERSION_NUMBER": "it does not speak TLS there: look at the port",
    "HTTP_REQUEST": "it does not speak TLS there: look at the port",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it says that our certificate has ended",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it refuses our certificate",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "it refuses our certificate",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "it says that our certificate is revoked",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "it refuses our certificate",
    "TLSV1_ALERT_UNKNOWN_CA": "it does not know the CA of our certificate",
    "TLSV1_ALERT_ACCESS_DENIED": "it refuses our certificate",
    "TLSV1_ALERT_DECRYPT_ERROR": "it refuses our certificate",
}
_log = structlog.get_logger()


class TLSFiles(BaseModel):
    """PEM files of one end of a connection.

    Attributes
    ----------
    ca_file
        Certificates that vouch for the other end.
    certificate_file
        Our certificate, with those between it and its CA after it.
    key_file
        Its private key, without a password.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None

    @property
    def present(self) -> list[Path]:
        """Those that are set."""
        return [path for path in (self.certificate_file, self.key_file, self.ca_file) if path is not None]


@dataclass(frozen=True)
class Identity:
    """Whom a verified certificate names: its common and DNS names and addresses, and its SHA-256."""

    names: frozenset[str]
    sha256: str

    def is_any_of(self, bound: tuple[str, ...]) -> bool:
        """Return whether one of these names or fingerprints is its own."""
        return any(name == self.sha256 or name in self.names for name in bound)


class ClientContext(ssl.SSLContext):
    """A context that remembers what ended its connections: pynetdicom only logs it."""

    fault: OSError | None = None


class _RememberingSocket(ssl.SSLSocket):
    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except OSError as fault:
            _remember(self, fault)
            raise

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        # In TLS 1.3 a server refuses our certificate after our handshake is done.
        try:
            return super().recv(buflen, flags)
        except ssl.SSLError as fault:
            _remember(self, fault)
            raise


def _remember(connection: ssl.SSLSocket, fault: OSError) -> None:
    if isinstance(connection.context, ClientContext):
        connection.context.fault = fault


def server_context(files: TLSFiles) -> ssl.SSLContext:
    """Return the context of a port whose callers must show a certificate.

    Raises
    ------
    ValueError
        When a file can't be used; the message names it.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    # A resumed session would be one whose certificate nobody looked at again.
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    _fill(context, files)
    return context


def client_context(files: TLSFiles) -> ClientContext:
    """Return the context of a connection to a destination; without a CA file the machine's own CAs count.

    Raises
    ------
    ValueError
        When a file can't be used; the message names it.
    """
    context = ClientContext(ssl.PROTOCOL_TLS_CLIENT)
    context.sslsocket_class = _RememberingSocket
    _fill(context, files)
    if files.ca_file is None:
        context.load_default_certs()
    return context


def _fill(context: ssl.SSLContext, files: TLSFiles) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    if (files.certificate_file is None) is not (files.key_file is None):
        raise ValueError("certificate_file and key_file go together: set both")
    if files.certificate_file is not None and files.key_file is not None:
        _check_mode(files.key_file)
        try:
            # Without a password OpenSSL would ask for one on the terminal.
            context.load_cert_chain(files.certificate_file, files.key_file, password="")
        except (OSError, ValueError) as fault:
            raise ValueError(f"{files.certificate_file} with {files.key_file}: {_of_file(fault)}") from None
    if files.ca_file is not None:
        try:
            context.load_verify_locations(files.ca_file)
        except OSError as fault:
            raise ValueError(f"{files.ca_file}: {_of_file(fault)}") from None


def _check_mode(path: Path) -> None:
    """Refuse a key that others may read; its group may, where it is root's (PostgreSQL's rule)."""
    try:
        status = path.stat()
    except OSError as fault:
        raise ValueError(f"{path}: {_of_file(fault)}") from None
    allowed = stat.S_IRWXU | (stat.S_IRGRP if status.st_uid == 0 else 0)
    if stat.S_IMODE(status.st_mode) & ~allowed:
        raise ValueError(f"{path} can be read by others than its owner: chmod 600")


def _of_file(fault: Exception) -> str:
    if not isinstance(fault, ssl.SSLError):
        return f"can't be read ({getattr(fault, 'strerror', None) or fault})"
    if fault.reason == "KEY_VALUES_MISMATCH":
        return "the key is not that of the certificate"
    if fault.reason in ("EE_KEY_TOO_SMALL", "CA_MD_TOO_WEAK", "CA_KEY_TOO_SMALL"):
        return "too weak: 2048 bits RSA or a curve of 256 bits, signed with SHA-256, are the least"
    return f"no PEM file as it should be, or a key with a password ({fault.reason or 'unreadable'})"


class RenewedContext:
    """The server context of files that may be replaced while it is in use."""

    def __init__(self, files: TLSFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._seen = self._stamps()
        self._context = server_context(files)

    def __call__(self) -> ssl.SSLContext:
        """Return the context of the files as they are now; as they were, when they can't be used."""
        with self._lock:
            if (stamps := self._stamps()) != self._seen:
                self._seen = stamps
                try:
                    self._context = server_context(self._files)
                    _log.info("tls.renewed")
                except ValueError as fault:
                    _log.warning("tls.not_renewed", reason=str(fault))
            return self._context

    def _stamps(self) -> list[Any]:
        return [_stamp(path) for path in self._files.present]


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


def identity(connection: ssl.SSLSocket) -> Identity:
    """Return whom the verified certificate of the other end names."""
    told: dict[str, Any] = dict(connection.getpeercert() or {})
    names = {value for part in told.get("subject", ()) for key, value in part if key == "commonName"}
    names |= {value for kind, value in told.get("subjectAltName", ()) if kind in ("DNS", "IP Address")}
    names = {as_name(name) for name in names}
    content = connection.getpeercert(binary_form=True) or b""
    return Identity(frozenset(names), hashlib.sha256(content).hexdigest())


def as_name(text: str) -> str:
    """Return a name or address of a host in the one form in which it is compared."""
    try:
        return str(ip_address(text))
    except ValueError:
        return text.lower()


def reason(fault: OSError) -> str:
    """Return in words why a TLS connection came to nothing, as seen from our end."""
    if isinstance(fault, ssl.SSLCertVerificationError):
        return _VERIFICATION.get(
            fault.verify_code, f"its certificate is not trusted ({fault.verify_message})"
        )
    if isinstance(fault, TimeoutError):
        return "it does not answer the TLS handshake"
    if isinstance(fault, ssl.SSLError) and not isinstance(fault, ssl.SSLEOFError):
        why = getattr(fault, "reason", None) or "no reason"
        return _REASONS.get(why, f"the TLS handshake failed ({why})")
    return "it ended the TLS handshake: does it speak TLS there, and know our certificate?"
