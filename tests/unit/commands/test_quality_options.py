"""The command line of quality names what it takes."""

import typer.main

from service.commands.main import app
from service.core.quality import By


def test_every_grouping_is_named() -> None:
    command = typer.main.get_command(app).commands["quality"]  # type: ignore[attr-defined]
    told = next(option.help for option in command.params if option.name == "by")
    assert set(told.rstrip(".").replace(" or ", ", ").split(", ")) == set(By)
