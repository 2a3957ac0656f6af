"""One patient whose every attribute is a canary goes through the whole gateway, by good ways and bad ones;
then everything that is kept or said is searched for canaries.

They may be in the ledger's table `subject`, in received bytes and in results; the audit trail names the
patient's ID. Every logger of every process is at its lowest level meanwhile.
"""

import base64
import os
import re
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import redis
from lxml import etree
from pydicom import Dataset, dcmread
from pynetdicom import AE, evt
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    Comprehensive3DSRStorage,
    ComprehensiveSRStorage,
    SecondaryCaptureImageStorage,
)

from tests import audit_trail, factories
from tests.faults.web import OddServer, body, http, post
from tests.servers import Gateway, Orthanc, eventually

pytestmark = pytest.mark.e2e
CANARY = "CANARY"
BIRTH_DATE = "20220317"
KANJI = "金糸雀"
_PATIENCE = 90.0
# Every logger says everything, pydicom's too, and every warning is shown.
_AT_ITS_LOWEST = """
import logging, warnings
logging.Logger.getEffectiveLevel = lambda self: logging.DEBUG
logging.Logger.isEnabledFor = lambda self, level: level >= logging.DEBUG
warnings.simplefilter("always")
import pydicom.config
pydicom.config.debug(True, default_handler=False)
"""
# Attributes that identify the patient, or into which people type.
_TEXTS = """
    AccessionNumber AdditionalPatientHistory AdmissionID Allergies CountryOfResidence
    CurrentPatientLocation
    DerivationDescription DeviceSerialNumber EthnicGroup FillerOrderNumberImagingServiceRequest
    ImageComments InstitutionAddress InstitutionName InstitutionalDepartmentName IssuerOfPatientID
    MedicalAlerts MedicalRecordLocator MilitaryRank Occupation OtherPatientIDs PatientAddress
    PatientComments PatientID PatientReligiousPreference PatientState
    PatientTelephoneNumbers PerformedProcedureStepDescription PlacerOrderNumberImagingServiceRequest
    ProtocolName ReasonForStudy RegionOfResidence RequestedProcedureComments RequestedProcedureDescription
    RequestedProcedureID SeriesDescription SpecialNeeds StationName
    StudyComments StudyDescription StudyID
"""
_NAMES = """
    NameOfPhysiciansReadingStudy OperatorsName OtherPatientNames PatientBirthName PatientMotherBirthName
    PerformingPhysicianName PhysiciansOfRecord ReferringPhysicianName RequestingPhysician
    ResponsiblePerson ScheduledPerformingPhysicianName
"""
# Values that decide something, so that they are looked at, compared, and complained about.
_ODD = {
    "AcquisitionDateTime": CANARY,
    "BodyPartExamined": f"{CANARY} KNEE",
    "BurnedInAnnotation": CANARY,
    "ImageType": ["ORIGINAL", CANARY],
    "Modality": CANARY,
    "PatientAge": "CANA",
    "PatientSex": CANARY,
    "PhotometricInterpretation": CANARY,
    "PresentationIntentType": CANARY,
    "PresentationLUTShape": CANARY,
    "RescaleType": CANARY,
    "SpecificCharacterSet": CANARY,
    "VOILUTFunction": CANARY,
    "ViewPosition": CANARY,
    "WindowCenterWidthExplanation": CANARY,
}
# What is no number, date or UID at all: pydicom repeats such values in exceptions.
_BROKEN = ("BitsStored", "DeviceUID", "PatientBirthDate", "StudyDate", "WindowCenter", "Columns")


class AtItsLowest(Gateway):
    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)
        self.answers: list[httpx.Response] = []
        self.temporary = self.folder / "tmp"
        self.temporary.mkdir()

    def upload(self, *contents: bytes, study: str = "") -> int:
        """Send one request with objects, and keep what is answered."""
        self.answers.append(post(self.http_url, body(*contents), study=study))
        return self.answers[-1].status_code

    def environment(self) -> dict[str, str]:
        found = super().environment() | {"TMPDIR": str(self.temporary)}
        (self.folder / "sitecustomize.py").write_text(_AT_ITS_LOWEST)
        return found | {"PYTHONPATH": os.pathsep.join([str(self.folder), found["PYTHONPATH"]])}


