"""Who may call, from where and with which certificate."""

from typing import Any

import pytest
from pydantic import ValidationError

from service.core.admission import Admission, Caller, Peer, Verdict
from service.core.destination import Destination
from service.core.tls import Identity

_SHA256 = "ab" * 32
_ROUTER = Identity(frozenset({"router.example", "10.1.2.3", "fd00::1", "11:22:33:44:55:66:77:88"}), _SHA256)
_OTHER = Identity(frozenset({"other.example"}), "cd" * 32)
_PACS = Destination(name="PACS", url="dicoms://PACS@pacs.example:2762")
_PLAIN = Destination(name="OLD", url="dicom://OLD@old.example:104")
_HTTP = Destination(name="VNA", url="https://vna.example/dicom-web")


def peer(**options: Any) -> Peer:
    return Peer(**{"ae_title": "ROUTER", **options})


def judged(
    *peers: Peer, title: str = "ROUTER", address: str = "10.1.2.3", shows: Identity | None = None
) -> Verdict:
    return Admission(peers, [_PACS, _PLAIN, _HTTP]).judge(title, Caller(address, shows))


def test_with_nobody_named_everybody_may_store_without_tls_and_nobody_with_it() -> None:
    assert judged().may_store
    assert judged(shows=_ROUTER).refusal


def test_with_somebody_named_nobody_else_may_call() -> None:
    assert judged(peer()).may_store
    assert "nobody is known" in str(judged(peer(), title="STRANGER").refusal)


@pytest.mark.parametrize(
    ("address", "admitted"),
    [
        ("10.1.2.3", True),
        ("::ffff:10.1.2.3", True),
        ("10.1.3.255", True),
        ("fd00::1", True),
        ("10.1.2.4", False),
        ("10.1.4.0", False),
        ("fd01::1", False),
        ("fe80::1%eth0", False),
    ],
)
def test_a_title_bound_to_addresses_calls_from_these_alone(address: str, admitted: bool) -> None:
    bound = peer(addresses=["10.1.2.3", "10.1.3.0/24", "fd00::/64"])
    assert (judged(bound, address=address).refusal is None) is admitted


@pytest.mark.parametrize(
    "certificate",
    [
        "router.example",
        "Router.Example",
        "10.1.2.3",
        _SHA256,
        f"sha256:{_SHA256}",
        f"SHA256:{':'.join(['AB'] * 32)}",
        "fd00:0::0:1",
        "11:22:33:44:55:66:77:88",
    ],
)
def test_a_title_is_bound_to_a_certificate_by_name_or_fingerprint(certificate: str) -> None:
    bound = peer(certificates=[certificate])
    assert judged(bound, shows=_ROUTER) == Verdict(may_store=True)
    assert "not bound to" in str(judged(bound, shows=_OTHER).refusal)


def test_a_valid_certificate_under_the_title_of_another_is_refused() -> None:
    peers = peer(certificates=["router.example"]), peer(ae_title="OTHER", certificates=["other.example"])
    assert judged(*peers, shows=_ROUTER).may_store
    assert "not bound to" in str(judged(*peers, title="OTHER", shows=_ROUTER).refusal)


def test_a_title_that_is_bound_to_no_certificate_is_refused_by_tls() -> None:
    assert "bound to none" in str(judged(peer(), shows=_ROUTER).refusal)


def test_a_title_that_is_bound_to_a_certificate_is_refused_without_tls() -> None:
    assert "without TLS" in str(judged(peer(certificates=["router.example"])).refusal)


def test_the_address_counts_with_the_right_certificate_too() -> None:
    bound = peer(addresses=["10.9.9.9"], certificates=["router.example"])
    assert "another address" in str(judged(bound, shows=_ROUTER).refusal)


def test_who_may_do_nothing_may_still_echo() -> None:
    assert judged(peer(may=[])) == Verdict()


def test_a_destination_may_answer_and_not_store() -> None:
    assert judged(peer(), title="OLD") == Verdict(may_answer=True)
    assert judged(peer(), title="VNA").refusal
    assert judged(peer(), peer(ae_title="OLD"), title="OLD") == Verdict(may_store=True, may_answer=True)


def test_a_destination_with_tls_answers_with_the_certificate_of_its_host() -> None:
    shows = Identity(frozenset({"pacs.example"}), "ef" * 32)
    assert judged(peer(), title="PACS", shows=shows) == Verdict(may_answer=True)
    assert judged(title="PACS", shows=shows) == Verdict(may_answer=True)
    assert judged(peer(), title="PACS", shows=_ROUTER).refusal
    assert judged(peer(), title="PACS").refusal
    assert judged(peer(), title="OLD", shows=shows).refusal


def test_what_a_peer_says_of_itself_counts_more_than_what_its_destination_implies() -> None:
    assert judged(peer(ae_title="PACS", may=[]), title="PACS") == Verdict(may_answer=True)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"addresses": ["router.example"]}, "an address is"),
        ({"addresses": ["10.1.2.3/24"]}, "host bits"),
        ({"certificates": ["*.example"]}, "without *"),
        ({"certificates": ["sha256:abcd"]}, "sha256:"),
        ({"certificates": [":".join(["ab"] * 20)]}, "sha256:"),
        ({"certificates": [""]}, "is named by"),
        ({"may": ["query"]}, "'store'"),
        ({"ae_title": "MUCH TOO LONG A TITLE"}, "ae_title"),
        ({"adresses": []}, "adresses"),
    ],
)
def test_a_peer_that_cannot_be_meant_is_refused(options: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError) as refused:
        peer(**options)
    assert fault in str(refused.value)
