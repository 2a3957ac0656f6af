"""What must be right before a role starts, and what `hilum doctor` shows: each check with its mend."""

import os
import socket
import stat
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta

from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from service.core.audit import trail_folder
from service.core.audit_syslog import Sender
from service.core.audit_trail import Trail
from service.core.circuits import away
from service.core.confirmation import unconfirmed
from service.core.embedded import broker_url
from service.core.enqueue import redis_url
from service.core.errors import ConfigurationError
from service.core.heartbeat import ALIVE_SECONDS
from service.core.ledger import Ledger, check_migrated, now
from service.core.live import digest_of
from service.core.pauses import pauses
from service.core.refusals import refusals
from service.core.removal import shown_bytes
from service.core.repair import differences, waits_for_repair
from service.core.retention import Retention
from service.core.settings import Settings
from service.core.spool import Spool
from service.core.states import Kind
from service.core.tables import Heartbeat

_CLOCK_SECONDS = 5.0
_MANY_WAITING = 1000


@dataclass(frozen=True)
class Check:
    """One thing looked at: whether it is right, what was seen, and what to do if it is not.

    `warns`: it is right, and a person should do something all the same.
    """

    name: str
    right: bool
    seen: str
    mend: str = ""
    warns: bool = False


def require(settings: Settings) -> None:
    """Stop the start of a role unless the data folder can be written.

    A folder that is nearly full stops nobody: deliveries make room, and the listener answers A700.

    Raises
    ------
    ConfigurationError
        With every fault and its mend.
    """
    check = _writable(settings)
    if not check.right:
        raise ConfigurationError(f"{check.name}: {check.seen}. {check.mend}")


