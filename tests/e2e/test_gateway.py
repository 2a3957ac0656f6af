"""The whole gateway as it is installed: real storescu in, real Orthanc out, real faults in between."""

import hashlib
import json
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import (
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    EncapsulatedPDFStorage,
    EnhancedSRStorage,
    GrayscaleSoftcopyPresentationStateStorage,
    JPEG2000Lossless,
    KeyObjectSelectionDocumentStorage,
    SecondaryCaptureImageStorage,
)

from service.core.heartbeat import ROLES
from tests import factories
from tests.faults.web import body, post
from tests.reading import assert_says_what_the_api_says
from tests.servers import (
    HTTP,
    Gateway,
    Orthanc,
    PostgreSQL,
    Prometheus,
    Redis,
    StoreScp,
    eventually,
    storescu,
)

pytestmark = pytest.mark.e2e
Start = Callable[..., Gateway]


@pytest.fixture(scope="session")
def pacs() -> Iterator[Orthanc]:
    """The PACS of all tests of a process; one that stops it starts it again."""
    with Orthanc() as server:
        yield server


@pytest.fixture(scope="session")
def running(pacs: Orthanc) -> Iterator[Gateway]:
    """One gateway for all tests of a process: it has to live through everything they do to it."""
    with Gateway(destinations=f"PACS=dicom://{pacs.aet}@127.0.0.1:{pacs.dicom_port}") as started:
        yield started


# Two cores decode, analyse and report while other tests run beside this one.
_PATIENCE = 90.0
_DONE = ("reported", "delivered")


def push(gateway: Gateway, tmp_path: Path, *films: Dataset) -> None:
    done = gateway.send(*[factories.write(film, tmp_path / "films") for film in films])
    assert done.returncode == 0, done.stdout + done.stderr


def results_in(orthanc: Orthanc, film: Dataset, modality: str = "SR") -> list[Dataset]:
    """Return our results of one modality that Orthanc holds for the film's study, oldest revision first."""
    found = [
        Dataset.from_json(item)
        for item in orthanc.dicomweb_metadata(film.StudyInstanceUID)
        if item["00080060"]["Value"] == [modality]
    ]
    return sorted(found, key=lambda item: int(item.InstanceNumber))


def stored_in(orthanc: Orthanc, film: Dataset) -> list[bytes]:
    """Return the files of all that Orthanc holds of us for the film's study."""
    ours = [
        item for item in orthanc.instances(film.StudyInstanceUID) if item.sop_class_uid != film.SOPClassUID
    ]
    return [orthanc.download(item) for item in ours]


def test_a_film_pushed_by_storescu_comes_back_as_a_structured_report(
    running: Gateway, pacs: Orthanc, tmp_path: Path
) -> None:
    named = {"study": "1", "PatientName": "Tést^Ünal", "AccessionNumber": "ACC-1"}
    film = factories.chest_film(1, BurnedInAnnotation="YES", **named)
    push(running, tmp_path, film, factories.lateral_film(2, **named))
    study = running.wait_for_state(film.StudyInstanceUID, "delivered", _PATIENCE)

    (report,) = results_in(pacs, film)
    (named,) = [item for item in study["reports"] if item["kind"] == "sr"]
    assert report.SOPInstanceUID == named["sop_instance_uid"]
    assert report.SOPClassUID == Comprehensive3DSRStorage
    assert report.PatientID == film.PatientID
    assert report.PatientName == film.PatientName
    assert report.AccessionNumber == "ACC-1"
    evidence = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    assert evidence.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == film.SOPInstanceUID
    text = report.to_json()
    probability = study["result"]["probability"]
    assert f"score {100 * probability:.1f} %" in text
    assert study["model"]["sha256"] in text
    assert study["instances"][0]["finding"] == study["result"]["finding"]
    assert all(item["state"] == "delivered" for item in study["deliveries"])
    assert "marks are burned into the film" in study["result"]["flags"][0]
    assert_says_what_the_api_says(study, stored_in(pacs, film))


