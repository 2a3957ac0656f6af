"""What the roles tell the audit trail, and how often."""

from pathlib import Path

import pytest

from service.core import audit
from service.core.audit import Audit
from service.core.audit_message import Action
from service.core.audit_trail import Trail
from service.core.settings import Settings, load
from tests import audit_trail

CR = "1.2.840.10008.5.1.4.1.1.1"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load(data_dir=tmp_path)


@pytest.fixture
def told(settings: Settings) -> Audit:
    return Audit(settings, "listener")


def test_starts_and_stops_are_told(told: Audit, tmp_path: Path) -> None:
    told.started()
    told.stopped()
    start, stop = audit_trail.messages(tmp_path)
    assert audit_trail.event(start) == ("110100", "110120", "0")
    assert audit_trail.event(stop) == ("110100", "110121", "0")
    assert audit_trail.role(start, "110150").get("UserName") == "hilum listener"


def test_a_transfer_is_one_message_for_each_study_patient_and_outcome(told: Audit, tmp_path: Path) -> None:
    transfer = told.receiving("ROUTER", "10.0.0.1")
    for _ in range(3):
        transfer.add("1.1", "A", "", CR, Action.CREATE)
    transfer.add("1.1", "A", "", "1.2", Action.CREATE)
    transfer.add("1.1", "B", "", CR, Action.CREATE)
    transfer.add("1.1", "A", "", CR, Action.READ)
    transfer.add("1.1", "A", "", CR, Action.CREATE, "out-of-resources")
    transfer.write()
    transfer.write()
    first, *others = audit_trail.messages(tmp_path)
    assert audit_trail.instances(first) == {CR: 3, "1.2": 1}
    assert [audit_trail.objects(item, "2") for item in others] == [["B"], ["A"], ["A"]]
    assert audit_trail.event(others[-1]) == ("110104", "", "4")
    assert others[-1].findtext("EventIdentification/EventOutcomeDescription") == "out-of-resources"


def test_a_transfer_that_lasts_is_told_while_it_does(
    told: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "_TRANSFER_SECONDS", -1.0)
    transfer = told.sending("PACS", "PACS", "10.0.0.2")
    transfer.add("1.1", "A", "", CR, Action.READ)
    (message,) = audit_trail.messages(tmp_path)
    assert audit_trail.role(message, "110152").get("AlternativeUserID") == "AETITLES=PACS"
    assert audit_trail.role(message, "110153").get("UserIsRequestor") == "true"


def test_an_alert_that_repeats_is_told_once_a_minute_with_its_number(
    told: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(1000):
        told.refused("10.0.0.9", "nobody is known by this calling AE title", "X")
    told.refused("10.0.0.8", "nobody is known by this calling AE title", "X")
    assert [audit_trail.objects(item, "110182") for item in audit_trail.messages(tmp_path)] == [
        ["10.0.0.9"],
        ["10.0.0.8"],
    ]
    monkeypatch.setattr(told._alerts, "_seconds", 0.0)
    told.refused("10.0.0.9", "nobody is known by this calling AE title", "X")
    assert [("999 times more" in audit_trail.alert(item)) for item in audit_trail.of(tmp_path, "110113")] == [
        False,
        False,
        True,
    ]


def test_a_login_is_told_once_an_hour_and_again_after_a_logout(told: Audit, tmp_path: Path) -> None:
    for _ in range(10):
        told.login("dashboard", "10.0.0.3")
    told.logout("dashboard", "10.0.0.3")
    told.login("dashboard", "10.0.0.3")
    told.login_failed("10.0.0.3", "no such token")
    told.login_failed("10.0.0.3", "no such token")
    assert [audit_trail.event(item) for item in audit_trail.messages(tmp_path)] == [
        ("110114", "110122", "0"),
        ("110114", "110123", "0"),
        ("110114", "110122", "0"),
        ("110114", "110122", "4"),
    ]


@pytest.mark.parametrize("user", ["", "root"])
def test_a_deleted_study_is_told_with_who_asked_for_it(told: Audit, tmp_path: Path, user: str) -> None:
    told.study_deleted("1.2.3", [("A", "WARD"), ("B", "")], {CR: 2}, user)
    (message,) = audit_trail.messages(tmp_path)
    assert audit_trail.event(message) == ("110105", "", "0")
    assert audit_trail.objects(message, "110180") == ["1.2.3"]
    assert audit_trail.objects(message, "2") == ["A^^^WARD", "B"]
    assert audit_trail.instances(message) == {CR: 2}
    (requestor,) = message.xpath("ActiveParticipant[@UserIsRequestor='true']")
    assert (requestor.get("UserID") == "root") is (user == "root")


def test_what_cannot_be_written_is_written_later_and_raises_nothing(
    told: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(Trail, "append", full)
        told.started()
        told.login("a", "b")
    assert not (tmp_path / "audit").exists()
    told.stopped()
    assert [audit_trail.event(item)[1] for item in audit_trail.messages(tmp_path)] == [
        "110120",
        "110122",
        "110121",
    ]
