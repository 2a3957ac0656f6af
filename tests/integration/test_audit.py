"""What doors, deliveries and commands leave in the audit trail."""

import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydicom import Dataset
from pydicom.uid import ComputedRadiographyImageStorage, CTImageStorage

from service.core.audit import Audit
from service.core.checks import examine
from service.core.settings import load
from tests import audit_trail, factories, pipeline
from tests.certificates import Authority
from tests.faults.pacs import Pacs
from tests.faults.peers import Peer
from tests.faults.site import Site, site
from tests.faults.web import ApiProcess, body, web
from tests.ledgers import migrated
from tests.servers import Gateway, eventually, free_port, storescu
from worker.context import Context

TOKEN = "0a041b9462caa4a31bac3567e0b6e6fd9100787db2ab433d96f6d178cabfce90"  # of "user1"


def film(seed: int | str = 0, **options: Any) -> Dataset:
    return factories.phantom_chest(seed, rows=32, columns=32, **options)


def push(running: Site, *paths: Path, calling: str = "ROUTER", called: str = "HILUM") -> int:
    return storescu(paths, called, running.port, calling_aet=calling).returncode


def transfers(data_dir: Path, number: int) -> list[Any]:
    """Return the transfers in the trail once there are so many: they are written after the release."""
    eventually(lambda: len(audit_trail.of(data_dir, "110104")) >= number)
    found = audit_trail.of(data_dir, "110104")
    assert len(found) == number
    return found


def test_an_association_leaves_one_message_for_each_study_and_what_became_of_it(tmp_path: Path) -> None:
    first = [factories.write(film(number, study="a"), tmp_path / "sent") for number in range(3)]
    second = factories.write(film(9, study="b"), tmp_path / "sent")
    ct = factories.write(factories.ct_slice(study="b"), tmp_path / "sent")
    with site(tmp_path) as running:
        assert push(running, *first, second, ct) == 0
        received = transfers(running.settings.data_dir, 2)
        assert push(running, *first) == 0
        again = transfers(running.settings.data_dir, 3)[-1]
        data_dir = running.settings.data_dir
    assert [audit_trail.objects(item, "110180") for item in received] == [
        [film(study=name).StudyInstanceUID] for name in "ab"
    ]
    assert [audit_trail.objects(item, "2") for item in received] == [
        ["TEST-a^^^HILUM-TEST"],
        ["TEST-b^^^HILUM-TEST"],
    ]
    assert audit_trail.instances(received[0]) == {film().SOPClassUID: 3}
    assert audit_trail.instances(received[1]) == {film().SOPClassUID: 1, CTImageStorage: 1}
    assert {item.find("EventIdentification").get("EventActionCode") for item in received} == {"C"}
    assert again.find("EventIdentification").get("EventActionCode") == "R"
    source = audit_trail.role(received[0], "110153")
    assert (source.get("UserID"), source.get("NetworkAccessPointID")) == ("ROUTER", "127.0.0.1")
    assert "Test^" not in b"".join(path.read_bytes() for path in (data_dir / "audit").glob("*")).decode()


def test_what_is_not_taken_is_told_as_a_failure(tmp_path: Path) -> None:
    path = factories.write(film(), tmp_path / "sent")
    with site(tmp_path, min_free_bytes=2**62) as running:
        assert push(running, path) != 0
        assert audit_trail.of(running.settings.data_dir, "110104") == []  # not even looked at
    mixed = film("other")
    mixed.SOPClassUID = ComputedRadiographyImageStorage
    with site(tmp_path) as running, web(tmp_path, data_dir=running.settings.data_dir) as door:
        whole = factories.write(mixed, tmp_path / "sent").read_bytes()
        wrong = whole.replace(str(mixed.SOPInstanceUID).encode(), str(film(7).SOPInstanceUID).encode(), 1)
        answer = door.post(body(wrong, path.read_bytes()))
        assert answer.status_code in (202, 409)
        failed = [
            item
            for item in audit_trail.of(running.settings.data_dir, "110104")
            if audit_trail.event(item)[2] == "4"
        ]
        (failure,) = failed
        assert failure.findtext("EventIdentification/EventOutcomeDescription") == "mismatch"


