"""The metrics: who counts, who sees it, what it costs, and whether Prometheus finds what it is asked for."""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import event, text

from service.api.metrics import registry
from service.core import tally
from service.core.circuits import failed
from service.core.heartbeat import beat
from service.core.ledger import Ledger, migrate, now, open_engine, register_model
from service.core.live import Live
from service.core.population import Population
from service.core.settings import Settings, load
from service.core.states import ModelRole, StudyState
from service.core.tables import Model, Study
from tests import factories, pipeline, tokens
from tests.certificates import Authority
from tests.faults.site import site
from tests.faults.web import body, web
from tests.ledgers import migrated
from tests.monitoring import expressions, selectors
from tests.servers import Prometheus, eventually, storescu

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture(autouse=True)
def _nothing_counted_before() -> None:
    tally.discard()


def scrape(settings: Settings, ledger: Ledger) -> Samples:
    """Return all samples as a scrape has them."""
    content = generate_latest(registry(Live(settings), ledger)).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(content)
        for sample in family.samples
    }


def of(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, tuple(sorted(labels.items()))]


def test_sums_of_all_processes_come_together_and_outlive_them(tmp_path: Path, ledger: Ledger) -> None:
    settings = load(data_dir=tmp_path, calling_ae_titles="ROUTER")

    def work(number: int) -> None:
        for _ in range(25):
            tally.add(tally.ASSOCIATIONS, "ROUTER", "accepted")
            tally.observe(tally.STAGE_SECONDS, 0.02, "decode")
            tally.flush(ledger)
        tally.observe(tally.STAGE_SECONDS, 10.0 * number, "report")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    tally.flush(ledger)
    tally.flush(ledger)
    samples = scrape(settings, ledger)
    assert of(samples, "hilum_associations_total", peer="ROUTER", result="accepted") == 100
    assert of(samples, "hilum_stage_seconds_count", stage="decode") == 100
    assert of(samples, "hilum_stage_seconds_sum", stage="decode") == pytest.approx(2)
    assert of(samples, "hilum_stage_seconds_bucket", stage="decode", le="0.01") == 0
    assert of(samples, "hilum_stage_seconds_bucket", stage="decode", le="0.025") == 100
    assert of(samples, "hilum_stage_seconds_bucket", stage="report", le="10.0") == 2
    assert of(samples, "hilum_stage_seconds_bucket", stage="report", le="+Inf") == 4
    assert scrape(settings, ledger)[("hilum_stage_seconds_sum", (("stage", "report"),))] == 60


def test_of_two_moments_the_newer_one_stands(tmp_path: Path, ledger: Ledger) -> None:
    settings = load(data_dir=tmp_path)
    tally.note(tally.LAST_ASSOCIATION, "other")
    tally.flush(ledger)
    before = of(scrape(settings, ledger), tally.LAST_ASSOCIATION.name, peer="other")
    tally._latest[tally._key(tally.LAST_ASSOCIATION, ["other"])] = before - 60
    tally.flush(ledger)
    assert of(scrape(settings, ledger), tally.LAST_ASSOCIATION.name, peer="other") == before
    tally._latest[tally._key(tally.LAST_ASSOCIATION, ["other"])] = before + 60
    tally.flush(ledger)
    assert of(scrape(settings, ledger), tally.LAST_ASSOCIATION.name, peer="other") == before + 60


