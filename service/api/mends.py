"""What is wrong and what mends it, in plain words: of the gateway, of a failure, of a refusal, of an image.

Tables of what a message begins with or holds; the messages are those of the code that writes them
(`tests/integration/test_explain.py` holds one against the other).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import tzinfo
from typing import Literal

from service.api.situation import Away, Situation
from service.core.heartbeat import ROLES
from service.core.removal import shown_bytes


@dataclass(frozen=True)
class Step:
    """One thing to do; a command to copy, or a button of the study's page."""

    text: str
    command: str | None = None
    button: Literal["retry", "as_built"] | None = None


@dataclass(frozen=True)
class Problem:
    """Something of the gateway that keeps studies from their reports; `said` begins in lower case."""

    role: str
    said: str
    why: str
    steps: Sequence[Step]


LEDGER_STEPS = (
    Step(
        "With Docker: bring PostgreSQL back; Hilum connects again by itself.",
        "docker compose restart postgres",
    ),
    Step(
        "With SQLite: end what holds the ledger locked, such as a backup program.", "fuser -v ledger.sqlite3"
    ),
    Step("What was answered with success is safe. Images that come meanwhile are refused, and sent again."),
)
_RETRY = Step("Then give it another try.", button="retry")
_AGAIN = Step("Then let the PACS send the study again.")
_WHO = {
    "listener": "the listener, which takes images in, does not run.",
    "scheduler": "the scheduler, which hands out the work, does not run.",
    "decode": "no worker decodes films.",
    "infer": "no worker runs the network.",
    "report": "no worker builds reports.",
    "deliver": "no worker sends reports.",
}
_START = {
    "listener": ("listener", "hilum listen"),
    "scheduler": ("scheduler", "hilum scheduler"),
    **{name: (f"worker-{name}", f"hilum worker --queue {name}") for name in ROLES[2:]},
}


def all_problems(situation: Situation, zone: tzinfo | None) -> list[Problem]:
    """Return all that is wrong: with the gateway, and with its destinations."""
    return [
        *problems(situation),
        *(_away(name, gone, zone) for name, gone in situation.away.items()),
    ]


def problems(situation: Situation, roles: Sequence[str] = ROLES) -> list[Problem]:
    """Return what is wrong with the gateway, as far as these roles are concerned; the cause comes first."""
    if set(situation.faults) >= set(ROLES):
        return [_nothing_runs()]
    faults = {role: fault for role, fault in situation.faults.items() if role in roles or role == "ledger"}
    found = []
    if "Redis" in faults.get("scheduler", ""):
        found.append(_redis())
        del faults["scheduler"]
        # Without messages nobody is told that there is work.
        faults = {role: fault for role, fault in faults.items() if "waiting" not in fault}
    silent_first = sorted(faults, key=lambda role: (role != "ledger", "waiting" in faults[role]))
    found += [_silent(role, faults[role]) for role in silent_first]
    if situation.is_full and "listener" in roles:
        found.append(_full(situation))
    return found


def _redis() -> Problem:
    return Problem(
        "redis",
        "Redis cannot be reached.",
        "Redis tells the workers that there is work. Images are taken in meanwhile, and nothing is lost.",
        [
            Step("With Docker:", "docker compose restart redis"),
            Step(
                "Else start Redis, and see that HILUM_BROKER_URL is right; all goes on by itself then.",
                "hilum doctor",
            ),
        ],
    )


def _nothing_runs() -> Problem:
    return Problem(
        "all",
        "of Hilum only this page runs.",
        "Neither the listener nor the scheduler nor a worker has been heard of for a while: nothing is taken "
        "in, analysed or sent.",
        [
            Step("With Docker:", "docker compose up -d"),
            Step("Else:", "hilum up"),
            Step(
                "If they end again: what is wrong with the machine or the settings is said by", "hilum doctor"
            ),
        ],
    )