@pytest.mark.parametrize("door", ["DIMSE", "STOW-RS"])
def test_what_is_refused_before_it_says_whose_it_is_raises_an_alert_once_a_minute(
    tmp_path: Path, door: str
) -> None:
    whole = factories.write(film(), tmp_path / "sent").read_bytes()
    uid = str(film().StudyInstanceUID).encode()
    damaged = whole.replace(uid, (b"../" * 30)[: len(uid)])
    path = tmp_path / "damaged.dcm"
    path.write_bytes(damaged)
    if door == "DIMSE":
        with site(tmp_path) as running:
            for _ in range(2):
                assert push(running, path) != 0
            data_dir = running.settings.data_dir
    else:
        with web(tmp_path) as running_web:
            for _ in range(2):
                assert running_web.post(body(damaged, b"no DICOM")).status_code == 409
            data_dir = running_web.settings.data_dir
    sender = "ROUTER" if door == "DIMSE" else "STOW-RS"
    alerts = audit_trail.of(data_dir, "110113")
    assert {audit_trail.event(item) for item in alerts} == {("110113", "unreadable-object", "4")}
    assert {audit_trail.objects(item, "110182")[0] for item in alerts} == {"127.0.0.1"}
    said = {audit_trail.alert(item) for item in alerts}
    codes = {"invalid-uid"} if door == "DIMSE" else {"invalid-uid", "unreadable"}
    assert said == {f"an object from {sender} was refused unread: {code}" for code in codes}
    assert len(alerts) == len(said)
    assert audit_trail.of(data_dir, "110104") == []


def test_a_full_disk_raises_no_alert(tmp_path: Path) -> None:
    path = factories.write(film(), tmp_path / "sent")
    with site(tmp_path, min_free_bytes=2**62) as running:
        assert push(running, path) != 0
        assert audit_trail.of(running.settings.data_dir, "110113") == []


def test_a_killed_peer_leaves_what_it_had_sent(tmp_path: Path) -> None:
    path = factories.write(film(), tmp_path / "sent")
    with site(tmp_path) as running:
        before = set(threading.enumerate())
        with Peer(running.port) as peer:
            assert peer.associate()[0] == 0x02
            assert push(running, path) == 0
        running.settle(before)
        assert len(transfers(running.settings.data_dir, 1)) == 1


def test_an_upload_leaves_its_message_with_whose_token_it_was(tmp_path: Path) -> None:
    content = factories.write(film(), tmp_path / "sent").read_bytes()
    with web(tmp_path, api_tokens=f"router:clinician:{TOKEN}") as door:
        assert door.post(body(content), Authorization="Bearer user1").status_code == 200
        (message,) = transfers(door.settings.data_dir, 1)
        assert audit_trail.role(message, "110153").get("UserID") == "router"
        assert audit_trail.instances(message) == {film().SOPClassUID: 1}


def test_who_uses_the_api_and_who_tries_to_is_told(tmp_path: Path) -> None:
    with web(tmp_path, api_tokens=f"dashboard:viewer:{TOKEN}") as door:
        for secret in ("user1", "user1", "wrong", "wrong"):
            httpx.get(f"{door.url}/api/studies", headers={"Authorization": f"Bearer {secret}"})
        httpx.get(f"{door.url}/api/studies")
        logins = audit_trail.of(door.settings.data_dir, "110114")
        assert [audit_trail.event(item) for item in logins] == [
            ("110114", "110122", "0"),
            ("110114", "110122", "4"),
        ]
        (user,) = logins[0].xpath("ActiveParticipant[@UserIsRequestor='true']")
        assert (user.get("UserID"), user.get("NetworkAccessPointID")) == ("dashboard", "127.0.0.1")
        assert b"wrong" not in b"".join(
            path.read_bytes() for path in (door.settings.data_dir / "audit").glob("*.log")
        )


def test_an_api_that_is_told_to_stop_says_so_and_ends_well() -> None:
    with ApiProcess() as api:
        process = api.process
        api.stop()
        assert process is not None
        assert process.returncode == 0
        told = [audit_trail.event(message)[1] for message in audit_trail.of(api.data_dir, "110100")]
        assert told == ["110120", "110121"]


@pytest.mark.parametrize(
    ("calling", "called", "reason"),
    [
        ("STRANGER", "HILUM", "nobody is known by this calling AE title, calling AE title STRANGER"),
        (
            "ELSEWHERE",
            "HILUM",
            "it calls from another address than it is bound to, calling AE title ELSEWHERE",
        ),
        ("ROUTER", "ANOTHER", "it calls another AE title than ours, calling AE title ROUTER"),
    ],
)
def test_who_is_kept_out_raises_an_alert(tmp_path: Path, calling: str, called: str, reason: str) -> None:
    path = factories.write(film(), tmp_path / "sent")
    config = tmp_path / "hilum.toml"
    config.write_text('[peers.ROUTER]\n[peers.ELSEWHERE]\naddresses = ["10.1.2.3"]\n')
    with site(tmp_path, config=config) as running:
        for _ in range(2):
            assert push(running, path, calling=calling, called=called) != 0
        # Who is sent away may be gone before it is written down.
        (alert,) = eventually(lambda: audit_trail.of(running.settings.data_dir, "110113"))
    assert audit_trail.event(alert) == ("110113", "110126", "4")
    assert audit_trail.objects(alert, "110182") == ["127.0.0.1"]
    assert audit_trail.alert(alert) == reason


