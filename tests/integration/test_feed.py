"""The stream of events: what happens is told at once, once, to everybody, and to who comes back."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import delete, select
from sqlalchemy.exc import OperationalError

from service.api import feed as feeds
from service.core.ledger import Ledger, now, record_event
from service.core.tables import Event, Study
from tests.faults.web import Web, web
from tests.servers import eventually
from tests.tokens import bearer, entries


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Web]:
    with web(tmp_path) as made:
        with made.ledger.write() as session:
            session.add(Study(study_instance_uid="1.2.3", state="receiving", received_at=now()))
        yield made


def happen(ledger: Ledger, kind: str, detail: str = "") -> None:
    with ledger.write() as session:
        record_event(session, session.scalars(select(Study)).one(), kind, detail)


class Heard:
    """What a client of the stream was sent: `ids` and the JSON of `told`, in their order."""

    def __init__(self, answer: httpx.Response) -> None:
        self.status = answer.status_code
        self.headers = answer.headers
        self.ids: list[int] = []
        self.told: list[dict[str, Any]] = []
        self.resets = 0
        self.ended = False

    def read(self, answer: httpx.Response) -> None:
        name = ""
        try:
            for line in answer.iter_lines():
                field, _, value = line.partition(": ")
                if field == "id":
                    self.ids.append(int(value))
                elif field == "event":
                    name = value
                elif field == "data":
                    self.resets += name == "reset"
                    if name != "reset":
                        self.told.append(json.loads(value))
                    name = ""
            self.ended = True
        except httpx.TransportError:
            return

    @property
    def kinds(self) -> list[str]:
        return [item["kind"] for item in self.told]


@contextmanager
def listening(url: str, rows: bool = False, **headers: str) -> Iterator[Heard]:
    """Listen from a thread, from before the block begins."""
    client = httpx.Client(timeout=30)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    with client.stream("GET", f"{url}/api/events", params={"rows": rows}, headers=given) as answer:
        heard = Heard(answer)
        thread = threading.Thread(target=heard.read, args=(answer,), daemon=True)
        thread.start()
        yield heard
        # A socket that is closed here wakes nobody who reads from it.
        with suppress(OSError):
            answer.extensions["network_stream"].get_extra_info("socket").shutdown(socket.SHUT_RDWR)
    client.close()
    thread.join(5)
    assert not thread.is_alive()


def settle(web_: Web, count: int) -> None:
    """Wait until so many streams listen and the ledger was looked at for them."""
    feed = web_.feed
    eventually(lambda: len(feed._listeners) == count and (not count or feed._floor is not None))


def test_what_happens_is_told_to_everybody_with_the_study_as_it_is_then(running: Web) -> None:
    with listening(running.url) as one, listening(running.url, rows=True) as other:
        settle(running, 2)
        happen(running.ledger, "reported", "revision 1")
        eventually(lambda: one.told and other.told)
    assert one.headers["Content-Type"].startswith("text/event-stream")
    (told,) = one.told
    assert (told["kind"], told["detail"]) == ("reported", "revision 1")
    assert told["study"]["study_instance_uid"] == "1.2.3"
    assert "row" not in told
    assert '<tr data-uid="1.2.3"' in other.told[0]["row"]


def test_the_ledger_is_asked_once_for_all_who_listen_and_not_for_nobody(
    running: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    look = feeds.Feed._look
    monkeypatch.setattr(feeds.Feed, "_look", lambda self: looks.append(len(self._listeners)) or look(self))
    with listening(running.url), listening(running.url), listening(running.url):
        settle(running, 3)
        before, began = len(looks), time.monotonic()
        eventually(lambda: len(looks) >= before + 4)
        assert time.monotonic() - began > 3 * feeds.LOOK_SECONDS
    settle(running, 0)
    after = len(looks)
    threading.Event().wait(3 * feeds.LOOK_SECONDS)
    assert len(looks) <= after + 1


def test_who_comes_back_is_told_what_was_missed_and_nothing_twice(running: Web) -> None:
    with listening(running.url) as first:
        settle(running, 1)
        happen(running.ledger, "one")
        eventually(lambda: first.ids)
    for kind in ("two", "three"):
        happen(running.ledger, kind)
    with listening(running.url, Last_Event_ID=str(first.ids[-1])) as second:
        settle(running, 1)
        eventually(lambda: len(second.told) == 2)
        happen(running.ledger, "four")
        eventually(lambda: len(second.told) == 3)
    assert second.kinds == ["two", "three", "four"]


def test_what_happens_while_somebody_comes_back_is_told_once(
    running: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    happen(running.ledger, "one")
    since = feeds.Feed._since

    def slowly(self: feeds.Feed, last_event_id: int) -> object:
        settle(running, 1)
        happen(running.ledger, "two")
        eventually(lambda: any(listener.queue.qsize() for listener in self._listeners))
        return since(self, last_event_id)

    monkeypatch.setattr(feeds.Feed, "_since", slowly)
    with listening(running.url, Last_Event_ID="1") as heard:
        eventually(lambda: heard.told)
        happen(running.ledger, "three")
        eventually(lambda: "three" in heard.kinds)
    assert heard.kinds == ["two", "three"]


def test_who_missed_too_much_or_knows_another_ledger_is_told_to_look_again(
    running: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "_AT_A_TIME", 2)
    for kind in ("one", "two", "three", "four"):
        happen(running.ledger, kind)
    for last in ("1", "999"):
        with listening(running.url, Last_Event_ID=last) as heard:
            eventually(lambda heard=heard: heard.resets)
            assert heard.told == []


def test_events_whose_ids_are_given_again_after_an_erasure_are_told(running: Web) -> None:
    for _ in range(5):
        happen(running.ledger, "before")
    with listening(running.url) as heard:
        settle(running, 1)
        with running.ledger.write() as session:
            session.execute(delete(Event))
        eventually(lambda: heard.resets)
        happen(running.ledger, "after")
        eventually(lambda: heard.kinds == ["after"])


def test_an_event_that_is_committed_after_a_later_one_is_told(tmp_path: Path, postgresql: str) -> None:
    with web(tmp_path, database_url=postgresql) as running:
        with running.ledger.write() as session:
            session.add(Study(study_instance_uid="1.2.3", state="receiving", received_at=now()))
        with listening(running.url) as heard:
            settle(running, 1)
            with running.ledger.write() as slow:
                record_event(slow, slow.scalars(select(Study)).one(), "slow")
                slow.flush()
                happen(running.ledger, "quick")
                eventually(lambda: heard.kinds == ["quick"])
            eventually(lambda: heard.kinds == ["quick", "slow"])


def test_a_ledger_that_is_away_is_waited_for(running: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(running.url) as heard:
        settle(running, 1)
        with monkeypatch.context() as broken:

            def fail(*_: object) -> None:
                raise OperationalError("SELECT", {}, Exception("away"))

            broken.setattr(feeds.Feed, "_look", fail)
            threading.Event().wait(2 * feeds.LOOK_SECONDS)
        happen(running.ledger, "back")
        eventually(lambda: heard.kinds == ["back"])


def test_one_stream_too_many_is_told_to_wait(running: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "STREAMS_PER_CLIENT", 1)
    with listening(running.url) as heard:
        settle(running, 1)
        refused = httpx.get(f"{running.url}/api/events", timeout=5)
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "30")
        assert heard.status == 200
    settle(running, 0)
    with listening(running.url) as heard:
        assert heard.status == 200


def test_a_stream_ends_in_time_so_that_who_was_signed_out_hears_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "STREAM_SECONDS", 0.3)
    monkeypatch.setattr(feeds, "_STILL_HERE_SECONDS", 0.1)
    with web(tmp_path, api_tokens=entries()) as running:
        assert httpx.get(f"{running.url}/api/events").status_code == 401
        with listening(running.url, **bearer("viewer")) as heard:
            eventually(lambda: heard.ended)


def test_a_server_that_stops_does_not_wait_for_its_streams(tmp_path: Path) -> None:
    with web(tmp_path) as running:
        held = listening(running.url)
        heard = held.__enter__()
        settle(running, 1)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    eventually(lambda: heard.ended)
    held.__exit__(None, None, None)
