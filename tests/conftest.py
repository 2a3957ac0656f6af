"""What every test has: a clean environment, and real servers when it asks for them."""

import gc
import os
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.certificates import Authority
    from tests.servers import Gateway, Orthanc, PostgreSQL, Redis

pytest.register_assert_rewrite("tests.reading")

# The fixtures import tests.servers when called: tests of the network alone run where no database driver is.


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--screenshots",
        metavar="FOLDER",
        # Read before the settings of the developer are taken away below.
        default=os.environ.get("HILUM_SCREENSHOTS"),
        help="where the tests of viewers leave what they saw (or HILUM_SCREENSHOTS)",
    )


def pytest_configure() -> None:
    for name in [name for name in os.environ if name.startswith("HILUM_")]:
        del os.environ[name]
    # Plain tracebacks, as the roles write them: rich ones, with all locals, were a fifth of some tests' time.
    with suppress(ImportError):
        import structlog

        *others, _ = structlog.get_config()["processors"]
        plain = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        structlog.configure(processors=[*others, plain])


def pytest_collectstart() -> None:
    """Do not look for garbage in modules: they stay, and all at once they are half of a collection's time."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Look for it from here on, though not through the modules."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _settings_of_the_test_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the developer's own ``.env`` out of the settings that a test loads in this process."""
    settings = sys.modules.get("service.core.settings")
    if settings is not None:
        monkeypatch.setitem(settings.Settings.model_config, "env_file", None)


@pytest.fixture(autouse=True)
def _few_folders_in_the_data_folder() -> Iterator[None]:
    """Make a data folder of this process quicker to make and to remove: by a thousand folders."""
    # Not by the fixture monkeypatch, which a test may undo.
    with pytest.MonkeyPatch.context() as patch:
        spool = sys.modules.get("service.core.spool")
        if spool is not None:
            patch.setattr(spool, "PARTS", ("00", "1f", "37", "5a", "80", "a5", "c2", "ff"))
        yield


@pytest.fixture(autouse=True)
def _destinations_of_the_test_alone() -> Iterator[None]:
    """Forget which destinations another test had that left queries unanswered."""
    with pytest.MonkeyPatch.context() as patch:
        scu = sys.modules.get("worker.scu")
        if scu is not None:
            patch.setattr(scu, "_unanswered", {})
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Count a skipped test as failed in CI: what is skipped there is tested nowhere."""
    report = yield
    if os.environ.get("CI") == "true" and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, and nothing is skipped in CI: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Count a module skipped as a whole as failed in CI."""
    report = yield
    if os.environ.get("CI") == "true" and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped, and nothing is skipped in CI: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> "Authority":
    """A CA that both ends of a connection believe."""
    from tests.certificates import Authority

    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def redis() -> Iterator["Redis"]:
    """A Redis of the test's own, so that it may be killed."""
    from tests.servers import Redis

    with Redis() as server:
        yield server


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator["PostgreSQL"]:
    """One PostgreSQL for all tests of a process: not to be killed."""
    from tests.servers import PostgreSQL

    with PostgreSQL() as server:
        yield server


@pytest.fixture
def postgresql(postgresql_server: "PostgreSQL") -> str:
    """SQLAlchemy URL of a PostgreSQL database with an empty ledger."""
    from tests.ledgers import migrated_postgresql

    return migrated_postgresql(postgresql_server)


@pytest.fixture
def orthanc() -> Iterator["Orthanc"]:
    """An empty Orthanc of the test's own."""
    from tests.servers import Orthanc

    with Orthanc() as server:
        yield server


@pytest.fixture
def gateway() -> Iterator[Callable[..., "Gateway"]]:
    """Start a gateway with the given settings, such as ``gateway(population="flag")``, for this test."""
    from tests.servers import Gateway

    with ExitStack() as running:

        def start(**settings: Any) -> Gateway:
            return running.enter_context(Gateway(**settings))

        yield start
