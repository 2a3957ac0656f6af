"""How the checks are shown on the screen."""

from io import StringIO

import pytest
from rich.console import Console

from service.commands.doctor import show
from service.core.checks import Check


@pytest.mark.parametrize(
    ("check", "mark"),
    [
        (Check("clock", True, "the same"), "right"),
        (Check("disk", True, "slow", "Take another", warns=True), "look at"),
        (Check("disk", False, "full", "Make room", warns=True), "wrong"),
    ],
)
def test_what_only_warns_is_to_be_looked_at(check: Check, mark: str) -> None:
    screen = StringIO()
    show(Console(file=screen), [check])
    assert screen.getvalue().startswith(f"{mark}  {check.name}: ")
