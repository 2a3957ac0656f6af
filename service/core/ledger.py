"""The ledger: the truth about every study, kept in SQLite or PostgreSQL.

Every process that writes goes through `Ledger.write`. On SQLite a write transaction takes the lock at its
start (``BEGIN IMMEDIATE``), so that it never has to be given up half way; no file or network is touched
inside one. `Ledger` is opened after a fork, never before.
"""

import secrets
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from filelock import FileLock
from sqlalchemy import Connection, Engine, create_engine, event, insert, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import TimeoutError
from sqlalchemy.orm import Session

from service.core import postgresql
from service.core.errors import ConfigurationError
from service.core.line import Line
from service.core.prepared import Prepared, on_driver
from service.core.results import Finding
from service.core.states import NoticeKind
from service.core.tables import Event, Installation, Model, Occurrence, Study

_BUSY_SECONDS = 20
_AFTERWARDS = "hilum_afterwards"
# The events that a person may want to be told of (`service.scheduler.notices`), beside a positive report.
_TOLD = {
    "failed": NoticeKind.FAILED,
    "instance_failed": NoticeKind.FAILED,
    "held": NoticeKind.HELD,
    "parked": NoticeKind.PARKED,
    "given_up": NoticeKind.GIVEN_UP,
    "quarantined": NoticeKind.QUARANTINED,
    "unconfirmed": NoticeKind.UNCONFIRMED,
}
_NOT_TOLD_OF_PAST = {NoticeKind.POSITIVE, NoticeKind.FAILED, NoticeKind.HELD, NoticeKind.QUARANTINED}
_NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "ceph", "glusterfs"}


def now() -> datetime:
    """Return this moment, aware, in UTC."""
    return datetime.now(UTC)


class Ledger:
    """One process's door to the ledger.

    Parameters
    ----------
    url
        SQLAlchemy URL, ``sqlite:///…`` or ``postgresql+psycopg://…``.
    """

    def __init__(self, url: str) -> None:
        self._engine = open_engine(url)
        # SQLite keeps no line of those who wait for it: threads wait here for each other, then processes.
        self._turn = threading.Lock() if self._engine.dialect.name == "sqlite" else None
        self._line = Line(Path(f"{self._engine.url.database}.line"))
        self._held: Connection | None = None

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Give a session for reading; what is changed in it is thrown away."""
        with Session(self._engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Give a session whose changes are committed at the end, or not at all when an exception leaves."""
        with self.write_plainly() as writing:
            yield writing.session

    @contextmanager
    def write_plainly(self) -> Iterator["Writing"]:
        """Do what `write` does, for whoever may need no session."""
        with self._in_turn(), self._writer() as connection, ExitStack() as sessions:
            writing = Writing(connection, sessions)
            with connection.begin():
                yield writing
                writing.flush()
        for call in writing.afterwards:
            call()

    @contextmanager
    def _writer(self) -> Iterator[Connection]:
        """Give a connection for writing; on SQLite the same again and again: one thread has the turn."""
        connection, self._held = self._held or self._engine.connect(), None
        with ExitStack() as unless_kept:
            unless_kept.enter_context(connection)
            yield connection.execution_options(hilum_writes=True)
            if self._turn is not None:
                self._held = connection
                unless_kept.pop_all()

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        if self._turn is None:
            yield
            return
        if not self._turn.acquire(timeout=_BUSY_SECONDS):
            raise TimeoutError("another thread has been writing to the ledger for too long")
        try:
            if not self._line.enter(_BUSY_SECONDS):
                raise TimeoutError("another process has been writing to the ledger for too long")
            try:
                yield
            finally:
                self._line.leave()
        finally:
            self._turn.release()

    def installation(self) -> str:
        """Return the identity of this installation, a random UUID from the first migration on."""
        with self.read() as session:
            return session.scalars(select(Installation.identity)).one()

    def overwrite_deleted(self) -> None:
        """Let nothing of what was deleted stay in SQLite's log; readers may delay that a little.

        PostgreSQL does it in its own time (VACUUM).
        """
        if self._engine.dialect.name == "sqlite":
            with self._engine.connect() as connection:
                connection.rollback()  # a checkpoint runs outside of transactions
                raw = connection.connection.cursor()
                for _ in range(20):
                    if not raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                        break
                    time.sleep(0.1)
                raw.close()

    def close(self) -> None:
        """Close every connection."""
        held, self._held = self._held, None
        if held is not None:
            held.close()
        self._engine.dispose()
        self._line.close()