def require_port(host: str, port: int, setting: str) -> None:
    """Stop the start of a server whose address is taken or not this machine's.

    Raises
    ------
    ConfigurationError
        Naming the setting.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as fault:
            raise ConfigurationError(f"{setting}: {host}:{port} can't be bound ({fault.strerror})") from None


def examine(settings: Settings) -> Iterator[Check]:
    """Look at everything that the gateway leans on outside the worker, one check after the other."""
    yield data_folder(settings)
    yield _ledger(settings)
    yield _clock(settings)
    yield _retention(settings)
    yield _files(settings)
    yield _broker(settings)
    yield from _audit(settings)
    remembered = _remembered(settings)
    for destination in settings.destinations:
        known = "".join(f"; {line}" for line in remembered.get(destination.name, ()))
        yield reachable(f"destination {destination.name}", destination.host, destination.port, known)


def configuration(settings: Settings, fault: str = "") -> Check:
    """Look at the file of HILUM_CONFIG, and at whether every process goes by it as it is now.

    `fault`: what kept it from being read; `settings` are without it then.
    """
    mend = "Mend the file; what runs goes by what it said before, and would not start again"
    if fault:
        return Check("configuration file", False, "; ".join(fault.splitlines()), mend)
    if settings.config is None:
        return Check("configuration file", True, "none (HILUM_CONFIG)")
    seen = f"{settings.config}, {len(settings.rules)} rule(s), {len(settings.destinations)} destination(s)"
    if settings.overruled:
        tables = " and ".join(f"[{name}]" for name in settings.overruled)
        variables = " and ".join(f"HILUM_{name.upper()}" for name in settings.overruled)
        mend = f"Take {variables} out of .env and the environment, or {tables} out of the file"
        return Check(
            "configuration file", True, f"{seen}; {variables} counts, not its {tables}", mend, warns=True
        )
    try:
        digest = digest_of(settings.config)
        with closing(Ledger(settings.sqlalchemy_url)) as ledger, ledger.read() as session:
            rows = session.scalars(
                select(Heartbeat).where(Heartbeat.at > now() - timedelta(seconds=ALIVE_SECONDS))
            )
            said = {row.process: (row.about or {}).get("config") for row in rows}
            others = sorted(process for process, config in said.items() if config not in (None, "", digest))
    except (ConfigurationError, SQLAlchemyError):
        return Check("configuration file", True, f"{seen}; who goes by it cannot be read")
    if not others:
        return Check("configuration file", True, f"{seen}; every process goes by it")
    seen += f"; another one than this counts for {', '.join(others)}"
    mend = "It is taken up within seconds: ask again; else see `config.refused` in the log of that process"
    return Check("configuration file", True, seen, mend, warns=True)


def data_folder(settings: Settings) -> Check:
    """Look at whether the data folder can be written, and at its free space."""
    check = _writable(settings)
    if not check.right:
        return check
    spool = Spool(settings.data_dir)
    free = spool.free_bytes()
    if free < settings.min_free_bytes:
        return Check(
            check.name,
            False,
            f"{free:,} bytes free in {spool.root}",
            "Free space, or lower HILUM_MIN_FREE_BYTES",
        )
    seen = f"{spool.root}, {free / 1e9:,.0f} GB free"
    if others := spool.root.stat().st_mode & stat.S_IRWXO:
        seen += ", open to every user of this machine"
    return Check(check.name, True, seen, f"chmod o-rwx {spool.root}", warns=bool(others))


def _writable(settings: Settings) -> Check:
    """Write, sync and remove a probe file in the data folder."""
    spool = Spool(settings.data_dir)
    try:
        spool.make()
        probe = spool.incoming / f"probe-{uuid.uuid4().hex}"
        descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(descriptor, b"probe")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
            probe.unlink()
    except OSError as fault:
        return Check(
            "data folder",
            False,
            f"{spool.root} can't be written ({fault.strerror})",
            "Let HILUM_DATA_DIR name a folder on a local disk that this user owns",
        )
    return Check("data folder", True, str(spool.root))


def _ledger(settings: Settings) -> Check:
    return _tried(
        "ledger",
        lambda: f"at revision {check_migrated(settings.sqlalchemy_url)}",
        "`hilum up` migrates it, or run `hilum migrate`; with PostgreSQL check HILUM_DATABASE_URL",
    )


def _retention(settings: Settings) -> Check:
    """Say how long files are kept, and warn of what is kept because nobody has decided."""
    spool, keep = Spool(settings.data_dir), settings.free_bytes_to_keep
    said = (
        f"files are kept {settings.retain_days:g} days after a study is done, "
        f"{settings.retain_unfinished_days:g} days after anything else, less below {shown_bytes(keep)} free"
    )
    try:
        with closing(Ledger(settings.sqlalchemy_url)) as ledger:
            oldest, open_ = Retention(ledger, spool, settings).oldest()
        low = spool.free_bytes() < keep
    except (ConfigurationError, SQLAlchemyError, OSError):
        return Check("retention", True, f"{said}; what is kept cannot be read")
    for what, came, days in (
        ("done", oldest, settings.retain_days),
        ("not done", open_, settings.retain_unfinished_days),
    ):
        if came is not None:
            goes = max(came + timedelta(days=days), now())
            said += f"; the oldest study that is {what} came on {came:%Y-%m-%d}: not before {goes:%Y-%m-%d}"
    if low:
        said += f"; {shown_bytes(spool.free_bytes())} are free: files go before their time"
    return Check("retention", True, said, "Make room, or let the volume grow", warns=low)


def _clock(settings: Settings) -> Check:
    """Compare this clock with what every process of the gateway wrote last: leases and waits go by it."""
    mend = "Let NTP set the clock of every host, then restart what ran with the wrong one"
    try:
        with closing(Ledger(settings.sqlalchemy_url)) as ledger, ledger.read() as session:
            ahead = session.execute(
                select(Heartbeat.process, Heartbeat.at).order_by(Heartbeat.at.desc()).limit(1)
            ).first()
    except (ConfigurationError, SQLAlchemyError):
        return Check("clock", True, "not compared: the ledger cannot be read")
    seconds = (ahead.at - now()).total_seconds() if ahead else 0.0
    if ahead and seconds > _CLOCK_SECONDS:
        return Check("clock", False, f"{seconds:.0f} s behind that of {ahead.process}", mend)
    return Check("clock", True, "not behind that of any process")


def _files(settings: Settings) -> Check:
    """Compare the data folder with the ledger: a second for a hundred thousand films."""
    spool, unnamed, missing = Spool(settings.data_dir), 0, 0
    try:
        with closing(Ledger(settings.sqlalchemy_url)) as ledger:
            for orphans, gone in differences(ledger, spool):
                unnamed += sum(_is_left(spool, path) for path in orphans)
                missing += len(gone)
    except (ConfigurationError, SQLAlchemyError, OSError) as fault:
        return Check("files", False, f"cannot be compared with the ledger ({type(fault).__name__})")
    seen = f"{missing} that the ledger names are gone" if missing else "all that the ledger names are there"
    if unnamed:
        seen += f"; {unnamed} that a crash left, for the scheduler to adopt or remove"
    return Check(
        "files",
        not missing,
        seen,
        "Is the right data folder mounted? Restore it, or send the studies again that ask for attention",
    )


def _is_left(spool: Spool, path: str) -> bool:
    try:
        return waits_for_repair(spool, path)
    except OSError:
        return False


def _broker(settings: Settings) -> Check:
    def ping() -> str:
        Redis.from_url(redis_url(broker_url(settings)), socket_timeout=3, socket_connect_timeout=3).ping()
        return "answers"

    return _tried("Redis", ping, "Start `hilum up` (embedded Redis), or check HILUM_BROKER_URL")


def _audit(settings: Settings) -> Iterator[Check]:
    trail, server = Trail(trail_folder(settings)), settings.audit_syslog
    head = trail.place("head")
    seen = f"{head.number} record(s), the last in {head.file}" if head else "nothing is written yet"
    if server is None:
        yield Check("audit trail", True, seen)
        return
    waiting = Sender(settings).waiting()
    mend = f"See `audit.syslog_away` in the scheduler's log for why {server} does not get them"
    seen += f"; {waiting} of them wait for {server}" if waiting else f"; {server} has them all"
    yield Check("audit trail", True, seen, mend, warns=waiting > _MANY_WAITING)
    yield reachable("syslog", server.host, server.port, "")


def reachable(name: str, host: str, port: int, known: str) -> Check:
    """Look whether somebody listens there; `known` is said of it too."""

    def connect() -> str:
        socket.create_connection((host, port), timeout=3).close()
        return f"{host}:{port} accepts connections{known}"

    return _tried(name, connect, "Is it up, the port right, the firewall open?")


def _remembered(settings: Settings) -> dict[str, list[str]]:
    """Return, by destination, what the ledger knows of it that a person should."""
    known: dict[str, list[str]] = defaultdict(list)
    words = {
        Kind.SR: "reports go as Comprehensive SR, since it rejected Comprehensive 3D SR",
        Kind.HEATMAP: "heat maps go uncompressed, since it rejected JPEG",
    }
    try:
        with closing(Ledger(settings.sqlalchemy_url)) as ledger, ledger.read() as session:
            for row in refusals(session, settings.destinations):
                known[row.destination].append(
                    f"{words[Kind(row.kind)]} on {row.at:%Y-%m-%d} (`hilum retry` of one of its studies "
                    "offers that again)"
                )
            for circuit in away(session):
                known[circuit.destination].append(
                    f"nothing could be sent since {circuit.since:%Y-%m-%d %H:%M} UTC ({circuit.last_error}), "
                    f"next try {circuit.open_until:%H:%M:%S} UTC"
                )
            for pause in pauses(session):
                known[pause.destination].append(
                    f"nothing is sent before {pause.until:%Y-%m-%d %H:%M:%S} UTC because of {pause.why}"
                )
            for name, count in unconfirmed(session).items():
                known[name].append(
                    f"it confirmed none of {count} deliveries of the last day (see `confirm` in the README)"
                )
    except (ConfigurationError, SQLAlchemyError):
        return {}  # said by the check of the ledger
    return known


def _tried(name: str, attempt: Callable[[], str], mend: str) -> Check:
    try:
        return Check(name, True, attempt())
    except (ConfigurationError, SQLAlchemyError, RedisError, OSError) as fault:
        return Check(name, False, str(fault).splitlines()[0], mend)
