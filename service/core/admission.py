"""Who may call: the AE titles that are known, each bound to its addresses and certificates.

Neither DICOM nor TLS ties a calling AE title to anything: whoever has a certificate of the right CA could
call by any title. So on the TLS port a title is admitted with a certificate of its own and with no other.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from service.core.destination import Destination
from service.core.tls import Identity, as_name

AETitle = Annotated[
    str, Field(pattern=r"^[\x21-\x5b\x5d-\x7e]([\x20-\x5b\x5d-\x7e]{0,14}[\x21-\x5b\x5d-\x7e])?$")
]
_FINGERPRINT = re.compile(r"(?:sha256:)?((?:[0-9a-f]{2}:?){31}[0-9a-f]{2})")
# Wildcards, fingerprints of another kind, nothing.
_NO_NAME = re.compile(r".*\*.*|sha\d+:.*|([0-9a-f]{2}:){15,}[0-9a-f]{2}|\s*")


def _network(value: object) -> object:
    if isinstance(value, IPv4Network | IPv6Network):
        return value
    try:
        return ip_network(str(value))
    except ValueError as fault:
        raise ValueError(f"an address is 10.1.2.3, or 10.1.2.0/24 for a network ({fault})") from None


def _certificate(value: object) -> str:
    """Return a name, an address or a fingerprint as `Identity` writes it."""
    text = as_name(str(value))
    if match := _FINGERPRINT.fullmatch(text):
        return match[1].replace(":", "")
    if _NO_NAME.fullmatch(text):
        raise ValueError(
            "a certificate is named by its common name or DNS name, without *, or by sha256: and 64 digits"
        )
    return text


class Peer(BaseModel):
    """One AE that may call us.

    Attributes
    ----------
    ae_title
        Its calling AE title; the name of its table when left out.
    addresses
        Where it calls from; anywhere, when left out.
    certificates
        Whose certificate it shows: a common name, DNS name or address in it, or its SHA-256. With them it may
        call on the TLS port, and only there.
    may
        Beside C-ECHO.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ae_title: AETitle
    addresses: tuple[Annotated[IPv4Network | IPv6Network, BeforeValidator(_network)], ...] = ()
    certificates: tuple[Annotated[str, BeforeValidator(_certificate)], ...] = ()
    may: tuple[Literal["store"], ...] = ("store",)

    def is_at(self, address: str) -> bool:
        """Return whether it may call from there."""
        found = ip_address(address)
        if isinstance(found, IPv6Address):
            found = found.ipv4_mapped or found
        return not self.addresses or any(found in network for network in self.addresses)


@dataclass(frozen=True)
class Caller:
    """Where an association comes from; `identity` is whose certificate was shown, None on the plain port."""

    address: str
    identity: Identity | None = None


@dataclass(frozen=True)
class Verdict:
    """What a caller may do beside C-ECHO; with a `refusal` nothing at all."""

    may_store: bool = False
    may_answer: bool = False
    refusal: str | None = None


class Admission:
    """Judges who calls.

    A destination may call back with the answer to a storage commitment. One that is reached by TLS shows for
    it the certificate that we check when we call it.

    Parameters
    ----------
    peers
        Who is known; with nobody in it, everybody may store on the plain port.
    destinations
        Where reports go.
    """

    def __init__(self, peers: Iterable[Peer], destinations: Iterable[Destination]) -> None:
        self._known = {peer.ae_title: peer for peer in peers}
        self._open = not self._known
        self._answering = {item.ae_title: item for item in destinations if not item.is_dicomweb}
        for title, destination in self._answering.items():
            bound = (as_name(destination.host),) if destination.is_tls else ()
            self._known.setdefault(title, Peer.model_construct(ae_title=title, certificates=bound, may=()))

    @property
    def peers(self) -> list[Peer]:
        """Everybody who is known, destinations that may answer among them."""
        return list(self._known.values())

    def answers(self, ae_title: str) -> bool:
        """Return whether it is a destination that may answer a storage commitment."""
        return ae_title in self._answering

    def judge(self, calling_ae_title: str, caller: Caller) -> Verdict:
        """Return what this caller may do."""
        may_answer = self.answers(calling_ae_title)
        if self._open and caller.identity is None:
            return Verdict(True, may_answer)
        peer = self._known.get(calling_ae_title)
        if peer is None:
            return Verdict(refusal="nobody is known by this calling AE title")
        if not peer.is_at(caller.address):
            return Verdict(refusal="it calls from another address than it is bound to")
        if caller.identity is None and peer.certificates:
            return Verdict(refusal="it is bound to a certificate and calls without TLS")
        if caller.identity is not None and not caller.identity.is_any_of(peer.certificates):
            bound = (
                "with a certificate that it is not bound to" if peer.certificates else "and is bound to none"
            )
            return Verdict(refusal=f"it calls by TLS {bound}")
        return Verdict("store" in peer.may, may_answer)