def test_a_ledger_that_is_away_gets_the_counts_later(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.sqlite3'}"
    ledger = Ledger(url)
    tally.add(tally.RESULTS, "present")
    tally.flush(ledger)  # there is no table yet
    migrate(url)
    tally.add(tally.RESULTS, "present")
    tally.flush(ledger)
    assert of(scrape(load(data_dir=tmp_path), ledger), "hilum_results_total", finding="present") == 2
    ledger.close()


def test_what_is_rolled_back_is_not_counted(ledger: Ledger, tmp_path: Path) -> None:
    def record(*, fails: bool) -> None:
        with ledger.write() as session:
            tally.add(tally.RESULTS, "absent", session=session)
            session.execute(text("SELECT 1"))
            if fails:
                raise KeyError

    with pytest.raises(KeyError):
        record(fails=True)
    record(fails=False)
    tally.flush(ledger)
    assert of(scrape(load(data_dir=tmp_path), ledger), "hilum_results_total", finding="absent") == 1


def test_a_child_does_not_count_what_its_parent_counted() -> None:
    tally.add(tally.RESULTS, "present")
    child = os.fork()
    if child == 0:
        os._exit(1 if tally._sums else 0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert tally._sums


def test_the_listener_counts_who_associates_and_what_it_answers(tmp_path: Path) -> None:
    film = factories.write(factories.phantom_chest(1), tmp_path / "films")
    with site(tmp_path, calling_ae_titles="ROUTER,CT", max_object_bytes=1_000_000) as listening:
        for title in ("ROUTER", "ROUTER", "STRANGER"):
            storescu(film, "HILUM", listening.port, calling_aet=title)
        storescu(film, "OTHERNAME", listening.port, calling_aet="ROUTER")

        def counted() -> Samples | None:
            tally.flush(listening.ledger)
            found = scrape(listening.settings, listening.ledger)
            associations = [value for (name, _), value in found.items() if name == "hilum_associations_total"]
            return found if sum(associations) == 4 else None

        # The requestor has its answer a moment before it is counted.
        samples = eventually(counted, 30, "four associations")
    assert samples is not None
    assert of(samples, "hilum_associations_total", peer="ROUTER", result="accepted") == 2
    assert of(samples, "hilum_associations_total", peer="ROUTER", result="rejected") == 1
    assert of(samples, "hilum_associations_total", peer="other", result="rejected") == 1
    assert of(samples, "hilum_objects_received_total", peer="ROUTER", status="0000") == 2
    assert of(samples, "hilum_received_bytes_total", peer="ROUTER") > 2 * 100_000
    assert of(samples, "hilum_stage_seconds_count", stage="receive") == 2
    assert "STRANGER" not in str(samples)


def test_the_api_counts_what_it_stores(tmp_path: Path) -> None:
    good, bad = (
        factories.write(factories.phantom_chest(seed), tmp_path / "films").read_bytes() for seed in (1, 2)
    )
    with web(tmp_path, api_tokens=tokens.entries()) as api:
        answer = api.post(body(good), Authorization=tokens.bearer("clinician")["Authorization"])
        assert answer.status_code == 200
        answer = api.post(body(bad), study="1.2.3", Authorization=tokens.bearer("clinician")["Authorization"])
        assert answer.status_code == 409
        samples = scrape(api.settings, api.ledger)
    assert of(samples, "hilum_objects_received_total", peer="clinician-token", status="0000") == 1
    assert of(samples, "hilum_objects_received_total", peer="clinician-token", status="A900") == 1


def test_the_pipeline_counts_findings_reasons_and_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = pipeline.opened_at(tmp_path, population="refuse")
    pipeline.says(monkeypatch, 0.9)
    ages = {"1": "004Y", "2": "064Y"}
    for seed, age in ages.items():
        pipeline.receive(context, pipeline.film(seed, PatientAge=age))
    pipeline.receive(context, pipeline.film(3, ViewPosition="LL"))
    pipeline.work(context)
    tally.flush(context.ledger)
    samples = scrape(context.settings, context.ledger)
    assert of(samples, "hilum_films_total", outcome="analysed", reason="") == 1
    assert of(samples, "hilum_films_total", outcome="not_analysed", reason="population") == 1
    assert of(samples, "hilum_films_total", outcome="not_analysed", reason="header") == 1
    assert of(samples, "hilum_results_total", finding="present") == 1
    for stage, count in {"receive": 3, "decode": 2, "infer": 1}.items():
        assert of(samples, "hilum_stage_seconds_count", stage=stage) == count
    assert of(samples, "hilum_study_seconds_count", until="reported") >= 1
    assert of(samples, "hilum_ready", queue="deliver") == 0
    context.ledger.close()


def test_failures_of_a_destination_are_counted_by_reason_and_it_is_down(
    tmp_path: Path, ledger: Ledger
) -> None:
    settings = load(data_dir=tmp_path, destinations="PACS=dicom://A@127.0.0.1:1,SPARE=dicom://B@127.0.0.1:2")
    failed(ledger, "PACS", "cannot be reached")
    tally.flush(ledger)
    samples = scrape(settings, ledger)
    assert of(samples, "hilum_delivery_failures_total", destination="PACS", reason="away") == 1
    assert of(samples, "hilum_destination_up", destination="PACS") == 0
    assert of(samples, "hilum_destination_up", destination="SPARE") == 1


def test_what_is_unfinished_or_asks_for_attention_is_counted(tmp_path: Path, ledger: Ledger) -> None:
    settings = load(data_dir=tmp_path, working_hours="Mon-Sun 00:00-24:00")
    with ledger.write() as session:
        for number, (state, attention) in enumerate(
            [
                (StudyState.RECEIVING, None),
                (StudyState.ANALYSING, None),
                (StudyState.HELD, "two patients"),
                (StudyState.DELIVERED, "sr parked"),
                (StudyState.CONFIRMED, None),
            ]
        ):
            session.add(
                Study(
                    study_instance_uid=f"1.2.{number}",
                    state=state,
                    attention=attention,
                    received_at=now() - timedelta(minutes=10 - number),
                )
            )
    beat(ledger, "listener")
    samples = scrape(settings, ledger)
    assert of(samples, "hilum_attention") == 2
    assert of(samples, "hilum_studies", state="held") == 1
    assert of(samples, "hilum_oldest_unfinished_seconds") == pytest.approx(600, abs=20)
    assert of(samples, "hilum_silence_working_seconds") == pytest.approx(360, abs=20)
    assert of(samples, "hilum_role_up", role="listener") == 1
    assert of(samples, "hilum_role_last_seen_timestamp_seconds", role="listener") > 1e9
    assert of(samples, "hilum_role_last_seen_timestamp_seconds", role="infer") == 0


def test_the_end_of_every_certificate_is_there_and_0_for_one_that_cannot_be_read(
    tmp_path: Path, ledger: Ledger, authority: Authority
) -> None:
    issued = authority.issue("hilum.example", left=timedelta(days=12))
    settings = load(data_dir=tmp_path, destinations="PACS=dicoms://A@pacs.example:2762", **issued.settings)
    samples = scrape(settings, ledger)
    ends = of(samples, "hilum_certificate_end_timestamp_seconds", use="ours")
    assert ends == pytest.approx(now().timestamp() + 12 * 86400, abs=3600)
    assert of(samples, "hilum_certificate_end_timestamp_seconds", use="PACS shown") == ends
    issued.certificate.write_text("garbage")
    assert of(scrape(settings, ledger), "hilum_certificate_end_timestamp_seconds", use="ours") == 0


def test_no_scrape_reads_what_grows_with_the_years(tmp_path: Path) -> None:
    """By SQLite's plans: of the large tables only ranges of indexes are read, those of the unfinished."""
    settings = load(data_dir=tmp_path, destinations="PACS=dicom://A@127.0.0.1:1", notices="A=https://a/")
    migrated(settings.sqlalchemy_url)
    ledger = Ledger(settings.sqlalchemy_url)
    asked: list[tuple[str, Any]] = []
    event.listen(
        ledger._engine,
        "before_cursor_execute",
        lambda _connection, _cursor, statement, parameters, *_: asked.append((statement, parameters)),
    )
    scrape(settings, ledger)
    ledger.close()
    engine = open_engine(settings.sqlalchemy_url)
    large = ("study", "instance", "analysis", "revision", "report", "outbox", "confirmation", "event")
    with engine.connect() as connection:
        plans = [
            (statement, row[3])
            for statement, parameters in asked
            if statement.lstrip().startswith("SELECT")
            for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        ]
    engine.dispose()
    assert len(plans) > 20
    # The partial index of what asks for attention is the one that may be read as a whole.
    scans = [
        (plan, statement)
        for statement, plan in plans
        if re.match(rf"SCAN ({'|'.join(large)})\b", plan) and "ix_study_attention" not in plan
    ]
    assert not scans


def test_prometheus_finds_all_that_dashboard_and_rules_ask_for(tmp_path: Path, authority: Authority) -> None:
    issued = authority.issue("hilum.example")
    given = {
        "api_tokens": tokens.entries("viewer"),
        "destinations": "PACS=dicom://A@127.0.0.1:1",
        "notices": "A=https://a.example/",
        **issued.settings,
    }
    with (
        web(tmp_path, **given) as api,
        Prometheus(api.settings.http_port, tokens.SECRETS["viewer"]) as server,
    ):
        with api.ledger.write() as session:
            model = session.get_one(Model, register_model(session, "test", "1", "f" * 64, "none"))
            model.role, model.population = ModelRole.REPORTING, Population((1.0, 5.0)).kept()
        tally.note(tally.LAST_ASSOCIATION, "other")
        tally.add(tally.OBJECTS, "other", "0000")
        tally.add(tally.RECEIVED_BYTES, "other", by=5)
        tally.add(tally.FILMS, "analysed", "")
        tally.flush(api.ledger)
        eventually(lambda: server.value('up{job="hilum"}') == 1)
        there = {
            item["metric"]["__name__"]: set(item["metric"]) for item in server.query('{__name__=~"hilum_.+"}')
        }
        for expression in expressions():
            server.query(expression)
            for name, labels in selectors(expression):
                assert name in there, f"{name} is asked for and not scraped: {expression}"
                assert labels <= there[name], f"{name} has no label of {labels}: {expression}"
