"""Why a study has no report, or where it is: in plain words, with what to do.

Each sentence answers a person who has never seen the gateway: first what is so, then why, then the button or
the command that mends it. The runbook has the long form.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, tzinfo
from typing import Literal

from service.api.mends import (
    DISK_STEPS,
    NOTHING,
    Step,
    away_steps,
    delivery_steps,
    failure_steps,
    note_hint,
    pending_steps,
    reason_steps,
)
from service.api.progress import Progress
from service.api.schemas import DeliveryOut, StudyOut
from service.api.situation import Situation
from service.api.troubles import problems
from service.core.results import Finding
from service.core.states import DeliveryState, InstanceState, Kind, StudyState

Tone = Literal["good", "waits", "wrong", "none"]
# What each stage is called to people.
_WORK = {
    "decode": "a film waits to be decoded",
    "infer": "a film waits for the network",
    "report": "the report waits to be built",
}
KINDS: Mapping[str, str] = {
    Kind.SR: "Structured report",
    Kind.COMPREHENSIVE_SR: "Structured report (Comprehensive SR)",
    Kind.TEXT: "Report as text",
    Kind.NOT_ANALYSED: "Report “not analysed”",
    Kind.HEATMAP: "Heat map",
    Kind.PLAIN_HEATMAP: "Heat map (uncompressed)",
    Kind.GSPS: "Marks over the film",
    Kind.PDF: "Page (PDF)",
    Kind.REJECTION: "Rejection note",
    Kind.ASSESSMENT: "A reader’s assessment",
}
"""What objects are called to people."""
_PAUSED = (
    NOTHING,
    Step("If that is not meant: `hours` and `rate` of the destination, in the file of HILUM_CONFIG."),
)
_DONE = {DeliveryState.DELIVERED, DeliveryState.CONFIRMED}


@dataclass(frozen=True)
class Answer:
    """What is said of one study.

    Attributes
    ----------
    tone
        "good": the report is where it should be. "waits": it comes by itself. "wrong": somebody has to do
        something. "none": there is no report and there will be none, and that is as it should be.
    said
        One sentence.
    why
        What it rests on, a sentence each.
    steps
        What to do, in this order.
    """

    tone: Tone
    said: str
    why: Sequence[str] = ()
    steps: Sequence[Step] = field(default=(NOTHING,))


def explain(
    study: StudyOut,
    progress: Progress,
    situation: Situation,
    destinations: Sequence[str],
    moment: datetime,
    zone: tzinfo | None,
) -> Answer:
    """Return where a study's report is, and what to do if it is nowhere.

    Parameters
    ----------
    destinations
        Names of those that are configured.
    moment, zone
        Now, and the zone in which times are told.
    """
    if study.state == StudyState.HELD:
        answer = _held(study)
    elif study.state == StudyState.FAILED:
        answer = _failed(study, progress)
    elif study.state in (StudyState.RECEIVING, StudyState.ANALYSING):
        answer = _in_work(study, progress, situation, moment)
    else:
        answer = _reported(study, situation, destinations, zone)
    return replace(answer, why=[_sentence(line) for line in answer.why])


def notes(study: StudyOut, answer: Answer) -> list[str]:
    """Return what else needs a person, beside what `answer` says already."""
    told = " ".join([answer.said, *answer.why, study.reason or ""]).lower()
    parts = [part for part in (study.attention or "").split("; ") if part]
    said = [part for part in parts if part.split(": ", 1)[-1].lower() not in told]
    return [f"{_sentence(part)} {note_hint(part)}".rstrip() for part in said]


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:].rstrip('.')}."


def _name(item: DeliveryOut) -> str:
    return KINDS.get(item.kind, item.kind)


def _held(study: StudyOut) -> Answer:
    return Answer(
        "wrong",
        "No report: this study holds images of two patients, so nothing of it is reported or sent.",
        [study.reason or "Two patient IDs came under one Study Instance UID."],
        [
            Step("Find out whose images they are, and correct the patient in the PACS or on the modality."),
            Step("Send the corrected images again under the same UIDs: the study then goes on by itself."),
            Step("If the corrected images are here already, let it be looked at again.", button="retry"),
        ],
    )


def _failed(study: StudyOut, progress: Progress) -> Answer:
    reason = study.reason or "the reason was not recorded"
    if progress.expired_at is not None:
        return Answer(
            "wrong",
            "No report: the study was never finished, and its files have been removed since.",
            [study.attention or reason],
            [Step("Mend what is named here, then send the study again from the PACS: it is analysed anew.")],
        )
    return Answer("wrong", "No report: the analysis failed.", [reason], failure_steps(reason))


def _in_work(study: StudyOut, progress: Progress, situation: Situation, moment: datetime) -> Answer:
    again = "A report of earlier images is out; a new one is being made." if study.reports else ""
    why = [again] if again else []
    waiting = progress.waiting
    stages = list(dict.fromkeys(item.stage for item in waiting))
    found = problems(situation, [*stages, "scheduler"])
    # Work that a fault of the machine ended has lost no attempt.
    of_the_machine = [item for item in waiting if item.last_error and not (item.attempts or item.at_work)]
    errors = [
        f"{_WORK[item.stage]}: begun {item.attempts} time(s), and ended by {item.last_error or 'its death'}"
        for item in waiting
        if item.attempts and not item.at_work
    ]
    if found:
        first, *others = found
        why += [_WORK[stage] for stage in stages]
        why += [first.why, *(other.said for other in others)]
        return Answer("wrong", f"No report yet: {first.said}", why, first.steps)
    if of_the_machine:
        work = of_the_machine[0]
        why += [
            f"{_WORK[work.stage]}: the last try met a fault of the machine ({work.last_error})",
            "it is tried again twice a minute until it can be done",
        ]
        said = "No report yet: the data folder or the ledger does not work."
        return Answer("wrong", said, why, DISK_STEPS)
    if errors:
        why += [f"{errors[0]}. After three times it is given up, and a button here gives another try."]
        return Answer("waits", "No report yet: the work on it went wrong, and is tried again.", why)
    if waiting:
        busy = any(item.at_work for item in waiting)
        said = "is being worked on now" if busy else f"{_WORK[stages[0]]} for its turn"
        why += _queue_lines(stages, situation)
        return Answer("waits", f"No report yet: {'it ' if busy else ''}{said}.", why)
    if progress.due_at is not None and progress.due_at > moment:
        seconds = max(1, round((progress.due_at - moment).total_seconds()))
        why += [
            "More images of the same study may follow, and one report speaks of all of them "
            "(HILUM_STUDY_QUIET_SECONDS, HILUM_STUDY_MAX_WAIT_SECONDS)."
        ]
        return Answer("waits", f"No report yet: Hilum waits {seconds} s more for images of this study.", why)
    return Answer("waits", "No report yet: it is concluded within seconds.", why)


def _queue_lines(stages: Sequence[str], situation: Situation) -> list[str]:
    return [
        f"{queue.waiting} wait for {queue.name}, the oldest for {queue.oldest_seconds:.0f} s."
        for queue in situation.queues
        if queue.name in stages and queue.waiting
    ]


def _reported(
    study: StudyOut, situation: Situation, destinations: Sequence[str], zone: tzinfo | None
) -> Answer:
    current = [
        item
        for item in study.deliveries
        # What readers say of a report comes after it: only what needs a person is told.
        if item.revision == study.revision
        and (item.kind != Kind.ASSESSMENT or item.state == DeliveryState.PARKED)
    ]
    living = [item for item in current if item.state != DeliveryState.WITHDRAWN]
    parked = [item for item in living if item.state == DeliveryState.PARKED]
    pending = [item for item in living if item.state == DeliveryState.PENDING]
    if parked:
        return _parked(parked, living)
    if pending:
        return _pending(pending, situation, zone)
    if any(item.state in _DONE for item in living):
        return _there(study, living)
    if study.backfilled and not current:
        return Answer(
            "none",
            "A result is here and is sent nowhere: a back-fill fetched this study.",
            ["It becomes one like all others, reported and delivered, as soon as somebody sends it."],
        )
    if study.result is not None and study.result.finding == Finding.NOT_ANALYSED:
        return _not_analysed(study)
    if not destinations:
        return Answer(
            "wrong",
            "The report is made and stays here: no destination is configured.",
            ["HILUM_DESTINATIONS is empty, so Hilum knows no PACS to send it to."],
            [
                Step(
                    "Name the PACS and start Hilum again: what comes from then on is sent.", _SET_DESTINATION
                ),
                Step(
                    "To have this study sent too, erase it here, and then have it sent here again:",
                    f"hilum purge --study {study.study_instance_uid} && "
                    f"hilum purge --lift --study {study.study_instance_uid}",
                ),
            ],
        )
    if current:
        why = [f"{_name(item)} for {item.destination}: {item.last_error}" for item in current[:3]]
        return Answer(
            "wrong", "The report was made and not sent.", why, [Step("Read why; then:", button="retry")]
        )
    return Answer(
        "none",
        "A result is here, and no destination wants a report of it.",
        [
            "In the file of HILUM_CONFIG `objects` and `not_analysed` of each destination, and `[[rules]]`, "
            "decide who gets what."
        ],
        [Step("Nothing, if that is meant.")],
    )


_SET_DESTINATION = "HILUM_DESTINATIONS=PACS=dicom://AETITLE@pacs.example:104"


# What comes with a report and says nothing without it.
_COMPANIONS = {Kind.HEATMAP, Kind.PLAIN_HEATMAP, Kind.GSPS, Kind.ASSESSMENT}


def _parked(parked: Sequence[DeliveryOut], living: Sequence[DeliveryOut]) -> Answer:
    first = parked[0]
    names = " and ".join(dict.fromkeys(item.destination for item in parked))
    error = first.last_error or "no reason was given"
    own = error.startswith(("not sent", "no destination", "the report's file"))
    said = (
        f"The report was made and is not in {names}: it waits for a person."
        if own
        else f"The report was made, and {names} refused it: it waits for a person."
    )
    there = {item.destination for item in living if item.state in _DONE and item.kind not in _COMPANIONS} >= {
        item.destination for item in parked
    }
    if there and all(item.kind in _COMPANIONS for item in parked):
        said = f"The report is in {names}; {names} refused what comes with it: it waits for a person."
    why = [f"{_name(item)} for {item.destination}: {item.last_error}" for item in parked[:3]]
    return Answer("wrong", said, why, delivery_steps(error))


def _pending(pending: Sequence[DeliveryOut], situation: Situation, zone: tzinfo | None) -> Answer:
    for item in pending:
        gone = situation.away.get(item.destination)
        if gone is not None:
            return Answer(
                "wrong",
                f"The report is made and waits: {item.destination} cannot be reached.",
                [
                    gone.error,
                    f"tried {gone.failures} time(s) since {gone.since.astimezone(zone):%Y-%m-%d %H:%M:%S}, "
                    f"the next one at {gone.next_try.astimezone(zone):%H:%M:%S}. Nothing is lost: all that "
                    "waits goes out when it is back.",
                ],
                [*away_steps(item.destination), Step("To try this study at once:", button="retry")],
            )
    found = problems(situation, ["deliver", "scheduler"])
    if found:
        return Answer(
            "wrong", f"The report is made and waits: {found[0].said}", [found[0].why], found[0].steps
        )
    for item in pending:
        if item.waits_for and item.waits_until:
            return Answer(
                "waits",
                f"The report is made and waits for {item.waits_for} at {item.destination}.",
                [f"It is sent from {item.waits_until.astimezone(zone):%Y-%m-%d %H:%M:%S} on."],
                _PAUSED,
            )
    errors = [
        f"{_name(item)} for {item.destination}: {item.last_error}" for item in pending if item.last_error
    ]
    names = " and ".join(dict.fromkeys(item.destination for item in pending))
    if errors:
        return Answer(
            "waits",
            f"The report is made; sending it to {names} is tried again.",
            errors[:3],
            pending_steps(errors[0]),
        )
    return Answer("waits", f"The report is made and is being sent to {names}.")


def _there(study: StudyOut, living: Sequence[DeliveryOut]) -> Answer:
    names = " and ".join(dict.fromkeys(item.destination for item in living if item.state in _DONE))
    proven = all(item.state == DeliveryState.CONFIRMED for item in living)
    what = "The report"
    if study.result is not None and study.result.finding == Finding.NOT_ANALYSED:
        what = "A report that nothing was analysed"
    said = f"{what} is in {names}{', and that is proven' if proven else ''}."
    why = (
        []
        if proven
        else [f"{names} answered success; what proves that it keeps the report has not come yet."]
    )
    if study.result is not None and study.result.reason:
        why.append(study.result.reason)
    steps = [Step("If a viewer does not show it: open the study anew, and look for the series named “AI …”.")]
    if study.result is not None and study.result.finding == Finding.NOT_ANALYSED:
        steps = [*reason_steps(study.result.reason or ""), *steps]
    return Answer("good", said, why, steps)


def _not_analysed(study: StudyOut) -> Answer:
    reason = (study.result.reason if study.result else None) or "no image could be analysed"
    ignored = {item.state for item in study.instances} == {InstanceState.IGNORED}
    return Answer(
        "none",
        "No report: this study holds nothing that the network may look at."
        if ignored
        else "No report: nothing of this study was analysed, and no destination wants to be told so.",
        list(dict.fromkeys(reason.split("; "))),
        reason_steps(reason),
    )
