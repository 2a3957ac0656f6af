"""Hours, rate and transfer syntaxes of a destination, on the way to a storage SCP."""

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydicom.uid import ImplicitVRLittleEndian, JPEGBaseline8Bit, SecondaryCaptureImageStorage
from sqlalchemy import select, update

from service.api import status
from service.api.app import create_app
from service.core.checks import examine
from service.core.errors import ConfigurationError, NotAccepted
from service.core.leases import DELIVER, count_ready, oldest_ready_seconds
from service.core.ledger import now
from service.core.pauses import end_all
from service.core.settings import load
from service.core.states import DeliveryState, Kind
from service.core.tables import Outbox, Pause
from tests.integration.test_delivery import Scp, reported, rows, study
from tests.ledgers import migrated
from worker.context import Context
from worker.peer import Sendable
from worker.scu import DimsePeer
from worker.tasks import deliver

Opened = Callable[..., Context]


@pytest.fixture(params=["sqlite"])
def opened(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Opened]:
    """Open a worker's context in UTC with one destination; a second time with other settings of it."""
    ledger = {} if request.param == "sqlite" else {"database_url": request.getfixturevalue("postgresql")}
    contexts: list[Context] = []

    def at(port: int, **options: Any) -> Context:
        made = load(
            data_dir=tmp_path,
            timezone="UTC",
            **ledger,
            destinations=[{"name": "PACS", "url": f"dicom://PACS@127.0.0.1:{port}", **options}],
        )
        if contexts:
            contexts[0].settings = made
            end_all(contexts[0].ledger)  # as a worker does that takes up another configuration
        else:
            migrated(made.sqlalchemy_url)
            contexts.append(Context.open(made))
        return contexts[0]

    yield at
    for context in contexts:
        context.ledger.close()


def hours(begin: timedelta, end: timedelta) -> str:
    """Return hours from one time to another, counted from now."""
    moment = now()
    return "-".join(f"{moment + away:%H:%M}" for away in (begin, end))


def states(context: Context) -> list[str]:
    return [row.state for row in rows(context)]


def pause(context: Context) -> Pause:
    with context.ledger.read() as session:
        return session.scalars(select(Pause)).one()


def waited(context: Context, until: datetime | None = None) -> None:
    """Let the pause have ended, just now when not told when."""
    with context.ledger.write() as session:
        session.execute(update(Pause).values(until=until or now()))


def test_outside_its_hours_a_destination_gets_nothing_and_what_waits_says_until_when(
    opened: Opened,
) -> None:
    scp = Scp()
    with scp.serving() as port:
        window = hours(timedelta(hours=2), timedelta(hours=4))
        context = opened(port, hours=window)
        reported(context, count=2)
        for _ in range(3):
            deliver.run(context)
        assert (scp.received, scp.associations) == ([], 0)
        assert states(context) == [DeliveryState.PENDING] * 2
        assert {row.attempts for row in rows(context)} == {0}
        begin = (now() + timedelta(hours=2)).replace(second=0, microsecond=0)
        assert abs(pause(context).until - begin) < timedelta(minutes=1.5)
        with context.ledger.read() as session:
            assert (count_ready(session, DELIVER), oldest_ready_seconds(session, DELIVER)) == (0, 0.0)
            shown = status.study(session, study(context).study_instance_uid)
        assert shown is not None
        assert {item.waits_for for item in shown.deliveries} == {f"its hours, {window}"}
        assert {item.waits_until for item in shown.deliveries} == {pause(context).until}
        assert {item.last_error for item in shown.deliveries} == {None}
        assert study(context).attention is None
        (check,) = [item for item in examine(context.settings) if item.name == "destination PACS"]
        assert f"because of its hours, {window}" in check.seen
        # The site lets it begin at once, and it does.
        context = opened(port, hours=hours(timedelta(minutes=-5), timedelta(hours=1)))
        deliver.run(context)
    assert states(context) == [DeliveryState.DELIVERED] * 2


@pytest.mark.parametrize("opened", ["sqlite", "postgresql"], indirect=True)
def test_when_its_hours_begin_everything_goes_and_none_of_it_is_late(opened: Opened) -> None:
    scp = Scp()
    with scp.serving() as port:
        context = opened(port, hours=hours(timedelta(hours=2), timedelta(hours=4)))
        reported(context)
        deliver.run(context)
        with context.ledger.write() as session:
            session.execute(update(Outbox).values(ready_at=now() - timedelta(hours=12)))
        waited(context, now() - timedelta(seconds=5))
        with context.ledger.read() as session:
            assert 4 < oldest_ready_seconds(session, DELIVER) < 30
        context = opened(port, hours=hours(timedelta(minutes=-5), timedelta(hours=1)))
        deliver.run(context)
    assert states(context) == [DeliveryState.DELIVERED]


