"""The ledger saved to one file while everything runs, and put back when nothing does.

SQLite by its online backup, PostgreSQL by its own `pg_dump` and `pg_restore`. The data folder's files are not
in it: what the restored ledger does not know of them is adopted at the next start, and reports that are built
again get the UIDs that they had.
"""

import os
import shutil
import sqlite3
import subprocess
import time
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

from psycopg.conninfo import make_conninfo
from sqlalchemy import MetaData, delete, func, select, update
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DatabaseError, OperationalError

from service.core.audit import Audit
from service.core.errors import ConfigurationError
from service.core.failpoints import failpoint
from service.core.heartbeat import ALIVE_SECONDS, BEAT_SECONDS
from service.core.ledger import Ledger, knows, migrate, now, open_engine
from service.core.purge import finish_erasures
from service.core.repair import differences
from service.core.retention import Retention
from service.core.settings import Settings
from service.core.spool import Spool, sync_folder
from service.core.tables import Heartbeat, SchedulerLease

# Where Debian keeps PostgreSQL's programs.
_POSTGRESQL = Path("/usr/lib/postgresql")


def back_up(settings: Settings, file: Path) -> int:
    """Write the ledger to `file`, which must not exist, for its owner alone; return its size in bytes.

    Raises
    ------
    ConfigurationError
        When `file` is there already, or PostgreSQL's programs are not.
    OSError, SQLAlchemyError
        When ledger or file cannot be used.
    """
    if file.exists():
        raise ConfigurationError(f"{file} is there already: choose another name")
    part = file.with_name(f"{file.name}.part")
    part.unlink(missing_ok=True)
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    url = make_url(settings.sqlalchemy_url)
    try:
        if url.get_backend_name() == "sqlite":
            _copy_sqlite(Path(str(url.database)), part)
            with closing(sqlite3.connect(part)) as copy:
                # One file, that is read where nothing can be written too.
                copy.execute("PRAGMA journal_mode=DELETE")
        else:
            what = ("--format=custom", "--no-owner", "--no-privileges", f"--file={part}")
            _run("pg_dump", *what, f"--dbname={_connection(url)}", password=url.password)
        failpoint("backup.written")
        with part.open("rb") as stream:
            os.fsync(stream.fileno())
        part.rename(file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(file.absolute().parent)
    return file.stat().st_size


def restore(settings: Settings, file: Path, by: str) -> str:
    """Put the ledger of `file` in the place of the present one, and return its revision then.

    `by` is who asked for it.

    Raises
    ------
    ConfigurationError
        When processes run, or the file is no ledger, is damaged, or was made by a newer version.
    OSError, SQLAlchemyError
        When ledger or file cannot be used; to run it again is safe.
    """
    url = make_url(settings.sqlalchemy_url)
    on_sqlite = url.get_backend_name() == "sqlite"
    if not file.exists():
        raise ConfigurationError(f"{file} does not exist")
    _require_known(_revision_in_sqlite(file) if on_sqlite else _revision_in_dump(file), file)
    _require_silence(settings)
    if on_sqlite:
        target = Path(str(url.database))
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT, 0o600))
        _copy_sqlite(file, target)
    else:
        _drop_all(url)
        failpoint("restore.dropped")
        how = ("--exit-on-error", "--single-transaction", "--no-owner", "--no-privileges")
        _run("pg_restore", *how, f"--dbname={_connection(url)}", str(file), password=url.password)
    failpoint("restore.copied")
    return after_restore(settings, by)


def after_restore(settings: Settings, by: str) -> str:
    """Bring a ledger that was put back to this version, and to what happened since; return its revision.

    What was erased since is erased again, and what retention removed since is not looked for.

    Raises
    ------
    ConfigurationError
        When processes run.
    """
    _require_silence(settings)
    revision = migrate(settings.sqlalchemy_url)
    spool = Spool(settings.data_dir)
    spool.make()
    audit = Audit(settings, "restore")
    audit.restored(by)
    with closing(Ledger(settings.sqlalchemy_url)) as ledger:
        finish_erasures(ledger, spool, audit)
        missing = set().union(*(gone for _, gone in differences(ledger, spool)))
        Retention(ledger, spool, settings).forget_removed(missing)
        with ledger.write() as session:
            session.execute(delete(Heartbeat))
            session.execute(update(SchedulerLease).values(owner=None, until=None))
    return revision