def patient(number: int) -> dict[str, Any]:
    """Return attributes of a patient; each text is one that stands nowhere else."""
    given: dict[str, Any] = {
        keyword: f"{CANARY}{number}{index}" for index, keyword in enumerate(_TEXTS.split())
    }
    given |= {keyword: f"{CANARY}{number}^{keyword}" for keyword in _NAMES.split()}
    given["PatientName"] = f"{CANARY}{number}^Yellow={KANJI}^太郎=カナリア^タロウ"
    given["PatientBirthDate"] = BIRTH_DATE
    return given


def film(seed: str, *, study: str | None = None, number: int = 1, **attributes: Any) -> Dataset:
    """Return a film all of whose words are canaries; that of the seed "good" is one that is analysed."""
    given = {**patient(number), "DeviceUID": "1.2.3.4", **attributes}
    if seed == "good":
        made = factories.chest_film(seed, study=study or seed, rows=489, columns=460, **given)
    else:
        made = factories.phantom_chest(seed, study=study or seed, **given)
    private = made.private_block(0x0011, f"{CANARY} MAKER", create=True)
    private.add_new(0x01, "LO", f"{CANARY}PRIVATE")
    private.add_new(0x02, "UN", f"{CANARY}UNKNOWN".encode())
    private.add_new(0x03, "PN", f"{CANARY}^Private")
    other = Dataset()
    other.PatientID, other.IssuerOfPatientID = f"{CANARY}OTHER", f"{CANARY}ISSUER"
    made.OtherPatientIDsSequence = [other]
    request = Dataset()
    request.RequestedProcedureDescription = request.ScheduledProcedureStepDescription = f"{CANARY}REQUEST"
    made.RequestAttributesSequence = [request]
    return made


def overwritten(path: Path, keyword: str) -> Path:
    """Put a canary of the same length in place of an element's value, whatever its representation."""
    element = dcmread(path)[keyword]
    content = path.read_bytes()
    tag = element.tag
    at = content.index(tag.group.to_bytes(2, "little") + tag.elem.to_bytes(2, "little") + element.VR.encode())
    length = int.from_bytes(content[at + 6 : at + 8], "little")
    path.write_bytes(content[: at + 8] + (CANARY * 20).encode()[:length] + content[at + 8 + length :])
    return path