@pytest.mark.parametrize("opened", ["sqlite", "postgresql"], indirect=True)
def test_a_rate_lets_a_tenth_of_it_go_at_a_time_and_the_rest_wait(opened: Opened) -> None:
    scp = Scp()
    with scp.serving() as port:
        context = opened(port, rate=30)
        reported(context, count=7)
        for sent in (3, 6, 7):
            began = now()
            for _ in range(3):  # other workers
                deliver.run(context)
            assert len(scp.received) == sent
            length = 6 if sent < 7 else 2
            assert abs((pause(context).until - began).total_seconds() - length) < 2
            assert pause(context).why == "its rate, 30 objects a minute"
            waited(context)
    assert scp.associations == 3
    assert states(context) == [DeliveryState.DELIVERED] * 7


def test_a_destination_that_is_slow_by_rate_keeps_nobody_else_waiting(opened: Opened, tmp_path: Path) -> None:
    slow, quick = Scp(), Scp()
    with slow.serving() as one, quick.serving() as two:
        context = opened(one)
        entries = [
            {"name": "SLOW", "url": f"dicom://PACS@127.0.0.1:{one}", "rate": 1},
            {"name": "PACS", "url": f"dicom://PACS@127.0.0.1:{two}"},
        ]
        context.settings = load(data_dir=tmp_path, destinations=entries)
        reported(context, count=4)
        with context.ledger.write() as session:
            first = session.scalars(select(Outbox).order_by(Outbox.id).limit(2)).all()
            for row in first:
                row.destination = "SLOW"
        for _ in range(3):
            deliver.run(context)
    assert (len(slow.received), len(quick.received)) == (1, 2)


def test_what_is_offered_is_what_the_site_says(opened: Opened) -> None:
    scp = Scp()
    with scp.serving(syntax=ImplicitVRLittleEndian) as port:
        context = opened(port, transfer_syntaxes=["ImplicitVRLittleEndian"])
        reported(context)
        deliver.run(context)
    assert scp.proposed[0][1] == (ImplicitVRLittleEndian,)
    assert states(context) == [DeliveryState.DELIVERED]


def test_an_accepted_syntax_that_is_not_to_be_offered_is_not_used(opened: Opened) -> None:
    scp = Scp()
    with scp.serving(syntax=ImplicitVRLittleEndian) as port:
        context = opened(port, transfer_syntaxes=["ExplicitVRLittleEndian"])
        reported(context)
        deliver.run(context)
    assert scp.received == []
    assert "does not accept this SOP class in our transfer syntax" in str(rows(context)[0].last_error)


def test_without_jpeg_heat_maps_go_uncompressed_at_once(opened: Opened) -> None:
    scp = Scp()
    with scp.serving() as port:
        context = opened(port, transfer_syntaxes=["ExplicitVRLittleEndian"])
        (destination,) = context.settings.destinations
        kinds = {kind for kind in Kind if destination.wants(kind, "present")}
        assert kinds == {Kind.SR, Kind.PLAIN_HEATMAP}
        # What was built before the site said so is not offered as JPEG either: it goes in its other form.
        old = Sendable(Path("film"), SecondaryCaptureImageStorage, JPEGBaseline8Bit)
        with pytest.raises(NotAccepted):
            DimsePeer(destination, "HILUM", [old])
        assert SecondaryCaptureImageStorage not in dict(scp.proposed)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"hours": "night"}, 'hours are from a time to a time of the 24-hour clock: "19:00-07:00"'),
        ({"hours": "07:00-07:00"}, "leave hours out for the whole day"),
        ({"rate": 0}, "greater than or equal to 1"),
        ({"rate": "many"}, "valid integer"),
        ({"transfer_syntaxes": ["JPEGBaseline8Bit"]}, "name ExplicitVRLittleEndian or Implicit"),
        ({"transfer_syntaxes": ["1.2.840.10008.1.2"]}, "'ExplicitVRLittleEndian', 'Implicit"),
        (
            {"url": "https://h/dicom-web", "transfer_syntaxes": ["ImplicitVRLittleEndian"]},
            "STOW-RS knows no other",
        ),
    ],
)
def test_what_cannot_be_meant_stops_the_start(options: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigurationError) as stopped:
        load(destinations=[{"name": "PACS", "url": "dicom://PACS@h:104", **options}])
    assert fault in str(stopped.value)


def test_the_pages_say_that_a_destination_waits_for_its_hours(opened: Opened) -> None:
    with Scp().serving() as port:
        window = hours(timedelta(hours=2), timedelta(hours=4))
        context = opened(port, hours=window)
        uid = reported(context)
        deliver.run(context)
    client = TestClient(create_app(context.settings, context.ledger), base_url="http://127.0.0.1")
    until = f"{pause(context).until:%Y-%m-%d %H:%M}"
    for page in ("/system", f"/studies/{uid}"):
        said = client.get(page).text
        assert f"waits for its hours, {window}, until {until}" in said
