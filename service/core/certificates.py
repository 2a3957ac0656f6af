"""What a certificate says of itself: whose it is and when it ends."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

_WARNING_DAYS = 30


@dataclass(frozen=True)
class Certificate:
    """One certificate: its subject (RFC 4514), its SHA-256 and its last moment (UTC)."""

    subject: str
    sha256: str
    ends: datetime

    @property
    def days_left(self) -> int:
        """Whole days until its end, negative after it."""
        return (self.ends - datetime.now(UTC)).days

    @property
    def has_ended(self) -> bool:
        return self.ends <= datetime.now(UTC)

    @property
    def ends_soon(self) -> bool:
        """Whether it is time to order a new one."""
        return self.days_left < _WARNING_DAYS

    def __str__(self) -> str:
        when = "ended" if self.has_ended else "ends"
        return f"{self.subject} {when} {self.ends:%Y-%m-%d}"


def in_file(path: Path) -> Iterator[Certificate]:
    """Yield the certificates of a PEM file.

    Raises
    ------
    OSError, ValueError
        When it can't be read, or holds none.
    """
    yield from (_certificate(item) for item in x509.load_pem_x509_certificates(path.read_bytes()))


def of_der(content: bytes) -> Certificate:
    """Return what a DER certificate says.

    Raises
    ------
    ValueError
        When it is none.
    """
    return _certificate(x509.load_der_x509_certificate(content))


def _certificate(item: x509.Certificate) -> Certificate:
    subject = item.subject.rfc4514_string() or f"number {item.serial_number:x}"
    return Certificate(subject, item.fingerprint(SHA256()).hex(), item.not_valid_after_utc)