def needles() -> tuple[list[bytes], list[bytes]]:
    """Return what to look for: in lower case, and exactly."""
    found = [text.encode(coding) for text in (CANARY, BIRTH_DATE) for coding in ("utf-8", "utf-16-le")]
    found += [f"{BIRTH_DATE[:4]}-{BIRTH_DATE[4:6]}-{BIRTH_DATE[6:]}".encode(), CANARY.encode().hex().encode()]
    found += [KANJI[:2].encode("unicode_escape")]
    exactly = [KANJI.encode(coding) for coding in ("utf-8", "utf-16-le", "shift_jis", "iso2022_jp", "euc_jp")]
    for before, undecided in ((0, 0), (1, 2), (2, 3)):
        # The characters of base64 that CANARY decides, wherever it stands.
        coded = base64.b64encode(bytes(before) + CANARY.encode())
        exactly.append(coded[undecided : (before + len(CANARY)) * 8 // 6])
    return [needle.lower() for needle in found], exactly


def canaries(content: bytes) -> list[str]:
    """Return what of the patient stands in `content`, with some of what is around it."""
    in_lower_case, exactly = needles()
    lowered = content.lower()
    places = [lowered.find(needle) for needle in in_lower_case] + [content.find(needle) for needle in exactly]
    return [
        content[max(0, at - 200) : at + 60].decode("utf-8", "backslashreplace") for at in places if at >= 0
    ]


def refuses(event: Any) -> Dataset:
    """Answer as an archive that tells whose object it does not take."""
    status = Dataset()
    status.Status = 0xA900
    status.ErrorComment = f"{CANARY}^Comment is another one"[:64]
    status.OffendingElement = [0x00100010]
    return status


@contextmanager
def lived_through(folder: Path) -> Iterator[AtItsLowest]:
    """Give the gateway after all that can happen to a patient."""
    archive = AE("REFUSES")
    for sop_class in (Comprehensive3DSRStorage, ComprehensiveSRStorage, SecondaryCaptureImageStorage):
        archive.add_supported_context(sop_class, ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.50"])
    refusing = archive.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, refuses)])
    assert refusing is not None
    # The worst that a shell or a service manager can start it with.
    before = os.umask(0)
    words = http(400, f"{CANARY}^Yellow is not welcome".encode(), f"text/{CANARY}", f"X-Patient: {CANARY}")
    with (
        Orthanc() as pacs,
        OddServer(*[words] * 5000) as web,
        AtItsLowest(
            destinations=f"PACS={pacs.destination},REFUSES=dicom://REFUSES@127.0.0.1:"
            f"{refusing.server_address[1]},WEB={web.url}",
            population="flag",
            calling_ae_titles="TEST",
            min_free_bytes=0,
        ) as gateway,
    ):
        os.umask(before)
        good = film("good")
        held = [film("held-1", study="held"), film("held-2", study="held", number=2)]
        odd = [film(f"odd-{keyword}", **{keyword: value}) for keyword, value in _ODD.items()]
        paths = [factories.write(item, folder) for item in (good, *held, *odd)]
        paths += [
            overwritten(factories.write(film(f"broken-{keyword}"), folder), keyword) for keyword in _BROKEN
        ]
        assert gateway.send(*paths).returncode == 0
        for keyword in ("SOPInstanceUID", "StudyInstanceUID"):
            gateway.send(overwritten(factories.write(film(f"refused-{keyword}"), folder), keyword))
        damaged = factories.write(film("damaged"), folder)
        damaged.write_bytes(damaged.read_bytes()[:60_000])
        gateway.send(damaged)
        assert gateway.send(paths[0], calling_ae_title="STRANGER").returncode != 0
        assert gateway.send(paths[0]).returncode == 0
        assert (
            gateway.send(factories.write(film("good", PatientComments="CANARY corrected"), folder)).returncode
            == 0
        )
        assert gateway.upload(damaged.read_bytes()) in (200, 409)
        for keyword in ("SOPInstanceUID", "StudyInstanceUID"):
            refused = overwritten(factories.write(film(f"refused-{keyword}-web"), folder), keyword)
            assert gateway.upload(refused.read_bytes()) == 409
        program = b"MZ".ljust(128) + factories.write(film("program"), folder).read_bytes()[128:]
        assert gateway.upload(program) == 200
        assert gateway.upload(CANARY.encode() * 100, paths[0].read_bytes()) == 202
        assert gateway.upload(paths[0].read_bytes(), study=CANARY) == 400
        assert gateway.upload(paths[0].read_bytes(), study="1.2.3") == 409
        gateway.wait_for_state(held[0].StudyInstanceUID, "held", _PATIENCE)
        study = str(good.StudyInstanceUID)
        eventually(
            lambda: (
                {item["destination"]: item["state"] for item in (gateway.study(study) or {})["deliveries"]}
                == {"PACS": "delivered", "REFUSES": "parked", "WEB": "parked"}
            ),
            _PATIENCE,
            "one report taken and two refused",
        )
        assert gateway.run("status", study).returncode == 0
        yield gateway
    refusing.shutdown()


