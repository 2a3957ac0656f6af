"""The conformance statement is what the code says."""

import re
import subprocess
import sys

from tests.servers import ROOT

PAGE = (ROOT / "deploy/conformance.md").read_text(encoding="utf-8")


def test_the_statement_is_current() -> None:
    command = [sys.executable, "deploy/conformance.py", "--check"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr


def test_the_statement_has_the_parts_that_ps3_2_asks_for() -> None:
    chapters = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
    assert [chapter.split(". ", 1)[-1] for chapter in chapters] == [
        "Overview",
        "Introduction",
        "Implementation model",
        "Configuration",
        "Services",
        "Network communication",
        "Security",
        "Character sets",
        "Attributes of the objects",
        "Coded terminology",
        "IHE integration statement",
    ]


def test_the_statement_names_no_patient_of_an_example() -> None:
    assert not re.search(r"Test\^|20230101", PAGE)


def test_no_object_has_a_private_attribute() -> None:
    groups = {
        int(group, 16) for group in re.findall(r"^\| \(([0-9A-F]{4}),[0-9A-F]{4}\)", PAGE, re.MULTILINE)
    }
    assert groups
    assert not [group for group in groups if group % 2]
