"""What acceptance measures of the machine itself: clocks, disk, processor."""

import os
import statistics
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from model.predict import Predictor
from model.prediction import Prediction
from model.weights import WeightsError, default_weights
from service.core.checks import Check
from service.core.embedded import broker_url
from service.core.enqueue import redis_url
from service.core.errors import ConfigurationError
from service.core.ledger import Ledger
from service.core.models import reporting
from service.core.settings import Settings
from service.core.spool import Spool

_MOST_APART_SECONDS = 1.0
_WRITTEN = 64 << 20
_SYNCED = 50
# A film is 10 MB and two syncs; slower than this a listener takes seconds for each.
_SLOW_BYTES_A_SECOND, _SLOW_SYNC_SECONDS = 30e6, 0.1


def clocks(settings: Settings) -> Iterator[Check]:
    """Compare this clock with those of Redis and of PostgreSQL, which may be other hosts'."""
    mend = "Let NTP set the clock of every host: leases, waits and the times in reports go by it"
    try:
        with closing(Redis.from_url(redis_url(broker_url(settings)), socket_timeout=3)) as redis:
            seconds, microseconds = redis.time()
        yield _apart("clock of Redis", seconds + microseconds / 1e6, mend)
    except (RedisError, ConfigurationError, OSError):
        pass  # said by the check of Redis
    try:
        with closing(Ledger(settings.sqlalchemy_url)) as ledger, ledger.read() as session:
            if session.get_bind().dialect.name == "postgresql":
                there: datetime = session.scalars(select(func.clock_timestamp())).one()
                yield _apart("clock of PostgreSQL", there.timestamp(), mend)
    except (SQLAlchemyError, ConfigurationError):
        pass  # said by the check of the ledger


def _apart(name: str, there: float, mend: str) -> Check:
    apart = there - datetime.now(UTC).timestamp()
    return Check(name, abs(apart) < _MOST_APART_SECONDS, f"{apart:+.2f} s from this one", mend)


def disk(settings: Settings) -> Check:
    """Measure the data folder: how fast it takes a large file, and how long a small one takes to be safe."""
    spool = Spool(settings.data_dir)
    try:
        spool.make()
        began = time.monotonic()
        _write(spool, os.urandom(_WRITTEN))
        speed = _WRITTEN / (time.monotonic() - began)
        waits = []
        for _ in range(_SYNCED):
            began = time.monotonic()
            _write(spool, b"x" * 4096)
            waits.append(time.monotonic() - began)
    except OSError as fault:
        return Check("disk", False, f"the data folder can't be written ({fault.strerror})", "See data folder")
    sync = statistics.median(waits)
    slow = speed < _SLOW_BYTES_A_SECOND or sync > _SLOW_SYNC_SECONDS
    seen = f"{speed / 1e6:,.0f} MB/s written and synced; a small file is safe after {1000 * sync:.1f} ms"
    return Check("disk", True, seen, "Put the data folder on a local solid-state disk", warns=slow)


def _write(spool: Spool, content: bytes) -> None:
    path = spool.incoming / f"probe-{uuid.uuid4().hex}"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
        path.unlink()


def weights(settings: Settings) -> Path:
    """Return the weights with which the gateway reports: of what was promoted, else those of the settings."""
    with suppress(ConfigurationError, SQLAlchemyError), closing(Ledger(settings.sqlalchemy_url)) as ledger:
        with ledger.read() as session:
            model = reporting(session)
        if model is not None and model.path:
            return settings.data_dir / model.path
    return settings.weights or default_weights()


def processor(settings: Settings, film: npt.NDArray[np.uint16]) -> tuple[Check, Prediction | None]:
    """Analyse `film`, (rows, columns), here as a worker would; return what it took, and the prediction."""
    try:
        predictor = Predictor.load(weights(settings), fastest=settings.engine == "auto")
    except WeightsError as fault:
        return Check("processor", False, str(fault), "Check HILUM_WEIGHTS and `hilum model list`"), None
    predictor.predict([film])
    began = time.monotonic()
    (prediction,) = predictor.predict([film])
    seconds = time.monotonic() - began
    device = predictor.device
    if device == "CPU":
        device += f", {len(os.sched_getaffinity(0))} core(s)"
    seen = f"{device}, {predictor.engine}: one film in {1000 * seconds:.0f} ms, decoding and reports aside"
    return Check("processor", True, seen), prediction
