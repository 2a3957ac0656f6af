"""Rules of the site, from the arrival of an image to the outbox."""

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from sqlalchemy import select, update

from service.api import status
from service.commands import rules as command
from service.core.ledger import now
from service.core.receive import Arrival, Intake
from service.core.retry import retry_study
from service.core.settings import load
from service.core.states import DeliveryState, InstanceState, StudyState
from service.core.tables import Event, Instance, Outbox, Revision, Study
from tests import factories
from tests.faults.site import site
from tests.integration.test_delivery import rows
from tests.pipeline import film, hurry, instances, opened_at, reports, says, send_all, study, work
from tests.servers import storescu
from worker.context import Context
from worker.tasks import report

TWO = """
[destinations.PACS]
url = "dicom://PACS@127.0.0.1:9"
[destinations.WARD]
url = "dicom://WARD@127.0.0.1:9"
required = false
"""
FROM_WARD = '[[rules]]\nname = "ward"\nwhen.calling_ae_title = "WARD_*"\ndestinations = ["WARD"]\n'
NO_PORTABLE = '[[rules]]\nname = "no portable"\nwhen.station_name = "PORT*"\nanalyse = false\n'
Opened = Callable[[str], Context]


@pytest.fixture
def ruled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opened]:
    """Open a worker's context under the given file; a second time with another one on the same data."""
    says(monkeypatch, 0.9)
    opened: list[Context] = []

    def at(written: str, **given: Any) -> Context:
        config = tmp_path / "hilum.toml"
        config.write_text(written)
        if opened:
            fresh = load(config=config)
            changed = {"rules": fresh.rules, "destinations": fresh.destinations}
            opened[0].settings = opened[0].settings.model_copy(update=changed)
        else:
            opened.append(opened_at(tmp_path, config=config, **given))
        return opened[0]

    yield at
    for context in opened:
        context.ledger.close()


def receive(context: Context, *films: Dataset, title: str = "ROUTER") -> None:
    intake = Intake(context.ledger, context.spool, context.settings)
    for item in films:
        path = factories.write(item, context.spool.incoming)
        intake.receive(Arrival(path, title, item.SOPClassUID, item.SOPInstanceUID))


def events(context: Context, kind: str) -> list[str]:
    with context.ledger.read() as session:
        return list(session.scalars(select(Event.detail).where(Event.kind == kind).order_by(Event.id)))


def sent_to(context: Context) -> set[str]:
    return {row.destination for row in rows(context)}


def retried(context: Context) -> None:
    with context.ledger.write() as session:
        retry_study(session, session.scalars(select(Study)).one())
    work(context)


def test_an_image_that_a_rule_leaves_out_is_kept_and_gets_a_reason_and_no_report(ruled: Opened) -> None:
    context = ruled(TWO + NO_PORTABLE)
    receive(context, film(StationName="PORT 3"))
    work(context)
    (instance,) = instances(context)
    assert (instance.state, instance.says_chest) == (InstanceState.NOT_ANALYSED, True)
    assert instance.reason == 'left out by the rule "no portable" of this site'
    assert instance.spool_path is not None
    assert context.spool.absolute(instance.spool_path).exists()
    assert (study(context).state, study(context).finding) == (StudyState.REPORTED, "not_analysed")
    assert study(context).result_reason == instance.reason
    assert reports(context) == []
    assert events(context, "rule") == ['rule "no portable": not analysed, nothing is sent']
    with context.ledger.read() as session:
        shown = status.study(session, study(context).study_instance_uid)
    assert shown is not None
    assert shown.instances[0].rule == "no portable"


def test_who_is_named_by_a_rule_that_leaves_out_is_told_that_nothing_was_analysed(ruled: Opened) -> None:
    context = ruled(TWO + NO_PORTABLE + 'destinations = ["WARD"]\n')
    receive(context, film(StationName="PORT 3"))
    work(context)
    assert [item.kind for item in reports(context)] == ["not-analysed"]
    assert sent_to(context) == {"WARD"}


def test_a_result_goes_where_its_rule_says_and_counts_there_as_the_destination_says(ruled: Opened) -> None:
    context = ruled(TWO + FROM_WARD)
    receive(context, film(1), title="WARD_2")
    work(context)
    assert {(row.destination, row.required) for row in rows(context)} == {("WARD", False)}
    assert {row.report.kind for row in _with_reports(context)} == {"sr", "heatmap"}


