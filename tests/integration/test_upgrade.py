"""The way to another version and back, as deploy/upgrade.md says it."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import MetaData, Table, insert, select, text

from service.core import ledger as core_ledger
from service.core.backup import back_up, restore
from service.core.errors import ConfigurationError
from service.core.ledger import _alembic_config, check_migrated, migrate, open_engine
from service.core.states import StudyState
from tests import factories
from tests.pipeline import film, opened_at, receive, reports, says, study, work
from worker.context import Context

both = pytest.mark.parametrize("database", ["sqlite", "postgresql"])


@pytest.fixture
def fresh_url(database: str, request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """Make an empty database and return its URL."""

    def made(name: str) -> str:
        if database == "sqlite":
            return f"sqlite:///{tmp_path / f'{name}.sqlite3'}"
        return str(request.getfixturevalue("postgresql_server").fresh_url())

    return made


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Context]]:
    """Open the one data folder with a ledger."""
    contexts: list[Context] = []
    says(monkeypatch, 0.9)

    def made(url: str) -> Context:
        contexts.append(opened_at(tmp_path, database_url=url, destinations="PACS=dicom://PACS@127.0.0.1:104"))
        return contexts[-1]

    yield made
    for context in contexts:
        context.ledger.close()


def upgrade_to(revision: str, url: str, config: Config | None = None) -> None:
    config = config or _alembic_config()
    engine = open_engine(url)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    engine.dispose()


def copy_rows(source: str, target: str) -> int:
    """Copy what one ledger holds into another as far as that has room for it; return how many rows."""
    read, written = open_engine(source), open_engine(target)
    tables = MetaData()
    tables.reflect(written)
    copied = 0
    with read.connect() as reader, written.begin() as writer:
        for table in tables.sorted_tables:
            if table.name in {"alembic_version", "scheduler_lease"}:  # each ledger has its own
                continue
            present = Table(table.name, MetaData(), autoload_with=reader)
            names = [column.name for column in table.columns if column.name in present.columns]
            rows = reader.execute(select(*(present.columns[name] for name in names))).mappings().all()
            if rows:
                writer.execute(insert(table), [dict(row) for row in rows])
            copied += len(rows)
            if (
                rows
                and writer.dialect.name == "postgresql"
                and "id" in names
                and table.name != "installation"
            ):
                last = max(row["id"] for row in rows)
                writer.execute(text(f"SELECT setval('{table.name}_id_seq', {last})"))
    read.dispose()
    written.dispose()
    return copied


@both
def test_a_ledger_of_the_first_release_goes_on_where_it_was(
    database: str, fresh_url: Callable[[str], str], opened: Callable[..., Context]
) -> None:
    now, then = fresh_url("now"), fresh_url("then")
    context = opened(now)
    first = film("first")
    receive(context, first)
    work(context)
    before = [report.sop_instance_uid for report in reports(context)]
    assert before
    identity = context.ledger.installation()
    upgrade_to("0001", then)
    assert copy_rows(now, then) > 10
    with pytest.raises(ConfigurationError, match="hilum migrate"):
        check_migrated(then)

    migrate(then)
    later = opened(then)
    assert later.ledger.installation() == identity
    assert [report.sop_instance_uid for report in reports(later)] == before
    second = film("second", study="first")
    receive(later, second)
    work(later)
    assert study(later).revision == 2
    assert study(later).state == StudyState.REPORTED
    assert {report.sop_instance_uid for report in reports(later)} > set(before)


@pytest.fixture
def next_version(tmp_path: Path) -> Config:
    """The migrations of a version to come, which changes what this one reads."""
    folder = tmp_path / "migrations"
    shutil.copytree(Path(core_ledger.__file__).parent / "migrations", folder)
    (folder / "versions" / "9999_next.py").write_text(
        f"""
import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "9999", {core_ledger.expected_revision()!r}, None, None


def upgrade():
    op.add_column("study", sa.Column("room", sa.String(8), nullable=False, server_default=""))
    op.drop_table("rejection")
"""
    )
    config = Config()
    config.set_main_option("script_location", str(folder))
    return config


@both
def test_the_way_back_is_the_backup_from_before_the_upgrade(
    database: str,
    fresh_url: Callable[[str], str],
    opened: Callable[..., Context],
    next_version: Config,
    tmp_path: Path,
) -> None:
    url = fresh_url("ledger")
    context = opened(url)
    receive(context, factories.phantom_chest(1, rows=64, columns=64))
    known = study(context).study_instance_uid
    back_up(context.settings, tmp_path / "before")
    context.ledger.close()

    upgrade_to("head", url, next_version)
    for attempt in (check_migrated, migrate):
        with pytest.raises(ConfigurationError, match=r"9999, which this version does not know: .*restore"):
            attempt(url)

    restore(context.settings, tmp_path / "before", "test")
    assert check_migrated(url)
    again = opened(url)
    assert study(again).study_instance_uid == known
    work(again)
    assert reports(again)


def test_the_page_says_what_these_tests_do() -> None:
    page = (Path(__file__).parents[2] / "deploy/upgrade.md").read_text()
    for line in ("hilum backup", "hilum restore", "hilum migrate"):
        assert line in page
    assert not re.search(r"alembic|downgrade", page)
