"""Statements that the driver executes: the same rows and the same exceptions as through SQLAlchemy."""

from datetime import UTC, datetime
from typing import Any, cast

import pytest
from sqlalchemy import Table, bindparam, insert, select, text
from sqlalchemy.exc import IntegrityError, InvalidRequestError, OperationalError

from service.core.ledger import Ledger, now, record_event, write_event
from service.core.prepared import Prepared
from service.core.states import StudyState
from service.core.tables import Event, Instance, Study

_COLUMNS = ("study_instance_uid", "state", "received_at", "due_at")
_NEW = Prepared.insert(Study, *_COLUMNS)


def _values(uid: str = "1.2.3") -> dict[str, Any]:
    moment = datetime(2026, 5, 1, 8, 30, 15, 250_000, tzinfo=UTC)
    return {"study_instance_uid": uid, "state": StudyState.RECEIVING, "received_at": moment, "due_at": None}


def test_a_row_is_what_sqlalchemy_would_have_written(ledger: Ledger) -> None:
    with ledger.write_plainly() as writing:
        number = _NEW.scalar(writing.connection, _values() | {"of no column": 1})
        writing.connection.execute(insert(cast(Table, Study.__table__)), _values("1.2.4"))
        both = writing.connection.execute(text("SELECT * FROM study ORDER BY id")).mappings().all()
    assert [row["id"] for row in both] == [number, number + 1]
    ours, theirs = ({**row, "id": 0, "study_instance_uid": ""} for row in both)
    assert ours == theirs
    with ledger.read() as session:
        study = session.get_one(Study, number)
        assert (study.received_at, study.flags, study.revision) == (_values()["received_at"], [], 0)


def test_what_json_holds_is_what_sqlalchemy_would_have_written(ledger: Ledger) -> None:
    instance = {
        **dict.fromkeys(("sop_class_uid", "series_instance_uid", "transfer_syntax_uid", "digest"), "1.2"),
        **dict.fromkeys(("calling_ae_title", "modality", "view_position", "presentation_intent_type"), "X"),
        **{"state": "received", "received_at": now(), "ready_at": now(), "size": 1, "acquired_at": ""},
    }
    new = Prepared.insert(Instance, "study_id", "sop_instance_uid", "says_chest", "decision", *instance)
    with ledger.write_plainly() as writing:
        instance["study_id"] = _NEW.scalar(writing.connection, _values())
        for number, decision in enumerate(({"rule": "é%s", "analyse": True}, None)):
            mine = {"sop_instance_uid": f"1.{number}", "says_chest": True, "decision": decision, **instance}
            new.scalar(writing.connection, mine)
            theirs = mine | {"sop_instance_uid": f"2.{number}"}
            writing.connection.execute(insert(cast(Table, Instance.__table__)), theirs)
    with ledger.read() as session:
        found = session.execute(
            text("SELECT CAST(decision AS TEXT), says_chest, CAST(flags AS TEXT) FROM instance ORDER BY id")
        ).all()
        assert found[0] == found[1]
        assert found[2] == found[3]
        assert session.scalars(select(Instance.decision)).first() == {"rule": "é%s", "analyse": True}


def test_a_statement_without_a_row_gives_none(ledger: Ledger) -> None:
    known = Prepared(select(Study.id).where(Study.study_instance_uid == bindparam("study")))
    with ledger.write_plainly() as writing:
        assert known.scalar(writing.connection, {"study": "1.2.3"}) is None
        assert list(known.rows(writing.connection, {"study": "1.2.3"})) == []


def test_a_fault_is_sqlalchemys_names_no_value_and_leaves_nothing(ledger: Ledger) -> None:
    with ledger.write_plainly() as writing:
        number = _NEW.scalar(writing.connection, _values())
    with pytest.raises(IntegrityError) as raised, ledger.write_plainly() as writing:  # noqa: PT012
        _NEW.scalar(writing.connection, _values("1.2.4"))
        _NEW.scalar(writing.connection, _values("1.2.4"))
    assert "RECEIVING" not in str(raised.value).upper()
    with ledger.write() as session:
        record_event(session, number, "received", "after the fault")
    with ledger.read() as session:
        assert session.scalars(select(Study.study_instance_uid)).all() == ["1.2.3"]
        assert session.scalars(select(Event.detail)).all() == ["after the fault"]


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_commit_that_fails_leaves_no_transaction_behind(ledger: Ledger) -> None:
    with pytest.raises(IntegrityError), ledger.write_plainly() as writing:  # noqa: PT012
        writing.connection.execute(text("PRAGMA defer_foreign_keys = ON"))
        write_event(writing.connection, 9999, "received", "of no study")
    with ledger.write_plainly() as writing:
        _NEW.scalar(writing.connection, _values())
    with ledger.read() as session:
        assert session.scalars(select(Study.study_instance_uid)).all() == ["1.2.3"]
        assert session.scalars(select(Event.id)).all() == []


def test_a_session_is_over_with_its_transaction(ledger: Ledger) -> None:
    with ledger.write() as session:
        pass
    with pytest.raises(InvalidRequestError):
        session.scalars(select(Study.id)).all()
    with ledger.write_plainly() as writing:
        _NEW.scalar(writing.connection, _values())


def test_session_and_statements_are_of_one_transaction(ledger: Ledger) -> None:
    with ledger.write_plainly() as writing:
        number = _NEW.scalar(writing.connection, _values())
        writing.session.get_one(Study, number).reason = "changed"
    with pytest.raises(ZeroDivisionError), ledger.write_plainly() as writing:  # noqa: PT012
        writing.session.get_one(Study, number).reason = "changed again"
        _NEW.scalar(writing.connection, _values("1.2.4"))
        1 / 0  # noqa: B018
    with ledger.read() as session:
        assert session.execute(select(Study.study_instance_uid, Study.reason)).all() == [("1.2.3", "changed")]


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_a_connection_that_was_lost_is_not_used_again(ledger: Ledger) -> None:
    with pytest.raises(OperationalError), ledger.write_plainly() as writing:  # noqa: PT012
        own = writing.connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        with ledger.read() as session:
            session.execute(text(f"SELECT pg_terminate_backend({own})"))
        _NEW.scalar(writing.connection, _values())
    with ledger.write_plainly() as writing:
        _NEW.scalar(writing.connection, _values())
    with ledger.read() as session:
        assert session.scalars(select(Study.study_instance_uid)).all() == ["1.2.3"]