def test_what_no_rule_speaks_of_goes_to_every_destination(ruled: Opened) -> None:
    context = ruled(TWO + FROM_WARD)
    receive(context, film(1))
    work(context)
    assert sent_to(context) == {"PACS", "WARD"}
    assert events(context, "rule") == ["no rule speaks of it: analysed, result to every destination"]


def test_without_rules_nothing_is_said_of_rules(ruled: Opened) -> None:
    context = ruled(TWO)
    receive(context, film(1))
    work(context)
    assert sent_to(context) == {"PACS", "WARD"}
    assert events(context, "rule") == []


def test_a_study_goes_where_the_rules_of_its_analysed_images_say(ruled: Opened) -> None:
    to_pacs = '[[rules]]\nname = "main"\nwhen.calling_ae_title = "MAIN"\ndestinations = ["PACS"]\n'
    context = ruled(TWO + FROM_WARD + to_pacs)
    receive(context, film(1, study=1), title="WARD_2")
    # No rule speaks of the lateral, nor is it analysed: it does not send the result everywhere.
    receive(context, factories.lateral_film(2, study=1, rows=64, columns=64), title="OTHER")
    work(context)
    assert sent_to(context) == {"WARD"}
    receive(context, film(3, study=1), title="MAIN")
    work(context)
    assert study(context).revision == 2
    assert {row.destination for row in _with_reports(context) if row.report.revision == 2} == {"PACS", "WARD"}


def test_an_image_that_is_left_out_beside_an_analysed_one_is_named_in_its_report(ruled: Opened) -> None:
    context = ruled(TWO + NO_PORTABLE)
    receive(context, film(1, study=1), film(2, study=1, StationName="PORT 3"))
    work(context)
    (first, *_) = reports(context)
    document = context.spool.absolute(first.path).read_bytes()
    assert b'left out by the rule "no portable" of this site' in document
    assert sent_to(context) == {"PACS", "WARD"}


def test_a_rule_overrules_the_population_of_the_site(ruled: Opened) -> None:
    research = '[[rules]]\nname = "research"\nwhen.calling_ae_title = "RESEARCH"\npopulation = "flag"\n'
    context = ruled(TWO + research)
    receive(context, film(1, PatientAge="064Y"), title="RESEARCH")
    receive(context, film(2, PatientAge="064Y"))
    work(context)
    flagged, refused = instances(context)
    assert (flagged.state, refused.state) == (InstanceState.ANALYSED, InstanceState.NOT_ANALYSED)
    assert "64 years" in flagged.flags[0]


def test_what_was_decided_stays_whatever_the_rules_say_later(ruled: Opened) -> None:
    context = ruled(TWO + FROM_WARD)
    receive(context, film(1, study=1), title="WARD_2")
    context = ruled(TWO + '[[rules]]\nname = "nothing"\nanalyse = false\n')
    receive(context, film(2, study=1), title="WARD_2")
    work(context)
    first, second = instances(context)
    assert (first.state, second.state) == (InstanceState.ANALYSED, InstanceState.NOT_ANALYSED)
    assert study(context).finding == "present"
    assert sent_to(context) == {"WARD"}


def test_a_person_s_retry_asks_the_rules_of_now_about_what_was_left_out(ruled: Opened) -> None:
    context = ruled(TWO + NO_PORTABLE)
    receive(context, film(1, study=1, StationName="PORT 3"))
    work(context)
    retried(context)
    assert (instances(context)[0].state, study(context).revision) == (InstanceState.NOT_ANALYSED, 0)
    context = ruled(TWO)
    retried(context)
    assert (instances(context)[0].state, study(context).revision) == (InstanceState.ANALYSED, 1)
    assert sent_to(context) == {"PACS", "WARD"}


def test_a_retry_builds_a_report_anew_only_when_the_rules_take_what_it_left_out(ruled: Opened) -> None:
    context = ruled(TWO + NO_PORTABLE)
    receive(context, film(1, study=1), film(2, study=1, StationName="PORT 3"))
    work(context)
    retried(context)
    assert study(context).revision == 1
    context = ruled(TWO)
    retried(context)
    assert study(context).revision == 2
    assert {item.state for item in instances(context)} == {InstanceState.ANALYSED}


