"""Links of reports: what they open, for how long, and what opens nothing."""

import pytest
from itsdangerous import URLSafeTimedSerializer

from service.core.feedback_link import Linked, Links, Unusable

UID = "1.2.826.0.1.3680043.8.498.12345678901234567890123456789012345678"
LINKS = Links(b"k" * 32)


def test_a_link_names_its_study_and_revision() -> None:
    url = LINKS.url("https://hilum.hospital.local", UID, 3)
    base, _, token = url.rpartition("/")
    assert base == "https://hilum.hospital.local/feedback"
    assert LINKS.read(token, 30) == Linked(UID, 3)
    assert len(url) < 256


def test_a_link_of_another_installation_opens_nothing() -> None:
    assert Links(b"x" * 32).read(LINKS.token(UID, 1), 30) is Unusable.FORGED


def test_no_letter_of_a_link_can_be_changed() -> None:
    token = LINKS.token(UID, 1)
    for place in range(len(token)):
        for letter in "A7.":
            changed = token[:place] + letter + token[place + 1 :]
            # The last letter of base64 holds bits that say nothing.
            if changed != token and place != len(token) - 1:
                assert LINKS.read(changed, 30) is Unusable.FORGED, place


@pytest.mark.parametrize("token", ["", ".", "a.b.c", "é", "x" * 5000, "../..", "\x00"])
def test_what_is_no_link_opens_nothing(token: str) -> None:
    assert LINKS.read(token, 30) is Unusable.FORGED


@pytest.mark.parametrize("content", [{}, [UID], [UID, "x"], ["1.2'--", 1], [UID, 1, 2], None])
def test_what_was_signed_for_something_else_opens_nothing(content: object) -> None:
    assert LINKS.read(str(LINKS._serializer.dumps(content)), 30) is Unusable.FORGED
    other = URLSafeTimedSerializer(b"k" * 32, salt="session")
    assert LINKS.read(str(other.dumps([UID, 1])), 30) is Unusable.FORGED


def test_an_old_link_says_that_it_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    token = LINKS.token(UID, 1)
    later = 1.5 * 86400
    clock = "itsdangerous.timed.TimestampSigner.get_timestamp"
    from itsdangerous.timed import TimestampSigner

    now = TimestampSigner(b"k").get_timestamp()
    monkeypatch.setattr(clock, lambda _: int(now + later))
    assert LINKS.read(token, 1) is Unusable.EXPIRED
    assert LINKS.read(token, 2) == Linked(UID, 1)
