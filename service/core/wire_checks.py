"""What `hilum doctor` says of the wire: who may call, by which certificate, and when each of them ends."""

import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from service.core import tls
from service.core.admission import Admission, Peer
from service.core.certificates import Certificate, in_file, of_der
from service.core.checks import Check
from service.core.destination import Destination
from service.core.settings import Settings

_SECONDS = 5.0
# In TLS 1.3 a server refuses our certificate after the handshake; one that takes it waits for us to speak.
_REFUSAL_SECONDS = 1.0
_RENEW = "Order a new one; put in place of the old file it is used without a restart"


def examine_wire(settings: Settings) -> Iterator[Check]:
    """Look at who may call, and at every certificate that DICOM and DICOMweb depend on."""
    yield from _peers(settings)
    files = {path for path in (settings.tls_files.certificate_file, settings.tls_files.ca_file) if path}
    for destination in settings.destinations:
        if destination.tls is not None:
            of_it = (destination.tls.certificate_file, destination.tls.ca_file)
            files |= {path for path in of_it if path}
    for path in sorted(files):
        yield _file(path)
    for destination in settings.destinations:
        if destination.is_tls:
            yield _presented(destination)


def _peers(settings: Settings) -> Iterator[Check]:
    admission = Admission(settings.peers, settings.destinations)
    ports = ", ".join(
        f"{port}{' with TLS' if 'TLS' in setting else ''}" for setting, port in settings.dimse_ports.items()
    )
    where = f"{settings.dimse_host} port {ports}"
    if not settings.peers:
        mend = "Set HILUM_CALLING_AE_TITLES or [peers.NAME]"
        yield Check("admission", True, f"{where}; any calling AE title may send", mend, warns=True)
    else:
        titles = ", ".join(peer.ae_title for peer in settings.peers)
        yield Check("admission", True, f"{where}; calling AE titles {titles}")
    for peer in admission.peers:
        yield Check(f"peer {peer.ae_title}", True, _rights(peer, admission.answers(peer.ae_title)))


def _rights(peer: Peer, answers: bool) -> str:
    """Return what a peer may do, from where and with which certificate."""
    may = ["echo", *peer.may, *["answer storage commitment"] * answers]
    addresses = ", ".join(str(network) for network in peer.addresses) or "any address"
    how = f"by TLS as {' or '.join(peer.certificates)}" if peer.certificates else "without TLS"
    return f"may {', '.join(may)}; from {addresses}; {how}"


def _file(path: Path) -> Check:
    name = f"certificates {path}"
    try:
        return _judged(name, in_file(path))
    except (OSError, ValueError) as fault:
        why = getattr(fault, "strerror", None) or "no certificate in it"
        return Check(name, False, f"can't be read ({why})", "Put the PEM file there")


def _presented(destination: Destination) -> Check:
    """Look at the certificate that a destination shows, by the rules that deliveries go by."""
    name = f"certificate of {destination.name}"
    where = f"{destination.host}:{destination.port}"
    mend = 'See "a certificate ended" in the runbook'
    try:
        context = tls.client_context(destination.tls or tls.TLSFiles())
    except ValueError as fault:
        return Check(name, False, str(fault), mend)
    try:
        with (
            socket.create_connection((destination.host, destination.port), timeout=_SECONDS) as connection,
            context.wrap_socket(connection, server_hostname=destination.host) as secured,
        ):
            content = secured.getpeercert(binary_form=True) or b""
            secured.settimeout(_REFUSAL_SECONDS)
            with suppress(TimeoutError):
                secured.recv(1)
        return _judged(name, [of_der(content)])
    except OSError as fault:
        if context.fault:
            return Check(name, False, f"{where}: {tls.reason(fault)}", mend)
        why = f"can't be asked ({fault.strerror or 'no answer'})"
        return Check(name, False, f"{where}: {why}", "Is it up, the port right, the firewall open?")


def _judged(name: str, certificates: Iterable[Certificate]) -> Check:
    found = sorted(certificates, key=lambda certificate: certificate.ends)
    seen = "; ".join(map(str, found))
    ended = any(certificate.has_ended for certificate in found)
    return Check(name, not ended, seen, _RENEW, warns=any(certificate.ends_soon for certificate in found))