def _away(name: str, gone: Away, zone: tzinfo | None) -> Problem:
    since, next_try = gone.since.astimezone(zone), gone.next_try.astimezone(zone)
    return Problem(
        f"away-{name}",
        f"{name} cannot be reached, and reports for it wait.",
        f"{gone.error}. Tried {gone.failures} time(s) since {since:%Y-%m-%d %H:%M:%S}, the next one at "
        f"{next_try:%H:%M:%S}. Nothing is lost: all that waits goes out when it is back.",
        away_steps(name),
    )


def away_steps(name: str) -> list[Step]:
    """Return what to do about a destination that cannot be reached."""
    return [
        Step(f"See that {name} runs, that its address and AE title are right, and that it lets ours in."),
        Step("Ask from this machine:", "hilum doctor"),
    ]


def _silent(role: str, fault: str) -> Problem:
    service, command = _START.get(role, ("api", "hilum up"))
    if "waiting" in fault:
        return Problem(
            role,
            f"the work for {role} is not done.",
            f"A {role} process lives and does nothing: {fault}. It is ended and started again by itself; if "
            "that repeats, its log says why.",
            [
                Step("With Docker:", f"docker compose restart {service}"),
                Step("Its log:", f"docker compose logs --since 1h {service}"),
            ],
        )
    return Problem(
        role,
        _WHO.get(role, f"the {role} does not work."),
        f"{fault[0].upper()}{fault[1:]}.",
        [
            Step("With Docker:", f"docker compose up -d {service}"),
            Step("Else, unless it runs under “hilum up”, which starts it again by itself:", command),
            Step("If it ends again, the last lines of its log say why."),
        ],
    )


def _full(situation: Situation) -> Problem:
    free, least = situation.free_bytes or 0, situation.refuses_below
    return Problem(
        "disk",
        "the disk is full, and new images are refused.",
        f"{shown_bytes(free)} are free in the data folder, less than HILUM_MIN_FREE_BYTES "
        f"({shown_bytes(least)}): senders are told so (A700, HTTP 503) and send again.",
        [
            Step("See what may go:", "hilum purge --expired --dry-run"),
            Step("See what fills the disk, and move what is not Hilum's, or let the volume grow.", "df -h"),
            Step("Delete nothing in the data folder by hand. Once there is room all goes on by itself."),
        ],
    )


_FAILURES: Sequence[tuple[str, Sequence[Step]]] = (
    (
        "died",
        (
            Step(
                "The film ended the process that worked on it three times: too little memory, or a damaged "
                "file. Other films go on."
            ),
            Step(
                "Give the worker more memory if its log speaks of memory (MemoryError, signal 9).",
                "docker compose logs --since 1h worker-decode",
            ),
            _RETRY,
            Step("A film that fails again: keep the file, and report it as a fault of Hilum."),
        ),
    ),
    (
        "MemoryError",
        (Step("Give the worker more memory (`mem_limit` in docker-compose.yml)."), _RETRY),
    ),
    (
        "its file is gone",
        (Step("The data folder lost the file. Is the right folder mounted?", "hilum doctor"), _AGAIN),
    ),
    (
        "FileNotFound",
        (Step("The data folder lost a file. Is the right folder mounted?", "hilum doctor"), _AGAIN),
    ),
)
_ANY_FAILURE = (
    Step("The bracket names the kind of the fault; the worker's log has the rest.", "hilum doctor"),
    _RETRY,
    Step("If it fails again: keep the film, and report it as a fault of Hilum."),
)

