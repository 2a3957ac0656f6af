"""When a program looks for garbage: not while a role starts, and always afterwards."""

import gc
from collections.abc import Callable, Iterator

import pytest
from typer.testing import CliRunner

from service.commands import main, roles, status


@pytest.fixture(autouse=True)
def _looking() -> Iterator[None]:
    gc.enable()
    yield
    gc.enable()


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[bool]]:
    """Return whether a command that calls this function looks for garbage when it does."""

    def run(module: object, name: str, *arguments: str) -> list[bool]:
        found: list[bool] = []
        monkeypatch.setattr(main, "load", lambda: None)
        monkeypatch.setattr(module, name, lambda *_, **__: found.append(gc.isenabled()))
        CliRunner().invoke(main.app, arguments)
        return found

    return run


def test_a_role_looks_for_no_garbage_until_it_has_started(seen: Callable[..., list[bool]]) -> None:
    assert seen(roles, "schedule", "scheduler") == [False]
    frozen = gc.get_freeze_count()
    roles.started()
    assert gc.isenabled()
    assert gc.get_freeze_count() > frozen


def test_every_other_command_always_does(seen: Callable[..., list[bool]]) -> None:
    assert seen(status, "status", "status") == [True]
