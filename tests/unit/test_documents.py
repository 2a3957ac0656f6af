"""What is written is held against the code."""

import re
from contextlib import closing
from pathlib import Path

import typer
from prometheus_client import generate_latest

from service.api.metrics import registry
from service.commands.main import app
from service.core.ledger import Ledger
from service.core.live import Live
from service.core.settings import Settings, load
from tests.ledgers import migrated

_ROOT = Path(__file__).parents[2]


# What stands in the file of HILUM_CONFIG alone has its name there as an alias.
VARIABLES = {name: field for name, field in Settings.model_fields.items() if field.validation_alias is None}


def settings_table() -> list[str]:
    """Return the rows that the README's settings table must have."""
    rows = []
    for name, field in VARIABLES.items():
        default = field.default
        shown = "(none)" if default is None or default == () else str(default)
        rows.append(f"| HILUM_{name.upper()} | {shown} | {field.description} |")
    return rows


def test_the_readme_s_settings_are_those_of_the_code() -> None:
    written = [line for line in (_ROOT / "README.md").read_text().splitlines() if line.startswith("| HILUM_")]
    assert written == settings_table()


def test_every_command_in_the_readme_exists_and_none_is_left_out() -> None:
    commands = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    named = set(re.findall(r"`hilum ([a-z]+)", (_ROOT / "README.md").read_text()))
    assert named == commands


def test_every_command_that_is_run_in_a_container_is_given_to_its_entrypoint() -> None:
    assert 'ENTRYPOINT ["hilum"]' in (_ROOT / "deploy" / "Dockerfile").read_text()
    commands = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    documents = [_ROOT / "README.md", *(_ROOT / "deploy").glob("*.md")]
    run = [
        first
        for document in documents
        for first in re.findall(r"docker compose run --rm .*?worker-deliver (\w+)", document.read_text())
    ]
    assert len(run) > 3
    assert set(run) <= commands


def test_every_file_that_a_document_points_to_is_there() -> None:
    for document in [_ROOT / "README.md", *(_ROOT / "deploy").glob("*.md"), _ROOT / "model" / "card.md"]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} points to {target}"


RUNBOOK = (_ROOT / "deploy" / "runbook.md").read_text()


def code() -> str:
    """Return our source with adjacent string literals joined, as a reader of the log sees them."""
    sources = [path for room in ("service", "worker") for path in (_ROOT / room).rglob("*.py")]
    return re.sub(r'"\s*\n\s*f?"', "", "\n".join(path.read_text() for path in sources))


def test_every_event_that_the_runbook_names_is_logged() -> None:
    logged = set(re.findall(r'_log\.\w+\(\s*"([a-z_.]+)"(?: if \w+ else "([a-z_.]+)")?', code()))
    known = {name for pair in logged for name in pair if name}
    named = set(re.findall(r"`([a-z]+\.[a-z_]+)`", RUNBOOK)) - {"ledger.sqlite3", "erased.jsonl"}
    assert named
    assert named <= known


def test_every_entry_of_the_runbook_has_sign_check_and_mend() -> None:
    entries = re.findall(r"^### (.*?)\n(.*?)(?=^##|\Z)", RUNBOOK, re.MULTILINE | re.DOTALL)
    faults = {name: text for name, text in entries if "**Sign.**" in text}
    assert len(faults) > 15
    for name, text in faults.items():
        parts = re.findall(r"\*\*(Sign|Check|Mend)\.\*\*", text)
        assert parts == ["Sign", "Check", "Mend"] * (len(parts) // 3), name
        for check in re.findall(r"\*\*Check\.\*\* (.*)", text):
            assert "`" in check, name


def test_every_setting_and_command_in_the_runbook_exists() -> None:
    settings = set(re.findall(r"\b(HILUM_[A-Z_]+)", RUNBOOK))
    assert settings <= {f"HILUM_{name.upper()}" for name in VARIABLES}
    commands = set(re.findall(r"\bhilum ([a-z]+)", RUNBOOK))
    assert commands <= {*typer.main.get_command(app).commands, "hilum"}  # type: ignore[attr-defined]


def test_what_the_runbook_quotes_is_what_the_code_says() -> None:
    said = code()
    quoted = re.findall(r'`"([^`]+)"`', RUNBOOK)
    # What stands for a value is an ellipsis; so are the brackets around one.
    parts = [part.strip(" ().") for quote in quoted for part in re.split(r"\(?…\)?|\b3\b|\b15\b", quote)]
    assert len(quoted) > 20
    assert [part for part in parts if part and part not in said] == []


def test_every_entry_of_the_runbook_that_the_code_names_is_there() -> None:
    named = re.findall(r'"([^"]+)" in the runbook', code())
    assert "a certificate ended" in named
    assert {name.capitalize() for name in named} <= set(re.findall(r"^### (.+)$", RUNBOOK, re.M))


def scraped(folder: Path) -> set[str]:
    """Return the names of all samples and families that `/metrics` has."""
    settings = load(data_dir=folder)
    migrated(settings.sqlalchemy_url)
    with closing(Ledger(settings.sqlalchemy_url)) as ledger:
        text = generate_latest(registry(Live(settings), ledger)).decode()
    families = set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE))
    return families | set(re.findall(r"^(hilum_\w+)", text, re.MULTILINE))


def test_every_metric_in_the_runbook_is_scraped(tmp_path: Path) -> None:
    named = set(re.findall(r"\b(hilum_[a-z_]+)", RUNBOOK))
    assert named
    assert named <= scraped(tmp_path)


def test_every_test_that_the_security_page_names_is_there() -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", (_ROOT / "deploy" / "security.md").read_text())
    assert len(named) > 60
    for file, function in named:
        assert f"def {function}(" in (_ROOT / "tests" / file).read_text(), f"{file}::{function}"
