"""The chain of the audit trail: whole whatever happens, broken by whatever is done to it."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from service.core import audit_trail
from service.core.audit_trail import Place, Trail, TrailBusy, locked


def message(number: int) -> bytes:
    return b"<AuditMessage>%d</AuditMessage>" % number


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "audit"


@pytest.fixture
def trail(folder: Path) -> Trail:
    """A trail of six records."""
    made = Trail(folder)
    made.append([message(1)])
    made.append([message(2), message(3), message(4)])
    made.append([message(5), message(6)])
    return made


def log(folder: Path) -> Path:
    (found,) = folder.glob("*.log")
    return found


def rewrite(folder: Path, change: Callable[[list[bytes]], Any]) -> None:
    lines = log(folder).read_bytes().splitlines(keepends=True)
    change(lines)
    log(folder).write_bytes(b"".join(lines))


def test_a_trail_is_whole_and_its_owner_s_alone(trail: Trail, folder: Path) -> None:
    found = trail.verify()
    assert (found.records, found.breaks) == (6, ())
    assert [record.message for record in trail.after(Place())] == [message(number) for number in range(1, 7)]
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_a_reader_goes_on_where_it_was(trail: Trail) -> None:
    third = list(trail.after(Place()))[2]
    place = Place(third.number, third.sha256, third.file, third.end)
    assert [record.number for record in trail.after(place)] == [4, 5, 6]
    trail.note("sent", place)
    assert trail.place("sent") == place


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: lines.__setitem__(2, lines[2].replace(b">3<", b">x<")), "record 3 was changed"),
        (lambda lines: lines.__setitem__(5, lines[5].replace(b">6<", b">x<")), "record 6"),
        (lambda lines: lines.pop(3), "record 4 is missing"),
        (lambda lines: lines.__delitem__(slice(1, 3)), "records 2 to 3 are missing"),
        (lambda lines: lines.pop(0), "record 1 is missing"),
        (lambda lines: lines.pop(), "record 6 is missing at the end"),
        (lambda lines: lines.__delitem__(slice(3, 6)), "records 4 to 6 are missing at the end"),
        (lambda lines: lines.insert(2, lines[1]), "record 2 is there again"),
        (lambda lines: lines.insert(3, lines.pop(2)), "record 3 is missing"),
        (lambda lines: lines.insert(3, b"something else\n"), "line 4 is no record"),
        (lambda lines: lines.__setitem__(5, lines[5][:-10]), "record 6 is missing at the end"),
    ],
    ids=[
        "changed",
        "last changed",
        "removed",
        "two removed",
        "first",
        "end",
        "half",
        "doubled",
        "moved",
        "put in",
        "cut",
    ],
)
def test_whatever_is_done_to_a_trail_is_told_with_its_place(
    trail: Trail, folder: Path, change: Callable[[list[bytes]], Any], said: str
) -> None:
    rewrite(folder, change)
    breaks = trail.verify().breaks
    assert any(said in found for found in breaks), breaks
    # It stays so when the gateway goes on writing.
    trail.append([message(7)])
    trail.append([message(8)])
    assert trail.verify().breaks


def test_a_trail_that_is_gone_or_has_lost_its_head_is_told(trail: Trail, folder: Path) -> None:
    (folder / "head").unlink()
    assert "`head` is missing" in trail.verify().breaks[0]
    trail.append([message(7)])
    assert trail.verify().breaks == ()
    log(folder).unlink()
    assert "records 1 to 7 are missing at the end" in trail.verify().breaks[0]


def test_the_days_are_files_of_one_chain(trail: Trail, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        day = 0

        @classmethod
        def now(cls, zone: Any) -> datetime:
            return datetime(2099, 1, cls.day, tzinfo=zone)

    monkeypatch.setattr(audit_trail, "datetime", Clock)
    for day in (2, 3, 1, 4):  # once the clock goes back
        Clock.day = day
        trail.append([message(100 + day)])
    files = sorted(path.name for path in folder.glob("*.log"))
    assert files[1:] == ["2099-01-02.log", "2099-01-03.log", "2099-01-04.log"]
    assert (trail.verify().records, trail.verify().breaks) == (10, ())
    assert [record.number for record in trail.after(Place())] == list(range(1, 11))
    (folder / "2099-01-03.log").unlink()
    assert trail.verify().breaks == ("records 8 to 9 are missing before 2099-01-04.log line 1",)


@pytest.mark.parametrize("left", [b"7 ", b"7 abc <AuditMess", b"x"])
def test_what_a_crash_left_of_a_record_is_taken_away(trail: Trail, folder: Path, left: bytes) -> None:
    with log(folder).open("ab") as stream:
        stream.write(left)
    assert trail.verify().breaks == ()
    assert len(list(trail.after(Place()))) == 6
    trail.append([message(7)])
    assert (trail.verify().records, trail.verify().breaks) == (7, ())


def test_a_crash_before_the_head_is_noted_loses_nothing(trail: Trail, folder: Path) -> None:
    before = (folder / "head").read_bytes()
    trail.append([message(7), message(8)])
    (folder / "head").write_bytes(before)
    assert trail.verify().breaks == ()
    trail.append([message(9)])
    assert (trail.verify().records, trail.verify().breaks) == (9, ())


def test_a_full_disk_leaves_the_trail_as_it_was(
    trail: Trail, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = log(folder).read_bytes()
    with monkeypatch.context() as broken:
        write = os.write
        broken.setattr(os, "write", lambda descriptor, rest: write(descriptor, rest[:20]) and fail())
        with pytest.raises(OSError, match="No space"):
            trail.append([message(7)])
    assert log(folder).read_bytes() == content
    trail.append([message(7)])
    assert (trail.verify().records, trail.verify().breaks) == (7, ())


def fail() -> int:
    raise OSError(28, "No space left on device")


def _write(folder: Path, first: int) -> None:
    for number in range(first, first + 25):
        Trail(folder).append([message(number)])


def test_processes_and_threads_write_one_chain(folder: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_write, args=(folder, 100 * number)) for number in range(1, 3)]
    threads = [threading.Thread(target=_write, args=(folder, 1000 * number)) for number in range(1, 4)]
    for worker in (*processes, *threads):
        worker.start()
    for worker in (*processes, *threads):
        worker.join()
    found = Trail(folder).verify()
    assert (found.records, found.breaks) == (125, ())


def _hold(path: Path, held: Any) -> None:
    with locked(path):
        held.set()
        time.sleep(60)


def test_a_process_that_is_stopped_with_the_lock_stops_nobody(
    trail: Trail, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_trail, "_LOCK_SECONDS", 0.2)
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    holder = context.Process(target=_hold, args=(folder / "lock", held))
    holder.start()
    assert held.wait(30)
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGSTOP)
    try:
        with pytest.raises(TrailBusy):
            trail.append([message(7)])
    finally:
        holder.kill()
        holder.join()
    trail.append([message(7)])
    assert trail.verify().records == 7
