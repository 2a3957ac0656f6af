"""What is written is held against the code."""

import re
from pathlib import Path

import typer

from service.commands.main import app
from service.core.settings import Settings

_ROOT = Path(__file__).parents[2]


def settings_table() -> list[str]:
    """Return the rows that the README's settings table must have."""
    rows = []
    for name, field in Settings.model_fields.items():
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


def test_every_file_that_a_document_points_to_is_there() -> None:
    for document in [_ROOT / "README.md", *(_ROOT / "deploy").glob("*.md"), _ROOT / "model" / "card.md"]:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} points to {target}"
