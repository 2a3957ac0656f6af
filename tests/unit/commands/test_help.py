"""What the help of the commands shows."""

import pytest
from typer.testing import CliRunner

from service.commands.main import app


@pytest.mark.parametrize("arguments", [["--help"], ["notices", "--help"], ["notices", "test", "--help"]])
def test_help_shows_the_table_that_a_notice_is_set_up_in(arguments: list[str]) -> None:
    assert "[notices.NAME]" in CliRunner().invoke(app, arguments).stdout