def _copy_sqlite(source: Path, target: Path) -> None:
    """Copy a database as it is at one moment, also while others write it; all of it or nothing."""
    # Opened for reading alone: a name that is wrong must not make an empty database.
    with (
        closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)) as read,
        closing(sqlite3.connect(target, timeout=20)) as written,
    ):
        read.backup(written)


def _revision_in_sqlite(file: Path) -> str | None:
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as read:
            if read.execute("PRAGMA quick_check").fetchone() != ("ok",):
                raise ConfigurationError(f"{file} is damaged")
            found = read.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.DatabaseError:
        raise ConfigurationError(f"{file} is no ledger that `hilum backup` made of SQLite") from None
    return str(found[0]) if found else None


def _revision_in_dump(file: Path) -> str | None:
    try:
        said = _run("pg_restore", "--data-only", "--table=alembic_version", "--file=-", str(file))
    except ConfigurationError as fault:
        raise ConfigurationError(
            f"{file} is no ledger that `hilum backup` made of PostgreSQL ({fault})"
        ) from None
    lines = iter(said.splitlines())
    return next((next(lines, "") for line in lines if line.startswith("COPY ")), None)


def _require_known(revision: str | None, file: Path) -> None:
    """Stop unless this version can bring the ledger in `file` to its own revision."""
    if not revision or not knows(revision):
        raise ConfigurationError(
            f"{file} is at revision {revision or 'none'}, which this version does not know: it was made by a "
            "newer version, and that one can restore it"
        )


def _require_silence(settings: Settings) -> None:
    """Stop when any process of the gateway writes the present ledger, which it does every few seconds."""
    first = _newest_heartbeat(settings)
    end = time.monotonic() + 2 * BEAT_SECONDS
    while first is not None and first > now() - timedelta(seconds=ALIVE_SECONDS):
        if _newest_heartbeat(settings) != first:
            raise ConfigurationError("Hilum runs: stop every role first, the listener before the others")
        if time.monotonic() > end:
            return
        time.sleep(0.2)


def _newest_heartbeat(settings: Settings) -> datetime | None:
    url = make_url(settings.sqlalchemy_url)
    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).exists():
        return None
    try:
        with closing(Ledger(settings.sqlalchemy_url)) as ledger, ledger.read() as session:
            return session.scalar(select(func.max(Heartbeat.at)))
    except DatabaseError as fault:
        if isinstance(fault, OperationalError) and url.get_backend_name() != "sqlite":
            raise
        return None  # an empty or a broken ledger: nobody writes it


def _drop_all(url: URL) -> None:
    """Empty the database: what a newer version added is in no older dump."""
    engine = open_engine(url.render_as_string(hide_password=False), bounded=False)
    try:
        with engine.begin() as connection:
            there = MetaData()
            there.reflect(connection)
            there.drop_all(connection)
    finally:
        engine.dispose()


def _run(program: str, *arguments: str, password: str | None = None) -> str:
    """Run one of PostgreSQL's programs and return what it printed.

    Raises
    ------
    ConfigurationError
        When it is not installed, or with what it says is wrong.
    """
    places = [*os.environ.get("PATH", "").split(os.pathsep), *_newest_first(_POSTGRESQL)]
    found = shutil.which(program, path=os.pathsep.join(places))
    if found is None:
        raise ConfigurationError(
            f"{program} is not installed here: run it where PostgreSQL is (deploy/runbook.md, Saving)"
        )
    environment = {**os.environ, **({"PGPASSWORD": password} if password else {})}
    done = subprocess.run(  # noqa: S603
        [found, *arguments], env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise ConfigurationError(f"{program}: {lines[0] if lines else f'exit code {done.returncode}'}")
    return done.stdout.decode()


def _newest_first(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.glob("*/bin"), key=lambda path: -float(path.parent.name))]


def _connection(url: URL) -> str:
    """Return libpq's connection string, without the password, which other users of the machine could see."""
    parts = url.translate_connect_args(username="user", database="dbname")
    parts.pop("password", None)
    return make_conninfo(**{**parts, **url.query})