def test_who_shows_a_wrong_certificate_or_none_raises_an_alert(tmp_path: Path, authority: Authority) -> None:
    config = tmp_path / "hilum.toml"
    config.write_text('[peers.ROUTER]\ncertificates = ["router.example"]\n')
    other, path = authority.issue("other.example"), factories.write(film(), tmp_path / "sent")
    ours = authority.issue("hilum.example").settings
    with site(tmp_path, config=config, dimse_tls_port=free_port(), **ours) as running:
        sent = storescu(path, "HILUM", running.tls_port, *other.dcmtk, "-ic", calling_aet="ROUTER")
        assert sent.returncode != 0
        anonymous = storescu(path, "HILUM", running.tls_port, "+tla", "-ic", calling_aet="ROUTER")
        assert anonymous.returncode != 0
        # TLS itself tells the peer, before we learn that the handshake failed.
        eventually(lambda: len(audit_trail.of(running.settings.data_dir, "110113")) >= 2)
        alerts = audit_trail.of(running.settings.data_dir, "110113")
    said = [audit_trail.alert(item) for item in alerts]
    assert len(said) == 2
    assert said[0].startswith(
        "it calls by TLS with a certificate that it is not bound to, calling AE title ROUTER"
    )
    assert "certificate of other.example (SHA-256 " in said[0]
    assert said[1] == "it shows no certificate"


def test_deliveries_leave_a_message_for_each_association(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.says(monkeypatch, 0.9)
    with Pacs(statuses=[0x0000, 0xA900]).serving() as pacs:
        settings = load(
            data_dir=tmp_path,
            destinations=f"PACS={pacs.url}",
            population="flag",
            study_quiet_seconds=0,
            min_free_bytes=0,
        )
        migrated(settings.sqlalchemy_url)
        context = Context.open(settings)
        image = pipeline.film()
        pipeline.receive(context, image)
        pipeline.work(context)
        pipeline.send_all(context, rounds=1)
    kinds = {report.sop_class_uid: report.kind for report in pipeline.reports(context)}
    assert len(kinds) == 2
    taken, refused = audit_trail.of(tmp_path, "110104")
    assert [audit_trail.event(item)[2] for item in (taken, refused)] == ["0", "4"]
    for message in (taken, refused):
        assert audit_trail.objects(message, "110180") == [image.StudyInstanceUID]
        assert audit_trail.objects(message, "2") == [f"{image.PatientID}^^^HILUM-TEST"]
        assert audit_trail.role(message, "110152").get("UserID") == "PACS"
        assert audit_trail.role(message, "110153").get("UserIsRequestor") == "true"
        assert set(audit_trail.instances(message)) <= set(kinds)


def test_the_command_says_whether_the_trail_is_whole(tmp_path: Path) -> None:
    gateway = Gateway(data_dir=tmp_path)
    gateway.choose_ports()
    missing = gateway.run("audit", "verify")
    assert (missing.returncode, "no audit trail there" in missing.stderr) == (2, True)
    audit = Audit(load(data_dir=tmp_path), "api")
    audit.started()
    audit.stopped()
    whole = gateway.run("audit", "verify")
    assert whole.returncode == 0
    assert "whole: 2 record(s)" in whole.stdout
    (file,) = (tmp_path / "audit").glob("*.log")
    file.write_bytes(file.read_bytes().replace(b"110121", b"110120"))
    broken = gateway.run("audit", "verify", str(tmp_path / "audit"), "--json")
    assert broken.returncode == 1
    assert "record 2" in broken.stdout
    gateway.close()


def test_doctor_says_how_many_records_there_are_and_how_many_wait(tmp_path: Path) -> None:
    settings = load(data_dir=tmp_path, audit_syslog=f"localhost:{free_port()}")
    seen = {check.name: check for check in examine(settings)}
    assert seen["audit trail"].seen.startswith("nothing is written yet")
    assert not seen["syslog"].right
    Audit(settings, "api").started()
    seen = {check.name: check for check in examine(settings)}
    assert "1 record(s)" in seen["audit trail"].seen
    assert "1 of them wait for localhost" in seen["audit trail"].seen