def test_the_search_finds_what_it_looks_for() -> None:
    for text in (CANARY, "xCanary", BIRTH_DATE, KANJI, "2022-03-17"):
        assert canaries(f"before {text} behind".encode())
    for before in range(3):
        assert canaries(base64.b64encode(b"x" * before + f"{CANARY}^A".encode()))
    assert canaries(f"{CANARY}^A".encode("utf-16-le"))
    assert canaries(repr(KANJI.encode("unicode_escape")).encode().replace(b"\\\\", b"\\"))
    assert not canaries(b"a good line, 2022-03-18, canar")


def no_process_says_whose_films_it_has(lived: Gateway) -> None:
    log = lived.log()
    assert "receive.refused" in log
    assert "association.rejected" in log
    assert len(log.splitlines()) > 500, "the loggers are not at their lowest"
    assert canaries(log.encode()) == []


def no_page_of_the_api_says_whose_films_it_has(lived: Gateway) -> None:
    listed = httpx.get(f"{lived.http_url}/openapi.json").json()
    studies = [item["study_instance_uid"] for item in lived.studies()]
    asked = []
    for path, methods in listed["paths"].items():
        if "get" in methods:
            asked += [re.sub(r"\{\w+\}", uid, path) for uid in (studies if "{" in path else studies[:1])]
    assert len(asked) > len(studies)
    for path in asked:
        everything = {"params": {"rows": "true"}, "headers": {"Last-Event-ID": "1"}}
        with httpx.stream("GET", lived.http_url + path, **everything, timeout=10) as answer:
            assert canaries(_read(answer)) == [], path


def _read(answer: httpx.Response) -> bytes:
    """Return what an answer has; of one without an end, what comes within a second or before a silence."""
    content, end = bytearray(), time.monotonic() + 1.0
    endless = "event-stream" in answer.headers["content-type"]
    with suppress(httpx.ReadTimeout) if endless else nullcontext():
        for chunk in answer.iter_raw():
            content += chunk
            if endless and time.monotonic() > end:
                break
    return bytes(content)


def no_answer_to_an_upload_repeats_what_it_holds(lived: AtItsLowest) -> None:
    assert len(lived.answers) > 5
    for answer in lived.answers:
        said = repr(answer.headers).encode() + answer.content
        assert canaries(said) == [], answer.text


def redis_and_the_messages_in_it_name_nobody(lived: Gateway) -> None:
    files = [path for path in (lived.data_dir / "redis").rglob("*") if path.is_file()]
    written = b"".join(path.read_bytes() for path in files)
    assert b"hilum.report" in written, "the append-only file holds every message that there was"
    assert canaries(written) == []
    socket = (lived.data_dir / "redis" / "socket").read_text()
    with redis.Redis(unix_socket_path=socket) as broker:
        keys = broker.keys()
        assert keys
        assert canaries(repr([(key, broker.type(key), _content(broker, key)) for key in keys]).encode()) == []


def _content(broker: Any, key: bytes) -> Any:
    read = {
        b"hash": broker.hgetall,
        b"list": lambda name: broker.lrange(name, 0, -1),
        b"set": broker.smembers,
        b"string": broker.get,
        b"zset": lambda name: broker.zrange(name, 0, -1),
    }
    return read[broker.type(key)](key)


def no_temporary_file_has_anything_of_a_patient(lived: AtItsLowest) -> None:
    files = [path for path in lived.temporary.rglob("*") if path.is_file()]
    assert [path for path in files if canaries(str(path).encode() + path.read_bytes())] == []