def test_a_film_that_comes_by_stow_rs_comes_back_as_a_structured_report_too(
    running: Gateway, pacs: Orthanc, tmp_path: Path
) -> None:
    film = factories.chest_film("by stow")
    answer = post(running.http_url, body(factories.write(film, tmp_path).read_bytes()))
    assert answer.status_code == 200, answer.text
    running.wait_for_state(film.StudyInstanceUID, "delivered", _PATIENCE)
    assert len(results_in(pacs, film)) == 1


@pytest.mark.fault(22)
def test_the_same_study_sent_twice_gives_one_report(running: Gateway, pacs: Orthanc, tmp_path: Path) -> None:
    film = factories.chest_film(2)
    push(running, tmp_path, film)
    running.wait_for_state(film.StudyInstanceUID, "delivered", _PATIENCE)
    push(running, tmp_path, film)
    time.sleep(3)  # longer than the quiet time: whatever would come of it has come
    study = running.wait_for_state(film.StudyInstanceUID, "delivered", _PATIENCE)
    assert study["revision"] == 1
    assert len(study["instances"]) == 1
    assert len(results_in(pacs, film)) == 1


def test_a_late_second_image_gives_a_revision_that_names_its_predecessor(
    running: Gateway, pacs: Orthanc, tmp_path: Path
) -> None:
    first, second = factories.chest_film(3, study="late"), factories.chest_film(4, study="late")
    push(running, tmp_path, first)
    running.wait_for_state(first.StudyInstanceUID, "delivered", _PATIENCE)
    push(running, tmp_path, second)
    eventually(lambda: len(results_in(pacs, first)) == 2, _PATIENCE, "a second report in Orthanc")
    before, after = results_in(pacs, first)
    assert before.SeriesInstanceUID == after.SeriesInstanceUID
    replaced = after.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert replaced.ReferencedSOPInstanceUID == before.SOPInstanceUID
    assert "Revision 2, replaces" in after.to_json()
    study = running.wait_for_state(first.StudyInstanceUID, "delivered", _PATIENCE)
    assert_says_what_the_api_says(study, stored_in(pacs, first))


@pytest.mark.fault(23)
def test_a_corrected_header_rebuilds_the_report_without_a_second_inference(
    running: Gateway, pacs: Orthanc, tmp_path: Path
) -> None:
    film = factories.chest_film(5)
    push(running, tmp_path, film)
    running.wait_for_state(film.StudyInstanceUID, "delivered", _PATIENCE)
    push(running, tmp_path, factories.chest_film(5, AccessionNumber="FIXED"))
    eventually(lambda: len(results_in(pacs, film)) == 2, _PATIENCE, "a rebuilt report in Orthanc")
    assert results_in(pacs, film)[-1].AccessionNumber == "FIXED"
    study = running.wait_for_state(film.StudyInstanceUID, "delivered", _PATIENCE)
    assert sorted(item["state"] for item in study["instances"]) == ["analysed", "superseded"]
    assert [event["kind"] for event in study["events"]].count("analysed") == 1


@pytest.mark.fault(23)
def test_the_same_uid_with_other_pixels_is_quarantined(running: Gateway, tmp_path: Path) -> None:
    film = factories.chest_film(6)
    push(running, tmp_path, film)
    running.wait_for_state(film.StudyInstanceUID, _DONE, _PATIENCE)
    other = factories.chest_film(7, study="x")
    for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientID", "PatientName"):
        setattr(other, keyword, film[keyword].value)
    push(running, tmp_path, other)

    def quarantined() -> bool:
        study = running.study(film.StudyInstanceUID)
        return study is not None and "quarantined" in [item["state"] for item in study["instances"]]

    eventually(quarantined, _PATIENCE, "the changed film in quarantine")
    study = running.wait_for_state(film.StudyInstanceUID, _DONE, _PATIENCE)
    assert study["revision"] == 1
    assert "other pixels" in study["attention"]