def test_who_holds_a_report_gets_its_correction_wherever_the_next_one_goes(ruled: Opened) -> None:
    context = ruled(TWO + FROM_WARD)
    receive(context, film(1, study=1))
    work(context)
    send_all(context, 1)  # nobody is there, but the bytes may have arrived
    with context.ledger.write() as session:
        session.execute(update(Outbox).where(Outbox.destination == "PACS").values(attempts=1))
        session.execute(update(Instance).values(decision={"rule": "ward", "destinations": ["WARD"]}))
    receive(context, film(2, study=1), title="WARD_2")
    work(context)
    assert {row.destination for row in _with_reports(context) if row.report.revision == 2} == {"PACS", "WARD"}


def test_a_destination_that_a_rule_named_and_nobody_knows_any_more_asks_for_a_person(ruled: Opened) -> None:
    context = ruled(TWO + FROM_WARD)
    receive(context, film(1), title="WARD_2")
    context = ruled('[destinations.PACS]\nurl = "dicom://PACS@127.0.0.1:9"\n')
    work(context)
    # At first another process may know it.
    assert reports(context) == []
    with context.ledger.write() as session:
        session.execute(update(Revision).values(created_at=now() - timedelta(minutes=2)))
    hurry(context)
    report.run(context)
    (row,) = rows(context)
    assert (row.destination, row.state) == ("WARD", DeliveryState.PARKED)
    assert "sr parked for WARD: no destination WARD is configured any more" in str(study(context).attention)


def test_a_destination_that_was_renamed_within_a_study_loses_nothing_and_alarms_nobody(
    ruled: Opened,
) -> None:
    context = ruled(TWO + FROM_WARD)
    receive(context, film(1, study=1), title="WARD_2")
    context = ruled((TWO + FROM_WARD).replace("WARD]", "NEW]").replace('["WARD"]', '["NEW"]'))
    receive(context, film(2, study=1), title="WARD_2")
    work(context)
    with context.ledger.write() as session:
        session.execute(update(Revision).values(created_at=now() - timedelta(minutes=2)))
    hurry(context)
    report.run(context)
    assert sent_to(context) == {"NEW"}
    assert study(context).attention is None


def test_what_a_killed_listener_left_is_told_by_its_sender(ruled: Opened, tmp_path: Path) -> None:
    with site(tmp_path / "listener") as running:
        path = factories.write(film(7), tmp_path)
        storescu(path, "HILUM", running.port, calling_aet="WARD_2")
        (kept,) = running.spooled
        (instance,) = running.rows()
    assert instance.calling_ae_title == "WARD_2"
    context = ruled(TWO + FROM_WARD)
    adopted = context.spool.keep(kept)
    Intake(context.ledger, context.spool, context.settings).adopt(adopted)
    (instance,) = instances(context)
    assert (instance.calling_ae_title, instance.decision["rule"]) == ("WARD_2", "ward")


def test_the_command_says_which_rule_speaks_of_a_file_and_why_no_other(
    ruled: Opened, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context = ruled(TWO + NO_PORTABLE + FROM_WARD)
    files = [
        factories.write(film(1, StationName="X\x1b[2J"), tmp_path / "a"),
        factories.write(factories.ct_slice(), tmp_path / "b"),
    ]
    assert command.test(context.settings, files, "WARD_1", as_json=False) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert 'rule "ward": analysed, result to WARD' in said
    assert 'not "no portable": station_name is "X' in said
    assert ', not "PORT*"' in said
    assert "ignored, whatever the rules say: not a radiograph" in said
    assert "\x1b[2J" not in said
    assert command.test(context.settings, files[:1], None, as_json=True) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert (answer["rule"], answer["analyse"], answer["destinations"]) == (None, True, None)
    assert [item["rule"] for item in answer["passed_over"]] == ["no portable", "ward"]
    assert answer["passed_over"][1]["failed"] == [
        {"condition": "calling_ae_title", "wanted": ["WARD_*"], "found": ""}
    ]
    (tmp_path / "none.dcm").write_bytes(b"no DICOM")
    assert command.test(context.settings, [tmp_path / "none.dcm"], None, as_json=False) == 1


def test_the_command_lists_the_rules(ruled: Opened, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.check(ruled(TWO + NO_PORTABLE + FROM_WARD).settings, as_json=False) == 0
    said = capsys.readouterr().out
    assert '1. rule "no portable": not analysed, nothing is sent' in said
    assert 'when station_name "PORT*"' in said
    assert "everything else is analysed, result to PACS, WARD" in said


def _with_reports(context: Context) -> list[Outbox]:
    with context.ledger.read() as session:
        found = list(session.scalars(select(Outbox).order_by(Outbox.id)))
        for row in found:
            assert row.report
        return found