def the_ledger_names_patients_in_one_table_only(lived: Gateway) -> None:
    with closing(sqlite3.connect(f"file:{lived.data_dir}/ledger.sqlite3?mode=ro", uri=True)) as ledger:
        tables = [name for (name,) in ledger.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        assert len(tables) > 10
        found = {
            name: canaries(repr(ledger.execute(f"SELECT * FROM {name}").fetchall()).encode())
            for name in tables
        }
    assert found.pop("subject")
    assert {name: seen for name, seen in found.items() if seen} == {}


def files_name_nobody_and_only_what_is_meant_to_holds_a_patient(lived: Gateway) -> None:
    holding = set()
    for path in lived.data_dir.rglob("*"):
        relative = path.relative_to(lived.data_dir)
        assert canaries(str(relative).encode()) == []
        if path.is_file() and canaries(path.read_bytes()):
            holding.add(relative.parts[0].removesuffix("-wal"))
    assert holding == {"spool", "reports", "ledger.sqlite3", "audit"}


def the_audit_trail_is_whole_and_names_patients_by_id_alone(lived: Gateway) -> None:
    told = audit_trail.messages(lived.data_dir)
    assert {audit_trail.event(item)[0] for item in told} == {"110100", "110104", "110113"}
    started = {
        audit_trail.role(item, "110150").get("UserName")
        for item in told
        if audit_trail.event(item)[1] == "110120"
    }
    pools = {f"hilum worker {queue}" for queue in ("decode", "infer", "report", "deliver")}
    assert started == {"hilum listener", "hilum api", "hilum scheduler"} | pools
    for item in told:
        for patient in item.xpath("ParticipantObjectIdentification[@ParticipantObjectTypeCode='1']"):
            patient.getparent().remove(patient)
        assert canaries(etree.tostring(item)) == []
    assert lived.run("audit", "verify").returncode == 0


def no_command_line_no_environment_and_no_core_names_anybody(lived: Gateway) -> None:
    processes = [psutil.Process(pid) for pids in lived.pids().values() for pid in pids]
    assert len(processes) > 8
    for process in processes:
        assert canaries(repr((process.cmdline(), process.environ())).encode()) == []
        assert process.rlimit(psutil.RLIMIT_CORE) == (0, 0)


def files_are_their_owner_s_alone_whatever_the_umask(lived: Gateway) -> None:
    socket = Path((lived.data_dir / "redis" / "socket").read_text())
    found = [lived.data_dir, *lived.data_dir.rglob("*"), socket.parent, socket]
    kinds = {path.name if path.parent == lived.data_dir else path.suffix for path in found}
    assert {".dcm", ".npy", ".aof", ".sock", "ledger.sqlite3", "ledger.sqlite3-wal", "up.lock"} <= kinds
    open_to_others = {path: oct(path.stat().st_mode) for path in found if path.stat().st_mode & 0o077}
    assert open_to_others == {}
    assert not [path for path in found if path.is_file() and path.stat().st_mode & stat.S_IXUSR]


def no_file_that_is_kept_or_made_has_anything_in_its_preamble(lived: Gateway) -> None:
    files = [path for folder in ("spool", "reports") for path in (lived.data_dir / folder).rglob("*.dcm")]
    assert len(files) > 10
    assert {path.read_bytes()[:132] for path in files} == {bytes(128) + b"DICM"}


@pytest.mark.long
def test_a_patient_of_canaries_is_found_nowhere_but_where_patients_may_be(tmp_path: Path) -> None:
    """One test, since all of it looks at one gateway that takes its time."""
    broken = []
    with lived_through(tmp_path) as lived:
        for check in (
            no_process_says_whose_films_it_has,
            no_page_of_the_api_says_whose_films_it_has,
            no_answer_to_an_upload_repeats_what_it_holds,
            redis_and_the_messages_in_it_name_nobody,
            the_ledger_names_patients_in_one_table_only,
            no_temporary_file_has_anything_of_a_patient,
            files_name_nobody_and_only_what_is_meant_to_holds_a_patient,
            the_audit_trail_is_whole_and_names_patients_by_id_alone,
            no_command_line_no_environment_and_no_core_names_anybody,
            files_are_their_owner_s_alone_whatever_the_umask,
            no_file_that_is_kept_or_made_has_anything_in_its_preamble,
        ):
            try:
                check(lived)
            except AssertionError as fault:
                broken.append(f"{check.__name__}: {fault}")
    assert broken == []
