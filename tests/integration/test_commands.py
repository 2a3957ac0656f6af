"""The command line: one line on stderr for what is wrong, and an exit code that says so."""

import json
import socket
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.uid import JPEGExtended12Bit
from rich.console import Console

from model.weights import default_weights, read_info
from service.commands import analyse
from service.core.results import Finding, Result
from tests import factories
from tests.servers import StoreScp

_ROOT = Path(__file__).parents[2]


def hilum(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run `hilum` in a folder of its own with the given HILUM_* settings."""
    environment = {f"HILUM_{name.upper()}": value for name, value in settings.items()}
    return subprocess.run(
        [sys.executable, "-m", "service.commands.main", *arguments],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_without_a_command_the_help_is_shown(tmp_path: Path) -> None:
    assert "doctor" in hilum(tmp_path, "--help").stdout


@pytest.mark.parametrize(
    "command", ["up", "listen", "api", "scheduler", "worker", "migrate", "doctor", "status"]
)
def test_a_wrong_setting_stops_every_command_with_one_line_a_fault(tmp_path: Path, command: str) -> None:
    stopped = hilum(tmp_path, command, dimse_port="0", population="all")
    assert stopped.returncode == 2
    lines = stopped.stderr.strip().splitlines()
    assert len(lines) == 2
    assert all(line.startswith("hilum: HILUM_") for line in lines)
    assert not list(tmp_path.iterdir())


def test_a_role_without_a_migrated_ledger_says_what_to_run(tmp_path: Path) -> None:
    stopped = hilum(tmp_path, "api", min_free_bytes="0")
    assert stopped.returncode == 2
    assert "hilum migrate" in stopped.stderr
    assert "Traceback" not in stopped.stderr


@pytest.mark.parametrize("command", ["quality", "backfill list"])
def test_a_command_in_the_wrong_folder_says_where_it_looked_for_a_ledger(
    tmp_path: Path, command: str
) -> None:
    result = hilum(tmp_path, *command.split())
    assert result.returncode == 2
    assert "there is no ledger at " in result.stderr
    assert "hilum-data/ledger.sqlite3" in result.stderr
    assert "HILUM_DATA_DIR" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_scheduler_without_redis_says_what_to_start(tmp_path: Path) -> None:
    assert hilum(tmp_path, "migrate").returncode == 0
    stopped = hilum(tmp_path, "scheduler", min_free_bytes="0")
    assert stopped.returncode == 2
    assert "hilum up" in stopped.stderr


def test_analyse_answers_for_dicom_and_pictures_alike(tmp_path: Path) -> None:
    noise = tmp_path / "noise.png"
    Image.effect_noise((200, 200), 80).save(noise)
    leg = str(get_testdata_file("RG3_UNCR.dcm", download=False))
    done = hilum(tmp_path, "analyse", "--json", leg, str(noise), population="flag")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert [item["finding"] for item in said] == ["not_analysed", "not_analysed"]
    assert [item["probability"] for item in said] == [None, None]
    assert all("not a frontal chest radiograph" in item["reason"] for item in said)


def test_analyse_refuses_an_adult_unless_the_site_says_flag(tmp_path: Path) -> None:
    chest = str(get_testdata_file("RG1_UNCR.dcm", download=False))
    (refused,) = json.loads(hilum(tmp_path, "analyse", "--json", chest).stdout)
    (flagged,) = json.loads(hilum(tmp_path, "analyse", "--json", chest, population="flag").stdout)
    assert (refused["finding"], refused["probability"]) == ("not_analysed", None)
    assert 0 <= flagged["probability"] <= 1
    assert "64 years" in refused["reason"]
    assert "64 years" in flagged["flags"][0]
    assert refused["validated"] is None
    assert "age 64 Y, outside of the validated 1 to 5 Y" in flagged["validated"]
    table = hilum(tmp_path, "analyse", chest, population="flag").stdout
    assert "not recorded of the validated films" in " ".join(table.replace("│", " ").split())


def test_the_table_of_analyse_names_the_pattern_as_its_json_does() -> None:
    answer = analyse.Answered(Path("film.dcm"), Result(Finding.PRESENT, 0.9, 0.5, pattern="viral"))
    printed = StringIO()
    Console(file=printed, width=120).print(analyse._table([answer], read_info(default_weights())))
    assert "viral pattern" in printed.getvalue()


def test_analyse_names_what_it_cannot_read_and_goes_on(tmp_path: Path) -> None:
    text = tmp_path / "text.dcm"
    text.write_text("no film\n" * 50)
    leg = str(get_testdata_file("RG3_UNCR.dcm", download=False))
    done = hilum(tmp_path, "analyse", "--json", str(text), leg)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    first, second = json.loads(done.stdout)
    assert first["finding"] is None
    assert first["error"]
    assert second["finding"] == "not_analysed"


def test_weights_with_a_changed_byte_are_refused_in_one_line(tmp_path: Path) -> None:
    from model.weights import default_weights

    weights = tmp_path / "w.safetensors"
    content = bytearray(default_weights().read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    sidecar = default_weights().with_name(default_weights().name + ".sha256").read_text()
    weights.with_name("w.safetensors.sha256").write_text(sidecar)
    leg = str(get_testdata_file("RG3_UNCR.dcm", download=False))
    stopped = hilum(tmp_path, "analyse", leg, weights=str(weights))
    assert stopped.returncode == 2
    assert len(stopped.stderr.strip().splitlines()) == 1


def test_a_worker_that_is_configured_wrongly_stops_its_start(tmp_path: Path) -> None:
    assert hilum(tmp_path, "migrate").returncode == 0
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"no weights")
    given = {"weights": str(weights), "broker_url": "redis://127.0.0.1:9/0", "min_free_bytes": "0"}
    stopped = hilum(tmp_path, "worker", "--queue", "decode", **given)
    assert stopped.returncode == 2
    first, last = [line for line in stopped.stderr.splitlines() if line.startswith("hilum: ")]
    assert "w.safetensors" in first
    assert last == "hilum: decode can't start: see its line above"


def test_a_token_s_secret_matches_its_entry(tmp_path: Path) -> None:
    import hashlib

    lines = hilum(tmp_path, "token", "ward", "--role", "clinician").stdout.splitlines()
    secret, entry = (line.rsplit(" ", 1)[1] for line in lines)
    assert entry == f"ward:clinician:{hashlib.sha256(secret.encode()).hexdigest()}"


def test_a_study_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    hilum(tmp_path, "migrate")
    for command in ("status", "retry"):
        missing = hilum(tmp_path, command, "1.2.3")
        assert missing.returncode == 1
        assert "1.2.3" in missing.stderr


def test_doctor_points_at_destinations_that_are_named_twice(tmp_path: Path) -> None:
    config = tmp_path / "hilum.toml"
    config.write_text('[destinations.PACS]\nurl = "dicom://PACS@127.0.0.2:9"\n')
    once = hilum(tmp_path, "doctor", "--json", config=str(config), min_free_bytes="0")
    twice = hilum(
        tmp_path,
        "doctor",
        "--json",
        config=str(config),
        destinations="PACS=dicom://PACS@127.0.0.1:9",
        min_free_bytes="0",
    )
    said = [
        next(check for check in json.loads(run.stdout) if check["name"] == "configuration file")
        for run in (once, twice)
    ]
    assert "HILUM_DESTINATIONS" not in said[0]["seen"]
    assert "HILUM_DESTINATIONS counts, not its [destinations]" in said[1]["seen"]
    assert said[1]["mend"].startswith("Take HILUM_DESTINATIONS out of .env")


def test_doctor_names_each_fault_with_its_mend(tmp_path: Path) -> None:
    done = hilum(
        tmp_path, "doctor", "--json", destinations="PACS=dicom://PACS@127.0.0.1:9", min_free_bytes="0"
    )
    assert done.returncode == 1
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert checks["data folder"]["right"]
    assert "hilum migrate" in checks["ledger"]["mend"]
    assert "hilum up" in checks["Redis"]["mend"]
    assert not checks["destination PACS"]["right"]
    assert checks["admission"]["warns"]
    assert checks["decoders"]["right"]
    assert checks["weights"]["right"]


def test_the_demo_leaves_what_is_not_its_own_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "keep.txt").write_text("precious")
    (tmp_path / "text.dcm").write_text("no film\n" * 50)
    stopped = hilum(tmp_path, "demo", "--out", "mine", "text.dcm")
    assert stopped.returncode == 2
    assert (tmp_path / "mine" / "keep.txt").read_text() == "precious"


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        (["migrate"], {"database_url": "rubbish"}),
        (["migrate"], {"database_url": "mysql://x/y"}),
        (["migrate"], {"database_url": "postgresql+psycopg://nobody@127.0.0.1:9/none"}),
        (["status"], {"database_url": "postgresql+psycopg://nobody@127.0.0.1:9/none"}),
        (["doctor"], {"broker_url": "redis://:x:y"}),
        (["send", ".", "--to", "dicom://A@127.0.0.1:abc"], {}),
        (["analyse", "nothing.dcm"], {}),
        (["demo", "nothing.dcm"], {}),
        (["demo"], {"weights": "/etc/hostname"}),
    ],
)
def test_what_is_wrong_is_one_line_and_no_traceback(
    tmp_path: Path, arguments: list[str], settings: dict[str, str]
) -> None:
    stopped = hilum(tmp_path, *arguments, **settings)
    assert stopped.returncode != 0
    assert "Traceback" not in stopped.stderr
    assert len(stopped.stderr.strip().splitlines()) == 1, stopped.stderr


@pytest.mark.parametrize("command", ["up", "listen", "api"])
def test_a_port_that_is_taken_is_named(tmp_path: Path, command: str) -> None:
    hilum(tmp_path, "migrate")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        stopped = hilum(tmp_path, command, dimse_port=port, http_port=port, min_free_bytes="0")
    assert stopped.returncode == 2
    assert f"127.0.0.1:{port}" in stopped.stderr
    assert "Traceback" not in stopped.stderr


def test_a_transfer_syntax_that_the_receiver_does_not_take_is_named(tmp_path: Path) -> None:
    """Alone, and beside a film of the same SOP class that is taken."""
    film, other = factories.phantom_chest(0), factories.phantom_chest(1)
    extended = factories.write(film, tmp_path, JPEGExtended12Bit)
    with StoreScp(film.SOPClassUID) as pacs:
        for accepted in (0, 1):
            sent = hilum(tmp_path, "send", str(tmp_path), "--to", pacs.destination)
            said = f"{extended}: the receiver does not take {film.SOPClassUID.name} in JPEG Extended"
            assert said in sent.stderr
            assert sent.stdout.startswith(f"{accepted} of {accepted + 1} file(s) accepted")
            factories.write(other, tmp_path)


def test_file_and_folder_names_are_names_and_no_commands(tmp_path: Path) -> None:
    hostile = tmp_path / "$(touch made-1)" / ";touch made-2;`touch made-3` && touch made-4|x.dcm"
    hostile.parent.mkdir()
    values = {"PatientName": "$(touch made-5)", "StudyDescription": ";touch made-6", "StationName": "`x`"}
    film = factories.phantom_chest(0, **values)
    factories.write(film, tmp_path).rename(hostile)
    with StoreScp(film.SOPClassUID) as pacs:
        sent = hilum(tmp_path, "send", str(hostile.parent), "--to", pacs.destination)
        assert sent.returncode == 0, sent.stderr
        assert len(list(pacs.received.iterdir())) == 1
    assert [path for path in tmp_path.rglob("*made-*") if path not in (hostile, hostile.parent)] == []