class Writing:
    """A transaction that is under way."""

    def __init__(self, connection: Connection, sessions: ExitStack) -> None:
        self.connection = connection
        self._sessions = sessions
        self._session: Session | None = None

    @property
    def session(self) -> Session:
        """The session over it, made when it is first asked for: most films need none."""
        if self._session is None:
            # Once it is over it can be used no more: it would begin on a connection that is not its own.
            made = Session(self.connection, expire_on_commit=False, close_resets_only=False)
            self._session = self._sessions.enter_context(made)
        return self._session

    def flush(self) -> None:
        """Write what the session holds."""
        if self._session is not None:
            self._session.flush()

    def forget(self) -> None:
        """Write what the session holds, and let it ask anew for everything."""
        self.flush()
        if self._session is not None:
            self._session.expire_all()

    @property
    def afterwards(self) -> Sequence[Callable[[], None]]:
        """What is to be done when it is committed."""
        return self._session.info.get(_AFTERWARDS, ()) if self._session is not None else ()


def open_engine(url: str, *, bounded: bool = True) -> Engine:
    """Return an engine for `url` with the durability that custody needs.

    Nobody waits for it without end: a listener must answer its sender (PS3.4 B.2.3, A700). A migration alone
    may take its time (`bounded`). SQLite: WAL, ``synchronous=FULL`` (a commit is on disk before C-STORE
    answers); what is deleted is overwritten.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        engine = create_engine(
            parsed,
            pool_pre_ping=True,
            pool_size=8,
            max_overflow=24,
            pool_timeout=10,
            hide_parameters=True,
            connect_args=postgresql.OPTIONS,
        )
        if bounded:

            @event.listens_for(engine, "do_connect")
            def _connect(
                _dialect: object, _record: object, arguments: Sequence[Any], options: dict[str, Any]
            ) -> object:
                return postgresql.BoundedConnection.connect(*arguments, **options)

        return engine
    if parsed.database:
        _refuse_network_file_system(Path(parsed.database).parent)
    # Without pysqlite's own transaction handling every BEGIN is the one written below.
    engine = create_engine(
        parsed, hide_parameters=True, connect_args={"timeout": _BUSY_SECONDS, "isolation_level": None}
    )

    @event.listens_for(engine, "connect")
    def _set_pragmas(connection: DBAPIConnection, _record: object) -> None:
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("hilum_writes")
        on_driver(connection, "BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def when_committed(session: Session, call: Callable[[], None]) -> None:
    """Do something after `Ledger.write` has committed what this session wrote, and only then."""
    session.info.setdefault(_AFTERWARDS, []).append(call)


def record_event(session: Session, study: Study | int, kind: str, detail: str = "") -> None:
    """Write one line of a study's history; `detail` never names a patient.

    Nobody is told of what a back-fill fetched, but of what becomes of its deliveries.
    """
    study_id = study if isinstance(study, int) else study.id
    moment = write_event(session.connection(), study_id, kind, detail)
    positive = kind == "reported" and isinstance(study, Study) and study.finding == Finding.PRESENT
    told = NoticeKind.POSITIVE if positive else _TOLD.get(kind)
    past = isinstance(study, Study) and study.backfill_id is not None
    if told is not None and not (past and told in _NOT_TOLD_OF_PAST):
        session.add(Occurrence(study_id=study_id, at=moment, kind=told, detail=detail))


_INSERT_EVENT = Prepared.insert(Event, "study_id", "at", "kind", "detail")


def write_event(connection: Connection, study_id: int, kind: str, detail: str) -> datetime:
    """Write such a line alone, whoever is to be told of it; return its moment.

    By a statement: nobody asks the session for an event, and many are written.
    """
    moment = now()
    _INSERT_EVENT.rows(connection, {"study_id": study_id, "at": moment, "kind": kind, "detail": detail})
    return moment


def register_model(session: Session, name: str, version: str, sha256: str, activation_method: str) -> int:
    """Return the row id of the model with these weights, made when it is new."""
    found = session.scalars(select(Model.id).where(Model.sha256 == sha256)).one_or_none()
    if found is not None:
        return found
    model = Model(
        name=name, version=version, sha256=sha256, activation_method=activation_method, first_used_at=now()
    )
    session.add(model)
    session.flush()
    return model.id


def migrate(url: str) -> str:
    """Bring the ledger to the newest revision, under a lock, and return that revision.

    The only thing that ever alters a table. Safe to run from several hosts at once and on a ledger that is
    already new.

    Raises
    ------
    ConfigurationError
        When a newer version has migrated it already.
    """
    engine = open_engine(url, bounded=False)
    config = _alembic_config()
    with _migration_lock(engine) as connection:
        config.attributes["connection"] = connection
        present = MigrationContext.configure(connection).get_current_revision()
        if present is not None and not knows(present):
            raise ConfigurationError(_of_newer_version(present))
        command.upgrade(config, "head")
        found = connection.execute(select(Installation.id)).first()
        if found is None:
            connection.execute(
                insert(Installation).values(
                    id=1, identity=str(uuid.uuid4()), secret=secrets.token_hex(32), created_at=now()
                )
            )
    engine.dispose()
    return expected_revision()


def expected_revision() -> str:
    """Return the newest revision that this code knows."""
    return ScriptDirectory.from_config(_alembic_config()).get_current_head() or ""


def knows(revision: str) -> bool:
    """Return whether a ledger at this revision can be brought to that of this code."""
    try:
        return ScriptDirectory.from_config(_alembic_config()).get_revision(revision) is not None
    except CommandError:
        return False


def check_migrated(url: str) -> str:
    """Return the ledger's revision; raise ConfigurationError unless this code was written for it."""
    engine = open_engine(url)
    file = engine.url.database if engine.dialect.name == "sqlite" else None
    if file and file != ":memory:" and not Path(file).parent.is_dir():
        raise ConfigurationError(
            f"there is no ledger at {file}: run this in the folder of the gateway's .env, or name its data "
            "folder by HILUM_DATA_DIR (a new ledger: `hilum migrate`)"
        )
    with engine.connect() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    engine.dispose()
    if found is not None and not knows(found):
        raise ConfigurationError(_of_newer_version(found))
    if found != expected_revision():
        raise ConfigurationError(
            f"the ledger is at revision {found or 'none'}, this version needs {expected_revision()}: "
            "run `hilum migrate`"
        )
    return found or ""


