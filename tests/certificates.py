"""Certificates of the tests: an authority, and what it signs, as PEM files."""

import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from service.core.tls import TLSFiles

_Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True)
class Issued:
    """One end's certificate and key, and the CA that both ends believe."""

    certificate: Path
    key: Path
    ca: Path

    @property
    def files(self) -> TLSFiles:
        return TLSFiles(ca_file=self.ca, certificate_file=self.certificate, key_file=self.key)

    @property
    def settings(self) -> dict[str, object]:
        """The settings of a gateway that shows it."""
        return {f"dimse_tls_{name}": str(path) for name, path in self.files}

    @property
    def sha256(self) -> str:
        found = x509.load_pem_x509_certificate(self.certificate.read_bytes())
        return found.fingerprint(hashes.SHA256()).hex()

    def client(self) -> ssl.SSLContext:
        """Return a context that shows it, with no opinion on the names of servers."""
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        made.check_hostname = False
        made.load_verify_locations(self.ca)
        made.load_cert_chain(self.certificate, self.key)
        return made

    def server(self) -> ssl.SSLContext:
        """Return a context that shows it to whoever comes."""
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.load_cert_chain(self.certificate, self.key)
        return made

    @property
    def dcmtk(self) -> list[str]:
        """The options of dcmtk's tools."""
        return ["+tls", str(self.key), str(self.certificate), "+cf", str(self.ca)]


class Authority:
    """A CA in a folder; every certificate has its common name among its DNS names."""

    def __init__(self, folder: Path, name: str = "Authority of the tests") -> None:
        self.folder = folder
        self.file = folder / f"{name.replace(' ', '-')}.pem"
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._made = 0
        builder = self._builder(self._subject, self._key, timedelta(days=3650)).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        others = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
        usage = dict.fromkeys((*others, "encipher_only", "decipher_only"), False)
        signing = x509.KeyUsage(digital_signature=True, key_cert_sign=True, crl_sign=True, **usage)
        signed = builder.add_extension(signing, critical=True).sign(self._key, hashes.SHA256())
        self.file.write_bytes(signed.public_bytes(serialization.Encoding.PEM))

    def issue(
        self,
        common_name: str,
        addresses: Iterable[str] = (),
        left: timedelta = timedelta(days=365),
        rsa_bits: int | None = None,
    ) -> Issued:
        """Return a certificate that ends after `left`, which may be negative; its key is EC unless told."""
        self._made += 1
        key: _Key = ec.generate_private_key(ec.SECP256R1())
        if rsa_bits is not None:
            key = rsa.generate_private_key(65537, rsa_bits)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        names: list[x509.GeneralName] = [x509.DNSName(common_name)]
        names += [x509.IPAddress(ip_address(address)) for address in addresses]
        builder = self._builder(subject, key, left)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        signed = builder.sign(self._key, hashes.SHA256())
        made = Issued(
            self.folder / f"{self._made}-{common_name}.pem",
            self.folder / f"{self._made}-{common_name}.key",
            self.file,
        )
        made.certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        made.key.touch(mode=0o600)
        made.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return made

    def _builder(self, subject: x509.Name, key: _Key, left: timedelta) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=3650))
            .not_valid_after(now + left)
        )