@pytest.mark.fault(9)
def test_redis_killed_before_the_analysis_loses_no_report(
    running: Gateway, pacs: Orthanc, tmp_path: Path
) -> None:
    film = factories.chest_film(8)
    # Stopped, the workers cannot take the work before Redis dies with it.
    workers = [
        psutil.Process(pid)
        for role, pids in running.pids().items()
        if role.startswith("worker")
        for pid in pids
    ]
    for worker in workers:
        worker.suspend()
    push(running, tmp_path, film)
    time.sleep(0.5)
    (redis,) = running.pids()["redis"]
    psutil.Process(redis).kill()
    for worker in workers:
        worker.resume()
    running.wait_for_state(film.StudyInstanceUID, "delivered", _PATIENCE)
    assert len(results_in(pacs, film)) == 1


@pytest.mark.fault(4, 5)
@pytest.mark.parametrize("queue", ["decode", "infer", "report", "deliver"])
def test_a_worker_killed_in_the_middle_gives_exactly_one_report(
    running: Gateway, pacs: Orthanc, tmp_path: Path, queue: str
) -> None:
    films = [factories.chest_film(f"{queue}{number}", study=f"{queue}{number}") for number in range(3)]
    push(running, tmp_path, *films)
    for _ in range(3):
        for pid in running.pids().get(f"worker-{queue}", []):
            with_kill(pid)
        time.sleep(0.7)
    for film in films:
        running.wait_for_state(film.StudyInstanceUID, "delivered", _PATIENCE)
        assert len(results_in(pacs, film)) == 1


def with_kill(pid: int) -> None:
    """Kill a process that may have died already."""
    try:
        psutil.Process(pid).send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return