def _of_newer_version(revision: str) -> str:
    return (
        f"the ledger is at revision {revision}, which this version does not know: start the newer one, or "
        "put back the backup from before the upgrade (`hilum restore`)"
    )


def _alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


@contextmanager
def _migration_lock(engine: Engine) -> Iterator[Connection]:
    """Hold the right to migrate: an advisory lock on PostgreSQL, a lock file beside a SQLite ledger."""
    if engine.dialect.name == "postgresql":
        with engine.begin() as connection:
            # A migration may take its time, and so may waiting for that of another host.
            connection.execute(text("SET LOCAL lock_timeout = 0"))
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text("SELECT pg_advisory_xact_lock(4811105)"))
            yield connection
        return
    database = Path(engine.url.database or ":memory:")
    database.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with FileLock(f"{database}.lock", timeout=60), engine.begin() as connection:
        yield connection


def _refuse_network_file_system(folder: Path) -> None:
    """SQLite's locks and WAL do not hold over a network file system: refuse to start there."""
    there = next(parent for parent in (folder.resolve(), *folder.resolve().parents) if parent.exists())
    mounts = sorted(psutil.disk_partitions(all=True), key=lambda mount: len(mount.mountpoint), reverse=True)
    mount = next((item for item in mounts if there.is_relative_to(item.mountpoint)), None)
    if mount is not None and mount.fstype in _NETWORK_FILE_SYSTEMS:
        raise ConfigurationError(
            f"HILUM_DATA_DIR: {there} is on a network file system ({mount.fstype}), where SQLite loses data: "
            "use a local disk, or PostgreSQL by HILUM_DATABASE_URL"
        )
