"""Who writes waits for the others, for a bounded time, and who gave up is in nobody's way."""

import threading
import time
from pathlib import Path

import pytest
from sqlalchemy.exc import TimeoutError

from service.core import ledger as ledger_module
from service.core import line as line_module
from service.core.ledger import Ledger
from service.core.line import Line, _Waiting
from tests.ledgers import migrated


class _Interruption(threading.Event):
    def wait(self, _timeout: float | None = None) -> bool:
        raise KeyboardInterrupt


class _Interrupted(_Waiting):
    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor)
        self._came = _Interruption()


def test_one_at_a_time_and_everyone_in_the_end(tmp_path: Path) -> None:
    inside, most, done = [0], [0], []

    def pass_through(number: int) -> None:
        line = Line(tmp_path / "line")
        for _ in range(20):
            assert line.enter(30)
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.0002)
            inside[0] -= 1
            line.leave()
        line.close()
        done.append(number)

    threads = [threading.Thread(target=pass_through, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (most, sorted(done)) == ([1], list(range(8)))


def test_the_wait_has_an_end_and_who_left_keeps_nobody_out(tmp_path: Path) -> None:
    holder, impatient, third = (Line(tmp_path / "line") for _ in range(3))
    assert holder.enter(1)
    assert not impatient.enter(0.05)
    assert not impatient.enter(0.05)
    holder.leave()
    assert third.enter(10)
    third.leave()
    assert impatient.enter(10)
    impatient.leave()
    assert holder.enter(10)
    for line in (holder, impatient, third):
        line.close()


def test_an_interrupted_wait_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holder, interrupted = Line(tmp_path / "line"), Line(tmp_path / "line")
    assert holder.enter(1)
    monkeypatch.setattr(line_module, "_Waiting", _Interrupted)
    with pytest.raises(KeyboardInterrupt):
        interrupted.enter(10)
    monkeypatch.undo()
    holder.leave()
    assert holder.enter(10)
    holder.leave()
    assert interrupted.enter(10)
    for line in (holder, interrupted):
        line.close()


def test_where_no_file_can_be_opened_nobody_waits(tmp_path: Path) -> None:
    line = Line(tmp_path / "missing" / "line")
    assert line.enter(0.0)
    line.leave()
    line.close()


def test_a_ledger_that_another_process_writes_to_for_too_long_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    migrated(url)
    monkeypatch.setattr(ledger_module, "_BUSY_SECONDS", 0.05)
    mine, other = Ledger(url), Line(tmp_path / "ledger.sqlite3.line")
    assert other.enter(1)
    with pytest.raises(TimeoutError, match="another process"), mine.write():
        pass
    other.leave()
    with mine.write():
        pass
    mine.close()
    other.close()
