"""What is wrong with the gateway, why that matters and what mends it, in plain words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import tzinfo

from service.api.mends import DISK_STEPS, LEDGER_STEPS, Step, away_steps, refusal_steps, rejection_steps
from service.api.situation import Away, Situation
from service.core.heartbeat import ROLES
from service.core.removal import shown_bytes


@dataclass(frozen=True)
class Problem:
    """Something of the gateway that keeps studies from their reports; `said` begins in lower case."""

    role: str
    said: str
    why: str
    steps: Sequence[Step]


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
    """Return all that is wrong: with the gateway, its destinations, its configuration."""
    return [
        *problems(situation),
        *(_away(name, gone, zone) for name, gone in situation.away.items()),
        *([_not_taken(situation.config_fault)] if situation.config_fault else []),
    ]


def problems(situation: Situation, roles: Sequence[str] = ROLES) -> list[Problem]:
    """Return what is wrong with the gateway, as far as these roles are concerned; the cause comes first."""
    found = [_read_only()] if situation.is_read_only else []
    if "ledger" in situation.faults:
        return [*found, _no_ledger(situation.faults["ledger"])]
    if set(situation.faults) >= set(ROLES):
        return [*found, _nothing_runs()]
    faults = {role: fault for role, fault in situation.faults.items() if role in roles}
    if "Redis" in faults.get("scheduler", ""):
        found.append(_redis(faults["scheduler"]))
        # Without messages nobody is told that there is work, and workers end until they get some.
        faults = {role: fault for role, fault in faults.items() if role == "listener"}
    silent_first = sorted(faults, key=lambda role: "waiting" in faults[role])
    found += [_silent(role, faults[role]) for role in silent_first]
    if "listener" in roles:
        if situation.is_full:
            found.append(_full(situation))
        elif situation.refuses is not None and not situation.is_read_only:
            found.append(_refusing(situation.refuses["reason"]))
    return found


_REDIS_STEPS: Mapping[str, Sequence[Step]] = {
    "memory": (
        Step("Give Redis more memory (`maxmemory`; with Docker in docker-compose.yml, then):"),
        Step("With Docker, to apply it:", "docker compose up -d redis"),
        Step("Nothing in Redis has to be kept: to empty it helps at once.", "redis-cli FLUSHALL"),
    ),
    "let us in": (
        Step("Its password or account is not the one in HILUM_BROKER_URL: make them agree.", "hilum doctor"),
    ),
    "reached": (
        Step("With Docker:", "docker compose restart redis"),
        Step(
            "Else start Redis, and see that HILUM_BROKER_URL is right; all goes on by itself then.",
            "hilum doctor",
        ),
    ),
}


def _redis(fault: str) -> Problem:
    return Problem(
        "redis",
        f"{fault}.",
        "Redis tells the workers that there is work. Images are taken in meanwhile, and nothing is lost.",
        next((steps for part, steps in _REDIS_STEPS.items() if part in fault), _REDIS_STEPS["reached"]),
    )


def _read_only() -> Problem:
    return Problem(
        "read-only",
        "the disk of the data folder is mounted read-only.",
        "So no image is taken in, and none is worked on; senders are told so (A700, HTTP 503) and send "
        "again. Linux does that by itself to a disk that fails.",
        DISK_STEPS,
    )


def _no_ledger(fault: str) -> Problem:
    return Problem(
        "ledger",
        "the ledger does not work, so nothing goes on.",
        f"The ledger is the database that knows every study: {fault}. This page shows how things were.",
        LEDGER_STEPS,
    )


def _refusing(reason: str) -> Problem:
    _, _, words = reason.partition(", ")
    return Problem(
        "refusing",
        "images are refused, and none was stored since.",
        f"The last sender was told: {words} (A700). It sends again.",
        refusal_steps(reason),
    )


def _not_taken(fault: str) -> Problem:
    lines = fault.splitlines()
    return Problem(
        "config",
        "the configuration file was saved with a fault, so what it said before counts.",
        "; ".join(lines[:5]) + ("; …" if len(lines) > 5 else ""),
        [
            Step("See every fault of it:", "hilum rules check"),
            Step("Mend and save it: it is taken up within seconds."),
            Step("Do it soon: a role that is started again refuses such a file and stays down."),
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


@dataclass(frozen=True)
class TurnedAway:
    """The newest caller or image that was not let in; `seen` has "at", "ae_title", "address" and "reason"."""

    name: str
    seen: Mapping[str, str]
    steps: Sequence[Step]


def turned_away(situation: Situation) -> list[TurnedAway]:
    """Return who and what was not let in last, the newest first."""
    found = [
        TurnedAway(name, seen, steps(seen["reason"]))
        for name, what, steps in (
            ("Last rejected caller", "rejection", rejection_steps),
            ("Last refused image", "refusal", refusal_steps),
        )
        if (seen := situation.newest(what)) is not None
    ]
    return sorted(found, key=lambda item: item.seen["at"], reverse=True)