def test_a_film_cut_short_gets_a_reason_and_a_ct_slice_its_own(running: Gateway, tmp_path: Path) -> None:
    whole = factories.chest_film(9)
    cut = factories.chest_film(9, PixelData=whole.PixelData[: len(whole.PixelData) // 3])
    ct = factories.ct_slice(11)
    push(running, tmp_path, cut, ct)
    study = running.wait_for_state(cut.StudyInstanceUID, _DONE, _PATIENCE)
    assert study["result"]["finding"] == "not_analysed"
    assert "cannot be decoded" in study["result"]["reason"]
    assert [item["kind"] for item in study["reports"]] == ["not-analysed"]
    study = running.wait_for_state(ct.StudyInstanceUID, _DONE, _PATIENCE)
    assert "not a radiograph" in study["result"]["reason"]
    assert not study["reports"]


def test_what_is_no_dicom_is_an_error_of_one_line_and_the_service_lives_on(
    running: Gateway, tmp_path: Path
) -> None:
    text = tmp_path / "text.dcm"
    text.write_text("no DICOM at all\n" * 100)
    refused = running.run("send", str(text))
    assert refused.returncode == 1
    assert len(refused.stderr.strip().splitlines()) == 1
    assert "text.dcm" in refused.stderr
    film = factories.chest_film(12)
    push(running, tmp_path, film)
    study = running.wait_for_state(film.StudyInstanceUID, _DONE, _PATIENCE)
    assert study["result"]["probability"] is not None


def test_the_sample_films_score_as_in_analyse_and_adults_are_flagged(gateway: Start, tmp_path: Path) -> None:
    running = gateway(population="flag")
    chest, leg = (str(get_testdata_file(name, download=False)) for name in ("RG1_J2KR.dcm", "RG3_J2KR.dcm"))
    for path in (chest, leg):
        assert running.run("send", path).returncode == 0
    alone = running.run("analyse", "--json", chest, leg)
    assert alone.returncode == 0, alone.stderr
    said_chest, said_leg = json.loads(alone.stdout)
    served = running.wait_for_state(dcmread(chest).StudyInstanceUID, _DONE, _PATIENCE)
    assert served["result"]["probability"] == pytest.approx(said_chest["probability"], abs=1e-6)
    assert "64 years" in served["result"]["flags"][0]
    served = running.wait_for_state(dcmread(leg).StudyInstanceUID, _DONE, _PATIENCE)
    assert served["result"]["finding"] == said_leg["finding"] == "not_analysed"
    assert served["result"]["probability"] is None


def test_an_adult_s_chest_is_told_to_the_pacs_as_not_analysed(
    running: Gateway, pacs: Orthanc, tmp_path: Path
) -> None:
    film = factories.chest_film(13, PatientAge="064Y", PatientName="Tést^Ünal")
    push(running, tmp_path, film)
    study = running.wait_for_state(film.StudyInstanceUID, "delivered", _PATIENCE)
    assert study["result"]["finding"] == "not_analysed"
    assert "64 years" in study["result"]["reason"]
    (told,) = results_in(pacs, film)
    assert told.SOPClassUID == EnhancedSRStorage
    assert (told.PatientName, told.AccessionNumber) == (film.PatientName, film.AccessionNumber)
    assert "NOT ANALYSED" in told.to_json()
    assert study["result"]["reason"] in told.to_json()
    (delivery,) = study["deliveries"]
    assert (delivery["kind"], delivery["revision"]) == ("not-analysed", 1)
    assert delivery["sop_instance_uid"] == told.SOPInstanceUID
    assert_says_what_the_api_says(study, stored_in(pacs, film))


def test_a_knee_stays_in_the_ledger(running: Gateway, pacs: Orthanc, tmp_path: Path) -> None:
    film = factories.knee_film(19)
    push(running, tmp_path, film)
    study = running.wait_for_state(film.StudyInstanceUID, _DONE, _PATIENCE)
    assert study["result"]["finding"] == "not_analysed"
    assert (study["state"], study["reports"]) == ("reported", [])
    assert film.StudyInstanceUID not in pacs.studies()


def test_a_corrected_header_that_takes_a_result_back_replaces_it_in_the_pacs(
    running: Gateway, pacs: Orthanc, tmp_path: Path
) -> None:
    push(running, tmp_path, factories.chest_film(20))
    film = factories.chest_film(20, PatientAge="064Y")
    running.wait_for_state(film.StudyInstanceUID, "delivered", _PATIENCE)
    push(running, tmp_path, film)
    eventually(lambda: len(results_in(pacs, film)) == 2, _PATIENCE, "the replacement in Orthanc")
    before, after = results_in(pacs, film)
    assert (before.SOPClassUID, after.SOPClassUID) == (Comprehensive3DSRStorage, EnhancedSRStorage)
    replaced = after.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence[0]
    assert replaced.ReferencedSOPInstanceUID == before.SOPInstanceUID
    assert "Revision 2, replaces revision 1" in after.to_json()
    study = running.wait_for_state(film.StudyInstanceUID, "delivered", _PATIENCE)
    assert (study["revision"], study["result"]["probability"]) == (2, None)
    assert study["attention"] is None


def test_a_pacs_without_3d_gets_every_object_that_it_asks_for(gateway: Start, tmp_path: Path) -> None:
    classes = {
        "comprehensive-sr": ComprehensiveSRStorage,
        "text": EnhancedSRStorage,
        "gsps": GrayscaleSoftcopyPresentationStateStorage,
        "pdf": EncapsulatedPDFStorage,
        "rejection": KeyObjectSelectionDocumentStorage,
        "heatmap": SecondaryCaptureImageStorage,
    }
    with StoreScp(*classes.values()) as old:
        config = tmp_path / "hilum.toml"
        config.write_text(
            f'[destinations.OLD]\nurl = "{old.destination}"\nheatmap = "always"\n'
            'objects = ["sr", "heatmap", "text", "gsps", "pdf", "rejection"]\n'
        )
        running = gateway(config=config)
        film = factories.chest_film(21, rows=512, columns=480)
        push(running, tmp_path, film)
        running.wait_for_state(film.StudyInstanceUID, "delivered", _PATIENCE)
        push(running, tmp_path, factories.chest_film(21, rows=512, columns=480, AccessionNumber="FIXED"))

        def revised() -> bool:
            study = running.study(film.StudyInstanceUID)
            return study is not None and (study["revision"], study["state"]) == (2, "delivered")

        eventually(revised, _PATIENCE, "the second revision at the PACS")
        study = running.study(film.StudyInstanceUID)
        assert study is not None
        delivered = [(item["kind"], item["revision"]) for item in study["deliveries"] if item["delivered_at"]]
        assert sorted(delivered) == sorted(
            [(kind, number) for kind in classes for number in (1, 2) if (kind, number) != ("rejection", 1)]
        )
        arrived = [dcmread(path, force=True) for path in old.received.iterdir()]
        assert {item.SOPClassUID for item in arrived} == set(classes.values())
        assert len({item.SeriesInstanceUID for item in arrived}) == len(classes)
        # Offered once: the second revision went out as Comprehensive SR at once.
        withdrawn = [item for item in study["deliveries"] if item["state"] == "withdrawn"]
        assert [(item["kind"], item["revision"]) for item in withdrawn] == [("sr", 1)]
        assert "Comprehensive SR instead" in running.run("status", film.StudyInstanceUID).stdout
        assert "since it rejected Comprehensive 3D SR" in running.run("doctor", "--json").stdout


@pytest.mark.long
def test_rules_that_are_saved_count_in_every_role_and_those_with_a_fault_do_not(
    gateway: Start, tmp_path: Path
) -> None:
    config = tmp_path / "hilum.toml"
    config.write_text('[destinations.PACS]\nurl = "dicom://PACS@127.0.0.1:9"\n')
    running = gateway(config=config)

    def taken() -> bool:
        with closing(sqlite3.connect(running.data_dir / "ledger.sqlite3")) as ledger:
            said = ledger.execute("SELECT role, about ->> 'config' FROM heartbeat").fetchall()
        digest = hashlib.sha256(config.read_bytes()).hexdigest()
        return {role for role, _ in said} == {*ROLES, "api"} and {found for _, found in said} == {digest}

    rule = '[[rules]]\nname = "no portable"\nwhen.station_name = "PORT*"\nanalyse = false\n'
    with config.open("a") as stream:
        stream.write(rule)
    eventually(taken, 20, "the rules in every process")
    config.write_text(f"{rule}destinations = ['PASC']\n")
    readyz = f"{running.http_url}/readyz"
    eventually(lambda: "HILUM_CONFIG" in HTTP.get(readyz).json()["warnings"], 20, "a warning")
    assert HTTP.get(readyz).status_code == 200
    film = factories.phantom_chest(31, StationName="PORT 3")
    push(running, tmp_path, film)
    study = running.wait_for_state(film.StudyInstanceUID, "reported", _PATIENCE)
    assert study["result"]["reason"] == 'left out by the rule "no portable" of this site'
    assert (study["instances"][0]["rule"], study["deliveries"]) == ("no portable", [])
    doctor = running.run("doctor", "--json")
    assert doctor.returncode == 1
    assert "no such destination: PASC" in json.loads(doctor.stdout)[0]["seen"]


def test_a_pacs_that_is_away_gets_the_report_when_it_is_back(
    running: Gateway, pacs: Orthanc, tmp_path: Path
) -> None:
    pacs.kill()
    film = factories.chest_film(14)
    push(running, tmp_path, film)

    def tried() -> bool:
        study = running.study(film.StudyInstanceUID)
        return bool(study and study["deliveries"] and study["deliveries"][0]["last_error"])

    eventually(tried, _PATIENCE, "a failed delivery")
    pacs.restart()
    running.wait_for_state(film.StudyInstanceUID, "delivered", _PATIENCE)
    assert len(results_in(pacs, film)) == 1


def test_an_unknown_calling_ae_title_and_a_wrong_called_one_are_rejected(
    gateway: Start, tmp_path: Path
) -> None:
    running = gateway(calling_ae_titles="ROUTER")
    path = factories.write(factories.phantom_chest(15), tmp_path)
    assert running.send(path, calling_ae_title="ROUTER").returncode == 0
    assert running.send(path, calling_ae_title="STRANGER").returncode != 0
    wrong = storescu([path], "OTHER", running.dimse_port, calling_aet="ROUTER")
    assert wrong.returncode != 0


def test_the_whole_gateway_runs_on_postgresql_and_its_own_redis(
    gateway: Start, redis: Redis, postgresql_server: PostgreSQL, tmp_path: Path
) -> None:
    running = gateway(database_url=postgresql_server.fresh_url(), broker_url=redis.url)
    films = [factories.chest_film(f"pg{number}", rows=512, columns=480) for number in range(3)]
    push(running, tmp_path, *films)
    for film in films:
        study = running.wait_for_state(film.StudyInstanceUID, _DONE, _PATIENCE)
        assert study["result"]["probability"] is not None


def test_an_echo_is_answered(running: Gateway) -> None:
    echo = ["/usr/bin/echoscu", "-aec", running.ae_title, "127.0.0.1", str(running.dimse_port)]
    assert subprocess.run(echo, check=False).returncode == 0


def test_the_listener_stays_small_and_never_imports_torch(running: Gateway, tmp_path: Path) -> None:
    films = [factories.chest_film(seed, study="many") for seed in range(4)]
    push(running, tmp_path, *films)
    (listener, *_) = running.pids()["listener"]
    process = psutil.Process(listener)
    assert process.memory_info().rss < 250e6
    assert not [item.path for item in process.memory_maps() if "torch" in item.path]


def test_a_jpeg_2000_film_from_the_router_is_stored_as_it_came(running: Gateway, tmp_path: Path) -> None:
    film = factories.chest_film(16, rows=512, columns=480)
    path = factories.write(film, tmp_path, JPEG2000Lossless)
    assert running.send(path).returncode == 0
    running.wait_for_state(film.StudyInstanceUID, _DONE, _PATIENCE)
    kept = [dcmread(item) for item in (running.data_dir / "spool").rglob("*.dcm")]
    (stored,) = [item for item in kept if item.SOPInstanceUID == film.SOPInstanceUID]
    assert stored.file_meta.TransferSyntaxUID == JPEG2000Lossless
    assert stored.PixelData == dcmread(path).PixelData


def test_readiness_names_the_role_that_is_down_and_comes_back(running: Gateway) -> None:
    for pid in running.pids()["scheduler"]:
        psutil.Process(pid).suspend()
    ready = f"{running.http_url}/readyz"
    eventually(lambda: "scheduler" in HTTP.get(ready).json()["faults"], 30, "the scheduler missed")
    assert HTTP.get(ready).status_code == 503
    for pid in running.pids()["scheduler"]:
        psutil.Process(pid).resume()
    eventually(lambda: HTTP.get(ready).status_code == 200, 30, "the scheduler back")


def test_a_film_is_counted_at_every_stage_and_a_real_prometheus_sees_it(
    running: Gateway, pacs: Orthanc, tmp_path: Path
) -> None:
    with Prometheus(running.port) as prometheus:

        def counted() -> dict[str, float]:
            found = {
                item["metric"]["stage"]: float(item["value"][1])
                for item in prometheus.query("hilum_stage_seconds_count")
            }
            found["bytes"] = prometheus.value("sum(hilum_received_bytes_total)")
            found["stored"] = prometheus.value('sum(hilum_objects_received_total{status="0000"})')
            found["associations"] = prometheus.value('sum(hilum_associations_total{result="accepted"})')
            found["accepted"] = prometheus.value('hilum_deliveries_accepted_total{destination="PACS"}')
            found["results"] = prometheus.value("sum(hilum_results_total)")
            found["films"] = prometheus.value('sum(hilum_films_total{outcome=~"analysed|not_analysed"})')
            return found

        eventually(lambda: prometheus.value('up{job="hilum"}') == 1)
        before = counted()
        film = factories.chest_film("prometheus")
        push(running, tmp_path, film)
        running.wait_for_state(film.StudyInstanceUID, ("delivered", "confirmed"), _PATIENCE)
        eventually(
            lambda: all(now > before[name] for name, now in counted().items() if name != "confirm"),
            20,
            "every count has grown",
        )
        assert prometheus.value("time() - max(hilum_last_association_timestamp_seconds)") < _PATIENCE
        assert prometheus.value("min(hilum_role_up)") == 1
        assert len(prometheus.query("hilum_model_info")) == 1
        assert prometheus.query('ALERTS{alertstate="firing", alertname=~"Hilum.*Down"}') == []
