"""What the dashboard says of a study: each failure that a person can mend, in words that say what to do."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from service.api.explain import Answer, explain, notes
from service.api.progress import Progress, Waiting
from service.api.schemas import DeliveryOut, InstanceOut, ReportOut, ResultOut, StudyOut
from service.api.situation import Away, Process, Queue, Situation
from service.api.troubles import all_problems, problems, turned_away
from service.core.heartbeat import ROLES

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
_SILENT = "no {} process has been heard of for 15 s"
_AWAY = Away(
    NOW - timedelta(hours=1), 7, NOW + timedelta(minutes=2), "PACS at 10.0.0.1:104 cannot be reached"
)
_NO_REDIS = {"scheduler": "Redis cannot be reached", "decode": "work has been waiting for 90 s"}


def study(state: str = "reported", **given: Any) -> StudyOut:
    given = {"revision": 1, "attention": None, "reason": None, "result": None, **given}
    moments = dict.fromkeys(("reported_at", "delivered_at", "confirmed_at"))
    nothing: dict[str, Any] = {"instances": [], "reports": [], "deliveries": [], "events": [], "model": None}
    nothing |= {"feedback": None, "to_review": False}
    return StudyOut(
        study_instance_uid="1.2.3", state=state, received_at=NOW, **{**moments, **nothing, **given}
    )


def delivery(state: str = "pending", last_error: str | None = None, **given: Any) -> DeliveryOut:
    return DeliveryOut(
        **{
            **{"destination": "PACS", "kind": "sr", "revision": 1, "sop_instance_uid": "1", "attempts": 3},
            **{"state": state, "last_error": last_error, "delivered_at": None, "confirmed_at": None},
            **{"waits_for": None, "waits_until": None},
            **given,
        }
    )


def not_analysed(reason: str, *instances: InstanceOut) -> dict[str, Any]:
    result = ResultOut(
        finding="not_analysed", probability=None, threshold=None, reason=reason, pattern=None, flags=[]
    )
    return {"result": result, "instances": list(instances)}


def image(state: str, reason: str) -> InstanceOut:
    return InstanceOut(
        sop_instance_uid="1",
        sop_class_uid="1",
        state=state,
        finding=None,
        probability=None,
        reason=reason,
        flags=[],
        rule=None,
        population=[],
    )


def said(
    about: StudyOut,
    progress: Progress | None = None,
    situation: Situation | None = None,
    destinations: Sequence[str] = ("PACS",),
) -> Answer:
    return explain(about, progress or Progress(), situation or Situation(), destinations, NOW, UTC)


DECODE = Progress(waiting=[Waiting("decode")])
# What is so; the tone, words of the first sentence, and what has to be among the things to do.
TABLE: dict[str, tuple[Answer, str, str, Sequence[str]]] = {
    "held": (
        said(study("held", reason="images of two patients under one Study Instance UID")),
        "wrong",
        "No report: this study holds images of two patients",
        ["correct the patient", "Send the corrected images", "[retry]"],
    ),
    "a film killed its process three times": (
        said(study("failed", reason="decoding failed 3 times (its process died)")),
        "wrong",
        "No report: the analysis failed.",
        ["ended the process that worked on it three times", "more memory", "[retry]", "keep the file"],
    ),
    "out of memory": (
        said(study("failed", reason="inference failed 3 times (MemoryError)")),
        "wrong",
        "No report: the analysis failed.",
        ["more memory", "[retry]"],
    ),
    "a film is gone": (
        said(study("failed", reason="decoding failed 3 times (its file is gone from the data folder)")),
        "wrong",
        "No report: the analysis failed.",
        ["right folder mounted", "hilum doctor", "send the study again"],
    ),
    "a report that cannot be built": (
        said(study("failed", reason="the report could not be built in 3 attempts (ValueError)")),
        "wrong",
        "No report: the analysis failed.",
        ["log", "[retry]", "report it as a fault of Hilum"],
    ),
    "no worker decodes": (
        said(study("receiving"), DECODE, Situation({"decode": _SILENT.format("decode")})),
        "wrong",
        "No report yet: no worker decodes films.",
        ["docker compose up -d worker-decode", "hilum worker --queue decode"],
    ),
    "a worker that does nothing": (
        said(study("receiving"), DECODE, Situation({"decode": "work has been waiting for 90 s"})),
        "wrong",
        "No report yet: the work for decode is not done.",
        ["docker compose restart worker-decode", "docker compose logs --since 1h worker-decode"],
    ),
    "no worker runs the network": (
        said(
            study("analysing"),
            Progress(waiting=[Waiting("infer")]),
            Situation({"infer": _SILENT.format("infer")}),
        ),
        "wrong",
        "No report yet: no worker runs the network.",
        ["hilum worker --queue infer"],
    ),
    "Redis is away": (
        said(study("receiving"), DECODE, Situation(_NO_REDIS)),
        "wrong",
        "No report yet: Redis cannot be reached.",
        ["docker compose restart redis", "HILUM_BROKER_URL"],
    ),
    "no scheduler": (
        said(study("receiving"), DECODE, Situation({"scheduler": _SILENT.format("scheduler")})),
        "wrong",
        "No report yet: the scheduler, which hands out the work, does not run.",
        ["docker compose up -d scheduler"],
    ),
    "nothing runs": (
        said(study("receiving"), DECODE, Situation({role: _SILENT.format(role) for role in ROLES})),
        "wrong",
        "No report yet: of Hilum only this page runs.",
        ["docker compose up -d", "hilum up"],
    ),
    "more images may come": (
        said(study("receiving"), Progress(due_at=NOW + timedelta(seconds=20))),
        "waits",
        "No report yet: Hilum waits 20 s more for images of this study.",
        ["Nothing: it goes on by itself."],
    ),
    "a queue": (
        said(study("receiving"), DECODE, Situation(queues=[Queue("decode", 40, 40, 12.0)])),
        "waits",
        "No report yet: a film waits to be decoded for its turn.",
        ["Nothing"],
    ),
    "tried again": (
        said(study("receiving"), Progress(waiting=[Waiting("decode", 2, "OSError")])),
        "waits",
        "No report yet: the work on it went wrong, and is tried again.",
        ["Nothing"],
    ),
    "the PACS is away": (
        said(study(deliveries=[delivery()]), situation=Situation(away={"PACS": _AWAY})),
        "wrong",
        "The report is made and waits: PACS cannot be reached.",
        ["address and AE title are right", "hilum doctor", "[retry]"],
    ),
    "a window of time": (
        said(study(deliveries=[delivery(waits_for="its hours", waits_until=NOW + timedelta(hours=2))])),
        "waits",
        "The report is made and waits for its hours at PACS.",
        ["Nothing: it goes on by itself.", "`hours` and `rate`"],
    ),
    "a rule": (
        said(study(**not_analysed('left out by the rule "adults"'))),
        "none",
        "No report: nothing of this study was analysed",
        ["hilum rules test", "[retry]"],
    ),
    "no worker sends": (
        said(study(deliveries=[delivery()]), situation=Situation({"deliver": _SILENT.format("deliver")})),
        "wrong",
        "The report is made and waits: no worker sends reports.",
        ["hilum worker --queue deliver"],
    ),
    "identity": (
        said(
            study(
                deliveries=[
                    delivery("parked", "the destination answered A778 (identity: patient ID conflicts)")
                ]
            )
        ),
        "wrong",
        "The report was made, and PACS refused it: it waits for a person.",
        ["Correct the patient in the PACS", "[retry]", "[as_built]"],
    ),
    "SOP class": (
        said(
            study(deliveries=[delivery("parked", "the destination answered 0122 (SOP class not supported)")])
        ),
        "wrong",
        "The report was made, and PACS refused it: it waits for a person.",
        ["Let the PACS accept", 'sr = "text"', "[retry]"],
    ),
    "no form is taken": (
        said(
            study(
                deliveries=[
                    delivery(
                        "parked",
                        "the destination accepts neither Comprehensive 3D SR nor Comprehensive SR",
                    )
                ]
            )
        ),
        "wrong",
        "The report was made, and PACS refused it: it waits for a person.",
        ["Let the PACS accept", "[retry]"],
    ),
    "not authorised": (
        said(study(deliveries=[delivery("parked", "the destination answered 0124 (not authorised)")])),
        "wrong",
        "The report was made, and PACS refused it: it waits for a person.",
        ["HILUM_AE_TITLE", "[retry]"],
    ),
    "not understood": (
        said(study(deliveries=[delivery("parked", "the destination answered C000 (cannot understand)")])),
        "wrong",
        "The report was made, and PACS refused it: it waits for a person.",
        ["Its own log", "[retry]"],
    ),
    "the heat map alone": (
        said(
            study(
                deliveries=[
                    delivery("confirmed"),
                    delivery(
                        "parked", "the destination answered 0122 (SOP class not supported)", kind="heatmap"
                    ),
                ]
            )
        ),
        "wrong",
        "The report is in PACS; PACS refused what comes with it: it waits for a person.",
        ["Let the PACS accept", "[retry]"],
    ),
    "the heat map for another": (
        said(
            study(
                deliveries=[
                    delivery("confirmed"),
                    delivery("parked", "the destination answered 0124 (not authorised)", destination="VNA"),
                ]
            )
        ),
        "wrong",
        "The report was made, and VNA refused it: it waits for a person.",
        ["HILUM_AE_TITLE", "[retry]"],
    ),
    "a full PACS": (
        said(study(deliveries=[delivery(last_error="the destination answered A700 (out of resources)")])),
        "waits",
        "The report is made; sending it to PACS is tried again.",
        ["Nothing: it goes on by itself.", "whether it is full"],
    ),
    "a disk that fails under the work": (
        said(study("receiving"), Progress(waiting=[Waiting("decode", 0, "OSError")])),
        "wrong",
        "No report yet: the data folder or the ledger does not work.",
        ["dmesg", "df -h"],
    ),
    "Redis is full": (
        said(study("receiving"), DECODE, Situation({"scheduler": "Redis has no memory left", "infer": "x"})),
        "wrong",
        "No report yet: Redis has no memory left.",
        ["maxmemory"],
    ),
    "a password of Redis": (
        said(study("receiving"), DECODE, Situation({"scheduler": "Redis does not let us in"})),
        "wrong",
        "No report yet: Redis does not let us in.",
        ["HILUM_BROKER_URL"],
    ),
    "a disk that is read-only": (
        said(study("receiving"), DECODE, Situation({"decode": "x"}, is_read_only=True)),
        "wrong",
        "No report yet: the disk of the data folder is mounted read-only.",
        ["dmesg"],
    ),
    "a ledger that cannot be written": (
        said(study("receiving"), DECODE, Situation({"ledger": "it cannot be written"})),
        "wrong",
        "No report yet: the ledger does not work",
        ["docker compose restart postgres", "fuser"],
    ),
    "lost by the PACS": (
        said(
            study(
                deliveries=[
                    delivery(
                        "parked", "the destination answered success and does not hold the object (x), 3 times"
                    )
                ]
            )
        ),
        "wrong",
        "The report was made, and PACS refused it: it waits for a person.",
        ["import queue", "[retry]"],
    ),
    "too late": (
        said(
            study(deliveries=[delivery("parked", "not sent: made 30 h after the study's first image came")])
        ),
        "wrong",
        "The report was made and is not in PACS: it waits for a person.",
        ["expires_after", "[retry]"],
    ),
    "a destination that is gone": (
        said(study(deliveries=[delivery("parked", "no destination PACS is configured any more")])),
        "wrong",
        "The report was made and is not in PACS: it waits for a person.",
        ["HILUM_DESTINATIONS"],
    ),
    "no destination at all": (
        said(study(), destinations=()),
        "wrong",
        "The report is made and stays here: no destination is configured.",
        ["HILUM_DESTINATIONS="],
    ),
    "not a chest": (
        said(study(**not_analysed("not a frontal chest radiograph (body part EXTREMITY)"))),
        "none",
        "No report: nothing of this study was analysed",
        ["Nothing, if that is what the images are", "body part or view position"],
    ),
    "the pixels are no chest": (
        said(study(**not_analysed("not a frontal chest radiograph"))),
        "none",
        "No report: nothing of this study was analysed",
        ["Look at the film on this page"],
    ),
    "a CT": (
        said(
            study(**not_analysed("not a radiograph: CT Image Storage", image("ignored", "not a radiograph")))
        ),
        "none",
        "No report: this study holds nothing that the network may look at.",
        ["only frontal chest radiographs"],
    ),
    "out of the population": (
        said(
            study(
                deliveries=[delivery("delivered")],
                **not_analysed("outside the validated population (64 years; validated for 1 to 5 years)"),
            )
        ),
        "good",
        "A report that nothing was analysed is in PACS.",
        ["knows patients of those ages only", "HILUM_POPULATION=flag"],
    ),
    "age unknown": (
        said(
            study(
                **not_analysed("outside the validated population (age unknown; validated for 1 to 5 years)")
            )
        ),
        "none",
        "No report: nothing of this study was analysed",
        ["Patient's Birth Date", "HILUM_POPULATION=flag"],
    ),
    "damaged": (
        said(study(**not_analysed("the pixel data cannot be decoded: the pixel data is damaged"))),
        "none",
        "No report: nothing of this study was analysed",
        ["let the modality send it again"],
    ),
    "rejected by the archive": (
        said(study(**not_analysed("the archive rejected the image: Rejected for Quality Reasons (113001)"))),
        "none",
        "No report: nothing of this study was analysed",
        ["took the images out of use"],
    ),
    "given up": (
        said(
            study(
                "failed",
                reason="its files were removed after 90 days",
                attention="given up, after 90 days: x",
            ),
            Progress(expired_at=NOW),
        ),
        "wrong",
        "No report: the study was never finished, and its files have been removed since.",
        ["send the study again from the PACS"],
    ),
    "there": (
        said(study("confirmed", deliveries=[delivery("confirmed")])),
        "good",
        "The report is in PACS, and that is proven.",
        ["open the study anew"],
    ),
    "a revision in work": (
        said(
            study(
                "receiving",
                reports=[ReportOut(sop_instance_uid="1", sop_class_uid="1", kind="sr", revision=1)],
            ),
            Progress(due_at=NOW + timedelta(seconds=9)),
        ),
        "waits",
        "No report yet: Hilum waits 9 s more",
        ["Nothing"],
    ),
}


@pytest.mark.parametrize("what", TABLE)
def test_each_failure_is_said_with_what_mends_it(what: str) -> None:
    answer, tone, words, steps = TABLE[what]
    assert answer.tone == tone
    assert answer.said.startswith(words), answer.said
    told = " ".join(f"{item.text} {item.command or ''} [{item.button}]" for item in answer.steps)
    for step in steps:
        assert step in told, told


@pytest.mark.parametrize("what", TABLE)
def test_sentences_are_sentences(what: str) -> None:
    answer = TABLE[what][0]
    for line in (answer.said, *answer.why):
        assert line[0].isupper() or line[0].isdigit(), line
        assert line.endswith("."), line
        assert ".." not in line


def test_a_reason_is_told_once() -> None:
    parked = delivery("parked", "the destination answered 0124 (not authorised)")
    about = study(
        attention="sr parked for PACS: the destination answered 0124 (not authorised); an image came again",
        deliveries=[parked],
    )
    assert notes(about, said(about)) == ["An image came again."]


def test_a_full_disk_and_every_role_that_is_gone_is_a_problem_of_the_gateway() -> None:
    full = Situation(free_bytes=10, refuses_below=1_000_000_000)
    (problem,) = problems(full)
    assert problem.said == "the disk is full, and new images are refused."
    assert "0.0 MB are free" in problem.why
    for role in ROLES:
        (problem,) = problems(Situation({role: _SILENT.format(role)}))
        assert problem.role == role
    (problem,) = problems(Situation({role: _SILENT.format(role) for role in ROLES}))
    assert problem.said == "of Hilum only this page runs."
    assert [item.said for item in all_problems(Situation(away={"PACS": _AWAY}), UTC)] == [
        "PACS cannot be reached, and reports for it wait."
    ]
    assert problems(Situation()) == []


def test_images_that_are_refused_are_a_problem_until_one_is_stored() -> None:
    reason = "A700, the object cannot be written (Input/output error)"
    for told, received, wrong in (
        (reason, None, True),
        (reason, NOW - timedelta(seconds=1), True),
        (reason, NOW + timedelta(seconds=1), False),
        ("A700, the object is larger than HILUM_MAX_OBJECT_BYTES", None, False),
        ("C000, the object is truncated", None, False),
    ):
        situation = Situation(processes=[_listener(told)], last_received=received)
        found = problems(situation)
        assert [item.role for item in found] == ["refusing"] * wrong, (told, received)
        (away,) = turned_away(situation)
        assert away.steps
    assert "Input/output error" in problems(Situation(processes=[_listener(reason)]))[0].why


def _listener(refusal: str) -> Process:
    seen = {"at": NOW.isoformat(), "ae_title": "X", "address": "1", "reason": refusal}
    return Process("listener:1", "listener", NOW, "", {"refusal": seen})


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("no room now, as many associations run as HILUM_MAX_ASSOCIATIONS allows", "tries again by itself"),
        ("it shows no certificate", "HILUM_DIMSE_TLS_CA_FILE"),
        ("its certificate has ended: it needs a new one", "HILUM_DIMSE_TLS_CA_FILE"),
        ("it does not know the CA of our certificate", "believe the CA of our certificate"),
        ("it says that our certificate has ended", "Whether ours has ended"),
        ("it offers no TLS 1.2 or 1.3", "TLS 1.2 or 1.3"),
        ("it offers no cipher suite of the profile (PS3.15 B.12)", "TLS 1.2 or 1.3"),
        ("the TLS handshake failed (UNEXPECTED_MESSAGE)", "TLS 1.2 or 1.3"),
        ("it is bound to a certificate and calls without TLS", "port with TLS and its certificate"),
        ("it calls by TLS with a certificate that it is not bound to", "`certificates` of its"),
    ],
)
def test_who_was_turned_away_is_told_with_what_lets_him_in(reason: str, told: str) -> None:
    seen = {"at": NOW.isoformat(), "ae_title": "", "address": "1", "reason": reason}
    situation = Situation(processes=[Process("listener:1", "listener", NOW, "", {"rejection": seen})])
    (away,) = turned_away(situation)
    assert told in away.steps[0].text


def test_a_configuration_that_was_refused_is_told_with_its_faults() -> None:
    (problem,) = all_problems(Situation(config_fault="one\ntwo\n3\n4\n5\n6"), UTC)
    assert problem.why == "one; two; 3; 4; 5; …"
    assert problem.steps[0].command == "hilum rules check"


def test_processes_that_ended_are_counted_where_others_live() -> None:
    alive, old = datetime.now(UTC), NOW - timedelta(days=999)
    situation = Situation(
        processes=[
            Process("decode:1", "decode", alive, "", {}),
            Process("decode:2", "decode", old, "", {}),
            Process("infer:1", "infer", old, "", {}),
            Process("infer:2", "infer", old + timedelta(hours=1), "", {}),
        ]
    )
    assert [item.name for item in situation.latest_processes] == ["decode:1", "infer:2"]
    assert situation.ended == {"decode": 1, "infer": 1}


def test_what_readers_say_of_a_report_is_not_taken_for_the_report() -> None:
    told = study(deliveries=[delivery("delivered"), delivery("pending", kind="assessment")])
    assert said(told).said.startswith("The report is in PACS")
    refused = study(deliveries=[delivery("delivered"), delivery("parked", "status 0122", kind="assessment")])
    assert said(refused).said.startswith("The report is in PACS; PACS refused what comes with it")


def test_withheld_result_of_a_backfill_is_as_it_should_be() -> None:
    answer = said(study(backfilled=True), destinations=())
    assert (answer.tone, "sent nowhere" in answer.said) == ("none", True)
    assert said(study(backfilled=True, deliveries=[delivery()])).tone == "waits"