_REFUSALS: Sequence[tuple[str, Sequence[Step]]] = (
    (
        "identity",
        (
            Step(
                "The PACS files this study under another patient than the images name. Correct the patient "
                "in the PACS, or send the corrected images here again: the report is built anew."
            ),
            _RETRY,
            Step("If the report names the right patient, it can go as it is.", button="as_built"),
        ),
    ),
    (
        "SOP class",
        (
            Step("Let the PACS accept “Comprehensive 3D SR”, “Comprehensive SR” or “Enhanced SR” from us."),
            Step("Or send it another form: in HILUM_CONFIG, under this destination.", 'sr = "text"'),
            _RETRY,
        ),
    ),
    (
        "accepts neither",
        (
            Step("Let the PACS accept “Comprehensive 3D SR” or “Comprehensive SR” from us."),
            Step("Or send it another form: in HILUM_CONFIG, under this destination.", 'sr = "text"'),
            _RETRY,
        ),
    ),
    (
        "transfer syntax",
        (Step("Let the PACS accept Explicit VR Little Endian for this kind of object."), _RETRY),
    ),
    (
        "not authorised",
        (Step("Let the PACS's administrator allow our AE title (HILUM_AE_TITLE) to store."), _RETRY),
    ),
    (
        "cannot understand",
        (Step("The PACS could not process it, five times. Its own log of that time says why."), _RETRY),
    ),
    (
        "does not hold the object",
        (
            Step(
                "The PACS said yes three times, and does not have it. Ask its administrator: an import "
                "queue, a rule that drops structured reports, a full volume."
            ),
            _RETRY,
        ),
    ),
    (
        "not sent: made",
        (
            Step("It was made later than this destination wants reports (`expires_after` in HILUM_CONFIG)."),
            Step("To send it after all:", button="retry"),
        ),
    ),
    (
        "no destination",
        (
            Step("Put the destination back under its name (HILUM_DESTINATIONS, HILUM_CONFIG), or leave it."),
            _RETRY,
        ),
    ),
    (
        "file is gone",
        (Step("The data folder lost the report. Is the right folder mounted?", "hilum doctor"), _AGAIN),
    ),
)
_ANY_REFUSAL = (
    Step("Ask the PACS's administrator what its log says of that time, and mend it there."),
    _RETRY,
)

_REASONS: Sequence[tuple[str, Sequence[Step]]] = (
    (
        "left out by the rule",
        (
            Step(
                "A rule in the file of HILUM_CONFIG says so. If that is not meant, look which rule speaks of "
                "a film, and why:",
                "hilum rules test FILE --calling AET",
            ),
            Step("With the rule changed:", button="retry"),
        ),
    ),
    (
        "age unknown",
        (
            Step(
                "The images say neither age nor birth date. Fill Patient's Age or Patient's Birth Date in "
                "on the modality, and send the images again."
            ),
            Step(
                "Or let such studies be scored with that limit stated, from the next start of Hilum on.",
                "HILUM_POPULATION=flag",
            ),
        ),
    ),
    (
        "outside the validated population",
        (
            Step("Nothing: the network knows patients of those ages only, and guesses about nobody else."),
            Step(
                "For research such studies can be scored with that limit stated, from the next start on.",
                "HILUM_POPULATION=flag",
            ),
        ),
    ),
    (
        "not a frontal chest radiograph (",
        (
            Step("Nothing, if that is what the images are."),
            Step(
                "If it is a frontal chest film, its header says otherwise: correct modality, body part or "
                "view position where the images come from, and send them again."
            ),
        ),
    ),
    (
        "not a frontal chest radiograph",
        (
            Step("Look at the film on this page: its pixels do not look like an upright frontal chest."),
            Step("If it is one (rotated, cropped, badly exposed), a corrected film can be sent again."),
        ),
    ),
    (
        "pixel data cannot be decoded",
        (Step("The file itself is damaged, or no radiograph: let the modality send it again."),),
    ),
    (
        "the archive rejected",
        (Step("Nothing: the archive took the images out of use, and Hilum follows it."),),
    ),
    ("removed", (Step("Send the study again from the PACS: it is analysed anew."),)),
)
_ANY_REASON = (Step("Nothing: only frontal chest radiographs are analysed."),)


def failure_steps(reason: str) -> Sequence[Step]:
    """Return what to do about a study that failed."""
    return _first(_FAILURES, reason, _ANY_FAILURE)


def delivery_steps(error: str) -> Sequence[Step]:
    """Return what to do about a report that a destination refused."""
    return _first(_REFUSALS, error, _ANY_REFUSAL)


def reason_steps(reason: str) -> Sequence[Step]:
    """Return what to do about images that were not analysed."""
    return _first(_REASONS, reason, _ANY_REASON)


def _first(
    table: Sequence[tuple[str, Sequence[Step]]], said: str, otherwise: Sequence[Step]
) -> Sequence[Step]:
    return next((steps for part, steps in table if part in said), otherwise)
